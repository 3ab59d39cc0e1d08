"""A repository knows the class of its aggregates, and what stands above a class returns that class."""

from dataclasses import dataclass
from typing import Annotated, assert_type

from ecotone_fastapi import Fetched, Repository, aggregate, command_handler, record


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@aggregate(identifier="order_id")
@dataclass
class Order:
    order_id: str

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> "Order":
        return cls(command.order_id)

    @command_handler("order.count")
    def count(self) -> int:
        return len(self.order_id)


async def a_handler(command: PlaceOrder, orders: Repository[Order], order: Annotated[Order, Fetched()]) -> None:
    assert_type(await orders.get("order-1"), Order)
    assert_type(await orders.find("order-1"), Order | None)
    assert_type(order, Order)
    assert_type(Order.place(command), Order)
    assert_type(order.count(), int)
    record(order, "placed")
    await orders.save(order)

    await orders.save(command)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
