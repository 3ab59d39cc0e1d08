"""`ecotone migrate`: bring the tables of all databases up to date."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from ecotone_fastapi.cli.application import AppArgument, FactoryOption, JsonOption, address_of, load
from ecotone_fastapi.cli.output import remark, say, say_json
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.plugin import Migratable


def migrate(
    app: AppArgument = None,
    *,
    factory: FactoryOption = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for empty databases, and change nothing.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print what is missing, change nothing, and end with 1 if there is any.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Create the tables that are missing, and change those that are of an older version.

    May be run by several processes at once, and again at any time.
    """
    if sql and check:
        raise ConfigurationError("--sql does not go with --check")
    ecotone = load(address_of(app, factory=factory), quiet=json or sql)
    targets = {one.name: one for one in ecotone.assembly.plugins if isinstance(one, Migratable)}
    if sql and json:
        say_json({"sql": {name: target.migration_sql() for name, target in targets.items()}})
    elif sql:
        for name, target in targets.items():
            say(f"-- {name}\n{target.migration_sql()}")
    else:
        report = asyncio.run(_ask(targets, check=check))
        _show(report, check=check, json=json)
        if check and any(report.values()):
            raise typer.Exit(1)
    if not targets:
        remark("nothing to migrate: no plugin keeps tables")


async def _ask(targets: Mapping[str, Migratable], *, check: bool) -> dict[str, Sequence[str]]:
    return {name: list(await (target.missing() if check else target.migrate())) for name, target in targets.items()}


def _show(report: dict[str, Sequence[str]], *, check: bool, json: bool) -> None:
    if json:
        say_json({"missing" if check else "done": report})
        return
    for name, lines in report.items():
        for line in lines or ["up to date"]:
            say(f"{name}: lacks {line}" if check and lines else f"{name}: {line}")
