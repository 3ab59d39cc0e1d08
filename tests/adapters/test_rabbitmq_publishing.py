import asyncio
import itertools
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from ecotone_fastapi.adapters.rabbitmq import frames, lean
from ecotone_fastapi.adapters.rabbitmq.batches import Batch
from ecotone_fastapi.adapters.rabbitmq.lean import LeanPen
from ecotone_fastapi.adapters.rabbitmq.plain import PlainPen
from ecotone_fastapi.adapters.rabbitmq.publishing import Outgoing, Publisher
from ecotone_fastapi.core.errors import ChannelError, OutcomeUnknownError, SendError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.testing.faults import TcpProxy, tcp_proxy
from tests.servers import until

URL = os.environ.get("ECOTONE_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")
PATIENCE = 1.0  # seconds that a server has where it is not going to answer

pytestmark = [pytest.mark.rabbitmq]

Declare = Callable[..., Awaitable[AbstractQueue]]
_numbers = itertools.count()


@pytest.fixture(params=[True, False], ids=["lean", "plain"])
def lean_or_not(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def declare() -> AsyncIterator[Declare]:
    """Make queues that are gone after the test."""
    connection = await aio_pika.connect(URL)
    channel = await connection.channel()
    queues: list[AbstractQueue] = []

    async def make(**arguments: Any) -> AbstractQueue:
        name = f"ecotone_test_{uuid.uuid4().hex[:12]}"
        queue = await channel.declare_queue(
            name, durable=True, arguments={key.replace("_", "-"): value for key, value in arguments.items()}
        )
        queues.append(queue)
        return queue

    yield make
    for queue in queues:
        await queue.delete(if_unused=False, if_empty=False)
    await connection.close()


@asynccontextmanager
async def publishing(url: str = URL, **options: Any) -> AsyncIterator[Publisher]:
    publisher = Publisher(url, **options)
    await publisher.open()
    try:
        yield publisher
    finally:
        await publisher.close()


@asynccontextmanager
async def through_a_network(**options: Any) -> AsyncIterator[tuple[Publisher, TcpProxy]]:
    async with (
        tcp_proxy(5672) as network,
        publishing(f"amqp://guest:guest@127.0.0.1:{network.port}/", **options) as publisher,
    ):
        yield publisher, network
        network.restore()


@contextmanager
def in_a_hurry(publisher: Publisher) -> Iterator[None]:
    """Give the server a second, and only while it is not going to answer: at other times a busy machine needs more."""
    ordinary, publisher._timeout = publisher._timeout, PATIENCE
    try:
        yield
    finally:
        publisher._timeout = ordinary


def to(queue: AbstractQueue | str, payload: bytes = b"hello", **more: Any) -> Outgoing:
    name = queue if isinstance(queue, str) else queue.name
    id = f"message-{next(_numbers)}"
    headers = {HeaderName.id: id, HeaderName.content_type: "text/plain"}
    return Outgoing(Message(payload, headers), **{"routing_key": name, "headers": headers, **more})


def ids(*outgoing: Outgoing) -> list[str]:
    return [one.message.id for one in outgoing]


async def received(queue: AbstractQueue) -> list[AbstractIncomingMessage]:
    messages = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        messages.append(message)
    return messages


async def publish_until_it_works(publisher: Publisher, outgoing: Outgoing) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await publisher.publish([outgoing])
            except ChannelError:
                assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------- what is sent arrives


async def test_what_was_published_has_arrived_in_order_and_survives_the_server(
    declare: Declare, lean_or_not: bool
) -> None:
    queue = await declare()
    sent = [to(queue, b"%d" % number) for number in range(250)]

    async with publishing(lean=lean_or_not, window=100) as publisher:
        await publisher.publish(sent)

    messages = await received(queue)
    assert [message.body for message in messages] == [one.message.payload for one in sent]
    assert {message.delivery_mode for message in messages} == {aio_pika.DeliveryMode.PERSISTENT}
    assert {message.content_type for message in messages} == {"text/plain"}
    assert len({message.message_id for message in messages}) == 250


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_thousand_messages_in_one_go(declare: Declare, kind: str) -> None:
    queue = await declare(x_queue_type=kind)

    async with publishing() as publisher:
        await publisher.publish([to(queue) for _ in range(1_000)])

    assert len(await received(queue)) == 1_000


# The largest frame has 131,072 bytes, 8 of which are not payload.
@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 262_128, 1_048_576])
async def test_payloads_of_any_size_arrive(declare: Declare, lean_or_not: bool, size: int) -> None:
    queue = await declare()
    payload = os.urandom(size)

    async with publishing(lean=lean_or_not) as publisher:
        await publisher.publish([to(queue, payload), to(queue, b"next")])

    assert [message.body for message in await received(queue)] == [payload, b"next"]


async def test_more_bytes_than_may_be_under_way_at_a_time_arrive_too(declare: Declare) -> None:
    queue = await declare()

    async with publishing() as publisher:
        await publisher.publish([to(queue, bytes(3 * 1024 * 1024)) for _ in range(20)])

    assert [len(message.body) for message in await received(queue)] == [3 * 1024 * 1024] * 20


async def test_headers_and_properties_arrive(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare(x_max_priority=9)
    headers = {"name": "Zoë", "größe": "🙂", "empty": "", "long": "x" * 5_000}

    async with publishing(lean=lean_or_not) as publisher:
        await publisher.publish(
            [
                to(queue, headers=headers, priority=7, expiration=60.5),
                Outgoing(Message(b"bare", {}), routing_key=queue.name),
                to(queue, expiration=100 * 86_400.0),
            ]
        )

    full, bare, lasting = await received(queue)
    assert full.headers == headers
    assert (full.priority, full.expiration) == (7, 60.5)
    assert lasting.expiration is None
    assert (bare.headers, bare.priority, bare.expiration, bare.content_type) == ({}, 0, None, None)


async def test_messages_go_to_exchanges_too(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()
    await queue.bind("amq.topic", "orders.*")

    async with publishing(lean=lean_or_not) as publisher:
        await publisher.publish(
            [to(queue, exchange="amq.topic", routing_key=f"orders.{place}") for place in ("north", "south")]
        )

    assert [message.routing_key for message in await received(queue)] == ["orders.north", "orders.south"]


async def test_nothing_is_published_in_no_time() -> None:
    await Publisher(URL).publish([])


# ------------------------------------------------------------------------------------------------- what is not accepted


async def test_what_no_queue_takes_is_named_and_the_rest_arrives(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()
    good, lost, better, gone = to(queue), to("ecotone_nowhere"), to(queue), to("ecotone_nowhere")

    async with publishing(lean=lean_or_not) as publisher:
        with pytest.raises(SendError, match=r"2 of 4 messages: .*NO_ROUTE") as caught:
            await publisher.publish([good, lost, better, gone])

        assert sorted(caught.value.failed) == sorted(ids(lost, gone))
        assert [message.headers[HeaderName.id] for message in await received(queue)] == ids(good, better)
        await publisher.publish([to(queue)])


async def test_one_message_under_way_twice_is_judged_twice(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()
    good = to(queue)
    lost = Outgoing(good.message, routing_key="ecotone_nowhere", headers=good.headers)

    async with publishing(lean=lean_or_not) as publisher:
        results = await asyncio.gather(
            *(publisher.publish([one]) for one in (good, lost, good)), return_exceptions=True
        )

    assert [type(result) for result in results] == [type(None), SendError, type(None)]
    assert len(await received(queue)) == 2


async def test_what_a_full_queue_rejects_is_named(declare: Declare, lean_or_not: bool) -> None:
    full, queue = await declare(x_max_length=1, x_overflow="reject-publish"), await declare()

    async with publishing(lean=lean_or_not) as publisher:
        await publisher.publish([to(full)])
        rejected = to(full)
        with pytest.raises(SendError, match="not taken") as caught:
            await publisher.publish([to(queue), rejected, to(queue)])

    assert list(caught.value.failed) == ids(rejected)
    assert len(await received(queue)) == 2


@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"n" * 256: "value"}},
        {"headers": {"name": "v" * 200_000}},
        {"expiration": -1.0},
        {"priority": 256},
        {"routing_key": "k" * 256},
    ],
    ids=["long name", "large headers", "negative expiration", "priority", "long routing key"],
)
async def test_what_cannot_be_written_disturbs_nothing_else(
    declare: Declare, lean_or_not: bool, more: dict[str, Any]
) -> None:
    queue = await declare()
    bad = to(queue, **more)

    async with publishing(lean=lean_or_not) as publisher:
        with pytest.raises(SendError, match="cannot be written") as caught:
            await publisher.publish([to(queue), bad, to(queue)])

    assert list(caught.value.failed) == ids(bad)
    assert len(await received(queue)) == 2


async def test_an_error_names_the_first_of_many() -> None:
    async with publishing() as publisher:
        with pytest.raises(SendError, match=r"25 of 25 .* and 15 more") as caught:
            await publisher.publish([to("ecotone_nowhere") for _ in range(25)])

    assert len(caught.value.failed) == 25


async def test_an_exchange_that_does_not_exist_is_told_and_publishing_goes_on(
    declare: Declare, lean_or_not: bool
) -> None:
    queue = await declare()

    async with publishing(lean=lean_or_not) as publisher:
        with pytest.raises(ChannelError, match="no exchange 'ecotone_nowhere'"):
            await publisher.publish([to(queue, exchange="ecotone_nowhere")])
        await publisher.publish([to(queue)])

    assert len(await received(queue)) == 1


# --------------------------------------------------------------------------------------------------------- many callers


async def test_callers_at_the_same_time_share_one_write(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = await declare()
    writes: list[int] = []

    async with publishing() as publisher:
        assert publisher._session is not None
        socket = publisher._session.wire.writer
        write = socket.write
        monkeypatch.setattr(socket, "write", lambda data: (writes.append(len(data)), write(data)))
        await asyncio.gather(*(publisher.publish([to(queue)]) for _ in range(40)))
        assert len(writes) == 1

    assert len(await received(queue)) == 40


async def test_callers_are_told_of_their_own_messages_only(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    async with publishing(lean=lean_or_not) as publisher:
        results = await asyncio.gather(
            *(publisher.publish([to(queue), to(queue if number % 2 else "ecotone_nowhere")]) for number in range(10)),
            return_exceptions=True,
        )

    assert [type(result) for result in results] == [SendError, type(None)] * 5
    assert len(await received(queue)) == 15


async def test_a_caller_that_is_cancelled_disturbs_no_other(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    async with publishing(lean=lean_or_not, window=100) as publisher:
        session = publisher._session
        assert session is not None
        lost, wanted = [to("ecotone_nowhere") for _ in range(400)], [to(queue) for _ in range(400)]
        impatient, patient = (asyncio.create_task(publisher.publish(batch)) for batch in (lost, wanted))
        await until(lambda: session._under_way)
        impatient.cancel()
        await patient
        await publisher.publish([to(queue)])

        assert impatient.cancelled()
        assert publisher._session is session
        assert session._under_way == 0
    assert len(await received(queue)) == 401


async def test_a_caller_that_is_cancelled_too_late_has_sent_its_message(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    async with publishing(lean=lean_or_not) as publisher:
        session = publisher._session
        assert session is not None
        impatient = asyncio.create_task(publisher.publish([to(queue)]))
        await until(lambda: session._under_way)
        impatient.cancel()
        await publisher.publish([to(queue)])

    assert len(await received(queue)) == 2


async def test_callers_that_are_cancelled_before_their_turn_send_nothing(declare: Declare) -> None:
    queue = await declare()

    async with publishing() as publisher:
        batches = [[to(queue, b"%d" % number)] for number in range(4)]
        callers = [asyncio.create_task(publisher.publish(batch)) for batch in batches]
        await asyncio.sleep(0)  # they have begun, and nothing is written yet
        callers[0].cancel()
        callers[2].cancel()
        await asyncio.wait(callers)

    assert [message.body for message in await received(queue)] == [b"1", b"3"]


async def test_no_more_is_under_way_than_the_window_allows(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = await declare()
    seen = []

    async with publishing(window=7) as publisher:
        session = publisher._session
        assert session is not None
        write = session._pen.write
        monkeypatch.setattr(
            session._pen, "write", lambda *arguments: (seen.append(session._under_way), write(*arguments))
        )
        await asyncio.gather(*(publisher.publish([to(queue) for _ in range(50)]) for _ in range(3)))

    assert max(seen) == 7
    assert len(await received(queue)) == 150


# ------------------------------------------------------------------------------------------------- a network that fails


async def test_a_connection_that_breaks_in_a_window_ends_all_calls_at_once(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    async with through_a_network(lean=lean_or_not, timeout=60.0) as (publisher, network):
        await publisher.publish([to(queue)])
        network.drop_answers()
        network.cut_after(100_000)
        started = time.monotonic()
        results = await asyncio.gather(
            *(publisher.publish([to(queue, bytes(500)) for _ in range(200)]) for _ in range(3)),
            return_exceptions=True,
        )

        assert time.monotonic() - started < 30
        assert OutcomeUnknownError in {type(result) for result in results} <= {OutcomeUnknownError, ChannelError}
        assert "the connection to RabbitMQ was lost" in str(results[0])
        assert "may have arrived" in str(results[0])
        network.restore()
        await publisher.publish([to(queue, b"afterwards")])
    bodies = [message.body for message in await received(queue)]
    assert bodies[-1] == b"afterwards"
    assert 2 < len(bodies) < 602


async def test_a_confirm_that_is_lost_is_told_as_unknown(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    async with through_a_network(lean=lean_or_not, timeout=60.0) as (publisher, network):
        network.drop_answers()
        publishing_one = asyncio.create_task(publisher.publish([to(queue)]))
        async with asyncio.timeout(60):
            while await queue.get(no_ack=True, fail=False) is None:
                assert not publishing_one.done()
        network.cut()
        with pytest.raises(
            OutcomeUnknownError, match="1 of 1 messages were sent without a confirm and may have ar"
        ) as told:
            await publishing_one
        assert told.value.messages == 1


async def test_a_server_that_falls_silent_ends_calls_in_time_and_is_left(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    async with through_a_network(lean=lean_or_not) as (publisher, network):
        await publisher.publish([to(queue)])
        network.freeze()
        started = time.monotonic()
        with in_a_hurry(publisher):
            with pytest.raises(ChannelError, match=r"confirmed none of them for 1 seconds; 1 of 1 .* may have arrived"):
                await publisher.publish([to(queue)])
            with pytest.raises(ChannelError, match=r"nothing was sent|no answer in time"):
                await publisher.publish([to(queue)])

        assert PATIENCE <= time.monotonic() - started < 20 * PATIENCE
        network.restore()
        await publish_until_it_works(publisher, to(queue, b"afterwards"))
    assert (await received(queue))[-1].body == b"afterwards"


async def test_a_large_batch_in_a_frozen_network_is_told_in_parts() -> None:
    async with through_a_network(window=100) as (publisher, network):
        network.freeze()
        with (
            in_a_hurry(publisher),
            pytest.raises(ChannelError, match=r"100 of 300 messages .* may have arrived, 200 were not sent"),
        ):
            await publisher.publish([to("ecotone_nowhere") for _ in range(300)])


async def test_a_server_that_is_down_is_told_and_found_again(
    declare: Declare, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await declare()

    async with through_a_network() as (publisher, network):
        network.refuse()
        await until(lambda: not publisher.connected)
        for _ in range(2):
            with in_a_hurry(publisher), pytest.raises(ChannelError, match="cannot be reached"):
                await publisher.publish([to(queue)])
        network.restore()
        await publish_until_it_works(publisher, to(queue))
        assert publisher.connected

    ours = [record.getMessage() for record in caplog.records if record.name.endswith("rabbitmq.publishing")]
    assert len(ours) == 3, ours
    assert "guest:guest" not in "".join(ours)
    assert len(await received(queue)) >= 1


async def test_a_server_that_blocks_for_lack_of_memory_is_told_as_that(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()

    blocked = r"blocked the connection for lack of memory or disk.*nothing was sent"

    async with through_a_network(lean=lean_or_not) as (publisher, network):
        await publisher.publish([to(queue)])
        session = publisher._session
        say(network, commands.Connection.Blocked(reason="low on memory"))
        await until(lambda: publisher.blocked)
        with in_a_hurry(publisher), pytest.raises(ChannelError, match=blocked):
            await publisher.publish([to(queue, b"too early")])

        waiting = asyncio.create_task(publisher.publish([to(queue, b"patient")]))
        await asyncio.sleep(0)
        say(network, commands.Connection.Unblocked())
        await waiting
        await publisher.publish([to(queue)])

        assert publisher._session is session
        assert not publisher.blocked
    assert [message.body for message in await received(queue)] == [b"hello", b"patient", b"hello"]


async def test_a_server_that_blocks_when_messages_are_under_way_is_not_left(declare: Declare) -> None:
    queue = await declare()

    async with through_a_network() as (publisher, network):
        session = publisher._session
        network.drop_answers()
        with in_a_hurry(publisher):
            publishing_one = asyncio.create_task(publisher.publish([to(queue)]))
            await asyncio.sleep(0)
            say(network, commands.Connection.Blocked(reason="low on memory"))
            with pytest.raises(ChannelError, match=r"blocked the connection .* may have arrived"):
                await publishing_one
        assert publisher._session is session
        assert publisher.connected


def say(network: TcpProxy, method: Any) -> None:
    """Let the server say something that it would not say by itself."""
    for client, _ in network._pairs.values():
        client.write(marshal(method, 0))


# -------------------------------------------------------------------------------------------------- opening and closing


async def test_a_server_that_cannot_be_reached_is_told_without_the_password() -> None:
    publisher = Publisher("amqp://guest:secret@127.0.0.1:1/", timeout=PATIENCE)

    with pytest.raises(ChannelError, match=r"127.0.0.1:1/\S* cannot be reached") as caught:
        await publisher.open()

    assert "secret" not in str(caught.value)
    await publisher.close()


async def test_a_server_that_does_not_answer_is_left_in_time() -> None:
    async with tcp_proxy(5672) as network:
        network.freeze()
        with pytest.raises(ChannelError, match="no answer in time"):
            await Publisher(f"amqp://guest:guest@127.0.0.1:{network.port}/", timeout=PATIENCE).open()


async def test_a_connection_that_breaks_while_it_is_opened_is_told_wherever_that_is() -> None:
    async with tcp_proxy(5672) as network:
        publisher = Publisher(f"amqp://guest:guest@127.0.0.1:{network.port}/", timeout=30.0)
        refused = 0
        for sent in range(1, 800, 31):
            network.cut_after(sent)
            try:
                await publisher.open()
            except ChannelError:
                refused += 1
            await publisher.close()
            network.restore()

        assert refused > 10


async def test_a_publisher_that_cannot_be_opened_may_be_cancelled() -> None:
    async with tcp_proxy(5672) as network:
        network.freeze()
        publisher = Publisher(f"amqp://guest:guest@127.0.0.1:{network.port}/")
        opening = asyncio.create_task(publisher.open())
        await until(lambda: network.connections)
        opening.cancel()
        await asyncio.wait((opening,))

        assert opening.cancelled()
        network.restore()
        await publisher.open()
        await publisher.close()


async def test_a_wrong_password_is_told(lean_or_not: bool) -> None:
    with pytest.raises(ChannelError, match=r"ACCESS_REFUSED|cannot be reached"):
        await Publisher(URL.replace("guest:guest", "guest:wrong"), lean=lean_or_not).open()


async def test_a_publisher_that_is_not_open_says_so(declare: Declare) -> None:
    queue = await declare()
    publisher = Publisher(URL)

    with pytest.raises(ChannelError, match="not open"):
        await publisher.publish([to(queue)])
    await publisher.open()
    await publisher.open()
    await publisher.publish([to(queue)])
    await publisher.close()
    await publisher.close()
    with pytest.raises(ChannelError, match="not open"):
        await publisher.publish([to(queue)])
    await publisher.open()
    await publisher.publish([to(queue)])
    await publisher.close()

    assert len(await received(queue)) == 2


async def test_what_is_under_way_is_confirmed_before_a_publisher_closes(declare: Declare, lean_or_not: bool) -> None:
    queue = await declare()
    publisher = Publisher(URL, lean=lean_or_not)
    await publisher.open()

    batch = [to(queue) for _ in range(60)]
    under_way = asyncio.create_task(publisher.publish(batch))
    await asyncio.sleep(0)
    await publisher.close()
    await under_way

    assert len(await received(queue)) == 60


async def test_a_publisher_closes_in_time_whatever_the_server_does(lean_or_not: bool) -> None:
    async with through_a_network(lean=lean_or_not) as (publisher, network):
        network.freeze()
        under_way = asyncio.create_task(publisher.publish([to("ecotone_nowhere")]))
        await asyncio.sleep(0)
        started = time.monotonic()
        with in_a_hurry(publisher):
            await publisher.close()

        assert time.monotonic() - started < 20 * PATIENCE
        with pytest.raises(ChannelError, match="may have arrived"):
            await under_way


async def test_a_publisher_closes_while_the_server_takes_nothing() -> None:
    async with through_a_network() as (publisher, network):
        say(network, commands.Connection.Blocked(reason="low on memory"))
        await until(lambda: publisher.blocked)
        waiting = asyncio.create_task(publisher.publish([to("ecotone_nowhere")]))
        await asyncio.sleep(0)
        with in_a_hurry(publisher):
            await publisher.close()
        with pytest.raises(ChannelError, match="nothing was sent"):
            await waiting


async def test_a_session_that_was_lost_takes_nothing_more() -> None:
    async with publishing() as publisher:
        session = publisher._session
        assert session is not None
        loop = asyncio.get_running_loop()
        early, late = (Batch([to("ecotone_nowhere")], loop, loop.time()) for _ in range(2))
        session.submit(early)
        session.lose("the test wants it")
        session.submit(late)

        for batch in (early, late):
            with pytest.raises(ChannelError, match=r"was lost.*nothing was sent"):
                await batch.done


async def test_a_socket_that_the_driver_has_ended_ends_the_call_at_once() -> None:
    async with publishing() as publisher:
        session = publisher._session
        assert session is not None
        session.wire.writer.write_eof()

        with pytest.raises(ChannelError, match=r"was lost \(Cannot call write\(\) after write_eof\(\)\)"):
            await publisher.publish([to("ecotone_nowhere")])


async def test_a_publisher_closes_while_the_server_is_down() -> None:
    async with through_a_network() as (publisher, network):
        network.refuse()
        await until(lambda: not publisher.connected)
        waiting = asyncio.create_task(publisher.publish([to("ecotone_nowhere")]))
        await asyncio.sleep(0)
        await publisher.close()
        with pytest.raises(ChannelError):
            await waiting


# --------------------------------------------------------------------------------------------------------- the lean way


async def test_the_lean_way_is_taken_with_the_installed_driver() -> None:
    """When this fails, aiormq has changed: look at `lean.py`, and at `TESTED` in it."""
    async with publishing() as publisher:
        assert publisher._session is not None
        assert isinstance(publisher._session._pen, LeanPen)


async def test_a_driver_that_was_not_tested_is_used_as_it_documents(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await declare()
    monkeypatch.setattr(lean, "TESTED", ((99, 0), (99, 1)))

    with caplog.at_level(logging.WARNING):
        async with publishing() as publisher:
            assert publisher._session is not None
            assert isinstance(publisher._session._pen, PlainPen)
            await publisher.publish([to(queue)])

    assert "not among the tested versions, 99.0 up to, without, 99.1" in caplog.text
    assert len(await received(queue)) == 1


def channel_of_the_driver() -> Any:
    class Channel:
        number = 1
        delivery_tag = 0
        confirmations: ClassVar[dict[int, Any]] = {}
        message_id_delivery_tag: ClassVar[dict[str, int]] = {}

    return Channel


def test_a_driver_is_fit_when_it_has_all_that_is_used() -> None:
    assert lean.unfit(channel_of_the_driver()(), "7.2.4") is None


@pytest.mark.parametrize("name", list(lean.USED))
def test_a_driver_that_lacks_something_is_not_fit(name: str) -> None:
    channel = channel_of_the_driver()
    delattr(channel, name)

    assert f"has no {name!r}" in str(lean.unfit(channel(), "7.2.4"))


@pytest.mark.parametrize("installed", ["7.1.9", "7.3.0", "8.0", "nightly"])
def test_a_driver_of_another_version_is_not_fit(installed: str) -> None:
    assert installed in str(lean.unfit(channel_of_the_driver()(), installed))


# ----------------------------------------------------------------------------------------------------------- the frames


short_text = st.text(max_size=20)


@given(
    headers=st.dictionaries(short_text, st.text(max_size=300), max_size=5),
    content_type=st.none() | short_text,
    priority=st.none() | st.integers(0, 255),
    expiration=st.none() | st.integers(0, 10**9).map(str),
    message_id=st.text(min_size=1, max_size=20),
    size=st.integers(0, 10**9),
)
def test_the_header_frame_is_what_the_driver_would_write(
    *,
    headers: dict[str, str],
    content_type: str | None,
    priority: int | None,
    expiration: str | None,
    message_id: str,
    size: int,
) -> None:
    properties = {
        "headers": headers,
        "content_type": content_type,
        "priority": priority,
        "expiration": expiration,
        "message_id": message_id,
    }
    frame = frames.header(3, size, largest=131_072, **properties)  # type: ignore[arg-type]
    expected = marshal(
        ContentHeader(
            body_size=size,
            properties=commands.Basic.Properties(delivery_mode=2, **properties),  # type: ignore[arg-type]
        ),
        3,
    )

    length, channel, header = unmarshal(frame)
    assert (length, channel) == (len(frame), 3)
    assert isinstance(header, ContentHeader)
    assert header.body_size == size
    assert header.properties == unmarshal(expected)[2].properties  # type: ignore[union-attr]
    assert len(frame) == len(expected)


def test_headers_that_are_not_text_are_written_by_the_driver() -> None:
    headers: Any = {"text": "a", "number": 5, "nested": {"flag": True}}
    frame = frames.header(
        1, 0, headers=headers, content_type=None, priority=None, expiration=None, message_id="a", largest=1_000
    )

    header = unmarshal(frame)[2]
    assert isinstance(header, ContentHeader)
    assert header.properties.headers == headers


@pytest.mark.parametrize("value", ["v" * 1_000, 5 * ("v" * 200,)], ids=["text", "other"])
def test_headers_that_do_not_fit_into_a_frame_are_refused(value: Any) -> None:
    headers = {"name": value if isinstance(value, str) else list(value)}
    with pytest.raises(ValueError, match="the server takes 1000"):
        frames.header(
            1, 0, headers=headers, content_type=None, priority=None, expiration=None, message_id="a", largest=1_000
        )


@pytest.mark.parametrize("size", [0, 1, 92, 93, 184, 185])
def test_the_body_is_cut_into_frames_that_fit(size: int) -> None:
    payload = os.urandom(size)
    data, parts = frames.body(1, payload, 100), []

    while data:
        length, _, part = unmarshal(data)
        assert isinstance(part, ContentBody)
        assert length <= 100
        parts.append(part.value)
        data = data[length:]
    assert b"".join(parts) == payload
    assert len(parts) == -(-size // 92)
