"""What a doctor finds out about a database: its version, its clock, and settings that lose what was committed."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.examination import Finding, Level, version_numbers

_OLDEST = {"PostgreSQL": "13", "MariaDB": "10.6", "MySQL": "8.0.1", "SQLite": "3.35"}
_NOT_TESTED = ("MySQL",)

# Seconds by which clocks may differ: from then on messages that wait come visibly late, and from then on a process that
# has died and one that goes wrong by its clock cannot be told apart.
_NOTICED, _HARMFUL = 1.0, 20.0

_POSTGRESQL = text(
    "SELECT current_setting('server_version'), EXTRACT(EPOCH FROM clock_timestamp()),"
    " current_setting('synchronous_commit'), current_setting('fsync')"
)
_MARIADB = text("SELECT VERSION(), UNIX_TIMESTAMP(SYSDATE(6)), @@global.innodb_flush_log_at_trx_commit")
_SQLITE = (
    text("SELECT sqlite_version()"),
    text("PRAGMA journal_mode"),
    text("PRAGMA synchronous"),
    text("PRAGMA busy_timeout"),
)


Setting = tuple[str, str]
"""What a setting loses, and what to do about it."""


@dataclass(frozen=True)
class Examined:
    """What a database says about itself.

    Args:
        product: What it is.
        version: Which version.
        behind: By how many seconds its clock is behind that of this machine, less what the question took; `None` when
            it has none of its own.
        settings: Settings that lose something, each with what it loses and what to do.
    """

    product: str
    version: str
    behind: float | None
    settings: tuple[Setting, ...]

    def findings(self, where: str) -> Iterator[Finding]:
        """Judge it.

        Args:
            where: The address of the database.
        """
        oldest = _OLDEST[self.product]
        if version_numbers(self.version) < version_numbers(oldest):
            yield Finding(
                Level.PROBLEM,
                "server",
                where,
                f"{self.product} {self.version} is older than {oldest}",
                f"use {self.product} {oldest} or later",
            )
        elif self.product in _NOT_TESTED:
            yield Finding(Level.WARNING, "server", where, f"{self.product} {self.version} answers, and is not tested")
        else:
            yield Finding(Level.OK, "server", where, f"{self.product} {self.version} answers")
        if self.behind is not None:
            yield _judged(self.behind, where)
        for setting, remedy in self.settings:
            yield Finding(Level.WARNING, "durability", where, setting, remedy)


def _judged(behind: float, where: str) -> Finding:
    apart = abs(behind)
    level = Level.PROBLEM if apart >= _HARMFUL else Level.WARNING if apart >= _NOTICED else Level.OK
    if level is Level.OK:
        return Finding(level, "clock", where, f"goes like the clock of this machine, within {_NOTICED:g} s")
    return Finding(
        level,
        "clock",
        where,
        f"its clock is {apart:.1f} s {'behind' if behind > 0 else 'ahead of'} that of this machine: delays and leases "
        "end at other moments than they should",
        "let both get their time from the same servers, with chrony or systemd-timesyncd",
    )


async def examined(connection: AsyncConnection, clock: Clock, *, made_here: bool) -> Examined:
    """Ask a database.

    Args:
        connection: To it.
        clock: Of this machine.
        made_here: Whether its engine is one of ours, with settings that suit.
    """
    match connection.dialect.name:
        case "postgresql":
            return await _postgresql(connection, clock)
        case "sqlite":
            return await _sqlite(connection, made_here=made_here)
        case _:
            return await _mariadb(connection, clock)


async def _postgresql(connection: AsyncConnection, clock: Clock) -> Examined:
    before = _now(clock)
    version, moment, synchronous, fsync = (await connection.execute(_POSTGRESQL)).one()
    behind = _behind(before, float(moment), _now(clock))
    return Examined("PostgreSQL", str(version), behind, tuple(postgresql_loses(synchronous, fsync)))


def postgresql_loses(synchronous_commit: str, fsync: str) -> Iterator[Setting]:
    """Yield what settings of PostgreSQL lose."""
    if synchronous_commit == "off":
        yield (
            "synchronous_commit is off: what was committed last is lost when the server fails",
            "turn it on for this database or user: ALTER DATABASE ... SET synchronous_commit = on",
        )
    if fsync == "off":
        yield "fsync is off: everything can be lost when the machine fails", "turn it on in postgresql.conf"


async def _mariadb(connection: AsyncConnection, clock: Clock) -> Examined:
    before = _now(clock)
    version, moment, flush = (await connection.execute(_MARIADB)).one()
    behind = _behind(before, float(moment), _now(clock))
    product = "MariaDB" if "mariadb" in str(version).lower() else "MySQL"
    # Old clients were told a version that begins with 5.5.5.
    return Examined(product, str(version).removeprefix("5.5.5-"), behind, tuple(mariadb_loses(int(flush))))


def mariadb_loses(flush_log_at_commit: int) -> Iterator[Setting]:
    """Yield what settings of MariaDB and MySQL lose."""
    if flush_log_at_commit != 1:
        yield (
            f"innodb_flush_log_at_trx_commit is {flush_log_at_commit}: what was committed last may be lost in a crash",
            "set it to 1 in the configuration of the server",
        )


async def _sqlite(connection: AsyncConnection, *, made_here: bool) -> Examined:
    version, journal, synchronous, timeout = [(await connection.execute(one)).scalar_one() for one in _SQLITE]
    settings = () if made_here else tuple(sqlite_loses(str(journal), int(synchronous), int(timeout)))
    return Examined("SQLite", str(version), None, settings)


def sqlite_loses(journal: str, synchronous: int, timeout: int) -> Iterator[Setting]:
    """Yield what settings of an engine on SQLite lose, or let fail."""
    if synchronous < 2:
        yield (
            "synchronous is less than FULL: what was committed last is lost when the power fails",
            "run PRAGMA synchronous = FULL on each connection of the engine",
        )
    if journal.lower() != "wal":
        yield (
            f"the journal is in the mode {journal}: whoever reads keeps writers out",
            "run PRAGMA journal_mode = WAL once",
        )
    if timeout < 1000:
        yield (
            f"writers wait for {timeout} ms for each other, and fail",
            'give the engine connect_args={"timeout": 5}',
        )


def _now(clock: Clock) -> float:
    """The time of this machine, in seconds since 1970: not where a test has travelled to."""
    return (clock.now() - clock.offset).timestamp()


def _behind(before: float, there: float, after: float) -> float:
    """By how many seconds a clock is behind this one for certain, whenever between two moments here it was read."""
    if there < before:
        return before - there
    return after - there if there > after else 0.0
