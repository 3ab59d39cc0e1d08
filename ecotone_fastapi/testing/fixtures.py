"""The pytest plugin that comes with the package: the fixture `flow`.

async def test_an_order_is_placed(flow):
    orders = await flow([OrderService])
    await orders.send(PlaceOrder("order-1"))
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from ecotone_fastapi.testing.flow import Flow, flow_test


@pytest.fixture(name="flow")
async def flow_fixture() -> AsyncIterator[Callable[..., Awaitable[Flow]]]:
    """Start flow tests that end with the test; called with the arguments of `flow_test`."""
    async with AsyncExitStack() as stack:

        async def start(*handlers: Any, **options: Any) -> Flow:
            return await stack.enter_async_context(flow_test(*handlers, **options))

        yield start
