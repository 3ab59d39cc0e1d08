"""What keeps the partitions of a projection up to date: each in a unit of work with others, or alone when one fails."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio

from ecotone_fastapi.core.errors import ChannelError, ProjectionError
from ecotone_fastapi.modelling.event_storage import StoredEvent
from ecotone_fastapi.modelling.projecting import Projector, Watch
from ecotone_fastapi.modelling.projection_halts import Halts, Round
from ecotone_fastapi.modelling.projection_leases import Lease, Leases, Settings
from ecotone_fastapi.modelling.projection_store import Condition, PartitionRecord, ProjectionRecord

_READ_AHEAD = 4  # how many batches of events the streams of a partitioned projection are told from at a time
_TAKEN_AT_ONCE = 20  # partitions in one unit of work
_SWITCHING = 60.0  # seconds without a statement after which a switch is ended where the server can do that

Finish = Callable[[Lease, Round], Awaitable[None]]
"""Makes a version live that has come to the end."""


class PartitionRunner:
    """Works on the partitions of one projection.

    Args:
        projector: The projection.
        settings: For how long partitions are lent.
        leases: The versions that are lent to this runner.
        halts: Writes down what cannot be handled.
        finish: Makes a version live that has come to the end.
    """

    def __init__(self, projector: Projector, settings: Settings, leases: Leases, halts: Halts, finish: Finish) -> None:
        self.projector = projector
        self._settings = settings
        self._leases = leases
        self._halts = halts
        self._finish = finish
        self._store = projector.store
        self._described = projector.described
        self.name: str = projector.name

    async def advance(self, lease: Lease, done: Round) -> None:
        """Find out which streams have something new; let partitions handle it."""
        if not await self._waits(lease.record):
            await self._look_for_more(lease, done)
        done.at_end = await self.claim(lease.record, done) and not lease.unread
        await self._partitions_at_end(lease, done)

    async def _waits(self, record: ProjectionRecord) -> bool:
        """Whether partitions that are built wait for the live ones.

        Would it look for more meanwhile, it would wait for as long as others append.
        """
        if not self.emits_beside or record.by_hand or record.condition is not Condition.BUILDING:
            return False
        return (await self._store.count(self.name, record.version, record.round)).behind > 0

    async def _look_for_more(self, lease: Lease, done: Round) -> None:
        """Note which streams have something new."""
        record = lease.record
        page = await self.projector.read(record.position, self._described.batch * _READ_AHEAD)
        if page.events:
            wanted: dict[str, int] = {}
            for event in page.events:
                wanted[event.stream] = max(event.version, wanted.get(event.stream, 0))
            after = replace(record, position=page.upto)

            async def act() -> None:
                await self._store.note(record, wanted)
                await self._store.save(record, after)

            await self.projector.unit(act)
            lease.record = after
            done.busy = True
        lease.unread = page.more

    async def has_rest(self, record: ProjectionRecord) -> bool:
        """Whether partitions have something to do at this moment, or somebody is doing it."""
        return await self._store.due_in(self.name, record.version) == 0.0

    async def _partitions_at_end(self, lease: Lease, done: Round) -> None:
        record = lease.record
        if done.at_end and record.condition is Condition.BUILDING:
            counts = await self._store.count(self.name, record.version, record.round)
            if counts.built < counts.total and await self._store.due_in(self.name, record.version) is None:
                await self._store.call(self.name, record.version)  # one was taken when the rebuild began
            if counts.built == counts.total and not counts.halted and not counts.behind:
                lease.record = replace(lease.record, done=counts.built)
                await self._finish(lease, done)

    async def build(self, lease: Lease, done: Round) -> None:
        """Bring every partition of a synchronous projection up to date, one after the other; appenders wait for one."""
        record = lease.record
        streams = await self.projector.streams()
        await self._leases.progress(lease, done=0, total=len(streams))
        for at, stream in enumerate(streams, 1):
            before = len(done.failures)
            await self._alone(record, stream, done)
            if len(done.failures) == before and at % 50 == 0:
                await self._leases.progress(lease, done=at, total=len(streams))
            await anyio.lowlevel.checkpoint()
        done.busy = False
        if not done.failures:
            await self._leases.progress(lease, done=len(streams), total=len(streams))
            await self._finish(lease, done)

    async def take_the_rest(self, record: ProjectionRecord, watch: Watch) -> None:
        """Handle what code of another revision has appended since partitions were built: it has noted where."""
        while found := await self._store.claim(self.name, record.version, limit=_TAKEN_AT_ONCE, seconds=_SWITCHING):
            now = [replace(record, round=one.round) for one in found]
            kept = [await self.projector.advance(of, one, None, watch) for of, one in zip(now, found, strict=True)]
            await self._store.keep(self.name, record.version, kept)
        counts = await self._store.count(self.name, record.version, record.round)
        if counts.behind:
            raise ProjectionError(
                f"version {record.version} of the projection {self.name!r} is not built yet",
                tried=f"{counts.behind} partitions have events that it has not handled",
                hint=f"ecotone projection backfill {self.name} builds it",
            )

    async def claim(self, record: ProjectionRecord, done: Round) -> bool:
        """Let several units of work at a time handle what is due; return whether that was all."""
        errors: list[Exception] = []
        most = 0

        async def claim() -> None:
            nonlocal most
            try:
                most = max(most, await self._claim_some(record, done))
            except Exception as error:
                errors.append(error)

        async with anyio.create_task_group() as workers:
            for _ in range(self._described.concurrency):
                workers.start_soon(claim)
        if errors:
            raise errors[0]
        return most < _TAKEN_AT_ONCE

    async def _claim_some(self, record: ProjectionRecord, done: Round) -> int:
        """Claim some partitions, and let them handle what is new; return how many there were."""
        claimed: list[str] = []

        async def act() -> int:
            claimed.clear()
            found = await self._store.claim(
                record.name, record.version, limit=_TAKEN_AT_ONCE, seconds=self._settings.lease
            )
            claimed.extend(one.stream for one in found)
            kept, handled = [], 0
            now = await self._guarded(record)
            for one in found if now is not None else ():
                after = await self.projector.advance(now or record, one, await self._most(now, one))
                handled += max(0, after.position - one.position)
                kept.append(after)
            if kept:
                await self._store.keep(record.name, record.version, kept)
            return handled

        try:
            handled = await self.projector.unit(act)
        except ChannelError:
            raise
        except Exception:
            if not claimed:
                raise
        else:
            done.handled += handled
            done.busy = done.busy or (bool(claimed) if not self.emits_beside else handled > 0)
            return len(claimed)
        if await self.projector.is_gone(record, token=False):
            return 0
        # One of them has failed, and has taken the others with it: each for itself, then.
        for stream in claimed:
            await self._alone(record, stream, done)
        return len(claimed)

    async def _alone(self, record: ProjectionRecord, stream: str, done: Round) -> None:
        """Handle what is new for one partition; when that fails, it stands still, and all others go on."""
        limit = self._described.batch
        while True:
            watch, found = Watch(), PartitionRecord(stream)

            async def act(watch: Watch = watch, limit: int = limit) -> int:
                nonlocal found
                now = await self._guarded(record)
                found = await self._store.hold(record, stream)
                if now is None:
                    return 0
                after = await self.projector.advance(now, found, min(limit, await self._most(now, found)), watch)
                await self._store.keep(record.name, record.version, [after])
                return max(0, after.position - found.position)

            try:
                handled = await self.projector.unit(act)
            except ChannelError:
                raise
            except Exception as error:
                if await self.projector.is_gone(record, token=False):
                    return
                smaller = watch.smaller
                if smaller and found.round >= record.round:
                    limit = smaller
                    continue
                await self._halt_partition(record, found, watch.event, error, done)
                return
            done.handled += handled
            done.busy = True
            if limit == self._described.batch and handled < limit:
                return
            limit = self._described.batch

    @property
    def emits_beside(self) -> bool:
        """Whether it is to be known exactly what two versions of a partition have emitted."""
        methods = self.projector.methods
        return methods.emits and methods.versioned and not self.projector.synchronous

    async def _guarded(self, record: ProjectionRecord) -> ProjectionRecord | None:
        """Keep a switch from happening before the unit of work ends; return `None` when it has happened already."""
        if not self.emits_beside:
            return record
        for one in await self._store.lock(self.name, shared=True):
            if one.version == record.version and self.projector.is_mine(one):
                return one
        return None

    async def _most(self, record: ProjectionRecord | None, partition: PartitionRecord) -> int:
        """Return how many events a partition may handle: one that is built beside a live one does not overtake it."""
        if record is None or not self.emits_beside or record.by_hand or record.condition is not Condition.BUILDING:
            return self._described.batch
        for one in await self._store.versions(self.name):
            if one.condition is Condition.LIVE:
                live = await self._store.partition(self.name, one.version, partition.stream)
                ahead = (0 if live is None else live.position) - partition.position
                return max(0, min(self._described.batch, ahead))
        return self._described.batch

    async def _halt_partition(
        self,
        record: ProjectionRecord,
        found: PartitionRecord,
        event: StoredEvent | None,
        error: Exception,
        done: Round,
    ) -> None:
        known = await self._store.partition(record.name, record.version, found.stream)
        before = known.halt if known is not None else None
        halt = self._halts.of(event, error, before, stream=found.stream, version=found.position + 1)
        await self._store.halt_partition(record.name, record.version, found.stream, halt, position=found.position)
        done.failures.append(self._halts.failed(halt, error))
