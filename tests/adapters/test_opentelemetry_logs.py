"""The trace of a log record, beside the fields of its message."""

import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from ecotone_fastapi import MessageFields, command_handler
from ecotone_fastapi.adapters.opentelemetry import trace_fields
from ecotone_fastapi.testing import flow_test


def test_without_a_span_there_is_no_trace() -> None:
    assert trace_fields() == {}


def test_a_span_that_leads_nowhere_is_none() -> None:
    with trace.use_span(trace.INVALID_SPAN):
        assert trace_fields() == {}


async def test_a_record_in_a_span_tells_its_trace_beside_its_message() -> None:
    records: list[logging.LogRecord] = []
    fields = MessageFields(trace_fields, absent="-")

    @command_handler("place", id="place-order")
    def place(order_id: str) -> None:
        record = logging.makeLogRecord({"msg": "placed"})
        fields.filter(record)
        records.append(record)

    async with flow_test([place]) as flow:
        with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
            await flow.send("1", to="place", headers={"id": "m-1"})
        await flow.send("2", to="place")

    context = span.get_span_context()
    in_span, outside = (vars(record) for record in records)
    assert in_span["trace_id"] == f"{context.trace_id:032x}"
    assert in_span["span_id"] == f"{context.span_id:016x}"
    assert in_span["message_id"] == "m-1"
    assert (outside["trace_id"], outside["span_id"]) == ("-", "-")
