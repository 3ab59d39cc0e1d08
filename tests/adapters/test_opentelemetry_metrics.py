"""What is measured when it happens: the four conventional instruments, and the counters of ours."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.semconv._incubating.metrics import messaging_metrics

from ecotone_fastapi import (
    ConcurrencyError,
    ConfigurationError,
    Ecotone,
    EventStore,
    asynchronous,
    command_handler,
    event_handler,
    projection,
    retried,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Metrics
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits, Message
from ecotone_fastapi.core.errors import ChannelError, OutcomeUnknownError, SendError
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.policies import Backoff, Discard
from ecotone_fastapi.testing.flow import TravellingClock
from tests.adapters.measured import Measured, Point
from tests.servers import RemoteChannel, Server

ALL = Limits(until_empty=True)
AT_ONCE = Failures(Backoff(retries=1, first=0.0, jitter=0.0))


@dataclass(frozen=True)
class Ship:
    order: int


@dataclass(frozen=True)
class Shipped:
    order: int


class Shipping:
    """Fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(self, command: Ship) -> None:
        if self.failures:
            raise self.failures.pop(0)


def only(points: Sequence[Point]) -> Point:
    [point] = points
    return point


# -------------------------------------------------------------------------------------------------------- conventions


async def test_the_four_instruments_have_names_units_and_buckets_of_the_conventions() -> None:
    """Names, kinds and units as OpenTelemetry's own package makes them; it has no buckets, the text has."""
    measured, standard = Measured(), Measured()
    meter = standard.provider.get_meter("conventions")
    messaging_metrics.create_messaging_client_operation_duration(meter).record(1)
    messaging_metrics.create_messaging_process_duration(meter).record(1)
    messaging_metrics.create_messaging_client_sent_messages(meter).add(1)
    messaging_metrics.create_messaging_client_consumed_messages(meter).add(1)
    async with Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)

        found, expected = measured.metrics(), standard.metrics()

    assert len(expected) == 4
    for name, wanted in expected.items():
        metric = found[name]
        assert (metric.unit, metric.description, type(metric.data)) == (
            wanted.unit,
            wanted.description,
            type(wanted.data),
        )
    for name in ("messaging.client.operation.duration", "messaging.process.duration"):
        assert isinstance(found[name].data, Histogram)
        assert {point.buckets for point in measured.points(name)} == {
            (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
        }
    for name in ("messaging.client.sent.messages", "messaging.client.consumed.messages"):
        data = found[name].data
        assert isinstance(data, Sum)
        assert data.is_monotonic


async def test_the_scope_tells_who_measures_and_by_which_conventions() -> None:
    measured = Measured()
    async with Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        data = measured._reader.get_metrics_data()

    assert data is not None
    [scope] = data.resource_metrics[0].scope_metrics
    assert (scope.scope.name, scope.scope.schema_url) == ("ecotone_fastapi", "https://opentelemetry.io/schemas/1.44.0")
    assert scope.scope.version


# ------------------------------------------------------------------------------------------- the four instruments


async def test_a_message_is_measured_when_it_is_sent_received_handled_and_acked() -> None:
    measured = Measured()
    async with Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)

    on_channel = {"messaging.system": "ecotone_memory", "messaging.destination.name": "shipping"}
    operations = [point.attributes for point in measured.points("messaging.client.operation.duration")]
    assert operations == [
        {**on_channel, "messaging.operation.name": "send", "messaging.operation.type": "send"},
        {**on_channel, "messaging.operation.name": "receive", "messaging.operation.type": "receive"},
        {**on_channel, "messaging.operation.name": "ack", "messaging.operation.type": "settle"},
    ]
    assert only(measured.points("messaging.process.duration")).attributes == {
        **on_channel,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "ship",
    }
    assert measured.points("messaging.client.sent.messages") == [Point(1, operations[0])]
    assert measured.points("messaging.client.consumed.messages") == [Point(1, operations[1])]


async def test_a_message_is_consumed_once_for_each_delivery_and_not_for_each_handler_or_attempt() -> None:
    class Both:
        @asynchronous("shipping")
        @event_handler(id="first")
        async def first(self, event: Shipped) -> None: ...

        @asynchronous("shipping")
        @event_handler(id="second")
        async def second(self, event: Shipped) -> None: ...

    measured = Measured()
    async with Ecotone([Both], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await ecotone.event_bus.publish(Shipped(1))
        await ecotone.run("shipping", ALL)

    # Each of the handlers has a copy of its own on the channel.
    assert measured.value("messaging.client.sent.messages") == 2
    assert measured.value("messaging.client.consumed.messages") == 2
    assert [
        point.attributes["messaging.consumer.group.name"] for point in measured.points("messaging.process.duration")
    ] == [
        "first",
        "second",
    ]


async def test_nothing_is_measured_while_a_consumer_waits_in_vain() -> None:
    measured = Measured()
    async with Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await ecotone.run("shipping", ALL)

    assert measured.points("messaging.client.operation.duration") == []


async def test_a_channel_that_cannot_be_received_from_is_measured_with_its_error() -> None:
    measured, server = Measured(), Server()
    async with Ecotone([Shipping()], channels=[RemoteChannel("shipping", server)], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        server.stop()
        with pytest.raises(ChannelError):
            await ecotone.run("shipping", ALL)
        server.start()

    failed = only(measured.points("messaging.client.operation.duration"))
    assert failed.attributes["messaging.operation.name"] == "receive"
    assert failed.attributes["error.type"] == "ecotone_fastapi.core.errors.ChannelError"
    assert measured.points("messaging.client.consumed.messages") == []


async def test_a_failure_that_becomes_a_retry_is_measured_as_a_failure() -> None:
    measured = Measured()
    plugins = [measured.plugin, AT_ONCE]
    async with Ecotone([Shipping(ValueError())], channels=[MemoryChannel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)

    failed, succeeded = measured.points("messaging.process.duration")
    assert (failed.attributes["error.type"], failed.count) == ("ValueError", 1)
    assert ("error.type" in succeeded.attributes, succeeded.count) == (False, 1)
    assert only(measured.points("ecotone.retries")) == Point(
        1,
        {
            "messaging.system": "ecotone_memory",
            "messaging.destination.name": "shipping",
            "ecotone.retry.kind": "delayed",
        },
    )


async def test_a_failure_that_ends_in_the_dead_letter_is_measured_as_a_failure_and_no_retry() -> None:
    measured = Measured()
    plugins = [measured.plugin, Failures(Backoff(retries=0))]
    shipping = Shipping(ChannelError("the warehouse is closed"))
    async with Ecotone([shipping], channels=[MemoryChannel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)
        dead = await measured.seen("ecotone.dead_letters")

    failed = only(measured.points("messaging.process.duration"))
    assert failed.attributes["error.type"] == "ecotone_fastapi.core.errors.ChannelError"
    assert measured.points("ecotone.retries") == []
    assert measured.points("ecotone.parked") == [
        Point(1, {"messaging.system": "ecotone_memory", "messaging.destination.name": "shipping"})
    ]
    assert dead == 1


async def test_a_failure_that_is_discarded_is_measured_as_a_failure_and_no_retry() -> None:
    measured = Measured()
    plugins = [measured.plugin, Failures(Backoff(retries=0, then=Discard()))]
    async with Ecotone([Shipping(ValueError())], channels=[MemoryChannel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)

    assert only(measured.points("messaging.process.duration")).attributes["error.type"] == "ValueError"
    assert measured.points("ecotone.retries") == []


async def test_a_handler_that_nobody_knows_adds_no_series_of_its_own() -> None:
    measured = Measured()
    channel = MemoryChannel("shipping")
    plugins = [measured.plugin, Failures(Backoff(retries=0))]
    async with Ecotone([Shipping()], channels=[channel], plugins=plugins).running(consumers=False) as ecotone:
        await channel.send([Message(b"{}", {"id": f"{n}", "endpoint": f"made up {n}"}) for n in range(5)])
        await ecotone.run("shipping", ALL)

    point = only(measured.points("messaging.process.duration"))
    assert point.count == 5
    assert "messaging.consumer.group.name" not in point.attributes


async def test_what_could_not_be_sent_was_attempted() -> None:
    class Full(MemoryChannel):
        async def send(self, messages: Sequence[Message[bytes]]) -> None:
            raise ConnectionError("full")

    measured = Measured()
    async with Ecotone([Shipping()], channels=[Full("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        with pytest.raises(ConnectionError):
            await ecotone.command_bus.send(Ship(1))

    assert only(measured.points("messaging.client.sent.messages")).attributes["error.type"] == "ConnectionError"
    assert only(measured.points("messaging.client.operation.duration")).attributes["error.type"] == "ConnectionError"


async def test_of_a_batch_that_was_taken_in_part_the_others_were_sent_without_an_error() -> None:
    class HalfFull(MemoryChannel):
        async def send(self, messages: Sequence[Message[bytes]]) -> None:
            raise SendError("half full", failed=[messages[0].headers["id"]])

    measured = Measured()
    async with Ecotone([Shipping()], channels=[HalfFull("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        with pytest.raises(SendError):
            await ecotone.prepare().transmit("shipping", [Message(b"", {"id": f"{n}"}) for n in range(3)])

    refused, sent = measured.points("messaging.client.sent.messages")
    assert (refused.value, refused.attributes["error.type"]) == (1, "ecotone_fastapi.core.errors.SendError")
    assert (sent.value, "error.type" in sent.attributes) == (2, False)


async def test_events_that_a_projection_handles_are_processed() -> None:
    @projection("shipped", categories=["order"], mode="asynchronous")
    class Counting:
        @event_handler
        async def count(self, event: Shipped) -> None: ...

    measured = Measured()
    async with Ecotone([Counting], plugins=[measured.plugin]).running(consumers=False) as ecotone:
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        await events.append("order-1", [Shipped(1), Shipped(2)])
        await ecotone.run("shipped", ALL)

    assert only(measured.points("messaging.process.duration")).attributes == {
        "messaging.system": "ecotone_event_store",
        "messaging.operation.name": "project",
        "messaging.operation.type": "process",
        "messaging.destination.name": "shipped",
    }
    # They were read from a store, and came through no channel.
    assert measured.points("messaging.client.consumed.messages") == []


# ------------------------------------------------------------------------------------------------- counters of ours


async def test_a_retry_at_once_behind_a_channel_is_counted_and_each_run_is_measured() -> None:
    class Reserving:
        def __init__(self) -> None:
            self.failures = 2

        @retried(times=3, on=TimeoutError)
        @asynchronous("shipping")
        @command_handler(id="reserve")
        async def reserve(self, command: Ship) -> None:
            if self.failures:
                self.failures -= 1
                raise TimeoutError

    measured = Measured()
    async with Ecotone([Reserving()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)

    retries = only(measured.points("ecotone.retries"))
    assert (retries.value, retries.attributes["ecotone.retry.kind"]) == (2, "instant")
    assert retries.attributes["messaging.destination.name"] == "shipping"
    assert [
        (point.count, point.attributes.get("error.type")) for point in measured.points("messaging.process.duration")
    ] == [(2, "TimeoutError"), (1, None)]
    assert measured.value("messaging.client.consumed.messages") == 1


async def test_a_retry_at_once_on_a_bus_is_counted() -> None:
    class Saving:
        def __init__(self) -> None:
            self.failures = 1

        @retried(times=1, on=ConcurrencyError)
        @command_handler
        async def save(self, command: Ship) -> None:
            if self.failures:
                self.failures -= 1
                raise ConcurrencyError("somebody else was first")

    measured = Measured()
    async with Ecotone([Saving()], plugins=[measured.plugin]).running() as ecotone:
        await ecotone.command_bus.send(Ship(1))

    assert measured.points("ecotone.retries") == [Point(1, {"ecotone.retry.kind": "instant"})]


async def test_what_a_stopping_consumer_gives_back_is_no_retry() -> None:
    measured = Measured()
    channel = MemoryChannel("shipping")
    async with Ecotone([Shipping()], channels=[channel], plugins=[measured.plugin]).running(consumers=False) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        [delivery] = await channel.receive(1, 0.0)
        await ecotone.prepare().nack("shipping", delivery, attempted=False)

    assert measured.points("ecotone.retries") == []
    [given_back] = measured.points("messaging.client.operation.duration", type="settle")
    assert given_back.attributes["messaging.operation.name"] == "nack"


async def test_a_message_that_a_consumer_died_with_is_a_redelivery_and_a_retry_is_none() -> None:
    measured, clock = Measured(), TravellingClock()
    channel = MemoryChannel("shipping", clock=clock, lease=60.0)
    plugins = [measured.plugin, AT_ONCE]
    async with Ecotone([Shipping(ValueError())], channels=[channel], plugins=plugins, clock=clock).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", ALL)
        assert measured.points("ecotone.redeliveries") == []

        await ecotone.command_bus.send(Ship(2))
        await channel.receive(1, 0.0)  # by somebody who never tells what became of it
        clock.advance(timedelta(seconds=61))
        await ecotone.run("shipping", ALL)

    assert measured.points("ecotone.redeliveries") == [
        Point(1, {"messaging.system": "ecotone_memory", "messaging.destination.name": "shipping"})
    ]


async def test_a_lease_that_ends_while_its_message_is_handled_is_counted_once() -> None:
    clock = TravellingClock()

    class Slow:
        @asynchronous("shipping")
        @command_handler(id="ship")
        async def ship(self, command: Ship) -> None:
            clock.advance(timedelta(seconds=61))
            await channel.receive(1, 0.0)  # somebody else has it now

    measured = Measured()
    channel = MemoryChannel("shipping", clock=clock, lease=60.0)
    async with Ecotone([Slow], channels=[channel], plugins=[measured.plugin], clock=clock).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", Limits(messages=1))

    assert measured.points("ecotone.leases.lost") == [
        Point(1, {"messaging.system": "ecotone_memory", "messaging.destination.name": "shipping"})
    ]
    [late] = measured.points("messaging.client.operation.duration", type="settle")
    assert late.attributes["error.type"] == "ecotone_fastapi.core.errors.LeaseLostError"


async def test_messages_whose_confirm_never_came_are_counted_and_those_never_sent_are_not() -> None:
    class Silent(MemoryChannel):
        errors: list[ChannelError]

        async def send(self, messages: Sequence[Message[bytes]]) -> None:
            raise self.errors.pop(0)

    channel = Silent("shipping")
    channel.errors = [OutcomeUnknownError("no answer", messages=1), ChannelError("not connected; nothing was sent")]
    measured = Measured()
    async with Ecotone([Shipping()], channels=[channel], plugins=[measured.plugin]).running(consumers=False) as ecotone:
        for _ in range(2):
            with pytest.raises(ChannelError):
                await ecotone.command_bus.send(Ship(1))

    assert measured.points("ecotone.publish.unknown") == [
        Point(1, {"messaging.system": "ecotone_memory", "messaging.destination.name": "shipping"})
    ]
    assert measured.value("messaging.client.sent.messages") == 2


# ------------------------------------------------------------------------------------------------------ being wired


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan"), float("inf")])
def test_an_interval_that_is_no_time_is_refused(interval: float) -> None:
    with pytest.raises(ConfigurationError, match="would never look"):
        Metrics(interval=interval)


async def test_an_application_that_is_put_together_anew_with_the_same_plugin_is_measured_on() -> None:
    measured = Measured()
    for depth in (1, 2):
        async with Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin]).running(
            consumers=False
        ) as ecotone:
            for order in range(depth):
                await ecotone.command_bus.send(Ship(order))
            assert await measured.seen("ecotone.channel.depth") == depth

    assert measured.value("messaging.client.sent.messages") == 3


async def test_an_application_that_is_started_again_is_looked_at_again() -> None:
    measured = Measured()
    ecotone = Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[measured.plugin])
    for _ in range(2):
        async with ecotone.running(consumers=False):
            assert await measured.seen("ecotone.channel.depth") == 0
        assert await measured.seen("ecotone.channel.depth") is None


async def test_without_an_interval_nobody_looks_and_the_rest_is_measured() -> None:
    reader = InMemoryMetricReader()
    metrics = Metrics(MeterProvider([reader]), interval=None)
    async with Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[metrics]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await metrics.refresh()
        data = reader.get_metrics_data()

    assert data is not None
    assert {metric.name for metric in data.resource_metrics[0].scope_metrics[0].metrics} == {
        "messaging.client.operation.duration",
        "messaging.client.sent.messages",
    }


@pytest.mark.parametrize("provider", [None, NoOpMeterProvider()])
async def test_without_a_provider_nothing_is_plugged_in_and_everything_works(
    provider: NoOpMeterProvider | None,
) -> None:
    metrics = Metrics(provider)
    plugins = [metrics, AT_ONCE]
    async with Ecotone([Shipping(ValueError())], channels=[MemoryChannel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        handled = await ecotone.run("shipping", ALL)
        await metrics.refresh()

        assert ecotone.assembly.watchers == []
        assert not any(around.plugin is metrics for around in ecotone.assembly.arounds)
    assert handled == 1


def test_the_provider_of_the_process_is_found(tmp_path: Path) -> None:
    """In a process of its own: what is set there once stays."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import asyncio
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from ecotone_fastapi import Ecotone
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Metrics

metrics, reader = Metrics(), InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))

async def main():
    async with Ecotone([], channels=[MemoryChannel("mails")], plugins=[metrics]).running():
        await metrics.refresh()
        print(*(one.name for one in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics))

asyncio.run(main())
"""
    )
    run = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert "ecotone.channel.depth" in run.stdout.split()


async def test_two_applications_of_one_process_are_told_apart_by_their_names() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    shop, office = Metrics(provider, application="shop"), Metrics(provider, application="office")
    async with (
        Ecotone([Shipping()], channels=[MemoryChannel("shipping")], plugins=[shop]).running(consumers=False) as one,
        Ecotone([], channels=[MemoryChannel("mails")], plugins=[office]).running(consumers=False),
    ):
        await one.command_bus.send(Ship(1))
        await shop.refresh()
        await office.refresh()
        data = reader.get_metrics_data()

    assert data is not None
    depths = {
        str((scope.scope.attributes or {})["ecotone.application"]): [
            (dict(point.attributes or {})["messaging.destination.name"], getattr(point, "value", None))
            for metric in scope.metrics
            if metric.name == "ecotone.channel.depth"
            for point in metric.data.data_points
        ]
        for scope in data.resource_metrics[0].scope_metrics
    }
    assert depths == {"shop": [("shipping", 1)], "office": [("mails", 0)]}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


async def test_claims_are_measured_without_the_wait_for_messages_and_with_what_they_bring(url: str) -> None:
    measured = Measured()
    database = SqlAlchemy(url, create_schema=True)
    channel = database.channel("shipping")
    async with Ecotone([Shipping()], channels=[channel], plugins=[database, measured.plugin]).running(
        consumers=False
    ) as ecotone:
        for order in range(3):
            await ecotone.command_bus.send(Ship(order))
        deliveries = await channel.receive(10, 0.0)
        await channel.receive(10, 0.3)  # waits in vain, and claims nothing for most of that time
        for delivery in deliveries:
            await delivery.nack()

    [size] = measured.points("ecotone.claim.size")
    [claims] = measured.points("ecotone.claim.duration")
    assert (size.count, size.value, size.attributes["messaging.destination.name"]) == (1, 3, "shipping")
    assert size.attributes["messaging.system"] == "ecotone_sql"
    assert claims.attributes == size.attributes
    assert claims.count >= 2


async def test_the_batches_of_a_relay_are_measured_and_so_are_their_acks(sqlite_url: str) -> None:
    measured = Measured()
    broker = MemoryChannel("shipping")
    broker.capabilities = replace(broker.capabilities, durable=True)
    setattr(broker, "delivery", "outbox")  # noqa: B010
    plugins = [SqlAlchemy(sqlite_url, create_schema=True), measured.plugin]
    async with Ecotone([Shipping()], channels=[broker], plugins=plugins).running(consumers=False) as ecotone:
        for order in range(5):
            await ecotone.command_bus.send(Ship(order))
        await ecotone.run("outbox", ALL)

    [batch] = measured.points("ecotone.claim.size")
    assert (batch.count, batch.value, batch.attributes["messaging.destination.name"]) == (1, 5, "outbox/shipping")
    [settled] = measured.points("messaging.client.operation.duration", type="settle")
    assert (settled.count, settled.attributes["messaging.operation.name"]) == (1, "ack")
    assert settled.attributes["messaging.destination.name"] == "outbox/shipping"
