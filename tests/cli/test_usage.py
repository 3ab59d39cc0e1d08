"""`--json` when the command line itself is wrong, or the application ends the process: one document even then."""

import json

import pytest

from tests.cli.conftest import Project


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("list", "shop:ecotone", "--bogus", "--json"), "--bogus"),
        (("list", "--json", "shop:ecotone", "--bogus"), "--bogus"),
        (("deadletter", "list", "shop:ecotone", "--limit", "0", "--json"), "--limit"),
        (("deadletter", "nothing", "--json"), "nothing"),
        (("nothing", "--json"), "nothing"),
        (("--bogus", "list", "--json"), "--bogus"),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_command_line_is_a_document(
    shop: Project, arguments: tuple[str, ...], what: str
) -> None:
    result = shop.ecotone(*arguments)

    answer = json.loads(result.stdout)
    assert result.exit_code == answer["code"] == 2
    assert what in answer["error"]["what"]
    assert what in result.stderr


def test_what_only_looks_like_the_option_changes_nothing(shop: Project) -> None:
    result = shop.ecotone("list", "--bogus", "--", "--json")

    assert (result.exit_code, result.stdout) == (2, "")


def test_help_is_no_error(shop: Project) -> None:
    result = shop.ecotone("list", "--help", "--json")

    assert result.exit_code == 0
    assert "--waiting" in result.stdout
    assert "{" not in result.stdout


@pytest.mark.parametrize("option", [[], ["--json"]])
@pytest.mark.parametrize("factory", [[], ["--factory"]])
def test_an_application_that_ends_the_process_is_told(project: Project, option: list[str], factory: list[str]) -> None:
    ends = "import sys\nsys.exit(3)\n" if not factory else "def ecotone(): raise SystemExit(3)\n"
    project.write("ends.py", ends)

    result = project.ecotone("list", "ends:ecotone", *factory, *option)

    assert result.exit_code == 2
    assert "failed: SystemExit: 3" in result.stderr
    assert "ends.py, line" in result.stderr
    assert "SystemExit: 3" in json.loads(result.stdout)["error"]["what"] if option else result.stdout == ""


def test_an_interruption_is_a_document(project: Project) -> None:
    project.write("slow.py", "raise KeyboardInterrupt\n")

    result = project.ecotone("list", "slow:ecotone", "--json")

    assert result.exit_code == 130
    assert json.loads(result.stdout) == {
        "error": {"type": "KeyboardInterrupt", "what": "interrupted", "tried": "", "hint": ""},
        "code": 130,
    }
