"""How many messages wait on which channel, and for how long: of all channels of a database in one statement."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.channel import SqlChannel
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock


class SqlCounts:
    """Counts what waits, as each channel does for itself.

    Args:
        table: The name of the table of messages as SQL has it.
        transactions: Where statements run.
        clock: Gives the clock that tells how far a test has travelled; all else is told by the server.
    """

    def __init__(self, table: str, transactions: Transactions, clock: Callable[[], Clock]) -> None:
        self._transactions = transactions
        self._clock = clock
        now = transactions.dialect.now
        alive = f"(expires_at IS NULL OR expires_at > {now})"
        lent = f"(lease_token IS NOT NULL AND available_at > {now})"
        oldest = f"min(CASE WHEN available_at <= {now} AND {alive} THEN available_at END)"
        self._count = text(
            f"SELECT channel, sum(CASE WHEN {alive} OR {lent} THEN 1 ELSE 0 END),"
            f" -({transactions.dialect.seconds_until(oldest)})"
            f" FROM {table} WHERE channel IN :channels GROUP BY channel"
        ).bindparams(bindparam("channels", expanding=True))

    def covers(self, channel: Channel) -> bool:
        """Whether a channel is in this database."""
        return isinstance(channel, SqlChannel) and channel.is_in(self._transactions)

    async def waiting(self, names: Sequence[str]) -> Mapping[str, tuple[int, float | None]]:
        """Return depth and oldest age of channels by their names; nothing of those on which nothing waits.

        Raises:
            ChannelError: The database cannot be reached.
        """
        dialect, offset = self._transactions.dialect, self._clock().offset.total_seconds()
        parameters = {"channels": list(names), "offset": dialect.span(offset)}

        async def count(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(self._count, parameters)).all()

        rows = await self._transactions.read(count, "counting what waits")
        return {name: (int(depth), None if age is None else float(age)) for name, depth, age in rows}
