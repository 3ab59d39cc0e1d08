"""The inbox in a table: which handler has handled which message. The primary key lets one of several duplicates win."""

# ruff: noqa: S608 - what is formatted into SQL are names of ours, never values

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import text

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.adapters.sqlalchemy.channel import SqlChannel
from ecotone_fastapi.adapters.sqlalchemy.tables import indexed
from ecotone_fastapi.core.channel import Channel

_SAME = "message_id = :message_id AND endpoint = :endpoint"
_OLD = "handled_at < :moment ORDER BY handled_at LIMIT :limit"


class SqlInbox:
    """Remembers in a table what was handled.

    Args:
        table: The table's name as SQL has it.
        access: Runs statements.
        now: Tells the time.
    """

    durable: bool = True

    def __init__(
        self,
        table: str,
        access: Access,
        now: Callable[[], datetime],
    ) -> None:
        self._access = access
        self._now = now
        insert = f"INSERT INTO {table} (message_id, endpoint, handled_at) VALUES (:message_id, :endpoint, :moment)"
        if access.dialect.name == "mysql":
            # An update that changes nothing counts as one row, as an insert does; one that changes something, as two.
            # INSERT IGNORE would tell them apart, too, but let several that wait for one that rolls back deadlock.
            insert += " ON DUPLICATE KEY UPDATE handled_at = handled_at + INTERVAL 1 MICROSECOND"
            delete = f"DELETE FROM {table} WHERE {_OLD}"
        else:
            insert += " ON CONFLICT DO NOTHING"
            # Whoever finds rows locked leaves them to those who are deleting them already.
            skipping = "" if access.dialect.one_writer else " FOR UPDATE SKIP LOCKED"
            delete = (
                f"DELETE FROM {table} WHERE (message_id, endpoint) IN "
                f"(SELECT message_id, endpoint FROM {table} WHERE {_OLD}{skipping})"
            )
        self._insert = text(insert).execution_options(preserve_rowcount=True)
        self._delete = text(f"DELETE FROM {table} WHERE {_SAME}")
        self._select = text(f"SELECT 1 FROM {table} WHERE {_SAME}")
        self._delete_old = text(delete)

    def covers(self, channel: Channel) -> bool:
        """Whether the channel is in this database."""
        return isinstance(channel, SqlChannel) and channel.is_in(self._access.transactions)

    def takes_part(self) -> bool:
        """Whether a unit of work is open in the calling task's scope."""
        return self._access.transactions.unit() is not None

    async def record(self, message_id: str, endpoint: str) -> bool:
        """Insert a row, with the unit of work of the calling task's scope, if any; return whether it was not there.

        The server makes it wait for a transaction that has inserted the same row and is still open.
        """
        values = {**_row(message_id, endpoint), "moment": self._access.dialect.moment(self._now())}
        return await self._access.join(affecting(self._insert, values), "recording a handled message") == 1

    async def forget(self, message_id: str, endpoint: str) -> None:
        """Delete a row, with the unit of work of the calling task's scope, if any."""
        await self._access.join(affecting(self._delete, _row(message_id, endpoint)), "forgetting a message")

    async def knows(self, message_id: str, endpoint: str) -> bool:
        """Return whether a row is there."""
        row = _row(message_id, endpoint)
        return bool(await self._access.read(selecting(self._select, row), "looking for a handled message"))

    async def forget_before(self, moment: datetime, *, limit: int = 1000) -> int:
        """Delete the oldest rows from before a moment, in a short transaction of its own; return how many."""
        values = {"moment": self._access.dialect.moment(moment), "limit": limit}
        return await self._access.run(affecting(self._delete_old, values), "forgetting old messages")


def _row(message_id: str, endpoint: str) -> dict[str, str]:
    return {"message_id": indexed(message_id), "endpoint": indexed(endpoint)}
