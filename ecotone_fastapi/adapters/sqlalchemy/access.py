"""How stores come to their tables: statements run where they belong, and the tables are there before the first one."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row, TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.dialects import Dialect
from ecotone_fastapi.adapters.sqlalchemy.transactions import Statements, Transactions

R = TypeVar("R")


def affecting(statement: TextClause, values: Mapping[str, Any]) -> Statements[int]:
    """Return what runs one statement, and tells how many rows it has affected."""

    async def execute(connection: AsyncConnection) -> int:
        return (await connection.execute(statement, values)).rowcount

    return execute


def selecting(statement: TextClause, values: Mapping[str, Any]) -> Statements[Sequence[Row[Any]]]:
    """Return what runs one query, and returns all of its rows."""

    async def select(connection: AsyncConnection) -> Sequence[Row[Any]]:
        return (await connection.execute(statement, values)).all()

    return select


class Access:
    """Runs the statements of stores. What each is for, `doing`, is told by the errors.

    Args:
        transactions: Where statements run.
        prepare: Sees to it that the tables are there.

    Attributes:
        transactions: Where statements run.
        dialect: What the database understands.
    """

    def __init__(self, transactions: Transactions, prepare: Callable[[], Awaitable[None]]) -> None:
        self.transactions: Transactions = transactions
        self.dialect: Dialect = transactions.dialect
        self._prepare = prepare

    async def join(self, statements: Statements[R], doing: str, *, several: bool = False) -> R:
        """Run statements in the unit of work of the calling task's scope, else in a transaction of their own."""
        await self._prepare()
        return await self.transactions.join(statements, doing, several=several)

    async def run(self, statements: Statements[R], doing: str, *, several: bool = False) -> R:
        """Run statements in a transaction of their own."""
        await self._prepare()
        return await self.transactions.run(statements, doing, several=several)

    async def read(self, statements: Statements[R], doing: str) -> R:
        """Run statements that change nothing."""
        await self._prepare()
        return await self.transactions.read(statements, doing)

    async def read_to_write(self, statements: Statements[R], doing: str) -> R:
        """Run statements that change nothing: who reads in a unit of work will write there, and reads there, too."""
        await self._prepare()
        run = self.transactions.read if self.transactions.unit() is None else self.transactions.join
        return await run(statements, doing)
