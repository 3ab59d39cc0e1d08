"""From the HTTP request on: FastAPI's own spans, or those of its instrumentation, and ours below them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from ecotone_fastapi import CommandBusDep, Ecotone, EventBus, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.core import Limits
from tests.adapters.traces import Traces, id_of, trace_of

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@command_handler
async def place(command: PlaceOrder, events: EventBus) -> None:
    await events.publish(OrderWasPlaced(command.order_id))
    if command.order_id == "13":
        raise ValueError("unlucky")


@asynchronous("mails")
@event_handler(id="mail")
async def mail(event: OrderWasPlaced) -> None: ...


def natively(provider: TracerProvider, ecotone: Ecotone) -> FastAPI:
    try:
        app = FastAPI(telemetry={"tracer_provider": provider, "metrics": False, "logs": False})
    except TypeError:  # pragma: no cover
        pytest.skip("this FastAPI traces nothing by itself")
    ecotone.install(app)
    return app


def instrumented_before(provider: TracerProvider, ecotone: Ecotone) -> FastAPI:
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    ecotone.install(app)
    return app


def instrumented_after(provider: TracerProvider, ecotone: Ecotone) -> FastAPI:
    app = FastAPI()
    ecotone.install(app)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    return app


WAYS: dict[str, Callable[[TracerProvider, Ecotone], FastAPI]] = {
    "natively": natively,
    "instrumented before": instrumented_before,
    "instrumented after": instrumented_after,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[TracerProvider, Ecotone], FastAPI]:
    return WAYS[request.param]


def post(way: Callable[..., FastAPI], order: str, traces: Traces) -> Any:
    """Place an order over HTTP, and run what comes of it."""
    ecotone = Ecotone(
        [place, mail], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider)], consumers=False
    )
    app = way(traces.provider, ecotone)

    @app.post("/orders", status_code=202)
    async def place_order(command: PlaceOrder, commands: CommandBusDep) -> None:
        await commands.send(command)

    @app.post("/mails")
    async def send_mails() -> int:
        return await ecotone.run("mails", Limits(until_empty=True))

    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.post("/orders", json={"order_id": order}, headers={"traceparent": CALLER})
        client.post("/mails")
    return response


def test_a_request_its_command_and_what_comes_of_it_are_one_trace(way: Callable[..., FastAPI]) -> None:
    traces = Traces()

    assert post(way, "1", traces).status_code == 202

    by_id = {id_of(span): span for span in traces.spans}
    created = traces.one("create mails")
    path = []
    span = created
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        path.append(span)
    assert [one.name for one in path][:3] == ["publish OrderWasPlaced", "handle place", "send PlaceOrder"]
    assert path[-1].kind is SpanKind.SERVER
    assert path[-1].name == "POST /orders"
    assert path[-1].parent is not None
    assert f"{trace_of(created):032x}" == CALLER.split("-")[1]
    assert [one.name for one in traces.spans if one.kind is SpanKind.SERVER] == ["POST /orders", "POST /mails"]


def test_what_a_request_receives_is_part_of_the_request_and_linked_to_its_creation(way: Callable[..., FastAPI]) -> None:
    traces = Traces()

    post(way, "1", traces)

    created, processed = traces.one("create mails"), traces.one("process mails")
    (draining,) = [span for span in traces.spans if span.name == "POST /mails" and span.kind is SpanKind.SERVER]
    assert trace_of(processed) == trace_of(draining)
    assert [link.context.span_id for link in processed.links] == [id_of(created)]


def test_the_answer_to_a_failure_is_still_below_the_request(way: Callable[..., FastAPI]) -> None:
    traces = Traces()

    assert post(way, "13", traces).status_code == 500

    server = next(span for span in traces.spans if span.name == "POST /orders" and span.kind is SpanKind.SERVER)
    sent = traces.one("send PlaceOrder")
    ended = {id_of(span) for span in traces.spans if trace_of(span) == trace_of(sent)} - {id_of(server)}
    assert sent.attributes is not None
    assert sent.attributes["error.type"] == "ValueError"
    assert traces.named("send mails") == []
    # Nothing that the server does after the handler hangs below a span that is over.
    assert all(
        span.parent is None or span.parent.span_id not in ended
        for span in traces.spans
        if span.name.endswith("http send") and trace_of(span) == trace_of(server)
    )
