"""What is on its way to brokers, with a real RabbitMQ behind real databases; and servers that do not answer."""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aio_pika
import httpx
import pytest
from fastapi import Depends, FastAPI

from ecotone_fastapi import Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.testing import TravellingClock
from tests.conftest import SERVERS


@asynchronous("orders")
@command_handler("ship", id="ship")
async def ship(order: str) -> None: ...


class Broker(MemoryChannel):
    """A broker, as far as the outbox knows."""

    delivery = "outbox"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.capabilities = replace(self.capabilities, durable=True)


def client(ecotone: Ecotone) -> httpx.AsyncClient:
    app = FastAPI()
    ecotone.install(app)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test/ecotone/operations", timeout=None
    )


def shipping(url: str, channel: Any, **options: Any) -> Ecotone:
    database = SqlAlchemy(url, create_schema=True)
    return Ecotone([ship], channels=[channel], plugins=[database], operations=[Depends(lambda: None)], **options)


async def test_what_waits_in_the_outbox_is_told_with_its_age_and_who_empties_it(database_url: str) -> None:
    clock = TravellingClock()
    ecotone = shipping(database_url, Broker("orders"), clock=clock)
    async with client(ecotone) as http, ecotone.running(consumers=False):
        for order in "abc":
            await ecotone.command_bus.send(order, to="ship")
        clock.advance(timedelta(seconds=40))

        [lane] = (await http.get("/outbox")).json()["items"]
        overview = (await http.get("/overview")).json()

        assert (lane["channel"], lane["depth"], lane["relay"], lane["problem"]) == ("orders", 3, "outbox", None)
        assert 40 <= lane["oldest_age"] < 80
        assert [(one["channel"], one["depth"]) for one in overview["outbox"]] == [("orders", 3)]
        assert [(one["name"], one["type"], one["depth"]) for one in overview["channels"]] == [("orders", "Broker", 0)]
        assert {one["name"]: one["type"] for one in overview["runnables"]}["outbox"] == "Relay"
        waiting = (await http.get("/channels/outbox/orders/messages")).json()["items"]
        assert [one["payload"] for one in waiting] == ['"a"', '"b"', '"c"']

        await ecotone.run("outbox", Limits(until_empty=True))

        [sent] = (await http.get("/outbox")).json()["items"]
        after = (await http.get("/overview")).json()
        assert (sent["depth"], sent["oldest_age"]) == (0, None)
        assert after["channels"][0]["depth"] == 3
        relay = {one["name"]: one for one in after["runnables"]}["outbox"]
        assert (relay["handled"], relay["failed"], relay["condition"]) == (3, 0, None)
        assert relay["rate"] > 0


async def test_messages_for_a_channel_that_nobody_here_has_are_told_too(database_url: str) -> None:
    before = shipping(database_url, Broker("orders"))
    async with before.running(consumers=False):
        await before.command_bus.send("a", to="ship")

    database = SqlAlchemy(database_url)
    after = Ecotone([], plugins=[database], operations=[Depends(lambda: None)])
    async with client(after) as http, after.running(consumers=False):
        [lane] = (await http.get("/outbox")).json()["items"]

        assert (lane["channel"], lane["depth"], lane["relay"]) == ("orders", 1, None)
        assert (await http.get("/overview")).json()["outbox"] == []


async def test_outboxes_come_in_pages_those_that_nobody_here_can_send_to_too(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    names = ["c", "a", "b"]
    before = Ecotone([], channels=[Broker(name) for name in names], plugins=[database])
    async with before.running(consumers=False):
        for name in names:
            await before.assembly.gateway.send(name, before.assembly.gateway.message("x"))
    database = SqlAlchemy(sqlite_url)
    after = Ecotone([], channels=[Broker("b")], plugins=[database], operations=[Depends(lambda: None)])
    async with client(after) as http, after.running(consumers=False):
        first = (await http.get("/outbox", params={"limit": 2})).json()
        second = (await http.get("/outbox", params={"limit": 2, "after": first["next"]})).json()
        behind = (await http.get("/outbox", params={"after": "c"})).json()

    assert [(one["channel"], one["depth"], one["relay"]) for one in first["items"]] == [
        ("a", 1, None),
        ("b", 1, "outbox"),
    ]
    assert [one["channel"] for one in second["items"]] == ["c"]
    assert (first["total"], second["total"], second["next"]) == (3, 3, None)
    assert behind == {"items": [], "next": None, "total": 3}


@pytest.mark.rabbitmq
async def test_a_queue_of_rabbitmq_is_told_as_far_as_it_tells(sqlite_url: str) -> None:
    url, queue = SERVERS["rabbitmq"].url, f"test-{uuid.uuid4().hex}"
    ecotone = shipping(sqlite_url, RabbitMQChannel("orders", url, queue=queue))
    try:
        async with client(ecotone) as http, ecotone.running(consumers=False):
            for order in "ab":
                await ecotone.command_bus.send(order, to="ship")
            await ecotone.run("outbox", Limits(until_empty=True))

            [channel] = (await http.get("/channels")).json()["items"]
            refusal = await http.get("/channels/orders/messages")

            assert (channel["type"], channel["depth"], channel["problem"]) == ("RabbitMQChannel", 2, None)
            assert (channel["oldest_age"], channel["untold"]) == (None, ["oldest_age"])
            assert refusal.status_code == 409
            await ecotone.run("orders", Limits(until_empty=True))
            [empty] = (await http.get("/channels")).json()["items"]
            assert (empty["depth"], empty["consumer"]["handled"]) == (0, 2)
    finally:
        async with await aio_pika.connect(url) as connection:
            await (await connection.channel()).queue_delete(queue)


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mysql+asyncmy"])
async def test_a_database_that_is_not_there_is_told_in_words_without_its_password(scheme: str) -> None:
    ecotone = shipping(f"{scheme}://ada:s3cr3t@127.0.0.1:1/shop", Broker("orders"))
    async with client(ecotone) as http, ecotone.running(consumers=False, patient=True):
        answer = await http.get("/overview")
        health = await http.get("/health")
        outbox = await http.get("/outbox")
        dead_letters = await http.get("/dead-letters")

    report = answer.json()
    assert answer.status_code == 200
    assert (report["channels"][0]["depth"], report["channels"][0]["problem"]) == (0, None)
    assert (report["outbox"][0]["depth"], report["dead_letters"]["count"]) == (None, None)
    for problem in (report["outbox"][0]["problem"], report["dead_letters"]["problem"], report["scheduled"]["problem"]):
        assert problem.startswith("ChannelError: ")
    assert (outbox.status_code, dead_letters.status_code) == (503, 503)
    assert health.json()["status"] == "not ready"
    for told in (answer, health, outbox, dead_letters):
        assert "s3cr3t" not in told.text
