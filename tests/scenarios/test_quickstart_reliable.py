"""Programs of people who run several processes, a broker and a database: each is a scenario from the user's side."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import aio_pika
import httpx
import pytest
from fastapi import Body, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    Backoff,
    CommandBusDep,
    Ecotone,
    EventBus,
    Failures,
    asynchronous,
    command_handler,
    deduplicated,
    event_handler,
    retried,
)
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits
from ecotone_fastapi.testing import flow_test
from tests.cli.processes import run_ecotone
from tests.conftest import SERVERS

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]


@pytest.fixture
def queue() -> Iterator[str]:
    """The name of a queue, which is removed afterwards."""
    name = f"quickstart-{uuid4().hex}"
    yield name
    asyncio.run(delete_queue(name))


async def delete_queue(name: str) -> None:
    async with await aio_pika.connect(SERVERS["rabbitmq"].url) as connection:
        await (await connection.channel()).queue_delete(name)


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Notifications:
    def __init__(self) -> None:
        self.sent: list[str] = []

    @asynchronous("notifications")
    @event_handler(id="notify")
    async def notify(self, event: OrderWasPlaced) -> None:
        self.sent.append(event.order_id)


async def test_an_event_is_handled_behind_rabbitmq_by_a_consumer_that_ends_after_one(
    postgresql_url: str, queue: str
) -> None:
    notifications = Notifications()
    channel = RabbitMQChannel("notifications", SERVERS["rabbitmq"].url, queue=queue, delivery="direct")
    database = SqlAlchemy(postgresql_url, create_schema=True)
    async with flow_test([notifications], channels=[channel], plugins=[database]) as flow:
        await flow.publish(OrderWasPlaced("order-1"))
        await flow.publish(OrderWasPlaced("order-2"))
        assert notifications.sent == []

        assert await flow.run("notifications", Limits(messages=1)) == 1
        assert notifications.sent == ["order-1"]


# ------------------------------------------------------------------------------ two processes that share their handlers

MODULE = """
import os
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import Backoff, Ecotone, Failures, asynchronous, command_handler, event_handler, query_handler
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

database = SqlAlchemy(os.environ["DATABASE"], create_schema=True)


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Shipping:
    @asynchronous("shipping")
    @event_handler(id="ship-order")
    async def ship(self, event: OrderWasPlaced, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO shipped VALUES (:id)"), {"id": event.order_id})
        if "NETWORK" not in os.environ:
            raise ConnectionError("the carrier does not answer")

    @query_handler("order.is_shipped")
    async def is_shipped(self, order_id: str, session: AsyncSession) -> bool:
        found = await session.execute(text("SELECT count(*) FROM shipped WHERE id = :id"), {"id": order_id})
        return found.scalar_one() > 0


ecotone = Ecotone(
    [Shipping],
    channels=[RabbitMQChannel("shipping", os.environ["BROKER"], queue=os.environ["QUEUE"])],
    plugins=[database, Failures(Backoff(retries=3, first=0.1, factor=1.0, jitter=0.0))],
)
"""

PUBLISHER = """
import asyncio, sys
from sqlalchemy import text
from shipping import OrderWasPlaced, database, ecotone

async def main():
    async with ecotone.running(consumers=False):
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS shipped (id VARCHAR(50))"))
        await ecotone.event_bus.publish(OrderWasPlaced(sys.argv[1]), headers={"id": sys.argv[2]})

asyncio.run(main())
"""

ASKER = """
import asyncio, sys
from shipping import ecotone

async def main():
    async with ecotone.running(consumers=False):
        print(await ecotone.query_bus.ask(sys.argv[1], to="order.is_shipped"))

asyncio.run(main())
"""


class Processes:
    """An application of which every step is a process of its own."""

    def __init__(self, directory: Path, database: str, queue: str) -> None:
        self.directory = directory
        self.environment = {"DATABASE": database, "BROKER": SERVERS["rabbitmq"].url, "QUEUE": queue}
        (directory / "shipping.py").write_text(MODULE)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program to its end; return what it has printed."""
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=self.directory,
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            timeout=200,
        )
        return ended.stdout.decode().strip()

    def ecotone(self, *arguments: str, **environment: str) -> Any:
        """Run `ecotone … --json` to its end; return what it has printed."""
        ended = run_ecotone(*arguments, "--json", cwd=self.directory, env={**self.environment, **environment})
        return json.loads(ended.stdout)


@pytest.fixture
def processes(tmp_path: Path, postgresql_url: str, queue: str) -> Processes:
    return Processes(tmp_path, postgresql_url, queue)


def test_a_publisher_ends_and_a_consumer_handles_one_message_and_stops(processes: Processes) -> None:
    processes.run(PUBLISHER, "order-1", "event-1")
    relayed = processes.ecotone("run", "shipping:ecotone", "outbox", "--until-empty")
    handled = processes.ecotone("run", "shipping:ecotone", "shipping", "--messages", "1", NETWORK="yes")

    assert (relayed["handled"], handled["handled"]) == ({"outbox": 1}, {"shipping": 1})
    assert processes.run(ASKER, "order-1") == "True"


def test_a_message_that_failed_four_times_behind_rabbitmq_is_replayed_by_command(processes: Processes) -> None:
    processes.run(PUBLISHER, "order-1", "event-1")
    # Retries wait in the outbox, whose relay brings them back: both run until nothing is left for a second.
    processes.ecotone("run", "shipping:ecotone", "--seconds", "6")

    [parked] = processes.ecotone("deadletter", "list", "shipping:ecotone")["dead_letters"]
    assert parked["headers"]["id"] == "event-1"
    assert parked["attempts"] == 4
    assert processes.run(ASKER, "order-1") == "False"

    run_ecotone(
        "deadletter",
        "replay",
        "shipping:ecotone",
        parked["id"],
        cwd=processes.directory,
        env=processes.environment,
    )
    processes.ecotone("run", "shipping:ecotone", "outbox", "--until-empty")
    processes.ecotone("run", "shipping:ecotone", "shipping", "--messages", "1", NETWORK="yes")

    assert processes.run(ASKER, "order-1") == "True"
    assert processes.ecotone("deadletter", "list", "shipping:ecotone")["dead_letters"] == []


# ------------------------------------------------------------------------------ an order and its messages, both or none


class Shop:
    def __init__(self) -> None:
        self.done: list[str] = []

    @command_handler("order.place")
    async def place(self, order_id: str, session: AsyncSession, events: EventBus) -> None:
        await session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": order_id})
        await events.publish(OrderWasPlaced(order_id))
        if order_id == "order-2":
            raise ValueError("there is no such product")

    @asynchronous("database")
    @event_handler(id="reserve")
    async def reserve(self, event: OrderWasPlaced) -> None:
        self.done.append(f"{event.order_id} is reserved")

    @asynchronous("database", "broker")
    @event_handler(id="ship")
    async def ship(self, event: OrderWasPlaced) -> None:
        self.done.append(f"{event.order_id} is shipped")


async def test_what_is_committed_crosses_the_database_and_then_the_broker(postgresql_url: str, queue: str) -> None:
    shop, database = Shop(), SqlAlchemy(postgresql_url, create_schema=True)
    broker = RabbitMQChannel("broker", SERVERS["rabbitmq"].url, queue=queue, delivery="direct")
    async with flow_test([shop], channels=[database.channel("database"), broker], plugins=[database]) as flow:
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE orders (id VARCHAR(50))"))
        await flow.send("order-1", to="order.place")
        assert shop.done == []

        assert await flow.run("database", Limits(messages=2)) == 2
        assert shop.done == ["order-1 is reserved"]
        assert await flow.run("broker") == 1
        assert shop.done == ["order-1 is reserved", "order-1 is shipped"]

        with pytest.raises(ValueError, match="no such product"):
            await flow.send("order-2", to="order.place")
        assert await flow.waiting("database") == []
        async with database.engine.connect() as connection:
            assert (await connection.execute(text("SELECT id FROM orders"))).scalars().all() == ["order-1"]


# ----------------------------------------------------------------------- an endpoint that became a reactive application


class Reactive:
    """The bank loses its connection once, the carrier is closed for a while, and the customer clicks twice."""

    def __init__(self) -> None:
        self.placed: list[str] = []
        self.charged: list[str] = []
        self.shipped: list[str] = []
        self.lost_connections = 0
        self.carrier_is_open = False

    @deduplicated(key="order_id")
    @command_handler("order.place")
    async def place(self, order: dict[str, str], events: EventBus) -> None:
        self.placed.append(order["id"])
        await events.publish(OrderWasPlaced(order["id"]))

    @retried(times=2, on=ConnectionError)
    @asynchronous("work")
    @event_handler(id="charge")
    async def charge(self, event: OrderWasPlaced) -> None:
        if not self.lost_connections:
            self.lost_connections += 1
            raise ConnectionError("the bank has hung up")
        self.charged.append(event.order_id)

    @asynchronous("work")
    @event_handler(id="ship-later")
    async def ship(self, event: OrderWasPlaced) -> None:
        if not self.carrier_is_open:
            raise TimeoutError("the carrier is closed")
        self.shipped.append(event.order_id)


async def test_an_endpoint_sends_a_command_and_two_subscribers_succeed_each_in_its_own_way(
    postgresql_url: str,
) -> None:
    reactive, database = Reactive(), SqlAlchemy(postgresql_url, create_schema=True)
    app = FastAPI()

    @app.post("/orders/{order_id}", status_code=202)
    async def post_order(order_id: str, order: Annotated[dict[str, str], Body()], commands: CommandBusDep) -> None:
        await commands.send({**order, "id": order_id}, to="order.place", headers={"order_id": order_id})

    async with flow_test(
        [reactive], channels=[database.channel("work")], plugins=[database, Failures(Backoff(retries=1, first=60))]
    ) as flow:
        await _post_twice(flow.ecotone, app, "order-1")
        assert reactive.placed == ["order-1"]

        assert await flow.run("work", raises=False) == 1
        assert (reactive.charged, reactive.lost_connections) == (["order-1"], 1)
        assert reactive.shipped == []

        reactive.carrier_is_open = True
        await flow.advance(timedelta(minutes=2))
        assert await flow.run("work") == 1
        assert reactive.shipped == ["order-1"]
        assert await flow.dead_letters() == []


async def _post_twice(ecotone: Ecotone, app: FastAPI, order_id: str) -> None:
    app.state.ecotone = ecotone
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        for _ in range(2):
            answer = await client.post(f"/orders/{order_id}", json={"product": "milk"})
            assert answer.status_code == 202
