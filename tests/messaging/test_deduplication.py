"""What is sent or delivered twice is handled once: on every database, in memory, by id and by key."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import aio_pika
import anyio
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    Backoff,
    CommandBus,
    CommandBusDep,
    Deduplication,
    Ecotone,
    EventBus,
    Failures,
    asynchronous,
    command_handler,
    deduplicated,
    event_handler,
    query_handler,
    untransacted,
)
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDelivery, MemoryQueue
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Capabilities, Channel, Delivery
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.endpoint import Endpoint, Kind, discover
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, MissingServiceError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message, new_id
from ecotone_fastapi.core.pipeline import Order
from ecotone_fastapi.core.plugin import Assembly, Limits
from ecotone_fastapi.messaging.deduplication import DeduplicationStore
from ecotone_fastapi.testing.flow import Flow, flow_test
from tests.databases import ASYNCPG, MARIADB, PSYCOPG, SQLITE

EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])
EMBEDDED = pytest.mark.parametrize("kind", [SQLITE])

UNTIL_EMPTY = Limits(until_empty=True)


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    database = SqlAlchemy(url, create_schema=True)
    async with database.lifespan():
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE payment (id integer, amount integer)"))
        yield database


class Broker(MemoryChannel):
    """A channel that outlives its consumers and knows nothing of their database; its acks can get lost."""

    def __init__(self, name: str = "payments", *, queue: MemoryQueue | None = None) -> None:
        super().__init__(name, queue=queue)
        self.capabilities: Capabilities = replace(self.capabilities, durable=True)
        self.loses_acks = False

    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        deliveries = await super().receive(limit, timeout)
        if self.loses_acks:
            for delivery in deliveries:
                delivery.ack = self._lost  # type: ignore[method-assign]
        return deliveries

    async def _lost(self) -> None:
        raise ChannelError("the broker has gone")


@dataclass(frozen=True)
class Pay:
    payment: int
    amount: int = 10


@dataclass(frozen=True)
class Paid:
    payment: int


def message(payment: int = 1, **headers: str) -> Message[bytes]:
    """A message as somebody else has put it on a channel."""
    fixed = {"id": new_id(), "endpoint": "pay", "content_type": "application/json"}
    return Message(b'{"payment": %d}' % payment, {**fixed, **headers})


async def insert(session: AsyncSession, payment: int) -> None:
    await session.execute(text("INSERT INTO payment VALUES (:id, 1)"), {"id": payment})


async def payments(database: SqlAlchemy) -> list[int]:
    async with database.engine.connect() as connection:
        return list((await connection.execute(text("SELECT id FROM payment ORDER BY id"))).scalars())


async def records(database: SqlAlchemy) -> list[tuple[str, str]]:
    async with database.engine.connect() as connection:
        rows = await connection.execute(text("SELECT message_id, endpoint FROM ecotone_inbox ORDER BY 1, 2"))
        return [(row[0], row[1]) for row in rows]


@contextmanager
def statements(database: SqlAlchemy) -> Iterator[list[str]]:
    """Collect the statements that the database is asked to run, without those that begin and end transactions."""
    seen: list[str] = []

    def note(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        # Which consumers pause is looked up every few seconds, whatever else is done.
        if not statement.startswith(("BEGIN", "COMMIT")) and "paused_at" not in statement:
            seen.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)


@asynchronous("payments")
@command_handler(id="pay")
async def pay(command: Pay, session: AsyncSession) -> None:
    await insert(session, command.payment)


def started(
    *handlers: object, database: SqlAlchemy, channel: Channel | None = None, plugins: Sequence[Any] = ()
) -> Any:
    channels = [channel] if channel is not None else []
    return flow_test([*handlers], channels=channels, plugins=[database, *plugins])


# ------------------------------------------------------------------------------------------------ what brokers deliver


@EVERY
async def test_what_a_broker_delivers_twice_has_one_effect(database: SqlAlchemy) -> None:
    broker, twice = Broker(), message(1)

    async with started(pay, database=database, channel=broker) as flow:
        await broker.send([twice, message(2), twice])
        assert await flow.run("payments") == 3

        assert await payments(database) == [1, 2]
        assert await broker.depth() == 0
        assert [endpoint for _, endpoint in await records(database)] == ["pay", "pay"]


@EVERY
async def test_a_message_whose_ack_was_lost_after_the_commit_is_not_handled_again(
    database: SqlAlchemy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ecotone_fastapi.deduplication")
    broker = Broker()

    async with started(pay, database=database, channel=broker) as flow:
        await broker.send([message(1, id="order-1-paid")])
        broker.loses_acks = True
        await flow.run("payments")
        await broker.close()  # as a broker that takes back what it has lent to a lost connection
        broker.loses_acks = False
        assert await broker.depth() == 1

        await flow.run("payments")
        assert await payments(database) == [1]
        assert await broker.depth() == 0
        assert caplog.messages[-1] == "pay has handled order-1-paid before; skipped"


@EMBEDDED
async def test_a_duplicate_is_handled_twice_on_a_raw_channel(database: SqlAlchemy) -> None:
    raw, twice = MemoryChannel("payments"), message(1)

    async with started(pay, database=database, channel=raw) as flow:
        await raw.send([twice, twice])
        await flow.run("payments")

        assert await payments(database) == [1, 1]
        assert await records(database) == []


@EVERY
async def test_a_message_of_a_broker_costs_one_statement_more(database: SqlAlchemy) -> None:
    broker, raw = Broker(), MemoryChannel("payments")
    counts: list[int] = []

    for channel in (raw, broker):
        async with started(pay, database=database, channel=channel) as flow:
            await channel.send([message(number) for number in range(20)])
            with statements(database) as seen:
                assert await flow.run("payments") == 20
            counts.append(len(seen))

    assert counts == [20, 40]


@EVERY
async def test_what_is_in_the_database_of_the_handler_needs_no_record(database: SqlAlchemy) -> None:
    channel = database.channel("payments")

    async with started(pay, database=database, channel=channel) as flow:
        await channel.send([message(1)])
        with statements(database) as seen:
            await flow.run("payments")

        assert await payments(database) == [1]
        assert not any("ecotone_inbox" in statement for statement in seen)
        assert "inbox" not in flow.ecotone.assembly.runnables


@EVERY
async def test_two_consumers_with_the_same_message_have_one_effect(database: SqlAlchemy, url: str) -> None:
    assert await _two_at_once(database, url, first_fails=False) == ["first"]


@EVERY
async def test_when_the_first_of_two_consumers_rolls_back_the_second_one_handles(
    database: SqlAlchemy, url: str
) -> None:
    assert await _two_at_once(database, url, first_fails=True) == ["first", "second"]


async def _two_at_once(database: SqlAlchemy, url: str, *, first_fails: bool) -> list[str]:
    """Let two processes handle the same message at the same time; return who has run the handler."""
    ran: list[str] = []
    entered, decided = anyio.Event(), anyio.Event()
    one = message(1)

    def of(process: str) -> Callable[..., Any]:
        @asynchronous("payments")
        @command_handler(id="pay")
        async def pay(command: Pay, session: AsyncSession) -> None:
            ran.append(process)
            await insert(session, command.payment)
            if process == "first":
                entered.set()
                await decided.wait()
                if first_fails:
                    raise OSError("the bank is down")

        return pay

    first, second = Broker(), Broker()
    other = SqlAlchemy(url)
    patient = Failures(Backoff(first=3600.0))
    async with (
        started(of("first"), database=database, channel=first, plugins=[patient]) as slow,
        started(of("second"), database=other, channel=second) as quick,
    ):
        await first.send([one])
        await second.send([one])
        over = asyncio.Event()

        async def run_second() -> None:
            await entered.wait()
            assert await quick.run("payments") == 1
            over.set()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: slow.run("payments", raises=False))
                tasks.start_soon(run_second)
                await entered.wait()
                with anyio.move_on_after(0.2):
                    await over.wait()
                assert ran == ["first"]
                assert not over.is_set()
                decided.set()
        assert await payments(database) == [1]
        await slow.advance(timedelta(hours=2))
        await slow.run("payments", raises=False)
        assert await payments(database) == [1]
        assert await first.depth() == 0
    return ran


@EVERY
async def test_only_success_is_recorded_so_that_a_dead_letter_can_be_replayed(database: SqlAlchemy) -> None:
    broker, bank_is_down = Broker(), True

    @asynchronous("payments")
    @command_handler(id="pay")
    async def pay(command: Pay, session: AsyncSession) -> None:
        await insert(session, command.payment)
        if bank_is_down:
            raise OSError("the bank is down")

    once = Failures(Backoff(retries=0))
    async with started(pay, database=database, channel=broker, plugins=[once]) as flow:
        await broker.send([message(1)])
        await flow.run("payments", raises=False)
        [parked] = await flow.dead_letters()
        assert await payments(database) == []
        assert await records(database) == []

        bank_is_down = False
        await broker.send([parked.message])
        await broker.send([parked.message])
        await flow.run("payments")
        assert await payments(database) == [1]


@EMBEDDED
async def test_each_handler_of_an_event_has_a_record_of_its_own(database: SqlAlchemy) -> None:
    broker, heard = Broker(), list[str]()

    @asynchronous("payments")
    @event_handler(id="mail")
    async def mail(event: Paid) -> None:
        heard.append("mail")

    @asynchronous("payments")
    @event_handler(id="book")
    async def book(event: Paid) -> None:
        heard.append("book")

    async with started(mail, book, database=database, channel=broker) as flow:
        for endpoint in ("mail", "book", "mail", "book"):
            await broker.send([message(1, id="paid-1", endpoint=endpoint)])
        await flow.run("payments")

        assert sorted(heard) == ["book", "mail"]
        assert await records(database) == [("paid-1", "book"), ("paid-1", "mail")]


@EMBEDDED
async def test_a_message_without_id_is_handled_each_time_and_that_is_said_once(
    database: SqlAlchemy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ecotone_fastapi.deduplication")
    broker = Broker()
    foreign = message(1).without_headers(["id"])

    async with started(pay, database=database, channel=broker) as flow:
        await broker.send([foreign, foreign, foreign])
        await flow.run("payments")

        assert await payments(database) == [1, 1, 1]
        assert caplog.messages == ["pay gets messages that nothing tells apart; all of them are handled"]


@EMBEDDED
async def test_a_handler_without_transaction_gets_a_message_at_least_once(database: SqlAlchemy) -> None:
    broker, called = Broker(), list[int]()
    twice = message(1)

    @untransacted
    @asynchronous("payments")
    @command_handler(id="pay")
    async def call_the_bank(command: Pay) -> None:
        called.append(command.payment)

    async with started(call_the_bank, database=database, channel=broker) as flow:
        await broker.send([twice, twice])
        await flow.run("payments")

        assert called == [1, 1]
        assert await records(database) == []


@EVERY
async def test_a_marked_handler_without_transaction_is_recorded_after_it_has_succeeded(database: SqlAlchemy) -> None:
    broker, seen = Broker(), list[list[tuple[str, str]]]()
    twice, bank_is_down = message(1, id="one"), True

    @deduplicated
    @untransacted
    @asynchronous("payments")
    @command_handler(id="pay")
    async def call_the_bank(command: Pay) -> None:
        seen.append(await records(database))
        if bank_is_down:
            raise OSError("the bank is down")

    async with started(call_the_bank, database=database, channel=broker) as flow:
        await broker.send([twice, twice])
        await flow.run("payments", raises=False)
        bank_is_down = False
        await flow.advance(timedelta(hours=1))
        await flow.run("payments")

        assert seen == [[], [], []]
        assert await records(database) == [("one", "pay")]


@EMBEDDED
async def test_what_does_not_come_from_a_broker_is_not_recorded(database: SqlAlchemy) -> None:
    @command_handler
    async def place(command: Paid, session: AsyncSession) -> None:
        await insert(session, command.payment)

    async with started(pay, place, database=database, channel=Broker()) as flow:
        with statements(database) as seen:
            await flow.send(Paid(1), headers={"id": "one"})
            await flow.send(Paid(1), headers={"id": "one"})

        assert len(seen) == 2
        assert await payments(database) == [1, 1]


@EMBEDDED
async def test_the_inbox_can_be_switched_off(database: SqlAlchemy) -> None:
    broker, twice = Broker(), message(1)

    async with started(pay, database=database, channel=broker, plugins=[Deduplication(inbox=False)]) as flow:
        await broker.send([twice, twice])
        await flow.run("payments")

        assert await payments(database) == [1, 1]


@EMBEDDED
async def test_what_only_crosses_a_broker_is_recorded_behind_the_last_channel(database: SqlAlchemy) -> None:
    first, second, handled = Broker("first"), Broker("second"), list[int]()

    @asynchronous("first", "second")
    @command_handler(id="pay")
    async def pay_later(command: Pay) -> None:
        handled.append(command.payment)

    async with flow_test([pay_later], channels=[first, second], plugins=[database]) as flow:
        await first.send([message(1, id="one"), message(1, id="one")])
        await flow.run("first")
        assert await records(database) == []
        while await flow.ecotone.run("second", UNTIL_EMPTY):
            pass

        assert handled == [1]
        assert await records(database) == [("one", "pay")]


# --------------------------------------------------------------------------------------------- with outbox and RabbitMQ


class LosesConfirms(Broker):
    """A broker that takes what is sent and fails to say so, once."""

    delivery = "outbox"
    loses = True

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await super().send(messages)
        if self.loses:
            self.loses = False
            raise ChannelError("the connection broke before the confirmation")


@EVERY
async def test_what_the_outbox_publishes_twice_has_one_effect(database: SqlAlchemy) -> None:
    broker = LosesConfirms()

    async with started(pay, database=database, channel=broker) as flow:
        await flow.send(Pay(1))
        while await flow.waiting("outbox/payments"):
            with suppress(ChannelError):
                await flow.run("outbox", raises=False)
            await flow.advance(timedelta(minutes=5))
        assert await broker.depth() == 2
        await flow.run("payments")

        assert await payments(database) == [1]


class LosesAcks(RabbitMQChannel):
    """A consumer that dies between the commit of its handler and the ack."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        return [NeverAcked(delivery) for delivery in await super().receive(limit, timeout)]


class NeverAcked:
    """A delivery whose ack does not arrive."""

    def __init__(self, delivery: Delivery) -> None:
        self.message = delivery.message
        self.count = delivery.count
        self.settled = False
        self._delivery = delivery

    async def ack(self) -> None:
        raise ChannelError("the consumer was killed")

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        await self._delivery.nack(delay, attempted=attempted)


@pytest.mark.rabbitmq
@EVERY
async def test_what_rabbitmq_delivers_again_after_the_commit_has_one_effect(database: SqlAlchemy) -> None:
    name, server = f"deduplication-{new_id()}", os.environ.get("ECOTONE_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/")

    @asynchronous(name)
    @command_handler(id="pay")
    async def pay(command: Pay, session: AsyncSession) -> None:
        await insert(session, command.payment)

    twice = message(1)
    dies = LosesAcks(name, server, delivery="direct")
    async with started(pay, database=database, channel=dies) as flow:
        await dies.send([twice, twice, message(2)])
        assert await flow.ecotone.run(name, Limits(messages=3)) == 3
        assert await payments(database) == [1, 2]

    heir = RabbitMQChannel(name, server, delivery="direct")
    async with started(pay, database=database, channel=heir) as flow:
        assert await flow.ecotone.run(name, Limits(messages=3)) == 3
        assert await payments(database) == [1, 2]
        assert await heir.depth() == 0

    connection = await aio_pika.connect(server)
    async with connection, connection.channel() as channel:
        await channel.queue_delete(name)


# ---------------------------------------------------------------------------------------------- what a bus sends twice


@deduplicated(key="idempotency_key")
@command_handler(id="pay-now")
async def pay_now(command: Pay, session: AsyncSession) -> str:
    await insert(session, command.payment)
    return "paid"


@EVERY
async def test_a_command_with_the_same_key_is_handled_once_and_then_returns_nothing(database: SqlAlchemy) -> None:
    async with started(pay_now, database=database) as flow:
        results = [await flow.send(Pay(1), headers={"idempotency_key": key}) for key in ("a", "a", "b")]
        assert await flow.send(Pay(2)) == "paid"
        assert await flow.send(Pay(2), headers={"idempotency_key": ""}) == "paid"

        assert results == ["paid", None, "paid"]
        assert await payments(database) == [1, 1, 2, 2]


@EVERY
async def test_requests_with_the_same_key_at_the_same_time_have_one_effect(database: SqlAlchemy) -> None:
    ecotone = Ecotone([pay_now], plugins=[database])
    app = FastAPI()
    ecotone.install(app)

    @app.post("/payments/{payment}")
    async def post(payment: int, commands: CommandBusDep) -> object:
        return await commands.send(Pay(payment), headers={"idempotency_key": "k"})

    async with ecotone.running():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = await asyncio.gather(*(client.post("/payments/1") for _ in range(5)))

    assert sorted(str(answer.json()) for answer in answers) == ["None", "None", "None", "None", "paid"]
    assert await payments(database) == [1]


@EVERY
async def test_a_command_that_failed_may_be_sent_again(database: SqlAlchemy) -> None:
    bank_is_down = True

    @deduplicated(key=lambda command: command.payment)
    @command_handler
    async def pay(command: Pay, session: AsyncSession) -> str:
        await insert(session, command.payment)
        if bank_is_down:
            raise OSError("the bank is down")
        return "paid"

    async with started(pay, database=database) as flow:
        with pytest.raises(OSError, match="bank"):
            await flow.send(Pay(0))
        bank_is_down = False

        assert await flow.send(Pay(0)) == "paid"
        assert await flow.send(Pay(0, amount=99)) is None
        assert await payments(database) == [0]


@EMBEDDED
async def test_an_event_with_an_id_of_the_sender_is_handled_once(database: SqlAlchemy) -> None:
    heard: list[str] = []

    @deduplicated
    class Heard:
        @event_handler
        async def mail(self, event: Paid) -> None:
            heard.append("mail")

        @event_handler
        async def book(self, event: Paid) -> None:
            heard.append("book")

        @query_handler("heard")
        async def get_heard(self) -> list[str]:
            return heard

    async with started(Heard, database=database) as flow:
        for id_ in ("paid-1", "paid-1", "paid-2"):
            await flow.publish(Paid(1), headers={"id": id_})

        assert await flow.ask(to="heard") == ["mail", "book", "mail", "book"]
        assert len(await records(database)) == 4


@EVERY
async def test_a_marked_asynchronous_handler_is_deduplicated_on_a_channel_of_the_database_too(
    database: SqlAlchemy,
) -> None:
    channel = database.channel("payments")

    @deduplicated(key=lambda command: command.payment)
    @asynchronous("payments")
    @command_handler(id="pay")
    async def pay(command: Pay, session: AsyncSession) -> None:
        await insert(session, command.payment)

    async with started(pay, database=database, channel=channel) as flow:
        for number in (1, 2, 1):
            await flow.send(Pay(number))
        await flow.run("payments")

        assert await payments(database) == [1, 2]
        assert await records(database) == [("1", "pay"), ("2", "pay")]
        assert await channel.depth() == 0


@EMBEDDED
async def test_of_handlers_that_share_a_record_the_first_one_handles(database: SqlAlchemy) -> None:
    handled: list[str] = []

    @deduplicated(within="payments")
    @event_handler(priority=2)
    async def pay_by_card(event: Paid) -> None:
        handled.append("card")

    @deduplicated(within="payments")
    @event_handler(priority=1)
    async def pay_by_cheque(event: Paid) -> None:
        handled.append("cheque")

    async with started(pay_by_card, pay_by_cheque, database=database) as flow:
        await flow.publish(Paid(1))

        assert handled == ["card"]


@EMBEDDED
async def test_a_message_of_a_broker_without_the_key_is_told_by_its_id(database: SqlAlchemy) -> None:
    broker, handled = Broker(), list[int]()

    @deduplicated(key="request")
    @asynchronous("payments")
    @command_handler(id="pay")
    async def pay(command: Pay) -> None:
        handled.append(command.payment)

    async with started(pay, database=database, channel=broker) as flow:
        twice = message(1)
        await broker.send([twice, twice, message(2, request="a"), message(2, request="a")])
        await flow.run("payments")

        assert handled == [1, 2]


@EVERY
async def test_a_nested_handler_whose_failure_was_caught_has_handled_nothing(database: SqlAlchemy) -> None:
    fails, heard = True, list[int]()

    @deduplicated(key=lambda event: event.payment)
    @event_handler
    async def mail(event: Paid) -> None:
        if fails:
            raise OSError("no mail today")
        heard.append(event.payment)

    @command_handler
    async def place(command: Pay, events: EventBus, session: AsyncSession) -> None:
        await insert(session, command.payment)
        try:
            await events.publish(Paid(command.payment))
        except OSError:
            return

    async with started(mail, place, database=database) as flow:
        await flow.send(Pay(1))
        assert await payments(database) == [1]
        assert await records(database) == []
        fails = False
        await flow.send(Pay(1))
        await flow.send(Pay(1))

        assert heard == [1]


@EVERY
async def test_a_nested_handler_that_took_too_long_has_handled_nothing(database: SqlAlchemy) -> None:
    @deduplicated(key=lambda event: event.payment)
    @event_handler
    async def mail(event: Paid) -> None:
        limit.cancel()
        await anyio.sleep_forever()

    limit = anyio.CancelScope()

    @command_handler
    async def place(command: Pay, events: EventBus, session: AsyncSession) -> None:
        await insert(session, command.payment)
        with limit:
            await events.publish(Paid(command.payment))

    async with started(mail, place, database=database) as flow:
        await flow.send(Pay(1))

        assert await payments(database) == [1]
        assert await records(database) == []


@pytest.mark.parametrize("kind", [ASYNCPG, PSYCOPG])
async def test_the_failure_of_a_nested_handler_is_not_replaced_when_the_transaction_is_gone(
    database: SqlAlchemy,
) -> None:
    @deduplicated
    @event_handler
    async def mail(event: Paid, session: AsyncSession) -> None:
        await session.execute(text("SELECT nothing FROM nowhere"))

    @command_handler
    async def place(command: Pay, events: EventBus) -> None:
        await events.publish(Paid(command.payment))

    async with started(mail, place, database=database) as flow:
        with pytest.raises(Exception, match="nowhere"):
            await flow.send(Pay(1))

        assert await records(database) == []


# ------------------------------------------------------------------------------------------------------ a bus-wide key


@EMBEDDED
async def test_all_commands_of_a_bus_can_be_told_apart_by_a_header(database: SqlAlchemy) -> None:
    handled: list[str] = []

    @command_handler
    async def place(command: Pay, commands: CommandBus) -> str:
        handled.append("place")
        for _ in range(2):  # these inherit the header, and both are meant
            await commands.send(None, to="note")
        return "placed"

    @command_handler("note")
    async def note() -> None:
        handled.append("note")

    @event_handler
    async def mail(event: Paid) -> None:
        handled.append("mail")

    plugins = [Deduplication(commands="idempotency_key")]
    async with started(place, note, mail, database=database, plugins=plugins) as flow:
        key = {"idempotency_key": "k"}
        assert [await flow.send(Pay(1), headers=key) for _ in range(2)] == ["placed", None]
        assert handled == ["place", "note", "note"]
        await flow.publish(Paid(1), headers=key)
        await flow.publish(Paid(1), headers=key)
        await flow.send(Pay(1))

        assert handled == ["place", "note", "note", "mail", "mail", "place", "note", "note"]


# ----------------------------------------------------------------------------------------------------------- in memory


@pytest.fixture
async def in_memory() -> AsyncIterator[tuple[Flow, list[int], list[Exception]]]:
    async with _in_memory() as parts:
        yield parts


@asynccontextmanager
async def _in_memory() -> AsyncIterator[tuple[Flow, list[int], list[Exception]]]:
    handled: list[int] = []
    failures: list[Exception] = []

    @deduplicated(key=lambda command: command.payment)
    @command_handler
    async def pay(command: Pay) -> str:
        if failures:
            raise failures.pop()
        handled.append(command.payment)
        return "paid"

    async with flow_test([pay]) as flow:
        yield flow, handled, failures


async def test_without_a_database_it_is_remembered_in_memory(
    in_memory: tuple[Flow, list[int], list[Exception]],
) -> None:
    flow, handled, failures = in_memory
    failures.append(OSError("the bank is down"))

    with pytest.raises(OSError, match="bank"):
        await flow.send(Pay(1))
    assert [await flow.send(Pay(1)) for _ in range(2)] == ["paid", None]
    assert handled == [1]


async def test_what_is_old_is_forgotten(in_memory: tuple[Flow, list[int], list[Exception]]) -> None:
    flow, handled, _ = in_memory
    await flow.send(Pay(1))
    await flow.advance(timedelta(days=6))
    await flow.send(Pay(1))
    await flow.send(Pay(2))
    assert await flow.run("inbox") == 0

    await flow.advance(timedelta(days=2))
    assert await flow.run("inbox") == 1
    await flow.send(Pay(1))
    await flow.send(Pay(2))
    assert handled == [1, 2, 1]


@EVERY
async def test_what_is_old_is_forgotten_in_a_database(database: SqlAlchemy) -> None:
    broker, one = Broker(), message(1)

    async with started(pay, database=database, channel=broker) as flow:
        await broker.send([one, message(2)])
        await flow.run("payments")
        assert await flow.run("inbox") == 0
        await flow.advance(timedelta(days=8))
        assert await flow.run("inbox") == 2

        await broker.send([one])
        await flow.run("payments")
        assert await payments(database) == [1, 1, 2]


# ----------------------------------------------------------------------------------------------------------- forgetting


class Counting:
    """A store that only counts how often it is asked to forget."""

    durable = True

    def __init__(self, *portions: int) -> None:
        self.portions = list(portions)
        self.asked = anyio.Event()
        self.times = 0

    def covers(self, channel: Channel) -> bool:
        return False

    def takes_part(self) -> bool:
        return False

    async def record(self, message_id: str, endpoint: str) -> bool:
        return True

    async def forget(self, message_id: str, endpoint: str) -> None:
        raise AssertionError

    async def knows(self, message_id: str, endpoint: str) -> bool:
        return False

    async def forget_before(self, moment: object, *, limit: int = 1000) -> int:
        self.times += 1
        self.asked.set()
        return self.portions.pop(0) if self.portions else 0


def forgetting(store: Counting, **settings: Any) -> Any:
    @deduplicated
    @command_handler
    async def pay(command: Pay) -> None: ...

    return assembled(Deduplication(**settings), pay, store=store).runnables["inbox"]


def assembled(plugin: Deduplication, *handlers: object, store: DeduplicationStore | None = None) -> Assembly:
    assembly = Assembly(Gateway(Conversion(()), SystemClock()), endpoints=[*discover(handlers).endpoints])
    if store is not None:
        assembly.add_service(DeduplicationStore, store)
    plugin.install(assembly)
    return assembly


@pytest.mark.parametrize("limits", [Limits(until_empty=True), Limits(messages=1), Limits(memory=1_000_000)])
async def test_a_bounded_run_forgets_portion_by_portion_until_nothing_is_old(limits: Limits) -> None:
    store = Counting(1000, 1000, 17)

    assert await forgetting(store).run(limits) == 2017
    assert store.times == 3


async def test_it_waits_for_more_to_grow_old_until_it_is_told_to_stop() -> None:
    store, stop, ended = Counting(5), anyio.Event(), list[int]()
    runnable = forgetting(store, keep=timedelta(seconds=1))

    async def run() -> None:
        ended.append(await runnable.run(Limits(stop=stop)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await store.asked.wait()
            store.asked = anyio.Event()
            await store.asked.wait()  # a second time, after a pause
            assert ended == []
            stop.set()
    assert ended == [5]


async def test_it_ends_when_its_time_is_over() -> None:
    store = Counting(5)

    assert await forgetting(store).run(Limits(seconds=0.5)) == 5
    assert store.times == 1


# -------------------------------------------------------------------------------------------------------------- wiring


@EMBEDDED
async def test_where_nothing_is_deduplicated_nothing_stands_around_the_handlers(database: SqlAlchemy) -> None:
    async with started(pay, database=database, channel=database.channel("payments")) as flow:
        assert Order.DEDUPLICATION not in {around.order for around in flow.ecotone.assembly.arounds}


@EMBEDDED
async def test_queries_are_never_deduplicated(database: SqlAlchemy) -> None:
    @query_handler("paid")
    async def paid() -> bool:
        return True

    async with started(pay, paid, database=database, channel=Broker()) as flow:
        wheres = [around.when for around in flow.ecotone.assembly.arounds if around.order == Order.DEDUPLICATION]
        assert [[one.kind for one in flow.ecotone.assembly.endpoints if where and where(one)] for where in wheres] == [
            [Kind.COMMAND]
        ]


def test_a_channel_may_have_the_name_of_what_forgets() -> None:
    @deduplicated
    @asynchronous("inbox")
    @command_handler(id="pay")
    async def pay(command: Pay) -> None: ...

    channels = [MemoryChannel("inbox")]
    with pytest.raises(ConfigurationError, match="'inbox'") as caught:
        Ecotone([pay], channels=channels).prepare()

    assert "Deduplication(name=" in str(caught.value)
    renamed = Ecotone([pay], channels=channels, plugins=[Deduplication(name="forgetting")])
    assert set(renamed.assembly.runnables) == {"inbox", "forgetting"}


def test_a_query_that_is_marked_is_refused() -> None:
    @deduplicated
    @query_handler("paid")
    async def paid() -> bool:
        return True

    with pytest.raises(ConfigurationError, match="paid answers a query"):
        Ecotone([paid]).prepare()


@pytest.mark.parametrize("key", ["", 7, object()])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="tells no messages apart"):
        deduplicated(key=key)


@pytest.mark.parametrize("keep", [timedelta(0), timedelta(days=-1)])
def test_to_keep_nothing_is_refused(keep: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="remembers nothing"):
        Deduplication(keep=keep)


def test_without_any_store_it_says_what_is_missing() -> None:
    @deduplicated
    @command_handler
    async def pay(command: Pay) -> None: ...

    with pytest.raises(MissingServiceError, match="nothing to remember"):
        assembled(Deduplication(), pay)


def test_without_any_store_it_is_installed_where_nobody_needs_it() -> None:
    @command_handler
    async def pay(command: Pay) -> None: ...

    assert assembled(Deduplication(), pay).runnables == {}


def test_it_tells_its_settings() -> None:
    assert repr(Deduplication()) == "Deduplication(keep=timedelta(days=7))"
    assert repr(Deduplication(keep=timedelta(minutes=1), inbox=False, commands="key")) == (
        "Deduplication(keep=timedelta(seconds=60), inbox=False, commands='key')"
    )


def test_a_mark_leaves_the_handler_as_it_is() -> None:
    @command_handler
    async def pay(command: Pay) -> None: ...

    assert deduplicated(pay) is pay
    [endpoint] = discover([pay]).endpoints
    assert isinstance(endpoint, Endpoint)
