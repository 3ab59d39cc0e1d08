"""The application whose projections faults are done to: tables without a unique constraint tell what is there twice."""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    Ecotone,
    EventStore,
    Partition,
    Projecting,
    ProjectionVersion,
    command_handler,
    event_handler,
    projection,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

TABLES = tuple(
    f"CREATE TABLE {table} (stream VARCHAR(20), number INTEGER)" for table in ("plain", "parts", "beside_1", "beside_2")
)
_reached: Counter[str] = Counter()


def reach(place: str) -> None:
    """Kill this process, as `kill -9` would, where and when the environment says so: `projected:30`."""
    where, _, number = os.environ.get("FAULTS_CRASH", "").partition(":")
    _reached[place] += 1
    if place == where and _reached[place] == int(number):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Counted:
    stream: str
    number: int


@command_handler
async def count(event: Counted, events: EventStore) -> None:
    await events.append(f"counter-{event.stream}", [event])


async def write(table: str, event: Counted, session: AsyncSession) -> None:
    row = {"stream": event.stream, "number": event.number}
    await session.execute(text(f"INSERT INTO {table} VALUES (:stream, :number)"), row)
    await asyncio.sleep(float(os.environ.get("FAULTS_SLOWNESS", "0")))
    reach("projected")


@projection("plain", categories=["counter"], batch=20, every=0.2)
class Plain:
    @event_handler
    async def note(self, event: Counted, session: AsyncSession) -> None:
        await write("plain", event, session)

    @projection.flush
    async def flush(self) -> None:
        reach("flushed")

    @projection.reset
    async def clear(self, session: AsyncSession) -> None:
        await session.execute(text("DELETE FROM plain"))


@projection("parts", categories=["counter"], partitioned=True, batch=20, every=0.2)
class Parts:
    @event_handler
    async def note(self, event: Counted, session: AsyncSession) -> None:
        await write("parts", event, session)

    @projection.flush
    async def flush(self) -> None:
        reach("flushed")

    @projection.reset
    async def clear(self, session: AsyncSession, partition: Partition) -> None:
        await session.execute(text("DELETE FROM parts WHERE stream = :stream"), {"stream": partition.identifier})


@projection("beside", categories=["counter"], batch=20, every=0.2)
class Beside:
    @event_handler
    async def note(self, event: Counted, session: AsyncSession, version: ProjectionVersion) -> None:
        await write(version.of("beside"), event, session)

    @projection.flush
    async def flush(self) -> None:
        reach("flushed")


def make(url: str) -> Ecotone:
    """Make the application."""
    return Ecotone(
        [count, Plain, Parts, Beside],
        plugins=[SqlAlchemy(url), Projecting(lease=float(os.environ.get("FAULTS_LEASE", "2")))],
    )


def from_environment() -> Ecotone:
    """Make the application of a process of its own."""
    return make(os.environ["FAULTS_DATABASE"])
