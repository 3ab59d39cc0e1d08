"""What keeps projections up to date beside the application: one runner at a time, by a lease, for every version.

A version is lent to a runner for some seconds, which it renews. When it dies, another one takes over; when it was only
frozen, what it writes under its old token is refused, and its unit of work is rolled back.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio

from ecotone_fastapi.core.errors import ChannelError, LeaseLostError, ProjectionError
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.core.watching import Operation
from ecotone_fastapi.modelling.event_storage import StoredEvent
from ecotone_fastapi.modelling.partition_runner import PartitionRunner
from ecotone_fastapi.modelling.projecting import Projector, Watch
from ecotone_fastapi.modelling.projection_halts import Halts, Round
from ecotone_fastapi.modelling.projection_leases import Lease, Leases, Settings
from ecotone_fastapi.modelling.projection_store import Condition, ProjectionRecord
from ecotone_fastapi.modelling.switching import switch, would_lose

logger: logging.Logger = logging.getLogger("ecotone_fastapi.projections")

_IDLE = 5.0  # seconds after which the runner of a synchronous projection looks whether there is anything to do


class ProjectionRunner:
    """The runnable of one projection; it has the name of the projection.

    Args:
        projector: The projection.
        settings: How it is run.

    Attributes:
        failed: How often an event could not be handled, each attempt on its own.
    """

    def __init__(self, projector: Projector, settings: Settings) -> None:
        self.projector = projector
        self.failed: int = 0
        self._settings = settings
        self._store = projector.store
        self._described = projector.described
        self._leases = Leases(projector, settings)
        self._halts = Halts(projector, settings)
        self._partitions = PartitionRunner(projector, settings, self._leases, self._halts, self._finish)

    @property
    def id(self) -> str:
        """Tells it from all other runners, in every process."""
        return self._leases.id

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
        async with self._leases.kept():
            while True:
                heard = await self.projector.events.storage.wait(heard, 0.0)
                done = await self._look(limits, handled)
                handled += done.handled
                self.failed += len(done.failures)
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
        async with self._leases.kept():
            while True:
                found = await self.projector.find(version)
                if found is None or found.condition is Condition.RETIRED:
                    return False
                await told(await self._counted(found))
                if found.condition is Condition.LIVE and (not live or self.projector.synchronous):
                    return True
                done = Round()
                await self._work(found, Limits(), done)
                if done.failures and not done.busy:
                    raise done.failures[0]
                if done.at_end or not done.busy:
                    found = await self.projector.find(version) or found
                    if self._is_waiting(found) or (
                        found.condition is Condition.LIVE and await self._has_caught_up(found, done)
                    ):
                        await told(await self._counted(found))
                        return True
                    await self._bring_forward(found, done)
                    if done.failures and not done.busy:
                        raise done.failures[0]
                if not done.busy:
                    await anyio.sleep(0.1)  # somebody else works on it, or its last events cannot be seen yet

    async def settle(self, live: ProjectionRecord) -> None:
        """Let a live synchronous version handle what code of another revision has left to it.

        Raises:
            ProjectionError: An event, or a partition, cannot be handled.
        """
        done = Round(busy=True)
        while done.busy:
            done.busy = False
            await self._settle(live, done)
            if done.failures:
                raise done.failures[0]

    async def _bring_forward(self, built: ProjectionRecord, done: Round) -> None:
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
                beside = self._partitions.emits_beside and self._described.partitioned
                if one.condition is Condition.LIVE and (beside or await would_lose(self.projector, one, built)):
                    return one
        return None

    async def switch(
        self, versions: dict[int, ProjectionRecord], built: ProjectionRecord, watch: Watch | None = None
    ) -> ProjectionRecord | None:
        """Make a version live, as `switch` does; take what is left with it where nobody can append meanwhile."""
        if self.projector.synchronous and not self._described.partitioned:
            built = await self._take_the_rest(built, watch or Watch())
        elif self.projector.synchronous:
            await self._partitions.take_the_rest(built, watch or Watch())
        return await switch(self.projector, versions, built)

    async def _counted(self, record: ProjectionRecord) -> ProjectionRecord:
        """Return a version with the progress of its partitions."""
        if not self._described.partitioned or self.projector.synchronous or record.condition is Condition.LIVE:
            return record
        counts = await self._store.count(record.name, record.version, record.round)
        return replace(record, done=counts.built - counts.behind, total=max(record.total, counts.total))

    async def _has_caught_up(self, record: ProjectionRecord, done: Round) -> bool:
        """Whether everything was handled that could be seen when it was looked for, by this runner or by others."""
        if self.projector.synchronous:
            return True
        if done.at_end:
            return not (self._described.partitioned and await self._partitions.has_rest(record))
        if await self.projector.events.storage.count(after=record.position, which=self.projector.which):
            return False
        counts = await self._store.count(record.name, record.version, record.round)
        return counts.behind <= counts.halted

    @staticmethod
    def _is_waiting(record: ProjectionRecord | None) -> bool:
        """Whether a version is built, and waits for somebody to switch."""
        return record is not None and record.by_hand and record.total >= 0 and record.done >= record.total

    # ----------------------------------------------------------------------------------------------------- one look

    async def _look(self, limits: Limits, handled: int) -> Round:
        done = Round()
        for record in await self.projector.mine():
            if self.projector.synchronous and record.condition is Condition.LIVE:
                await self._settle(record, done)
                continue
            left = None if limits.messages is None else limits.messages - handled - done.handled
            if left is None or left > 0:
                await self._work(record, replace(limits, messages=left), done)
        return done

    async def _settle(self, record: ProjectionRecord, done: Round) -> None:
        """Let a live synchronous version handle what code of another revision has left to it."""
        if not self.projector.beside or (record.halt is not None and self._halts.waits(record.halt)):
            return
        if self._described.partitioned:
            await self._partitions.claim(record, done)
            return
        watch = Watch()
        try:
            handled = await self.projector.settle(watch)
        except ChannelError:
            raise
        except Exception as error:
            if watch.event is None:
                raise
            halt = self._halts.of(watch.event, error, record.halt)
            await self._store.halt(record.name, record.version, record.token, halt)
            done.failures.append(self._halts.failed(halt, error))
        else:
            done.handled += handled
            done.busy = done.busy or handled > 0

    async def _work(self, record: ProjectionRecord, limits: Limits, done: Round) -> None:
        """Do one piece of work on a version, if it is lent to this runner or can be."""
        lease = await self._leases.take(record)
        if lease is None:
            if self._described.partitioned and not self.projector.synchronous:
                await self._partitions.claim(record, done)
            return
        try:
            with anyio.CancelScope() as lease.scope:
                if not self._described.partitioned:
                    await self._batch(lease, limits, done)
                elif self.projector.synchronous:
                    await self._partitions.build(lease, done)
                else:
                    await self._partitions.advance(lease, done)
        except LeaseLostError as error:
            logger.info("projection %s: %s", self.name, error)
            self.projector.gateway.watching.failed(Operation.LEASE, "renew", self.name, error)
            lease.lost = True
        finally:
            lease.scope = None
        if lease.lost:
            self._leases.forget(lease)

    # ------------------------------------------------------------------------------------------------------- global

    async def _batch(self, lease: Lease, limits: Limits, done: Round) -> None:
        record = lease.record
        if record.halt is not None and self._halts.waits(record.halt):
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
            if await self.projector.is_gone(record):  # with what it wrote to, perhaps
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

    async def _at_end(self, lease: Lease, done: Round) -> None:
        done.at_end = True
        if lease.record.condition is Condition.BUILDING:
            await self._finish(lease, done)

    async def _halt(self, lease: Lease, event: StoredEvent, error: Exception, done: Round) -> None:
        record = lease.record
        halt = self._halts.of(event, error, record.halt)
        await self._store.halt(record.name, record.version, record.token, halt)
        lease.record = replace(record, halt=halt)
        done.failures.append(self._halts.failed(halt, error))

    async def _finish(self, lease: Lease, done: Round) -> None:
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
            await self._leases.progress(lease, done=lease.record.done, total=lease.record.done)
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

    # --------------------------------------------------------------------------------------------------------- limits

    def _reached(self, limits: Limits, handled: int, ends_at: float | None) -> bool:
        return (
            (limits.stop is not None and limits.stop.is_set())
            or (limits.messages is not None and handled >= limits.messages)
            or (ends_at is not None and anyio.current_time() >= ends_at)
        )

    async def _rest(self, heard: int, limits: Limits, ends_at: float | None) -> None:
        """Wait until there may be something to do."""
        beside = self.projector.synchronous and self.projector.beside
        every = _IDLE if self.projector.synchronous and not beside else self._described.every
        if ends_at is not None:
            every = max(0.0, min(every, ends_at - anyio.current_time()))
        stop = limits.stop or anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def wake() -> None:
                if self._described.mode == "asynchronous" or beside:
                    await self.projector.events.storage.wait(heard, every)
                else:
                    await anyio.sleep(every)
                tasks.cancel_scope.cancel()

            tasks.start_soon(wake)
            await stop.wait()
            tasks.cancel_scope.cancel()
