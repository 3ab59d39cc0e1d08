"""Snapshots in a table: the last one of each stream."""

# ruff: noqa: S608 - what is formatted into SQL are names of ours, never values

from dataclasses import asdict

from sqlalchemy import text

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.modelling.snapshots import Snapshot

_COLUMNS = ("stream", "version", "event_id", "form", "content_type", "body", "taken_at")


class SqlSnapshots:
    """Keeps snapshots in a table.

    Args:
        table: The table's name as SQL has it.
        access: Runs statements.
    """

    def __init__(self, table: str, access: Access) -> None:
        self._access = access
        if access.dialect.name == "mysql":
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
        for row in await self._access.read_to_write(selecting(self._load, {"stream": stream}), "reading a snapshot"):
            values = {**row._asdict(), "body": bytes(row.body)}
            values["taken_at"] = self._access.dialect.read_moment(row.taken_at)
            return Snapshot(**values)
        return None

    async def save(self, snapshot: Snapshot) -> None:
        """Insert the row of a stream or replace it, with the unit of work of the calling task's scope, if any."""
        values = asdict(snapshot)
        values["taken_at"] = self._access.dialect.moment(snapshot.taken_at)
        await self._access.join(affecting(self._save, values), "taking a snapshot")

    async def delete(self, stream: str) -> None:
        """Delete the row of a stream, with the unit of work of the calling task's scope, if any."""
        await self._access.join(affecting(self._delete, {"stream": stream}), "forgetting a snapshot")
