"""A decorator of ours returns what it was put on: the function keeps its own type."""

from dataclasses import dataclass
from typing import assert_type

from ecotone_fastapi.core.endpoint import command_handler, event_handler, query_handler


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Orders:
    @command_handler
    async def place(self, command: PlaceOrder) -> int:
        return len(command.order_id)

    @query_handler("order.get_status", id="orders.status")
    def get_status(self, order_id: str) -> str:
        return order_id

    @event_handler()
    def note(self, event: PlaceOrder) -> None: ...


async def a_handler_can_still_be_called_as_it_is_written(orders: Orders) -> None:
    assert_type(await orders.place(PlaceOrder("order-1")), int)
    assert_type(orders.get_status("order-1"), str)

    orders.get_status(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
