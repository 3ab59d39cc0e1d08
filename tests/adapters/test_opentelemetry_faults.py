"""What breaks a trace breaks no message: samplers, processors, propagators and texts of all kinds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from ecotone_fastapi import (
    Ecotone,
    HandlerNotFoundError,
    asynchronous,
    command_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Metrics, Tracing
from ecotone_fastapi.core import Destination, Message
from ecotone_fastapi.testing import flow_test
from tests.adapters.traces import Traces, id_of
from tests.servers import until

HALF = os.fsdecode(b"caf\xe9.txt")
"""A file name of another encoding, with half a character in it."""


@dataclass(frozen=True)
class Ship:
    order_id: str


class Shipping:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.shipped: list[str] = []

    @command_handler("ship.now")
    async def at_once(self, order_id: str) -> None:
        if self.error is not None:
            raise self.error

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(self, command: Ship) -> None:
        self.shipped.append(command.order_id)


def exported(spans: Sequence[ReadableSpan]) -> int:
    """Encode spans as an exporter does; return how many bytes they are."""
    return len(encode_spans(spans).SerializeToString())


def told(span: ReadableSpan) -> dict[str, Any]:
    """What a span tells of the exception it has recorded."""
    (event,) = span.events
    return dict(event.attributes or {})


async def test_an_error_with_half_a_character_in_it_can_be_exported() -> None:
    traces = Traces()
    async with flow_test(
        [Shipping(OSError(f"no {HALF}"))], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider)]
    ) as flow:
        with pytest.raises(OSError, match="caf"):
            await flow.send("1", to="ship.now")

    assert exported(traces.spans)
    (handled,) = [span for span in traces.spans if span.events]
    assert handled.status.description == r"OSError: no caf\udce9.txt"
    assert told(handled)["exception.message"] == r"no caf\udce9.txt"
    assert r"OSError: no caf\udce9.txt" in told(handled)["exception.stacktrace"]


async def test_an_error_of_any_length_can_be_exported() -> None:
    traces = Traces()
    async with flow_test(
        [Shipping(ValueError("x" * 5_000_000))],
        channels=[MemoryChannel("shipping")],
        plugins=[Tracing(traces.provider)],
    ) as flow:
        with pytest.raises(ValueError, match="xxx"):
            await flow.send("1", to="ship.now")

    assert exported(traces.spans) < 30_000
    (handled,) = [span for span in traces.spans if span.events]
    assert str(handled.status.description).endswith("xxx… (cut, 5000000 characters in all)")
    assert told(handled)["exception.message"].endswith("xxx… (cut, 5000000 characters in all)")
    assert "in at_once" in told(handled)["exception.stacktrace"]


@pytest.mark.parametrize("key", ["\ud800", "y" * 50_000])
async def test_a_key_that_leads_nowhere_is_no_name_of_a_span_and_can_be_exported(key: str) -> None:
    traces = Traces()
    async with flow_test([Shipping], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send("1", to="ship.now")
        with pytest.raises(HandlerNotFoundError):
            await flow.send("1", to=key)

    assert [span.name for span in traces.spans if not span.name.startswith("handle")] == ["send ship.now", "send str"]
    assert exported(traces.spans) < 3_000


async def test_ids_of_a_foreign_producer_can_be_exported() -> None:
    traces, channel = Traces(), MemoryChannel("shipping")
    foreign = {
        "id": "m" * 90_000,
        "correlation_id": "\ud800\nERROR",
        "endpoint": "ship",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    async with flow_test([Shipping], channels=[channel], plugins=[Tracing(traces.provider, receive=True)]) as flow:
        await channel.send([Message(b'{"order_id": "1"}', {**foreign, "content_type": "application/json"})])
        await flow.run("shipping")

    assert exported(traces.spans) < 5_000
    (processed,) = traces.named("process shipping")
    assert processed.attributes is not None
    assert processed.attributes["messaging.message.id"] == "m" * 300 + "… (cut, 90000 characters in all)"
    assert processed.attributes["messaging.message.conversation_id"] == r"\ud800\nERROR"


class Broken(SpanProcessor):
    """A processor that fails when a span ends that has a certain name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_end(self, span: ReadableSpan) -> None:
        if span.name.startswith(self.name):
            raise RuntimeError("broken")


@pytest.mark.parametrize("name", ["send Ship", "send shipping", "receive", "process", "handle", "ack"])
async def test_a_broken_processor_fails_no_message_and_is_told_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider, shipping = TracerProvider(shutdown_on_exit=False), Shipping()
    provider.add_span_processor(Broken(name))
    plugins = [Tracing(provider, receive=True)]
    async with flow_test([shipping], channels=[MemoryChannel("shipping")], plugins=plugins) as flow:
        for number in range(2):
            await flow.send(Ship(str(number)))
        assert await flow.run("shipping") == 2

    assert shipping.shipped == ["0", "1"]
    (record,) = [record for record in caplog.records if record.name == "ecotone_fastapi.tracing"]
    assert "could not end, and messages go on" in record.message


class BrokenSampler(Sampler):
    """A sampler that fails."""

    def should_sample(self, *_: Any, **__: Any) -> SamplingResult:
        raise RuntimeError("broken")

    def get_description(self) -> str:
        return "BrokenSampler"


async def test_a_broken_sampler_fails_no_message_and_leaves_the_trace_of_the_caller_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traces, shipping, channel = Traces(BrokenSampler()), Shipping(), MemoryChannel("shipping")
    request = SpanContext(0xABC, 0xDEF, False, TraceFlags(TraceFlags.SAMPLED))
    async with flow_test([shipping], channels=[channel], plugins=[Tracing(traces.provider)]) as flow:
        with trace.use_span(NonRecordingSpan(request)):
            await flow.send(Ship("1"))
        (waiting,) = await flow.waiting("shipping")
        assert await flow.run("shipping") == 1

    assert waiting.headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert "the span 'send Ship' could not begin" in caplog.text
    assert caplog.text.count("could not begin") == 1


class BrokenFilter:
    """A filter of examples that fails each time something is measured."""

    def should_sample(self, *_: Any, **__: Any) -> bool:
        raise RuntimeError("broken")


async def test_measures_that_cannot_be_recorded_fail_no_message_and_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shipping, reader = Shipping(), InMemoryMetricReader()
    provider = MeterProvider([reader], exemplar_filter=BrokenFilter(), shutdown_on_exit=False)  # type: ignore[arg-type]
    plugins = [Metrics(provider, interval=None)]
    async with flow_test([shipping], channels=[MemoryChannel("shipping")], plugins=plugins) as flow:
        for number in range(2):
            await flow.send(Ship(str(number)))
        assert await flow.run("shipping") == 2

    assert shipping.shipped == ["0", "1"]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "the operation 'send' could not be measured, and messages go on without; this is told once"


async def test_baggage_that_cannot_be_written_is_left_out_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    traces, shipping = Traces(), Shipping()
    async with flow_test([shipping], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider)]) as flow:
        token = attach(baggage.set_baggage("file", HALF))
        await flow.send(Ship("1"))
        detach(token)
        (waiting,) = await flow.waiting("shipping")
        assert await flow.run("shipping") == 1

    assert "traceparent" in waiting.headers
    assert "baggage" not in waiting.headers
    assert "a message does not tell all about its trace" in caplog.text


class _NotTheStart(Sampler):
    """Samples everything but a span that is called `start`."""

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any) -> SamplingResult:
        return SamplingResult(Decision.DROP if name == "start" else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "NotTheStart"


@pytest.mark.parametrize("remote", [False, True])
async def test_a_consumer_that_is_started_in_a_span_of_somebody_else_is_not_part_of_it(remote: bool) -> None:
    traces, shipping = Traces(ParentBased(_NotTheStart())), Shipping()
    start = traces.provider.get_tracer("test").start_span("start")
    if remote:
        start = NonRecordingSpan(SpanContext(0xABC, 0xDEF, True, TraceFlags(TraceFlags.SAMPLED)))
    ecotone = Ecotone([shipping], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider)])
    with trace.use_span(start):
        running = ecotone.running()
        await running.__aenter__()
        assert trace.get_current_span() is start  # for everybody else nothing has changed
    await ecotone.command_bus.send(Ship("1"))
    await until(lambda: bool(traces.named("process shipping")))
    await running.__aexit__(None, None, None)

    created, processed = traces.one("send shipping"), traces.one("process shipping")
    assert processed.parent is not None
    assert processed.parent.span_id == id_of(created)


class _Lost(MemoryChannel):
    """A channel that fails to tell where its messages are."""

    def destination(self, *, sending: bool) -> Destination:
        raise LookupError("nowhere")


async def test_a_channel_that_fails_to_tell_where_its_messages_are_is_called_by_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traces, shipping, reader = Traces(), Shipping(), InMemoryMetricReader()
    plugins = [Tracing(traces.provider), Metrics(MeterProvider([reader]), interval=None)]
    async with flow_test([shipping], channels=[_Lost("shipping")], plugins=plugins) as flow:
        await flow.send(Ship("1"))
        assert await flow.run("shipping") == 1

    assert traces.one("process shipping").attributes is not None
    assert caplog.text.count("channel shipping fails to tell where its messages are") == 1
