"""How far readers of all events can see, what keeps them from more, and what restoring a database does to it.

On PostgreSQL events have their order from the numbers of transactions: an event has that of its own transaction, or of
the last one that had ended when it was appended, if that is greater. So nothing can come any more

- before the oldest transaction that is open. That is quickly told, but any open transaction of the server is in the
  way, even if it has nothing to do with events.
- before the oldest transaction that is open *and has a lock on the table of events*, as everybody has who appends, and
  before the last transaction that has ended: whoever appends from now on comes behind that one. If it has ended before
  the locks are looked at, and these before the events, nobody can slip through.

The second needs three statements, and is looked for only where the first might show too little. It relies on appenders
that see what has ended: READ COMMITTED. A transaction that is REPEATABLE READ or SERIALIZABLE sees what had ended when
it began. Its events would come before others that readers have passed already, and would be missed; the server finds
nothing wrong with that, so that there is no serialization failure to try again after. Conditions would not be checked
against what has come since, whatever is locked for them. So it may read, but not append.
"""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.dialects import Dialect
from ecotone_fastapi.adapters.sqlalchemy.event_queries import LAST_NUMBER, EventQueries, EventTables, Sight
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.modelling.event_storage import START, Horizon, Position

_HALF = 2**31  # transaction numbers in locks go round in a circle of twice as many


class _Appender(NamedTuple):
    """A transaction that has a lock on the table of events."""

    transaction: int
    session: int | None


class EventHorizon:
    """The horizon on MariaDB, MySQL and SQLite: nothing is in the way, and no number is the server's own.

    Args:
        tables: The names of the tables.
        queries: Queries on them.
        dialect: What is particular about the database.
    """

    def __init__(self, tables: EventTables, queries: EventQueries, dialect: Dialect) -> None:
        self.tables = tables
        self.queries = queries
        self.dialect = dialect

    async def bound(self, connection: AsyncConnection, sight: Sight) -> Position | None:
        """Return up to where everything is decided, if that may be more than a query could see by itself."""
        return None

    async def look(self, connection: AsyncConnection, own: Sequence[int], offset: Any) -> Horizon:
        """Tell how far readers can see."""
        return Horizon((await self.queries.sight(connection, own)).head or START)

    async def check(self, connection: AsyncConnection) -> None:
        """Do nothing: what orders the events was restored with them."""

    async def reseal(self, connection: AsyncConnection, positions: Sequence[Position]) -> Mapping[Position, Position]:
        """Return the positions as they are."""
        return {position: position for position in positions}


class PostgreSQLEventHorizon(EventHorizon):
    """The horizon on PostgreSQL."""

    def __init__(self, tables: EventTables, queries: EventQueries, dialect: Dialect) -> None:
        super().__init__(tables, queries, dialect)
        events, tags, projections = tables.events, tables.tags, tables.projections
        self._appenders = text(
            "WITH held AS MATERIALIZED (SELECT locktype, virtualtransaction, transactionid, pid FROM pg_locks"
            " WHERE granted AND (locktype = 'transactionid' AND mode = 'ExclusiveLock' OR locktype = 'relation'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND relation = CAST(:events AS regclass)"
            " AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))"
            " SELECT CAST(number.transactionid AS text), number.pid,"
            " CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text)"
            " FROM held AS number JOIN held AS locked USING (virtualtransaction)"
            " WHERE number.locktype = 'transactionid' AND locked.locktype = 'relation'"
        )
        self._hidden = text(
            f"SELECT CAST(EXTRACT(EPOCH FROM {dialect.now} - e.recorded_at) AS double precision) FROM {events} AS e"
            " WHERE (e.transaction_id, e.position) > (CAST(CAST(:transaction AS text) AS xid8), :number)"
            " ORDER BY e.transaction_id, e.position LIMIT 1"
        )
        # Whoever is not allowed to look at the statements of others sees that there is a session.
        self._session = text(
            "SELECT concat_ws(' ', 'session', pid, 'of', usename, '(' || nullif(application_name, '') || ')'),"
            " xact_start, state, left(query, 200) FROM pg_stat_activity WHERE pid = :session"
        )
        newest = f"SELECT transaction_id FROM {events} ORDER BY transaction_id DESC LIMIT 1"
        self._newest = text(
            "SELECT CAST(transaction_id AS text), CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text)"
            f" FROM ({newest}) AS newest WHERE transaction_id >= pg_snapshot_xmax(pg_current_snapshot())"
        )
        # The order stays as it is. A new number is needed only where a position is smaller than the one before. What
        # was appended since the database was restored has small numbers already, but comes last.
        self._arrange = text(
            "CREATE TEMPORARY TABLE ecotone_resealed ON COMMIT DROP AS"
            f" WITH restored AS (SELECT max(position) AS last FROM {events}"
            " WHERE transaction_id >= pg_snapshot_xmax(pg_current_snapshot())),"
            " dated AS (SELECT position, transaction_id,"
            " transaction_id < pg_snapshot_xmax(pg_current_snapshot()) AND position > restored.last AS late"
            f" FROM {events} CROSS JOIN restored),"
            " placed AS (SELECT *, row_number() OVER ordered AS place,"
            " CASE WHEN position < lag(position) OVER ordered THEN 1 ELSE 0 END AS step"
            " FROM dated WINDOW ordered AS (ORDER BY late, transaction_id, position))"
            " SELECT position, transaction_id, late, place, 1 + sum(step) OVER (ORDER BY place) AS number FROM placed"
        )
        self._moved = text(
            "SELECT number, position FROM ecotone_resealed WHERE NOT late"
            " AND (transaction_id, position) <= (CAST(CAST(:transaction AS text) AS xid8), :number)"
            " ORDER BY place DESC LIMIT 1"
        )
        self._needed = text(
            "SELECT max(number) - CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)"
            " FROM ecotone_resealed"
        )
        self._renumber = [
            text(
                f"UPDATE {table} AS old SET transaction_id = CAST(CAST(new.number AS text) AS xid8)"
                " FROM ecotone_resealed AS new WHERE new.position = old.position"
            )
            for table in (events, tags)
        ]
        self._keep_out = text(f"LOCK TABLE {events} IN EXCLUSIVE MODE")
        self._kept = text(f"SELECT name, version, position, silent_until FROM {projections} FOR UPDATE")
        self._keep = text(
            f"UPDATE {projections} SET position = :position, silent_until = :silent_until"
            " WHERE name = :name AND version = :version"
        )

    async def bound(self, connection: AsyncConnection, sight: Sight) -> Position | None:
        """Return up to where everything is decided, if that may be more than a query could see by itself."""
        if not sight.open or sight.isolation != "read committed":  # what is isolated does not see what has ended
            return None
        return _bound(sight, await self._open(connection))

    async def _open(self, connection: AsyncConnection) -> Sequence[_Appender]:
        """Return the open transactions that have appended, the oldest one first."""
        appenders = []
        for transaction, session, next_one in await connection.execute(self._appenders, {"events": self.tables.events}):
            # The lock has the lower half of the number, which is near that of the next transaction.
            near = int(next_one)
            distance = (int(transaction) - near + _HALF) % (2 * _HALF) - _HALF
            appenders.append(_Appender(near + distance, session))
        return sorted(appenders, key=lambda appender: appender.transaction)

    async def look(self, connection: AsyncConnection, own: Sequence[int], offset: Any) -> Horizon:
        """Tell how far readers can see, and who is in the way of what is committed."""
        sight = await self.queries.sight(connection, own)
        appenders = await self._open(connection)
        bound = _bound(sight, appenders)
        head = (await self.queries.sight(connection, own, bound)).head or START
        if not appenders:
            return Horizon(head)
        parameters = {"transaction": str(bound.transaction), "number": bound.number, "offset": offset}
        lag = (await connection.execute(self._hidden, parameters)).scalar()
        if lag is None:
            return Horizon(head)
        transaction, session = appenders[0]
        found = (await connection.execute(self._session, {"session": session})).first()
        if found is None:  # it has ended meanwhile, or is nobody's: see pg_prepared_xacts
            return Horizon(head, lag, f"the transaction {transaction}")
        who, since, state, query = found
        return Horizon(head, lag, f"{who}, since {since}, {state}: {query or 'unknown'}")

    async def check(self, connection: AsyncConnection) -> None:
        """Make sure that no event has a number that the server has not reached.

        Raises:
            ConfigurationError: One has.
        """
        beyond = (await connection.execute(self._newest)).first()
        if beyond is not None:
            raise ConfigurationError(
                "events were restored on a server that counts transactions anew: readers would take what is appended "
                "from now on for old, and never see it",
                tried=f"the newest event is of transaction {beyond[0]}, the next one of the server is {beyond[1]}",
                hint="await database.events.reseal(...), before anything is appended",
            )

    async def reseal(self, connection: AsyncConnection, positions: Sequence[Position]) -> Mapping[Position, Position]:
        """Give all events low numbers, if some have numbers that the server has not reached."""
        await connection.execute(self._keep_out)
        if (await connection.execute(self._newest)).first() is None:
            return await super().reseal(connection, positions)
        await connection.execute(self._arrange)
        moved = {position: await self._move(connection, position) for position in dict.fromkeys(positions)}
        for name, version, *kept in (await connection.execute(self._kept)).all():
            position, silent_until = [str(await self._move(connection, Position.parse(one))) for one in kept]
            parameters = {"name": name, "version": version, "position": position, "silent_until": silent_until}
            await connection.execute(self._keep, parameters)
        needed = int((await connection.execute(self._needed)).scalar_one())
        if needed >= 0:
            # Each savepoint that is written in takes a number of the server's.
            await connection.exec_driver_sql(
                "DO $$ BEGIN CREATE TEMPORARY TABLE ecotone_counted (number integer) ON COMMIT DROP;"
                f" FOR number IN 0..{needed} LOOP BEGIN INSERT INTO ecotone_counted VALUES (number);"
                " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$"
            )
        for statement in self._renumber:
            await connection.execute(statement)
        return moved

    async def _move(self, connection: AsyncConnection, position: Position) -> Position:
        """Return where a reader has come to: the last event that it knew, wherever that is now."""
        parameters = {"transaction": str(position.transaction), "number": position.number}
        last = (await connection.execute(self._moved, parameters)).first()
        return Position(int(last[0]), last[1]) if last is not None else START


def horizon_for(tables: EventTables, queries: EventQueries, dialect: Dialect) -> EventHorizon:
    """Return what tells the horizon on a database."""
    return (PostgreSQLEventHorizon if dialect.name == "postgresql" else EventHorizon)(tables, queries, dialect)


def _bound(sight: Sight, appenders: Sequence[_Appender]) -> Position:
    bound = Position(sight.ended, sight.number)
    return min([bound, *(Position(appender.transaction - 1, LAST_NUMBER) for appender in appenders[:1])])
