"""How an application is, over HTTP."""

from datetime import timedelta

import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import ChannelError
from tests.web.operations.shops import operated


async def test_the_overview_tells_what_waits_what_was_handled_and_what_failed() -> None:
    async with operated() as operations:
        await operations.fails("a", "b")
        operations.shop.is_down = False
        for text in ("c", "d", "e"):
            await operations.ecotone.command_bus.send(text, to="mail")
        await operations.ecotone.command_bus.send("a", to="remind")
        operations.clock.advance(timedelta(seconds=9))

        report = await operations.get("/overview")

        mails, others = report["channels"]
        assert (mails["name"], mails["type"], mails["depth"]) == ("mails", "MemoryChannel", 4)
        assert 9 <= mails["oldest_age"] < 20
        assert (mails["consumer"]["handled"], mails["consumer"]["failed"]) == (0, 2)
        assert (others["depth"], others["oldest_age"], others["problem"]) == (0, None, None)
        assert report["dead_letters"] == {"count": 2, "problem": None}
        assert report["scheduled"] == {"count": 1, "problem": None}
        assert (report["outbox"], report["projections"]) == ([], [])
        assert [one["name"] for one in report["runnables"]] == ["mails", "bytes"]


async def test_the_rate_is_measured_by_the_clock() -> None:
    async with operated() as operations:
        operations.shop.is_down = False
        await operations.get("/overview")
        for text in map(str, range(20)):
            await operations.ecotone.command_bus.send(text, to="mail")
        await operations.work("mails")
        operations.clock.advance(timedelta(seconds=10))

        [consumer, _] = (await operations.ecotone.overview.report()).runnables

        assert consumer.handled == 20
        assert consumer.rate == pytest.approx(2.0, rel=0.2)
        assert consumer.rate_seconds == pytest.approx(10.0, rel=0.2)


async def test_the_overview_counts_what_is_in_a_database(database_url: str) -> None:
    database = SqlAlchemy(database_url, create_schema=True)
    async with operated(database.channel, database) as operations:
        await operations.fails("a")
        await operations.ecotone.command_bus.send("b", to="mail")
        await operations.ecotone.command_bus.send("b", to="remind")
        operations.clock.advance(timedelta(seconds=30))

        report = await operations.get("/overview")

        assert [(one["name"], one["type"], one["depth"]) for one in report["channels"]] == [
            ("mails", "SqlChannel", 2),
            ("bytes", "SqlChannel", 0),
        ]
        assert 30 <= report["channels"][0]["oldest_age"] < 60
        assert (report["dead_letters"]["count"], report["scheduled"]["count"]) == (1, 1)
        assert [one["problem"] for one in report["channels"]] == [None, None]
        assert await operations.get("/outbox") == {"items": [], "next": None, "total": 0}


async def test_health_is_told_loop_by_loop_and_server_by_server(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with operated(database.channel, database) as operations:
        health = await operations.get("/health")

        assert health["status"] == "ready"
        assert [(one["name"], one["condition"]) for one in health["runnables"]] == [("mails", None), ("bytes", None)]
        assert health["servers"] == {"sqlite": "ok"}


async def test_health_tells_that_the_application_does_not_run() -> None:
    async with operated() as operations:
        pass

    assert (await operations.get("/health"))["status"] == "not running"


async def test_an_error_that_says_too_much_or_what_json_cannot_say_is_told_all_the_same() -> None:
    async def break_off(_: object) -> int:
        raise ChannelError("half a \ud83d smile " + "x" * 5_000)

    class Broken(MemoryChannel):
        async def depth(self) -> int:
            return await break_off(None)

    async with operated(Broken) as operations:
        await operations.ecotone.consumers.pause("mails", reason="\udc00" + "y" * 5_000)

        report = await operations.get("/overview")

        problem, reason = report["channels"][0]["problem"], report["channels"][0]["consumer"]["reason"]
        assert problem.startswith("ChannelError: half a \\ud83d smile xxx")
        assert problem.endswith("x… (cut, 5029 characters in all)")
        assert reason.startswith("\\udc00yyy")
        assert reason.endswith("y… (cut, 5001 characters in all)")
