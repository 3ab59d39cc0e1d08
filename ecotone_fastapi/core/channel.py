"""What a transport must be able to do: send, receive, ack, nack. Everything else is built on top.

A channel moves `Message[bytes]`. It never looks into a payload, and it never touches a header that is not its own
business (`delay`, `time_to_live`, `priority`, `partition_key`, `attempt`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ecotone_fastapi.core.message import Message

logger: logging.Logger = logging.getLogger("ecotone_fastapi.channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a channel can do. Each one is exercised by the conformance suite; what is not claimed is not tested.

    Args:
        delay: Honours the `delay` header and `nack(delay)`.
        ordered: A single consumer receives messages in the order in which they were sent.
        durable: What was not acked survives `close` and the end of the process.
        transactional: `send` and `ack` take part in the unit of work that is open on the same database.
        competing: Several consumers share the messages; none is lent to two of them at a time.
        priority: Honours the `priority` header.
        time_to_live: Honours the `time_to_live` header.
        leased: A delivery that is not settled comes back by itself when its lease ends.
        keeps_order: Of each partition key one message is lent at a time, in the order of sending, whoever receives.
            Those behind one that waits for its retry wait, too.
        largest_body: Bytes that one payload may have; `None` is without a limit.
    """

    delay: bool = False
    ordered: bool = False
    durable: bool = False
    transactional: bool = False
    competing: bool = False
    priority: bool = False
    time_to_live: bool = False
    leased: bool = False
    keeps_order: bool = False
    largest_body: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where messages really go or come from, in the words of a technology: what traces and metrics tell operators.

    Args:
        system: The technology: `rabbitmq`, `ecotone_sql`.
        name: What messages are sent to or received from there.
        address: The host of its server; `None` when there is none.
        port: The port of its server.
        routing_key: What the server goes by to find the place.
        client: What the server knows this process by; else the process.
    """

    system: str
    name: str
    address: str | None = None
    port: int | None = None
    routing_key: str | None = None
    client: str | None = None


class Delivery(Protocol):
    """One message lent to one consumer until it is settled by `ack` or `nack`."""

    @property
    def message(self) -> Message[bytes]:
        """The message; its `attempt` header tells how many runs have failed so far."""
        ...

    @property
    def count(self) -> int:
        """How often the message was lent, this time included.

        It grows even when a consumer dies with it, but not for a delivery that was given back unhandled.
        """
        ...

    @property
    def settled(self) -> bool:
        """Whether an ack or nack has taken effect. An ack inside a transaction has when that has committed."""
        ...

    async def ack(self) -> None:
        """Remove the message from the channel.

        On a transactional channel this joins the unit of work that is open in the calling task's scope: the removal
        commits or vanishes with it, and its failure may be raised by the commit. Acking what is settled already does
        nothing.

        Raises:
            LeaseLostError: The lease has ended and the message is no longer this consumer's to remove.
            ChannelError: The broker could not be reached; the message will come back.
        """
        ...

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        """Give the message back; it will be delivered again.

        A message whose lease was lost is left to its new owner, without an error.

        Args:
            delay: Seconds to wait before that.
            attempted: Whether a handler ran and failed, which counts as an attempt. A consumer that stops gives back
                what it has not finished with `False`: the message keeps its place, and the delivery does not count.

        Raises:
            ChannelError: The broker could not be reached; the message will come back by itself.
        """
        ...


class Channel(Protocol):
    """A named pipe: what is sent here is received later, here or in another process."""

    @property
    def name(self) -> str:
        """The name by which `@asynchronous` and the command line know the channel."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this channel can do."""
        ...

    async def open(self) -> None:
        """Connect and prepare what is needed on the server. May be called again, and by several processes at once.

        Raises:
            ChannelError: The server cannot be reached; `open` may be tried again.
            ConfigurationError: The server is there but not prepared, e.g. a table is missing.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; give back deliveries that were not settled, as unhandled. May be called again."""
        ...

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        """Hand over messages; return when the server has confirmed all of them.

        Raises:
            SendError: Some of them were not accepted; the error names those.
            ChannelError: None of them was.
        """
        ...

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Lend up to `limit` messages.

        Returns at once when there are any, else as soon as one arrives, and with nothing after `timeout` seconds.
        Cancelling it loses nothing.

        Raises:
            ChannelError: The server cannot be reached; `receive` may be tried again.
        """
        ...


@runtime_checkable
class SettlesTogether(Protocol):
    """A channel that acks several deliveries more cheaply than one by one."""

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """Ack these deliveries of this channel in as few round trips as possible, outside any transaction.

        Raises:
            LeaseLostError: Some were lost to other consumers; all others are removed.
            ChannelError: The server could not be reached; what was not removed will come back.
        """
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A channel that can be looked into without consuming."""

    async def depth(self) -> int:
        """Count the messages that wait or are lent, delayed ones included."""
        ...

    async def oldest_age(self) -> float | None:
        """Return the age in seconds of the oldest message that is ready to be delivered; `None` without one."""
        ...

    async def peek(self, limit: int = 100) -> Sequence[Message[bytes]]:
        """Return the next messages, delayed ones included, without lending them."""
        ...

    async def purge(self) -> int:
        """Delete all messages; return how many there were."""
        ...


_cannot_tell: set[type] = set()  # classes of channels that were logged


@runtime_checkable
class TellsDestination(Protocol):
    """A channel that can tell where its messages are."""

    def destination(self, *, sending: bool) -> Destination:
        """Return where it sends to, or where it receives from; asks no server and never fails.

        Args:
            sending: Which of them: what is sent to an exchange is received from a queue.
        """
        ...


def destination_of(channel: object, name: str, *, sending: bool) -> Destination:
    """Return where the messages of a channel are; of one that cannot tell, its own name.

    That of one that fails to tell is logged once: no message is lost because nobody knows how to call its place.

    Args:
        channel: The channel; `None` if there is none.
        name: How it is called here.
        sending: Whether messages are sent there, or received.

    Example:
        >>> destination_of(None, "orders", sending=True)
        Destination(system='ecotone', name='orders', address=None, port=None, routing_key=None, client=None)
    """
    if isinstance(channel, TellsDestination):
        try:
            return channel.destination(sending=sending)
        except Exception:
            if type(channel) not in _cannot_tell:
                _cannot_tell.add(type(channel))
                logger.warning(
                    "channel %s fails to tell where its messages are; this is told once", name, exc_info=True
                )
    return Destination(system="ecotone", name=name)
