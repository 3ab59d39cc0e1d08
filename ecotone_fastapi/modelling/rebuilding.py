"""What can be done about projections: look at them, make them anew, switch between versions, delete them.

    async def rebuild(projections: Projections) -> None:
        await projections.rebuild("wallet_balances")

A projection whose methods ask for `ProjectionVersion` is made anew beside the live one, and switched in one
transaction. Of a partitioned one, every partition is made anew in one transaction. Any other is emptied first, and
those who ask it meanwhile see it grow.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import ConfigurationError, LeaseLostError, ProjectionError
from ecotone_fastapi.modelling.event_storage import START
from ecotone_fastapi.modelling.projecting import EMITTED, Projector
from ecotone_fastapi.modelling.projection_runner import ProjectionRunner
from ecotone_fastapi.modelling.projection_store import (
    EVER,
    Condition,
    Halt,
    PartitionCounts,
    PartitionRecord,
    ProjectionRecord,
)
from ecotone_fastapi.modelling.projections import Hook, Run
from ecotone_fastapi.modelling.revisions import take_left

_SHORT = 30.0  # seconds for which a version is taken from its runner


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a version is that is being built.

    Args:
        done: How many events were handled; of a partitioned one, how many partitions are up to date.
        total: How many there were to handle when it began.
        seconds: For how long it has been going on.
    """

    done: int
    total: int
    seconds: float

    @property
    def part(self) -> float:
        """Which part of it is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0

    @property
    def left(self) -> float | None:
        """After how many seconds it can be expected to be done; `None` when that cannot be told yet."""
        if self.done >= self.total:
            return 0.0
        return self.seconds * (self.total - self.done) / self.done if self.done > 0 and self.seconds > 0 else None


Told = Callable[[Progress], Awaitable[None] | None]
"""Is told from time to time how far a version is."""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """How one version of a projection is.

    Args:
        number: Its number.
        revision: The generation of the code that works on it.
        condition: `live`, `building` or `retired`.
        position: Up to which event it has come.
        behind: How many events it has not handled that can be read.
        lag: For how many seconds the oldest of them has waited; 0 without any.
        runner: Who runs it at this moment.
        halt: Why it stands still.
        progress: How far it is, while it is building.
        partitions: How its partitions are, when it has any.
    """

    number: int
    revision: int
    condition: Condition
    position: str
    behind: int
    lag: float
    runner: str | None
    halt: Halt | None
    progress: Progress | None
    partitions: PartitionCounts | None


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """How a projection is.

    Args:
        name: Its name.
        mode: When its handlers run.
        partitioned: Whether it has partitions.
        versions: Its versions; none before it was initialised.
        blocked_by: What keeps readers of all events from seeing more, in words.
    """

    name: str
    mode: str
    partitioned: bool
    versions: Sequence[VersionStatus]
    blocked_by: str

    @property
    def live(self) -> VersionStatus | None:
        """The version that is live."""
        return next((one for one in self.versions if one.condition is Condition.LIVE), None)


class Projections:
    """The projections of an application, for handlers, endpoints and programs that ask for it by its type.

    Example:
        >>> async def balance(wallet_id: str, projections: Projections) -> int:
        ...     return await projections.state("wallet_balance", f"wallet-{wallet_id}")
    """

    def __init__(self, runners: Mapping[str, ProjectionRunner], clock: Clock) -> None:
        self._runners = runners
        self._clock = clock

    @property
    def names(self) -> Sequence[str]:
        """The names of all projections."""
        return list(self._runners)

    # -------------------------------------------------------------------------------------------------------- looking

    async def list(self) -> Sequence[ProjectionStatus]:
        """Return how all projections are."""
        return [await self.status(name) for name in self._runners]

    async def status(self, name: str) -> ProjectionStatus:
        """Return how a projection is, and how far behind.

        Raises:
            ProjectionError: There is none with this name.
        """
        projector = self._projector(name)
        described = projector.described
        versions = [await self._status(projector, one) for one in await projector.store.versions(name)]
        blocked_by = "" if projector.synchronous else (await projector.events.storage.horizon()).blocked_by
        return ProjectionStatus(name, described.mode, described.partitioned, versions, blocked_by)

    async def state(self, name: str, partition: str | None = None, *, version: int | None = None) -> Any:
        """Return the state of a projection.

        Args:
            name: The projection.
            partition: The stream, when the projection is partitioned.
            version: The version; the live one unless told otherwise.

        Raises:
            ProjectionError: There is no such projection or version, or it has no state.
            ConfigurationError: A partition is to be named, or there are none.
        """
        projector = self._projector(name)
        if not projector.methods.stateful:
            raise ProjectionError(
                f"the projection {name!r} has no state",
                hint="give a handler a parameter that is one: count: Annotated[int, ProjectionState(0)]",
            )
        if projector.described.partitioned is (partition is None):
            raise ConfigurationError(
                f"the projection {name!r} is {'' if partition is None else 'not '}partitioned",
                hint="name the stream whose state is meant, if and only if it is",
            )
        record = await self._current(projector, version)
        if record is None:
            return projector.load(None)
        if partition is None:
            return projector.load_of(record, record.state)
        found = await projector.store.partition(name, record.version, partition)
        return projector.load_of(record, None if found is None else found.state)

    async def partitions(
        self, name: str, *, halted: bool = False, after: str = "", limit: int = 100
    ) -> Sequence[PartitionRecord]:
        """Return the partitions of the live version in the order of their streams.

        Args:
            name: The projection.
            halted: Only those that stand still.
            after: Only those behind this stream.
            limit: How many at most.
        """
        projector = self._projector(name)
        record = await self._current(projector, None)
        if record is None:
            return ()
        return await projector.store.partitions(name, record.version, after=after, limit=limit, halted=halted)

    # ---------------------------------------------------------------------------------------------------------- doing

    async def init(self, name: str) -> bool:
        """Begin a projection, if that has not happened yet, and run its `init`; return whether it is new."""
        projector = self._projector(name)
        known = await projector.store.versions(name)
        return len(await projector.mine()) > 0 and not any(projector.is_mine(one) for one in known)

    async def backfill(self, name: str, *, told: Told | None = None) -> bool:
        """Let a projection handle everything that is there, from where it is; return whether it came to the end.

        Args:
            name: The projection.
            told: Is told how far it is.

        Raises:
            ProjectionError: It stands still.
        """
        projector, runner = self._outside(name), self._runners[name].another()
        await projector.mine()
        if projector.synchronous and projector.described.partitioned:
            await projector.unit(lambda: self._visit_partitions(projector))
        result = True
        for record in await projector.mine():
            if projector.synchronous and record.condition is Condition.LIVE:
                await runner.settle(record)
            else:
                result = await runner.build(record.version, self._telling(told), live=True) and result
        return result

    async def rebuild(self, name: str, *, switch: bool = True, told: Told | None = None) -> bool:
        """Make a projection anew of all events, while it is live; return whether it was done, not cancelled.

        Everything that could be read when it began is in it then; a new version is not switched before that. What
        others append meanwhile may come a little later, unless the projection is synchronous. When this process dies
        meanwhile, the runner of the projection goes on with it.

        Args:
            name: The projection.
            switch: Whether a version that was built beside the live one takes its place in the end.
            told: Is told how far it is.

        Raises:
            ProjectionError: It cannot be emptied, is being rebuilt already, or stands still.
        """
        version = await self.begin_rebuild(name, switch=switch)
        return await self._runners[name].another().build(version, self._telling(told))

    async def begin_rebuild(self, name: str, *, switch: bool = True) -> int:
        """Begin to make a projection anew, and leave the rest to those who run it; return the version that is built.

        When nobody runs the projection, it stays as it was begun until somebody does, or calls `backfill`.

        Args:
            name: The projection.
            switch: Whether a version that is built beside the live one takes its place in the end.

        Raises:
            ProjectionError: It cannot be emptied, or is being rebuilt already.
        """
        projector = self._outside(name)
        await projector.mine()
        if projector.methods.versioned:
            version: int = await projector.unit(lambda: self._begin_beside(projector, by_hand=not switch))
            return version
        return await self._begin_in_place(projector)

    async def switch(self, name: str, version: int | None = None) -> int:
        """Make a version live that was built beside the live one, in one transaction; return its number.

        Raises:
            ProjectionError: There is none, or it is not built yet.
        """
        projector = self._outside(name)
        record = await self._building(projector, version)
        token = await self._take(projector, record)

        async def act() -> None:
            versions = {one.version: one for one in await projector.store.lock(name)}
            now = versions[record.version]
            if now.done < now.total:
                raise ProjectionError(
                    f"version {now.version} of the projection {name!r} is not built yet",
                    tried=f"{now.done} of {now.total} handled",
                    hint=f"ecotone projection backfill {name} builds it",
                )
            if await self._runners[name].switch(versions, now) is None:
                raise ProjectionError(
                    f"version {now.version} of the projection {name!r} is further than the live one",
                    tried="what the live version has not emitted yet would be emitted by nobody",
                    hint="let the live version catch up first, or delete it",
                )

        try:
            await projector.unit(act)
        finally:
            await projector.store.release(name, record.version, token)
        return record.version

    async def cancel(self, name: str) -> None:
        """Break off what a rebuild has begun: a version beside the live one is deleted, partitions stay as they are.

        Raises:
            ProjectionError: Nothing is being rebuilt, or it was emptied, so that only its end makes it whole again.
        """
        projector = self._outside(name)
        record = await self._building(projector, None)
        live = await self._current(projector, None)
        if live is not None and live.condition is Condition.LIVE:
            await self._remove(projector, record)
        elif projector.described.partitioned and record.round > 0:

            async def act() -> None:
                for one in await projector.store.lock(name):
                    if one.version == record.version:
                        await projector.store.accept(name, one.version, one.round)
                        await projector.store.change(replace(one, condition=Condition.LIVE))

            await projector.unit(act)
        else:
            raise ProjectionError(
                f"the rebuild of the projection {name!r} cannot be cancelled",
                tried="it was emptied: only its end makes it whole again",
                hint="let its methods ask for ProjectionVersion: then it is rebuilt beside the live version",
            )

    async def retry(self, name: str, partition: str | None = None) -> None:
        """Try again now what stands still: the projection, all of its partitions, or one of them."""
        projector = self._projector(name)

        async def act() -> None:
            for one in await projector.store.lock(name):
                if one.halt is not None and partition is None:
                    await projector.store.change(replace(one, halt=replace(one.halt, retry_at=self._clock.now())))
                if projector.described.partitioned:
                    await projector.store.call(name, one.version, partition, halted=True)

        await projector.unit(act)

    async def delete(self, name: str, version: int | None = None) -> None:
        """Delete a projection with all of its versions, or one version that is not live, and run its `delete`.

        Its code begins anew with its next event, or with `init`. What it has emitted is deleted with its last version.

        Raises:
            ProjectionError: The version is not there, or live.
        """
        projector = self._outside(name)
        versions = await projector.store.versions(name)
        if version is not None:
            found = [one for one in versions if one.version == version]
            if not found or found[0].condition is Condition.LIVE:
                raise ProjectionError(
                    f"version {version} of the projection {name!r} is {'live' if found else 'not there'}",
                    hint="switch first, or delete the projection with all of its versions",
                )
            versions = found
        for record in versions:
            await self._remove(projector, record)
        if version is None:
            await projector.unit(lambda: self._delete_emitted(projector))

    # ------------------------------------------------------------------------------------------------------- in detail

    def _projector(self, name: str) -> Projector:
        runner = self._runners.get(name)
        if runner is None:
            raise ProjectionError(
                f"there is no projection {name!r}", tried=", ".join(sorted(self._runners)) or "there are none"
            )
        return runner.projector

    def _outside(self, name: str) -> Projector:
        """Return a projection about which something is done that takes several transactions."""
        if current_scope() is not None:
            raise ProjectionError(
                f"the projection {name!r} cannot be changed in a handler",
                tried="it takes transactions of its own, and waits for those that are open",
                hint="do it in an endpoint, a program, or with `ecotone projection`",
            )
        return self._projector(name)

    def _telling(self, told: Told | None) -> Callable[[ProjectionRecord], Awaitable[None]]:
        async def tell(record: ProjectionRecord) -> None:
            if told is not None:
                waited = told(self._progress(record))
                if waited is not None:
                    await waited

        return tell

    def _progress(self, record: ProjectionRecord) -> Progress:
        began_at = record.began_at
        seconds = (self._clock.now() - began_at).total_seconds() if began_at is not None else 0.0
        return Progress(record.done, record.total, max(0.0, seconds))

    async def _current(self, projector: Projector, version: int | None) -> ProjectionRecord | None:
        versions = await projector.store.versions(projector.name)
        if version is not None:
            found = [one for one in versions if one.version == version]
            if not found:
                raise ProjectionError(
                    f"there is no version {version} of the projection {projector.name!r}",
                    tried=", ".join(str(one.version) for one in versions) or "there is none",
                )
            return found[0]
        live = [one for one in versions if one.condition is Condition.LIVE]
        return next(iter([*live, *versions]), None)

    async def _building(self, projector: Projector, version: int | None) -> ProjectionRecord:
        versions = await projector.store.versions(projector.name)
        found = [one for one in versions if one.condition is Condition.BUILDING and version in (None, one.version)]
        if not found:
            raise ProjectionError(
                f"no version of the projection {projector.name!r} is being built",
                tried=", ".join(f"{one.version}: {one.condition}" for one in versions) or "it has none",
                hint=f"ecotone projection rebuild {projector.name} begins one",
            )
        return found[-1]

    async def _status(self, projector: Projector, record: ProjectionRecord) -> VersionStatus:
        storage, described = projector.events.storage, projector.described
        partitions = None
        behind, lag = 0, 0.0
        follows = record.condition is Condition.LIVE and projector.synchronous
        if described.partitioned:
            partitions = await projector.store.count(record.name, record.version, record.round)
            behind = partitions.events
        elif follows:
            behind = (await projector.store.count(record.name, record.version, record.round)).events
        if record.condition is not Condition.RETIRED and not follows:
            if not (projector.synchronous and described.partitioned):
                behind += await storage.count(after=record.position, which=projector.which)
                page = await storage.read_all(after=record.position, limit=1, which=projector.which)
                if page.events:
                    lag = (self._clock.now() - page.events[0].recorded_at).total_seconds()
            halts = [record.halt] if record.halt is not None else []
            if partitions is not None and partitions.halted:
                found = await projector.store.partitions(record.name, record.version, halted=True)
                halts += [one.halt for one in found if one.halt is not None]
            lag = max([lag, *((self._clock.now() - one.since).total_seconds() for one in halts)])
        builds = record.condition is Condition.BUILDING
        if builds and partitions is not None and not projector.synchronous:
            record = replace(record, done=partitions.built - partitions.behind, total=max(1, partitions.total))
        return VersionStatus(
            record.version,
            record.revision,
            record.condition,
            str(record.position),
            behind,
            max(0.0, lag),
            record.runner if record.leased else None,
            record.halt,
            self._progress(record) if builds else None,
            partitions,
        )

    async def _begin_beside(self, projector: Projector, *, by_hand: bool) -> int:
        versions = await projector.store.lock(projector.name)
        building = [one for one in versions if one.condition is Condition.BUILDING]
        if building:
            raise ProjectionError(
                f"version {building[0].version} of the projection {projector.name!r} is being built already",
                hint=f"ecotone projection backfill {projector.name} goes on with it, cancel deletes it",
            )
        record = ProjectionRecord(
            projector.name,
            1 + max((one.version for one in versions), default=0),
            projector.described.shape,
            projector.described.revision,
            Condition.BUILDING,
            silent_until=EVER,
            by_hand=by_hand,
            total=await projector.size(START),
            began_at=self._clock.now(),
        )
        await projector.add(record)
        return record.version

    async def _begin_in_place(self, projector: Projector) -> int:
        projector.check_resettable()
        record = (await projector.mine())[-1]
        if projector.described.partitioned:
            await projector.unit(lambda: self._begin_partitions(projector, record))
            return record.version
        if projector.synchronous and projector.methods.emits:
            raise ProjectionError(
                f"the projection {projector.name!r} emits, and cannot be emptied while others append",
                tried="what is appended meanwhile would be emitted by nobody",
                hint="let its methods ask for ProjectionVersion: then it is rebuilt beside the live version",
            )
        token = await self._take(projector, record)

        async def act() -> None:
            # Appenders hold the version before they touch the tables; a runner does so after that, and has no right to
            # go on by now.
            versions = await projector.store.lock(projector.name) if projector.synchronous else ()
            await projector.empty(Run(record))
            versions = versions or await projector.store.lock(projector.name)
            now = next((one for one in versions if one.version == record.version), None)
            if now is None or now.token != token:
                raise LeaseLostError(f"somebody else rebuilds the projection {projector.name!r}")
            if projector.synchronous:
                await take_left(projector.store, projector.events.storage, now)  # it is read again with everything else
            await projector.store.change(
                replace(
                    now,
                    condition=Condition.BUILDING,
                    position=START,
                    state=None,
                    silent_until=max(now.silent_until, now.position),
                    done=0,
                    total=await projector.size(START),
                    began_at=self._clock.now(),
                    halt=None,
                )
            )

        try:
            await projector.unit(act)
        finally:
            await projector.store.release(projector.name, record.version, token)
        return record.version

    async def _begin_partitions(self, projector: Projector, record: ProjectionRecord) -> None:
        for one in await projector.store.lock(projector.name):
            if one.version == record.version:
                await projector.store.change(
                    replace(
                        one,
                        condition=Condition.BUILDING,
                        round=one.round + 1,
                        done=0,
                        total=await projector.size(START),
                        began_at=self._clock.now(),
                    )
                )
                await projector.store.call(one.name, one.version)

    async def _visit_partitions(self, projector: Projector) -> None:
        for one in await projector.store.lock(projector.name):
            if projector.is_mine(one) and one.condition is Condition.LIVE:
                began = replace(one, condition=Condition.BUILDING, done=0, total=0, began_at=self._clock.now())
                await projector.store.change(began)

    async def _take(self, projector: Projector, record: ProjectionRecord) -> int:
        """Take a version from its runner, whose batch under way is refused from now on."""
        token = await projector.store.lease(
            record.name, record.version, self._runners[record.name].id, _SHORT, force=True
        )
        if token is None:
            raise ProjectionError(f"version {record.version} of the projection {record.name!r} is gone")
        return token

    async def _remove(self, projector: Projector, record: ProjectionRecord) -> None:
        await self._take(projector, record)

        async def act() -> None:
            await projector.hook(Hook.DELETE, Run(record))
            await projector.store.lock(record.name)
            await projector.store.remove(record.name, record.version)

        async def act_first() -> None:
            await projector.store.lock(record.name)
            await act()

        await projector.unit(act_first if projector.synchronous else act)

    async def _delete_emitted(self, projector: Projector) -> None:
        storage, own = projector.events.storage, f"{EMITTED}-{projector.name}"
        if not projector.methods.emits:
            return
        if not projector.described.partitioned:
            await storage.delete(own)
            return
        page = await storage.streams(EMITTED)
        while page:
            for stream in page:
                if stream.startswith(f"{own}-"):
                    await storage.delete(stream)
            page = await storage.streams(EMITTED, after=page[-1])
