"""An order is placed while a server is down: its message is parked, and replayed by command when the server is back.

The consumer is a process of its own that runs all the time; the command line is another one.
"""

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import ecotone, eventually, run_ecotone

MODULE = """
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import Backoff, Ecotone, Failures, asynchronous, event_handler, query_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

here = Path(__file__).parent
database = SqlAlchemy((here / "url").read_text(), create_schema=True)


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Deliveries:
    @asynchronous("deliveries")
    @event_handler(id="arrange-delivery")
    async def arrange(self, event: OrderWasPlaced, session: AsyncSession) -> None:
        with (here / "runs").open("a") as runs:
            runs.write(event.order_id + "\\n")
        await session.execute(text("INSERT INTO delivery VALUES (:id)"), {"id": event.order_id})
        if not (here / "server-is-up").exists():
            raise ConnectionError("the delivery service is down")

    @asynchronous("deliveries")
    @event_handler(id="count-order")
    async def count(self, event: OrderWasPlaced, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO counted VALUES (:id)"), {"id": event.order_id})

    @query_handler("delivery.is_arranged")
    async def is_arranged(self, order_id: str, session: AsyncSession) -> bool:
        found = await session.execute(text("SELECT count(*) FROM delivery WHERE id = :id"), {"id": order_id})
        return found.scalar_one() == 1

    @query_handler("order.times_counted")
    async def times_counted(self, order_id: str, session: AsyncSession) -> int:
        found = await session.execute(text("SELECT count(*) FROM counted WHERE id = :id"), {"id": order_id})
        return found.scalar_one()


ecotone = Ecotone(
    [Deliveries],
    channels=[database.channel("deliveries")],
    plugins=[database, Failures(Backoff(retries=3, first=0.1, factor=1.0, jitter=0.0))],
)


async def set_up() -> None:
    async with ecotone.running(consumers=False), database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE delivery (id VARCHAR(50))"))
        await connection.execute(text("CREATE TABLE counted (id VARCHAR(50))"))


async def place(order_id: str, message_id: str) -> None:
    async with ecotone.running(consumers=False):
        await ecotone.event_bus.publish(OrderWasPlaced(order_id), headers={"id": message_id})


async def ask(route: str, order_id: str) -> object:
    async with ecotone.running(consumers=False):
        return await ecotone.query_bus.ask(order_id, to=route)
"""


class Shop:
    """The application, in a directory of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        (directory / "orders.py").write_text(MODULE)
        (directory / "url").write_text(url)
        self.does(lambda orders: orders.set_up())

    def does(self, what: Callable[[Any], Any]) -> Any:
        """Do something in this process, with an application that is made anew: each belongs to one event loop."""
        found = importlib.util.spec_from_file_location("orders", self.directory / "orders.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return asyncio.run(what(module))

    def asks(self, route: str) -> Any:
        return self.does(lambda orders: orders.ask(route, "order-1"))

    def runs(self) -> int:
        return len((self.directory / "runs").read_text().split())

    def deadletter(self, command: str, *arguments: str) -> str:
        process = run_ecotone("deadletter", command, "orders:ecotone", *arguments, cwd=self.directory)
        assert process.stderr == ""
        return process.stdout

    def parked(self, *filters: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.deadletter("list", "--json", *filters))["dead_letters"]
        return found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, request.getfixturevalue(f"{request.param}_url"))


def test_a_message_that_failed_for_good_is_replayed_by_command_while_the_consumer_runs(shop: Shop) -> None:
    with ecotone("run", "orders:ecotone", "deliveries", cwd=shop.directory) as consumer:
        shop.does(lambda orders: orders.place("order-1", "the-event"))
        consumer.says(", attempt 4, parked")
        [parked] = eventually(shop.parked, "the dead letter")

        assert parked["headers"]["id"] == "the-event"
        assert parked["handler"] == "arrange-delivery"
        assert parked["attempts"] == shop.runs() == 4
        assert "ConnectionError: the delivery service is down" in shop.deadletter("show", parked["id"])
        assert shop.asks("delivery.is_arranged") is False

        # Somebody is too early: it fails for good once more, with all of its retries.
        assert shop.deadletter("replay", parked["id"]) == "replayed 1\n"
        consumer.says(", attempt 4, parked", times=2)
        [again] = eventually(shop.parked, "the dead letter")
        assert (again["id"], again["replays"], again["attempts"]) == (parked["id"], 1, 4)
        assert shop.runs() == 8

        (shop.directory / "server-is-up").touch()
        answer = shop.deadletter("replay", "--all", "--error", "ConnectionError", "--yes", "--json")
        assert json.loads(answer) == {"replayed": 1, "refused": {}}
        eventually(lambda: shop.asks("delivery.is_arranged"), "the delivery")

    assert shop.runs() == 9
    assert shop.asks("order.times_counted") == 1
    assert shop.parked() == []
