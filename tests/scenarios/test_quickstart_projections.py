"""Programs of people who project: each is a scenario from the user's side, in memory and on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ecotone_fastapi import (
    CommandBus,
    Emitter,
    EventSourcing,
    Partition,
    ProjectionState,
    aggregate,
    applies,
    command_handler,
    event_handler,
    event_sourced,
    message_name,
    projection,
    query_handler,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import Flow, flow_test


@asynccontextmanager
async def started(handlers: list[Any], url: str | None = None, **options: Any) -> AsyncIterator[Flow]:
    plugins = options.pop("plugins", [])
    if url is not None:
        plugins = [SqlAlchemy(url, create_schema=True), *plugins]
    async with flow_test(handlers, plugins=plugins, **options) as flow:
        yield flow


# ------------------------------------------------------------------------------------ Q13: an event-sourced application


@message_name("product.registered")
@dataclass(frozen=True)
class ProductWasRegistered:
    product_id: str
    price: int


@message_name("product.price_changed")
@dataclass(frozen=True)
class PriceWasChanged:
    product_id: str
    price: int


@event_sourced(identifier="product_id", stream="product")
@dataclass
class Product:
    product_id: str

    @classmethod
    @command_handler("product.register")
    def register(cls, command: ProductWasRegistered) -> ProductWasRegistered:
        return command

    @command_handler("product.change_price")
    def change(self, command: PriceWasChanged) -> PriceWasChanged:
        return command

    @applies
    def registered(self, event: ProductWasRegistered) -> None:
        self.product_id = event.product_id

    @applies
    def changed(self, event: PriceWasChanged) -> None: ...


@projection("price_changes", of=Product, mode="synchronous")
class PriceChanges:
    """Price and change since the one before."""

    @event_handler
    async def registered(
        self, event: ProductWasRegistered, prices: Annotated[dict[str, list[list[int]]], ProjectionState({})]
    ) -> None:
        prices[event.product_id] = [[event.price, 0]]

    @event_handler
    async def changed(
        self, event: PriceWasChanged, prices: Annotated[dict[str, list[list[int]]], ProjectionState({})]
    ) -> None:
        before = prices[event.product_id][-1][0]
        prices[event.product_id].append([event.price, event.price - before])

    @query_handler("price_changes")
    async def of(
        self, product_id: str, prices: Annotated[dict[str, list[list[int]]], ProjectionState({})]
    ) -> list[list[int]]:
        return prices[product_id]


async def test_q13_the_changes_of_a_price_are_there_with_the_command() -> None:
    async with started([Product, PriceChanges]) as flow:
        assert await flow.ecotone.projections.init("price_changes") is False  # the start has done that
        await flow.send(ProductWasRegistered("milk", 100), to="product.register")
        await flow.send(PriceWasChanged("milk", 120), to="product.change_price")

        assert await flow.ask("milk", to="price_changes") == [[100, 0], [120, 20]]


# ------------------------------------------------------------------------------------------ Q14: a counter as the state


@message_name("ticket.registered")
@dataclass(frozen=True)
class TicketWasRegistered:
    ticket_id: str


@message_name("tickets.counted")
@dataclass(frozen=True)
class TicketsWereCounted:
    count: int


@event_sourced(identifier="ticket_id", stream="ticket")
@dataclass
class Ticket:
    ticket_id: str

    @classmethod
    @command_handler
    def register(cls, command: TicketWasRegistered) -> TicketWasRegistered:
        return command

    @applies
    def registered(self, event: TicketWasRegistered) -> None:
        self.ticket_id = event.ticket_id


@projection("ticket_counter", of=Ticket)
class TicketCounter:
    @event_handler
    async def count(
        self, event: TicketWasRegistered, emitter: Emitter, count: Annotated[int, ProjectionState(0)]
    ) -> int:
        await emitter.emit(TicketsWereCounted(count + 1))
        return count + 1


@pytest.mark.postgresql
async def test_q14_tickets_are_counted_and_go_on_to_be_when_the_program_runs_again(postgresql_url: str) -> None:
    told: list[int] = []

    @event_handler
    async def tell(event: TicketsWereCounted) -> None:
        told.append(event.count)

    for number in (1, 2):
        async with started([Ticket, TicketCounter, tell], postgresql_url) as flow:
            await flow.send(TicketWasRegistered(f"ticket-{number}"))
            await flow.run("ticket_counter")
            assert await flow.ecotone.projections.state("ticket_counter") == number

    assert told == [1, 2]


# ------------------------------------------------------------------------------------------------- Q15: emitted events


@message_name("wallet.money_moved")
@dataclass(frozen=True)
class MoneyWasMoved:
    wallet_id: str
    amount: int


@message_name("wallet.balance_changed")
@dataclass(frozen=True)
class WalletBalanceWasChanged:
    wallet_id: str
    balance: int


@event_sourced(identifier="wallet_id", stream="wallet")
@dataclass
class Wallet:
    wallet_id: str

    @classmethod
    @command_handler
    def first(cls, command: MoneyWasMoved) -> MoneyWasMoved:
        return command

    @command_handler
    def again(self, command: MoneyWasMoved) -> MoneyWasMoved:
        return command

    @applies
    def moved(self, event: MoneyWasMoved) -> None:
        self.wallet_id = event.wallet_id


@projection("wallet_balance", of=Wallet, partitioned=True)
class WalletBalance:
    @event_handler
    async def moved(self, event: MoneyWasMoved, emitter: Emitter, balance: Annotated[int, ProjectionState(0)]) -> int:
        await emitter.emit(WalletBalanceWasChanged(event.wallet_id, balance + event.amount))
        return balance + event.amount


@pytest.mark.postgresql
async def test_q15_a_projection_tells_what_it_has_found(postgresql_url: str) -> None:
    told: list[int] = []

    @event_handler
    async def notify(event: WalletBalanceWasChanged) -> None:
        told.append(event.balance)

    async with started([Wallet, WalletBalance, notify], postgresql_url) as flow:
        for amount in (100, -10, 50):
            await flow.send(MoneyWasMoved("1", amount))
        await flow.run("wallet_balance")

        assert told == [100, 90, 140]


# ------------------------------------------------------------------------------------------------------ Q16: partitions


@projection("wallet_statistics", of=Wallet, partitioned=True)
class WalletStatistics:
    @event_handler
    async def moved(
        self, event: MoneyWasMoved, counts: Annotated[dict[str, int], ProjectionState({"in": 0, "out": 0})]
    ) -> None:
        counts["in" if event.amount > 0 else "out"] += 1


@pytest.mark.postgresql
async def test_q16_each_wallet_is_a_partition_and_is_backfilled(postgresql_url: str) -> None:
    known = [EventSourcing(events=[WalletBalanceWasChanged])]
    async with started([Wallet, WalletBalance, WalletStatistics], postgresql_url, plugins=known) as flow:
        projections = flow.ecotone.projections
        for name in projections.names:
            await projections.delete(name)
            assert await projections.init(name)
        for wallet, amount in (("1", 1000), ("2", 500), ("1", -100), ("2", -200), ("1", 50)):
            await flow.send(MoneyWasMoved(wallet, amount))

        for name in projections.names:
            assert await projections.backfill(name)

        assert [await projections.state("wallet_balance", f"wallet-{wallet}") for wallet in "12"] == [950, 300]
        assert await projections.state("wallet_statistics", "wallet-1") == {"in": 2, "out": 1}


# ----------------------------------------------------------------- Q17 and Q18: customers, in a table and as aggregates


@message_name("customer.registered")
@dataclass(frozen=True)
class CustomerWasRegistered:
    customer_id: str
    name: str


@message_name("customer.renamed")
@dataclass(frozen=True)
class CustomerWasRenamed:
    customer_id: str
    name: str


@message_name("customer.deactivated")
@dataclass(frozen=True)
class CustomerWasDeactivated:
    customer_id: str


CustomerEvent = CustomerWasRegistered | CustomerWasRenamed | CustomerWasDeactivated


@event_sourced(identifier="customer_id", stream="customer")
@dataclass
class Customer:
    customer_id: str

    @classmethod
    @command_handler
    def register(cls, command: CustomerWasRegistered) -> CustomerWasRegistered:
        return command

    @command_handler
    def rename(self, command: CustomerWasRenamed) -> CustomerWasRenamed:
        return command

    @command_handler
    def deactivate(self, command: CustomerWasDeactivated) -> CustomerWasDeactivated:
        return command

    @applies
    def registered(self, event: CustomerWasRegistered) -> None:
        self.customer_id = event.customer_id

    @applies
    def changed(self, event: CustomerWasRenamed | CustomerWasDeactivated) -> None: ...


@projection("customers", of=Customer, mode="synchronous")
class Customers:
    @projection.init
    async def create(self, session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE customer (id VARCHAR(20), name VARCHAR(80), active INTEGER)"))

    @projection.delete
    async def drop(self, session: AsyncSession) -> None:
        await session.execute(text("DROP TABLE customer"))

    @event_handler
    async def registered(self, event: CustomerWasRegistered, session: AsyncSession) -> None:
        row = {"id": event.customer_id, "name": event.name}
        await session.execute(text("INSERT INTO customer VALUES (:id, :name, 1)"), row)

    @event_handler
    async def renamed(self, event: CustomerWasRenamed, session: AsyncSession) -> None:
        row = {"id": event.customer_id, "name": event.name}
        await session.execute(text("UPDATE customer SET name = :name WHERE id = :id"), row)

    @event_handler
    async def deactivated(self, event: CustomerWasDeactivated, session: AsyncSession) -> None:
        await session.execute(text("UPDATE customer SET active = 0 WHERE id = :id"), {"id": event.customer_id})

    @query_handler("customers.active")
    async def active(self, session: AsyncSession) -> list[str]:
        rows = await session.execute(text("SELECT name FROM customer WHERE active = 1 ORDER BY name"))
        return list(rows.scalars())


async def tell_the_story(flow: Flow) -> None:
    await flow.send(CustomerWasRegistered("a", "Alice"))
    await flow.send(CustomerWasRegistered("b", "Bob"))
    await flow.send(CustomerWasRenamed("a", "Alice Cooper"))
    await flow.send(CustomerWasDeactivated("b"))


@pytest.mark.postgresql
async def test_q17_active_customers_are_in_a_table_that_can_be_made_anew(postgresql_url: str) -> None:
    async with started([Customer, Customers], postgresql_url) as flow:
        projections = flow.ecotone.projections
        await projections.delete("customers")
        assert await projections.init("customers")
        await tell_the_story(flow)
        assert await flow.ask(to="customers.active") == ["Alice Cooper"]

        await projections.delete("customers")
        assert await projections.init("customers")
        assert await flow.ask(to="customers.active") == []

        assert await projections.backfill("customers")
        assert await flow.ask(to="customers.active") == ["Alice Cooper"]
        await projections.delete("customers")


class Base(DeclarativeBase): ...


@dataclass(frozen=True)
class ShowCustomer:
    id: str
    name: str


@dataclass(frozen=True)
class HideCustomer:
    id: str


@aggregate(identifier="id")
class CustomerRow(Base):
    __tablename__ = "customer_row"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    active: Mapped[bool]

    @classmethod
    @command_handler
    def show(cls, command: ShowCustomer) -> "CustomerRow":
        return cls(id=command.id, name=command.name, active=True)

    @command_handler
    def show_again(self, command: ShowCustomer) -> None:
        self.name = command.name

    @command_handler
    def hide(self, command: HideCustomer) -> None:
        self.active = False


@projection("customer_rows", of=Customer)
class CustomerRows:
    @projection.init
    async def create(self, session: AsyncSession) -> None:
        await (await session.connection()).run_sync(Base.metadata.create_all)

    @projection.delete
    async def drop(self, session: AsyncSession) -> None:
        await (await session.connection()).run_sync(Base.metadata.drop_all)

    @event_handler
    async def shown(self, event: CustomerWasRegistered | CustomerWasRenamed, commands: CommandBus) -> None:
        await commands.send(ShowCustomer(event.customer_id, event.name))

    @event_handler
    async def hidden(self, event: CustomerWasDeactivated, commands: CommandBus) -> None:
        await commands.send(HideCustomer(event.customer_id))

    @query_handler("customer_rows.active")
    async def active(self, session: AsyncSession) -> list[str]:
        rows = await session.execute(text("SELECT name FROM customer_row WHERE active ORDER BY name"))
        return list(rows.scalars())


@pytest.mark.postgresql
async def test_q18_the_rows_of_a_read_model_can_be_aggregates_themselves(postgresql_url: str) -> None:
    async with started([Customer, CustomerRow, CustomerRows], postgresql_url) as flow:
        await tell_the_story(flow)
        await flow.run("customer_rows")
        assert await flow.ask(to="customer_rows.active") == ["Alice Cooper"]

        assert await flow.ecotone.projections.rebuild("customer_rows")
        assert await flow.ask(to="customer_rows.active") == ["Alice Cooper"]
        await flow.ecotone.projections.delete("customer_rows")


def test_a_partition_tells_its_identifier() -> None:
    assert (Partition("wallet-a-1").category, Partition("wallet-a-1").identifier) == ("wallet", "a-1")
