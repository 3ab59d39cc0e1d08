"""Writing to the table of events on MariaDB and SQLite: lists are written out."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.dialects import Dialect
from ecotone_fastapi.adapters.sqlalchemy.event_log import (
    AS_EXPECTED,
    COLUMNS,
    Added,
    Batch,
    EventLog,
    NewRow,
    Pending,
    kind_of,
    listing,
)
from ecotone_fastapi.adapters.sqlalchemy.event_queries import EventQueries, EventTables
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.modelling.event_storage import (
    NO_VERSION,
    AppendCondition,
    Expected,
    excluded,
    is_expected,
)
from ecotone_fastapi.modelling.stream_names import category_of

_AT_ONCE = 1000  # positions in one statement


class PlainEventLog(EventLog):
    """What MariaDB and SQLite have in common."""

    def __init__(self, tables: EventTables, queries: EventQueries, dialect: Dialect) -> None:
        super().__init__(tables, queries, dialect)
        self._insert_tags = text(f"INSERT INTO {tables.tags} (position, tag) VALUES (:position, :tag)")

    async def check_isolation(self, connection: AsyncConnection) -> None:
        """Do nothing: the order of events does not depend on what a transaction sees."""

    async def tag(self, connection: AsyncConnection, batch: Batch, added: Sequence[Added]) -> None:
        """Write down the tags of what was appended."""
        tagged = [
            {"position": one.position, "tag": tag}
            for one, row in zip(added, batch.rows, strict=True)
            for tag in row.tags
        ]
        if tagged:
            await connection.execute(self._insert_tags, tagged)


class SQLiteEventLog(PlainEventLog):
    """Writes on SQLite, where nobody else writes meanwhile."""

    _for_update = ""
    _rows_at_once = 500

    async def guard(self, connection: AsyncConnection, batch: Batch, condition: AppendCondition) -> None:
        """Do nothing: the statement that appends checks the condition."""

    async def insert(self, connection: AsyncConnection, batch: Batch) -> Sequence[Added]:
        """Append events if their stream is as expected and the condition holds; return them by their versions."""
        added: list[Added] = []
        expected, condition = batch.expected, batch.condition
        for start in range(0, len(batch.rows), self._rows_at_once):
            rows = batch.rows[start : start + self._rows_at_once]
            parameters = {
                "category": category_of(batch.stream),
                "stream": batch.stream,
                "offset": batch.offset,
                "expected": expected,
                **_numbered(rows),
            }
            if condition is None:
                insert = self._insert_sql(connection.dialect, kind_of(expected), len(rows))
                found: Iterable[Any] = await insert.rows(connection, parameters)
            else:
                phrase = self.queries.excluded(condition)
                statement = phrase.within(self._sql(kind_of(expected), len(rows), f" AND NOT {phrase.sql}"))
                found = await connection.execute(statement, {**parameters, **phrase.parameters})
            inserted = sorted(Added(version, position, 0, recorded_at) for version, position, recorded_at in found)
            added += inserted
            if len(inserted) < len(rows):
                return added
            expected, condition = added[-1].version, None
        await self.tag(connection, batch, added)
        return added

    def _build_insert(self, expected: str, number: int) -> TextClause:
        return text(self._sql(expected, number))

    def _sql(self, expected: str, number: int, condition: str = "") -> str:
        events = self.tables.events
        values = ", ".join(f"({n + 1}, :event_id{n}, :name{n}, :headers{n}, :body{n})" for n in range(number))
        return (
            f"WITH new (place, event_id, name, headers, body) AS (VALUES {values}),"
            f" last AS (SELECT version, archived FROM {events} WHERE stream = :stream ORDER BY version DESC LIMIT 1)"
            f" INSERT INTO {events} ({COLUMNS})"
            " SELECT new.event_id, :category, :stream, coalesce(last.version, 0) + new.place, new.name, new.headers,"
            f" new.body, {self.dialect.now} FROM new LEFT JOIN last ON true"
            f" WHERE {AS_EXPECTED[expected]}{condition} ORDER BY new.place ON CONFLICT DO NOTHING"
            " RETURNING version, position, recorded_at"
        )


class MariaDBEventLog(PlainEventLog):
    """Writes on MariaDB and MySQL.

    An INSERT … SELECT would lock the numbering of the table for as long as it waits for anybody. So the version of the
    stream is read, under a lock, before the events are inserted; a new stream needs no such look.
    """

    numbers = True

    _newest = " LOCK IN SHARE MODE"
    _rows_at_once = 100

    def __init__(self, tables: EventTables, queries: EventQueries, dialect: Dialect) -> None:
        super().__init__(tables, queries, dialect)
        events, tags, counter = tables.events, tables.tags, tables.counter
        self._delete_tags = text(
            f"DELETE t FROM {tags} AS t JOIN {events} AS e ON e.position = t.position WHERE e.stream = :stream"
        )
        self._find = listing(f"SELECT event_id, position, recorded_at FROM {events} WHERE event_id IN :ids", "ids")
        # What is given to LAST_INSERT_ID comes back with the answer, and nothing when a row was inserted.
        self._next = text(
            f"INSERT INTO {counter} (name, number) VALUES ('event', 1)"
            " ON DUPLICATE KEY UPDATE number = LAST_INSERT_ID(number + 1)"
        )
        self._lock_counter = text(
            f"INSERT INTO {counter} (name, number) VALUES ('event', 0)"
            " ON DUPLICATE KEY UPDATE number = LAST_INSERT_ID(number)"
        )
        self._queue_up = text(
            f"INSERT INTO {counter} (name, number) VALUES (:name, 0) ON DUPLICATE KEY UPDATE number = number"
        )
        self._number = [
            listing(f"UPDATE {table} SET transaction_id = :number WHERE position IN :positions", "positions")
            for table in (events, tags)
        ]
        self._build_rows = lru_cache(self._rows_at_once)(self._rows)

    async def append(self, connection: AsyncConnection, batch: Batch, pending: Pending) -> Sequence[Added]:
        """Append events, and note down where.

        Raises:
            ConcurrencyError: The stream is not as expected, an event is there already, or one that is excluded.
        """
        if isinstance(batch.expected, Expected):
            # Whoever fails to insert would keep others out, and they him: those who append anything do so in turn.
            queue = int.from_bytes(blake2b(batch.stream.encode(), digest_size=1).digest())
            await connection.execute(self._queue_up, {"name": f"stream/{queue}"})
        added = await super().append(connection, batch, pending)
        if batch.condition is not None:
            await self._decide(connection, batch.stream, batch.condition, added)
        return added

    async def guard(self, connection: AsyncConnection, batch: Batch, condition: AppendCondition) -> None:
        """Do nothing yet: it is checked when everybody was waited for whom there is to wait for."""

    async def check(self, connection: AsyncConnection, stream: str, condition: AppendCondition) -> None:
        """Do nothing: it does not explain why nothing could be inserted."""

    async def _decide(
        self, connection: AsyncConnection, stream: str, condition: AppendCondition, added: Sequence[Added]
    ) -> None:
        """Be the next to commit, and check the condition then.

        Raises:
            ConcurrencyError: An event has come, or cannot be seen if it has.
        """
        number = (await connection.execute(self._lock_counter)).lastrowid or 0
        phrase = self.queries.excluded(condition, added[0].position)
        decisive = f"SELECT {phrase.sql}, (SELECT number FROM {self.tables.counter} WHERE name = 'event')"
        broken, seen = (await connection.execute(phrase.within(decisive), phrase.parameters)).one()
        if not broken and (seen or 0) == number:
            return
        await self.take_back(connection, added)
        if broken:
            raise excluded(stream, condition)
        raise ConcurrencyError(
            f"nothing was appended to {stream!r}: events have come that this transaction cannot see",
            tried="it has read before they came, and is REPEATABLE READ",
            hint='create_async_engine(..., isolation_level="READ COMMITTED")',
        )

    async def insert(self, connection: AsyncConnection, batch: Batch) -> Sequence[Added]:
        """Append events if their stream is as expected; return them by their versions."""
        version = NO_VERSION
        if batch.expected != NO_VERSION:
            version, archived = await self.last(connection, batch.stream)
            if archived or not is_expected(batch.expected, version):
                return ()
        added: list[Added] = []
        for start in range(0, len(batch.rows), self._rows_at_once):
            rows = batch.rows[start : start + self._rows_at_once]
            parameters = {
                "category": category_of(batch.stream),
                "stream": batch.stream,
                "offset": batch.offset,
                "version": version + start,
                **_numbered(rows),
            }
            try:
                positions = await self._insert_rows(connection, rows, parameters)
            except IntegrityError:  # one of the versions or ids is there
                return added
            added += [
                Added(version + place, position, 0, recorded_at)
                for place, (position, recorded_at) in enumerate(positions, start + 1)
            ]
        await self.tag(connection, batch, added)
        return added

    async def _insert_rows(
        self, connection: AsyncConnection, rows: Sequence[NewRow], parameters: dict[str, Any]
    ) -> Sequence[tuple[int, Any]]:
        if connection.dialect.insert_returning:
            result = await connection.execute(self._build_rows(len(rows), returning=True), parameters)
            return sorted((position, recorded_at) for position, recorded_at in result)
        await connection.execute(self._build_rows(len(rows), returning=False), parameters)
        found = await connection.execute(self._find, {"ids": [row.event_id for row in rows]})
        by_id = {event_id: (position, recorded_at) for event_id, position, recorded_at in found}
        return [by_id[row.event_id] for row in rows]

    def _rows(self, number: int, *, returning: bool) -> TextClause:
        rows = ", ".join(
            f"(:event_id{n}, :category, :stream, :version + {n + 1}, :name{n}, :headers{n}, :body{n},"
            f" {self.dialect.now})"
            for n in range(number)
        )
        returned = " RETURNING position, recorded_at" if returning else ""
        return text(f"INSERT INTO {self.tables.events} ({COLUMNS}) VALUES {rows}{returned}")

    async def number(self, connection: AsyncConnection, pending: Pending) -> int | None:
        """Take the next number, and let nobody else do so before the end of the transaction."""
        if not pending.positions:
            return None
        number = (await connection.execute(self._next)).lastrowid or 1
        for start in range(0, len(pending.positions), _AT_ONCE):
            parameters = {"number": number, "positions": pending.positions[start : start + _AT_ONCE]}
            for statement in self._number if pending.tagged else self._number[:1]:
                await connection.execute(statement, parameters)
        return number


def _numbered(rows: Sequence[NewRow]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for number, row in enumerate(rows):
        parameters[f"event_id{number}"] = row.event_id
        parameters[f"name{number}"] = row.name
        parameters[f"headers{number}"] = row.headers
        parameters[f"body{number}"] = row.body
    return parameters


_LOGS = {"postgresql": EventLog, "mysql": MariaDBEventLog, "sqlite": SQLiteEventLog}


def log_for(tables: EventTables, queries: EventQueries, dialect: Dialect) -> EventLog:
    """Return the writes for a database."""
    return _LOGS[dialect.name](tables, queries, dialect)
