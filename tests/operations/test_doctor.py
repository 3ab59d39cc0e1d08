"""What a doctor finds: in the wiring, on real servers, and on servers that are not there."""

import socket
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from anyio.to_thread import run_sync
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi import (
    AsynchronousHandlers,
    ConfigurationError,
    ConsumerSettings,
    Ecotone,
    Outbox,
    asynchronous,
    command_handler,
    event_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.rabbitmq.examination import judged_version
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.adapters.sqlalchemy.examination import Examined, mariadb_loses, postgresql_loses, sqlite_loses
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.examination import Finding, Level
from ecotone_fastapi.core.plugin import Assembly, Plugin
from ecotone_fastapi.operations.doctor import examine, problems_of
from tests.conftest import SERVERS, execute


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@asynchronous("orders")
@command_handler(id="place-order")
async def place_order(command: PlaceOrder) -> None: ...


@dataclass
class ShiftedClock:
    """A clock of this machine that is wrong."""

    by: timedelta
    offset: timedelta = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


async def found(
    *handlers: object,
    channels: Sequence[Channel] = (),
    plugins: Sequence[Plugin] = (),
    timeout: float = 10,
    **more: Any,
) -> list[Finding]:
    ecotone = Ecotone(handlers, channels=channels, plugins=plugins, **more)
    return list(await examine(ecotone.assembly, "shop:ecotone", timeout=timeout))


def about(findings: Sequence[Finding], topic: str) -> list[tuple[str, str, str]]:
    return [(one.level.value, one.where, one.what) for one in findings if one.topic == topic]


def levels(findings: Sequence[Finding]) -> set[str]:
    return {one.level.value for one in findings}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql),
                        pytest.param("mariadb", marks=pytest.mark.mariadb)])  # fmt: skip
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    found_url: str = request.getfixturevalue(f"{request.param}_url")
    return found_url


@pytest.fixture
def database(sqlite_url: str) -> SqlAlchemy:
    """What a channel on a broker needs beside it."""
    return SqlAlchemy(sqlite_url, create_schema=True)


@contextmanager
def a_port() -> Iterator[int]:
    """A port on which somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def closed_port() -> int:
    with a_port() as port:
        return port


# ------------------------------------------------------------------------------------------------------------- wiring


async def test_parts_that_fit_together_are_counted() -> None:
    assert about(await found(place_order, channels=[MemoryChannel("orders")]), "wiring") == [
        ("ok", "shop:ecotone", "1 handler, 1 channel and 1 consumer fit together")
    ]


async def test_everything_that_is_wrong_with_the_wiring_is_a_problem_with_its_hint() -> None:
    @asynchronous("nowhere")
    @event_handler(id="lost")
    async def lost(event: PlaceOrder) -> None: ...

    @command_handler(id="again")
    async def again(command: PlaceOrder) -> None: ...

    @command_handler(id="and-again")
    async def and_again(command: PlaceOrder) -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        Ecotone([lost, again, and_again]).prepare()

    findings = problems_of(raised.value, "shop:ecotone")
    assert [(one.level, one.topic, one.where) for one in findings] == [(Level.PROBLEM, "wiring", "shop:ecotone")] * 2
    assert findings[0].what.startswith("UnknownChannelError: lost: ")
    assert findings[1].what.startswith("DuplicateHandlerError: again and and_again both handle")
    assert all(one.hint for one in findings)


async def test_an_asynchronous_handler_without_a_lasting_name_is_a_warning() -> None:
    @asynchronous("orders")
    @event_handler
    async def nameless(event: PlaceOrder) -> None: ...

    findings = await found(place_order, nameless, channels=[MemoryChannel("orders")])

    (warning,) = [one for one in findings if one.topic == "wiring" and one.level is Level.WARNING]
    assert warning.what.startswith("nameless is known by the name of its module and function")
    assert "id=" in warning.hint


async def test_a_channel_without_a_handler_is_a_warning(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    # What stands in front of a broker is no channel that somebody has forgotten.
    channels = [RabbitMQChannel("orders", declare=False), database.channel("forgotten")]

    findings = await found(place_order, channels=channels, plugins=[database])

    assert ("warning", "channel forgotten", "no handler stands behind it") in about(findings, "wiring")
    assert [where for _, where, _ in about(findings, "wiring")] == ["shop:ecotone", "channel forgotten"]


async def test_a_consumer_that_needs_more_connections_than_there_are_is_a_warning(sqlite_url: str) -> None:
    async def told(concurrency: int) -> list[tuple[str, str, str]]:
        database = SqlAlchemy(sqlite_url, create_schema=True, name="orders")
        handlers = AsynchronousHandlers({"orders": ConsumerSettings(concurrency=concurrency)})
        return about(
            await found(place_order, channels=[database.channel("orders")], plugins=[database, handlers]), "connections"
        )

    assert await told(19) == []
    assert await told(20) == [
        (
            "warning",
            "consumer orders",
            "handles 20 messages at the same time, each in a transaction, and orders has 20 connections for all",
        )
    ]


async def test_how_many_connections_an_engine_of_the_user_has_is_not_guessed(sqlite_url: str) -> None:
    database = SqlAlchemy(create_async_engine(sqlite_url, pool_size=1, max_overflow=0), create_schema=True)
    handlers = AsynchronousHandlers({"orders": ConsumerSettings(concurrency=50)})

    findings = await found(place_order, channels=[database.channel("orders")], plugins=[database, handlers])

    assert about(findings, "connections") == []


# ------------------------------------------------------------------------------------------------------------- tables


async def test_missing_tables_are_a_problem_until_they_are_there(url: str) -> None:
    database = SqlAlchemy(url, name="orders")

    ((level, where, what),) = about(await found(plugins=[database]), "schema")
    assert (level, where) == ("problem", "orders")
    assert what.startswith("lacks the table ecotone_aggregate, ")

    await SqlAlchemy(url).migrate()

    assert about(await found(plugins=[SqlAlchemy(url, name="orders")]), "schema") == [
        ("ok", "orders", "all tables are up to date")
    ]


async def test_tables_that_are_made_at_start_are_no_problem_and_are_not_made_for_the_examination(url: str) -> None:
    for _ in range(2):
        ((level, _, what),) = about(await found(plugins=[SqlAlchemy(url, create_schema=True)]), "schema")
        assert level == "ok"
        assert what.endswith("will be made at start")


# ------------------------------------------------------------------------------------------------------------- servers


async def test_a_database_tells_its_version_and_its_time(url: str) -> None:
    await SqlAlchemy(url).migrate()
    findings = await found(plugins=[SqlAlchemy(url, create_schema=True)])

    product = {"sqlite": "SQLite 3.", "postgresql": "PostgreSQL 1", "mysql": "MariaDB 10."}[
        make_url(url).get_backend_name()
    ]
    ((level, where, what),) = about(findings, "server")
    assert (level, what.startswith(product), what.endswith(" answers")) == ("ok", True, True)
    assert where.startswith(make_url(url).get_backend_name())
    # A file goes by the clock of this machine.
    assert [one for one, _, _ in about(findings, "clock")] == ([] if product.startswith("SQLite") else ["ok"])


@pytest.mark.postgresql
@pytest.mark.parametrize(("seconds", "level", "word"), [(5, "warning", "behind"), (-60, "problem", "ahead of")])
async def test_clocks_that_differ_are_told(postgresql_url: str, seconds: float, level: str, word: str) -> None:
    clock = ShiftedClock(timedelta(seconds=seconds))

    findings = await found(plugins=[SqlAlchemy(postgresql_url, create_schema=True)], clock=clock)

    ((found_level, where, what),) = about(findings, "clock")
    assert found_level == level
    assert where.startswith("postgresql+asyncpg://")
    assert word in what
    assert abs(float(what.removeprefix("its clock is ").partition(" s ")[0]) - abs(seconds)) < 1


@pytest.mark.mariadb
async def test_the_clock_of_mariadb_is_compared_whatever_its_time_zone(mariadb_url: str) -> None:
    elsewhere = make_url(mariadb_url).update_query_dict({"init_command": "SET time_zone = '+05:30'"})

    assert [one for one, _, _ in about(await found(plugins=[SqlAlchemy(elsewhere)]), "clock")] == ["ok"]


async def test_where_a_test_has_travelled_to_is_no_difference_of_clocks(url: str) -> None:
    clock = ShiftedClock(timedelta(days=1), offset=timedelta(days=1))

    findings = await found(plugins=[SqlAlchemy(url, create_schema=True)], clock=clock)

    assert {one for one, _, _ in about(findings, "clock")} <= {"ok"}


@pytest.mark.postgresql
async def test_a_server_that_may_lose_what_was_committed_is_a_warning(postgresql_url: str) -> None:
    name = make_url(postgresql_url).database
    await run_sync(execute, postgresql_url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        findings = await found(plugins=[SqlAlchemy(postgresql_url, create_schema=True)])
    finally:
        await run_sync(execute, postgresql_url, f"ALTER DATABASE {name} RESET synchronous_commit")

    assert ("warning", True) in [
        (level, "synchronous_commit is off" in what) for level, _, what in about(findings, "durability")
    ]


async def test_an_engine_of_the_user_that_does_not_suit_sqlite_is_a_warning(sqlite_url: str) -> None:
    await run_sync(Path(make_url(sqlite_url).database or "").touch)
    engine = create_async_engine(sqlite_url, poolclass=NullPool, connect_args={"timeout": 0.1})

    findings = await found(plugins=[SqlAlchemy(engine, create_schema=True)])

    told = [what for level, _, what in about(findings, "durability") if level == "warning"]
    assert [what.partition(" ")[2].partition(",")[0] for what in told] == [
        "journal is in the mode delete: whoever reads keeps writers out", "wait for 100 ms for each other"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (postgresql_loses("on", "on"), []),
        (postgresql_loses("local", "on"), []),
        (postgresql_loses("off", "off"), ["synchronous_commit is off", "fsync is off"]),
        (mariadb_loses(1), []),
        (mariadb_loses(2), ["innodb_flush_log_at_trx_commit is 2"]),
        (sqlite_loses("wal", 2, 5000), []),
        (sqlite_loses("WAL", 3, 1000), []),
        (sqlite_loses("delete", 1, 0), ["synchronous is less than FULL", "the journal is in", "writers wait for 0 ms"]),
    ],
)
def test_settings_that_lose_something_are_told_and_no_others(
    settings: Iterator[tuple[str, str]], words: list[str]
) -> None:
    told = list(settings)

    assert [what for what, _ in told if not what.startswith(tuple(words))] == []
    assert len(told) == len(words)
    assert all(remedy for _, remedy in told)


async def test_a_file_that_is_not_there_is_not_made_to_look_into_it(tmp_path: Path) -> None:
    file = tmp_path / "new.db"

    findings = await found(plugins=[SqlAlchemy(f"sqlite+aiosqlite:///{file}")])

    assert about(findings, "server") == [("ok", f"sqlite+aiosqlite:///{file}", "there is no such file yet")]
    assert [level for level, _, _ in about(findings, "schema")] == ["problem"]
    assert not file.exists()


@pytest.mark.parametrize(
    ("product", "version", "level"),
    [
        ("PostgreSQL", "12.22", "problem"), ("PostgreSQL", "13.0", "ok"), ("PostgreSQL", "18beta1", "ok"),
        ("MariaDB", "10.5.29-MariaDB", "problem"), ("MariaDB", "10.11.19-MariaDB-0+deb12u1", "ok"),
        ("MySQL", "8.0.40", "warning"), ("MySQL", "5.7.44", "problem"), ("SQLite", "3.34.1", "problem"),
    ],
)  # fmt: skip
def test_old_databases_are_a_problem(product: str, version: str, level: str) -> None:
    (finding,) = Examined(product, version, None, ()).findings("somewhere")

    assert finding.level == level
    assert version in finding.what


async def test_a_database_that_is_not_there_is_one_problem_with_its_address_and_without_its_password() -> None:
    database = SqlAlchemy(f"postgresql+asyncpg://me:secret@127.0.0.1:{closed_port()}/shop", name="orders")

    findings = await found(plugins=[database])

    (problem,) = [one for one in findings if one.level is Level.PROBLEM]
    assert (problem.topic, problem.where) == ("server", "orders")
    assert "127.0.0.1" in problem.what
    assert problem.hint
    assert "secret" not in str(findings)


async def test_a_server_that_says_nothing_has_a_bounded_time(database: SqlAlchemy) -> None:
    with a_port() as port:
        channel = RabbitMQChannel("orders", f"amqp://guest:secret@127.0.0.1:{port}/")

        findings = await found(place_order, channels=[channel], plugins=[database], timeout=1.5)

    problems = {one.where: one.what for one in findings if one.level is Level.PROBLEM}
    assert problems["orders"] == "no answer within 1.5 seconds"


@asynccontextmanager
async def a_queue(**arguments: Any) -> AsyncIterator[str]:
    """The name of a queue; with arguments, of one that is there."""
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with connection:
        channel = await connection.channel()
        if arguments:
            await channel.declare_queue(name, durable=True, arguments=arguments)
        yield name
        await channel.queue_delete(name)


async def is_there(queue: str) -> bool:
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with connection:
        channel = await connection.channel()
        try:
            await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True


@pytest.mark.rabbitmq
async def test_a_queue_that_is_missing_will_be_made_and_is_not_made_now(database: SqlAlchemy) -> None:
    async with a_queue() as name:
        findings = await found(
            place_order, channels=[RabbitMQChannel("orders", SERVERS["rabbitmq"].url, queue=name)], plugins=[database]
        )

        assert about(findings, "queue") == [
            ("ok", "channel orders", f"the quorum queue {name!r} will be made at start")
        ]
        assert not await is_there(name)
    ((level, where, what),) = [one for one in about(findings, "server") if one[1].startswith("amqp")]
    assert level == "ok"
    assert what.startswith(("RabbitMQ 3.", "RabbitMQ 4."))
    assert "guest" not in where


@pytest.mark.rabbitmq
async def test_a_queue_with_other_arguments_is_a_problem(database: SqlAlchemy) -> None:
    async with a_queue(**{"x-queue-type": "classic"}) as name:
        findings = await found(
            place_order, channels=[RabbitMQChannel("orders", SERVERS["rabbitmq"].url, queue=name)], plugins=[database]
        )

    ((level, where, what),) = about(findings, "queue")
    assert (level, where) == ("problem", "channel orders")
    assert "x-queue-type" in what


@pytest.mark.rabbitmq
async def test_a_queue_of_somebody_else_has_to_be_there(database: SqlAlchemy) -> None:
    async with a_queue() as name:
        channel = RabbitMQChannel("orders", SERVERS["rabbitmq"].url, queue=name, declare=False)

        ((level, _, what),) = about(await found(place_order, channels=[channel], plugins=[database]), "queue")

    assert level == "problem"
    assert name in what


@pytest.mark.rabbitmq
async def test_an_exchange_has_to_be_there_before_the_start(database: SqlAlchemy) -> None:
    channel = RabbitMQChannel("orders", SERVERS["rabbitmq"].url, exchange="no-such-exchange")

    ((level, _, what),) = about(await found(place_order, channels=[channel], plugins=[database]), "queue")

    assert level == "problem"
    assert "no-such-exchange" in what


@pytest.mark.rabbitmq
async def test_a_classic_queue_is_on_one_node_and_a_server_is_told_once(database: SqlAlchemy) -> None:
    @asynchronous("mails")
    @command_handler("mail", id="mail")
    async def mail(text: str) -> None: ...

    async with a_queue(**{"x-queue-type": "classic"}) as name:
        options: dict[str, Any] = {"queue": name, "queue_type": "classic"}
        channels = [RabbitMQChannel(one, SERVERS["rabbitmq"].url, **options) for one in ("orders", "mails")]

        findings = await found(place_order, mail, channels=channels, plugins=[database])

    assert [where.partition(":")[0] for _, where, _ in about(findings, "server")] == ["sqlite+aiosqlite", "amqp"]
    assert [(level, where) for level, where, what in about(findings, "durability") if "classic" in what] == [
        ("warning", "channel orders"), ("warning", "channel mails")
    ]  # fmt: skip
    assert {what for _, _, what in about(findings, "queue")} == {f"the classic queue {name!r} is as it should be"}


@pytest.mark.rabbitmq
async def test_an_application_that_runs_can_be_examined(database: SqlAlchemy) -> None:
    async with a_queue() as name:
        channel = RabbitMQChannel("orders", SERVERS["rabbitmq"].url, queue=name)
        async with Ecotone([place_order], channels=[channel], plugins=[database]).running() as ecotone:
            findings = await examine(ecotone.assembly, "shop:ecotone")
            assert await channel.depth() == 0

    assert about(findings, "queue") == [("ok", "channel orders", f"the quorum queue {name!r} is as it should be")]


@pytest.mark.parametrize(
    ("version", "level"), [("3.9.29", "problem"), ("3.10.0", "ok"), ("4.1.0-beta.3", "ok"), ("?", "ok")]
)
def test_old_brokers_are_a_problem(version: str, level: str) -> None:
    assert judged_version(version, "somewhere").level == level


async def test_what_a_plugin_of_the_user_fails_with_is_a_problem() -> None:
    class Broken:
        name = "broken"

        def install(self, assembly: Assembly) -> None: ...

        async def examine(self) -> Sequence[Finding]:
            raise ZeroDivisionError("by zero")

    assert about(await found(plugins=[Broken()]), "server") == [("problem", "broken", "ZeroDivisionError: by zero")]


# ------------------------------------------------------------------------------------------------------------ messages


async def test_messages_for_a_handler_that_is_gone_are_told(url: str) -> None:
    def shop(handler_id: str) -> Ecotone:
        @asynchronous("orders")
        @command_handler(id=handler_id)
        async def place(command: PlaceOrder) -> None: ...

        database = SqlAlchemy(url, create_schema=True)
        return Ecotone([place], channels=[database.channel("orders")], plugins=[database])

    async with shop("former").running(consumers=False) as before:
        await before.command_bus.send(PlaceOrder("1"))
        await before.command_bus.send(PlaceOrder("2"))

    assert about(await examine(shop("former").assembly, "shop"), "messages") == []
    (finding,) = [one for one in await examine(shop("new").assembly, "shop") if one.topic == "messages"]
    assert finding == Finding(
        Level.WARNING,
        "messages",
        "channel orders",
        "2 of the first 100 messages are for the handler former, which is not here",
        'if it was renamed, give it its former name: id="former"',
    )


@pytest.mark.rabbitmq
async def test_messages_in_the_outbox_of_a_channel_that_is_gone_are_told(sqlite_url: str) -> None:
    async with a_queue() as name:
        database = SqlAlchemy(sqlite_url, create_schema=True)
        channel = RabbitMQChannel("orders", SERVERS["rabbitmq"].url, queue=name)
        before = Ecotone([place_order], channels=[channel], plugins=[database, Outbox()])
        async with before.running(consumers=False):
            await before.command_bus.send(PlaceOrder("1"))

    database = SqlAlchemy(sqlite_url, create_schema=True)
    findings = await found(place_order, channels=[database.channel("orders")], plugins=[database])

    assert (
        "warning",
        "outbox of orders",
        "messages wait for a channel that this application sends to directly",
    ) in about(findings, "messages")


async def test_an_application_that_lacks_nothing_is_well(url: str, tmp_path: Path) -> None:
    database = SqlAlchemy(url)
    await database.migrate()

    findings = await found(place_order, channels=[database.channel("orders")], plugins=[database])

    assert levels(findings) == {"ok"}
    assert {one.topic for one in findings} >= {"wiring", "durability", "server", "schema"}
