"""Stores of aggregates: the shipped suite in memory and against every database and driver, as JSON and as rows."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import String, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ecotone_fastapi import aggregate
from ecotone_fastapi.adapters.memory import MemoryAggregates
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.testing.conformance import AggregateStoreConformance
from ecotone_fastapi.testing.conformance.aggregates import Account, Seat
from tests.databases import InDatabase, unit_of_work

# ---------------------------------------------------------------------------------------------------------- in memory


class TestMemoryAggregates(AggregateStoreConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.kept = MemoryAggregates()

    @asynccontextmanager
    async def store(self) -> AsyncIterator[AggregateStore]:
        yield self.kept

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit_of_work():
            yield


# ------------------------------------------------------------------------------------------------------- in databases


class SqlAggregateStores(InDatabase, AggregateStoreConformance):
    @pytest.fixture(autouse=True)
    async def application(self, url: str) -> AsyncIterator[None]:
        self.database = SqlAlchemy(url, create_schema=True)
        async with self.database.lifespan():
            async with self.database.engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            yield

    @asynccontextmanager
    async def store(self) -> AsyncIterator[AggregateStore]:
        classes = [type(self.account("a", 0)), type(self.seat("a", 0))]
        [store] = [one for one in self.database.aggregate_stores if all(one.serves(cls) for cls in classes)]
        yield store


class Base(DeclarativeBase):
    pass


# MariaDB compares without regard to case unless a column says otherwise.
Name = String(200).with_variant(String(200, collation="utf8mb4_bin"), "mysql", "mariadb")


@aggregate(identifier="account_id")
class VersionedAccount(Base):
    __tablename__ = "versioned_account"
    account_id: Mapped[str] = mapped_column(Name, primary_key=True)
    balance: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


@aggregate(identifier=("row", "number"))
class VersionedSeat(Base):
    __tablename__ = "versioned_seat"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    row: Mapped[str] = mapped_column(String(20), primary_key=True)
    taken_by: Mapped[str | None] = mapped_column(String(20))
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


@aggregate(identifier="account_id")
class LockedAccount(Base):
    """Its identifier is not the primary key, and it has no version."""

    __tablename__ = "locked_account"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[str] = mapped_column(Name, unique=True)
    balance: Mapped[int]


@aggregate(identifier=("row", "number"))
class LockedSeat(Base):
    __tablename__ = "locked_seat"
    row: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    taken_by: Mapped[str | None] = mapped_column(String(20))


class AsJson(SqlAggregateStores):
    def account(self, account_id: str, balance: int) -> Any:
        return Account(account_id, balance)

    def seat(self, row: str, number: int, taken_by: str | None = None) -> Any:
        return Seat(row, number, taken_by)


class AsVersionedRows(SqlAggregateStores):
    identifiers: Sequence[str] = ("a", "A", " a", "é", "e\u0301", "x" * 190, "' OR 1=1; -- :i")

    def account(self, account_id: str, balance: int) -> Any:
        return VersionedAccount(account_id=account_id, balance=balance)

    def seat(self, row: str, number: int, taken_by: str | None = None) -> Any:
        return VersionedSeat(row=row, number=number, taken_by=taken_by)


class AsLockedRows(AsVersionedRows):
    versioned = False

    def account(self, account_id: str, balance: int) -> Any:
        return LockedAccount(account_id=account_id, balance=balance)

    def seat(self, row: str, number: int, taken_by: str | None = None) -> Any:
        return LockedSeat(row=row, number=number, taken_by=taken_by)


class OnSQLite:
    one_writer = True

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


class OnAsyncpg:
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url


class OnPsycopg:
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


class OnMariaDB:
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url


class TestJsonOnSQLite(OnSQLite, AsJson):
    pass


class TestVersionedRowsOnSQLite(OnSQLite, AsVersionedRows):
    pass


class TestLockedRowsOnSQLite(OnSQLite, AsLockedRows):
    pass


@pytest.mark.postgresql
class TestJsonOnAsyncpg(OnAsyncpg, AsJson):
    pass


@pytest.mark.postgresql
class TestVersionedRowsOnAsyncpg(OnAsyncpg, AsVersionedRows):
    pass


@pytest.mark.postgresql
class TestLockedRowsOnAsyncpg(OnAsyncpg, AsLockedRows):
    pass


@pytest.mark.postgresql
class TestJsonOnPsycopg(OnPsycopg, AsJson):
    pass


@pytest.mark.postgresql
class TestVersionedRowsOnPsycopg(OnPsycopg, AsVersionedRows):
    pass


@pytest.mark.postgresql
class TestLockedRowsOnPsycopg(OnPsycopg, AsLockedRows):
    pass


@pytest.mark.mariadb
class TestJsonOnMariaDB(OnMariaDB, AsJson):
    pass


@pytest.mark.mariadb
class TestVersionedRowsOnMariaDB(OnMariaDB, AsVersionedRows):
    pass


@pytest.mark.mariadb
class TestLockedRowsOnMariaDB(OnMariaDB, AsLockedRows):
    pass
