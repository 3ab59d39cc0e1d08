"""What users may do wrong, or somebody else to the tables, and what databases do without saying so."""

# ruff: noqa: PT012 - a unit of work is a block, and it may fail inside or when it ends

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Self

import httpx
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from ecotone_fastapi import CommandBus, Ecotone, EventBus, asynchronous, command_bus, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.adapters.sqlalchemy.channel import SqlChannel
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, LeaseLostError, TransactionAbortedError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message, new_id
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.plugin import Limits
from tests.databases import ASYNCPG, MARIADB, PSYCOPG, SQLITE

EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])
POSTGRESQL = pytest.mark.parametrize("kind", [ASYNCPG, PSYCOPG])


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    database = SqlAlchemy(url, create_schema=True)
    async with database.lifespan():
        await run(database, "CREATE TABLE thing (name varchar(50) PRIMARY KEY)")
        yield database


async def run(database: SqlAlchemy, statement: str, **parameters: object) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text(statement), parameters)


async def things(database: SqlAlchemy) -> list[str]:
    async with database.engine.connect() as connection:
        return list((await connection.execute(text("SELECT name FROM thing ORDER BY name"))).scalars())


async def add(session: AsyncSession, name: str) -> None:
    await session.execute(text("INSERT INTO thing (name) VALUES (:name)"), {"name": name})


def letter(**headers: str) -> Message[bytes]:
    return Message(b"hello", {"id": new_id(), **headers})


@asynccontextmanager
async def unit(database: SqlAlchemy) -> AsyncIterator[tuple[Scope, AsyncSession]]:
    async with Gateway(Conversion(()), SystemClock()).unit_of_work(letter()) as scope:
        await scope.enter(database.begin(scope))
        yield scope, await anext(database.session())


@asynccontextmanager
async def opened(channel: SqlChannel) -> AsyncIterator[SqlChannel]:
    await channel.open()
    try:
        yield channel
    finally:
        await channel.close()


@dataclass
class Place:
    name: str


@dataclass
class Placed:
    name: str


# ------------------------------------------------------------------------------------------------------- poison rows


@EVERY
@pytest.mark.parametrize(
    "headers",
    ["{broken", "[]", "null", '"text"', '{"id": 5, "endpoint": "on"}', "[" * 100_000],
    ids=lambda text: text[:9],
)
async def test_headers_that_nobody_can_read_do_not_stop_the_channel(database: SqlAlchemy, headers: str) -> None:
    channel = database.channel("mails")
    handled: list[str] = []

    @asynchronous("mails")
    @event_handler(id="on")
    async def on(event: Placed) -> None:
        handled.append(event.name)

    async with Ecotone([on], channels=[channel], plugins=[database]).running(consumers=False) as ecotone:
        await ecotone.event_bus.publish(Placed("poison"))
        await run(database, "UPDATE ecotone_message SET headers = :headers, message_id = 'saved'", headers=headers)
        await ecotone.event_bus.publish(Placed("good"))
        await ecotone.run("mails", Limits(until_empty=True))
        [parked] = await database.dead_letters.list()

    assert handled == ["good"]
    assert parked.error_type.endswith("RoutingError") or parked.error_type.endswith("UnknownEndpointError")
    assert dict(parked.message.headers) == {"id": "saved", "unreadable_headers": headers}
    assert b"poison" in parked.message.payload
    assert parked.attempts == 1


@EVERY
async def test_what_can_be_read_of_unreadable_headers_is_kept(database: SqlAlchemy) -> None:
    async with opened(database.channel("mails")) as channel:
        await channel.send([letter()])
        await run(
            database, "UPDATE ecotone_message SET message_id = NULL, headers = :headers", headers='{"a": "b", "c": 1}'
        )
        [message] = await channel.peek()

    assert message.headers["a"] == "b"
    assert message.headers["id"].isdigit()


# ------------------------------------------------------------------------------------------------- graceful restarts


@EVERY
async def test_workers_that_were_stopped_do_not_make_a_message_suspicious(database: SqlAlchemy) -> None:
    channel = database.channel("mails")
    async with opened(channel):
        await channel.send([letter()])
    for _ in range(3):
        async with opened(channel):
            [delivery] = await channel.receive(1, 1)
            await delivery.nack(attempted=False)
            [delivery] = await channel.receive(1, 1)
            assert delivery.count == 1
    async with opened(channel):
        [delivery] = await channel.receive(1, 1)
        await delivery.nack(0.001, attempted=False)
        [delivery] = await channel.receive(1, 5)
        assert (delivery.count, delivery.message.headers.get("attempt")) == (1, None)


@EVERY
async def test_what_a_closed_channel_has_lent_is_lost_at_once(database: SqlAlchemy) -> None:
    channel = database.channel("mails")
    async with opened(channel):
        await channel.send([letter(), letter()])
        first, second = await channel.receive(2, 1)

    with counted(database) as statements:
        with pytest.raises(LeaseLostError):
            await first.ack()
        with pytest.raises(LeaseLostError):
            await channel.ack_all([first, second])
        await second.nack()

    assert statements == []
    assert await channel.depth() == 2


class Counted(list[str]):
    def __init__(self, database: SqlAlchemy) -> None:
        self._engine = database.engine.sync_engine

    def __enter__(self) -> Self:
        event.listen(self._engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *error: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._note)

    def _note(self, connection: Connection, cursor: object, statement: str, *others: object) -> None:
        self.append(statement)


def counted(database: SqlAlchemy) -> Counted:
    return Counted(database)


# ----------------------------------------------------------------------------------------- transactions that are gone


@POSTGRESQL
async def test_a_caught_error_that_has_aborted_the_transaction_is_raised_in_the_end(database: SqlAlchemy) -> None:
    await run(database, "INSERT INTO thing VALUES ('ada')")
    heard: list[str] = []

    @command_handler
    async def place(command: Place, session: AsyncSession, events: EventBus) -> None:
        await add(session, command.name)
        try:
            await add(session, "ada")
        except DBAPIError:
            await events.publish(Placed(command.name))

    @asynchronous("mails")
    @event_handler
    async def on(event: Placed) -> None:
        heard.append(event.name)

    ecotone = Ecotone([place, on], channels=[MemoryChannel("mails")], plugins=[database])
    async with ecotone.running(consumers=False):
        with pytest.raises(TransactionAbortedError, match="begin_nested") as caught:
            await ecotone.command_bus.send(Place("order"))
        await ecotone.run("mails", Limits(until_empty=True))

    assert "nique" in caught.value.tried
    assert heard == []
    assert await things(database) == ["ada"]


@EVERY
async def test_an_error_within_a_savepoint_is_no_reason_not_to_commit(database: SqlAlchemy) -> None:
    await run(database, "INSERT INTO thing VALUES ('ada')")

    async with unit(database) as (_, session):
        await add(session, "order")
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await add(session, "ada")

    assert await things(database) == ["ada", "order"]


@EVERY
async def test_a_unit_without_errors_costs_no_statement_more(database: SqlAlchemy) -> None:
    with counted(database) as statements:
        async with unit(database) as (_, session):
            await add(session, "order")

    wanted = [statement for statement in statements if statement not in ("BEGIN", "COMMIT", "BEGIN IMMEDIATE")]
    assert len(wanted) == 1


@pytest.mark.parametrize("kind", [SQLITE])
async def test_an_ack_comes_last_in_a_unit_that_begins_as_a_writer(database: SqlAlchemy) -> None:
    async with opened(database.channel("mails")) as channel:
        await channel.send([letter(id="gone")])
        [delivery] = await channel.receive(1, 1)
        with counted(database) as statements:
            async with unit(database):
                await delivery.ack()
                await channel.send([letter(id="new")])

        assert [statement.split()[0] for statement in statements] == ["BEGIN", "INSERT", "DELETE"]
        assert statements[0] == "BEGIN IMMEDIATE"
        assert [message.id for message in await channel.peek()] == ["new"]


@pytest.mark.parametrize("kind", [MARIADB])
async def test_a_deadlock_that_was_caught_is_raised_in_the_end(database: SqlAlchemy) -> None:
    await run(database, "INSERT INTO thing VALUES ('a'), ('b')")
    both = asyncio.Barrier(2)
    caught: list[DBAPIError] = []

    async def cross(first: str, second: str) -> None:
        async with unit(database) as (_, session):
            await add(session, f"{first}{second}")
            await session.execute(text("UPDATE thing SET name = name WHERE name = :name"), {"name": first})
            await session.execute(text("SELECT * FROM thing WHERE name = :name FOR UPDATE"), {"name": first})
            await both.wait()
            try:
                await session.execute(text("SELECT * FROM thing WHERE name = :name FOR UPDATE"), {"name": second})
            except DBAPIError as error:
                caught.append(error)
                await add(session, f"half of {first}{second}")

    results = await asyncio.gather(cross("a", "b"), cross("b", "a"), return_exceptions=True)

    assert len(caught) == 1
    assert [type(result) for result in results if result is not None] == [TransactionAbortedError]
    assert len(await things(database)) == 3


# --------------------------------------------------------------------------------------------------------- savepoints


@EVERY
async def test_what_fails_behind_a_savepoint_leaves_nothing_and_the_rest_commits(database: SqlAlchemy) -> None:
    async with unit(database) as (scope, session):
        await add(session, "before")
        with pytest.raises(ValueError, match="inside"):
            async with database.savepoint(scope):
                await add(session, "inside")
                raise ValueError("inside")
        async with database.savepoint(scope):
            await add(session, "after")

    assert await things(database) == ["after", "before"]


@EVERY
async def test_a_savepoint_may_be_the_first_to_touch_the_database(database: SqlAlchemy) -> None:
    async with unit(database) as (scope, session):
        with pytest.raises(DBAPIError):
            async with database.savepoint(scope):
                await add(session, "inside")
                await add(session, "inside")
        await add(session, "after")

    assert await things(database) == ["after"]


@EVERY
async def test_a_savepoint_goes_with_its_unit(database: SqlAlchemy) -> None:
    with pytest.raises(ValueError, match="outside"):
        async with unit(database) as (scope, session):
            async with database.savepoint(scope):
                await add(session, "inside")
            raise ValueError("outside")

    assert await things(database) == []


@EVERY
async def test_a_savepoint_that_is_cancelled_leaves_nothing(database: SqlAlchemy) -> None:
    async with unit(database) as (scope, session):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit, database.savepoint(scope):
                await add(session, "inside")
                limit.reschedule(0.0)
                await asyncio.Event().wait()
        await add(session, "after")

    assert await things(database) == ["after"]


@EVERY
async def test_messages_of_what_has_failed_are_not_sent(database: SqlAlchemy) -> None:
    async with opened(database.channel("mails")) as channel:
        async with unit(database) as (scope, _):
            await channel.send([letter(id="kept")])
            with pytest.raises(ValueError, match="inside"):
                async with database.savepoint(scope):
                    await channel.send([letter(id="gone")])
                    raise ValueError("inside")

        assert [message.id for message in await channel.peek()] == ["kept"]


@EVERY
async def test_a_savepoint_without_a_unit_is_nothing(database: SqlAlchemy) -> None:
    async with Gateway(Conversion(()), SystemClock()).unit_of_work(letter()) as scope, database.savepoint(scope):
        pass


@pytest.mark.parametrize("kind", [MARIADB])
async def test_a_unit_that_cannot_go_back_does_not_commit(database: SqlAlchemy) -> None:
    with pytest.raises(TransactionAbortedError):
        async with unit(database) as (scope, session):
            await add(session, "before")
            with pytest.raises(ValueError, match="inside"):
                async with database.savepoint(scope):
                    await add(session, "inside")
                    await session.execute(text("ROLLBACK"))  # as the server does in a deadlock
                    raise ValueError("inside")

    assert await things(database) == []


# ----------------------------------------------------------------------------------------------------------- sessions


@EVERY
@pytest.mark.parametrize("fails", [False, True])
async def test_the_session_that_an_endpoint_shares_is_in_the_unit(database: SqlAlchemy, fails: bool) -> None:
    sessions: list[AsyncSession] = []

    @command_handler
    async def place(
        command: Place,
        session: Annotated[AsyncSession, Depends(database.session)],
        same: AsyncSession,
        events: EventBus,
    ) -> None:
        sessions.extend((session, same))
        await add(session, command.name)
        await events.publish(Placed(command.name))
        if fails:
            raise ValueError(command.name)

    @asynchronous("mails")
    @event_handler
    async def on(event: Placed) -> None: ...

    channel = database.channel("mails")
    ecotone = Ecotone([place, on], channels=[channel], plugins=[database])
    app = FastAPI()
    ecotone.install(app)

    @app.post("/")
    async def endpoint(
        commands: Annotated[CommandBus, Depends(command_bus(share=[database.session]))],
        session: Annotated[AsyncSession, Depends(database.session)],
    ) -> list[str]:
        sessions.append(session)
        await add(session, "endpoint")
        try:
            await commands.send(Place("order"))
        except ValueError:
            return []
        return list((await session.execute(text("SELECT name FROM thing ORDER BY name"))).scalars())

    async with (
        ecotone.running(consumers=False),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        response = await client.post("/")
        depth = await channel.depth()

    expected = [] if fails else ["endpoint", "order"]
    assert response.json() == expected == await things(database)
    assert depth == len(expected) // 2
    assert len(sessions) == 3
    assert len(set(map(id, sessions))) == 1


@EVERY
async def test_a_session_is_supplied_by_its_type(database: SqlAlchemy) -> None:
    sessions: list[AsyncSession] = []

    @command_handler
    async def place(
        command: Place, session: AsyncSession, same: Annotated[AsyncSession, Depends(database.session)]
    ) -> None:
        assert session is same
        sessions.append(session)
        await add(session, command.name)

    async with Ecotone([place], plugins=[database]).running() as ecotone:
        await asyncio.gather(*[ecotone.command_bus.send(Place(str(number))) for number in range(3)])

    assert len(set(map(id, sessions))) == 3
    assert await things(database) == ["0", "1", "2"]


# ------------------------------------------------------------------------------------------------------ configuration


@EVERY
@pytest.mark.parametrize("by_option", [False, True])
@pytest.mark.parametrize("create_schema", [False, True])
async def test_an_engine_without_transactions_is_refused(url: str, by_option: bool, create_schema: bool) -> None:
    made = create_async_engine(url) if by_option else create_async_engine(url, isolation_level="AUTOCOMMIT")
    engine = made.execution_options(isolation_level="AUTOCOMMIT") if by_option else made
    database = SqlAlchemy(engine, create_schema=create_schema)

    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        async with database.lifespan():
            pass
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        await database.channel("mails").open()
    await made.dispose()


@EVERY
async def test_an_engine_with_transactions_is_fine(url: str) -> None:
    engine = create_async_engine(url)
    database = SqlAlchemy(engine, sessionmaker=async_sessionmaker(engine), create_schema=True)
    async with database.lifespan(), opened(database.channel("mails")):
        pass
    await engine.dispose()


def test_sessions_of_another_database_are_refused(sqlite_url: str) -> None:
    engine, other = create_async_engine(sqlite_url), create_async_engine("sqlite+aiosqlite:///other.db")

    with pytest.raises(ConfigurationError, match=r"sessionmaker(.|\n)*other\.db instead of"):
        SqlAlchemy(engine, sessionmaker=async_sessionmaker(other))
    SqlAlchemy(engine, sessionmaker=async_sessionmaker(engine.execution_options(logging_token="same")))
    SqlAlchemy(engine, sessionmaker=async_sessionmaker())


@pytest.mark.parametrize(
    "address",
    [
        "postgresql//shop:s3cret@127.0.0.1/db",
        "postgres+asyncpg:/shop:s3cret@h/db",
        "postgresql+asyncpg://shop:s3cret@127.0.0.1:notaport/db",
        "postgresql+asyncpg://shop:s3c@ret@127.0.0.1:1/db?password=s3c@ret",
        "postgresql+asyncpg:shop:s3cret",
        "postgresql://shop:s3cret@127.0.0.1/db",
        "postgresql+asyncpg://127.0.0.1:1/nodb?user=shop&password=s3cret",
        "postgresql+psycopg://127.0.0.1:1/nodb?user=shop&password=s3cret",
        "mysql+asyncmy://shop:s3cret@127.0.0.1:1/nodb",
        "mysql+asyncmy://shop@127.0.0.1:1/nodb?password=s3cret",
    ],
)
async def test_no_error_and_no_log_line_tells_a_password(address: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[BaseException] = []

    async def use() -> None:
        database = SqlAlchemy(address, create_schema=True)
        async with database.lifespan():
            try:
                await database.check()
            except ChannelError as error:
                told.append(error)
            await database.channel("mails").open()

    with pytest.raises((ConfigurationError, ChannelError)) as caught:
        await use()
    for error in (*told, caught.value):
        assert "s3c" not in str(error)
        assert "ret@" not in str(error)
        assert error.__cause__ is None or "s3c" not in str(error.__cause__)
    assert "s3c" not in caplog.text


@EVERY
async def test_a_table_that_is_missing_at_run_time_is_told_with_what_creates_it(url: str) -> None:
    database = SqlAlchemy(url)
    channel = database.channel("mails")

    with pytest.raises(ChannelError, match=r"create_schema=True(.|\n)*ecotone migrate"):
        await channel.send([letter()])
    with pytest.raises(ChannelError, match=r"create_schema=True(.|\n)*ecotone migrate"):
        await channel.depth()
    await database.engine.dispose()
