"""`ecotone pause` and `ecotone resume`: consumers rest while their messages wait, in all processes."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.application import AppOption, FactoryOption, JsonOption, address_and_rest, app_and, load
from ecotone_fastapi.cli.output import say, say_json
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.operations.wording import unknown

Arguments = Annotated[list[str] | None, app_and("CHANNEL", "the channels whose consumers are meant")]


def pause(
    arguments: Arguments = None,
    *,
    reason: Annotated[str, typer.Option(help="Why; shown by health checks and `ecotone list`.")] = "",
    app: AppOption = None,
    factory: FactoryOption = False,
    json: JsonOption = False,
) -> None:
    """Let the consumers of channels pause, in all processes, until they are resumed.

    They finish what is under way, and give back what they have not begun. Running processes learn of it within seconds.
    """
    ecotone, names = _found(arguments, app, factory=factory, quiet=json)

    async def pause_all() -> None:
        for name in names:
            await ecotone.consumers.pause(name, reason=reason)

    asyncio.run(pause_all())
    _show("paused", names, json=json)


def resume(
    arguments: Arguments = None, *, app: AppOption = None, factory: FactoryOption = False, json: JsonOption = False
) -> None:
    """Let the consumers of channels go on that were paused."""
    ecotone, names = _found(arguments, app, factory=factory, quiet=json)

    async def resume_all() -> None:
        for name in names:
            await ecotone.consumers.resume(name)

    asyncio.run(resume_all())
    _show("resumed", names, json=json)


def _show(done: str, names: Sequence[str], *, json: bool) -> None:
    if json:
        say_json({done: list(names)})
        return
    for name in names:
        say(f"{name}: {done}")


def _found(
    arguments: list[str] | None, app: str | None, *, factory: bool, quiet: bool
) -> tuple[Ecotone, Sequence[str]]:
    address, names = address_and_rest(arguments or [], app, factory=factory)
    ecotone = load(address, quiet=quiet)
    consumers = sorted(name for name, one in ecotone.assembly.runnables.items() if isinstance(one, Consumer))
    if not names:
        raise ConfigurationError("no channel is named", hint=f"name some of {', '.join(consumers) or 'them'}")
    for name in names:
        if name not in consumers:
            raise unknown("consumer", name, consumers)
    if not ecotone.consumers.shared:
        raise ConfigurationError(
            "no other process would learn of it: the application has no database",
            hint="give Ecotone the database, plugins=[database], or call ecotone.consumers.pause(...) in the process "
            "itself",
        )
    return ecotone, names
