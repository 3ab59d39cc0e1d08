"""The headers of traces: what is written is plain text, and what others have written there fails nothing."""

import weakref
from copy import copy, deepcopy
from dataclasses import dataclass
from pickle import dumps, loads
from threading import Lock
from typing import Annotated, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ecotone_fastapi import EventBus, EventStore, MessageHeader, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.adapters.opentelemetry.propagation import LONGEST, Propagation, ToldHeaders
from ecotone_fastapi.core import Message
from ecotone_fastapi.testing import flow_test
from tests.adapters.traces import Traces, id_of, linked, trace_of, traceparent_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FOREIGN = f"00-{TRACE}-{SPAN}-01"

BROKEN = [
    "",
    "00",
    "what is this?",
    f"00-{TRACE}-{SPAN}",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-01-and-more",
    f"00-{TRACE}-{SPAN}-01" + " " * LONGEST,
    f"00-{TRACE}-{SPAN}-01\n{FOREIGN}",
    "<script>alert(1)</script>",
    "\x00\ud800",
]


@dataclass(frozen=True)
class Ship:
    order_id: str


class Shipping:
    def __init__(self) -> None:
        self.shipped: list[str] = []

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(self, command: Ship) -> None:
        self.shipped.append(command.order_id)


def foreign(**headers: Any) -> Message[bytes]:
    """A message that somebody else has put on the channel."""
    return Message(
        b'{"order_id": "1"}', {"id": "m-1", "endpoint": "ship", "content_type": "application/json", **headers}
    )


@pytest.mark.parametrize("traceparent", BROKEN)
async def test_a_broken_traceparent_begins_a_new_trace_and_fails_nothing(traceparent: str) -> None:
    traces, shipping, channel = Traces(), Shipping(), MemoryChannel("shipping")
    async with flow_test([shipping], channels=[channel], plugins=[Tracing(traces.provider)]) as flow:
        await channel.send([foreign(traceparent=traceparent, tracestate=traceparent, baggage=traceparent)])
        assert await flow.run("shipping") == 1

    assert shipping.shipped == ["1"]
    processed = traces.one("process shipping")
    assert processed.parent is None
    assert list(processed.links) == []
    assert trace_of(processed) != int(TRACE, 16)


@pytest.mark.parametrize("traceparent", [FOREIGN, FOREIGN.encode(), bytearray(FOREIGN.encode())])
async def test_a_foreign_trace_goes_on_whether_its_header_is_text_or_bytes(traceparent: Any) -> None:
    traces, shipping, channel = Traces(), Shipping(), MemoryChannel("shipping")
    async with flow_test([shipping], channels=[channel], plugins=[Tracing(traces.provider)]) as flow:
        await channel.send([foreign(traceparent=traceparent)])
        assert await flow.run("shipping") == 1

    processed = traces.one("process shipping")
    assert trace_of(processed) == int(TRACE, 16)
    assert linked(processed) == {int(SPAN, 16)}


@given(
    headers=st.dictionaries(
        st.sampled_from(["traceparent", "tracestate", "baggage"]),
        st.one_of(
            st.text(max_size=200),
            st.binary(max_size=200),
            st.none(),
            st.integers(),
            st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"),
        ),
    )
)
@example(headers={"traceparent": FOREIGN, "tracestate": "=,=,=;;" * 100, "baggage": "%%%=%ff,;=" * 100})
@example(headers={"baggage": "a=%F0%9F", "traceparent": b"\xff\xfe"})
def test_whatever_is_in_the_headers_a_context_comes_of_it(headers: dict[str, Any]) -> None:
    propagation = Propagation()

    context = propagation.read(headers)

    created = trace.get_current_span(context).get_span_context()
    assert created.is_valid or created == trace.INVALID_SPAN_CONTEXT
    assert propagation.creation_of(Message(b"", headers)) == created
    # And what came of it can be written again.
    assert all(isinstance(value, str) for value in propagation.carrier(context).values())


def test_a_propagator_that_fails_is_no_reason_to_fail_a_message(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(TraceContextTextMapPropagator):
        def extract(self, *_: Any, **__: Any) -> Context:
            raise RuntimeError("not today")

    assert Propagation(Failing()).read({"traceparent": FOREIGN, "id": "m-1"}) == Context()
    assert "the headers of message m-1 tell no trace" in caplog.text


async def test_what_a_message_tells_is_plain_text_and_replaces_what_it_has_inherited() -> None:
    traces, channel = Traces(), MemoryChannel("shipping")
    async with flow_test([Shipping], channels=[channel], plugins=[Tracing(traces.provider)]) as flow:
        with traces.provider.get_tracer("test").start_as_current_span("POST /ships"):
            await flow.send(Ship("1"), headers={"tracestate": "old=1", "baggage": "old=1", "tenant": "acme"})
        (waiting,) = await flow.waiting("shipping")

    created = traces.one("send shipping")
    assert waiting.headers["traceparent"] == traceparent_of(created)
    assert waiting.headers["tenant"] == "acme"
    assert "tracestate" not in waiting.headers
    assert "baggage" not in waiting.headers


async def test_a_trace_can_be_brought_to_a_bus_in_a_header() -> None:
    traces, channel = Traces(), MemoryChannel("shipping")
    async with flow_test([Shipping], channels=[channel], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"), headers={"traceparent": FOREIGN, "baggage": "tenant=acme"})
        (waiting,) = await flow.waiting("shipping")

    dispatched = traces.one("send Ship")
    assert trace_of(dispatched) == int(TRACE, 16)
    assert dispatched.parent is not None
    assert dispatched.parent.span_id == int(SPAN, 16)
    assert waiting.headers["baggage"] == "tenant=acme"


async def test_without_tracing_the_headers_of_a_trace_pass_through_as_those_of_users() -> None:
    channel = MemoryChannel("shipping")
    async with flow_test([Shipping], channels=[channel]) as flow:
        await flow.send(Ship("1"), headers={"traceparent": FOREIGN})
        (waiting,) = await flow.waiting("shipping")

    assert waiting.headers["traceparent"] == FOREIGN


async def test_stored_events_and_handlers_know_the_span_of_the_handler() -> None:
    traces, seen = Traces(), []

    @command_handler
    async def ship(
        command: Ship, events: EventStore, traceparent: Annotated[str, MessageHeader("traceparent")]
    ) -> None:
        seen.append(traceparent)
        await events.append("order-1", [Ship("1")])

    async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"))
        events = flow.ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        (stored,) = await events.load("order-1")

    _, handled = traces.spans
    expected = traceparent_of(handled)
    assert seen == [expected]
    assert stored.headers["traceparent"] == expected


class _InOneHeader(TextMapPropagator):
    """A propagator of another kind than the W3C's."""

    @property
    def fields(self) -> set[str]:
        return {"x-trace"}

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        value = getter.get(carrier, "x-trace")
        return TraceContextTextMapPropagator().extract({"traceparent": value[0] if value else ""}, context)

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, context)
        carrier["x-trace"] = headers["traceparent"]


async def test_another_propagator_writes_other_headers() -> None:
    traces, channel = Traces(), MemoryChannel("shipping")
    plugins = [Tracing(traces.provider, propagator=CompositePropagator([_InOneHeader(), W3CBaggagePropagator()]))]
    async with flow_test([Shipping], channels=[channel], plugins=plugins) as flow:
        await flow.send(Ship("1"), headers={"traceparent": "mine"})
        (waiting,) = await flow.waiting("shipping")
        await flow.run("shipping")

    assert "x-trace" in waiting.headers
    assert waiting.headers["traceparent"] == "mine"
    assert linked(traces.one("process shipping")) == {id_of(traces.one("send shipping"))}


def test_baggage_of_more_than_can_be_read_is_left_out() -> None:
    context = Propagation().read({"traceparent": FOREIGN, "baggage": "a=" + "b" * LONGEST})

    assert baggage.get_all(context) == {}
    assert trace.get_current_span(context).get_span_context().trace_id == int(TRACE, 16)


def test_headers_of_another_context_are_a_mapping_like_any_other() -> None:
    before = {"id": "m-1", "tenant": "acme", "traceparent": "old", "baggage": "old=1"}
    propagation = Propagation()
    context = propagation.read({"traceparent": FOREIGN})

    headers = ToldHeaders(propagation, before, context)

    assert headers == {"id": "m-1", "tenant": "acme", "traceparent": FOREIGN}
    assert ("tenant" in headers, "baggage" in headers, len(headers)) == (True, False, 3)
    assert repr(headers) == repr(dict(headers))
    assert Message(b"", headers).caused(b"").headers["traceparent"] == FOREIGN


def test_headers_of_another_context_are_copied_and_pickled_as_what_they_say() -> None:
    headers = ToldHeaders(Propagation(), {"id": "m-1"}, Context({"lock": Lock()}))
    said = {"id": "m-1"}

    assert (headers.copy(), copy(headers), deepcopy(headers), loads(dumps(headers))) == (said, said, said, said)
    assert loads(dumps(Message("1", headers))) == deepcopy(Message("1", headers)) == Message("1", said)
    assert (headers | {"id": "m-2"}, {"id": "m-2", "tenant": "acme"} | headers) == (
        {"id": "m-2"},
        {"id": "m-1", "tenant": "acme"},
    )


async def test_a_handler_can_hand_its_message_to_another_process() -> None:
    handed: list[Message[Ship]] = []

    @command_handler
    async def ship(command: Ship, message: Message[Ship]) -> None:
        handed.append(loads(dumps(message)))

    traces = Traces()
    async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"))

    assert handed[0].payload == Ship("1")
    assert handed[0].headers["traceparent"] == traceparent_of(traces.spans[-1])


async def test_the_baggage_of_a_client_is_not_stored_with_events_and_reaches_those_who_are_told_of_them() -> None:
    traces, seen = Traces(), []

    class Reporting:
        @command_handler
        async def ship(self, command: Ship, store: EventStore, events: EventBus) -> None:
            await store.append("order-1", [command])
            await events.publish(command)

        @asynchronous("reports")
        @event_handler(id="report")
        async def report(self, event: Ship) -> None:
            seen.append(baggage.get_baggage("session"))

    async with flow_test([Reporting], channels=[MemoryChannel("reports")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"), headers={"traceparent": FOREIGN, "tracestate": "a=1", "baggage": "session=secret"})
        await flow.run("reports")
        store = flow.ecotone.assembly.services[EventStore]
        assert isinstance(store, EventStore)
        (stored,) = await store.load("order-1")

    assert "baggage" not in stored.headers
    assert stored.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert stored.headers["tracestate"] == "a=1"
    assert seen == ["secret"]


def test_headers_that_were_written_keep_no_earlier_ones_in_memory() -> None:
    class Before(dict[str, str]): ...

    before = Before(id="m-1")
    gone = weakref.ref(before)
    headers = ToldHeaders(Propagation(), before, Context())
    del before

    assert gone() is not None
    assert headers["id"] == "m-1"
    assert gone() is None
