"""Sessions and transactions: one session per scope, one transaction per unit of work, and short ones of our own.

On SQLite, where writers exclude each other, a unit takes its turn among the writers of this process when it touches the
database for the first time, and then begins with `BEGIN IMMEDIATE`: a transaction that reads first and writes later
fails as soon as somebody else has written in between.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import anyio
from sqlalchemy import Connection, ExceptionContext, event, inspect
from sqlalchemy.exc import DBAPIError, MissingGreenlet, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstanceState, Session, SessionTransaction
from sqlalchemy.orm.attributes import set_committed_value

from ecotone_fastapi.adapters.sqlalchemy.dialects import BEGIN, Dialect, address
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, TransactionAbortedError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.texts import in_one_line
from ecotone_fastapi.core.watching import Operation, Watching

T = TypeVar("T")

Statements = Callable[[AsyncConnection], Awaitable[T]]
"""What is run on a connection."""

logger: logging.Logger = logging.getLogger(__name__)

_NOBODY = Watching()
_TRIES = 5
_PATIENCE = 30.0  # seconds in which the database has to answer statements of ours
_COURTESY = 5.0  # seconds that a writer queues in this process before SQLite itself decides
_SCOPED = "ecotone_scoped"
_WRITER = "BEGIN IMMEDIATE"
_NOT_LOADED = (
    "An attribute that is not loaded was read, and a plain attribute cannot wait for the database: give a relationship "
    'lazy="selectin", or let the class be an AsyncAttrs and write await self.awaitable_attrs.<name>'
)


class _Last(NamedTuple):
    statements: Statements[bool]
    doing: str
    check: Callable[[bool], None]


class _Loaded(NamedTuple):
    entity: object
    names: Sequence[str]  # of the attributes that can be read without the database
    version: Mapping[str, Any]


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


class Transactions:
    """The sessions and transactions of one engine.

    Args:
        engine: Where sessions and statements go.
        sessionmaker: Makes the sessions that users work with.
        dialect: What is particular about the database.
        made_here: Whether the engine has the settings that `dialect` gives.

    Attributes:
        address: The address of the database as errors tell it.
        shared_key: Under which key a scope has the session that its caller shares.
        gateway: Knows who watches; `None` before an application has the database.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        sessionmaker: async_sessionmaker[AsyncSession],
        dialect: Dialect,
        *,
        made_here: bool,
    ) -> None:
        self.engine = engine
        self.sessionmaker = sessionmaker
        self.dialect = dialect
        self.own_engine: AsyncEngine = dialect.own_engine(engine, made_here=made_here)
        self.turn: Turn | None = Turn() if dialect.one_writer else None
        self.address: str = address(engine.url)
        self.shared_key: object = None
        self.gateway: Gateway | None = None
        own_sessions = made_here and sessionmaker.kw.get("bind") is engine
        self._writer_options = {BEGIN: _WRITER} if dialect.one_writer and own_sessions else None
        self._tasks: set[asyncio.Task[Any]] = set()
        # What failed on a connection that may be unable to commit now. As text: an error would keep its connection.
        self._errors: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()
        bind = sessionmaker.kw.get("bind")
        self._bind: AsyncEngine = bind if isinstance(bind, AsyncEngine) else engine
        event.listen(self._bind.sync_engine, "handle_error", self._note_error)
        self._failures: tuple[type[Exception], ...] = (SQLAlchemyError, OSError, *dialect.failures)

    # ------------------------------------------------------------------------------------------- the session of a scope

    async def session(self, scope: Scope) -> AsyncSession:
        """Return the session of a scope; it is closed when the scope ends."""
        return (await self._scoped(scope)).session

    def unit(self) -> Unit | None:
        """Return the unit of work that is open in the calling task's scope."""
        scoped = self._present()
        return scoped.unit if scoped is not None else None

    def _present(self) -> "_ScopedSession | None":
        scope = current_scope()
        return scope.state.get(self) if scope is not None else None

    @asynccontextmanager
    async def begin(self, scope: Scope) -> AsyncIterator[None]:
        """Open a unit of work on the session of a scope; commit it when left well, else roll it back."""
        scoped = await self._scoped(scope)
        unit = scoped.unit = Unit()
        try:
            await scoped.adopt()
            yield
            await (self._commit(unit, scoped) if scoped.made else self._act(unit, scoped))
        except BaseException:
            unit.open = False
            await scoped.forget()
            raise
        finally:
            unit.end()
            scoped.unit = None
            scoped.give_up_turn()
        unit.conclude()

    async def _commit(self, unit: Unit, scoped: "_ScopedSession") -> None:
        for last in unit.last:
            async with self._answered(last.doing):
                result = await last.statements(await self._writing(scoped))
            last.check(result)
        await self._make_sure(unit, scoped)
        try:
            await scoped.session.commit()
        except Exception as error:
            # Without a statement it is COMMIT itself that has lost its answer: the server alone knows what it did.
            if isinstance(error, DBAPIError) and error.statement is None and error.connection_invalidated:
                self.watching.failed(Operation.COMMIT, "commit", self.dialect.name, error)
            raise

    @property
    def watching(self) -> Watching:
        """Those who watch the application that has the database."""
        return self.gateway.watching if self.gateway is not None else _NOBODY

    async def _act(self, unit: Unit, scoped: "_ScopedSession") -> None:
        """Do what is left to do in a unit that nobody has used: one statement needs no transaction around it."""
        if len(unit.last) == 1:
            [(statement, doing, check)] = unit.last
            check(await self.run(statement, doing))
        elif unit.last:
            await self._commit(unit, scoped)

    @asynccontextmanager
    async def savepoint(self, scope: Scope) -> AsyncIterator[None]:
        """Mark a place in the open unit of work of a scope; roll back to it when left with a failure."""
        scoped = await self._scoped(scope)
        unit = scoped.unit
        if unit is None:
            yield
            return
        nested = await scoped.session.begin_nested()
        before = _loaded_in(scoped.session)
        try:
            yield
            await nested.commit()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                try:
                    await nested.rollback()
                    if isinstance(error, Exception):  # after a cancellation nobody goes on
                        await self._load_again(scoped.session, before)
                except Exception:
                    # What is left of the transaction must not be committed, whatever becomes of this error.
                    unit.broken = f"{type(error).__name__}: {error}"
                    logger.warning("a transaction could not go back to a savepoint", exc_info=True)
            raise

    async def _load_again(self, session: AsyncSession, before: Sequence[_Loaded]) -> None:
        """Load what the way back to a savepoint has expired: whoever goes on with an entity cannot wait for it."""
        for entity, names, version in before:
            state: InstanceState[Any] = inspect(entity)
            if names and state.persistent and state.expired:
                # A row without version was locked, and may be newer than all that a repeatable read shows.
                lock = True if self.dialect.name == "mysql" and not version else None
                await session.refresh(entity, names, with_for_update=lock)
                for name, value in version.items():  # what others have saved meanwhile must not be overwritten
                    set_committed_value(entity, name, value)

    @asynccontextmanager
    async def lone_session(self) -> AsyncIterator[AsyncSession]:
        """Make a session for somebody outside of any scope, who may share it with one."""
        async with self.sessionmaker() as session:
            self._shared(session)
            yield session

    async def check_together(self) -> None:
        """Make sure that the application's engine has transactions.

        Raises:
            ConfigurationError: It commits each statement by itself.
            ChannelError: The database cannot be reached.
        """
        await self.undisturbed(self._check_together())

    async def _check_together(self) -> None:
        async with self._answered("checking the engine"), self._bind.begin() as connection:
            together = await self.dialect.keeps_together(connection)
        if not together:
            raise ConfigurationError(
                f"the engine of {self.address} is in AUTOCOMMIT mode",
                tried="without transactions a handler that fails leaves its writes behind, and messages come and go "
                "without the writes of their handlers",
                hint="make the engine without isolation_level='AUTOCOMMIT'; "
                "engine.execution_options(isolation_level='AUTOCOMMIT') gives another one for what needs it",
            )

    async def _scoped(self, scope: Scope) -> "_ScopedSession":
        scoped: _ScopedSession | None = scope.state.get(self)
        if scoped is not None:
            return scoped
        if self.shared_key in scope.shared:
            session = scope.cache[self.shared_key]
            if isinstance(session, AsyncSession):  # a test may have replaced it
                scoped = scope.state[self] = self._shared(session)
                return scoped
        scoped = scope.state[self] = _ScopedSession(self.sessionmaker, self.turn)
        await scope.enter(_closing(scoped))
        return scoped

    def _shared(self, session: AsyncSession) -> "_ScopedSession":
        known: _ScopedSession | None = session.info.get(_SCOPED)
        if known is None:
            known = _ScopedSession(self.sessionmaker, self.turn, shared=session)
        return known

    def _note_error(self, context: ExceptionContext) -> None:
        error, connection = context.sqlalchemy_exception, context.connection
        if connection is not None and isinstance(error, DBAPIError) and self.dialect.may_abort(error):
            self._errors.setdefault(connection, f"{type(error.orig).__name__}: {error.orig}")

    async def _make_sure(self, unit: Unit, scoped: "_ScopedSession") -> None:
        """Ask before the commit whether there is something to commit; without an error there is."""
        broken = unit.broken
        if broken is None and self._errors and scoped.session.in_transaction():
            connection = await self._connection(scoped.session)
            earlier = self._errors.pop(connection.sync_connection, None) if connection.sync_connection else None
            if earlier is not None and await self.dialect.is_aborted(connection):
                broken = earlier
        if broken is not None:
            raise TransactionAbortedError(
                "nothing was committed: the transaction was aborted by an earlier error, which the handler caught",
                tried=broken,
                hint="put what may fail into a savepoint: async with session.begin_nested(): ...",
            )

    # ------------------------------------------------------------------------------------------ statements of the user

    @asynccontextmanager
    async def joined(self, *, writing: bool) -> AsyncIterator[AsyncConnection]:
        """Give the connection of the unit of work of the calling task's scope, else one in a transaction of its own.

        What the session of the unit has not written yet is written before, unless that is switched off. Errors pass as
        they are.

        Args:
            writing: Whether it is about to write.
        """
        scoped = self._present()
        if scoped is None or scoped.unit is None:
            async with taking(self.turn if writing else None), self.engine.begin() as connection:
                yield connection
            return
        connection = await self._writing(scoped)
        session = scoped.session
        if session.autoflush and (session.new or session.dirty or session.deleted):
            await session.flush()
        yield connection

    # ------------------------------------------------------------------------------------------ statements of our own

    async def join(
        self, statements: Statements[T], doing: str, *, several: bool = False, patience: float = _PATIENCE
    ) -> T:
        """Run statements in the unit of work of the calling task's scope, else in a short transaction of their own.

        Args:
            statements: What to run.
            doing: What it is for, as errors tell it.
            several: Whether it is more than one statement.
            patience: For how many seconds the answer is waited for.

        Raises:
            ChannelError: The database refused or could not be reached.
        """
        scoped = self._present()
        if scoped is None or scoped.unit is None:
            return await self.run(statements, doing, several=several, patience=patience)
        async with self._answered(doing, patience):
            return await statements(await self._writing(scoped))

    async def run(
        self, statements: Statements[T], doing: str, *, several: bool = False, patience: float = _PATIENCE
    ) -> T:
        """Run statements in a short transaction of their own, again if it fell victim to a deadlock.

        Args:
            statements: What to run.
            doing: What it is for, as errors tell it.
            several: Whether it is more than one statement, which a transaction has to keep together.
            patience: For how many seconds the answer is waited for.

        Raises:
            ChannelError: The database refused or could not be reached.
        """
        return await self.undisturbed(self._run(statements, doing, several=several, patience=patience))

    async def read(self, statements: Statements[T], doing: str) -> T:
        """Run statements that change nothing, in the unit of work if there is one.

        Raises:
            ChannelError: The database refused or could not be reached.
        """
        scoped = self._present()
        if scoped is None or scoped.unit is None or not scoped.made:
            return await self.apart(statements, doing)
        async with self._answered(doing):
            return await statements(await self._connection(scoped.session))

    async def apart(self, statements: Statements[T], doing: str) -> T:
        """Run statements that change nothing outside of the unit of work, which may have failed.

        Raises:
            ChannelError: The database refused or could not be reached.
        """
        return await self.undisturbed(self._read(statements, doing))

    def start(self, statements: Statements[T], doing: str, *, several: bool = False) -> asyncio.Task[T]:
        """Begin to `run` statements in a task of their own.

        Whoever waits for it may be cancelled: that breaks neither the statements nor their connection.
        """
        return self._started(self._run(statements, doing, several=several, patience=_PATIENCE))

    async def finish(self) -> None:
        """Wait for the statements that were started."""
        while self._tasks:  # what ends may start something
            await asyncio.wait(self._tasks)

    async def undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in a task of its own, which goes on when the one that waits for it is cancelled."""
        task = self._started(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell_the_log)  # there is nobody else left
            raise

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, statements: Statements[T], doing: str, *, several: bool, patience: float) -> T:
        engine = self.engine if several else self.own_engine
        async with self._answered(doing, patience):
            for tries in range(1, _TRIES + 1):
                try:
                    async with taking(self.turn), engine.begin() as connection:
                        return await statements(connection)
                except DBAPIError as error:
                    if tries == _TRIES or not self.dialect.is_passing(error):
                        raise
                await asyncio.sleep(random.uniform(0.005, 0.02) * 2**tries)  # noqa: S311 - no secret
        raise AssertionError("the last try returns or raises")

    async def _read(self, statements: Statements[T], doing: str) -> T:
        async with self._answered(doing), self.own_engine.connect() as connection:
            return await statements(connection)

    async def _writing(self, scoped: "_ScopedSession") -> AsyncConnection:
        """Return the connection of a session, which begins as a writer if it has not begun yet."""
        if self._writer_options is None or scoped.session.in_transaction():
            return await self._connection(scoped.session)
        await scoped.take_turn()
        return await scoped.session.connection(execution_options=self._writer_options)

    async def _connection(self, session: AsyncSession) -> AsyncConnection:
        if session.sync_session.bind is None:  # bound by mapped class, and none of ours is mapped
            return await session.connection(bind_arguments={"bind": self.engine.sync_engine})
        return await session.connection()

    @asynccontextmanager
    async def _answered(self, doing: str, patience: float = _PATIENCE) -> AsyncIterator[None]:
        with self.translated(doing):
            async with asyncio.timeout(patience):
                yield

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Raise what the driver raises as a `ChannelError`."""
        try:
            yield
        except self._failures as error:
            reason = error.orig if isinstance(error, DBAPIError) and error.orig else error
            hint = "check that the server runs and that the address is right; trying again later is worth it"
            if isinstance(error, DBAPIError) and self.dialect.lacks_table(error):
                hint = (
                    "start the application, which checks the tables; "
                    "SqlAlchemy(..., create_schema=True) creates them, and so does `ecotone migrate`"
                )
            raise ChannelError(
                f"{doing}: the database refused or could not be reached",
                tried=f"{self.address}: {type(reason).__name__}: {reason}",
                hint=hint,
                code=self.dialect.code_of(error) if isinstance(error, DBAPIError) else None,
            ) from error


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


class _ScopedSession:
    """The session of a scope, made when somebody wants it, and the unit of work that is open on it.

    Args:
        make: Makes the session.
        turn: Where writers queue.
        shared: The session, when somebody else has made it and will close it.

    Attributes:
        unit: The unit of work.
    """

    def __init__(
        self, make: Callable[[], AsyncSession], turn: Turn | None, *, shared: AsyncSession | None = None
    ) -> None:
        self.unit: Unit | None = None
        self._make = make
        self._shared = shared is not None
        self._session: AsyncSession | None = None
        self._turn = turn
        self._lock: asyncio.Lock | None = None
        self._changes: int | None = None  # of a transaction that was begun by somebody else
        if shared is not None:
            self._use(shared)

    @property
    def made(self) -> bool:
        """Whether anybody has wanted the session so far."""
        return self._session is not None

    @property
    def session(self) -> AsyncSession:
        """The session."""
        return self._session or self._use(self._make())

    def _use(self, session: AsyncSession) -> AsyncSession:
        self._session = session
        session.info[_SCOPED] = self
        if self._turn is not None and not isinstance(session.sync_session, HeardSession):
            event.listen(session.sync_session, "after_begin", _tell_scoped)
        return session

    async def forget(self) -> None:
        """Roll back what is open; give the connection back, unless somebody else will."""
        if self._session is None:
            return
        if not self._session.in_transaction():
            if not self._shared:
                self._session.sync_session.close()  # there is no connection to wait for
            return
        # The failure that led here must not be replaced by that of a lost connection.
        with anyio.CancelScope(shield=True):
            try:
                await (self._session.rollback() if self._shared else self._session.close())
            except Exception:
                logger.warning("a session could not be closed; the server rolls its transaction back", exc_info=True)

    async def adopt(self) -> None:
        """Make a transaction that the session is in already part of the unit."""
        if self._turn is not None and self._session is not None and self._session.in_transaction():
            connection = await self.session.connection()
            await self.take_turn()
            await connection.run_sync(self._begin_immediate)

    def give_up_turn(self) -> None:
        """Let the next writer go ahead."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def take_turn(self) -> None:
        """Wait for the turn to write, unless it has been taken already."""
        if self._turn is not None and self._lock is None:
            self._lock = await self._turn.take()

    def after_begin(self, connection: Connection) -> None:
        """Make the transaction that has begun on SQLite a writer's, if a unit is open."""
        if self._turn is None:
            return
        adapted: Any = connection.connection.dbapi_connection
        driver: Any = connection.connection.driver_connection
        self._changes = driver.total_changes
        if self.unit is not None and self.unit.open:
            if self._lock is None:
                adapted.run_async(lambda _: self.take_turn())
            if connection.get_execution_options().get(BEGIN) != _WRITER:
                self._begin_immediate(connection)

    def _begin_immediate(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            if driver.total_changes != self._changes:
                return  # it has written, so it is the one writer already
            connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql(_WRITER)


class HeardSession(Session):
    """A session whose class is listened to, which is cheaper than to listen to each session."""


def _tell_scoped(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    scoped: _ScopedSession | None = session.info.get(_SCOPED)
    if scoped is not None and not transaction.nested:
        scoped.after_begin(connection)


event.listen(HeardSession, "after_begin", _tell_scoped)


def _loaded_in(session: AsyncSession) -> Sequence[_Loaded]:
    return [_loaded(entity, inspect(entity)) for entity in session.identity_map.values()]


def _loaded(entity: object, state: "InstanceState[Any]") -> _Loaded:
    mapper, values = state.mapper, state.dict
    names = [one.key for one in (*mapper.column_attrs, *mapper.relationships) if one.key in values]
    counted = [] if mapper.version_id_col is None else [mapper.get_property_by_column(mapper.version_id_col).key]
    return _Loaded(entity, names, {name: values[name] for name in counted if name in values})


def _tell_the_log(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.info("what failed was waited for no longer: %s", in_one_line(error))


@asynccontextmanager
async def _closing(scoped: _ScopedSession) -> AsyncIterator[None]:
    try:
        yield
    except (MissingGreenlet, StatementError) as error:
        if isinstance(error, MissingGreenlet) or isinstance(error.orig, MissingGreenlet):
            error.add_note(_NOT_LOADED)
        raise
    finally:
        await scoped.forget()
