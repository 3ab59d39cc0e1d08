"""`ecotone pause` and `ecotone resume`."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import Project
from tests.cli.processes import ecotone, eventually, run_ecotone
from tests.cli.shops import Shop


@pytest.fixture
def jobs(tmp_path: Path, sqlite_url: str) -> Shop:
    return Shop(tmp_path, sqlite_url)


@pytest.fixture
def durable(project: Project) -> Project:
    """A project with a channel in a database."""
    project.write(
        "shop.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy


        @asynchronous("notifications")
        @command_handler("notify", id="notify")
        async def notify(name: str) -> None: ...


        database = SqlAlchemy("sqlite+aiosqlite:///shop.db")
        ecotone = Ecotone([notify], channels=[database.channel("notifications")], plugins=[database])
        """,
    )
    assert project.ecotone("migrate", "shop:ecotone").exit_code == 0
    return project


def test_a_pause_is_listed_until_it_is_resumed(durable: Project) -> None:
    result = durable.ecotone("pause", "shop:ecotone", "notifications", "--reason", "the mail server moves")

    assert (result.exit_code, result.stdout) == (0, "notifications: paused\n")
    assert ": the mail server moves" in durable.ecotone("list", "shop:ecotone").stdout
    (channel,) = json.loads(durable.ecotone("list", "shop:ecotone", "--json").stdout)["channels"]
    assert channel["paused"]["reason"] == "the mail server moves"

    result = durable.ecotone("resume", "shop:ecotone", "notifications")

    assert (result.exit_code, result.stdout) == (0, "notifications: resumed\n")
    (channel,) = json.loads(durable.ecotone("list", "shop:ecotone", "--json").stdout)["channels"]
    assert channel["paused"] is None


def test_the_application_may_be_configured(durable: Project) -> None:
    result = durable.ecotone("pause", "notifications", ECOTONE_APP="shop:ecotone")

    assert result.stdout == "notifications: paused\n"
    assert "paused since" in durable.ecotone("list", "shop:ecotone").stdout


def test_what_cannot_pause_is_refused(durable: Project) -> None:
    for command in ("pause", "resume"):
        result = durable.ecotone(command, "shop:ecotone", "letters")
        assert result.exit_code == 2
        assert "there is no consumer 'letters'; known are:\n  notifications" in result.stderr

        result = durable.ecotone(command, "shop:ecotone")
        assert result.exit_code == 2
        assert "no channel is named" in result.stderr


def test_without_a_database_nobody_would_learn_of_it(shop: Project) -> None:
    result = shop.ecotone("pause", "shop:ecotone", "notifications")

    assert result.exit_code == 2
    assert "no other process would learn of it" in result.stderr


def test_what_a_list_cannot_find_out_is_left_out(durable: Project) -> None:
    (durable.directory / "shop.db").unlink()

    result = durable.ecotone("list", "shop:ecotone", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["channels"][0]["paused"] is None
    assert "cannot tell which consumers pause" in result.stderr


def test_a_process_that_runs_pauses_and_resumes(jobs: Shop, tmp_path: Path) -> None:
    jobs.let_go()
    with ecotone("run", "jobs:ecotone", "work", cwd=tmp_path) as process:
        jobs.send(1)
        eventually(lambda: jobs.effects() == [1], "the first message")

        run_ecotone("pause", "jobs:ecotone", "work", "--reason", "for a test", cwd=tmp_path)
        process.says("consumer work pauses: for a test")
        jobs.send(2)
        assert jobs.waiting() == 1

        run_ecotone("resume", "jobs:ecotone", "work", cwd=tmp_path)
        process.says("consumer work goes on")
        eventually(lambda: jobs.effects() == [1, 2], "the second message")

        process.send(signal.SIGTERM)
        assert process.ends() == 0


def test_a_process_that_starts_while_its_channel_pauses_handles_nothing(jobs: Shop, tmp_path: Path) -> None:
    jobs.let_go()
    jobs.send(1)
    run_ecotone("pause", "jobs:ecotone", "work", cwd=tmp_path)

    run_ecotone("run", "jobs:ecotone", "work", "--until-empty", cwd=tmp_path)

    assert jobs.waiting() == 1
    assert jobs.effects() == []
