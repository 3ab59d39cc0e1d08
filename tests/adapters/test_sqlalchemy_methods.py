"""Methods that are SQL: what is fetched, what is bound, in which transaction, and which mistakes are told at once."""

# ruff: noqa: PT012, B024, B027 - a unit of work is a block, and decorated methods are empty without being abstract

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, NewType, Protocol
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, Json, RootModel
from sqlalchemy import Connection, Integer, Numeric, String, Uuid, event, make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import TypedDict

from ecotone_fastapi import Ecotone, command_handler, query_handler, untransacted
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy, query, statement
from ecotone_fastapi.adapters.sqlalchemy.sql_text import SqlText
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, RowNotFoundError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message

SQLITE = pytest.param("sqlite", id="sqlite")
ASYNCPG = pytest.param("asyncpg", id="asyncpg", marks=pytest.mark.postgresql)
PSYCOPG = pytest.param("psycopg", id="psycopg", marks=pytest.mark.postgresql)
MARIADB = pytest.param("mariadb", id="mariadb", marks=pytest.mark.mariadb)
EVERY = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])
POSTGRESQL = pytest.mark.parametrize("kind", [ASYNCPG, PSYCOPG])
EMBEDDED = pytest.mark.parametrize("kind", [SQLITE])


class Base(DeclarativeBase):
    pass


class Status(Enum):
    OPEN = "open"
    PAID = "paid"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Order(Base):
    """What an application that exists has: SQLAlchemy decides how a value is kept."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    customer: Mapped[str] = mapped_column(String(50))
    total: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    status: Mapped[str] = mapped_column(String(10), default="open")
    level: Mapped[int] = mapped_column(Integer, default=1)
    token: Mapped[UUID | None] = mapped_column(Uuid)
    due: Mapped[date | None]
    placed_at: Mapped[datetime | None]


@dataclass(frozen=True)
class OrderRow:
    id: int
    customer: str
    total: Decimal | None = None


class Paging(BaseModel):
    limit: int
    offset: int = 0


@dataclass
class Search:
    customer: str
    paging: Paging
    statuses: list[Status]

    @property
    def pattern(self) -> str:
        return f"{self.customer}%"


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    name = {"sqlite": "sqlite_url", "mariadb": "mariadb_url"}.get(kind, "postgresql_url")
    address: str = request.getfixturevalue(name)
    if name == "postgresql_url":
        address = make_url(address).set(drivername=f"postgresql+{kind}").render_as_string(hide_password=False)
    return address


@pytest.fixture
async def database(url: str) -> AsyncIterator[SqlAlchemy]:
    database = SqlAlchemy(url, create_schema=True)
    async with database.lifespan():
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with database.sessionmaker.begin() as session:
            session.add_all(
                [
                    Order(id=1, customer="ada", total=Decimal("9.50")),
                    Order(id=2, customer="alan", total=Decimal(20), status="paid"),
                    Order(id=3, customer="ada", total=None, status="paid", level=2),
                ]
            )
        yield database


@asynccontextmanager
async def unit(database: SqlAlchemy) -> AsyncIterator[AsyncSession]:
    async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})) as scope:
        await scope.enter(database.begin(scope))
        yield await anext(database.session())


def unchecked() -> SqlAlchemy:
    """A database that nobody connects to."""
    return SqlAlchemy("sqlite+aiosqlite:///nowhere.db")


# ----------------------------------------------------------------------------------------------------- what is fetched


class OrderDict(TypedDict):
    id: int
    customer: str


class OrderTuple(NamedTuple):
    id: int
    customer: str


class OrderModel(BaseModel):
    number: int = Field(alias="id")
    customer: Annotated[str, Field(min_length=1)]


Name = NewType("Name", str)

ROWS = "SELECT id, customer FROM orders ORDER BY id"


class Fetches(Protocol):
    @query("SELECT id, customer, total FROM orders ORDER BY id")
    async def dataclasses(self) -> list[OrderRow]: ...

    @query(ROWS)
    async def models(self) -> Sequence[OrderModel]: ...

    @query(ROWS)
    async def typed_dicts(self) -> list[OrderDict]: ...

    @query(ROWS)
    async def named_tuples(self) -> tuple[OrderTuple, ...]: ...

    @query(ROWS)
    async def dicts(self) -> list[dict[str, Any]]: ...

    @query(ROWS)
    async def plain(self) -> list: ...  # type: ignore[type-arg]

    @query(ROWS)
    async def tuples(self) -> list[tuple[int, str]]: ...

    @query("SELECT customer FROM orders ORDER BY id")
    async def values(self) -> list[Name]: ...

    @query("SELECT customer FROM orders")
    async def a_set(self) -> set[str]: ...

    @query("SELECT status FROM orders ORDER BY id")
    async def enums(self) -> list[Status]: ...

    @query("SELECT total FROM orders ORDER BY id")
    async def with_nothing(self) -> list[Decimal | None]: ...

    @query("SELECT id, customer FROM orders WHERE id = :id")
    async def get(self, id: int) -> OrderRow: ...

    @query("SELECT id, customer FROM orders WHERE id = :id")
    async def find(self, id: int) -> OrderRow | None: ...

    @query("SELECT id, customer FROM orders WHERE id >= :id ORDER BY id")
    async def pair(self, id: int) -> tuple[int, str]: ...

    @query("SELECT count(*) FROM orders WHERE customer = :customer")
    async def count(self, customer: str) -> int: ...

    @query("SELECT sum(total) FROM orders")
    async def sum(self) -> Annotated[Decimal, Field(ge=0)]: ...

    @query("SELECT total FROM orders WHERE id = :id")
    async def total(self, id: int) -> Decimal | None: ...

    @query("SELECT status FROM orders WHERE id = :id")
    async def literal(self, id: int) -> Literal["open", "paid"]: ...

    @query("SELECT '[1, 2]'")
    async def json(self) -> Json[list[int]]: ...

    @query("SELECT '[1, 2]' AS it")
    async def json_of_rows(self) -> list[Annotated[OrderRow | list[int], Json]]: ...


@EVERY
async def test_all_rows_are_what_the_method_says(database: SqlAlchemy) -> None:
    orders = database.implement(Fetches)

    assert await orders.dataclasses() == [
        OrderRow(1, "ada", Decimal("9.50")),
        OrderRow(2, "alan", Decimal(20)),
        OrderRow(3, "ada"),
    ]
    pairs = [(1, "ada"), (2, "alan"), (3, "ada")]
    assert [(row.number, row.customer) for row in await orders.models()] == pairs
    assert await orders.named_tuples() == tuple(OrderTuple(*pair) for pair in pairs)
    assert await orders.tuples() == pairs
    dicts = [{"id": number, "customer": customer} for number, customer in pairs]
    assert await orders.typed_dicts() == dicts
    assert await orders.dicts() == dicts
    assert await orders.plain() == dicts


@EVERY
async def test_a_single_column_is_its_value(database: SqlAlchemy) -> None:
    orders = database.implement(Fetches)

    assert await orders.values() == ["ada", "alan", "ada"]
    assert await orders.a_set() == {"ada", "alan"}
    assert await orders.enums() == [Status.OPEN, Status.PAID, Status.PAID]
    assert await orders.with_nothing() == [Decimal("9.50"), Decimal(20), None]
    assert await orders.count("ada") == 2
    assert await orders.sum() == Decimal("29.50")
    assert await orders.literal(2) == "paid"
    assert await orders.json() == [1, 2]
    assert await orders.json_of_rows() == [[1, 2]]


@EVERY
async def test_the_first_row_is_there_or_not(database: SqlAlchemy) -> None:
    orders = database.implement(Fetches)

    assert await orders.get(1) == OrderRow(1, "ada")
    assert await orders.find(2) == OrderRow(2, "alan")
    assert await orders.find(9) is None
    assert await orders.pair(2) == (2, "alan")
    assert await orders.total(1) == Decimal("9.50")
    assert await orders.total(3) is None
    assert await orders.total(9) is None
    with pytest.raises(RowNotFoundError) as raised:
        await orders.get(9)
    assert str(raised.value) == (
        "Fetches.get has found no row\nTried: SELECT id, customer FROM orders WHERE id = :id\n"
        "Hint: let it return 'OrderRow | None' if there may be none"
    )


class Broken(Protocol):
    @query("SELECT id, customer, NULL AS total FROM orders ORDER BY id")
    async def no_total(self) -> list[OrderDict]: ...

    @query("SELECT id, CASE WHEN id = 2 THEN 'many' ELSE '1' END AS total, customer FROM orders ORDER BY id")
    async def not_a_number(self) -> list[OrderRow]: ...

    @query("SELECT id FROM orders ORDER BY id")
    async def no_customer(self) -> OrderRow: ...

    @query("SELECT customer FROM orders WHERE id = 1")
    async def no_int(self) -> int: ...

    @query("SELECT NULL AS it")
    async def nothing(self) -> int: ...

    @query("SELECT id, customer FROM orders")
    async def two_columns(self) -> list[int]: ...

    @query("UPDATE orders SET level = 1")
    async def no_rows(self) -> list[OrderRow]: ...

    @query("SELECT id, CASE WHEN id = 2 THEN NULL ELSE customer END AS customer FROM orders ORDER BY id")
    def streamed(self) -> AsyncIterator[OrderRow]: ...


@EVERY
async def test_rows_that_do_not_fit_are_told_with_their_column(database: SqlAlchemy) -> None:
    orders = database.implement(Broken)

    assert [row["customer"] for row in await orders.no_total()] == ["ada", "alan", "ada"]
    for call, problem in (
        (orders.not_a_number, "Broken.not_a_number: row 2 is no OrderRow: column 'total'"),
        (orders.no_customer, "Broken.no_customer: the row is no OrderRow: column 'customer': Field required"),
        (orders.no_int, "Broken.no_int: the row is no int: column 'customer'"),
        (orders.nothing, "Broken.nothing: the row is no int: column 'it'"),
        (orders.two_columns, "Broken.two_columns: the SQL returns the columns id, customer, and int is a single value"),
        (orders.no_rows, "Broken.no_rows: the SQL returns no rows"),
    ):
        with pytest.raises(ConversionError) as raised:
            await call()
        assert raised.value.what.startswith(problem)
        assert "orders" in raised.value.tried or "NULL" in raised.value.tried
        assert raised.value.nested
    with pytest.raises(ConversionError, match=r"Broken.streamed: row 2 is no OrderRow: column 'customer'"):
        assert [row async for row in orders.streamed()]


# ------------------------------------------------------------------------------------------------------------- streams


class Streams(Protocol):
    @query("SELECT id, customer FROM orders WHERE id >= :first ORDER BY id")
    def rows(self, first: int = 1) -> AsyncIterator[OrderRow]: ...

    @query("SELECT id FROM orders ORDER BY id")
    def values(self) -> AsyncGenerator[int, None]: ...

    @query("SELECT customer FROM orders WHERE id = :id")
    async def customer(self, id: int) -> str: ...

    @statement("UPDATE orders SET level = level + 1 WHERE id = :id")
    async def promote(self, id: int) -> int: ...

    @statement("INSERT INTO orders (id, customer, status, level) VALUES (:id, 'many', 'open', 1)")
    async def add(self, id: int) -> None: ...

    @query("SELECT sum(level) FROM orders")
    async def levels(self) -> int: ...


@EVERY
async def test_rows_are_streamed(database: SqlAlchemy) -> None:
    orders = database.implement(Streams)

    assert [row async for row in orders.rows()] == [OrderRow(1, "ada"), OrderRow(2, "alan"), OrderRow(3, "ada")]
    assert [row.id async for row in orders.rows(first=3)] == [3]
    assert [number async for number in orders.values()] == [1, 2, 3]


@EVERY
async def test_a_stream_that_is_left_early_gives_its_connection_back(database: SqlAlchemy) -> None:
    orders = database.implement(Streams)

    for _ in range(30):  # more than the pool has
        async with aclosing(orders.values()) as numbers:
            assert await anext(numbers) == 1
    with pytest.raises(ValueError, match="enough"):
        async with aclosing(orders.values()) as numbers:
            async for _ in numbers:
                raise ValueError("enough")

    assert await orders.customer(1) == "ada"


@EVERY
async def test_in_a_unit_of_work_other_statements_run_between_the_rows_of_a_stream(database: SqlAlchemy) -> None:
    orders = database.implement(Streams)

    async with unit(database):
        await orders.add(4)
        seen = []
        async for number in orders.values():
            assert await orders.promote(number) == 1
            seen.append(await orders.customer(number))
        assert seen == ["ada", "alan", "ada", "many"]
        async with aclosing(orders.values()) as numbers:
            assert await anext(numbers) == 1
        assert await orders.levels() == 4 + 5

    assert await orders.levels() == 4 + 5


@POSTGRESQL
async def test_a_stream_is_a_cursor_on_the_server(database: SqlAlchemy) -> None:
    class Numbers(Protocol):
        @query("SELECT generate_series(1, 1000000000)")
        def all(self) -> AsyncGenerator[int, None]: ...

    async with aclosing(database.implement(Numbers).all()) as numbers:
        async for number in numbers:
            if number == 1000:
                break


# ------------------------------------------------------------------------------------------------------- what is bound


class Binds(Protocol):
    @query("SELECT id FROM orders WHERE customer = :customer AND status = :status ORDER BY id")
    async def plain(self, customer: str, status: Status = Status.PAID) -> list[int]: ...

    @query("SELECT id FROM orders WHERE level = :level")
    async def of_level(self, level: Level) -> list[int]: ...

    @query("SELECT id FROM orders WHERE total >= :least AND total < :least + 1")
    async def decimals(self, least: Decimal) -> list[int]: ...

    @statement("UPDATE orders SET token = :token, due = :due, placed_at = :placed_at WHERE id = :id")
    async def fill(self, id: int, token: UUID | None, due: date | None, placed_at: datetime | None) -> int: ...

    @query("SELECT token FROM orders WHERE token = :token")
    async def token(self, token: UUID) -> UUID: ...

    @query("SELECT due FROM orders WHERE due = :due")
    async def due(self, due: date) -> date: ...

    @query("SELECT placed_at FROM orders WHERE placed_at BETWEEN :since AND :until")
    async def placed_at(self, since: datetime, until: datetime) -> datetime: ...

    @query("SELECT id FROM orders WHERE id IN :ids ORDER BY id")
    async def of_ids(self, ids: Sequence[int]) -> list[int]: ...

    @query("SELECT id FROM orders WHERE NOT (customer in ( :customers )) ORDER BY id")
    async def of_others(self, customers: set[str]) -> list[int]: ...

    @query("SELECT id FROM orders WHERE status NOT IN (:statuses) AND id IN (:ids) ORDER BY id")
    async def several(self, statuses: list[Status], ids: frozenset[int]) -> list[int]: ...

    @query("SELECT id FROM orders WHERE id IN (:id) AND id NOT IN :other")
    async def single(self, id: int, other: Any) -> list[int]: ...

    @query("SELECT id FROM orders WHERE token IN :tokens")
    async def of_tokens(self, tokens: list[UUID]) -> list[int]: ...

    @query("SELECT id FROM orders ORDER BY id LIMIT :paging.limit OFFSET :paging.offset")
    async def page(self, paging: Paging) -> list[int]: ...

    @query(
        "SELECT id FROM orders WHERE customer LIKE :search.pattern AND status IN (:search.statuses)"
        " AND customer <> :customer ORDER BY id LIMIT :search.paging.limit"
    )
    async def search(self, search: Search, customer: str) -> list[int]: ...

    @query("SELECT id FROM orders WHERE customer = :wanted.customer AND id = :wanted.id")
    async def by_dict(self, wanted: dict[str, Any]) -> list[int]: ...

    @query("SELECT count(*) FROM orders WHERE total = :row.total OR (:row.total IS NULL AND total IS NULL)")
    async def optional(self, row: OrderRow | None) -> int: ...

    @query("SELECT ':customer -- \" %s %(x)s {}' /* :nothing */ FROM orders WHERE id = :id -- :more")
    async def quoted(self, id: int) -> str: ...


@EVERY
async def test_values_are_bound_as_the_database_has_them(database: SqlAlchemy) -> None:
    orders = database.implement(Binds)

    assert await orders.plain("ada") == [3]
    assert await orders.plain("ada", status=Status.OPEN) == [1]
    assert await orders.plain("' OR 1=1; --") == []
    assert await orders.of_level(Level.HIGH) == [3]
    assert await orders.decimals(Decimal("9.5")) == [1]
    assert await orders.quoted(1) == ':customer -- " %s %(x)s {}'


@EVERY
async def test_ids_and_times_are_what_the_orm_makes_of_them(database: SqlAlchemy) -> None:
    orders, token = database.implement(Binds), uuid4()
    noon = datetime(2026, 1, 31, 12, 0, 0, 500_000)  # noqa: DTZ001 - a column without a zone
    if database.engine.dialect.name == "postgresql":
        local = noon
    else:
        noon = noon.replace(microsecond=0)
        local = noon.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=9)))

    assert await orders.fill(1, token, date(2026, 2, 1), local) == 1
    async with database.sessionmaker() as session:
        order = await session.get_one(Order, 1)
        assert (order.token, order.due, order.placed_at) == (token, date(2026, 2, 1), noon)
    async with database.sessionmaker.begin() as session:
        session.add(Order(id=4, customer="orm", token=uuid4(), due=date(2027, 1, 1), placed_at=noon))

    assert await orders.token(token) == token
    assert await orders.due(date(2026, 2, 1)) == date(2026, 2, 1)
    assert await orders.placed_at(local - timedelta(seconds=1), local) == noon
    assert await orders.of_tokens([token, uuid4()]) == [1]
    assert await orders.fill(1, None, None, None) == 1


@EVERY
async def test_lists_stand_behind_in(database: SqlAlchemy) -> None:
    orders = database.implement(Binds)

    assert await orders.of_ids([1, 3, 9]) == [1, 3]
    assert await orders.of_ids((2,)) == [2]
    assert await orders.single(2, 3) == [2]
    assert await orders.single(2, [1, 2]) == []
    assert await orders.of_ids(range(2, 100)) == [2, 3]
    assert await orders.of_others({"ada"}) == [2]
    assert await orders.several([Status.OPEN], frozenset([1, 2])) == [2]


@EVERY
async def test_nothing_is_in_an_empty_list(database: SqlAlchemy) -> None:
    orders = database.implement(Binds)

    assert await orders.of_ids([]) == []
    assert await orders.of_others(set()) == [1, 2, 3]
    assert await orders.several([], frozenset([1, 2])) == [1, 2]
    assert await orders.several([], frozenset()) == []
    assert await orders.of_tokens([]) == []


@EVERY
async def test_fields_of_parameters_are_bound(database: SqlAlchemy) -> None:
    orders = database.implement(Binds)
    search = Search("a", Paging(limit=2), [Status.OPEN, Status.PAID])

    assert await orders.page(Paging(limit=2, offset=1)) == [2, 3]
    assert await orders.search(search, customer="alan") == [1, 3]
    assert await orders.search(search, "nobody") == [1, 2]
    assert await orders.by_dict({"customer": "ada", "id": 3}) == [3]


@pytest.mark.parametrize("kind", [SQLITE, MARIADB])
async def test_a_field_of_nothing_is_null(database: SqlAlchemy) -> None:
    orders = database.implement(Binds)

    assert await orders.optional(OrderRow(1, "ada", Decimal("9.50"))) == 1
    assert await orders.optional(OrderRow(1, "ada")) == 1
    assert await orders.optional(None) == 1


@POSTGRESQL
async def test_on_postgresql_a_list_may_be_an_array_and_types_may_be_cast(database: SqlAlchemy) -> None:
    class Arrays(Protocol):
        @query("SELECT id FROM orders WHERE id = ANY(:ids) ORDER BY id")
        async def any(self, ids: list[int]) -> list[int]: ...

        @query("SELECT (ARRAY[1, 2, 3])[2:3], :number::numeric, $$ :quoted $$, E'it\\'s :quoted'")
        async def others(self, number: Decimal) -> tuple[list[int], Decimal, str, str]: ...

    arrays = database.implement(Arrays)

    assert await arrays.any([1, 3]) == [1, 3]
    assert await arrays.any([]) == []
    assert await arrays.others(Decimal("1.50")) == ([2, 3], Decimal("1.50"), " :quoted ", "it's :quoted")


@EMBEDDED
async def test_times_of_day_are_bound(database: SqlAlchemy) -> None:
    class Times(Protocol):
        @query("SELECT :at")
        async def at(self, at: time) -> time: ...

        @query("SELECT :at")
        async def moment(self, at: datetime) -> datetime: ...

    times = database.implement(Times)

    assert await times.at(time(12, 30, 0, 5)) == time(12, 30, 0, 5)
    assert await times.moment(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1)  # noqa: DTZ001 - without zone


# ---------------------------------------------------------------------------------------------------- the unit of work


class Changes(Protocol):
    @statement("UPDATE orders SET customer = :customer WHERE id = :id")
    async def hand_over(self, id: int, customer: str) -> int: ...

    @statement("UPDATE orders SET customer = :customer")
    async def hand_over_all(self, customer: str) -> None: ...

    @statement("INSERT INTO orders (id, customer, status, level) VALUES (:id, :customer, 'open', 1)")
    async def add(self, id: int, customer: str) -> int: ...

    @query("INSERT INTO orders (id, customer, status, level) VALUES (:id, :customer, 'open', 1) RETURNING id, customer")
    async def added(self, id: int, customer: str) -> OrderRow: ...

    @query("SELECT customer FROM orders WHERE id = :id")
    async def customer(self, id: int) -> str | None: ...


@EVERY
async def test_a_statement_tells_how_many_rows_it_affects(database: SqlAlchemy) -> None:
    orders = database.implement(Changes)

    assert await orders.hand_over(1, "grace") == 1
    assert await orders.hand_over(1, "grace") == 1
    assert await orders.hand_over(9, "grace") == 0
    assert await orders.add(4, "bob") == 1
    assert await orders.hand_over_all("eve") is None  # type: ignore[func-returns-value]
    assert await orders.customer(4) == "eve"


@EVERY
async def test_a_query_may_return_what_it_has_written(database: SqlAlchemy) -> None:
    orders = database.implement(Changes)

    assert await orders.added(4, "bob") == OrderRow(4, "bob")
    assert await orders.customer(4) == "bob"


@EVERY
async def test_a_handler_that_fails_leaves_nothing(database: SqlAlchemy) -> None:
    @command_handler("add")
    async def add(customer: str, orders: Changes, session: AsyncSession) -> str | None:
        session.add(Order(id=4, customer=customer))
        assert await orders.customer(4) == customer
        assert await orders.hand_over(4, f"{customer}!") == 1
        await orders.added(5, customer)
        if customer == "nobody":
            raise ValueError(customer)
        return await orders.customer(4)

    @query_handler("customer")
    async def customer(number: int, orders: Changes) -> str | None:
        return await orders.customer(number)

    services = {Changes: database.implement(Changes)}
    async with Ecotone([add, customer], plugins=[database], services=services).running() as ecotone:
        with pytest.raises(ValueError, match="nobody"):
            await ecotone.command_bus.send("nobody", to="add")
        assert await ecotone.query_bus.ask(4, to="customer") is None
        assert await ecotone.query_bus.ask(5, to="customer") is None

        assert await ecotone.command_bus.send("bob", to="add") == "bob!"
        assert await ecotone.query_bus.ask(4, to="customer") == "bob!"


@EVERY
async def test_without_a_unit_of_work_each_is_a_transaction_of_its_own(database: SqlAlchemy) -> None:
    @untransacted
    @command_handler("add")
    async def add(customer: str, orders: Changes) -> None:
        await orders.add(4, customer)
        raise ValueError(customer)

    orders = database.implement(Changes)
    async with Ecotone([add], plugins=[database], services={Changes: orders}).running() as ecotone:
        with pytest.raises(ValueError, match="bob"):
            await ecotone.command_bus.send("bob", to="add")

    assert await orders.customer(4) == "bob"


@EVERY
async def test_what_the_database_refuses_passes_as_it_is(database: SqlAlchemy) -> None:
    class Mistaken(Protocol):
        @query("SELECT nothing FROM nowhere")
        async def nowhere(self) -> list[int]: ...

    orders = database.implement(Changes)

    with pytest.raises(IntegrityError) as raised:
        await orders.add(1, "again")
    assert raised.value.__notes__ == ["while running Changes.add"]
    with pytest.raises((ProgrammingError, OperationalError)):
        await database.implement(Mistaken).nowhere()
    async with unit(database) as session:
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await orders.add(1, "again")
        assert await orders.add(4, "bob") == 1
    assert await orders.customer(4) == "bob"


@EVERY
async def test_what_the_session_has_not_written_is_written_before_unless_that_is_switched_off(
    database: SqlAlchemy,
) -> None:
    by_hand = SqlAlchemy(
        database.engine, sessionmaker=async_sessionmaker(database.engine, expire_on_commit=False, autoflush=False)
    )

    for given, seen in ((database, "bob"), (by_hand, None)):
        with pytest.raises(ValueError, match="undo"):
            async with unit(given) as session:
                session.add(Order(id=4, customer="bob"))
                assert await given.implement(Changes).customer(4) == seen
                raise ValueError("undo")


@EVERY
async def test_many_at_once(database: SqlAlchemy) -> None:
    orders = database.implement(Changes)

    await asyncio.gather(*[orders.add(number, "many") for number in range(10, 30)])

    assert await asyncio.gather(*[orders.customer(number) for number in range(10, 30)]) == ["many"] * 20


@EMBEDDED
async def test_a_method_is_one_statement(database: SqlAlchemy) -> None:
    statements: list[str] = []

    def listen(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", listen)
    await database.implement(Changes).hand_over(1, "secret")

    assert statements == ["BEGIN", "UPDATE orders SET customer = ? WHERE id = ?"]


# --------------------------------------------------------------------------------------------------- classes of methods


@EMBEDDED
async def test_an_abstract_class_may_have_methods_of_its_own(database: SqlAlchemy) -> None:
    class Readable(Protocol):
        @query("SELECT customer FROM orders WHERE id = :id")
        async def customer(self, id: int) -> str: ...

    class Orders(ABC):
        suffix = "!"

        @query("SELECT count(*) FROM orders")
        @abstractmethod
        async def count(self) -> int:
            """Count them."""

        @abstractmethod
        @query("SELECT id FROM orders ORDER BY id")
        async def ids(self) -> list[int]: ...

        async def shout(self) -> str:
            return f"{await self.count()}{self.suffix}"

    class Both(Readable, Protocol):
        @query("SELECT status FROM orders WHERE id = :id")
        async def status(self, id: int) -> Status: ...

        async def both(self, id: int) -> str:
            """Say both."""
            return f"{await self.customer(id)} {(await self.status(id)).value}"

    orders, both = database.implement(Orders), database.implement(Both)

    assert isinstance(orders, Orders)
    assert await orders.shout() == "3!"
    assert await orders.ids() == [1, 2, 3]
    assert await both.both(2) == "alan paid"
    assert type(orders).__qualname__.endswith("<locals>.Orders")
    assert orders.count.__doc__ == "Count them."


@EMBEDDED
async def test_annotations_may_be_text_and_name_what_is_around(database: SqlAlchemy) -> None:
    @dataclass
    class Row:
        id: int

    class Orders(Protocol):
        @query("SELECT id FROM orders WHERE id = :row.id")
        async def same(self, row: "Row") -> "Row | None": ...

    assert await database.implement(Orders).same(Row(2)) == Row(2)


def mistakes() -> Iterator[tuple[Callable[..., Any], str]]:
    class UnknownParameter(Protocol):
        @query("SELECT id FROM orders WHERE customer = :custmer")
        async def it(self, customer: str) -> list[int]: ...

    yield UnknownParameter, "the SQL has the parameter ':custmer', and the method has none of this name"

    class UnusedParameter(Protocol):
        @query("SELECT id FROM orders WHERE customer = ':customer'")
        async def it(self, customer: str) -> list[int]: ...

    yield UnusedParameter, "the SQL does not use the parameter 'customer'"

    class BadName(Protocol):
        @query("SELECT id FROM orders LIMIT :1")
        async def it(self, limit: int) -> list[int]: ...

    yield BadName, "':1' in the SQL is no parameter"

    class BadField(Protocol):
        @query("SELECT id FROM orders LIMIT :paging.")
        async def it(self, paging: Paging) -> list[int]: ...

    yield BadField, "':paging.' in the SQL is no parameter"

    class UnknownField(Protocol):
        @query("SELECT id FROM orders LIMIT :paging.limt")
        async def it(self, paging: Paging) -> list[int]: ...

    yield UnknownField, "':paging.limt', and Paging has no field 'limt'"

    class FieldOfField(Protocol):
        @query("SELECT id FROM orders LIMIT :search.paging.size")
        async def it(self, search: Search) -> list[int]: ...

    yield FieldOfField, "Paging has no field 'size'"

    class FieldOfOne(Protocol):
        @query("SELECT id FROM orders LIMIT :either.limit")
        async def it(self, either: Paging | Search) -> list[int]: ...

    yield FieldOfOne, "has no field 'limit'"

    class FieldOfDict(Protocol):
        @query("SELECT id FROM orders WHERE id = :order.name")
        async def it(self, order: OrderDict) -> list[int]: ...

    yield FieldOfDict, "OrderDict has no field 'name'"

    class MethodAsField(Protocol):
        @query("SELECT id FROM orders WHERE id = :paging.model_dump")
        async def it(self, paging: Paging) -> list[int]: ...

    yield MethodAsField, "Paging has no field 'model_dump'"

    class WholeObject(Protocol):
        @query("SELECT id FROM orders LIMIT :paging")
        async def it(self, paging: Paging) -> list[int]: ...

    yield WholeObject, "Paging is an object"

    class WholeDict(Protocol):
        @query("SELECT id FROM orders WHERE id = :search.paging")
        async def it(self, search: Search) -> list[int]: ...

    yield WholeDict, "':search.paging', and Paging is an object"

    class ListAsValue(Protocol):
        @query("SELECT id FROM orders WHERE id = :ids")
        async def it(self, ids: list[int]) -> list[int]: ...

    yield ListAsValue, "list[int] is a list"

    class SeveralLists(Protocol):
        @query("SELECT id FROM orders WHERE id IN (:ids, :more)")
        async def it(self, ids: list[int], more: int) -> list[int]: ...

    yield SeveralLists, "list[int] is a list"

    class Arbitrary(Protocol):
        @query("SELECT id FROM orders WHERE id = :id")
        async def it(self, *id: int) -> list[int]: ...

    yield Arbitrary, "*id: int has no place in SQL"

    class SaysNothing(Protocol):
        @query("SELECT id FROM orders")
        async def it(self): ...  # type: ignore[no-untyped-def]

    yield SaysNothing, "it does not say what it returns"

    class ReturnsNothing(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> None: ...

    yield ReturnsNothing, "a query does not return None"

    class ReturnsAnything(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> list[Any]: ...

    yield ReturnsAnything, "it does not say what a row is"

    class ReturnsThisOrThat(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> list[int | OrderRow]: ...

    yield ReturnsThisOrThat, "says different things about a row"

    class ReturnsAnIterator(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> Iterator[int]: ...

    yield ReturnsAnIterator, "a query does not return collections.abc.Iterator[int]"

    class StreamsAnything(Protocol):
        @query("SELECT id FROM orders")
        def it(self) -> AsyncIterator: ...  # type: ignore[type-arg]

    yield StreamsAnything, "a query does not return"

    class Unreadable(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> list[functools.partial]: ...  # type: ignore[type-arg]

    yield Unreadable, "pydantic has no schema"

    class UnknownType(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> "list[Nowhere]": ...  # type: ignore[name-defined]  # noqa: F821

    yield UnknownType, "cannot be evaluated"

    class NoCoroutine(Protocol):
        @query("SELECT id FROM orders")
        def it(self) -> list[int]: ...

    yield NoCoroutine, "it is no coroutine"

    class NoCoroutineEither(Protocol):
        @statement("DELETE FROM orders")
        def it(self) -> None: ...

    yield NoCoroutineEither, "it is no coroutine"

    class CoroutineOfAnIterator(Protocol):
        @query("SELECT id FROM orders")
        async def it(self) -> AsyncIterator[int]: ...

    yield CoroutineOfAnIterator, "it returns an iterator, and is a coroutine"

    class StatementOfRows(Protocol):
        @statement("DELETE FROM orders")
        async def it(self) -> list[int]: ...

    yield StatementOfRows, "a statement does not return list[int]"

    class StatementOfNothing(Protocol):
        @statement("DELETE FROM orders")
        async def it(self): ...  # type: ignore[no-untyped-def]

    yield StatementOfNothing, "it does not say what it returns"

    class Static(Protocol):
        @staticmethod
        @query("SELECT id FROM orders")
        async def it() -> list[int]: ...

    yield Static, "cannot be SQL"


@pytest.mark.parametrize(("interface", "problem"), [*mistakes()], ids=lambda one: getattr(one, "__name__", ""))
def test_a_mistake_is_told_when_the_implementation_is_made(interface: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        unchecked().implement(interface)

    assert problem in raised.value.what
    assert f"{interface.__name__}.it" in raised.value.what
    assert raised.value.hint


def test_all_mistakes_are_told_at_once() -> None:
    class Orders(Protocol):
        @query("SELECT id FROM orders")
        def one(self) -> list[int]: ...

        @statement("DELETE FROM orders WHERE id = :id")
        async def two(self) -> int: ...

        async def three(self) -> int: ...

        @property
        def four(self) -> int: ...

        async def five(self) -> int:
            """Say five."""
            return 5

    with pytest.raises(ConfigurationError) as raised:
        unchecked().implement(Orders)

    assert [problem.what.partition(":")[0].split()[0] for problem in raised.value.problems] == [
        "Orders.one",
        "Orders.two",
        "test_all_mistakes_are_told_at_once.<locals>.Orders.three",
        "test_all_mistakes_are_told_at_once.<locals>.Orders.four",
    ]


def test_what_is_no_class_of_methods_is_refused() -> None:
    class Empty(Protocol):
        pass

    class Demanding(ABC):
        def __init__(self, session: AsyncSession) -> None: ...

        @query("SELECT 1")
        async def it(self) -> int: ...

    class Abstract(ABC):
        @query("SELECT 1")
        async def it(self) -> int: ...

        @abstractmethod
        async def other(self) -> int: ...

    for interface, problem in (
        (Empty, "has no method that is SQL"),
        (Demanding, "cannot be made"),
        (Abstract, "says nothing about its SQL"),
        (lambda: None, "is no class"),
    ):
        with pytest.raises(ConfigurationError, match=problem):
            unchecked().implement(interface)


def test_fields_are_known_from_properties_hints_and_mappings() -> None:
    class Computed:
        number: int

        @property
        def doubled(self) -> int:
            return 2 * self.number

        @property
        def untold(self):  # type: ignore[no-untyped-def]
            return 2 * self.number

        @cached_property
        def cached(self) -> int:
            return 2 * self.number

        constant = 7

    class Root(RootModel[int]):
        pass

    class Orders(Protocol):
        @query("SELECT :it.number + :it.doubled + :it.untold + :it.cached + :it.constant")
        async def of_class(self, it: Computed) -> int: ...

        @query("SELECT :it.anything.at.all")
        async def of_anything(self, it: Any) -> int: ...

        @query("SELECT :it.whatever")
        async def of_unknown(self, it) -> int: ...  # type: ignore[no-untyped-def]

        @query("SELECT 1")
        async def of_root(self) -> Root: ...

    assert unchecked().implement(Orders)


def test_the_sql_is_shown_in_one_line() -> None:
    assert SqlText("SELECT 1\n   FROM orders", "sqlite").sql == "SELECT 1 FROM orders"


def test_a_colon_may_be_no_parameter() -> None:
    sql = SqlText(r"SELECT data\:name, '10:30', x[1:2], y::int FROM t WHERE id = :id", "postgresql")

    assert [parameter.name for parameter in sql.parameters] == ["id"]
