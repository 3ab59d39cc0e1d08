"""The statements on the table of messages. Each is built once, each goes by the server's clock, each is fenced.

A message is claimed by moving `available_at` to the end of the lease and writing a token that only the claimer knows.
When the lease ends the message is claimable again, by the same condition as any other. Whoever settles a message names
the token, so that nobody can settle what somebody else has claimed in the meantime.
"""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BindParameter, Row, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.dialects import Dialect

PRIORITIES = range(9, -1, -1)
"""The classes of priority, the first one first."""


class Lease(NamedTuple):
    """The right to settle one message."""

    id: int
    token: UUID


@dataclass(frozen=True, slots=True)
class NewRow:
    """A message on its way into the table; `delay` and `time_to_live` in seconds from now."""

    message_id: str | None
    priority: int
    delay: float
    time_to_live: float | None
    attempts: int
    partition_key: str | None
    headers: str
    body: bytes
    schedule_key: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """A message that was claimed."""

    id: int
    priority: int
    due_at: Any
    deliveries: int
    attempts: int
    message_id: str | None
    headers: str
    body: bytes
    expired: bool
    first_failed_at: Any


_COLUMNS = (
    "message_id, channel, priority, available_at, due_at, deliveries, attempts, expires_at, partition_key, "
    "headers, body, schedule_key, created_at"
)


class Queue:
    """The table of messages on PostgreSQL, and whatever the other databases have in common with it.

    Args:
        table: The table's name as SQL has it.
        dialect: What is particular about the database.

    Attributes:
        rows_at_once: How many rows `insert` writes in one statement.
    """

    rows_at_once = 1000

    def __init__(self, table: str, dialect: Dialect) -> None:
        self.table = table
        self.dialect = dialect
        now, later = dialect.now, dialect.after
        ready = f"channel = :channel AND available_at <= {now} AND (expires_at IS NULL OR expires_at > {now})"
        not_lent = f"(lease_token IS NULL OR available_at <= {now})"
        alive = f"(expires_at IS NULL OR expires_at > {now})"
        first = " UNION ALL ".join(
            f"SELECT min(available_at) AS moment FROM {table} WHERE channel = :channel AND priority = {priority}"
            for priority in PRIORITIES
        )
        self._delete_one = text(f"DELETE FROM {table} WHERE id = :id AND lease_token = :token")
        self._give_back = text(
            f"UPDATE {table} SET available_at = {later(':delay')}, due_at = {later(':delay')}, lease_token = NULL,"
            " attempts = attempts + :attempted, deliveries = deliveries - :unlent,"
            f" first_failed_at = CASE WHEN :attempted = 0 THEN first_failed_at"
            f" ELSE coalesce(first_failed_at, {now}) END"
            " WHERE id = :id AND lease_token = :token"
        )
        self._restore = text(
            f"UPDATE {table} SET available_at = due_at, lease_token = NULL, deliveries = deliveries - :unlent"
            " WHERE id = :id AND lease_token = :token"
        )
        self._next_due = text(f"SELECT {dialect.seconds_until('min(moment)')} FROM ({first}) AS firsts")
        self._depth = text(f"SELECT count(*) FROM {table} WHERE channel = :channel AND ({alive} OR NOT {not_lent})")
        self._oldest = text(f"SELECT -({dialect.seconds_until('min(available_at)')}) FROM {table} WHERE {ready}")
        self._peek = text(
            "SELECT id, priority, due_at, deliveries, attempts, message_id, headers, body, 0 AS expired,"
            f" first_failed_at FROM {table}"
            f" WHERE channel = :channel AND {alive} AND {not_lent}"
            f" ORDER BY CASE WHEN available_at <= {now} THEN 0 ELSE 1 END,"
            f" CASE WHEN available_at <= {now} THEN NULL ELSE available_at END, priority DESC, available_at, id"
            " LIMIT :limit"
        )
        self._purge = text(f"DELETE FROM {table} WHERE channel = :channel")
        self.prepare()

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        table, now, later = self.table, self.dialect.now, self.dialect.after
        self._insert = text(
            f"INSERT INTO {table} ({_COLUMNS}) SELECT message_id, :channel, priority,"
            f" {later('delay')}, {later('delay')}, 0, attempts, {later('time_to_live')}, partition_key,"
            f" headers, body, schedule_key, {now}"
            " FROM unnest(CAST(:message_ids AS text[]), CAST(:priorities AS smallint[]),"
            " CAST(:delays AS double precision[]), CAST(:attempts AS integer[]),"
            " CAST(:times_to_live AS double precision[]), CAST(:partition_keys AS text[]), CAST(:headers AS text[]),"
            " CAST(:bodies AS bytea[]), CAST(:schedule_keys AS text[])) WITH ORDINALITY AS new"
            " (message_id, priority, delay, attempts, time_to_live, partition_key, headers, body, schedule_key, place)"
            " ORDER BY place"
        )
        # The lock is taken in a CTE, which runs once; as a subquery it could run again and lock more than the limit.
        # Each class of priority is looked up for itself, because the index cannot bound the time across several.
        # A claim need not survive a crash of the server: without it the message is as claimable as it was before.
        self._claim = text(
            "WITH due AS MATERIALIZED ("
            "SELECT first.id FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick"
            " CROSS JOIN generate_series(9, 0, -1) AS class (priority) CROSS JOIN LATERAL ("
            f"SELECT m.id FROM {table} AS m WHERE m.channel = :channel AND m.priority = class.priority"
            f" AND m.available_at <= {now} ORDER BY m.available_at, m.id LIMIT :limit FOR UPDATE SKIP LOCKED"
            ") AS first LIMIT :limit)"
            f" UPDATE {table} AS m SET available_at = {later(':lease')}, lease_token = :token,"
            " deliveries = m.deliveries + 1 FROM due WHERE m.id = due.id"
            " RETURNING m.id, m.priority, m.due_at, m.deliveries, m.attempts, m.message_id, m.headers, m.body,"
            f" coalesce(m.expires_at <= {now}, false), m.first_failed_at"
        )
        held = "unnest(CAST(:ids AS bigint[]), CAST(:tokens AS uuid[])) AS held (id, token)"
        self._delete = text(
            f"DELETE FROM {table} AS m USING {held} WHERE m.id = held.id AND m.lease_token = held.token RETURNING m.id"
        )
        # What an open transaction is deleting needs no longer lease, and must not keep the others waiting for theirs.
        self._renew = text(
            f"WITH mine AS MATERIALIZED (SELECT m.id FROM {table} AS m JOIN {held}"
            " ON m.id = held.id AND m.lease_token = held.token FOR UPDATE OF m SKIP LOCKED)"
            f" UPDATE {table} AS m SET available_at = {later(':lease')} FROM mine WHERE m.id = mine.id"
        )

    async def insert(self, connection: AsyncConnection, channel: str, rows: Sequence[NewRow], offset: float) -> None:
        """Store new messages, in this order."""
        await connection.execute(
            self._insert,
            {
                "channel": channel,
                "offset": offset,
                "message_ids": [row.message_id for row in rows],
                "priorities": [row.priority for row in rows],
                "delays": [row.delay for row in rows],
                "attempts": [row.attempts for row in rows],
                "times_to_live": [row.time_to_live for row in rows],
                "partition_keys": [row.partition_key for row in rows],
                "headers": [row.headers for row in rows],
                "bodies": [row.body for row in rows],
                "schedule_keys": [row.schedule_key for row in rows],
            },
        )

    async def claim(
        self, connection: AsyncConnection, channel: str, *, limit: int, lease: float, token: UUID, offset: float
    ) -> Sequence[ClaimedRow]:
        """Claim up to `limit` messages, the next ones first."""
        result = await connection.execute(
            self._claim,
            {
                "channel": channel,
                "limit": limit,
                "lease": self.dialect.span(lease),
                "token": self.dialect.token(token),
                "offset": self.dialect.span(offset),
            },
        )
        return in_order(result.all())

    async def delete_one(self, connection: AsyncConnection, lease: Lease) -> bool:
        """Delete one message; return whether the lease was still good for it."""
        result = await connection.execute(self._delete_one, {"id": lease.id, "token": self.dialect.token(lease.token)})
        return bool(result.rowcount)

    async def delete(self, connection: AsyncConnection, leases: Sequence[Lease]) -> set[int]:
        """Delete several messages; return the ids of those for which the lease was still good."""
        result = await connection.execute(self._delete, self._held(leases))
        return set(result.scalars())

    async def give_back(
        self, connection: AsyncConnection, lease: Lease, delay: float, *, attempted: bool, offset: float
    ) -> bool:
        """End a lease; the message is due again after the delay, behind those that wait already.

        What was not attempted was not delivered either.
        """
        result = await connection.execute(
            self._give_back,
            {
                "id": lease.id,
                "token": self.dialect.token(lease.token),
                "delay": self.dialect.delay(delay),
                "attempted": int(attempted),
                "unlent": int(not attempted),
                "offset": self.dialect.span(offset),
            },
        )
        return bool(result.rowcount)

    async def restore(self, connection: AsyncConnection, leases: Sequence[Lease], *, unlent: bool) -> None:
        """End leases as if they had never been; the messages keep their places.

        Args:
            connection: Where.
            leases: Which.
            unlent: Whether the delivery does not count either: nobody has run the handler, or it was told to stop.
        """
        await connection.execute(
            self._restore,
            [
                {"id": lease.id, "token": self.dialect.token(lease.token), "unlent": int(unlent)}
                for lease in sorted(leases)
            ],
        )

    async def renew(self, connection: AsyncConnection, leases: Sequence[Lease], seconds: float, offset: float) -> None:
        """Let the leases that are still good end later."""
        await connection.execute(
            self._renew,
            {**self._held(leases), "lease": self.dialect.span(seconds), "offset": self.dialect.span(offset)},
        )

    async def next_due(self, connection: AsyncConnection, channel: str, offset: float) -> float | None:
        """Return the seconds until the next message can be claimed; `None` without any."""
        result = await connection.execute(self._next_due, {"channel": channel, "offset": self.dialect.span(offset)})
        seconds = result.scalar_one()
        return None if seconds is None else float(seconds)

    async def depth(self, connection: AsyncConnection, channel: str, offset: float) -> int:
        """Count the messages that wait or are lent."""
        result = await connection.execute(self._depth, {"channel": channel, "offset": self.dialect.span(offset)})
        return int(result.scalar_one())

    async def oldest_age(self, connection: AsyncConnection, channel: str, offset: float) -> float | None:
        """Return for how many seconds the longest waiting message has been ready; `None` without one."""
        result = await connection.execute(self._oldest, {"channel": channel, "offset": self.dialect.span(offset)})
        seconds = result.scalar_one()
        return None if seconds is None else float(seconds)

    async def peek(self, connection: AsyncConnection, channel: str, limit: int, offset: float) -> Sequence[ClaimedRow]:
        """Return what is not lent, in the order in which it would be."""
        result = await connection.execute(
            self._peek, {"channel": channel, "limit": limit, "offset": self.dialect.span(offset)}
        )
        return [ClaimedRow(*row) for row in result]

    async def purge(self, connection: AsyncConnection, channel: str) -> int:
        """Delete all messages of a channel; return how many there were."""
        result = await connection.execute(self._purge, {"channel": channel})
        return result.rowcount

    def _held(self, leases: Sequence[Lease]) -> dict[str, Any]:
        return {"ids": [lease.id for lease in leases], "tokens": [lease.token for lease in leases]}


class PlainQueue(Queue):
    """What MariaDB, MySQL and SQLite have in common: no arrays, but lists that are written out."""

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        table, later = self.table, self.dialect.after
        # The pair is what counts. The list of ids makes it quick: it is what every planner finds by the primary key.
        held = "id IN :ids AND (id, lease_token) IN :pairs"
        lists: tuple[BindParameter[Any], ...] = (bindparam("ids", expanding=True), bindparam("pairs", expanding=True))
        self._delete = text(f"DELETE FROM {table} WHERE {held}").bindparams(*lists)
        self._lock = text(f"SELECT id FROM {table} WHERE {held} FOR UPDATE").bindparams(*lists)
        self._delete_returning = text(f"DELETE FROM {table} WHERE {held} RETURNING id").bindparams(*lists)
        self._renew = text(f"UPDATE {table} SET available_at = {later(':lease')} WHERE {held}").bindparams(*lists)

    async def delete(self, connection: AsyncConnection, leases: Sequence[Lease]) -> set[int]:
        """Delete several messages; return the ids of those for which the lease was still good."""
        result = await connection.execute(self._delete_returning, self._held(leases))
        return set(result.scalars())

    def values(self, channel: str, row: NewRow, offset: float) -> dict[str, Any]:
        """Return the parameters of one row."""
        return {
            "channel": channel,
            "offset": self.dialect.span(offset),
            "message_id": row.message_id,
            "priority": row.priority,
            "delay": self.dialect.delay(row.delay),
            "attempts": row.attempts,
            "time_to_live": None if row.time_to_live is None else self.dialect.span(row.time_to_live),
            "partition_key": row.partition_key,
            "headers": row.headers,
            "body": row.body,
            "schedule_key": row.schedule_key,
        }

    def placeholders(self, number: str = "") -> str:
        """Return SQL for one new row whose parameters have this number."""
        later, n = self.dialect.after, number
        return (
            f"(:message_id{n}, :channel, :priority{n}, {later(f':delay{n}')}, {later(f':delay{n}')}, 0, :attempts{n},"
            f" {later(f':time_to_live{n}')}, :partition_key{n}, :headers{n}, :body{n},"
            f" :schedule_key{n}, {self.dialect.now})"
        )

    def _held(self, leases: Sequence[Lease]) -> dict[str, Any]:
        pairs = [(lease.id, self.dialect.token(lease.token)) for lease in leases]
        return {"ids": [lease.id for lease in leases], "pairs": pairs}


class SQLiteQueue(PlainQueue):
    """The table of messages on SQLite."""

    rows_at_once = 1

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        super().prepare()
        table, now, later = self.table, self.dialect.now, self.dialect.after
        self._insert = text(f"INSERT INTO {table} ({_COLUMNS}) VALUES {self.placeholders()}")
        due = " UNION ALL ".join(
            f"SELECT id FROM (SELECT id FROM {table} WHERE channel = :channel AND priority = {priority}"
            f" AND available_at <= {now} ORDER BY available_at, id LIMIT :limit)"
            for priority in PRIORITIES
        )
        self._claim = text(
            f"UPDATE {table} SET available_at = {later(':lease')}, lease_token = :token, deliveries = deliveries + 1"
            f" WHERE id IN (SELECT id FROM ({due}) LIMIT :limit)"
            " RETURNING id, priority, due_at, deliveries, attempts, message_id, headers, body,"
            f" coalesce(expires_at <= {now}, 0), first_failed_at"
        )

    async def insert(self, connection: AsyncConnection, channel: str, rows: Sequence[NewRow], offset: float) -> None:
        """Store new messages, in this order."""
        await connection.execute(self._insert, [self.values(channel, row, offset) for row in rows])


class MariaDBQueue(PlainQueue):
    """The table of messages on MariaDB and MySQL."""

    rows_at_once = 100

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        super().prepare()
        table, now, later = self.table, self.dialect.now, self.dialect.after
        priorities = ", ".join(str(priority) for priority in PRIORITIES)
        # There is no UPDATE … RETURNING. The index is in this very order, so that no more rows are locked than wanted.
        self._claim = text(
            "SELECT id, priority, due_at, deliveries + 1, attempts, message_id, headers, body,"
            f" coalesce(expires_at <= {now}, 0), first_failed_at FROM {table} FORCE INDEX (ecotone_message_claim)"
            f" WHERE channel = :channel AND priority IN ({priorities}) AND available_at <= {now}"
            " ORDER BY priority DESC, available_at, id LIMIT :limit FOR UPDATE SKIP LOCKED"
        )
        self._take = text(
            f"UPDATE {table} SET available_at = {later(':lease')}, lease_token = :token,"
            " deliveries = deliveries + 1 WHERE id IN :ids"
        ).bindparams(bindparam("ids", expanding=True))
        self._insert_several = lru_cache(self.rows_at_once)(self._insert_rows)

    async def insert(self, connection: AsyncConnection, channel: str, rows: Sequence[NewRow], offset: float) -> None:
        """Store new messages, in this order."""
        for start in range(0, len(rows), self.rows_at_once):
            chunk = rows[start : start + self.rows_at_once]
            parameters = {"channel": channel, "offset": self.dialect.span(offset)}
            for number, row in enumerate(chunk):
                values = self.values(channel, row, offset)
                parameters.update({f"{name}{number}": value for name, value in values.items()})
            await connection.execute(self._insert_several(len(chunk)), parameters)

    async def claim(
        self, connection: AsyncConnection, channel: str, *, limit: int, lease: float, token: UUID, offset: float
    ) -> Sequence[ClaimedRow]:
        """Claim up to `limit` messages, the next ones first."""
        shift = self.dialect.span(offset)
        result = await connection.execute(self._claim, {"channel": channel, "limit": limit, "offset": shift})
        rows = in_order(result.all())
        if rows:
            await connection.execute(
                self._take,
                {
                    "ids": [row.id for row in rows],
                    "lease": self.dialect.span(lease),
                    "token": self.dialect.token(token),
                    "offset": shift,
                },
            )
        return rows

    async def delete(self, connection: AsyncConnection, leases: Sequence[Lease]) -> set[int]:
        """Delete several messages; return the ids of those for which the lease was still good."""
        if connection.dialect.delete_returning:
            return await super().delete(connection, leases)
        held = self._held(leases)
        good = set((await connection.execute(self._lock, held)).scalars())
        await connection.execute(self._delete, held)
        return good

    def _insert_rows(self, number: int) -> TextClause:
        rows = ", ".join(self.placeholders(str(place)) for place in range(number))
        return text(f"INSERT INTO {self.table} ({_COLUMNS}) VALUES {rows}")


_QUEUES = {"postgresql": Queue, "mysql": MariaDBQueue, "sqlite": SQLiteQueue}


def queue_for(table: str, dialect: Dialect) -> Queue:
    """Return the statements for a database."""
    return _QUEUES[dialect.name](table, dialect)


def in_order(rows: Iterable[Row[Any]]) -> Sequence[ClaimedRow]:
    """Return claimed rows, the next one first: what a statement returns is in no order."""
    claimed = [ClaimedRow(*tuple(row)) for row in rows]
    claimed.sort(key=lambda row: (-row.priority, row.due_at, row.id))
    return claimed
