"""Aggregates in databases, beyond the suite: names that last, identifiers of the database, locks and versions."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import anyio
import pytest
from sqlalchemy import (
    Column,
    Computed,
    ForeignKey,
    Identity,
    Integer,
    String,
    Table,
    UniqueConstraint,
    event,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, registry, relationship

from ecotone_fastapi import (
    AggregateNotFoundError,
    CommandBus,
    ConcurrencyError,
    ConfigurationError,
    Repository,
    TargetVersion,
    aggregate,
    asynchronous,
    command_handler,
    event_handler,
    message_name,
    query_handler,
    record,
    untransacted,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import AggregateError, ChannelError
from ecotone_fastapi.testing import Flow, flow_test

EVERY_DATABASE = [
    pytest.param("sqlite_url", id="sqlite"),
    pytest.param("postgresql_url", id="postgresql", marks=pytest.mark.postgresql),
    pytest.param("mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
]
SERVERS = EVERY_DATABASE[1:]
on_every_database = pytest.mark.parametrize("url", EVERY_DATABASE, indirect=True)
on_servers = pytest.mark.parametrize("url", SERVERS, indirect=True)
on_sqlite = pytest.mark.parametrize("url", EVERY_DATABASE[:1], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    database = SqlAlchemy(url, create_schema=True)
    async with database.lifespan():
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield database


@contextmanager
def statements(database: SqlAlchemy) -> Iterator[list[str]]:
    """Note what is sent to the database meanwhile, but for the beginning and end of transactions."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        if not statement.startswith(("BEGIN", "SAVEPOINT", "RELEASE", "ROLLBACK")):
            seen.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)


class Base(DeclarativeBase):
    pass


# -------------------------------------------------------------------------------------------------------------- as JSON


@dataclass(frozen=True)
class Open:
    name: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Add:
    name: str
    item: str
    version: Annotated[int | None, TargetVersion()] = None


@message_name("basket")
@aggregate(identifier="name", version="version")
@dataclass
class Basket:
    name: str
    items: list[str] = field(default_factory=list)
    version: int = 0

    @classmethod
    @command_handler
    def open(cls, command: Open) -> "Basket":
        return cls(command.name, list(command.items))

    @command_handler
    def add(self, command: Add) -> int:
        self.items.append(command.item)
        return self.version

    @query_handler("basket.items")
    def get_items(self, name: str) -> list[str]:
        return self.items


async def rows(database: SqlAlchemy) -> list[tuple[Any, ...]]:
    async with database.engine.connect() as connection:
        found = await connection.execute(
            text("SELECT type, identifier, version, body FROM ecotone_aggregate ORDER BY identifier")
        )
        return [tuple(row) for row in found]


@on_every_database
async def test_an_aggregate_is_a_row_of_json_and_costs_one_statement_to_load_and_one_to_save(
    database: SqlAlchemy,
) -> None:
    async with flow_test([Basket], plugins=[database]) as flow:
        with statements(database) as created:
            await flow.send(Open("b"))
        with statements(database) as changed:
            await flow.send(Add("b", "milk"))
        with statements(database) as asked:
            assert await flow.ask("b", to="basket.items") == ["milk"]

        [(type_, identifier, version, body)] = await rows(database)
    assert (type_, identifier, version) == ("basket", "b", 2)
    assert json.loads(body) == {"name": "b", "items": ["milk"], "version": 1}
    assert [one.split()[0] for one in created] == ["INSERT"]
    assert [one.split()[0] for one in changed] == ["SELECT", "UPDATE"]
    assert [one.split()[0] for one in asked] == ["SELECT"]


@on_every_database
async def test_a_class_that_was_renamed_finds_what_was_saved_before(database: SqlAlchemy) -> None:
    @message_name("cart", aliases=["basket"])
    @aggregate(identifier="name")
    @dataclass
    class Cart:
        name: str
        items: list[str]

        @classmethod
        @command_handler
        def open(cls, command: Open) -> "Cart":
            return cls(command.name, [])

        @command_handler
        def add(self, command: Add) -> list[str]:
            self.items.append(command.item)
            return self.items

    async with flow_test([Basket], plugins=[database]) as flow:
        await flow.send(Open("old", ("milk",)))
        await flow.send(Open("untouched"))

    async with flow_test([Cart], plugins=[database]) as flow:
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(Open("untouched"))
        assert (caught.value.expected, caught.value.actual) == (0, 1)
        assert await flow.send(Add("old", "bread")) == ["milk", "bread"]
        assert await flow.send(Open("new")) == "new"

    assert [row[:3] for row in await rows(database)] == [
        ("cart", "new", 1),
        ("cart", "old", 2),
        ("basket", "untouched", 1),
    ]


@on_every_database
async def test_a_conflict_does_not_keep_its_unit_of_work_from_going_on(database: SqlAlchemy) -> None:
    @command_handler("insist")
    async def insist(name: str, baskets: Repository[Basket]) -> str:
        try:
            await baskets.save(Basket(name))
        except ConcurrencyError:
            basket = await baskets.get(name)
            basket.items.append("insisted")
            await baskets.save(basket)
        return "done"

    async with flow_test([Basket, insist], plugins=[database]) as flow:
        await flow.send(Open("b"))
        assert await flow.send("b", to="insist") == "done"

        assert await flow.ask("b", to="basket.items") == ["insisted"]


@on_every_database
async def test_commands_that_meet_are_run_again_and_none_is_lost(database: SqlAlchemy) -> None:
    async with flow_test([Basket], plugins=[database]) as flow:
        await flow.send(Open("b"))

        async with anyio.create_task_group() as tasks:
            for item in ("1", "2", "3"):
                tasks.start_soon(flow.send, Add("b", item))

        assert sorted(await flow.ask("b", to="basket.items")) == ["1", "2", "3"]
        assert [row[2] for row in await rows(database)] == [4]


@on_every_database
async def test_a_command_with_a_version_that_is_past_is_run_once(database: SqlAlchemy) -> None:
    async with flow_test([Basket], plugins=[database]) as flow:
        await flow.send(Open("b"))
        await flow.send(Add("b", "milk", version=1))

        with statements(database) as seen, pytest.raises(ConcurrencyError) as caught:
            await flow.send(Add("b", "bread", version=1))

        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert [one.split()[0] for one in seen] == ["SELECT"]


@on_every_database
async def test_a_command_that_loses_the_race_with_a_version_is_not_run_again(database: SqlAlchemy) -> None:
    runs: list[str] = []

    @aggregate(identifier="name")
    @dataclass
    class Raced:
        name: str
        items: list[str] = field(default_factory=list)

        @classmethod
        @command_handler
        def open(cls, command: Open) -> "Raced":
            return cls(command.name)

        @command_handler
        async def add(self, command: Add, baskets: Repository[Basket]) -> None:
            runs.append(command.item)
            self.items.append(command.item)
            if command.item == "late":  # as if somebody else had been faster
                await _raise_version(database, "Raced")

    async with flow_test([Raced], plugins=[database]) as flow:
        await flow.send(Open("b"))
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(Add("b", "late", version=1))

    assert (caught.value.expected, caught.value.actual, caught.value.passing) == (1, 2, False)
    assert runs == ["late"]


async def _raise_version(database: SqlAlchemy, name: str) -> None:
    async for session in database.session():
        await session.execute(
            text("UPDATE ecotone_aggregate SET version = version + 1 WHERE type LIKE :name"), {"name": f"%{name}"}
        )


@on_sqlite
async def test_a_stale_asynchronous_command_is_parked_at_once(database: SqlAlchemy) -> None:
    @aggregate(identifier="name")
    @dataclass
    class Later:
        name: str

        @classmethod
        @command_handler
        def open(cls, command: Open) -> "Later":
            return cls(command.name)

        @asynchronous("baskets")
        @command_handler(id="later.add")
        def add(self, command: Add) -> None: ...

    async with flow_test([Later], channels=[database.channel("baskets")], plugins=[database]) as flow:
        await flow.send(Open("b"))
        await flow.send(Add("b", "milk", version=7))
        await flow.run("baskets", raises=False)

        [parked] = await flow.dead_letters()
        assert (parked.attempts, parked.error_type) == (1, "ecotone_fastapi.core.errors.ConcurrencyError")


@on_every_database
async def test_without_a_transaction_each_save_stands_for_itself(database: SqlAlchemy) -> None:
    @untransacted
    @command_handler("two")
    async def two(name: str, baskets: Repository[Basket], orders: Repository["Order"]) -> int:
        await baskets.save(Basket(name))
        order = Order(note="kept")
        await orders.save(order)
        return order.id

    async with flow_test([Basket, Order, two], plugins=[database]) as flow:
        order_id = await flow.send("b", to="two")

        assert await flow.ask("b", to="basket.items") == []
        assert await flow.ask(order_id, to="order.note") == "kept"


class Gram:
    """A value of which pydantic knows nothing."""

    def __init__(self, number: int) -> None:
        self.number = number


class GramConverter:
    """Writes grams as text with a unit."""

    content_type = "application/json"

    def handles(self, type_: Any) -> bool:
        return type_ is Gram

    def encode(self, value: Gram) -> bytes:
        return f'"{value.number} g"'.encode()

    def decode(self, data: bytes, type_: Any) -> Gram:
        return Gram(int(data.decode().strip('"').removesuffix(" g")))


@aggregate(identifier="name")
@dataclass
class Parcel:
    name: str
    weights: list[Gram] = field(default_factory=list)

    @classmethod
    @command_handler
    def open(cls, command: Open) -> "Parcel":
        return cls(command.name)

    @command_handler
    def add(self, command: Add) -> int:
        self.weights.append(Gram(int(command.item)))
        return sum(one.number for one in self.weights)


class ParcelConverter:
    """Writes parcels in a form that somebody else has laid down."""

    content_type = "application/json"

    def handles(self, type_: Any) -> bool:
        return type_ is Parcel

    def encode(self, value: Parcel) -> bytes:
        return json.dumps([value.name, *(one.number for one in value.weights)]).encode()

    def decode(self, data: bytes, type_: Any) -> Parcel:
        name, *weights = json.loads(data)
        return Parcel(name, [Gram(one) for one in weights])


@on_every_database
@pytest.mark.parametrize(
    ("converter", "written"),
    [(GramConverter(), {"name": "b", "weights": ["5 g", "7 g"]}), (ParcelConverter(), ["b", 5, 7])],
    ids=["of an attribute", "of the class"],
)
async def test_aggregates_are_written_and_read_by_the_converters_of_the_application(
    database: SqlAlchemy, converter: Any, written: Any
) -> None:
    async with flow_test([Parcel], plugins=[database], converters=[converter]) as flow:
        await flow.send(Open("b"))
        await flow.send(Add("b", "5"))
        assert await flow.send(Add("b", "7")) == 12

        [(_, _, _, body)] = await rows(database)
    assert json.loads(body) == written


@on_sqlite
async def test_applications_on_one_database_have_their_own_converters(database: SqlAlchemy) -> None:
    async with flow_test([Parcel], plugins=[database], converters=[ParcelConverter()]) as flow:
        await flow.send(Open("theirs"))
        async with flow_test([Parcel], plugins=[database], converters=[GramConverter()]) as other:
            await other.send(Open("ours"))
        await flow.send(Add("theirs", "1"))

        bodies = {identifier: json.loads(body) for _, identifier, _, body in await rows(database)}
    assert bodies == {"ours": {"name": "ours", "weights": []}, "theirs": ["theirs", 1]}


@on_sqlite
async def test_a_converter_that_writes_no_json_keeps_no_aggregates(database: SqlAlchemy) -> None:
    class AsCsv(ParcelConverter):
        content_type = "text/csv"

    with pytest.raises(ConfigurationError, match="its converter writes text/csv, and what is kept is application/json"):
        async with flow_test([Parcel], plugins=[database], converters=[AsCsv()]):
            raise AssertionError("it has started")


@on_sqlite
async def test_a_state_that_would_not_come_back_is_found_at_start(database: SqlAlchemy) -> None:
    class Opaque: ...

    @aggregate(identifier="name")
    @dataclass
    class Lossy:
        name: str
        what: Opaque

        @query_handler("lossy")
        def show(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"the state of a .*Lossy would not come back as it was"):
        async with flow_test([Lossy], plugins=[database]):
            pass


@on_sqlite
async def test_a_class_of_a_program_is_warned_about(database: SqlAlchemy, caplog: pytest.LogCaptureFixture) -> None:
    @aggregate(identifier="name")
    @dataclass
    class OfProgram:
        name: str

        @query_handler("of_program")
        def show(self) -> None: ...

    OfProgram.__module__ = "__main__"
    with caplog.at_level(logging.WARNING, "ecotone_fastapi.aggregates"):
        async with flow_test([OfProgram], plugins=[database]):
            pass

    assert "give it a @message_name" in caplog.text


# -------------------------------------------------------------------------------------------------------------- as rows


@dataclass(frozen=True)
class Place:
    note: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    id: int
    note: str
    version: Annotated[int | None, TargetVersion()] = None


@dataclass(frozen=True)
class OrderWasPlaced:
    id: int


class Item(Base):
    __tablename__ = "order_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    name: Mapped[str] = mapped_column(String(50))


@aggregate(identifier="id")
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(String(50), unique=True)
    items: Mapped[list[Item]] = relationship(lazy="selectin")

    @classmethod
    @command_handler
    def place(cls, command: Place) -> "Order":
        order = cls(note=command.note, items=[Item(name=name) for name in command.items])
        record(order, lambda: OrderWasPlaced(order.id))
        return order

    @command_handler
    def change_note(self, command: Note) -> int:
        self.note = command.note
        return len(self.items)

    @query_handler("order.note")
    def get_note(self) -> str:
        return self.note


@on_every_database
async def test_the_identifier_that_the_database_gives_is_known_to_events_and_to_the_sender(
    database: SqlAlchemy,
) -> None:
    heard: list[tuple[OrderWasPlaced, int]] = []

    @event_handler
    async def hear(event: OrderWasPlaced, orders: Repository[Order], session: AsyncSession) -> None:
        in_transaction = (await session.execute(text("SELECT count(*) FROM orders"))).scalar_one()
        assert (await orders.get(event.id)).id == event.id
        heard.append((event, in_transaction))

    async with flow_test([Order, hear], plugins=[database]) as flow:
        order_id = await flow.send(Place("a", ("milk", "bread")))

        assert isinstance(order_id, int)
        assert heard == [(OrderWasPlaced(order_id), 1)]
        assert await flow.send(Note(order_id, "b")) == 2
        assert await flow.ask(order_id, to="order.note") == "b"
        assert await flow.ask(to="order.note", headers={"aggregate.id": order_id}) == "b"
        with pytest.raises(AggregateNotFoundError):
            await flow.ask(order_id + 1, to="order.note")


@on_every_database
async def test_a_row_without_version_is_locked_only_by_who_may_change_it(database: SqlAlchemy) -> None:
    async with flow_test([Order], plugins=[database]) as flow:
        order_id = await flow.send(Place("a"))
        with statements(database) as asked:
            await flow.ask(order_id, to="order.note")
        with statements(database) as sent:
            await flow.send(Note(order_id, "b"))

    locks = "sqlite" not in str(database.engine.url)
    assert not any("FOR UPDATE" in one for one in asked)
    assert any("FOR UPDATE" in one for one in sent) is locks


@on_every_database
async def test_another_constraint_that_is_violated_is_the_error_of_the_database(database: SqlAlchemy) -> None:
    async with flow_test([Order], plugins=[database]) as flow:
        await flow.send(Place("a"))
        other = await flow.send(Place("b"))

        with pytest.raises(IntegrityError):
            await flow.send(Place("a"))
        with pytest.raises(IntegrityError):
            await flow.send(Note(other, "a"))


@on_every_database
async def test_a_version_cannot_be_expected_where_none_is_counted(database: SqlAlchemy) -> None:
    async with flow_test([Order], plugins=[database]) as flow:
        order_id = await flow.send(Place("a"))
        with pytest.raises(AggregateError, match="those of Order are not counted") as caught:
            await flow.send(Note(order_id, "b", version=1))
    assert "version_id_col" in caught.value.hint


@aggregate(identifier="id", version="version")
class Versioned(Base):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note: Mapped[str] = mapped_column(String(50))
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    @classmethod
    @command_handler("versioned.make")
    def make(cls, note: str) -> "Versioned":
        return cls(note=note)

    @command_handler("versioned.change_note")
    async def change_note(self, command: Note, session: AsyncSession) -> int:
        self.note += command.note
        if command.note == "flushed":
            await session.flush()
        await anyio.lowlevel.checkpoint()
        return self.version

    @query_handler("versioned.show")
    def show(self) -> tuple[str, int]:
        return self.note, self.version


class Removing:
    def __init__(
        self, baskets: Repository[Basket], orders: Repository[Order], versioned: Repository[Versioned]
    ) -> None:
        self.places: list[tuple[Repository[Any], Any]] = [(baskets, "b"), (orders, 1), (versioned, 1)]

    @command_handler("remove")
    async def remove(self, note: str) -> list[Any]:
        for repository, identifier in self.places:
            found = await repository.get(identifier)
            await repository.delete(found)
            await repository.delete(found)
        if note:
            raise ValueError(note)
        return [await repository.find(identifier) for repository, identifier in self.places]

    @untransacted
    @command_handler("remove one by one")
    async def remove_one_by_one(self, note: str) -> list[Any]:
        return await self.remove(note)


@on_every_database
@pytest.mark.parametrize("route", ["remove", "remove one by one"])
async def test_a_handler_deletes_json_and_rows(database: SqlAlchemy, route: str) -> None:
    async with flow_test([Basket, Order, Versioned, Removing], plugins=[database]) as flow:
        for name in ("b", "c"):
            await flow.send(Open(name))
            await flow.send(Place(name))
            await flow.send(name, to="versioned.make")

        assert await flow.send("", to=route) == [None, None, None]

        for told, where in (("b", "basket.items"), (1, "order.note"), (1, "versioned.show")):
            with pytest.raises(AggregateNotFoundError):
                await flow.ask(told, to=where, headers={"aggregate.id": told})
        assert [row[1] for row in await rows(database)] == ["c"]
        assert await flow.ask(2, to="order.note", headers={"aggregate.id": 2}) == "c"
        assert await flow.ask(2, to="versioned.show", headers={"aggregate.id": 2}) == ("c", 1)


@on_every_database
async def test_what_is_deleted_by_a_handler_that_fails_is_there_as_before(database: SqlAlchemy) -> None:
    async with flow_test([Basket, Order, Versioned, Removing], plugins=[database]) as flow:
        await flow.send(Open("b"))
        await flow.send(Place("b"))
        await flow.send("b", to="versioned.make")
        with pytest.raises(ValueError, match="after all"):
            await flow.send("after all", to="remove")

        assert await flow.send(Add("b", "milk")) == 1
        assert await flow.send(Note(1, "c")) == 0
        assert await flow.ask(1, to="versioned.show", headers={"aggregate.id": 1}) == ("b", 1)


@on_servers
async def test_a_command_for_what_was_deleted_meanwhile_is_told_that_there_is_none(database: SqlAlchemy) -> None:
    runs: list[str] = []

    @command_handler("slow")
    async def slow(name: str, baskets: Repository[Basket]) -> None:
        runs.append(name)
        basket = await baskets.get(name)
        if len(runs) == 1:  # somebody else is faster
            async with database.engine.begin() as connection:
                await connection.execute(text("DELETE FROM ecotone_aggregate"))
        await baskets.save(basket)

    async with flow_test([Basket, slow], plugins=[database]) as flow:
        await flow.send(Open("b"))
        with pytest.raises(AggregateNotFoundError, match="there is no Basket 'b'"):
            await flow.send("b", to="slow")

    assert runs == ["b", "b"]


@on_every_database
async def test_an_entity_with_a_version_is_saved_by_it(database: SqlAlchemy) -> None:
    async with flow_test([Versioned], plugins=[database]) as flow:
        order_id = await flow.send("a", to="versioned.make")
        assert await flow.send(Note(order_id, "b", version=1), to="versioned.change_note") == 1
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(Note(order_id, "c", version=1), to="versioned.change_note")

        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert await flow.ask(to="versioned.show", headers={"aggregate.id": order_id}) == ("ab", 2)


@on_every_database
@pytest.mark.parametrize("note", ["x", "flushed"])
async def test_entities_that_meet_are_changed_again_and_no_change_is_lost(database: SqlAlchemy, note: str) -> None:
    """Also when the handler itself finds out, in the middle of its work."""
    async with flow_test([Versioned], plugins=[database]) as flow:
        order_id = await flow.send("", to="versioned.make")

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(partial(flow.send, Note(order_id, note), to="versioned.change_note"))

        shown, version = await flow.ask(to="versioned.show", headers={"aggregate.id": order_id})
        assert shown == 3 * note
        assert version in (4, 7)


@on_servers
async def test_something_else_that_was_changed_meanwhile_is_told_apart(database: SqlAlchemy) -> None:
    runs: list[int] = []

    @command_handler("both")
    async def both(ids: list[int], versioned: Repository[Versioned]) -> None:
        runs.append(1)
        one, other = await versioned.get(ids[0]), await versioned.get(ids[1])
        if len(runs) == 1:
            async with database.engine.begin() as connection:
                await connection.execute(text("UPDATE versioned SET version = 9 WHERE id = :id"), {"id": ids[1]})
        one.note = other.note = "both"
        await versioned.save(one)

    async with flow_test([Versioned, both], plugins=[database]) as flow:
        ids = [await flow.send("a", to="versioned.make"), await flow.send("b", to="versioned.make")]
        await flow.send(ids, to="both")

        assert await flow.ask(to="versioned.show", headers={"aggregate.id": ids[1]}) == ("both", 10)
    assert len(runs) == 2


@on_every_database
async def test_a_nested_command_that_fails_leaves_entities_that_can_be_loaded_again(database: SqlAlchemy) -> None:
    @command_handler("try")
    async def attempt(id: int, commands: CommandBus, orders: Repository[Order]) -> str:
        with pytest.raises(LookupError):
            await commands.send(id, to="fail")
        order = await orders.get(id)
        before, order.note = order.note, "after"
        await orders.save(order)
        return before

    @command_handler("fail")
    async def fail(id: int, commands: CommandBus) -> None:
        await commands.send(Note(id, "lost"))
        await commands.send(Place("lost, too"))
        raise LookupError

    async with flow_test([Order, attempt, fail], plugins=[database]) as flow:
        order_id = await flow.send(Place("a"))

        assert await flow.send(order_id, to="try") == "a"
        assert await flow.ask(order_id, to="order.note") == "after"
        assert isinstance(await flow.send(Place("lost, too")), int)


@on_every_database
async def test_a_handler_goes_on_with_its_entity_after_a_nested_command_has_failed(database: SqlAlchemy) -> None:
    @command_handler("try")
    async def attempt(id: int, commands: CommandBus, orders: Repository[Order], lazy: Repository[Lazy]) -> str:
        order, other = await orders.get(id), await lazy.get(id)
        assert len(await other.awaitable_attrs.items) == 1
        order.note += " outer"
        order.items.append(Item(name="outer"))
        with pytest.raises(LookupError):
            await commands.send(id, to="fail")
        seen = f"{order.note}, {[item.name for item in order.items]}, {other.note}, {len(other.items)}"
        order.note += " later"
        await orders.save(order)
        return seen

    @command_handler("fail")
    async def fail(id: int, session: AsyncSession, orders: Repository[Order], lazy: Repository[Lazy]) -> None:
        order, other = await orders.get(id), await lazy.get(id)
        order.items[0].name = other.note = "lost"
        order.items.append(Item(name="lost"))
        other.items.append(LazyItem())
        await session.flush()
        order.note = "lost"
        raise LookupError

    async with flow_test([Order, aggregate(identifier="id")(Lazy), attempt, fail], plugins=[database]) as flow:
        order_id = await flow.send(Place("a", ("b",)))
        assert await flow.send("c", to="lazy.make") == order_id

        assert await flow.send(order_id, to="try") == "a outer, ['b', 'outer'], c, 1"
        assert await flow.ask(order_id, to="order.note") == "a outer later"


@pytest.mark.parametrize("url", [pytest.param("mariadb_url", marks=pytest.mark.mariadb)], indirect=True)
async def test_an_entity_that_is_locked_stays_as_new_as_it_was_loaded(url: str) -> None:
    @command_handler("try")
    async def attempt(id: int, session: AsyncSession, commands: CommandBus, orders: Repository[Order]) -> str:
        await session.execute(select(Lazy.id))  # from now on this transaction sees nothing new
        async with database.engine.begin() as connection:
            await connection.execute(update(Order).values(note="newer"))
        order = await orders.get(id)
        with pytest.raises(LookupError):
            await commands.send(id, to="fail")
        return order.note

    @command_handler("fail")
    async def fail(id: int, orders: Repository[Order]) -> None:
        (await orders.get(id)).note = "lost"
        raise LookupError

    engine = create_async_engine(url, isolation_level="REPEATABLE READ")
    database = SqlAlchemy(engine, create_schema=True)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with flow_test([Order, attempt, fail], plugins=[database]) as flow:
        order_id = await flow.send(Place("older"))

        assert await flow.send(order_id, to="try") == "newer"
    await engine.dispose()


@on_servers
async def test_whoever_goes_on_after_a_conflict_overwrites_nothing(database: SqlAlchemy) -> None:
    seen: list[str] = []

    @command_handler("try")
    async def attempt(id: int, commands: CommandBus, known: Repository[Versioned]) -> None:
        entity = await known.get(id)
        seen.append(entity.note)
        if len(seen) == 1:
            async with database.engine.begin() as connection:
                await connection.execute(update(Versioned).values(note="newer", version=2))
            with pytest.raises(ConcurrencyError):
                await commands.send(Note(id, "lost"), to="versioned.change_note")
        entity.note = f"{seen[-1]}, and mine"
        await known.save(entity)

    async with flow_test([Versioned, attempt], plugins=[database]) as flow:
        entity_id = await flow.send("older", to="versioned.make")
        await flow.send(entity_id, to="try")

        assert seen == ["older", "newer"]
        assert await flow.ask(to="versioned.show", headers={"aggregate.id": entity_id}) == ("newer, and mine", 3)


@on_every_database
async def test_what_the_handler_has_put_into_the_session_itself_is_saved_once(database: SqlAlchemy) -> None:
    @command_handler("put")
    async def put(note: str, session: AsyncSession, orders: Repository[Order]) -> int:
        order = Order(note=note)
        session.add(order)
        await orders.save(order)
        again = await session.get_one(Order, order.id)
        again.note += "!"
        await orders.save(again)
        return order.id

    async with flow_test([Order, put], plugins=[database]) as flow:
        order_id = await flow.send("a", to="put")

        assert await flow.ask(order_id, to="order.note") == "a!"


@on_every_database
async def test_a_handler_may_delete_its_entity(database: SqlAlchemy) -> None:
    @command_handler("delete")
    async def delete(
        id: int, session: AsyncSession, orders: Repository[Order], versioned: Repository[Versioned]
    ) -> None:
        order, other = await orders.get(id), await versioned.get(id)
        for entity in (order, other):
            await session.delete(entity)
        await orders.save(order)
        await versioned.save(other)

    async with flow_test([Order, Versioned, delete], plugins=[database]) as flow:
        order_id = await flow.send(Place("a"))
        assert await flow.send("a", to="versioned.make") == order_id
        await flow.send(order_id, to="delete")

        for query in ("order.note", "versioned.show"):
            with pytest.raises(AggregateNotFoundError):
                await flow.ask(to=query, headers={"aggregate.id": order_id})


class Lazy(AsyncAttrs, Base):
    """Its items are not loaded with it, and the server computes a column."""

    __tablename__ = "lazy"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(String(50))
    length: Mapped[int] = mapped_column(Computed("length(note)", persisted=True))
    items: Mapped[list["LazyItem"]] = relationship()
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012

    @staticmethod
    @command_handler("lazy.make")
    def make(note: str) -> "Lazy":
        return Lazy(note=note, items=[LazyItem()])

    @command_handler("lazy.touch")
    def touch(self, id: int) -> set[str]:
        return set(inspect(self).unloaded)

    @command_handler("lazy.read")
    def read(self, id: int) -> int:
        return len(self.items)

    @command_handler("lazy.await")
    async def await_items(self, id: int) -> int:
        self.note += "!"
        record(self, lambda: f"{self.note} has {self.length} characters")
        return len(await self.awaitable_attrs.items)


class LazyItem(Base):
    __tablename__ = "lazy_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    lazy_id: Mapped[int] = mapped_column(ForeignKey("lazy.id"))


@on_every_database
async def test_what_was_not_loaded_with_an_entity_has_to_be_awaited(database: SqlAlchemy) -> None:
    async with flow_test([aggregate(identifier="id")(Lazy)], plugins=[database]) as flow:
        lazy = await flow.send("abc", to="lazy.make")

        assert await flow.send(lazy, to="lazy.touch") == {"items"}
        assert await flow.send(lazy, to="lazy.await") == 1
        assert flow.published == ["abc! has 4 characters"]


@on_servers
async def test_an_attribute_that_was_not_loaded_tells_what_to_do(database: SqlAlchemy) -> None:
    async with flow_test([aggregate(identifier="id")(Lazy)], plugins=[database]) as flow:
        lazy = await flow.send("abc", to="lazy.make")
        with pytest.raises(SQLAlchemyError, match="greenlet") as caught:
            await flow.send(lazy, to="lazy.read")
    assert ['lazy="selectin"' in note for note in caught.value.__notes__].count(True) == 1


@on_every_database
async def test_changes_that_were_not_flushed_survive_the_lock(database: SqlAlchemy) -> None:
    quiet = SqlAlchemy(
        database.engine, sessionmaker=async_sessionmaker(database.engine, expire_on_commit=False, autoflush=False)
    )

    @command_handler("twice")
    async def twice(id: int, session: AsyncSession, orders: Repository[Order]) -> str:
        order = await session.get_one(Order, id)
        order.note = "changed"
        same = await orders.get(id)
        assert same is order
        return (await orders.get(id)).note

    async with flow_test([Order, twice], plugins=[quiet]) as flow:
        order_id = await flow.send(Place("a"))

        assert await flow.send(order_id, to="twice") == "changed"


class OfDataclass(MappedAsDataclass, DeclarativeBase):
    pass


@aggregate(identifier="name")
class Copied(OfDataclass):
    __tablename__ = "copied"
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    note: Mapped[str] = mapped_column(String(50))

    @classmethod
    @command_handler("copied.make")
    def make(cls, name: str) -> "Copied":
        return cls(name, "new")

    @command_handler("copied.change")
    def change(self, name: str) -> "Copied":
        return Copied(self.name, "changed")

    @query_handler("copied.note")
    def get_note(self, name: str) -> str:
        return self.note


@on_every_database
async def test_an_entity_that_a_method_returns_in_place_of_its_own_is_merged(database: SqlAlchemy) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(OfDataclass.metadata.create_all)
    async with flow_test([Copied], plugins=[database]) as flow:
        await flow.send("a", to="copied.make")
        await flow.send("a", to="copied.change")

        assert await flow.ask("a", to="copied.note") == "changed"


@aggregate(identifier="id")
class Payment(Base):
    __tablename__ = "payment"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    amount: Mapped[int]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "cash"}  # noqa: RUF012

    @staticmethod
    @command_handler("payment.make")
    def make(kind: str) -> "Payment":
        return CardPayment(amount=5, number="4711") if kind == "card" else Payment(amount=5)

    @command_handler("payment.double")
    def double(self, id: int) -> str:
        self.amount *= 2
        return f"{type(self).__name__} {self.amount}"


class CardPayment(Payment):
    __tablename__ = "card_payment"
    id: Mapped[int] = mapped_column(ForeignKey("payment.id"), primary_key=True)
    number: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_identity": "card"}  # noqa: RUF012


@on_every_database
async def test_subclasses_of_an_entity_are_kept_with_it(database: SqlAlchemy) -> None:
    async with flow_test([Payment], plugins=[database]) as flow:
        cash, card = await flow.send("cash", to="payment.make"), await flow.send("card", to="payment.make")

        assert await flow.send(cash, to="payment.double") == "Payment 10"
        assert await flow.send(card, to="payment.double") == "CardPayment 10"


@on_every_database
async def test_a_class_that_is_mapped_by_hand_is_kept_too(database: SqlAlchemy) -> None:
    class Thing:
        def __init__(self, code: str) -> None:
            self.code = code

        @classmethod
        @command_handler("thing.make")
        def make(cls, code: str) -> "Thing":
            return cls(code)

        @query_handler("thing.code")
        def get_code(self) -> str:
            return self.code

    mapping = registry()
    table = Table("thing", mapping.metadata, *_columns())
    mapping.map_imperatively(Thing, table)
    async with database.engine.begin() as connection:
        await connection.run_sync(mapping.metadata.create_all)
    async with flow_test([aggregate(identifier=("shop", "code"))(Thing)], plugins=[database]) as flow:
        identifier = await flow.send("a", to="thing.make")

        assert identifier == {"shop": 7, "code": "a"}
        assert await flow.ask(to="thing.code", headers={"aggregate.id": {"shop": "7", "code": "a"}}) == "a"


def _columns() -> list[Any]:
    return [
        Column("id", Integer, primary_key=True),
        Column("shop", Integer, server_default=text("7"), nullable=False),
        Column("code", String(20), nullable=False),
        UniqueConstraint("shop", "code"),
    ]


@on_sqlite
async def test_the_version_may_be_something_else_than_a_number(database: SqlAlchemy) -> None:
    counter = iter("abcdefgh")

    class Tagged(Base):
        __tablename__ = "tagged"
        id: Mapped[int] = mapped_column(primary_key=True)
        note: Mapped[str] = mapped_column(String(50))
        etag: Mapped[str] = mapped_column(String(50))
        __mapper_args__ = {"version_id_col": etag, "version_id_generator": lambda _: next(counter)}  # noqa: RUF012

        @staticmethod
        @command_handler("tagged.make")
        def make(note: str) -> "Tagged":
            return Tagged(note=note)

        @command_handler("tagged.change")
        async def change(self, session: AsyncSession, id: int) -> str:
            if self.note == "a!":
                await session.execute(text("UPDATE tagged SET etag = 'z'"))
            self.note += "!"
            return self.etag

    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with flow_test([aggregate(identifier="id")(Tagged)], plugins=[database]) as flow:
        tagged = await flow.send("a", to="tagged.make")
        assert await flow.send(tagged, to="tagged.change") == "a"
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(tagged, to="tagged.change")
    assert (caught.value.expected, caught.value.actual) == (None, None)


# ------------------------------------------------------------------------------------------ what is wrong in a mapping


async def found_at_start(database: SqlAlchemy, cls: type, **described: Any) -> str:
    def show(self: Any) -> None: ...

    cls.show = query_handler(f"{cls.__name__}.show")(show)  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError) as caught:
        async with flow_test([aggregate(**described)(cls)], plugins=[database]):
            pass
    return str(caught.value)


@pytest.fixture
def mapped(request: pytest.FixtureRequest) -> Callable[..., type]:
    def make(**attributes: Any) -> type:
        class Fresh(DeclarativeBase):
            pass

        return type("Wrong", (Fresh,), {"__tablename__": "wrong", "__module__": __name__, **attributes})

    return make


@on_sqlite
async def test_an_identifier_that_is_no_column_or_not_unique_is_found_at_start(
    database: SqlAlchemy, mapped: Callable[..., type]
) -> None:
    columns = {"id": mapped_column(Integer, primary_key=True), "code": mapped_column(String(10)), "title": "no column"}

    assert "Wrong has no column title" in await found_at_start(database, mapped(**columns), identifier="title")

    columns = {"id": mapped_column(Integer, primary_key=True), "code": mapped_column(String(10))}
    text = await found_at_start(database, mapped(**columns), identifier="code")
    assert "there may be several Wrong with one code" in text
    assert "mapped_column(unique=True)" in text


@on_sqlite
async def test_a_version_that_does_not_count_is_found_at_start(
    database: SqlAlchemy, mapped: Callable[..., type]
) -> None:
    columns = {"id": mapped_column(Integer, primary_key=True), "version": mapped_column(Integer)}

    text = await found_at_start(database, mapped(**columns), identifier="id", version="version")

    assert "Wrong.version does not count versions" in text
    assert "version_id_col" in text


async def test_entities_are_not_kept_in_memory() -> None:
    with pytest.raises(ConfigurationError, match="nothing keeps the aggregates of Order") as caught:
        async with flow_test([Order]):
            pass
    assert "give the database" in caught.value.hint


# -------------------------------------------------------------------------------------------------------------- faults


async def test_a_database_that_is_away_is_told_so() -> None:
    away = SqlAlchemy("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
    async with away.lifespan():
        pass

    async def ask(flow: Flow) -> None:
        with pytest.raises(ChannelError, match="loading a Order"):
            await flow.ask(1, to="order.note")

    async with flow_test([Order], plugins=[away]) as flow:
        await ask(flow)


@on_sqlite
async def test_a_table_that_is_missing_is_the_error_of_the_database(
    database: SqlAlchemy, mapped: Callable[..., type]
) -> None:
    cls = mapped(id=mapped_column(Integer, primary_key=True))

    @query_handler("wrong")
    async def find(id: int, wrongs: Repository[cls]) -> None:  # type: ignore[valid-type]
        await wrongs.find(id)

    aggregate(identifier="id")(cls)
    async with flow_test([find], plugins=[database]) as flow:
        with pytest.raises(Exception, match="no such table: wrong") as caught:
            await flow.ask(7, to="wrong")
    assert not isinstance(caught.value, ChannelError)
    assert inspect(cls).local_table.name == "wrong"
