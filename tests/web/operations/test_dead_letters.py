"""Dead letters over HTTP."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.testing import TravellingClock
from ecotone_fastapi.web.operations.messages import LONGEST_HEADER, MOST_HEADERS, cut_headers
from tests.web.operations.shops import ADMIN, JSON, Operations, operated


def shop_of(url: str | None, **options: Any) -> Any:
    if url is None:
        return operated(**options)
    database = SqlAlchemy(url, create_schema=True)
    return operated(database.channel, database, **options)


async def pages(operations: Operations, **query: Any) -> list[list[str]]:
    """The ids on each page."""
    found, after = [], None
    while True:
        page = await operations.get("/dead-letters", **query, **({"after": after} if after else {}))
        found.append([one["id"] for one in page["items"]])
        after = page["next"]
        if after is None:
            return found


# -------------------------------------------------------------------------------------------------------------- to look


async def test_a_dead_letter_is_listed_and_shown_with_its_payload_headers_and_traceback(url: str | None) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("a", tenant="acme")

        listed = await operations.get("/dead-letters")
        shown = await operations.get(f"/dead-letters/{id_}")

        [item] = listed["items"]
        assert (listed["total"], listed["next"]) == (1, None)
        assert (item["id"], item["channel"], item["endpoint"]) == (id_, "mails", "mail")
        assert (item["error_type"], item["error_message"]) == ("builtins.TimeoutError", "no answer for a")
        assert (item["attempts"], item["deliveries"], item["replays"]) == (1, 1, 0)
        assert datetime.fromisoformat(item["parked_at"]).tzinfo is not None
        assert item.items() <= shown.items()
        assert shown["headers"]["tenant"] == "acme"
        assert (shown["payload"], shown["payload_encoding"], shown["payload_length"]) == ('"a"', "text", 3)
        assert "TimeoutError: no answer for a" in shown["traceback"]


async def test_pages_go_on_where_the_last_one_ended_whatever_happens_meanwhile(url: str | None) -> None:
    async with shop_of(url) as operations:
        for text in "abcdefg":
            await operations.fails(text)
            operations.clock.advance(timedelta(seconds=1))
        newest_first = list(await operations.ecotone.dead_letters.ids())[::-1]

        first = await operations.get("/dead-letters", limit=3)
        await operations.fails("new")
        await operations.ecotone.dead_letters.delete(newest_first[1])
        second = await operations.get("/dead-letters", limit=3, after=first["next"])
        await operations.ecotone.dead_letters.delete(newest_first[5])
        third = await operations.get("/dead-letters", limit=3, after=second["next"])

        assert [one["id"] for one in first["items"]] == newest_first[:3]
        assert [one["id"] for one in second["items"]] == newest_first[3:6]
        assert [one["id"] for one in third["items"]] == newest_first[6:]
        assert (first["total"], second["total"], third["next"]) == (7, 7, None)


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
async def test_those_that_were_parked_in_one_moment_are_all_on_some_page(url: str | None, limit: int) -> None:
    clock = TravellingClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with shop_of(url, clock=clock) as operations:
        await operations.fails(*"abcdef")

        found = await pages(operations, limit=limit)

        assert [len(page) for page in found] == [limit] * (6 // limit) + ([6 % limit] if 6 % limit else [])
        assert sorted(id_ for page in found for id_ in page) == sorted(await operations.ecotone.dead_letters.ids())


async def test_a_page_behind_one_that_is_gone_shows_those_of_its_moment_once_more() -> None:
    clock = TravellingClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with operated(clock=clock) as operations:
        await operations.fails(*"abcd")
        first = await operations.get("/dead-letters", limit=2)
        await operations.ecotone.dead_letters.delete(first["items"][1]["id"])

        second = await operations.get("/dead-letters", limit=5, after=first["next"])

        assert [one["error_message"][-1] for one in second["items"]] == [
            one.error_message[-1] for one in await operations.ecotone.dead_letters.list()
        ]
        assert len(second["items"]) == 3


async def test_filters_choose(url: str | None) -> None:
    async with shop_of(url) as operations:
        await operations.fails("a", tenant="acme")
        operations.clock.advance(timedelta(hours=1))
        middle = operations.clock.now()
        operations.clock.advance(timedelta(hours=1))
        operations.shop.error = ValueError
        await operations.fails("b", tenant="other")
        await operations.fails_with(b"\xffcc")

        async def found(**query: Any) -> list[str]:
            page = await operations.get("/dead-letters", **query)
            assert page["total"] == len(page["items"])
            return sorted(one["error_message"][-1] for one in page["items"])

        assert await found() == ["a", "b", "e"]
        assert await found(handler="mail") == ["a", "b"]
        assert await found(error="ValueError") == ["b", "e"]
        assert await found(error="builtins.TimeoutError") == ["a"]
        assert await found(channel="bytes") == ["e"]
        assert await found(text="for b") == ["b"]
        assert await found(tenant="acme") == ["a"]
        assert await found(since=middle.isoformat()) == ["b", "e"]
        assert await found(until=middle.isoformat()) == ["a"]
        assert await found(handler="mail", error="ValueError", tenant="acme") == []
        assert await found(handler="", error="", channel="", text="", tenant="") == ["a", "b", "e"]
        assert [len(page) for page in await pages(operations, until=middle.isoformat(), limit=1)] == [1]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 501},
        {"since": "yesterday"},
        {"since": "2026-01-01T00:00:00"},
        {"after": "%%%"},
        {"after": "bm9uc2Vuc2U="},
        {"after": "WyIyMDI2LTAxLTAxIiwgIngiXQ=="},
        {"after": "ä"},
        {"after": "W10="},
        {"after": "WzcsIDhd"},
        {"after": ""},
        {"after": "WyI5OTk5LTEyLTMxVDIzOjU5OjU5Ljk5OTk5OSswMDowMCIsICJ4Il0="},
        {"after": "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwgIngiXQ=="},
        {"after": base64.urlsafe_b64encode(b"[" * 2_900).decode()},
        {"after": "x" * 4_001},
        {"since": "9999-12-31T23:59:59.999999-14:00"},
        {"until": "0001-01-01T00:00:00+14:00"},
    ],
    ids=lambda query: str(query)[:60],
)
async def test_a_question_that_makes_no_sense_is_refused(query: dict[str, Any]) -> None:
    async with operated() as operations:
        answer = await operations.call("GET", "/dead-letters", params=query)

        assert answer.status_code == 422
        assert answer.json()["detail"]


# ------------------------------------------------------------------------------------------------------------ to replay


async def test_a_dead_letter_is_replayed(url: str | None) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("a")
        operations.shop.is_down = False

        assert await operations.post(f"/dead-letters/{id_}/replay") is None
        await operations.work("mails")

        assert operations.shop.sent == ["a"]
        assert (await operations.get("/dead-letters"))["total"] == 0
        assert (await operations.call("POST", f"/dead-letters/{id_}/replay", headers=JSON)).status_code == 404


async def test_a_dead_letter_is_replayed_to_another_channel() -> None:
    async with operated() as operations:
        [id_] = await operations.fails("a")

        await operations.post(f"/dead-letters/{id_}/replay", to="bytes")

        assert [one["depth"] for one in (await operations.get("/channels"))["items"]] == [1, 0]


async def test_a_dead_letter_that_cannot_go_back_stays_and_it_is_said_why() -> None:
    async with operated() as operations:
        [id_] = await operations.fails("a")

        answer = await operations.call("POST", f"/dead-letters/{id_}/replay", json={"to": "nowhere"})

        assert answer.status_code == 409
        assert "there is no channel 'nowhere'" in answer.json()["detail"]
        assert "Hint: " in answer.json()["detail"]
        assert (await operations.get("/dead-letters"))["total"] == 1


async def test_many_are_replayed_by_a_filter(url: str | None) -> None:
    async with shop_of(url) as operations:
        await operations.fails("a", "b", tenant="acme")
        await operations.fails("c", tenant="other")
        operations.shop.is_down = False

        answer = await operations.post("/dead-letters/replay", filter={"tenant": "acme"})
        await operations.work("mails")

        assert answer == {"replayed": 2, "refused": {}, "refused_count": 0, "remaining": 0, "next": None}
        assert operations.shop.sent == ["a", "b"]
        assert (await operations.get("/dead-letters"))["total"] == 1


async def test_all_are_replayed_by_an_empty_filter_the_oldest_first_and_as_many_as_wanted() -> None:
    async with operated() as operations:
        await operations.fails("a", "b", "c")
        operations.shop.is_down = False

        answer = await operations.post("/dead-letters/replay", filter={}, limit=2)
        await operations.work("mails")

        assert (answer["replayed"], answer["remaining"]) == (2, 1)
        assert operations.shop.sent == ["a", "b"]


async def in_steps(operations: Operations, **wish: Any) -> list[Any]:
    """Ask for replays again and again, behind those that were tried, until none is left."""
    answers = [await operations.post("/dead-letters/replay", **wish)]
    while answers[-1]["next"] is not None:
        answers.append(await operations.post("/dead-letters/replay", **wish, after=answers[-1]["next"]))
    return answers


async def test_all_are_replayed_by_one_wish_however_many_they_are() -> None:
    async with operated() as operations:
        ids = await operations.fails(*map(str, range(1200)))

        every = await operations.post("/dead-letters/replay", filter={})
        await operations.work("mails")
        selected = await operations.post("/dead-letters/replay", ids=ids)

        assert every == selected == {"replayed": 1200, "refused": {}, "refused_count": 0, "remaining": 0, "next": None}


async def test_steps_go_on_behind_those_that_cannot_go_back_and_try_none_twice(url: str | None) -> None:
    async with shop_of(url) as operations:
        ids = await operations.fails(*"abcdefg")
        for id_ in (ids[0], ids[1], ids[4]):
            await operations.post(f"/dead-letters/{id_}/edit", headers={"endpoint": "gone"})

        answers = await in_steps(operations, filter={}, limit=3)

        told = [(one["replayed"], list(one["refused"]), one["remaining"]) for one in answers]
        assert told == [(1, [ids[0], ids[1]], 4), (2, [ids[4]], 1), (1, [], 0)]
        assert (await operations.get("/dead-letters"))["total"] == 3


async def test_what_fails_again_between_two_steps_is_not_tried_twice(url: str | None) -> None:
    async with shop_of(url) as operations:
        await operations.fails(*"abcd")
        operations.clock.advance(timedelta(seconds=1))
        first = await operations.post("/dead-letters/replay", filter={}, limit=2)
        await operations.work("mails")  # and they fail again

        second = await operations.post("/dead-letters/replay", filter={}, limit=10, after=first["next"])

        assert (first["remaining"], second["replayed"], second["remaining"]) == (2, 2, 0)
        assert [one["replays"] for one in (await operations.get("/dead-letters"))["items"]] == [1, 1]


async def test_selected_ones_go_back_in_steps_too() -> None:
    async with operated() as operations:
        ids = await operations.fails(*"abcde")

        answers = await in_steps(operations, ids=[ids[3], "nobody", ids[0], ids[1]], limit=2)

        assert [(one["replayed"], list(one["refused"]), one["remaining"]) for one in answers] == [
            (1, ["nobody"], 2),
            (2, [], 0),
        ]
        assert sorted(await operations.ecotone.dead_letters.ids()) == sorted([ids[2], ids[4]])


BEFORE_ALL_TIME = "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwgbnVsbF0="  # ["0001-01-01T00:00:00+14:00", null]


@pytest.mark.parametrize(
    "after", ["nothing", "bm90aGluZw==", "W10=", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwgbnVsbF0=", BEFORE_ALL_TIME, "ä"]
)
async def test_steps_begin_behind_nothing_that_was_not_told(after: str) -> None:
    async with operated() as operations:
        await operations.fails("a")

        answer = await operations.call("POST", "/dead-letters/replay", json={"filter": {}, "after": after})

        assert (answer.status_code, answer.json()["detail"]) == (
            422,
            "This `after` was told by no answer: leave it out to begin anew",
        )
        assert (await operations.get("/dead-letters"))["total"] == 1


async def test_a_client_that_goes_away_ends_the_replay_that_it_has_asked_for() -> None:
    async with operated() as operations:
        await operations.fails(*map(str, range(250)))
        sent: list[Any] = []
        body = b'{"filter": {}}'
        told = iter([{"type": "http.request", "body": body, "more_body": False}, None, {"type": "http.disconnect"}])

        async def receive() -> Any:
            message = next(told, {"type": "http.disconnect"})
            if message is None:
                await anyio.sleep_forever()  # it is still there at the first look
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        headers = {**ADMIN, **JSON, "content-length": str(len(body))}
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/ecotone/operations/dead-letters/replay",
            "raw_path": b"",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        await operations.app(scope, receive, send)

        answer = json.loads(b"".join(one.get("body", b"") for one in sent))
        assert (answer["replayed"], answer["remaining"]) == (100, 150)
        assert (await operations.get("/dead-letters"))["total"] == 150


async def test_how_far_a_replay_has_come_is_told_when_a_channel_is_lost() -> None:
    async with operated() as operations:
        await operations.fails(*"abcd")
        channel: Any = operations.ecotone.assembly.channels["mails"]
        send, sent = channel.send, 0

        async def lost(messages: Any) -> None:
            nonlocal sent
            sent += 1
            if sent > 2:
                raise ChannelError("the broker is gone")
            await send(messages)

        channel.send = lost
        answer = await operations.call("POST", "/dead-letters/replay", json={"filter": {}})

        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "2 of 4 were tried before this: the broker is gone",
        )
        assert (await operations.get("/dead-letters"))["total"] == 2


async def test_one_that_was_edited_after_it_was_looked_at_is_not_replayed(url: str | None) -> None:
    async with shop_of(url) as operations:
        [id_] = await operations.fails("a")
        seen = (await operations.get(f"/dead-letters/{id_}"))["revision"]
        await operations.post(f"/dead-letters/{id_}/edit", payload='"theirs"')

        answer = await operations.call("POST", f"/dead-letters/{id_}/replay", json={"revision": seen})

        assert answer.status_code == 409
        assert answer.json()["detail"] == f"dead letter '{id_}' was edited by somebody else meanwhile"
        now = await operations.get(f"/dead-letters/{id_}")
        assert now["payload"] == '"theirs"'
        await operations.post(f"/dead-letters/{id_}/replay", revision=now["revision"])
        assert (await operations.get("/dead-letters"))["total"] == 0


async def test_one_that_cannot_go_back_does_not_hold_up_the_others() -> None:
    async with operated() as operations:
        ids = await operations.fails("a", "b")

        answer = await operations.post("/dead-letters/replay", ids=[ids[0], "nobody", ids[1], ids[0]])

        assert (answer["replayed"], answer["refused_count"]) == (2, 1)
        assert answer["refused"] == {"nobody": "no dead letter has the id 'nobody'"}


@pytest.mark.parametrize("what", ["replay", "delete"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": ["a"], "filter": {}},
        {"filter": {"tennant": "acme"}},
        {"filter": {"text": ""}},
        {"filter": {"handler": ""}},
        {"filter": None},
        {"filter": {"since": "2026-01-01T00:00:00"}},
        {"ids": "a"},
        {"everything": True},
        [],
    ],
    ids=str,
)
async def test_what_does_not_say_which_are_meant_touches_none(what: str, body: Any) -> None:
    async with operated() as operations:
        await operations.fails("a")

        answer = await operations.call("POST", f"/dead-letters/{what}", json=body)

        assert answer.status_code == 422
        assert (await operations.get("/dead-letters"))["total"] == 1


async def test_a_body_that_is_no_json_touches_none() -> None:
    async with operated() as operations:
        for content in (b"{", b"\xff\xfe", b'{"filter": {"text": "\\ud83d"}}', b"null"):
            answer = await operations.call("POST", "/dead-letters/delete", headers=JSON, content=content)
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"][0] == "body"


# ------------------------------------------------------------------------------------------------------------ to delete


async def test_a_dead_letter_is_deleted(url: str | None) -> None:
    async with shop_of(url) as operations:
        one, two = await operations.fails("a", "b")

        assert (await operations.call("DELETE", f"/dead-letters/{one}")).status_code == 204

        assert [item["id"] for item in (await operations.get("/dead-letters"))["items"]] == [two]
        assert (await operations.call("DELETE", f"/dead-letters/{one}")).status_code == 404


async def test_many_are_deleted_by_a_filter_or_by_their_ids(url: str | None) -> None:
    async with shop_of(url) as operations:
        *_, last = await operations.fails("a", "b", "c")

        assert await operations.post("/dead-letters/delete", filter={"text": "for a"}) == {"deleted": 1}
        assert await operations.post("/dead-letters/delete", ids=[last, "nobody"]) == {"deleted": 1}
        assert (await operations.get("/dead-letters"))["total"] == 1
        assert await operations.post("/dead-letters/delete", filter={}) == {"deleted": 1}


# ----------------------------------------------------------------------------------------------------------- bad input


async def test_over_long_texts_are_cut_and_it_is_said_how_long_they_were() -> None:
    async with operated() as operations:
        [id_] = await operations.fails("x" * 100_000, long="h" * 5_000)

        [item] = (await operations.get("/dead-letters"))["items"]
        shown = await operations.get(f"/dead-letters/{id_}")

        assert item["error_message"] == f"no answer for {'x' * 986}… (cut, 100014 characters in all)"
        assert shown["error_message"].endswith("… (cut, 100014 characters in all)")
        assert shown["payload"] == '"' + "x" * 63_999 + "… (cut, 100002 bytes in all)"
        assert (shown["payload_cut"], shown["payload_length"]) == (True, 100_002)
        assert shown["headers"]["long"] == "h" * 4_000 + "… (cut, 5000 characters in all)"
        assert len(shown["traceback"]) < 65_000
        assert shown["traceback"].startswith("Traceback")
        assert " characters in all) …" in shown["traceback"]


def test_headers_are_cut_one_by_one_and_counted_when_they_are_too_many() -> None:
    headers = {f"name-{number:04}": "x" for number in range(1_000)} | {"a": "y" * (LONGEST_HEADER + 1)}

    shown = cut_headers(headers)

    assert shown["a"] == "y" * LONGEST_HEADER + f"… (cut, {LONGEST_HEADER + 1} characters in all)"
    assert len(shown) == MOST_HEADERS + 1
    assert shown["…"] == "(cut, 1001 headers in all)"
    assert "…" not in cut_headers({"a": "b"})


async def test_a_character_in_two_pieces_makes_a_long_text_no_less_a_text() -> None:
    async with operated() as operations:
        whole = await operations.fails_with(("x" * 63_999 + "ä" * 9).encode())
        broken = await operations.fails_with(b"\xff" + b"y" * 70_000)

        text, raw = [await operations.get(f"/dead-letters/{one}") for one in (whole, broken)]

        assert (text["payload_encoding"], text["payload"][63_998:]) == ("text", "x… (cut, 64017 bytes in all)")
        assert (raw["payload_encoding"], raw["payload_cut"], len(raw["payload"])) == ("base64", True, 85_336)


async def test_script_tags_go_through_as_what_they_are() -> None:
    async with operated() as operations:
        evil = "<script>alert('x')</script>"
        [id_] = await operations.fails(evil, evil=evil)

        answer = await operations.call("GET", f"/dead-letters/{id_}")

        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["headers"]["evil"] == evil
        assert evil in answer.json()["error_message"]


async def test_what_json_cannot_say_is_written_in_another_way() -> None:
    async with operated() as operations:
        [id_] = await operations.fails("a", odd="half a \ud83d smile")

        assert (await operations.get(f"/dead-letters/{id_}"))["headers"]["odd"] == "half a \\ud83d smile"


@pytest.mark.parametrize("id_", ["with/slash", "with%2Fslash/replay", "%20", "ä", "a?b", "x" * 5000])
async def test_an_id_may_be_anything(id_: str) -> None:
    async with operated() as operations:
        answer = await operations.call("GET", f"/dead-letters/{id_}")

        assert answer.status_code == 404
        assert "no dead letter has the id" in answer.json()["detail"]
