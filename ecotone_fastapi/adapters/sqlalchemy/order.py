"""Claims that keep the order of each partition key, over all processes: only the first message of a key is lent.

A message with a partition key can be claimed when no earlier one of its channel and key is there any more, whether it
waits, is lent, or is delayed for a retry, and none of its key is lent. The ids tell which one is earlier. They are
given when a message is sent, so one can turn up behind a later one whose transaction was faster; it then waits until
that one is done.

Claims on one channel exclude each other: of two that go on at the same time neither would see what the other lends.
"""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.dialects import Dialect
from ecotone_fastapi.adapters.sqlalchemy.queue import PRIORITIES, ClaimedRow, in_order

_WINDOW = 100  # how many messages are looked at first, beside ten for each one wanted
_TAKEN = (
    "m.id, m.priority, m.due_at, {deliveries}, m.attempts, m.message_id, m.headers, m.body, {expired},"
    " m.first_failed_at"
)


class InOrder:
    """Claims on PostgreSQL, and whatever the other databases have in common with it.

    Looking at the next messages is enough as long as there is one among them that can be claimed. When all of them
    wait for their turn, for they may be many of one key, the first message of each key is looked at instead.

    Args:
        messages: The name of the table of messages as SQL has it.
        channels: The name of the table of channels.
        dialect: What is particular about the database.
    """

    def __init__(self, messages: str, channels: str, dialect: Dialect) -> None:
        self.messages = messages
        self.channels = channels
        self.dialect = dialect
        now = dialect.now
        lent = (
            f"SELECT partition_key FROM {messages} WHERE channel = :channel AND priority IN"
            f" ({', '.join(map(str, PRIORITIES))}) AND available_at > {now} AND lease_token IS NOT NULL"
            " AND partition_key IS NOT NULL"
        )
        order = "ORDER BY priority DESC, available_at, id LIMIT :limit"
        self._near = text(
            f"WITH lent AS ({lent}), near AS ({self.near()})"
            " SELECT id FROM near WHERE partition_key IS NULL"
            f" OR (id = ({self.first_of('near')}) AND partition_key NOT IN (SELECT partition_key FROM lent))"
            f" {order}"
        )
        self._heads = text(
            f"WITH RECURSIVE lent AS ({lent}), {self.heads()}, keyless AS ("
            f"SELECT id, priority, available_at FROM {messages} WHERE channel = :channel AND partition_key IS NULL"
            f" AND available_at <= {now} ORDER BY id LIMIT :limit)"
            " SELECT id FROM (SELECT m.id, m.priority, m.available_at"
            f" FROM heads JOIN {messages} AS m ON m.id = heads.id"
            f" WHERE m.available_at <= {now} AND m.partition_key NOT IN (SELECT partition_key FROM lent)"
            f" UNION ALL SELECT id, priority, available_at FROM keyless) AS free {order}"
        )
        self.prepare()

    def near(self) -> str:
        """Return SQL for the messages that would be claimed next, if their keys did not matter."""
        return " UNION ALL ".join(
            "SELECT * FROM (SELECT id, priority, available_at, partition_key"
            f" FROM {self.messages} WHERE channel = :channel AND priority = {priority}"
            f" AND available_at <= {self.dialect.now} ORDER BY available_at, id LIMIT :window) AS class_{priority}"
            for priority in PRIORITIES
        )

    def first_of(self, row: str) -> str:
        """Return SQL for the first message of the partition key in another row; there is one.

        Written so that no other index fits: one that has only the ids may begin with many that are dead.
        """
        columns = "o.channel, o.partition_key, o.id"
        return (
            f"SELECT o.id FROM {self.messages} AS o WHERE ({columns}) >= (:channel, {row}.partition_key, 0)"
            f" ORDER BY {columns} LIMIT 1"
        )

    def heads(self) -> str:
        """Return SQL for the first message of each key, with one look into the index for each."""
        keys = f"SELECT min(o.partition_key) FROM {self.messages} AS o WHERE o.channel = :channel"
        return (
            f"turn (partition_key) AS (SELECT ({keys}) UNION ALL"
            f" SELECT ({keys} AND o.partition_key > turn.partition_key) FROM turn"
            " WHERE turn.partition_key IS NOT NULL),"
            f" heads AS (SELECT ({self.first_of('turn')}) AS id FROM turn WHERE turn.partition_key IS NOT NULL)"
        )

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        self._isolation = text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # the engine may be somebody's own
        # A claim need not survive a crash of the server: without it the message is as claimable as it was before.
        self._lock = text(
            "SELECT set_config('synchronous_commit', 'off', true),"
            " pg_advisory_xact_lock(hashtext('ecotone ' || CAST(:channel AS text)))"
        )
        self._take = self._taking()

    async def exclude_others(self, connection: AsyncConnection, channel: str) -> None:
        """Let nobody else claim on this channel before the transaction ends."""
        await connection.execute(self._isolation)
        await connection.execute(self._lock, {"channel": channel})

    async def claim(
        self, connection: AsyncConnection, channel: str, *, limit: int, lease: float, token: UUID, offset: float
    ) -> Sequence[ClaimedRow]:
        """Claim up to `limit` messages, one of each key, the next ones first. Needs a transaction."""
        await self.exclude_others(connection, channel)
        shift = self.dialect.span(offset)
        ids = await self._free(connection, channel, limit, shift)
        if not ids:
            return ()
        taken = {"lease": self.dialect.span(lease), "token": self.dialect.token(token), "offset": shift}
        return await self.take(connection, ids, taken)

    async def take(
        self, connection: AsyncConnection, ids: Sequence[int], taken: dict[str, Any]
    ) -> Sequence[ClaimedRow]:
        """Lend these messages, but for those that somebody has moved or deleted in the meantime."""
        return in_order((await connection.execute(self._take, {"ids": ids, **taken})).all())

    async def has_free(self, connection: AsyncConnection, channel: str, offset: float) -> bool:
        """Whether there is a message that could be claimed now."""
        return bool(await self._free(connection, channel, 1, self.dialect.span(offset)))

    async def _free(self, connection: AsyncConnection, channel: str, limit: int, shift: Any) -> Sequence[int]:
        values = {"channel": channel, "limit": limit, "offset": shift}
        window = {"window": _WINDOW + 10 * limit}
        near = (await connection.execute(self._near, {**values, **window})).scalars().all()
        return near or (await connection.execute(self._heads, values)).scalars().all()

    def _taking(self) -> TextClause:
        now, later = self.dialect.now, self.dialect.after
        columns = _TAKEN.format(deliveries="m.deliveries", expired=f"coalesce(m.expires_at <= {now}, false)")
        return text(
            f"UPDATE {self.messages} AS m SET available_at = {later(':lease')}, lease_token = :token,"
            f" deliveries = deliveries + 1 WHERE m.id IN :ids AND m.available_at <= {now}"
            f" RETURNING {columns if self.dialect.name == 'postgresql' else columns.replace('m.', '')}"
        ).bindparams(bindparam("ids", expanding=True))


class InOrderOnSQLite(InOrder):
    """Claims on SQLite, where writers exclude each other by themselves."""

    def first_of(self, row: str) -> str:
        """Return SQL for the first message of the partition key in another row."""
        return (
            f"SELECT min(o.id) FROM {self.messages} AS o"
            f" WHERE o.channel = :channel AND o.partition_key = {row}.partition_key"
        )

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        # Whoever reads first and writes later fails when somebody else has written in between.
        self._lock = text(f"UPDATE {self.channels} SET name = name WHERE name = :channel")
        self._take = self._taking()

    async def exclude_others(self, connection: AsyncConnection, channel: str) -> None:
        """Be the only writer before the transaction ends."""
        await connection.execute(self._lock, {"channel": channel})


class InOrderOnMariaDB(InOrder):
    """Claims on MariaDB and MySQL."""

    def first_of(self, row: str) -> str:
        """Return SQL for the first message of the partition key in another row."""
        return (
            f"SELECT min(o.id) FROM {self.messages} AS o FORCE INDEX (ecotone_message_partition)"
            f" WHERE o.channel = :channel AND o.partition_key = {row}.partition_key"
        )

    def heads(self) -> str:
        """Return SQL for the first message of each key: grouping by a prefix of an index skips from key to key."""
        return (
            f"heads AS (SELECT min(id) AS id FROM {self.messages} FORCE INDEX (ecotone_message_partition)"
            " WHERE channel = :channel AND partition_key IS NOT NULL GROUP BY partition_key)"
        )

    def prepare(self) -> None:
        """Build the statements that the databases write differently."""
        now, later = self.dialect.now, self.dialect.after
        columns = _TAKEN.format(deliveries="m.deliveries + 1", expired=f"coalesce(m.expires_at <= {now}, 0)")
        self._lock = text(f"SELECT name FROM {self.channels} WHERE name = :channel FOR UPDATE")
        self._name = text(f"INSERT IGNORE INTO {self.channels} (name) VALUES (:channel)")
        # There is no UPDATE … RETURNING.
        self._look = text(
            f"SELECT {columns} FROM {self.messages} AS m WHERE m.id IN :ids AND m.available_at <= {now}"
            " FOR UPDATE SKIP LOCKED"
        ).bindparams(bindparam("ids", expanding=True))
        self._take = text(
            f"UPDATE {self.messages} SET available_at = {later(':lease')}, lease_token = :token,"
            " deliveries = deliveries + 1 WHERE id IN :ids"
        ).bindparams(bindparam("ids", expanding=True))

    async def exclude_others(self, connection: AsyncConnection, channel: str) -> None:
        """Lock the row of the channel, which is made for that when it is not there."""
        name = {"channel": channel}
        while (await connection.execute(self._lock, name)).first() is None:
            await connection.execute(self._name, name)

    async def take(
        self, connection: AsyncConnection, ids: Sequence[int], taken: dict[str, Any]
    ) -> Sequence[ClaimedRow]:
        """Lend these messages, but for those that somebody has moved or deleted in the meantime."""
        found = await connection.execute(self._look, {"ids": ids, "offset": taken["offset"]})
        rows = in_order(found.all())
        if rows:
            await connection.execute(self._take, {"ids": [row.id for row in rows], **taken})
        return rows


_IN_ORDER = {"postgresql": InOrder, "mysql": InOrderOnMariaDB, "sqlite": InOrderOnSQLite}


def in_order_for(messages: str, channels: str, dialect: Dialect) -> InOrder:
    """Return the claims that keep the order, for a database."""
    return _IN_ORDER[dialect.name](messages, channels, dialect)
