import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDeadLetters
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.core.bus import CommandBus, EventBus
from ecotone_fastapi.core.channel import Capabilities, Delivery
from ecotone_fastapi.core.endpoint import command_handler, event_handler
from ecotone_fastapi.core.errors import (
    ChannelError,
    ConcurrencyError,
    ConfigurationError,
    ConsumerStoppedError,
    ConversionError,
    HandlerNotFoundError,
    LeaseLostError,
    MissingServiceError,
    UnknownEndpointError,
)
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.asynchronous import AsynchronousHandlers, ConsumerSettings, asynchronous
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.failures import Failures, on_failure
from ecotone_fastapi.messaging.policies import (
    Backoff,
    DeadLetter,
    Decision,
    Discard,
    ErrorPolicy,
    Failure,
    Retry,
    Stop,
)
from ecotone_fastapi.testing.flow import Flow, TravellingClock, flow_test

AT_ONCE = Backoff(first=0.0)


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Orders:
    """A handler that fails as often as it is told."""

    def __init__(self, fails: int = 10**6, error: Exception | None = None) -> None:
        self.fails = fails
        self.error = error or ValueError("no stock")
        self.runs: list[Message[Any]] = []

    @asynchronous("orders")
    @command_handler(id="place")
    async def place(self, command: PlaceOrder, message: Message[Any]) -> None:
        self.runs.append(message)
        if len(self.runs) <= self.fails:
            raise self.error


def failure(error: Exception | None = None, *, attempt: int = 1, id_: str = "1") -> Failure:
    return Failure(
        error=error or OSError(), attempt=attempt, message=Message(b"", {"id": id_}), channel="orders", endpoint="place"
    )


async def drain(flow: Flow, name: str = "orders", hours: int = 10) -> None:
    """Run a channel, hour by hour, until all that can be retried has been."""
    for _ in range(hours):
        await flow.run(name, raises=False)
        await flow.advance(timedelta(hours=1))


# -------------------------------------------------------------------------------------------------------------- backoff


def test_a_wait_is_longer_from_retry_to_retry_and_ends() -> None:
    policy: ErrorPolicy = Backoff(retries=4, first=1.0, factor=5.0, longest=30.0, jitter=0.0)

    decisions = [policy.decide(failure(attempt=attempt)) for attempt in range(1, 6)]

    assert decisions == [Retry(1.0), Retry(5.0), Retry(25.0), Retry(30.0), DeadLetter()]


@pytest.mark.parametrize(
    "error",
    [
        ConversionError("unreadable"),
        UnknownEndpointError("gone"),
        HandlerNotFoundError("nobody"),
        ConcurrencyError("past", expected=1, actual=2, passing=False),
    ],
)
def test_what_would_fail_again_in_the_same_way_is_parked_at_once(error: Exception) -> None:
    assert Backoff().decide(failure(error)) == DeadLetter()


def test_a_policy_without_retries_parks_at_once() -> None:
    assert Backoff(retries=0).decide(failure()) == DeadLetter()


policies = st.builds(
    Backoff,
    retries=st.integers(0, 2000),
    first=st.floats(0, 1000),
    factor=st.floats(1, 100),
    longest=st.floats(0, 10_000),
    jitter=st.floats(0, 1),
)
failures = st.builds(failure, attempt=st.integers(1, 2001), id_=st.text())


@given(policy=policies, failure=failures)
def test_a_decision_is_pure_and_its_delay_stays_within_its_bounds(policy: Backoff, failure: Failure) -> None:
    decision = policy.decide(failure)

    assert decision == policy.decide(failure)
    assert isinstance(decision, DeadLetter) == (failure.attempt > policy.retries)
    if isinstance(decision, Retry):
        assert min(policy.first, policy.longest) <= decision.delay <= policy.longest


@given(policy=policies, failure=failures)
def test_no_retry_waits_shorter_than_the_one_before_would_without_jitter(policy: Backoff, failure: Failure) -> None:
    steady = replace(policy, jitter=0.0)
    before = steady.decide(failure)
    after = policy.decide(replace(failure, attempt=failure.attempt + 1))

    if isinstance(before, Retry) and isinstance(after, Retry):
        assert after.delay >= before.delay


def test_different_messages_come_back_at_different_times() -> None:
    decisions = [Backoff().decide(failure(id_=str(number))) for number in range(20)]

    assert len({decision.delay for decision in decisions if isinstance(decision, Retry)}) == 20


# ------------------------------------------------------------------------------------------------------------- retrying


async def test_a_handler_that_fails_is_tried_again_later() -> None:
    orders = Orders(fails=2)

    async with flow_test([orders], channels=[MemoryChannel("orders")], clock=TravellingClock(NOON)) as flow:
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme"})
        handled = [await flow.run("orders", raises=False)]
        for seconds in (1.2, 6):
            assert await flow.run("orders") == 0
            await flow.advance(timedelta(seconds=seconds))
            handled.append(await flow.run("orders", raises=False))
        assert await flow.dead_letters() == []
        assert await flow.waiting("orders") == []

    assert handled == [0, 0, 1]
    assert [run.headers.get("attempt") for run in orders.runs] == [None, "1", "2"]
    assert [run.headers.get("first_failed_at") for run in orders.runs] == [None, NOON.isoformat(), NOON.isoformat()]
    assert len({run.id for run in orders.runs}) == 1
    assert {run.headers["tenant"] for run in orders.runs} == {"acme"}


NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


async def test_three_retries_are_four_runs_and_then_the_message_is_parked() -> None:
    orders = Orders()
    channel = MemoryChannel("orders")

    async with flow_test([orders], channels=[channel], clock=TravellingClock(NOON)) as flow:
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme", "id": "my-id"})
        sent = await flow.waiting("orders")
        await drain(flow)
        [parked] = await flow.dead_letters()
        assert await flow.waiting("orders") == []

    assert len(orders.runs) == 4
    assert (parked.attempts, parked.deliveries, parked.channel, parked.endpoint) == (4, 4, "orders", "place")
    assert parked.message.payload == sent[0].payload
    assert parked.message.headers == {**sent[0].headers, "attempt": "3", "first_failed_at": NOON.isoformat()}
    assert (parked.error_type, parked.error_message) == ("builtins.ValueError", "no stock")
    assert "raise self.error" in parked.traceback
    assert "while handling Orders.place, message my-id" in parked.traceback
    assert (parked.first_failed_at, parked.parked_at) == (NOON, NOON + timedelta(hours=3))
    assert parked.id.startswith("my-id-")


async def test_the_same_message_that_fails_in_two_handlers_is_parked_twice() -> None:
    class Two:
        @asynchronous("orders")
        @event_handler("placed", id="one")
        async def one(self, payload: str) -> None:
            raise ValueError("one")

        @asynchronous("orders")
        @event_handler("placed", id="two")
        async def two(self, payload: str) -> None:
            raise ValueError("two")

    async with flow_test([Two], channels=[MemoryChannel("orders")]) as flow:
        await flow.publish("1", to="placed", headers={"id": "my-id"})
        await drain(flow)
        parked = await flow.dead_letters()

    assert {(one.endpoint, one.error_message) for one in parked} == {("one", "one"), ("two", "two")}
    assert len({one.id for one in parked}) == 2
    assert {one.message.id for one in parked} == {"my-id"}


# ------------------------------------------------------------------------------------------------------------- hopeless


@pytest.mark.parametrize(
    ("payload", "headers", "error"),
    [
        (b"\xff not json", {"endpoint": "place", "content_type": "application/json"}, "ConversionError"),
        (b"{}", {"endpoint": "place", "content_type": "application/json"}, "ConversionError"),
        (b"<xml/>", {"endpoint": "place", "content_type": "application/xml"}, "ConversionError"),
        (b"{}", {"endpoint": "gone", "content_type": "application/json"}, "UnknownEndpointError"),
        (b"{}", {"content_type": "application/json"}, "UnknownEndpointError"),
        (b"\xff", {}, "UnknownEndpointError"),
        (b"{}", {"endpoint": "anything", "type": "shop.Gone", "content_type": "application/json"}, "ConversionError"),
    ],
)
async def test_what_can_never_be_handled_is_parked_as_it_came_without_a_retry(
    payload: bytes, headers: Mapping[str, str], error: str
) -> None:
    orders = Orders(fails=0)

    @asynchronous("orders")
    @event_handler(id="anything")
    async def anything(event: object) -> None:
        raise AssertionError("never reached")

    message = Message(payload, {"id": "1", **headers})

    async with flow_test([orders, anything], channels=[MemoryChannel("orders")]) as flow:
        await flow.ecotone.prepare().transmit("orders", [message])
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()
        assert await flow.waiting("orders") == []

    assert parked.message == message
    assert parked.error_type == f"ecotone_fastapi.core.errors.{error}"
    assert (parked.attempts, parked.deliveries) == (1, 1)
    assert orders.runs == []


async def test_a_command_that_nobody_handles_in_the_consumer_is_parked_at_once() -> None:
    @asynchronous("orders")
    @command_handler("forward", id="forward")
    async def forward(payload: str, commands: CommandBus) -> None:
        await commands.send(payload, to="nowhere")

    async with flow_test([forward], channels=[MemoryChannel("orders")]) as flow:
        await flow.send("1", to="forward")
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()

    assert parked.error_type.endswith("HandlerNotFoundError")


# ------------------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True)
class Always:
    """A policy that decides all failures alike."""

    decision: Decision

    def decide(self, failure: Failure) -> Decision:
        return self.decision


async def test_a_policy_of_the_user_may_discard(caplog: pytest.LogCaptureFixture) -> None:
    orders = Orders()

    with caplog.at_level(logging.INFO):
        async with flow_test(
            [orders], channels=[MemoryChannel("orders")], plugins=[Failures(Always(Discard()))]
        ) as flow:
            await flow.send(PlaceOrder("1"))
            assert await flow.run("orders", raises=False) == 0
            assert (await flow.waiting("orders"), await flow.dead_letters()) == ([], [])

    assert len(orders.runs) == 1
    assert "place failed on" in caplog.text
    assert "discarded" in caplog.text


async def test_a_channel_may_have_a_policy_of_its_own() -> None:
    class Both:
        @asynchronous("orders")
        @command_handler("order", id="order")
        async def order(self, payload: str) -> None:
            raise ValueError

        @asynchronous("mail")
        @command_handler("mail", id="mail")
        async def mail(self, payload: str) -> None:
            raise ValueError

    plugin = Failures(Always(Discard()), channels={"mail": Always(DeadLetter())})

    async with flow_test([Both], channels=[MemoryChannel("orders"), MemoryChannel("mail")], plugins=[plugin]) as flow:
        for name in ("order", "mail"):
            await flow.send("1", to=name)
        await flow.run("orders", raises=False)
        await flow.run("mail", raises=False)
        parked = await flow.dead_letters()

    assert [one.channel for one in parked] == ["mail"]


async def test_a_policy_sees_what_failed() -> None:
    seen: list[Failure] = []

    class Looking:
        def decide(self, failure: Failure) -> Retry | DeadLetter:
            seen.append(failure)
            return Retry() if failure.attempt < 2 else DeadLetter()

    orders = Orders()

    async with flow_test([orders], channels=[MemoryChannel("orders")], plugins=[Failures(Looking())]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("orders", raises=False)

    assert [one.attempt for one in seen] == [1, 2]
    assert {(one.error, one.channel, one.endpoint) for one in seen} == {(orders.error, "orders", "place")}
    assert seen[0].message.payload == b'{"order_id":"1"}'


@pytest.mark.parametrize(("then", "parked"), [(DeadLetter(), 1), (Discard(), 0)])
async def test_a_backoff_says_what_becomes_of_the_message_in_the_end(then: DeadLetter | Discard, parked: int) -> None:
    orders = Orders()

    plugins = [Failures(Backoff(retries=1, first=0.0, then=then))]
    async with flow_test([orders], channels=[MemoryChannel("orders")], plugins=plugins) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("orders", raises=False)
        assert await flow.waiting("orders") == []
        assert len(await flow.dead_letters()) == parked

    assert len(orders.runs) == 2


async def test_the_policy_of_a_handler_goes_before_that_of_its_channel_and_before_the_default() -> None:
    @on_failure(DeadLetter())
    class Marked:
        @asynchronous("mail")
        @command_handler("of-class", id="of-class")
        async def of_class(self, payload: str) -> None:
            raise ValueError

        @on_failure(Discard())
        @asynchronous("mail")
        @command_handler("of-handler", id="of-handler")
        async def of_handler(self, payload: str) -> None:
            raise ValueError

    class Unmarked:
        @asynchronous("mail")
        @command_handler("of-channel", id="of-channel")
        async def of_channel(self, payload: str) -> None:
            raise ValueError

        @asynchronous("orders")
        @command_handler("of-default", id="of-default")
        async def of_default(self, payload: str) -> None:
            raise ValueError

    plugin = Failures(Always(Retry(60.0)), channels={"mail": Always(Retry(3600.0))})
    channels = [MemoryChannel("orders"), MemoryChannel("mail")]
    async with flow_test([Marked, Unmarked], channels=channels, plugins=[plugin]) as flow:
        for name in ("of-class", "of-handler", "of-channel", "of-default"):
            await flow.send("x", to=name)
        for channel in ("orders", "mail"):
            await flow.run(channel, raises=False)
        parked = await flow.dead_letters()
        waiting = {name: [one.headers["endpoint"] for one in await flow.waiting(name)] for name in ("orders", "mail")}

    assert [one.endpoint for one in parked] == ["of-class"]
    assert waiting == {"orders": ["of-default"], "mail": ["of-channel"]}


@pytest.mark.parametrize("policy", [Backoff, 3, None])
def test_what_cannot_decide_is_no_policy(policy: Any) -> None:
    with pytest.raises(ConfigurationError, match="is given no policy"):
        on_failure(policy)


async def test_a_policy_may_go_by_the_kind_of_error_and_by_how_long_it_lasts() -> None:
    class Patient:
        def decide(self, failure: Failure) -> Decision:
            match failure.error:
                case TimeoutError() if failure.age < 3600:
                    return Retry(delay=1200.0)
                case _:
                    return DeadLetter()

    timeouts, others = Orders(error=TimeoutError()), Orders(error=ValueError())

    for orders in (timeouts, others):
        clock = TravellingClock(NOON)
        plugins = [Failures(Patient())]
        async with flow_test([orders], channels=[MemoryChannel("orders")], plugins=plugins, clock=clock) as flow:
            await flow.send(PlaceOrder("1"))
            for _ in range(10):
                await flow.run("orders", raises=False)
                await flow.advance(timedelta(minutes=20))
            [parked] = await flow.dead_letters()
            assert parked.first_failed_at == NOON

    assert (len(timeouts.runs), len(others.runs)) == (4, 1)


@pytest.mark.parametrize("text", ["yesterday", "2026-01-31T12:00:00"])
async def test_a_first_failure_at_a_moment_that_cannot_be_told_counts_from_now(text: str) -> None:
    clock = TravellingClock(NOON)
    plugins = [Failures(DeadLetter())]
    async with flow_test([Orders()], channels=[MemoryChannel("orders")], plugins=plugins, clock=clock) as flow:
        message = Message(b'{"order_id":"1"}', {"id": "1", "endpoint": "place", "first_failed_at": text})
        await flow.ecotone.prepare().transmit("orders", [message])
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()

    assert parked.first_failed_at == NOON


# ------------------------------------------------------------------------------------------------------------- stopping


async def test_a_message_may_hold_up_everything_behind_it() -> None:
    orders = Orders(fails=2)

    plugins = [Failures(channels={"orders": Backoff(retries=0, then=Stop())})]
    async with flow_test([orders], channels=[MemoryChannel("orders")], plugins=plugins) as flow:
        for number in ("1", "2"):
            await flow.send(PlaceOrder(number))
        for _ in range(2):
            with pytest.raises(ConsumerStoppedError, match=r"place failed on .* \(ValueError: no stock\)") as stopped:
                await flow.run("orders", raises=False)
        assert [one.payload for one in await flow.waiting("orders")] == [b'{"order_id":"1"}', b'{"order_id":"2"}']
        assert await flow.run("orders") == 2

    assert stopped.value.__cause__ is orders.error
    assert [run.payload.order_id for run in orders.runs] == ["1", "1", "1", "2"]
    assert {run.headers.get("attempt") for run in orders.runs} == {None}


async def test_readiness_tells_which_message_holds_a_consumer_up() -> None:
    orders = Orders()
    ecotone = Ecotone([orders], channels=[MemoryChannel("orders")], plugins=[Failures(Stop())])

    async with ecotone.running():
        await ecotone.command_bus.send(PlaceOrder("1"), headers={"id": "my-id"})
        with anyio.fail_after(60):
            while (await ecotone.health()).ready or not orders.runs:
                await checkpoint()
        [health] = (await ecotone.health()).runnables

    assert health.last_error is not None
    assert "place failed on my-id (ValueError: no stock)" in health.last_error


class Broken:
    def decide(self, failure: Failure) -> Retry:
        raise ZeroDivisionError


class Forgetful:
    def decide(self, failure: Failure) -> Any:
        """Decide nothing: somebody has forgotten the `return`."""


@pytest.mark.parametrize("policy", [Broken(), Forgetful()])
async def test_a_policy_that_cannot_decide_parks_the_message(
    policy: ErrorPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    async with flow_test([Orders()], channels=[MemoryChannel("orders")], plugins=[Failures(policy)]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()

    assert parked.error_message == "no stock"
    assert "cannot decide about a failure; the message is parked" in caplog.text


# ---------------------------------------------------------------------------------------------- leases and lost workers


async def test_a_message_whose_lease_was_lost_is_nobodys_failure(caplog: pytest.LogCaptureFixture) -> None:
    orders = Orders(fails=1, error=LeaseLostError("somebody else has it"))

    async with flow_test([orders], channels=[MemoryChannel("orders")]) as flow:
        await flow.send(PlaceOrder("1"))
        assert await flow.run("orders", raises=False) == 1
        assert await flow.dead_letters() == []

    assert [run.headers.get("attempt") for run in orders.runs] == [None, None]
    assert "lost the lease" in caplog.text


async def lend_and_lose(flow: Flow, channel: MemoryChannel, times: int, *, limit: int = 1) -> None:
    """Let consumers die with messages in hand."""
    for _ in range(times):
        assert len(await channel.receive(limit, 0)) == limit
        await flow.advance(timedelta(minutes=2))


async def test_a_message_that_kills_its_worker_is_parked_without_being_run_again() -> None:
    orders = Orders(fails=0)
    channel = MemoryChannel("orders", lease=60.0)

    async with flow_test([orders], channels=[channel], plugins=[Failures(unsettled=3)]) as flow:
        await flow.send(PlaceOrder("1"))
        await lend_and_lose(flow, channel, 4)
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()

    assert orders.runs == []
    assert parked.error_type == "ecotone_fastapi.messaging.failures.KilledConsumerError"
    assert "was lent 5 times and 4 times without any outcome" in parked.error_message
    assert (parked.attempts, parked.deliveries, parked.first_failed_at) == (0, 5, None)


async def test_a_message_that_was_lost_less_often_is_run() -> None:
    orders = Orders(fails=0)
    channel = MemoryChannel("orders", lease=60.0)

    async with flow_test([orders], channels=[channel], plugins=[Failures(unsettled=3)]) as flow:
        await flow.send(PlaceOrder("1"))
        await lend_and_lose(flow, channel, 3)
        assert await flow.run("orders") == 1


class MortalChannel(MemoryChannel):
    """A channel whose process may die: then nothing is settled any more, and what is lent comes back by its lease."""

    def __init__(self, name: str) -> None:
        super().__init__(name, lease=60.0)
        self.dead = False

    async def receive(self, limit: int, timeout: float) -> Any:
        if self.dead:
            raise ChannelError("the process is dead")
        return [MortalDelivery(self, one) for one in await super().receive(limit, timeout)]


class MortalDelivery:
    def __init__(self, channel: MortalChannel, inside: Delivery) -> None:
        self.channel, self.inside = channel, inside
        self.message, self.count = inside.message, inside.count

    @property
    def settled(self) -> bool:
        return self.channel.dead or self.inside.settled

    async def ack(self) -> None:
        if not self.channel.dead:
            await self.inside.ack()

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        if not self.channel.dead:
            await self.inside.nack(delay, attempted=attempted)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("killer", [0, 5, 19])
async def test_a_message_that_kills_its_worker_takes_no_other_with_it(killer: int, concurrency: int) -> None:
    channel, runs = MortalChannel("orders"), Counter[str]()

    @asynchronous("orders")
    @command_handler("work", id="work")
    async def work(payload: str) -> None:
        if channel.dead:
            return
        runs[payload] += 1
        if payload == str(killer):
            channel.dead = True

    concurrent = AsynchronousHandlers({"*": ConsumerSettings(concurrency=concurrency)})
    async with flow_test([work], channels=[channel], plugins=[concurrent, Failures(unsettled=3)]) as flow:
        for number in range(20):
            await flow.send(str(number), to="work")
        for _ in range(10):
            with suppress(ChannelError):
                await flow.run("orders")
            channel.dead = False
            await flow.advance(timedelta(minutes=2))
        parked = await flow.dead_letters()
        assert await flow.waiting("orders") == []

    assert [one.error_type.rpartition(".")[2] for one in parked] == ["KilledConsumerError"]
    assert runs[str(killer)] == 4
    assert set(runs) == {str(number) for number in range(20)}


async def test_who_was_near_a_killer_is_handled_alone_once_and_then_come_batches_again() -> None:
    lent: list[int] = []

    class Asked(MemoryChannel):
        async def receive(self, limit: int, timeout: float) -> Any:
            deliveries = await super().receive(limit, timeout)
            lent.append(len(deliveries))
            return deliveries

    channel, orders = Asked("orders", lease=60.0), Orders(fails=0)
    async with flow_test([orders], channels=[channel]) as flow:
        for number in range(3):
            await flow.send(PlaceOrder(str(number)))
        await lend_and_lose(flow, channel, 2, limit=3)
        for number in range(3, 20):
            await flow.send(PlaceOrder(str(number)), headers={"delay": 1})
        await flow.advance(timedelta(minutes=1))
        lent.clear()
        assert await flow.run("orders") == 20

    assert [int(run.payload.order_id) for run in orders.runs] == list(range(20))
    assert lent[:5] == [1, 1, 1, 1, 9]


async def test_runs_that_failed_are_no_lost_workers() -> None:
    orders = Orders()
    channel = MemoryChannel("orders")
    plugin = Failures(Backoff(retries=7, first=0.0), unsettled=1)

    async with flow_test([orders], channels=[channel], plugins=[plugin]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()

    assert (len(orders.runs), parked.attempts, parked.error_message) == (8, 8, "no stock")


# ------------------------------------------------------------------------------------------------------ the dead letter


class FailingStore(MemoryDeadLetters):
    """Fails as often as it is told."""

    def __init__(self, fails: int) -> None:
        super().__init__()
        self.fails = fails

    async def park(self, parked: ParkedMessage) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise ChannelError("the database is gone")
        await super().park(parked)


async def test_a_message_that_cannot_be_parked_stays_on_its_channel(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore(fails=1)

    async with flow_test(
        [Orders()],
        channels=[MemoryChannel("orders")],
        plugins=[Failures(Always(DeadLetter()))],
        services={DeadLetterStore: store},
    ) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("orders", raises=False)
        assert len(await flow.waiting("orders")) == 1
        assert await store.count() == 0
        await flow.advance(timedelta(seconds=11))
        await flow.run("orders", raises=False)
        assert await flow.waiting("orders") == []

    assert await store.count() == 1
    assert "could not be parked; it stays" in caplog.text


async def test_a_message_that_cannot_be_acked_after_it_was_parked_comes_again_and_is_parked_once() -> None:
    class FailingAcks(MemoryChannel):
        fails = 1

        async def receive(self, limit: int, timeout: float) -> Any:
            return [FailingAck(self, one) for one in await super().receive(limit, timeout)]

    class FailingAck:
        def __init__(self, channel: FailingAcks, inside: Delivery) -> None:
            self.channel, self.inside = channel, inside
            self.message, self.count, self.nack = inside.message, inside.count, inside.nack

        @property
        def settled(self) -> bool:
            return self.inside.settled

        async def ack(self) -> None:
            if self.channel.fails > 0:
                self.channel.fails -= 1
                raise ChannelError("the broker is gone")
            await self.inside.ack()

    store = MemoryDeadLetters()

    async with flow_test(
        [Orders()],
        channels=[FailingAcks("orders")],
        plugins=[Failures(Always(DeadLetter()))],
        services={DeadLetterStore: store},
    ) as flow:
        await flow.send(PlaceOrder("1"))
        await drain(flow)
        assert await flow.waiting("orders") == []

    assert await store.count() == 1


class DurableChannel(MemoryChannel):
    """Claims to outlive its process."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.capabilities: Capabilities = replace(self.capabilities, durable=True)


async def test_a_channel_that_outlives_the_process_needs_a_dead_letter_that_does() -> None:
    with pytest.raises(MissingServiceError, match="the messages of orders have no dead letter to be parked in"):
        async with flow_test([Orders], channels=[DurableChannel("orders")]):
            pass


async def test_what_is_settled_before_it_fails_is_not_judged_to_come_again() -> None:
    class Settling:
        def install(self, assembly: Assembly) -> None:
            async def settle(call: Call, proceed: Proceed) -> Any:
                assert call.delivery is not None
                await call.delivery.ack()
                return await proceed(call)

            assembly.add_interceptor(settle, stage=Stage.RECEIVE)

    orders = Orders()

    async with flow_test([orders], channels=[MemoryChannel("orders")], plugins=[Settling(), Failures(AT_ONCE)]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("orders", raises=False)
        assert await flow.waiting("orders") == []

    assert len(orders.runs) == 1


async def test_parked_messages_are_listed_from_the_newest_to_the_oldest() -> None:
    async with flow_test(
        [Orders()], channels=[MemoryChannel("orders")], plugins=[Failures(Always(DeadLetter()))]
    ) as flow:
        for number in range(3):
            await flow.send(PlaceOrder(str(number)))
            await flow.run("orders", raises=False)
            await flow.advance(timedelta(minutes=1))
        parked: Sequence[ParkedMessage] = await flow.dead_letters()

    assert [one.message.payload for one in parked] == [b'{"order_id":"%d"}' % number for number in (2, 1, 0)]


def test_the_plugin_tells_how_it_was_set_up() -> None:
    assert repr(Failures(Always(Discard()))) == "Failures(Always(decision=Discard()), unsettled=5)"
    assert "channels={'mail': Backoff(" in repr(Failures(channels={"mail": Backoff()}))


# ------------------------------------------------------------------------------------------------- wherever it is kept


@dataclass(frozen=True)
class Place:
    """Somewhere that messages wait: what makes channels, and the plugins that belong to it."""

    database: SqlAlchemy | None

    def channel(self, name: str) -> Any:
        return MemoryChannel(name) if self.database is None else self.database.channel(name)

    @asynccontextmanager
    async def flow(self, handlers: Sequence[object], *names: str, policy: ErrorPolicy = AT_ONCE) -> AsyncIterator[Flow]:
        plugins: list[Any] = [Failures(policy), *([self.database] if self.database else [])]
        async with flow_test(handlers, channels=[self.channel(name) for name in names], plugins=plugins) as flow:
            yield flow


PLACES = [
    "memory",
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.postgresql),
    pytest.param("mariadb", marks=pytest.mark.mariadb),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "memory":
        return Place(None)
    return Place(SqlAlchemy(request.getfixturevalue(f"{request.param}_url"), create_schema=True))


async def test_a_dead_letter_tells_everything_about_the_message_and_its_failures(place: Place) -> None:
    orders = Orders()

    async with place.flow([orders], "orders", policy=Backoff(retries=2, first=60.0, factor=1.0)) as flow:
        await flow.send(PlaceOrder("ö"), headers={"tenant": "acme", "id": "my-id"})
        [sent] = await flow.waiting("orders")
        before = datetime.now(UTC) - timedelta(seconds=1)
        for _ in range(3):
            await flow.run("orders", raises=False)
            await flow.advance(timedelta(minutes=2))
        [parked] = await flow.dead_letters()
        assert await flow.waiting("orders") == []

    assert parked.message.payload == sent.payload
    told = parked.message.without_headers(["attempt", "first_failed_at"]).headers
    assert told == sent.headers
    assert (parked.error_type, parked.error_message) == ("builtins.ValueError", "no stock")
    assert (parked.attempts, parked.deliveries, parked.channel, parked.endpoint) == (3, 3, "orders", "place")
    assert parked.first_failed_at is not None
    assert before < parked.first_failed_at < before + timedelta(minutes=1)
    assert timedelta(minutes=4) <= parked.parked_at - parked.first_failed_at < timedelta(minutes=5)
    firsts = [run.headers.get("first_failed_at") for run in orders.runs]
    assert firsts == [None, parked.first_failed_at.isoformat(), parked.first_failed_at.isoformat()]


async def test_handlers_of_one_event_fail_are_retried_and_die_alone(place: Place) -> None:
    runs = Counter[str]()

    class Handlers:
        @command_handler("place")
        async def place(self, payload: str, events: EventBus) -> None:
            await events.publish(payload, to="placed")

        @event_handler("placed", id="in-line")
        async def in_line(self, payload: str) -> None:
            runs["in-line"] += 1

        @asynchronous("orders")
        @event_handler("placed", id="well")
        async def well(self, payload: str) -> None:
            runs["well"] += 1

        @asynchronous("orders")
        @event_handler("placed", id="recovers")
        async def recovers(self, payload: str) -> None:
            runs["recovers"] += 1
            if runs["recovers"] < 3:
                raise ValueError

        @asynchronous("orders")
        @event_handler("placed", id="dies")
        async def dies(self, payload: str) -> None:
            runs["dies"] += 1
            raise ValueError

        @asynchronous("mail")
        @event_handler("placed", id="elsewhere")
        async def elsewhere(self, payload: str) -> None:
            runs["elsewhere"] += 1

    async with place.flow([Handlers], "orders", "mail") as flow:
        await flow.send("1", to="place", headers={"id": "my-id"})
        assert await flow.run("orders", raises=False) == 2
        assert await flow.run("mail") == 1
        parked = await flow.dead_letters()
        assert await flow.waiting("orders") == []

    assert [one.endpoint for one in parked] == ["dies"]
    assert runs == {"in-line": 1, "well": 1, "recovers": 3, "dies": 4, "elsewhere": 1}


async def test_what_a_retried_handler_sends_starts_without_any_failures(place: Place) -> None:
    seen: list[Mapping[str, str]] = []

    class Handlers:
        @asynchronous("orders")
        @event_handler("placed", id="first")
        async def first(self, payload: str, events: EventBus, message: Message[Any]) -> None:
            if message.headers.get("attempt") != "2":
                raise ValueError
            await events.publish(payload, to="packed")

        @event_handler("packed", id="in-line")
        async def in_line(self, payload: str, message: Message[Any]) -> None:
            seen.append(message.headers)

        @asynchronous("mail")
        @event_handler("packed", id="mail")
        async def mail(self, payload: str, message: Message[Any]) -> None:
            seen.append(message.headers)
            raise ValueError

    async with place.flow([Handlers], "orders", "mail") as flow:
        await flow.publish("1", to="placed", headers={"tenant": "acme", "delay": 0, "priority": 3})
        await flow.run("orders", raises=False)
        await flow.run("mail", raises=False)
        [parked] = await flow.dead_letters()

    assert parked.attempts == 4
    assert [headers.get("attempt") for headers in seen] == [None, None, "1", "2", "3"]
    for headers in seen[:2]:
        assert headers["tenant"] == "acme"
        assert not {"attempt", "first_failed_at", "delay", "priority", "replays"} & set(headers)


async def test_what_failed_on_one_channel_did_not_fail_on_the_next(place: Place) -> None:
    seen: list[Mapping[str, str]] = []

    @asynchronous("orders", "mail")
    @event_handler("placed", id="first")
    async def handle(payload: str, message: Message[Any]) -> None:
        seen.append(message.headers)

    async with place.flow([handle], "orders", "mail") as flow:
        await flow.publish("1", to="placed")
        channel = flow.ecotone.assembly.channels["orders"]
        for _ in range(2):
            [delivery] = await channel.receive(1, 0)
            await delivery.nack()
        [waiting] = await flow.waiting("orders")
        await flow.run("orders")
        await flow.run("mail")

    assert (waiting.headers["attempt"], "first_failed_at" in waiting.headers) == ("2", True)
    assert not {"attempt", "first_failed_at"} & set(seen[0])


async def test_a_message_that_was_given_back_unhandled_has_not_failed(place: Place) -> None:
    async with place.flow([Orders()], "orders") as flow:
        await flow.send(PlaceOrder("1"))
        channel = flow.ecotone.assembly.channels["orders"]
        for delay in (0.0, 0.001):
            [delivery] = await channel.receive(1, 5.0)
            await delivery.nack(delay, attempted=False)
        [waiting] = await flow.waiting("orders")

    assert not {"attempt", "first_failed_at"} & set(waiting.headers)


async def test_what_a_database_cannot_park_is_neither_acked_nor_lost(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    orders = Orders()

    async def rename(before: str, after: str) -> None:
        async with database.engine.begin() as connection:
            await connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

    async with Place(database).flow([orders], "orders", policy=DeadLetter()) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "my-id"})
        await rename("ecotone_dead_letter", "elsewhere")
        await flow.run("orders", raises=False)
        [waiting] = await flow.waiting("orders")
        await rename("elsewhere", "ecotone_dead_letter")
        assert await flow.dead_letters() == []
        await flow.advance(timedelta(seconds=11))
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()
        assert await flow.waiting("orders") == []

    assert waiting.id == parked.message.id == "my-id"
    assert parked.first_failed_at == datetime.fromisoformat(waiting.headers["first_failed_at"])
