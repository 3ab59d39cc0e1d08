"""Queues of RabbitMQ that keep the order of each partition key, over all processes and through all faults."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aio_pika
import anyio
import pytest
from aio_pika.abc import AbstractChannel
from hypothesis import HealthCheck, given, settings, strategies
from yarl import URL

from ecotone_fastapi import Backoff, Failures, asynchronous, command_handler, delayed
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel, ordering
from ecotone_fastapi.adapters.rabbitmq.batches import Outgoing
from ecotone_fastapi.adapters.rabbitmq.notes import name_of
from ecotone_fastapi.adapters.rabbitmq.ordering import OrderedSubscription
from ecotone_fastapi.adapters.rabbitmq.rounds import publish_in_rounds
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Delivery
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, LeaseLostError, SendError
from ecotone_fastapi.core.examination import Level
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.core.supervision import RunnableHealth, supervise
from ecotone_fastapi.testing import flow_test
from ecotone_fastapi.testing.conformance.hooks import unique
from ecotone_fastapi.testing.faults import TcpProxy, tcp_proxy
from tests.adapters import strangers
from tests.conftest import SERVERS
from tests.orders import Handling, Sent, sent_with
from tests.servers import until

PATIENCE = 60.0  # seconds; only a test that fails waits for so long
REAL = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclass
class Server:
    """A RabbitMQ behind networks that are cut one by one; a channel on each is as a process of its own."""

    networks: Sequence[TcpProxy]
    direct: AbstractChannel
    queues: set[str] = field(default_factory=set)
    opened: list[RabbitMQChannel] = field(default_factory=list)

    def made(self, queue: str, network: int = 0, **options: Any) -> RabbitMQChannel:
        self.queues |= {queue, name_of(queue)}
        address = URL(SERVERS["rabbitmq"].url).with_host("127.0.0.1").with_port(self.networks[network].port)
        return RabbitMQChannel(queue, str(address), **{"keeps_order": True, **options})

    async def channel(self, queue: str, network: int = 0, **options: Any) -> RabbitMQChannel:
        channel = self.made(queue, network, **options)
        await channel.open()
        self.opened.append(channel)
        return channel

    async def channels(self, queue: str, **options: Any) -> Sequence[RabbitMQChannel]:
        return [await self.channel(queue, network, **options) for network in range(len(self.networks))]

    async def notes(self, queue: str) -> int:
        """How many notes nobody holds."""
        return (await self.direct.get_queue(name_of(queue))).declaration_result.message_count or 0


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    address = URL(SERVERS["rabbitmq"].url)
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    port, host = address.port or 5672, address.host or "127.0.0.1"
    async with tcp_proxy(port, host) as here, tcp_proxy(port, host) as there, connection:
        server = Server([here, there], await connection.channel())
        yield server
        for channel in server.opened:
            await channel.close()
        for queue in server.queues:
            await server.direct.queue_delete(queue)


class MovingTime:
    """The time by which what is held is due, which a test moves forward."""

    def __init__(self) -> None:
        self.offset = 0.0

    def time(self) -> float:
        return time.time() + self.offset


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> MovingTime:
    moving = MovingTime()
    monkeypatch.setattr(ordering, "time", moving)
    return moving


def letter(name: str, key: str | None = None, **headers: str) -> Message[bytes]:
    return Message(name.encode(), {"id": name, **headers, **({"partition_key": key} if key else {})})


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.payload.decode() for delivery in deliveries]


async def receive(channel: RabbitMQChannel, number: int = 1) -> list[Delivery]:
    """Receive exactly so many, again and again when the server is away."""
    deliveries: list[Delivery] = []
    with anyio.fail_after(PATIENCE):
        while len(deliveries) < number:
            with suppress(ChannelError):
                deliveries += await channel.receive(number - len(deliveries), 5.0)
            await asyncio.sleep(0)
    return deliveries


async def cut(server: Server, channel: RabbitMQChannel) -> None:
    """Break the connections of a channel, and wait until it has noticed."""
    server.networks[0].cut()
    await until(lambda: channel._subscription is not None and channel._subscription.lost is not None)


# ------------------------------------------------------------------------------------------------------- what is lent


@pytest.mark.rabbitmq
async def test_only_the_first_message_of_a_key_is_lent_and_the_next_one_follows_its_ack(server: Server) -> None:
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b"), letter("free"), letter("free too")])

    lent = await receive(channel, 4)
    assert names(lent) == ["a1", "b1", "free", "free too"]
    assert await channel.receive(10, 0.1) == []
    await channel.ack_all(lent)

    assert names(await receive(channel)) == ["a2"]


@pytest.mark.rabbitmq
async def test_the_successors_of_a_failed_message_wait_while_other_keys_go_on(
    server: Server, moving: MovingTime
) -> None:
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b"), letter("b2", "b")])
    a1, b1 = await receive(channel, 2)

    await a1.nack(60.0)
    await b1.ack()
    [b2] = await receive(channel)
    assert names([b2]) == ["b2"]
    assert await channel.receive(10, 0.1) == []
    moving.offset += 61.0
    [again] = await receive(channel)

    assert names([again]) == ["a1"]
    assert (again.count, again.message.headers["attempt"]) == (2, "1")
    await again.ack()
    assert names(await receive(channel)) == ["a2"]


@pytest.mark.rabbitmq
async def test_when_as_many_wait_as_may_be_held_other_keys_wait_too(server: Server, moving: MovingTime) -> None:
    channel = await server.channel(unique(), prefetch=3)
    await channel.send([letter("a1", "a"), letter("a2", "a"), letter("a3", "a")])
    await channel.send([letter("b1", "b")])
    [a1] = await receive(channel)

    await a1.nack(60.0)
    assert await channel.receive(10, 0.1) == []
    moving.offset += 61.0
    [again] = await receive(channel)
    assert names([again]) == ["a1"]
    await again.ack()

    assert sorted(names(await receive(channel, 2))) == ["a2", "b1"]


@pytest.mark.rabbitmq
async def test_a_message_that_was_sent_with_a_delay_holds_up_those_sent_after_it(
    server: Server, moving: MovingTime
) -> None:
    channel = await server.channel(unique())
    await channel.send([letter("later", "a", delay="60"), letter("a2", "a"), letter("b1", "b")])

    [b1] = await receive(channel)
    assert await channel.receive(10, 0.1) == []
    moving.offset += 61.0
    [later] = await receive(channel)
    assert names([b1, later]) == ["b1", "later"]
    assert "delay" not in later.message.headers
    await later.ack()
    assert names(await receive(channel)) == ["a2"]


@pytest.mark.rabbitmq
async def test_what_has_expired_while_it_waited_makes_way(server: Server, moving: MovingTime) -> None:
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a"), letter("a2", "a", time_to_live="60"), letter("a3", "a")])
    [a1] = await receive(channel)
    await a1.nack(120.0)
    moving.offset += 121.0
    [a1] = await receive(channel)
    await a1.ack()

    assert names(await receive(channel)) == ["a3"]


@pytest.mark.rabbitmq
async def test_what_was_held_goes_to_whoever_takes_over_in_order_with_its_failures_and_its_time(
    server: Server, moving: MovingTime
) -> None:
    queue = unique()
    here, there = await server.channels(queue)
    await here.send([letter(f"a{number}", "a") for number in range(5)])
    [a0] = await receive(here)
    await a0.nack(60.0)

    assert await there.receive(1, 1.0) == []  # here nobody asks for more, so that it is left to others
    moving.offset += 61.0
    [again] = await receive(there)
    assert names([again]) == ["a0"]
    assert (again.count, again.message.headers["attempt"]) == (2, "1")
    assert "first_failed_at" in again.message.headers
    await again.ack()
    for number in range(1, 5):
        [delivery] = await receive((here, there)[number % 2])
        assert names([delivery]) == [f"a{number}"]
        await delivery.ack()


@pytest.mark.rabbitmq
@pytest.mark.parametrize("way", ["closed", "idle", "cut"])
async def test_whoever_takes_over_gets_nothing_before_it_gets_what_the_one_before_has_held(
    server: Server, way: str
) -> None:
    here, there = await server.channels(unique(), prefetch=3)
    await here.send([letter(f"a{number}", "a") for number in range(6)])
    [a0] = await receive(here)
    taken: list[Delivery] = []

    async def take_over() -> None:
        taken.extend(await receive(there))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_over)
        assert await here.receive(1, 1.0) == []  # meanwhile the other one has begun to wait
        if way == "closed":
            await here.close()
        elif way == "idle":
            await a0.nack(attempted=False)
        else:
            server.networks[0].cut()

    assert names(taken) == ["a0"]


@pytest.mark.rabbitmq
async def test_of_what_is_settled_no_note_is_left(server: Server) -> None:
    queue = unique()
    channel = await server.channel(queue)
    await channel.send([letter("a1", "a"), letter("b1", "b")])
    for _ in range(3):
        for delivery in await receive(channel, 2):
            await delivery.nack()
    await channel.ack_all(await receive(channel, 2))

    await channel.close()

    assert await server.notes(queue) == 0


@pytest.mark.rabbitmq
async def test_what_is_no_note_harms_nobody(server: Server) -> None:
    queue = unique()
    channel = await server.channel(queue)
    await channel.send([letter("a1", "a")])
    [a1] = await receive(channel)
    await a1.nack()
    for body in (b"", b"[]", b"{}", json.dumps({"about": [], "turn": 1}).encode()):
        await server.direct.default_exchange.publish(aio_pika.Message(body), name_of(queue))

    await cut(server, channel)
    [a1] = await receive(channel)
    assert a1.message.headers["attempt"] == "1"
    await a1.ack()


# ------------------------------------------------------------------------------------------------- faults, and counts


@pytest.mark.rabbitmq
async def test_a_lost_connection_keeps_order_failures_and_time(server: Server, moving: MovingTime) -> None:
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b")])
    a1, b1 = await receive(channel, 2)
    await a1.nack(60.0)

    await cut(server, channel)
    [again] = await receive(channel)
    assert names([again]) == ["b1"]
    with pytest.raises(LeaseLostError):
        await b1.ack()
    await again.ack()
    assert await channel.receive(10, 0.1) == []
    moving.offset += 61.0
    [a1] = await receive(channel)
    assert names([a1]) == ["a1"]
    assert a1.message.headers["attempt"] == "1"
    await a1.ack()

    assert names(await receive(channel)) == ["a2"]


@pytest.mark.rabbitmq
async def test_those_behind_a_message_that_kills_its_consumers_are_not_suspected(server: Server) -> None:
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b")])
    counts = []
    for _ in range(8):
        [a1] = await receive(channel)
        assert names([a1]) == ["a1"]
        counts.append(a1.count)
        await cut(server, channel)
    [a1] = await receive(channel)
    await a1.ack()

    assert counts == list(range(1, 9))
    assert [(name, one.count) for one in await receive(channel, 2) for name in names([one])] == [("b1", 2), ("a2", 2)]


@pytest.mark.rabbitmq
async def test_a_message_of_another_program_without_an_id_that_kills_its_consumers_is_counted(server: Server) -> None:
    queue = unique()
    channel = await server.channel(queue)
    told = strangers.headers((b"partition_key", strangers.text(b"a")), (b"size", strangers.text("ö".encode())))
    await strangers.send_strange(queue, [(told, b"a1"), (told, b"a2")])
    counts = []
    for _ in range(3):
        [a1] = await receive(channel)
        counts.append(a1.count)
        await cut(server, channel)
    [a1] = await receive(channel)
    await a1.nack()
    [again] = await receive(channel)
    assert (again.count, again.message.headers["attempt"]) == (5, "1")
    await cut(server, channel)
    [again] = await receive(channel)
    await again.ack()
    [a2] = await receive(channel)
    await a2.ack()

    assert counts == [1, 2, 3]
    assert (names([again]), again.count, again.message.headers["attempt"]) == (["a1"], 6, "1")
    assert (names([a2]), "attempt" in a2.message.headers) == (["a2"], False)


@pytest.mark.rabbitmq
async def test_what_was_given_back_unhandled_does_not_count(server: Server) -> None:
    queue = unique()
    channel = await server.channel(queue)
    await channel.send([letter("a1", "a")])
    [a1] = await receive(channel)
    await cut(server, channel)
    for _ in range(5):
        [a1] = await receive(channel)
        assert a1.count == 2
        await a1.nack(attempted=False)
    await a1.nack(attempted=False)
    await channel.close()
    await channel.open()

    [a1] = await receive(channel)
    assert (a1.count, a1.message.headers.get("attempt")) == (2, None)


@pytest.mark.rabbitmq
async def test_what_is_held_for_long_is_received_anew_before_the_server_loses_patience(
    server: Server, moving: MovingTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "RENEWED", 0.3)
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a"), letter("a2", "a")])
    [a1] = await receive(channel)
    await a1.nack(60.0)
    first = channel._subscription

    assert await channel.receive(1, 1.0) == []
    assert channel._subscription is not first
    moving.offset += 61.0
    monkeypatch.setattr(ordering, "RENEWED", 900.0)
    [a1] = await receive(channel)

    assert (names([a1]), a1.message.headers["attempt"]) == (["a1"], "1")
    await a1.ack()
    assert names(await receive(channel)) == ["a2"]


@pytest.mark.rabbitmq
async def test_what_never_arrives_comes_again_after_a_silence(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is with a queue that is deleted and made anew at once, while somebody consumes it."""
    deliver, swallowed = OrderedSubscription._deliver, list[Any]()

    async def swallow_first(self: OrderedSubscription, delivered: Any) -> None:
        if swallowed:
            await deliver(self, delivered)
        else:
            swallowed.append(delivered)

    monkeypatch.setattr(OrderedSubscription, "_deliver", swallow_first)
    monkeypatch.setattr(ordering, "WATCHED", 0.2)
    channel = await server.channel(unique())
    await channel.send([letter("a1", "a")])

    assert names(await receive(channel)) == ["a1"]
    assert len(swallowed) == 1


@pytest.mark.rabbitmq
@REAL
@given(sent=sent_with(0.0, 0.02, 0.2))
async def test_each_key_is_handled_in_the_order_of_sending(server: Server, sent: Sequence[Sent]) -> None:
    channels = await server.channels(unique())
    handling = Handling(sent)
    await channels[0].send(handling.messages)

    await _handle_all(handling, channels)

    assert len(handling.done) == len(sent)
    handling.check()
    for channel in channels:
        assert await channel.depth() == 0
        await channel.close()


@pytest.mark.rabbitmq
@REAL
@given(
    sent=sent_with(0.0, 0.02, 0.2),
    cuts=strategies.lists(strategies.tuples(strategies.integers(0, 1), strategies.floats(0.0, 0.3)), max_size=4),
)
async def test_each_key_is_handled_in_the_order_of_sending_whichever_connections_break(
    server: Server, sent: Sequence[Sent], cuts: Sequence[tuple[int, float]]
) -> None:
    channels = await server.channels(unique())
    handling = Handling(sent, alone=False)  # a handler whose connection breaks goes on, and runs once more elsewhere
    await channels[0].send(handling.messages)

    async def disturb() -> None:
        for network, pause in cuts:
            await anyio.sleep(pause)
            server.networks[network].cut()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(disturb)
        await _handle_all(handling, channels)

    handling.check()
    for channel in channels:
        await channel.close()


async def _handle_all(handling: Handling, channels: Sequence[RabbitMQChannel]) -> None:
    stop = anyio.Event()

    async def run(consumer: Consumer) -> None:
        await supervise(consumer, RunnableHealth(consumer.name), Limits(stop=stop))

    with anyio.fail_after(4 * PATIENCE):
        async with anyio.create_task_group() as tasks:
            for consumer in handling.consumers(channels, SystemClock()):
                tasks.start_soon(run, consumer)
            await handling.over.wait()
            stop.set()


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue_type": "classic"}, "classic queue"),
        ({"declare": False}, "somebody else declares"),
        ({"arguments": {"x-delivery-limit": 5}}, "x-delivery-limit"),
        ({"arguments": {"x-single-active-consumer": False}}, "x-single-active-consumer"),
        ({"queue": "q" * 250}, "250 characters"),
    ],
)
def test_what_does_not_go_together_with_keeping_order_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot keep the order of partition keys") as caught:
        RabbitMQChannel("orders", keeps_order=True, **options)
    assert words in str(caught.value)


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("first", "second"), [({"keeps_order": False}, {}), ({}, {"keeps_order": False}), ({}, {"prefetch": 50})]
)
async def test_processes_that_do_not_agree_are_refused(
    server: Server, first: dict[str, Any], second: dict[str, Any]
) -> None:
    queue = unique()
    await server.channel(queue, **first)

    with pytest.raises(ConfigurationError, match="is there, but not as it should be"):
        await server.made(queue, **second).open()


@pytest.mark.rabbitmq
async def test_notes_that_could_not_be_kept_are_an_error_at_start_and_not_after_the_first_failure(
    server: Server,
) -> None:
    queue = unique()
    channel = server.made(queue)
    await server.direct.declare_queue(name_of(queue), durable=True)

    with pytest.raises(ConfigurationError, match=f"queue '{name_of(queue)}' is there, but not as it should be"):
        await channel.open()
    problems = [one for one in await channel.examine() if one.level is Level.PROBLEM]
    assert [name_of(queue) in one.what for one in problems] == [True]


# ------------------------------------------------------------------------------------------------------------ sending


async def _refuse(*refused: str, published: list[list[str]]) -> Callable[[Sequence[Outgoing]], Any]:
    async def publish(outgoing: Sequence[Outgoing]) -> None:
        sent = [one.message.id for one in outgoing]
        published.append(sent)
        if failed := [id for id in sent if id in refused]:
            raise SendError(f"refused {failed}", failed=failed)

    return publish


async def test_behind_a_message_that_the_server_refuses_none_of_its_key_is_sent() -> None:
    published: list[list[str]] = []
    sent = [
        letter("a1", "a"),
        letter("free"),
        letter("a2", "a"),
        letter("b1", "b"),
        letter("b2", "b"),
        letter("a3", "a"),
    ]
    outgoing = [Outgoing(message, routing_key="orders") for message in sent]

    with pytest.raises(SendError) as caught:
        await publish_in_rounds(await _refuse("a1", published=published), outgoing)

    assert published == [["a1", "free", "b1"], ["b2"]]
    assert caught.value.failed == ("a1", "a2", "a3")


async def test_what_only_stands_alone_is_sent_and_refused_at_once() -> None:
    published: list[list[str]] = []
    outgoing = [Outgoing(letter(name), routing_key="orders") for name in ("one", "two", "three")]

    with pytest.raises(SendError, match=r"^refused \['two'\]") as caught:
        await publish_in_rounds(await _refuse("two", published=published), outgoing)

    assert published == [["one", "two", "three"]]
    assert caught.value.failed == ("two",)


async def test_when_the_server_is_lost_it_is_told_how_many_were_sent_before() -> None:
    calls = 0

    async def publish(outgoing: Sequence[Outgoing]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ChannelError("the server is away")

    outgoing = [Outgoing(letter(name, "a"), routing_key="orders") for name in ("a1", "a2", "a3")]
    with pytest.raises(ChannelError) as caught:
        await publish_in_rounds(publish, outgoing)

    assert caught.value.__notes__ == ["1 of 3 messages were sent before that"]
    assert calls == 2


# ------------------------------------------------------------------------------------------------- in an application


class Orders:
    def __init__(self, queue: str) -> None:
        self.done: list[str] = []
        self.failing: set[str] = set()

        @asynchronous(queue, partition_by=lambda name: name[0])
        @command_handler("order.handle", id="handle-order")
        async def handle(name: str) -> None:
            if name in self.failing:
                raise OSError("not now")
            self.done.append(name)

        self.handle = handle


@pytest.mark.rabbitmq
@pytest.mark.parametrize("delivery", ["outbox", "direct"])
async def test_a_message_that_is_parked_makes_way_for_its_successors(
    server: Server, moving: MovingTime, sqlite_url: str, delivery: str
) -> None:
    queue = unique()
    orders, database = Orders(queue), SqlAlchemy(sqlite_url, create_schema=True)
    orders.failing.add("a1")
    plugins = [database, Failures(Backoff(retries=2, first=60.0, factor=1.0, jitter=0.0))]
    async with flow_test([orders.handle], channels=[server.made(queue, delivery=delivery)], plugins=plugins) as flow:
        for name in ("a1", "a2", "b1", "a3"):
            await flow.send(name, to="order.handle")
        if delivery == "outbox":
            await flow.run("outbox")

        await flow.run(queue, raises=False)
        assert orders.done == ["b1"]
        for _ in range(2):
            moving.offset += 61.0
            await flow.run(queue, raises=False)

        assert orders.done == ["b1", "a2", "a3"]
        [parked] = await flow.dead_letters()
        assert parked.attempts == 3


@pytest.mark.rabbitmq
async def test_what_is_delayed_waits_in_the_outbox_and_so_does_its_key(server: Server, sqlite_url: str) -> None:
    queue, done = unique(), list[str]()

    @asynchronous(queue, partition_by=lambda name: name[0])
    @delayed(lambda name: timedelta(minutes=5 if name == "a1" else 0))
    @command_handler("order.handle", id="handle-order")
    async def handle(name: str) -> None:
        done.append(name)

    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with flow_test([handle], channels=[server.made(queue)], plugins=[database]) as flow:
        for name in ("a1", "a2", "b1"):
            await flow.send(name, to="order.handle")
        await flow.run("outbox")
        await flow.run(queue)
        assert done == ["b1"]

        await flow.advance(timedelta(minutes=6))
        await flow.run("outbox")
        await flow.run(queue)

    assert done == ["b1", "a1", "a2"]
