"""The dead letter in a table: bytes and headers as they were on the wire, and why the message is there."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.messaging.dead_letter import ParkedMessage

_COLUMNS = (
    "id",
    "message_id",
    "channel",
    "endpoint",
    "error_type",
    "error_message",
    "traceback",
    "attempts",
    "deliveries",
    "headers",
    "body",
    "parked_at",
)


class SqlDeadLetters:
    """Keeps parked messages in a table.

    Args:
        table: The table's name as SQL has it.
        transactions: Where statements run.
        prepare: Sees to it that the tables are there.
    """

    def __init__(self, table: str, transactions: Transactions, prepare: Callable[[], Awaitable[None]]) -> None:
        self._transactions = transactions
        self._prepare = prepare
        names, places = ", ".join(_COLUMNS), ", ".join(f":{name}" for name in _COLUMNS)
        if transactions.dialect.name == "mysql":
            replaced = "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = VALUES({name})" for name in _COLUMNS)
        else:
            replaced = "ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
        self._insert = text(f"INSERT INTO {table} ({names}) VALUES ({places}) {replaced}")
        self._list = text(f"SELECT {names} FROM {table} ORDER BY parked_at DESC, id DESC LIMIT :limit OFFSET :offset")
        self._get = text(f"SELECT {names} FROM {table} WHERE id = :id")
        self._delete = text(f"DELETE FROM {table} WHERE id = :id")
        self._count = text(f"SELECT count(*) FROM {table}")

    async def park(self, parked: ParkedMessage) -> None:
        """Store it, in place of what has the same id, with the unit of work of the calling task's scope, if any."""
        values = {
            "id": _plain(parked.id),
            "message_id": _plain(parked.message.headers.get(HeaderName.id)),
            "channel": _plain(parked.channel),
            "endpoint": _plain(parked.endpoint),
            "error_type": _plain(parked.error_type),
            "error_message": _plain(parked.error_message),
            "traceback": _plain(parked.traceback),
            "attempts": parked.attempts,
            "deliveries": parked.deliveries,
            "headers": json.dumps(dict(parked.message.headers)),
            "body": bytes(parked.message.payload),
            "parked_at": self._transactions.dialect.moment(parked.parked_at),
        }
        await self._prepare()
        await self._transactions.join(lambda connection: connection.execute(self._insert, values), "parking a message")

    async def list(self, *, limit: int = 100, offset: int = 0) -> Sequence[ParkedMessage]:
        """Return parked messages, the newest first."""
        rows = await self._rows(self._list, {"limit": limit, "offset": offset})
        return [self._parked(row) for row in rows]

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        for row in await self._rows(self._get, {"id": _plain(parked_id)}):
            return self._parked(row)
        raise self._unknown(parked_id)

    async def delete(self, parked_id: str) -> None:
        """Remove one parked message, with the unit of work of the calling task's scope, if any.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """

        async def delete(connection: AsyncConnection) -> int:
            return (await connection.execute(self._delete, {"id": _plain(parked_id)})).rowcount

        await self._prepare()
        if not await self._transactions.join(delete, "deleting a dead letter"):
            raise self._unknown(parked_id)

    async def count(self) -> int:
        """Return how many messages are parked."""
        [row] = await self._rows(self._count, {})
        return int(row[0])

    async def _rows(self, statement: Any, parameters: dict[str, Any]) -> Sequence[Row[Any]]:
        async def select(connection: AsyncConnection) -> Sequence[Row[Any]]:
            return (await connection.execute(statement, parameters)).all()

        await self._prepare()
        return await self._transactions.read(select, "reading the dead letter")

    def _parked(self, row: Row[Any]) -> ParkedMessage:
        values = row._asdict()
        message = Message(values.pop("body"), json.loads(values.pop("headers")))
        del values["message_id"]
        values["parked_at"] = self._transactions.dialect.read_moment(values["parked_at"])
        return ParkedMessage(message=message, **values)

    def _unknown(self, parked_id: str) -> DeadLetterNotFoundError:
        return DeadLetterNotFoundError(
            f"no dead letter has the id {parked_id!r}",
            tried=f"the database {self._transactions.address}",
            hint="it may have been replayed or deleted; list() tells what is there",
        )


def _plain(value: str | None) -> str | None:
    # An exception can say what no database takes. That must not keep its message from being parked.
    return None if value is None else value.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
