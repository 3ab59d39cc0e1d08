"""6. The outbox: an order and its message, both or neither: `python examples/06_outbox.py`

A broker knows nothing of your transaction. What is sent before the commit may tell of an order that never was; what is
sent after it is lost when the process dies in between. So messages for a broker are written to the same database, in
the same transaction, and a relay takes them from there to the broker: at least once, in batches, woken by the commit.

With a database among the plugins this needs no line of yours; `RabbitMQChannel(..., delivery="direct")` opts out. The
relay runs beside the consumers, or as `ecotone run shop:ecotone outbox`. Here a channel in memory plays the broker.
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import EventBus, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Orders:
    def __init__(self) -> None:
        self.shipped: list[str] = []

    @command_handler("order.place")
    async def place(self, order_id: str, session: AsyncSession, events: EventBus) -> None:
        await session.execute(text("INSERT INTO orders VALUES (:id)"), {"id": order_id})
        await events.publish(OrderWasPlaced(order_id))
        if order_id == "order-2":
            raise ValueError("there is no such product")

    @asynchronous("shipping")
    @event_handler(id="ship-order")
    async def ship(self, event: OrderWasPlaced) -> None:
        self.shipped.append(event.order_id)


class Broker(MemoryChannel):
    """RabbitMQChannel("shipping", "amqp://…") in production."""

    delivery = "outbox"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.capabilities = replace(self.capabilities, durable=True)


async def place_two_orders(database: SqlAlchemy) -> list[str]:
    orders, broker = Orders(), Broker("shipping")
    async with flow_test([orders], channels=[broker], plugins=[database]) as flow:
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id VARCHAR(20))"))
        await flow.send("order-1", to="order.place")
        try:
            await flow.send("order-2", to="order.place")
        except ValueError as error:
            print(f"order-2: {error}; neither row nor message is left")

        assert await broker.depth() == 0  # nothing has reached the broker; the message waits beside the order
        await flow.run("outbox")
        assert await broker.depth() == 1
        await flow.run("shipping")
    return orders.shipped


if __name__ == "__main__":
    print(asyncio.run(place_two_orders(SqlAlchemy("sqlite+aiosqlite:///example.db", create_schema=True))))


async def test_only_what_was_committed_is_shipped(tmp_path: Path) -> None:
    database = SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db", create_schema=True)
    assert await place_two_orders(database) == ["order-1"]
