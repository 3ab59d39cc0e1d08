"""`ecotone scheduled`: look at what waits under a key, call it off, put it off."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.table import Table

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.application import (
    AppOption,
    FactoryOption,
    JsonOption,
    address_and_rest,
    app_and,
    is_configured,
    load,
    within,
)
from ecotone_fastapi.cli.durations import duration
from ecotone_fastapi.cli.output import remark, say, say_json
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.messaging.scheduling import ScheduledMessage, ScheduledMessages

T = TypeVar("T")

scheduled: typer.Typer = typer.Typer(no_args_is_help=True)
"""The commands about what waits under a key."""

Arguments = Annotated[list[str] | None, app_and("[KEY]", "the key")]


@scheduled.callback()
def _scheduled() -> None:
    """List, cancel and reschedule messages that wait under a key."""


@scheduled.command("list")
def list_(
    arguments: Arguments = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    channel: Annotated[str | None, typer.Option("--channel", help="Only those that will come to this channel.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many are shown at most.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="How many of the next ones are left out.")] = 0,
    json: JsonOption = False,
) -> None:
    """List what waits, the next one first; with a key, only what waits under it."""
    # A lone argument is the application if it can be one: to list needs no key.
    address, keys = address_and_rest(arguments or [], app, factory=factory)
    if len(keys) > 1:
        raise ConfigurationError("list takes one key, or none")
    ecotone = load(address, quiet=json)
    key = keys[0] if keys else None
    # One more tells whether there are more.
    found = _ask(ecotone, lambda all_: all_.list(key, channel=channel, limit=limit + 1, offset=offset))
    if json:
        say_json({"scheduled": [_told(one) for one in found[:limit]], "more": len(found) > limit})
        return
    if found:
        say(_table(found[:limit]))
    if len(found) > limit:
        remark("there are more; --limit and --offset show them")
    elif not found:
        remark("nothing waits under a key" if key is None else f"nothing waits under the key {key!r}")


@scheduled.command("cancel")
def cancel(
    arguments: Arguments = None, *, app: AppOption = None, factory: FactoryOption = False, json: JsonOption = False
) -> None:
    """Remove what waits under a key. Ends with 1 when there is nothing."""
    ecotone, key = _load_with_key("cancel", arguments or [], app, factory=factory, quiet=json)
    _report("cancelled", key, _ask(ecotone, lambda all_: all_.cancel(key)), json=json)


@scheduled.command("reschedule")
def reschedule(
    arguments: Arguments = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    after: Annotated[
        str | None, typer.Option("--in", metavar="TIME", help="How long from now on: 90s, 30m, 2h, 7d, 4w, or 0s.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="MOMENT", help="When: 2026-01-31T12:00, or with an offset from UTC.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Let what waits under a key be due at another time. Ends with 1 when there is nothing."""
    to = _time(after, at)
    ecotone, key = _load_with_key("reschedule", arguments or [], app, factory=factory, quiet=json)
    _report("rescheduled", key, _ask(ecotone, lambda all_: all_.reschedule(key, to)), json=json)


def _time(after: str | None, at: str | None) -> timedelta | datetime:
    if (after is None) == (at is None):
        raise ConfigurationError("it is not said when", hint="give either --in 2h or --at 2026-01-31T12:00")
    try:
        if (wait := duration(after or "")) is not None:
            return wait
        return datetime.fromisoformat(at or "").astimezone()
    except (ValueError, OverflowError):
        hint = "write --in 90s, 30m, 2h, 7d, 4w or --at 2026-01-31T12:00"
        raise ConfigurationError(f"{at or after!r} is no time", hint=hint) from None


def _load_with_key(
    command: str, arguments: Sequence[str], app: str | None, *, factory: bool, quiet: bool
) -> tuple[Ecotone, str]:
    if app is None and len(arguments) == 1 and is_configured():
        # A key may look like an application, but what is configured need not be named.
        address, keys = address_and_rest([], None, factory=factory)[0], arguments
    else:
        address, keys = address_and_rest(arguments, app, factory=factory)
    if len(keys) != 1:
        raise ConfigurationError(f"{command} takes one key", hint="ecotone scheduled list tells the keys")
    return load(address, quiet=quiet), keys[0]


def _ask(ecotone: Ecotone, work: Callable[[ScheduledMessages], Awaitable[T]]) -> T:
    channels = ecotone.assembly.channels.values()
    if channels and all(isinstance(one, MemoryChannel) for one in channels):
        remark("the channels of this application are in the memory of its process; from here they look empty")
    return within(ecotone, lambda: work(cast("ScheduledMessages", ecotone.assembly.services[ScheduledMessages])))


def _report(done: str, key: str, count: int, *, json: bool) -> None:
    if json:
        say_json({done: count})
    else:
        say(f"{done} {count}")
    if not count:
        remark(f"nothing waits under the key {key!r}")
        raise typer.Exit(1)


def _told(one: ScheduledMessage) -> dict[str, Any]:
    return {
        "key": one.key,
        "due_at": one.due_at.isoformat(),
        "channel": one.channel,
        "handler": one.endpoint,
        "headers": dict(one.message.headers),
    }


def _table(found: Sequence[ScheduledMessage]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("KEY", "DUE", "CHANNEL", "HANDLER", "ID"):
        table.add_column(column, overflow="fold")
    for one in found:
        table.add_row(
            one.key, f"{one.due_at.astimezone():%Y-%m-%d %H:%M:%S}", one.channel, one.endpoint or "-", one.message.id
        )
    return table
