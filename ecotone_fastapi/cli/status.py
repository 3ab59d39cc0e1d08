"""`ecotone status`: how an application is, at one moment or again and again."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Annotated

import anyio
import typer
from pydantic import TypeAdapter
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.application import AppArgument, FactoryOption, JsonOption, address_of, load
from ecotone_fastapi.cli.attention import Limits, needed
from ecotone_fastapi.cli.durations import span_text
from ecotone_fastapi.cli.output import console, harmless, remark, say, say_json
from ecotone_fastapi.core.errors import ConfigurationError, EcotoneError
from ecotone_fastapi.operations.report import ChannelReport, Count, LaneReport, ProjectionReport, Report, VersionReport

_ANSWER = 5.0  # seconds that the database has to tell which consumers pause
_FASTEST = 0.1  # seconds between two reports


def status(
    app: AppArgument = None,
    *,
    factory: FactoryOption = False,
    watch: Annotated[
        float | None,
        typer.Option("--watch", "-w", min=_FASTEST, metavar="SECONDS", help="Tell it again and again, until Ctrl-C."),
    ] = None,
    most_waiting: Annotated[
        int | None, typer.Option("--max-depth", min=0, help="End with 1 when more messages wait on a channel.")
    ] = None,
    longest_wait: Annotated[
        float | None,
        typer.Option("--max-age", min=0, metavar="SECONDS", help="End with 1 when a message has waited for longer."),
    ] = None,
    most_dead_letters: Annotated[
        int | None, typer.Option("--max-dead-letters", min=0, help="End with 1 when more messages were given up.")
    ] = None,
    longest_lag: Annotated[
        float | None,
        typer.Option("--max-lag", min=0, metavar="SECONDS", help="End with 1 when a projection is behind for longer."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Tell how many messages wait, for how long, what was given up, and how far projections are.

    Ends with 1 when a server does not answer or a projection stands still, or when a limit is exceeded that was given.
    What consumers of other processes are doing, these tell themselves: their health checks, their metrics, their page.
    """
    if watch is not None and json:
        raise ConfigurationError(
            "--watch does not go with --json, whose answer is one document", hint="ask again and again"
        )
    limits = Limits(depth=most_waiting, age=longest_wait, dead_letters=most_dead_letters, lag=longest_lag)
    ecotone = load(address_of(app, factory=factory), quiet=json)
    channels = ecotone.assembly.channels.values()
    if channels and all(isinstance(one, MemoryChannel) for one in channels):
        remark("the channels of this application are in the memory of its process; from here they look empty")
    if watch is not None:
        attention = _watch(ecotone, limits, watch)
    else:
        report = asyncio.run(_once(ecotone))
        attention = list(needed(report, limits))
        if json:
            say_json({**_ADAPTER.dump_python(report, mode="json"), "attention": attention})
        else:
            for part in _parts(report):
                say(part)
    for one in attention:
        remark(Text.assemble(("attention: ", "bold red"), harmless(one)))
    if attention:
        raise typer.Exit(1)


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)


async def _reports(ecotone: Ecotone, seconds: float) -> AsyncGenerator[Report, None]:
    # A server that is down is to be told, and must not keep anybody from looking.
    async with ecotone.running(consumers=False, patient=True):
        while True:
            await _learn_pauses(ecotone)
            yield await ecotone.overview.report()
            await anyio.sleep(seconds)


async def _once(ecotone: Ecotone) -> Report:
    reports = _reports(ecotone, 0.0)
    try:
        return await anext(reports)
    finally:
        await reports.aclose()


async def _learn_pauses(ecotone: Ecotone) -> None:
    """Look up which consumers pause in all processes."""
    try:
        async with asyncio.timeout(_ANSWER):
            await ecotone.consumers.look()
    except (EcotoneError, TimeoutError) as error:
        remark(f"cannot tell which consumers pause: {error}".splitlines()[0])


def _watch(ecotone: Ecotone, limits: Limits, seconds: float) -> Sequence[str]:
    """Show reports until somebody interrupts it; return what needed attention in the end."""
    attention: Sequence[str] = ()
    terminal = console().is_terminal
    screen = Live(console=console(), auto_refresh=False, transient=False) if terminal else None

    async def work() -> None:
        nonlocal attention
        reports = _reports(ecotone, seconds)
        try:
            async for report in reports:
                attention = list(needed(report, limits))
                parts = [Text(f"{report.at.astimezone():%H:%M:%S}", "dim"), *_parts(report)]
                if screen is not None:
                    screen.update(Group(*parts), refresh=True)
                else:
                    for part in parts:
                        say(part)
        finally:
            await reports.aclose()

    with screen or nullcontext():
        try:
            asyncio.run(work())
        except KeyboardInterrupt:
            return attention
    return attention


# -------------------------------------------------------------------------------------------------------------- tables


def _parts(report: Report) -> Iterator[RenderableType]:
    tables = [
        _table(("CHANNEL", "TYPE", "WAITING", "OLDEST", "CONSUMER", "PROBLEM"), map(_channel_row, report.channels)),
        _table(("OUTBOX OF", "WAITING", "OLDEST", "RELAY", "PROBLEM"), map(_lane_row, report.outbox)),
        _table(
            ("PROJECTION", "MODE", "VERSION", "CONDITION", "BEHIND", "LAG", "RUNNER", "STANDS STILL"),
            (row for one in report.projections for row in _projection_rows(one)),
        ),
    ]
    for table in tables:
        if table.row_count:
            yield table
            yield Text()
    if report.channels:
        yield Text("Which processes run the consumers is not known here: the health of each tells its own.", "dim")
        yield Text()
    yield Text(f"dead letters: {_counted(report.dead_letters)}", "bold" if report.dead_letters.count else "")
    yield Text(f"scheduled:    {_counted(report.scheduled)}")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    rows = list(rows)
    # Of problems there had better be no word while there is none.
    shown = [at for at, name in enumerate(columns) if name != "PROBLEM" or any(row[at] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (columns[at] for at in shown):
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    for row in rows:
        table.add_row(*(harmless(row[at]) for at in shown))
    return table


_NUMBERS = ("WAITING", "OLDEST", "BEHIND", "LAG")


def _channel_row(one: ChannelReport) -> Sequence[str]:
    return (one.name, one.type, _number(one.depth), _seconds(one.oldest_age), _consumer(one), one.problem or "")


def _consumer(one: ChannelReport) -> str:
    if one.consumer is None:
        return "none"
    if not one.consumer.paused:
        return "not paused"
    return "; ".join(
        f"paused since {pause.since.astimezone():%Y-%m-%d %H:%M:%S}" + (f": {pause.reason}" if pause.reason else "")
        for pause in one.consumer.pauses
    )


def _lane_row(one: LaneReport) -> Sequence[str]:
    return (one.channel, _number(one.depth), _seconds(one.oldest_age), one.relay or "none", one.problem or "")


def _projection_rows(one: ProjectionReport) -> Iterator[Sequence[str]]:
    mode = "-" if one.mode is None else f"{one.mode}, partitioned" if one.partitioned else one.mode
    if not one.versions:
        yield (one.name, mode, "-", "not initialised" if one.problem is None else one.problem, "-", "-", "-", "-")
    for version in one.versions:
        yield (
            one.name,
            mode,
            str(version.number),
            _condition(version),
            str(version.behind),
            _seconds(version.lag),
            version.runner or "-",
            version.halt or one.blocked_by or "-",
        )


def _condition(version: VersionReport) -> str:
    if version.done is None or version.total is None:
        return version.condition
    left = "" if not version.seconds_left else f", {span_text(version.seconds_left)} left"
    return f"{version.condition} {version.done}/{version.total}{left}"


def _counted(count: Count) -> str:
    return str(count.count) if count.count is not None else harmless(count.problem or "not told")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "-" if value is None else span_text(value)
