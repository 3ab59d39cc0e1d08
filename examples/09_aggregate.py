"""9. An aggregate: handlers on the thing that they change: `python examples/09_aggregate.py`

The class is loaded before its handler and saved after it. A class method makes a new one; a method acts on the one that
the message is for, found by the attribute with the name of the identifier, or by the header `aggregate.id`. What it
records is published when everything is saved, in the same transaction.

It is kept in memory here. With a database among the plugins it is a row of JSON there, under its `message_name`, and of
two commands that change one order at the same time none is lost.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated

import pytest

from ecotone_fastapi import ConcurrencyError, TargetVersion, aggregate, command_handler, query_handler, record
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    product: str


@dataclass(frozen=True)
class CancelOrder:
    order_id: str
    version: Annotated[int | None, TargetVersion()] = None  # what its sender has seen; anything else is refused


@dataclass(frozen=True)
class OrderWasCancelled:
    order_id: str


@aggregate(identifier="order_id")
@dataclass
class Order:
    order_id: str
    product: str
    status: str = "placed"

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> "Order":
        return cls(command.order_id, command.product)

    @command_handler
    def cancel(self, command: CancelOrder) -> None:
        self.status = "cancelled"
        record(self, OrderWasCancelled(self.order_id))

    @query_handler("order.get_status")
    def get_status(self) -> str:
        return self.status


async def cancel_an_order() -> str:
    async with flow_test([Order]) as flow:
        order_id = await flow.send(PlaceOrder("order-1", "milk"))
        await flow.send(CancelOrder(order_id))
        return str(await flow.ask(to="order.get_status", headers={"aggregate.id": order_id}))


if __name__ == "__main__":
    print(asyncio.run(cancel_an_order()))


async def test_an_order_is_cancelled_once() -> None:
    assert await cancel_an_order() == "cancelled"
    async with flow_test([Order]) as flow:
        await flow.send(PlaceOrder("order-1", "milk"))
        await flow.send(CancelOrder("order-1", version=1))
        with pytest.raises(ConcurrencyError):
            await flow.send(CancelOrder("order-1", version=1))
        assert flow.published == [OrderWasCancelled("order-1")]
