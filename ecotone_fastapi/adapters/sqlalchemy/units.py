"""What a scope has of a database: its unit of work, the session or connection that it works on, its turn to write.

As long as nobody asks for a session, a unit works on a connection alone: a session costs as much as a statement. When
somebody asks for one later, it takes over the connection with the transaction that is open on it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import anyio
from sqlalchemy import Connection, event
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from ecotone_fastapi.adapters.sqlalchemy.dialects import BEGIN

T = TypeVar("T")

Statements = Callable[[AsyncConnection], Awaitable[T]]
"""What is run on a connection."""

WRITER = "BEGIN IMMEDIATE"
"""How a transaction begins on SQLite that is going to write."""

logger: logging.Logger = logging.getLogger(__name__)

_COURTESY = 5.0  # seconds that a writer queues in this process before SQLite itself decides
_SCOPED = "ecotone_scoped"
_NOT_LOADED = (
    "An attribute that is not loaded was read, and a plain attribute cannot wait for the database: give a relationship "
    'lazy="selectin", or let the class be an AsyncAttrs and write await self.awaitable_attrs.<name>'
)


class _Last(NamedTuple):
    statements: Statements[bool]
    doing: str
    check: Callable[[bool], None]


class Unit:
    """A transaction that everything in one scope shares. It begins with the first statement.

    Attributes:
        open: Whether it can still be joined.
        committed: Whether it has come to a good end.
        broken: Why it cannot be committed any more.
        last: What is still to be done just before the commit, and what errors call it.
    """

    def __init__(self) -> None:
        self.open: bool = True
        self.committed: bool = False
        self.broken: str | None = None
        self.last: list[_Last] = []
        self._consequences: list[Callable[[], None]] = []
        self._endings: list[Callable[[], None]] = []

    def before_commit(self, statements: Statements[bool], doing: str, check: Callable[[bool], None]) -> None:
        """Run a statement last; alone, when it turns out that there are no others.

        Args:
            statements: What to run.
            doing: What it is for, as errors tell it.
            check: Looks at its result; what it raises fails the unit.
        """
        self.last.append(_Last(statements, doing, check))

    def after_commit(self, act: Callable[[], None]) -> None:
        """Do this once the transaction has committed, and never if it does not."""
        self._consequences.append(act)

    def when_over(self, act: Callable[[], None]) -> None:
        """Do this once the transaction has ended, well or not."""
        self._endings.append(act)

    def end(self) -> None:
        """Take note of the end."""
        self.open = False
        for act in self._endings:
            act()

    def conclude(self) -> None:
        """Take note of the commit."""
        self.committed = True
        for act in self._consequences:
            act()


class Turn:
    """The queue of the writers of one process. It is a courtesy: after some time a writer goes ahead without it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()

    async def take(self) -> asyncio.Lock | None:
        """Wait for one's turn; return what is to be released after it."""
        if self._loop is not asyncio.get_running_loop():  # a lock belongs to one loop, a database to several tests
            self._loop, self._lock = asyncio.get_running_loop(), asyncio.Lock()
        lock = self._lock
        try:
            async with asyncio.timeout(_COURTESY):
                await lock.acquire()
        except TimeoutError:
            return None
        return lock


@asynccontextmanager
async def taking(turn: Turn | None) -> AsyncIterator[None]:
    """Take a turn for as long as the block lasts."""
    if turn is None:
        yield
        return
    lock = await turn.take()
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@dataclass(frozen=True, slots=True)
class Sessions:
    """How scopes come to sessions and connections.

    Args:
        engine: Where connections come from.
        make: Makes sessions.
        lean: Whether a unit needs no session unless somebody asks for one; those of a user may hear every transaction.
        turn: Where writers queue.
        writer_options: With which execution options the connection of a writer begins.
    """

    engine: AsyncEngine
    make: async_sessionmaker[AsyncSession]
    lean: bool
    turn: Turn | None
    writer_options: Mapping[str, Any] | None


class ScopedSession:
    """The session of a scope, made when somebody wants it, and the unit of work that is open on it.

    Args:
        sessions: How it comes to one.
        shared: The session, when somebody else has made it and will close it.

    Attributes:
        unit: The unit of work.
    """

    def __init__(self, sessions: Sessions, shared: AsyncSession | None = None) -> None:
        self.unit: Unit | None = None
        self._sessions = sessions
        self._shared = shared is not None
        self._session: AsyncSession | None = None
        self._connection: AsyncConnection | None = None  # of a unit without session, which gives it back
        self._opening: asyncio.Event | None = None
        self._lock: asyncio.Lock | None = None
        self._changes: int | None = None  # of a transaction that was begun by somebody else
        if shared is not None:
            self._use(shared)

    async def __aenter__(self) -> None:
        """Begin the life of the scope."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back whatever is there when the scope ends; explain an error that SQLAlchemy does not explain here."""
        if isinstance(error, MissingGreenlet) or (
            isinstance(error, StatementError) and isinstance(error.orig, MissingGreenlet)
        ):
            error.add_note(_NOT_LOADED)
        await self.forget()

    @property
    def begun(self) -> bool:
        """Whether anybody has wanted the session or a connection so far."""
        return self._session is not None or self._connection is not None or self._opening is not None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._connection is not None or (self._session is not None and self._session.in_transaction())

    async def session(self) -> AsyncSession:
        """Return the session; a transaction that is open without one becomes its own."""
        if self._opening is not None:
            await self._opened()
        if self._session is not None:
            return self._session
        if self._connection is None:
            return self._use(self._sessions.make())
        session = self._use(self._sessions.make(join_transaction_mode="control_fully"))
        await session.connection(bind_arguments={"bind": self._connection.sync_connection})
        return session

    async def connection(self) -> AsyncConnection:
        """Return the connection, without beginning as a writer."""
        if self._opening is not None:
            await self._opened()
        if self._session is None and self._connection is not None:
            return self._connection
        session = await self.session()
        if session.sync_session.bind is None:  # bound by mapped class, and none of ours is mapped
            return await session.connection(bind_arguments={"bind": self._sessions.engine.sync_engine})
        return await session.connection()

    async def writing(self) -> AsyncConnection:
        """Return the connection of the open unit, which begins as a writer if it has not begun yet."""
        sessions = self._sessions
        if sessions.lean:
            while self._session is None:
                if self._connection is not None:
                    return self._connection
                await (self._open() if self._opening is None else self._opened())
        if sessions.writer_options is None or (await self.session()).in_transaction():
            return await self.connection()
        await self.take_turn()
        return await (await self.session()).connection(execution_options=sessions.writer_options)

    async def _open(self) -> None:
        opening = self._opening = asyncio.Event()
        try:
            await self.take_turn()
            connection = await self._sessions.engine.connect()
            try:
                # Whoever works beside this task must not be faster than the BEGIN.
                await connection.run_sync(_begin, self._sessions.writer_options)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await connection.close()
                raise
            self._connection = connection
        finally:
            self._opening = None
            opening.set()

    async def _opened(self) -> None:
        while self._opening is not None:  # by a task beside this one
            await self._opening.wait()

    def _use(self, session: AsyncSession) -> AsyncSession:
        self._session = session
        session.info[_SCOPED] = self
        if self._sessions.turn is not None and not isinstance(session.sync_session, HeardSession):
            event.listen(session.sync_session, "after_begin", _tell_of_begin)
        return session

    async def commit(self) -> None:
        """Commit, and give the connection back."""
        await self._opened()
        if self._session is not None:
            await self._session.commit()
        if self._connection is not None:
            await self._connection.run_sync(_commit_and_close)
            self._connection = None

    async def forget(self) -> None:
        """Roll back what is open; give the connection back, unless somebody else will."""
        if self._opening is not None:
            with anyio.CancelScope(shield=True):
                await self._opened()
        if self._connection is None:
            if self._session is None:
                return
            if not self._session.in_transaction():
                if not self._shared:
                    self._session.sync_session.close()  # there is no connection to wait for
                return
        # The failure that led here must not be replaced by that of a lost connection.
        with anyio.CancelScope(shield=True):
            try:
                if self._session is not None:
                    await (self._session.rollback() if self._shared else self._session.close())
            except Exception:
                logger.warning("a session could not be closed; the server rolls its transaction back", exc_info=True)
            try:
                if self._connection is not None:
                    await self._connection.close()
            except Exception:
                logger.warning("a connection could not be closed; the server rolls it back", exc_info=True)
            self._connection = None

    async def adopt(self) -> None:
        """Make a transaction that the session is in already part of the unit."""
        if self._sessions.turn is not None and self._session is not None and self._session.in_transaction():
            connection = await self._session.connection()
            await self.take_turn()
            await connection.run_sync(self._begin_immediate)

    def give_up_turn(self) -> None:
        """Let the next writer go ahead."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def take_turn(self) -> None:
        """Wait for the turn to write, unless it has been taken already."""
        if self._sessions.turn is not None and self._lock is None:
            self._lock = await self._sessions.turn.take()

    def after_begin(self, connection: Connection) -> None:
        """Make the transaction that has begun on SQLite a writer's, if a unit is open."""
        if self._sessions.turn is None:
            return
        adapted: Any = connection.connection.dbapi_connection
        driver: Any = connection.connection.driver_connection
        self._changes = driver.total_changes
        if self.unit is not None and self.unit.open:
            if self._lock is None:
                adapted.run_async(lambda _: self.take_turn())
            if connection.get_execution_options().get(BEGIN) != WRITER:
                self._begin_immediate(connection)

    def _begin_immediate(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            if driver.total_changes != self._changes:
                return  # it has written, so it is the one writer already
            connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql(WRITER)

    def after_end(self) -> None:
        """Give the connection back when the transaction has ended that the session had taken over on it."""
        if self._connection is not None and self._connection.sync_connection is not None:
            self._connection.sync_connection.close()
        self._connection = None


def scoped_session_of(session: AsyncSession) -> ScopedSession | None:
    """Return what knows the session of a scope; `None` for a session of nobody's scope."""
    scoped: ScopedSession | None = session.info.get(_SCOPED)
    return scoped


def _begin(connection: Connection, options: Mapping[str, Any] | None) -> None:
    if options is not None:
        connection.execution_options(**options)
    connection.begin()


def _commit_and_close(connection: Connection) -> None:
    connection.commit()
    connection.close()


class HeardSession(Session):
    """A session whose class is listened to, which is cheaper than to listen to each session."""


def _tell_of_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    scoped: ScopedSession | None = session.info.get(_SCOPED)
    if scoped is not None and not transaction.nested:
        scoped.after_begin(connection)


def _tell_of_end(session: Session, transaction: SessionTransaction) -> None:
    scoped: ScopedSession | None = session.info.get(_SCOPED)
    if scoped is not None and transaction.parent is None:
        scoped.after_end()


event.listen(HeardSession, "after_begin", _tell_of_begin)
event.listen(HeardSession, "after_transaction_end", _tell_of_end)
