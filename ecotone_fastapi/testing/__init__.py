"""What a test of an application needs: the flow test, and the suites that every adapter must pass.

    from ecotone_fastapi.testing import flow_test


    async def test_an_order_is_placed() -> None:
        async with flow_test([OrderService]) as flow:
            await flow.send(PlaceOrder("order-1"))
            assert flow.published == [OrderWasPlaced("order-1")]

It needs pytest: `pip install pytest`.
"""

from ecotone_fastapi.testing.conformance import (
    AggregateStoreConformance,
    ChannelConformance,
    DocumentStoreConformance,
    EventStoreConformance,
    InboxConformance,
    ProjectionStoreConformance,
    StoreConformance,
)
from ecotone_fastapi.testing.flow import Flow, Recorded, TravellingClock, flow_test

__all__ = [
    "AggregateStoreConformance",
    "ChannelConformance",
    "DocumentStoreConformance",
    "EventStoreConformance",
    "Flow",
    "InboxConformance",
    "ProjectionStoreConformance",
    "Recorded",
    "StoreConformance",
    "TravellingClock",
    "flow_test",
]
