"""5. RabbitMQ: `docker compose up -d --wait rabbitmq && python examples/05_rabbitmq.py`

The channel is the only line that changes. Queues are declared at start: quorum queues, durable; messages are persistent
and confirmed. With a database among the plugins they leave through its outbox (see the next page), handlers remember
what they have done, so that a message that comes twice takes effect once, and what cannot be handled is parked there.

Who sends and who consumes may be two processes: `consumers=False` in one, `ecotone run shop:ecotone` in the other.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest

from ecotone_fastapi import Ecotone, asynchronous, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Channel, Limits
from ecotone_fastapi.testing import flow_test

BROKER = os.environ.get("ECOTONE_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/")


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Shipping:
    def __init__(self) -> None:
        self.shipped: list[str] = []

    @asynchronous("shipping")
    @event_handler(id="ship-order")
    async def ship(self, event: OrderWasPlaced) -> None:
        self.shipped.append(event.order_id)


async def main() -> None:
    shipping, database = Shipping(), SqlAlchemy("sqlite+aiosqlite:///example.db", create_schema=True)
    ecotone = Ecotone([shipping], channels=[RabbitMQChannel("shipping", BROKER)], plugins=[database])
    async with ecotone.running(consumers=False):
        await ecotone.event_bus.publish(OrderWasPlaced("order-1"))
        await ecotone.run("outbox", Limits(until_empty=True))
        await ecotone.run("shipping", Limits(messages=1))
    print(shipping.shipped)


if __name__ == "__main__":
    asyncio.run(main())


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Channel]:
    if request.param == "memory":
        yield MemoryChannel("shipping")
        return
    queue = f"example-{uuid4().hex}"
    yield RabbitMQChannel("shipping", BROKER, queue=queue, delivery="direct")
    async with await aio_pika.connect(BROKER) as connection:
        await (await connection.channel()).queue_delete(queue)


async def test_an_order_is_shipped_by_whatever_channel_there_is(channel: Channel, tmp_path: Path) -> None:
    shipping, database = Shipping(), SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db", create_schema=True)
    async with flow_test([shipping], channels=[channel], plugins=[database]) as flow:
        await flow.publish(OrderWasPlaced("order-1"))
        assert shipping.shipped == []

        assert await flow.run("shipping", Limits(messages=1)) == 1
        assert shipping.shipped == ["order-1"]
