"""The shop of the examples: the same flow on every database, over HTTP with its lifespan, and as a program."""

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ecotone_fastapi import event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import Flow, flow_test
from examples.shop.database import Base
from examples.shop.database import database as database_of_the_shop
from examples.shop.mail import get_sender
from examples.shop.orders import NotificationService, OrderService, OrderWasPlaced, PlaceOrder
from tests.house.sources import ROOT

EVERY_DATABASE = [
    pytest.param("sqlite_url", id="sqlite"),
    pytest.param("postgresql_url", id="postgresql", marks=pytest.mark.postgresql),
    pytest.param("mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


class InMemoryNotificationSender:
    def __init__(self, unknown: str = "") -> None:
        self.unknown = unknown
        self.sent: list[str] = []

    async def send_order_confirmation(self, customer: str, order_id: str, product: str) -> None:
        if customer == self.unknown:
            raise LookupError(f"nobody is called {customer}")
        self.sent.append(f"{customer}: {order_id}")


# ----------------------------------------------------------------------------------------------------------- flow tests


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    database = SqlAlchemy(url, create_schema=True)
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield database
    await database.engine.dispose()


@pytest.fixture(params=["memory channel", "channel in the database"])
def shop(request: pytest.FixtureRequest, database: SqlAlchemy) -> Callable[..., Any]:
    """Start the handlers of the shop on a database, with one channel or the other."""
    in_memory = request.param == "memory channel"

    @asynccontextmanager
    async def start(sender: InMemoryNotificationSender, *more_handlers: object) -> AsyncIterator[Flow]:
        async with flow_test(
            [OrderService, NotificationService, *more_handlers],
            channels=[MemoryChannel("notifications") if in_memory else database.channel("notifications")],
            plugins=[database],
            overrides={get_sender: lambda: sender, database_of_the_shop.session: database.session},
        ) as flow:
            yield flow

    return start


@pytest.mark.parametrize("url", EVERY_DATABASE, indirect=True)
async def test_the_customer_is_notified_when_the_consumer_runs(shop: Callable[..., Any]) -> None:
    notifier = InMemoryNotificationSender()
    async with shop(notifier) as flow:
        await flow.send(PlaceOrder("order-1", "Milk", "ada"))
        assert await flow.ask("order-1", to="order.get_status") == "placed"
        assert notifier.sent == []

        await flow.run("notifications")
        assert notifier.sent == ["ada: order-1"]
        assert await flow.run("notifications") == 0


@pytest.mark.parametrize("url", EVERY_DATABASE, indirect=True)
async def test_an_order_that_fails_is_neither_saved_nor_confirmed(shop: Callable[..., Any]) -> None:
    @event_handler
    async def refuse(event: OrderWasPlaced) -> None:
        raise LookupError(f"{event.product} is sold out")

    notifier = InMemoryNotificationSender()
    async with shop(notifier, refuse) as flow:
        with pytest.raises(LookupError, match="sold out"):
            await flow.send(PlaceOrder("order-1", "Milk", "ada"))

        assert await flow.ask("order-1", to="order.get_status") is None
        assert await flow.waiting("notifications") == []


@pytest.mark.parametrize("url", EVERY_DATABASE, indirect=True)
async def test_a_mail_that_cannot_be_sent_is_parked_and_holds_up_no_other(shop: Callable[..., Any]) -> None:
    notifier = InMemoryNotificationSender(unknown="ada")
    async with shop(notifier) as flow:
        await flow.send(PlaceOrder("order-1", "Milk", "ada"))
        await flow.send(PlaceOrder("order-2", "Bread", "grace"))
        await flow.run("notifications", raises=False)
        assert notifier.sent == ["grace: order-2"]
        assert await flow.dead_letters() == []

        for _ in range(3):
            await flow.advance(timedelta(minutes=1))
            await flow.run("notifications", raises=False)
        (parked,) = await flow.dead_letters()
        assert (parked.endpoint, parked.attempts, parked.error_message) == ("confirm-order", 4, "nobody is called ada")
        assert notifier.sent == ["grace: order-2"]


# ---------------------------------------------------------------------------------------------------------- over HTTP


@pytest.fixture
def main(url: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The application as it is deployed: where its database is, it learns from the environment when it is imported."""
    monkeypatch.setenv("SHOP_DATABASE_URL", url)
    for name in [name for name in sys.modules if name.startswith("examples.shop")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("examples.shop.main")


@pytest.mark.parametrize("url", EVERY_DATABASE, indirect=True)
def test_the_consumer_runs_beside_the_endpoints(main: ModuleType) -> None:
    arrived = threading.Event()

    class Postman:
        async def send_order_confirmation(self, customer: str, order_id: str, product: str) -> None:
            arrived.set()

    mail = importlib.import_module("examples.shop.mail")
    main.app.dependency_overrides[mail.get_sender] = Postman
    with TestClient(main.app) as client:
        order_id = client.post("/orders", json={"product": "Milk", "customer": "ada"}).json()["order_id"]
        assert arrived.wait(timeout=60)

        assert client.get(f"/orders/{order_id}").json() == {"order_id": order_id, "status": "placed"}
        assert client.get("/ecotone/health/ready").json()["consumers"]["notifications"]["condition"] == "running"


@pytest.mark.parametrize("url", ["sqlite_url"], indirect=True)
def test_the_shop_refuses_what_it_does_not_understand(main: ModuleType) -> None:
    with TestClient(main.app) as client:
        assert client.post("/orders", json={"product": "", "customer": "ada"}).status_code == 422
        assert client.get("/orders/order-1").status_code == 404
        assert client.get("/mails").json() == []


# -------------------------------------------------------------------------------------------------------- as a program


@pytest.mark.parametrize("url", EVERY_DATABASE, indirect=True)
def test_the_demonstration_shows_orders_and_mails(url: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.shop", "--once"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHOP_DATABASE_URL": url, "SHOP_PORT": "0", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    order_ids = re.findall(r"^POST /orders .* 201 +(\w+)", run.stdout, re.MULTILINE)
    assert len(order_ids) == 3
    for order_id in order_ids:
        assert re.search(rf"mail to \S+: Your order {order_id}: ", run.stdout)  # the log of the consumer
        assert re.search(rf"^GET /orders/{order_id} +placed", run.stdout, re.MULTILINE)


def test_the_demonstration_says_why_it_cannot_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = subprocess.run(
            [sys.executable, "-m", "examples.shop", "--once"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SHOP_PORT": str(taken.getsockname()[1])},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    assert run.returncode == 1
    assert "SHOP_PORT" in run.stderr
    assert "Traceback" not in run.stderr


def test_ctrl_c_ends_the_shop_cleanly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.shop"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHOP_PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as shop:
        assert shop.stdout is not None
        output = ""
        for line in shop.stdout:
            output += line
            if line.rstrip().endswith("/docs"):
                shop.send_signal(signal.SIGINT)

    assert shop.returncode == 0, output
    assert "Traceback" not in output
