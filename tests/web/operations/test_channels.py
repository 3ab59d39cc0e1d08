"""Channels over HTTP: looked at, paused, resumed."""

import base64
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from ecotone_fastapi import Ecotone
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Capabilities
from tests.web.operations.shops import JSON, operated


async def test_channels_are_listed_and_told_one_by_one() -> None:
    async with operated() as operations:
        listed = await operations.get("/channels")
        alone = await operations.get("/channels/mails")

        assert [one["name"] for one in listed["items"]] == ["bytes", "mails"]
        assert (listed["next"], listed["total"]) == (None, 2)
        assert alone["consumer"]["name"] == "mails"
        assert (alone["depth"], alone["untold"], alone["problem"]) == (0, [], None)


class Asked(MemoryChannel):
    """A channel that knows whether anybody has asked it how full it is."""

    asked = 0

    async def depth(self) -> int:
        self.asked += 1
        return await super().depth()


async def test_channels_come_in_pages_and_only_those_on_the_page_are_asked() -> None:
    channels = {name: Asked(name) for name in ("orders", "bills", "mails", "carts", "parcels")}
    ecotone = Ecotone([], channels=list(channels.values()), operations=[Depends(lambda: None)])
    app = FastAPI()
    ecotone.install(app)
    transport = httpx.ASGITransport(app)
    async with ecotone.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        pages: list[Any] = []
        after: str | None = None
        while not pages or after is not None:
            query = {"limit": "2", **({"after": after} if after is not None else {})}
            pages.append((await http.get("/ecotone/operations/channels", params=query)).json())
            after = pages[-1]["next"]

        names = [[one["name"] for one in page["items"]] for page in pages]
        assert names == [["bills", "carts"], ["mails", "orders"], ["parcels"]]
        assert {page["total"] for page in pages} == {5}
        assert [channels[name].asked for name in channels] == [1] * 5


@pytest.mark.parametrize("path", ["/channels", "/outbox", "/projections"])
async def test_the_pages_of_lists_are_described(path: str) -> None:
    async with operated() as operations:
        schema = operations.app.openapi()
        route = schema["paths"][f"/ecotone/operations{path}"]["get"]

        assert [one["name"] for one in route["parameters"] if one["in"] == "query"] == ["limit", "after"]
        name = route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert schema["components"]["schemas"][name]["required"] == ["items", "next", "total"]
        assert (await operations.call("GET", f"{path}?limit=0")).status_code == 422


@pytest.mark.parametrize("path", ["/channels/nothing", "/channels/nothing/messages"])
async def test_a_channel_that_is_not_there_is_not_found(path: str) -> None:
    async with operated() as operations:
        answer = await operations.call("GET", path)

        assert answer.status_code == 404
        assert answer.json()["detail"] == "There is no channel 'nothing'; known are: mails, bytes"


@pytest.mark.parametrize("what", ["pause", "resume"])
async def test_nobody_pauses_for_a_channel_that_is_not_there(what: str) -> None:
    async with operated() as operations:
        assert (await operations.call("POST", f"/channels/nothing/{what}", headers=JSON)).status_code == 404


async def test_a_consumer_pauses_with_a_reason_and_goes_on(database_url: str) -> None:
    database = SqlAlchemy(database_url, create_schema=True)
    async with operated(database.channel, database) as operations:
        paused = await operations.post("/channels/mails/pause", reason="the mail server moves")

        assert (paused["consumer"]["paused"], paused["consumer"]["reason"]) == (True, "the mail server moves")
        assert paused["consumer"]["pauses"][0]["since"]
        await operations.fails("a")
        assert (await operations.get("/channels/mails"))["depth"] == 1
        assert list(operations.ecotone.consumers.paused()) == ["mails"]

        resumed = await operations.post("/channels/mails/resume")

        assert (resumed["consumer"]["paused"], resumed["consumer"]["reason"]) == (False, None)
        await operations.work("mails")
        assert (await operations.get("/dead-letters"))["total"] == 1


async def test_a_consumer_pauses_without_a_reason_and_without_a_body() -> None:
    async with operated() as operations:
        answer = await operations.call("POST", "/channels/mails/pause", headers=JSON)

        assert answer.status_code == 200
        assert answer.json()["consumer"]["paused"] is True
        assert answer.json()["consumer"]["reason"] is None


@pytest.mark.parametrize(
    "body", [{"reason": 7}, {"reason": "x" * 1_001}, {"because": "typo"}, [], "text"], ids=lambda one: str(one)[:30]
)
async def test_a_pause_that_says_something_else_is_refused(body: Any) -> None:
    async with operated() as operations:
        answer = await operations.call("POST", "/channels/mails/pause", json=body)

        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"][0] == "body"
        assert not operations.ecotone.consumers.paused()


async def test_messages_that_wait_are_shown_without_being_taken() -> None:
    async with operated() as operations:
        for text in ("a", "<script>alert(1)</script>", "c"):
            await operations.ecotone.command_bus.send(text, to="mail", headers={"tenant": "acme"})

        first = await operations.get("/channels/mails/messages", limit=2)
        everything = await operations.get("/channels/mails/messages")

        assert (len(first["items"]), first["more"], everything["more"]) == (2, True, False)
        one, two, _ = everything["items"]
        assert (one["payload"], one["payload_encoding"], one["payload_cut"]) == ('"a"', "text", False)
        assert two["payload"] == '"<script>alert(1)</script>"'
        assert (one["endpoint"], one["headers"]["tenant"]) == ("mail", "acme")
        assert (await operations.get("/channels/mails"))["depth"] == 3


async def test_what_is_no_text_is_shown_in_base64() -> None:
    async with operated() as operations:
        await operations.ecotone.command_bus.send(b"\xff\x00", to="bytes")

        [one] = (await operations.get("/channels/bytes/messages"))["items"]

        assert (one["payload_encoding"], base64.b64decode(one["payload"])) == ("base64", b"\xff\x00")


@pytest.mark.parametrize("limit", [0, 501, "many"])
async def test_a_number_of_messages_that_makes_no_sense_is_refused(limit: object) -> None:
    async with operated() as operations:
        answer = await operations.call("GET", "/channels/mails/messages", params={"limit": limit})

        assert answer.status_code == 422


class Secretive:
    """A channel that shows nothing to nobody."""

    capabilities = Capabilities(delay=True)

    def __init__(self, name: str) -> None:
        self.name = name
        self._inside = MemoryChannel(name)
        self.open, self.close = self._inside.open, self._inside.close
        self.send, self.receive = self._inside.send, self._inside.receive


async def test_a_channel_that_shows_nothing_says_so() -> None:
    async with operated(Secretive) as operations:
        report = await operations.get("/channels/mails")
        answer = await operations.call("GET", "/channels/mails/messages")

        assert (report["depth"], report["oldest_age"]) == (None, None)
        assert (report["untold"], report["problem"]) == (["depth", "oldest_age"], None)
        assert (answer.status_code, answer.json()["detail"]) == (
            409,
            "Secretive 'mails' shows its messages to nobody but its consumer",
        )


async def test_a_channel_without_a_consumer_cannot_pause() -> None:
    ecotone = Ecotone([], channels=[MemoryChannel("lonely")], operations=[Depends(lambda: None)])
    app = FastAPI()
    ecotone.install(app, error_handlers=False)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http, ecotone.running():
        answer = await http.post("/ecotone/operations/channels/lonely/pause", json={"reason": "x"})

    assert answer.status_code == 409
    assert "there is no consumer 'lonely' that could pause" in answer.json()["detail"]
