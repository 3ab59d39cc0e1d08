"""The leases of a runner: which versions of a projection it has for now, renewed for as long as it works.

A version is lent to a runner for some seconds, which it renews. When it dies, another one takes over; when it was only
frozen, what it writes under its old token is refused, and its unit of work is rolled back.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from uuid import uuid4

import anyio

from ecotone_fastapi.core.errors import ChannelError, LeaseLostError
from ecotone_fastapi.core.process import this_process
from ecotone_fastapi.core.watching import Operation
from ecotone_fastapi.modelling.projecting import Projector
from ecotone_fastapi.modelling.projection_store import ProjectionRecord

logger: logging.Logger = logging.getLogger("ecotone_fastapi.projections")


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
        unread: Whether there may have been more events, when it was last looked, than its partitions were told of.
    """

    def __init__(self, record: ProjectionRecord) -> None:
        self.record = record
        self.lost: bool = False
        self.scope: anyio.CancelScope | None = None
        self.limit: int | None = None
        self.built: bool = False
        self.ahead: bool = False
        self.unread: bool = True


class Leases:
    """The versions of one projection that are lent to one runner.

    Args:
        projector: The projection.
        settings: For how long they are lent.
    """

    def __init__(self, projector: Projector, settings: Settings) -> None:
        self.id: str = f"{this_process()}:{uuid4().hex[:8]}"
        self._projector = projector
        self._store = projector.store
        self._seconds = settings.lease
        self._leases: dict[int, Lease] = {}

    async def take(self, record: ProjectionRecord) -> Lease | None:
        """Return the lease of a version; `None` when it is lent to somebody else."""
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
        token = await self._store.lease(record.name, record.version, self.id, self._seconds)
        if token is None:
            return None
        found = await self._projector.find(record.version)
        if found is None or found.token != token:
            return None
        lease = self._leases[record.version] = Lease(found)
        return lease

    def forget(self, lease: Lease) -> None:
        """Have nothing more to do with a version that was lost."""
        self._leases.pop(lease.record.version, None)

    async def progress(self, lease: Lease, *, done: int, total: int) -> None:
        """Write down how far a version is that is being built, unless it was lost."""
        token = lease.record.token

        async def act() -> None:
            for one in await self._store.lock(self._projector.name):
                if one.version == lease.record.version and one.token == token:
                    await self._store.change(replace(one, done=done, total=total))

        await self._projector.unit(act)
        lease.record = replace(lease.record, done=done, total=total)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
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
                await self._store.release(self._projector.name, lease.record.version, lease.record.token)
            except ChannelError as error:
                logger.info("projection %s was not given back, its lease will end: %s", self._projector.name, error)

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(self._seconds / 3)
            for version, lease in list(self._leases.items()):
                try:
                    kept = await self._store.renew(self._projector.name, version, lease.record.token, self._seconds)
                except ChannelError as error:
                    logger.warning("the lease of the projection %s was not renewed: %s", self._projector.name, error)
                    continue
                if not kept:
                    name = self._projector.name
                    taken = LeaseLostError(f"version {version} of the projection {name!r} is run elsewhere by now")
                    self._projector.gateway.watching.failed(Operation.LEASE, "renew", name, taken)
                    lease.lost = True
                    if lease.scope is not None:
                        lease.scope.cancel()
