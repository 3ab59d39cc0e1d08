"""Clocks that go wrong, leases that end too early, and messages that became due while nothing ran."""

import json
from dataclasses import dataclass, field

import pytest
from sqlalchemy import text

from ecotone_fastapi import Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from tests.faults.world import World, eventually

pytestmark = pytest.mark.postgresql

AN_HOUR = 3600


@pytest.mark.rabbitmq
async def test_workers_whose_clocks_go_wrong_neither_steal_nor_keep_nor_hurry(faulty: World) -> None:
    slow = {"FAULTS_LEASE": "2", "FAULTS_SLOW": "billed:0,billed:1,billed:2", "FAULTS_SLOWNESS": "4.5"}
    for skew in (AN_HOUR, -AN_HOUR):
        worker = await faulty.start(FAULTS_SKEW=str(skew), **slow)
        await worker.says("running")
    await faulty.place(range(30))

    await faulty.settled(range(30))
    await faulty.once(range(30))
    # What is tried again, and what is lent to another one, would have run twice.
    assert set(faulty.runs().values()) == {1}


@pytest.mark.rabbitmq
async def test_a_delay_is_as_long_as_it_was_meant_whatever_clock_the_worker_has(faulty: World) -> None:
    poisonous = {"FAULTS_POISONOUS": "shipped:3,billed:3", "FAULTS_RETRIES": "3"}
    await faulty.start(FAULTS_SKEW=str(AN_HOUR), **poisonous)
    await faulty.start(FAULTS_SKEW=str(-AN_HOUR), **poisonous)
    await faulty.place(range(6))

    async def parked() -> bool:
        return len(await faulty.parked()) == 2

    await eventually(parked, "two dead letters")
    assert (faulty.runs()["shipped:3"], faulty.runs()["billed:3"]) == (4, 4)


@pytest.mark.rabbitmq
async def test_a_handler_that_is_slower_than_its_lease_is_run_once_as_long_as_its_worker_lives(faulty: World) -> None:
    slow = {"FAULTS_LEASE": "2", "FAULTS_SLOW": "billed:3", "FAULTS_SLOWNESS": "4.5"}
    for _ in range(2):
        await faulty.start("billing", **slow)
    await faulty.place(range(6))

    await eventually(lambda: _billed(faulty, 6), "the bills")
    assert set((await faulty.effects("billed")).values()) == {1}
    assert faulty.runs()["billed:3"] == 1


@pytest.mark.rabbitmq
async def test_a_handler_whose_lease_is_not_renewed_takes_effect_once_although_it_runs_twice(faulty: World) -> None:
    slow = {"FAULTS_LEASE": "1", "FAULTS_SLOW": "billed:3", "FAULTS_SLOWNESS": "2", "FAULTS_NO_RENEWAL": "yes"}
    first = await faulty.start("billing", **slow)
    await faulty.place(range(6))
    await eventually(lambda: faulty.runs()["billed:3"], "the slow one")

    second = await faulty.start("billing", **{**slow, "FAULTS_SLOW": ""})

    await first.says("lost the lease")
    await eventually(lambda: _billed(faulty, 6), "the bills")
    assert set((await faulty.effects("billed")).values()) == {1}
    assert faulty.runs()["billed:3"] >= 2
    assert await faulty.parked() == []
    assert second.process.returncode is None


@dataclass(frozen=True)
class Remind:
    number: int


@dataclass
class Reminders:
    seen: list[int] = field(default_factory=list)

    @asynchronous("reminders")
    @command_handler(id="remind")
    async def remind(self, command: Remind) -> None:
        self.seen.append(command.number)


async def test_what_became_due_while_nothing_ran_comes_at_once_and_in_the_order_in_which_it_was_due(
    postgresql_url: str,
) -> None:
    def application(reminders: Reminders) -> tuple[Ecotone, SqlAlchemy]:
        database = SqlAlchemy(postgresql_url, create_schema=True)
        return Ecotone([reminders], channels=[database.channel("reminders")], plugins=[database]), database

    sender, database = application(Reminders())
    async with sender.running(consumers=False) as ecotone:
        for number in range(100):
            # Half of them are due before those that were sent earlier.
            await ecotone.command_bus.send(Remind(number), headers={"delay": 0.5 if number % 2 else 1.0})
        due: list[int] = []

        async def all_due() -> bool:
            async with database.engine.connect() as connection:
                rows = await connection.execute(
                    text("SELECT body FROM ecotone_message WHERE available_at < now() ORDER BY available_at, id")
                )
                due[:] = [json.loads(body)["number"] for (body,) in rows]
            return len(due) == 100

        await eventually(all_due, "the time at which all are due")
    reminders = Reminders()
    async with application(reminders)[0].running() as ecotone:
        await eventually(lambda: len(reminders.seen) == 100, "all reminders")

    assert due != sorted(due)
    assert reminders.seen == due


async def _billed(world: World, number: int) -> bool:
    return len(await world.effects("billed")) >= number
