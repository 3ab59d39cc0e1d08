"""`ecotone deadletter`: look at what was parked, send it back, delete it."""

import base64
import json as json_
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from ecotone_fastapi.adapters.memory import MemoryDeadLetters
from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.application import (
    AppOption,
    FactoryOption,
    JsonOption,
    YesOption,
    address_and_rest,
    app_and,
    load,
    within,
)
from ecotone_fastapi.cli.durations import duration
from ecotone_fastapi.cli.output import harmless, progress_bars, remark, say, say_json, show_error
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, EcotoneError
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.messaging.dead_letter import Progress as Advance
from ecotone_fastapi.messaging.dead_letter_store import (
    EVERYTHING,
    DeadLetterFilter,
    DeadLetterStore,
    ParkedMessage,
)

deadletter: typer.Typer = typer.Typer(no_args_is_help=True)
"""The commands about dead letters."""


def _pairs(values: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for value in values or ():
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise ConfigurationError(f"{value!r} is no header", hint="write NAME=VALUE")
        pairs[name] = text
    return pairs


def _moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        if (age := duration(value)) is not None:
            return datetime.now(UTC) - age
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{value!r} is no moment", hint="write 2026-01-31T12:00, or how long ago it was: 90s, 30m, 2h, 7d, 4w"
        ) from None


AppArgument = Annotated[list[str] | None, app_and()]
AppAndIdArguments = Annotated[list[str] | None, app_and("ID...", "ids of dead letters")]
AllOption = Annotated[bool, typer.Option("--all", help="All that the filters leave.")]


def _filter(
    *,
    handler: Annotated[
        str | None, typer.Option("--handler", metavar="ID", help="Only those that failed in this handler.")
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", help="Only those that were taken from this channel.")
    ] = None,
    error: Annotated[
        str | None,
        typer.Option("--error", metavar="CLASS", help="Only those with this exception, with module or without."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help="Only those parked since then: 2026-01-31T12:00, or 2h for 2 h ago."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="Only those parked before then: a moment, or 7d ago.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only those of this tenant.")] = None,
    having: Annotated[
        list[str] | None,
        typer.Option("--having", metavar="NAME=VALUE", help="Only those with this header; repeatable."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Only those with this in the id, error, traceback, headers or body.")
    ] = None,
) -> DeadLetterFilter:
    return DeadLetterFilter(
        endpoint=handler,
        channel=channel,
        error_type=error,
        since=_moment(since),
        until=_moment(until),
        tenant=tenant,
        headers=_pairs(having),
        text=text,
    )


def _choosing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_filter`, in the place of its parameter `which`."""
    own, options = signature(command), signature(_filter).parameters

    def choose(**given: Any) -> None:
        which = _filter(**{name: given.pop(name) for name in options})
        command(**given, which=which)

    parameters: list[Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += options.values() if name == "which" else [parameter]
    told: Any = choose  # what typer reads
    told.__signature__ = own.replace(parameters=parameters)
    told.__doc__ = command.__doc__
    return choose


@deadletter.callback()
def _deadletter() -> None:
    """List, show, replay and delete messages whose handlers failed for good."""


@deadletter.command("list")
@_choosing
def list_(
    arguments: AppArgument = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    which: DeadLetterFilter,
    limit: Annotated[int, typer.Option(min=1, help="How many are shown at most.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="How many of the newest are left out.")] = 0,
    json: JsonOption = False,
) -> None:
    """List dead letters, the newest first."""
    ecotone, rest = _load(arguments, app, factory=factory, quiet=json)
    if rest:
        raise ConfigurationError(f"list takes no {rest[0]!r}", hint="ecotone deadletter show ID shows one")

    async def look() -> tuple[Sequence[ParkedMessage], int]:
        found = await ecotone.dead_letters.list(which, limit=limit, offset=offset)
        return found, await ecotone.dead_letters.count(which)

    found, count = within(ecotone, look)
    if json:
        say_json({"count": count, "dead_letters": [_told(parked) for parked in found]})
        return
    if found:
        say(_table(found))
    if count > len(found):
        remark(f"{len(found)} of {count}; --limit and --offset show others, --handler, --error, --since, … choose")
    elif not count:
        remark("there is no dead letter" + ("" if which == EVERYTHING else " of this kind"))


@deadletter.command("show")
def show(
    arguments: AppAndIdArguments = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    json: JsonOption = False,
) -> None:
    """Show one dead letter: headers, payload and traceback."""
    ecotone, ids = _load(arguments, app, factory=factory, quiet=json)
    if len(ids) != 1:
        raise ConfigurationError("show takes one id", hint="ecotone deadletter list tells the ids")
    parked = within(ecotone, lambda: ecotone.dead_letters.get(ids[0]))
    if json:
        say_json({**_told(parked), **_payload(parked), "traceback": parked.traceback})
        return
    say(_facts({name: str(value) for name, value in _told(parked).items() if name != "headers" and value is not None}))
    say()
    say(_facts(dict(sorted(parked.message.headers.items()))))
    say()
    say(Text(_shown(parked)))
    if parked.traceback:
        say()
        say(Text(harmless(parked.traceback.rstrip())))


@deadletter.command("replay")
@_choosing
def replay(
    arguments: AppAndIdArguments = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    all_: AllOption = False,
    which: DeadLetterFilter,
    to: Annotated[str | None, typer.Option("--to", metavar="CHANNEL", help="To another channel.")] = None,
    payload: Annotated[
        str | None,
        typer.Option("--payload", metavar="TEXT|@FILE", help="What the message is to say instead; with one id only."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME=VALUE", help="A header to set; repeatable, with one id only."),
    ] = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Send dead letters back to the channels they failed on; only the handler that failed runs again.

    It is given all of its retries. What fails again is parked again.
    """
    edited: dict[str, Any] = {} if payload is None else {"payload": _content(payload)}
    if header:
        edited["headers"] = _pairs(header)
    ecotone, ids = _load(arguments, app, factory=factory, quiet=json)
    _check_choice(ids, which, all_=all_, what="replay")
    if edited and len(ids) != 1:
        raise ConfigurationError("--payload and --header change one message", hint="give its id, and no other")

    async def act(parked_id: str) -> None:
        await ecotone.dead_letters.replay(parked_id, to=to, **edited)

    _each(ecotone, ids or which, act, _Words("replay", "replayed"), ask=not yes, json=json)


@deadletter.command("delete")
@_choosing
def delete(
    arguments: AppAndIdArguments = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    all_: AllOption = False,
    which: DeadLetterFilter,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Delete dead letters for good."""
    ecotone, ids = _load(arguments, app, factory=factory, quiet=json)
    _check_choice(ids, which, all_=all_, what="delete")
    _each(ecotone, ids or which, ecotone.dead_letters.delete, _Words("delete", "deleted"), ask=not yes, json=json)


# ------------------------------------------------------------------------------------------------------- what is meant


def _check_choice(ids: Sequence[str], which: DeadLetterFilter, *, all_: bool, what: str) -> None:
    if ids and (all_ or which != EVERYTHING):
        raise ConfigurationError(f"{what} takes either ids, or --all with filters")
    if not ids and not all_:
        raise ConfigurationError(
            f"it is not said what to {what}",
            hint="give ids, which `ecotone deadletter list` tells, or --all, which takes the same filters as list",
        )


def _content(payload: str) -> bytes:
    if not payload.startswith("@"):
        return payload.encode()
    try:
        return Path(payload[1:]).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the payload cannot be read: {error}") from error


def _load(
    arguments: Sequence[str] | None, app: str | None, *, factory: bool, quiet: bool
) -> tuple[Ecotone, Sequence[str]]:
    address, rest = address_and_rest(arguments or [], app, factory=factory)
    ecotone = load(address, quiet=quiet)
    if isinstance(ecotone.assembly.services.get(DeadLetterStore), MemoryDeadLetters):
        remark("the dead letter of this application is in the memory of its process; from here it looks empty")
    return ecotone, list(dict.fromkeys(rest))


# --------------------------------------------------------------------------------------------------------- bulk work


class _Words(NamedTuple):
    """How what is done is called.

    Args:
        do: Before.
        done: Afterwards.
    """

    do: str
    done: str


def _each(
    ecotone: Ecotone,
    chosen: Sequence[str] | DeadLetterFilter,
    act: Callable[[str], Awaitable[None]],
    words: _Words,
    *,
    ask: bool,
    json: bool,
) -> None:
    """Do something with each dead letter, the oldest first, and tell what became of it."""
    refused: dict[str, EcotoneError] = {}

    async def work() -> int:
        ids = chosen
        if isinstance(ids, DeadLetterFilter):
            ids = await ecotone.dead_letters.ids(ids)
            # What is parked while the question is answered is not part of the answer.
            if ids and ask:
                typer.confirm(f"{words.do} {len(ids)} dead letters?", abort=True, err=True)
        with _bar(words.do, len(ids), hidden=json) as advance:
            for number, parked_id in enumerate(ids, start=1):
                try:
                    await act(parked_id)
                except ChannelError:
                    remark(f"{words.done} {number - 1 - len(refused)} of {len(ids)}")
                    raise
                except EcotoneError as error:
                    refused[parked_id] = error
                advance(number, len(ids))
        return len(ids) - len(refused)

    count = within(ecotone, work)
    if json:
        say_json({words.done: count, "refused": {parked_id: error.what for parked_id, error in refused.items()}})
    else:
        say(f"{words.done} {count}")
    reasons: dict[str, EcotoneError] = {f"{type(error)}{error.hint}": error for error in refused.values()}
    for error in reasons.values():
        show_error(error)
    if len(refused) > len(reasons):
        remark(f"{len(refused)} were refused, for reasons like these")
    if refused:
        raise typer.Exit(2 if all(isinstance(error, ConfigurationError) for error in refused.values()) else 1)


@contextmanager
def _bar(verb: str, total: int, *, hidden: bool) -> Iterator[Advance]:
    with progress_bars(hidden=hidden or total < 2) as progress:
        task = progress.add_task(verb, total=total)
        yield lambda done, _: progress.update(task, completed=done)


# ------------------------------------------------------------------------------------------------------------ to show


def _told(parked: ParkedMessage) -> dict[str, Any]:
    return {
        "id": parked.id,
        "channel": parked.channel,
        "handler": parked.endpoint,
        "error_type": parked.error_type,
        "error_message": parked.error_message,
        "attempts": parked.attempts,
        "deliveries": parked.deliveries,
        "replays": parked.replays,
        "first_failed_at": None if parked.first_failed_at is None else parked.first_failed_at.isoformat(),
        "parked_at": parked.parked_at.isoformat(),
        "headers": dict(parked.message.headers),
    }


def _payload(parked: ParkedMessage) -> dict[str, Any]:
    """The payload for machines: JSON as it is, other text as a text, anything else in base64."""
    raw = parked.message.payload
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(raw).decode()}
    return {"payload": json_.loads(text) if _is_json(parked) else text}


def _shown(parked: ParkedMessage) -> str:
    """The payload for people: JSON with indents, other text as it is, anything else in hexadecimal digits."""
    raw = parked.message.payload
    if _is_json(parked):
        return json_.dumps(json_.loads(raw), indent=2, ensure_ascii=False)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\x00"
    if text == harmless(text):
        return text or "(no payload)"
    return "\n".join(
        f"{start:08x}  {line.hex(' '):<47}  {''.join(chr(one) if 32 <= one < 127 else '.' for one in line)}"
        for start, line in ((start, raw[start : start + 16]) for start in range(0, len(raw), 16))
    )


def _is_json(parked: ParkedMessage) -> bool:
    if "json" not in parked.message.headers.get(HeaderName.content_type, ""):
        return False
    try:
        json_.loads(parked.message.payload)
    except ValueError:  # it may be in the dead letter for that
        return False
    return True


def _table(found: Sequence[ParkedMessage]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True)
    for column in ("PARKED", "CHANNEL", "HANDLER", "ERROR"):
        table.add_column(column, overflow="fold")
    table.add_column("ATTEMPTS", justify="right")
    table.add_column("REPLAYS", justify="right")
    for parked in found:
        table.add_row(
            harmless(parked.id),
            f"{parked.parked_at.astimezone():%Y-%m-%d %H:%M:%S}",
            harmless(parked.channel),
            harmless(parked.endpoint or "-"),
            harmless(_in_one_line(parked)),
            str(parked.attempts),
            str(parked.replays),
        )
    return table


def _in_one_line(parked: ParkedMessage) -> str:
    first = parked.error_message.splitlines()[:1]
    name = parked.error_type.rpartition(".")[2]
    return ": ".join([name, *first])[:200]


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(harmless(name), harmless(value))
    return table
