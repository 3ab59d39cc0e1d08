"""Watchers see the work on channels in its batches: sending, receiving, settling, projecting."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from ecotone_fastapi import Ecotone, EventStore, asynchronous, command_handler, event_handler, projection, retried
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core import Assembly, Limits, Operation, Work
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.policies import Backoff


@dataclass(frozen=True)
class Ship:
    order: int


@dataclass(frozen=True)
class Shipped:
    order: int


@dataclass
class Ledger:
    """A plugin that writes down what it sees."""

    seen: list[tuple[str, str, str, int, str | None]] = field(default_factory=list)

    def install(self, assembly: Assembly) -> None:
        assembly.add_watcher(self)

    @contextmanager
    def watch(self, work: Work) -> Iterator[None]:
        error = None
        try:
            yield
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            if work.operation is not Operation.RECEIVE or work.messages:
                self.seen.append((work.operation, work.name, work.place, len(work.messages), error))


class Shipping:
    def __init__(self) -> None:
        self.failures = 1

    @asynchronous("shipping")
    @command_handler
    async def ship(self, command: Ship) -> None:
        if command.order == 13 and self.failures:
            self.failures -= 1
            raise ValueError("unlucky")


async def test_a_watcher_sees_what_is_sent_received_and_acked() -> None:
    ledger = Ledger()
    async with Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=[ledger], consumers=False).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", Limits(until_empty=True))

    assert ledger.seen == [
        ("send", "send", "shipping", 1, None),
        ("receive", "receive", "shipping", 1, None),
        ("settle", "ack", "shipping", 1, None),
    ]


async def test_a_watcher_sees_that_a_message_is_given_back_for_a_retry() -> None:
    ledger = Ledger()
    plugins = [ledger, Failures(Backoff(retries=1, first=0.0))]
    async with Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(13))
        await ecotone.run("shipping", Limits(until_empty=True))

    assert [(name, place) for _, name, place, _, _ in ledger.seen if name in ("ack", "nack")] == [
        ("nack", "shipping"),
        ("ack", "shipping"),
    ]


async def test_a_watcher_sees_the_error_of_the_work() -> None:
    class Full(MemoryChannel):
        async def send(self, messages: object) -> None:
            raise ConnectionError("full")

    ledger = Ledger()
    async with Ecotone([Shipping], channels=[Full("shipping")], plugins=[ledger]).running(consumers=False) as ecotone:
        with pytest.raises(ConnectionError):
            await ecotone.command_bus.send(Ship(1))

    assert ledger.seen == [("send", "send", "shipping", 1, "ConnectionError")]


async def test_a_watcher_sees_the_batches_of_a_projection_with_the_headers_of_their_events() -> None:
    ids: list[str] = []

    class Reading(Ledger):
        @contextmanager
        def watch(self, work: Work) -> Iterator[None]:
            if work.operation is Operation.PROCESS:
                ids.extend(message.id for message in work.messages)
            yield

    @projection("shipped", categories=["order"], mode="asynchronous")
    class Counting:
        @event_handler
        async def count(self, event: Shipped) -> None: ...

    async with Ecotone([Counting], plugins=[Reading()]).running(consumers=False) as ecotone:
        events = ecotone.assembly.services[EventStore]
        assert isinstance(events, EventStore)
        appended = await events.append("order-1", [Shipped(1), Shipped(2)])
        await ecotone.run("shipped", Limits(until_empty=True))

    assert ids == [event.headers["id"] for event in appended]


async def test_a_watcher_is_told_whether_a_message_that_is_given_back_was_run() -> None:
    class Attempts(Ledger):
        @contextmanager
        def watch(self, work: Work) -> Iterator[None]:
            yield
            if work.name == "nack":
                attempts.append(work.attempted)

    attempts: list[bool] = []
    channel = MemoryChannel("shipping")
    plugins = [Attempts(), Failures(Backoff(retries=1, first=0.0))]
    async with Ecotone([Shipping], channels=[channel], plugins=plugins).running(consumers=False) as ecotone:
        await ecotone.command_bus.send(Ship(13))
        [delivery] = await channel.receive(1, 0.0)
        await ecotone.prepare().nack("shipping", delivery, attempted=False)
        await ecotone.run("shipping", Limits(until_empty=True))

    assert attempts == [False, True]


async def test_a_watcher_sees_that_a_unit_of_work_is_run_again_at_once() -> None:
    class Unlucky:
        failures = 2

        @retried(times=2)
        @asynchronous("shipping")
        @command_handler(id="behind-a-channel")
        async def ship(self, command: Ship) -> None:
            self.fail()

        @retried(times=2)
        @command_handler
        async def shipped(self, command: Shipped) -> None:
            self.fail()

        def fail(self) -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise ValueError

    ledger, unlucky = Ledger(), Unlucky()
    async with Ecotone([unlucky], channels=[MemoryChannel("shipping")], plugins=[ledger]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Shipped(1))
        unlucky.failures = 1
        await ecotone.command_bus.send(Ship(1))
        await ecotone.run("shipping", Limits(until_empty=True))

    assert [one for one in ledger.seen if one[0] == "retry"] == [
        ("retry", "again", "", 1, None),
        ("retry", "again", "", 1, None),
        ("retry", "again", "shipping", 1, None),
    ]


async def test_a_watcher_sees_that_a_message_is_parked() -> None:
    ledger = Ledger()
    plugins = [ledger, Failures(Backoff(retries=0))]
    async with Ecotone([Shipping], channels=[MemoryChannel("shipping")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send(Ship(13))
        await ecotone.run("shipping", Limits(until_empty=True))

    assert ledger.seen[-2:] == [("park", "park", "shipping", 1, None), ("settle", "ack", "shipping", 1, None)]
