"""Snapshots in a table: the last one of each stream."""

# ruff: noqa: S608 - what is formatted into SQL are names of ours, never values

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.modelling.snapshots import Snapshot

_COLUMNS = ("stream", "version", "event_id", "form", "content_type", "body", "taken_at")


class SqlSnapshots:
    """Keeps snapshots in a table.

    Args:
        table: The table's name as SQL has it.
        transactions: Where statements run.
        prepare: Sees to it that the tables are there.
    """

    def __init__(self, table: str, transactions: Transactions, prepare: Callable[[], Awaitable[None]]) -> None:
        self._transactions = transactions
        self._prepare = prepare
        if transactions.dialect.name == "mysql":
            renewed = ", ".join(f"{column} = VALUES({column})" for column in _COLUMNS[1:])
            upsert = f"ON DUPLICATE KEY UPDATE {renewed}"
        else:
            renewed = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[1:])
            upsert = f"ON CONFLICT (stream) DO UPDATE SET {renewed}"
        names = ", ".join(_COLUMNS)
        values = ", ".join(f":{column}" for column in _COLUMNS)
        self._save = text(f"INSERT INTO {table} ({names}) VALUES ({values}) {upsert}")
        self._load = text(f"SELECT {names} FROM {table} WHERE stream = :stream")
        self._delete = text(f"DELETE FROM {table} WHERE stream = :stream")

    async def load(self, stream: str) -> Snapshot | None:
        """Return the row of a stream, as the unit of work of the calling task's scope sees it."""

        async def select(connection: AsyncConnection) -> Row[Any] | None:
            return (await connection.execute(self._load, {"stream": stream})).one_or_none()

        await self._prepare()
        # Whoever reads in a unit of work is going to write there: it reads where it will write.
        run = self._transactions.read if self._transactions.unit() is None else self._transactions.join
        row = await run(select, "reading a snapshot")
        if row is None:
            return None
        values = {**row._asdict(), "body": bytes(row.body)}
        values["taken_at"] = self._transactions.dialect.read_moment(row.taken_at)
        return Snapshot(**values)

    async def save(self, snapshot: Snapshot) -> None:
        """Insert the row of a stream or replace it, with the unit of work of the calling task's scope, if any."""
        values = asdict(snapshot)
        values["taken_at"] = self._transactions.dialect.moment(snapshot.taken_at)
        await self._prepare()
        await self._transactions.join(lambda connection: connection.execute(self._save, values), "taking a snapshot")

    async def delete(self, stream: str) -> None:
        """Delete the row of a stream, with the unit of work of the calling task's scope, if any."""
        values = {"stream": stream}
        await self._prepare()
        await self._transactions.join(
            lambda connection: connection.execute(self._delete, values), "forgetting a snapshot"
        )
