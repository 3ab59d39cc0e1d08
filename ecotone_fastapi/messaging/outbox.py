"""The outbox: messages for a broker are stored with the handler's writes, and a relay takes them to the broker.

    database = SqlAlchemy("postgresql+asyncpg://…")
    ecotone = Ecotone([OrderService], channels=[RabbitMQChannel("orders", …)], plugins=[database])

Nothing else is needed: with a database, this is how messages for a broker leave. They commit with the handler or not at
all, and a broker that is down keeps no handler from working.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

from ecotone_fastapi.core.channel import Capabilities, Channel, Delivery, Destination, destination_of
from ecotone_fastapi.core.clock import Clock, TellsTime
from ecotone_fastapi.core.errors import ConfigurationError, MissingServiceError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.relay import Lane, Relay, RelaySettings, packed
from ecotone_fastapi.messaging.transactions import UnitOfWork

Send = Callable[[Sequence[Message[bytes]]], Awaitable[None]]
"""Sends messages, as `Channel.send` does."""


@runtime_checkable
class ChoosesDelivery(Protocol):
    """A channel on a server of its own, whose user chooses how messages get there."""

    @property
    def delivery(self) -> str:
        """`"outbox"`: through the outbox of the database, when there is one. `"direct"`: at once, before the commit."""
        ...


@runtime_checkable
class DelaysThrough(Protocol):
    """A channel that can have somebody else keep messages until they are due."""

    def delay_through(self, send: Send) -> None:
        """Use this from now on for what has to wait: it honours the `delay` header and keeps `attempt`."""
        ...


class OutboxStorage(Protocol):
    """Has outboxes that take part in its transactions. A database adapter offers it."""

    def outbox_for(self, channel: str, *, keeps_order: bool = False) -> Channel:
        """Return the outbox of a channel: durable, transactional and delaying, always the same for one name.

        Args:
            channel: The name of the channel.
            keeps_order: Whether the outbox, too, has to lend one message of each partition key at a time, in order.
        """
        ...

    async def outboxes(self) -> Sequence[str]:
        """Return the names of the channels that messages are on their way to, whether anybody here has them or not.

        Raises:
            ChannelError: The storage cannot be reached.
        """
        ...


class Outbox:
    """The plugin that sends messages for brokers through the database; installed by default.

    It takes care of each channel whose `delivery` is `"outbox"`, when there is a database. What is sent to such a
    channel is stored in the transaction that is open, else in a short one, and a relay is woken up by the commit: it
    runs beside the consumers under the name `outbox`. A process that runs no consumers (`consumers=False`) only stores;
    another one must run the relay, as `ecotone run app outbox` or with `consumers=["outbox"]`. Any number of relays
    share the work. Without any, messages wait: those for the channel `orders` in the channel `outbox/orders`.

    A message arrives at least once, with its id, its bytes and its headers. It arrives twice when a relay dies between
    the confirmation of the broker and the removal from the outbox. Delays are waited for in the database, so any delay
    works with any broker. A time to live counts from the moment of sending: what expires in the outbox is dropped, what
    is left of it goes to the broker. One relay keeps the order of sending, also while a broker is away; several relays,
    and messages that a broker has refused, do not. For a channel that keeps the order of each partition key the outbox
    keeps it, too, over all relays: a message leaves when those of its key before it are confirmed or parked, so that a
    relay takes one of each key at a time: many keys leave in batches, one busy key does not. What is refused is tried
    again, each time after a longer pause; a message that a broker cannot take at all, because it is too large, is
    parked in the dead letter after some attempts.

    Before a channel is changed to `delivery="direct"`, its outbox should be empty; a relay warns about what is left.

    Args:
        name: The name by which the command line knows the relay.
        settings: How the relay works.

    Example:
        >>> plugin = Outbox(settings=RelaySettings(batch=100))
    """

    def __init__(self, name: str = "outbox", *, settings: RelaySettings | None = None) -> None:
        self._name = name
        self._settings = settings or RelaySettings()

    def install(self, assembly: Assembly) -> None:
        """Stand in front of the channels of brokers, and run the relay.

        Raises:
            MissingServiceError: There is nothing to park messages in.
            ConfigurationError: A channel has the name of the relay.
        """
        storage = cast("OutboxStorage | None", assembly.services.get(OutboxStorage))
        unit = cast("UnitOfWork | None", assembly.services.get(UnitOfWork))
        channels = [
            channel
            for channel in assembly.channels.values()
            if isinstance(channel, ChoosesDelivery)
            and channel.delivery == "outbox"
            and channel.capabilities.durable
            and not (unit is not None and unit.covers(channel))
        ]
        if storage is None or not channels:
            return
        store = cast("DeadLetterStore | None", assembly.services.get(DeadLetterStore))
        if store is None:
            raise MissingServiceError(
                "messages in the outbox have no dead letter to be parked in",
                hint="give Ecotone the database: plugins=[database]",
            )
        if self._name in assembly.channels:
            raise ConfigurationError(
                f"a channel has the name {self._name!r} of the relay that empties the outbox",
                hint='rename one of them: plugins=[Outbox("relay")]',
            )
        clock = assembly.gateway.clock
        lanes = {
            channel.name: Lane(storage.outbox_for(channel.name, keeps_order=channel.capabilities.keeps_order), channel)
            for channel in channels
        }
        for name, lane in lanes.items():
            if isinstance(lane.outbox, TellsTime):
                lane.outbox.use_clock(clock)
            assembly.add_channel(lane.outbox)
            assembly.wrap_channel(name, partial(ThroughOutbox, outbox=lane.outbox, clock=clock))
        assembly.add_runnable(
            Relay(
                self._name,
                lanes,
                stray=storage.outboxes,
                gateway=assembly.gateway,
                store=store,
                unit=unit,
                settings=self._settings,
            )
        )


class ThroughOutbox:
    """A channel whose messages are stored first. Everything but `send` is done by the channel itself.

    Args:
        channel: The channel.
        outbox: Where its messages wait.
        clock: From when on a time to live counts.
    """

    def __init__(self, channel: Channel, outbox: Channel, clock: Clock) -> None:
        self.channel = channel
        self.outbox = outbox
        self._clock = clock
        # Protocols are recognised by their methods, and newer Pythons look for these past __getattr__.
        for name, _ in inspect.getmembers_static(channel, callable):
            if not name.startswith("_") and not hasattr(type(self), name):
                setattr(self, name, getattr(channel, name))
        if isinstance(channel, DelaysThrough):
            channel.delay_through(self.send)

    def __getattr__(self, name: str) -> Any:
        # Only what the class does not have arrives here: what the channel offers beyond the protocol.
        if name.startswith("__"):  # asked by `copy` and the like, which do not mean the channel
            raise AttributeError(name)
        return getattr(self.__dict__["channel"], name)

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self.channel.name

    @property
    def capabilities(self) -> Capabilities:
        """What the channel can do, and delays: they are waited for in the outbox."""
        return replace(self.channel.capabilities, delay=True)

    def destination(self, *, sending: bool) -> Destination:
        """Return where messages are stored first, or where the channel receives them from."""
        channel = self.outbox if sending else self.channel
        return destination_of(channel, channel.name, sending=sending)

    async def open(self) -> None:
        """Open the channel."""
        await self.channel.open()

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        """Store messages in the unit of work that is open in the calling task's scope, if any, for the relay.

        Raises:
            ConversionError: A header that channels go by is malformed.
            ChannelError: The outbox cannot be reached.
        """
        now = self._clock.now()
        await self.outbox.send([packed(message, self.name, now) for message in messages])

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Receive from the channel."""
        return await self.channel.receive(limit, timeout)
