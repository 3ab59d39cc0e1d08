"""Statements in the form in which the driver takes them, for those that run with every message."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect, TextClause
from sqlalchemy.ext.asyncio import AsyncConnection


class DriverSql:
    """A statement that is compiled once. SQLAlchemy's events hear it as they hear every other one.

    To execute a `text()` means to look up, each time, what has become of it and which types its parameters have.

    Args:
        statement: The statement, without lists to expand.
        dialect: What it is compiled for.
    """

    def __init__(self, statement: TextClause, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        self._names: Sequence[str] | None = getattr(compiled, "positiontup", None)  # absent where they go by name

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """Run it, and return all rows.

        Args:
            connection: Where.
            parameters: By their names; there may be more than the statement has.
        """
        given = dict(parameters) if self._names is None else tuple([parameters[name] for name in self._names])
        return (await connection.exec_driver_sql(self._sql, given)).all()
