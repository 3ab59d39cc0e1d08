"""A database that is full, locked or busy: what was asked fails as a whole, and what was accepted waits."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from ecotone_fastapi import (
    AsynchronousHandlers,
    Backoff,
    CommandBus,
    ConsumerSettings,
    Ecotone,
    Failures,
    asynchronous,
    command_handler,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import ChannelError
from tests.faults.world import eventually

BUSY = 1.0  # seconds for which a writer waits for another one
MANY = 40  # lines of a log that nobody would call a storm


@dataclass(frozen=True)
class Order:
    number: int
    note: str = ""


@dataclass(frozen=True)
class Bill:
    number: int


@dataclass
class Shop:
    """Takes orders, and bills them later; both leave a trace in the database."""

    runs: Counter[int] = field(default_factory=Counter)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    engine: AsyncEngine | None = None
    note: str = ""

    @command_handler
    async def order(self, command: Order, session: AsyncSession, commands: CommandBus) -> None:
        await session.execute(text("INSERT INTO orders VALUES (:number, :note)"), vars(command))
        await commands.send(Bill(command.number))

    @asynchronous("bills")
    @command_handler(id="bill")
    async def bill(self, command: Bill, session: AsyncSession) -> None:
        self.runs[command.number] += 1
        await session.execute(
            text("INSERT INTO bills VALUES (:number, :note)"), {"number": command.number, "note": self.note}
        )
        if self.engine is not None:
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(self.engine.connect())
                self.holding.set()
                await self.let_go.wait()


def application(shop: Shop, engine: AsyncEngine, *, lease: float = 60.0) -> Ecotone:
    database = SqlAlchemy(engine, create_schema=True)
    return Ecotone(
        [shop],
        channels=[database.channel("bills", lease=lease)],
        plugins=[
            database,
            AsynchronousHandlers(consumers={"*": ConsumerSettings(concurrency=2)}),
            Failures(Backoff(retries=100, first=0.05, factor=1.2, longest=0.3)),
        ],
    )


def file_of(url: str) -> Path:
    return Path(url.partition("///")[2])


def sqlite(url: str) -> AsyncEngine:
    with sqlite3.connect(file_of(url)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE orders (number INTEGER, note TEXT)")
        connection.execute("CREATE TABLE bills (number INTEGER, note TEXT)")
    connection.close()
    return create_async_engine(url, connect_args={"timeout": BUSY})


@asynccontextmanager
async def disposed(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    try:
        yield engine
    finally:
        await engine.dispose()


async def numbers(engine: AsyncEngine, table: str) -> list[int]:
    async with engine.connect() as connection:
        return sorted((await connection.execute(text(f"SELECT number FROM {table}"))).scalars())


async def test_a_full_disk_refuses_orders_as_a_whole_and_loses_none_that_was_accepted(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    room = {"pages": 1_000_000}
    async with disposed(sqlite(sqlite_url)) as engine:
        # It is a limit of each connection, so that what checks one out sets it.
        event.listen(
            engine.sync_engine,
            "begin",
            lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count = {room['pages']}"),
        )
        shop = Shop(note="x" * 20_000)
        async with application(shop, engine).running(consumers=False) as ecotone:
            await ecotone.command_bus.send(Order(1))
            room["pages"] = 1  # as many as there are
            accepted, refused = [1], [2]
            with pytest.raises(DBAPIError, match="full"):
                await ecotone.command_bus.send(Order(2, note="x" * 100_000))
            for number in range(3, 40):
                try:
                    await ecotone.command_bus.send(Order(number, note="x" * 2000))
                except (DBAPIError, ChannelError):
                    refused.append(number)
                else:
                    accepted.append(number)
            assert len(refused) > 10
            assert await numbers(engine, "orders") == accepted
        async with application(shop, engine).running():
            await eventually(lambda: "full" in caplog.text, "a complaint")
            room["pages"] = 1_000_000
            await eventually(lambda: _are(engine, "bills", accepted), "all bills")

        assert await numbers(engine, "bills") == accepted
        assert await numbers(engine, "orders") == accepted


async def _are(engine: AsyncEngine, table: str, wanted: list[int]) -> bool:
    return await numbers(engine, table) == wanted


async def test_a_database_file_that_somebody_else_has_locked_is_waited_for(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()
    async with disposed(sqlite(sqlite_url)) as engine, application(shop, engine).running() as ecotone:
        for number in range(3):
            await ecotone.command_bus.send(Order(number))
        await eventually(lambda: _are(engine, "bills", [0, 1, 2]), "the first bills")
        caplog.clear()
        other = sqlite3.connect(file_of(sqlite_url), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises((OperationalError, ChannelError), match="locked"):
                await ecotone.command_bus.send(Order(3))
            await eventually(lambda: _complaints(caplog), "a complaint")
        finally:
            other.rollback()
            other.close()
        await ecotone.command_bus.send(Order(4))
        await eventually(lambda: _are(engine, "bills", [0, 1, 2, 4]), "the bill of the last order")

        assert await numbers(engine, "orders") == [0, 1, 2, 4]
    assert _complaints(caplog) < MANY


def _complaints(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelname in ("WARNING", "ERROR") for record in caplog.records)


@pytest.mark.postgresql
async def test_a_handler_that_holds_all_connections_loses_its_lease_and_nothing_else(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        disposed(create_async_engine(postgresql_url, pool_size=5, max_overflow=0, pool_timeout=0.5)) as small,
        disposed(create_async_engine(postgresql_url)) as another,
    ):
        async with another.begin() as connection:
            await connection.execute(text("CREATE TABLE orders (number INTEGER, note TEXT)"))
            await connection.execute(text("CREATE TABLE bills (number INTEGER, note TEXT)"))
        greedy, rival = Shop(engine=small), Shop()
        async with application(greedy, small, lease=1.0).running(consumers=False) as ecotone:
            await ecotone.command_bus.send(Order(1))
        async with application(greedy, small, lease=1.0).running():
            await asyncio.wait_for(greedy.holding.wait(), 20)
            async with application(rival, another, lease=1.0).running(consumers=["bills"]):
                await eventually(lambda: _are(another, "bills", [1]), "the bill of somebody who could work")
                greedy.let_go.set()
                await eventually(lambda: "lost the lease" in caplog.text, "the end of the greedy handler")
        assert await numbers(another, "bills") == [1]
    assert "leases were not renewed" in caplog.text
    assert (greedy.runs, rival.runs) == ({1: 1}, {1: 1})
