"""What tests of stores stand on: databases of every kind, and units of work without an application around them.

A test is parametrised with kinds, `@pytest.mark.parametrize("kind", [SQLITE, POSTGRESQL])`, and asks for `url`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope

SQLITE = pytest.param("sqlite", id="sqlite")
POSTGRESQL = pytest.param("postgresql", id="postgresql", marks=pytest.mark.postgresql)
ASYNCPG = pytest.param("asyncpg", id="asyncpg", marks=pytest.mark.postgresql)
PSYCOPG = pytest.param("psycopg", id="psycopg", marks=pytest.mark.postgresql)
MARIADB = pytest.param("mariadb", id="mariadb", marks=pytest.mark.mariadb)


def unit_of_work() -> AbstractAsyncContextManager[Scope]:
    return Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"}))


class InDatabase:
    """A database for each case of a conformance suite, and transactions in it."""

    database: SqlAlchemy

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def application(self, url: str) -> AsyncIterator[None]:
        self.database = SqlAlchemy(url, create_schema=True)
        async with self.database.lifespan():
            yield

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit_of_work() as scope:
            await scope.enter(self.database.begin(scope))
            yield
