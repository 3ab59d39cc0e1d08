"""`ecotone status`: what it shows, what it calls attention to, and how it ends."""

import io
import json
import os
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ecotone_fastapi.cli.attention import Limits, needed
from ecotone_fastapi.cli.durations import span_text
from ecotone_fastapi.cli.status import _parts
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.operations.report import ChannelReport, Count, LaneReport, ProjectionReport, Report, VersionReport
from tests.cli.conftest import Project
from tests.cli.processes import ECOTONE, PATIENCE, ecotone, eventually

APP = "shop:ecotone"


@pytest.fixture
def shop(project: Project) -> Project:
    project.write(
        "shop.py",
        """
        import os
        from dataclasses import dataclass

        from ecotone_fastapi import (
            Backoff, Ecotone, Failures, applies, asynchronous, command_handler, event_handler, event_sourced, projection
        )
        from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy


        @dataclass(frozen=True)
        class PlaceOrder:
            order_id: str


        @dataclass(frozen=True)
        class OrderWasPlaced:
            order_id: str


        @asynchronous("orders")
        @command_handler("order.check", id="check-order")
        async def check(order_id: str) -> None:
            raise ValueError("it is not in order")


        @event_sourced(identifier="order_id", stream="order")
        class Order:
            order_id = ""

            @classmethod
            @command_handler
            def place(cls, command: PlaceOrder) -> OrderWasPlaced:
                return OrderWasPlaced(command.order_id)

            @applies
            def placed(self, event: OrderWasPlaced) -> None:
                self.order_id = event.order_id


        @projection("orders_list", of=Order)
        class Orders:
            @event_handler
            async def placed(self, event: OrderWasPlaced) -> None:
                raise ValueError("it cannot be projected")

            @projection.reset
            async def clear(self) -> None: ...


        database = SqlAlchemy("sqlite+aiosqlite:///shop.db", create_schema=True)
        channels, handlers = [database.channel("orders")], [check, Order, Orders]


        @asynchronous("mails")
        @command_handler("mail.send", id="send-mail")
        async def mail(text: str) -> None: ...


        if "BROKER" in os.environ:
            channels.append(RabbitMQChannel("mails", os.environ["BROKER"], timeout=2))
            handlers.append(mail)
        ecotone = Ecotone(handlers, channels=channels, plugins=[database, Failures(Backoff(retries=0))])


        async def check_orders(*order_ids: str) -> None:
            async with ecotone.running(consumers=False):
                for order_id in order_ids:
                    await ecotone.command_bus.send(order_id, to="order.check")


        async def place_order(order_id: str) -> None:
            async with ecotone.running(consumers=False):
                await ecotone.command_bus.send(PlaceOrder(order_id))
        """,
    )
    return project


def do(project: Project, call: str) -> None:
    """Run something of the application in a process of its own."""
    program = f"import asyncio, shop; asyncio.run(shop.{call})"
    subprocess.run(
        [Path(ECOTONE).with_name("python"), "-c", program],
        cwd=project.directory, env={"PYTHONPATH": str(project.directory)}, check=True,
    )  # fmt: skip


def told(project: Project, *options: str, code: int = 0) -> dict[str, Any]:
    result = project.ecotone("status", APP, *options, "--json")
    assert result.exit_code == code, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_an_application_with_nothing_to_do_is_well(shop: Project) -> None:
    result = shop.ecotone("status", APP)

    assert result.exit_code == 0
    assert result.stderr == ""
    assert " ".join(result.stdout.split()) == (
        "CHANNEL TYPE WAITING OLDEST CONSUMER orders SqlChannel 0 - not paused "
        "PROJECTION MODE VERSION CONDITION BEHIND LAG RUNNER STANDS STILL "
        "orders_list asynchronous - not initialised - - - - "
        "Which processes run the consumers is not known here: the health of each tells its own. "
        "dead letters: 0 scheduled: 0"
    )


def test_what_waits_and_what_was_given_up_is_counted(shop: Project) -> None:
    do(shop, "check_orders('1', '2', '3')")

    waiting = told(shop)
    assert [(one["name"], one["depth"]) for one in waiting["channels"]] == [("orders", 3)]
    assert waiting["channels"][0]["oldest_age"] >= 0

    shop.ecotone("run", APP, "orders", "--until-empty")

    parked = told(shop)
    assert parked["channels"][0]["depth"] == 0
    assert parked["dead_letters"]["count"] == 3
    assert "dead letters: 3" in shop.ecotone("status", APP).stdout


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--max-depth", "2"), "channel orders: 3 messages wait, more than 2"),
        (("--max-age", "0"), "channel orders: the oldest message waits for "),
    ],
)
def test_a_limit_that_is_exceeded_ends_with_1(shop: Project, option: tuple[str, ...], said: str) -> None:
    do(shop, "check_orders('1', '2', '3')")

    result = shop.ecotone("status", APP, *option)

    assert result.exit_code == 1
    assert f"attention: {said}" in result.stderr
    assert "attention" not in result.stdout
    assert told(shop, *option, code=1)["attention"][0].startswith(said)
    assert told(shop, "--max-depth", "3", "--max-age", "10000")["attention"] == []


def test_dead_letters_end_with_1_only_when_a_limit_was_given(shop: Project) -> None:
    do(shop, "check_orders('1')")
    shop.ecotone("run", APP, "orders", "--until-empty")

    assert told(shop)["attention"] == []
    assert told(shop, "--max-dead-letters", "1")["attention"] == []
    assert told(shop, "--max-dead-letters", "0", code=1)["attention"] == ["dead letters: 1, more than 0"]


def test_a_projection_that_stands_still_ends_with_1(shop: Project) -> None:
    do(shop, "place_order('1')")
    shop.ecotone("projection", "run", APP, "orders_list")

    result = shop.ecotone("status", APP)

    assert result.exit_code == 1
    assert (
        "attention: projection orders_list, version 1: stands still: builtins.ValueError: it cannot be" in result.stderr
    )
    assert "it cannot be projected" in result.stdout
    assert "live" in result.stdout


def test_a_consumer_that_pauses_is_told_with_its_reason(shop: Project) -> None:
    shop.ecotone("migrate", APP)
    paused = shop.ecotone("pause", APP, "orders", "--reason", "stocktaking")
    assert paused.exit_code == 0, paused.output

    assert "paused since 20" in (shown := shop.ecotone("status", APP).stdout)
    assert ": stocktaking" in shown
    assert told(shop)["channels"][0]["consumer"]["paused"] is True

    shop.ecotone("resume", APP, "orders")
    assert "not paused" in shop.ecotone("status", APP).stdout


def test_a_broker_that_is_down_hides_nothing_else(shop: Project) -> None:
    do(shop, "check_orders('1')")

    result = shop.ecotone("status", APP, BROKER="amqp://me:secret@127.0.0.1:1/")

    assert result.exit_code == 1
    assert "attention: channel mails: " in result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["orders", "SqlChannel", "1"] in [row[:3] for row in rows]
    assert ["mails", "RabbitMQChannel", "-"] in [row[:3] for row in rows]
    assert ["mails", "0", "-", "outbox"] in rows
    assert "secret" not in result.output
    assert "Traceback" not in result.output


def test_channels_in_memory_look_empty_and_it_is_said_why(project: Project) -> None:
    project.write(
        "volatile.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.memory import MemoryChannel


        @asynchronous("orders")
        @command_handler("order.check", id="check-order")
        async def check(order_id: str) -> None: ...


        ecotone = Ecotone([check], channels=[MemoryChannel("orders")])
        """,
    )

    result = project.ecotone("status", "volatile:ecotone")

    assert result.exit_code == 0
    assert "in the memory of its process" in result.stderr


def test_it_is_told_again_and_again_until_somebody_interrupts(shop: Project) -> None:
    with ecotone("status", APP, "--watch", "0.1", cwd=shop.directory) as process:
        eventually(lambda: process.stdout.count("dead letters: 0") >= 2, "two reports")
        do(shop, "check_orders('1', '2')")
        eventually(lambda: "SqlChannel        2" in process.stdout, "the messages that have come")
        process.send(signal.SIGINT)

        assert process.ends() == 0
        assert process.stderr == ""


def test_what_needs_attention_in_the_end_decides_how_watching_ends(shop: Project) -> None:
    do(shop, "check_orders('1')")

    with ecotone("status", APP, "--watch", "0.1", "--max-depth", "0", cwd=shop.directory) as process:
        eventually(lambda: "dead letters" in process.stdout, "a report")
        process.send(signal.SIGINT)

        assert process.ends() == 1
        assert process.stderr == "attention: channel orders: 1 messages wait, more than 0\n"


def test_a_terminal_shows_one_report_in_place_of_the_other(shop: Project) -> None:
    shown = b""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [ECOTONE, "status", APP, "--watch", "0.1"], cwd=shop.directory, stdout=slave, stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )  # fmt: skip
    os.close(slave)
    try:
        while shown.count(b"dead letters") < 3:
            shown += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        os.close(master)

    assert (process.returncode, stderr) == (0, b"")
    assert b"\x1b[1A" in shown  # the cursor goes up, to where the last report began


def test_watching_and_one_document_exclude_each_other(shop: Project) -> None:
    result = shop.ecotone("status", APP, "--watch", "1", "--json")

    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["what"].startswith("--watch does not go with --json")


def rendered(found: Report) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(*_parts(found), sep="\n")
    return " ".join(file.getvalue().split())


def test_a_projection_that_is_built_tells_how_far_it_is() -> None:
    facts: dict[str, Any] = {"number": 2, "behind": 75, "lag": 61.0, "runner": "web-1", "halt": None}
    built = VersionReport(condition="building", done=25, total=100, seconds_left=90.0, **facts)
    fresh = VersionReport(condition="building", done=0, total=100, seconds_left=None, **facts)

    assert "balances asynchronous 2 building 25/100, 1 min 30 s left 75 1 min 1 s web-1 -" in rendered(
        report(projections=(projection(built),))
    )
    assert "building 0/100 75" in rendered(report(projections=(projection(fresh),)))


def test_a_projection_about_which_nothing_is_known_says_why() -> None:
    unknown = projection(mode=None, partitioned=None, condition=None, version=None, lag=None, problem="no answer")

    assert "balances - - no answer - - - -" in rendered(report(projections=(unknown,)))
    assert "dead letters: the server is away" in rendered(
        report(dead_letters=Count(count=None, problem="the server is away"))
    )


def test_what_a_server_says_cannot_command_a_terminal() -> None:
    assert "\\x1b]0;title" in rendered(report(channels=(channel(problem="\x1b]0;title\x07"),)))


# ----------------------------------------------------------------------------------------------------------- attention


def report(**parts: Any) -> Report:
    nothing = Count(count=0)
    defaults: dict[str, Any] = {
        "at": SystemClock().now(), "process": "web-1:1", "channels": (), "runnables": (), "outbox": (),
        "dead_letters": nothing, "scheduled": nothing, "projections": (),
    }  # fmt: skip
    return Report(**{**defaults, **parts})


def channel(**parts: Any) -> ChannelReport:
    defaults: dict[str, Any] = {
        "name": "orders", "type": "SqlChannel", "depth": 0, "oldest_age": None, "untold": (), "problem": None,
        "consumer": None,
    }  # fmt: skip
    return ChannelReport(**{**defaults, **parts})


def projection(*versions: VersionReport, **parts: Any) -> ProjectionReport:
    defaults: dict[str, Any] = {
        "name": "balances", "mode": "asynchronous", "partitioned": False, "condition": "live", "version": 1, "lag": 0.0,
        "blocked_by": "", "problem": None,
    }  # fmt: skip
    return ProjectionReport(versions=versions, **{**defaults, **parts})


def _lane() -> LaneReport:
    return LaneReport(
        channel="mails", depth=2, oldest_age=5.0, problem=None, relay="outbox", failures=0, last_error=None
    )


@pytest.mark.parametrize(
    ("found", "limits", "lines"),
    [
        (report(), Limits(depth=0, age=0, dead_letters=0, lag=0), []),
        (report(channels=(channel(depth=5, oldest_age=90.0),)), Limits(), []),
        (report(channels=(channel(depth=5, oldest_age=90.0),)), Limits(depth=5, age=90), []),
        (
            report(channels=(channel(depth=5, oldest_age=90.0),)),
            Limits(depth=4, age=60),
            [
                "channel orders: 5 messages wait, more than 4",
                "channel orders: the oldest message waits for 1 min 30 s, longer than 1 min",
            ],
        ),
        (
            report(outbox=(_lane(),)),
            Limits(depth=1),
            ["outbox of mails: 2 messages wait, more than 1"],
        ),
        (
            report(channels=(channel(depth=None, problem="ChannelError: down"),)),
            Limits(depth=0, age=0),
            ["channel orders: ChannelError: down"],
        ),
        (
            report(channels=(channel(),), dead_letters=Count(count=None, problem="ChannelError: down")),
            Limits(dead_letters=0),
            ["dead letters: ChannelError: down"],
        ),
        (report(dead_letters=Count(count=None, problem="the application has no dead letter")), Limits(), []),
        (
            report(projections=(projection(lag=61.0),)),
            Limits(lag=60),
            ["projection balances: 1 min 1 s behind, longer than 1 min"],
        ),
        (report(projections=(projection(problem="no answer"),)), Limits(), ["projection balances: no answer"]),
    ],
)  # fmt: skip
def test_attention_is_called_to_problems_and_to_limits_that_are_exceeded(
    found: Report, limits: Limits, lines: list[str]
) -> None:
    assert list(needed(found, limits)) == lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (0.25, "0.2 s"), (59.94, "59.9 s"), (59.96, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
        (3725, "1 h 2 min"), (86399.6, "1 d"), (timedelta(days=30, hours=5, seconds=7).total_seconds(), "30 d 5 h"),
    ],
)  # fmt: skip
def test_how_long_something_lasts_is_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
