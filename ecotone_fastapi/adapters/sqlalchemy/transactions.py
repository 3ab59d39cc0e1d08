"""Sessions and transactions: one session per scope, one transaction per unit of work, and short ones of our own.

On SQLite, where writers exclude each other, a unit takes its turn among the writers of this process when it touches the
database for the first time, and then begins with `BEGIN IMMEDIATE`: a transaction that reads first and writes later
fails as soon as somebody else has written in between.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import anyio
from sqlalchemy import Connection, ExceptionContext, event, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstanceState
from sqlalchemy.orm.attributes import set_committed_value

from ecotone_fastapi.adapters.sqlalchemy.dialects import BEGIN, Dialect, address
from ecotone_fastapi.adapters.sqlalchemy.units import (
    WRITER,
    ScopedSession,
    Sessions,
    Statements,
    Turn,
    Unit,
    scoped_session_of,
    taking,
)
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, TransactionAbortedError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.texts import in_one_line
from ecotone_fastapi.core.watching import Operation, Watching

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

_NOBODY = Watching()
_TRIES = 5
_PATIENCE = 30.0  # seconds in which the database has to answer statements of ours


class _Loaded(NamedTuple):
    entity: object
    names: Sequence[str]  # of the attributes that can be read without the database
    version: Mapping[str, Any]


class Transactions:
    """The sessions and transactions of one engine.

    Args:
        engine: Where sessions and statements go.
        sessionmaker: Makes the sessions that users work with.
        dialect: What is particular about the database.
        made_here: Whether the engine has the settings that `dialect` gives.
        plain_sessions: Whether nobody but us has a say in what `sessionmaker` makes.

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
        plain_sessions: bool,
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
        self._sessions = Sessions(
            engine,
            sessionmaker,
            # On SQLite a session tells when a transaction begins that somebody else has to make a writer's.
            lean=plain_sessions and (made_here or not dialect.one_writer),
            turn=self.turn,
            writer_options={BEGIN: WRITER} if dialect.one_writer and own_sessions else None,
        )
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
        return await (await self._scoped(scope)).session()

    def unit(self) -> Unit | None:
        """Return the unit of work that is open in the calling task's scope."""
        scoped = self._present()
        return scoped.unit if scoped is not None else None

    def _present(self) -> ScopedSession | None:
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
            await (self._commit(unit, scoped) if scoped.begun else self._act(unit, scoped))
        except BaseException:
            unit.open = False
            await scoped.forget()
            raise
        finally:
            unit.end()
            scoped.unit = None
            scoped.give_up_turn()
        unit.conclude()

    async def _commit(self, unit: Unit, scoped: ScopedSession) -> None:
        for last in unit.last:
            last.check(await self._write(scoped, last.statements, last.doing))
        await self._make_sure(unit, scoped)
        try:
            await scoped.commit()
        except Exception as error:
            # Without a statement it is COMMIT itself that has lost its answer: the server alone knows what it did.
            if isinstance(error, DBAPIError) and error.statement is None and error.connection_invalidated:
                self.watching.failed(Operation.COMMIT, "commit", self.dialect.name, error)
            raise

    @property
    def watching(self) -> Watching:
        """Those who watch the application that has the database."""
        return self.gateway.watching if self.gateway is not None else _NOBODY

    async def _act(self, unit: Unit, scoped: ScopedSession) -> None:
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
        session = await scoped.session()
        nested = await session.begin_nested()
        before = _loaded_in(session)
        try:
            yield
            await nested.commit()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                try:
                    await nested.rollback()
                    if isinstance(error, Exception):  # after a cancellation nobody goes on
                        await self._load_again(session, before)
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
        await self.undisturbed(self._answered(self._check_together(), "checking the engine"))

    async def _check_together(self) -> None:
        async with self._bind.begin() as connection:
            together = await self.dialect.keeps_together(connection)
        if not together:
            raise ConfigurationError(
                f"the engine of {self.address} is in AUTOCOMMIT mode",
                tried="without transactions a handler that fails leaves its writes behind, and messages come and go "
                "without the writes of their handlers",
                hint="make the engine without isolation_level='AUTOCOMMIT'; "
                "engine.execution_options(isolation_level='AUTOCOMMIT') gives another one for what needs it",
            )

    async def _scoped(self, scope: Scope) -> ScopedSession:
        scoped: ScopedSession | None = scope.state.get(self)
        if scoped is not None:
            return scoped
        if self.shared_key in scope.shared:
            session = scope.cache[self.shared_key]
            if isinstance(session, AsyncSession):  # a test may have replaced it
                scoped = scope.state[self] = self._shared(session)
                return scoped
        scoped = scope.state[self] = ScopedSession(self._sessions)
        await scope.enter(scoped)
        return scoped

    def _shared(self, session: AsyncSession) -> ScopedSession:
        return scoped_session_of(session) or ScopedSession(self._sessions, session)

    def _note_error(self, context: ExceptionContext) -> None:
        error, connection = context.sqlalchemy_exception, context.connection
        if connection is not None and isinstance(error, DBAPIError) and self.dialect.may_abort(error):
            self._errors.setdefault(connection, f"{type(error.orig).__name__}: {error.orig}")

    async def _make_sure(self, unit: Unit, scoped: ScopedSession) -> None:
        """Ask before the commit whether there is something to commit; without an error there is."""
        broken = unit.broken
        if broken is None and self._errors and scoped.in_transaction:
            connection = await scoped.connection()
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
        session = await scoped.session()
        connection = await scoped.writing()
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
        return await self._write(scoped, statements, doing, patience)

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
        if scoped is None or scoped.unit is None or not scoped.begun:
            return await self.apart(statements, doing)
        return await self._answered(self._look(scoped, statements), doing)

    async def apart(self, statements: Statements[T], doing: str) -> T:
        """Run statements that change nothing outside of the unit of work, which may have failed.

        Raises:
            ChannelError: The database refused or could not be reached.
        """
        return await self.undisturbed(self._answered(self._read(statements), doing))

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
        return await self._answered(
            self._again(self.engine if several else self.own_engine, statements), doing, patience
        )

    async def _again(self, engine: AsyncEngine, statements: Statements[T]) -> T:
        for tries in range(1, _TRIES + 1):
            try:
                async with taking(self.turn), engine.begin() as connection:
                    return await statements(connection)
            except DBAPIError as error:
                if tries == _TRIES or not self.dialect.is_passing(error):
                    raise
            await asyncio.sleep(random.uniform(0.005, 0.02) * 2**tries)  # noqa: S311 - no secret
        raise AssertionError("the last try returns or raises")

    async def _read(self, statements: Statements[T]) -> T:
        async with self.own_engine.connect() as connection:
            return await statements(connection)

    async def _look(self, scoped: ScopedSession, statements: Statements[T]) -> T:
        return await statements(await scoped.connection())

    async def _write(
        self, scoped: ScopedSession, statements: Statements[T], doing: str, patience: float = _PATIENCE
    ) -> T:
        try:
            async with asyncio.timeout(patience):
                return await statements(await scoped.writing())
        except self._failures as error:
            raise self._refused(error, doing) from error

    async def _answered(self, work: Coroutine[Any, Any, T], doing: str, patience: float = _PATIENCE) -> T:
        try:
            async with asyncio.timeout(patience):
                return await work
        except self._failures as error:
            raise self._refused(error, doing) from error

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Raise what the driver raises as a `ChannelError`."""
        try:
            yield
        except self._failures as error:
            raise self._refused(error, doing) from error

    def _refused(self, error: Exception, doing: str) -> ChannelError:
        reason = error.orig if isinstance(error, DBAPIError) and error.orig else error
        hint = "check that the server runs and that the address is right; trying again later is worth it"
        if isinstance(error, DBAPIError) and self.dialect.lacks_table(error):
            hint = (
                "start the application, which checks the tables; "
                "SqlAlchemy(..., create_schema=True) creates them, and so does `ecotone migrate`"
            )
        return ChannelError(
            f"{doing}: the database refused or could not be reached",
            tried=f"{self.address}: {type(reason).__name__}: {reason}",
            hint=hint,
            code=self.dialect.code_of(error) if isinstance(error, DBAPIError) else None,
        )


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
