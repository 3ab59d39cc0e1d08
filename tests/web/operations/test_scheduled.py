"""What waits under a key, over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import TravellingClock
from tests.web.operations.shops import Operations, operated


def shop_of(url: str | None, **options: Any) -> Any:
    if url is None:
        return operated(**options)
    database = SqlAlchemy(url, create_schema=True)
    return operated(database.channel, database, **options)


async def remind(operations: Operations, *texts: str) -> None:
    for text in texts:
        await operations.ecotone.command_bus.send(text, to="remind")


async def pages(operations: Operations, **query: Any) -> list[list[str]]:
    found: list[list[str]] = []
    while True:
        page = await operations.get("/scheduled", **query)
        found.append([one["key"] for one in page["items"]])
        if page["next"] is None:
            return found
        query["after"] = page["next"]


async def test_what_waits_is_listed_the_next_one_first(url: str | None) -> None:
    async with shop_of(url) as operations:
        await remind(operations, "a", "b")

        page = await operations.get("/scheduled")

        assert (page["total"], page["next"]) == (2, None)
        assert [one["key"] for one in page["items"]] == ["remind-a", "remind-b"]
        [first, _] = page["items"]
        assert (first["channel"], first["endpoint"]) == ("mails", "remind")
        due = datetime.fromisoformat(first["due_at"]) - operations.clock.now()
        assert timedelta(minutes=59) < due <= timedelta(hours=1)
        assert first["message_id"]


async def test_pages_go_on_where_the_last_one_ended_whatever_has_become_due(url: str | None) -> None:
    async with shop_of(url) as operations:
        await remind(operations, *"abcdefg")

        first = await operations.get("/scheduled", limit=3)
        await operations.post("/scheduled/remind-a/reschedule", due_at="2200-01-01T00:00:00Z")
        assert (await operations.call("DELETE", "/scheduled/remind-b")).json() == {"cancelled": 1}
        second = await operations.get("/scheduled", limit=3, after=first["next"])
        third = await operations.get("/scheduled", limit=3, after=second["next"])

        assert [one["key"][-1] for one in second["items"]] == ["d", "e", "f"]
        assert [one["key"][-1] for one in third["items"]] == ["g", "a"]
        assert (second["total"], third["next"]) == (6, None)


@pytest.mark.parametrize("limit", [1, 2, 4])
async def test_what_is_due_in_one_moment_is_all_on_some_page(limit: int) -> None:
    async with operated(clock=TravellingClock(datetime(2026, 1, 1, tzinfo=UTC))) as operations:
        await remind(operations, *"abcde")

        found = await pages(operations, limit=limit)

        assert [key for page in found for key in page] == [f"remind-{text}" for text in "abcde"]


async def test_a_filter_chooses(url: str | None) -> None:
    async with shop_of(url) as operations:
        await remind(operations, "a", "b", "b")

        assert [len(page) for page in await pages(operations, key="remind-b", limit=1)] == [1, 1]
        assert (await operations.get("/scheduled", key="remind-b"))["total"] == 2
        assert (await operations.get("/scheduled", channel="bytes"))["total"] == 0
        assert (await operations.get("/scheduled", channel="mails", key=""))["total"] == 3


async def test_what_waits_is_called_off(url: str | None) -> None:
    async with shop_of(url) as operations:
        await remind(operations, "a", "b", "a")

        assert (await operations.call("DELETE", "/scheduled/remind-a")).json() == {"cancelled": 2}
        assert (await operations.call("DELETE", "/scheduled/remind-a")).status_code == 404

        operations.clock.advance(timedelta(hours=2))
        await operations.work("mails")
        assert operations.shop.sent == ["b"]


async def test_what_waits_is_put_off(url: str | None) -> None:
    async with shop_of(url) as operations:
        await remind(operations, "a", "b")

        told = await operations.post(
            "/scheduled/remind-a/reschedule", due_at=(operations.clock.now() - timedelta(days=1)).isoformat()
        )
        await operations.work("mails")

        assert told == {"rescheduled": 1}
        assert operations.shop.sent == ["a"]


async def test_a_key_may_have_any_characters() -> None:
    async with operated() as operations:
        await remind(operations, "a/b c?ä%2F")

        answer = await operations.call("DELETE", "/scheduled/remind-a%2Fb%20c%3F%C3%A4%252F")

        assert answer.json() == {"cancelled": 1}


@pytest.mark.parametrize("key", ["..", "a/b", "k" * 5_000, "ends with reschedule/reschedule", "\u2028 "])
async def test_what_waits_is_called_off_and_put_off_under_any_key_at_all(url: str | None, key: str) -> None:
    async with shop_of(url) as operations:
        await operations.ecotone.command_bus.send("a", to="remind", headers={"schedule_key": key})
        await remind(operations, "b")
        shown = (await operations.get("/scheduled", limit=1, after=(await first_page(operations))["next"]))["items"]
        keys = {one["key"] for one in [*(await first_page(operations))["items"], *shown]}
        assert keys == {key, "remind-b"}

        told = await operations.post("/scheduled/reschedule", key=key, due_at=operations.clock.now().isoformat())
        assert told == {"rescheduled": 1}
        assert await operations.post("/scheduled/cancel", key=key) == {"cancelled": 1}

        again = await operations.call("POST", "/scheduled/cancel", json={"key": key})
        assert again.status_code == 404
        assert (await operations.get("/scheduled"))["total"] == 1


async def first_page(operations: Operations) -> Any:
    return await operations.get("/scheduled", limit=1)


@pytest.mark.parametrize("action", ["cancel", "reschedule"])
@pytest.mark.parametrize("body", [{}, {"key": 7}, {"key": None}, {"key": "remind-a", "more": "x"}], ids=str)
async def test_what_names_no_key_changes_nothing(action: str, body: Any) -> None:
    async with operated() as operations:
        await remind(operations, "a")

        due = {"due_at": "2200-01-01T00:00:00Z"} if action == "reschedule" else {}
        answer = await operations.call("POST", f"/scheduled/{action}", json={**body, **due})

        assert answer.status_code == 422
        assert (await operations.get("/scheduled"))["total"] == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"due_at": "tomorrow"}, 422),
        ({"due_at": "2200-01-01T00:00:00"}, 422),
        ({"due_at": "9999-01-01T00:00:00Z"}, 422),
        ({"due": "2200-01-01T00:00:00Z"}, 422),
        ({"due_at": None}, 422),
        ({"due_at": "0001-01-01T00:00:00+14:00"}, 422),
    ],
)
async def test_a_moment_that_is_none_changes_nothing(body: Any, status: int) -> None:
    async with operated(error_handlers=False) as operations:
        await remind(operations, "a")
        [before] = (await operations.get("/scheduled"))["items"]

        answer = await operations.call("POST", "/scheduled/remind-a/reschedule", json=body)

        assert answer.status_code == status
        assert (await operations.get("/scheduled"))["items"] == [before]


async def test_nothing_is_put_off_that_is_not_there() -> None:
    async with operated() as operations:
        answer = await operations.call(
            "POST", f"/scheduled/{'x' * 400}/reschedule", json={"due_at": "2200-01-01T00:00:00Z"}
        )

        assert answer.status_code == 404
        assert answer.json()["detail"] == f"Nothing waits under the key '{'x' * 300}… (cut, 400 characters in all)'"


@pytest.mark.parametrize("query", [{"channel": "a\0b"}, {"limit": 0}, {"after": "WzFd"}], ids=str)
async def test_a_question_that_makes_no_sense_is_refused(query: dict[str, Any]) -> None:
    async with operated() as operations:
        assert (await operations.call("GET", "/scheduled", params=query)).status_code == 422


async def test_a_key_that_no_database_takes_is_just_not_there(url: str | None) -> None:
    async with shop_of(url) as operations:
        assert (await operations.call("DELETE", "/scheduled/a%00b")).status_code == 404
        assert (await operations.get("/scheduled", key="a\0b"))["total"] == 0
