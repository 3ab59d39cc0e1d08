"""What the shipped suites do not ask: units of work, sessions, wake-up, schema, faults and the number of statements."""

# ruff: noqa: PT011, PT012, SIM117 - a unit of work is a block, and it may fail inside or when it ends

import asyncio
import gc
import itertools
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import Depends
from pydantic import BaseModel
from sqlalchemy import URL, Connection, event, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from ecotone_fastapi import (
    Backoff,
    Ecotone,
    EventBus,
    Failures,
    asynchronous,
    command_handler,
    event_handler,
    query_handler,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy, dialects, metadata
from ecotone_fastapi.adapters.sqlalchemy import channel as sql_channel
from ecotone_fastapi.adapters.sqlalchemy.channel import SqlChannel
from ecotone_fastapi.adapters.sqlalchemy.tables import SCHEMA_VERSION
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, LeaseLostError, MissingExtraError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message, new_id
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.plugin import Limits
from tests.servers import until


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


# The primary key of MariaDB needs a length.
Account.__table__.c.name.type.length = 50

SQLITE = pytest.param("sqlite", id="sqlite")
ASYNCPG = pytest.param("asyncpg", id="asyncpg", marks=pytest.mark.postgresql)
PSYCOPG = pytest.param("psycopg", id="psycopg", marks=pytest.mark.postgresql)
MARIADB = pytest.param("mariadb", id="mariadb", marks=pytest.mark.mariadb)
EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])
SERVERS = pytest.mark.parametrize("kind", [ASYNCPG, PSYCOPG, MARIADB])
POSTGRESQL = pytest.mark.parametrize("kind", [ASYNCPG, PSYCOPG])


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    name = {"sqlite": "sqlite_url", "mariadb": "mariadb_url"}.get(kind, "postgresql_url")
    address: str = request.getfixturevalue(name)
    return with_driver(address, f"postgresql+{kind}") if name == "postgresql_url" else address


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    async with running(SqlAlchemy(url, create_schema=True)) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(Account.__table__.insert(), {"name": "ada", "balance": 100})
        yield database


@asynccontextmanager
async def running(database: SqlAlchemy) -> AsyncIterator[SqlAlchemy]:
    async with database.lifespan():
        yield database


@asynccontextmanager
async def opened(channel: SqlChannel) -> AsyncIterator[SqlChannel]:
    await channel.open()
    try:
        yield channel
    finally:
        await channel.close()


@asynccontextmanager
async def scope() -> AsyncIterator[Scope]:
    gateway = Gateway(Conversion(()), SystemClock())
    async with gateway.unit_of_work(letter("cause")) as scope:
        yield scope


@asynccontextmanager
async def unit(database: SqlAlchemy) -> AsyncIterator[AsyncSession]:
    async with scope() as opened_scope:
        await opened_scope.enter(database.begin(opened_scope))
        yield await session_of(database)


async def session_of(database: SqlAlchemy) -> AsyncSession:
    return await anext(database.session())


async def balance(database: SqlAlchemy, name: str = "ada") -> int | None:
    async with database.sessionmaker() as session:
        return await session.scalar(select(Account.balance).where(Account.name == name))


def letter(payload: str = "hello", **headers: str) -> Message[bytes]:
    return Message(payload.encode(), {"id": new_id(), **headers})


def with_driver(address: str, driver: str) -> str:
    return make_url(address).set(drivername=driver).render_as_string(hide_password=False)


# ------------------------------------------------------------------------------------------------------ units of work


@EVERY
async def test_a_unit_commits_what_the_session_has_done(database: SqlAlchemy) -> None:
    async with unit(database) as session:
        session.add(Account(name="bob", balance=1))
        assert await balance(database, "bob") is None

    assert await balance(database, "bob") == 1


@EVERY
async def test_a_unit_that_fails_leaves_nothing_and_lets_the_error_pass(database: SqlAlchemy) -> None:
    failure = ValueError("no")

    async with opened(database.channel("notes")) as channel:
        with pytest.raises(ValueError, match="no") as caught:
            async with unit(database) as session:
                session.add(Account(name="bob", balance=1))
                await session.flush()
                await channel.send([letter()])
                raise failure

        assert caught.value is failure
        assert await balance(database, "bob") is None
        assert await channel.depth() == 0


@EVERY
async def test_the_error_of_a_commit_passes_unchanged(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        await channel.send([letter()])
        [delivery] = await channel.receive(1, 1)

        with pytest.raises(IntegrityError):
            async with unit(database) as session:
                await delivery.ack()
                session.add(Account(name="ada", balance=1))

        assert not delivery.settled
        await delivery.nack()
        assert delivery.settled


@EVERY
async def test_everything_in_a_scope_shares_one_session(database: SqlAlchemy) -> None:
    async with unit(database) as session:
        assert await session_of(database) is session
        async with scope():
            assert await session_of(database) is not session


@EVERY
async def test_a_session_without_a_unit_changes_nothing(database: SqlAlchemy) -> None:
    async with scope():
        session = await session_of(database)
        await session.execute(update(Account).values(balance=0))

    assert await balance(database) == 100
    assert not session.in_transaction()


@EVERY
async def test_outside_a_scope_a_session_is_ones_own(database: SqlAlchemy) -> None:
    sessions = database.session()
    session = await anext(sessions)
    await session.execute(update(Account).values(balance=1))
    await session.commit()
    await session.scalar(select(Account.balance))
    await sessions.aclose()

    assert not session.in_transaction()
    assert await balance(database) == 1


@EVERY
async def test_a_unit_adopts_a_session_that_has_read(database: SqlAlchemy) -> None:
    async with scope() as opened_scope:
        session = await session_of(database)
        account = await session.get_one(Account, "ada")
        async with unit(database) as faster:
            await faster.execute(update(Account).values(balance=Account.balance + 1))
        async with database.begin(opened_scope):
            assert await session_of(database) is session
            await session.refresh(account)
            account.balance += 10

    assert await balance(database) == 111


@EVERY
@pytest.mark.parametrize("failure", [None, ValueError])
async def test_what_a_session_wrote_before_belongs_to_the_unit(
    database: SqlAlchemy, failure: type[Exception] | None
) -> None:
    async with scope() as opened_scope:
        session = await session_of(database)
        await session.execute(update(Account).values(balance=Account.balance + 10))
        with suppress(ValueError):
            async with database.begin(opened_scope):
                assert await balance(database) == 100
                if failure is not None:
                    raise failure

    assert await balance(database) == (110 if failure is None else 100)


@EVERY
async def test_a_unit_may_follow_one_that_failed_in_the_same_scope(database: SqlAlchemy) -> None:
    async with scope() as opened_scope:
        session = await session_of(database)
        with pytest.raises(ValueError):
            async with database.begin(opened_scope):
                session.add(Account(name="bob", balance=1))
                await session.flush()
                raise ValueError
        async with database.begin(opened_scope):
            session.add(Account(name="bob", balance=2))

    assert await balance(database, "bob") == 2


@EVERY
async def test_a_savepoint_of_a_unit_rolls_back_alone(database: SqlAlchemy) -> None:
    async with unit(database) as session:
        session.add(Account(name="bob", balance=1))
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                session.add(Account(name="ada", balance=1))
        async with session.begin_nested():
            session.add(Account(name="eve", balance=3))

    assert await balance(database, "bob") == 1
    assert await balance(database, "eve") == 3


@EVERY
async def test_a_unit_that_is_not_used_opens_no_connection(database: SqlAlchemy) -> None:
    with statements(database) as seen:
        async with unit(database):
            pass

    assert seen == []


@EVERY
async def test_many_units_that_read_and_then_write_lose_no_update(database: SqlAlchemy, url: str) -> None:
    async def deposit(where: SqlAlchemy) -> None:
        async with unit(where) as session:
            account = await session.get_one(Account, "ada", with_for_update=True)
            await session.execute(select(Account))
            account.balance += 1

    async with running(SqlAlchemy(url)) as other_process:
        await asyncio.gather(*(deposit(where) for _ in range(20) for where in (database, other_process)))

    assert await balance(database) == 140


@EVERY
async def test_an_effect_happens_once_whatever_fails(database: SqlAlchemy, url: str) -> None:
    failures = itertools.cycle([ValueError, None, None])

    async def consume(where: SqlAlchemy) -> None:
        async with opened(where.channel("deposits", lease=5)) as channel:
            while deliveries := await channel.receive(3, 0.5):
                for delivery in deliveries:
                    try:
                        async with unit(where) as session:
                            await session.execute(update(Account).values(balance=Account.balance + 1))
                            await delivery.ack()
                            if failure := next(failures):
                                raise failure
                    except ValueError:
                        await delivery.nack()

    async with opened(database.channel("deposits")) as channel, running(SqlAlchemy(url)) as other:
        await channel.send([letter() for _ in range(30)])
        await asyncio.gather(*(consume(where) for where in (database, database, other)))

        assert await channel.depth() == 0
    assert await balance(database) == 130


@EVERY
async def test_a_child_task_joins_the_unit_and_a_late_one_does_not(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        go_on = asyncio.Event()

        async def send_late() -> None:
            await go_on.wait()
            await channel.send([letter("late")])

        with pytest.raises(ValueError):
            async with unit(database):
                late = asyncio.create_task(send_late())
                await asyncio.create_task(channel.send([letter("early")]))
                raise ValueError
        go_on.set()
        await late

        assert [message.payload for message in await channel.peek()] == [b"late"]


# ------------------------------------------------------------------------------------------------------------ leases


@EVERY
async def test_the_work_of_a_consumer_that_was_too_late_is_rolled_back(database: SqlAlchemy) -> None:
    async with (
        opened(database.channel("notes", lease=0.2, renew=False)) as slow,
        opened(database.channel("notes")) as heir,
    ):
        await slow.send([letter()])
        [lost] = await slow.receive(1, 1)
        [delivery] = await heir.receive(1, 5)
        assert delivery.count == 2

        with pytest.raises(LeaseLostError, match="too late"):
            async with unit(database) as session:
                session.add(Account(name="bob", balance=1))
                await lost.ack()

        assert not lost.settled
        assert await balance(database, "bob") is None
        await delivery.ack()
        assert await heir.depth() == 0


@EVERY
async def test_several_leases_are_renewed_in_one_statement(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes", lease=2.0)) as slow, opened(database.channel("notes")) as other:
        await slow.send([letter() for _ in range(10)])
        deliveries = [*await slow.receive(4, 1), *await slow.receive(6, 1)]
        with statements(database) as seen:
            assert not await other.receive(10, 2.5)

        renewals = [
            statement for statement in seen if "UPDATE ecotone_message" in statement and "deliveries" not in statement
        ]
        assert 1 < len(renewals) < 7
        await slow.ack_all(deliveries)
        assert await other.depth() == 0


@EVERY
async def test_a_delivery_that_nobody_holds_any_more_comes_back(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes", lease=0.6)) as channel:
        await channel.send([letter()])
        await channel.receive(1, 1)
        gc.collect()

        [delivery] = await channel.receive(1, 5)
        assert delivery.count == 2
        await delivery.ack()


@EVERY
async def test_a_receive_that_is_cancelled_while_it_claims_was_no_delivery(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        await channel.send([letter()])
        receiving = asyncio.create_task(channel.receive(1, 5))
        while not channel._under_way:  # noqa: ASYNC110 - nobody tells when the claim begins
            await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving

        [delivery] = await channel.receive(1, 5)
        assert delivery.count == 1
        await delivery.ack()


@EVERY
async def test_a_look_that_fails_when_nobody_waits_for_it_is_only_logged(
    database: SqlAlchemy, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the line was cut")

    # What a task raises and nobody hears makes the loop complain, and then the test fails.
    async with opened(database.channel("notes")) as channel:
        await channel.depth()
        event.listen(database.engine.sync_engine, "before_cursor_execute", fail)
        counting = asyncio.create_task(channel.depth())
        while not channel._transactions._tasks:  # noqa: ASYNC110 - nobody tells when the look begins
            await asyncio.sleep(0)
        counting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await counting

        with caplog.at_level("INFO"):
            await channel._transactions.finish()
        event.remove(database.engine.sync_engine, "before_cursor_execute", fail)
        gc.collect()

    assert "what failed was waited for no longer: ChannelError: counting at channel 'notes'" in caplog.text


@EVERY
async def test_an_ack_is_not_renewed_away(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes", lease=1.0)) as channel:
        await channel.send([letter(), letter()])
        first, second = await channel.receive(2, 1)
        async with unit(database):
            await first.ack()
            # The renewal of the second one must not wait for this transaction.
            if database.engine.dialect.name != "sqlite":
                assert not await channel.receive(1, 2.0)

        assert first.settled
        await second.ack()


@EVERY
async def test_what_has_outlived_its_time_is_deleted_and_logged(
    database: SqlAlchemy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ecotone_fastapi")
    async with opened(database.channel("notes")) as channel:
        old, young = letter("old", delay="0.05", time_to_live="0.01"), letter("young", delay="0.1")
        await channel.send([old, young])

        [delivery] = await channel.receive(1, 30)
        assert delivery.message.payload == b"young"
        assert not await channel.receive(1, 0)  # on a busy machine the first claim may have met the young one only
        await until(lambda: old.id in caplog.text)
        assert await channel.depth() == 1


# ------------------------------------------------------------------------------------------------------------ wake-up


async def idle(channel: SqlChannel) -> None:
    """Let the channel look less and less often."""
    assert not await channel.receive(1, 2.0)


@pytest.fixture
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let receivers that are not woken up sleep on: what arrives then has woken them up, however fast that was."""
    monkeypatch.setattr(sql_channel, "_SHORTEST_PAUSE", 600.0)
    monkeypatch.setattr(sql_channel, "_LONGEST_PAUSE", 600.0)


async def wakes_up(receiver: SqlChannel, send: Callable[[], Awaitable[None]]) -> None:
    """Send until a receiver that was asleep has received: the first notifications may come before it listens."""
    receiving = asyncio.create_task(receiver.receive(1, 30))
    await asyncio.wait([receiving], timeout=0.1)
    assert not receiving.done()
    while not receiving.done():
        await send()
        await asyncio.wait([receiving], timeout=0.2)
    assert await receiving
    await receiver.ack_all(await receiving)
    while more := await receiver.receive(100, 0):
        await receiver.ack_all(more)


@EVERY
@pytest.mark.usefixtures("nobody_looks")
async def test_a_commit_wakes_up_a_receiver_of_the_same_process(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel, opened(database.channel("notes")) as sender:

        async def send() -> None:
            async with unit(database):
                await sender.send([letter()])

        for _ in range(3):
            await wakes_up(channel, send)


@POSTGRESQL
@pytest.mark.usefixtures("nobody_looks")
async def test_a_notification_wakes_up_another_process(database: SqlAlchemy, url: str) -> None:
    async with running(SqlAlchemy(url)) as other, opened(other.channel("notes")) as channel:
        async with opened(database.channel("notes")) as sender:
            for _ in range(3):
                await wakes_up(channel, lambda: sender.send([letter()]))


@POSTGRESQL
@pytest.mark.usefixtures("nobody_looks")
async def test_listening_survives_the_loss_of_its_connection(database: SqlAlchemy, url: str) -> None:
    async with running(SqlAlchemy(url)) as other, opened(other.channel("notes")) as channel:
        async with opened(database.channel("notes")) as sender:
            await wakes_up(channel, lambda: sender.send([letter()]))
            async with create_async_engine(url, poolclass=NullPool).connect() as connection:
                killed = await connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
                    )
                )
                assert True in killed.scalars().all()
            for _ in range(2):
                await wakes_up(channel, lambda: sender.send([letter()]))


@POSTGRESQL
async def test_notifications_are_coalesced(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        with statements(database) as seen:
            began = time.monotonic()
            for _ in range(50):
                await channel.send([letter()])
            took = time.monotonic() - began

        assert sum("pg_notify" in statement for statement in seen) <= took / 0.05 + 1


# --------------------------------------------------------------------------------------------------------- statements


@contextmanager
def statements(database: SqlAlchemy) -> Iterator[list[str]]:
    """Collect the statements that the database is asked to run."""
    seen: list[str] = []

    def note(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        seen.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)


@EVERY
async def test_a_message_costs_at_most_four_statements(database: SqlAlchemy, kind: str) -> None:
    async with opened(database.channel("notes")) as channel:
        await channel.send([letter() for _ in range(20)])
        with statements(database) as seen:
            for _ in range(20):
                [delivery] = await channel.receive(1, 1)
                async with unit(database) as session:
                    await session.execute(update(Account).values(balance=Account.balance + 1))
                    await delivery.ack()

    counted = [s for s in seen if "pg_notify" not in s and not s.startswith(("BEGIN", "COMMIT"))]
    assert len(counted) / 20 <= {"mariadb": 4}.get(kind, 3)


@EVERY
async def test_a_message_of_a_batch_costs_a_fraction_of_a_statement(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        with statements(database) as seen:
            await channel.send([letter() for _ in range(100)])
            await channel.ack_all(await channel.receive(100, 1))
        assert await channel.depth() == 0

    counted = [s for s in seen if "pg_notify" not in s and not s.startswith(("BEGIN", "COMMIT"))]
    assert len(counted) / 100 <= 0.05


@EVERY
async def test_an_idle_channel_asks_once_a_second(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        await idle(channel)
        with statements(database) as seen:
            assert not await channel.receive(1, 2.0)

    # One claim at once, and then a look for each pause of about a second.
    assert len([s for s in seen if not s.startswith(("BEGIN", "COMMIT"))]) <= 6


@EVERY
async def test_a_large_batch_is_sent_as_a_whole(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        await channel.send([letter(str(number)) for number in range(2345)])
        assert await channel.depth() == 2345

        received: list[bytes] = []
        while deliveries := await channel.receive(500, 0):
            received += [delivery.message.payload for delivery in deliveries]
            await channel.ack_all(deliveries)
        assert received == [str(number).encode() for number in range(2345)]
        assert await channel.purge() == 0


@POSTGRESQL
async def test_delayed_messages_cost_a_claim_nothing(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel, database.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO ecotone_message (channel, priority, available_at, due_at, deliveries, attempts, headers,"
                " body, created_at) SELECT 'notes', n % 10, now() + interval '1 day', now(), 0, 0, '{}', '', now()"
                " FROM generate_series(1, 100000) AS n"
            )
        )
        await connection.execute(text("ANALYZE ecotone_message"))
        await connection.commit()

        took: list[float] = []
        for _ in range(10):
            began = time.monotonic()
            assert not await channel.receive(10, 0)
            took.append(time.monotonic() - began)
        assert min(took) < 0.05  # all others are those of a busy machine


# ------------------------------------------------------------------------------------------------------------- schema


@EVERY
async def test_ten_processes_may_create_the_tables_at_once(url: str) -> None:
    databases = [SqlAlchemy(url, create_schema=True) for _ in range(10)]
    done = await asyncio.gather(*(database.migrate() for database in databases))

    assert sorted(len(lines) for lines in done) == [0] * 9 + [len(metadata.tables) + 1]
    for database in databases:
        async with database.lifespan(), opened(database.channel("notes")) as channel:
            await channel.send([letter()])


@EVERY
async def test_a_missing_table_is_named(url: str) -> None:
    async with running(SqlAlchemy(url)) as database:
        with pytest.raises(ConfigurationError, match="the table ecotone_message") as caught:
            await database.channel("notes").open()
        assert "ecotone migrate" in str(caught.value)

        await database.migrate()
        async with opened(database.channel("notes")):
            pass


@EVERY
async def test_a_missing_column_is_named(url: str) -> None:
    async with running(SqlAlchemy(url, create_schema=True)) as database:
        async with database.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE ecotone_message DROP COLUMN first_failed_at"))
    async with running(SqlAlchemy(url)) as database:
        with pytest.raises(ConfigurationError, match=r"the column ecotone_message\.first_failed_at"):
            await database.channel("notes").open()


@EVERY
async def test_migrating_again_changes_nothing(url: str) -> None:
    async with running(SqlAlchemy(url)) as database:
        first, second = await database.migrate(), await database.migrate()

    assert [line.split()[-1] for line in first] == [*sorted(metadata.tables), str(SCHEMA_VERSION)]
    assert second == []


@EVERY
async def test_tables_of_an_older_version_get_what_is_new(url: str) -> None:
    async with running(SqlAlchemy(url)) as database:
        await database.migrate()
        async with database.engine.begin() as connection:
            on = " ON ecotone_message" if database.engine.dialect.name in ("mysql", "mariadb") else ""
            for statement in (
                "DROP TABLE ecotone_inbox",
                f"DROP INDEX ecotone_message_schedule{on}",
                "ALTER TABLE ecotone_message DROP COLUMN schedule_key",
                "UPDATE ecotone_schema SET version = 1",
            ):
                await connection.execute(text(statement))

        done = await database.migrate()

        assert [line.partition(" ")[0] for line in done] == ["created", "added", "created", "brought"]
        assert await database.missing() == []
        async with opened(database.channel("notes")) as channel:
            await channel.send([letter()])


@EVERY
async def test_the_migration_can_be_run_by_hand(url: str) -> None:
    async with running(SqlAlchemy(url)) as database:
        async with database.engine.begin() as connection:
            for statement in database.migration_sql().split(";\n\n")[:-1]:
                await connection.exec_driver_sql(statement)

        assert await database.migrate() == []
        async with opened(database.channel("notes")) as channel:
            await channel.send([letter()])


@EVERY
async def test_tables_made_from_the_metadata_are_accepted(url: str) -> None:
    async with running(SqlAlchemy(url)) as database:
        async with database.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

        async with opened(database.channel("notes")) as channel:
            await channel.send([letter()])


@POSTGRESQL
async def test_the_tables_may_be_in_a_schema_of_their_own(url: str) -> None:
    async with running(SqlAlchemy(url, create_schema=True, schema="Messages")) as database:
        async with opened(database.channel("notes")) as channel:
            await channel.send([letter()])
            [delivery] = await channel.receive(1, 1)
            await delivery.ack()
            assert await database.dead_letters.count() == 0
        async with database.engine.connect() as connection:
            assert await connection.scalar(text('SELECT count(*) FROM "Messages".ecotone_message')) == 0


# ------------------------------------------------------------------------------------------------------------- engines


def autobegin(engine: AsyncEngine) -> AsyncEngine:
    """Let SQLAlchemy begin transactions, as its documentation has it."""

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: object, record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


ENGINES = {
    "plain": lambda url: create_async_engine(url),
    "with events": lambda url: autobegin(create_async_engine(url)),
    "unpooled": lambda url: create_async_engine(url, poolclass=NullPool),
}
if sys.version_info >= (3, 12):
    ENGINES["without autocommit"] = lambda url: create_async_engine(url, connect_args={"autocommit": False})


@pytest.mark.parametrize("engine_of", ENGINES.values(), ids=ENGINES)
@EVERY
async def test_an_engine_of_the_application_is_used_as_it_is(
    url: str, kind: str, engine_of: Callable[[str], AsyncEngine]
) -> None:
    if kind != "sqlite" and engine_of in {ENGINES.get("with events"), ENGINES.get("without autocommit")}:
        pytest.skip("SQLite only")
    engine = engine_of(url)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async with running(SqlAlchemy(engine, sessionmaker=sessions, create_schema=True)) as database:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(Account.__table__.insert(), {"name": "ada", "balance": 0})

        async def deposit(channel: SqlChannel) -> None:
            for delivery in await channel.receive(1, 1):
                async with unit(database) as session:
                    account = await session.get_one(Account, "ada", with_for_update=True)
                    account.balance += 1
                    await delivery.ack()

        async with opened(database.channel("deposits")) as channel:
            await channel.send([letter() for _ in range(20)])
            await asyncio.gather(*(deposit(channel) for _ in range(20)))
            assert await channel.depth() == 0
        assert await balance(database) == 20

    async with engine.connect() as connection:  # not disposed of: it was not made here
        assert await connection.scalar(text("SELECT balance FROM account")) == 20
    await engine.dispose()


@EVERY
async def test_sessions_may_be_bound_by_class(url: str) -> None:
    engine = create_async_engine(url)
    sessions = async_sessionmaker(binds={Base: engine})
    async with running(SqlAlchemy(engine, sessionmaker=sessions, create_schema=True)) as database:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with opened(database.channel("notes")) as channel:
            with pytest.raises(ValueError):
                async with unit(database) as session:
                    session.add(Account(name="ada", balance=1))
                    await session.flush()
                    await channel.send([letter()])
                    raise ValueError
            async with unit(database) as session:
                session.add(Account(name="ada", balance=1))
                await session.flush()
                await channel.send([letter()])
            assert await channel.depth() == 1
    await engine.dispose()


async def test_our_sqlite_engine_is_safe_and_reads_what_is_consistent(sqlite_url: str) -> None:
    async with running(SqlAlchemy(sqlite_url)) as database:
        async with database.engine.connect() as connection:
            settings = {
                name: await connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
            }
            raw = await connection.get_raw_connection()
            assert raw.driver_connection.in_transaction

    assert settings == {"journal_mode": "wal", "busy_timeout": 5000, "synchronous": 2, "foreign_keys": 1}


async def test_a_unit_on_sqlite_holds_others_up_only_once_it_has_used_the_database(sqlite_url: str) -> None:
    async with running(SqlAlchemy(sqlite_url, create_schema=True)) as database:
        async with opened(database.channel("notes")) as channel, asyncio.timeout(60), unit(database):
            # In another scope, and thus in another transaction.
            await asyncio.create_task(send_elsewhere(channel))

            assert await channel.depth() == 1


async def send_elsewhere(channel: SqlChannel) -> None:
    async with scope():
        await channel.send([letter()])


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="in memory"):
        SqlAlchemy(url)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgresql://localhost/shop", r"postgresql\+asyncpg"),
        ("sqlite:///shop.db", r"sqlite\+aiosqlite"),
        ("mysql+pymysql://localhost/shop", r"mysql\+asyncmy"),
        ("oracle://localhost/shop", r"postgresql\+asyncpg"),
        ("shop", r"postgresql\+asyncpg"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_hint(url: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        SqlAlchemy(url)


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("postgresql+asyncpg://localhost/shop", "postgresql"),
        ("postgresql+psycopg://localhost/shop", "psycopg"),
        ("mysql+asyncmy://localhost/shop", "mysql"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, url.partition("+")[2].partition(":")[0], None)
    with pytest.raises(MissingExtraError, match=extra):
        SqlAlchemy(url)


@pytest.mark.parametrize("name", ["", "x" * 191])
def test_a_channel_needs_a_name_that_fits(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="1 to 190 characters"):
        SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db").channel(name)


def test_a_channel_needs_a_lease(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="0 seconds"):
        SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db").channel("notes", lease=0)


# -------------------------------------------------------------------------------------------------------------- faults


class Proxy:
    """A port in front of a server, which can be shut."""

    def __init__(self, address: URL) -> None:
        self._address = address
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return self._address.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ports = {"postgresql": 5432, "mysql": 3306}
        server_reader, server_writer = await asyncio.open_connection(
            self._address.host, self._address.port or ports[self._address.get_backend_name()]
        )
        self._writers |= {writer, server_writer}
        await asyncio.gather(self._copy(reader, server_writer), self._copy(server_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(make_url(url))
    await proxy.open()
    yield proxy
    await proxy.shut()


async def insist(act: Callable[[], object]) -> object:
    """Try until the database is back."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await act()  # type: ignore[misc]
            except ChannelError:
                await asyncio.sleep(0.05)


@SERVERS
async def test_a_database_that_is_down_is_a_channel_error_and_comes_back_without_a_restart(proxy: Proxy) -> None:
    async with running(SqlAlchemy(proxy.url, create_schema=True)) as database:
        async with opened(database.channel("notes")) as channel:
            await channel.send([letter("before")])
            [delivery] = await channel.receive(1, 1)

            await proxy.shut()
            for act in (
                lambda: channel.send([letter()]),
                lambda: channel.receive(1, 5),
                lambda: channel.ack_all([delivery]),
                lambda: delivery.ack(),
                lambda: delivery.nack(),
                lambda: channel.depth(),
                lambda: database.check(),
                lambda: database.dead_letters.count(),
            ):
                with pytest.raises(ChannelError, match="database"):
                    await act()
            assert not delivery.settled

            await proxy.open()
            await insist(database.check)
            await insist(delivery.ack)
            await insist(lambda: channel.send([letter("after")]))
            [after] = await channel.receive(1, 5)
            assert after.message.payload == b"after"
            async with unit(database):
                await after.ack()
            assert after.settled


@SERVERS
async def test_an_application_starts_while_its_database_is_down(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    url = proxy.url
    await proxy.shut()

    async with running(SqlAlchemy(url, create_schema=True)) as database:
        assert "will be created when the database answers" in caplog.text
        channel = database.channel("notes")
        with pytest.raises(ChannelError, match="tables"):
            await channel.open()

        await proxy.open()
        async with opened(channel):
            await channel.send([letter()])


@SERVERS
async def test_closing_while_the_database_is_down_is_no_error(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    async with running(SqlAlchemy(proxy.url, create_schema=True)) as database:
        async with opened(database.channel("notes")) as channel:
            await channel.send([letter()])
            lent = await channel.receive(1, 1)
            await proxy.shut()
    assert not lent[0].settled

    assert "come back when their leases end" in caplog.text


@pytest.mark.parametrize("kind", [ASYNCPG, MARIADB])
async def test_the_victim_of_a_deadlock_tries_again(database: SqlAlchemy) -> None:
    async with opened(database.channel("notes")) as channel:
        await channel.send([letter("one"), letter("two")])
        first, second = await channel.receive(2, 1)
        async with database.engine.connect() as connection:
            # The database gives up the one that has changed less.
            await connection.execute(
                Account.__table__.insert(), [{"name": f"a{number}", "balance": 0} for number in range(50)]
            )
            lock = text("SELECT 1 FROM ecotone_message WHERE id = :id FOR UPDATE")
            await connection.execute(lock, {"id": second.lease.id})
            acking = asyncio.create_task(channel.ack_all([first, second]))
            async with database.engine.connect() as observer:
                waiting = {
                    "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN"
                    " (SELECT pid FROM pg_stat_activity WHERE datname = current_database())",
                    # The server looks again only when nobody has asked for a tenth of a second.
                    "mysql": "SELECT count(*) + SLEEP(0.2) FROM information_schema.innodb_lock_waits",
                }[connection.dialect.name]
                async with asyncio.timeout(60):
                    while not await observer.scalar(text(waiting)):
                        await observer.rollback()
            with suppress(DBAPIError):  # on a busy machine it is given up itself
                await connection.execute(lock, {"id": first.lease.id})
            await connection.rollback()
            await acking

        assert first.settled
        assert second.settled
        assert await channel.depth() == 0


@SERVERS
async def test_leases_are_renewed_again_when_the_database_is_back(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(SqlAlchemy(proxy.url, create_schema=True)) as database:
        async with opened(database.channel("notes", lease=3.0)) as channel:
            await channel.send([letter()])
            [delivery] = await channel.receive(1, 1)
            await proxy.shut()
            with suppress(ChannelError):
                await channel.receive(1, 1)
            async with asyncio.timeout(60):
                while "leases were not renewed" not in caplog.text:  # noqa: ASYNC110 - the log is what is looked at
                    await asyncio.sleep(0.05)
            await proxy.open()

            assert not await insist(lambda: channel.receive(1, 3))
            await insist(delivery.ack)
            assert delivery.settled


@SERVERS
async def test_a_session_does_not_meet_a_connection_that_died_while_it_was_idle(
    database: SqlAlchemy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialects, "_IDLE", 0.0)
    assert await balance(database) == 100
    admin = create_async_engine(url, poolclass=NullPool)
    async with admin.connect() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        else:
            numbers = await connection.execute(
                text("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
            )
            for number in numbers.scalars().all():
                await connection.execute(text(f"KILL {number}"))

    assert await balance(database) == 100


# ----------------------------------------------------------------------------------------------- in an application


class Deposit(BaseModel):
    name: str
    amount: int


class Deposited(BaseModel):
    name: str
    amount: int


@EVERY
async def test_commands_events_and_failures_share_the_database(database: SqlAlchemy) -> None:
    Session = Annotated[AsyncSession, Depends(database.session)]  # noqa: N806 - it is a type

    class Bank:
        @command_handler
        async def deposit(self, command: Deposit, session: Session, events: EventBus) -> None:
            account = await session.get_one(Account, command.name)
            account.balance += command.amount
            await events.publish(Deposited(name=command.name, amount=command.amount))
            if command.amount < 0:
                raise ValueError("a deposit is positive")

        @query_handler("balance")
        async def balance(self, name: str, session: Session) -> int:
            return (await session.get_one(Account, name)).balance

        @asynchronous("bonuses")
        @event_handler(id="bank.bonus")
        async def bonus(self, event: Deposited, session: Session) -> None:
            account = await session.get_one(Account, event.name)
            account.balance += 1
            if event.amount > 1000:
                raise ValueError("too much")

    ecotone = Ecotone(
        [Bank],
        channels=[database.channel("bonuses")],
        plugins=[database, Failures(Backoff(retries=0))],
    )
    async with ecotone.running(consumers=False):
        await ecotone.command_bus.send(Deposit(name="ada", amount=10))
        with pytest.raises(ValueError, match="positive"):
            await ecotone.command_bus.send(Deposit(name="ada", amount=-1))
        await ecotone.command_bus.send(Deposit(name="ada", amount=2000))
        assert await ecotone.query_bus.ask("ada", to="balance") == 2110

        await ecotone.run("bonuses", Limits(until_empty=True))

        assert await ecotone.query_bus.ask("ada", to="balance") == 2111
        [parked] = await database.dead_letters.list()
        assert parked.error_message == "too much"
        assert parked.message.headers["type"].endswith("Deposited")


@EVERY
async def test_an_undisturbed_life_leaves_no_warning_in_the_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(SqlAlchemy(url, create_schema=True)) as database:
        async with opened(database.channel("notes")) as channel:
            await channel.send([letter()])
            [delivery] = await channel.receive(1, 1)
            await delivery.ack()
            await idle(channel)

    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
