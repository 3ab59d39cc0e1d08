"""What spans tell in detail: which event of a batch it was, which process, and what the server calls it."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from sqlalchemy import text

from ecotone_fastapi import Ecotone, EventBus, EventStore, asynchronous, command_handler, event_handler, projection
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits
from ecotone_fastapi.core.errors import ChannelError, ProjectionError, SendError
from ecotone_fastapi.modelling.event_types import StoredHeaders
from ecotone_fastapi.testing import flow_test
from tests.adapters.traces import Traces
from tests.conftest import SERVERS


@pytest.fixture
def traces() -> Traces:
    return Traces()


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


class Mails:
    @asynchronous("mails")
    @event_handler(id="mail")
    async def confirm(self, event: OrderWasPlaced) -> None: ...


@dataclass(frozen=True)
class Moved:
    amount: int


@projection("moves", categories=["wallet"])
class Moves:
    @event_handler(id="count-moves")
    async def count(self, event: Moved) -> None:
        if event.amount < 0:
            raise ValueError("no overdraft")


async def projected(traces: Traces, amounts: Sequence[int], **options: Any) -> Sequence[str]:
    """Let a projection handle a batch of events; return the ids of these."""
    plugin = Tracing(traces.provider, **options)
    async with Ecotone([Moves], plugins=[plugin]).running(consumers=False) as ecotone:
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        await events.append("wallet-1", [Moved(amount) for amount in amounts])
        with suppress(ProjectionError):
            await ecotone.run("moves", Limits(until_empty=True))
        return [StoredHeaders(one)["id"] for one in await events.storage.read("wallet-1", after=0)]


async def test_a_batch_of_a_projection_that_fails_tells_which_event_and_handler_it_was(traces: Traces) -> None:
    stored = await projected(traces, [1, -2, 3])

    first = traces.named("project moves")[0]
    assert (first.attributes or {})["messaging.batch.message_count"] == 3
    assert (first.attributes or {})["messaging.message.id"] == stored[1]
    assert (first.attributes or {})["ecotone.endpoint"] == "count-moves"
    assert (first.attributes or {})["error.type"] == "ValueError"
    assert traces.named("handle Moves.count") == []


async def test_handlers_in_a_batch_of_a_projection_have_spans_if_somebody_wants_them(traces: Traces) -> None:
    stored = await projected(traces, [1, 2, -3], projection_handlers=True)

    batch = traces.named("project moves")[0]
    handled = [span for span in traces.named("handle Moves.count") if span.parent and span.parent == batch.context]
    told = [(span.attributes or {}).get("messaging.message.id") for span in handled]
    assert told == stored
    assert [(span.attributes or {}).get("error.type") for span in handled] == [None, None, "ValueError"]
    assert {(span.attributes or {})["ecotone.endpoint"] for span in handled} == {"count-moves"}


async def test_spans_tell_which_process_it_was(traces: Traces, sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    plugins = [database, Tracing(traces.provider)]
    async with flow_test([Orders, Mails], channels=[database.channel("mails")], plugins=plugins) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mails")

    for name in ("create mails", "process mails", "ack mails"):
        assert (traces.one(name).attributes or {})["messaging.client.id"] == f"{socket.gethostname()}:{os.getpid()}"


async def test_failures_are_told_by_the_code_of_the_server(traces: Traces, sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    plugins = [database, Tracing(traces.provider)]
    async with Ecotone([Orders, Mails], channels=[database.channel("mails")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        async with database.engine.begin() as connection:
            await connection.execute(text("DROP TABLE ecotone_message"))
        with pytest.raises(ChannelError) as refused:
            await ecotone.assembly.gateway.send("mails", ecotone.assembly.gateway.message("x"))

    assert refused.value.code == "SQLITE_ERROR"
    assert (traces.one("send mails").attributes or {})["error.type"] == "SQLITE_ERROR"


@pytest.mark.rabbitmq
async def test_spans_tell_what_rabbitmq_calls_its_deliveries_clients_and_refusals(
    traces: Traces, sqlite_url: str
) -> None:
    url, queue = SERVERS["rabbitmq"].url, f"traces-test-{uuid4().hex[:8]}"
    plugins = [SqlAlchemy(sqlite_url, create_schema=True), Tracing(traces.provider)]
    channel = RabbitMQChannel("mails", url, queue=queue, delivery="direct")
    async with await aio_pika.connect(url) as connection:
        queues = await connection.channel()
        try:
            async with flow_test([Orders, Mails], channels=[channel], plugins=plugins) as flow:
                await flow.send(PlaceOrder("1"))
                await flow.run("mails")
                await queues.queue_delete(queue)
                with pytest.raises(SendError):
                    await flow.send(PlaceOrder("2"))
        finally:
            await queues.queue_delete(queue)

    here = f"{socket.gethostname()}:{os.getpid()}"
    [processed], [acked] = traces.named(f"process {queue}"), traces.named(f"ack {queue}")
    for span in (processed, acked):
        assert (span.attributes or {})["messaging.rabbitmq.message.delivery_tag"] == 1
        assert (span.attributes or {})["messaging.client.id"] == f"ecotone: receive {here}"
    sent, refused = traces.named(f"send {queue}")
    assert (sent.attributes or {})["messaging.client.id"] == f"ecotone: publish {here}"
    assert "error.type" not in (sent.attributes or {})
    assert (refused.attributes or {})["error.type"] == "amqp:no-route"
