"""7. Retries, the dead letter, and replay: `python examples/07_retries_and_dead_letter.py`

Three layers, from the inside out. `@retried` runs a handler again at once, in a new transaction: for what passes by
itself, as deadlocks do, which need no mark. The policy of the channel or handler runs it again later: by default about
1, 5 and 25 seconds later; any object with `decide(failure)` can be a policy. Then the message is parked with its bytes,
headers and traceback, until somebody looks:

    ecotone deadletter list shop:ecotone --error TimeoutError
    ecotone deadletter replay shop:ecotone --all --handler charge-customer

A replay runs only the handler that failed.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from ecotone_fastapi import Backoff, DeadLetterFilter, asynchronous, event_handler, on_failure, retried
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Payments:
    def __init__(self) -> None:
        self.bank_is_open = False
        self.runs = 0
        self.charged: list[str] = []
        self.counted: list[str] = []

    @on_failure(Backoff(retries=2, first=60))
    @retried(times=2, on=ConnectionError)
    @asynchronous("payments")
    @event_handler(id="charge-customer")
    async def charge(self, event: OrderWasPlaced) -> None:
        self.runs += 1
        if not self.bank_is_open:
            raise ConnectionError("the bank is closed")
        self.charged.append(event.order_id)

    @asynchronous("payments")
    @event_handler(id="count-order")
    async def count(self, event: OrderWasPlaced) -> None:
        self.counted.append(event.order_id)


async def charge_when_the_bank_opens(payments: Payments) -> None:
    async with flow_test([payments], channels=[MemoryChannel("payments")]) as flow:
        await flow.publish(OrderWasPlaced("order-1"))
        for _ in range(3):
            await flow.run("payments", raises=False)
            await flow.advance(timedelta(minutes=10))
        payments.bank_is_open = True
        await flow.ecotone.dead_letters.replay_all(DeadLetterFilter(endpoint="charge-customer"))
        await flow.run("payments")


if __name__ == "__main__":
    asyncio.run(charge_when_the_bank_opens(shown := Payments()))
    print(f"after {shown.runs} runs: {shown.charged}")


async def test_what_was_parked_is_replayed_when_the_bank_is_open() -> None:
    payments = Payments()
    await charge_when_the_bank_opens(payments)
    assert payments.runs == 9 + 1  # three runs, each with two more at once; and the replay
    assert (payments.charged, payments.counted) == (["order-1"], ["order-1"])  # the message of each is its own
