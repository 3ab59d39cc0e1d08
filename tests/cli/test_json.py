"""`--json`: one document on the standard output, nothing else there, also when something goes wrong."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from ecotone_fastapi.cli import commands
from tests.cli.conftest import Project
from tests.cli.processes import ECOTONE


@pytest.fixture
def shop(project: Project) -> Project:
    """An application that prints wherever it can: when it is imported, and in its handlers."""
    project.write(
        "shop.py",
        """
        from dataclasses import dataclass

        from ecotone_fastapi import (
            Ecotone, EventSourcing, applies, asynchronous, command_handler, event_handler, event_sourced, projection
        )
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

        print("imported")


        @dataclass(frozen=True)
        class PlaceOrder:
            order_id: str


        @dataclass(frozen=True)
        class OrderWasPlaced:
            order_id: str


        @event_sourced(identifier="order_id", stream="order")
        class Order:
            order_id = ""

            @classmethod
            @asynchronous("orders")
            @command_handler(id="place-order")
            def place(cls, command: PlaceOrder) -> OrderWasPlaced:
                print("handled")
                return OrderWasPlaced(command.order_id)

            @applies
            def placed(self, event: OrderWasPlaced) -> None:
                self.order_id = event.order_id


        @projection("orders_list", of=Order)
        class Orders:
            @event_handler
            async def placed(self, event: OrderWasPlaced) -> None:
                print("projected")

            @projection.reset
            async def clear(self) -> None:
                print("cleared")


        database = SqlAlchemy("sqlite+aiosqlite:///shop.db", create_schema=True)
        ecotone = Ecotone([Order, Orders], channels=[database.channel("orders")], plugins=[database])


        async def place(order_id: str) -> None:
            async with ecotone.running(consumers=False):
                await ecotone.command_bus.send(PlaceOrder(order_id))
        """,
    )
    return project


def told(project: Project, *arguments: str, code: int = 0) -> Any:
    result = project.ecotone(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


APP = "shop:ecotone"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", APP),
        ("list", APP, "--waiting"),
        ("status", APP),
        ("explain", APP, "Order.place"),
        ("diagram", APP),
        ("asyncapi", APP),
        ("asyncapi", APP, "--output", "asyncapi.json"),
        ("doctor", APP),
        ("migrate", APP),
        ("migrate", APP, "--check"),
        ("migrate", APP, "--sql"),
        ("run", APP, "orders", "--until-empty"),
        ("pause", APP, "orders"),
        ("resume", APP, "orders"),
        ("deadletter", "list", APP),
        ("deadletter", "replay", APP, "--all", "--yes"),
        ("deadletter", "delete", APP, "--all", "--yes"),
        ("scheduled", "list", APP),
        ("projection", "list", APP),
        ("projection", "status", APP, "orders_list"),
        ("projection", "init", APP, "orders_list"),
        ("projection", "run", APP, "orders_list"),
        ("projection", "backfill", APP, "orders_list"),
        ("projection", "rebuild", APP, "orders_list"),
        ("projection", "retry", APP, "orders_list"),
        ("projection", "delete", APP, "orders_list", "--yes"),
    ],
    ids=" ".join,
)
def test_the_answer_is_one_document(shop: Project, arguments: tuple[str, ...]) -> None:
    shop.ecotone("migrate", APP)
    shop.ecotone("projection", "init", APP, "--all")

    assert told(shop, *arguments) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ("deadletter", "show", APP, "no-such-id"),
        ("scheduled", "cancel", APP, "no-such-key"),
        ("scheduled", "reschedule", APP, "no-such-key", "--in", "1h"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_told_as_a_document_with_1(shop: Project, arguments: tuple[str, ...]) -> None:
    shop.ecotone("migrate", APP)

    assert told(shop, *arguments, code=1)


@pytest.mark.parametrize(
    "arguments",
    [("projection", "switch", APP, "orders_list"), ("projection", "cancel", APP, "orders_list")],
    ids=" ".join,
)
def test_what_makes_no_sense_is_told_as_a_document_with_its_code(shop: Project, arguments: tuple[str, ...]) -> None:
    shop.ecotone("migrate", APP)
    shop.ecotone("projection", "init", APP, "--all")
    result = shop.ecotone(*arguments, "--json")

    answer = json.loads(result.stdout)
    assert answer["code"] == result.exit_code != 0
    assert answer["error"]["what"]


def commands_of(group: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """All commands with their options."""
    if hasattr(group, "commands"):
        return {name: options for key, one in group.commands.items()
                for name, options in commands_of(one, (*path, key)).items()}  # fmt: skip
    return {path: {option for one in group.params for option in one.opts}}


def test_every_command_has_the_option() -> None:
    found = commands_of(typer.main.get_command(commands))

    assert len(found) > 20
    assert [name for name, options in found.items() if "--json" not in options] == []


def test_an_error_is_a_document_and_still_told_to_people(project: Project) -> None:
    result = project.ecotone("list", "nowhere:ecotone", "--json")

    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "error": {
            "type": "ConfigurationError",
            "what": "there is no module 'nowhere'",
            "tried": "",
            "hint": f"modules are looked for in {project.directory} and on PYTHONPATH",
        },
        "code": 2,
    }
    assert "Hint: modules are looked for" in result.stderr


def test_several_errors_are_told_one_by_one(project: Project) -> None:
    project.write(
        "wrong.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, event_handler


        @asynchronous("nowhere")
        @event_handler("happened", id="one")
        async def one(payload: dict[str, str]) -> None: ...


        @event_handler("happened", id="two")
        async def two(payload: dict[str, str], unknown: object) -> None: ...


        ecotone = Ecotone([one, two])
        """,
    )

    error = told(project, "list", "wrong:ecotone", code=2)["error"]

    assert [one["type"] for one in error["problems"]] == ["UnknownChannelError", "UnresolvableParameterError"]
    assert all(one["hint"] for one in error["problems"])


def test_without_the_option_an_error_leaves_the_standard_output_empty(project: Project) -> None:
    result = project.ecotone("list", "nowhere:ecotone")

    assert result.stdout == ""
    assert "there is no module" in result.stderr


def test_what_breaks_unexpectedly_is_a_document_too(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop.directory / "shop.db").write_bytes(b"no database at all" * 100)

    result = subprocess.run(
        [ECOTONE, "deadletter", "list", APP, "--json"], cwd=shop.directory, capture_output=True, text=True, check=False
    )

    answer = json.loads(result.stdout)
    assert answer["code"] == result.returncode == 1
    assert answer["error"]["type"]


def test_what_handlers_print_goes_elsewhere(shop: Project) -> None:
    shop.ecotone("migrate", APP)
    environment = {"PYTHONPATH": str(shop.directory)}
    for order_id in ("1", "2"):
        program = f"import asyncio, shop; asyncio.run(shop.place({order_id!r}))"
        subprocess.run(
            [Path(ECOTONE).with_name("python"), "-c", program], cwd=shop.directory, env=environment, check=True
        )

    run = shop.ecotone("run", APP, "orders", "--until-empty", "--json")
    projected = shop.ecotone("projection", "run", APP, "orders_list", "--json")
    rebuilt = shop.ecotone("projection", "rebuild", APP, "orders_list", "--json")

    assert json.loads(run.stdout)["handled"] == {"orders": 2}
    assert run.stderr.count("handled\n") == 2
    assert json.loads(projected.stdout) == {"handled": {"orders_list": 2}}
    assert "projected" in projected.stderr
    assert json.loads(rebuilt.stdout) == {"orders_list": True}
    assert "cleared" in rebuilt.stderr


def test_nothing_is_left_behind_for_the_next_command(shop: Project) -> None:
    told(shop, "list", APP)

    assert "orders" in shop.ecotone("list", APP).stdout


def test_who_does_not_agree_is_told_that_nothing_was_done(shop: Project) -> None:
    shop.ecotone("migrate", APP)
    shop.ecotone("projection", "init", APP, "--all")

    assert told(shop, "projection", "delete", APP, "orders_list", code=1) is not None
    assert told(shop, "projection", "list", APP)[0]["versions"]
