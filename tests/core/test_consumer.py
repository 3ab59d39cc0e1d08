import importlib.util
import logging
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core import consumer as consumer_module
from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.current import current_message
from ecotone_fastapi.core.errors import ChannelError, LeaseLostError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call
from ecotone_fastapi.core.plugin import Limits, Runnable
from ecotone_fastapi.testing.faults import FailingChannel

EMPTY = Limits(until_empty=True)

Target = Callable[[Call], Awaitable[Any]]


def letter(name: str, **headers: str) -> Message[bytes]:
    return Message(name.encode(), {"id": name, **headers})


async def channel_with(*names: str) -> MemoryChannel:
    channel = MemoryChannel("letters")
    await channel.send([letter(name) for name in names])
    return channel


def consumer_of(channel: Channel, target: Target, *, concurrency: int = 1, batch: int = 10) -> Consumer:
    gateway = Gateway(Conversion(), SystemClock())
    return Consumer(channel, gateway, target=target, concurrency=concurrency, batch=batch)


async def left_on(channel: Channel) -> list[tuple[str, int, str | None]]:
    """Name, count of deliveries and failed attempts of each message that is still there."""
    deliveries = await channel.receive(100, 0)
    return [(one.message.id, one.count, one.message.headers.get("attempt")) for one in deliveries]


def name_of(call: Call) -> str:
    return str(call.message.payload.decode())


class Handled:
    """A target that keeps what it was given, and fails on what it was told to fail on."""

    def __init__(self, fails: dict[str, int] | None = None) -> None:
        self.names: list[str] = []
        self.fails = fails or {}

    async def __call__(self, call: Call) -> None:
        name = name_of(call)
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            raise ValueError(f"no {name}")
        self.names.append(name)


# ---------------------------------------------------------------------------------------------------------------- a run


async def test_a_consumer_handles_what_is_on_its_channel_in_order() -> None:
    channel = await channel_with(*"abcdefghijklmno")
    handled = Handled()
    consumer: Runnable = consumer_of(channel, handled)

    assert consumer.name == "letters"
    assert await consumer.run(EMPTY) == 15
    assert handled.names == [*"abcdefghijklmno"]
    assert await channel.depth() == 0
    assert await consumer.run(EMPTY) == 0


async def test_a_consumer_counts_what_it_has_handled_in_all_its_runs() -> None:
    channel = await channel_with("a", "b")
    consumer = consumer_of(channel, Handled())

    await consumer.run(EMPTY)
    await channel.send([letter("c")])
    await consumer.run(EMPTY)

    assert consumer.handled == 3


async def test_a_consumer_counts_each_attempt_that_failed_in_all_its_runs() -> None:
    channel = await channel_with("a", "b")
    consumer = consumer_of(channel, Handled(fails={"a": 2, "b": 1}))

    await consumer.run(EMPTY)
    await channel.send([letter("c")])
    await consumer.run(EMPTY)

    assert (consumer.handled, consumer.failed) == (3, 3)


async def test_a_message_that_an_interceptor_keeps_from_its_target_did_not_go_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer = consumer_of(await channel_with("a"), Handled())

    async def keep(delivery: Delivery) -> bool:
        await delivery.ack()
        return False

    monkeypatch.setattr(consumer, "handle", keep)
    await consumer.run(EMPTY)

    assert (consumer.handled, consumer.failed) == (0, 1)


async def test_a_message_is_handled_in_a_context_of_its_own() -> None:
    channel = await channel_with("a", "b")
    seen: list[str | None] = []

    async def look(call: Call) -> None:
        message = current_message()
        seen.append(message.id if message else None)

    await consumer_of(channel, look).run(EMPTY)

    assert seen == ["a", "b"]
    assert current_message() is None


async def test_the_messages_of_other_channels_are_left_alone() -> None:
    other = await channel_with("a")

    assert await consumer_of(MemoryChannel("letters"), Handled()).run(EMPTY) == 0
    assert await other.depth() == 1


# ------------------------------------------------------------------------------------------------------------- failures


async def test_a_failing_message_does_not_stop_its_neighbours_and_comes_again(caplog: pytest.LogCaptureFixture) -> None:
    channel = await channel_with("a", "b", "c")
    handled = Handled(fails={"b": 2})

    assert await consumer_of(channel, handled).run(EMPTY) == 3

    assert handled.names == ["a", "c", "b"]
    assert [record.getMessage() for record in caplog.records] == ["channel letters: message b failed"] * 2
    assert caplog.records[0].exc_info is not None


async def test_what_failed_counts_as_an_attempt() -> None:
    channel = await channel_with("a")
    attempts: list[str | None] = []

    async def fail_twice(call: Call) -> None:
        attempts.append(call.message.headers.get("attempt"))
        if len(attempts) < 3:
            raise ValueError

    await consumer_of(channel, fail_twice).run(EMPTY)

    assert attempts == [None, "1", "2"]


# --------------------------------------------------------------------------------------------------------------- limits


async def test_the_limit_of_messages_counts_those_that_were_handled_well() -> None:
    channel = await channel_with("a", "b", "c", "d")
    handled = Handled(fails={"a": 1, "b": 1})

    assert await consumer_of(channel, handled).run(Limits(messages=3)) == 3

    assert len(handled.names) == 3
    assert await channel.depth() == 1


async def test_no_more_is_borrowed_than_the_limit_of_messages_allows() -> None:
    channel = await channel_with(*"abcdef")

    assert await consumer_of(channel, Handled(), concurrency=5).run(Limits(messages=2)) == 2
    assert [name for name, count, _ in await left_on(channel) if count == 1] == [*"cdef"]


async def test_a_limit_of_no_messages_ends_at_once() -> None:
    assert await consumer_of(await channel_with("a"), Handled()).run(Limits(messages=0)) == 0


async def test_the_limit_of_time_ends_a_run_that_waits_for_messages() -> None:
    assert await consumer_of(MemoryChannel("letters"), Handled()).run(Limits(seconds=0.02)) == 0


async def test_the_limit_of_time_ends_a_run_whose_handler_hangs() -> None:
    channel = await channel_with("a")

    async def hang(call: Call) -> None:
        await anyio.Event().wait()

    assert await consumer_of(channel, hang, batch=1).run(Limits(seconds=0.02, grace=0.0)) == 0
    assert await left_on(channel) == [("a", 1, None)]


async def test_no_time_is_no_run() -> None:
    channel = await channel_with("a")

    assert await consumer_of(channel, Handled()).run(Limits(seconds=0)) == 0
    assert await left_on(channel) == [("a", 1, None)]


async def test_a_process_that_has_grown_too_large_ends_its_run() -> None:
    channel = await channel_with("a")

    assert await consumer_of(channel, Handled()).run(Limits(memory=1)) == 0
    assert await consumer_of(channel, Handled()).run(Limits(memory=10**6, until_empty=True)) == 1


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_is_measured_in_the_units_of_the_system(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        ru_maxrss = 5_000_000

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(consumer_module.resource, "getrusage", lambda who: Usage())

    assert math.isclose(consumer_module.megabytes(), 5 * unit)


async def test_where_memory_cannot_be_measured_its_limit_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert consumer_module.__file__
    spec = importlib.util.spec_from_file_location("consumer_elsewhere", consumer_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)

    assert elsewhere.megabytes() == 0.0


async def test_until_empty_goes_on_when_handling_a_message_sends_another_one() -> None:
    channel = await channel_with("5")
    handled: list[str] = []

    async def count_down(call: Call) -> None:
        handled.append(name_of(call))
        if (number := int(name_of(call))) > 0:
            await channel.send([letter(str(number - 1))])

    assert await consumer_of(channel, count_down).run(EMPTY) == 6
    assert handled == [*"543210"]


async def test_until_empty_waits_for_the_acks_that_are_under_way() -> None:
    class Slow(MemoryChannel):
        """Answers an ack after somebody else has asked for messages."""

        def __init__(self) -> None:
            super().__init__("letters")
            self.asked_again = anyio.Event()
            self.receives = 0

        async def receive(self, limit: int, timeout: float) -> Any:
            self.receives += 1
            if self.receives == 2:
                self.asked_again.set()
            return await super().receive(limit, timeout)

        async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
            await self.asked_again.wait()
            await super().ack_all(deliveries)

    channel = Slow()
    await channel.send([letter("a")])

    assert await consumer_of(channel, Handled()).run(EMPTY) == 1
    assert await channel.depth() == 0


async def test_until_empty_leaves_what_is_delayed() -> None:
    class Standing:
        offset = timedelta(0)

        def now(self) -> datetime:
            return datetime(2026, 1, 31, tzinfo=UTC)

    channel = MemoryChannel("letters", clock=Standing())
    await channel.send([letter("now"), letter("later", delay="60")])

    assert await consumer_of(channel, Handled()).run(EMPTY) == 1
    assert [message.id for message in await channel.peek()] == ["later"]


# ------------------------------------------------------------------------------------------------------------- stopping


async def test_a_run_that_is_told_to_stop_finishes_what_is_under_way_and_gives_back_the_rest() -> None:
    channel = await channel_with("a", "b", "c")
    stop, running, finish = anyio.Event(), anyio.Event(), anyio.Event()
    results: list[int] = []

    async def handle(call: Call) -> None:
        running.set()
        await finish.wait()

    async def run() -> None:
        results.append(await consumer_of(channel, handle).run(Limits(stop=stop)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await running.wait()
        stop.set()
        await anyio.wait_all_tasks_blocked()
        assert results == []
        finish.set()

    assert results == [1]
    assert await left_on(channel) == [("b", 1, None), ("c", 1, None)]


async def test_a_handler_that_needs_longer_than_the_grace_is_cancelled_and_its_message_given_back() -> None:
    channel = await channel_with("a", "b")
    stop, cancelled = anyio.Event(), []

    async def hang(call: Call) -> None:
        stop.set()
        try:
            await anyio.Event().wait()
        finally:
            cancelled.append(name_of(call))

    assert await consumer_of(channel, hang).run(Limits(stop=stop, grace=0.01)) == 0

    assert cancelled == ["a"]
    assert await left_on(channel) == [("a", 1, None), ("b", 1, None)]


async def test_a_run_that_waits_for_messages_stops_at_once() -> None:
    stop = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer_of(MemoryChannel("letters"), Handled()).run, Limits(stop=stop))
        await anyio.wait_all_tasks_blocked()
        stop.set()


async def test_a_run_that_is_cancelled_gives_everything_back() -> None:
    channel = await channel_with(*"abcde")
    running: list[str] = []

    async def hang(call: Call) -> None:
        running.append(name_of(call))
        await anyio.Event().wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer_of(channel, hang, concurrency=2).run, Limits())
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert running == ["a", "b"]
    assert [(name, attempt) for name, _, attempt in await left_on(channel)] == [(name, None) for name in "abcde"]


async def test_what_was_handled_before_a_run_is_cancelled_is_acked() -> None:
    channel = await channel_with("a", "b")

    async def handle(call: Call) -> None:
        if name_of(call) == "b":
            tasks.cancel_scope.cancel()
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer_of(channel, handle).run, Limits())

    assert await left_on(channel) == [("b", 1, None)]


# ---------------------------------------------------------------------------------------------------------- concurrency


@pytest.mark.parametrize(("concurrency", "batch"), [(1, 10), (3, 1), (7, 10), (20, 50)])
async def test_never_more_messages_are_handled_at_the_same_time_than_allowed(concurrency: int, batch: int) -> None:
    channel = await channel_with(*map(str, range(200)))
    at_once, most = 0, 0
    handled: Counter[str] = Counter()

    async def probe(call: Call) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        for _ in range(int(name_of(call)) % 7):
            await checkpoint()
        at_once -= 1
        handled[name_of(call)] += 1

    assert await consumer_of(channel, probe, concurrency=concurrency, batch=batch).run(EMPTY) == 200

    assert most == concurrency
    assert set(handled.values()) == {1}
    assert len(handled) == 200


async def test_messages_with_one_key_are_handled_in_order_while_other_keys_go_on() -> None:
    channel = MemoryChannel("letters")
    await channel.send([letter(f"{key}{number}", partition_key=key) for number in range(5) for key in "abc"])
    log: list[str] = []
    together = anyio.Event()
    running: set[str] = set()
    most = 0

    async def handle(call: Call) -> None:
        nonlocal most
        name = name_of(call)
        assert name[0] not in running
        running.add(name[0])
        most = max(most, len(running))
        if len(running) == 3:
            together.set()
        await together.wait()
        await checkpoint()
        log.append(name)
        running.discard(name[0])

    assert await consumer_of(channel, handle, concurrency=6, batch=15).run(EMPTY) == 15

    assert most == 3
    for key in "abc":
        assert [name for name in log if name.startswith(key)] == [f"{key}{number}" for number in range(5)]


async def test_a_message_without_key_does_not_wait_for_those_with_one() -> None:
    channel = MemoryChannel("letters")
    await channel.send([letter("a1", partition_key="a"), letter("a2", partition_key="a"), letter("free")])
    free_done = anyio.Event()
    log: list[str] = []

    async def handle(call: Call) -> None:
        if name_of(call) == "free":
            free_done.set()
        await free_done.wait()
        log.append(name_of(call))

    await consumer_of(channel, handle, concurrency=2).run(EMPTY)

    assert sorted(log) == ["a1", "a2", "free"]


# ----------------------------------------------------------------------------------------------------------------- acks


class CountingAcks(MemoryChannel):
    """Keeps the first batch of acks waiting until all other messages have been handled."""

    def __init__(self, release: anyio.Event) -> None:
        super().__init__("letters")
        self.release = release
        self.batches: list[int] = []

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        self.batches.append(len(deliveries))
        await self.release.wait()
        await super().ack_all(deliveries)


async def test_what_is_done_while_others_are_acked_is_acked_together() -> None:
    release = anyio.Event()
    channel = CountingAcks(release)
    await channel.send([letter(str(number)) for number in range(10)])
    handled = 0

    async def handle(call: Call) -> None:
        nonlocal handled
        handled += 1
        if handled == 10:
            release.set()

    assert await consumer_of(channel, handle).run(EMPTY) == 10
    assert channel.batches == [1, 9]
    assert await channel.depth() == 0


async def test_a_channel_that_settles_one_by_one_is_asked_one_by_one() -> None:
    inside = await channel_with("a", "b")

    assert await consumer_of(FailingChannel(inside), Handled()).run(EMPTY) == 2
    assert await inside.depth() == 0


async def test_what_the_handler_has_settled_is_left_alone() -> None:
    channel = await channel_with("a", "b")

    async def handle(call: Call) -> None:
        assert call.delivery is not None
        if name_of(call) == "a":
            await call.delivery.ack()
        else:
            await call.delivery.nack(60.0)

    assert await consumer_of(channel, handle).run(Limits(messages=2)) == 2
    assert [message.id for message in await channel.peek()] == ["b"]


async def test_a_handler_that_fails_after_it_has_settled_its_message_does_not_bring_it_back() -> None:
    channel = await channel_with("a")

    async def handle(call: Call) -> None:
        assert call.delivery is not None
        await call.delivery.ack()
        raise ValueError

    assert await consumer_of(channel, handle).run(EMPTY) == 0
    assert await channel.depth() == 0


async def test_a_message_that_was_lost_before_its_ack_is_left_to_its_new_owner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = await channel_with("a", "b")

    async def handle(call: Call) -> None:
        if name_of(call) == "b":
            await channel.purge()
            await channel.send([letter("c")])

    assert await consumer_of(channel, handle).run(EMPTY) == 3
    assert "handled, but lost before the ack" in caplog.text


async def test_a_failed_message_that_was_lost_meanwhile_is_left_to_its_new_owner() -> None:
    channel = await channel_with("a")

    async def handle(call: Call) -> None:
        await channel.purge()
        raise ValueError

    assert await consumer_of(channel, handle).run(EMPTY) == 0
    assert await channel.depth() == 0


# ---------------------------------------------------------------------------------------------------- a lost connection


class Unreliable(MemoryChannel):
    """Fails to receive or to settle, as often as it is told."""

    def __init__(self) -> None:
        super().__init__("letters")
        self.receives_well = 10**6
        self.failed_nacks = 0
        self.failed_acks = 0
        self.error: Exception = ChannelError("the broker is gone")
        self.in_use = anyio.Event()
        self.lost = anyio.Event()

    async def receive(self, limit: int, timeout: float) -> Any:
        if self.receives_well <= 0:
            await self.in_use.wait()
            self.lost.set()
            raise self.error
        self.receives_well -= 1
        return [UnreliableDelivery(self, one) for one in await super().receive(limit, timeout)]


class UnreliableDelivery:
    def __init__(self, channel: Unreliable, inside: Delivery) -> None:
        self.channel = channel
        self.inside = inside
        self.message = inside.message
        self.count = inside.count

    @property
    def settled(self) -> bool:
        return self.inside.settled

    async def ack(self) -> None:
        if self.channel.failed_acks > 0:
            self.channel.failed_acks -= 1
            raise self.channel.error
        await self.inside.ack()

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        if self.channel.failed_nacks > 0:
            self.channel.failed_nacks -= 1
            raise self.channel.error
        await self.inside.nack(delay, attempted=attempted)


@pytest.mark.parametrize("error", [ChannelError("the broker is gone"), RuntimeError("a mistake in the driver")])
async def test_a_channel_that_is_lost_ends_the_run_when_what_is_under_way_has_finished(error: Exception) -> None:
    channel = Unreliable()
    channel.receives_well = 1
    channel.error = error
    await channel.send([letter("a"), letter("b")])
    handled: list[str] = []

    async def handle(call: Call) -> None:
        channel.in_use.set()
        await channel.lost.wait()
        handled.append(name_of(call))

    with pytest.raises(type(error)) as raised:
        await consumer_of(channel, handle, batch=4).run(Limits())

    assert raised.value is error
    assert handled == ["a"]
    channel.receives_well = 1
    assert await left_on(channel) == [("b", 1, None)]


async def test_a_failed_message_that_the_channel_does_not_take_back_is_offered_again_and_never_acked() -> None:
    channel = Unreliable()
    channel.failed_nacks = 1
    await channel.send([letter("a")])
    handled = Handled(fails={"a": 1})

    assert await consumer_of(channel, handled).run(EMPTY) == 1

    assert handled.names == ["a"]
    assert await channel.depth() == 0


async def test_a_channel_that_takes_nothing_back_ends_the_run_and_keeps_the_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = Unreliable()
    channel.failed_nacks = 3
    await channel.send([letter("a")])

    with pytest.raises(ChannelError, match="the broker is gone"):
        await consumer_of(channel, Handled(fails={"a": 1})).run(EMPTY)

    assert "not given back; it will come again" in caplog.text
    assert await channel.depth() == 1


async def test_a_failed_message_that_is_refused_at_the_end_of_a_run_is_given_back_as_an_attempt() -> None:
    channel = Unreliable()
    channel.failed_nacks = 1
    await channel.send([letter("a")])
    stop = anyio.Event()

    async def fail(call: Call) -> None:
        stop.set()
        raise ValueError

    assert await consumer_of(channel, fail).run(Limits(stop=stop)) == 0
    assert await left_on(channel) == [("a", 2, "1")]


async def test_a_message_that_could_not_be_acked_was_handled_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    channel = Unreliable()
    channel.failed_acks = 1
    await channel.send([letter("a")])

    with caplog.at_level(logging.WARNING):
        assert await consumer_of(channel, Handled()).run(EMPTY) == 1

    assert "handled, but not acked; it will come again" in caplog.text
    assert await channel.depth() == 1


async def test_a_lost_lease_is_told_apart_from_a_lost_channel(caplog: pytest.LogCaptureFixture) -> None:
    channel = Unreliable()
    channel.error = LeaseLostError("too late")
    channel.failed_acks = 1
    await channel.send([letter("a")])

    await consumer_of(FailingChannel(channel), Handled()).run(EMPTY)

    assert "handled, but lost before the ack" in caplog.text


async def test_waiting_messages_that_cannot_be_given_back_come_again_by_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = Unreliable()
    channel.failed_nacks = 1
    await channel.send([letter("a"), letter("b"), letter("c")])
    stop = anyio.Event()

    async def handle(call: Call) -> None:
        stop.set()

    assert await consumer_of(channel, handle).run(Limits(stop=stop)) == 1
    assert "not given back; it will come again" in caplog.text
    assert [name for name, _, _ in await left_on(channel)] == ["c"]
