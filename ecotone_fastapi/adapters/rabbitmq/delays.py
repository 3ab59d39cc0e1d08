"""Delays without a plugin: a ladder of queues, each of which keeps a message twice as long as the one below.

A delay is written as a number of bits. A message goes down the ladder; where its bit is set it waits in the queue of
that step, where it is not it passes. All messages in one queue wait equally long, so that none waits behind another
that is due later. At the foot they are handed to the queue that they are meant for.
"""

import hashlib
import math
from typing import Any

from aiormq.abc import AbstractChannel

from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.topology import QueueType
from ecotone_fastapi.core.errors import ConversionError

_STEPS = 28
_SHORTEST = 50  # milliseconds on the lowest step
LONGEST_DELAY: float = ((1 << _STEPS) - 1) * _SHORTEST / 1000
"""Seconds that a message can be kept: some 155 days."""
_BITS_OF_A_RETRY = 4


class Ladder:
    """The ladder of one server for one kind of queue.

    Args:
        type: What kind its queues are: those for a quorum queue survive what that survives.
    """

    def __init__(self, type: QueueType) -> None:  # noqa: A002 - as in RabbitMQ
        self._type = type

    def route(self, delay: float, queue: str, *, roughly: bool = False) -> tuple[int, str, str]:
        """Return the step on which a message begins, its exchange, and the routing key.

        Args:
            delay: Seconds, which are rounded up to the lowest step.
            queue: Where the message goes in the end.
            roughly: Whether it may take up to an eighth longer: the fewer queues it passes.

        Raises:
            ConversionError: The delay is too long for the ladder.
        """
        units = max(1, math.ceil(round(delay * 1000, 3) / _SHORTEST))
        if roughly:
            rest = max(0, units.bit_length() - _BITS_OF_A_RETRY)
            units = min(-(-units >> rest) << rest, (1 << _STEPS) - 1)
        if units >= 1 << _STEPS:
            raise ConversionError(
                f"a delay of {delay:.0f} seconds is too long for RabbitMQ, where {LONGEST_DELAY:.0f} are possible",
                hint="send it by a channel in a database",
            )
        step = units.bit_length() - 1
        bits = ".".join(format(units, f"0{_STEPS}b"))
        return step, self._exchange(step), f"{bits}.{_address(queue)}"

    async def prepare(self, broker: Broker, step: int, queue: str) -> None:
        """Declare what a message needs that begins on this step, unless that has been done.

        Raises:
            ChannelError: The server cannot be reached.
        """
        top, foot = self._exchange(step), self._foot(queue)
        if top in broker.prepared and foot in broker.prepared:
            return
        wire = await broker.wire()
        async with broker.talk(wire) as amqp:
            await broker.ask(wire, self._bind_foot(amqp, queue), "declaring the foot of the delays")
            for lower in range(step + 1):
                name = self._exchange(lower)
                if name not in broker.prepared:
                    await broker.ask(wire, self._declare(amqp, lower), f"declaring step {lower} of the delays")
                    broker.prepared.add(name)
        broker.prepared.add(foot)

    def forget(self, broker: Broker, queue: str) -> None:
        """Forget that the way to a queue was declared."""
        broker.prepared.discard(self._foot(queue))

    def _foot(self, queue: str) -> str:
        return f"{self._exchange(-1)} to {queue}"

    def _exchange(self, step: int) -> str:
        return f"ecotone.delay.{self._type}.{'due' if step < 0 else format(step, '02')}"

    async def _bind_foot(self, amqp: AbstractChannel, queue: str) -> None:
        foot, lost = self._exchange(-1), f"ecotone.delay.{self._type}.lost"
        # Messages whose queue was deleted while they waited are kept for people to look at. On the ladder they would
        # stand in the way of all others.
        await amqp.exchange_declare(lost, exchange_type="fanout", durable=True)
        await amqp.queue_declare(lost, durable=True, arguments={"x-queue-type": self._type})
        await amqp.queue_bind(lost, lost)
        await amqp.exchange_declare(foot, exchange_type="topic", durable=True, arguments={"alternate-exchange": lost})
        await amqp.queue_bind(queue, foot, f"#.{_address(queue)}")

    async def _declare(self, amqp: AbstractChannel, step: int) -> None:
        exchange, below = self._exchange(step), self._exchange(step - 1)
        arguments: dict[str, Any] = {
            "x-queue-type": self._type,
            "x-message-ttl": _SHORTEST << step,
            "x-dead-letter-exchange": below,
        }
        if self._type == "quorum":
            # Else what is on its way between two queues could be lost.
            arguments |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        passed = "*." * (_STEPS - 1 - step)
        await amqp.exchange_declare(exchange, exchange_type="topic", durable=True)
        await amqp.queue_declare(exchange, durable=True, arguments=arguments)
        await amqp.queue_bind(exchange, exchange, f"{passed}1.#")
        await amqp.exchange_bind(below, exchange, f"{passed}0.#")


def _address(queue: str) -> str:
    """Return one word of a routing key for a queue, whose name may have dots and stars."""
    return hashlib.sha256(queue.encode()).hexdigest()[:40]
