"""Who reads the output: terminals, files, pipes that break, machines."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ecotone_fastapi.cli import commands
from tests.cli.conftest import Project
from tests.cli.processes import ECOTONE, run_ecotone


def test_help_tells_all_commands_and_how_the_application_is_named(project: Project) -> None:
    result = project.ecotone("--help")

    assert result.exit_code == 0
    for word in ("run", "list", "explain", "migrate", "ECOTONE_APP", "pyproject.toml"):
        assert word in result.stdout


def test_without_a_command_help_is_shown(project: Project) -> None:
    assert "explain" in project.ecotone().output


def test_the_version_is_told(project: Project) -> None:
    result = project.ecotone("--version")

    assert result.exit_code == 0
    assert result.stdout.strip()[0].isdigit()


@pytest.mark.parametrize("option", ["--no-such-option", "--messages=none"])
def test_a_wrong_option_ends_with_2(project: Project, option: str) -> None:
    assert project.ecotone("run", option).exit_code == 2


def test_colours_are_for_terminals_and_never_in_json(shop: Project) -> None:
    plain = shop.ecotone("explain", "shop:ecotone", "place_order")
    forced = shop.ecotone("explain", "shop:ecotone", "place_order", FORCE_COLOR="1")
    unwanted = shop.ecotone("explain", "shop:ecotone", "place_order", FORCE_COLOR="1", NO_COLOR="1")
    json = shop.ecotone("explain", "shop:ecotone", "place_order", "--json", FORCE_COLOR="1")

    assert "\x1b[" not in plain.stdout
    assert "\x1b[1;36m" in forced.stdout
    assert "36m" not in unwanted.stdout
    assert "\x1b[" not in json.stdout


def test_errors_go_to_stderr_and_keep_their_brackets(shop: Project) -> None:
    result = shop.ecotone("explain", "shop:ecotone", "[red]nothing")

    assert result.stdout == ""
    assert "there is no handler '[red]nothing'" in result.stderr


@pytest.fixture
def painted(project: Project) -> Project:
    """An application whose names are commands to a terminal."""
    project.write(
        "painted.py",
        r"""
        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.memory import MemoryChannel

        NAME = "pay\x1b[31m\x1b]0;title\x07\u202e"


        @asynchronous(NAME)
        @command_handler("pay", id="pay\x1b[31m")
        async def pay(order_id: str) -> None: ...


        ecotone = Ecotone([pay], channels=[MemoryChannel(NAME)])
        """,
    )
    return project


@pytest.mark.parametrize(
    "arguments", [("list",), ("explain", "pay"), ("explain", "nothing"), ("diagram",), ("doctor",)]
)
def test_names_that_are_commands_to_a_terminal_are_written_out(painted: Project, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments

    told = painted.ecotone(command, "painted:ecotone", *rest)

    assert r"pay\x1b[31m" in told.stdout + told.stderr or command in ("diagram", "doctor")
    assert [one for one in told.stdout + told.stderr if not one.isprintable() and one != "\n"] == []


def test_a_table_keeps_its_columns_whatever_its_names_are(painted: Project) -> None:
    head, row = painted.ecotone("list", "painted:ecotone").stdout.splitlines()[:2]

    assert row.index("MemoryChannel") == head.index("TYPE")


def test_what_the_application_prints_does_not_disturb_json(shop: Project) -> None:
    shop.write("chatty.py", "print('hello')\nfrom shop import ecotone\n")

    for command in (["list"], ["migrate"]):
        result = shop.ecotone(*command, "chatty:ecotone", "--json")

        assert result.stdout.startswith("{")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_error(shop: Project, option: list[str]) -> None:
    process = subprocess.Popen(
        [ECOTONE, "list", "shop:ecotone", *option],
        cwd=shop.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()

    _, errors = process.communicate(timeout=200)

    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors


def test_the_console_script_answers_in_a_process_of_its_own(shop: Project) -> None:
    assert "notifications" in run_ecotone("list", "shop:ecotone", cwd=shop.directory).stdout


def test_the_commands_can_be_put_under_commands_of_another_program(shop: Project, tmp_path: Path) -> None:
    program = typer.Typer()
    program.add_typer(commands, name="ecotone")

    @program.command()
    def other() -> None: ...

    result: Any = CliRunner().invoke(program, ["ecotone", "explain", "shop:ecotone", "nothing"])

    assert result.exit_code == 2
    assert "OrderService.place_order" in result.stderr
