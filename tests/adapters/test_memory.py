import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDeadLetters, MemoryDelivery, MemoryQueue
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.errors import ConversionError, LeaseLostError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Plugin
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.testing.conformance import ChannelConformance, StoreConformance


class TravellingClock:
    """The machine's clock, ahead of it by as much as a test has travelled."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, seconds: float) -> None:
        self.offset += timedelta(seconds=seconds)


class StandingClock(TravellingClock):
    """A clock that moves only when a test travels."""

    def now(self) -> datetime:
        return datetime(2026, 1, 31, 12, tzinfo=UTC) + self.offset


def letter(name: str, **headers: str) -> Message[bytes]:
    return Message(name.encode(), {"id": name, **headers})


# ---------------------------------------------------------------------------------------------------------- conformance


class TestMemoryChannel(ChannelConformance):
    moment = 0.0
    leased = False

    @pytest.fixture(autouse=True)
    def server(self) -> None:
        self.clock = TravellingClock()
        self.queues: defaultdict[str, MemoryQueue] = defaultdict(lambda: MemoryQueue(self.clock))

    @asynccontextmanager
    async def channel(self, name: str) -> AsyncIterator[Channel]:
        channel = MemoryChannel(name, queue=self.queues[name], lease=self.lease if self.leased else None)
        await channel.open()
        try:
            yield channel
        finally:
            await channel.close()

    @asynccontextmanager
    async def channel_that_keeps_order(self, name: str) -> AsyncIterator[Channel]:
        if name not in self.queues:
            self.queues[name] = MemoryQueue(self.clock, keeps_order=True)
        async with self.channel(name) as channel:
            yield channel

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def stores(self) -> Sequence[Plugin]:
        return ()


class TestMemoryChannelWithLease(TestMemoryChannel):
    leased = True


class TestMemoryDeadLetters(StoreConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.store = MemoryDeadLetters()

    @asynccontextmanager
    async def dead_letters(self) -> AsyncIterator[DeadLetterStore]:
        yield self.store


# ------------------------------------------------------------------------------------------------- what is particular


async def names(channel: MemoryChannel) -> list[str]:
    return [delivery.message.id for delivery in await channel.receive(100, 0)]


async def test_a_failed_message_goes_behind_those_that_are_waiting() -> None:
    clock = StandingClock()
    channel = MemoryChannel("orders", clock=clock)
    await channel.send([letter("one"), letter("two")])
    [delivery] = await channel.receive(1, 0)
    clock.advance(1)

    await delivery.nack()

    assert await names(channel) == ["two", "one"]


async def test_a_message_that_was_not_handled_keeps_its_place() -> None:
    clock = StandingClock()
    channel = MemoryChannel("orders", clock=clock)
    await channel.send([letter("one"), letter("two"), letter("three")])
    await channel.receive(2, 0)
    clock.advance(1)

    await channel.close()

    assert await names(channel) == ["one", "two", "three"]


async def test_closing_gives_back_only_what_is_its_own() -> None:
    mine = MemoryChannel("orders")
    theirs = MemoryChannel("orders", queue=mine.queue)
    await mine.send([letter("one"), letter("two")])
    [my_delivery] = await mine.receive(1, 0)
    [their_delivery] = await theirs.receive(1, 0)

    await mine.close()

    await their_delivery.ack()
    with pytest.raises(LeaseLostError, match="one"):
        await my_delivery.ack()
    assert await names(theirs) == ["one"]


async def test_closing_ends_a_receive_that_waits() -> None:
    channel = MemoryChannel("orders")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.receive, 1, 60.0)
            await anyio.wait_all_tasks_blocked()
            await channel.close()


async def test_a_message_wakes_one_that_waits_for_a_later_one() -> None:
    channel = MemoryChannel("orders")
    await channel.send([letter("later", delay="3600")])
    received: list[str] = []

    async def receive() -> None:
        received.extend(delivery.message.id for delivery in await channel.receive(1, 60.0))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await channel.send([letter("now")])
    assert received == ["now"]


async def test_what_is_due_after_travelling_is_received_without_waiting() -> None:
    clock = StandingClock()
    channel = MemoryChannel("orders")
    channel.use_clock(clock)
    await channel.send([letter("one", delay="60")])
    assert await names(channel) == []

    clock.advance(60)

    assert await names(channel) == ["one"]


async def test_failed_runs_elsewhere_are_counted_on() -> None:
    channel = MemoryChannel("retries")
    await channel.send([letter("one", attempt="2")])

    [delivery] = await channel.receive(1, 0)
    assert delivery.message.headers["attempt"] == "2"
    await delivery.nack()

    assert (await channel.peek())[0].headers["attempt"] == "3"


@pytest.mark.parametrize("text", ["many", "-1", "1.5"])
async def test_a_wrong_number_of_attempts_is_refused(text: str) -> None:
    channel = MemoryChannel("orders")

    with pytest.raises(ConversionError) as caught:
        await channel.send([letter("one", attempt=text)])

    assert str(caught.value) == (
        f"header 'attempt' of message one is {text!r}\nHint: it has to be a number from 0 to 10000000000, of type int"
    )


async def test_the_longest_delay_and_the_longest_life_can_be_told() -> None:
    channel = MemoryChannel("orders")
    await channel.send([letter("one", time_to_live="1e10")])
    [delivery] = await channel.receive(1, 0)

    await delivery.nack(1e300)

    assert await channel.depth() == 1
    assert await names(channel) == []


async def test_what_is_purged_can_not_be_acked() -> None:
    channel = MemoryChannel("orders")
    await channel.send([letter("one"), letter("two")])
    deliveries = await channel.receive(1, 0)

    assert await channel.purge() == 2

    with pytest.raises(LeaseLostError, match="'orders' has lent to somebody else: one"):
        await channel.ack_all(deliveries)
    await deliveries[0].nack()
    assert await channel.depth() == 0


async def test_waiting_messages_are_seen_in_the_order_in_which_they_will_come() -> None:
    clock = StandingClock()
    channel = MemoryChannel("orders", clock=clock)
    await channel.send(
        [letter("later", delay="20"), letter("low"), letter("soon", delay="10"), letter("high", priority="9")]
    )

    assert [message.id for message in await channel.peek()] == ["high", "low", "soon", "later"]
    clock.advance(30)
    assert [message.id for message in await channel.peek()] == await names(channel)


def test_a_channel_may_be_used_in_one_event_loop_after_another() -> None:
    channel = MemoryChannel("orders")

    async def wait_in_vain() -> None:
        with anyio.move_on_after(0.01):
            await channel.receive(1, 60.0)

    async def send_and_receive() -> list[str]:
        await channel.send([letter("one")])
        return await names(channel)

    anyio.run(wait_in_vain)
    assert anyio.run(send_and_receive) == ["one"]


async def test_of_two_dead_letters_of_one_moment_the_last_one_is_the_newest() -> None:
    store = MemoryDeadLetters()
    conformance = pytest.importorskip("ecotone_fastapi.testing.conformance.stores")

    await store.park(conformance.parked("one"))
    await store.park(conformance.parked("two"))

    assert [parked.id for parked in await store.list()] == ["two", "one"]


# --------------------------------------------------------------------------------------------------- against a model


@dataclass
class Expected:
    """A message as the model knows it: without heaps, sorted anew each time."""

    name: str
    place: int
    priority: int
    ready_at: int
    expires_at: float
    available_at: float = 0
    attempts: int = 0
    deliveries: int = 0
    holder: MemoryDelivery | None = None


LEASE = 7
SECONDS = st.integers(0, 10)


class QueueModel(RuleBasedStateMachine):
    """The channel does what sorting a list would do, whatever is called in whatever order."""

    lent = Bundle("lent")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = StandingClock()
        self.now = 0
        self.sent = 0
        self.expected: list[Expected] = []
        self.dropped: list[MemoryDelivery] = []
        self.channels = [MemoryChannel("orders", clock=self.clock, lease=LEASE)]
        self.channels.append(MemoryChannel("orders", queue=self.channels[0].queue))

    def teardown(self) -> None:
        self.runner.close()

    @rule(priority=st.integers(0, 9), delay=SECONDS | st.none(), life=st.integers(1, 20) | st.none())
    def send(self, priority: int, delay: int | None, life: int | None) -> None:
        headers = {"delay": delay, "time_to_live": life, "priority": priority or None}
        name = f"{self.sent}"
        message = letter(name, **{header: str(value) for header, value in headers.items() if value is not None})
        self.runner.run(self.channels[0].send([message]))
        ready_at = self.now + (delay or 0)
        expires_at = float("inf") if life is None else self.now + life
        self.expected.append(Expected(name, self.sent, priority, ready_at, expires_at, available_at=ready_at))
        self.sent += 1

    @rule(seconds=SECONDS)
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.now += seconds

    @rule(target=lent, consumer=st.integers(0, 1), limit=st.integers(1, 4))
    def receive(self, consumer: int, limit: int) -> list[MemoryDelivery]:
        self.drop_expired()
        due = [entry for entry in self.expected if entry.available_at <= self.now]
        due.sort(key=lambda entry: (-entry.priority, entry.available_at, entry.place))

        deliveries = list(self.runner.run(self.channels[consumer].receive(limit, 0)))

        assert [delivery.message.id for delivery in deliveries] == [entry.name for entry in due[:limit]]
        for entry, delivery in zip(due, deliveries, strict=False):
            entry.deliveries += 1
            entry.holder = delivery
            entry.available_at = self.now + LEASE if consumer == 0 else float("inf")
            assert delivery.count == entry.deliveries
            assert delivery.message.headers.get("attempt", "0") == str(entry.attempts)
            assert "delay" not in delivery.message.headers
        return deliveries

    @rule(deliveries=consumes(lent))
    def ack(self, deliveries: list[MemoryDelivery]) -> None:
        # Expired under a lease that has ended: whether the queue has met it since, and dropped it, is its own affair.
        dropped = [delivery for delivery in deliveries if delivery in self.dropped]
        lost = [delivery for delivery in deliveries if self.held(delivery) is None and delivery not in dropped]
        try:
            self.runner.run(self.channels[0].ack_all(deliveries))
        except LeaseLostError:
            assert lost or dropped
        else:
            assert not lost
        self.expected = [entry for entry in self.expected if entry.holder is None or entry.holder not in deliveries]

    @rule(deliveries=consumes(lent), delay=SECONDS, attempted=st.booleans())
    def nack(self, deliveries: list[MemoryDelivery], delay: int, attempted: bool) -> None:
        for delivery in deliveries:
            self.runner.run(delivery.nack(delay, attempted=attempted))
            if entry := self.held(delivery):
                entry.holder = None
                entry.attempts += attempted
                entry.deliveries -= not attempted
                if attempted or delay:
                    entry.ready_at = self.now + delay
                entry.available_at = entry.ready_at

    @rule(consumer=st.integers(0, 1))
    def close(self, consumer: int) -> None:
        self.runner.run(self.channels[consumer].close())
        for entry in self.expected:
            if entry.holder is not None and entry.holder.owner is self.channels[consumer]:
                entry.holder = None
                entry.deliveries -= 1
                entry.available_at = entry.ready_at

    @invariant()
    def is_as_deep_as_expected(self) -> None:
        self.drop_expired()
        assert self.runner.run(self.channels[0].depth()) == len(self.expected)
        waiting = [entry for entry in self.expected if entry.holder is None or entry.available_at <= self.now]
        assert {message.id for message in self.runner.run(self.channels[0].peek())} == {entry.name for entry in waiting}

    def held(self, delivery: MemoryDelivery) -> Expected | None:
        return next((entry for entry in self.expected if entry.holder is delivery), None)

    def drop_expired(self) -> None:
        def lives(entry: Expected) -> bool:
            is_lent = entry.holder is not None and entry.available_at > self.now
            return is_lent or entry.expires_at > self.now

        self.dropped += [entry.holder for entry in self.expected if entry.holder is not None and not lives(entry)]
        self.expected = [entry for entry in self.expected if lives(entry)]


TestQueueAgainstModel = QueueModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
