"""The programs that people write with aggregates: each is a scenario from the user's side, on every store."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Header
from fastapi.testclient import TestClient
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ecotone_fastapi import (
    AggregateNotFoundError,
    CommandBusDep,
    ConcurrencyError,
    Ecotone,
    EventBus,
    Fetched,
    QueryBusDep,
    Repository,
    TargetVersion,
    aggregate,
    asynchronous,
    command_handler,
    event_handler,
    identified,
    message_name,
    query_handler,
    record,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import Flow, flow_test

DATABASES = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.postgresql),
    pytest.param("mariadb", marks=pytest.mark.mariadb),
]


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["memory", *DATABASES])
def url_or_none(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


class Base(DeclarativeBase):
    pass


async def create_tables(database: SqlAlchemy) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


# --------------------------------------------------------------------------------------------- a model is an aggregate


@dataclass(frozen=True)
class AddProduct:
    name: str
    price: int


@dataclass(frozen=True)
class ChangePrice:
    price: int


@dataclass(frozen=True)
class ProductWasAdded:
    product_id: int


@aggregate(identifier="id")
class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    price: Mapped[int]

    @classmethod
    @command_handler
    def add(cls, command: AddProduct) -> "Product":
        product = cls(name=command.name, price=command.price)
        record(product, lambda: ProductWasAdded(product.id))
        return product

    @command_handler
    def change_price(self, command: ChangePrice) -> None:
        self.price = command.price

    @query_handler("product.price")
    def get_price(self) -> int:
        return self.price


class Catalogue:
    def __init__(self, products: Repository[Product]) -> None:
        self.products = products

    @command_handler("catalogue.rename")
    async def rename(self, command: dict[str, Any]) -> str | None:
        product = await self.products.find(command["id"])
        if product is None:
            return None
        product.name = command["name"]
        await self.products.save(product)
        return product.name

    @query_handler("catalogue.name")
    async def get_name(self, product_id: int) -> str:
        return (await self.products.get(product_id)).name

    @query_handler("catalogue.list")
    async def list_names(self, session: AsyncSession) -> list[str]:
        return list(await session.scalars(select(Product.name).order_by(Product.id)))


async def test_a_row_of_an_orm_is_an_aggregate(url: str) -> None:
    database = SqlAlchemy(url)
    added: list[int] = []

    @event_handler
    async def note(event: ProductWasAdded) -> None:
        added.append(event.product_id)

    await create_tables(database)
    await database.migrate()
    async with flow_test([Product, Catalogue, note], plugins=[database]) as flow:
        product_id = await flow.send(AddProduct("milk", 100))
        assert isinstance(product_id, int)
        assert added == [product_id]

        await flow.send(ChangePrice(200), headers={"aggregate.id": product_id})
        assert await flow.ask(to="product.price", headers={"aggregate.id": product_id}) == 200

        assert await flow.ask(product_id, to="catalogue.name") == "milk"
        assert await flow.send({"id": product_id + 1, "name": "nothing"}, to="catalogue.rename") is None
        assert await flow.send({"id": product_id, "name": "oat milk"}, to="catalogue.rename") == "oat milk"
        assert await flow.ask(to="catalogue.list") == ["oat milk"]
        with pytest.raises(AggregateNotFoundError):
            await flow.ask(product_id + 1, to="catalogue.name")


# ------------------------------------------------------------------------------------------- promises, on every store


Start = Callable[..., AbstractAsyncContextManager[Flow]]


@pytest.fixture
def start(url_or_none: str | None) -> Start:
    """Starts an application on one of the stores, with its channel in the same place."""
    database = None if url_or_none is None else SqlAlchemy(url_or_none, create_schema=True)

    def flow(*handlers: Any, channels: tuple[str, ...] = ()) -> AbstractAsyncContextManager[Flow]:
        if database is None:
            return flow_test(handlers)
        return flow_test(handlers, plugins=[database], channels=[database.channel(name) for name in channels] or None)

    return flow


@dataclass(frozen=True)
class Transfer:
    account_id: str
    to: str
    amount: int


@dataclass(frozen=True)
class Deposit:
    account_id: str
    amount: int
    version: Annotated[int | None, TargetVersion()] = None


@dataclass(frozen=True)
class MoneyWasMoved:
    account_id: str
    balance: int


@message_name("account")
@aggregate(identifier="account_id", version="version")
@dataclass
class Account:
    account_id: str
    balance: int = 0
    version: int = 0

    @classmethod
    @command_handler
    def open(cls, command: Deposit) -> "Account":
        account = cls(command.account_id)
        account.move(command.amount)
        return account

    @command_handler
    def deposit(self, command: Deposit) -> int:
        self.move(command.amount)
        return self.balance

    @command_handler
    async def transfer(self, command: Transfer, accounts: Repository["Account"]) -> None:
        other = await accounts.get(command.to)
        self.move(-command.amount)
        other.move(command.amount)
        await accounts.save(other)

    @query_handler("account.show")
    def show(self, account_id: str) -> tuple[int, int]:
        return self.balance, self.version

    @identified(missing="ignore")
    @query_handler("account.look")
    def look(self, account_id: str) -> int:
        return self.balance

    @identified(missing="ignore")
    @event_handler("account.bonus")
    def take_bonus(self, account_id: str | None) -> None:
        self.balance += 1

    def move(self, amount: int) -> None:
        self.balance += amount
        record(self, MoneyWasMoved(self.account_id, self.balance))


async def test_events_come_after_everything_is_saved_in_the_order_of_recording_and_in_one_transaction(
    start: Start,
) -> None:
    heard: list[tuple[MoneyWasMoved, int, int]] = []

    @event_handler
    async def hear(event: MoneyWasMoved, accounts: Repository[Account]) -> None:
        ada, alan = await accounts.find("ada"), await accounts.find("alan")
        heard.append((event, ada.balance if ada else 0, alan.balance if alan else 0))
        if event.balance == 13:
            raise LookupError("bad luck")

    async with start(Account, hear) as flow:
        await flow.send(Deposit("ada", 10))
        await flow.send(Deposit("alan", 0))
        heard.clear()
        await flow.send(Transfer("ada", "alan", 3))
        assert heard == [(MoneyWasMoved("alan", 3), 7, 3), (MoneyWasMoved("ada", 7), 7, 3)]

        with pytest.raises(LookupError):
            await flow.send(Deposit("alan", 10))
        assert await flow.ask("alan", to="account.show") == (3, 2)


async def test_a_factory_answers_the_identifier_and_a_method_what_it_likes_by_one_command(start: Start) -> None:
    async with start(Account) as flow:
        assert await flow.send(Deposit("ada", 10)) == "ada"
        assert await flow.send(Deposit("ada", 5)) == 15
        assert await flow.ask("ada", to="account.show") == (15, 2)


async def test_the_header_is_stronger_than_the_payload(start: Start) -> None:
    async with start(Account) as flow:
        await flow.send(Deposit("ada", 10))
        await flow.send(Deposit("alan", 20))

        assert await flow.send(Deposit("ada", 1), headers={"aggregate.id": "alan"}) == 21


async def test_what_is_missing_is_ignored_where_that_was_said_but_never_for_a_query_or_without_identifier(
    start: Start,
) -> None:
    async with start(Account) as flow:
        await flow.publish("nobody", to="account.bonus")
        with pytest.raises(AggregateNotFoundError):
            await flow.ask("nobody", to="account.look")
        with pytest.raises(AggregateNotFoundError):
            await flow.publish(None, to="account.bonus")


async def test_an_empty_identifier_is_one(start: Start) -> None:
    async with start(Account) as flow:
        assert await flow.send(Deposit("", 10)) == ""
        assert await flow.ask("", to="account.look") == 10


@pytest.mark.parametrize("expected", [1, 3])
async def test_an_expected_version_is_neither_older_nor_newer_than_the_stored_one(start: Start, expected: int) -> None:
    async with start(Account) as flow:
        await flow.send(Deposit("ada", 10))
        await flow.send(Deposit("ada", 10, version=1))
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(Deposit("ada", 10, version=expected))

        assert (caught.value.expected, caught.value.actual) == (expected, 2)
        assert await flow.send(Deposit("ada", 10, version=2)) == 30


async def test_commands_at_the_same_time_lose_nothing(start: Start) -> None:
    async with start(Account) as flow:
        await flow.send(Deposit("ada", 0))
        results = await asyncio.gather(*(flow.send(Deposit("ada", 1)) for _ in range(4)), return_exceptions=True)

        done = [one for one in results if isinstance(one, int)]
        assert all(isinstance(one, int | ConcurrencyError) for one in results)
        assert sorted(done) == list(range(1, len(done) + 1))
        assert await flow.ask("ada", to="account.look") == len(done)


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str
    customer: str


@aggregate(identifier="name")
@dataclass
class Customer:
    name: str
    orders: list[str] = field(default_factory=list)

    @staticmethod
    @command_handler("customer.register")
    def register(name: str) -> "Customer":
        return Customer(name)

    @asynchronous("customers")
    @identified(by={"name": "customer"})
    @event_handler(id="customer.note_order")
    def note_order(self, event: OrderWasPlaced) -> None:
        self.orders.append(event.order_id)

    @query_handler("customer.orders")
    def get_orders(self, name: str) -> list[str]:
        return self.orders


async def test_an_aggregate_hears_of_events_later(start: Start) -> None:
    @command_handler("order.place")
    async def place(
        order_id: str, customer: Annotated[Customer, Fetched(by=lambda _: "ada")], events: EventBus
    ) -> None:
        await events.publish(OrderWasPlaced(order_id, customer.name))

    async with start(Customer, place, channels=("customers",)) as flow:
        await flow.send("ada", to="customer.register")
        await flow.send("order-1", to="order.place")
        if flow.ecotone.assembly.channels:
            assert await flow.ask("ada", to="customer.orders") == []
            await flow.run("customers")

        assert await flow.ask("ada", to="customer.orders") == ["order-1"]


# ------------------------------------------------------------------------------------------------------------ over HTTP


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    product: str


@dataclass(frozen=True)
class ChangeProduct:
    product: str


@message_name("order")
@aggregate(identifier="order_id", version="version")
@dataclass
class Order:
    order_id: str
    product: str
    version: int = 0

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> "Order":
        return cls(command.order_id, command.product)

    @command_handler
    def change_product(self, command: ChangeProduct) -> None:
        self.product = command.product

    @query_handler("order.show")
    def show(self, order_id: str) -> dict[str, Any]:
        return {"order_id": self.order_id, "product": self.product, "version": self.version}

    @command_handler("order.break")
    def do_harm(self, order_id: str) -> None:
        self.order_id = "another"


def an_application(database: SqlAlchemy) -> FastAPI:
    app = FastAPI()
    Ecotone([Order, Product], plugins=[database]).install(app)

    @app.post("/orders", status_code=201)
    async def post_order(command: PlaceOrder, commands: CommandBusDep) -> str:
        order_id: str = await commands.send(command)
        return order_id

    @app.put("/orders/{order_id}", status_code=204)
    async def put_order(
        order_id: str, command: ChangeProduct, commands: CommandBusDep, if_match: Annotated[int | None, Header()] = None
    ) -> None:
        await commands.send(command, headers={"aggregate.id": order_id, "aggregate.version": if_match})

    @app.get("/orders/{order_id}")
    async def get_order(order_id: str, queries: QueryBusDep) -> dict[str, Any]:
        order: dict[str, Any] = await queries.ask(order_id, to="order.show")
        return order

    @app.post("/orders/{order_id}/break")
    async def break_order(order_id: str, commands: CommandBusDep) -> None:
        await commands.send(order_id, to="order.break")

    @app.get("/products/{product_id}")
    async def get_price(product_id: str, queries: QueryBusDep) -> int:
        price: int = await queries.ask(to="product.price", headers={"aggregate.id": product_id})
        return price

    return app


def test_orders_are_aggregates_over_http(url: str) -> None:
    database = SqlAlchemy(url, create_schema=True)
    with TestClient(an_application(database), raise_server_exceptions=False) as client:
        placed = client.post("/orders", json={"order_id": "order-1", "product": "milk"})
        assert (placed.status_code, placed.json()) == (201, "order-1")
        assert client.get("/orders/order-1").json() == {"order_id": "order-1", "product": "milk", "version": 1}

        assert client.put("/orders/order-1", json={"product": "bread"}, headers={"If-Match": "1"}).status_code == 204
        stale = client.put("/orders/order-1", json={"product": "salt"}, headers={"If-Match": "1"})
        assert stale.status_code == 409
        assert stale.json() == {"detail": "the Order 'order-1' is not as its sender knows it"}
        assert client.get("/orders/order-1").json() == {"order_id": "order-1", "product": "bread", "version": 2}

        again = client.post("/orders", json={"order_id": "order-1", "product": "milk"})
        assert again.status_code == 409
        missing = client.get("/orders/order-2")
        assert (missing.status_code, missing.json()) == (404, {"detail": "there is no Order 'order-2'"})
        assert client.put("/orders/order-2", json={"product": "bread"}).status_code == 404
        assert client.get("/products/seven").status_code == 422
        assert client.post("/orders/order-1/break").status_code == 500


def test_rows_are_aggregates_over_http(url: str) -> None:
    tables = SqlAlchemy(url)

    async def prepare() -> None:
        await create_tables(tables)
        await tables.engine.dispose()

    asyncio.run(prepare())
    app = an_application(SqlAlchemy(url, create_schema=True))

    @app.post("/products", status_code=201)
    async def post_product(command: AddProduct, commands: CommandBusDep) -> int:
        product_id: int = await commands.send(command)
        return product_id

    with TestClient(app) as client:
        product_id = client.post("/products", json={"name": "milk", "price": 100}).json()

        assert client.get(f"/products/{product_id}").json() == 100
        assert client.get(f"/products/{product_id + 1}").status_code == 404
