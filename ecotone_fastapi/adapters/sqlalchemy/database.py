"""A database as one plugin: transactions, sessions, channels and the dead letter."""

import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import anyio
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from ecotone_fastapi.adapters.sqlalchemy.access import Access
from ecotone_fastapi.adapters.sqlalchemy.aggregates import SqlAggregates
from ecotone_fastapi.adapters.sqlalchemy.channel import SqlChannel
from ecotone_fastapi.adapters.sqlalchemy.channel_state import SqlPauses
from ecotone_fastapi.adapters.sqlalchemy.counting import SqlCounts
from ecotone_fastapi.adapters.sqlalchemy.dead_letter import SqlDeadLetters
from ecotone_fastapi.adapters.sqlalchemy.dialects import OVERFLOW, POOLED, address, dialect_for
from ecotone_fastapi.adapters.sqlalchemy.documents import SqlDocuments
from ecotone_fastapi.adapters.sqlalchemy.entities import SqlEntities
from ecotone_fastapi.adapters.sqlalchemy.event_queries import EventTables
from ecotone_fastapi.adapters.sqlalchemy.events import SqlEvents
from ecotone_fastapi.adapters.sqlalchemy.examination import Examined, examined
from ecotone_fastapi.adapters.sqlalchemy.inbox import SqlInbox
from ecotone_fastapi.adapters.sqlalchemy.methods import implemented
from ecotone_fastapi.adapters.sqlalchemy.order import in_order_for
from ecotone_fastapi.adapters.sqlalchemy.projections import SqlProjections
from ecotone_fastapi.adapters.sqlalchemy.queue import queue_for
from ecotone_fastapi.adapters.sqlalchemy.schedules import SqlSchedules
from ecotone_fastapi.adapters.sqlalchemy.schema import Schema
from ecotone_fastapi.adapters.sqlalchemy.snapshots import SqlSnapshots
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.adapters.sqlalchemy.units import HeardSession
from ecotone_fastapi.adapters.sqlalchemy.wakeup import Wakeup
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError
from ecotone_fastapi.core.examination import Finding, Level
from ecotone_fastapi.core.injection import cache_key
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.deduplication import DeduplicationStore
from ecotone_fastapi.messaging.outbox import OutboxStorage
from ecotone_fastapi.messaging.protection import PauseStore
from ecotone_fastapi.messaging.retries import PassingErrors
from ecotone_fastapi.messaging.transactions import UnitOfWork
from ecotone_fastapi.modelling.documents import DocumentStore
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.modelling.snapshots import SnapshotStore
from ecotone_fastapi.operations.counting import CountsTogether

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

_RELAYING = 20.0  # seconds
_OUTBOX = "outbox/"  # what the channels are named after that keep messages on their way to others
_LONGEST_CHAIN = 10  # errors, each the cause of the one before


class SqlAlchemy:
    """A database: the plugin that gives transactions, sessions and the dead letter, and the maker of channels.

    Given a URL it makes an engine with settings that suit messaging, and disposes of it in the end. Given an engine it
    uses that one as it is. On SQLite such an engine should wait for other writers (`timeout` in `connect_args`, five
    seconds by default) and keep its file in WAL mode (`PRAGMA journal_mode = WAL`); either way of letting the driver or
    an event begin transactions is fine.

    Args:
        url_or_engine: The address of the database, or the application's own engine. The drivers are asyncpg and psycopg
            for PostgreSQL, asyncmy for MariaDB and MySQL, aiosqlite for SQLite.
        sessionmaker: Makes the application's sessions; they should not expire what they have committed. Every unit of
            work has one, whose hooks hear its transaction. Without it, a session is made when somebody asks for it.
        create_schema: Whether tables that are missing are created at start. Safe with any number of processes.
        schema: The schema in which our tables are; `None` is the database's default.
        name: What health checks call the database.

    Attributes:
        engine: The engine.
        sessionmaker: Makes sessions.
        dead_letters: The dead letter in this database.
        inbox: What was handled, by the messages that must not be handled twice.
        snapshots: What the events of streams have led to.
        schedules: What waits under a key on the channels in this database.
        pauses: Which consumers pause in all processes.
        projections: How far projections have come.
        aggregate_stores: Aggregates in this database: mapped classes in their own tables, all others as JSON.
        events: Events in this database, see `EventStorage`; handlers ask for an `EventStore`.
        documents: Documents in this database; those that handlers get use the converters of the application, too.

    Example:
        >>> database = SqlAlchemy("sqlite+aiosqlite:///shop.db", create_schema=True)
        >>> notifications = database.channel("notifications")
        >>> notifications.capabilities.transactional
        True
    """

    def __init__(
        self,
        url_or_engine: str | URL | AsyncEngine,
        *,
        sessionmaker: async_sessionmaker[AsyncSession] | None = None,
        create_schema: bool = False,
        schema: str | None = None,
        name: str | None = None,
    ) -> None:
        made_here = not isinstance(url_or_engine, AsyncEngine)
        if isinstance(url_or_engine, AsyncEngine):
            self.engine: AsyncEngine = url_or_engine
            dialect = dialect_for(self.engine.dialect.name, self.engine.dialect.driver, self.engine.url)
        else:
            url = _address(url_or_engine)
            database, _, driver = url.drivername.partition("+")
            dialect = dialect_for(database, driver, url)
            self.engine = dialect.engine(url)
        self.sessionmaker: async_sessionmaker[AsyncSession] = sessionmaker or async_sessionmaker(
            self.engine, expire_on_commit=False, sync_session_class=HeardSession
        )
        self._check_bind()
        self.name: str = name or self.engine.dialect.name
        self._made_here = made_here
        self._create_schema = create_schema
        self._lifespans = 0
        self._clock: Clock = SystemClock()
        self._dialect = dialect
        self._transactions = Transactions(
            self.engine, self.sessionmaker, dialect, made_here=made_here, plain_sessions=sessionmaker is None
        )
        self._transactions.shared_key = cache_key(self.session)
        self._together = made_here
        self._schema = Schema(self._transactions, schema)
        self._queue = queue_for(self._schema.table("ecotone_message"), dialect)
        self._in_order = in_order_for(
            self._schema.table("ecotone_message"), self._schema.table("ecotone_channel"), dialect
        )
        self._wakeup = Wakeup(self._transactions)
        self.pauses: SqlPauses = SqlPauses(self._schema.table("ecotone_channel"), self._transactions, self._letting_go)
        access = Access(self._transactions, self._prepare)

        def now() -> datetime:
            return self._clock.now()  # that of today: it may be set later

        self.dead_letters: SqlDeadLetters = SqlDeadLetters(self._schema.table("ecotone_dead_letter"), access)
        self.inbox: SqlInbox = SqlInbox(self._schema.table("ecotone_inbox"), access, now)
        self._documents = SqlDocuments(self._schema.table("ecotone_document"), access, now)
        self.documents: DocumentStore = DocumentStore(self._documents)
        self.aggregate_stores: Sequence[AggregateStore] = (
            SqlEntities(self._transactions),
            SqlAggregates(self._schema.table("ecotone_aggregate"), access, now),
        )
        self.events: SqlEvents = SqlEvents(
            EventTables(
                *map(
                    self._schema.table,
                    ("ecotone_event", "ecotone_event_tag", "ecotone_event_counter", "ecotone_projection"),
                )
            ),
            self._transactions,
            self._prepare,
            lambda: self._clock,
            self._wakeup,
        )
        self.snapshots: SqlSnapshots = SqlSnapshots(self._schema.table("ecotone_snapshot"), access)
        self.schedules: SqlSchedules = SqlSchedules(self._schema.table("ecotone_message"), access, lambda: self._clock)
        self.projections: SqlProjections = SqlProjections(
            self._schema.table("ecotone_projection"),
            self._schema.table("ecotone_projection_partition"),
            access,
            lambda: self._clock,
        )

    def install(self, assembly: Assembly) -> None:
        """Offer transactions, sessions, the dead letter and itself as services."""
        self._transactions.gateway = assembly.gateway
        assembly.add_service(UnitOfWork, self)
        assembly.add_service(DeadLetterStore, self.dead_letters)
        assembly.add_service(DeduplicationStore, self.inbox)
        assembly.add_service(OutboxStorage, self)
        assembly.add_service(PassingErrors, self)
        assembly.add_service(PauseStore, self.pauses)
        message = self._schema.table("ecotone_message")
        assembly.add_service(CountsTogether, SqlCounts(message, self._transactions, lambda: self._clock))
        assembly.add_service(ProjectionStore, self.projections)
        assembly.add_service(EventStorage, self.events)
        assembly.add_service(DocumentStore, DocumentStore(self._documents, assembly.gateway.conversion))
        assembly.add_service(SnapshotStore, self.snapshots)
        assembly.add_service(SqlAlchemy, self)
        assembly.add_service(AsyncSession, self.session)
        assembly.add_lifespan(self.lifespan)

    def use_clock(self, clock: Clock) -> None:
        """Give this clock to the channels that are made from now on."""
        self._clock = clock

    def channel(self, name: str, *, lease: float = 60.0, renew: bool = True, keeps_order: bool = False) -> SqlChannel:
        """Make a channel in this database.

        Args:
            name: The name by which `@asynchronous` and the command line know it.
            lease: Seconds after which a message is lent to somebody else when its consumer has died.
            renew: Whether leases of living consumers are renewed, so that a handler may take longer.
            keeps_order: Whether messages with the same partition key are handled one after the other in the order of
                sending, by all consumers in all processes, also while one of them is retried: its successors wait.
                They go on when it has been handled or parked. One that is sent with a delay holds up those of its key
                that are sent after it; priority counts between keys only. Claims cost more, and each lends at most one
                message of a key. All processes have to agree on it.
        """
        return SqlChannel(
            name,
            transactions=self._transactions,
            queue=self._queue,
            wakeup=self._wakeup,
            prepare=self._prepare,
            lease=lease,
            renew=renew,
            clock=self._clock,
            in_order=self._in_order if keeps_order else None,
        )

    def implement(self, interface: Callable[..., T]) -> T:
        """Return an object whose methods are the SQL that `@query` and `@statement` say, for use as a service.

        In a handler they run on its session and in its transaction; elsewhere each is a transaction of its own. What
        the database refuses is raised as SQLAlchemy has it.

        Args:
            interface: A protocol or an abstract class with such methods.

        Raises:
            ConfigurationError: A method cannot be what it says: parameters that the SQL does not have, for example.

        Example:
            >>> from typing import Protocol
            >>> from ecotone_fastapi.adapters.sqlalchemy import query
            >>> class Orders(Protocol):
            ...     @query("SELECT id FROM orders WHERE customer = :customer ORDER BY id")
            ...     async def of_customer(self, customer: str) -> list[str]: ...
            >>> ecotone = Ecotone([], plugins=[database], services={Orders: database.implement(Orders)})
        """
        return implemented(interface, self._transactions)

    def outbox_for(self, channel: str, *, keeps_order: bool = False) -> SqlChannel:
        """Make the outbox of a channel that is somewhere else; it is named `outbox/` and the name of that channel.

        Args:
            channel: The name of that channel.
            keeps_order: Whether that channel keeps the order of each partition key; then its outbox does, too.
        """
        # A relay holds its messages for as long as a broker takes to confirm them. When it dies, nobody wants to wait.
        return self.channel(_OUTBOX + channel, lease=_RELAYING, keeps_order=keeps_order)

    async def outboxes(self) -> Sequence[str]:
        """Return the names of the channels that messages are on their way to, whether anybody here has them or not.

        Raises:
            ChannelError: The database cannot be reached.
        """
        table = self._schema.table("ecotone_message")
        names = text(f"SELECT DISTINCT channel FROM {table} WHERE channel LIKE :outbox")  # noqa: S608 - a name of ours

        async def find(connection: AsyncConnection) -> Sequence[str]:
            return (await connection.execute(names, {"outbox": f"{_OUTBOX}%"})).scalars().all()

        found = await self._transactions.read(find, "looking for messages in the outbox")
        return sorted(name.removeprefix(_OUTBOX) for name in found)

    def covers(self, part: object) -> bool:
        """Whether what is done with a channel or a store commits or vanishes with the transaction: it was made here."""
        return part is self.dead_letters or (isinstance(part, SqlChannel) and part.is_in(self._transactions))

    def begin(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """Open a transaction that everything in the scope shares; commit it when left well, else roll it back."""
        return self._transactions.begin(scope)

    def savepoint(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """Mark a place in the scope's open transaction; roll back to it when left with a failure, and only to it."""
        return self._transactions.savepoint(scope)

    def is_passing(self, error: Exception) -> bool:
        """Whether a transaction was rolled back only because it has met another one: by a deadlock, for example."""
        cause: BaseException | None = error
        for _ in range(_LONGEST_CHAIN):  # statements of ours and users wrap what the database says
            if cause is None:
                break
            if isinstance(cause, DBAPIError):
                return self._dialect.is_passing(cause)
            if isinstance(cause, StaleDataError):  # an entity that somebody else has changed meanwhile
                return True
            cause = cause.__cause__
        return False

    async def session(self) -> AsyncIterator[AsyncSession]:
        """Give the session of the present unit of work; where there is none, one of its own that is closed afterwards.

        A dependency for handlers and for endpoints. In a handler of a command or an asynchronous event the session is
        in the transaction that the framework commits: do not commit it yourself. A handler may as well ask for it by
        its type, `session: AsyncSession`.

        Example:
            >>> SessionDep = Annotated[AsyncSession, Depends(database.session)]
        """
        scope = current_scope()
        if scope is not None:
            yield await self._transactions.session(scope)
        else:
            async with self._transactions.lone_session() as session:
                yield session

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Hold the database for as long as the application runs. It need not answer yet."""
        self._wakeup.open()
        self._lifespans += 1
        try:
            try:
                await (self._prepare() if self._create_schema else self._check_engine())
            except ChannelError as error:
                what = "the tables will be created" if self._create_schema else "the engine will be checked"
                logger.warning("%s when the database answers: %s", what, error)
            yield
        finally:
            self._lifespans -= 1
            with anyio.CancelScope(shield=True):
                async with self._letting_go():
                    await self._wakeup.close()
                    await self._transactions.finish()

    async def migrate(self) -> Sequence[str]:
        """Bring the tables up to date; return what was done, line by line. Safe to repeat and to do at once.

        Raises:
            ChannelError: The database cannot be reached.
        """
        async with self._letting_go():
            return await self._schema.migrate()

    async def missing(self) -> Sequence[str]:
        """Return what `migrate` would have to create or change, line by line; change nothing.

        Raises:
            ChannelError: The database cannot be reached.
        """
        if self._lacks_file():
            return self._schema.everything()
        async with self._letting_go():
            return await self._schema.missing()

    def migration_sql(self) -> str:
        """Return the statements that create everything in an empty database, for people who run them by hand."""
        return self._schema.sql()

    async def check(self) -> None:
        """Make sure that the database answers.

        Raises:
            ChannelError: It does not.
        """

        async def ask(connection: AsyncConnection) -> None:
            await connection.execute(text("SELECT 1"))

        await self._transactions.read(ask, "checking the database")

    @property
    def creates_schema(self) -> bool:
        """Whether tables that are missing are created at start."""
        return self._create_schema

    @property
    def most_connections(self) -> int | None:
        """How many connections there are at most; `None` when the engine is the application's own."""
        return POOLED + OVERFLOW if self._made_here else None

    async def examine(self) -> Sequence[Finding]:
        """Find out whether the server suits: its version, its clock, and what it may lose.

        Raises:
            ChannelError: The database cannot be reached.
        """

        async def ask(connection: AsyncConnection) -> Examined:
            return await examined(connection, self._clock, made_here=self._made_here)

        if self._lacks_file():
            return [Finding(Level.OK, "server", self._transactions.address, "there is no such file yet")]
        async with self._letting_go():
            answer = await self._transactions.read(ask, "examining the server")
        return list(answer.findings(self._transactions.address))

    @asynccontextmanager
    async def _letting_go(self) -> AsyncIterator[None]:
        """Leave no connection open where no application runs."""
        try:
            yield
        finally:
            if self._made_here and not self._lifespans:
                await self.engine.dispose()

    def _lacks_file(self) -> bool:
        """Whether it is a file that is not there: to look into it would make it."""
        name = self.engine.url.database
        is_plain = self._dialect.name == "sqlite" and name is not None and not name.startswith("file:")
        return is_plain and not Path(name or "").exists()

    def _check_bind(self) -> None:
        bind = self.sessionmaker.kw.get("bind")
        bound_to = bind.engine if isinstance(bind, AsyncConnection) else bind
        # With other options it is another engine, but on the same pool.
        if isinstance(bound_to, AsyncEngine) and bound_to.sync_engine.pool is not self.engine.sync_engine.pool:
            raise ConfigurationError(
                "the sessionmaker makes sessions of another engine than the one given",
                tried=f"{address(bound_to.url)} instead of {address(self.engine.url)}",
                hint="give both the same: SqlAlchemy(engine, sessionmaker=async_sessionmaker(engine))",
            )

    async def _check_engine(self) -> None:
        if not self._together:
            await self._transactions.check_together()
            self._together = True

    async def _prepare(self) -> None:
        await self._check_engine()
        if self._create_schema:
            await self._schema.create()
        else:
            await self._schema.check()


def _address(url: str | URL) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        pass
    # Nothing is chained: SQLAlchemy may quote the address, and there may be a password in it.
    scheme = re.match(r"[\w+]*", str(url))
    _, at, rest = str(url).partition("?")[0].rpartition("@")
    raise ConfigurationError(
        f"'{scheme[0] if scheme else ''}…{at}{rest if at else ''}' is not the address of a database",
        hint="write postgresql+asyncpg://user:password@host/database",
    )
