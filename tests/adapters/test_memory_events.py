"""Events in memory: the shipped suite, and what is particular about them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings

from ecotone_fastapi.adapters.memory import MemoryEvents, MemoryInbox
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.modelling.event_storage import EventStorage, Expected
from ecotone_fastapi.testing import EventStoreConformance, TravellingClock
from ecotone_fastapi.testing.conformance.event_order import Step
from ecotone_fastapi.testing.conformance.event_steps import facts, versions
from tests.databases import unit_of_work
from tests.interleavings import STEPS


class TestMemoryEvents(EventStoreConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.store = MemoryEvents()

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStorage]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit_of_work():
            yield

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(script=STEPS)
    async def test_e20_writers_and_readers_may_do_anything(self, script: Sequence[Step]) -> None:
        await self.run_steps(script)


async def test_two_units_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    events = MemoryEvents()
    ready = [anyio.Event(), anyio.Event()]
    failures: list[ConcurrencyError] = []

    async def append(place: int, streams: Sequence[str]) -> None:
        try:
            async with unit_of_work():
                await events.append(streams[0], facts(1), expected=0)
                ready[place].set()
                await ready[1 - place].wait()
                await events.append(streams[1], facts(1), expected=Expected.ANY)
        except ConcurrencyError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, 0, ["a-1", "b-1"])
            tasks.start_soon(append, 1, ["b-1", "a-1"])

    assert [failure.what for failure in failures] == [
        "two units of work wait for each other, one of them to change 'a-1'"
    ]
    assert [await events.version(stream) for stream in ("a-1", "b-1")] == [1, 1]


async def test_two_units_do_not_wait_for_each_other_whatever_they_wait_for() -> None:
    events, inbox = MemoryEvents(), MemoryInbox()
    appended, recorded = anyio.Event(), anyio.Event()
    failures: list[ConcurrencyError] = []

    async def append() -> None:
        async with unit_of_work():
            await events.append("a-1", facts(1), expected=0)
            appended.set()
            await recorded.wait()
            await inbox.record("m", "pay")

    async def record() -> None:
        try:
            async with unit_of_work():
                await inbox.record("m", "pay")
                recorded.set()
                await appended.wait()
                await checkpoint()
                await events.append("a-1", facts(1), expected=1)
        except ConcurrencyError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append)
            tasks.start_soon(record)

    assert len(failures) == 1
    assert await events.version("a-1") == 1


async def test_what_waits_outside_of_a_unit_goes_on_when_the_unit_has_ended() -> None:
    events = MemoryEvents()
    appended = anyio.Event()

    async def append() -> None:
        await appended.wait()
        await events.append("a-1", facts(1), expected=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append)
        async with unit_of_work():
            await events.append("a-1", facts(1), expected=0)
            appended.set()
            await checkpoint()

    assert versions(await events.read("a-1")) == [1, 2]


async def test_events_are_recorded_and_hidden_by_the_clock() -> None:
    clock = TravellingClock(datetime(2026, 1, 1, tzinfo=UTC))
    events = MemoryEvents(clock)
    async with anyio.create_task_group() as tasks:
        appended, over = anyio.Event(), anyio.Event()

        async def hold() -> None:
            async with unit_of_work():
                await events.append("a-1", facts(1), expected=0)
                appended.set()
                await over.wait()

        tasks.start_soon(hold)
        await appended.wait()
        clock.advance(timedelta(seconds=5))
        (event,) = await events.append("b-1", facts(1), expected=0)
        clock.advance(timedelta(seconds=7))
        horizon = await events.horizon()
        over.set()

    assert event.recorded_at == datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert horizon.lag == 7
    assert horizon.blocked_by == "a unit of work of this process that has been open since 2026-01-01 00:00:00+00:00"


async def test_the_errors_say_what_was_expected_and_what_to_do() -> None:
    events = MemoryEvents()
    await events.append("order-1", facts(2), expected=0)

    with pytest.raises(ConcurrencyError) as stale:
        await events.append("order-1", facts(1), expected=1)
    assert str(stale.value).splitlines() == [
        "the stream 'order-1' was changed meanwhile",
        "Tried: expected version 1, found 2",
        "Hint: load it again, decide again",
    ]
