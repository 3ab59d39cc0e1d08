"""The dead letter in a table: bytes and headers as they were on the wire, and why the message is there."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, TextClause, text

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.adapters.sqlalchemy.tables import storable
from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.messaging.dead_letter_store import (
    EVERYTHING,
    DeadLetterFilter,
    ParkedMessage,
    headers_as_json,
    in_json,
)

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
    "first_failed_at",
)

# Where a text begins within another one, 0 if nowhere. Unlike LIKE it has no wildcards, and never ignores the case.
_POSITION = {"postgresql": "strpos({}, {})"}
_POSITION_IN_BYTES = {"postgresql": "position({1} IN {0})"}
_LAST_CHARACTERS = {"sqlite": "substr({}, -{})"}


class SqlDeadLetters:
    """Keeps parked messages in a table.

    Args:
        table: The table's name as SQL has it.
        access: Runs statements.
    """

    def __init__(self, table: str, access: Access) -> None:
        self._access = access
        names, places = ", ".join(_COLUMNS), ", ".join(f":{name}" for name in _COLUMNS)
        if access.dialect.name == "mysql":
            replaced = "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = VALUES({name})" for name in _COLUMNS)
        else:
            replaced = "ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
        self._insert = text(f"INSERT INTO {table} ({names}) VALUES ({places}) {replaced}")
        self._select = f"SELECT {names} FROM {table}"
        self._select_ids = f"SELECT id FROM {table}"
        self._get = text(f"SELECT {names} FROM {table} WHERE id = :id")
        self._delete = text(f"DELETE FROM {table} WHERE id = :id")
        self._delete_saying = text(f"DELETE FROM {table} WHERE id = :id AND headers = :headers AND body = :body")
        self._delete_all = f"DELETE FROM {table}"
        self._count = f"SELECT count(*) FROM {table}"
        dialect = access.dialect.name
        self._position = _POSITION.get(dialect, "instr({}, {})")
        self._position_in_bytes = _POSITION_IN_BYTES.get(dialect, "instr({}, {})")
        self._last_characters = _LAST_CHARACTERS.get(dialect, "right({}, {})")

    async def park(self, parked: ParkedMessage) -> None:
        """Store it, in place of what has the same id, with the unit of work of the calling task's scope, if any."""
        moment = self._access.dialect.moment
        values = {
            "id": storable(parked.id),
            "message_id": _storable_or_none(parked.message.headers.get(HeaderName.id)),
            "channel": storable(parked.channel),
            "endpoint": _storable_or_none(parked.endpoint),
            "error_type": storable(parked.error_type),
            "error_message": storable(parked.error_message),
            "traceback": storable(parked.traceback),
            "attempts": parked.attempts,
            "deliveries": parked.deliveries,
            "headers": headers_as_json(parked.message.headers),
            "body": bytes(parked.message.payload),
            "parked_at": moment(parked.parked_at),
            "first_failed_at": None if parked.first_failed_at is None else moment(parked.first_failed_at),
        }
        await self._access.join(affecting(self._insert, values), "parking a message")

    async def list(
        self, which: DeadLetterFilter = EVERYTHING, *, limit: int = 100, offset: int = 0
    ) -> Sequence[ParkedMessage]:
        """Return parked messages, the newest first."""
        page = " ORDER BY parked_at DESC, id DESC LIMIT :limit OFFSET :offset"
        statement, values = self._about(which, self._select, page)
        return [self._parked(row) for row in await self._rows(statement, {**values, "limit": limit, "offset": offset})]

    async def ids(self, which: DeadLetterFilter = EVERYTHING) -> Sequence[str]:
        """Return the ids of all that are meant, the oldest first."""
        return [row[0] for row in await self._rows(*self._about(which, self._select_ids, " ORDER BY parked_at, id"))]

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        for row in await self._rows(self._get, {"id": storable(parked_id)}):
            return self._parked(row)
        raise self._unknown(parked_id)

    async def delete(self, parked_id: str, *, saying: Message[bytes] | None = None) -> None:
        """Remove one parked message, with the unit of work of the calling task's scope, if any.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id, or it says something else.
        """
        statement, values = self._delete, dict[str, Any](id=storable(parked_id))
        if saying is not None:
            statement = self._delete_saying
            values |= {"headers": headers_as_json(saying.headers), "body": bytes(saying.payload)}
        if not await self._access.join(affecting(statement, values), "deleting a dead letter"):
            raise self._unknown(parked_id)

    async def delete_all(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Remove all that are meant, with the unit of work of the calling task's scope, if any; return how many."""
        statement, values = self._about(which, self._delete_all)
        return await self._access.join(affecting(statement, values), "deleting dead letters")

    async def count(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Return how many messages are parked."""
        [row] = await self._rows(*self._about(which, self._count))
        return int(row[0])

    def _about(self, which: DeadLetterFilter, statement: str, rest: str = "") -> tuple[TextClause, dict[str, Any]]:
        """Return a statement about those that are meant, and its parameters."""
        moment = self._access.dialect.moment
        conditions: list[str] = []
        values: dict[str, Any] = {}
        for name in ("endpoint", "channel"):
            if (wanted := getattr(which, name)) is not None:
                conditions.append(f"{name} = :{name}")
                values[name] = storable(wanted)
        if which.error_type is not None:
            error_type = storable(which.error_type)
            last = self._last_characters.format("error_type", len(error_type) + 1)
            conditions.append(f"(error_type = :error_type OR {last} = :class_name)")
            values |= {"error_type": error_type, "class_name": f".{error_type}"}
        for name, sign, limit in (("since", ">=", which.since), ("until", "<", which.until)):
            if limit is not None:
                conditions.append(f"parked_at {sign} :{name}")
                values[name] = moment(limit)
        for number, (name, value) in enumerate(which.wanted_headers.items()):
            # A quote within a name or a value has a backslash before it, so this is found nowhere else.
            pair = headers_as_json({name: value})[1:-1]
            first, later = f"header_{number}_first", f"header_{number}_later"
            found = [self._position.format("headers", f":{one}") for one in (first, later)]
            conditions.append(f"({found[0]} = 1 OR {found[1]} > 0)")
            values |= {first: f"{{{pair}", later: f", {pair}"}
        if which.text is not None:
            told = ("id", "error_type", "error_message", "traceback")
            found = [self._position.format(column, ":text") for column in told]
            found.append(self._position.format("headers", ":text_in_json"))
            found.append(self._position_in_bytes.format("body", ":text_in_bytes"))
            conditions.append(f"({' OR '.join(f'{one} > 0' for one in found)})")
            values |= {
                "text": storable(which.text),
                "text_in_json": in_json(which.text),
                "text_in_bytes": which.text.encode(errors="replace"),
            }
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return text(f"{statement}{where}{rest}"), values

    async def _rows(self, statement: TextClause, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        return await self._access.read(selecting(statement, parameters), "reading the dead letter")

    def _parked(self, row: Row[Any]) -> ParkedMessage:
        values = row._asdict()
        message = Message(values.pop("body"), json.loads(values.pop("headers")))
        del values["message_id"]
        read_moment = self._access.dialect.read_moment
        values["parked_at"] = read_moment(values["parked_at"])
        if values["first_failed_at"] is not None:
            values["first_failed_at"] = read_moment(values["first_failed_at"])
        return ParkedMessage(message=message, **values)

    def _unknown(self, parked_id: str) -> DeadLetterNotFoundError:
        return DeadLetterNotFoundError(
            f"no dead letter has the id {parked_id!r}",
            tried=f"the database {self._access.transactions.address}",
            hint="it may have been replayed, edited or deleted; list() tells what is there",
        )


def _storable_or_none(value: str | None) -> str | None:
    return None if value is None else storable(value)
