"""The shipped suites against every database and every driver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.dead_letter import DeadLetterStore
from ecotone_fastapi.testing.conformance import ChannelConformance, StoreConformance


class SkewedClock:
    """A machine's clock that is wrong, on a test that has travelled."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.offset = timedelta(0)
        self._wrong = timedelta(seconds=wrong)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._wrong + self.offset


class SqlConformance(ChannelConformance):
    """One engine for all channels of a case, as in one process."""

    moment = 0.0
    volume = 10_000

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def database(self, url: str) -> AsyncIterator[None]:
        self.clock = SkewedClock()
        self.database = SqlAlchemy(url, create_schema=True)
        self.database.use_clock(self.clock)
        async with self.database.lifespan():
            yield

    @asynccontextmanager
    async def opened(self, channel: Channel) -> AsyncIterator[Channel]:
        await channel.open()
        try:
            yield channel
        finally:
            await channel.close()

    def channel(self, name: str):
        return self.opened(self.database.channel(name, lease=self.lease))

    def channel_with_lease(self, name: str, lease: float):
        return self.opened(self.database.channel(name, lease=lease))

    def skewed_channel(self, name: str, seconds: float):
        channel = self.database.channel(name)
        channel.use_clock(SkewedClock(seconds))
        return self.opened(channel)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        gateway = Gateway(Conversion(()), SystemClock())
        async with gateway.unit_of_work(Message(b"", {"id": "cause"})) as scope:
            await scope.enter(self.database.begin(scope))
            yield

    async def advance(self, seconds: float) -> None:
        self.clock.offset += timedelta(seconds=seconds)


async def terminate(url: str) -> None:
    """Cut all connections to the database but the one that does it."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            await connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            ids = await connection.exec_driver_sql(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            for (number,) in ids.all():
                await connection.exec_driver_sql(f"KILL {number}")


class TestSQLite(SqlConformance):
    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestPostgreSQLWithAsyncpg(SqlConformance):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        self.address = postgresql_url
        return postgresql_url

    async def drop_connections(self) -> None:
        await terminate(self.address)


@pytest.mark.postgresql
class TestPostgreSQLWithPsycopg(TestPostgreSQLWithAsyncpg):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        self.address = make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(False)
        return self.address


@pytest.mark.mariadb
class TestMariaDB(SqlConformance):
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        self.address = mariadb_url
        return mariadb_url

    async def drop_connections(self) -> None:
        await terminate(self.address)


class SqlStoreConformance(StoreConformance):
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def database(self, url: str) -> AsyncIterator[None]:
        self.database = SqlAlchemy(url, create_schema=True)
        async with self.database.lifespan():
            yield

    @asynccontextmanager
    async def dead_letters(self) -> AsyncIterator[DeadLetterStore]:
        yield self.database.dead_letters

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        gateway = Gateway(Conversion(()), SystemClock())
        async with gateway.unit_of_work(Message(b"", {"id": "cause"})) as scope:
            await scope.enter(self.database.begin(scope))
            yield


class TestStoresOnSQLite(SqlStoreConformance):
    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestStoresOnPostgreSQLWithAsyncpg(SqlStoreConformance):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url


@pytest.mark.postgresql
class TestStoresOnPostgreSQLWithPsycopg(SqlStoreConformance):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(False)


@pytest.mark.mariadb
class TestStoresOnMariaDB(SqlStoreConformance):
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url
