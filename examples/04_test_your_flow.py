"""4. Tests of flows, in your own process: `python examples/04_test_your_flow.py`

A flow test is the real application: its plans, its consumers, its conversion to bytes. Only you say when a consumer
runs, and what time it is. All it needs is a runner that awaits, such as pytest with `anyio_mode = "auto"`.

What fails is run again about 1, 5 and 25 seconds later; then it is parked in the dead letter, with its bytes and its
traceback. It is never lost, and it never runs for ever.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

import pytest
from fastapi import Depends

from ecotone_fastapi import ParkedMessage, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.testing import Flow, flow_test


class Bank:
    async def charge(self, customer: str) -> None: ...


@asynchronous("payments")
@command_handler("customer.charge", id="charge-customer")
async def charge(customer: str, bank: Annotated[Bank, Depends()]) -> None:
    await bank.charge(customer)


@dataclass
class FakeBank(Bank):
    failures: int = 0
    charges: int = 0

    async def charge(self, customer: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the bank is closed")
        self.charges += 1


async def charge_through(bank: Bank) -> Sequence[ParkedMessage]:
    payments = MemoryChannel("payments")
    async with flow_test([charge], channels=[payments], overrides={Bank: lambda: bank}) as flow:
        await flow.send("Ada", to="customer.charge")
        for _ in range(4):
            await flow.run("payments", raises=False)  # by default, the first failure of a handler is raised here
            await flow.advance(timedelta(minutes=1))
        return await flow.dead_letters()


if __name__ == "__main__":
    for parked in asyncio.run(charge_through(FakeBank(failures=4))):
        print(f"{parked.endpoint} failed {parked.attempts} times: {parked.error_message}")


@pytest.mark.parametrize(("failures", "charges", "parked"), [(0, 1, 0), (3, 1, 0), (4, 0, 1)])
async def test_a_closed_bank_is_asked_three_times_more(failures: int, charges: int, parked: int) -> None:
    bank = FakeBank(failures)
    assert len(await charge_through(bank)) == parked
    assert bank.charges == charges


async def test_a_customer_is_charged_tomorrow(flow: Callable[..., Awaitable[Flow]]) -> None:
    """The fixture `flow` comes with the package; what it starts ends with the test."""
    bank = FakeBank()
    payments = await flow([charge], channels=[MemoryChannel("payments")], overrides={Bank: lambda: bank})
    await payments.send("Ada", to="customer.charge", headers={"delay": 24 * 60 * 60})
    assert await payments.run("payments") == 0

    await payments.advance(timedelta(days=1))
    assert await payments.run("payments") == 1
