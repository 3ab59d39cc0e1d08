"""What keeps projections up to date beside the application: one runner at a time, by a lease, for every version.

A version is lent to a runner for some seconds, which it renews. When it dies, another one takes over; when it was only
frozen, what it writes under its old token is refused, and its unit of work is rolled back.
"""

import logging
import os
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import uuid4

import anyio

from ecotone_fastapi.core.errors import ChannelError, LeaseLostError, ProjectionError
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.modelling.event_store import StoredEvent
from ecotone_fastapi.modelling.projecting import Projector, Watch
from ecotone_fastapi.modelling.projection_store import Condition, Halt, PartitionRecord, ProjectionRecord
from ecotone_fastapi.modelling.switching import switch, would_lose

logger: logging.Logger = logging.getLogger("ecotone_fastapi.projections")

_IDLE = 5.0  # seconds after which the runner of a synchronous projection looks whether it is to be built
_READ_AHEAD = 4  # how many batches of events the streams of a partitioned projection are told from at a time
_TAKEN_AT_ONCE = 20  # partitions in one unit of work
_SWITCHING = 60.0  # seconds without a statement after which a switch is ended where the server can do that


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How projections are run.

    Args:
        lease: Seconds for which a version is lent to its runner.
        first: Seconds after which what stands still is tried again for the first time; then twice as long each time.
        longest: Seconds that it never waits longer.
    """

    lease: float = 30.0
    first: float = 1.0
    longest: float = 300.0

    def delay(self, attempts: int) -> float:
        """Return the seconds to wait after so many attempts."""
        return float(min(self.longest, self.first * 2.0 ** min(attempts - 1, 60)))


class Lease:
    """A version that is lent to this runner.

    Args:
        record: The version.

    Attributes:
        lost: Whether somebody else has it by now.
        scope: What is done under it at this moment.
        limit: How many events the next batch may have, after a failure.
        built: Whether it was written down that the version is built, and waits to be switched.
        ahead: Whether it is built, and waits for the live version to emit as much as it has handled.
    """

    def __init__(self, record: ProjectionRecord) -> None:
        self.record = record
        self.lost: bool = False
        self.scope: anyio.CancelScope | None = None
        self.limit: int | None = None
        self.built: bool = False
        self.ahead: bool = False


@dataclass
class _Round:
    """What became of one look at all versions.

    Attributes:
        handled: How many events were handled.
        busy: Whether there may be more to do at once.
        at_end: Whether everything was handled that could be seen when it was looked for.
        failures: What cannot be handled.
    """

    handled: int = 0
    busy: bool = False
    at_end: bool = False
    failures: list[ProjectionError] = field(default_factory=list)


class ProjectionRunner:
    """The runnable of one projection; it has the name of the projection.

    Args:
        projector: The projection.
        settings: How it is run.
    """

    def __init__(self, projector: Projector, settings: Settings) -> None:
        self.projector = projector
        self._settings = settings
        self._store = projector.store
        self._described = projector.described
        self.id: str = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._leases: dict[int, Lease] = {}

    @property
    def name(self) -> str:
        """The name of the projection."""
        return self.projector.name

    def another(self) -> "ProjectionRunner":
        """Return a runner of the same projection with leases of its own, as in another process."""
        return ProjectionRunner(self.projector, self._settings)

    async def run(self, limits: Limits) -> int:
        """Handle events until a limit is reached; return how many.

        Raises:
            ProjectionError: It stands still at an event that cannot be handled; it is tried again later.
            ConfigurationError: The database was restored elsewhere, and it would miss events from now on.
            ChannelError: The database cannot be reached.
        """
        await self.projector.events.storage.check_restored()
        handled, heard = 0, 0
        failure: ProjectionError | None = None
        ends_at = None if limits.seconds is None else anyio.current_time() + limits.seconds
        async with self._leasing():
            while True:
                heard = await self.projector.events.storage.wait(heard, 0.0)
                done = await self._look(limits, handled)
                handled += done.handled
                failure = failure or next(iter(done.failures), None)
                if failure is not None and not self._described.partitioned:
                    raise failure
                if self._reached(limits, handled, ends_at):
                    return handled
                if not done.busy:
                    if limits.until_empty and failure is not None:
                        raise failure  # of a partition: all others have come to the end
                    if limits.until_empty:
                        return handled
                    await self._rest(heard, limits, ends_at)

    async def build(
        self, version: int, told: Callable[[ProjectionRecord], Awaitable[None]], *, live: bool = False
    ) -> bool:
        """Work on one version until it is built; return whether it is, `False` when it is gone.

        When somebody else works on it, look on.

        Args:
            version: The version.
            told: Is told how far it is, from time to time.
            live: Whether a version that is live is to handle what is there now.

        Raises:
            ProjectionError: An event, or a partition, cannot be handled.
        """
        async with self._leasing():
            while True:
                found = await self._find(version)
                if found is None or found.condition is Condition.RETIRED:
                    return False
                await told(await self._counted(found))
                if found.condition is Condition.LIVE and (not live or self.projector.synchronous):
                    return True
                done = _Round()
                await self._work(found, Limits(), done)
                if done.failures and not done.busy:
                    raise done.failures[0]
                if done.at_end or not done.busy:
                    found = await self._find(version) or found
                    if self._is_waiting(found) or (
                        found.condition is Condition.LIVE and (done.at_end or await self._is_at_end(found))
                    ):
                        await told(await self._counted(found))
                        return True
                    await self._bring_forward(found, done)
                    if done.failures and not done.busy:
                        raise done.failures[0]
                if not done.busy:
                    await anyio.sleep(0.1)  # somebody else works on it, or its last events cannot be seen yet

    async def _bring_forward(self, built: ProjectionRecord, done: _Round) -> None:
        """Let the live version come as far as one that is to take its place, so that nothing is lost that it emits."""
        live = await self._live_behind(built)
        if live is not None and self.projector.is_mine(live):
            await self._work(live, Limits(), done)

    async def _live_behind(self, built: ProjectionRecord) -> ProjectionRecord | None:
        """Return the live version if one that is built beside it has handled what the live one has not emitted yet.

        Partitions that are built do not overtake those that are live: there it may always be so.
        """
        if built.condition is Condition.BUILDING:
            for one in await self._store.versions(self.name):
                if one.condition is Condition.LIVE and (
                    (self._emits_beside and self._described.partitioned) or await would_lose(self.projector, one, built)
                ):
                    return one
        return None

    async def switch(
        self, versions: dict[int, ProjectionRecord], built: ProjectionRecord, watch: Watch | None = None
    ) -> ProjectionRecord | None:
        """Make a version live, as `switch` does; take what is left with it where nobody can append meanwhile."""
        if self.projector.synchronous and not self._described.partitioned:
            built = await self._take_the_rest(built, watch or Watch())
        elif self.projector.synchronous:
            await self._take_partitions(built, watch or Watch())
        return await switch(self.projector, versions, built)

    async def _counted(self, record: ProjectionRecord) -> ProjectionRecord:
        """Return a version with the progress of its partitions."""
        if not self._described.partitioned or self.projector.synchronous or record.condition is Condition.LIVE:
            return record
        counts = await self._store.count(record.name, record.version, record.round)
        return replace(record, done=counts.built - counts.behind, total=max(record.total, counts.total))

    async def _is_at_end(self, record: ProjectionRecord) -> bool:
        if self.projector.synchronous:
            return True
        if await self.projector.events.storage.count(after=record.position, which=self.projector.which):
            return False
        counts = await self._store.count(record.name, record.version, record.round)
        return counts.behind <= counts.halted

    async def _find(self, version: int) -> ProjectionRecord | None:
        versions = await self._store.versions(self.name)
        return next((one for one in versions if one.version == version), None)

    @staticmethod
    def _is_waiting(record: ProjectionRecord | None) -> bool:
        """Whether a version is built, and waits for somebody to switch."""
        return record is not None and record.by_hand and record.total >= 0 and record.done >= record.total

    # ----------------------------------------------------------------------------------------------------- one look

    async def _look(self, limits: Limits, handled: int) -> _Round:
        done = _Round()
        for record in await self.projector.mine():
            if self.projector.synchronous and record.condition is Condition.LIVE:
                continue
            left = None if limits.messages is None else limits.messages - handled - done.handled
            if left is None or left > 0:
                await self._work(record, replace(limits, messages=left), done)
        return done

    async def _work(self, record: ProjectionRecord, limits: Limits, done: _Round) -> None:
        """Do one piece of work on a version, if it is lent to this runner or can be."""
        lease = await self._lease(record)
        if lease is None:
            if self._described.partitioned and not self.projector.synchronous:
                await self._claim(record, done)
            return
        try:
            with anyio.CancelScope() as lease.scope:
                if not self._described.partitioned:
                    await self._batch(lease, limits, done)
                elif self.projector.synchronous:
                    await self._build_partitions(lease, done)
                else:
                    await self._partitions(lease, done)
        except LeaseLostError as error:
            logger.info("projection %s: %s", self.name, error)
            lease.lost = True
        finally:
            lease.scope = None
        if lease.lost:
            self._leases.pop(record.version, None)

    # ------------------------------------------------------------------------------------------------------- global

    async def _batch(self, lease: Lease, limits: Limits, done: _Round) -> None:
        record = lease.record
        if record.halt is not None and self._waits(record.halt):
            return
        if not record.by_hand and record.condition is Condition.BUILDING:
            if await self._live_behind(record) is not None:
                return  # else the two would never be at the same place while others append
            if lease.ahead:
                await self._at_end(lease, done)
                return
        most = min(one for one in (self._described.batch, lease.limit, limits.messages) if one is not None)
        page = await self.projector.read(record.position, most)
        if not page.events:
            await self._at_end(lease, done)
            return
        watch = Watch()
        try:
            lease.record = await self.projector.handle(record, page.events, page.upto, watch)
        except ChannelError:
            raise
        except Exception as error:
            if await self._is_gone(record):  # with what it wrote to, perhaps
                lease.lost = True
                return
            lease.limit = watch.smaller or None
            if lease.limit is not None:
                done.busy = True
                return
            await self._halt(lease, page.events[0], error, done)
            return
        lease.limit = None
        done.handled += len(page.events)
        done.busy = True
        if not page.more:
            # While others append there may always be something new: a version is built when it has come this far.
            await self._at_end(lease, done)

    async def _at_end(self, lease: Lease, done: _Round) -> None:
        done.at_end = True
        if lease.record.condition is Condition.BUILDING:
            await self._finish(lease, done)

    async def _is_gone(self, record: ProjectionRecord, *, token: bool = True) -> bool:
        """Whether a version was deleted, retired, or, if its token counts, taken away, while it was worked on."""
        now = await self._find(record.version)
        return now is None or not self.projector.is_mine(now) or (token and now.token != record.token)

    async def _halt(self, lease: Lease, event: StoredEvent, error: Exception, done: _Round) -> None:
        record = lease.record
        halt = self.halt_of(event, error, record.halt)
        await self._store.halt(record.name, record.version, record.token, halt)
        lease.record = replace(record, halt=halt)
        done.failures.append(self._failed(halt, error))

    async def _finish(self, lease: Lease, done: _Round) -> None:
        """Make a version live that has come to the end; take what is left with it where nobody can append meanwhile."""
        record, watch = lease.record, Watch()

        async def act() -> ProjectionRecord | None:
            versions = {one.version: one for one in await self._store.lock(self.name)}
            now = versions.get(record.version)
            if now is None or (now.token, now.position) != (record.token, record.position):
                raise LeaseLostError(f"version {record.version} of the projection {self.name!r} is run elsewhere")
            if self._described.partitioned:
                now = replace(now, done=record.done, total=max(now.total, record.done))
            return await self.switch(versions, now, watch)

        if record.by_hand:
            await self._note_built(lease)
            return
        try:
            switched = await self.projector.unit(act)
        except ChannelError:
            raise
        except Exception as error:
            if watch.event is None:
                raise
            await self._halt(lease, watch.event, error, done)
            return
        lease.ahead = switched is None
        if switched is not None:
            lease.record = switched
            done.busy = True

    async def _note_built(self, lease: Lease) -> None:
        """Write down that everything is done, for whoever is to switch; there may be less than there seemed to be."""
        if not lease.built:
            await self._progress(lease, done=lease.record.done, total=lease.record.done)
            lease.built = True

    async def _take_the_rest(self, record: ProjectionRecord, watch: Watch) -> ProjectionRecord:
        """Handle what lies behind the position, whether readers can rely on it or not: nobody can append just now."""
        more = True
        while more:
            page = await self.projector.events.storage.read_all(
                after=record.position, limit=self._described.batch, which=self.projector.which, settled=True
            )
            record = await self.projector.within(record, page.events, page.upto, watch)
            more = page.more
        return record

    async def _take_partitions(self, record: ProjectionRecord, watch: Watch) -> None:
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

    # -------------------------------------------------------------------------------------------------- partitioned

    async def _partitions(self, lease: Lease, done: _Round) -> None:
        """Find out which streams have something new; let partitions handle it."""
        record = lease.record
        if self._emits_beside and record.condition is Condition.BUILDING and not record.by_hand:
            counts = await self._store.count(self.name, record.version, record.round)
            if counts.behind:
                # It waits for the live partitions. Would it look for more, it would wait for as long as others append.
                done.at_end = await self._claim(record, done)
                await self._partitions_at_end(lease, done)
                return
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
        done.at_end = await self._claim(record, done) and not page.more
        await self._partitions_at_end(lease, done)

    async def _partitions_at_end(self, lease: Lease, done: _Round) -> None:
        record = lease.record
        if done.at_end and record.condition is Condition.BUILDING:
            counts = await self._store.count(self.name, record.version, record.round)
            if counts.built < counts.total and await self._store.due_in(self.name, record.version) is None:
                await self._store.call(self.name, record.version)  # one was taken when the rebuild began
            if counts.built == counts.total and not counts.halted and not counts.behind:
                lease.record = replace(lease.record, done=counts.built)
                await self._finish(lease, done)

    async def _claim(self, record: ProjectionRecord, done: _Round) -> bool:
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

    async def _claim_some(self, record: ProjectionRecord, done: _Round) -> int:
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
            done.busy = done.busy or (bool(claimed) if not self._emits_beside else handled > 0)
            return len(claimed)
        if await self._is_gone(record, token=False):
            return 0
        # One of them has failed, and has taken the others with it: each for itself, then.
        for stream in claimed:
            await self._alone(record, stream, done)
        return len(claimed)

    async def _alone(self, record: ProjectionRecord, stream: str, done: _Round) -> None:
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
                if await self._is_gone(record, token=False):
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
    def _emits_beside(self) -> bool:
        """Whether it is to be known exactly what two versions of a partition have emitted."""
        methods = self.projector.methods
        return methods.emits and methods.versioned and not self.projector.synchronous

    async def _guarded(self, record: ProjectionRecord) -> ProjectionRecord | None:
        """Keep a switch from happening before the unit of work ends; return `None` when it has happened already."""
        if not self._emits_beside:
            return record
        for one in await self._store.lock(self.name, shared=True):
            if one.version == record.version and self.projector.is_mine(one):
                return one
        return None

    async def _most(self, record: ProjectionRecord | None, partition: PartitionRecord) -> int:
        """Return how many events a partition may handle: one that is built beside a live one does not overtake it."""
        if record is None or not self._emits_beside or record.by_hand or record.condition is not Condition.BUILDING:
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
        done: _Round,
    ) -> None:
        known = await self._store.partition(record.name, record.version, found.stream)
        before = known.halt if known is not None else None
        halt = self.halt_of(event, error, before, stream=found.stream, version=found.position + 1)
        await self._store.halt_partition(record.name, record.version, found.stream, halt, position=found.position)
        done.failures.append(self._failed(halt, error))

    async def _build_partitions(self, lease: Lease, done: _Round) -> None:
        """Bring every partition of a synchronous projection up to date, one after the other; appenders wait for one."""
        record = lease.record
        streams = await self.projector.streams()
        await self._progress(lease, done=0, total=len(streams))
        for at, stream in enumerate(streams, 1):
            before = len(done.failures)
            await self._alone(record, stream, done)
            if len(done.failures) == before and at % 50 == 0:
                await self._progress(lease, done=at, total=len(streams))
            await anyio.lowlevel.checkpoint()
        done.busy = False
        if not done.failures:
            await self._progress(lease, done=len(streams), total=len(streams))
            await self._finish(lease, done)

    async def _progress(self, lease: Lease, *, done: int, total: int) -> None:
        token = lease.record.token

        async def act() -> None:
            for one in await self._store.lock(self.name):
                if one.version == lease.record.version and one.token == token:
                    await self._store.change(replace(one, done=done, total=total))

        await self.projector.unit(act)
        lease.record = replace(lease.record, done=done, total=total)

    # ------------------------------------------------------------------------------------------------------ failures

    def halt_of(
        self, event: StoredEvent | None, error: Exception, before: Halt | None, *, stream: str = "", version: int = 0
    ) -> Halt:
        """Return what is written down about a failure."""
        now = self.projector.gateway.clock.now()
        position = None if event is None or event.position is None else str(event.position)
        stream, version = (stream, version) if event is None else (event.stream, event.version)
        same = before is not None and (before.stream, before.stream_version) == (stream, version)
        attempts = before.attempts + 1 if same and before is not None else 1
        return Halt(
            error_type=f"{type(error).__module__}.{type(error).__qualname__}",
            error_message=str(error),
            traceback="".join(traceback.format_exception(error)),
            stream=stream,
            stream_version=version,
            position=position,
            event="" if event is None else event.name,
            since=before.since if same and before is not None else now,
            attempts=attempts,
            retry_at=now + timedelta(seconds=self._settings.delay(attempts)),
        )

    def _failed(self, halt: Halt, error: Exception) -> ProjectionError:
        where = f"version {halt.stream_version} of the stream {halt.stream!r}"
        if halt.attempts == 1:
            logger.error("projection %s stands still at %s", self.name, where, exc_info=error)
        else:
            logger.warning("projection %s stands still at %s, attempt %s: %s", self.name, where, halt.attempts, error)
        failed = ProjectionError(
            f"the projection {self.name!r} stands still at {where}: {halt.event or 'no event'}",
            tried=f"{type(error).__name__}: {error}".splitlines()[0]
            + f"; attempt {halt.attempts} of as many as it takes",
            hint=f"mend the handler or the event; ecotone projection retry {self.name} does not wait for "
            f"{halt.retry_at.isoformat(timespec='seconds')}",
            stream=halt.stream,
            version=halt.stream_version,
            position=halt.position,
        )
        failed.__cause__ = error
        return failed

    def _waits(self, halt: Halt) -> bool:
        return halt.retry_at > self.projector.gateway.clock.now()

    # -------------------------------------------------------------------------------------------------------- leases

    async def _lease(self, record: ProjectionRecord) -> Lease | None:
        lease = self._leases.get(record.version)
        if lease is not None and record.token == lease.record.token and not lease.lost:
            known = lease.record
            # What others may change while it is lent: a retry, a switch, a rebuild.
            if (known.halt, known.condition, known.by_hand, known.round) != (
                record.halt,
                record.condition,
                record.by_hand,
                record.round,
            ):
                lease.record = record
            return lease
        self._leases.pop(record.version, None)
        if record.leased:
            return None
        token = await self._store.lease(record.name, record.version, self.id, self._settings.lease)
        if token is None:
            return None
        found = await self._find(record.version)
        if found is None or found.token != token:
            return None
        lease = self._leases[record.version] = Lease(found)
        return lease

    @asynccontextmanager
    async def _leasing(self) -> AsyncIterator[None]:
        """Renew what is lent, beside the block; give it back in the end."""
        failure: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._renew)
            try:
                yield
            except BaseException as error:
                failure = error
            finally:
                tasks.cancel_scope.cancel()
                with anyio.move_on_after(5.0, shield=True):
                    await self._give_back()
        if failure is not None:
            raise failure

    async def _give_back(self) -> None:
        leases, self._leases = self._leases, {}
        for lease in leases.values():
            try:
                await self._store.release(self.name, lease.record.version, lease.record.token)
            except ChannelError as error:
                logger.info("projection %s was not given back, its lease will end: %s", self.name, error)

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(self._settings.lease / 3)
            for version, lease in list(self._leases.items()):
                try:
                    kept = await self._store.renew(self.name, version, lease.record.token, self._settings.lease)
                except ChannelError as error:
                    logger.warning("the lease of the projection %s was not renewed: %s", self.name, error)
                    continue
                if not kept:
                    lease.lost = True
                    if lease.scope is not None:
                        lease.scope.cancel()

    # --------------------------------------------------------------------------------------------------------- limits

    def _reached(self, limits: Limits, handled: int, ends_at: float | None) -> bool:
        return (
            (limits.stop is not None and limits.stop.is_set())
            or (limits.messages is not None and handled >= limits.messages)
            or (ends_at is not None and anyio.current_time() >= ends_at)
        )

    async def _rest(self, heard: int, limits: Limits, ends_at: float | None) -> None:
        """Wait until there may be something to do."""
        every = _IDLE if self.projector.synchronous else self._described.every
        if ends_at is not None:
            every = max(0.0, min(every, ends_at - anyio.current_time()))
        stop = limits.stop or anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def wake() -> None:
                if self._described.mode == "asynchronous":
                    await self.projector.events.storage.wait(heard, every)
                else:
                    await anyio.sleep(every)
                tasks.cancel_scope.cancel()

            tasks.start_soon(wake)
            await stop.wait()
            tasks.cancel_scope.cancel()
