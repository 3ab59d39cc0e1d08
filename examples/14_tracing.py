"""14. Traces: `python examples/14_tracing.py`

`Tracing()` among the plugins, and every message is a span: on a bus, in its handler, where it is made for a channel,
where it is sent, handled and acked. They follow the messaging conventions of OpenTelemetry 1.44. The context travels in
the headers, as plain text, through databases and brokers, so that an order is one trace from the HTTP request, which
FastAPI traces itself, to the last asynchronous effect in another process; retries, dead letters and replays belong to
it. Batches, such as those of the relay of an outbox, are linked to what they are made of.

Where the spans go is for the provider to say. In production it is set before the start, and most often exports:

    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
"""

import asyncio
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ecotone_fastapi import EventBus, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@command_handler
async def place_order(command: PlaceOrder, events: EventBus) -> None:
    await events.publish(OrderWasPlaced(command.order_id))


@asynchronous("mails")
@event_handler(id="confirm-order")
async def confirm(event: OrderWasPlaced) -> None: ...


def lines(spans: list[ReadableSpan], parent: int | None = None, depth: int = 0) -> list[str]:
    """Draw the spans below one of them."""
    drawn = []
    for span in spans:
        if (span.parent.span_id if span.parent else None) == parent:
            drawn += ["  " * depth + span.name, *lines(spans, span.context.span_id, depth + 1)]
    return drawn


async def trace_an_order() -> list[str]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    channels, plugins = [MemoryChannel("mails")], [Tracing(provider)]  # without a provider, that of the process
    async with flow_test([place_order, confirm], channels=channels, plugins=plugins) as flow:
        await flow.send(PlaceOrder("order-1"))
        await flow.run("mails")
    return lines(sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0))


if __name__ == "__main__":
    print("\n".join(asyncio.run(trace_an_order())))


async def test_an_order_is_traced_to_its_last_effect() -> None:
    handled = ["process mails", "handle confirm", "ack mails", "send mails"]
    made = ["send PlaceOrder", "handle place_order", "publish OrderWasPlaced", "create mails"]
    assert [line.strip() for line in await trace_an_order()] == made + handled
