"""Snapshots in memory: the default, and the test double of every other store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.modelling.snapshots import Snapshot


class MemorySnapshots:
    """Keeps the last snapshot of each stream, for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, Snapshot] = {}

    async def load(self, stream: str) -> Snapshot | None:
        """Return the snapshot of a stream, also one that the open unit of work has saved."""
        scope = current_scope()
        changed: dict[str, Snapshot | None] = scope.state.get(self, {}) if scope is not None else {}
        return changed[stream] if stream in changed else self._kept.get(stream)

    async def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot instead of the one before, if the unit of work ends well."""
        await self._change(snapshot.stream, snapshot)

    async def delete(self, stream: str) -> None:
        """Forget the snapshot of a stream, if the unit of work ends well."""
        await self._change(stream, None)

    async def _change(self, stream: str, snapshot: Snapshot | None) -> None:
        scope = current_scope()
        if scope is None:
            self._settle({stream: snapshot})
            return
        if self not in scope.state:
            scope.state[self] = {}
            await scope.enter(self._decided(scope.state[self]), outermost=True)
        changed: dict[str, Snapshot | None] = scope.state[self]
        scope.note_change(
            partial(changed.update, {stream: changed[stream]})
            if stream in changed
            else partial(changed.pop, stream, None)
        )
        changed[stream] = snapshot

    @asynccontextmanager
    async def _decided(self, changed: dict[str, Snapshot | None]) -> AsyncIterator[None]:
        yield
        self._settle(changed)

    def _settle(self, changed: dict[str, Snapshot | None]) -> None:
        for stream, snapshot in changed.items():
            if snapshot is None:
                self._kept.pop(stream, None)
            else:
                self._kept[stream] = snapshot
