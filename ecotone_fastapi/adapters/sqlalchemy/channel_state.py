"""Which consumers pause, in a table that all processes look into."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.tables import storable
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.core.consumer import Hold


class SqlPauses:
    """Keeps in a table which consumers pause.

    Args:
        table: The table's name as SQL has it.
        transactions: Where statements run.
        letting_go: Leaves no connection open where no application runs.
    """

    def __init__(
        self, table: str, transactions: Transactions, letting_go: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._transactions = transactions
        self._letting_go = letting_go
        if transactions.dialect.name == "mysql":
            replaced = "ON DUPLICATE KEY UPDATE paused_at = VALUES(paused_at), paused_by = VALUES(paused_by)"
        else:
            replaced = "ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, paused_by = excluded.paused_by"
        self._pause = text(
            f"INSERT INTO {table} (name, paused_at, paused_by) VALUES (:name, :since, :reason) {replaced}"
        )
        # The row stays: consumers that keep an order lock it.
        self._resume = text(f"UPDATE {table} SET paused_at = NULL, paused_by = NULL WHERE name = :name")
        self._paused = text(f"SELECT name, paused_at, paused_by FROM {table} WHERE paused_at IS NOT NULL")

    async def pause(self, name: str, hold: Hold) -> None:
        """Note that the consumers with this name pause, with the unit of work of the calling task's scope, if any.

        Raises:
            ChannelError: The database cannot be reached.
        """
        since = self._transactions.dialect.moment(hold.since)
        reason = storable(hold.reason)
        await self._write(self._pause, {"name": name, "since": since, "reason": reason}, f"pausing {name!r}")

    async def resume(self, name: str) -> None:
        """Forget it again, with the unit of work of the calling task's scope, if any.

        Raises:
            ChannelError: The database cannot be reached.
        """
        await self._write(self._resume, {"name": name}, f"resuming {name!r}")

    async def paused(self) -> Mapping[str, Hold]:
        """Return what is noted, by the name of the consumer.

        Raises:
            ChannelError: The database cannot be reached.
        """

        async def select(connection: AsyncConnection) -> Mapping[str, Hold]:
            moment = self._transactions.dialect.read_moment
            rows = await connection.execute(self._paused)
            return {name: Hold(reason=reason or "", since=moment(since)) for name, since, reason in rows}

        async with self._letting_go():
            return await self._transactions.read(select, "looking which consumers pause")

    async def _write(self, statement: TextClause, values: dict[str, Any], doing: str) -> None:
        async with self._letting_go():
            await self._transactions.join(lambda connection: connection.execute(statement, values), doing)
