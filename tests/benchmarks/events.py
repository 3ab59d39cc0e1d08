"""The event store against Core loops by hand with the same guarantees, and the package `eventsourcing` beside it.

By hand means: one table with a unique stream and version, ordered by transaction where the server knows these, payloads
and headers as JSON, and nothing that this one benchmark does not need.
"""

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from ecotone_fastapi import Ecotone, EventStore, applies, command_handler, event_handler, event_sourced, projection
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits
from tests.benchmarks.measure import Row, show, take_turns

CLIENTS = 16
COMMANDS = 240  # in a round
STREAMS, LENGTH = 200, 50  # what is loaded
LONG = 100  # events of the one aggregate that is loaded
REPLAYED = 100_000


@dataclass(frozen=True)
class Deposited:
    account: str
    amount: int
    currency: str
    reference: str


@dataclass(frozen=True)
class Deposit:
    account: str
    times: int


def deposited(account: str) -> Deposited:
    return Deposited(account, 100, "EUR", "a payment of some importance")


class Depositing:
    @command_handler
    async def deposit(self, command: Deposit, events: EventStore) -> None:
        new = [deposited(command.account) for _ in range(command.times)]
        await events.append(f"bench-{command.account}", new, expected=0)


@event_sourced(identifier="account", stream="account")
@dataclass
class Account:
    account: str = ""
    balance: int = 0

    @applies
    def when_deposited(self, event: Deposited) -> None:
        self.account = event.account
        self.balance += event.amount

    @command_handler("account.open")
    @staticmethod
    def open(account: str) -> list[Deposited]:
        return [deposited(account) for _ in range(LONG)]

    @command_handler("account.touch")
    def touch(self, account: str) -> None: ...


counted = 0


@projection("bench_count", categories=["bench"], mode="asynchronous", batch=1_000)
class Counting:
    @event_handler
    async def count(self, event: Deposited) -> None:
        global counted  # noqa: PLW0603 - what it counts is thrown away
        counted += 1


_upsert = text(
    "INSERT INTO bench_balance (account, balance) VALUES (:account, :amount)"
    " ON CONFLICT (account) DO UPDATE SET balance = bench_balance.balance + excluded.balance"
)


@projection("bench_rows", categories=["bench"], mode="asynchronous", batch=500)
class Balances:
    @event_handler
    async def add(self, event: Deposited, session: AsyncSession) -> None:
        await session.execute(_upsert, {"account": event.account, "amount": event.amount})


class ByHand:
    """What a good programmer would write with SQLAlchemy Core for this one table and nothing else."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.postgresql = engine.dialect.name == "postgresql"
        if self.postgresql:
            self._insert = text(
                "INSERT INTO by_hand (event_id, stream, category, version, name, body, headers)"
                " SELECT i, :stream, 'bench', v, 'Deposited', b, h"
                " FROM unnest(CAST(:i AS text[]), CAST(:v AS int[]), CAST(:b AS bytea[]), CAST(:h AS text[]))"
                " AS new (i, v, b, h) RETURNING position"
            )
        else:
            self._insert = text(
                "INSERT INTO by_hand (event_id, stream, category, version, name, body, headers)"
                " VALUES (:i, :stream, 'bench', :v, 'Deposited', :b, :h)"
            )
        self._adapter = TypeAdapter(Deposited)
        self._load = text(
            "SELECT version, position, name, body, headers, recorded_at FROM by_hand"
            " WHERE stream = :stream ORDER BY version"
        )

    async def create(self) -> None:
        async with self.engine.begin() as connection:
            if self.postgresql:
                await connection.execute(
                    text(
                        "CREATE TABLE by_hand (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                        " transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(), event_id text NOT NULL UNIQUE,"
                        " stream text NOT NULL, category text NOT NULL, version int NOT NULL, name text NOT NULL,"
                        " body bytea NOT NULL, headers text NOT NULL,"
                        " recorded_at timestamptz NOT NULL DEFAULT now(), UNIQUE (stream, version))"
                    )
                )
                await connection.execute(text("CREATE INDEX ON by_hand (transaction_id, position)"))
                await connection.execute(text("CREATE INDEX ON by_hand (category, transaction_id, position)"))
            else:
                await connection.execute(
                    text(
                        "CREATE TABLE by_hand (position INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE,"
                        " stream TEXT NOT NULL, category TEXT NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL,"
                        " body BLOB NOT NULL, headers TEXT NOT NULL,"
                        " recorded_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, UNIQUE (stream, version))"
                    )
                )
                await connection.execute(text("CREATE INDEX by_hand_category ON by_hand (category, position)"))

    def _rows(self, account: str, times: int) -> list[dict[str, Any]]:
        rows = []
        for version in range(1, times + 1):
            id_ = str(uuid.uuid4())
            headers = {"id": id_, "correlation_id": id_, "timestamp": "2026-01-01T00:00:00+00:00"}
            body = self._adapter.dump_json(deposited(account))
            rows.append({"i": id_, "v": version, "b": body, "h": json.dumps(headers), "stream": f"bench-{account}"})
        return rows

    async def append(self, account: str, times: int) -> None:
        rows = self._rows(account, times)
        async with self.engine.begin() as connection:
            if self.postgresql:
                columns: dict[str, Any] = {key: [row[key] for row in rows] for key in ("i", "v", "b", "h")}
                await connection.execute(self._insert, {**columns, "stream": rows[0]["stream"]})
            else:
                await connection.execute(self._insert, rows)

    async def load(self, stream: str) -> list[Deposited]:
        async with self.engine.connect() as connection:
            rows = (await connection.execute(self._load, {"stream": stream})).all()
        return [self._adapter.validate_json(row.body) for row in rows]

    async def replay(self, handle: Callable[[Deposited], object]) -> int:
        """Read everything in its order, in pages, and call something with each event."""
        after: dict[str, Any] = {"transaction": "0", "position": 0, "limit": 1_000}
        if self.postgresql:
            page = text(
                "SELECT CAST(transaction_id AS text) AS transaction, position, stream, version, name, body, headers"
                " FROM by_hand WHERE category = 'bench'"
                " AND (transaction_id, position) > (CAST(CAST(:transaction AS text) AS xid8), :position)"
                " AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())"
                " ORDER BY transaction_id, position LIMIT :limit"
            )
        else:
            page = text(
                "SELECT '0' AS \"transaction\", position, stream, version, name, body, headers FROM by_hand"
                " WHERE category = 'bench' AND position > :position AND :transaction = '0'"
                " ORDER BY position LIMIT :limit"
            )
        handled = 0
        while True:
            async with self.engine.connect() as connection:
                rows = (await connection.execute(page, after)).all()
            if not rows:
                return handled
            for row in rows:
                handle(self._adapter.validate_json(row.body))
            handled += len(rows)
            after.update(transaction=rows[-1].transaction, position=rows[-1].position)


class Ours:
    """The application under measurement."""

    def __init__(self, url: str) -> None:
        self.database = SqlAlchemy(url, create_schema=True)
        self.ecotone = Ecotone([Depositing, Account, Counting, Balances], plugins=[self.database], consumers=False)

    async def append(self, account: str, times: int) -> None:
        await self.ecotone.command_bus.send(Deposit(account, times))


def appending(append: Callable[[str, int], Awaitable[object]], events: int, clients: int) -> Callable[[int], Any]:
    """Append to a new stream with each command, by so many clients at the same time."""

    async def run(times: int) -> None:
        left = iter(range(times))

        async def client() -> None:
            for _ in left:
                await append(uuid.uuid4().hex, events)

        await asyncio.gather(*(client() for _ in range(clients)))

    return run


class Peer(Protocol):
    """Another package that does the same; see `tests.benchmarks.peer`."""

    async def append(self, account: str, times: int) -> None: ...
    def close(self) -> None: ...


async def appended(console: Console, database: str, ours: Ours, by_hand: ByHand, peer: Peer | None) -> bool:
    rows: list[Row] = []
    for events in (1, 10):
        for clients in (1, CLIENTS):
            candidates: dict[str, Callable[[int], Awaitable[object]]] = {
                "by hand": appending(by_hand.append, events, clients),
                "ours": appending(ours.append, events, clients),
            }
            if peer is not None and clients == 1:  # it is synchronous
                candidates["peer"] = appending(peer.append, events, clients)
            took = await take_turns(candidates, times=COMMANDS, rounds=7)
            seconds = {name: one.seconds / events for name, one in took.items()}
            limit = seconds["by hand"]
            together = "one client" if clients == 1 else f"{clients} at the same time"
            rows.append(Row(f"{events} per command, {together}: Core loop (limit)", limit, limit))
            reached, target = limit / seconds["ours"] >= 0.8, "0.8 of Core"
            if "peer" in seconds and database == "PostgreSQL":
                reached, target = (
                    reached and seconds["peer"] / seconds["ours"] >= 1.2,
                    f"{target}, 1.2 of eventsourcing",
                )
            rows.append(Row("    ecotone_fastapi", seconds["ours"], limit, target, reached))
            if "peer" in seconds:
                rows.append(Row("    eventsourcing", seconds["peer"], limit))
    return show(console, f"Events on {database}: append, per event", rows)


async def loaded(console: Console, database: str, ours: Ours, by_hand: ByHand) -> bool:
    events = ours.ecotone.assembly.services[EventStore]
    assert isinstance(events, EventStore)
    accounts = [uuid.uuid4().hex for _ in range(STREAMS)]
    for account in accounts:
        await by_hand.append(account, LENGTH)
        await ours.append(account, LENGTH)
    await ours.ecotone.command_bus.send("long", to="account.open")

    async def load_by_hand(times: int) -> None:
        for account in accounts[: times // LENGTH]:
            assert len(await by_hand.load(f"bench-{account}")) == LENGTH

    async def load(times: int) -> None:
        for account in accounts[: times // LENGTH]:
            assert len(await events.load(f"bench-{account}")) == LENGTH

    async def touch(times: int) -> None:
        for _ in range(times):
            await ours.ecotone.command_bus.send("long", to="account.touch")

    took = await take_turns({"by hand": load_by_hand, "ours": load}, times=STREAMS * LENGTH, rounds=7)
    touched = await take_turns({"touch": touch}, times=100, rounds=7)
    limit, mine, touching = took["by hand"].seconds, took["ours"].seconds, touched["touch"].seconds
    return show(
        console,
        f"Events on {database}: load",
        [
            Row(f"streams of {LENGTH}, with pydantic: Core loop (limit)", limit, limit),
            Row("    ecotone_fastapi", mine, limit, "40,000/s", 1 / mine >= 40_000),
            Row(f"a command for an aggregate of {LONG} events", touching, touching, "3 ms", touching <= 0.003),
        ],
    )


async def replayed(console: Console, database: str, ours: Ours, by_hand: ByHand) -> bool:
    """Projections that begin anew, over all that was appended; what they do to it is measured, too."""
    events = ours.ecotone.assembly.services[EventStore]
    assert isinstance(events, EventStore)
    async with ours.database.engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE IF NOT EXISTS bench_balance (account VARCHAR(64) PRIMARY KEY, balance BIGINT NOT NULL)")
        )
    for _ in range(REPLAYED // 1_000):
        account = uuid.uuid4().hex
        await events.append(f"bench-{account}", [deposited(account) for _ in range(1_000)], expected=0)
        await by_hand.append(account, 1_000)
    async with ours.database.engine.connect() as connection:
        await connection.execute(text("ANALYZE"))  # as a server does by itself, within a minute
        await connection.commit()
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    handled = await by_hand.replay(lambda event: None)
    seconds["by hand"] = (time.perf_counter() - began) / handled
    for name in ("bench_count", "bench_rows"):
        began = time.perf_counter()
        handled = await ours.ecotone.run(name, Limits(until_empty=True))
        assert handled >= REPLAYED, handled
        seconds[name] = (time.perf_counter() - began) / handled
    limit, count, rows = seconds["by hand"], seconds["bench_count"], seconds["bench_rows"]
    return show(
        console,
        f"Events on {database}: replay of {REPLAYED:,} and more",
        [
            Row("read in pages, with pydantic: Core loop (limit)", limit, limit),
            Row("    a projection that counts", count, limit, "80,000/s", 1 / count >= 80_000),
            Row("    a projection that upserts a row per event", rows, limit, "4,000/s", 1 / rows >= 4_000),
        ],
    )


async def compare(console: Console, database: str, url: str) -> bool:
    ours, by_hand = Ours(url), ByHand(SqlAlchemy(url).engine)
    peer: Peer | None = import_module("tests.benchmarks.peer").Peer(url) if find_spec("eventsourcing") else None
    try:
        await by_hand.create()
        reached = True
        async with ours.ecotone.running(consumers=False):
            reached &= await appended(console, database, ours, by_hand, peer)
            reached &= await loaded(console, database, ours, by_hand)
            reached &= await replayed(console, database, ours, by_hand)
        return reached
    finally:
        if peer is not None:
            peer.close()
        await by_hand.engine.dispose()


async def on_postgresql(console: Console, url: str) -> bool:
    return await compare(console, "PostgreSQL", url)


async def on_sqlite(console: Console) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return await compare(console, "SQLite", f"sqlite+aiosqlite:///{Path(folder) / 'bench.db'}")
