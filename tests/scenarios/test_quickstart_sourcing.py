"""The programs that people write with event sourcing, on every store: each is a scenario from the user's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest

from ecotone_fastapi import (
    AggregateNotFoundError,
    CommandBus,
    ConcurrencyError,
    EventStore,
    Repository,
    Snapshots,
    applies,
    command_handler,
    event_handler,
    event_sourced,
    message_name,
    query_handler,
    record,
    retried,
    revision,
    upcaster,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.modelling.snapshots import SnapshotStore
from ecotone_fastapi.testing import Flow, flow_test

Start = Callable[..., AbstractAsyncContextManager[Flow]]


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def database_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def start(database_url: str | None) -> Start:
    """Starts an application, on the same database each time."""

    def flow(*handlers: Any) -> AbstractAsyncContextManager[Flow]:
        plugins = [] if database_url is None else [SqlAlchemy(database_url, create_schema=True)]
        return flow_test(handlers, plugins=plugins)

    return flow


# ------------------------------------------------------------------- a product that is loaded and saved by a repository


@message_name("product.created")
@dataclass(frozen=True)
class ProductWasCreated:
    product_id: int
    name: str
    price: int


@message_name("product.price_changed")
@dataclass(frozen=True)
class PriceWasChanged:
    price: int


@event_sourced(identifier="product_id", stream="product", version="version")
@dataclass
class Product:
    product_id: int
    name: str = ""
    price: int = 0
    version: int = 0

    @classmethod
    def create(cls, product_id: int, name: str, price: int) -> Product:
        product = cls(product_id)
        record(product, ProductWasCreated(product_id, name, price))
        return product

    def change_price(self, price: int) -> None:
        if price != self.price:
            record(self, PriceWasChanged(price))

    @applies
    def created(self, event: ProductWasCreated) -> None:
        self.product_id, self.name, self.price = event.product_id, event.name, event.price

    @applies
    def price_changed(self, event: PriceWasChanged) -> None:
        self.price = event.price


class ProductService:
    def __init__(self, products: Repository[Product]) -> None:
        self._products = products

    @command_handler("product.create")
    async def create(self, name: str) -> None:
        await self._products.save(Product.create(1, name, 100))

    @command_handler("product.change_price")
    async def change(self, price: int) -> int:
        product = await self._products.get(1)
        product.change_price(price)
        await self._products.save(product)
        return product.version

    @query_handler("product.price")
    async def price(self, product_id: int) -> int | None:
        product = await self._products.find(product_id)
        return None if product is None else product.price


async def test_a_product_is_created_loaded_changed_and_saved_again(start: Start) -> None:
    async with start(ProductService) as flow:
        await flow.send("Milk", to="product.create")
        assert await flow.send(120, to="product.change_price") == 2
        assert await flow.send(120, to="product.change_price") == 2
        assert await flow.send(90, to="product.change_price") == 3

        assert await flow.ask(1, to="product.price") == 90
        assert await flow.ask(2, to="product.price") is None
        assert await flow.stream("product-1") == [
            ProductWasCreated(1, "Milk", 100),
            PriceWasChanged(120),
            PriceWasChanged(90),
        ]
        assert flow.published == await flow.stream("product-1")
        assert await flow.state(Product, 1) == Product(1, "Milk", 90, 3)
        with pytest.raises(ConcurrencyError):
            await flow.send("Milk", to="product.create")


# --------------------------------------------------------------------- a wallet that is made or changed by one command


@message_name("wallet.added")
@dataclass(frozen=True)
class MoneyWasAdded:
    wallet_id: str
    amount: int


@message_name("wallet.taken")
@dataclass(frozen=True)
class MoneyWasTaken:
    wallet_id: str
    amount: int


@dataclass(frozen=True)
class AddMoney:
    wallet_id: str
    amount: int


@dataclass(frozen=True)
class TakeMoney:
    wallet_id: str
    amount: int


@event_sourced(identifier="wallet_id", stream="wallet", snapshots=Snapshots(every=3))
@dataclass
class Wallet:
    wallet_id: str
    balance: int = 0

    @classmethod
    @command_handler
    def open_and_add(cls, command: AddMoney) -> MoneyWasAdded:
        return MoneyWasAdded(command.wallet_id, command.amount)

    @retried(times=20, on=ConcurrencyError)
    @command_handler
    def add(self, command: AddMoney) -> MoneyWasAdded:
        return MoneyWasAdded(self.wallet_id, command.amount)

    @classmethod
    @command_handler
    def open_and_take(cls, command: TakeMoney) -> list[MoneyWasAdded | MoneyWasTaken]:
        return [MoneyWasAdded(command.wallet_id, 0), MoneyWasTaken(command.wallet_id, command.amount)]

    @command_handler
    def take(self, command: TakeMoney) -> MoneyWasTaken | None:
        return MoneyWasTaken(self.wallet_id, command.amount) if command.amount else None

    @query_handler("wallet.balance")
    def get_balance(self) -> int:
        return self.balance

    @applies
    def changed(self, event: MoneyWasAdded | MoneyWasTaken) -> None:
        self.wallet_id = event.wallet_id
        self.balance += event.amount if isinstance(event, MoneyWasAdded) else -event.amount


class Notifier:
    """Is told of each change when it is stored, and sees it."""

    def __init__(self) -> None:
        self.balances: list[int] = []

    @event_handler
    async def notify(self, event: MoneyWasAdded | MoneyWasTaken, wallets: Repository[Wallet]) -> None:
        self.balances.append((await wallets.get(event.wallet_id)).balance)


async def test_a_wallet_is_opened_by_its_first_command_and_changed_by_the_next(start: Start) -> None:
    notifier = Notifier()
    async with start(Wallet, notifier) as flow:
        assert await flow.send(AddMoney("w", 100)) == "w"
        assert await flow.send(TakeMoney("w", 10)) is None
        assert await flow.send(AddMoney("w", 50)) is None
        assert await flow.send(TakeMoney("w", 0)) is None
        assert await flow.send(TakeMoney("v", 5)) == "v"

        assert notifier.balances == [100, 90, 140, -5, -5]
        assert [await flow.ask(wallet, to="wallet.balance") for wallet in ("w", "v")] == [140, -5]
        with pytest.raises(AggregateNotFoundError):
            await flow.ask("u", to="wallet.balance")


async def test_a_listener_that_fails_takes_all_of_it_back(start: Start) -> None:
    @event_handler
    def refuse(event: MoneyWasTaken) -> None:
        raise ValueError("no")

    async with start(Wallet, refuse) as flow:
        for amount in (1, 2):
            await flow.send(AddMoney("w", amount))
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await flow.send(TakeMoney("w", 1))
        with pytest.raises(ValueError, match="no"):
            await flow.send(TakeMoney("v", 1))

        assert await flow.stream("wallet-w") == [MoneyWasAdded("w", 1), MoneyWasAdded("w", 2)]
        assert await flow.stream("wallet-v") == []
        assert await flow.ask("w", to="wallet.balance") == 3


async def test_a_command_that_fails_inside_another_one_leaves_nothing(start: Start) -> None:
    @event_handler
    def refuse(event: MoneyWasTaken) -> None:
        raise ValueError("no")

    @command_handler("try")
    async def attempt(wallet_id: str, commands: CommandBus) -> None:
        await commands.send(AddMoney(wallet_id, 3))
        for wallet in (wallet_id, "another"):
            with pytest.raises(ValueError, match="no"):
                await commands.send(TakeMoney(wallet, 1))
        await commands.send(AddMoney(wallet_id, 4))

    async with start(Wallet, refuse, attempt) as flow:
        for amount in (1, 2):
            await flow.send(AddMoney("w", amount))
        await flow.send("w", to="try")

        assert await flow.stream("wallet-w") == [MoneyWasAdded("w", amount) for amount in (1, 2, 3, 4)]
        assert await flow.stream("wallet-another") == []
        assert (await flow.state(Wallet, "w")).balance == 10


async def test_several_at_once_all_get_their_turn(start: Start) -> None:
    async with start(Wallet) as flow:
        await flow.send(AddMoney("w", 0))

        await asyncio.gather(*(flow.send(AddMoney("w", amount)) for amount in range(1, 9)))

        assert await flow.ask("w", to="wallet.balance") == 36
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]
        assert [event.version for event in await store.load("wallet-w")] == list(range(1, 10))


# ------------------------------------------------------------------------------ snapshots that a consumer takes later


@event_sourced(identifier="wallet_id", stream="purse", snapshots=Snapshots(every=2, background="snapshots"))
@dataclass
class Purse(Wallet): ...


async def test_a_consumer_takes_snapshots_beside_the_commands(database_url: str | None) -> None:
    database = None if database_url is None else SqlAlchemy(database_url, create_schema=True)
    channel: Channel = MemoryChannel("snapshots") if database is None else database.channel("snapshots")
    async with flow_test([Purse], channels=[channel], plugins=[] if database is None else [database]) as flow:
        for amount in (1, 2, 3, 4, 5):
            await flow.send(AddMoney("w", amount))

        assert await flow.run("snapshots") == 2
        snapshots: SnapshotStore = flow.ecotone.assembly.services[SnapshotStore]  # type: ignore[assignment]
        snapshot = await snapshots.load("purse-w")
        assert snapshot is not None
        assert (snapshot.version, snapshot.body) == (5, b'{"wallet_id":"w","balance":15}')
        await flow.send(AddMoney("w", 6))
        assert await flow.ask("w", to="wallet.balance") == 21


# ------------------------------------------------------------------------------------ a program that has been rewritten


async def test_events_outlive_the_classes_that_they_were_written_by(start: Start, database_url: str | None) -> None:
    if database_url is None:
        pytest.skip("what is in memory does not outlive its program")
    async with start(Wallet) as flow:
        for amount in (1, 2, 3, 4):
            await flow.send(AddMoney("w", amount))

    @message_name("money.moved", aliases=["wallet.taken"])
    @revision(2)
    @dataclass(frozen=True)
    class MoneyWasMoved:
        account: str
        amount: int
        currency: str

    @upcaster("wallet.added", revision=1, to="money.moved")
    def from_added(payload: dict[str, Any]) -> dict[str, Any]:
        return {"account": payload["wallet_id"], "amount": payload["amount"], "currency": "EUR"}

    @upcaster("wallet.taken", revision=1)
    def from_taken(payload: dict[str, Any]) -> dict[str, Any]:
        return {"account": payload["wallet_id"], "amount": -payload["amount"], "currency": "EUR"}

    @event_sourced(identifier="account", stream="wallet", snapshots=2)
    @dataclass
    class Account:
        account: str
        moves: list[int] = field(default_factory=list)

        @command_handler("account.move")
        def move(self, amount: int) -> MoneyWasMoved:
            return MoneyWasMoved(self.account, amount, "PLN")

        @query_handler("account.moves")
        def get_moves(self) -> list[int]:
            return self.moves

        @applies
        def moved(self, event: MoneyWasMoved) -> None:
            self.account = event.account
            self.moves.append(event.amount)

    async with start(Account, from_added, from_taken) as flow:
        assert await flow.ask("w", to="account.moves") == [1, 2, 3, 4]
        await flow.send(-5, to="account.move", headers={"aggregate.id": "w"})
        await flow.send(-6, to="account.move", headers={"aggregate.id": "w"})

        assert await flow.ask("w", to="account.moves") == [1, 2, 3, 4, -5, -6]
        assert (await flow.stream("wallet-w"))[3:5] == [MoneyWasMoved("w", 4, "EUR"), MoneyWasMoved("w", -5, "PLN")]
