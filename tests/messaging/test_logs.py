"""What is logged while a message is handled tells which message that is, and nothing tells it outside."""

import asyncio
import logging
import logging.handlers
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends

from ecotone_fastapi import (
    AsynchronousHandlers,
    Backoff,
    CommandBus,
    ConsumerSettings,
    EventBus,
    Failures,
    MessageFields,
    QueryBus,
    asynchronous,
    command_handler,
    event_handler,
    message_fields,
    projection,
    query_handler,
    retried,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core import Assembly, Call, Message, Order, Proceed, Stage, conversation, current_message
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.testing import flow_test

logger = logging.getLogger("shop")

FIELDS = ("message_id", "correlation_id", "causation_id", "endpoint", "channel", "attempt")


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Book(logging.Handler):
    """Keeps the records, as the handler of an application would get them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def said(self, text: str) -> dict[str, Any]:
        """The fields of the one record that says this."""
        (found,) = self.all(text)
        return found

    def all(self, text: str) -> list[dict[str, Any]]:
        """The fields of the records that say this."""
        return [
            {name: value for name, value in vars(record).items() if name in FIELDS}
            for record in self.records
            if record.getMessage() == text
        ]


@pytest.fixture
def book() -> Iterator[Book]:
    """A handler with the filter, on everything that is logged."""
    made, root = Book(), logging.getLogger()
    made.addFilter(MessageFields())
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    yield made
    root.removeHandler(made)
    root.setLevel(level)


# ------------------------------------------------------------------------------------------------- where it is known


async def test_a_record_of_a_handler_has_the_fields_of_its_message(book: Book) -> None:
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        logger.info("placed")

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1", "correlation_id": "c-1"})

    assert book.said("placed") == {
        "message_id": "m-1",
        "correlation_id": "c-1",
        "endpoint": "place-order",
        "attempt": 1,
    }


async def test_outside_of_messages_a_record_has_none_of_the_fields(book: Book) -> None:
    @command_handler
    async def place(command: PlaceOrder) -> None: ...

    async with flow_test([place]) as flow:
        logger.info("before")
        await flow.send(PlaceOrder("1"))
        logger.info("after")

    assert (book.said("before"), book.said("after"), message_fields()) == ({}, {}, {})


async def test_the_fields_are_gone_when_the_handler_has_failed(book: Book) -> None:
    @command_handler
    async def place(command: PlaceOrder) -> None:
        raise ValueError("sold out")

    async with flow_test([place]) as flow:
        with pytest.raises(ValueError, match="sold out"):
            await flow.send(PlaceOrder("1"))
        logger.info("after")

    assert book.said("after") == {}


async def test_a_handler_in_a_worker_thread_has_the_fields(book: Book) -> None:
    threads: list[int] = []

    @command_handler(id="place-order")
    def place(command: PlaceOrder) -> None:
        threads.append(threading.get_ident())
        logger.info("placed")

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})

    assert threads != [threading.get_ident()]
    assert book.said("placed")["message_id"] == "m-1"
    assert book.said("placed")["endpoint"] == "place-order"


async def test_dependencies_and_their_teardown_have_the_fields(book: Book) -> None:
    async def session() -> AsyncIterator[str]:
        logger.info("session opened")
        yield "session"
        logger.info("session closed")

    def connection(session: Annotated[str, Depends(session)]) -> Iterator[str]:
        logger.info("connection opened")
        yield "connection"
        logger.info("connection closed")

    @command_handler(id="place-order")
    def place(command: PlaceOrder, connection: Annotated[str, Depends(connection)]) -> None:
        logger.info("placed")

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})

    lines = ["session opened", "connection opened", "placed", "connection closed", "session closed"]
    assert [record.getMessage() for record in book.records if record.name == "shop"] == lines
    assert [book.said(line)["message_id"] for line in lines] == ["m-1"] * 5
    assert [book.said(line)["endpoint"] for line in lines[2:]] == ["place-order"] * 3


async def test_the_teardown_of_dependencies_of_one_message_alone_has_the_fields(book: Book) -> None:
    async def fresh(message: Message[Any]) -> AsyncIterator[str]:
        logger.info("opened")
        yield message.id
        logger.info("closed")

    @command_handler("outer", id="outer")
    async def outer(command: str, commands: CommandBus) -> None:
        await commands.send("1", to="inner", headers={"id": "m-2"})
        logger.info("outer done")

    @command_handler("inner", id="inner")
    async def inner(command: str, one: Annotated[str, Depends(fresh)]) -> None: ...

    async with flow_test([outer, inner]) as flow:
        await flow.send("1", to="outer", headers={"id": "m-1"})

    assert [book.said(line)["message_id"] for line in ("opened", "closed", "outer done")] == ["m-2", "m-2", "m-1"]


async def test_a_nested_message_has_fields_of_its_own_and_its_cause_gets_them_back(book: Book) -> None:
    @command_handler(id="place-order")
    async def place(command: PlaceOrder, events: EventBus) -> None:
        logger.info("placing")
        await events.publish(OrderWasPlaced(command.order_id), headers={"id": "m-2"})
        logger.info("placed")

    @event_handler(id="notify")
    async def notify(event: OrderWasPlaced) -> None:
        logger.info("notified")

    async with flow_test([place, notify]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})

    outer = {"message_id": "m-1", "correlation_id": "m-1", "endpoint": "place-order", "attempt": 1}
    assert (book.said("placing"), book.said("placed")) == (outer, outer)
    assert book.said("notified") == {
        "message_id": "m-2",
        "correlation_id": "m-1",
        "causation_id": "m-1",
        "endpoint": "notify",
        "attempt": 1,
    }


async def test_each_handler_of_an_event_is_told(book: Book) -> None:
    @event_handler(id="first", priority=2)
    async def first(event: OrderWasPlaced) -> None:
        logger.info("handled")

    @event_handler(id="second")
    def second(event: OrderWasPlaced) -> None:
        logger.info("handled")

    async with flow_test([first, second]) as flow:
        await flow.publish(OrderWasPlaced("1"))

    assert [fields["endpoint"] for fields in book.all("handled")] == ["first", "second"]


async def test_messages_that_are_handled_at_the_same_time_do_not_see_each_other(book: Book) -> None:
    everybody = asyncio.Barrier(20)

    @asynchronous("orders")
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        await everybody.wait()
        logger.info("placing %s", command.order_id)
        await anyio.to_thread.run_sync(logger.info, "in a thread for %s", command.order_id)
        await everybody.wait()
        logger.info("placed %s", command.order_id)

    settings = AsynchronousHandlers(consumers={"orders": ConsumerSettings(concurrency=20, batch=20)})
    async with flow_test([place], channels=[MemoryChannel("orders")], plugins=[settings]) as flow:
        for number in range(20):
            await flow.send(PlaceOrder(f"{number}"), headers={"id": f"m-{number}"})
        await flow.run("orders")

    for number in range(20):
        for text in (f"placing {number}", f"in a thread for {number}", f"placed {number}"):
            assert book.said(text)["message_id"] == f"m-{number}"


async def test_messages_that_one_handler_sends_at_the_same_time_do_not_see_each_other(book: Book) -> None:
    @command_handler("outer")
    async def outer(command: str, commands: CommandBus) -> None:
        await asyncio.gather(*[commands.send(f"{n}", to="inner", headers={"id": f"m-{n}"}) for n in range(5)])

    @command_handler("inner")
    def inner(command: str) -> None:
        logger.info("inner %s", command)

    async with flow_test([outer, inner]) as flow:
        await flow.send("1", to="outer")

    assert [book.said(f"inner {n}")["message_id"] for n in range(5)] == [f"m-{n}" for n in range(5)]


async def test_a_message_of_a_channel_tells_the_channel_and_which_attempt_it_is(book: Book) -> None:
    @asynchronous("orders")
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        logger.info("trying")
        raise ValueError("sold out")

    policy = Failures(Backoff(retries=2, first=1.0))
    async with flow_test([place], channels=[MemoryChannel("orders")], plugins=[policy]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})
        for _ in range(3):
            await flow.run("orders", raises=False)
            await flow.advance(timedelta(minutes=5))

    told = {"message_id": "m-1", "correlation_id": "m-1", "endpoint": "place-order", "channel": "orders"}
    assert book.all("trying") == [{**told, "attempt": number} for number in (1, 2, 3)]


async def test_a_run_again_at_once_is_the_same_attempt(book: Book) -> None:
    @retried(times=1, on=ValueError)
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        logger.info("trying")
        if len(book.all("trying")) == 1:
            raise ValueError("busy")

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})

    assert [(fields["endpoint"], fields["attempt"]) for fields in book.all("trying")] == [("place-order", 1)] * 2


async def test_what_the_library_logs_about_a_message_has_its_fields(book: Book) -> None:
    @asynchronous("orders")
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        raise ValueError("sold out")

    policy = Failures(Backoff(retries=0))
    async with flow_test([place], channels=[MemoryChannel("orders")], plugins=[policy]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})
        await flow.run("orders", raises=False)

    (parked,) = [record for record in book.records if record.name == "ecotone_fastapi.failures"]
    told = vars(parked)
    assert (told["message_id"], told["endpoint"], told["channel"]) == ("m-1", "place-order", "orders")


async def test_interceptors_around_a_handler_have_its_fields(book: Book) -> None:
    class Around:
        def install(self, assembly: Assembly) -> None:
            async def dispatching(call: Call, proceed: Proceed) -> Any:
                logger.info("dispatching")
                return await proceed(call)

            async def handling(call: Call, proceed: Proceed) -> Any:
                logger.info("handling")
                return await proceed(call)

            assembly.add_interceptor(dispatching, stage=Stage.DISPATCH)
            assembly.add_interceptor(handling, stage=Stage.HANDLE, order=Order.TRACING)

    @command_handler("outer", id="outer")
    async def outer(command: str, commands: CommandBus) -> None:
        await commands.send("1", to="inner", headers={"id": "m-2"})

    @command_handler("inner", id="inner")
    async def inner(command: str) -> None: ...

    async with flow_test([outer, inner], plugins=[Around()]) as flow:
        await flow.send("1", to="outer", headers={"id": "m-1"})

    assert [fields["message_id"] for fields in book.all("dispatching")] == ["m-1", "m-2"]
    assert [fields.get("endpoint") for fields in book.all("dispatching")] == [None, None]
    assert [fields["endpoint"] for fields in book.all("handling")] == ["outer", "inner"]


async def test_a_projection_tells_the_event_that_it_is_given(book: Book) -> None:
    @projection("orders", streams=["orders"])
    class Orders:
        @event_handler(id="count-order")
        async def count(self, event: OrderWasPlaced) -> None:
            logger.info("counted %s", event.order_id)

    @command_handler(id="place-order")
    async def place(command: PlaceOrder, store: EventStore) -> None:
        await store.append("orders", [Message(OrderWasPlaced(number), {"id": f"e-{number}"}) for number in "12"])

    async with flow_test([place, Orders]) as flow:
        await flow.send(PlaceOrder("1"), headers={"correlation_id": "c-1"})
        await flow.run("orders")
        told = [book.said(f"counted {number}") for number in "12"]

    assert [(fields["message_id"], fields["endpoint"]) for fields in told] == [
        ("e-1", "count-order"),
        ("e-2", "count-order"),
    ]
    assert {fields["correlation_id"] for fields in told} == {"c-1"}


async def test_a_task_that_a_handler_has_left_behind_belongs_to_its_message(book: Book) -> None:
    release, tasks = asyncio.Event(), []

    async def later() -> None:
        await release.wait()
        logger.info("later")

    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        tasks.append(asyncio.create_task(later()))

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})
        release.set()
        await tasks[0]

    assert book.said("later")["message_id"] == "m-1"


# ----------------------------------------------------------------------------------------------------- foreign messages


async def test_a_message_that_somebody_else_has_put_on_the_channel_tells_what_it_has(book: Book) -> None:
    @asynchronous("orders")
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        logger.info("placed")

    channel = MemoryChannel("orders")
    headers = {"endpoint": "place-order", "content_type": "application/json"}
    async with flow_test([place], channels=[channel]) as flow:
        await channel.send([Message(b'{"order_id": "1"}', headers)])
        await flow.run("orders")

    assert book.said("placed") == {"endpoint": "place-order", "channel": "orders", "attempt": 1}


async def test_what_somebody_else_has_written_begins_no_line_of_the_log_and_is_cut_with_a_mark() -> None:
    headers = {"correlation_id": "a\nERROR forged", "id": "m" * 5000, "causation_id": "\x1b[31mred\ud800"}
    async with flow_test([]) as flow:
        gateway = flow.ecotone.prepare()
        async with gateway.unit_of_work(Message(b"", headers)):
            fields = message_fields()

    assert fields["correlation_id"] == r"a\nERROR forged"
    assert fields["message_id"] == "m" * 300 + "… (cut, 5000 characters in all)"
    assert fields["causation_id"] == r"\x1b[31mred\ud800"


@pytest.mark.parametrize(("attempt", "told"), [("2", 3), ("a few", 1), ("-7", 1), ("9" * 50, 1_000_000_001)])
async def test_a_count_that_somebody_else_has_written_is_a_number_all_the_same(attempt: str, told: int) -> None:
    async with flow_test([]) as flow:
        gateway = flow.ecotone.prepare()
        async with gateway.unit_of_work(Message(b"", {"attempt": attempt})):
            assert message_fields() == {"attempt": told}


# ---------------------------------------------------------------------------------------------------------- the filter


async def test_what_a_record_has_already_is_left_as_it_is(book: Book) -> None:
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        logger.info("placed", extra={"channel": "web", "endpoint": "/orders"})

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})

    fields = book.said("placed")
    assert (fields["message_id"], fields["channel"], fields["endpoint"]) == ("m-1", "web", "/orders")


async def test_fields_that_are_not_known_may_have_something_in_their_place() -> None:
    record = logging.makeLogRecord({"msg": "hello"})

    assert MessageFields(absent="-").filter(record)

    told = {name: vars(record)[name] for name in (*FIELDS, "trace_id", "span_id")}
    assert set(told.values()) == {"-"}


async def test_what_one_handler_does_not_know_another_one_may_tell() -> None:
    """Both filters see the same record: the console's placeholder is no value."""
    record = logging.makeLogRecord({"msg": "hello"})

    MessageFields(absent="-").filter(record)
    MessageFields(lambda: {"trace_id": "4bf92f"}).filter(record)
    MessageFields(lambda: {"trace_id": "other"}, absent="none").filter(record)

    assert (vars(record)["trace_id"], vars(record)["span_id"]) == ("4bf92f", "none")


async def test_further_fields_come_from_whoever_knows_them() -> None:
    record = logging.makeLogRecord({"msg": "hello"})

    assert MessageFields(lambda: {"tenant": "acme"}).filter(record)

    assert vars(record)["tenant"] == "acme"


async def test_a_filter_before_a_queue_tells_the_message_on_the_other_side() -> None:
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    sending, book = logging.handlers.QueueHandler(waiting), Book()
    sending.addFilter(MessageFields())
    # On the other side there is no message, and the filter changes nothing.
    book.addFilter(MessageFields(absent="-"))
    listener = logging.handlers.QueueListener(waiting, book)
    log = logging.getLogger("queued")
    log.setLevel(logging.INFO)
    log.addHandler(sending)

    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        log.info("placed")

    async with flow_test([place]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})
    listener.start()
    listener.stop()

    assert book.said("placed") == {
        "message_id": "m-1",
        "correlation_id": "m-1",
        "causation_id": "-",
        "endpoint": "place-order",
        "channel": "-",
        "attempt": 1,
    }


# ------------------------------------------------------------------------------------------------------- conversations


async def test_what_is_sent_in_a_conversation_has_its_correlation_id(book: Book) -> None:
    @command_handler(id="place-order")
    async def place(command: PlaceOrder) -> None:
        message = current_message()
        assert message is not None
        assert message.id != "import-7"
        logger.info("placed")

    async with flow_test([place]) as flow:
        with conversation("import-7"):
            logger.info("importing")
            await flow.send(PlaceOrder("1"))
        logger.info("imported")

    assert book.said("importing") == {"correlation_id": "import-7"}
    assert book.said("placed")["correlation_id"] == "import-7"
    assert "causation_id" not in book.said("placed")
    assert book.said("imported") == {}


async def test_a_handler_that_opens_a_conversation_stays_in_that_of_its_message(book: Book) -> None:
    @command_handler(id="place-order")
    async def place(command: PlaceOrder, queries: QueryBus) -> None:
        with conversation("another"):
            logger.info("placing")
            await queries.ask(to="inner")

    @query_handler("inner")
    async def inner() -> None:
        logger.info("asked")

    async with flow_test([place, inner]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1"})

    assert [book.said(line)["correlation_id"] for line in ("placing", "asked")] == ["m-1", "m-1"]
