"""What waits under a key in the table of messages: on all channels of the database, its outbox included."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, text

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.adapters.sqlalchemy.channel import stored_key
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.messaging.scheduling import ScheduledMessage, seconds_from_now


class SqlSchedules:
    """Finds, calls off and puts off what waits under a key.

    Args:
        table: The name of the table of messages as SQL has it.
        access: Runs statements.
        clock: Gives the clock that tells how far a test has travelled; all else is told by the server.
    """

    def __init__(
        self,
        table: str,
        access: Access,
        clock: Callable[[], Clock],
    ) -> None:
        self._access = access
        self._clock = clock
        dialect = access.dialect
        now = dialect.now
        # What a consumer has borrowed is its own until its lease has ended; what has expired will never be handled.
        waits = (
            f"schedule_key IS NOT NULL AND (lease_token IS NULL OR available_at <= {now})"
            f" AND (expires_at IS NULL OR expires_at > {now})"
        )
        found = "strpos" if dialect.name == "postgresql" else "instr"
        of_key, to_channel = "schedule_key = :key", f"(channel = :channel OR {found}(headers, :forwarded) > 0)"
        about = {
            (by_key, by_channel): f"FROM {table} WHERE {waits}"
            f"{f' AND {of_key}' if by_key else ''}{f' AND {to_channel}' if by_channel else ''}"
            for by_key in (True, False)
            for by_channel in (True, False)
        }
        columns, page = "channel, due_at, attempts, headers, body", "ORDER BY due_at, id LIMIT :limit OFFSET :skip"
        self._lists = {
            (*which, later): text(f"SELECT {columns} {found}{' AND due_at >= :since' if later else ''} {page}")
            for which, found in about.items()
            for later in (True, False)
        }
        self._counts = {which: text(f"SELECT count(*) {found}") for which, found in about.items()}
        self._cancel = text(f"DELETE FROM {table} WHERE {of_key} AND {waits}")
        after, at = dialect.after(":delay"), _at(dialect.name, now)
        self._put_off_by = text(_moved(table, dialect.name, after) + f" WHERE {of_key} AND {waits}")
        self._put_off_until = text(_moved(table, dialect.name, at) + f" WHERE {of_key} AND {waits}")

    async def list(
        self,
        key: str | None = None,
        *,
        channel: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return what waits, the next one first.

        Raises:
            ChannelError: The database cannot be reached.
        """
        statement = self._lists[key is not None, channel is not None, since is not None]
        page: dict[str, Any] = {"limit": limit, "skip": offset}
        if since is not None:
            page["since"] = self._access.dialect.moment(since)
        return [self._scheduled(row) for row in await self._rows(statement, key, channel, page)]

    async def count(self, key: str | None = None, *, channel: str | None = None) -> int:
        """Return how many messages wait.

        Raises:
            ChannelError: The database cannot be reached.
        """
        [row] = await self._rows(self._counts[key is not None, channel is not None], key, channel, {})
        return int(row[0])

    async def cancel(self, key: str) -> int:
        """Remove what waits under a key, with the unit of work of the calling task's scope, if any.

        Raises:
            ChannelError: The database cannot be reached.
        """
        return await self._change(self._cancel, key, {}, "cancelling what waits")

    async def reschedule(self, key: str, to: timedelta | datetime) -> int:
        """Let what waits be due at another time, with the unit of work of the calling task's scope, if any.

        Raises:
            ConversionError: The moment does not say how far it is from UTC, or is too far away.
            ChannelError: The database cannot be reached.
        """
        doing, dialect = "putting off what waits", self._access.dialect
        seconds = seconds_from_now(to, self._clock().now())
        if isinstance(to, datetime):
            return await self._change(self._put_off_until, key, {"moment": dialect.moment(to)}, doing)
        return await self._change(self._put_off_by, key, {"delay": dialect.delay(seconds)}, doing)

    async def _rows(
        self, statement: Any, key: str | None, channel: str | None, page: Mapping[str, Any]
    ) -> Sequence[Row[Any]]:
        parameters = {"offset": self._offset, **page}
        if key is not None:
            parameters["key"] = stored_key(key)
        if channel is not None:
            # As it stands in the JSON of the headers; within another value the quotes would be escaped.
            name, value = json.dumps(HeaderName.forward_to), json.dumps(channel)
            parameters |= {"channel": channel, "forwarded": f"{name}: {value}"}
        return await self._access.read(selecting(statement, parameters), "looking for what waits")

    async def _change(self, statement: Any, key: str, parameters: dict[str, Any], doing: str) -> int:
        values = {"key": stored_key(key), "offset": self._offset, **parameters}
        return await self._access.join(affecting(statement, values), doing)

    def _scheduled(self, row: Row[Any]) -> ScheduledMessage:
        headers: dict[str, str] = json.loads(row.headers)
        if row.attempts and HeaderName.forward_to not in headers:  # an outbox counts its own
            headers[HeaderName.attempt] = str(row.attempts)
        return ScheduledMessage(
            key=headers[HeaderName.schedule_key],
            channel=headers.get(HeaderName.forward_to, row.channel),
            endpoint=headers.get(HeaderName.endpoint),
            due_at=self._access.dialect.read_moment(row.due_at),
            message=Message(row.body, headers),
        )

    @property
    def _offset(self) -> Any:
        return self._access.dialect.span(self._clock().offset.total_seconds())


def _at(dialect: str, now: str) -> str:
    """Return SQL for a given moment; for now, when it is past."""
    if dialect == "sqlite":
        return f"max({now}, :moment)"
    type_ = "timestamptz" if dialect == "postgresql" else "DATETIME(6)"
    return f"GREATEST({now}, CAST(:moment AS {type_}))"


def _moved(table: str, dialect: str, moment: str) -> str:
    """Return SQL that makes messages due at a moment; what is left of their lives after that stays as it was."""
    expires_at = f"expires_at + ({moment} - due_at)"
    if dialect == "mysql":
        expires_at = f"TIMESTAMPADD(MICROSECOND, TIMESTAMPDIFF(MICROSECOND, due_at, {moment}), expires_at)"
    # MariaDB assigns from left to right: due_at is still the old one where the first assignment reads it.
    return (
        f"UPDATE {table} SET expires_at = {expires_at}, available_at = {moment}, due_at = {moment}, lease_token = NULL"
    )
