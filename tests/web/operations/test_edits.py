"""Dead letters that are mended over HTTP."""

import base64
from datetime import timedelta
from typing import Any

import pytest

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from tests.web.operations.shops import operated


def shop_of(url: str | None) -> Any:
    if url is None:
        return operated()
    database = SqlAlchemy(url, create_schema=True)
    return operated(database.channel, database)


async def test_a_dead_letter_is_edited_and_replayed(url: str | None) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("wrong", tenant="acme", odd="x")
        operations.shop.is_down = False

        told = await operations.post(
            f"/dead-letters/{id_}/edit", payload='"right"', headers={"tenant": "other", "odd": None}, replay=True
        )
        [waiting] = (await operations.get("/channels/mails/messages"))["items"]
        await operations.work("mails")

        assert told == {"id": id_, "replayed": True}
        assert (waiting["headers"]["tenant"], "odd" in waiting["headers"]) == ("other", False)
        assert operations.shop.sent == ["right"]
        assert (await operations.get("/dead-letters"))["total"] == 0


async def test_a_dead_letter_is_edited_and_stays_until_it_is_replayed(url: str | None) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("wrong", tenant="acme")
        before = await operations.get(f"/dead-letters/{id_}")

        told = await operations.post(f"/dead-letters/{id_}/edit", payload='"right"', headers={"tenant": "other"})
        after = await operations.get(f"/dead-letters/{id_}")

        assert told == {"id": id_, "replayed": False}
        assert (after["payload"], after["headers"]["tenant"]) == ('"right"', "other")
        changed = {"payload", "payload_length", "headers", "revision"}
        assert {name: after[name] for name in after if name not in changed} == {
            name: before[name] for name in before if name not in changed
        }
        assert (await operations.get("/dead-letters"))["total"] == 1
        operations.shop.is_down = False
        await operations.post(f"/dead-letters/{id_}/replay")
        await operations.work("mails")
        assert operations.shop.sent == ["right"]


@pytest.mark.parametrize("replay", [True, False])
async def test_what_somebody_else_has_edited_meanwhile_is_not_overruled(url: str | None, replay: bool) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("wrong")
        seen = (await operations.get(f"/dead-letters/{id_}"))["revision"]
        await operations.post(f"/dead-letters/{id_}/edit", payload='"theirs"', revision=seen)

        body = {"payload": '"mine"', "revision": seen, "replay": replay}
        answer = await operations.call("POST", f"/dead-letters/{id_}/edit", json=body)
        now = await operations.get(f"/dead-letters/{id_}")

        assert answer.status_code == 409
        assert "was edited by somebody else meanwhile" in answer.json()["detail"]
        assert now["payload"] == '"theirs"'
        assert (await operations.get("/channels/mails/messages"))["items"] == []
        await operations.post(f"/dead-letters/{id_}/edit", **{**body, "revision": now["revision"]})


async def test_a_time_that_is_said_with_the_replay_is_waited_for(url: str | None) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("a")
        operations.shop.is_down = False

        headers = {"delay": "3600", "schedule_key": "later"}
        await operations.post(f"/dead-letters/{id_}/edit", headers=headers, replay=True)
        await operations.work("mails")

        assert operations.shop.sent == []
        assert [one["key"] for one in (await operations.get("/scheduled"))["items"]] == ["later"]
        operations.clock.advance(timedelta(hours=2))
        await operations.work("mails")
        assert operations.shop.sent == ["a"]


async def test_another_handler_may_be_named() -> None:
    async with operated() as operations:
        [id_] = await operations.fails("a")

        await operations.post(f"/dead-letters/{id_}/edit", headers={"endpoint": "remind"})

        assert (await operations.get("/dead-letters", handler="remind"))["total"] == 1
        await operations.post(f"/dead-letters/{id_}/replay")
        await operations.work("mails")
        assert operations.shop.sent == ["a"]


async def test_bytes_are_edited_in_base64() -> None:
    async with operated() as operations:
        id_ = await operations.fails_with(b"\xff\x00")
        operations.shop.is_down = False

        payload = base64.b64encode(b"\x01\xfe").decode()
        await operations.post(f"/dead-letters/{id_}/edit", payload=payload, payload_encoding="base64", replay=True)
        await operations.work("bytes")

        assert operations.shop.sent == [b"\x01\xfe"]


async def test_an_edited_one_may_go_to_another_channel() -> None:
    async with operated() as operations:
        [id_] = await operations.fails("a")

        await operations.post(f"/dead-letters/{id_}/edit", headers={"x": "y"}, replay=True, to="bytes")

        [one] = (await operations.get("/channels/bytes/messages"))["items"]
        assert (one["payload"], one["headers"]["x"]) == ('"a"', "y")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "nothing is to be changed"),
        ({"payload": "{"}, "is to be JSON, and is none"),
        ({"payload": "[" * 100_000}, "is to be JSON, and is none"),
        ({"payload": "", "replay": True}, "is to be JSON, and is none"),
        ({"payload": "%", "payload_encoding": "base64"}, "is no base64"),
        ({"payload": "ä", "payload_encoding": "base64"}, "is no base64"),
        ({"payload": '"x"', "payload_encoding": "hex"}, "text"),
        ({"headers": {"replays": "0"}}, "replays"),
        ({"headers": {"delay": "never"}}, "delay"),
        ({"headers": {"a": 7}}, "string"),
        ({"headers": {"a": "b"}, "to": "bytes"}, "what is not replayed goes nowhere"),
        ({"payloads": "x"}, "Extra inputs"),
        ({"payload": "NaN"}, "NaN is no number"),
        ({"payload": '{"a": [-Infinity]}'}, "-Infinity is no number"),
        ({"headers": {"": "x"}}, "at least 1 character"),
        ({"headers": {"endpoint": ""}}, "no handler has an empty id"),
        ({"headers": {"delay": "60"}}, "taken away by the replay"),
    ],
    ids=lambda one: str(one)[:60],
)
async def test_an_edit_that_makes_no_sense_changes_nothing(body: Any, words: str) -> None:
    async with operated(error_handlers=False) as operations:
        [id_] = await operations.fails("a")
        before = await operations.get(f"/dead-letters/{id_}")

        answer = await operations.call("POST", f"/dead-letters/{id_}/edit", json=body)

        assert answer.status_code == 422, answer.text
        assert words in answer.text
        assert await operations.get(f"/dead-letters/{id_}") == before


@pytest.mark.parametrize("body", [{"headers": {"a": "b"}}, {"payload": '"x"'}, {"replay": True}], ids=str)
async def test_nothing_is_edited_that_is_not_there(body: Any) -> None:
    async with operated() as operations:
        assert (await operations.call("POST", "/dead-letters/nobody/edit", json=body)).status_code == 404


async def test_a_handler_that_is_not_there_gets_nothing() -> None:
    async with operated(error_handlers=False) as operations:
        [id_] = await operations.fails("a")

        answer = await operations.call(
            "POST", f"/dead-letters/{id_}/edit", json={"headers": {"endpoint": "nobody"}, "replay": True}
        )

        assert answer.status_code == 409
        assert "'nobody'" in answer.json()["detail"]
        assert (await operations.get("/dead-letters"))["total"] == 1
