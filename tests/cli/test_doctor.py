"""`ecotone doctor`: what it finds, how it says so, and with which exit code it ends."""

import json

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def durable(project: Project) -> Project:
    project.write(
        "shop.py",
        """
        import os

        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy


        @asynchronous("work")
        @command_handler("work", id="work")
        async def work(number: int) -> None: ...


        database = SqlAlchemy(os.environ.get("DATABASE", "sqlite+aiosqlite:///shop.db"), name="orders")
        ecotone = Ecotone([work], channels=[database.channel("work")], plugins=[database])
        """,
    )
    project.write(
        "volatile.py",
        """
        from ecotone_fastapi import Ecotone
        from ecotone_fastapi.adapters.memory import MemoryChannel
        from shop import database, work

        ecotone = Ecotone([work], channels=[MemoryChannel("work")], plugins=[database])
        """,
    )
    return project


def test_all_is_well(durable: Project) -> None:
    durable.ecotone("migrate", "shop:ecotone")

    result = durable.ecotone("doctor", "shop:ecotone", "--strict")

    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "ok       wiring      shop:ecotone: 1 handler, 1 channel and 1 consumer fit together"
    assert "ok       schema      orders: all tables are up to date" in lines
    assert any(line.startswith("ok       versions    Python: 3.") for line in lines)
    assert lines[-1] == "everything is well"


def test_a_problem_ends_with_1_and_says_what_to_do(durable: Project) -> None:
    result = durable.ecotone("doctor", "shop:ecotone")

    assert result.exit_code == 1
    assert "problem  schema      orders: lacks the table ecotone_aggregate, " in result.stdout
    assert "Hint: run `ecotone migrate` before the start" in result.stdout
    assert result.stdout.endswith("\n1 problem\n")


def test_a_warning_ends_with_1_only_when_it_is_strict(durable: Project) -> None:
    durable.ecotone("migrate", "shop:ecotone")

    lenient = durable.ecotone("doctor", "volatile:ecotone")
    strict = durable.ecotone("doctor", "volatile:ecotone", "--strict")

    assert (lenient.exit_code, strict.exit_code) == (0, 1)
    assert (
        "warning  durability  channel work: keeps its messages in memory: what waits for work is lost" in strict.stdout
    )
    assert strict.stdout == lenient.stdout


def test_wiring_that_is_wrong_is_a_problem_among_others(project: Project) -> None:
    project.write(
        "wrong.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, event_handler


        @asynchronous("nowhere")
        @event_handler("happened", id="one")
        async def one(payload: dict[str, str]) -> None: ...


        ecotone = Ecotone([one])
        """,
    )

    result = project.ecotone("doctor", "wrong:ecotone", "--json")

    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["well"], told["problems"], told["warnings"]) == (False, 1, 0)
    (problem,) = [one for one in told["findings"] if one["level"] == "problem"]
    assert problem["topic"] == "wiring"
    assert "nowhere" in problem["what"]
    assert {one["topic"] for one in told["findings"]} == {"wiring", "versions"}


def test_an_application_that_is_not_there_ends_with_2(project: Project) -> None:
    assert project.ecotone("doctor", "nowhere:ecotone").exit_code == 2


def test_a_server_that_is_down_is_told_without_a_traceback(durable: Project) -> None:
    result = durable.ecotone("doctor", "shop:ecotone", DATABASE="postgresql+asyncpg://me:secret@127.0.0.1:1/shop")

    assert result.exit_code == 1
    assert "problem  server      orders: " in result.stdout
    assert "Traceback" not in result.output
    assert "secret" not in result.output


def test_what_servers_say_cannot_command_a_terminal(project: Project) -> None:
    project.write(
        "rude.py",
        """
        from ecotone_fastapi import Ecotone
        from ecotone_fastapi.core import Finding, Level


        class Rude:
            name = "rude"

            def install(self, assembly): ...

            async def examine(self):
                return [Finding(Level.WARNING, "server", "rude", "\\x1b[31mred", "\\x1b]0;title\\x07")]


        ecotone = Ecotone([], plugins=[Rude()])
        """,
    )

    result = project.ecotone("doctor", "rude:ecotone")

    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred" in result.stdout
    assert json.loads(project.ecotone("doctor", "rude:ecotone", "--json").stdout)["warnings"] == 1


def test_a_setting_of_the_environment_makes_it_strict(durable: Project) -> None:
    durable.ecotone("migrate", "shop:ecotone")

    assert durable.ecotone("doctor", "volatile:ecotone", ECOTONE_STRICT="1").exit_code == 1
