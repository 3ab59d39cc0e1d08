"""What waits under a key in the channels of this process."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import NamedTuple

from ecotone_fastapi.adapters.memory.channel import MemoryChannel, MemoryEntry, MemoryQueue
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.messaging.scheduling import ScheduledMessage, seconds_from_now
from ecotone_fastapi.messaging.transactions import UnitOfWork


class _Change(NamedTuple):
    """What becomes of a message when the unit of work has succeeded: it is due then, or removed."""

    scope: Scope
    queue: MemoryQueue
    due_at: datetime | None


class MemorySchedules:
    """Finds, calls off and puts off what waits under a key.

    What is changed in a unit of work takes effect when that has succeeded. Until then no consumer gets the message.

    Args:
        channels: Where messages wait; those that share a queue count once.
    """

    def __init__(self, channels: Iterable[MemoryChannel] = ()) -> None:
        self._channels: dict[int, MemoryChannel] = {}
        self._changes: dict[MemoryEntry, _Change] = {}
        self.watch(channels)

    def watch(self, channels: Iterable[MemoryChannel]) -> None:
        """Look into these channels, too."""
        for channel in channels:
            self._channels.setdefault(id(channel.queue), channel)

    async def list(
        self,
        key: str | None = None,
        *,
        channel: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return what waits, the next one first."""
        found = [
            (entry.ready_at, entry.number, where.name, entry)
            for where, entry in self._found(key, channel)
            if since is None or entry.ready_at >= since
        ]
        found.sort(key=lambda one: one[:2])
        return [_scheduled(name, entry) for *_, name, entry in found[offset : offset + limit]]

    async def count(self, key: str | None = None, *, channel: str | None = None) -> int:
        """Return how many messages wait."""
        return sum(1 for _ in self._found(key, channel))

    async def cancel(self, key: str) -> int:
        """Remove what waits under a key; return how many messages that were."""
        return await self._change(key, None)

    async def reschedule(self, key: str, to: timedelta | datetime) -> int:
        """Let what waits under a key be due at another time; return how many messages that were.

        Raises:
            ConversionError: The moment does not say how far it is from UTC, or is too far away.
        """
        return await self._change(key, to)

    async def _change(self, key: str, to: timedelta | datetime | None) -> int:
        changed = [(where.queue, entry) for where, entry in self._waiting() if _key_of(entry) == key]
        scope = current_scope()
        if scope is not None and UnitOfWork not in scope.state:
            scope = None
        for queue, entry in changed:
            due_at = None
            if to is not None:
                now = queue.clock.now()
                due_at = now + timedelta(seconds=seconds_from_now(to, now))
            if scope is None:
                _apply(queue, entry, due_at)
            else:
                queue.hold(entry)
                self._changes[entry] = _Change(scope, queue, due_at)
        if scope is not None and changed and self not in scope.state:
            scope.state[self] = self
            # Like messages for channels in memory: after the commit, so that nobody sees what is not committed.
            await scope.enter(self._taking_effect(scope), outermost=True)
        return len(changed)

    @asynccontextmanager
    async def _taking_effect(self, scope: Scope) -> AsyncIterator[None]:
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            scope.state.pop(self, None)
            for entry, change in [one for one in self._changes.items() if one[1].scope is scope]:
                del self._changes[entry]
                if succeeded:
                    _apply(change.queue, entry, change.due_at)
                else:
                    change.queue.release(entry)

    def _found(self, key: str | None, channel: str | None) -> Iterator[tuple[MemoryChannel, MemoryEntry]]:
        for where, entry in self._waiting():
            if key in (None, _key_of(entry)) and channel in (None, where.name):
                yield where, entry

    def _waiting(self) -> Iterator[tuple[MemoryChannel, MemoryEntry]]:
        """Give what has a key, is not lent, and is not in the hands of another unit of work."""
        scope = current_scope()
        for channel in self._channels.values():
            for entry in channel.queue.waiting():
                change = self._changes.get(entry)
                in_reach = change is None or (change.scope is scope and change.due_at is not None)
                if in_reach and _key_of(entry) is not None:
                    yield channel, entry


def _key_of(entry: MemoryEntry) -> str | None:
    return entry.message.headers.get(HeaderName.schedule_key)


def _apply(queue: MemoryQueue, entry: MemoryEntry, due_at: datetime | None) -> None:
    if due_at is None:
        queue.remove(entry)
    else:
        queue.put_off(entry, due_at)


def _scheduled(channel: str, entry: MemoryEntry) -> ScheduledMessage:
    message = entry.as_received()
    return ScheduledMessage(
        key=message.headers[HeaderName.schedule_key],
        channel=channel,
        endpoint=message.headers.get(HeaderName.endpoint),
        due_at=entry.ready_at,
        message=message,
    )
