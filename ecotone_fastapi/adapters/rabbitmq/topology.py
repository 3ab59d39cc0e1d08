"""What there must be on the server: declared when a channel is opened. Safe to repeat, and by many at once."""

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.wire import Wire
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError

QueueType = Literal["quorum", "classic"]

NEVER_DROPPED = 1_000_000_000
"""How often a quorum queue may deliver a message before it drops it. RabbitMQ 4 would do so after 20; when to give up
is decided by the error policy, which parks what it gives up."""


@dataclass(frozen=True)
class Topology:
    """The queue of a channel, and by which exchange it is reached.

    Args:
        queue: Its name.
        type: What kind of queue.
        exchange: What is sent to; the default exchange knows every queue by its name.
        routing_key: For the exchange.
        declare: Whether it is made when it is missing; else it has to be there.
        arguments: More arguments of the queue.
    """

    queue: str
    type: QueueType
    exchange: str
    routing_key: str
    declare: bool
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether the queue serves one consumer, and others only when that has gone."""
        return bool(self.arguments.get("x-single-active-consumer"))

    def documented(self, url: str) -> dict[str, Any]:
        """Return address and AMQP binding of the channel, as AsyncAPI has them; of the URL, the virtual host alone."""
        vhost = unquote(urlsplit(url).path[1:]) or "/"
        queue = {"name": self.queue, **({"durable": True} if self.declare else {}), "exclusive": False, "vhost": vhost}
        if not self.exchange:
            binding: dict[str, Any] = {"is": "queue", "queue": queue}
        else:
            binding = {"is": "routingKey", "exchange": {"name": self.exchange, "vhost": vhost}, "x-queue": queue}
        address = self.routing_key if self.exchange else self.queue
        return {"address": address, "bindings": {"amqp": {**binding, "bindingVersion": "0.3.0"}}}

    async def prepare(self, broker: Broker, wire: Wire) -> None:
        """See to it that everything is there.

        Raises:
            ConfigurationError: It is not, or not as it should be.
            ChannelError: The server cannot be reached.
        """
        try:
            async with broker.talk(wire) as amqp:
                await broker.ask(wire, self._prepare(amqp), f"preparing queue {self.queue!r}")
        except ChannelError as error:
            raise self._explained(error) from error

    async def is_there(self, broker: Broker, wire: Wire) -> bool:
        """Tell whether the queue is there, and as it should be; change nothing.

        Raises:
            ConfigurationError: It is there and not as it should be, or its exchange is not there.
            ChannelError: The server cannot be reached.
        """
        try:
            if self.exchange:
                async with broker.talk(wire) as amqp:
                    asking = amqp.exchange_declare(self.exchange, passive=True)
                    await broker.ask(wire, asking, f"looking for exchange {self.exchange!r}")
            try:
                async with broker.talk(wire) as amqp:
                    looking = amqp.queue_declare(self.queue, passive=True)
                    await broker.ask(wire, looking, f"looking for queue {self.queue!r}")
            except ChannelError as error:
                if self.declare and isinstance(error.__cause__, ChannelNotFoundEntity):
                    return False
                raise
            if self.declare:  # of one that is there, this compares the arguments
                async with broker.talk(wire) as amqp:
                    await broker.ask(wire, self.declare_on(amqp), f"comparing queue {self.queue!r}")
        except ChannelError as error:
            raise self._explained(error) from error
        return True

    async def _prepare(self, amqp: AbstractChannel) -> None:
        if not self.declare:
            await amqp.queue_declare(self.queue, passive=True)
            return
        await self.declare_on(amqp)
        if self.exchange:
            await amqp.queue_bind(self.queue, self.exchange, self.routing_key)

    async def declare_on(self, amqp: AbstractChannel) -> None:
        """Make the queue if it is missing; the server refuses when it is there and not as it should be."""
        arguments: dict[str, Any] = {"x-queue-type": self.type}
        if self.type == "quorum":
            arguments["x-delivery-limit"] = NEVER_DROPPED
        await amqp.queue_declare(self.queue, durable=True, arguments={**arguments, **self.arguments})

    def _explained(self, error: ChannelError) -> ConfigurationError | ChannelError:
        """Tell what is wrong with the wiring from a server that is away."""
        cause = error.__cause__
        if isinstance(cause, ChannelPreconditionFailed):
            return ConfigurationError(
                f"queue {self.queue!r} is there, but not as it should be: {cause}",
                hint="delete the queue once it is empty, give the channel the arguments that the queue has, or use "
                "declare=False to take it as it is",
            )
        if isinstance(cause, ChannelNotFoundEntity):
            return ConfigurationError(
                f"queue {self.queue!r} cannot be used: {cause}",
                hint="with declare=False the queue has to be there; an exchange always has to be",
            )
        if isinstance(cause, (ChannelAccessRefused, ChannelLockedResource)):
            return ConfigurationError(
                f"queue {self.queue!r} cannot be used: {cause}", hint="this user needs the permission for it"
            )
        return error
