"""What an event store tells its suite about itself, and the steps that its cases share."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from ecotone_fastapi.core.message import new_id
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    START,
    EventFilter,
    EventStorage,
    NewEvent,
    Position,
    StoredEvent,
)
from ecotone_fastapi.testing.conformance.hooks import Hooks, OpenUnit


class EventHooks(Hooks):
    """What the suite for event stores asks for; `EventStoreConformance` tells more."""

    moment: float = 0.2
    patience: float = 20.0
    volume: int = 1_000
    crowd: int = 10
    one_writer: bool = False
    hides: bool = True
    decides_together: bool = True

    def events(self) -> AbstractAsyncContextManager[EventStorage]:
        """Hook: open the store, and close it in the end. The first one that is open takes part in transactions."""
        self._skip_without("events", "a store of events")

    async def restore_elsewhere(self) -> None:
        """Hook: leave the store as if it had been restored on another server, which has just begun to count."""
        self._skip_without("restore_elsewhere", "a server that counts transactions")

    @asynccontextmanager
    async def units(self) -> AsyncIterator[Callable[[], OpenUnit]]:
        """Give what opens transactions; what is still open in the end is rolled back."""
        if type(self).transaction is Hooks.transaction:
            self.transaction()
        with anyio.fail_after(self.patience):
            async with anyio.create_task_group() as tasks:
                yield lambda: OpenUnit(self.transaction, tasks)
                tasks.cancel_scope.cancel()

    def needs_several_writers(self) -> None:
        """Skip a case in which several transactions write at one time."""
        if self.one_writer:
            pytest.skip("a transaction that wants to write waits for the one before")


class Reader:
    """Reads all events from where it has come to.

    Attributes:
        seen: What it has read, in order.
        position: Where it has come to.
    """

    def __init__(self, events: EventStorage, which: EventFilter = EVERYTHING, *, limit: int = 100) -> None:
        self.seen: list[StoredEvent] = []
        self.position: Position = START
        self._events = events
        self._which = which
        self._limit = limit

    async def read(self) -> Sequence[StoredEvent]:
        """Read on until there is nothing more to be seen now; return what is new."""
        before, more = len(self.seen), True
        while more:
            more = await self.read_page()
        return self.seen[before:]

    async def read_page(self) -> bool:
        """Read one page; return whether there may be more."""
        page = await self._events.read_all(after=self.position, limit=self._limit, which=self._which)
        positions = [event.position or START for event in page.events]
        assert positions == sorted(set(positions))
        assert all(self.position < position <= page.upto for position in positions)
        assert len(positions) <= self._limit
        assert self.position <= page.upto
        assert positions or not page.more
        self.seen += page.events
        self.position = page.upto
        return page.more


async def everything(events: EventStorage, which: EventFilter = EVERYTHING, *, limit: int = 100) -> list[StoredEvent]:
    """Read all events from the start."""
    reader = Reader(events, which, limit=limit)
    await reader.read()
    return reader.seen


def fact(name: str = "noted", body: bytes = b"{}", *, tags: Iterable[str] = ()) -> NewEvent:
    """Return an event with an id of its own."""
    return NewEvent(new_id(), name, body, '{"tenant": "acme"}', tuple(tags))


def facts(number: int, name: str = "noted", *, tags: Iterable[str] = ()) -> list[NewEvent]:
    """Return so many events, numbered in their bodies."""
    return [fact(name, str(place).encode(), tags=tags) for place in range(1, number + 1)]


def versions(events: Iterable[StoredEvent]) -> list[int]:
    """Return the versions of events."""
    return [event.version for event in events]


def streams(events: Iterable[StoredEvent]) -> list[str]:
    """Return the streams of events."""
    return [event.stream for event in events]


def places(events: Iterable[StoredEvent]) -> list[tuple[str, int]]:
    """Return the streams of events with their versions there."""
    return [(event.stream, event.version) for event in events]


def contents(events: Iterable[StoredEvent]) -> list[tuple[object, ...]]:
    """Return what events say, without where they stand among all, which may not have been known yet."""
    return [
        (one.stream, one.version, one.name, one.body, one.headers_text, one.recorded_at, one.origin) for one in events
    ]
