"""Publishes with what aio-pika documents, one task a message."""

import asyncio
import os
from collections.abc import Callable, Sequence

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange
from aiormq.exceptions import AMQPError, DeliveryError, PublishError

from ecotone_fastapi.adapters.rabbitmq import frames
from ecotone_fastapi.adapters.rabbitmq.batches import NOT_TAKEN, UNWRITABLE, Batch, Outgoing, returned


class PlainPen:
    """Writes messages by way of `exchange.publish`.

    Args:
        channel: With publisher confirms, and on which what is returned raises.
        largest: Bytes that a frame may have on this connection.
    """

    def __init__(self, channel: AbstractChannel, largest: int) -> None:
        self._channel = channel
        self._largest = largest
        self._exchanges: dict[str, AbstractExchange] = {"": channel.default_exchange}
        self._tasks: set[asyncio.Task[None]] = set()
        self._name = os.urandom(8).hex()
        self._number = 0

    def write(self, messages: Sequence[tuple[Batch, Outgoing]], answered: Callable[[Outgoing], None]) -> None:
        """Begin a task for each message; the driver keeps their order."""
        for batch, one in messages:
            task = asyncio.ensure_future(self._publish(batch, one, answered))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End the tasks whose answer can no longer come."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _publish(self, batch: Batch, outgoing: Outgoing, answered: Callable[[Outgoing], None]) -> None:
        refusal: str | None = None
        try:
            exchange = self._exchanges.get(outgoing.exchange)
            if exchange is None:
                exchange = await self._channel.get_exchange(outgoing.exchange, ensure=False)
                self._exchanges[outgoing.exchange] = exchange
            await exchange.publish(self._message(outgoing), outgoing.routing_key, mandatory=True)
        except PublishError as error:
            refusal = returned(error)
        except DeliveryError:
            refusal = NOT_TAKEN
        except (ValueError, TypeError, OverflowError) as error:
            refusal = f"{UNWRITABLE}: {error}"
        except (AMQPError, OSError, RuntimeError):
            return  # the session hears of it, and fails everything that is under way
        if refusal is None:
            batch.accepted()
        else:
            batch.refused(outgoing, refusal)
        answered(outgoing)

    def _message(self, outgoing: Outgoing) -> aio_pika.Message:
        # The driver finds what is returned by this id: the same message may be under way twice.
        self._number += 1
        message_id = f"{self._name}-{self._number}"
        # What the driver cannot write, or the server does not take, would end the channel for all others.
        frames.head(1, outgoing, message_id, self._largest)
        return aio_pika.Message(
            outgoing.message.payload,
            headers=dict(outgoing.headers),
            content_type=outgoing.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            priority=outgoing.priority,
            expiration=None if outgoing.milliseconds is None else outgoing.expiration,
            message_id=message_id,
        )
