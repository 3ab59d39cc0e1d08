"""The suite for channels. What a channel does not claim in its `Capabilities` is skipped, everything else must hold.

The numbers in the docstrings, T1 to T42, name the cases in reports, so that transports can be compared; the package has
a table of them.
"""

import pytest

from ecotone_fastapi.testing.conformance.applications import Applications
from ecotone_fastapi.testing.conformance.competition import Crowd, Leases
from ecotone_fastapi.testing.conformance.delivery import Reception, RoundTrip, Settlement
from ecotone_fastapi.testing.conformance.keys import Keys
from ecotone_fastapi.testing.conformance.servers import Faults, Introspection, Transactions
from ecotone_fastapi.testing.conformance.timing import Timing


@pytest.mark.anyio
class ChannelConformance(
    RoundTrip, Reception, Settlement, Timing, Keys, Crowd, Leases, Transactions, Faults, Introspection, Applications
):
    """What every channel must do. Subclass it, implement `channel` and as many of the hooks as you can.

    A hook that is not implemented skips the cases that need it, and the reason says so.

    Attributes:
        patience: Seconds after which something that must happen has failed to happen.
        moment: Seconds to wait before believing that nothing arrives; 0 suits a channel that asks its server once.
        volume: Messages in the largest case; the others take a fraction of it.
        crowd: Channels that are open at one time in the cases that need many of them.
        lease: Seconds after which a delivery of a `leased` channel comes back.

    Example:
        ```python
        class TestRedisChannel(ChannelConformance):
            @asynccontextmanager
            async def channel(self, name: str) -> AsyncIterator[Channel]:
                channel = RedisChannel(name, url="redis://localhost:6379")
                await channel.open()
                yield channel
                await channel.close()
        ```
    """
