"""3. Asynchronous handlers, in FastAPI: `python examples/03_asynchronous.py`

`@asynchronous("notifications")` sends what the handler is to handle through the channel of that name. The endpoint
answers at once; a consumer, here a task of the same process, takes the message and calls the handler with all that it
depends on. Each asynchronous handler gets a message of its own and is retried alone; its `id` outlives its name.

The channel here is gone with the process. One line swaps it for one that is not, and that commits with your own rows:

    database = SqlAlchemy("postgresql+asyncpg://…", create_schema=True)
    ecotone = Ecotone([...], channels=[database.channel("notifications")], plugins=[database])
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from ecotone_fastapi import CommandBusDep, Ecotone, EventBus, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@command_handler("order.place")
async def place_order(order_id: str, events: EventBus) -> None:
    await events.publish(OrderWasPlaced(order_id))


sent: list[str] = []


async def get_outbox() -> AsyncIterator[list[str]]:
    yield sent  # once for each message: open a connection before this line, and close it after it


@asynchronous("notifications")
@event_handler(id="notify-customer")
async def notify(event: OrderWasPlaced, outbox: Annotated[list[str], Depends(get_outbox)]) -> None:
    outbox.append(f"thank you for {event.order_id}")


ecotone = Ecotone([place_order, notify], channels=[MemoryChannel("notifications")])
app = FastAPI(lifespan=ecotone.lifespan)  # the lifespan runs the consumer


@app.post("/orders/{order_id}", status_code=202)
async def post_order(order_id: str, commands: CommandBusDep) -> None:
    await commands.send(order_id, to="order.place")


if __name__ == "__main__":
    with TestClient(app) as client:  # or: uvicorn.run(app)
        print(client.post("/orders/order-1"))
        while not sent:
            client.get("/docs")
    print(sent)


@pytest.mark.parametrize("durable", [False, True])
async def test_the_customer_is_notified_later(durable: bool, tmp_path: Path) -> None:
    database = SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db", create_schema=True)
    channel = database.channel("notifications") if durable else MemoryChannel("notifications")
    outbox: list[str] = []
    async with flow_test(
        [place_order, notify], channels=[channel], plugins=[database], overrides={get_outbox: lambda: outbox}
    ) as flow:
        await flow.send("order-1", to="order.place")
        assert outbox == []

        await flow.run("notifications")  # the consumer of production, when the test says so
        assert outbox == ["thank you for order-1"]
