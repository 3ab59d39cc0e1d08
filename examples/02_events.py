"""2. Events: `python examples/02_events.py`

An event says what has happened. Any number of handlers may react to it, and whoever publishes it knows none of them.

- A handler asks for a bus by its type, as for anything else that it needs: with `Depends`, exactly as an endpoint does.
- Synchronous handlers run at once, one after the other, in the unit of work of the command. When one of them fails, the
  command fails, and with a database nothing of it is left: no order, and no message to anybody.
- Headers travel with a message and with every message that it causes: `tenant`, a user, a trace.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends

from ecotone_fastapi import Ecotone, EventBus, MessageHeader, command_handler, event_handler
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class OrderService:
    @command_handler
    async def place_order(self, command: PlaceOrder, events: EventBus) -> None:
        await events.publish(OrderWasPlaced(command.order_id))


@dataclass
class Mailbox:
    mails: list[str] = field(default_factory=list)

    def send(self, to: str, text: str) -> None:
        self.mails.append(f"{to}: {text}")


mailbox = Mailbox()


def get_mailbox() -> Mailbox:
    return mailbox


class Mails:
    @event_handler
    def thank_the_customer(
        self,
        event: OrderWasPlaced,
        mailbox: Annotated[Mailbox, Depends(get_mailbox)],
        tenant: Annotated[str, MessageHeader("tenant")] = "our shop",
    ) -> None:
        mailbox.send("customer", f"{tenant} thanks you for {event.order_id}")


async def main() -> None:
    async with Ecotone([OrderService, Mails]).running() as ecotone:
        await ecotone.command_bus.send(PlaceOrder("order-1"), headers={"tenant": "acme"})
    print(mailbox.mails)


if __name__ == "__main__":
    asyncio.run(main())


async def test_the_customer_is_thanked() -> None:
    """`overrides` replaces a dependency, as `app.dependency_overrides` does."""
    double = Mailbox()
    async with flow_test([OrderService, Mails], overrides={get_mailbox: lambda: double}) as flow:
        await flow.send(PlaceOrder("order-1"), headers={"tenant": "acme"})

        assert flow.published == [OrderWasPlaced("order-1")]
        assert double.mails == ["customer: acme thanks you for order-1"]
