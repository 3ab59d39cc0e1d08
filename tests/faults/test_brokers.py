"""A RabbitMQ that restarts, has no memory, loses patience or its queues: nothing is lost, and nobody is held up."""

import json
import signal

import aio_pika
import pytest

from tests.conftest import SERVERS
from tests.faults.broker import HALF_AN_HOUR, Broker
from tests.faults.shop import PlaceOrder
from tests.faults.world import Worker, World, eventually

pytestmark = [pytest.mark.postgresql, pytest.mark.rabbitmq]

SOON = 60.0  # seconds; on an idle machine it is a thirtieth of that
MANY = 30  # lines of a log that nobody would call a storm


async def test_a_broker_that_restarts_while_it_is_published_to_loses_nothing(apart: World, own_broker: Broker) -> None:
    worker = await apart.start()
    async with apart.placing() as numbers:
        await eventually(lambda: _at_least(apart, "shipped", 5), "5 orders shipped")
        async with own_broker.stopped():
            placed = len(numbers)
            await eventually(lambda: len(numbers) > placed + 20, "orders that are placed without a broker")
            await eventually(lambda: _at_least(apart, "billed", placed), "the bills of these")

    await apart.settled(numbers, within=SOON)
    await apart.once(numbers)
    assert _complaints(worker) < MANY


async def test_a_broker_without_memory_holds_up_neither_orders_nor_bills_nor_what_it_has_delivered(
    apart: World, own_broker: Broker
) -> None:
    worker = await apart.start(FAULTS_TIMEOUT="1")
    await worker.says("running")
    async with own_broker.out_of_memory():
        await apart.place(range(20))
        await eventually(lambda: _at_least(apart, "billed", 20), "the bills")
        await worker.says("blocked the connection for lack of memory or disk")
        assert not await apart.effects("shipped")
        assert await apart.waiting() == 20

    await apart.settled(range(20), within=SOON)
    await apart.once(range(20))
    assert _complaints(worker) < MANY


async def test_a_handler_that_is_slower_than_the_broker_is_patient_takes_effect_once(
    apart: World, own_broker: Broker
) -> None:
    async with own_broker.set("consumer_timeout", 2000, otherwise=HALF_AN_HOUR):
        worker = await apart.start(FAULTS_SLOW="shipped:3", FAULTS_SLOWNESS="4.5")
        await apart.place(range(6))
        await apart.settled(range(6))
        await worker.says("PRECONDITION_FAILED")
        await apart.place(range(6, 12))
        await apart.settled(range(12), within=SOON)

    await apart.once(range(12))
    assert apart.runs()["shipped:3"] == 1
    assert _complaints(worker) < MANY


async def test_a_queue_that_is_deleted_is_made_anew_by_those_who_consume_it(faulty: World) -> None:
    worker = await faulty.start()
    await faulty.place(range(5))
    await faulty.settled(range(5))

    await _delete(faulty.queue)
    await faulty.place(range(5, 10))

    # The server may not tell that the consumer is gone: then it is found out after half a minute of silence.
    await faulty.settled(range(10))
    await faulty.once(range(10))
    assert _complaints(worker) < MANY


async def test_what_no_queue_takes_stays_in_the_outbox_until_there_is_one(faulty: World) -> None:
    relay = await faulty.start("outbox")
    await eventually(lambda: _is_there(faulty.queue), "the queue, which the relay makes when it starts")
    relay.send(signal.SIGSTOP)
    # The sender makes it, too, when it starts; it must be gone when the relay sends.
    async with faulty.placing() as numbers:
        await _delete(faulty.queue)
        relay.send(signal.SIGCONT)
        await relay.says("returned by the server")
    refused = await faulty.execute(
        "SELECT count(*) FROM ecotone_message WHERE channel = 'outbox/shipping' AND attempts > 0"
    )
    assert refused[0][0] > 0
    assert await faulty.parked() == []

    await faulty.start("shipping", "billing")

    await faulty.settled(numbers)
    await faulty.once(numbers)


async def test_what_a_full_queue_rejects_waits_in_the_outbox_and_no_other_is_sent_twice(
    apart: World, own_broker: Broker
) -> None:
    full = json.dumps({"max-length": 3, "overflow": "reject-publish"})
    async with own_broker.policy(f"^{apart.queue}$", full):
        relay = await apart.start("outbox", "billing")
        await relay.says("running")
        async with apart.placing() as numbers:  # the server notices a moment later that the queue is full
            await relay.says("not taken by the server")
        assert await apart.parked() == []
        await apart.start("shipping")

        await apart.settled(numbers)
    await apart.once(numbers)
    assert {run: times for run, times in apart.runs().items() if times > 1} == {}


async def test_a_limit_of_deliveries_that_is_lower_than_ours_drops_nothing(apart: World, own_broker: Broker) -> None:
    async with own_broker.policy(f"^{apart.queue}$", json.dumps({"delivery-limit": 2})):
        await apart.start(FAULTS_POISONOUS="shipped:3", FAULTS_RETRIES="5")
        await apart.place(range(6))
        await eventually(apart.parked, "a dead letter")

    assert [error for error, _ in await apart.parked()] == ["tests.faults.shop.PoisonousError"]
    assert apart.runs()["shipped:3"] == 6
    await eventually(lambda: _at_least(apart, "shipped", 5), "the others")


async def test_a_message_that_is_larger_than_the_server_allows_holds_up_no_other(
    apart: World, own_broker: Broker
) -> None:
    async with (
        own_broker.set("max_message_size", 4000, otherwise=16_777_216),
        apart.application().running(consumers=False) as ecotone,
    ):
        for number in range(10):
            await ecotone.command_bus.send(PlaceOrder(number, note="x" * 5000 if number == 5 else ""))
        await apart.start()
        await apart.settled(set(range(10)) - {5}, within=SOON)


async def _at_least(world: World, what: str, number: int) -> bool:
    return len(await world.effects(what)) >= number


def _complaints(worker: Worker) -> int:
    log = worker.log.read_text(errors="replace")
    return sum("WARNING" in line or "ERROR" in line for line in log.splitlines())


async def _is_there(queue: str) -> bool:
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with connection:
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
    return True


async def _delete(queue: str) -> None:
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with connection:
        await (await connection.channel()).queue_delete(queue)
