"""The first programs that people write: each is a scenario from the user's side."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol
from uuid import UUID

import pytest
from fastapi import Depends
from pydantic import BaseModel

from ecotone_fastapi import EventBus, asynchronous, command_handler, event_handler, query_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.testing import flow_test

# ------------------------------------------------------------------------------- an order, and the customer who is told


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class OrderService:
    def __init__(self) -> None:
        self._status: dict[str, str] = {}

    @command_handler
    async def place_order(self, command: PlaceOrder, events: EventBus) -> None:
        self._status[command.order_id] = "placed"
        await events.publish(OrderWasPlaced(command.order_id))

    @query_handler("order.get_status")
    def get_status(self, order_id: str) -> str:
        return self._status[order_id]


class NotificationSender(Protocol):
    async def send_order_confirmation(self, order_id: str) -> None: ...


async def get_sender() -> AsyncIterator[NotificationSender]:
    raise AssertionError("a test sends no mail")
    yield


class NotificationService:
    @asynchronous("notifications")
    @event_handler
    async def when_order_placed(
        self, event: OrderWasPlaced, sender: Annotated[NotificationSender, Depends(get_sender)]
    ) -> None:
        await sender.send_order_confirmation(event.order_id)


class InMemoryNotificationSender:
    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send_order_confirmation(self, order_id: str) -> None:
        self.sent.append(order_id)


async def test_an_order_is_placed() -> None:
    async with flow_test([OrderService]) as flow:
        await flow.send(PlaceOrder("order-1"))

        assert await flow.ask("order-1", to="order.get_status") == "placed"


async def test_the_customer_is_notified_later() -> None:
    notifier = InMemoryNotificationSender()

    async with flow_test(
        [OrderService, NotificationService],
        overrides={get_sender: lambda: notifier},
        channels=[MemoryChannel("notifications")],
    ) as flow:
        await flow.send(PlaceOrder("order-1"))
        assert notifier.sent == []
        await flow.run("notifications")

    assert notifier.sent == ["order-1"]


# ------------------------------------------------------------------------------------------------- commands and queries


@dataclass(frozen=True)
class BuyProduct:
    order_id: int
    product: str


@dataclass(frozen=True)
class GetOrder:
    order_id: int


class Purchases:
    def __init__(self) -> None:
        self.products: dict[int, str] = {}

    @command_handler
    def buy(self, command: BuyProduct) -> None:
        self.products[command.order_id] = command.product

    @query_handler
    def get(self, query: GetOrder) -> str:
        return self.products[query.order_id]


async def test_a_query_answers_what_a_command_has_changed() -> None:
    async with flow_test([Purchases]) as flow:
        await flow.send(BuyProduct(1, "Milk"))

        assert await flow.ask(GetOrder(1)) == "Milk"


# ------------------------------------------------------------------------------------------------------------- an event


@dataclass(frozen=True)
class ProductWasBought:
    product: str


class Ledger:
    def __init__(self) -> None:
        self.lines: list[str] = []

    @event_handler
    def enter(self, event: ProductWasBought) -> None:
        self.lines.append(f"{event.product} was bought")


async def test_a_subscriber_hears_of_an_event_at_once() -> None:
    ledger = Ledger()

    async with flow_test([ledger]) as flow:
        await flow.publish(ProductWasBought("Milk"))

    assert ledger.lines == ["Milk was bought"]


# ------------------------------------------------------------------------------------------------------ JSON as it came


class PlaceManyProducts(BaseModel):
    product_ids: list[UUID]


class Baskets:
    def __init__(self) -> None:
        self.product_ids: list[UUID] = []

    @command_handler("basket.fill")
    async def fill(self, command: PlaceManyProducts) -> None:
        assert all(isinstance(one, UUID) for one in command.product_ids)
        self.product_ids = command.product_ids

    @query_handler("basket.show")
    async def show(self) -> list[UUID]:
        return self.product_ids


@pytest.mark.parametrize("encode", [str, str.encode])
async def test_a_request_body_goes_in_as_json_and_the_answer_comes_out_as_json(encode: Any) -> None:
    ids = [UUID(int=1), UUID(int=2)]
    body = encode(f'{{"product_ids": ["{ids[0]}", "{ids[1]}"]}}')

    async with flow_test([Baskets]) as flow:
        await flow.send(body, to="basket.fill", headers={"content_type": "application/json"})

        assert await flow.ask(to="basket.show", returns=bytes) == f'["{ids[0]}","{ids[1]}"]'.encode()
        assert await flow.ask(to="basket.show") == ids
