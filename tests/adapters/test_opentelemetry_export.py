"""The proof: two processes, a broker and a database, and one trace at a receiver that both of them export to."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import aio_pika
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ecotone_fastapi import asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.testing import flow_test
from tests.adapters.otlp import ReceivedSpan, receiving
from tests.cli.processes import ecotone, eventually
from tests.conftest import SERVERS

APPLICATION = """
import os
from dataclasses import dataclass

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from ecotone_fastapi import (
    CommandBusDep, Ecotone, EventBus, EventStore, asynchronous, command_handler, event_handler, projection
)
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

provider = TracerProvider(resource=Resource({"service.name": os.environ["SERVICE"]}))
exporter = OTLPSpanExporter(os.environ["ENDPOINT"])
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=100))
trace.set_tracer_provider(provider)


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@dataclass(frozen=True)
class OrderWasShipped:
    order_id: str


@command_handler
async def place(command: PlaceOrder, events: EventBus) -> None:
    await events.publish(OrderWasPlaced(command.order_id))


@asynchronous("shipping")
@event_handler(id="ship")
async def ship(event: OrderWasPlaced, store: EventStore) -> None:
    await store.append(f"shipment-{event.order_id}", [OrderWasShipped(event.order_id)])


@asynchronous("mails")
@event_handler(id="mail")
async def mail(event: OrderWasPlaced) -> None: ...


@projection("shipments", categories=["shipment"])
class Shipments:
    @event_handler
    async def shipped(self, event: OrderWasShipped) -> None: ...


database = SqlAlchemy(os.environ["DATABASE"], create_schema=True)
broker = RabbitMQChannel("shipping", os.environ["BROKER"], queue=os.environ["QUEUE"])
ecotone = Ecotone(
    [place, ship, mail, Shipments],
    channels=[broker, database.channel("mails")],
    plugins=[database, Tracing()],
    consumers=False,
)
app = FastAPI(lifespan=ecotone.lifespan)


@app.post("/orders", status_code=202)
async def place_order(command: PlaceOrder, commands: CommandBusDep) -> None:
    await commands.send(command)
"""


@contextmanager
def serving(directory: Path, environment: dict[str, str]) -> Iterator[str]:
    """Serve the application in a process of its own; it is told to end, and waited for."""
    with socket.create_server(("127.0.0.1", 0)) as http:
        command = [sys.executable, "-m", "uvicorn", "application:app", "--fd", str(http.fileno())]
        environment = {**os.environ, **environment, "PYTHONPATH": str(directory)}
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, pass_fds=[http.fileno()]
        ) as process:
            assert process.stderr is not None
            try:
                started = any("Application startup complete" in line for line in process.stderr)
                assert started
                yield f"http://127.0.0.1:{http.getsockname()[1]}"
            finally:
                process.terminate()


@pytest.fixture
def queue() -> Iterator[str]:
    """The name of a queue, which is deleted when the test is over."""
    name = f"traced-{uuid4().hex}"
    yield name

    async def delete() -> None:
        async with await aio_pika.connect(SERVERS["rabbitmq"].url) as connection:
            await (await connection.channel()).queue_delete(name)

    asyncio.run(delete())


def drawn(spans: Sequence[ReceivedSpan]) -> str:
    """Draw what is ours, and the request, as a tree: who did it, and what it is linked to."""
    every = {span.id: span for span in spans}
    ours = {span.id for span in spans if span.scope == "ecotone_fastapi" or span.kind == "SERVER"}

    def above(span: ReceivedSpan) -> str:
        parent = span.parent
        while parent in every and parent not in ours:
            parent = every[parent].parent
        return parent if parent in ours else ""

    children: dict[str, list[ReceivedSpan]] = {}
    for span in spans:
        if span.id in ours:
            children.setdefault(above(span), []).append(span)
    lines: list[str] = []

    def draw(parent: str, depth: int) -> None:
        for span in sorted(children.get(parent, []), key=lambda one: one.name):
            links = "".join(f" ~ {every[link].name}" for link in span.links)
            lines.append(f"{'  ' * depth}{span.name} [{span.service}, {span.kind.lower()}]{links}")
            draw(span.id, depth + 1)

    draw("", 0)
    return "\n".join(lines)


@pytest.mark.postgresql
@pytest.mark.rabbitmq
def test_from_the_request_to_the_last_effect_in_another_process_it_is_one_trace(
    tmp_path: Path, postgresql_url: str, queue: str
) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    with receiving(tmp_path / "received") as receiver:
        environment = {
            "DATABASE": postgresql_url,
            "BROKER": SERVERS["rabbitmq"].url,
            "QUEUE": queue,
            "ENDPOINT": receiver.endpoint,
            "NO_PROXY": "127.0.0.1",
        }
        with (
            serving(tmp_path, {**environment, "SERVICE": "web"}) as address,
            ecotone("run", "application:ecotone", cwd=tmp_path, env={**environment, "SERVICE": "worker"}) as worker,
        ):
            assert httpx.post(f"{address}/orders", json={"order_id": "1"}, timeout=30).status_code == 202
            acks = {f"ack {queue}", "ack mails", "ack outbox/shipping"}
            expected = {*acks, "project shipments", f"send {queue}", "POST /orders"}
            eventually(lambda: expected <= {span.name for span in receiver.spans()}, "all spans at the receiver")
            worker.send(signal.SIGTERM)
            worker.ends()
        spans = receiver.spans()

    assert (
        drawn(spans).replace(queue, "shipping")
        == dedent("""
        POST /orders [web, server]
          send PlaceOrder [web, internal]
            handle place [web, internal]
              publish OrderWasPlaced [web, internal]
                create mails [web, producer]
                  process mails [worker, consumer] ~ create mails
                    ack mails [worker, client] ~ create mails
                    handle mail [worker, internal]
                create shipping [web, producer]
                  ack outbox/shipping [worker, client] ~ create shipping
                  ack shipping [worker, client] ~ create shipping
                  process shipping [worker, consumer] ~ create shipping
                    handle ship [worker, internal]
                      project shipments [worker, consumer] ~ handle ship
            send mails [web, client] ~ create mails
            send outbox/shipping [web, client] ~ create shipping
        send shipping [worker, client] ~ create shipping
    """).strip()
    )
    (request,) = [span for span in spans if span.kind == "SERVER"]
    relayed = next(span for span in spans if span.name == f"send {queue}")
    of_ours = [span for span in spans if span.scope == "ecotone_fastapi"]
    assert {span.trace for span in of_ours if span is not relayed} == {request.trace}
    assert relayed.trace != request.trace
    assert {span.schema for span in of_ours} == {"https://opentelemetry.io/schemas/1.44.0"}
    assert not any(span.failed for span in spans)

    processed = next(span for span in spans if span.name == f"process {queue}")
    assert processed.attributes["messaging.system"] == "rabbitmq"
    assert processed.attributes["messaging.rabbitmq.destination.routing_key"] == queue
    assert processed.attributes["server.port"] == 5672
    stored = next(span for span in spans if span.name == "send mails")
    assert stored.attributes["messaging.system"] == "ecotone_sql"
    assert stored.attributes["server.address"] == relayed.attributes["server.address"] == "127.0.0.1"


@dataclass(frozen=True)
class Ship:
    order_id: int


@asynchronous("shipping")
@command_handler(id="ship")
async def ship(command: Ship) -> None: ...


async def handled_with(provider: TracerProvider, times: int) -> int:
    async with flow_test([ship], channels=[MemoryChannel("shipping")], plugins=[Tracing(provider)]) as flow:
        for number in range(times):
            await flow.send(Ship(number))
        return await flow.run("shipping")


async def test_messages_are_handled_while_the_receiver_of_traces_is_down(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{port}/v1/traces", timeout=1)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=64, max_export_batch_size=16))
    caplog.set_level(logging.CRITICAL, logger="opentelemetry")

    handled = await handled_with(provider, 200)

    assert handled == 200
    exporter.shutdown()  # what is left is for nobody
    await asyncio.to_thread(provider.shutdown)


async def test_messages_are_handled_while_the_receiver_of_traces_does_not_answer() -> None:
    reached, answered = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                reached.set()
                answered.wait(30)

        thread = threading.Thread(target=accept)
        thread.start()
        provider = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces", timeout=20)
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=64, max_export_batch_size=16))

        assert await handled_with(provider, 50) == 50
        assert await asyncio.to_thread(reached.wait, 20)  # by now the exporter waits for its answer
        assert await handled_with(provider, 100) == 100

        exporter.shutdown()  # what is left is for nobody
        answered.set()
        thread.join()
    await asyncio.to_thread(provider.shutdown)
