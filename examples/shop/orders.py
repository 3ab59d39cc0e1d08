"""Orders: placed by a command, asked for by a query, confirmed by mail when they have been placed."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from ecotone_fastapi import EventBus, asynchronous, command_handler, event_handler, message_name, query_handler
from examples.shop.database import Base, SessionDep
from examples.shop.mail import NotificationSender, get_sender


class Order(Base):
    """A row of the table of orders."""

    __tablename__ = "shop_order"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    product: Mapped[str] = mapped_column(String(100))
    customer: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(20))


@dataclass(frozen=True)
class PlaceOrder:
    """A customer wants a product."""

    order_id: str
    product: str
    customer: str


@message_name("order.placed")  # what is written into the channel; the class may move and be renamed
@dataclass(frozen=True)
class OrderWasPlaced:
    """A customer will get a product."""

    order_id: str
    product: str
    customer: str


class OrderService:
    """Places orders and knows them."""

    @command_handler
    async def place_order(self, command: PlaceOrder, session: SessionDep, events: EventBus) -> None:
        session.add(Order(id=command.order_id, product=command.product, customer=command.customer, status="placed"))
        # Commits with the order: there are both, or neither.
        await events.publish(OrderWasPlaced(command.order_id, command.product, command.customer))

    @query_handler("order.get_status")
    async def get_status(self, order_id: str, session: SessionDep) -> str | None:
        order = await session.get(Order, order_id)
        return order.status if order is not None else None


class NotificationService:
    """Tells customers, some moments later and in a transaction of its own, what has become of their orders."""

    @asynchronous("notifications")
    @event_handler(id="confirm-order")
    async def when_order_placed(
        self, event: OrderWasPlaced, sender: Annotated[NotificationSender, Depends(get_sender)]
    ) -> None:
        await sender.send_order_confirmation(event.customer, event.order_id, event.product)
