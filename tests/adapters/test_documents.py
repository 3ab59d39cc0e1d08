"""Documents: the shipped suite against every database and driver and in memory, and what is particular about each."""

import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, make_url
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import Ecotone, command_handler
from ecotone_fastapi.adapters.memory import MemoryDocuments, MemoryInbox
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.modelling.document_filters import Filter
from ecotone_fastapi.modelling.documents import Collection, DocumentStore
from ecotone_fastapi.testing import DocumentStoreConformance, TravellingClock
from tests.databases import InDatabase, unit_of_work

# ----------------------------------------------------------------------------------- conditions and pages, by a model


@dataclass(frozen=True)
class Thing:
    text: str | None
    whole: int | None
    real: float | None
    amount: Decimal | None
    moment: datetime | None
    flag: bool | None
    labels: dict[str, str]


@dataclass(frozen=True)
class Condition:
    """A condition, as people say it and as Python understands it."""

    says: Callable[[Collection[Thing]], Filter]
    holds: Callable[[Thing], bool]


@dataclass(frozen=True)
class Search:
    things: Sequence[Thing]
    conditions: Sequence[Condition]
    order: Sequence[str]
    limit: int


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=5) | st.sampled_from(
    ["", " ", "a", "A", "a ", "ab", "ä", "%", "_", "'", '"', "\\", "\n", "1", "true", "null", "\N{PILE OF POO}"]
)
keys = st.sampled_from(["a", "A", "b c", "ß", "*", "$", "0", "x.y"])
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def just_after_noon(microseconds: int) -> datetime:
    return NOON.replace(tzinfo=None, microsecond=microseconds)  # it is taken to be in UTC


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "whole": st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2),
    "real": st.floats(allow_nan=False, allow_infinity=False, width=32) | st.sampled_from([0.0, -0.0, 1.0, 0.1, 1e16]),
    "amount": st.decimals(-(10**9), 10**9, places=2) | st.sampled_from([Decimal("1E+3"), Decimal("1.0"), Decimal(1)]),
    "moment": st.datetimes(timezones=offsets | st.just(UTC)) | st.integers(0, 5).map(just_after_noon),
    "flag": st.booleans(),
}
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SIGNS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def meaning(value: Any) -> Any:
    if isinstance(value, datetime):  # the first and the last ones of all cannot be compared with their offsets
        offset = value.utcoffset() or timedelta(0)
        return (value.replace(tzinfo=UTC) - NOON - offset) // timedelta(microseconds=1)
    return value


def compares(found: Any, sign: Callable[[Any, Any], bool], value: Any) -> bool:
    return sign is operator.ne if found is None else sign(meaning(found), meaning(value))


def compared(name: str, sign: Callable[[Any, Any], Any], value: Any) -> Condition:
    return Condition(
        lambda things: sign(things.field(name), value), lambda thing: compares(getattr(thing, name), sign, value)
    )


def one_of(name: str, values: Sequence[Any]) -> Condition:
    return Condition(
        lambda things: things.field(name).in_(values),
        lambda thing: meaning(getattr(thing, name)) in [meaning(value) for value in values],
    )


def beginning(prefix: str) -> Condition:
    return Condition(
        lambda things: things.field("text").startswith(prefix),
        lambda thing: thing.text is not None and thing.text.startswith(prefix),
    )


def labelled(key: str, sign: Callable[[Any, Any], Any], value: str) -> Condition:
    return Condition(
        lambda things: sign(things.field("labels", key), value),
        lambda thing: compares(thing.labels.get(key), sign, value),
    )


def nothing(name: str) -> Condition:
    return Condition(lambda things: things.field(name).is_null(), lambda thing: getattr(thing, name) is None)


def both(one: Condition, other: Condition) -> Condition:
    return Condition(
        lambda things: one.says(things) & other.says(things), lambda thing: one.holds(thing) and other.holds(thing)
    )


def either(one: Condition, other: Condition) -> Condition:
    return Condition(
        lambda things: one.says(things) | other.says(things), lambda thing: one.holds(thing) or other.holds(thing)
    )


def not_so(one: Condition) -> Condition:
    return Condition(lambda things: ~one.says(things), lambda thing: not one.holds(thing))


signs = st.sampled_from(SIGNS)
names = st.sampled_from([*VALUES])
simple = st.one_of(
    names.flatmap(lambda name: st.builds(compared, st.just(name), signs, VALUES[name])),
    names.flatmap(lambda name: st.builds(one_of, st.just(name), st.lists(st.none() | VALUES[name], max_size=3))),
    st.builds(beginning, texts),
    st.builds(labelled, keys, signs, texts),
    st.builds(nothing, names),
)
conditions = st.recursive(
    simple,
    lambda inner: st.builds(both, inner, inner) | st.builds(either, inner, inner) | st.builds(not_so, inner),
    max_leaves=4,
)
things = st.builds(
    Thing, labels=st.dictionaries(keys, texts, max_size=3), **{name: st.none() | one for name, one in VALUES.items()}
)
searches = st.builds(
    Search,
    things=st.lists(things, max_size=8),
    conditions=st.lists(conditions, min_size=1, max_size=4),
    order=st.lists(st.builds(str.__add__, st.sampled_from(["", "-"]), names), max_size=3),
    limit=st.integers(1, 4),
)


def ordered(thing: Thing, name: str) -> tuple[bool, Any]:
    value = meaning(getattr(thing, name.removeprefix("-")))
    return value is not None, 0 if value is None else value


def expected(search: Search, condition: Condition) -> list[str]:
    found = [(f"{place}", thing) for place, thing in enumerate(search.things) if condition.holds(thing)]
    for name in reversed(search.order):
        found.sort(key=lambda one, name=name: ordered(one[1], name), reverse=name.startswith("-"))
    return [one for one, _ in found]


async def found(search: Search, condition: Condition, things: Collection[Thing]) -> list[str]:
    which, ids, after = condition.says(things), [], None
    while True:
        page = await things.list(which, order_by=search.order, limit=search.limit, after=after)
        ids += [document.id for document in page]
        if page.next is None:
            assert await things.count(which) == len(ids)
            return ids
        after = page.next


async def check(search: Search, store: DocumentStore, transaction: AbstractAsyncContextManager[None]) -> None:
    async with transaction:
        things = store.collection("things", Thing)
        await things.drop()
        for place, thing in enumerate(search.things):
            await things.add(f"{place}", thing)

        for condition in search.conditions:
            assert await found(search, condition, things) == expected(search, condition)


by_model = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)

# ---------------------------------------------------------------------------------------------------------- in memory


class TestMemoryDocuments(DocumentStoreConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.store = DocumentStore(MemoryDocuments())

    @asynccontextmanager
    async def documents(self) -> AsyncIterator[DocumentStore]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with unit_of_work():
            yield

    @given(search=searches)
    @settings(by_model, max_examples=200)
    async def test_conditions_and_pages_are_what_python_makes_of_them(self, search: Search) -> None:
        await check(search, self.store, self.transaction())


async def test_in_memory_two_units_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    notes = DocumentStore(MemoryDocuments()).collection("notes", dict[str, str])
    first_has, second_has = anyio.Event(), anyio.Event()
    failures: list[ConcurrencyError] = []

    async def write(mine: str, other: str, have: anyio.Event, others_have: anyio.Event) -> None:
        try:
            async with unit_of_work():
                await notes.upsert(mine, {})
                have.set()
                await others_have.wait()
                await notes.upsert(other, {})
        except ConcurrencyError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, "a", "b", first_has, second_has)
            tasks.start_soon(write, "b", "a", second_has, first_has)

    assert len(failures) == 1
    assert [(await notes.get(name)).version for name in ("a", "b")] == [1, 1]


async def test_in_memory_who_is_in_no_unit_waits_for_one_that_is() -> None:
    notes = DocumentStore(MemoryDocuments()).collection("notes", dict[str, str])
    written, waits = anyio.Event(), anyio.Event()
    versions: list[int] = []

    async def write() -> None:
        await written.wait()
        waits.set()
        versions.append((await notes.upsert("a", {})).version)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        async with unit_of_work():
            await notes.upsert("a", {})
            await notes.delete("nobody")
            written.set()
            await waits.wait()
            assert versions == []
            assert await notes.count() == 1

    assert versions == [2]


async def test_in_memory_an_inbox_and_documents_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    notes, inbox = DocumentStore(MemoryDocuments()).collection("notes", dict[str, str]), MemoryInbox()
    written, recorded = anyio.Event(), anyio.Event()
    failures: list[ConcurrencyError] = []

    async def write() -> None:
        async with unit_of_work():
            await notes.upsert("a", {})
            written.set()
            await recorded.wait()
            await inbox.record("m", "pay")

    async def record() -> None:
        async with unit_of_work():
            await inbox.record("m", "pay")
            recorded.set()
            await written.wait()
            await notes.upsert("a", {})

    async def until_it_fails(act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except ConcurrencyError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_it_fails, write)
            tasks.start_soon(until_it_fails, record)

    assert len(failures) == 1


# ------------------------------------------------------------------------------------------------------- in databases


class SqlDocumentStores(InDatabase, DocumentStoreConformance):
    @asynccontextmanager
    async def documents(self) -> AsyncIterator[DocumentStore]:
        yield self.database.documents

    @given(search=searches)
    @settings(by_model, max_examples=40)
    async def test_conditions_and_pages_are_what_python_makes_of_them(self, search: Search) -> None:
        await check(search, self.database.documents, self.transaction())

    async def test_a_handler_that_fails_leaves_no_document_behind(self) -> None:
        @command_handler("put")
        async def put(text: str, documents: DocumentStore, session: AsyncSession) -> int:
            notes = documents.collection("notes", dict[str, str])
            await session.execute(sql("SELECT 1"))
            note = await notes.upsert("it", {"text": text})
            if not text:
                raise ValueError("nothing to say")
            return note.version

        async with Ecotone([put], plugins=[self.database]).running() as ecotone:
            assert await ecotone.command_bus.send("hello", to="put") == 1
            with pytest.raises(ValueError, match="nothing to say"):
                await ecotone.command_bus.send("", to="put")
            assert await ecotone.command_bus.send("hello again", to="put") == 2

            notes = self.database.documents.collection("notes", dict[str, str])
            assert (await notes.get("it")).value == {"text": "hello again"}

    async def test_values_and_paths_are_parameters_and_no_text(self) -> None:
        statements: list[str] = []
        event.listen(
            self.database.engine.sync_engine,
            "before_cursor_execute",
            lambda *given: statements.append(given[2]),
        )
        things = self.database.documents.collection("secret collection", dict[str, Any])
        secret = things.field("secret name", "secret key")

        await things.upsert("secret id", {"secret": "secret text"})
        await things.list(secret == "secret value", order_by=secret)
        await things.list(secret.startswith("secret prefix"), secret.in_(["secret one"]), order_by=["-secret order"])

        assert len(statements) >= 3
        assert [statement for statement in statements if "secret" in statement] == []

    async def test_time_goes_by_the_clock_of_the_application(self) -> None:
        clock = TravellingClock(datetime(2020, 1, 1, 0, 0, 0, 1, tzinfo=UTC))
        self.database.use_clock(clock)
        notes = self.database.documents.collection("notes", dict[str, str])
        await notes.add("it", {})

        assert (await notes.get("it")).updated_at == clock.now()


class TestSQLiteDocuments(SqlDocumentStores):
    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url


@pytest.mark.postgresql
class TestAsyncpgDocuments(SqlDocumentStores):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return postgresql_url

    async def test_an_index_on_the_body_finds_what_is_equal(self) -> None:
        things = self.database.documents.collection("things", dict[str, str])
        await things.add("it", {"name": "Ada"})
        selects: list[tuple[str, Any]] = []

        def listen(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            selects.append((statement, parameters))

        event.listen(self.database.engine.sync_engine, "before_cursor_execute", listen)
        await things.count(things.field("name") == "Ada")
        [(select, parameters)] = selects
        async with self.database.engine.begin() as connection:
            await connection.execute(sql("CREATE INDEX by_body ON ecotone_document USING gin (body jsonb_path_ops)"))
            await connection.execute(sql("ALTER TABLE ecotone_document DROP CONSTRAINT ecotone_document_pkey"))
            await connection.execute(sql("SET LOCAL enable_seqscan = off"))
            plan = (await connection.exec_driver_sql(f"EXPLAIN {select}", parameters)).scalars().all()

        assert "by_body" in "\n".join(plan)

    async def test_documents_are_in_the_schema_that_was_given(self, url: str) -> None:
        database = SqlAlchemy(url, create_schema=True, schema="elsewhere")
        async with database.lifespan():
            notes = database.documents.collection("notes", dict[str, str])
            await notes.upsert("it", {})
            assert (await notes.upsert("it", {})).version == 2
            assert await self.database.documents.collection("notes", dict[str, str]).count() == 0


@pytest.mark.postgresql
class TestPsycopgDocuments(SqlDocumentStores):
    @pytest.fixture
    def url(self, postgresql_url: str) -> str:
        return make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@pytest.mark.mariadb
class TestMariaDBDocuments(SqlDocumentStores):
    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url
