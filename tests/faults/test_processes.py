"""Processes are killed, frozen and told to stop in the worst moments: nothing is lost, no effect happens twice."""

import asyncio
import signal

import pytest

from tests.faults.world import World, eventually

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]

SHORT_LEASE = {"FAULTS_LEASE": "2"}


@pytest.mark.parametrize(
    "place",
    [
        "published:1",  # confirmed by the broker, still in the outbox: the inbox knows the message that comes twice
        "handling:2",
        "handled:2",  # everything is written, nothing is committed
        "settled:2",  # committed, and on RabbitMQ not acked
    ],
)
async def test_a_worker_that_is_killed_anywhere_loses_nothing_and_repeats_no_effect(faulty: World, place: str) -> None:
    numbers = range(10)
    await faulty.place(numbers)

    killed = await faulty.start(FAULTS_CRASH=place, **SHORT_LEASE)
    assert await killed.ends() == -signal.SIGKILL
    await faulty.start(**SHORT_LEASE)

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_what_is_committed_is_relayed_by_whoever_comes_later(faulty: World) -> None:
    numbers = range(5)
    await faulty.place(numbers)
    assert await faulty.waiting() == 10

    await faulty.start()

    await faulty.settled(numbers)
    await faulty.once(numbers)
    await eventually(lambda: _is_zero(faulty), "an empty database")


async def test_what_was_refused_after_it_was_published_is_never_seen(faulty: World) -> None:
    await faulty.start()
    await faulty.place(range(20), refused=lambda number: number % 2 == 0)

    odd = range(1, 20, 2)
    await faulty.settled(odd)
    await faulty.once(odd)


async def test_workers_that_are_told_to_stop_under_load_finish_or_give_back(faulty: World) -> None:
    numbers = range(60)
    workers = [await faulty.start() for _ in range(2)]
    for worker in workers:
        await worker.says("running")
    await faulty.place(numbers)
    for worker in workers:
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0

    await faulty.start()

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_a_worker_that_was_frozen_for_longer_than_its_lease_does_no_harm_when_it_thaws(faulty: World) -> None:
    numbers = range(30)
    frozen = await faulty.start(**SHORT_LEASE)
    await frozen.says("running")
    sending = asyncio.create_task(faulty.place(numbers))
    await eventually(lambda: faulty.effects("billed"), "the first effect")
    frozen.send(signal.SIGSTOP)
    await sending

    await faulty.start(**SHORT_LEASE)

    async def taken_over() -> bool:
        # What the frozen worker has begun to write stays locked; all else comes back when its lease is over.
        return len(await faulty.effects("billed")) >= len(numbers) - 5

    await eventually(taken_over, "the bills of the second worker")
    frozen.send(signal.SIGCONT)

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def _is_zero(faulty: World) -> bool:
    return await faulty.waiting() == 0
