"""Messages with keys, failing handlers and several consumers: what must hold for the order of each key."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import strategies

from ecotone_fastapi.core.channel import Channel, Inspectable
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


SENT = strategies.lists(
    strategies.builds(
        Sent,
        key=strategies.sampled_from(["a", "b", "c", None]),
        retries=strategies.lists(strategies.sampled_from([0.0, 1.0, 30.0]), max_size=2),
        length=strategies.integers(0, 3),
    ),
    min_size=1,
    max_size=12,
)


async def handled_in_order(channels: Sequence[Channel], clock: MovingClock, sent: Sequence[Sent]) -> None:
    """Let a consumer of each channel handle what is sent to the first one; check the order of each key."""
    messages = [
        Message(str(number).encode(), {"id": str(number), **({"partition_key": one.key} if one.key else {})})
        for number, one in enumerate(sent)
    ]
    await channels[0].send(messages)
    done: list[int] = []
    running: list[str] = []

    async def handle(call: Call) -> None:
        number = int(call.message.payload)
        one, attempt = sent[number], int(call.message.headers.get("attempt", "0"))
        assert one.key not in running, "two messages of one key at a time"
        if one.key is not None:
            running.append(one.key)
        for _ in range(one.length):
            await checkpoint()
        if one.key is not None:
            running.remove(one.key)
        assert call.delivery is not None
        if attempt < len(one.retries):
            await call.delivery.nack(one.retries[attempt])
            return
        done.append(number)

    consumers = [
        Consumer(channel, Gateway(Conversion(), clock), target=handle, concurrency=number + 1, batch=2 * number + 1)
        for number, channel in enumerate(channels)
    ]
    for _ in range(3 * len(sent) + 3):
        async with anyio.create_task_group() as tasks:
            for consumer in consumers:
                tasks.start_soon(consumer.run, Limits(until_empty=True))
        clock.offset += timedelta(seconds=60)

    assert sorted(done) == list(range(len(sent)))
    for key in {one.key for one in sent} - {None}:
        of_key = [number for number in done if sent[number].key == key]
        assert of_key == sorted(of_key)
    for channel in channels:
        assert isinstance(channel, Inspectable)
        assert await channel.depth() == 0
