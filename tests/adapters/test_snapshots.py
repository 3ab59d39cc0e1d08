"""Stores of snapshots: in memory and in every database, the last one of each stream."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ecotone_fastapi.adapters.memory import MemorySnapshots
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.snapshots import Snapshot, SnapshotStore
from tests.databases import unit_of_work

FIRST = Snapshot(
    stream="basket-7",
    version=100,
    event_id="event-100",
    form="1:abc",
    content_type="application/json",
    body=b'{"items":["\xc3\xa9"]}',
    taken_at=datetime(2026, 1, 31, tzinfo=UTC),
)
Opened = tuple[SnapshotStore, Callable[[], AbstractAsyncContextManager[Scope]]]


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
async def opened(url: str | None) -> AsyncIterator[Opened]:
    if url is None:
        yield MemorySnapshots(), unit_of_work
        return
    database = SqlAlchemy(url, create_schema=True)

    @asynccontextmanager
    async def transaction() -> AsyncIterator[Scope]:
        async with unit_of_work() as scope, database.begin(scope):
            yield scope

    async with database.lifespan():
        yield database.snapshots, transaction


async def test_the_last_snapshot_of_each_stream_is_kept(opened: Opened) -> None:
    store, _ = opened
    later = replace(FIRST, version=200, event_id="x" * 300, form="2:abc", body=b"\x00\xff" * 50_000)
    later = replace(later, taken_at=FIRST.taken_at + timedelta(microseconds=1), content_type="application/x-sealed")

    assert await store.load("basket-7") is None
    for snapshot in (FIRST, replace(FIRST, stream="basket-8"), later):
        await store.save(snapshot)

    assert await store.load("basket-7") == later
    assert await store.load("basket-8") == replace(FIRST, stream="basket-8")
    assert await store.load("BASKET-7") is None


async def test_a_snapshot_is_replaced_by_one_of_an_earlier_version_and_by_the_same(opened: Opened) -> None:
    store, _ = opened
    earlier = replace(FIRST, version=50)

    for snapshot in (FIRST, FIRST, earlier):
        await store.save(snapshot)

    assert await store.load("basket-7") == earlier


async def test_a_snapshot_is_forgotten(opened: Opened) -> None:
    store, _ = opened
    await store.save(FIRST)

    await store.delete("basket-7")
    await store.delete("basket-7")

    assert await store.load("basket-7") is None


async def test_snapshots_are_kept_and_forgotten_with_the_unit_of_work(opened: Opened) -> None:
    store, transaction = opened
    other = replace(FIRST, stream="basket-8")

    async with transaction():
        await store.save(FIRST)
        await store.save(other)
        assert await store.load("basket-7") == FIRST
        await store.delete("basket-8")
        assert await store.load("basket-8") is None

    assert await store.load("basket-7") == FIRST
    assert await store.load("basket-8") is None


async def test_what_a_unit_that_fails_has_done_is_undone(opened: Opened) -> None:
    store, transaction = opened
    await store.save(FIRST)

    async def fail() -> None:
        async with transaction():
            await store.save(replace(FIRST, version=200))
            await store.delete("basket-7")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()

    assert await store.load("basket-7") == FIRST
