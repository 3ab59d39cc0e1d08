"""What the shipped suite does not know about queues of RabbitMQ. Most of it holds for both kinds of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import anyio
import pytest
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import AMQPError
from anyio.lowlevel import checkpoint
from yarl import URL

from ecotone_fastapi import Backoff, Failures, ParkedMessage, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryDeadLetters
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel, subscription
from ecotone_fastapi.adapters.rabbitmq.subscription import Subscription
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, ConversionError, LeaseLostError, SendError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call
from ecotone_fastapi.core.plugin import HealthCheck, Limits
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.testing import flow_test
from ecotone_fastapi.testing.conformance.hooks import letter, letters, unique
from ecotone_fastapi.testing.faults import TcpProxy, tcp_proxy
from tests.adapters import strangers
from tests.conftest import SERVERS

pytestmark = pytest.mark.rabbitmq

PATIENCE = 60.0  # seconds; only a test that fails waits for so long


@dataclass
class Server:
    """A RabbitMQ behind a network that the test can cut, and a look behind its curtain."""

    network: TcpProxy
    direct: AbstractChannel
    queue: str
    type: str

    def channel(self, name: str | None = None, **options: Any) -> RabbitMQChannel:
        options = {"queue_type": self.type, **options}
        return RabbitMQChannel(name or self.queue, self.url(), **options)

    def url(self, **query: int) -> str:
        address = URL(SERVERS["rabbitmq"].url).with_host("127.0.0.1").with_port(self.network.port)
        return str(address.update_query(query))

    async def look(self) -> tuple[int, int]:
        """How many messages are ready, and how many consumers there are."""
        found = (await self.direct.get_queue(self.queue)).declaration_result
        return found.message_count or 0, found.consumer_count or 0

    async def until_ready(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while (await self.look())[0] != number:
                continue

    async def until_consumed(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (await self.look())[1]:
                continue


@pytest.fixture(params=["classic", "quorum"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    address = URL(SERVERS["rabbitmq"].url)
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with tcp_proxy(address.port or 5672, address.host or "127.0.0.1") as network, connection:
        server = Server(network, await connection.channel(), unique(), request.param)
        yield server
        network.restore()
        await (await connection.channel()).queue_delete(server.queue)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[RabbitMQChannel]:
    channel = server.channel()
    await channel.open()
    yield channel
    await channel.close()


async def receive(channel: Channel, number: int = 1) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while len(deliveries) < number:
        lent = await channel.receive(number - len(deliveries), PATIENCE)
        assert lent
        deliveries += lent
    return deliveries


async def insist(channel: Channel) -> Delivery:
    """Receive one message by trying again whenever the server is away."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                [delivery] = await receive(channel)
            except ChannelError:
                await checkpoint()
            else:
                return delivery


# ------------------------------------------------------------------------------------------------------ what there is


async def test_a_queue_with_other_arguments_is_refused_and_the_difference_is_named(server: Server) -> None:
    arguments = {"x-queue-type": server.type, "x-max-length": 7}
    await server.direct.declare_queue(server.queue, durable=True, arguments=arguments)

    with pytest.raises(ConfigurationError, match=r"(?s)x-max-length.*declare=False"):
        await server.channel(arguments={"x-max-length": 8}).open()
    channel = server.channel(declare=False)
    await channel.open()
    await channel.close()


async def test_a_queue_that_is_not_declared_has_to_be_there(server: Server) -> None:
    with pytest.raises(ConfigurationError, match=server.queue):
        await server.channel(declare=False).open()


async def test_what_the_server_takes_for_delivered_but_never_arrives_comes_again_after_a_silence(
    channel: RabbitMQChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with a quorum queue that is deleted and made anew at once, while somebody consumes it."""
    deliver, swallowed = Subscription._deliver, []

    async def swallow_first(self: Subscription, delivered: Any) -> None:
        if swallowed:
            await deliver(self, delivered)
        else:
            swallowed.append(delivered)

    monkeypatch.setattr(Subscription, "_deliver", swallow_first)
    monkeypatch.setattr(subscription, "WATCHED", 0.2)
    await channel.send([letter(b"1")])

    [delivery] = await receive(channel)

    assert swallowed
    assert delivery.message.payload == letter(b"1").payload
    await delivery.ack()


async def test_messages_take_the_way_by_an_exchange(server: Server) -> None:
    exchange = f"exchange-{server.queue}"
    await server.direct.declare_exchange(exchange, "topic", auto_delete=True)
    channel = server.channel(exchange=exchange, routing_key="orders.placed")
    assert not channel.capabilities.delay  # what waits in the broker comes back past the exchange
    await channel.open()
    await channel.send([letter()])

    [delivery] = await receive(channel)
    await delivery.nack()
    [delivery] = await receive(channel)
    assert delivery.message.headers[HeaderName.attempt] == "1"
    await delivery.ack()
    await channel.close()


async def test_an_exchange_that_is_missing_is_named(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="no-such-exchange"):
        await server.channel(exchange="no-such-exchange").open()


async def test_the_server_never_drops_a_message_because_it_came_back_too_often(server: Server) -> None:
    channel = server.channel()
    await channel.open()
    await channel.send([letter()])

    for _ in range(30):
        [delivery] = await receive(channel)
        await delivery.nack(attempted=False)

    [delivery] = await receive(channel)
    assert delivery.count == 1
    await delivery.ack()
    await channel.close()


async def test_many_processes_may_prepare_the_server_at_once(server: Server) -> None:
    channels = [
        RabbitMQChannel(server.queue, server.url(heartbeat=20 + number), queue_type=server.type)  # type: ignore[arg-type]
        for number in range(10)
    ]

    await asyncio.gather(*(channel.open() for channel in channels))
    await asyncio.gather(*(channel.send([letter(delay="0.1")]) for channel in channels))

    assert len(await receive(channels[0], 10)) == 10
    await asyncio.gather(*(channel.close() for channel in channels))


async def test_channels_with_one_url_share_two_connections(server: Server) -> None:
    channels = [server.channel() for _ in range(5)]

    await asyncio.gather(*(channel.open() for channel in channels))
    await asyncio.gather(*(channel.receive(1, 0.0) for channel in channels))
    assert server.network.connections == 2

    await asyncio.gather(*(channel.close() for channel in channels))
    async with asyncio.timeout(PATIENCE):
        while server.network.connections:
            await checkpoint()


def test_a_channel_may_be_used_on_one_event_loop_after_the_other() -> None:
    channel = RabbitMQChannel(unique(), SERVERS["rabbitmq"].url, arguments={"x-expires": 60_000})

    async def use() -> None:
        await channel.open()
        await channel.send([letter()])
        [delivery] = await receive(channel)
        await delivery.ack()
        await channel.close()

    asyncio.run(use())
    asyncio.run(use())


@pytest.mark.parametrize(
    "options",
    [
        {"max_priority": 9},
        {"queue_type": "classic", "max_priority": 0},
        {"prefetch": 0},
        {"queue": "x" * 256},
        {"queue": "a*"},
    ],
)
def test_what_cannot_work_is_refused_when_the_channel_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RabbitMQChannel("orders", **options)


# ---------------------------------------------------------------------------------------------- messages of others


async def test_whatever_others_have_sent_can_be_read(server: Server, channel: RabbitMQChannel) -> None:
    sent_at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    headers: Any = {
        "text": "Grüße",
        "number": 7,
        "fraction": 1.5,
        "yes": True,
        "moment": sent_at,
        "table": {"a": [1, "b"]},
        "bytes": bytearray(b"\xff\xfe"),
        "nothing": None,
        "x-ecotone-deliveries": "many",
        "x-ecotone-expires": "never",
    }
    foreign = aio_pika.Message(
        b"{}",
        headers=headers,
        message_id="foreign",
        type="order.placed",
        correlation_id="conversation",
        content_type="application/json",
        timestamp=sent_at,
        content_encoding="utf-8",
    )
    await server.direct.default_exchange.publish(foreign, server.queue)
    await server.direct.default_exchange.publish(aio_pika.Message(b"\xff"), server.queue)

    with_headers, without = await receive(channel, 2)
    assert with_headers.message.payload == b"{}"
    assert with_headers.count == 1
    assert dict(with_headers.message.headers) == {
        "text": "Grüße",
        "number": "7",
        "fraction": "1.5",
        "yes": "true",
        "moment": "2026-01-31T12:00:00+00:00",
        "table": '{"a": [1, "b"]}',
        "bytes": "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}",
        "id": "foreign",
        "type": "order.placed",
        "correlation_id": "conversation",
        "content_type": "application/json",
        "timestamp": "2026-01-31T12:00:00+00:00",
    }
    assert (without.message.payload, set(without.message.headers)) == (b"\xff", {HeaderName.id})
    await with_headers.nack()
    await without.nack()
    for delivery in await receive(channel, 2):
        assert delivery.count == 2
        await delivery.ack()


UNREADABLE: dict[bytes, tuple[bytes, dict[str, str]]] = {
    b"name": (strangers.headers((b"Gr\xf6\xdfe", strangers.text(b"7"))), {"Gr��e": "7"}),
    b"name in a table": (
        strangers.headers((b"size", b"F" + strangers.table((b"\xf6", b"t\x01")))),
        {"size": '{"\\ufffd": true}'},
    ),
    b"long name": (strangers.headers((b"\xff" * 255, strangers.text(b"7"))), {"�" * 85: "7"}),
    b"content type": (strangers.properties((strangers.CONTENT_TYPE, strangers.short(b"\xff"))), {"content_type": "�"}),
    b"content encoding": (strangers.properties((strangers.CONTENT_ENCODING, strangers.short(b"\xff"))), {}),
    b"correlation id": (
        strangers.properties((strangers.CORRELATION_ID, strangers.short(b"\xff"))),
        {"correlation_id": "�"},
    ),
    b"answer to": (strangers.properties((strangers.REPLY_TO, strangers.short(b"\xff"))), {}),
    b"id": (strangers.properties((strangers.MESSAGE_ID, strangers.short(b"\xff"))), {"id": "�"}),
    b"type": (strangers.properties((strangers.TYPE, strangers.short(b"\xff"))), {"type": "�"}),
    b"application": (strangers.properties((strangers.APP_ID, strangers.short(b"\xff"))), {}),
    b"microseconds": (
        strangers.properties((strangers.TIMESTAMP, (1_700_000_000_000_000).to_bytes(8, "big"))),
        {"timestamp": "1700000000000000"},
    ),
    b"moment": (strangers.headers((b"moment", b"T" + b"\xff" * 8)), {"moment": str(2**64 - 1)}),
    b"depth": (strangers.headers((b"deep", strangers.lists(20_000))), {"deep": "[" * 32 + '"\\u2026"' + "]" * 32}),
}
"""What ends the connection of a driver that reads it, by the payload that it is sent with, and how it is read here."""


async def test_what_the_driver_cannot_read_arrives_like_any_other_message(
    server: Server, channel: RabbitMQChannel
) -> None:
    await channel.send([letter(b"before")])
    [before] = await receive(channel)
    await strangers.send_strange(server.queue, [(told, payload) for payload, (told, _) in UNREADABLE.items()])

    deliveries = await receive(channel, len(UNREADABLE))

    assert {one.message.payload: dict(one.message.headers) for one in deliveries} == {
        payload: expected for payload, (_, expected) in UNREADABLE.items()
    }
    assert {one.count for one in deliveries} == {1}
    for delivery in deliveries:
        await delivery.nack()
    again = await receive(channel, len(UNREADABLE))
    # Each may come again while the next one is still being given back.
    assert {(one.message.payload, one.count) for one in again} == {(payload, 2) for payload in UNREADABLE}
    await channel.ack_all([before, *again])  # the connection on which it was lent is still there
    await channel.close()
    await server.until_ready(0)


async def test_a_routing_key_that_is_no_text_stops_nobody(server: Server, channel: RabbitMQChannel) -> None:
    exchange = await server.direct.declare_exchange(f"exchange-{server.queue}", "fanout", auto_delete=True)
    await (await server.direct.get_queue(server.queue)).bind(exchange)
    message = strangers.publish(server.queue, exchange.name, b"\xff\xfe") + strangers.content(b"\0\0", b"1")
    await strangers.send_raw(server.queue, [message])

    [delivery] = await receive(channel)

    assert delivery.message.payload == b"1"
    await delivery.ack()


@pytest.mark.parametrize(
    "properties",
    [
        strangers.headers((b"unknown", b"Z1234")),
        strangers.headers((b"no number", b"d\x7f\xf8" + b"\0" * 6)),
        strangers.properties((strangers.HEADERS, b"\0\0\0\x10\x01a")),
        strangers.properties((strangers.EXPIRATION, strangers.short(b"soon"))),
        b"\0\x01\0\0",
    ],
    ids=["type", "number", "length", "expiration", "flags"],
)
async def test_what_the_server_cannot_read_either_is_an_error_of_its_sender(
    server: Server, channel: RabbitMQChannel, properties: bytes
) -> None:
    with pytest.raises(AMQPError):
        await strangers.send_strange(server.queue, [(properties, b"1")])

    assert await server.look() == (0, 0)


async def test_whatever_a_message_says_it_can_be_given_back(server: Server) -> None:
    options: dict[str, Any] = {"max_priority": 5} if server.type == "classic" else {}
    channel = server.channel(**options)
    await channel.open()
    await strangers.send_strange(
        server.queue,
        [
            (strangers.headers((b"priority", strangers.text(b"urgent"))), b"priority"),
            (strangers.headers((b"content_type", strangers.text(b"text/" + b"x" * 300))), b"content type"),
            (strangers.headers((b"large", strangers.text(b"x" * 110_000))), b"large"),
            (
                strangers.headers((b"small", b"t\x01"), (b"grows", b"x" + strangers.long(b"\xff" * 100_000))),
                b"grows",
            ),
            (strangers.headers((b"x-ecotone-expires", strangers.text(b"nan"))), b"never"),
        ],
    )

    for delivery in await receive(channel, 5):
        await delivery.nack()

    again = {one.message.payload: one for one in await receive(channel, 5)}
    told = {payload: one.message.headers for payload, one in again.items()}
    assert {(one.count, one.message.headers[HeaderName.attempt]) for one in again.values()} == {(2, "1")}
    assert told[b"priority"]["priority"] == "urgent"
    assert told[b"content type"]["content_type"] == "text/" + "x" * 300
    assert told[b"large"]["large"] == "x" * 110_000
    assert told[b"grows"]["small"] == "true"
    assert "grows" not in told[b"grows"]  # three times as long as it was, which no frame can hold
    await channel.ack_all(list(again.values()))
    await channel.close()


@pytest.mark.parametrize(
    "headers", [{"x" * 256: "long name"}, {"large": "x" * 100_000}, {"text": "\ud800"}], ids=["name", "size", "text"]
)
async def test_headers_that_cannot_be_written_are_refused_before_anything_is_sent(
    server: Server, channel: RabbitMQChannel, headers: dict[str, str]
) -> None:
    with pytest.raises(ConversionError, match="cannot be sent by RabbitMQ"):
        await channel.send([letter(), Message(b"", {"id": "odd", **headers})])

    assert await server.look() == (0, 0)


async def test_a_message_for_nobody_is_an_error(server: Server, channel: RabbitMQChannel) -> None:
    await server.direct.queue_delete(server.queue)
    message = letter()

    with pytest.raises(SendError) as caught:
        await channel.send([message])

    assert caught.value.failed == (message.id,)


# ------------------------------------------------------------------------------------------------- lending and counting


async def test_who_only_sends_consumes_nothing(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send([letter()])

    assert await server.look() == (1, 0)


async def test_what_nobody_asks_for_does_not_stay_here(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send(letters(10))

    lent = await channel.receive(3, PATIENCE)
    await channel.ack_all(lent)

    await server.until_ready(10 - len(lent))


async def test_no_more_is_held_than_prefetch_allows(server: Server) -> None:
    channel = server.channel(prefetch=5)
    await channel.open()
    await channel.send(letters(10))

    held = await receive(channel, 5)
    assert not await channel.receive(1, 0.2)
    assert await channel.depth() == 10
    await held[0].ack()
    await receive(channel, 1)
    await channel.close()


@pytest.mark.parametrize("limit", [1, 2, 50])
async def test_receive_without_a_timeout_finds_what_is_there(channel: RabbitMQChannel, limit: int) -> None:
    await channel.send(letters(20))
    received: list[Delivery] = []

    while deliveries := await channel.receive(limit, 0.0):
        await channel.ack_all(deliveries)
        received += deliveries

    assert [delivery.message.payload for delivery in received] == [str(place).encode() for place in range(20)]


async def test_a_consumer_that_died_is_counted(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send([letter()])

    for count in range(1, 5):
        delivery = await insist(channel)
        assert delivery.count == count
        assert HeaderName.attempt not in delivery.message.headers
        assert not [name for name in delivery.message.headers if name.startswith("x-")]
        server.network.cut()
        with pytest.raises(ChannelError):
            await receive(channel)
    delivery = await insist(channel)
    await delivery.nack()
    delivery = await insist(channel)
    # A quorum queue cannot tell whether two of them were not given back properly.
    count = 4 if server.type == "quorum" else 6
    assert (delivery.count, delivery.message.headers[HeaderName.attempt]) == (count, "1")
    await delivery.ack()


async def test_consumers_that_stop_properly_again_and_again_do_not_make_a_message_suspicious(
    channel: RabbitMQChannel,
) -> None:
    await channel.send(letters(3))
    for _ in range(8):
        await channel.close()  # what it has given back is forgotten with it, as in another process
        await channel.open()
        for delivery in await receive(channel, 2):
            assert delivery.count <= 3
            await delivery.nack(attempted=False)

    rest = await receive(channel, 3)
    assert sorted(delivery.message.payload for delivery in rest) == [b"0", b"1", b"2"]
    assert all(delivery.count <= 3 for delivery in rest)
    await channel.ack_all(rest)


async def test_what_cannot_be_counted_is_handled_all_the_same(server: Server) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel = server.channel(arguments=full)
    await channel.open()
    await channel.send([letter(b"1")])
    await receive(channel)
    await channel.send([letter(b"2")])  # there is room again for nothing
    server.network.cut()
    with pytest.raises(ChannelError):
        await receive(channel)

    delivery = await insist(channel)

    assert delivery.message.payload == b"1"
    await delivery.ack()
    await channel.close()


async def test_the_first_failure_is_remembered(channel: RabbitMQChannel) -> None:
    began = datetime.now(UTC)
    await channel.send([letter()])
    [delivery] = await receive(channel)
    await delivery.nack()
    [delivery] = await receive(channel)
    first = delivery.message.headers[HeaderName.first_failed_at]
    await delivery.nack(0.05)
    [delivery] = await receive(channel)

    assert delivery.message.headers[HeaderName.first_failed_at] == first
    assert began <= datetime.fromisoformat(first) <= datetime.now(UTC)
    await delivery.ack()


async def test_some_of_those_that_have_arrived_are_acked_together(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send(letters(10))
    lent = await receive(channel, 10)

    await channel.ack_all([lent[place] for place in (9, 1, 0, 2, 5)])
    await channel.close()
    await channel.open()

    rest = await receive(channel, 5)
    assert sorted(delivery.message.payload for delivery in rest) == [b"3", b"4", b"6", b"7", b"8"]
    await channel.ack_all(rest)


async def test_a_single_active_consumer_receives_everything_in_order(server: Server) -> None:
    arguments = {"x-single-active-consumer": True}
    first, second = (server.channel(arguments=arguments) for _ in range(2))
    await first.open()
    await second.open()
    await first.send(letters(20))

    lent = await receive(first, 5)
    assert not await second.receive(1, 0.2)
    lent += await receive(first, 15)
    assert [int(delivery.message.payload) for delivery in lent] == list(range(20))
    await first.ack_all(lent[:10])
    await first.close()
    assert [int(delivery.message.payload) for delivery in await receive(second, 10)] == list(range(10, 20))
    await second.close()


async def test_a_single_active_consumer_that_runs_until_empty_waits_for_what_is_on_its_way(server: Server) -> None:
    channel = server.channel(arguments={"x-single-active-consumer": True})
    await channel.open()
    await channel.send([letter(b"x" * 8_000_000)])  # takes longer to arrive than the server's answer does
    handled: list[int] = []

    async def handle(call: Call) -> None:
        handled.append(len(call.message.payload))

    consumer = Consumer(channel, Gateway(Conversion(), SystemClock()), target=handle)
    await consumer.run(Limits(until_empty=True))

    assert handled == [8_000_000]
    await channel.close()


# ---------------------------------------------------------------------------------------------------------------- time


async def test_a_delayed_message_outlives_its_sender(server: Server) -> None:
    sender, receiver = server.channel(), server.channel()
    await sender.open()
    await sender.send([letter(delay="0.3")])
    await sender.close()

    await receiver.open()
    [delivery] = await receive(receiver)
    assert delivery.count == 1
    await delivery.ack()
    await receiver.close()


async def test_a_name_with_dots_and_wildcards_is_not_mixed_up_with_another(server: Server) -> None:
    dotted = server.channel(f"a.#.{server.queue}", arguments={"x-expires": 60_000})
    plain = server.channel()
    await dotted.open()
    await plain.open()
    await dotted.send([letter(b"dotted", delay="0.1")])
    await plain.send([letter(b"plain", delay="0.1")])

    assert [delivery.message.payload for delivery in await receive(dotted)] == [b"dotted"]
    assert [delivery.message.payload for delivery in await receive(plain)] == [b"plain"]
    assert not await plain.receive(1, 0.2)
    await dotted.close()
    await plain.close()


async def test_what_waits_for_a_queue_that_is_gone_is_kept_and_holds_up_nobody(server: Server) -> None:
    channel, other = server.channel(), server.channel(unique(), arguments={"x-expires": 60_000})
    await channel.open()
    await other.open()
    gone = letter(delay="0.2")
    await channel.send([gone])
    await channel.close()
    await server.direct.queue_delete(server.queue)

    await other.send([letter(b"later", delay="0.3")])
    [delivery] = await receive(other)
    assert delivery.message.payload == b"later"
    await other.close()
    lost = await server.direct.get_queue(f"ecotone.delay.{server.type}.lost")
    async with asyncio.timeout(PATIENCE):
        while True:
            message = await lost.get(fail=False)
            if message is not None:
                await message.ack()
                if message.headers[HeaderName.id] == gone.id:
                    break


async def test_a_message_that_waits_may_expire(channel: RabbitMQChannel) -> None:
    await channel.send([letter(b"late", delay="0.2", time_to_live="0.1"), letter(b"good", delay="0.3")])

    [delivery] = await receive(channel)
    assert delivery.message.payload == b"good"
    await delivery.ack()


async def test_a_channel_may_have_a_time_to_live_of_its_own(server: Server) -> None:
    channel = server.channel(time_to_live=0.1)
    await channel.open()
    await channel.send([letter(b"short"), letter(b"long", time_to_live="60")])

    await server.until_ready(1)
    [delivery] = await receive(channel)
    assert delivery.message.payload == b"long"
    await channel.close()


async def test_a_delay_that_is_too_long_is_refused(channel: RabbitMQChannel) -> None:
    with pytest.raises(ConversionError, match="too long"):
        await channel.send([letter(delay=str(200 * 86400))])


async def test_somebody_else_may_keep_what_has_to_wait(server: Server, channel: RabbitMQChannel) -> None:
    kept: list[Message[bytes]] = []

    async def keep(messages: Sequence[Message[bytes]]) -> None:
        kept.extend(messages)

    channel.delay_through(keep)
    message = letter(delay="3600", time_to_live="7200")
    await channel.send([letter(b"now"), message])
    assert kept == [message]

    [delivery] = await receive(channel)
    await delivery.nack(60)
    assert delivery.settled
    assert not await channel.receive(1, 0.1)
    again = kept[1]
    assert (again.headers[HeaderName.delay], again.headers[HeaderName.attempt]) == ("60", "1")

    await channel.send([again.without_headers([HeaderName.delay])])
    [delivery] = await receive(channel)
    assert (delivery.count, delivery.message.headers[HeaderName.attempt]) == (2, "1")
    await delivery.ack()


async def test_a_message_that_cannot_be_kept_is_still_lent(channel: RabbitMQChannel) -> None:
    async def refuse(messages: Sequence[Message[bytes]]) -> None:
        raise ChannelError("the database is away")

    channel.delay_through(refuse)
    await channel.send([letter()])
    [delivery] = await receive(channel)

    with pytest.raises(ChannelError, match="away"):
        await delivery.nack(60)
    assert not delivery.settled
    await delivery.nack()
    [delivery] = await receive(channel)
    await delivery.ack()


# -------------------------------------------------------------------------------------------------------------- faults


async def test_an_ack_that_comes_too_late_says_so_and_disturbs_nobody(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send([letter()])
    [late] = await receive(channel)
    server.network.cut()
    delivery = await insist(channel)

    with pytest.raises(LeaseLostError, match="too late"):
        await late.ack()
    await late.nack()
    assert not late.settled
    await delivery.ack()
    assert not await channel.receive(1, 0.2)


async def test_a_deleted_queue_is_made_anew_and_consumed_again(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send([letter(delay="0.1")])
    [delivery] = await receive(channel)
    await delivery.ack()

    waiting = asyncio.create_task(channel.receive(1, PATIENCE))
    await server.until_consumed()
    await server.direct.queue_delete(server.queue)
    with pytest.raises(ChannelError, match="deleted"):
        await waiting
    assert not await channel.receive(1, 0.0)
    await channel.send([letter(b"delayed", delay="0.1")])
    [delivery] = await receive(channel)
    assert delivery.message.payload == b"delayed"
    await delivery.ack()


async def test_a_server_that_is_away_is_an_error_at_once_and_no_error_later(
    server: Server, channel: RabbitMQChannel
) -> None:
    await channel.send([letter(b"before")])
    server.network.refuse()
    began = time.monotonic()

    for _ in range(3):
        with pytest.raises(ChannelError):
            await channel.receive(1, 600)
    with pytest.raises(ChannelError):
        await channel.check()
    assert time.monotonic() - began < 60

    server.network.restore()
    delivery = await insist(channel)
    assert delivery.message.payload == b"before"
    await delivery.ack()


async def test_a_server_that_was_away_at_first_may_come_later(server: Server) -> None:
    channel = server.channel()
    server.network.refuse()
    with pytest.raises(ChannelError):
        await channel.open()
    with pytest.raises(ChannelError, match="not open"):
        await channel.send([letter()])

    server.network.restore()
    await channel.open()
    await channel.send([letter()])
    [delivery] = await receive(channel)
    await delivery.ack()
    await channel.close()


async def test_a_network_that_has_fallen_silent_is_noticed(server: Server) -> None:
    channel = server.channel(timeout=2.0)
    await channel.open()
    await channel.send([letter()])
    [delivery] = await receive(channel)
    server.network.freeze()
    began = time.monotonic()

    with pytest.raises(ChannelError):
        await channel.receive(1, 0.0)
    with pytest.raises(ChannelError):
        await channel.send([letter()])  # whether it arrives is not known
    await delivery.nack(attempted=False)
    await channel.close()
    assert time.monotonic() - began < 60

    server.network.restore()
    await channel.open()
    while (await insist(channel)).message.id != delivery.message.id:
        continue
    await channel.close()


async def test_the_health_is_that_of_the_queue(server: Server, channel: RabbitMQChannel) -> None:
    assert isinstance(channel, HealthCheck)
    await channel.check()

    await server.direct.queue_delete(server.queue)
    with pytest.raises(ChannelError, match=server.queue):
        await channel.check()
    await channel.open()
    await channel.check()
    await channel.close()
    with pytest.raises(ChannelError, match="not open"):
        await channel.check()


async def test_ready_messages_are_counted_and_deleted(server: Server, channel: RabbitMQChannel) -> None:
    await channel.send(letters(5))
    [delivery] = await receive(channel)

    await server.until_ready(4)
    assert await channel.depth() == 5
    assert await channel.purge() == 4
    assert await channel.depth() == 1
    await delivery.ack()
    assert await channel.depth() == 0


# ------------------------------------------------------------------------------------------------------------- together


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Orders:
    def __init__(self) -> None:
        self.attempts: list[str] = []

    @asynchronous("orders")
    @command_handler(id="Orders.place")
    async def place(self, command: PlaceOrder) -> None:
        self.attempts.append(command.order_id)
        if self.attempts.count(command.order_id) < 2 and command.order_id == "1":
            raise ValueError(command.order_id)


async def test_an_asynchronous_handler_behind_a_queue(server: Server) -> None:
    orders = Orders()
    channel = RabbitMQChannel("orders", server.url(), queue=server.queue, queue_type=server.type)  # type: ignore[arg-type]
    failures = Failures(Backoff(first=0.0))
    services = {DeadLetterStore: MemoryDeadLetters()}

    async with flow_test([orders], channels=[channel], plugins=[failures], services=services) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.send(PlaceOrder("2"))
        await flow.run("orders", raises=False)

    assert orders.attempts == ["1", "2", "1"]


async def test_retries_of_a_queue_wait_in_the_database_where_there_is_one(server: Server, sqlite_url: str) -> None:
    orders, database = Orders(), SqlAlchemy(sqlite_url, create_schema=True)
    channel = RabbitMQChannel("orders", server.url(), queue=server.queue, queue_type=server.type)  # type: ignore[arg-type]
    failures = Failures(Backoff(first=3600.0))

    async with flow_test([orders], channels=[channel], plugins=[database, failures]) as flow:
        await flow.send(PlaceOrder("1"))
        assert await channel.depth() == 0
        await flow.run("outbox")
        await flow.run("orders", raises=False)
        assert (orders.attempts, await channel.depth()) == (["1"], 0)

        await flow.advance(timedelta(hours=2))
        await flow.run("outbox")
        await flow.run("orders")
        assert (orders.attempts, await channel.depth()) == (["1", "1"], 0)


async def test_what_cannot_be_read_is_parked_with_its_body_and_the_consumer_goes_on(
    server: Server, sqlite_url: str
) -> None:
    orders, database = Orders(), SqlAlchemy(sqlite_url, create_schema=True)
    channel = RabbitMQChannel(
        "orders",
        server.url(),
        queue=server.queue,
        queue_type=server.type,  # type: ignore[arg-type]
        delivery="direct",
    )
    impossible = {
        b"attempts": strangers.headers((b"attempt", strangers.text(b"9" * 30))),
        b"endless attempts": strangers.headers((b"attempt", strangers.text(b"9" * 5_000))),
        b"deliveries": strangers.headers((b"x-ecotone-deliveries", strangers.text(b"9" * 30))),
        b"replays": strangers.headers((b"replays", strangers.text(b"9" * 5_000))),
        b"too early": strangers.headers((b"first_failed_at", strangers.text(b"0001-01-01T00:00:00+14:00"))),
        b"too late": strangers.headers((b"first_failed_at", strangers.text(b"9999-12-31T23:59:59-14:00"))),
        b"no character": strangers.headers((b"endpoint", strangers.text(b"a\0b")), (b"\0", strangers.text(b"\0"))),
    }
    strange = {payload: properties for payload, (properties, _) in UNREADABLE.items()} | impossible

    async with flow_test([orders], channels=[channel], plugins=[database]) as flow:
        await flow.send(PlaceOrder("2"))
        await strangers.send_strange(server.queue, [(properties, payload) for payload, properties in strange.items()])
        await flow.send(PlaceOrder("3"))
        parked: Sequence[ParkedMessage] = ()
        with anyio.fail_after(60):
            while len(parked) < len(strange):  # what is on its way to a queue is not in it yet
                await flow.run("orders", raises=False)
                parked = await flow.dead_letters()
        left = await channel.depth()

    assert orders.attempts == ["2", "3"]
    assert {one.message.payload for one in parked} == set(strange)
    assert left == 0
