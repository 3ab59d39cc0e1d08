"""Events in databases: the shipped suite against every database and driver, and what is particular about each."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi import (
    Ecotone,
    EventStore,
    ProjectionState,
    applies,
    command_handler,
    event_handler,
    event_sourced,
    projection,
)
from ecotone_fastapi.adapters.memory import MemoryEvents
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ConcurrencyError, ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.event_storage import (
    START,
    AppendCondition,
    EventFilter,
    EventStorage,
    Expected,
    Horizon,
    Position,
)
from ecotone_fastapi.testing import EventStoreConformance, flow_test
from ecotone_fastapi.testing.conformance.event_order import Step
from ecotone_fastapi.testing.conformance.event_steps import Reader, everything, fact, facts, places, streams, versions
from ecotone_fastapi.testing.conformance.hooks import OpenUnit
from tests.databases import ASYNCPG, MARIADB, PSYCOPG, SQLITE
from tests.interleavings import STEPS


class SqlEventStores(EventStoreConformance):
    database: SqlAlchemy
    volume = 500

    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def application(self, url: str) -> AsyncIterator[None]:
        self.opened = False
        self.database = SqlAlchemy(url, create_schema=True)
        async with self.database.lifespan():
            yield

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStorage]:
        if self.opened:
            async with self.another() as database:
                yield database.events
        else:
            self.opened = True
            yield self.database.events
            self.opened = False

    @asynccontextmanager
    async def another(self) -> AsyncIterator[SqlAlchemy]:
        database = SqlAlchemy(self.database.engine.url)
        async with database.lifespan():
            yield database

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit(self.database):
            yield

    @settings(
        max_examples=10,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(script=STEPS)
    async def test_e20_writers_and_readers_may_do_anything(self, script: Sequence[Step]) -> None:
        await self.run_steps(script)


class OnPostgreSQL(SqlEventStores):
    async def restore_elsewhere(self) -> None:
        async with self.database.engine.begin() as connection:
            await restored(connection)


class TestSQLiteEvents(SqlEventStores):
    one_writer = True
    hides = False

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestAsyncpgEvents(OnPostgreSQL):
    volume = 10_000

    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url

    @pytest.mark.timeout(600)
    async def test_e6_a_slow_transaction_is_not_skipped_however_many_come_behind(self) -> None:
        await super().test_e6_a_slow_transaction_is_not_skipped_however_many_come_behind()

    async def _crowd_behind(self, events: EventStorage, reader: Reader) -> None:
        await super()._crowd_behind(events, reader)
        number = self.volume
        while (await events.horizon()).lag < 61:  # by the clock of the server
            number += 1
            await events.append(f"fast-{number}", facts(1), expected=0)
        await reader.read()


@pytest.mark.postgresql
class TestPsycopgEvents(OnPostgreSQL):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.mark.mariadb
class TestMariaDBEvents(SqlEventStores):
    hides = False
    decides_together = False

    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url


@pytest.mark.mariadb
class TestMySQLEvents(TestMariaDBEvents):
    """On MariaDB, but without what MySQL does not know."""

    volume = 100

    @pytest.fixture(autouse=True)
    async def application(self, url: str) -> AsyncIterator[None]:
        self.opened = False
        self.database = SqlAlchemy(url, create_schema=True)
        async with self.database.lifespan():
            await self.database.migrate()
            self.database.engine.dialect.insert_returning = False
            yield


# ------------------------------------------------------------------------------------------------------------ helpers


@asynccontextmanager
async def unit(database: SqlAlchemy) -> AsyncIterator[None]:
    async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})) as scope:
        await scope.enter(database.begin(scope))
        yield


@asynccontextmanager
async def running(database: SqlAlchemy) -> AsyncIterator[SqlAlchemy]:
    async with database.lifespan():
        yield database


@contextmanager
def statements(database: SqlAlchemy) -> Iterator[list[str]]:
    """Collect the statements that the database is asked to run."""
    seen: list[str] = []

    def note(connection: Connection, cursor: object, statement: str, *rest: object) -> None:
        if not statement.startswith(("BEGIN", "COMMIT", "SELECT pg_notify")):
            seen.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)


async def restored(connection: AsyncConnection) -> None:
    """Give events the numbers of a server that has counted for long."""
    for table in ("ecotone_event", "ecotone_event_tag"):
        await connection.execute(
            text(
                f"UPDATE {table} SET transaction_id ="
                " CAST(CAST(CAST(CAST(transaction_id AS text) AS bigint) + 7000000000 AS text) AS xid8)"
            )
        )


EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])
POSTGRESQL = pytest.mark.parametrize("kind", [ASYNCPG, PSYCOPG])


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    async with running(SqlAlchemy(url, create_schema=True)) as made:
        await made.migrate()
        yield made


def tagged(*tags: str) -> EventFilter:
    return EventFilter(tags=frozenset(tags))


# --------------------------------------------------------------------------------------------------------- statements


@EVERY
@pytest.mark.parametrize("number", [1, 10])
async def test_an_append_is_one_statement(database: SqlAlchemy, kind: str, number: int) -> None:
    # MariaDB has to look at an existing stream first, and each transaction takes its number before the commit.
    looks, numbering = (1, 2) if kind == "mariadb" else (0, 0)
    for expected, more in ((0, 0), (number, looks), (Expected.ANY, 2 * looks), (Expected.EXISTS, 2 * looks)):
        with statements(database) as seen:
            async with unit(database):
                await database.events.append("order-1", facts(number), expected=expected)
                assert len(seen) == 1 + more, seen
        assert len(seen) == 1 + more + numbering, seen
        if not isinstance(expected, Expected):
            with statements(database) as seen:
                await database.events.append(f"lone-{expected}", facts(number), expected=0)
            assert len(seen) == 1 + numbering, seen


@EVERY
async def test_tags_and_conditions_cost_little_more(database: SqlAlchemy, kind: str) -> None:
    tags, locks = (0, 2) if kind in ("asyncpg", "psycopg") else (1, 0)
    with statements(database) as seen:
        async with unit(database):
            await database.events.append("order-1", [fact(tags=["a", "b"]), fact(tags=["c"])], expected=0)
            assert len(seen) == 1 + tags
    condition = AppendCondition((tagged("d"), tagged("e", "f")), START)
    with statements(database) as seen:
        async with unit(database):
            await database.events.append("order-2", facts(2), expected=0, condition=condition)
            assert len(seen) == {"sqlite": 1, "mariadb": 3}.get(kind, 1 + locks)


@POSTGRESQL
@pytest.mark.parametrize("tags", [[], ["t"]], ids=["without tags", "with tags"])
async def test_a_decision_on_names_keeps_out_only_events_with_these_names(
    database: SqlAlchemy, tags: list[str]
) -> None:
    names = EventFilter(names=frozenset({"closed", "opened"}))
    condition = AppendCondition((names, EventFilter(names=frozenset({"void"}), tags=frozenset({"t"}))), START)
    async with anyio.create_task_group() as tasks:
        deciding, opening = (OpenUnit(partial(unit, database), tasks) for _ in range(2))
        await deciding.do(lambda: database.events.append("decision-1", facts(1), expected=0, condition=condition))
        with anyio.fail_after(20):
            await database.events.append("other-1", [fact("paid"), fact("void")], expected=0)
        opened = await opening.begin(lambda: database.events.append("shop-1", [fact("opened", tags=tags)], expected=0))
        while not await waiters(database):  # noqa: ASYNC110 - the server tells it only when asked
            await anyio.sleep(0.01)
        await deciding.commit()
        await opened.result()
        await opening.commit()

    with pytest.raises(ConcurrencyError, match="would have changed the decision"):
        await database.events.append("decision-2", facts(1), expected=0, condition=condition)


@POSTGRESQL
@pytest.mark.parametrize("by", ["names", "tags"])
async def test_decisions_each_of_which_appends_what_the_other_one_excludes_do_not_wait_for_each_other(
    database: SqlAlchemy, by: str
) -> None:
    def decide(stream: str, what: str, excluded: str) -> Callable[[], Awaitable[Any]]:
        found = EventFilter(streams=frozenset({"nowhere-1"}), **{by: frozenset({excluded})})
        event = fact(what) if by == "names" else fact("noted", tags=[what])
        return lambda: database.events.append(stream, [event], expected=0, condition=AppendCondition((found,), START))

    async with anyio.create_task_group() as tasks:
        first, *others = (OpenUnit(partial(unit, database), tasks) for _ in range(3))
        await first.do(decide("s-1", "c", "a"))
        begun = []
        for waiting, (one, act) in enumerate(
            zip(others, [decide("s-2", "b", "a"), decide("s-3", "a", "b")], strict=True)
        ):
            begun.append(await one.begin(act))
            while await waiters(database) <= waiting:  # noqa: ASYNC110 - the server tells it only when asked
                await anyio.sleep(0.01)
        await first.commit()
        for one, result in zip(others, begun, strict=True):
            await result.result()
            await one.commit()

    assert [await database.events.version(f"s-{number}") for number in (1, 2, 3)] == [1, 1, 1]


async def waiters(database: SqlAlchemy) -> int:
    """Return how many sessions wait for a lock of this kind in this database."""
    async with database.engine.connect() as connection:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
        found = await connection.execute(
            text(f"{query} (SELECT oid FROM pg_database WHERE datname = current_database())")
        )
        return int(found.scalar_one())


@EVERY
async def test_a_page_is_one_statement(database: SqlAlchemy) -> None:
    await database.events.append("order-1", facts(10), expected=0)
    for which in (EventFilter(), EventFilter(categories=frozenset({"order"})), EventFilter(names=frozenset({"noted"}))):
        with statements(database) as seen:
            page = await database.events.read_all(after=START, limit=3, which=which)
        assert len(page.events) == 3
        # Whatever is open on the server, and be it another test, may be in the way of the first one.
        assert len(seen) == (3 if any("pg_locks" in statement for statement in seen) else 1)
    for archived in (True, False):
        with statements(database) as seen:
            await database.events.read("order-1", archived=archived)
        assert len(seen) == 1


@POSTGRESQL
async def test_a_page_that_may_be_cut_short_by_somebody_else_is_three_statements(database: SqlAlchemy) -> None:
    await database.events.append("order-1", facts(10), expected=0)
    async with database.engine.begin() as other:
        await other.execute(text("SELECT pg_current_xact_id()"))
        await database.events.append("order-2", facts(1), expected=0)
        with statements(database) as seen:
            page = await database.events.read_all(after=START, limit=12)

    assert len(page.events) == 11
    assert len(seen) == 3


# -------------------------------------------------------------------------------------------------------- the horizon


@POSTGRESQL
async def test_only_those_who_append_are_in_the_way(database: SqlAlchemy, url: str) -> None:
    elsewhere = make_url(url).set(database="postgres")
    async with (
        create_async_engine(elsewhere, poolclass=NullPool).begin() as stranger,
        database.engine.begin() as neighbour,
    ):
        await stranger.execute(text("SELECT pg_current_xact_id()"))
        await neighbour.execute(text("CREATE TABLE something (id integer)"))
        await neighbour.execute(text("SELECT count(*) FROM ecotone_event"))
        for number in range(3):
            await database.events.append("order-1", facts(2), expected=2 * number)
            found = await everything(database.events, limit=2)

            assert versions(found) == list(range(1, 2 * number + 3))
            assert await database.events.count(after=START) == len(found)
            assert await database.events.horizon() == Horizon(found[-1].position or START)
        # Whoever begins to append only now comes behind, though it has begun early.
        reader = Reader(database.events)
        await reader.read()
        await neighbour.execute(
            text(
                "INSERT INTO ecotone_event (event_id, category, stream, version, name, headers, body, recorded_at)"
                " VALUES ('late', 'late', 'late-1', 1, 'late', '{}', '', now())"
            )
        )
        await database.events.append("order-1", facts(1), expected=6)
        assert await reader.read() == []
    assert streams(await reader.read()) == ["late-1", "order-1"]
    assert reader.seen == await everything(database.events)


@POSTGRESQL
async def test_the_horizon_names_the_session_that_is_in_the_way(database: SqlAlchemy) -> None:
    async with database.engine.begin() as slow:
        await slow.execute(text("LOCK TABLE ecotone_event IN ROW EXCLUSIVE MODE"))
        session = await slow.scalar(text("SELECT pg_backend_pid() FROM pg_current_xact_id()"))
        await database.events.append("order-1", facts(1), expected=0)

        horizon = await database.events.horizon()

        assert horizon.head == START
        assert 0 < horizon.lag < 60
        assert horizon.blocked_by.startswith(f"session {session} of ")
        assert ", since 20" in horizon.blocked_by
        assert "idle in transaction: SELECT pg_backend_pid()" in horizon.blocked_by
    assert (await database.events.horizon()).blocked_by == ""


@POSTGRESQL
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_events_are_appended_only_by_whoever_sees_what_is_committed(url: str, level: str) -> None:
    engine = create_async_engine(url, isolation_level=level)
    async with running(SqlAlchemy(engine, create_schema=True)) as strict:
        await strict.migrate()
        async with unit(strict):
            with pytest.raises(ConfigurationError, match=level):
                await strict.events.append("order-1", facts(1), expected=0)

        async with running(SqlAlchemy(url)) as usual:
            await usual.events.append("order-1", facts(2), expected=0)
            async with usual.engine.begin() as other, unit(strict):
                await other.execute(text("SELECT pg_current_xact_id()"))
                # It can read, but sees no further than it is isolated.
                assert len(await everything(strict.events)) <= 2
        async with running(SqlAlchemy(url)) as usual, usual.engine.connect() as connection:
            # Whatever is open on the server, and be it another test, is in its way.
            oldest = "SELECT bool_and(transaction_id < pg_snapshot_xmin(pg_current_snapshot())) FROM ecotone_event"
            unhindered = await connection.scalar(text(oldest))
        seen = len(await everything(strict.events))
        assert seen == 2 if unhindered else seen <= 2
    await engine.dispose()


@event_sourced(identifier="till_id", stream="till")
@dataclass
class Till:
    till_id: str = ""

    @classmethod
    @command_handler("till.open")
    def open(cls, till_id: str) -> "TillWasOpened":
        return TillWasOpened(till_id)

    @applies
    def opened(self, event: "TillWasOpened") -> None:
        self.till_id = event.till_id


@dataclass(frozen=True)
class TillWasOpened:
    till_id: str


@POSTGRESQL
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_an_application_with_event_sourced_aggregates_does_not_start_where_it_could_append_nothing(
    url: str, level: str
) -> None:
    engine = create_async_engine(url, isolation_level=level)
    with pytest.raises(ConfigurationError, match=f"in a transaction that is {level}") as caught:
        async with flow_test([Till], plugins=[SqlAlchemy(engine, create_schema=True)]):
            raise AssertionError("it has started")
    assert "READ COMMITTED" in caught.value.hint

    sessions = async_sessionmaker(engine.execution_options(isolation_level="READ COMMITTED"), expire_on_commit=False)
    database = SqlAlchemy(engine, sessionmaker=sessions, create_schema=True)
    async with flow_test([Till], plugins=[database]) as flow:
        assert await flow.send("t", to="till.open") == "t"
    await engine.dispose()


@pytest.mark.postgresql
async def test_whether_events_can_be_appended_is_left_open_while_the_database_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nowhere = SqlAlchemy("postgresql+asyncpg://postgres@127.0.0.1:1/test")
    async with flow_test([Till], plugins=[nowhere]):
        assert "whether events can be appended is found out when that is tried" in caplog.text


@pytest.mark.mariadb
async def test_on_mariadb_whoever_does_not_see_what_is_committed_cannot_decide(mariadb_url: str) -> None:
    engine = create_async_engine(mariadb_url, isolation_level="REPEATABLE READ")
    condition = AppendCondition((tagged("a"),), START)
    async with running(SqlAlchemy(engine, create_schema=True)) as database:
        async with unit(database):
            await database.events.append("other-1", facts(1), expected=0)
            assert await database.events.read("order-1") == []
            async with running(SqlAlchemy(mariadb_url)) as usual:
                await usual.events.append("order-1", facts(1), expected=0)
            with pytest.raises(ConcurrencyError, match="cannot see"):
                await database.events.append("order-2", facts(1), expected=0, condition=condition)
            with pytest.raises(ConcurrencyError):
                await database.events.append("order-1", facts(1), expected=0)
            await database.events.append("order-1", facts(1), expected=1)
        async with unit(database):
            await database.events.append("order-2", facts(1), expected=0, condition=condition)

        assert places(await everything(database.events)) == [
            ("order-1", 1), ("other-1", 1), ("order-1", 2), ("order-2", 1),
        ]  # fmt: skip
    await engine.dispose()


# -------------------------------------------------------------------------------------------------- a restored database


async def history(database: SqlAlchemy) -> None:
    """Append events whose order is not that of their positions, as if the first transaction had ended last."""
    for version in range(3):
        for stream in ("old-1", "old-2"):
            await database.events.append(stream, facts(1), expected=version)
    await database.events.append("old-3", [fact(tags=["t"]) for _ in range(3)], expected=0)
    async with database.engine.begin() as connection:
        for transaction, stream in ((10, "old-2"), (11, "old-1"), (12, "old-3")):
            await connection.execute(
                text("UPDATE ecotone_event SET transaction_id = CAST(:number AS text)::xid8 WHERE stream = :stream"),
                {"number": str(transaction), "stream": stream},
            )
        await connection.execute(text("UPDATE ecotone_event_tag SET transaction_id = '12'"))


@POSTGRESQL
@pytest.mark.parametrize("appended_since", [0, 2])
async def test_a_restored_database_counts_on_in_the_same_order(database: SqlAlchemy, appended_since: int) -> None:
    await history(database)
    before = await everything(database.events)
    numbers = [one.position.number for one in before if one.position is not None]
    assert numbers != sorted(numbers)
    await database.events.delete("old-2")
    left = [one for one in before if one.stream != "old-2"]
    async with database.engine.begin() as connection:
        await restored(connection)
    if appended_since:
        await database.events.append("new-1", [fact(tags=["t"]) for _ in range(appended_since)], expected=0)
    kept = [START, *(Position(old.transaction + 7_000_000_000, old.number) for one in before if (old := one.position))]
    with pytest.raises(ConfigurationError, match="reseal"):
        await database.events.check_restored()

    async with unit(database):
        moved = await database.events.reseal(kept)
        assert list(moved) == list(dict.fromkeys(kept))

    await database.events.check_restored()
    new = [("new-1", version) for version in range(1, appended_since + 1)]
    assert places(await everything(database.events)) == [*places(left), *new]
    assert places(await everything(database.events, tagged("t"))) == [*places(left)[-3:], *new]
    for place, position in enumerate(kept):
        page = await database.events.read_all(after=moved[position], limit=100)
        behind = [one for one in before[place:] if one.stream != "old-2"]
        assert places(page.events) == [*places(behind), *new]
    await database.events.append("later-1", facts(1), expected=0)
    assert streams(await everything(database.events))[-1] == "later-1"


@dataclass(frozen=True)
class MoneyWasMoved:
    amount: int


@command_handler
async def move(event: MoneyWasMoved, events: EventStore) -> None:
    await events.append("wallet-1", [event])


@projection("balance", categories=["wallet"])
class Balance:
    @event_handler
    async def moved(self, event: MoneyWasMoved, balance: Annotated[int, ProjectionState(0)]) -> int:
        return balance + event.amount


@POSTGRESQL
async def test_a_projection_goes_on_after_its_database_was_restored(url: str) -> None:
    database = SqlAlchemy(url, create_schema=True)
    async with flow_test([move, Balance], plugins=[database]) as flow:
        for amount in (1, 10):
            await flow.send(MoneyWasMoved(amount))
        await flow.run("balance")
        async with database.engine.begin() as connection:
            await restored(connection)
            position = str(await connection.scalar(text("SELECT position FROM ecotone_projection")))
            transaction, _, number = position.partition(":")
            await connection.execute(
                text("UPDATE ecotone_projection SET position = :position"),
                {"position": f"{int(transaction) + 7_000_000_000}:{number}"},
            )
        await flow.send(MoneyWasMoved(100))
        with pytest.raises(ConfigurationError, match="reseal"):
            await flow.run("balance")

        await database.events.reseal()

        await flow.send(MoneyWasMoved(1000))
        await flow.run("balance")
        assert await flow.ecotone.projections.state("balance") == 1111


@EVERY
async def test_nothing_is_given_new_numbers_without_need(database: SqlAlchemy) -> None:
    await database.events.append("order-1", facts(3), expected=0)
    before = await everything(database.events)
    positions = [one.position or START for one in before]
    await database.events.check_restored()

    assert await database.events.reseal(positions) == {position: position for position in positions}
    assert await everything(database.events) == before


@POSTGRESQL
async def test_a_server_that_has_hardly_counted_catches_up(database: SqlAlchemy) -> None:
    await history(database)
    async with database.engine.begin() as connection:
        await restored(connection)
        # As many as there would be in a large database: each behind a smaller position than the one before.
        await connection.execute(
            text(
                "UPDATE ecotone_event SET transaction_id = CAST(CAST(8000000000 - position AS text) AS xid8)"
                " WHERE stream = 'old-1'"
            )
        )
    order = places(await everything(database.events, EventFilter()))

    await database.events.reseal()

    await database.events.check_restored()
    assert order == []  # it was hidden
    assert places(await everything(database.events))[-3:] == [("old-1", 3), ("old-1", 2), ("old-1", 1)]


# ------------------------------------------------------------------------------------------------------------ waking up


@EVERY
async def test_a_commit_wakes_up_readers_at_once(database: SqlAlchemy) -> None:
    heard = await database.events.wait(0, 0)
    heard = await database.events.wait(heard, 0)
    for number in range(3):
        async with anyio.create_task_group() as tasks:

            async def append(number: int) -> None:
                async with unit(database):
                    await database.events.append("order-1", facts(1), expected=number)

            tasks.start_soon(append, number)
            before, heard = heard, await database.events.wait(heard, 30)
        assert heard != before  # who is not woken up hears nothing


@POSTGRESQL
async def test_readers_in_other_processes_are_woken_up(database: SqlAlchemy, url: str) -> None:
    appended = 0
    async with running(SqlAlchemy(url)) as other:
        heard = await other.events.wait(0, 0)
        heard = await other.events.wait(heard, 0)
        for _ in range(3):
            waiting = asyncio.create_task(other.events.wait(heard, 30))
            while not waiting.done():  # the first notifications may come before it listens
                await database.events.append("order-1", facts(1), expected=appended)
                appended += 1
                await asyncio.wait([waiting], timeout=0.2)
            before, heard = heard, await waiting
            assert heard != before


@EVERY
async def test_readers_are_woken_up_in_the_next_life_of_an_application(url: str) -> None:
    database = SqlAlchemy(url, create_schema=True)
    heard = 0
    for number in range(2):
        async with database.lifespan():
            heard = await database.events.wait(heard, 0)
            heard = await database.events.wait(heard, 0)
            await database.events.append("order-1", facts(1), expected=number)
            with anyio.fail_after(60):
                assert await database.events.wait(heard, 30) != heard


# ------------------------------------------------------------------------------------------------------------ the rest


@POSTGRESQL
async def test_events_may_be_in_a_schema_of_their_own(url: str, kind: str) -> None:
    schema = f"Events {kind}"
    async with running(SqlAlchemy(url, create_schema=True, schema=schema)) as database:
        async with database.engine.begin() as other:
            await other.execute(text("SELECT pg_current_xact_id()"))
            await database.events.append("order-1", [fact(tags=["t"])], expected=0)
            assert len(await everything(database.events)) == len(await everything(database.events, tagged("t"))) == 1
            assert (await database.events.horizon()).lag == 0
        await database.events.check_restored()
        await database.events.reseal()
        async with database.engine.connect() as connection:
            assert await connection.scalar(text(f'SELECT count(*) FROM "{schema}".ecotone_event')) == 1


@EVERY
async def test_a_deadlock_is_told_as_what_passes(database: SqlAlchemy, kind: str) -> None:
    if kind == "sqlite":
        pytest.skip("there is one writer")
    for stream in ("a-1", "b-1"):
        await database.events.append(stream, facts(1), expected=0)
    errors: list[Exception] = []
    ready = [anyio.Event(), anyio.Event()]

    async def append(place: int, streams: Sequence[str]) -> None:
        try:
            async with unit(database):
                await database.events.append(streams[0], facts(1), expected=1)
                ready[place].set()
                await ready[1 - place].wait()
                await database.events.append(streams[1], facts(1), expected=1)
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, 0, ["a-1", "b-1"])
        tasks.start_soon(append, 1, ["b-1", "a-1"])

    assert len(errors) == 1
    assert database.is_passing(errors[0]) or isinstance(errors[0], ConcurrencyError)
    assert [await database.events.version(stream) for stream in ("a-1", "b-1")] == [2, 2]


@EVERY
async def test_an_application_keeps_its_events_in_its_database(database: SqlAlchemy) -> None:
    assert Ecotone([], plugins=[database]).assembly.services[EventStorage] is database.events
    assert isinstance(Ecotone([]).assembly.services[EventStorage], MemoryEvents)


@EVERY
async def test_positions_are_known_where_the_store_gives_them_at_once(database: SqlAlchemy, kind: str) -> None:
    async with unit(database):
        appended = await database.events.append("order-1", facts(2), expected=0)
        read = await database.events.read("order-1")
    alone = await database.events.append("order-2", facts(1), expected=0)
    found = [one.position for one in await everything(database.events)]

    known = [None, None] if kind == "mariadb" else found[:2]
    assert [one.position for one in appended] == [one.position for one in read] == known
    assert [one.position for one in alone] == found[2:]
