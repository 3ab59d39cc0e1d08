"""Requests that are broken off in the middle of a command: everything has happened, or nothing."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from ecotone_fastapi import CommandBusDep, Ecotone, EventBus, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing.conformance.hooks import unique
from tests.conftest import SERVERS

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]

STEPS = 60  # of the event loop; a request that is left alone takes fewer


@dataclass(frozen=True)
class PlaceOrder:
    number: int


@dataclass(frozen=True)
class OrderWasPlaced:
    number: int


class Orders:
    @command_handler
    async def place(self, command: PlaceOrder, session: AsyncSession, events: EventBus) -> None:
        await session.execute(text("INSERT INTO orders VALUES (:number)"), vars(command))
        await events.publish(OrderWasPlaced(command.number))
        await session.execute(text("INSERT INTO orders VALUES (:number)"), vars(command))

    @asynchronous("bills")
    @event_handler(id="bill")
    async def bill(self, event: OrderWasPlaced) -> None: ...

    @asynchronous("parcels")
    @event_handler(id="ship")
    async def ship(self, event: OrderWasPlaced) -> None: ...


@pytest.fixture
async def driver_may_complain() -> AsyncIterator[None]:
    """Let asyncpg say that it was cancelled while it connected: it does so to the loop, where tests would fail."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if handler is not None and "unexpected connection_lost() call" not in str(context.get("exception")):
            handler(loop, context)

    loop.set_exception_handler(hear)
    yield
    loop.set_exception_handler(handler)


@pytest.mark.usefixtures("driver_may_complain")
async def test_a_request_that_is_broken_off_anywhere_has_done_everything_or_nothing(postgresql_url: str) -> None:
    engine = create_async_engine(postgresql_url, pool_size=2, max_overflow=0, pool_timeout=5)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (number INTEGER)"))
    database = SqlAlchemy(engine, create_schema=True)
    parcels = RabbitMQChannel("parcels", SERVERS["rabbitmq"].url, queue=unique())
    ecotone = Ecotone([Orders], channels=[database.channel("bills"), parcels], plugins=[database], consumers=False)
    app = FastAPI(lifespan=ecotone.lifespan)

    @app.post("/orders")
    async def post_order(command: PlaceOrder, commands: CommandBusDep) -> None:
        await commands.send(command)

    try:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client,
        ):
            broken_off = 0
            for steps in range(STEPS):
                request = asyncio.create_task(client.post("/orders", json={"number": steps}))
                # First a step of the loop at a time, then ever more time, until also a busy machine comes to the end.
                pause = 0.0005 * 1.1 ** (steps - STEPS // 2) if steps > STEPS // 2 else 0
                for _ in range(steps):
                    if not request.done():
                        await asyncio.sleep(pause)
                broken_off += request.cancel()
                await asyncio.wait([request])
            answer = await client.post("/orders", json={"number": STEPS})
            assert answer.status_code == 200
            async with engine.connect() as connection:
                orders = Counter((await connection.execute(text("SELECT number FROM orders"))).scalars())
                rows = (await connection.execute(text("SELECT channel, body FROM ecotone_message"))).all()
            sent = {
                channel: Counter(json.loads(body)["number"] for name, body in rows if name == channel)
                for channel in ("bills", "outbox/parcels")
            }
        assert broken_off > STEPS // 3
        assert set(orders.values()) == {2}
        assert len(orders) > 1
        for channel, numbers in sent.items():
            assert numbers == dict.fromkeys(orders, 1), channel
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        await engine.dispose()
