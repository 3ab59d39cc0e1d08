"""The suite for event stores: streams, versions, and readers that miss nothing and see nothing twice."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.message import new_id
from ecotone_fastapi.modelling.event_store import (
    EVERYTHING,
    START,
    EventFilter,
    EventStorage,
    Expected,
    NewEvent,
    Position,
    StoredEvent,
)
from ecotone_fastapi.testing.conformance.hooks import Hooks, Rollback

R = TypeVar("R")


def fact(name: str = "noted", body: bytes = b"{}", *tags: str) -> NewEvent:
    """Return an event with an id of its own."""
    return NewEvent(new_id(), name, body, '{"tenant": "acme"}', tags)


def facts(number: int, name: str = "noted") -> list[NewEvent]:
    """Return so many events, numbered in their bodies."""
    return [fact(name, str(place).encode()) for place in range(1, number + 1)]


class OpenUnit:
    """A transaction in a task of its own, which does what it is told until it is told to end."""

    def __init__(self, transaction: Callable[[], AbstractAsyncContextManager[None]], tasks: TaskGroup) -> None:
        self._transaction = transaction
        self._orders, self._taken = anyio.create_memory_object_stream[Callable[[], Awaitable[None]] | bool]()
        self._over = anyio.Event()
        self._failure: BaseException | None = None
        tasks.start_soon(self._run, self._taken)

    async def do(self, work: Callable[[], Awaitable[R]]) -> R:
        """Do something in the transaction, and return or raise what came of it."""
        finished = await self.begin(work)
        return await finished()

    async def begin(self, work: Callable[[], Awaitable[R]]) -> Callable[[], Awaitable[R]]:
        """Begin to do something in the transaction; return what waits for its end."""
        done, outcome, failures = anyio.Event(), list[R](), list[BaseException]()

        async def work_and_tell() -> None:
            try:
                outcome.append(await work())
            except Exception as error:
                failures.append(error)
            finally:
                done.set()

        async def finished() -> R:
            await done.wait()
            if failures:
                raise failures[0]
            return outcome[0]

        await self._orders.send(work_and_tell)
        return finished

    async def commit(self) -> None:
        """End it well; raise what the commit raises."""
        await self._end(well=True)

    async def rollback(self) -> None:
        """End it badly."""
        await self._end(well=False)

    async def _end(self, *, well: bool) -> None:
        await self._orders.send(well)
        await self._over.wait()
        if self._failure is not None and not isinstance(self._failure, Rollback):
            raise self._failure

    async def _run(self, orders: MemoryObjectReceiveStream[Callable[[], Awaitable[None]] | bool]) -> None:
        try:
            async with self._transaction():
                async for order in orders:
                    if order is True:
                        break
                    if order is False:
                        raise Rollback
                    await order()
        except Exception as error:
            self._failure = error
        finally:
            self._over.set()
            self._orders.close()
            self._taken.close()


@pytest.mark.anyio
class EventStoreConformance(Hooks):
    """What every store of events must do. Subclass it and implement `events` and `transaction`.

    A hook that is not implemented skips the cases that need it, and the reason says so. Within a case, all calls of a
    hook open the same store, as several processes would; each case begins with an empty one. Transactions are opened in
    several tasks at once.

    Attributes:
        moment: Seconds after which something that waits is taken to wait.
        patience: Seconds after which nothing is expected any more.
        one_writer: Whether a transaction that wants to write waits until the one before has ended.
        hides: Whether what was appended behind an open transaction is hidden until that has ended.

    Example:
        ```python
        class TestMemoryEvents(EventStoreConformance):
            @pytest.fixture(autouse=True)
            def memory(self) -> None:
                self.store = MemoryEvents()

            @asynccontextmanager
            async def events(self) -> AsyncIterator[EventStorage]:
                yield self.store
        ```
    """

    moment: float = 0.2
    patience: float = 20.0
    one_writer: bool = False
    hides: bool = True

    # ---------------------------------------------------------------------------------------------------------- hooks

    def events(self) -> AbstractAsyncContextManager[EventStorage]:
        """Hook: open the store, and close it in the end."""
        self._skip_without("events", "a store of events")

    @asynccontextmanager
    async def _units(self) -> AsyncIterator[Callable[[], OpenUnit]]:
        """Give what opens transactions; more than one at once needs a store with several writers."""
        if type(self).transaction is Hooks.transaction:
            self.transaction()
        with anyio.fail_after(self.patience):
            async with anyio.create_task_group() as tasks:
                yield lambda: OpenUnit(self.transaction, tasks)

    def _needs_several_writers(self) -> None:
        if self.one_writer:
            pytest.skip("a transaction that wants to write waits for the one before")

    # -------------------------------------------------------------------------------------------------------- streams

    async def test_what_is_appended_is_read_as_it_was(self) -> None:
        """Any bytes and any headers, in order, with versions from 1."""
        written = [
            NewEvent(new_id(), "order.placed", b"", "{}"),
            NewEvent(new_id(), "order.päid", b"\x00\xff'\"\\", '{"city": "Łódź", "quote": "\\"", "zero": "\\u0000"}'),
            NewEvent(new_id(), "order.placed", b"x" * 300_000, "{}"),
        ]
        async with self.events() as events:
            stored = await events.append("order-1", written, expected=0)

            assert [(one.version, one.name, one.body, one.headers_text) for one in stored] == [
                (version, one.name, one.body, one.headers_text) for version, one in enumerate(written, 1)
            ]
            read = await events.read("order-1")
            assert without_positions(read) == without_positions(stored)
            assert all(one.stream == "order-1" and one.origin is None for one in read)
            assert all(one.recorded_at.utcoffset() is not None for one in read)
            assert await events.version("order-1") == 3

    async def test_a_stream_is_read_from_a_version_on_and_up_to_a_limit(self) -> None:
        """And one that is not there has no events."""
        async with self.events() as events:
            await events.append("order-1", facts(5), expected=0)
            await events.append("order-12", facts(1), expected=0)

            assert versions(await events.read("order-1", after=2)) == [3, 4, 5]
            assert versions(await events.read("order-1", after=1, limit=2)) == [2, 3]
            assert (
                await events.read("order-1", after=5)
                == await events.read("order-2")
                == type(await events.read("order-2"))()
            )
            assert await events.version("order-2") == 0

    # ------------------------------------------------------------------------------------------------ E10: the version

    async def test_e10_an_exact_version_is_expected(self) -> None:
        """The error has both; nothing is appended, and the store goes on."""
        async with self.events() as events:
            await events.append("order-1", facts(2), expected=0)
            for expected in (0, 1, 3):
                with pytest.raises(ConcurrencyError) as caught:
                    await events.append("order-1", facts(2), expected=expected)
                assert (caught.value.expected, caught.value.actual) == (expected, 2)

            await events.append("order-1", facts(1), expected=2)
            assert versions(await events.read("order-1")) == [1, 2, 3]

    async def test_e10_any_version_or_some_version_is_expected(self) -> None:
        """The first one may be appended by whoever expects nothing."""
        async with self.events() as events:
            with pytest.raises(ConcurrencyError) as caught:
                await events.append("order-1", facts(1), expected=Expected.EXISTS)
            assert caught.value.actual == 0
            await events.append("order-1", facts(2), expected=Expected.ANY)
            await events.append("order-1", facts(2), expected=Expected.ANY)
            stored = await events.append("order-1", facts(2), expected=Expected.EXISTS)

            assert versions(stored) == [5, 6]
            assert versions(await events.read("order-1")) == [1, 2, 3, 4, 5, 6]

    async def test_e7_what_is_rolled_back_was_never_there(self) -> None:
        """Neither its events nor its ids, and it holds up nobody."""
        event = fact()
        async with self.events() as events:
            async with self._rolled_back():
                await events.append("order-1", [event, *facts(3)], expected=0)
                assert versions(await events.read("order-1")) == [1, 2, 3, 4]
                assert await events.version("order-1") == 4

            assert await events.version("order-1") == 0
            await events.append("order-2", [event], expected=0)
            assert streams(await everything(events)) == ["order-2"]

    # ---------------------------------------------------------------------------------- E1 to E9: readers of all events

    async def test_e3_what_a_slow_transaction_has_appended_is_not_passed_over(self) -> None:
        """Although a fast one, which began later, has committed before."""
        self._needs_several_writers()
        async with self.events() as events, self._units() as open_unit:
            reader = Reader(events)
            slow, fast = open_unit(), open_unit()
            await slow.do(lambda: events.append("slow-1", facts(2), expected=0))
            await fast.do(lambda: events.append("fast-1", facts(2), expected=0))
            await fast.commit()
            await reader.read()
            await slow.commit()
            await reader.read()

            assert sorted(streams(reader.seen)) == ["fast-1", "fast-1", "slow-1", "slow-1"]
            assert await everything(events) == reader.seen

    async def test_whoever_knows_that_nobody_is_appending_sees_what_is_committed_behind_others(self) -> None:
        """The final step of a rebuild: appenders of its streams are kept out, those of other streams are not."""
        self._needs_several_writers()
        async with self.events() as events, self._units() as open_unit:
            other = open_unit()
            await other.do(lambda: events.append("other-1", facts(1), expected=0))
            await events.append("mine-1", facts(2), expected=0)
            mine = EventFilter(categories=frozenset({"mine"}))

            hidden = await events.read_all(after=START, limit=10, which=mine)
            page = await events.read_all(after=START, limit=10, which=mine, settled=True)

            assert streams(page.events) == ["mine-1", "mine-1"]
            assert streams(hidden.events) == ([] if self.hides else ["mine-1", "mine-1"])
            assert await events.count(after=START, which=mine) == len(hidden.events)
            assert page.events[-1].position is not None
            assert page.upto >= page.events[-1].position
            await other.commit()
            assert await events.count(after=START, which=mine) == 2

    async def test_events_are_counted_as_they_are_read(self) -> None:
        """For a measure of how far somebody is behind."""
        async with self.events() as events:
            for stream in ("order-1", "order-2", "basket-1"):
                await events.append(stream, facts(2), expected=0)
            for which in (
                EVERYTHING,
                EventFilter(categories=frozenset({"order"})),
                EventFilter(streams=frozenset({"order-2", "order-3"})),
                EventFilter(categories=frozenset({"basket"}), streams=frozenset({"order-2"})),
            ):
                found = await everything(events, which)

                assert await events.count(after=START, which=which) == len(found)
                second = found[1].position or START
                assert await events.count(after=second, which=which) == len(found) - 2

    async def test_streams_are_read_together_with_the_streams_of_categories(self) -> None:
        """Both are places where events are; all else narrows down which of those are meant."""
        async with self.events() as events:
            for stream in ("order-1", "order-2", "basket-1"):
                await events.append(stream, facts(1), expected=0)

            which = EventFilter(categories=frozenset({"basket"}), streams=frozenset({"order-2"}))
            assert streams(await everything(events, which)) == ["order-2", "basket-1"]


class Reader:
    """Reads all events from where it has come to."""

    def __init__(self, events: EventStorage, which: EventFilter = EVERYTHING, limit: int = 100) -> None:
        self.seen: list[StoredEvent] = []
        self.position: Position = START
        self._events = events
        self._which = which
        self._limit = limit

    async def read(self) -> list[StoredEvent]:
        """Read what there is to be seen now; return it."""
        before, more = len(self.seen), True
        while more:
            page = await self._events.read_all(after=self.position, limit=self._limit, which=self._which)
            positions = [event.position for event in page.events if event.position is not None]
            assert positions == sorted(set(positions))
            assert all(self.position < position <= page.upto for position in positions)
            assert page.upto >= self.position
            self.seen += page.events
            self.position, more = page.upto, page.more
        return self.seen[before:]


async def everything(events: EventStorage, which: EventFilter = EVERYTHING, *, limit: int = 100) -> list[StoredEvent]:
    """Read all events from the start."""
    reader = Reader(events, which, limit)
    return await reader.read()


def versions(events: Sequence[StoredEvent]) -> list[int]:
    """Return the versions of events."""
    return [event.version for event in events]


def streams(events: Sequence[StoredEvent]) -> list[str]:
    """Return the streams of events."""
    return [event.stream for event in events]


def without_positions(events: Sequence[StoredEvent]) -> list[tuple[object, ...]]:
    """Return what events say, without where they stand, which may not have been known yet."""
    return [(one.stream, one.version, one.name, one.body, one.headers_text, one.recorded_at) for one in events]
