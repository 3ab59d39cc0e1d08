"""A process of consumers is killed with its messages in hand: nothing is lost, and nothing takes effect twice."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.processes import ecotone, eventually, run_ecotone
from tests.cli.shops import Shop

RUN = ("run", "jobs:ecotone")
SHORT_LEASE = {"LEASE": "1"}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    return Shop(tmp_path, request.getfixturevalue(f"{request.param}_url"))


@pytest.mark.parametrize(("command", "channel"), [("Work", "work"), ("OtherWork", "other")])
def test_a_consumer_that_is_killed_in_a_handler_loses_nothing_and_the_effect_happens_once(
    jobs: Shop, command: str, channel: str
) -> None:
    jobs.send(1, 2, 3, command=command)

    with ecotone(*RUN, channel, cwd=jobs.directory, env=SHORT_LEASE) as process:
        jobs.begins(1)
        process.kill()
    assert jobs.effects() == []
    assert jobs.waiting() == 3

    jobs.let_go()
    ended = run_ecotone(*RUN, channel, "--messages", "3", "--json", cwd=jobs.directory, env=SHORT_LEASE)

    assert json.loads(ended.stdout)["handled"] == {channel: 3}
    assert jobs.effects() == [1, 2, 3]
    assert jobs.waiting() == 0
    assert jobs.parked() == 0


def test_consumers_that_are_killed_again_and_again_have_each_effect_once(jobs: Shop) -> None:
    numbers = list(range(1, 21))
    environment = {**SHORT_LEASE, "CONCURRENCY": "5"}
    jobs.send(*numbers, command="OtherWork")

    # Each time some handlers end, and the process is killed while others are at work.
    for round_ in (1, 2):
        before = len(jobs.effects())
        with ecotone(*RUN, "other", cwd=jobs.directory, env=environment) as process:
            begun = eventually(lambda pid=process.pid: jobs.started(pid), "the first handler")
            jobs.let_go(*begun[:round_])
            eventually(lambda before=before: len(jobs.effects()) > before, "an effect")
            process.kill()
    jobs.let_go()
    with ecotone(*RUN, "other", cwd=jobs.directory, env=environment) as process:
        eventually(lambda: jobs.waiting() == 0, "the end of all messages")
        process.send(signal.SIGTERM)
        assert process.ends() == 0

    assert jobs.effects() == numbers
    assert jobs.parked() == 0
