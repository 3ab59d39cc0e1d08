"""Inboxes: the shipped suite against every database and driver and in memory, and what is particular about each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from sqlalchemy import make_url, text

from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryInbox
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.messaging.deduplication import DeduplicationStore
from ecotone_fastapi.testing.conformance import InboxConformance
from ecotone_fastapi.testing.flow import TravellingClock
from tests.databases import InDatabase, unit_of_work

# ---------------------------------------------------------------------------------------------------------- in memory


class TestMemoryInbox(InboxConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.store = MemoryInbox()

    @asynccontextmanager
    async def inbox(self) -> AsyncIterator[DeduplicationStore]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit_of_work():
            yield


async def test_in_memory_the_oldest_make_room() -> None:
    inbox = MemoryInbox(most=2)

    for name in ("a", "b", "c"):
        assert await inbox.record(name, "pay")

    assert [await inbox.knows(name, "pay") for name in ("a", "b", "c")] == [False, True, True]


async def test_in_memory_records_grow_old_by_the_clock() -> None:
    clock = TravellingClock(datetime(2026, 1, 1, tzinfo=UTC))
    inbox = MemoryInbox(clock)
    await inbox.record("old", "pay")
    clock.advance(timedelta(days=8))
    await inbox.record("young", "pay")

    assert await inbox.forget_before(clock.now() - timedelta(days=7)) == 1

    assert await inbox.knows("young", "pay")
    assert not inbox.covers(MemoryChannel("orders"))


async def test_in_memory_two_units_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    inbox = MemoryInbox()
    first_has, second_has = anyio.Event(), anyio.Event()
    failures: list[ConcurrencyError] = []

    async def record(mine: str, other: str, have: anyio.Event, others_have: anyio.Event) -> None:
        try:
            async with unit_of_work():
                assert await inbox.record(mine, "pay")
                have.set()
                await others_have.wait()
                assert await inbox.record(other, "pay")
        except ConcurrencyError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(record, "a", "b", first_has, second_has)
            tasks.start_soon(record, "b", "a", second_has, first_has)

    assert len(failures) == 1
    assert [await inbox.knows(name, "pay") for name in ("a", "b")] == [True, True]


@pytest.mark.parametrize("forgets", [True, False])
async def test_in_memory_who_is_in_no_unit_waits_for_one_that_is(forgets: bool) -> None:
    inbox = MemoryInbox()
    recorded, waits = anyio.Event(), anyio.Event()
    answers: list[bool] = []

    async def record() -> None:
        await recorded.wait()
        waits.set()
        answers.append(await inbox.record("a", "pay"))

    async def handle() -> None:
        async with unit_of_work():
            await inbox.record("a", "pay")
            recorded.set()
            await waits.wait()
            assert answers == []
            if forgets:
                await inbox.forget("a", "pay")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(record)
        tasks.start_soon(handle)

    assert answers == [forgets]
    assert await inbox.knows("a", "pay")


# ------------------------------------------------------------------------------------------------------- in databases


class SqlInboxes(InDatabase, InboxConformance):
    @asynccontextmanager
    async def inbox(self) -> AsyncIterator[DeduplicationStore]:
        yield self.database.inbox

    async def test_it_covers_the_channels_of_its_database_alone(self) -> None:
        async with self.inbox() as inbox:
            assert inbox.covers(self.database.channel("orders"))
            assert not inbox.covers(MemoryChannel("orders"))
            assert inbox.durable

    async def test_retention_goes_by_the_clock_of_the_application(self) -> None:
        clock = TravellingClock(datetime(2020, 1, 1, tzinfo=UTC))
        self.database.use_clock(clock)
        async with self.inbox() as inbox:
            await inbox.record("m", "pay")

            assert await inbox.forget_before(datetime(2020, 1, 1, tzinfo=UTC)) == 0
            assert await inbox.forget_before(datetime(2020, 1, 1, microsecond=1, tzinfo=UTC)) == 1


class TestSQLiteInbox(SqlInboxes):
    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestAsyncpgInbox(SqlInboxes):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url

    async def test_a_row_that_is_locked_is_left_to_whoever_has_it(self) -> None:
        async with self.inbox() as inbox, self.database.engine.begin() as connection:
            await inbox.record("m", "pay")
            await inbox.record("n", "pay")
            await connection.execute(text("SELECT * FROM ecotone_inbox WHERE message_id = 'm' FOR UPDATE"))

            with anyio.fail_after(60):
                assert await inbox.forget_before(datetime.now(UTC) + timedelta(days=1)) == 1


@pytest.mark.postgresql
class TestPsycopgInbox(SqlInboxes):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.mark.mariadb
class TestMariaDBInbox(SqlInboxes):
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url
