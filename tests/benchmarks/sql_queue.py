"""The SQL channel against a Core loop written by hand that does the same work, with the bare driver beside it."""

import json
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from rich.console import Console
from sqlalchemy import event as engine_event
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from ecotone_fastapi import (
    AsynchronousHandlers,
    ConsumerSettings,
    Ecotone,
    asynchronous,
    command_handler,
    untransacted,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import HeaderName, Limits, Message
from tests.benchmarks.measure import Row, show, take_turns

COUNT = 500  # messages in a round
BATCHES = (1, 10, 100)


@dataclass(frozen=True)
class Work:
    number: int


class Transacted:
    @asynchronous("work")
    @command_handler("transacted", id="transacted")
    async def work(self, command: Work) -> None: ...


class Untransacted:
    @asynchronous("work")
    @untransacted
    @command_handler("untransacted", id="untransacted")
    async def work(self, command: Work) -> None: ...


EFFECT = "INSERT INTO bench_effect (number) VALUES (1)"


class Writing:
    @asynchronous("work")
    @command_handler("writing", id="writing")
    async def work(self, command: Work, session: AsyncSession) -> None:
        await session.execute(_effect)


_effect = text(EFFECT)

BODY = b'{"number":1}'


def headers(endpoint: str) -> dict[str, str]:
    return {
        HeaderName.id: str(uuid.uuid4()),
        HeaderName.correlation_id: str(uuid.uuid4()),
        HeaderName.timestamp: "2026-01-01T00:00:00+00:00",
        HeaderName.content_type: "application/json",
        HeaderName.endpoint: endpoint,
    }


class Limit(Protocol):
    """Client code that a good programmer would write for this one queue and nothing else."""

    async def enqueue(self, batch: int) -> None: ...
    async def claim(self, batch: int) -> Sequence[Any]: ...
    async def settle_one(self, row: Any, effect: bool) -> None: ...
    async def settle_all(self, rows: Sequence[Any]) -> None: ...


class CorePostgreSQL:
    """SQLAlchemy Core on asyncpg."""

    def __init__(self, url: str) -> None:
        self.engine: AsyncEngine = create_async_engine(url, isolation_level="READ COMMITTED")
        self.quick = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._insert = text(
            "INSERT INTO ecotone_message (channel, priority, message_id, available_at, due_at, deliveries, attempts,"
            " headers, body, created_at) SELECT 'work', 0, m, now(), now(), 0, 0, h, b, now()"
            " FROM unnest(CAST(:m AS text[]), CAST(:h AS text[]), CAST(:b AS bytea[])) AS new (m, h, b)"
        )
        self._claim = text(
            "WITH due AS MATERIALIZED (SELECT id FROM ecotone_message WHERE channel = 'work' AND priority = 0"
            " AND available_at <= now() ORDER BY available_at, id LIMIT :n FOR UPDATE SKIP LOCKED)"
            " UPDATE ecotone_message m SET available_at = now() + interval '60 s', lease_token = :t,"
            " deliveries = m.deliveries + 1 FROM due WHERE m.id = due.id"
            " RETURNING m.id, m.lease_token, m.headers, m.body"
        )
        self._delete = text("DELETE FROM ecotone_message WHERE id = :id AND lease_token = :t")
        self._delete_all = text(
            "DELETE FROM ecotone_message m USING unnest(CAST(:ids AS bigint[]), CAST(:ts AS uuid[])) AS d (id, t)"
            " WHERE m.id = d.id AND m.lease_token = d.t RETURNING m.id"
        )

    async def enqueue(self, batch: int) -> None:
        texts = [json.dumps(headers("transacted")) for _ in range(batch)]
        async with self.quick.connect() as connection:
            await connection.execute(
                self._insert, {"m": [str(uuid.uuid4()) for _ in texts], "h": texts, "b": [BODY] * batch}
            )

    async def claim(self, batch: int) -> Sequence[Any]:
        async with self.quick.connect() as connection:
            result = await connection.execute(self._claim, {"n": batch, "t": uuid.uuid4()})
            return [(row[0], row[1], json.loads(row[2]), json.loads(row[3])) for row in result]

    async def settle_one(self, row: Any, effect: bool) -> None:
        async with self.engine.begin() as connection:
            if effect:
                await connection.execute(_effect)
            result = await connection.execute(self._delete, {"id": row[0], "t": row[1]})
            assert result.rowcount == 1

    async def settle_all(self, rows: Sequence[Any]) -> None:
        async with self.quick.connect() as connection:
            await connection.execute(
                self._delete_all, {"ids": [row[0] for row in rows], "ts": [row[1] for row in rows]}
            )

    async def close(self) -> None:
        await self.engine.dispose()


class BarePostgreSQL:
    """asyncpg alone."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.connection = connection

    async def enqueue(self, batch: int) -> None:
        texts = [json.dumps(headers("transacted")) for _ in range(batch)]
        await self.connection.execute(
            "INSERT INTO ecotone_message (channel, priority, message_id, available_at, due_at, deliveries, attempts,"
            " headers, body, created_at) SELECT 'work', 0, m, now(), now(), 0, 0, h, b, now()"
            " FROM unnest($1::text[], $2::text[], $3::bytea[]) AS new (m, h, b)",
            [str(uuid.uuid4()) for _ in texts],
            texts,
            [BODY] * batch,
        )

    async def claim(self, batch: int) -> Sequence[Any]:
        rows = await self.connection.fetch(
            "WITH due AS MATERIALIZED (SELECT id FROM ecotone_message WHERE channel = 'work' AND priority = 0"
            " AND available_at <= now() ORDER BY available_at, id LIMIT $1 FOR UPDATE SKIP LOCKED)"
            " UPDATE ecotone_message m SET available_at = now() + interval '60 s', lease_token = $2,"
            " deliveries = m.deliveries + 1 FROM due WHERE m.id = due.id"
            " RETURNING m.id, m.lease_token, m.headers, m.body",
            batch,
            uuid.uuid4(),
        )
        return [(row[0], row[1], json.loads(row[2]), json.loads(row[3])) for row in rows]

    async def settle_one(self, row: Any, effect: bool) -> None:
        async with self.connection.transaction():
            if effect:
                await self.connection.execute(EFFECT)
            await self.connection.execute(
                "DELETE FROM ecotone_message WHERE id = $1 AND lease_token = $2", row[0], row[1]
            )

    async def settle_all(self, rows: Sequence[Any]) -> None:
        await self.connection.execute(
            "DELETE FROM ecotone_message m USING unnest($1::bigint[], $2::uuid[]) AS d (id, t)"
            " WHERE m.id = d.id AND m.lease_token = d.t",
            [row[0] for row in rows],
            [row[1] for row in rows],
        )


_NOW = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000"
_SQLITE_INSERT = (
    "INSERT INTO ecotone_message (channel, priority, message_id, available_at, due_at, deliveries, attempts, headers,"
    f" body, created_at) VALUES ('work', 0, :m, {_NOW}, {_NOW}, 0, 0, :h, :b, {_NOW})"
)
_SQLITE_CLAIM = (
    f"UPDATE ecotone_message SET available_at = {_NOW} + 60000000, lease_token = :t, deliveries = deliveries + 1"
    " WHERE id IN (SELECT id FROM ecotone_message WHERE channel = 'work' AND priority = 0"
    f" AND available_at <= {_NOW} ORDER BY available_at, id LIMIT :n) RETURNING id, lease_token, headers, body"
)
_SQLITE_DELETE = "DELETE FROM ecotone_message WHERE id = :id AND lease_token = :t"


def _settings(connection: Any, record: object = None) -> None:
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
        connection.execute(f"PRAGMA {setting}")


class CoreSQLite:
    """SQLAlchemy Core on aiosqlite."""

    def __init__(self, url: str) -> None:
        self.engine: AsyncEngine = create_async_engine(url)
        engine_event.listen(self.engine.sync_engine, "connect", self._connect)
        engine_event.listen(self.engine.sync_engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        self._insert, self._claim, self._delete = text(_SQLITE_INSERT), text(_SQLITE_CLAIM), text(_SQLITE_DELETE)

    @staticmethod
    def _connect(connection: Any, record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for setting in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    async def enqueue(self, batch: int) -> None:
        rows = [{"m": str(uuid.uuid4()), "h": json.dumps(headers("transacted")), "b": BODY} for _ in range(batch)]
        async with self.engine.begin() as connection:
            await connection.execute(self._insert, rows)

    async def claim(self, batch: int) -> Sequence[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(self._claim, {"n": batch, "t": uuid.uuid4().bytes})
            return [(row[0], row[1], json.loads(row[2]), json.loads(row[3])) for row in result]

    async def settle_one(self, row: Any, effect: bool) -> None:
        async with self.engine.begin() as connection:
            if effect:
                await connection.execute(_effect)
            await connection.execute(self._delete, {"id": row[0], "t": row[1]})

    async def settle_all(self, rows: Sequence[Any]) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(self._delete, [{"id": row[0], "t": row[1]} for row in rows])

    async def close(self) -> None:
        await self.engine.dispose()


class BareSQLite:
    """sqlite3 of the standard library, without any thread."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        _settings(self.connection)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield
        self.connection.execute("COMMIT")

    async def enqueue(self, batch: int) -> None:
        async with self._transaction():
            self.connection.executemany(
                _SQLITE_INSERT,
                [{"m": str(uuid.uuid4()), "h": json.dumps(headers("transacted")), "b": BODY} for _ in range(batch)],
            )

    async def claim(self, batch: int) -> Sequence[Any]:
        rows = self.connection.execute(_SQLITE_CLAIM, {"n": batch, "t": uuid.uuid4().bytes}).fetchall()
        return [(row[0], row[1], json.loads(row[2]), json.loads(row[3])) for row in rows]

    async def settle_one(self, row: Any, effect: bool) -> None:
        async with self._transaction():
            if effect:
                self.connection.execute(EFFECT)
            self.connection.execute(_SQLITE_DELETE, {"id": row[0], "t": row[1]})

    async def settle_all(self, rows: Sequence[Any]) -> None:
        async with self._transaction():
            self.connection.executemany(_SQLITE_DELETE, [{"id": row[0], "t": row[1]} for row in rows])


async def handler(payload: object) -> None: ...


def one_by_one(limit: Limit, batch: int, *, effect: bool = False) -> Callable[[int], Awaitable[None]]:
    """Claim a batch, handle and settle each message in a transaction of its own."""

    async def run(times: int) -> None:
        done = 0
        while done < times:
            for row in await limit.claim(min(batch, times - done)):
                await handler(row[3])
                await limit.settle_one(row, effect)
                done += 1

    return run


def together(limit: Limit, batch: int) -> Callable[[int], Awaitable[None]]:
    """Claim a batch, handle all of it, settle it in one statement."""

    async def run(times: int) -> None:
        done = 0
        while done < times:
            rows = await limit.claim(min(batch, times - done))
            for row in rows:
                await handler(row[3])
            await limit.settle_all(rows)
            done += len(rows)

    return run


def inserting(limit: Limit, batch: int) -> Callable[[int], Awaitable[None]]:
    async def run(times: int) -> None:
        for _ in range(max(1, times // batch)):
            await limit.enqueue(batch)

    return run


class Ours:
    """The application under measurement."""

    def __init__(self, url: str, batch: int) -> None:
        self.database = SqlAlchemy(url, create_schema=True)
        self.channel = self.database.channel("work")
        settings = ConsumerSettings(batch=batch)
        self.ecotone = Ecotone(
            [Transacted, Untransacted, Writing],
            channels=[self.channel],
            plugins=[self.database, AsynchronousHandlers(consumers={"work": settings})],
        )
        self.batch = batch

    async def fill(self, endpoint: str, count: int) -> None:
        await self.channel.send([Message(BODY, headers(endpoint)) for _ in range(count)])

    async def enqueue(self, times: int) -> None:
        for _ in range(max(1, times // self.batch)):
            await self.channel.send([Message(BODY, headers("transacted")) for _ in range(self.batch)])

    async def consume(self, times: int) -> None:
        handled = await self.ecotone.run("work", Limits(messages=times))
        assert handled == times, handled


async def compare(console: Console, database: str, url: str, core: Limit, bare: Limit) -> bool:
    reached = True
    rows: list[Row] = []
    for batch in BATCHES:
        ours = Ours(url, batch)
        async with ours.ecotone.running(consumers=False):
            async with ours.database.engine.begin() as connection:
                await connection.execute(text("CREATE TABLE IF NOT EXISTS bench_effect (number INTEGER)"))
            limits = {"core": core, "bare": bare}
            took = await take_turns(
                {"ours": ours.enqueue, **{name: inserting(one, batch) for name, one in limits.items()}},
                times=COUNT,
                rounds=7,
            )
            rows += _rows(f"enqueue, batch {batch}", took)
            for way, endpoint, loop in (
                ("a transaction per message", "transacted", one_by_one),
                ("a transaction per message with a row written", "writing", partial(one_by_one, effect=True)),
                ("acks in batches", "untransacted", together),
            ):
                rows += _rows(
                    f"claim, handle, ack, batch {batch}, {way}",
                    await _consuming(ours, endpoint, {name: loop(one, batch) for name, one in limits.items()}),
                    ratio=None if endpoint == "untransacted" else 0.7,
                    rate=5_000 if (database, batch, endpoint) == ("PostgreSQL", 100, "untransacted") else None,
                )
    reached &= show(console, f"SQL queue on {database}", rows)
    return reached


async def _consuming(
    ours: Ours, endpoint: str, limits: dict[str, Callable[[int], Awaitable[None]]]
) -> dict[str, float]:
    """Measure consuming alone: the queue is filled between the rounds."""
    rounds: dict[str, list[float]] = {"ours": [], **{name: [] for name in limits}}
    await ours.channel.purge()
    for number in range(6):
        for name, consume in {"ours": ours.consume, **limits}.items():
            await ours.fill(endpoint, COUNT)
            start = time.perf_counter()
            await consume(COUNT)
            if number:  # the first round warms up
                rounds[name].append((time.perf_counter() - start) / COUNT)
    return {name: statistics.median(one) for name, one in rounds.items()}


def _rows(what: str, took: Any, *, ratio: float | None = None, rate: float | None = None) -> list[Row]:
    seconds = {name: getattr(one, "seconds", one) for name, one in took.items()}
    target, reached = "", None
    if ratio is not None:
        target, reached = f"{ratio} of Core", seconds["core"] / seconds["ours"] >= ratio
    if rate is not None:
        target, reached = f"{rate:,}/s", 1 / seconds["ours"] >= rate
    return [
        Row(f"{what}: Core loop (limit)", seconds["core"], seconds["core"]),
        Row("    bare driver", seconds["bare"], seconds["core"]),
        Row("    ecotone_fastapi", seconds["ours"], seconds["core"], target, reached),
    ]


async def on_postgresql(console: Console, url: str) -> bool:
    core = CorePostgreSQL(url)
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await compare(console, "PostgreSQL", url, core, BarePostgreSQL(connection))
    finally:
        await connection.close()
        await core.close()


async def on_sqlite(console: Console) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        url = f"sqlite+aiosqlite:///{path}"
        core, bare = CoreSQLite(url), BareSQLite(path)
        try:
            return await compare(console, "SQLite", url, core, bare)
        finally:
            await core.close()
            bare.connection.close()
