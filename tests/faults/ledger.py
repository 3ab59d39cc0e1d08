"""An application for which order matters: entries of one account are booked behind RabbitMQ, one after the other.

An entry of the account `ill` at place 0 fails until the table `healed` has a row.
"""

import os
from dataclasses import dataclass

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
from tests.faults.shop import by_chance, note_run

APPLICATION = "tests.faults.ledger:from_environment"
TABLES = (
    "CREATE TABLE booked (number SERIAL, account VARCHAR(20), place INTEGER)",
    "CREATE TABLE healed (number INTEGER)",
)


class IllError(Exception):
    """The entry cannot be booked before somebody has healed it."""


@dataclass(frozen=True)
class Enter:
    account: str
    place: int


@dataclass(frozen=True)
class Entered:
    account: str
    place: int


class Ledger:
    @command_handler
    async def enter(self, command: Enter, events: EventBus) -> None:
        await events.publish(Entered(command.account, command.place))

    @asynchronous("ledger", partition_by=lambda entry: entry.account)
    @event_handler(id="book")
    async def book(self, entry: Entered, session: AsyncSession) -> None:
        note_run(f"{entry.account}:{entry.place}")
        by_chance()
        values = {"account": entry.account, "place": entry.place}
        await session.execute(text("INSERT INTO booked (account, place) VALUES (:account, :place)"), values)
        healed = (await session.execute(text("SELECT count(*) FROM healed"))).scalar_one()
        if (entry.account, entry.place) == ("ill", 0) and not healed:
            raise IllError
        by_chance()


def make(database_url: str, broker_url: str, queue: str) -> Ecotone:
    """Make the application."""
    database = SqlAlchemy(database_url)
    return Ecotone(
        [Ledger],
        channels=[RabbitMQChannel("ledger", broker_url, queue=queue, keeps_order=True)],
        plugins=[
            database,
            AsynchronousHandlers(consumers={"*": ConsumerSettings(concurrency=5)}),
            Failures(Backoff(retries=1000, first=0.1, factor=1.5, longest=1.0), unsettled=100),
        ],
    )


def from_environment() -> Ecotone:
    """Make the application of a process of its own."""
    return make(os.environ["FAULTS_DATABASE"], os.environ["FAULTS_BROKER"], os.environ["FAULTS_QUEUE"])
