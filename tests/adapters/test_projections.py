"""Stores of projections: the shipped suite in memory and against every database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ecotone_fastapi.adapters.memory import MemoryProjections
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.testing.conformance import ProjectionStoreConformance
from tests.databases import unit_of_work


class TestMemoryProjections(ProjectionStoreConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.store = MemoryProjections()

    @asynccontextmanager
    async def projections(self) -> AsyncIterator[ProjectionStore]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit_of_work():
            yield


class InDatabase(ProjectionStoreConformance):
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def application(self, url: str) -> AsyncIterator[None]:
        self.url_of_case = url
        async with self.another() as self.database:
            yield

    @asynccontextmanager
    async def another(self) -> AsyncIterator[SqlAlchemy]:
        database = SqlAlchemy(self.url_of_case, create_schema=True)
        async with database.lifespan():
            yield database

    @asynccontextmanager
    async def projections(self) -> AsyncIterator[ProjectionStore]:
        yield self.database.projections

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        gateway = Gateway(Conversion(()), SystemClock())
        async with gateway.unit_of_work(Message(b"", {"id": "cause"})) as scope:
            await scope.enter(self.database.begin(scope))
            yield


class TestSqliteProjections(InDatabase):
    one_writer = True

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestPostgresqlProjections(InDatabase):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url


@pytest.mark.postgresql
class TestPsycopgProjections(InDatabase):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url.replace("+asyncpg", "+psycopg")


@pytest.mark.mariadb
class TestMariadbProjections(InDatabase):
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url


del InDatabase, ProjectionStoreConformance
