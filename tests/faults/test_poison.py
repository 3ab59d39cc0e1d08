"""Messages that fail, that kill, and that nobody can read end in the dead letter, and take nothing else with them."""

import aio_pika
import pytest
from aio_pika import Message

from ecotone_fastapi.messaging import failures
from tests.conftest import SERVERS
from tests.faults.world import World, eventually, place

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]

RUNS_BEFORE_PARKED = 4


async def test_a_handler_that_always_fails_is_run_as_often_as_allowed_by_all_workers_together(faulty: World) -> None:
    poison = {"FAULTS_POISONOUS": "shipped:3,billed:3", "FAULTS_RETRIES": "4"}
    for _ in range(2):
        await faulty.start(**poison)
    await faulty.place(range(10))

    others = set(range(10)) - {3}
    await faulty.settled(others)
    await eventually(lambda: _parked(faulty, 2), "two dead letters")

    assert faulty.runs()["shipped:3"] == 5
    assert faulty.runs()["billed:3"] == 5
    assert {error for error, _ in await faulty.parked()} == {"tests.faults.shop.PoisonousError"}
    for what in ("shipped", "billed"):
        assert await faulty.effects(what) == dict.fromkeys(others, 1)
    assert await faulty.waiting() == 0


@pytest.mark.parametrize(("what", "running"), [("shipped", ["outbox", "shipping"]), ("billed", ["billing"])])
async def test_a_message_that_kills_each_worker_that_has_it_is_parked_without_being_run_again(
    faulty: World, what: str, running: list[str]
) -> None:
    deadly = {"FAULTS_DEADLY": f"{what}:3", "FAULTS_UNSETTLED": str(RUNS_BEFORE_PARKED - 1), "FAULTS_LEASE": "1"}
    await faulty.place(range(6))

    for _ in range(RUNS_BEFORE_PARKED):
        assert await (await faulty.start(*running, **deadly)).ends() < 0
    survivor = await faulty.start(*running, **deadly)
    await eventually(lambda: _parked(faulty, 1), "a dead letter")

    others = dict.fromkeys(set(range(6)) - {3}, 1)
    await eventually(lambda: _effects(faulty, what, len(others)), "the others")
    assert await faulty.effects(what) == others
    assert faulty.runs()[f"{what}:3"] == RUNS_BEFORE_PARKED
    assert [error.rpartition(".")[2] for error, _ in await faulty.parked()] == ["KilledConsumerError"]
    assert survivor.process.returncode is None


async def test_what_nobody_can_read_is_parked_at_once_with_its_bytes_and_the_consumer_goes_on(faulty: World) -> None:
    await faulty.place([0])
    strange = {
        b"\xff\xfe": Message(b"\xff\xfe", content_type="application/json", headers={"endpoint": "ship"}),
        b'{"name": 1}': Message(
            b'{"name": 1}', content_type="application/json", headers={"endpoint": "ship", "type": "nobody.KnowsThis"}
        ),
        b'{"n": ': Message(b'{"n": ', content_type="application/json", headers={"endpoint": "ship", "id": "cut-off"}),
        b"hello": Message(b"hello", headers={"their-own": "header"}),
        b"": Message(b""),
        b"gone": Message(b"gone", content_type="text/plain", headers={"endpoint": "was-renamed"}),
    }
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with connection:
        channel = await connection.channel()
        for message in strange.values():
            await channel.default_exchange.publish(message, faulty.queue)

    worker = await faulty.start()
    await eventually(lambda: _parked(faulty, len(strange)), "the dead letters")
    await faulty.place([1])
    await faulty.settled([0, 1])

    rows = await faulty.execute("SELECT body, attempts, deliveries FROM ecotone_dead_letter")
    assert {bytes(payload) for payload, _, _ in rows} == set(strange)
    assert {attempts for _, attempts, _ in rows} == {1}
    assert {deliveries for _, _, deliveries in rows} == {1}
    assert faulty.runs() == {f"{what}:{number}": 1 for what in ("shipped", "billed") for number in (0, 1)}
    assert worker.process.returncode is None


async def test_what_cannot_be_parked_is_kept_until_it_can(
    faulty: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAULTS_POISONOUS", "shipped:3,billed:3")
    monkeypatch.setenv("FAULTS_RETRIES", "1")
    monkeypatch.setattr(failures, "_PARK_AGAIN", 0.2)
    async with faulty.application().running() as ecotone:
        await faulty.execute("ALTER TABLE ecotone_dead_letter RENAME TO is_not_there")
        for number in range(6):
            await place(ecotone, number, refused=False)
        await faulty.settled(set(range(6)) - {3})
        await eventually(lambda: caplog.text.count("could not be parked; it stays") >= 2, "two that are not parked")
        await faulty.execute("ALTER TABLE is_not_there RENAME TO ecotone_dead_letter")
        await eventually(lambda: _parked(faulty, 2), "two dead letters")

    assert {error for error, _ in await faulty.parked()} == {"tests.faults.shop.PoisonousError"}
    for what in ("shipped", "billed"):
        assert await faulty.effects(what) == dict.fromkeys(set(range(6)) - {3}, 1)


async def _parked(world: World, number: int) -> bool:
    return len(await world.parked()) >= number


async def _effects(world: World, what: str, number: int) -> bool:
    return len(await world.effects(what)) >= number
