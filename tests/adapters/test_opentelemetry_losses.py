"""What is counted when leases, connections and confirms are lost."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import anyio
import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from ecotone_fastapi import (
    Ecotone,
    EventStore,
    asynchronous,
    command_handler,
    event_handler,
    projection,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits, Message
from ecotone_fastapi.modelling.projection_plugin import Projecting
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.testing.faults import tcp_proxy
from tests.adapters.measured import ALL, Measured, Ship, Shipped, Shipping, rabbit
from tests.databases import POSTGRESQL, SQLITE
from tests.servers import until

BOTH = pytest.mark.parametrize("kind", [SQLITE, POSTGRESQL])


@BOTH
async def test_a_lease_that_is_lost_to_another_consumer_is_counted_although_the_commit_tells_it(url: str) -> None:
    class Robbed:
        times = 1

        @asynchronous("shipping")
        @command_handler(id="ship")
        async def ship(self, command: Ship, session: AsyncSession) -> None:
            if self.times:
                self.times -= 1
                # As another consumer does that takes over when a lease has ended.
                await session.execute(text("UPDATE ecotone_message SET lease_token = :other"), {"other": token()})

    def token() -> object:
        return uuid4() if "postgresql" in url else uuid4().bytes

    measured = Measured()
    database = SqlAlchemy(url, create_schema=True)
    plugins = [database, measured.plugin]
    async with Ecotone([Robbed()], channels=[database.channel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)

    [lost] = measured.points("ecotone.leases.lost")
    assert (lost.value, lost.attributes["messaging.destination.name"]) == (1, "shipping")
    failed, succeeded = measured.points("messaging.process.duration")
    assert failed.attributes["error.type"] == "ecotone_fastapi.core.errors.LeaseLostError"
    assert "error.type" not in succeeded.attributes


@asynccontextmanager
async def running(ecotone: Ecotone, name: str) -> AsyncIterator[None]:
    """Run something beside the block."""
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ecotone.run, name, Limits(stop=stop, grace=60.0))
        yield
        stop.set()


@BOTH
async def test_a_message_that_the_relay_could_not_remove_in_time_is_counted(url: str) -> None:
    class Slow(MemoryChannel):
        delivery = "outbox"
        sent = 0

        async def send(self, messages: Sequence[Message[bytes]]) -> None:
            await super().send(messages)
            self.sent += 1
            if self.sent == 1:  # another relay takes over meanwhile
                async with engine.begin() as connection:
                    await connection.execute(text("UPDATE ecotone_message SET lease_token = :other"), {"other": other})

    measured, engine = Measured(), create_async_engine(url)
    other: object = uuid4() if "postgresql" in url else uuid4().bytes
    channel = Slow("shipping")
    channel.capabilities = replace(channel.capabilities, durable=True)
    plugins = [SqlAlchemy(url, create_schema=True), measured.plugin]
    async with Ecotone([Shipping], channels=[channel], plugins=plugins).running(consumers=False) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("outbox", ALL)
    await engine.dispose()

    [lost] = measured.points("ecotone.leases.lost")
    assert (lost.value, lost.attributes["messaging.destination.name"]) == (1, "outbox/shipping")


@pytest.mark.postgresql
async def test_a_projection_that_was_taken_over_by_another_process_is_counted_as_a_lost_lease(
    postgresql_url: str,
) -> None:
    @projection("shipped", categories=["order"], mode="asynchronous")
    class Robbed:
        @event_handler
        async def count(self, event: Shipped) -> None:
            async with engine.begin() as connection:
                await connection.execute(text("UPDATE ecotone_projection SET lease_token = lease_token + 1"))

    measured, engine = Measured(), create_async_engine(postgresql_url)
    plugins = [SqlAlchemy(postgresql_url, create_schema=True), measured.plugin]
    async with Ecotone([Robbed], plugins=plugins).running(consumers=False) as ecotone:
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        await events.append("order-1", [Shipped(1)])
        async with running(ecotone, "shipped"):
            await until(lambda: measured.points("ecotone.leases.lost"))
    await engine.dispose()

    lost = measured.points("ecotone.leases.lost")[0]
    assert lost.value >= 1
    assert lost.attributes == {
        "messaging.system": "ecotone_event_store",
        "messaging.destination.name": "shipped",
    }
    assert measured.points("messaging.process.duration")[0].attributes["error.type"].endswith(".LeaseLostError")


@pytest.mark.postgresql
async def test_the_lease_of_a_projection_with_partitions_that_was_taken_over_is_counted(postgresql_url: str) -> None:
    @projection("shipped", categories=["order"], mode="asynchronous", partitioned=True)
    class Robbed:
        @event_handler
        async def count(self, event: Shipped) -> None: ...

    measured, engine = Measured(), create_async_engine(postgresql_url)
    database = SqlAlchemy(postgresql_url, create_schema=True)
    store, note = database.projections, database.projections.note

    async def robbed(record: Any, wanted: Any) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE ecotone_projection SET lease_token = lease_token + 1"))
        await note(record, wanted)

    setattr(store, "note", robbed)  # noqa: B010
    async with Ecotone([Robbed], plugins=[database, measured.plugin]).running(consumers=False) as ecotone:
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        await events.append("order-1", [Shipped(1)])
        await ecotone.run("shipped", Limits(until_empty=True, seconds=1.0))
    await engine.dispose()

    lost = measured.points("ecotone.leases.lost")[0]
    assert lost.value >= 1
    assert lost.attributes == {"messaging.system": "ecotone_event_store", "messaging.destination.name": "shipped"}


async def test_a_lease_that_could_not_be_renewed_is_counted() -> None:
    measured, goes_on = Measured(), anyio.Event()

    @projection("shipped", categories=["order"], mode="asynchronous")
    class Slow:
        @event_handler
        async def count(self, event: Shipped) -> None:
            await goes_on.wait()

    plugins = [Projecting(lease=0.03), measured.plugin]
    async with Ecotone([Slow], plugins=plugins).running(consumers=False) as ecotone:
        store = ecotone.assembly.services[ProjectionStore]

        async def renew(*_: object) -> bool:
            return False  # another one has it by now

        setattr(store, "renew", renew)  # noqa: B010
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        await events.append("order-1", [Shipped(1)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ecotone.run, "shipped")
            await until(lambda: bool(measured.points("ecotone.leases.lost")))
            tasks.cancel_scope.cancel()

    lost = measured.points("ecotone.leases.lost")[0]
    assert lost.attributes["messaging.destination.name"] == "shipped"


@pytest.mark.postgresql
async def test_a_commit_whose_answer_is_lost_is_counted(postgresql_url: str) -> None:
    @command_handler("ship")
    async def ship(order: int, session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE shipped (id int PRIMARY KEY)"))
        event.listen(session.get_bind(), "commit", lambda _: proxy.cut())

    measured = Measured()
    async with tcp_proxy(5432) as proxy:
        through = make_url(postgresql_url).set(host="127.0.0.1", port=proxy.port)
        database = SqlAlchemy(through.render_as_string(hide_password=False), create_schema=True)
        async with Ecotone([ship], plugins=[database, measured.plugin]).running(consumers=False) as ecotone:
            with pytest.raises(DBAPIError):
                await ecotone.command_bus.send(1, to="ship")

    [unknown] = measured.points("ecotone.commit.unknown")
    assert (unknown.value, unknown.attributes) == (1, {"db.system.name": "postgresql"})


@BOTH
async def test_what_cannot_be_committed_at_all_is_no_unknown_outcome(url: str) -> None:
    @command_handler("ship")
    async def ship(order: int, session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE shipped (id int PRIMARY KEY)"))
        raise ValueError("unlucky")

    measured = Measured()
    plugins = [SqlAlchemy(url, create_schema=True), measured.plugin]
    async with Ecotone([ship], plugins=plugins).running(consumers=False) as ecotone:
        with pytest.raises(ValueError, match="unlucky"):
            await ecotone.command_bus.send(1, to="ship")

    assert measured.points("ecotone.commit.unknown") == []


@pytest.mark.rabbitmq
async def test_messages_that_rabbitmq_did_not_confirm_are_counted(sqlite_url: str) -> None:
    measured = Measured()
    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with (
        tcp_proxy(5672) as network,
        rabbit(network) as channel,
        Ecotone([Shipping], channels=[channel], plugins=[database, measured.plugin]).running(
            consumers=False
        ) as ecotone,
    ):
        await ecotone.command_bus.send(Ship(1))
        network.drop_answers()
        async with running(ecotone, "outbox"):
            await until(lambda: measured.points("ecotone.publish.unknown"))
        network.restore()
        network.cut()

    [unknown] = measured.points("ecotone.publish.unknown")
    assert (unknown.value, unknown.attributes["messaging.system"]) == (1, "rabbitmq")
    [attempted] = measured.points("messaging.client.sent.messages", system="rabbitmq")
    assert attempted.attributes["error.type"] == "ecotone_fastapi.core.errors.OutcomeUnknownError"


@pytest.mark.rabbitmq
async def test_a_connection_that_is_lost_while_a_message_is_handled_costs_a_lease_and_brings_the_message_again(
    sqlite_url: str,
) -> None:
    class CutOff:
        times = 1

        @asynchronous("shipping")
        @command_handler(id="ship")
        async def ship(self, command: Ship) -> None:
            if self.times:
                self.times -= 1
                subscription = channel._subscription
                network.cut()
                await until(lambda: subscription is not None and subscription.lost is not None)

    measured = Measured()
    plugins = [SqlAlchemy(sqlite_url, create_schema=True), measured.plugin]
    async with (
        tcp_proxy(5672) as network,
        rabbit(network) as channel,
        Ecotone([CutOff], channels=[channel], plugins=plugins).running() as ecotone,
    ):
        await ecotone.command_bus.send(Ship(1))
        await until(lambda: measured.value("ecotone.redeliveries"))

    [lost] = measured.points("ecotone.leases.lost")
    assert (lost.value, lost.attributes["messaging.system"]) == (1, "rabbitmq")
    [again] = measured.points("ecotone.redeliveries")
    assert (again.value, again.attributes["messaging.system"]) == (1, "rabbitmq")
    assert measured.value("messaging.client.consumed.messages") == 2
    assert measured.points("ecotone.retries") == []
