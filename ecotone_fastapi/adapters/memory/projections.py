"""What is kept of projections in memory: the default, and the test double of every other store."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

import anyio

from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.projection_store import (
    Condition,
    Halt,
    PartitionCounts,
    PartitionRecord,
    ProjectionRecord,
    lost,
)

_Key = tuple[str, int]


class _Kept(NamedTuple):
    """A partition, and when it can be claimed."""

    record: PartitionRecord
    due_at: datetime | None


class MemoryProjections:
    """Keeps what is known of projections for as long as the process lives.

    A failed scope undoes what was written in it. Whoever locks, claims or holds something has it until its scope ends.

    Args:
        clock: Tells when leases end, and when what stands still is tried again.
    """

    durable: bool = False

    def __init__(self, clock: Clock = SystemClock()) -> None:
        self._clock = clock
        self._versions: dict[_Key, ProjectionRecord] = {}
        self._leases: dict[_Key, datetime] = {}
        self._partitions: dict[_Key, dict[str, _Kept]] = {}
        self._locks = _Locks()

    async def versions(self, name: str | None = None) -> Sequence[ProjectionRecord]:
        """Return the versions of a projection, or of all, in the order of names and numbers."""
        return [self._leased(key) for key in sorted(self._versions) if name is None or key[0] == name]

    async def add(self, record: ProjectionRecord) -> bool:
        """Add a version; return whether it was not there."""
        key = (record.name, record.version)
        await self._locks.take(key[0], shared=False)
        if key in self._versions:
            return False
        await self._set(key, record)
        return True

    async def lock(self, name: str, *, shared: bool = False) -> Sequence[ProjectionRecord]:
        """Return the versions of a projection as they are now; nobody else changes them before the scope ends."""
        await self._locks.take(name, shared=shared)
        return await self.versions(name)

    async def change(self, record: ProjectionRecord) -> None:
        """Write down everything of a version but its lease."""
        key = (record.name, record.version)
        await self._locks.take(key[0], shared=False)
        known = self._versions.get(key)
        if known is not None:
            await self._set(key, replace(record, token=known.token, runner=known.runner))

    async def save(self, before: ProjectionRecord, after: ProjectionRecord) -> None:
        """Write down how far it has come, if it is still where it was, and lent under the same token.

        Raises:
            LeaseLostError: It is not.
        """
        key = (before.name, before.version)
        await self._locks.take(key[0], shared=False)
        known = self._versions.get(key)
        same = known is not None and (known.position, known.token) == (before.position, before.token)
        if known is None or not same or known.condition is Condition.RETIRED:
            raise lost(before, known)
        saved = replace(known, position=after.position, state=after.state, done=after.done, halt=after.halt)
        await self._set(key, saved)

    async def lease(self, name: str, version: int, runner: str, seconds: float, *, force: bool = False) -> int | None:
        """Lend a version that is free to a runner; return the new token."""
        key, now = (name, version), self._clock.now()
        known = self._versions.get(key)
        if known is None or (not force and self._leases.get(key, now) > now):
            return None
        self._versions[key] = replace(known, token=known.token + 1, runner=runner)
        self._leases[key] = now + timedelta(seconds=seconds)
        return known.token + 1

    async def renew(self, name: str, version: int, token: int, seconds: float) -> bool:
        """Lend it for longer; return whether the token is still the newest."""
        key = (name, version)
        known = self._versions.get(key)
        if known is None or known.token != token:
            return False
        self._leases[key] = self._clock.now() + timedelta(seconds=seconds)
        return True

    async def release(self, name: str, version: int, token: int) -> None:
        """Give it back."""
        key = (name, version)
        known = self._versions.get(key)
        if known is not None and known.token == token:
            self._versions[key] = replace(known, runner=None)
            self._leases.pop(key, None)

    async def halt(self, name: str, version: int, token: int, halt: Halt) -> None:
        """Write down that it stands still, if the token is still the newest."""
        key = (name, version)
        known = self._versions.get(key)
        if known is not None and known.token == token:
            self._versions[key] = replace(known, halt=halt)

    async def remove(self, name: str, version: int) -> None:
        """Forget a version with all of its partitions."""
        key = (name, version)
        await self._locks.take(key[0], shared=False)
        known, partitions = self._versions.pop(key, None), self._partitions.pop(key, None)
        lease = self._leases.pop(key, None)

        def restore() -> None:
            if known is not None:
                self._versions[key] = known
            if partitions is not None:
                self._partitions[key] = partitions
            if lease is not None:
                self._leases[key] = lease

        await self._undone_by(restore)

    # Partitions

    async def note(self, record: ProjectionRecord, wanted: Mapping[str, int]) -> None:
        """Write down how far streams have come."""
        key, now = (record.name, record.version), self._clock.now()
        for stream in sorted(wanted):
            await self._locks.take((*key, stream), shared=False)
            known = self._kept(key).get(stream)
            if known is None:
                fresh = PartitionRecord(stream, wanted=wanted[stream], round=record.round)
                await self._put(key, _Kept(fresh, now))
            elif wanted[stream] > known.record.wanted:
                due_at = now if known.record.halt is None else known.due_at
                await self._put(key, _Kept(replace(known.record, wanted=wanted[stream]), due_at))

    async def claim(self, name: str, version: int, *, limit: int, seconds: float) -> Sequence[PartitionRecord]:
        """Return partitions that have something to do; those that somebody else has are passed over."""
        key, now = (name, version), self._clock.now()
        kept = self._kept(key).values()
        due = sorted((one.due_at, one.record.stream) for one in kept if one.due_at is not None and one.due_at <= now)
        claimed: list[PartitionRecord] = []
        for _, stream in due:
            if len(claimed) == limit:
                break
            if not self._locks.is_taken((*key, stream)):
                await self._locks.take((*key, stream), shared=False)
                claimed.append(self._kept(key)[stream].record)
        return claimed

    async def hold(self, record: ProjectionRecord, stream: str) -> PartitionRecord:
        """Return one partition, a new one if need be; wait for whoever has it."""
        key = (record.name, record.version)
        await self._locks.take((*key, stream), shared=False)
        if stream not in self._kept(key):
            await self._put(key, _Kept(PartitionRecord(stream, round=record.round), None))
        return self._kept(key)[stream].record

    async def keep(self, name: str, version: int, partitions: Sequence[PartitionRecord]) -> None:
        """Write down partitions that were claimed or held."""
        for one in partitions:
            due_at = self._clock.now() if one.wanted > one.position else None
            await self._put((name, version), _Kept(one, due_at))

    async def halt_partition(self, name: str, version: int, stream: str, halt: Halt, *, position: int) -> None:
        """Write down that a partition stands still, if it has come no further meanwhile."""
        kept = self._kept((name, version))
        known = kept.get(stream)
        if known is not None and known.record.position == position:
            kept[stream] = _Kept(replace(known.record, halt=halt), halt.retry_at)

    async def call(self, name: str, version: int, stream: str | None = None, *, halted: bool = False) -> int:
        """Let a partition, or all, be claimed from now on."""
        key, count = (name, version), 0
        for one in list(self._kept(key).values()):
            if stream in (None, one.record.stream) and (one.record.halt is not None or not halted):
                await self._put(key, _Kept(one.record, self._clock.now()))
                count += 1
        return count

    async def accept(self, name: str, version: int, round: int) -> None:  # noqa: A002 - of the protocol
        """Let all partitions be of this round, as they are."""
        for one in list(self._kept((name, version)).values()):
            await self._put((name, version), _Kept(replace(one.record, round=round), one.due_at))

    async def partitions(
        self, name: str, version: int, *, after: str = "", limit: int = 100, halted: bool = False
    ) -> Sequence[PartitionRecord]:
        """Return partitions in the order of their streams."""
        records = sorted((one.record for one in self._kept((name, version)).values()), key=lambda one: one.stream)
        return [one for one in records if one.stream > after and (one.halt is not None or not halted)][:limit]

    async def partition(self, name: str, version: int, stream: str) -> PartitionRecord | None:
        """Return one partition."""
        found = self._kept((name, version)).get(stream)
        return None if found is None else found.record

    async def count(self, name: str, version: int, round: int) -> PartitionCounts:  # noqa: A002 - of the protocol
        """Count partitions."""
        records = [one.record for one in self._kept((name, version)).values()]
        return PartitionCounts(
            total=len(records),
            behind=sum(one.wanted > one.position for one in records),
            halted=sum(one.halt is not None for one in records),
            built=sum(one.round == round for one in records),
            events=sum(max(0, one.wanted - one.position) for one in records),
        )

    async def due_in(self, name: str, version: int) -> float | None:
        """Return after how many seconds something can be claimed; `None` when nothing is left."""
        due = [one.due_at for one in self._kept((name, version)).values() if one.due_at is not None]
        return max(0.0, (min(due) - self._clock.now()).total_seconds()) if due else None

    # What is written, and undone

    def _leased(self, key: _Key) -> ProjectionRecord:
        until = self._leases.get(key)
        seconds = 0.0 if until is None else max(0.0, (until - self._clock.now()).total_seconds())
        return replace(self._versions[key], leased=seconds)

    def _kept(self, key: _Key) -> dict[str, _Kept]:
        return self._partitions.setdefault(key, {})

    async def _set(self, key: _Key, record: ProjectionRecord) -> None:
        before = self._versions.get(key)
        self._versions[key] = record

        def restore() -> None:
            now = self._versions.get(key)
            if before is None:
                self._versions.pop(key, None)
            elif now is not None:  # leases are no part of the unit
                self._versions[key] = replace(before, token=now.token, runner=now.runner)

        await self._undone_by(restore)

    async def _put(self, key: _Key, kept: _Kept) -> None:
        partitions, stream = self._kept(key), kept.record.stream
        before = partitions.get(stream)
        partitions[stream] = kept

        def restore() -> None:
            if before is None:
                partitions.pop(stream, None)
            else:
                partitions[stream] = before

        await self._undone_by(restore)

    async def _undone_by(self, restore: Callable[[], None]) -> None:
        scope = current_scope()
        if scope is not None:
            (await self._locks.unit(scope)).undo.append(restore)


class _Unit:
    """What a scope has taken, and what undoes what it has written."""

    def __init__(self) -> None:
        self.taken: list[object] = []
        self.undo: list[Callable[[], None]] = []


class _Locks:
    """Who has what, until the scope ends."""

    def __init__(self) -> None:
        self._taken: dict[object, dict[Scope, bool]] = {}  # by what is taken: who has it, and whether shared
        self._changed: dict[object, anyio.Event] = {}
        self._waits_for: dict[Scope, object] = {}

    def is_taken(self, what: object) -> bool:
        """Whether another scope has it."""
        scope = current_scope()
        return any(one is not scope for one in self._taken.get(what, ()))

    async def take(self, what: object, *, shared: bool) -> None:
        """Take something for the scope of the calling task; without a scope, wait until it is free.

        Raises:
            ConcurrencyError: Two scopes wait for each other.
        """
        scope = current_scope()
        while others := self._in_the_way(what, scope, shared=shared):
            if scope is not None:
                self._check(scope, others)
                self._waits_for[scope] = what
            try:
                await self._changed.setdefault(what, anyio.Event()).wait()
            finally:
                if scope is not None:
                    del self._waits_for[scope]
        if scope is None:
            return
        holders = self._taken.setdefault(what, {})
        if scope in holders:
            holders[scope] = holders[scope] and shared
        else:
            holders[scope] = shared
            (await self.unit(scope)).taken.append(what)

    async def unit(self, scope: Scope) -> _Unit:
        """Return what is remembered of a scope until it ends."""
        unit: _Unit | None = scope.state.get(self)
        if unit is None:
            unit = scope.state[self] = _Unit()
            await scope.enter(self._ended(unit, scope), outermost=True)
        return unit

    def _in_the_way(self, what: object, scope: Scope | None, *, shared: bool) -> Sequence[Scope]:
        holders = self._taken.get(what, {}).items()
        return [one for one, is_shared in holders if one is not scope and not (shared and is_shared)]

    def _check(self, scope: Scope, others: Sequence[Scope]) -> None:
        seen: set[Scope] = set()
        waiting = list(others)
        while waiting:
            other = waiting.pop()
            if other is scope:
                raise ConcurrencyError(
                    "two units of work wait for each other to let go of a projection", hint="handle again what failed"
                )
            if other not in seen:
                seen.add(other)
                waiting += [one for one in self._taken.get(self._waits_for.get(other), {}) if one is not other]

    @asynccontextmanager
    async def _ended(self, unit: _Unit, scope: Scope) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            for restore in reversed(unit.undo):
                restore()
            raise
        finally:
            scope.state.pop(self, None)
            for what in unit.taken:
                holders = self._taken[what]
                del holders[scope]
                if not holders:
                    del self._taken[what]
                changed = self._changed.pop(what, None)
                if changed is not None:
                    changed.set()
