"""What every test can rely on: one event loop, the servers that answer, and a database of its own."""

import asyncio
import functools
import os
import socket
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

# What must hold before a change lands is decided by the same examples each time; new ones are looked for elsewhere.
# No test fails because the machine is busy.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("default")
if "CI" in os.environ:
    settings.load_profile("ci")

PATIENCE = 30.0  # seconds a server has to answer
MANY_CORES, WORKERS = 16, 8


@dataclass(frozen=True)
class Server:
    """A server that some tests need; its name is the marker of these tests."""

    name: str
    default: str

    @property
    def url(self) -> str:
        return os.environ.get(f"ECOTONE_{self.name.upper()}_URL", self.default)


SERVERS = {
    server.name: server
    for server in (
        Server("postgresql", "postgresql+asyncpg://postgres@127.0.0.1:5432/test"),
        Server("mariadb", "mysql+asyncmy://root@127.0.0.1:3306/test"),
        Server("rabbitmq", "amqp://guest:guest@127.0.0.1:5672/"),
        Server("redis", "redis://127.0.0.1:6379/0"),
        # No server, but as much of the machine as one: what is asked for is its path.
        Server("chromium", "/usr/bin/chromium"),
    )
}


@functools.cache
def refusal(name: str) -> str | None:
    """Why the server does not serve, or None when it does: found out by talking to it, once a process."""
    server = SERVERS[name]
    try:
        match name:
            case "rabbitmq":
                asyncio.run(_open_and_close(server.url))
            case "redis":
                _ping(server.url)
            case "chromium":
                subprocess.run([server.url, "--version"], check=True, capture_output=True, timeout=PATIENCE * 2)
            case _:
                execute(server.url, "SELECT 1")
    except Exception as error:
        place = make_url(server.url).render_as_string() if "://" in server.url else server.url
        return f"no answer at {place}: {type(error).__name__}"
    return None


async def _open_and_close(url: str) -> None:
    connection = await aio_pika.connect(url, timeout=PATIENCE)
    await connection.close()


def _ping(url: str) -> None:
    address = make_url(url)
    with socket.create_connection((address.host, address.port or 6379), PATIENCE) as connection:
        connection.sendall(b"PING\r\n")
        # A server that wants a password says so, and is alive all the same.
        if not connection.recv(64).startswith((b"+PONG", b"-NOAUTH")):
            raise ConnectionError(url)


def execute(url: str, *statements: str) -> None:
    """Run statements on a connection of their own, each committed at once."""

    async def run() -> None:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        async with asyncio.timeout(60), engine.connect() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------ servers and markers


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Start no more processes than PostgreSQL, as it is set up by default, has connections for."""
    return WORKERS if (os.cpu_count() or 1) > MANY_CORES else None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fail before the first test when a server that must answer does not."""
    required = [name.strip() for name in os.environ.get("ECOTONE_REQUIRE", "").split(",") if name.strip()]
    if unknown := sorted(set(required) - set(SERVERS)):
        raise pytest.UsageError(
            f"ECOTONE_REQUIRE names unknown servers: {', '.join(unknown)}; known: {', '.join(SERVERS)}"
        )
    if missing := [f"{name}: {reason}" for name in required if (reason := refusal(name))]:
        pytest.exit("required by ECOTONE_REQUIRE, but " + "; ".join(missing), returncode=pytest.ExitCode.TESTS_FAILED)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in SERVERS:
        if item.get_closest_marker(name) and (reason := refusal(name)):
            pytest.skip(f"{name}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which servers the tests of this run really talked to, and which not, and why."""
    if config.option.collectonly:
        return
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    met = Counter(name for report in reports if report.when == "call" for name in SERVERS if name in report.keywords)
    terminalreporter.section("adapters exercised")
    for name in SERVERS:
        if met[name]:
            terminalreporter.line(f"{name}: {met[name]} tests", green=True)
        else:
            reason = refusal(name) or "no test of this run needs it"
            terminalreporter.line(f"{name}: NOT EXERCISED, {reason}", yellow=True)


# ------------------------------------------------------------------------------------------------------------ fixtures


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an empty SQLite file."""
    return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(scope="session")
def database_name() -> str:
    """A name that no other worker and no other run on this server has."""
    return f"ecotone_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def postgresql_database(database_name: str) -> Iterator[str]:
    """A PostgreSQL database for the tests of this worker, dropped when they are done."""
    server = SERVERS["postgresql"]
    execute(server.url, f"CREATE DATABASE {database_name}")
    yield make_url(server.url).set(database=database_name).render_as_string(hide_password=False)
    execute(server.url, f"DROP DATABASE {database_name} WITH (FORCE)")


@pytest.fixture
def postgresql_url(postgresql_database: str) -> str:
    """The URL of an empty PostgreSQL database; mark the test `postgresql`."""
    execute(
        postgresql_database,
        # Connections that a test forgot would hold locks for ever.
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
    )
    return postgresql_database


@pytest.fixture
def mariadb_url(database_name: str) -> Iterator[str]:
    """The URL of an empty MariaDB database; mark the test `mariadb`."""
    server = SERVERS["mariadb"]
    execute(server.url, f"CREATE DATABASE {database_name} CHARACTER SET utf8mb4")
    yield make_url(server.url).set(database=database_name).render_as_string(hide_password=False)
    execute(server.url, "SET SESSION lock_wait_timeout = 20", f"DROP DATABASE {database_name}")


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of a kind, see `tests.databases`."""
    if kind in ("asyncpg", "psycopg"):
        postgresql = make_url(request.getfixturevalue("postgresql_url"))
        return postgresql.set(drivername=f"postgresql+{kind}").render_as_string(hide_password=False)
    found: str = request.getfixturevalue(f"{kind}_url")
    return found
