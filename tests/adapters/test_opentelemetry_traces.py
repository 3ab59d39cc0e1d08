"""Which spans there are for what happens, flow by flow: golden trees."""

from dataclasses import dataclass, replace
from datetime import timedelta
from textwrap import dedent

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach

from ecotone_fastapi import (
    CommandBus,
    EventBus,
    EventStore,
    asynchronous,
    command_handler,
    event_handler,
    projection,
    query_handler,
    retried,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits, Message
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.policies import Backoff
from ecotone_fastapi.testing import flow_test
from tests.adapters.traces import Traces, id_of, linked, trace_of


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
        await flow.send(["1", "2", "3"])
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


async def test_each_run_of_an_instant_retry_is_a_span_with_its_error(traces: Traces) -> None:
    failures = [TimeoutError("slow"), TimeoutError("slow again")]

    class Stock:
        @retried(times=2, on=TimeoutError)
        @command_handler
        async def reserve(self, command: PlaceOrder) -> None:
            if failures:
                raise failures.pop()

    async with flow_test([Stock], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(PlaceOrder("1"))

    is_drawn(
        traces,
        """
        send PlaceOrder
          handle Stock.reserve ! TimeoutError
          handle Stock.reserve ! TimeoutError
          handle Stock.reserve
        """,
    )


async def test_a_failure_is_on_every_span_that_it_passes_and_its_traceback_on_the_first(traces: Traces) -> None:
    class Stock:
        @command_handler
        async def reserve(self, command: PlaceOrder) -> None:
            raise LookupError("sold out")

    async with flow_test([Stock], plugins=[Tracing(traces.provider)]) as flow:
        with pytest.raises(LookupError):
            await flow.send(PlaceOrder("1"))

    is_drawn(
        traces,
        """
        send PlaceOrder ! LookupError
          handle Stock.reserve ! LookupError
        """,
    )
    sent, handled = traces.spans
    assert [event.name for event in handled.events] == ["exception"]
    assert list(sent.events) == []
    assert {span.status.description for span in traces.spans} == {"LookupError: sold out"}


async def test_a_retry_later_stays_in_the_first_trace(traces: Traces) -> None:
    async with flow_test(
        [Orders, Mails(failures=1)],
        channels=[MemoryChannel("mails")],
        plugins=[Tracing(traces.provider), Failures(Backoff(retries=1, first=60.0))],
    ) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mails", raises=False)
        await flow.advance(timedelta(minutes=2))
        await flow.run("mails")

    is_drawn(
        traces,
        """
        send PlaceOrder
          handle Orders.place
            publish OrderWasPlaced
              create mails PRODUCER
                process mails CONSUMER ~ create mails ! ConnectionError
                  handle Mails.confirm ! ConnectionError
                  nack mails CLIENT ~ create mails
                process mails CONSUMER ~ create mails
                  handle Mails.confirm
                ack mails CLIENT ~ create mails
          send mails CLIENT ~ create mails
        """,
    )
    assert [span.attributes and span.attributes["ecotone.attempt"] for span in traces.named("process mails")] == [1, 2]


async def test_a_dead_letter_and_its_replay_stay_in_the_first_trace(traces: Traces) -> None:
    async with flow_test(
        [Orders, Mails(failures=1)],
        channels=[MemoryChannel("mails")],
        plugins=[Tracing(traces.provider), Failures(Backoff(retries=0))],
    ) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mails", raises=False)
        (parked,) = await flow.dead_letters()
        await flow.replay(parked)
        await flow.run("mails")

    is_drawn(
        traces,
        """
        send PlaceOrder
          handle Orders.place
            publish OrderWasPlaced
              create mails PRODUCER
                process mails CONSUMER ~ create mails ! ConnectionError
                  handle Mails.confirm ! ConnectionError
                  park dead_letters CLIENT ~ create mails
                  ack mails CLIENT ~ create mails
                process mails CONSUMER ~ create mails
                  handle Mails.confirm
                ack mails CLIENT ~ create mails
          send mails CLIENT ~ create mails
        send mails CLIENT ~ create mails
        """,
    )


async def test_the_relay_of_an_outbox_sends_without_touching_where_messages_were_created(
    traces: Traces, sqlite_url: str
) -> None:
    class Broker(MemoryChannel):
        delivery = "outbox"

    broker = Broker("mails")
    broker.capabilities = replace(broker.capabilities, durable=True)
    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with flow_test([Orders, Mails], channels=[broker], plugins=[database, Tracing(traces.provider)]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.send(PlaceOrder("2"))
        stored = [message.headers["traceparent"] for message in await flow.waiting("outbox/mails")]
        await flow.run("outbox")
        assert [message.headers["traceparent"] for message in await flow.waiting("mails")] == stored
        await flow.run("mails")

    of_one_order = dedent("""
        send PlaceOrder
          handle Orders.place
            publish OrderWasPlaced
              create mails PRODUCER
                process mails CONSUMER ~ create mails
                  handle Mails.confirm
                ack mails CLIENT ~ create mails
          send outbox/mails CLIENT ~ create mails
    """).strip()
    of_both = ["send mails CLIENT", "ack outbox/mails CLIENT"]
    is_drawn(traces, "\n".join([of_one_order] * 2 + [f"{one} ~ create mails ~ create mails" for one in of_both]))


async def test_a_message_goes_on_from_channel_to_channel_in_one_trace(traces: Traces) -> None:
    class Slow:
        @asynchronous("first", "second")
        @event_handler(id="slow")
        async def on(self, event: OrderWasPlaced) -> None: ...

    channels = [MemoryChannel("first"), MemoryChannel("second")]
    async with flow_test([Slow], channels=channels, plugins=[Tracing(traces.provider)]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await flow.run("first")
        await flow.run("second")

    is_drawn(
        traces,
        """
        publish OrderWasPlaced
          send first PRODUCER
            process first CONSUMER ~ send first
              send second PRODUCER
                process second CONSUMER ~ send second
                  handle Slow.on
                ack second CLIENT ~ send second
            ack first CLIENT ~ send first
        """,
    )


@dataclass(frozen=True)
class MoneyWasMoved:
    amount: int


@command_handler
async def move(event: MoneyWasMoved, events: EventStore) -> None:
    await events.append("wallet-1", [event])


@projection("balances", categories=["wallet"])
class Balances:
    @event_handler
    async def moved(self, event: MoneyWasMoved) -> None: ...


async def test_a_projection_of_one_fresh_event_belongs_to_the_trace_of_the_event(traces: Traces) -> None:
    async with flow_test([move, Balances], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(MoneyWasMoved(1))
        await flow.run("balances")

    is_drawn(
        traces,
        """
        send MoneyWasMoved
          handle move
            project balances CONSUMER ~ handle move
        """,
    )


async def test_a_projection_that_catches_up_is_linked_to_its_events_and_is_no_giant_trace(traces: Traces) -> None:
    async with flow_test([move, Balances], plugins=[Tracing(traces.provider)]) as flow:
        for amount in range(130):
            await flow.send(MoneyWasMoved(amount))
        await flow.run("balances")

    projected = traces.one("project balances")
    assert projected.parent is None
    assert len(projected.links) == 128
    assert linked(projected) <= {id_of(span) for span in traces.named("handle move")}
    assert projected.attributes is not None
    assert projected.attributes["messaging.batch.message_count"] == 130
    assert len({trace_of(span) for span in traces.spans}) == 131


async def test_a_projection_of_the_past_begins_a_trace_of_its_own(traces: Traces) -> None:
    async with flow_test([move, Balances], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(MoneyWasMoved(1))
        await flow.advance(timedelta(hours=1))
        await flow.run("balances")

    projected = traces.one("project balances")
    assert projected.parent is None
    assert linked(projected) == {id_of(traces.one("handle move"))}


async def test_an_event_whose_age_is_not_known_is_only_linked(traces: Traces) -> None:
    @command_handler
    async def move_some_day(event: MoneyWasMoved, events: EventStore) -> None:
        await events.append("wallet-1", [Message(event, {"timestamp": "some day"})])

    async with flow_test([move_some_day, Balances], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(MoneyWasMoved(1))
        await flow.run("balances")

    assert traces.one("project balances").parent is None


async def test_a_projection_in_the_transaction_of_the_command_is_part_of_it(traces: Traces) -> None:
    @projection("totals", categories=["wallet"], mode="synchronous")
    class Totals:
        @event_handler
        async def moved(self, event: MoneyWasMoved) -> None:
            raise ArithmeticError("too much")

    async with flow_test([move, Totals], plugins=[Tracing(traces.provider)]) as flow:
        with pytest.raises(ArithmeticError):
            await flow.send(MoneyWasMoved(1))

    is_drawn(
        traces,
        """
        send MoneyWasMoved ! ArithmeticError
          handle move ! ArithmeticError
            project totals CONSUMER ~ handle move ! ArithmeticError
        """,
    )


async def test_the_baggage_of_a_sender_is_there_where_its_message_is_handled(traces: Traces) -> None:
    seen: list[object] = []

    class Tenants:
        @asynchronous("tenants")
        @command_handler(id="tenants")
        async def on(self, command: PlaceOrder, commands: CommandBus) -> None:
            seen.append(baggage.get_baggage("tenant"))
            await commands.send("next", to="next")

        @asynchronous("tenants")
        @command_handler("next", id="next")
        async def after(self, text: str) -> None:
            seen.append(baggage.get_baggage("tenant"))

    async with flow_test([Tenants], channels=[MemoryChannel("tenants")], plugins=[Tracing(traces.provider)]) as flow:
        token = attach(baggage.set_baggage("tenant", "acme"))
        await flow.send(PlaceOrder("1"))
        detach(token)
        await flow.send(PlaceOrder("2"))
        await flow.run("tenants")

    assert seen == ["acme", None, "acme", None]


async def test_with_links_alone_what_is_received_is_a_trace_of_its_own(traces: Traces) -> None:
    async with flow_test(
        [Mails], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider, process_parent="link")]
    ) as flow:
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


async def test_with_links_alone_what_is_received_within_a_span_is_linked_to_both(traces: Traces) -> None:
    tracer = traces.provider.get_tracer("test")
    async with flow_test(
        [Mails], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider, process_parent="link")]
    ) as flow:
        await flow.publish(OrderWasPlaced("1"))
        with tracer.start_as_current_span("POST /drain"):
            await flow.run("mails")

    is_drawn(
        traces,
        """
        publish OrderWasPlaced
          send mails PRODUCER
        POST /drain
          ack mails CLIENT ~ send mails
        process mails CONSUMER ~ send mails ~ POST /drain
          handle Mails.confirm
        """,
    )


async def test_receiving_is_not_part_of_a_span_that_has_ended(traces: Traces) -> None:
    span = traces.provider.get_tracer("test").start_span("start")
    plugins = [Tracing(traces.provider, receive=True)]
    async with flow_test([Mails], channels=[MemoryChannel("mails")], plugins=plugins) as flow:
        await flow.publish(OrderWasPlaced("1"))
        token = attach(trace.set_span_in_context(span))
        span.end()
        await flow.run("mails")
        detach(token)

    assert traces.one("receive mails").parent is None


async def test_what_is_received_within_a_span_is_part_of_that_and_linked_to_its_creation(traces: Traces) -> None:
    tracer = traces.provider.get_tracer("test")
    async with flow_test([Mails], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        with tracer.start_as_current_span("POST /drain"):
            await flow.run("mails")

    is_drawn(
        traces,
        """
        publish OrderWasPlaced
          send mails PRODUCER
        POST /drain
          process mails CONSUMER ~ send mails
            handle Mails.confirm
          ack mails CLIENT ~ send mails
        """,
    )


async def test_a_consumer_that_was_started_in_a_span_does_not_stay_in_it_when_it_has_ended(traces: Traces) -> None:
    span = traces.provider.get_tracer("test").start_span("start")
    token = attach(trace.set_span_in_context(span))
    span.end()
    async with flow_test([Mails], channels=[MemoryChannel("mails")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await flow.run("mails")
    detach(token)

    created, processed = traces.one("send mails"), traces.one("process mails")
    assert processed.parent is not None
    assert processed.parent.span_id == id_of(created)


async def test_a_message_that_is_given_up_before_it_is_tried_has_failed(traces: Traces) -> None:
    channel = MemoryChannel("mails", lease=10.0)
    async with flow_test(
        [Mails], channels=[channel], plugins=[Tracing(traces.provider), Failures(unsettled=2)]
    ) as flow:
        await flow.publish(OrderWasPlaced("1"))
        for _ in range(3):
            assert await channel.receive(1, 0.0)
            await flow.advance(timedelta(minutes=1))
        await flow.run("mails")
        assert len(await flow.dead_letters()) == 1

    processed = traces.one("process mails")
    assert processed.attributes is not None
    assert processed.attributes["error.type"] == "_OTHER"
