"""What is shown of servers and consumers: from the last look, never by asking while somebody collects."""

import io
import logging
import threading
from datetime import timedelta
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExportResult, PeriodicExportingMetricReader

from ecotone_fastapi import (
    Backoff,
    Ecotone,
    EventStore,
    Failures,
    asynchronous,
    command_handler,
    delayed,
    event_handler,
    projection,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Metrics
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.testing.faults import tcp_proxy
from ecotone_fastapi.testing.flow import TravellingClock
from tests.adapters.measured import ALL, Measured, Ship, Shipped, Shipping, rabbit
from tests.databases import MARIADB, POSTGRESQL, SQLITE
from tests.servers import RemoteChannel, Server, until

EVERY = pytest.mark.parametrize("kind", [SQLITE, POSTGRESQL, MARIADB])


# ------------------------------------------------------------------------------------------------------ in databases


@EVERY
async def test_depth_and_age_of_a_channel_in_a_database(url: str) -> None:
    measured = Measured()
    database = SqlAlchemy(url, create_schema=True)
    plugins = [database, measured.plugin]
    async with Ecotone([Shipping], channels=[database.channel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        assert await measured.seen("ecotone.channel.depth") == 0
        for order in range(3):
            await ecotone.command_bus.send(Ship(order))
        await measured.plugin.refresh()

        [depth] = measured.points("ecotone.channel.depth")
        assert (depth.value, depth.attributes["messaging.destination.name"]) == (3, "shipping")
        [age] = measured.points("ecotone.channel.oldest_age")
        assert 0 <= age.value < 60
        await ecotone.run("shipping", ALL)
        assert await measured.seen("ecotone.channel.depth") == 0
        assert measured.value("ecotone.channel.oldest_age") == 0


@EVERY
async def test_dead_letters_in_a_database_are_counted(url: str) -> None:
    measured = Measured()
    database = SqlAlchemy(url, create_schema=True)
    plugins = [database, measured.plugin, Failures(Backoff(retries=0))]
    async with Ecotone([Shipping], channels=[database.channel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        assert await measured.seen("ecotone.dead_letters") == 0
        await ecotone.command_bus.send(Ship(13))
        await ecotone.run("shipping", ALL)
        assert await measured.seen("ecotone.dead_letters") == 1

        [parked] = await ecotone.dead_letters.list()
        await ecotone.dead_letters.delete(parked.id)
        assert await measured.seen("ecotone.dead_letters") == 0


@EVERY
async def test_messages_that_wait_under_a_key_are_counted(url: str) -> None:
    class Reminding:
        @delayed(timedelta(days=1), key=lambda command: f"order-{command.order}")
        @asynchronous("shipping")
        @command_handler(id="remind")
        async def remind(self, command: Ship) -> None: ...

    measured = Measured()
    database = SqlAlchemy(url, create_schema=True)
    plugins = [database, measured.plugin]
    async with Ecotone([Reminding], channels=[database.channel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.command_bus.send(Ship(2))

        assert await measured.seen("ecotone.scheduled.messages") == 2
        # They wait on the channel, and are not due.
        assert measured.value("ecotone.channel.depth") == 2
        assert measured.value("ecotone.channel.oldest_age") == 0


@EVERY
async def test_a_projection_that_is_behind_tells_by_how_many_events_and_for_how_long(url: str) -> None:
    @projection("shipped", categories=["order"], mode="asynchronous")
    class Counting:
        @event_handler
        async def count(self, event: Shipped) -> None: ...

    measured = Measured()
    plugins = [SqlAlchemy(url, create_schema=True), measured.plugin]
    async with Ecotone([Counting], plugins=plugins).running(consumers=False) as ecotone:
        await ecotone.run("shipped", ALL)
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        await events.append("order-1", [Shipped(1), Shipped(2), Shipped(3)])
        await measured.plugin.refresh()

        [behind] = measured.points("ecotone.projection.events_behind")
        assert (behind.value, behind.attributes) == (3, {"ecotone.projection.name": "shipped"})
        [lag] = measured.points("ecotone.projection.lag")
        assert 0 < lag.value < 60
        await ecotone.run("shipped", ALL)
        assert await measured.seen("ecotone.projection.events_behind") == 0
        assert measured.value("ecotone.projection.lag") == 0


# ------------------------------------------------------------------------------------------------------ with a broker


@EVERY
@pytest.mark.rabbitmq
async def test_an_outbox_fills_while_the_broker_is_away_and_empties_when_it_is_back(url: str) -> None:
    measured = Measured()
    database = SqlAlchemy(url, create_schema=True)
    async with tcp_proxy(5672) as network, rabbit(network) as channel:
        plugins = [database, measured.plugin]
        async with Ecotone([Shipping], channels=[channel], plugins=plugins).running(consumers=["outbox"]) as ecotone:
            network.refuse()
            for order in range(4):
                await ecotone.command_bus.send(Ship(order))
            await measured.plugin.refresh()

            [depth] = measured.points("ecotone.outbox.depth")
            assert (depth.value, depth.attributes) == (4, {"messaging.destination.name": "shipping"})
            [age] = measured.points("ecotone.outbox.oldest_age")
            assert age.value >= 0
            # The broker cannot be asked, and that is visible.
            assert measured.value("ecotone.observation.failed", part="channel", name="shipping") == 1
            assert measured.points("ecotone.channel.depth") == []

            network.restore()
            with anyio.fail_after(60):
                while await measured.seen("ecotone.outbox.depth") != 0:
                    await anyio.lowlevel.checkpoint()
            assert await measured.seen("ecotone.channel.depth") == 4
            assert measured.points("ecotone.observation.failed") == []


@pytest.mark.rabbitmq
async def test_sending_through_the_outbox_is_two_operations_at_two_places(sqlite_url: str) -> None:
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
        await ecotone.run("outbox", Limits(messages=1))
        await ecotone.run("shipping", Limits(messages=1))

    stored, published = measured.points("messaging.client.sent.messages")
    assert (stored.value, stored.attributes["messaging.system"]) == (1, "ecotone_sql")
    assert stored.attributes["messaging.destination.name"] == "outbox/shipping"
    assert (published.value, published.attributes["messaging.system"]) == (1, "rabbitmq")
    assert published.attributes["server.address"] == "127.0.0.1"
    assert measured.value("messaging.client.consumed.messages", system="rabbitmq") == 1


# ------------------------------------------------------------------------------------------------ states of consumers


async def test_a_consumer_is_in_one_state_at_a_time() -> None:
    measured = Measured()

    async def state() -> list[str]:
        await measured.plugin.refresh()
        points = measured.points("ecotone.consumer.state", name="shipping")
        assert len(points) == 6
        return [str(point.attributes["ecotone.consumer.state"]) for point in points if point.value]

    channel = RemoteChannel("shipping", server := Server())
    async with Ecotone([Shipping], channels=[channel], plugins=[measured.plugin]).running() as ecotone:
        await until(lambda: server.receiving)
        assert await state() == ["running"]

        await ecotone.consumers.pause("shipping")
        assert await state() == ["paused"]
        await ecotone.consumers.resume("shipping")
        await until(lambda: server.receiving)

        server.stop()
        await until(lambda: ecotone._prepared().runnables["shipping"].failures)
        assert await state() == ["waiting"]


async def test_a_consumer_that_this_process_does_not_run_is_told_by_another_one() -> None:
    measured = Measured()
    async with Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ):
        await measured.plugin.refresh()

        assert measured.points("ecotone.consumer.state") == []
        assert measured.value("ecotone.channel.depth") == 0


# ------------------------------------------------------------------------------------------------------ being looked at


async def test_who_collects_asks_no_server() -> None:
    class Counted(MemoryChannel):
        asked = 0

        async def depth(self) -> int:
            self.asked += 1
            return await super().depth()

    measured, channel = Measured(), Counted("shipping")
    async with Ecotone([Shipping], channels=[channel], plugins=[measured.plugin]).running(consumers=False):
        assert measured.points("ecotone.channel.depth") == []  # nobody has looked yet
        await measured.plugin.refresh()
        for _ in range(5):
            assert measured.value("ecotone.channel.depth") == 0

    assert channel.asked == 1


async def test_a_reader_in_a_thread_is_answered_while_the_event_loop_is_busy(sqlite_url: str) -> None:
    measured, shown = Measured(), list[float | None]()
    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with Ecotone(
        [Shipping], channels=[database.channel("shipping")], plugins=[database, measured.plugin]
    ).running(consumers=False) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await measured.plugin.refresh()
        reader = threading.Thread(target=lambda: shown.append(measured.value("ecotone.channel.depth")))
        reader.start()
        reader.join(20)  # nothing else is done on the loop meanwhile

    assert shown == [1]


async def test_an_exporter_that_hangs_keeps_no_handler_waiting() -> None:
    class Hanging(ConsoleMetricExporter):
        def __init__(self) -> None:
            super().__init__(out=io.StringIO())
            self.called, self.go_on = threading.Event(), threading.Event()

        def export(self, *args: Any, **more: Any) -> MetricExportResult:
            self.called.set()
            self.go_on.wait(20)
            return MetricExportResult.FAILURE

    exporter = Hanging()
    provider = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=1)])
    plugins = [Metrics(provider)]
    try:
        async with Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=plugins).running(
            consumers=False
        ) as ecotone:
            assert await anyio.to_thread.run_sync(exporter.called.wait, 20)
            for order in range(5):
                await ecotone.command_bus.send(Ship(order))
            assert await ecotone.run("shipping", ALL) == 5
            assert not exporter.go_on.is_set()
    finally:
        exporter.go_on.set()
        await anyio.to_thread.run_sync(provider.shutdown)


async def test_applications_with_one_provider_are_all_shown_one_after_the_other_and_at_once() -> None:
    measured = Measured()
    first, second = measured.plugin, Metrics(measured.provider)
    for _ in range(2):  # as when an application is made anew in one process
        again = Metrics(measured.provider)
        async with Ecotone([], channels=[MemoryChannel("shop")], plugins=[again]).running(consumers=False):
            await again.refresh()
            [depth] = measured.points("ecotone.channel.depth")
            assert depth.attributes["messaging.destination.name"] == "shop"
    async with (
        Ecotone([], channels=[MemoryChannel("shop")], plugins=[first]).running(consumers=False),
        Ecotone([], channels=[MemoryChannel("billing")], plugins=[second]).running(consumers=False),
    ):
        await first.refresh()
        await second.refresh()

        depths = measured.points("ecotone.channel.depth")
        assert {depth.attributes["messaging.destination.name"] for depth in depths} == {"shop", "billing"}


async def test_somebody_looks_every_few_seconds_by_himself() -> None:
    measured = Measured(interval=0.01)
    async with Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await until(lambda: measured.value("ecotone.channel.depth") == 0)
        await ecotone.command_bus.send(Ship(1))
        await until(lambda: measured.value("ecotone.channel.depth") == 1)

    assert measured.points("ecotone.channel.depth") == []  # what has ended is not how it is


async def test_what_was_seen_too_long_ago_is_not_shown_and_its_age_is() -> None:
    clock = TravellingClock()
    measured = Measured(interval=10.0)
    async with Ecotone(
        [Shipping], channels=[MemoryChannel("shipping")], plugins=[measured.plugin], clock=clock
    ).running(consumers=False):
        await measured.plugin.refresh()
        clock.advance(timedelta(seconds=29))
        assert measured.value("ecotone.channel.depth") == 0

        clock.advance(timedelta(seconds=2))
        assert measured.points("ecotone.channel.depth") == []
        assert measured.points("ecotone.dead_letters") == []
        assert measured.value("ecotone.observation.age") == pytest.approx(31, abs=1)


@pytest.mark.postgresql
async def test_a_database_that_is_down_breaks_nothing_and_is_visible(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    measured = Measured()
    async with tcp_proxy(5432) as network:
        database = SqlAlchemy(postgresql_url.replace(":5432/", f":{network.port}/"), create_schema=True)
        plugins = [database, measured.plugin]
        channels = [database.channel("shipping"), MemoryChannel("other")]
        async with Ecotone([Shipping], channels=channels, plugins=plugins).running(consumers=False):
            assert await measured.seen("ecotone.dead_letters") == 0
            network.refuse()
            with caplog.at_level(logging.INFO, "ecotone_fastapi.metrics"):
                for _ in range(3):
                    assert await measured.seen("ecotone.dead_letters") is None
            assert measured.value("ecotone.observation.failed", part="dead_letters") == 1
            assert measured.value("ecotone.observation.failed", part="channel", name="shipping") == 1
            assert measured.value("ecotone.channel.depth") == 0  # of the channel that needs no database
            told = [record.getMessage() for record in caplog.records if record.name == "ecotone_fastapi.metrics"]
            assert len([line for line in told if "dead_letters cannot be told" in line]) == 1

            network.restore()
            with caplog.at_level(logging.INFO, "ecotone_fastapi.metrics"), anyio.fail_after(60):
                while await measured.seen("ecotone.dead_letters") is None:
                    await anyio.lowlevel.checkpoint()
            assert measured.points("ecotone.observation.failed") == []
            assert "dead_letters can be told again" in caplog.text


async def test_a_look_that_fails_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def report(self) -> None:
            raise RuntimeError("nobody knows")

    measured = Measured(interval=0.01)
    async with Ecotone(
        [Shipping],
        channels=[MemoryChannel("shipping")],
        plugins=[measured.plugin],
        services={Overview: Broken()},
    ).running(consumers=False) as ecotone:
        await until(lambda: caplog.text.count("could not be looked at, again in 0.0 s") > 1)
        await ecotone.command_bus.send(Ship(1))
        assert await ecotone.run("shipping", ALL) == 1

    assert "nobody knows" in caplog.text
    assert measured.points("ecotone.channel.depth") == []


async def test_a_start_that_fails_tells_what_is_wrong_and_not_that_there_was_a_task_beside() -> None:
    measured = Measured()
    ecotone = Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=[measured.plugin])

    with pytest.raises(ValueError, match="the block has failed"):
        async with ecotone.running(consumers=False):
            raise ValueError("the block has failed")
