"""`ecotone scheduled`."""

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def shop(project: Project) -> Project:
    """A shop in which three reminders wait, two of them under one key."""
    project.write(
        "shop.py",
        """
        from datetime import timedelta

        from ecotone_fastapi import Ecotone, asynchronous, delayed, event_handler
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy


        @delayed(timedelta(hours=1), key=lambda order: f"order:{order}")
        @asynchronous("reminders")
        @event_handler("order.placed", id="remind-customer")
        async def remind(order: str) -> None: ...


        database = SqlAlchemy("sqlite+aiosqlite:///shop.db", create_schema=True)
        ecotone = Ecotone([remind], channels=[database.channel("reminders")], plugins=[database])


        async def place(*orders: str) -> None:
            async with ecotone.running(consumers=False):
                for order in orders:
                    await ecotone.event_bus.publish(order, to="order.placed")
        """,
    )
    asyncio.run(module().place("a", "b", "b"))
    return project


def module() -> Any:
    """The application, made anew, because each one belongs to one event loop."""
    sys.path.insert(0, ".")
    sys.modules.pop("shop", None)
    return import_module("shop")


def due(shop: Project, key: str) -> list[datetime]:
    found = json.loads(shop.ecotone("scheduled", "list", "shop:ecotone", key, "--json").stdout)["scheduled"]
    return [datetime.fromisoformat(one["due_at"]) for one in found]


def in_hours(hours: float) -> datetime:
    return (datetime.now(UTC) + timedelta(hours=hours)).astimezone()  # clocks may be put back before


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the application anew for each command, as each process does."""
    original = Project.ecotone

    def ecotone(self: Project, *arguments: str, **environment: str) -> Any:
        sys.modules.pop("shop", None)
        return original(self, *arguments, **environment)

    monkeypatch.setattr(Project, "ecotone", ecotone)


def test_the_table_shows_what_waits_the_next_one_first(shop: Project) -> None:
    result = shop.ecotone("scheduled", "list", "shop:ecotone")

    assert result.exit_code == 0
    head, *rows = [line.split() for line in result.stdout.splitlines()]
    assert head == ["KEY", "DUE", "CHANNEL", "HANDLER", "ID"]
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("order:a", "reminders", "remind-customer"),
        ("order:b", "reminders", "remind-customer"),
        ("order:b", "reminders", "remind-customer"),
    ]


def test_the_list_is_narrowed_by_key_and_channel_and_cut(shop: Project) -> None:
    assert len(shop.ecotone("scheduled", "list", "shop:ecotone", "order:b").stdout.splitlines()) == 3

    cut = shop.ecotone("scheduled", "list", "shop:ecotone", "--limit", "1", "--offset", "1")
    assert [line.split()[0] for line in cut.stdout.splitlines()] == ["KEY", "order:b"]
    assert "there are more" in cut.stderr

    nowhere = shop.ecotone("scheduled", "list", "shop:ecotone", "--channel", "elsewhere")
    assert (nowhere.stdout, nowhere.stderr) == ("", "nothing waits under a key\n")
    nobody = shop.ecotone("scheduled", "list", "shop:ecotone", "order:c")
    assert nobody.stderr == "nothing waits under the key 'order:c'\n"


def test_json_tells_everything_about_what_waits(shop: Project) -> None:
    told = json.loads(shop.ecotone("scheduled", "list", "shop:ecotone", "order:a", "--json").stdout)

    assert told["more"] is False
    [one] = told["scheduled"]
    assert one["key"] == one["headers"]["schedule_key"] == "order:a"
    assert (one["channel"], one["handler"]) == ("reminders", "remind-customer")
    assert abs(datetime.fromisoformat(one["due_at"]) - in_hours(1)) < timedelta(minutes=1)


def test_cancel_removes_all_under_a_key_and_ends_with_1_when_there_is_nothing(shop: Project) -> None:
    assert shop.ecotone("scheduled", "cancel", "shop:ecotone", "order:b").stdout == "cancelled 2\n"

    again = shop.ecotone("scheduled", "cancel", "shop:ecotone", "order:b", "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout) == {"cancelled": 0}
    assert "nothing waits under the key 'order:b'" in again.stderr
    assert len(due(shop, "order:a")) == 1


def test_a_key_that_looks_like_an_application_is_a_key_where_the_application_is_configured(shop: Project) -> None:
    result = shop.ecotone("scheduled", "cancel", "order:a", ECOTONE_APP="shop:ecotone")

    assert result.stdout == "cancelled 1\n"
    by_option = shop.ecotone("scheduled", "cancel", "--app", "shop:ecotone", "order:b")
    assert by_option.stdout == "cancelled 2\n"


@pytest.mark.parametrize(("time", "hours"), [("90m", 1.5), ("2h", 2), ("7d", 168), ("4w", 672), ("0s", 0)])
def test_reschedule_takes_a_time_from_now_on(shop: Project, time: str, hours: float) -> None:
    result = shop.ecotone("scheduled", "reschedule", "shop:ecotone", "order:b", "--in", time)

    assert result.stdout == "rescheduled 2\n"
    assert all(abs(moment - in_hours(hours)) < timedelta(minutes=1) for moment in due(shop, "order:b"))
    assert abs(due(shop, "order:a")[0] - in_hours(1)) < timedelta(minutes=1)


@pytest.mark.parametrize("offset", [True, False])
def test_reschedule_takes_a_moment_here_or_with_its_offset_from_utc(shop: Project, offset: bool) -> None:
    moment = in_hours(5).replace(microsecond=0)
    text = moment.isoformat() if offset else moment.replace(tzinfo=None).isoformat()

    shop.ecotone("scheduled", "reschedule", "shop:ecotone", "order:a", "--at", text)

    assert due(shop, "order:a") == [moment]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reschedule", "order:a"], "it is not said when"),
        (["reschedule", "order:a", "--in", "2h", "--at", "2030-01-01"], "it is not said when"),
        (["reschedule", "order:a", "--in", "soon"], "'soon' is no time"),
        (["reschedule", "order:a", "--in", "99999999999999w"], "is no time"),
        (["reschedule", "order:a", "--at", "soon"], "'soon' is no time"),
        (["reschedule", "--in", "2h"], "reschedule takes one key"),
        (["cancel"], "cancel takes one key"),
        (["cancel", "a", "b"], "cancel takes one key"),
        (["list", "a", "b"], "list takes one key, or none"),
    ],
)
def test_what_cannot_be_meant_is_refused(shop: Project, arguments: list[str], said: str) -> None:
    command, *rest = arguments

    result = shop.ecotone("scheduled", command, "shop:ecotone", *rest)

    assert result.exit_code == 2
    assert said in result.stderr


def test_it_is_told_that_memory_cannot_be_looked_into_from_outside(project: Project) -> None:
    project.write(
        "tiny.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.memory import MemoryChannel


        @asynchronous("work")
        @command_handler("work", id="work")
        async def work() -> None: ...


        ecotone = Ecotone([work], channels=[MemoryChannel("work")])
        """,
    )

    result = project.ecotone("scheduled", "list", "tiny:ecotone")

    assert "in the memory of its process" in result.stderr
