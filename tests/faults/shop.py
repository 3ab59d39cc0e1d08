"""The application that faults are done to: an order commits, is shipped behind RabbitMQ and billed behind a table.

Ledgers in the database tell afterwards what was accepted and what has taken effect. They have no unique constraint, so
that what happens twice is seen.
"""

import asyncio
import os
import random
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    AsynchronousHandlers,
    Backoff,
    ConsumerSettings,
    Ecotone,
    EventBus,
    Failures,
    asynchronous,
    command_handler,
    event_handler,
)
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.clock import SystemClock
from tests.faults.crashes import Crashes

TABLES = (
    "CREATE TABLE accepted (number INTEGER)",
    "CREATE TABLE effect (number INTEGER, what VARCHAR(20))",
)


class RefusedError(Exception):
    """The order is refused after everything was written: nothing of it may ever be seen."""


class UnluckyError(Exception):
    """A handler fails by chance, before or after it has written."""


class PoisonousError(Exception):
    """A handler fails whenever it meets this order."""


@dataclass(frozen=True)
class PlaceOrder:
    number: int
    refused: bool = False
    note: str = ""


@dataclass(frozen=True)
class OrderWasPlaced:
    number: int
    note: str = ""


def by_chance() -> None:
    if random.random() < float(os.environ.get("FAULTS_UNLUCKY", "0")):
        raise UnluckyError


def note_run(run: str) -> None:
    """Write down that a handler runs, whatever becomes of it."""
    if "FAULTS_RUNS" in os.environ:
        with Path(os.environ["FAULTS_RUNS"]).open("a") as runs:
            runs.write(f"{run}\n")


async def misbehave(run: str) -> None:
    """Do with this order, as `billed:3`, what the environment says."""
    if run in os.environ.get("FAULTS_POISONOUS", "").split(","):
        raise PoisonousError
    if run in os.environ.get("FAULTS_DEADLY", "").split(","):
        os.kill(os.getpid(), signal.SIGKILL)
    if run in os.environ.get("FAULTS_SLOW", "").split(","):
        await asyncio.sleep(float(os.environ["FAULTS_SLOWNESS"]))


class WrongClock(SystemClock):
    """The clock of a machine that goes wrong by `FAULTS_SKEW` seconds."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(os.environ.get("FAULTS_SKEW", "0")))


class Orders:
    @command_handler
    async def place(self, command: PlaceOrder, session: AsyncSession, events: EventBus) -> None:
        await session.execute(text("INSERT INTO accepted VALUES (:number)"), {"number": command.number})
        await events.publish(OrderWasPlaced(command.number, command.note))
        if command.refused:
            raise RefusedError

    @asynchronous("shipping")
    @event_handler(id="ship")
    async def ship(self, event: OrderWasPlaced, session: AsyncSession) -> None:
        await self._take_effect(event, session, "shipped")

    @asynchronous("billing")
    @event_handler(id="bill")
    async def bill(self, event: OrderWasPlaced, session: AsyncSession) -> None:
        await self._take_effect(event, session, "billed")

    async def _take_effect(self, event: OrderWasPlaced, session: AsyncSession, what: str) -> None:
        run = f"{what}:{event.number}"
        note_run(run)
        by_chance()
        await session.execute(
            text("INSERT INTO effect VALUES (:number, :what)"), {"number": event.number, "what": what}
        )
        await misbehave(run)
        by_chance()


def make(database_url: str, broker_url: str, queue: str, *, lease: float = 60.0) -> Ecotone:
    """Make the application.

    Args:
        database_url: Where the tables are.
        broker_url: Where RabbitMQ is.
        queue: The queue behind the channel `shipping`.
        lease: Seconds for which the channel `billing` lends.
    """
    database = SqlAlchemy(database_url)
    retries, unsettled = int(os.environ.get("FAULTS_RETRIES", "20")), int(os.environ.get("FAULTS_UNSETTLED", "100"))
    return Ecotone(
        [Orders],
        channels=[
            RabbitMQChannel("shipping", broker_url, queue=queue, timeout=float(os.environ.get("FAULTS_TIMEOUT", "10"))),
            database.channel("billing", lease=lease, renew="FAULTS_NO_RENEWAL" not in os.environ),
        ],
        plugins=[
            Crashes(os.environ.get("FAULTS_CRASH", "")),
            database,
            AsynchronousHandlers(consumers={"*": ConsumerSettings(concurrency=5)}),
            Failures(Backoff(retries=retries, first=0.1, factor=1.5, longest=1.0), unsettled=unsettled),
        ],
        clock=WrongClock(),
    )


def from_environment() -> Ecotone:
    """Make the application of a process of its own."""
    return make(
        os.environ["FAULTS_DATABASE"],
        os.environ["FAULTS_BROKER"],
        os.environ["FAULTS_QUEUE"],
        lease=float(os.environ.get("FAULTS_LEASE", "60")),
    )
