"""What PostgreSQL, MariaDB, MySQL and SQLite do differently: clocks, tokens, errors and the settings of an engine.

Statements that go by a clock go by the server's. They take the parameter `:offset`, which is zero unless a test has
travelled in time.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from importlib import import_module
from math import inf
from time import monotonic
from typing import Any
from uuid import UUID

from sqlalchemy import URL, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ecotone_fastapi.core.errors import ConfigurationError, MissingExtraError

_IDLE = 5.0  # seconds after which a pooled connection is asked whether it is still one
_USED = "ecotone_used"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXTRAS = {
    "asyncpg": "postgresql",
    "psycopg": "psycopg",
    "psycopg_async": "psycopg",
    "asyncmy": "mysql",
    "aiosqlite": "sqlite",
}
_MICROSECONDS = 1_000_000

POOLED, OVERFLOW = 10, 10
"""How many connections an engine that we made keeps, and how many more it opens for a while."""

BEGIN = "ecotone_begin"
"""Execution option of an SQLite engine that we made: how its transactions begin. Empty: each statement is its own."""


class Dialect:
    """PostgreSQL, and whatever the others have in common with it.

    Attributes:
        name: What SQLAlchemy calls the database.
        now: SQL for the present moment.
        one_writer: Whether writers exclude each other, so that those of one process had better queue.
        notifies: Whether the server can wake up its clients.
        one_at_a_time: Whether a connection can do nothing else while a cursor on the server is open.
        failures: What the drivers raise without SQLAlchemy around it, on connecting for example.
    """

    name = "postgresql"
    now = "(statement_timestamp() + make_interval(secs => CAST(:offset AS double precision)))"
    one_writer = False
    notifies = True
    one_at_a_time = False
    failures: tuple[type[Exception], ...] = ()

    def after(self, parameter: str) -> str:
        """Return SQL for the moment so many seconds from now."""
        return f"({self.now} + make_interval(secs => CAST({parameter} AS double precision)))"

    def seconds_until(self, moment: str) -> str:
        """Return SQL for the seconds from now to a moment."""
        return f"CAST(EXTRACT(EPOCH FROM ({moment}) - {self.now}) AS double precision)"

    def span(self, seconds: float) -> Any:
        """Return a duration as a parameter for `offset` and `after`."""
        return seconds

    def delay(self, seconds: float) -> Any:
        """Return a duration that is never cut short by the grain of the server's clock."""
        return self.span(seconds)

    def token(self, value: UUID) -> Any:
        """Return a token as a parameter."""
        return value

    def moment(self, value: datetime) -> Any:
        """Return a moment as a parameter."""
        return value

    def read_moment(self, value: Any) -> datetime:
        """Return a moment that was read."""
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)

    def parameter(self, value: Any) -> Any:
        """Return a value as a parameter of the user's SQL: in the form that SQLAlchemy's types give it here."""
        return value.value if isinstance(value, Enum) else value

    def is_passing(self, error: DBAPIError) -> bool:
        """Tell whether the same statements can be expected to succeed when they are tried again at once."""
        return getattr(error.orig, "sqlstate", None) in ("40001", "40P01")

    def code_of(self, error: DBAPIError) -> str | None:
        """Return what the server itself calls an error, if it has told."""
        return getattr(error.orig, "sqlstate", None)

    def lacks_table(self, error: DBAPIError) -> bool:
        """Tell whether a statement named a table that is not there."""
        return getattr(error.orig, "sqlstate", None) == "42P01"

    def may_abort(self, error: DBAPIError) -> bool:
        """Tell whether a transaction may be unable to commit after this error, although the server will not say so."""
        return True

    async def is_aborted(self, connection: AsyncConnection) -> bool:
        """Ask whether the transaction can no longer commit: PostgreSQL answers COMMIT with success all the same."""
        try:
            await connection.execute(text("SELECT 1"))
        except DBAPIError:
            return True
        return False

    async def keeps_together(self, connection: AsyncConnection) -> bool:
        """Tell whether the statements on a connection are one transaction, in which this is the first statement."""
        await connection.execute(text("SELECT set_config('ecotone.together', 'yes', true)"))
        return bool((await connection.execute(text("SELECT current_setting('ecotone.together', true)"))).scalar())

    def connect_timeout(self, url: URL) -> str:
        """Return what the driver calls the seconds in which a connection has to be made."""
        return "timeout" if url.drivername.endswith("asyncpg") else "connect_timeout"

    def engine(self, url: URL) -> AsyncEngine:
        """Make an engine with settings that suit messaging."""
        # READ COMMITTED: a claim that skips locked rows must not fail because another one was faster.
        engine = create_async_engine(
            url,
            isolation_level="READ COMMITTED",
            pool_size=POOLED,
            max_overflow=OVERFLOW,
            pool_recycle=1800,
            connect_args={self.connect_timeout(url): 10},
        )
        _ping_when_idle(engine)
        return engine

    def own_engine(self, engine: AsyncEngine, *, made_here: bool) -> AsyncEngine:
        """Return the engine on which single statements of ours run: same pool, fewest round trips."""
        return engine.execution_options(isolation_level="AUTOCOMMIT")


class MariaDB(Dialect):
    """MariaDB from 10.6 and MySQL from 8.0.1."""

    name = "mysql"
    now = "(UTC_TIMESTAMP(6) + INTERVAL :offset MICROSECOND)"
    notifies = False
    one_at_a_time = True

    def after(self, parameter: str) -> str:
        """Return SQL for the moment so many seconds from now."""
        return f"(UTC_TIMESTAMP(6) + INTERVAL (:offset + {parameter}) MICROSECOND)"

    def seconds_until(self, moment: str) -> str:
        """Return SQL for the seconds from now to a moment."""
        return f"TIMESTAMPDIFF(MICROSECOND, {self.now}, {moment}) / 1e6"

    def span(self, seconds: float) -> Any:
        """Return a duration as a parameter: microseconds."""
        return round(seconds * _MICROSECONDS)

    def token(self, value: UUID) -> Any:
        """Return a token as a parameter: 16 bytes."""
        return value.bytes

    def moment(self, value: datetime) -> Any:
        """Return a moment as a parameter: UTC without saying so."""
        return value.astimezone(UTC).replace(tzinfo=None)

    def read_moment(self, value: Any) -> datetime:
        """Return a moment that was read."""
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return moment.replace(tzinfo=UTC)

    def parameter(self, value: Any) -> Any:
        """Return a value as a parameter of the user's SQL: moments are in UTC, for columns know no zones."""
        value = super().parameter(value)
        if isinstance(value, datetime):
            return _without_zone(value)
        return value.hex if isinstance(value, UUID) else value

    def is_passing(self, error: DBAPIError) -> bool:
        """Tell whether a deadlock or the wait for a lock ended the transaction."""
        return _number_of(error) in (1205, 1213)

    def code_of(self, error: DBAPIError) -> str | None:
        """Return what the server itself calls an error, if it has told."""
        number = _number_of(error)
        return str(number) if isinstance(number, int) and number else None

    def lacks_table(self, error: DBAPIError) -> bool:
        """Tell whether a statement named a table that is not there."""
        return _number_of(error) == 1146

    def may_abort(self, error: DBAPIError) -> bool:
        """Tell whether a deadlock has rolled the whole transaction back; what follows would be in another one."""
        return _number_of(error) == 1213

    async def is_aborted(self, connection: AsyncConnection) -> bool:
        """Return that it is: a deadlock leaves nothing, savepoints included."""
        return True

    async def keeps_together(self, connection: AsyncConnection) -> bool:
        """Tell whether the statements on a connection are one transaction."""
        return not (await connection.execute(text("SELECT @@autocommit"))).scalar()

    def own_engine(self, engine: AsyncEngine, *, made_here: bool) -> AsyncEngine:
        """Return an engine that reads what is committed; to switch to autocommit and back costs more than a commit."""
        return engine if made_here else engine.execution_options(isolation_level="READ COMMITTED")


class SQLite(Dialect):
    """SQLite from 3.35."""

    name = "sqlite"
    now = "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000 + :offset)"
    one_writer = True
    notifies = False

    def after(self, parameter: str) -> str:
        """Return SQL for the moment so many seconds from now."""
        return f"({self.now} + {parameter})"

    def seconds_until(self, moment: str) -> str:
        """Return SQL for the seconds from now to a moment."""
        return f"(({moment}) - {self.now}) / 1e6"

    def span(self, seconds: float) -> Any:
        """Return a duration as a parameter: microseconds."""
        return round(seconds * _MICROSECONDS)

    def delay(self, seconds: float) -> Any:
        """Return a duration in microseconds, and one tick of SQLite's clock more: it tells only milliseconds."""
        return self.span(seconds) + 1000 if seconds > 0 else 0

    def token(self, value: UUID) -> Any:
        """Return a token as a parameter: 16 bytes."""
        return value.bytes

    def moment(self, value: datetime) -> Any:
        """Return a moment as a parameter: microseconds since 1970."""
        return (value - _EPOCH) // timedelta(microseconds=1)

    def read_moment(self, value: Any) -> datetime:
        """Return a moment that was read."""
        return _EPOCH + timedelta(microseconds=value)

    def parameter(self, value: Any) -> Any:
        """Return a value as a parameter of the user's SQL: numbers and text, for that is all that there is."""
        value = super().parameter(value)
        if isinstance(value, datetime):
            return _without_zone(value).isoformat(" ", "microseconds")
        if isinstance(value, date):
            return value.isoformat()
        if isinstance(value, time):
            return value.isoformat("microseconds")
        if isinstance(value, Decimal):
            return float(value)
        return value.hex if isinstance(value, UUID) else value

    def is_passing(self, error: DBAPIError) -> bool:
        """Tell whether somebody else was writing for longer than the busy timeout."""
        # The low byte is the plain code, of SQLITE_BUSY_SNAPSHOT for example: 5 is busy, 6 is locked.
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (5, 6)

    def code_of(self, error: DBAPIError) -> str | None:
        """Return what the server itself calls an error, if it has told."""
        return getattr(error.orig, "sqlite_errorname", None)

    def lacks_table(self, error: DBAPIError) -> bool:
        """Tell whether a statement named a table that is not there."""
        return str(error.orig).startswith("no such table")

    def may_abort(self, error: DBAPIError) -> bool:
        """Return that it goes on: a statement that fails is undone by itself."""
        return False

    async def keeps_together(self, connection: AsyncConnection) -> bool:
        """Tell whether somebody begins transactions: an event has done so, or the driver will."""
        driver: Any = (await connection.get_raw_connection()).driver_connection
        return bool(driver.in_transaction or driver.isolation_level is not None)

    def engine(self, url: URL) -> AsyncEngine:
        """Make an engine that begins its transactions itself and waits for other writers."""
        engine = create_async_engine(url, pool_size=POOLED, max_overflow=OVERFLOW)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def own_engine(self, engine: AsyncEngine, *, made_here: bool) -> AsyncEngine:
        """Return the engine on which each statement is a transaction, when the engine is one of ours."""
        return engine.execution_options(**{BEGIN: ""}) if made_here else engine


def address(url: URL) -> str:
    """Return an address as errors and logs may tell it: without who uses it and how, passwords included."""
    host = url.host.rpartition("@")[2] if url.host else None  # a password with an @ in it ends where it should not
    return URL.create(url.drivername, host=host, port=url.port, database=url.database).render_as_string()


def _without_zone(value: datetime) -> datetime:
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _number_of(error: DBAPIError) -> object:
    return error.orig.args[0] if error.orig and error.orig.args else None


def _ping_when_idle(engine: AsyncEngine) -> None:
    """Find out that a connection is dead before it is used, if it has not been used for a while.

    `pool_pre_ping` asks every time, which costs three round trips with asyncpg.
    """
    ping = engine.sync_engine.dialect.do_ping

    def note_use(connection: object, record: Any) -> None:
        record.info[_USED] = monotonic()

    def check(connection: Any, record: Any, proxy: object) -> None:
        if monotonic() - record.info.get(_USED, inf) > _IDLE:
            try:
                ping(connection)
            except Exception as error:
                raise InvalidatePoolError from error

    event.listen(engine.sync_engine, "checkin", note_use)
    event.listen(engine.sync_engine, "checkout", check)


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # otherwise the driver begins transactions when it sees fit
    cursor = connection.cursor()
    for setting in ("busy_timeout = 5000", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {setting}")
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
    except Exception as error:
        # Another process is switching the same file at this moment, and it can do so only once.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (5, 6):
            raise
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    begin = connection.get_execution_options().get(BEGIN, "BEGIN")
    if begin:
        connection.exec_driver_sql(begin)


_DIALECTS: dict[str, Callable[[], Dialect]] = {
    "postgresql": Dialect,
    "mysql": MariaDB,
    "mariadb": MariaDB,
    "sqlite": SQLite,
}
_DRIVERS = {
    "postgresql": ("asyncpg", "psycopg", "psycopg_async"),
    "mysql": ("asyncmy",),
    "mariadb": ("asyncmy",),
    "sqlite": ("aiosqlite",),
}

_FAILURES = {
    "asyncpg": (("asyncpg", "PostgresError"), ("asyncpg", "InterfaceError"), ("asyncpg", "InternalClientError")),
    "psycopg": (("psycopg", "Error"),),
    "psycopg_async": (("psycopg", "Error"),),
    "asyncmy": (("asyncmy.errors", "MySQLError"),),
    "aiosqlite": (("sqlite3", "Error"),),
}


def dialect_for(name: str, driver: str, url: URL) -> Dialect:
    """Return the dialect of a database.

    Raises:
        ConfigurationError: The database or its driver cannot be used, or it is one SQLite connection in memory.
        MissingExtraError: The driver is not installed.
    """
    if driver not in _DRIVERS.get(name, ()):
        known = {name: _DRIVERS[name]} if name in _DRIVERS else _DRIVERS
        likely = [f"{database}+{drivers[0]}" for database, drivers in known.items()]
        raise ConfigurationError(
            f"cannot use a database by {url.drivername!r}",
            hint=f"write {', '.join(likely)} at the beginning of its URL",
        )
    try:
        import_module(driver.removesuffix("_async"))
    except ImportError as error:
        raise MissingExtraError(_EXTRAS[driver], driver) from error
    if name == "sqlite" and (":memory:" in (url.database or ":memory:") or url.query.get("mode") == "memory"):
        raise ConfigurationError(
            "an SQLite database in memory is a single connection, on which transactions would mix",
            hint="give it a file, in a temporary directory if need be: sqlite+aiosqlite:////tmp/shop.db",
        )
    dialect = _DIALECTS[name]()
    dialect.failures = tuple(getattr(import_module(module), error) for module, error in _FAILURES[driver])
    return dialect
