"""Read models that tell what has happened twice or not at all, in memory and in databases, and projections to them."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi import (
    CommandBus,
    Emitter,
    EventStore,
    Partition,
    ProjectionVersion,
    command_handler,
    event_handler,
    message_name,
    projection,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryEvents, MemoryProjections
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.modelling.event_sourcing import EventSourcing
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.modelling.projections import Mode
from ecotone_fastapi.testing import Flow, flow_test


class Ledger(Protocol):
    """Tables of numbers, without a unique constraint."""

    async def create(self, table: str) -> None: ...
    async def drop(self, table: str) -> None: ...
    async def add(self, table: str, stream: str, number: int) -> None: ...
    async def clear(self, table: str, stream: str | None = None) -> None: ...


class MemoryLedger:
    """Rolled back with the unit of work."""

    def __init__(self) -> None:
        self.tables: dict[str, list[tuple[str, int]]] = {}

    async def create(self, table: str) -> None:
        await self._change({**self.tables, table: []})

    async def drop(self, table: str) -> None:
        await self._change({name: rows for name, rows in self.tables.items() if name != table})

    async def add(self, table: str, stream: str, number: int) -> None:
        rows = self.tables.setdefault(table, [])
        row = (stream, number)
        rows.append(row)
        await self._undone(lambda: rows.remove(row))

    async def clear(self, table: str, stream: str | None = None) -> None:
        before = self.tables.get(table, [])
        kept = [row for row in before if stream not in (None, row[0])]
        gone = [row for row in before if row not in kept]
        self.tables[table] = kept
        await self._undone(lambda: kept.extend(gone))

    async def _change(self, after: dict[str, list[tuple[str, int]]]) -> None:
        before, self.tables = self.tables, after

        def restore() -> None:
            self.tables = before

        await self._undone(restore)

    async def _undone(self, restore: Callable[[], None]) -> None:
        scope = current_scope()
        if scope is not None:
            await scope.enter(_undoing(restore))


@asynccontextmanager
async def _undoing(restore: Callable[[], None]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        restore()
        raise


_NUMBERED = {
    "postgresql": "BIGSERIAL PRIMARY KEY",
    "mysql": "BIGINT AUTO_INCREMENT PRIMARY KEY",
    "mariadb": "BIGINT AUTO_INCREMENT PRIMARY KEY",
    "sqlite": "INTEGER PRIMARY KEY",
}


class SqlLedger:
    """In the transaction of the handler."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, table: str) -> None:
        number = _NUMBERED[self._session.get_bind().dialect.name]
        await self._session.execute(text(f"CREATE TABLE {table} (id {number}, stream VARCHAR(80), number INTEGER)"))

    async def drop(self, table: str) -> None:
        await self._session.execute(text(f"DROP TABLE {table}"))

    async def add(self, table: str, stream: str, number: int) -> None:
        await self._session.execute(
            text(f"INSERT INTO {table} (stream, number) VALUES (:stream, :number)"),
            {"stream": stream, "number": number},
        )

    async def clear(self, table: str, stream: str | None = None) -> None:
        where, values = ("", {}) if stream is None else (" WHERE stream = :stream", {"stream": stream})
        await self._session.execute(text(f"DELETE FROM {table}{where}"), values)


@message_name("counter.counted")
@dataclass(frozen=True)
class Counted:
    """Something is counted in a stream."""

    stream: str
    number: int


@message_name("counter.told")
@dataclass(frozen=True)
class Told:
    """A projection tells that it has seen a number."""

    number: int


@dataclass(frozen=True)
class Count:
    stream: str
    numbers: tuple[int, ...]
    fails: bool = False


class CountingFailedError(Exception):
    """A command fails after it has appended."""


class Counters:
    @command_handler
    async def count(self, command: Count, events: EventStore) -> None:
        for number in command.numbers:
            await events.append(f"counter-{command.stream}", [Counted(command.stream, number)])
        if command.fails:
            raise CountingFailedError


class Poison:
    """Which number no projection can handle at this moment, and what is to happen meanwhile."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.meanwhile: Callable[[int], Awaitable[None]] | None = None

    async def taste(self, number: int) -> None:
        if self.meanwhile is not None:
            await self.meanwhile(number)
        if number in self.numbers:
            raise ValueError(f"{number} is poisonous")


class _Handlers:
    table: str

    @projection.init
    async def create(self, ledger: Ledger) -> None:
        await ledger.create(self.table)

    @projection.delete
    async def drop(self, ledger: Ledger) -> None:
        await ledger.drop(self.table)

    @event_handler
    async def note(self, event: Counted, ledger: Ledger, poison: Poison) -> None:
        await ledger.add(self.table, event.stream, event.number)
        await poison.taste(event.number)


class _Global(_Handlers):
    @projection.reset
    async def clear(self, ledger: Ledger) -> None:
        await ledger.clear(self.table)


class _Partitioned(_Handlers):
    @projection.reset
    async def clear(self, ledger: Ledger, partition: Partition) -> None:
        await ledger.clear(self.table, partition.identifier)


class _Versioned:
    @projection.init
    async def create(self, ledger: Ledger, version: ProjectionVersion) -> None:
        await ledger.create(version.of(version.name))

    @projection.delete
    async def drop(self, ledger: Ledger, version: ProjectionVersion) -> None:
        await ledger.drop(version.of(version.name))

    @event_handler
    async def note(
        self, event: Counted, ledger: Ledger, poison: Poison, version: ProjectionVersion, *, emitter: Emitter
    ) -> None:
        await ledger.add(version.of(version.name), event.stream, event.number)
        await poison.taste(event.number)
        await emitter.emit(Told(event.number))


@projection("later", categories=["counter"], batch=20)
class Later(_Global):
    table = "later"


@projection("at_once", categories=["counter"], mode="synchronous", batch=20)
class AtOnce(_Global):
    table = "at_once"


@projection("parts", categories=["counter"], partitioned=True, batch=20)
class Parts(_Partitioned):
    table = "parts"


@projection("parts_at_once", categories=["counter"], partitioned=True, mode="synchronous", batch=20)
class PartsAtOnce(_Partitioned):
    table = "parts_at_once"


@projection("beside", categories=["counter"], batch=20)
class Beside(_Versioned): ...


@projection("beside_at_once", categories=["counter"], mode="synchronous", batch=20)
class BesideAtOnce(_Versioned): ...


@projection("beside_parts", categories=["counter"], partitioned=True, batch=20)
class BesideParts(_Versioned): ...


@projection("beside_parts_in_turn", categories=["counter"], partitioned=True, batch=20, concurrency=1)
class BesidePartsInTurn(_Versioned): ...


@projection("beside_parts_at_once", categories=["counter"], partitioned=True, mode="synchronous", batch=20)
class BesidePartsAtOnce(_Versioned): ...


class _Asked(_Versioned):
    @query_handler("version that answers")
    async def number(self, version: ProjectionVersion) -> int:
        return version.number


class _Quiet(_Asked):
    @event_handler
    async def note(self, event: Counted, ledger: Ledger, poison: Poison, version: ProjectionVersion) -> None:  # type: ignore[override]
        await ledger.add(version.of(version.name), event.stream, event.number)
        await poison.taste(event.number)


def revised(number: int, *, partitioned: bool = False, mode: Mode = "synchronous", emits: bool = False) -> type:
    """The code of one revision of a projection."""

    @projection("beside_revised", categories=["counter"], partitioned=partitioned, mode=mode, revision=number)
    class Emitting(_Asked): ...

    @projection("beside_revised", categories=["counter"], partitioned=partitioned, mode=mode, revision=number)
    class Revised(_Quiet): ...

    return Emitting if emits else Revised


IN_PLACE: tuple[type, ...] = (Later, AtOnce, Parts, PartsAtOnce)
VERSIONED: tuple[type, ...] = (Beside, BesideAtOnce, BesideParts, BesidePartsAtOnce)


class Where:
    """Where applications keep everything: in memory, or in a database.

    Args:
        url: The address of the database; `None` is memory.
    """

    def __init__(self, url: str | None) -> None:
        # Some write all the time, and SQLite does not say who is next: on a busy machine one may wait for long.
        self.url = f"{url}?timeout=60" if url is not None and url.startswith("sqlite") else url
        self.events = MemoryEvents()
        self.ledger = MemoryLedger()
        self.checkpoints = MemoryProjections(SystemClock())
        self.one_writer: bool = url is not None and url.startswith("sqlite")


class Place:
    """An application, and what its read models say.

    Attributes:
        flow: The application.
        poison: Which number no projection can handle at this moment.
    """

    def __init__(self, flow: Flow, poison: Poison, rows: Callable[[str], Awaitable[list[tuple[str, int]]]]) -> None:
        self.flow = flow
        self.poison = poison
        self._rows = rows

    @property
    def commands(self) -> CommandBus:
        return self.flow.ecotone.command_bus

    async def count(self, stream: str, *numbers: int, fails: bool = False) -> None:
        try:
            await self.commands.send(Count(stream, numbers, fails))
        except CountingFailedError:
            assert fails

    async def live_table(self, name: str) -> str:
        found = await self.flow.ecotone.projections.status(name)
        status = found.live or found.versions[-1]
        return f"{name}_{status.number}" if name.startswith("beside") else name

    async def rows(self, name: str) -> list[tuple[str, int]]:
        """The rows of the live version, in the order in which they came."""
        return await self._rows(await self.live_table(name))

    async def check(self, name: str, numbers: Iterable[int]) -> None:
        """Each number is there once."""
        assert Counter(number for _, number in await self.rows(name)) == Counter(dict.fromkeys(numbers, 1))

    async def told(self) -> Counter[int]:
        """Which numbers projections have told, and how often."""
        events: Any = self.flow.ecotone.assembly.services[EventStore]
        found: Counter[int] = Counter()
        async for event in events.all():
            if isinstance(event.payload, Told):
                found[event.payload.number] += 1
        return found

    async def catch_up(self, name: str) -> None:
        with anyio.fail_after(60):
            await self.flow.run(name)


@asynccontextmanager
async def place(
    where: Where, *handlers: Any, lasting: bool = False, engine: AsyncEngine | None = None, **options: Any
) -> AsyncIterator[Place]:
    """Start an application.

    Args:
        where: Where it keeps everything.
        handlers: What it projects, and what else it handles.
        lasting: Whether several applications share what is kept of projections, in memory too.
        engine: An engine of its own for that database; sessions are isolated as it says.
        options: What else `flow_test` is given.
    """
    poison, known = Poison(), [EventSourcing(events=[Told]), *options.pop("plugins", ())]
    if where.url is None:
        ledger = where.ledger if lasting else MemoryLedger()

        async def in_memory(table: str) -> list[tuple[str, int]]:
            return list(ledger.tables[table])

        services: dict[Any, Any] = {Ledger: ledger, Poison: poison, EventStorage: where.events}
        if lasting:
            services[ProjectionStore] = where.checkpoints
        async with flow_test([Counters, *handlers], services=services, plugins=known, **options) as flow:
            yield Place(flow, poison, in_memory)
        return
    looking = create_async_engine(where.url, poolclass=NullPool)
    query = "SELECT stream, number FROM {} ORDER BY id"

    async def in_database(table: str) -> list[tuple[str, int]]:
        async with looking.connect() as connection:
            return [(row[0], row[1]) for row in await connection.execute(text(query.format(table)))]

    if engine is None:
        database = SqlAlchemy(where.url, create_schema=True)
    else:
        database = SqlAlchemy(engine, sessionmaker=async_sessionmaker(engine), create_schema=True)
    services = {Ledger: SqlLedger, Poison: poison}
    async with flow_test([Counters, *handlers], services=services, plugins=[database, *known], **options) as flow:
        yield Place(flow, poison, in_database)
    await looking.dispose()
