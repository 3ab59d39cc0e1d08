"""1. A command and a query: `python examples/01_first_command.py`

A handler is a function or a method of a plain class, with a decorator. Its first parameter is the message, whose type
is the address. Nothing is registered, no base class is needed, and the method can still be called as it is written.

- A command says what is to be done. It has exactly one handler, which may return something.
- A query asks and changes nothing. It has exactly one handler, too.
- A handler may have a key instead, such as "order.get_status"; then the message can be anything, here a `str`.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from ecotone_fastapi import Ecotone, HandlerNotFoundError, command_handler, query_handler
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)  # a pydantic model, a TypedDict or a str does as well
class PlaceOrder:
    order_id: str
    product: str


@dataclass(frozen=True)
class GetOrder:
    order_id: str


class OrderService:
    """Made once, when the first message arrives, because nothing that it needs changes from message to message."""

    def __init__(self) -> None:
        self._products: dict[str, str] = {}

    @command_handler
    def place_order(self, command: PlaceOrder) -> str:
        self._products[command.order_id] = command.product
        return command.order_id

    @query_handler
    def get_order(self, query: GetOrder) -> dict[str, str]:
        return {"order_id": query.order_id, "product": self._products[query.order_id]}

    @query_handler("order.get_status")
    def get_status(self, order_id: str) -> str:
        return "placed" if order_id in self._products else "unknown"


async def main() -> None:
    async with Ecotone([OrderService]).running() as ecotone:
        await ecotone.command_bus.send(PlaceOrder("order-1", "Milk"))
        print(await ecotone.query_bus.ask(GetOrder("order-1")))
        print(await ecotone.query_bus.ask("order-1", to="order.get_status"))


if __name__ == "__main__":
    asyncio.run(main())


async def test_an_order_is_placed() -> None:
    """A flow test is the real application with nothing else in it. pydantic converts what comes as a dict."""
    async with flow_test([OrderService]) as flow:
        assert await flow.send(PlaceOrder("order-1", "Milk")) == "order-1"

        answer: dict[str, Any] = await flow.ask(GetOrder("order-1"))
        assert answer == {"order_id": "order-1", "product": "Milk"}
        assert await flow.ask("order-1", to="order.get_status") == "placed"
        with pytest.raises(HandlerNotFoundError):
            await flow.send("order-1", to="order.cancel")
