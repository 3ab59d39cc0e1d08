"""The statements that write to the table of events.

Whoever appends locks the last event of the stream, so that nobody archives or deletes the stream meanwhile; that two do
not append the same version is up to the constraint. What cannot be appended never breaks the transaction.

On PostgreSQL a condition is checked under locks of the tags that it names, or of the names of events where it names no
tags, which whoever appends such events shares; one that names neither has to lock the table. On MariaDB a condition is
checked by whoever is the next to commit.
"""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import Dialect as SqlDialect
from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.dialects import Dialect
from ecotone_fastapi.adapters.sqlalchemy.driver_sql import DriverSql
from ecotone_fastapi.adapters.sqlalchemy.event_queries import EventQueries, EventTables
from ecotone_fastapi.adapters.sqlalchemy.tables import indexed
from ecotone_fastapi.core.errors import ConcurrencyError, ConfigurationError
from ecotone_fastapi.modelling.event_storage import (
    NO_VERSION,
    AppendCondition,
    Expected,
    already_appended,
    excluded,
    is_expected,
    not_expected,
)
from ecotone_fastapi.modelling.stream_names import category_of


class NewRow(NamedTuple):
    """An event on its way into the table."""

    event_id: str
    name: str
    body: bytes
    headers: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are to be appended to one stream, all or none.

    Args:
        stream: The stream.
        rows: The events.
        expected: Which version it has to have.
        condition: What must not have come.
        offset: How far the clock has travelled, as a parameter.
        tagged: Whether any of the events has tags.
    """

    stream: str
    rows: Sequence[NewRow]
    expected: int | Expected
    condition: AppendCondition | None
    offset: Any
    tagged: bool = False


class Added(NamedTuple):
    """Where an event has come to stand."""

    version: int
    position: int
    transaction: int
    recorded_at: Any


@dataclass(slots=True)
class Pending:
    """What a unit of work has appended so far.

    Args:
        positions: Where.
        tagged: Whether anything of it has tags.
    """

    positions: list[int] = field(default_factory=list)
    tagged: bool = False


_TRIES = 100

COLUMNS = "event_id, category, stream, version, name, headers, body, recorded_at"
"""What is said of every new event; what else there is has a default."""

AS_EXPECTED: Mapping[str, str] = {
    "exact": "coalesce(last.version, 0) = :expected AND NOT coalesce(last.archived, false)",
    Expected.ANY: "NOT coalesce(last.archived, false)",
    Expected.EXISTS: "last.version IS NOT NULL AND NOT last.archived",
}
"""SQL that tells whether the last event of a stream is as expected."""


class EventLog:
    """Writes on PostgreSQL, and what the other databases have in common with it.

    Args:
        tables: The names of the tables.
        queries: Queries on them.
        dialect: What is particular about the database.
    """

    numbers: bool = False
    """Whether `number` has something to do before the commit."""

    _for_update = " FOR UPDATE"
    _newest = ""  # for reads that have to see what is committed now, whatever the transaction has read before

    def __init__(self, tables: EventTables, queries: EventQueries, dialect: Dialect) -> None:
        self.tables = tables
        self.queries = queries
        self.dialect = dialect
        events, tags = tables.events, tables.tags
        last = f"SELECT version, archived FROM {events} WHERE stream = :stream ORDER BY version DESC LIMIT 1"
        self._last = text(last + self._newest)
        self._lock_last = text(last + self._for_update)
        self._known = listing(f"SELECT event_id FROM {events} WHERE event_id IN :ids{self._newest}", "ids")
        self._take_back = listing(f"DELETE FROM {events} WHERE position IN :positions", "positions")
        self._take_back_tags = listing(f"DELETE FROM {tags} WHERE position IN :positions", "positions")
        self._archive = text(f"UPDATE {events} SET archived = true WHERE stream = :stream AND NOT archived")
        self._delete = text(f"DELETE FROM {events} WHERE stream = :stream")
        self._delete_tags = text(
            f"DELETE FROM {tags} WHERE position IN (SELECT position FROM {events} WHERE stream = :stream)"
        )
        self._homes = listing(
            f"SELECT e.version, home.position, home.name FROM {events} AS e"
            f" JOIN {events} AS home ON home.position = coalesce(e.origin, e.position)"
            " WHERE e.stream = :home AND e.version IN :versions AND home.stream <> :stream",
            "versions",
        )
        self._set_origin = text(f"UPDATE {events} SET origin = :origin WHERE event_id = :event_id")
        self._isolation = text("SELECT current_setting('transaction_isolation')")
        self._lock_table = text(f"LOCK TABLE {events} IN SHARE ROW EXCLUSIVE MODE")
        self._lock_keys = text(
            "SELECT count(CASE WHEN alone THEN pg_advisory_xact_lock(key) ELSE pg_advisory_xact_lock_shared(key) END)"
            " FROM unnest(CAST(:keys AS bigint[]), CAST(:alone AS boolean[])) AS held (key, alone)"
        )
        self._insert_sql = lru_cache(64)(self._compiled_insert)

    # ------------------------------------------------------------------------------------------------------- appending

    async def append(self, connection: AsyncConnection, batch: Batch, pending: Pending) -> Sequence[Added]:
        """Append events, and note down where.

        Raises:
            ConcurrencyError: The stream is not as expected, an event is there already, or one that is excluded.
        """
        ids = {row.event_id for row in batch.rows} if len(batch.rows) > 1 else [batch.rows[0].event_id]
        if len(ids) < len(batch.rows):
            raise already_appended(ids)
        if batch.condition is not None:
            await self.guard(connection, batch, batch.condition)
        for _ in range(_TRIES):
            added = await self.insert(connection, batch)
            if len(added) == len(batch.rows):
                pending.positions += [one.position for one in added]
                pending.tagged = pending.tagged or batch.tagged
                return added
            if added:  # somebody has appended the first of these versions at this very moment, but not as many
                await self.take_back(connection, added)
            await self._explain(connection, batch, ids)
        raise ConcurrencyError(
            f"nothing was appended to {batch.stream!r}: somebody else has been faster {_TRIES} times",
            hint="let fewer append to one stream at the same time",
        )

    async def take_back(self, connection: AsyncConnection, added: Sequence[Added]) -> None:
        """Delete what was appended just now."""
        positions = {"positions": [one.position for one in added]}
        await connection.execute(self._take_back_tags, positions)
        await connection.execute(self._take_back, positions)

    async def _explain(self, connection: AsyncConnection, batch: Batch, ids: Iterable[str]) -> None:
        """Raise why nothing could be appended; return when it may be possible by now."""
        await self.check_isolation(connection)
        version, archived = await self.last(connection, batch.stream)
        if archived or not is_expected(batch.expected, version):
            raise not_expected(batch.stream, batch.expected, version, archived=archived)
        if known := (await connection.execute(self._known, {"ids": list(ids)})).scalars().all():
            raise already_appended(known)
        if batch.condition is not None:
            await self.check(connection, batch.stream, batch.condition)

    async def check_isolation(self, connection: AsyncConnection) -> None:
        """Make sure that a transaction sees what is committed by now: the order of the events relies on it.

        Raises:
            ConfigurationError: It does not.
        """
        isolation = (await connection.execute(self._isolation)).scalar_one()
        if isolation != "read committed":
            raise ConfigurationError(
                f"events cannot be appended in a transaction that is {isolation.upper()}",
                tried="it does not see what has been committed since it began, which has to come before",
                hint='create_async_engine(..., isolation_level="READ COMMITTED"), or give SqlAlchemy a sessionmaker of '
                'engine.execution_options(isolation_level="READ COMMITTED"): versions and conditions are checked all '
                "the same",
            )

    async def last(self, connection: AsyncConnection, stream: str, *, lock: bool = False) -> tuple[int, bool]:
        """Return the version of a stream, and whether it is archived; lock its last event if told so."""
        found = (await connection.execute(self._lock_last if lock else self._last, {"stream": stream})).first()
        return (found[0], bool(found[1])) if found is not None else (NO_VERSION, False)

    async def check(self, connection: AsyncConnection, stream: str, condition: AppendCondition) -> None:
        """Make sure that no event has come that a condition excludes.

        Raises:
            ConcurrencyError: One has.
        """
        phrase = self.queries.excluded(condition)
        if (await connection.execute(phrase.within(f"SELECT {phrase.sql}"), phrase.parameters)).scalar():
            raise excluded(stream, condition)

    async def guard(self, connection: AsyncConnection, batch: Batch, condition: AppendCondition) -> None:
        """Keep out whoever could append what a condition excludes, until the end of the transaction; then check it.

        Raises:
            ConcurrencyError: An event has come already.
        """
        # What the insert locks, too, is locked here with it, in one order: else two decisions, each of which appends
        # what the other one excludes, would wait for each other.
        alone = dict.fromkeys(_keys_of(batch), False)
        if selective := all(which.tags or which.names for which in condition.filters):
            # One tag of each filter is enough: what fits it has that tag, too. Of names, it has any one.
            for which in condition.filters:
                keys = [_key(indexed(min(which.tags)))] if which.tags else map(_name_key, which.names)
                alone.update(dict.fromkeys(keys, True))
        held = sorted(alone)
        await connection.execute(self._lock_keys, {"keys": held, "alone": [alone[key] for key in held]})
        if not selective:
            await connection.execute(self._lock_table)
        await self.check(connection, batch.stream, condition)

    async def insert(self, connection: AsyncConnection, batch: Batch) -> Sequence[Added]:
        """Append events if their stream is as expected; return those that were appended, by their versions."""
        rows = batch.rows
        tagged = [(place, tag) for place, row in enumerate(rows, 1) for tag in row.tags] if batch.tagged else []
        parameters: dict[str, Any] = {
            "category": category_of(batch.stream),
            "stream": batch.stream,
            "offset": batch.offset,
            "ids": [row.event_id for row in rows],
            "names": [row.name for row in rows],
            "headers": [row.headers for row in rows],
            "bodies": [row.body for row in rows],
            "keys": _keys_of(batch),
            "expected": batch.expected,
        }
        if tagged:
            parameters["places"] = [place for place, _ in tagged]
            parameters["tags"] = [tag for _, tag in tagged]
        insert = self._insert_sql(connection.dialect, kind_of(batch.expected), batch.tagged)
        added = [
            Added(version, position, int(transaction), recorded_at)
            for version, position, transaction, recorded_at in await insert.rows(connection, parameters)
        ]
        if len(added) > 1:
            added.sort()
        return added

    def _compiled_insert(self, dialect: SqlDialect, expected: str, more: int) -> DriverSql:
        return DriverSql(self._build_insert(expected, more), dialect)

    def _build_insert(self, expected: str, tagged: int) -> TextClause:
        events, tags = self.tables.events, self.tables.tags
        # What is deleted is waited for, and gone after that; what is archived has changed then.
        last = (
            "locked AS MATERIALIZED (SELECT count(pg_advisory_xact_lock_shared(key)) AS locks"
            " FROM unnest(CAST(:keys AS bigint[])) AS key),"
            f" last AS MATERIALIZED (SELECT version, archived FROM {events} WHERE stream = CAST(:stream AS varchar)"
            " ORDER BY version DESC LIMIT 1 FOR KEY SHARE)"
        )
        insert = (
            f"INSERT INTO {events} ({COLUMNS})"
            " SELECT new.event_id, CAST(:category AS varchar), CAST(:stream AS varchar),"
            f" coalesce(last.version, 0) + new.place, new.name, new.headers, new.body, {self.dialect.now}"
            " FROM unnest(CAST(:ids AS text[]), CAST(:names AS text[]), CAST(:headers AS text[]),"
            " CAST(:bodies AS bytea[])) WITH ORDINALITY AS new (event_id, name, headers, body, place)"
            " CROSS JOIN locked LEFT JOIN last ON true"
            f" WHERE {AS_EXPECTED[expected]} AND current_setting('transaction_isolation') = 'read committed'"
            " ORDER BY new.place ON CONFLICT DO NOTHING"
            " RETURNING version, position, CAST(transaction_id AS text) AS transaction, recorded_at"
        )
        if not tagged:
            return text(f"WITH {last} {insert}")
        return text(
            f"WITH {last}, added AS ({insert}),"
            f" tagged AS (INSERT INTO {tags} (position, tag, transaction_id)"
            " SELECT added.position, new.tag, CAST(added.transaction AS xid8)"
            " FROM (SELECT version - min(version) OVER () + 1 AS place, position, transaction FROM added) AS added"
            " JOIN unnest(CAST(:places AS integer[]), CAST(:tags AS text[])) AS new (place, tag) USING (place))"
            " SELECT version, position, transaction, recorded_at FROM added"
        )

    async def number(self, connection: AsyncConnection, pending: Pending) -> int | None:
        """Give what was appended its place among all events, as the last thing before the commit, if it has none."""
        return None

    # ----------------------------------------------------------------------------------------------------- what is rare

    async def archive(self, connection: AsyncConnection, stream: str) -> bool:
        """Hide a stream; return whether there was one."""
        await self._keep_out(connection, stream)
        return (await connection.execute(self._archive, {"stream": stream})).rowcount > 0

    async def delete(self, connection: AsyncConnection, stream: str) -> int:
        """Delete a stream; return how many events it had."""
        await self._keep_out(connection, stream)
        await connection.execute(self._delete_tags, {"stream": stream})
        return (await connection.execute(self._delete, {"stream": stream})).rowcount

    async def _keep_out(self, connection: AsyncConnection, stream: str) -> None:
        """Wait for whoever is appending to a stream, and let nobody begin to."""
        locked, last = -1, await self.last(connection, stream, lock=True)
        while last[0] != locked:  # another event was appended before the lock was there
            locked, last = last[0], await self.last(connection, stream, lock=True)

    async def link(
        self, connection: AsyncConnection, stream: str, events: Sequence[tuple[str, int]], offset: Any, pending: Pending
    ) -> int:
        """Add links to events, given by their streams and versions; return how many were not there.

        Raises:
            ConcurrencyError: The stream is archived, or somebody else has just added one of them.
        """
        version, archived = await self.last(connection, stream)
        if archived:
            raise not_expected(stream, Expected.ANY, version, archived=True)
        versions: dict[str, list[int]] = {}
        for home, place in events:
            versions.setdefault(home, []).append(place)
        found: dict[tuple[str, int], tuple[int, str]] = {}
        for home, wanted in versions.items():
            parameters = {"home": home, "versions": wanted, "stream": stream}
            for place, position, name in await connection.execute(self._homes, parameters):
                found[home, place] = (position, name)
        # An id that follows from both is what keeps an event from being linked twice.
        links = {_link_id(stream, found[event][0]): found[event] for event in events if event in found}
        if links:
            for event_id in (await connection.execute(self._known, {"ids": list(links)})).scalars().all():
                del links[event_id]
        if not links:
            return 0
        rows = [NewRow(event_id, name, b"", "{}") for event_id, (_, name) in links.items()]
        await self.append(connection, Batch(stream, rows, Expected.ANY, None, offset), pending)
        origins = [{"event_id": event_id, "origin": position} for event_id, (position, _) in links.items()]
        await connection.execute(self._set_origin, origins)
        return len(links)


def kind_of(expected: int | Expected) -> str:
    """Return under which name `AS_EXPECTED` has what is expected."""
    return expected if isinstance(expected, Expected) else "exact"


def listing(sql: str, name: str) -> TextClause:
    """Return a statement with a list."""
    return text(sql).bindparams(bindparam(name, expanding=True))


def _link_id(stream: str, position: int) -> str:
    return f"link:{blake2b(stream.encode(), digest_size=16).hexdigest()}:{position}"


def _key(tag: str) -> int:
    """Return the number of the lock that stands for a tag."""
    return int.from_bytes(blake2b(tag.encode(), digest_size=8, person=b"ecotone").digest(), signed=True)


def _keys_of(batch: Batch) -> list[int]:
    """Return the numbers of the locks of what is appended, in their order."""
    return sorted({_name_key(row.name) for row in batch.rows} | {_key(tag) for row in batch.rows for tag in row.tags})


@lru_cache(1024)
def _name_key(name: str) -> int:
    """Return the number of the lock that stands for a name of events."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"ecotone name").digest(), signed=True)
