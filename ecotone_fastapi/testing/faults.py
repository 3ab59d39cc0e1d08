"""Faults on purpose: a channel that fails, and interceptors that repeat or fail what passes through them.

    >>> channel = FailingChannel(MemoryChannel("orders"), sends=2)
    >>> channel.name
    'orders'

The first two calls of its `send` raise `ChannelError`, all others do what the channel inside does.
"""

import random
from collections.abc import Sequence
from typing import Any

from ecotone_fastapi.core.channel import Capabilities, Channel, Delivery
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Interceptor, Proceed


class FailingChannel:
    """A channel that fails some times and then does what the channel inside does.

    Args:
        channel: The channel inside.
        opens: How many calls of `open` fail.
        sends: How many calls of `send` fail; nothing is sent by them.
        receives: How many calls of `receive` fail; nothing is lent by them.
    """

    def __init__(self, channel: Channel, *, opens: int = 0, sends: int = 0, receives: int = 0) -> None:
        self.channel = channel
        self.opens: int = opens
        self.sends: int = sends
        self.receives: int = receives

    @property
    def name(self) -> str:
        """The name of the channel inside."""
        return self.channel.name

    @property
    def capabilities(self) -> Capabilities:
        """What the channel inside can do."""
        return self.channel.capabilities

    async def open(self) -> None:
        """Open the channel inside, or fail."""
        if self.opens > 0:
            self.opens -= 1
            raise self._failure("open")
        await self.channel.open()

    async def close(self) -> None:
        """Close the channel inside."""
        await self.channel.close()

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        """Send to the channel inside, or fail."""
        if self.sends > 0:
            self.sends -= 1
            raise self._failure("send")
        await self.channel.send(messages)

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Receive from the channel inside, or fail."""
        if self.receives > 0:
            self.receives -= 1
            raise self._failure("receive")
        return await self.channel.receive(limit, timeout)

    def _failure(self, doing: str) -> ChannelError:
        return ChannelError(f"channel {self.name!r} fails to {doing}, as the test wants it to")


async def duplicate(call: Call, proceed: Proceed) -> Any:
    """Let everything happen twice: an interceptor that proves that a handler stands repetition.

    Example:
        >>> assembly.add_interceptor(duplicate, stage=Stage.RECEIVE)  # doctest: +SKIP
    """
    await proceed(call)
    return await proceed(call)


def random_fail(probability: float, *, seed: int | None = None, error: type[Exception] = ChannelError) -> Interceptor:
    """Return an interceptor that fails now and then: half of the time before what it stands around, else after it.

    Args:
        probability: How often, from 0 to 1.
        seed: Makes the failures the same in every run.
        error: What it raises.
    """
    dice = random.Random(seed)  # noqa: S311 - no secret

    async def fail_now_and_then(call: Call, proceed: Proceed) -> Any:
        fails, early = dice.random() < probability, dice.random() < 0.5
        if fails and early:
            raise error("random failure before the call")
        result = await proceed(call)
        if fails:
            raise error("random failure after the call")
        return result

    return fail_now_and_then
