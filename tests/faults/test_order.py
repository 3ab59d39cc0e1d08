"""Consumers are killed and cut off while a message is retried: each key stays in order on RabbitMQ, nothing is lost."""

import signal
from collections.abc import Sequence

import pytest

from tests.faults import ledger
from tests.faults.broker import HALF_AN_HOUR, Broker
from tests.faults.ledger import APPLICATION, Enter
from tests.faults.world import World, eventually

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]

PLACES = range(20)
HEALTHY = ("ann", "bob", "cid")


@pytest.fixture
async def books(faulty: World) -> World:
    await _prepare(faulty)
    return faulty


async def _prepare(world: World) -> None:
    for table in ledger.TABLES:
        await world.execute(table)


async def _enter(world: World, *accounts: str) -> None:
    """Enter something in all accounts in turn, in this process, which runs no consumer."""
    async with ledger.make(world.database, world.broker, world.queue).running(consumers=False) as app:
        for place in PLACES:
            for account in accounts:
                await app.command_bus.send(Enter(account, place))


async def _booked(world: World, account: str) -> Sequence[int]:
    rows = await world.execute(f"SELECT place FROM booked WHERE account = '{account}' ORDER BY number")
    return [row[0] for row in rows]


async def _all_booked(world: World, *accounts: str) -> bool:
    return all([len(await _booked(world, account)) >= len(PLACES) for account in accounts])


async def _more_runs(world: World, more: int, run: str | None = None) -> None:
    """Wait until handlers have begun so many more times, or until there is nothing left to begin with."""

    def runs() -> int:
        return world.runs()[run] if run is not None else sum(world.runs().values())

    async def enough() -> bool:
        return runs() >= wanted or (run is None and await _all_booked(world, *HEALTHY))

    wanted = runs() + more
    await eventually(enough, f"{more} more runs")


async def test_while_a_message_is_retried_its_consumers_are_killed_and_cut_off_and_none_of_its_key_overtakes(
    books: World,
) -> None:
    await _enter(books, "ill", *HEALTHY)
    workers = [await books.start(application=APPLICATION) for _ in range(2)]

    await eventually(lambda: _all_booked(books, *HEALTHY), "all that stands behind nothing ill")
    for harm in ("kill", "cut", "kill", "stop", "cut"):
        if harm == "cut":
            books.to_broker.cut()
        else:
            worker = workers.pop(0)
            worker.send(signal.SIGKILL if harm == "kill" else signal.SIGTERM)
            await worker.ends()
            workers.append(await books.start(application=APPLICATION))
        await _more_runs(books, 2, "ill:0")
    assert await _booked(books, "ill") == []
    assert {run for run in books.runs() if run.startswith("ill")} == {"ill:0"}

    await books.execute("INSERT INTO healed VALUES (1)")

    await eventually(lambda: _all_booked(books, "ill"), "the rest")
    for account in ("ill", *HEALTHY):
        assert await _booked(books, account) == list(PLACES), account
    assert await books.parked() == []


async def test_handlers_that_fail_by_chance_and_workers_that_are_killed_by_chance_keep_order(books: World) -> None:
    unlucky = {"FAULTS_UNLUCKY": "0.2"}
    await _enter(books, *HEALTHY)
    workers = [await books.start(application=APPLICATION, **unlucky) for _ in range(2)]

    for harms in range(6):
        await _more_runs(books, 6)
        if harms % 2:
            books.to_broker.cut()
        else:
            worker = workers.pop(0)
            worker.kill()
            await worker.ends()
            workers.append(await books.start(application=APPLICATION, **unlucky))

    await eventually(lambda: _all_booked(books, *HEALTHY), "everything")
    for account in HEALTHY:
        assert await _booked(books, account) == list(PLACES), account
    assert await books.parked() == []


async def test_a_broker_without_patience_for_what_is_held_changes_nothing(apart: World, own_broker: Broker) -> None:
    await _prepare(apart)
    async with own_broker.set("consumer_timeout", 2000, otherwise=HALF_AN_HOUR):
        await _enter(apart, "ill", *HEALTHY)
        worker = await apart.start(application=APPLICATION)
        await worker.says("PRECONDITION_FAILED")
        await eventually(lambda: _all_booked(apart, *HEALTHY), "all that stands behind nothing ill")
        await apart.execute("INSERT INTO healed VALUES (1)")
        await eventually(lambda: _all_booked(apart, "ill"), "the rest")

    for account in ("ill", *HEALTHY):
        assert await _booked(apart, account) == list(PLACES), account
    assert await apart.parked() == []
