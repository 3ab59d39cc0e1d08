"""8. Messages that wait, and are called off: `python examples/08_scheduled_messages.py`

`@delayed` lets messages for one handler wait on their channel: for a `timedelta`, until a `datetime`, or for what a
function makes of the message. Under its key a message that waits can be found, called off and put off. Handlers ask for
`ScheduledMessages` by its type; what they change there takes effect with their transaction. On the command line:

    ecotone scheduled list shop:ecotone
    ecotone scheduled reschedule shop:ecotone reminder-order-1 --in 2h

Whoever sends a message may say the same by headers, and wins: `headers={"delay": timedelta(hours=1)}`.
`@expiring(timedelta(hours=1))` drops what nobody handled in time, and `@prioritized(9)` overtakes.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from ecotone_fastapi import EventBus, ScheduledMessages, asynchronous, command_handler, delayed, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.testing import Flow, flow_test


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


def reminder_of(event: OrderWasPlaced) -> str:
    return f"reminder-{event.order_id}"


class Orders:
    def __init__(self) -> None:
        self.reminded: list[str] = []

    @command_handler("order.place")
    async def place(self, order_id: str, events: EventBus) -> None:
        await events.publish(OrderWasPlaced(order_id))

    @delayed(timedelta(days=3), key=reminder_of)
    @asynchronous("reminders")
    @event_handler(id="remind-customer")
    async def remind(self, event: OrderWasPlaced) -> None:
        self.reminded.append(event.order_id)

    @command_handler("order.pay")
    async def pay(self, order_id: str, scheduled: ScheduledMessages) -> int:
        return await scheduled.cancel(f"reminder-{order_id}")

    @command_handler("order.give_time")
    async def give_time(self, order_id: str, scheduled: ScheduledMessages) -> None:
        await scheduled.reschedule(f"reminder-{order_id}", timedelta(days=10))


async def place_three_orders_and_pay_the_first(flow: Flow) -> None:
    for order_id in ("order-1", "order-2", "order-3"):
        await flow.send(order_id, to="order.place")
    assert await flow.send("order-1", to="order.pay") == 1
    await flow.send("order-3", to="order.give_time")


async def show() -> None:
    async with flow_test([Orders], channels=[MemoryChannel("reminders")]) as flow:
        await place_three_orders_and_pay_the_first(flow)
        print(*(f"{one.due_at:%x %X} {one.key}" for one in await flow.scheduled()), sep="\n")


if __name__ == "__main__":
    asyncio.run(show())


async def test_only_orders_that_are_not_paid_are_reminded_of() -> None:
    orders = Orders()
    async with flow_test([orders], channels=[MemoryChannel("reminders")]) as flow:
        await place_three_orders_and_pay_the_first(flow)
        assert await flow.run("reminders") == 0

        await flow.advance(timedelta(days=3))
        assert await flow.run("reminders") == 1
        assert orders.reminded == ["order-2"]
