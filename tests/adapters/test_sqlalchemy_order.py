"""Channels in a database that keep the order of each partition key, over all consumers."""

import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from sqlalchemy import text

from ecotone_fastapi import Backoff, Ecotone, Failures, asynchronous, command_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.adapters.sqlalchemy.channel import SqlChannel
from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.testing import flow_test
from tests.adapters.test_sqlalchemy_conformance import OnMariaDB, OnPostgreSQL, OnSQLite, SqlChannels
from tests.databases import ASYNCPG, MARIADB, PSYCOPG, SQLITE
from tests.orders import SENT, MovingClock, Sent, handled_in_order

EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])
SERVERS = pytest.mark.parametrize("kind", [ASYNCPG, MARIADB])


class Processes:
    """Several engines on one database, as several processes have."""

    def __init__(self, databases: Sequence[SqlAlchemy], stack: AsyncExitStack) -> None:
        self.databases = databases
        self._stack = stack

    async def channels(self, name: str, clock: Clock | None = None) -> Sequence[SqlChannel]:
        made = [database.channel(name, keeps_order=True) for database in self.databases]
        for channel in made:
            if clock is not None:
                channel.use_clock(clock)
            await channel.open()
            self._stack.push_async_callback(channel.close)
        return made

    async def execute(self, statement: str) -> None:
        async with self.databases[0].engine.begin() as connection:
            await connection.execute(text(statement))


@pytest.fixture
async def processes(url: str) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        databases = [SqlAlchemy(url, create_schema=True) for _ in range(2)]
        for database in databases:
            await stack.enter_async_context(database.lifespan())
        yield Processes(databases, stack)


def letter(name: str, key: str | None = None, **headers: str) -> Message[bytes]:
    return Message(name.encode(), {"id": name, **headers, **({"partition_key": key} if key else {})})


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.payload.decode() for delivery in deliveries]


# ------------------------------------------------------------------------------------------------------- what is lent


@EVERY
async def test_only_the_first_message_of_a_key_is_lent(processes: Processes) -> None:
    here, there = await processes.channels("orders")
    await here.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b"), letter("free"), letter("also free")])

    lent = await here.receive(10, 0)

    assert names(lent) == ["a1", "b1", "free", "also free"]
    assert await there.receive(10, 0) == ()


@EVERY
async def test_the_next_one_follows_when_the_first_is_acked(processes: Processes) -> None:
    here, there = await processes.channels("orders")
    await here.send([letter("a1", "a"), letter("a2", "a")])
    (first,) = await here.receive(10, 0)

    await first.ack()

    assert names(await there.receive(10, 0)) == ["a2"]


@EVERY
async def test_a_receiver_that_waits_gets_the_next_one_at_once(processes: Processes) -> None:
    (here, _) = await processes.channels("orders")
    await here.send([letter("a1", "a"), letter("a2", "a")])
    (first,) = await here.receive(10, 0)
    received: list[str] = []

    async def wait() -> None:
        received.extend(names(await here.receive(10, 30)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await here.ack_all([first])

    assert received == ["a2"]


@EVERY
async def test_the_successors_of_a_failed_message_wait_for_its_retry(processes: Processes) -> None:
    clock = MovingClock()
    here, there = await processes.channels("orders", clock)
    await here.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b"), letter("b2", "b")])
    first, other = await here.receive(10, 0)

    await first.nack(30.0)
    await other.ack()

    assert names(await there.receive(10, 0)) == ["b2"]
    clock.offset += timedelta(seconds=31)
    assert names(await there.receive(10, 0)) == ["a1"]
    assert await here.receive(10, 0) == ()


@EVERY
async def test_a_message_that_was_sent_with_a_delay_holds_up_those_sent_after_it(processes: Processes) -> None:
    clock = MovingClock()
    here, _ = await processes.channels("orders", clock)
    await here.send([letter("later", "a", delay="30"), letter("a2", "a"), letter("b1", "b")])

    assert names(await here.receive(10, 0)) == ["b1"]
    clock.offset += timedelta(seconds=31)
    assert names(await here.receive(10, 0)) == ["later"]


@EVERY
async def test_priority_counts_between_keys_only(processes: Processes) -> None:
    here, _ = await processes.channels("orders")
    await here.send([letter("a1", "a"), letter("a2", "a", priority="9"), letter("b1", "b", priority="5")])

    assert names(await here.receive(10, 0)) == ["b1", "a1"]


@EVERY
async def test_what_has_expired_makes_way(processes: Processes) -> None:
    clock = MovingClock()
    here, _ = await processes.channels("orders", clock)
    await here.send([letter("a1", "a", time_to_live="10"), letter("a2", "a")])
    clock.offset += timedelta(seconds=11)

    with anyio.fail_after(60):
        assert names(await here.receive(10, 15)) == ["a2"]


@EVERY
async def test_a_message_that_turns_up_late_waits_for_the_one_that_is_handled(processes: Processes) -> None:
    here, there = await processes.channels("orders")
    await here.send([letter("late", "a"), letter("early", "a")])
    # As if the transaction of the first sender were still open.
    await processes.execute("UPDATE ecotone_message SET partition_key = 'z' WHERE message_id = 'late'")
    lent = {one.message.payload: one for one in await here.receive(10, 0)}
    await lent[b"late"].nack(attempted=False)
    await processes.execute("UPDATE ecotone_message SET partition_key = 'a' WHERE message_id = 'late'")

    assert await there.receive(10, 0) == ()
    await lent[b"early"].ack()
    assert names(await there.receive(10, 0)) == ["late"]


@EVERY
async def test_many_that_wait_for_one_key_do_not_hide_the_others(processes: Processes) -> None:
    here, there = await processes.channels("orders")
    await here.send([letter(f"a{number}", "a") for number in range(400)])
    await here.send([letter("b1", "b"), letter("c1", "c"), letter("free")])

    assert names(await here.receive(3, 0)) == ["a0"]
    assert sorted(names(await there.receive(3, 0))) == ["b1", "c1", "free"]
    assert await there.receive(3, 0) == ()


@EVERY
async def test_channels_and_keys_do_not_mix(processes: Processes) -> None:
    (orders, _), (bills, _) = await processes.channels("orders"), await processes.channels("bills")
    await orders.send([letter("order 1", "a"), letter("order 2", "a")])
    await bills.send([letter("bill 1", "a"), letter("bill 2", "b")])

    assert names(await bills.receive(10, 0)) == ["bill 1", "bill 2"]
    assert names(await orders.receive(10, 0)) == ["order 1"]


@EVERY
async def test_a_plain_channel_lends_what_is_there(processes: Processes) -> None:
    channel = processes.databases[0].channel("orders")
    await channel.open()
    await channel.send([letter("a1", "a"), letter("a2", "a")])

    assert names(await channel.receive(10, 0)) == ["a1", "a2"]
    await channel.close()


# ------------------------------------------------------------------------------------------------ several at a time


@SERVERS
async def test_of_many_that_claim_at_once_nobody_gets_two_of_a_key(processes: Processes) -> None:
    channels = [*await processes.channels("orders"), *await processes.channels("orders")]
    await channels[0].send([letter(f"{key}{number}", key) for number in range(10) for key in "abcdefgh"])
    handled: dict[str, list[str]] = defaultdict(list)
    holding: set[str] = set()

    async def compete(channel: SqlChannel) -> None:
        while sum(map(len, handled.values())) < 80:
            deliveries = await channel.receive(3, 0.1)
            keys = {name[0] for name in names(deliveries)}
            assert len(keys) == len(deliveries)
            assert not keys & holding
            holding.update(keys)
            for delivery in deliveries:
                name = delivery.message.payload.decode()
                await checkpoint()
                handled[name[0]].append(name)
                holding.remove(name[0])
                await delivery.ack()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for channel in channels:
                tasks.start_soon(compete, channel)

    assert handled == {key: [f"{key}{number}" for number in range(10)] for key in "abcdefgh"}


@EVERY
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(sent=SENT)
async def test_each_key_is_handled_in_the_order_of_sending(processes: Processes, sent: Sequence[Sent]) -> None:
    clock = MovingClock()

    await handled_in_order(await processes.channels(uuid.uuid4().hex, clock), clock, sent)


# ------------------------------------------------------------------------------------------------- in an application


class Orders:
    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: set[str] = set()

    @asynchronous("orders", partition_by=lambda name: name[0])
    @command_handler("order.handle", id="handle-order")
    async def handle(self, name: str) -> None:
        if name in self.failing:
            raise OSError("not now")
        self.done.append(name)


@pytest.mark.parametrize("kind", [SQLITE])
async def test_a_message_that_is_parked_makes_way_for_its_successors(url: str) -> None:
    database, orders = SqlAlchemy(url, create_schema=True), Orders()
    orders.failing.add("a1")
    async with flow_test(
        [orders],
        channels=[database.channel("orders", keeps_order=True)],
        plugins=[database, Failures(Backoff(retries=1, first=10.0, jitter=0.0))],
    ) as flow:
        for name in ("a1", "a2", "b1", "a3"):
            await flow.send(name, to="order.handle")

        await flow.run("orders", raises=False)
        assert orders.done == ["b1"]

        await flow.advance(timedelta(seconds=11))
        await flow.run("orders", raises=False)
        assert orders.done == ["b1", "a2", "a3"]
        assert len(await flow.dead_letters()) == 1


@EVERY
async def test_an_application_handles_what_waits_for_its_turn_without_another_message(url: str) -> None:
    database, orders = SqlAlchemy(url, create_schema=True), Orders()
    ecotone = Ecotone([orders], channels=[database.channel("orders", keeps_order=True)], plugins=[database])
    with anyio.fail_after(60):
        async with ecotone.running(consumers=False):
            for number in range(30):
                await ecotone.command_bus.send(f"a{number:02}", to="order.handle")

            assert await ecotone.run("orders", Limits(messages=30)) == 30

    assert orders.done == [f"a{number:02}" for number in range(30)]


# ------------------------------------------------------------------------------------------------ the shipped suite


class InOrder(SqlChannels):
    @asynccontextmanager
    async def opened(
        self, name: str, lease: float, clock: Clock, *, keeps_order: bool = True
    ) -> AsyncIterator[Channel]:
        channel = self.database.channel(name, lease=lease, keeps_order=True)
        channel.use_clock(clock)
        await channel.open()
        try:
            yield channel
        finally:
            await channel.close()


class TestInOrderOnSQLite(OnSQLite, InOrder):
    pass


@pytest.mark.postgresql
class TestInOrderOnPostgreSQL(OnPostgreSQL, InOrder):
    pass


@pytest.mark.mariadb
class TestInOrderOnMariaDB(OnMariaDB, InOrder):
    pass
