"""Messages with keys, failing handlers and several consumers: what must hold for the order of each key."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import strategies

from ecotone_fastapi.core.channel import Channel, Inspectable
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call
from ecotone_fastapi.core.plugin import Limits


class MovingClock:
    """The machine's clock, which a test moves forward."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset


@dataclass(frozen=True)
class Sent:
    """A message: its key, the delays after which its failures are tried again, and how often its handler yields."""

    key: str | None
    retries: Sequence[float]
    length: int


def sent_with(*delays: float) -> strategies.SearchStrategy[list[Sent]]:
    """Return messages whose failures are tried again after one of these delays, in seconds."""
    return strategies.lists(
        strategies.builds(
            Sent,
            key=strategies.sampled_from(["a", "b", "c", None]),
            retries=strategies.lists(strategies.sampled_from(delays), max_size=2),
            length=strategies.integers(0, 3),
        ),
        min_size=1,
        max_size=12,
    )


SENT = sent_with(0.0, 1.0, 30.0)


class Handling:
    """Handles messages as they want to be handled, and notes in which order that ended well.

    Args:
        sent: The messages, whose payloads are their numbers.
        alone: Whether it is an error when two of one key are handled at a time.

    Attributes:
        messages: The messages as they are sent.
        done: The numbers of those that were handled well.
        over: Is set when all of them were.
    """

    def __init__(self, sent: Sequence[Sent], *, alone: bool = True) -> None:
        self.messages = [
            Message(str(number).encode(), {"id": str(number), **({"partition_key": one.key} if one.key else {})})
            for number, one in enumerate(sent)
        ]
        self.done: list[int] = []
        self.over = anyio.Event()
        self._sent = sent
        self._alone = alone
        self._running: list[str] = []

    async def handle(self, call: Call) -> None:
        number = int(call.message.payload)
        one, attempt = self._sent[number], int(call.message.headers.get("attempt", "0"))
        assert one.key not in self._running or not self._alone, "two messages of one key at a time"
        if one.key is not None:
            self._running.append(one.key)
        for _ in range(one.length):
            await checkpoint()
        if one.key is not None:
            self._running.remove(one.key)
        assert call.delivery is not None
        if attempt < len(one.retries):
            await call.delivery.nack(one.retries[attempt])
            return
        self.done.append(number)
        if len(set(self.done)) == len(self._sent):
            self.over.set()

    def consumers(self, channels: Sequence[Channel], clock: Clock) -> Sequence[Consumer]:
        """Return a consumer of each channel, each more capable than the one before."""
        return [
            Consumer(
                channel, Gateway(Conversion(), clock), target=self.handle, concurrency=number + 1, batch=2 * number + 1
            )
            for number, channel in enumerate(channels)
        ]

    def check(self) -> None:
        """Check that every message was handled well, and each key in order; what was repeated counts once."""
        first = list(dict.fromkeys(self.done))
        assert sorted(first) == list(range(len(self._sent)))
        for key in {one.key for one in self._sent} - {None}:
            of_key = [number for number in first if self._sent[number].key == key]
            assert of_key == sorted(of_key)


async def handled_in_order(channels: Sequence[Channel], clock: MovingClock, sent: Sequence[Sent]) -> None:
    """Let a consumer of each channel handle what is sent to the first one; check the order of each key."""
    handling = Handling(sent)
    await channels[0].send(handling.messages)
    consumers = handling.consumers(channels, clock)
    for _ in range(3 * len(sent) + 3):
        async with anyio.create_task_group() as tasks:
            for consumer in consumers:
                tasks.start_soon(consumer.run, Limits(until_empty=True))
        clock.offset += timedelta(seconds=60)

    assert len(handling.done) == len(sent)
    handling.check()
    for channel in channels:
        assert isinstance(channel, Inspectable)
        assert await channel.depth() == 0
