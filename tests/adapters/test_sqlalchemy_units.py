"""What a unit of work works on: a connection alone, or the session that somebody has asked for."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column

from ecotone_fastapi import CommandBus, Ecotone, EventSourcing, EventStore, command_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

SQLITE = pytest.param("sqlite", id="sqlite")
ASYNCPG = pytest.param("postgresql", id="postgresql", marks=pytest.mark.postgresql)
MARIADB = pytest.param("mariadb", id="mariadb", marks=pytest.mark.mariadb)
EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, MARIADB])


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@dataclass(frozen=True)
class Noted:
    id: int


@dataclass
class Append:
    """Append events; then let another handler do something, with the session that it asks for."""

    id: int
    then: str = ""
    fail: bool = False
    times: int = 1
    checked_out: int = -1


@dataclass
class Then:
    id: int
    what: str


@dataclass
class End:
    id: int
    how: str
    checked_out: int = -1


class Ending:
    """Takes over a transaction by a session that it asks for late, and ends it itself."""

    def __init__(self, database: SqlAlchemy) -> None:
        self.database = database

    @command_handler
    async def end(self, command: End, events: EventStore) -> None:
        await events.append(f"note-{command.id}", [Noted(command.id)], expected=0)
        async for session in self.database.session():
            await (session.commit() if command.how == "commit" else session.rollback())
            command.checked_out = Notes(self.database.engine).checked_out()
            await events.append(f"note-{command.id}", [Noted(command.id)], expected=1 if command.how == "commit" else 0)
        raise ValueError("too late")


class Notes:
    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    def checked_out(self) -> int:
        out: int = self.engine.sync_engine.pool.checkedout()  # type: ignore[attr-defined]  # every pool here counts
        return out

    @command_handler
    async def append(self, command: Append, events: EventStore, commands: CommandBus) -> None:
        appending = [
            events.append(f"note-{command.id}-{number}", [Noted(command.id)], expected=0)
            for number in range(command.times)
        ]
        await asyncio.gather(*appending)
        if command.then:
            await commands.send(Then(command.id, command.then))
        command.checked_out = self.checked_out()
        if command.fail:
            raise ValueError("too late")

    @command_handler
    async def then(self, command: Then, session: AsyncSession) -> None:
        if command.what == "add":
            session.add(Note(id=command.id))
        elif command.what == "read":
            appended = text("SELECT count(*) FROM ecotone_event WHERE stream = :stream")
            seen = (await session.execute(appended, {"stream": f"note-{command.id}-0"})).scalar_one()
            assert seen == 1, "the session sees what was appended before it was made"


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(f"{kind}_url")
    return address


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    database = SqlAlchemy(url, create_schema=True)
    async with database.lifespan():
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield database


def application(database: SqlAlchemy) -> Ecotone:
    return Ecotone([Notes(database.engine)], plugins=[database, EventSourcing(events=[Noted])], consumers=False)


@contextmanager
def counted_sessions() -> Iterator[list[Session]]:
    """Count the sessions that begin a transaction."""
    begun: list[Session] = []

    def note(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        begun.append(session)

    event.listen(Session, "after_begin", note)
    try:
        yield begun
    finally:
        event.remove(Session, "after_begin", note)


async def left(database: SqlAlchemy) -> tuple[int, int]:
    """Return how many events and how many notes there are."""
    async with database.engine.connect() as connection:
        events = (await connection.execute(text("SELECT count(*) FROM ecotone_event"))).scalar_one()
        notes = (await connection.execute(text("SELECT count(*) FROM note"))).scalar_one()
        return events, notes


@EVERY
async def test_whoever_appends_needs_no_session(database: SqlAlchemy) -> None:
    async with application(database).running(consumers=False) as ecotone:
        with counted_sessions() as sessions:
            await ecotone.command_bus.send(Append(1))
    assert sessions == []
    assert await left(database) == (1, 0)


@EVERY
async def test_a_session_that_is_asked_for_later_is_in_the_same_transaction(database: SqlAlchemy) -> None:
    command = Append(1, then="read")
    async with application(database).running(consumers=False) as ecotone:
        await ecotone.command_bus.send(command)
    assert command.checked_out == 1
    assert await left(database) == (1, 0)


@EVERY
async def test_what_that_session_has_not_written_yet_is_written_before_the_commit(database: SqlAlchemy) -> None:
    command = Append(1, then="add")
    async with application(database).running(consumers=False) as ecotone:
        await ecotone.command_bus.send(command)
    assert command.checked_out == 1
    assert await left(database) == (1, 1)


@EVERY
@pytest.mark.parametrize("then", ["", "add", "read"])
async def test_a_failure_leaves_nothing_whether_there_is_a_session_or_not(database: SqlAlchemy, then: str) -> None:
    async with application(database).running(consumers=False) as ecotone:
        with pytest.raises(ValueError, match="too late"):
            await ecotone.command_bus.send(Append(1, then=then, fail=True))
        assert await left(database) == (0, 0)
        await ecotone.command_bus.send(Append(1, then=then))
    assert (await left(database))[0] == 1


@EVERY
@pytest.mark.parametrize(("then", "stays"), [("commit", 1), ("roll back", 0)])
async def test_that_session_ends_the_transaction_when_it_is_told_to_and_gives_the_connection_back(
    database: SqlAlchemy, then: str, stays: int
) -> None:
    application_ = Ecotone(
        [Ending(database), Notes(database.engine)],
        plugins=[database, EventSourcing(events=[Noted])],
        consumers=False,
    )
    async with application_.running(consumers=False) as ecotone:
        command = End(1, then)
        with pytest.raises(ValueError, match="too late"):
            await ecotone.command_bus.send(command)
        assert command.checked_out == 0
        assert await left(database) == (stays, 0)


@EVERY
async def test_events_that_are_appended_at_once_are_in_one_transaction(database: SqlAlchemy) -> None:
    command = Append(1, times=4)
    async with application(database).running(consumers=False) as ecotone:
        with pytest.raises(ValueError, match="too late"):
            await ecotone.command_bus.send(Append(2, times=4, fail=True))
        assert await left(database) == (0, 0)
        await ecotone.command_bus.send(command)
    assert command.checked_out == 1
    assert await left(database) == (4, 0)


@EVERY
async def test_the_end_of_a_unit_gives_its_connection_back(database: SqlAlchemy) -> None:
    notes = Notes(database.engine)
    async with application(database).running(consumers=False) as ecotone:
        await asyncio.gather(*(ecotone.command_bus.send(Append(id_)) for id_ in range(30)))
        before = notes.checked_out()
        for then in ("", "add", "read"):
            await ecotone.command_bus.send(Append(len(then) + 100, then=then))
            with pytest.raises(ValueError, match="too late"):
                await ecotone.command_bus.send(Append(len(then) + 200, then=then, fail=True))
    assert before <= 1, "only a notification of others may be on its way"
    assert notes.checked_out() == 0


@EVERY
async def test_a_unit_works_on_a_session_of_the_user_whose_hooks_hear_every_transaction(url: str) -> None:
    heard: list[str] = []

    class Heard(Session):
        """A session of the application's, with hooks of its own."""

    event.listen(Heard, "after_begin", lambda session, transaction, connection: heard.append("begin"))
    event.listen(Heard, "before_commit", lambda session: heard.append("commit"))
    engine = create_async_engine(url)
    own = async_sessionmaker(engine, expire_on_commit=False, sync_session_class=Heard)
    database = SqlAlchemy(engine, sessionmaker=own, create_schema=True)
    try:
        async with application(database).running(consumers=False) as ecotone:
            await ecotone.command_bus.send(Append(1))
        assert heard == ["begin", "commit"]
    finally:
        await engine.dispose()
