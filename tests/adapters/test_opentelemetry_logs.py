"""The trace of a log record, beside the fields of its message."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ecotone_fastapi import CommandBus, MessageFields, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing, trace_fields
from ecotone_fastapi.testing import flow_test

logger = logging.getLogger("shop")


class Book(logging.Handler):
    """Keeps what records tell of their trace and message, by what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, dict[str, Any]] = {}
        self.addFilter(MessageFields(trace_fields, absent="-"))

    def emit(self, record: logging.LogRecord) -> None:
        self.told[record.getMessage()] = vars(record)


@pytest.fixture
def book() -> Iterator[Book]:
    made = Book()
    logger.addHandler(made)
    logger.setLevel(logging.INFO)
    yield made
    logger.removeHandler(made)
    logger.setLevel(logging.NOTSET)


def test_without_a_span_there_is_no_trace() -> None:
    assert trace_fields() == {}


def test_a_span_that_leads_nowhere_is_none() -> None:
    with trace.use_span(trace.INVALID_SPAN):
        assert trace_fields() == {}


async def test_a_record_in_a_span_tells_its_trace_beside_its_message(book: Book) -> None:
    @command_handler("place", id="place-order")
    def place(order_id: str) -> None:
        logger.info("placed %s", order_id)

    async with flow_test([place]) as flow:
        with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
            await flow.send("1", to="place", headers={"id": "m-1"})
        await flow.send("2", to="place")

    context = span.get_span_context()
    in_span, outside = book.told["placed 1"], book.told["placed 2"]
    assert in_span["trace_id"] == f"{context.trace_id:032x}"
    assert in_span["span_id"] == f"{context.span_id:016x}"
    assert in_span["message_id"] == "m-1"
    assert (outside["trace_id"], outside["span_id"]) == ("-", "-")


async def test_the_records_of_one_trace_have_its_id_from_the_command_to_the_last_handler(book: Book) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def session() -> AsyncIterator[str]:
        logger.info("opened")
        yield "session"
        logger.info("closed")

    @command_handler("place")
    async def place(order_id: str, commands: CommandBus) -> None:
        logger.info("placed")
        await commands.send(order_id, to="mail")

    @asynchronous("mails")
    @command_handler("mail", id="mail")
    def mail(order_id: str, session: Annotated[str, Depends(session)]) -> None:
        logger.info("mailed")

    async with flow_test([place, mail], channels=[MemoryChannel("mails")], plugins=[Tracing(provider)]) as flow:
        await flow.send("1", to="place")
        await flow.run("mails")
        logger.info("over")

    spans = exporter.get_finished_spans()
    (trace_id,) = {f"{span.context.trace_id:032x}" for span in spans if span.context is not None}
    names = {f"{span.context.span_id:016x}": span.name for span in spans if span.context is not None}
    told = {line: (fields["trace_id"], names.get(fields["span_id"])) for line, fields in book.told.items()}
    assert told == {
        "placed": (trace_id, "handle place"),
        "opened": (trace_id, "handle mail"),
        "mailed": (trace_id, "handle mail"),
        "closed": (trace_id, "process mails"),
        "over": ("-", None),
    }
    assert {fields["correlation_id"] for line, fields in book.told.items() if line != "over"} == {
        book.told["placed"]["message_id"]
    }
