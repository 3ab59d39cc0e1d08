"""Documents in a table: as JSONB on PostgreSQL, as text that the JSON functions of the others read."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.adapters.sqlalchemy.document_search import search_for
from ecotone_fastapi.modelling.document_filters import Filter, Ordering, Place
from ecotone_fastapi.modelling.document_storage import Document, missing, stale

_SAME = "collection = :collection AND document_id = :document_id"


class SqlDocuments:
    """Keeps documents in a table.

    Args:
        table: The table's name as SQL has it.
        access: Runs statements.
        now: Tells the time.
    """

    def __init__(
        self,
        table: str,
        access: Access,
        now: Callable[[], datetime],
    ) -> None:
        self._table = table
        self._access = access
        self._now = now
        self._search = search_for(access.dialect.name)
        self._mysql = access.dialect.name == "mysql"
        postgresql = access.dialect.name == "postgresql"
        self._body = "CAST(body AS text)" if postgresql else "body"
        body = "CAST(:body AS jsonb)" if postgresql else ":body"
        insert = (
            f"INSERT INTO {table} (collection, document_id, version, body, updated_at) "
            f"VALUES (:collection, :document_id, 1, {body}, :moment) "
        )
        if self._mysql:
            # What is given to LAST_INSERT_ID comes back with the answer, and is 0 when a row was inserted.
            add = "ON DUPLICATE KEY UPDATE version = LAST_INSERT_ID(version)"
            upsert = (
                "ON DUPLICATE KEY UPDATE version = LAST_INSERT_ID(version + 1), body = VALUES(body), "
                "updated_at = VALUES(updated_at)"
            )
            locked = " FOR UPDATE"  # what others have committed meanwhile, whatever this transaction has read before
        else:
            add = "ON CONFLICT DO NOTHING"
            upsert = (
                f"ON CONFLICT (collection, document_id) DO UPDATE SET version = {table}.version + 1, "
                "body = excluded.body, updated_at = excluded.updated_at RETURNING version"
            )
            locked = ""
        self._add = text(insert + add).execution_options(preserve_rowcount=True)
        self._upsert = text(insert + upsert)
        self._update = text(
            f"UPDATE {table} SET version = version + 1, body = {body}, updated_at = :moment "
            f"WHERE {_SAME} AND version = :expected"
        )
        self._find = text(f"SELECT document_id, version, {self._body}, updated_at FROM {table} WHERE {_SAME}")
        self._version = text(f"SELECT version FROM {table} WHERE {_SAME}{locked}")
        self._delete = text(f"DELETE FROM {table} WHERE {_SAME}")
        self._delete_expected = text(f"DELETE FROM {table} WHERE {_SAME} AND version = :expected")
        self._drop = text(f"DELETE FROM {table} WHERE collection = :collection")

    async def add(self, collection: str, document_id: str, body: str) -> Document[str] | None:
        """Insert a row, unless there is one."""
        moment = self._now()
        values = self._written(collection, document_id, body, moment)

        async def insert(connection: AsyncConnection) -> bool:
            result = await connection.execute(self._add, values)
            return not result.lastrowid if self._mysql else result.rowcount == 1

        added = await self._access.join(insert, "adding a document")
        return Document(document_id, 1, body, moment) if added else None

    async def update(self, collection: str, document_id: str, body: str, *, expected: int) -> Document[str]:
        """Update a row that has this version.

        Raises:
            ConcurrencyError: It has another version.
            DocumentNotFoundError: There is none.
        """
        moment = self._now()
        values = {**self._written(collection, document_id, body, moment), "expected": expected}
        if not await self._access.join(affecting(self._update, values), "updating a document"):
            actual = await self._actual(collection, document_id)
            if actual is None:
                raise missing(collection, document_id)
            raise stale(collection, document_id, expected=expected, actual=actual)
        return Document(document_id, expected + 1, body, moment)

    async def upsert(self, collection: str, document_id: str, body: str) -> Document[str]:
        """Insert a row or update the one that is there, in one statement."""
        moment = self._now()
        values = self._written(collection, document_id, body, moment)

        async def upsert(connection: AsyncConnection) -> int:
            result = await connection.execute(self._upsert, values)
            return int(result.lastrowid or 1) if self._mysql else int(result.scalar_one())

        return Document(document_id, await self._access.join(upsert, "writing a document"), body, moment)

    async def find(self, collection: str, document_id: str) -> Document[str] | None:
        """Return a row; `None` when there is none."""
        for row in await self._rows(self._find, {"collection": collection, "document_id": document_id}):
            return self._document(row)
        return None

    async def delete(self, collection: str, document_id: str, *, expected: int | None = None) -> bool:
        """Delete a row; return whether there was one.

        Raises:
            ConcurrencyError: It has another version than expected.
        """
        values: dict[str, Any] = {"collection": collection, "document_id": document_id}
        if expected is None:
            return bool(await self._access.join(affecting(self._delete, values), "deleting a document"))
        values["expected"] = expected
        if await self._access.join(affecting(self._delete_expected, values), "deleting a document"):
            return True
        actual = await self._actual(collection, document_id)
        if actual is not None:
            raise stale(collection, document_id, expected=expected, actual=actual)
        return False

    async def list(
        self, collection: str, which: Filter, order: Sequence[Ordering], *, after: Place | None, limit: int
    ) -> Sequence[Document[str]]:
        """Return rows in their order."""
        search = self._search()
        conditions = ["collection = :collection", search.condition(which)]
        if after is not None:
            conditions.append(search.behind(after, order))
        statement = (
            f"SELECT document_id, version, {self._body}, updated_at FROM {self._table} "
            f"WHERE {' AND '.join(f'({one})' for one in conditions)} ORDER BY {search.order_by(order)} LIMIT :limit"
        )
        values = {**search.values, "collection": collection, "limit": limit}
        return [self._document(row) for row in await self._rows(text(statement), values)]

    async def count(self, collection: str, which: Filter) -> int:
        """Return how many rows are meant."""
        search = self._search()
        condition = search.condition(which)
        statement = text(f"SELECT count(*) FROM {self._table} WHERE collection = :collection AND ({condition})")
        [row] = await self._rows(statement, {**search.values, "collection": collection})
        return int(row[0])

    async def drop(self, collection: str) -> int:
        """Delete all rows of a collection; return how many there were."""
        return await self._access.join(affecting(self._drop, {"collection": collection}), "dropping a collection")

    def _written(self, collection: str, document_id: str, body: str, moment: datetime) -> dict[str, Any]:
        return {
            "collection": collection,
            "document_id": document_id,
            "body": body,
            "moment": self._access.dialect.moment(moment),
        }

    def _document(self, row: Any) -> Document[str]:
        document_id, version, body, moment = row
        return Document(document_id, version, body, self._access.dialect.read_moment(moment))

    async def _actual(self, collection: str, document_id: str) -> int | None:
        """Return the version of a row that was not as expected."""
        for row in await self._rows(self._version, {"collection": collection, "document_id": document_id}):
            return int(row[0])
        return None

    async def _rows(self, statement: TextClause, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        return await self._access.read_to_write(selecting(statement, values), "reading documents")
