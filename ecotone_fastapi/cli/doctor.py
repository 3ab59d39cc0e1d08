"""`ecotone doctor`: what is wrong with an application and what it stands on, for people and for CI."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from ecotone_fastapi.cli.application import Address, AppArgument, FactoryOption, JsonOption, address_of, found_at
from ecotone_fastapi.cli.output import harmless, say, say_json
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.examination import Finding, Level
from ecotone_fastapi.operations.doctor import ANSWERING, examine, problems_of
from ecotone_fastapi.operations.installation import examine_installation

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def doctor(
    app: AppArgument = None,
    *,
    factory: FactoryOption = False,
    strict: Annotated[
        bool, typer.Option("--strict", envvar="ECOTONE_STRICT", help="End with 1 also when there is only a warning.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that each server has for each answer.")] = ANSWERING,
    json: JsonOption = False,
) -> None:
    """Examine wiring, tables, servers, clocks, versions, and settings that lose messages. Changes nothing.

    Ends with 1 when there is a problem, for CI.
    """
    address = address_of(app, factory=factory)
    findings = [*_examine(address, timeout, quiet=json), *examine_installation()]
    counts = Counter(one.level for one in findings)
    well = not counts[Level.PROBLEM] and not (strict and counts[Level.WARNING])
    if json:
        told = [{**asdict(one), "level": one.level.value} for one in findings]
        say_json({
            "well": well, "problems": counts[Level.PROBLEM], "warnings": counts[Level.WARNING], "findings": told,
        })  # fmt: skip
    else:
        for line in _lines(findings):
            say(line)
    if not well:
        raise typer.Exit(1)


def _examine(address: Address, timeout: float, *, quiet: bool) -> Sequence[Finding]:
    ecotone = found_at(address, quiet=quiet)
    try:
        assembly = ecotone.assembly
    except ConfigurationError as error:
        return problems_of(error, address.text)
    return asyncio.run(examine(assembly, address.text, timeout=timeout))


def _lines(findings: Sequence[Finding]) -> Iterator[Text]:
    width = max(len(one.topic) for one in findings)
    for one in findings:
        level = (f"{one.level:<8}", _STYLES[one.level])
        yield Text.assemble(level, f" {one.topic:<{width}}  ", (harmless(one.where), "bold"), f": {harmless(one.what)}")
        if one.hint:
            yield Text(f"{'':{width + 11}}Hint: {harmless(one.hint)}", "dim")
    counts = Counter(one.level for one in findings)
    told = [_counted(counts[level], level) for level in (Level.PROBLEM, Level.WARNING) if counts[level]]
    yield Text()
    yield Text(", ".join(told) or "everything is well", "bold")


def _counted(count: int, level: Level) -> str:
    return f"{count} {level}" + ("s" if count > 1 else "")
