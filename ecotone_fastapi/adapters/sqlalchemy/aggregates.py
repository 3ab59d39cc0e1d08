"""Aggregates in a table, as JSON: one statement to load one, and one to save it, which goes by the version."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import TextClause, bindparam, text

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.adapters.sqlalchemy.tables import indexed
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.message import Message, aliases_of, name_of
from ecotone_fastapi.modelling.repository import Identifier, Saved, Versioned, lacks_identifier
from ecotone_fastapi.modelling.state import StateForm

A = TypeVar("A")

logger: logging.Logger = logging.getLogger("ecotone_fastapi.aggregates")

_SAME = "type IN :types AND identifier = :identifier"


class SqlAggregates:
    """Keeps aggregates of any class that can be written as JSON.

    A row is found by the `message_name` of the class, else by its module and name, and by the aliases of that: with a
    name of its own, the class may move and be renamed.

    Args:
        table: The table's name as SQL has it.
        access: Runs statements.
        now: Tells the time.
        conversion: The converters of the application.
    """

    def __init__(
        self,
        table: str,
        access: Access,
        now: Callable[[], datetime],
        conversion: Conversion | None = None,
    ) -> None:
        self._with = partial(SqlAggregates, table, access, now)
        self._access = access
        self._now = now
        self._conversion = conversion or Conversion()
        self._forms: dict[type, StateForm[Any]] = {}
        values = "(type, identifier, version, body, updated_at) VALUES (:type, :identifier, 1, :body, :moment)"
        if access.dialect.name == "mysql":
            # An update that changes nothing counts as one row, as an insert does; one that changes something, as two.
            insert = (
                f"INSERT INTO {table} {values} ON DUPLICATE KEY UPDATE updated_at = updated_at + INTERVAL 1 MICROSECOND"
            )
        else:
            insert = f"INSERT INTO {table} {values} ON CONFLICT DO NOTHING"
        self._insert = text(insert).execution_options(preserve_rowcount=True)
        self._update = _of_types(
            f"UPDATE {table} SET type = :type, version = version + 1, body = :body, updated_at = :moment "
            f"WHERE {_SAME} AND version = :expected"
        )
        self._delete = _of_types(f"DELETE FROM {table} WHERE {_SAME} AND version = :expected")
        self._select = _of_types(f"SELECT version, body FROM {table} WHERE {_SAME}")
        # What others have committed meanwhile, whatever this transaction has read before.
        locked = " FOR UPDATE" if access.dialect.name == "mysql" else ""
        self._version = _of_types(f"SELECT version FROM {table} WHERE {_SAME}{locked}")

    def serves(self, cls: type) -> bool:
        """Return that it keeps them all, but for those that have a table of their own."""
        return not hasattr(cls, "__mapper__")

    def converting(self, conversion: Conversion) -> "SqlAggregates":
        """Return the same store for an application with these converters."""
        return self._with(conversion)

    def check(self, cls: type) -> None:
        """Make sure that the state of such an aggregate comes back as it was.

        Raises:
            ConfigurationError: It does not.
        """
        self._form(cls)
        if name_of(cls).startswith("__main__."):
            logger.warning(
                "%s is kept under the name %s, because its module is run as a program: another process that imports "
                "the module knows it by another name; give it a @message_name",
                cls.__qualname__,
                name_of(cls),
            )

    async def load(self, cls: type[A], identifier: Identifier) -> Versioned[A] | None:
        """Return the aggregate in a row; `None` when there is none."""
        rows = await self._access.read_to_write(selecting(self._select, _key(cls, identifier)), "loading an aggregate")
        return Versioned(self._form(cls).read(rows[0].body), rows[0].version) if rows else None

    async def save(
        self,
        cls: type[A],
        identifier: Identifier | None,
        state: A,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        """Insert a row, or update the one that has the expected version.

        Raises:
            ConcurrencyError: There is a row already, or it has another version.
            AggregateError: It has no identifier, or a state that would not come back.
        """
        if identifier is None:
            raise lacks_identifier(cls)
        key = _key(cls, identifier)
        values = {
            "type": indexed(name_of(cls)),
            "identifier": key["identifier"],
            "body": self._form(cls).write(state),
            "moment": self._access.dialect.moment(self._now()),
        }
        if expected:
            done = await self._save(self._update, {**values, **key, "expected": expected})
        else:
            # One that was saved under a former name of its class is another row.
            renamed = len(key["types"]) > 1 and await self._actual(key) > 0
            done = 0 if renamed else await self._save(self._insert, values)
        if done != 1:
            raise await self._too_late(cls, identifier, expected)
        return Saved(expected + 1, events)

    async def delete(self, cls: type[A], identifier: Identifier, state: A, *, expected: int) -> None:
        """Delete the row that has the expected version.

        Raises:
            ConcurrencyError: It has another one, or is gone.
        """
        row = {**_key(cls, identifier), "expected": expected}
        if await self._access.join(affecting(self._delete, row), "deleting an aggregate") != 1:
            raise await self._too_late(cls, identifier, expected)

    async def _save(self, statement: TextClause, values: dict[str, Any]) -> int:
        return await self._access.join(affecting(statement, values), "saving an aggregate")

    async def _too_late(self, cls: type, identifier: Identifier, expected: int) -> ConcurrencyError:
        actual = await self._actual(_key(cls, identifier))
        return ConcurrencyError(
            f"the {cls.__name__} {identifier} was {'saved' if actual else 'deleted'} by somebody else",
            expected=expected,
            actual=actual,
        )

    def _form(self, cls: type[A]) -> StateForm[A]:
        form = self._forms.get(cls)
        if form is None:
            form = self._forms[cls] = StateForm(cls, self._conversion)
        return form

    async def _actual(self, key: dict[str, Any]) -> int:
        """Return the version of a row that was not as expected; 0 when there is none."""
        for row in await self._access.read_to_write(selecting(self._version, key), "looking for an aggregate"):
            return int(row[0])
        return 0


def _key(cls: type, identifier: Identifier) -> dict[str, Any]:
    types = [indexed(name) for name in (name_of(cls), *aliases_of(cls))]
    return {"types": types, "identifier": indexed(str(identifier))}


def _of_types(statement: str) -> TextClause:
    return text(statement).bindparams(bindparam("types", expanding=True))
