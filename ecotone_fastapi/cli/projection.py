"""`ecotone projection`: look at projections, build them, switch between their versions, delete them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from ecotone_fastapi.adapters.memory import MemoryEvents
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
from ecotone_fastapi.cli.output import progress_bars, remark, say, say_json
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.projection_store import Halt
from ecotone_fastapi.modelling.rebuilding import Progress as Advance
from ecotone_fastapi.modelling.rebuilding import Projections, ProjectionStatus, VersionStatus
from ecotone_fastapi.operations.wording import unknown

T = TypeVar("T")

projection: typer.Typer = typer.Typer(no_args_is_help=True)
"""The commands about projections."""

AppArgument = Annotated[list[str] | None, app_and()]
AppAndNames = Annotated[list[str] | None, app_and("NAME...", "names of projections")]
AllOption = Annotated[bool, typer.Option("--all", help="All projections.")]
VersionOption = Annotated[int | None, typer.Option("--version", min=1, help="Which version.")]


@projection.callback()
def _projection() -> None:
    """List, build, rebuild, switch and delete projections."""


@projection.command("list")
def list_(
    arguments: AppArgument = None, *, app: AppOption = None, factory: FactoryOption = False, json: JsonOption = False
) -> None:
    """List all projections: how far they are, how far behind, and which stand still."""
    address, rest = address_and_rest(arguments or [], app, factory=factory)
    if rest:
        raise ConfigurationError("list takes no name", hint="ecotone projection status shows one projection")
    found = _ask(load(address, quiet=json), lambda projections: projections.list())
    if json:
        say_json([_told(one) for one in found])
    elif found:
        say(_table(found))
    else:
        remark("the application has no projection")


@projection.command("status")
def status(
    arguments: AppAndNames = None, *, app: AppOption = None, factory: FactoryOption = False, json: JsonOption = False
) -> None:
    """Show a projection in detail. Ends with 1 when it, or a partition of it, stands still."""
    ecotone, names = _chosen("status", arguments, app, factory=factory, quiet=json)

    async def look(projections: Projections) -> list[tuple[ProjectionStatus, list[tuple[str, Halt]]]]:
        found = []
        for name in names:
            halted = await projections.partitions(name, halted=True)
            found.append(
                (await projections.status(name), [(one.stream, one.halt) for one in halted if one.halt is not None])
            )
        return found

    found = _ask(ecotone, look)
    if json:
        say_json([{**_told(one), "halted_partitions": [_halt(halt) for _, halt in halts]} for one, halts in found])
    else:
        for one, halts in found:
            _show(one, halts)
    if any(halts or any(version.halt for version in one.versions) for one, halts in found):
        raise typer.Exit(1)


@projection.command("init")
def init(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    all_: AllOption = False,
    json: JsonOption = False,
) -> None:
    """Begin projections, and run their init hooks, before the first event does so."""
    ecotone, names = _chosen("init", arguments, app, factory=factory, quiet=json, all_=all_)

    async def begin(projections: Projections) -> dict[str, bool]:
        return {name: await projections.init(name) for name in names}

    begun = _ask(ecotone, begin)
    if json:
        say_json(begun)
        return
    for name, new in begun.items():
        say(f"{name}: {'initialised' if new else 'was initialised already'}")


@projection.command("run")
def run(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    all_: AllOption = False,
    json: JsonOption = False,
) -> None:
    """Let projections handle what is there now, once; `ecotone run` keeps them running."""
    ecotone, names = _chosen("run", arguments, app, factory=factory, quiet=json, all_=all_)

    async def work(_: Projections) -> dict[str, int]:
        return {name: await ecotone.run(name, Limits(until_empty=True)) for name in names}

    handled = _ask(ecotone, work)
    if json:
        say_json({"handled": handled})
        return
    for name, count in handled.items():
        say(f"{name}: handled {count}")


@projection.command("backfill")
def backfill(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    all_: AllOption = False,
    json: JsonOption = False,
) -> None:
    """Let projections, and versions that are being built, handle everything that is there. Nothing is emptied."""
    ecotone, names = _chosen("backfill", arguments, app, factory=factory, quiet=json, all_=all_)
    _build(ecotone, names, "backfilled", lambda projections, name, told: projections.backfill(name, told=told), json)


@projection.command("rebuild")
def rebuild(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    all_: AllOption = False,
    switch: Annotated[
        bool, typer.Option(help="Whether a version that is built beside the live one takes its place in the end.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Make projections anew of all events, while they are live. Ctrl-C leaves the rest to those who run them."""
    ecotone, names = _chosen("rebuild", arguments, app, factory=factory, quiet=json, all_=all_)
    _build(
        ecotone,
        names,
        "rebuilt",
        lambda projections, name, told: projections.rebuild(name, switch=switch, told=told),
        json,
    )


@projection.command("switch")
def switch_(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    version: VersionOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version live that was built beside the live one, in one transaction."""
    ecotone, name = _one("switch", arguments, app, factory=factory, quiet=json)
    number = _ask(ecotone, lambda projections: projections.switch(name, version))
    if json:
        say_json({"name": name, "version": number})
    else:
        say(f"{name}: version {number} is live")


@projection.command("cancel")
def cancel(
    arguments: AppAndNames = None, *, app: AppOption = None, factory: FactoryOption = False, json: JsonOption = False
) -> None:
    """Break off a rebuild: a version beside the live one is deleted, partitions stay as they are."""
    ecotone, name = _one("cancel", arguments, app, factory=factory, quiet=json)
    _ask(ecotone, lambda projections: projections.cancel(name))
    if json:
        say_json({"name": name, "cancelled": True})
    else:
        say(f"{name}: the rebuild was cancelled")


@projection.command("retry")
def retry(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    partition: Annotated[str | None, typer.Option("--partition", metavar="STREAM", help="Only this one.")] = None,
    json: JsonOption = False,
) -> None:
    """Try again now what stands still, without waiting for its time."""
    ecotone, name = _one("retry", arguments, app, factory=factory, quiet=json)
    _ask(ecotone, lambda projections: projections.retry(name, partition))
    if json:
        say_json({"name": name, "partition": partition, "retried": True})
    else:
        say(f"{name}: is tried again")


@projection.command("delete")
def delete(
    arguments: AppAndNames = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    version: VersionOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Delete a projection with all its versions, or an old version, and run its delete hook."""
    ecotone, name = _one("delete", arguments, app, factory=factory, quiet=json)
    what = f"the projection {name}" if version is None else f"version {version} of the projection {name}"
    if not yes and not typer.confirm(
        f"Delete {what}, with its checkpoints and what its delete hook deletes?", err=json
    ):
        raise typer.Exit(1)
    _ask(ecotone, lambda projections: projections.delete(name, version))
    if json:
        say_json({"name": name, "version": version, "deleted": True})
    else:
        say(f"{name}: deleted" + (f" version {version}" if version is not None else ""))


# ------------------------------------------------------------------------------------------------------------ in detail


def _chosen(
    command: str,
    arguments: list[str] | None,
    app: str | None,
    *,
    factory: bool,
    quiet: bool = False,
    all_: bool = False,
) -> tuple[Ecotone, Sequence[str]]:
    address, names = address_and_rest(arguments or [], app, factory=factory)
    ecotone = load(address, quiet=quiet)
    known = ecotone.projections.names
    if all_ and names:
        raise ConfigurationError(f"{command} takes either names or --all")
    if not all_ and not names:
        raise ConfigurationError(
            "no projection is named", hint=f"name some of {', '.join(known) or 'them: there is none'}"
        )
    for name in names:
        if name not in known:
            raise unknown("projection", name, sorted(known))
    return ecotone, list(known) if all_ else names


def _one(
    command: str, arguments: list[str] | None, app: str | None, *, factory: bool, quiet: bool
) -> tuple[Ecotone, str]:
    ecotone, names = _chosen(command, arguments, app, factory=factory, quiet=quiet)
    if len(names) != 1:
        raise ConfigurationError(f"{command} takes one projection")
    return ecotone, names[0]


def _ask(ecotone: Ecotone, work: Callable[[Projections], Awaitable[T]]) -> T:
    if isinstance(ecotone.assembly.services.get(EventStorage), MemoryEvents):
        remark("the events of this application are in the memory of its process; from here there are none")
    return within(ecotone, lambda: work(ecotone.projections), patient=False)


def _build(
    ecotone: Ecotone,
    names: Sequence[str],
    done: str,
    build: Callable[[Projections, str, Callable[[Advance], None]], Awaitable[bool]],
    json: bool,
) -> None:
    with progress_bars() as bars:

        async def work(projections: Projections) -> dict[str, bool]:
            built = {}
            for name in names:
                bar = bars.add_task(name, total=None)

                def told(advance: Advance, bar: Any = bar) -> None:
                    bars.update(bar, completed=advance.done, total=max(advance.total, advance.done))

                built[name] = await build(projections, name, told)
            return built

        try:
            built = _ask(ecotone, work)
        except KeyboardInterrupt:
            remark("left as it is: those who run the projection go on with it, `ecotone projection backfill` does, too")
            if json:
                say_json({"interrupted": True})
            raise typer.Exit(130) from None
    if json:
        say_json(built)
    else:
        for name, well in built.items():
            say(f"{name}: {done}" if well else f"{name}: was cancelled")
    if not all(built.values()):
        raise typer.Exit(1)


def _told(one: ProjectionStatus) -> dict[str, Any]:
    return {
        "name": one.name,
        "mode": one.mode,
        "partitioned": one.partitioned,
        "blocked_by": one.blocked_by,
        "versions": [
            {
                **asdict(version),
                "condition": version.condition.value,
                "halt": _halt(version.halt),
                "progress": None
                if version.progress is None
                else {**asdict(version.progress), "seconds_left": version.progress.left},
            }
            for version in one.versions
        ],
    }


def _halt(halt: Halt | None) -> dict[str, Any] | None:
    return None if halt is None else asdict(halt)


def _table(found: Sequence[ProjectionStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("PROJECTION", "MODE", "VERSION", "CONDITION", "BEHIND", "LAG", "RUNNER", "STANDS STILL"):
        table.add_column(column, overflow="fold")
    for one in found:
        mode = f"{one.mode}, partitioned" if one.partitioned else one.mode
        if not one.versions:
            table.add_row(one.name, mode, "-", "not initialised", "-", "-", "-", "-")
        for version in one.versions:
            table.add_row(
                one.name,
                mode,
                str(version.number),
                _condition(version),
                str(version.behind),
                f"{version.lag:.1f} s",
                version.runner or "-",
                _stands_still(version),
            )
    return table


def _condition(version: VersionStatus) -> str:
    progress = version.progress
    if progress is None:
        return str(version.condition.value)
    left = progress.left
    return f"{version.condition.value} {progress.done}/{progress.total}" + (
        "" if left is None or not left else f", {left:.0f} s left"
    )


def _stands_still(version: VersionStatus) -> str:
    if version.halt is not None:
        return f"at {version.halt.stream} {version.halt.stream_version}"
    if version.partitions is not None and version.partitions.halted:
        return f"{version.partitions.halted} of {version.partitions.total} partitions"
    return "-"


def _show(one: ProjectionStatus, halts: Sequence[tuple[str, Halt]]) -> None:
    say(f"{one.name}: {one.mode}{', partitioned' if one.partitioned else ''}")
    if one.blocked_by:
        say(f"  readers of all events are held up by {one.blocked_by}")
    if not one.versions:
        say("  not initialised")
    for version in one.versions:
        say(
            f"  version {version.number}, revision {version.revision}: {_condition(version)}, {version.behind} events "
            f"behind, for {version.lag:.1f} s, at position {version.position}, run by {version.runner or 'nobody'}"
        )
        if version.partitions is not None:
            counts = version.partitions
            say(f"    partitions: {counts.total}, {counts.behind} behind, {counts.halted} stand still")
        if version.halt is not None:
            _explain(version.halt)
    for _, halt in halts:
        _explain(halt)


def _explain(halt: Halt) -> None:
    say(
        f"    stands still at version {halt.stream_version} of {halt.stream}, {halt.event or 'no event'}, since "
        f"{halt.since.astimezone():%Y-%m-%d %H:%M:%S}, attempt {halt.attempts}, again at "
        f"{halt.retry_at.astimezone():%H:%M:%S}"
    )
    say(f"      {halt.error_type}: {halt.error_message.splitlines()[0] if halt.error_message else ''}")
