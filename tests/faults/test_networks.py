"""Networks to the broker and to the database are cut, frozen and lose answers."""

import asyncio

import pytest

from tests.faults.world import World, eventually

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]


async def test_orders_are_accepted_and_billed_while_the_broker_is_down_and_shipped_when_it_comes(
    faulty: World,
) -> None:
    numbers = range(10)
    faulty.to_broker.refuse()
    worker = await faulty.start()
    await faulty.place(numbers)

    async def billed() -> bool:
        return set(numbers) <= set(await faulty.effects("billed"))

    await eventually(billed, "the bills")
    assert not await faulty.effects("shipped")
    assert worker.process.returncode is None
    faulty.to_broker.restore()

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_a_broker_connection_that_breaks_again_and_again_loses_nothing(faulty: World) -> None:
    numbers = range(100)
    await faulty.start()
    sending = asyncio.create_task(faulty.place(numbers))
    for shipped in (5, 30, 60):
        await eventually(lambda least=shipped: _at_least(faulty, least), f"{shipped} orders shipped")
        faulty.to_broker.cut()
    await sending

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_a_network_that_freezes_in_silence_is_left_and_replaced(faulty: World) -> None:
    numbers = range(20)
    await faulty.start()
    await faulty.place(range(10))
    await faulty.settled(range(10))
    faulty.to_broker.freeze()
    await faulty.place(range(10, 20))
    # New connections are made through the same proxy: it has to let them through when the old ones are given up.
    before = faulty.to_broker.connections
    await eventually(lambda: faulty.to_broker.connections != before, "a connection given up")
    faulty.to_broker.restore()

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_database_connections_that_are_killed_again_and_again_lose_nothing(faulty: World) -> None:
    numbers = range(100)
    await faulty.start(FAULTS_LEASE="3")
    sending = asyncio.create_task(faulty.place(numbers))
    for shipped in (5, 30, 60):
        await eventually(lambda least=shipped: _at_least(faulty, least), f"{shipped} orders shipped")
        faulty.to_database.cut()
    await sending

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_a_commit_whose_answer_is_lost_takes_effect_once(faulty: World) -> None:
    numbers = range(40)
    await faulty.start(FAULTS_LEASE="3")
    sending = asyncio.create_task(faulty.place(numbers))
    await eventually(lambda: _at_least(faulty, 5), "5 orders shipped")
    faulty.to_database.drop_answers()
    await sending
    faulty.to_database.cut()
    faulty.to_database.restore()

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def _at_least(faulty: World, shipped: int) -> bool:
    return len(await faulty.effects("shipped")) >= shipped
