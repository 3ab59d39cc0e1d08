"""The shipped suites against every database and every driver."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Plugin
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.testing.conformance import ChannelConformance, StoreConformance


class MachineClock:
    """A machine's clock that may be wrong, in a test that may travel."""

    def __init__(self, wrong: float = 0.0) -> None:
        self.offset = timedelta(0)
        self._wrong = timedelta(seconds=wrong)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._wrong + self.offset


class WithDatabase:
    """A database for each case, and transactions in it."""

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def application(self, url: str) -> AsyncIterator[None]:
        self.url_of_case = url
        self.clock = MachineClock()
        async with self.another_database() as self.database:
            yield

    @asynccontextmanager
    async def another_database(self) -> AsyncIterator[SqlAlchemy]:
        database = SqlAlchemy(self.url_of_case, create_schema=True)
        database.use_clock(self.clock)
        async with database.lifespan():
            yield database

    def transaction(self) -> AbstractAsyncContextManager[None]:
        return self.unit_of_work()

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[None]:
        gateway = Gateway(Conversion(()), SystemClock())
        async with gateway.unit_of_work(Message(b"", {"id": "cause"})) as scope:
            await scope.enter(self.database.begin(scope))
            yield

    async def drop_connections(self) -> None:
        """Cut all connections to the database but the one that does it."""
        engine = create_async_engine(self.url_of_case, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                await connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                return
            numbers = await connection.exec_driver_sql(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            for number in numbers.scalars().all():
                try:
                    await connection.exec_driver_sql(f"KILL {number}")
                except Exception as error:
                    assert "Unknown thread id" in str(error)  # noqa: PT017 - it has gone by itself


class SqlChannels(WithDatabase, ChannelConformance):
    """One engine for all channels of a case, as in one process."""

    moment = 0.0

    @asynccontextmanager
    async def opened(
        self, name: str, lease: float, clock: Clock, *, keeps_order: bool = False
    ) -> AsyncIterator[Channel]:
        channel = self.database.channel(name, lease=lease, keeps_order=keeps_order)
        channel.use_clock(clock)
        await channel.open()
        try:
            yield channel
        finally:
            await channel.close()

    def channel(self, name: str) -> AbstractAsyncContextManager[Channel]:
        return self.opened(name, self.lease, self.clock)

    def channel_with_lease(self, name: str, lease: float) -> AbstractAsyncContextManager[Channel]:
        return self.opened(name, lease, self.clock)

    def skewed_channel(self, name: str, seconds: float) -> AbstractAsyncContextManager[Channel]:
        return self.opened(name, self.lease, MachineClock(seconds))

    def channel_that_keeps_order(self, name: str) -> AbstractAsyncContextManager[Channel]:
        return self.opened(name, self.lease, self.clock, keeps_order=True)

    def stores(self) -> Sequence[Plugin]:
        return (self.database,)

    async def advance(self, seconds: float) -> None:
        self.clock.offset += timedelta(seconds=seconds)


class SqlChannelsOfManyProcesses(SqlChannels):
    """An engine for each channel; what they share is the database alone."""

    volume = 2_000
    crowd = 4

    @asynccontextmanager
    async def opened(
        self, name: str, lease: float, clock: Clock, *, keeps_order: bool = False
    ) -> AsyncIterator[Channel]:
        async with self.another_database() as database:
            channel = database.channel(name, lease=lease, keeps_order=keeps_order)
            channel.use_clock(clock)
            await channel.open()
            try:
                yield channel
            finally:
                await channel.close()

    # One of each is that of one engine.
    transaction = ChannelConformance.transaction
    stores = ChannelConformance.stores


class SqlStores(WithDatabase, StoreConformance):
    """The stores of one engine."""

    @asynccontextmanager
    async def dead_letters(self) -> AsyncIterator[DeadLetterStore]:
        yield self.database.dead_letters


class OnSQLite:
    """A file that nobody else has."""

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url

    drop_connections = ChannelConformance.drop_connections


class OnPostgreSQL:
    """A database of its own, by asyncpg."""

    url_of_case: str

    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url

    @asynccontextmanager
    async def server_away(self) -> AsyncIterator[None]:
        """Let the server refuse everybody who wants to have to do with this database."""
        url = make_url(self.url_of_case)
        engine = create_async_engine(url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.exec_driver_sql(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
            await connection.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{url.database}'"
            )
            try:
                yield
            finally:
                await connection.exec_driver_sql(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')


class OnPostgreSQLByPsycopg(OnPostgreSQL):
    """A database of its own, by psycopg."""

    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        url = make_url(postgresql_url).set(drivername="postgresql+psycopg")
        return url.render_as_string(hide_password=False)


class OnMariaDB:
    """A database of its own."""

    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url


class TestSQLite(OnSQLite, SqlChannels):
    pass


class TestSQLiteOfManyProcesses(OnSQLite, SqlChannelsOfManyProcesses):
    pass


class TestSQLiteStores(OnSQLite, SqlStores):
    pass


@pytest.mark.postgresql
class TestAsyncpg(OnPostgreSQL, SqlChannels):
    pass


@pytest.mark.postgresql
class TestAsyncpgOfManyProcesses(OnPostgreSQL, SqlChannelsOfManyProcesses):
    pass


@pytest.mark.postgresql
class TestAsyncpgStores(OnPostgreSQL, SqlStores):
    pass


@pytest.mark.postgresql
class TestPsycopg(OnPostgreSQLByPsycopg, SqlChannels):
    pass


@pytest.mark.postgresql
class TestPsycopgStores(OnPostgreSQLByPsycopg, SqlStores):
    pass


@pytest.mark.mariadb
class TestMariaDB(OnMariaDB, SqlChannels):
    pass


@pytest.mark.mariadb
class TestMariaDBOfManyProcesses(OnMariaDB, SqlChannelsOfManyProcesses):
    pass


@pytest.mark.mariadb
class TestMariaDBStores(OnMariaDB, SqlStores):
    pass
