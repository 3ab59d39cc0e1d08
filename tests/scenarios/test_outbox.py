"""The outbox on real databases and a real broker: with the transaction or not at all, in batches, and by itself."""

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import anyio
import pytest
from anyio.lowlevel import checkpoint
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    Backoff,
    Ecotone,
    EventBus,
    Failures,
    Outbox,
    asynchronous,
    command_handler,
    event_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Capabilities, Inspectable
from ecotone_fastapi.core.errors import ChannelError, SendError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.core.supervision import Pauses
from ecotone_fastapi.messaging.relay import RelaySettings
from ecotone_fastapi.testing.flow import Flow, flow_test
from tests.cli.processes import ecotone, eventually, run_ecotone
from tests.conftest import SERVERS, execute
from tests.databases import MARIADB, POSTGRESQL, SQLITE
from tests.servers import until

EVERY = pytest.mark.parametrize("kind", [SQLITE, POSTGRESQL, MARIADB])

EVERYTHING = Limits(until_empty=True)


@dataclass(frozen=True)
class Placed:
    number: int


class Orders:
    """Writes an order down, tells about it, and may fail after both."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.fails = 0

    @command_handler("place")
    async def place(self, number: int, session: AsyncSession, events: EventBus) -> None:
        await session.execute(text("INSERT INTO placed (number) VALUES (:number)"), {"number": number})
        await events.publish(Placed(number))
        if number < 0:
            raise OSError("a negative order")

    @asynchronous("orders")
    @event_handler(id="when-placed")
    async def when_placed(self, event: Placed) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError("not this time")
        self.seen.append(event.number)


class Broker(MemoryChannel):
    """A broker that several applications share, and that can be away."""

    def __init__(self, name: str = "orders") -> None:
        super().__init__(name)
        self.capabilities: Capabilities = replace(self.capabilities, durable=True)
        self.delivery = "outbox"
        self.away = False
        self.refused: set[str] = set()
        self.taken: list[str] = []

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        if self.away:
            raise ChannelError("the broker is away")
        taken = [message for message in messages if message.id not in self.refused]
        self.taken += [message.id for message in taken]
        await super().send(taken)
        if len(taken) < len(messages):
            raise SendError("refused", failed=sorted(self.refused))


def database(url: str) -> SqlAlchemy:
    return SqlAlchemy(url, create_schema=True)


@asynccontextmanager
async def application(url: str, *channels: Any, orders: Orders | None = None, **settings: Any) -> AsyncIterator[Flow]:
    plugins = [
        database(url),
        Failures(Backoff(first=0.0, longest=0.0)),
        Outbox(settings=RelaySettings(unreachable=Pauses(first=0.0, longest=0.0), **settings)),
    ]
    async with flow_test([orders or Orders()], channels=channels, plugins=plugins) as flow:
        yield flow


@pytest.fixture
def written(url: str) -> str:
    execute(url, "CREATE TABLE placed (number INTEGER)")
    return url


def messages(count: int) -> list[Message[bytes]]:
    return [Message(b"%d" % number, {HeaderName.id: str(number)}) for number in range(count)]


async def depth(flow: Flow, channel: str = "outbox/orders") -> int:
    found: Any = flow.ecotone.assembly.channels[channel]
    depth: int = await found.depth()
    return depth


@contextmanager
def statements(flow: Flow) -> Iterator[list[str]]:
    """Collect the statements that the database is asked to run."""
    seen: list[str] = []
    found: Any = flow.ecotone.assembly.services[SqlAlchemy]
    engine = found.engine.sync_engine

    def note(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        # Other processes are told together, whatever the number of messages; which consumers pause is looked up every
        # few seconds, whatever else is done.
        if not statement.startswith(("BEGIN", "COMMIT", "SELECT pg_notify")) and "paused_at" not in statement:
            seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


# ---------------------------------------------------------------------------------------------- with the transaction


@EVERY
async def test_a_message_is_stored_with_the_order_and_handled_behind_the_broker(written: str) -> None:
    orders, broker = Orders(), Broker()
    async with application(written, broker, orders=orders) as flow:
        await flow.send(1, to="place")
        assert (broker.taken, await depth(flow)) == ([], 1)

        assert [await flow.run(name) for name in ("outbox", "orders")] == [1, 1]

        assert orders.seen == [1]
        assert await depth(flow) == 0


@EVERY
async def test_of_an_order_that_is_rolled_back_nothing_is_stored_and_nothing_sent(written: str) -> None:
    broker = Broker()
    async with application(written, broker) as flow:
        with pytest.raises(OSError, match="negative"):
            await flow.send(-1, to="place")

        assert await depth(flow) == 0
        assert await flow.run("outbox") == 0
    assert broker.taken == []


@EVERY
async def test_what_a_handler_writes_and_sends_to_a_broker_costs_one_more_statement(written: str) -> None:
    async with application(written, Broker()) as flow:
        await flow.send(1, to="place")
        with statements(flow) as seen:
            await flow.send(2, to="place")

    assert len(seen) == 2, seen


# -------------------------------------------------------------------------------------------------------- in batches


@EVERY
async def test_a_batch_costs_one_claim_and_one_delete(url: str, kind: str) -> None:
    broker = Broker()
    async with application(url, broker) as flow:
        await flow.ecotone.assembly.gateway.transmit("orders", messages(2500))
        with statements(flow) as seen:
            assert await flow.run("outbox") == 2500

    def count(words: str) -> int:
        return sum(words in statement for statement in seen)

    deletes = count("DELETE FROM")
    claims = count("lease_token = :token") or count("SKIP LOCKED") or count("SET available_at")
    assert deletes == 3, seen
    assert claims == 4, seen  # the last one finds nothing
    assert len(seen) <= 3 + 4 + (3 if kind == "mariadb" else 0), seen  # there a claim that finds something is two


@EVERY
async def test_ten_thousand_messages_leave_in_their_order_and_each_once(url: str) -> None:
    broker = Broker()
    async with application(url, broker) as flow:
        await flow.ecotone.assembly.gateway.transmit("orders", messages(10_000))
        assert await flow.ecotone.run("outbox", EVERYTHING) == 10_000
        assert await depth(flow) == 0

    assert broker.taken == [str(number) for number in range(10_000)]


@EVERY
async def test_relays_in_several_applications_send_nothing_twice(url: str) -> None:
    broker = Broker()
    async with application(url, broker, batch=50) as one, application(url, broker, batch=50) as other:
        await one.ecotone.assembly.gateway.transmit("orders", messages(2000))
        sent: list[int] = []

        async def relay(flow: Flow) -> None:
            sent.append(await flow.ecotone.run("outbox", EVERYTHING))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay, one)
            tasks.start_soon(relay, other)
        assert await depth(one) == 0

    assert sum(sent) == 2000
    assert sorted(map(int, broker.taken)) == list(range(2000))


class Capricious(Broker):
    """A broker for which order matters: it refuses by chance, or is lost when it has taken a part."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, keeps_order=True)
        self.chance = random.Random(7)

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await checkpoint()
        mood = self.chance.random()
        self.refused = {message.id for message in messages if mood < 0.3 and self.chance.random() < 0.5}
        if mood > 0.9:
            await super().send([one for one in messages[: len(messages) // 2] if one.id not in self.refused])
            raise ChannelError("the broker was lost")
        await super().send(messages)


@EVERY
async def test_several_relays_keep_each_key_in_order_whatever_a_broker_refuses(url: str) -> None:
    broker, at_once = Capricious(), Pauses(first=0.0, longest=0.0)
    sent = [
        Message(b"", {HeaderName.id: f"{key}{place:02}", "partition_key": key}) for place in range(30) for key in "abcd"
    ]
    stop = anyio.Event()
    async with (
        application(url, broker, batch=50, refused=at_once) as one,
        application(url, broker, batch=50, refused=at_once) as other,
        anyio.create_task_group() as tasks,
    ):
        await one.ecotone.assembly.gateway.transmit("orders", sent)
        for flow in (one, other):
            tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        with anyio.fail_after(60):
            while await depth(one):
                await anyio.wait_all_tasks_blocked()
        stop.set()

    for key in "abcd":
        arrived = list(dict.fromkeys(name for name in broker.taken if name.startswith(key)))
        assert arrived == [f"{key}{place:02}" for place in range(30)]


@EVERY
async def test_only_what_was_refused_stays(url: str) -> None:
    broker = Broker()
    broker.refused = {"1"}
    async with application(url, broker) as flow:
        await flow.ecotone.assembly.gateway.transmit("orders", messages(3))

        assert await flow.run("outbox") == 2
        [waiting] = await flow.waiting("outbox/orders")

    assert (waiting.id, waiting.headers["attempt"]) == ("1", "1")


@EVERY
async def test_a_broker_that_is_away_costs_nothing_but_time(url: str) -> None:
    broker = Broker()
    broker.away = True
    stop = anyio.Event()
    async with application(url, broker) as flow, anyio.create_task_group() as tasks:
        await flow.ecotone.assembly.gateway.transmit("orders", messages(20))
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        [first, *_] = await flow.waiting("outbox/orders") or [None]
        broker.away = False
        await until(lambda: len(broker.taken) == 20)
        stop.set()

    assert first is None or "attempt" not in first.headers
    assert broker.taken == [str(number) for number in range(20)]


@EVERY
async def test_what_a_broker_cannot_take_is_parked_in_one_transaction(url: str) -> None:
    class Small(Broker):
        async def send(self, messages: Sequence[Message[bytes]]) -> None:
            if any(message.payload == b"1" for message in messages):
                raise ValueError("too large")
            await super().send(messages)

    broker = Small()
    async with application(url, broker, retries=0) as flow:
        await flow.ecotone.assembly.gateway.transmit("orders", messages(3))
        assert await flow.run("outbox") == 2
        [parked] = await flow.dead_letters()
        assert await depth(flow) == 0

    assert (parked.channel, parked.message.id, parked.error_message) == ("orders", "1", "too large")


@EVERY
async def test_messages_for_a_channel_that_is_gone_stay_and_are_found(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with application(url, Broker("former"), Broker()) as flow:
        await flow.ecotone.assembly.gateway.transmit("former", messages(1))

    async with application(url, Broker()) as flow, anyio.create_task_group() as tasks:
        stop = anyio.Event()
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        await until(lambda: "the outbox holds messages for the channel former" in caplog.text)
        stop.set()

    async with application(url, Broker("former"), Broker()) as flow:
        assert await flow.run("outbox") == 1


# -------------------------------------------------------------------------------------------------------- killed


MODULE = '''
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import Ecotone, EventBus, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Capabilities

here = Path(__file__).parent
database = SqlAlchemy((here / "url").read_text(), create_schema=True)


class Broker:
    """A broker whose queue is a file. What is written there is confirmed."""

    name = "orders"
    delivery = "outbox"
    capabilities = Capabilities(durable=True)

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def send(self, messages) -> None:
        with (here / "queue").open("a") as queue:
            queue.writelines(f"{message.id} {message.payload.decode()}\\n" for message in messages)
        if os.environ.get("KILLED") == "after the confirmation":
            os.kill(os.getpid(), signal.SIGKILL)

    async def receive(self, limit, timeout):
        await anyio.sleep(timeout)
        return ()


@dataclass(frozen=True)
class Placed:
    number: int


class Orders:
    @command_handler("place")
    async def place(self, number: int, session: AsyncSession, events: EventBus) -> None:
        await session.execute(text("INSERT INTO placed (number) VALUES (:number)"), {"number": number})
        await events.publish(Placed(number))
        if os.environ.get("KILLED") == "before the commit":
            os.kill(os.getpid(), signal.SIGKILL)

    @asynchronous("orders")
    @event_handler(id="when-placed")
    async def when_placed(self, event: Placed) -> None: ...


# The lease is that of a relay which is killed.
original = database.outbox_for
database.outbox_for = lambda channel, **_: database.channel(original(channel).name, lease=1.0)
ecotone = Ecotone([Orders], channels=[Broker()], plugins=[database])


async def place(*numbers: int) -> None:
    async with ecotone.running(consumers=False):
        for number in numbers:
            await ecotone.command_bus.send(number, to="place")
            if os.environ.get("KILLED") == "after the commit":
                os.kill(os.getpid(), signal.SIGKILL)
'''


class Shop:
    """An application of processes that are killed."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        (directory / "orders.py").write_text(MODULE)
        (directory / "url").write_text(url)
        execute(url, "CREATE TABLE placed (number INTEGER)")

    def place(self, number: int, *, killed: str = "") -> int:
        run = subprocess.run(
            [sys.executable, "-c", f"import asyncio, orders; asyncio.run(orders.place({number}))"],
            cwd=self.directory,
            env={"KILLED": killed},
            check=False,
            timeout=200,
        )
        return run.returncode

    @property
    def queue(self) -> list[str]:
        path = self.directory / "queue"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def ids(self) -> list[str]:
        return [line.split()[0] for line in self.queue]


@pytest.fixture
def shop(url: str, tmp_path: Path) -> Shop:
    return Shop(tmp_path, url)


ON_DISK = pytest.mark.parametrize("kind", [SQLITE, POSTGRESQL])
RELAY = ("run", "orders:ecotone", "outbox")


@ON_DISK
def test_what_was_committed_by_a_process_that_was_killed_is_sent_by_another_one(shop: Shop) -> None:
    assert shop.place(1, killed="after the commit") == -signal.SIGKILL
    assert shop.queue == []

    run_ecotone(*RELAY, "--until-empty", cwd=shop.directory)

    assert [line.split()[1] for line in shop.queue] == ['{"number":1}']


@ON_DISK
def test_what_was_not_committed_by_a_process_that_was_killed_is_never_sent(shop: Shop) -> None:
    assert shop.place(1, killed="before the commit") == -signal.SIGKILL
    assert shop.place(2) == 0

    run_ecotone(*RELAY, "--until-empty", cwd=shop.directory)

    assert [line.split()[1] for line in shop.queue] == ['{"number":2}']


@ON_DISK
def test_what_a_relay_had_confirmed_when_it_was_killed_is_sent_again_with_the_same_id(shop: Shop) -> None:
    assert shop.place(1) == 0
    with ecotone(*RELAY, cwd=shop.directory, env={"KILLED": "after the confirmation"}) as process:
        assert process.ends() == -signal.SIGKILL

    run_ecotone(*RELAY, "--messages", "1", cwd=shop.directory)

    assert len(shop.ids) == 2
    assert len(set(shop.ids)) == 1


@ON_DISK
def test_a_relay_in_a_process_of_its_own_sends_what_others_commit_without_being_asked(shop: Shop) -> None:
    with ecotone(*RELAY, cwd=shop.directory) as process:
        process.says("running outbox")
        assert shop.place(1) == 0
        eventually(lambda: len(shop.queue) == 1, "the first message")
        assert shop.place(2) == 0
        eventually(lambda: len(shop.queue) == 2, "the second message")
        process.send(signal.SIGTERM)
        assert process.ends() == 0


# ------------------------------------------------------------------------------------------------------ with RabbitMQ


@pytest.fixture
async def rabbit() -> AsyncIterator[RabbitMQChannel]:
    url, queue = SERVERS["rabbitmq"].url, f"outbox-test-{uuid4().hex[:8]}"
    yield RabbitMQChannel("orders", url, queue=queue)
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.queue_delete(queue)


RABBITMQ = pytest.mark.rabbitmq


@EVERY
@RABBITMQ
async def test_an_order_comes_through_the_outbox_and_rabbitmq_to_its_handler(
    written: str, rabbit: RabbitMQChannel
) -> None:
    orders = Orders()
    async with application(written, rabbit, orders=orders) as flow:
        await flow.send(1, to="place")
        with pytest.raises(OSError, match="negative"):
            await flow.send(-1, to="place")
        assert await flow.run("outbox") == 1
        assert await flow.run("orders", Limits(messages=1, seconds=10)) == 1

    assert orders.seen == [1]


@EVERY
@RABBITMQ
async def test_a_delayed_retry_of_rabbitmq_waits_in_the_outbox(written: str, rabbit: RabbitMQChannel) -> None:
    orders = Orders()
    orders.fails = 1
    plugins = [database(written), Failures(Backoff(first=0.2, jitter=0.0))]
    ecotone = Ecotone([orders], channels=[rabbit], plugins=plugins)
    async with ecotone.running(consumers=["outbox", "orders"]):
        await ecotone.command_bus.send(1, to="place")
        await until(lambda: orders.seen)
    assert orders.seen == [1]
    async with ecotone.running(consumers=False):
        stored = ecotone.assembly.channels["outbox/orders"]
        assert isinstance(stored, Inspectable)
        assert await stored.depth() == 0


@pytest.mark.parametrize("kind", [POSTGRESQL])
@RABBITMQ
async def test_two_relays_bring_ten_thousand_messages_to_rabbitmq_and_each_once(
    url: str, rabbit: RabbitMQChannel
) -> None:
    async with application(url, rabbit) as one:
        other_rabbit = RabbitMQChannel("orders", rabbit.url, queue=rabbit._topology.queue)
        async with application(url, other_rabbit) as other:
            await one.ecotone.assembly.gateway.transmit("orders", messages(10_000))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.run, "outbox")
                tasks.start_soon(other.run, "outbox")
            assert await depth(one) == 0
            assert await depth(one, "orders") == 10_000
            seen: set[str] = set()
            while len(seen) < 10_000:
                deliveries = await rabbit.receive(1000, 5.0)
                assert deliveries
                new = {delivery.message.id for delivery in deliveries}
                assert not seen & new
                seen |= new
                await rabbit.ack_all(deliveries)


@EVERY
@RABBITMQ
async def test_what_is_too_large_for_rabbitmq_holds_up_nothing(url: str, rabbit: RabbitMQChannel) -> None:
    small = RabbitMQChannel("orders", rabbit.url, queue=rabbit._topology.queue, largest_body=100)
    async with application(url, small, retries=0) as flow:
        large = Message(b"x" * 101, {HeaderName.id: "large"})
        await flow.ecotone.assembly.gateway.transmit("orders", [*messages(5), large, *messages(5)])
        assert await flow.run("outbox") == 10
        [parked] = await flow.dead_letters()
        assert await depth(flow, "orders") == 10

    assert parked.message.id == "large"
