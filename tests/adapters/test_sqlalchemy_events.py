"""Events in databases: the shipped suite against every database and driver, and what is particular about each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import make_url

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.event_store import EventStorage
from ecotone_fastapi.testing import EventStoreConformance


class SqlEventStores(EventStoreConformance):
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
    async def events(self) -> AsyncIterator[EventStorage]:
        yield self.database.events

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})) as scope:
            await scope.enter(self.database.begin(scope))
            yield


class TestSQLiteEvents(SqlEventStores):
    one_writer = True
    hides = False

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestAsyncpgEvents(SqlEventStores):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url


@pytest.mark.postgresql
class TestPsycopgEvents(SqlEventStores):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.mark.mariadb
class TestMariaDBEvents(SqlEventStores):
    hides = False

    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url
