"""Which spans there are for what happens, flow by flow: golden trees."""

from dataclasses import dataclass
from textwrap import dedent

import pytest

from ecotone_fastapi import (
    EventBus,
    asynchronous,
    command_handler,
    event_handler,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.core import Limits
from ecotone_fastapi.testing import flow_test
from tests.adapters.traces import Traces, id_of, linked


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Orders:
    @command_handler
    async def place(self, command: PlaceOrder, events: EventBus) -> None:
        await events.publish(OrderWasPlaced(command.order_id))

    @query_handler("order.status")
    def status(self, order_id: str) -> str:
        return "placed"


class Mails:
    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[str] = []

    @asynchronous("mails")
    @event_handler(id="mail")
    async def confirm(self, event: OrderWasPlaced) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the mail server is down")
        self.sent.append(event.order_id)


@pytest.fixture
def traces() -> Traces:
    return Traces()


def is_drawn(traces: Traces, golden: str) -> None:
    assert traces.tree() == dedent(golden).strip()


async def test_a_command_and_its_event_are_one_trace(traces: Traces) -> None:
    class Stock:
        @event_handler
        async def reserve(self, event: OrderWasPlaced) -> None: ...

    async with flow_test([Orders, Stock], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.ask("1", to="order.status")

    is_drawn(
        traces,
        """
        send PlaceOrder
          handle Orders.place
            publish OrderWasPlaced
              handle Stock.reserve
        ask order.status
          handle Orders.status
        """,
    )


async def test_a_message_on_a_channel_is_handled_in_the_trace_that_has_created_it(traces: Traces) -> None:
    async with flow_test(
        [Orders, Mails], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider)]
    ) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mails")

    is_drawn(
        traces,
        """
        send PlaceOrder
          handle Orders.place
            publish OrderWasPlaced
              create mails PRODUCER
                process mails CONSUMER ~ create mails
                  handle Mails.confirm
                ack mails CLIENT ~ create mails
          send mails CLIENT ~ create mails
        """,
    )


async def test_what_leaves_at_once_has_one_span_that_is_its_creation(traces: Traces) -> None:
    async with flow_test([Mails], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await flow.run("mails")

    is_drawn(
        traces,
        """
        publish OrderWasPlaced
          send mails PRODUCER
            process mails CONSUMER ~ send mails
              handle Mails.confirm
            ack mails CLIENT ~ send mails
        """,
    )


async def test_a_batch_is_linked_to_the_creation_of_each_message(traces: Traces) -> None:
    class Customers:
        @command_handler
        async def place_several(self, orders: list[str], events: EventBus) -> None:
            for order in orders:
                await events.publish(OrderWasPlaced(order))

    async with flow_test(
        [Customers, Mails],
        channels=[MemoryChannel("mails")],
        plugins=[Tracing(traces.provider, receive=True)],
    ) as flow:
        await flow.send(["1", "2", "3"], to=None)
        await flow.run("mails", Limits(messages=1, until_empty=True))
        await flow.run("mails")

    created = {id_of(span) for span in traces.named("create mails")}
    sent = traces.one("send mails")
    assert len(created) == 3
    assert linked(sent) == created
    assert sent.attributes is not None
    assert sent.attributes["messaging.batch.message_count"] == 3
    received = traces.named("receive mails")
    assert set().union(*(linked(span) for span in received)) == created
    assert [len(linked(span)) for span in traces.named("process mails")] == [1, 1, 1]
