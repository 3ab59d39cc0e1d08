"""`ecotone run`: limits, signals, and servers that are down."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import Project
from tests.cli.processes import ecotone, run_ecotone
from tests.cli.shops import Shop

RUN = ("run", "jobs:ecotone")


@pytest.fixture
def jobs(tmp_path: Path, sqlite_url: str) -> Shop:
    return Shop(tmp_path, sqlite_url)


# ---------------------------------------------------------------------------------------------------- names and limits


def test_an_unknown_channel_ends_with_2_and_the_known_ones(shop: Project) -> None:
    result = shop.ecotone("run", "shop:ecotone", "notificatoins")

    assert result.exit_code == 2
    assert "there is no consumer 'notificatoins'; known are:\n  notifications\n" in result.stderr
    assert result.stdout == ""


def test_an_application_without_consumers_cannot_run(project: Project) -> None:
    project.write(
        "tiny.py",
        """
        from ecotone_fastapi import Ecotone, command_handler


        @command_handler("ping")
        async def ping() -> None: ...


        ecotone = Ecotone([ping])
        """,
    )

    result = project.ecotone("run", "tiny:ecotone")

    assert result.exit_code == 2
    assert "there is nothing to run" in result.stderr


def test_a_channel_in_memory_is_run_with_a_warning(shop: Project, caplog: pytest.LogCaptureFixture) -> None:
    result = shop.ecotone("run", "shop:ecotone", "--until-empty", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["handled"] == {"notifications": 0}
    assert "channel notifications is in memory" in caplog.text


@pytest.mark.parametrize(
    "limit", [["--until-empty"], ["--seconds", "0.01"], ["--memory", "1"], ["--seconds", "0", "--grace", "0"]]
)
def test_a_limit_ends_the_run_well(shop: Project, limit: list[str]) -> None:
    assert shop.ecotone("run", "shop:ecotone", *limit).exit_code == 0


def test_limits_come_from_the_environment_too(shop: Project) -> None:
    assert shop.ecotone("run", "shop:ecotone", ECOTONE_SECONDS="0.01", ECOTONE_GRACE="1").exit_code == 0


def test_each_channel_is_run_up_to_its_own_limit(jobs: Shop) -> None:
    jobs.send(1, 2, 3)
    jobs.send(11, 12, command="OtherWork")
    jobs.let_go()

    ended = run_ecotone(*RUN, "--messages", "2", "--json", cwd=jobs.directory)

    report = json.loads(ended.stdout)
    assert report["handled"] == {"work": 2, "other": 2}
    assert report["ended_by"] == "limit"
    assert jobs.effects() == [1, 2, 11, 12]
    assert jobs.waiting() == 1


def test_only_the_named_channels_are_run_and_only_what_is_asked_for_is_logged(jobs: Shop) -> None:
    jobs.send(1)
    jobs.send(11, command="OtherWork")
    jobs.let_go()

    told = run_ecotone(*RUN, "other", "--until-empty", cwd=jobs.directory)
    quiet = run_ecotone(*RUN, "other", "--until-empty", "--log-level", "warning", cwd=jobs.directory)

    assert jobs.effects() == [11]
    assert "INFO ecotone_fastapi.run: running other\n" in told.stderr
    assert "INFO ecotone_fastapi.run: handled 1 from other in " in told.stderr
    assert told.stdout == ""
    assert quiet.stderr == ""


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_handler_finish_and_gives_back_the_rest(jobs: Shop, number: signal.Signals) -> None:
    jobs.send(1, 2, 3, command="OtherWork")

    with ecotone(*RUN, "other", "--json", cwd=jobs.directory) as process:
        jobs.begins(1)
        process.send(number)
        process.says(f"{number.name}: what is under way is finished")
        jobs.let_go(1)
        assert process.ends() == 0

    assert jobs.effects() == [1]
    report = json.loads(process.stdout)
    assert (report["handled"], report["ended_by"]) == ({"other": 1}, number.name)
    assert jobs.started() == [1]
    # What was borrowed and not begun is there at once, long before the lease would have ended.
    assert jobs.handle_the_rest("other") == 2
    assert jobs.effects() == [1, 2, 3]


def test_a_handler_that_takes_longer_than_the_grace_is_cancelled_and_its_message_given_back(jobs: Shop) -> None:
    jobs.send(1)

    with ecotone(*RUN, "work", "--grace", "0.1", cwd=jobs.directory) as process:
        jobs.begins(1)
        process.send(signal.SIGTERM)
        assert process.ends() == 0

    assert jobs.effects() == []
    assert jobs.execute("SELECT attempts FROM ecotone_message") == [(0,)]
    assert jobs.handle_the_rest("work") == 1
    assert jobs.effects() == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_cancels_at_once_and_loses_nothing(jobs: Shop, number: signal.Signals, code: int) -> None:
    jobs.send(1, 2)

    with ecotone(*RUN, "work", "--json", cwd=jobs.directory) as process:
        jobs.begins(1)
        process.send(number)
        process.says(f"{number.name}: what is under way is finished")
        process.send(number)
        process.says(f"{number.name}: what is under way is cancelled")
        assert process.ends() == code

    assert json.loads(process.stdout)["handled"] == {"work": 0}
    assert jobs.effects() == []
    assert jobs.handle_the_rest("work") == 2
    assert jobs.effects() == [1, 2]


STUCK = """
import threading

from ecotone_fastapi import Ecotone, asynchronous, command_handler
from jobs import Work, database, starts


@asynchronous("work")
@command_handler(id="work")
def work(command: Work) -> None:
    starts(command.number)
    threading.Event().wait()


ecotone = Ecotone([work], channels=[database.channel("work")], plugins=[database])
"""


def test_a_third_signal_kills_what_cannot_be_cancelled(jobs: Shop) -> None:
    (jobs.directory / "stuck.py").write_text(STUCK)
    jobs.send(1)

    with ecotone("run", "stuck:ecotone", "--grace", "0", cwd=jobs.directory) as process:
        jobs.begins(1)
        process.send(signal.SIGTERM)
        process.says("SIGTERM: what is under way is finished")
        process.send(signal.SIGTERM)
        process.says("SIGTERM: what is under way is cancelled")
        process.send(signal.SIGTERM)
        assert process.ends() == -signal.SIGTERM

    assert jobs.waiting() == 1


# ------------------------------------------------------------------------------------------------ servers that are down


def test_a_database_that_is_down_is_waited_for(jobs: Shop, tmp_path: Path) -> None:
    jobs.send(1)
    jobs.let_go()
    (tmp_path / "url").write_text(f"sqlite+aiosqlite:///{tmp_path}/later/test.db")
    (tmp_path / "later.tmp").mkdir()
    for file in tmp_path.glob("test.db*"):
        file.rename(tmp_path / "later.tmp" / file.name)

    with ecotone(*RUN, "work", "--messages", "1", cwd=jobs.directory) as process:
        process.says("again in", times=2)
        (tmp_path / "later.tmp").rename(tmp_path / "later")
        assert process.ends() == 0, process.stderr

    jobs.url = (tmp_path / "url").read_text()
    assert jobs.effects() == [1]
    assert "Traceback" not in process.stderr


def test_waiting_for_a_database_ends_with_the_time_limit_or_a_signal(jobs: Shop, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"sqlite+aiosqlite:///{tmp_path}/never/test.db")

    run_ecotone(*RUN, "--seconds", "0.5", cwd=jobs.directory)
    with ecotone(*RUN, cwd=jobs.directory) as process:
        process.says("again in", times=2)
        process.send(signal.SIGTERM)
        assert process.ends() == 0
    assert "Traceback" not in process.stderr


def test_tables_that_are_missing_end_the_run_with_2(jobs: Shop, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"sqlite+aiosqlite:///{tmp_path}/empty.db")

    with ecotone(*RUN, cwd=jobs.directory) as process:
        assert process.ends() == 2

    assert re.search(r"lacks .*the table ecotone_message", process.stderr)
    assert "run `ecotone migrate`" in process.stderr
    assert "Traceback" not in process.stderr
