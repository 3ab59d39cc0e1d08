"""What the channels of a process share on one server: a connection to publish on, and one to receive on.

They are two because a server that is short of memory stops to read from those who publish, acks included.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPError

from ecotone_fastapi.adapters.rabbitmq.codes import code_in
from ecotone_fastapi.adapters.rabbitmq.publishing import Publisher
from ecotone_fastapi.adapters.rabbitmq.wire import Wire, client_name
from ecotone_fastapi.core.errors import ChannelError

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

_REMEMBERED = 10_000  # messages
_FINISHING = 2.0  # seconds that what is under way has when the last channel is closed

# Connections belong to the event loop on which they were made, and end with the last channel that uses them.
_brokers: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, float], Broker]]" = WeakKeyDictionary()


class Broker:
    """The two connections of one event loop to one server.

    Args:
        url: Of the server.
        timeout: Seconds that the server has for every answer.

    Attributes:
        publisher: The connection to publish on.
        prepared: Names of what was declared on the present connection beside the queues of channels.
        users: How many channels use it.
        given_back: What was given back unhandled on this event loop.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.publisher: Publisher = Publisher(url, timeout=timeout)
        self.prepared: set[str] = set()
        self.given_back: GivenBack = GivenBack()
        self._key = (url, timeout)
        self.users: int = 0
        self._wire: Wire | None = None
        self._connecting: asyncio.Task[Wire] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    def join(cls, url: str, timeout: float) -> "Broker":
        """Return the broker that others on this event loop use for the same server, or a new one."""
        known = _brokers.setdefault(asyncio.get_running_loop(), {})
        if (url, timeout) not in known:
            known[url, timeout] = cls(url, timeout)
        broker = known[url, timeout]
        broker.users += 1
        return broker

    async def leave(self) -> None:
        """Use it no longer; the last one disconnects."""
        self.users -= 1
        if self.users:
            return
        known = _brokers.get(asyncio.get_running_loop(), {})
        if known.get(self._key) is self:
            del known[self._key]
        try:
            await self.publisher.close()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_FINISHING)
            if self._wire is not None:
                await self._wire.close()
        finally:
            if self._wire is not None:
                self._wire.abort()

    async def wire(self) -> Wire:
        """Return the connection to receive on; connect when there is none.

        Raises:
            ChannelError: The server cannot be reached.
        """
        if self._wire is not None and _is_alive(self._wire):
            return self._wire
        if self._connecting is None:
            self._connecting = self.start(self._connect())
            self._connecting.add_done_callback(self._connected)
        # Others may wait for the same attempt.
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Wire:
        url, timeout = self._key
        if self._wire is not None:
            self._wire.abort()
            await self._wire.close()
        self._wire = None
        self.prepared.clear()
        self._wire = await Wire.open(url, timeout=timeout, name=client_name("receive"), sealed=True)
        return self._wire

    def _connected(self, connecting: asyncio.Task[Wire]) -> None:
        self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # when nobody waits for it any more, nobody has to be told

    def start(self, work: Coroutine[Any, Any, T], context: Context | None = None) -> asyncio.Task[T]:
        """Do something in a task that is waited for before the broker is left."""
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Who waits for it is told; who was cancelled does not want to know.
            logger.debug("%s", error)

    async def ask(self, wire: Wire, question: Coroutine[Any, Any, T], doing: str) -> T:
        """Ask the server something, and do not wait for ever.

        Cancelling this does not cancel the question, for the driver would close the channel on which it was asked.

        Args:
            wire: The connection on which it is asked; without an answer in time it is of no use any more.
            question: The call of the driver.
            doing: What the error says was being done.

        Raises:
            ChannelError: The server refused, or did not answer.
        """
        task = self.start(self._in_time(wire, question, doing))
        await asyncio.wait((task,))
        if task.cancelled():  # the driver does that when a connection breaks
            raise ChannelError(f"RabbitMQ: {doing}: the connection was lost")
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, ChannelError):
            raise error
        if isinstance(error, (AMQPError, OSError, RuntimeError)):
            told = str(error) or type(error).__name__
            raise ChannelError(f"RabbitMQ: {doing}: {told}", code=code_in(told)) from error
        raise error

    async def _in_time(self, wire: Wire, question: Coroutine[Any, Any, T], doing: str) -> T:
        seconds = self._key[1]
        try:
            async with asyncio.timeout(seconds):
                return await question
        except TimeoutError:
            wire.abort()
            raise ChannelError(f"RabbitMQ: {doing}: no answer within {seconds:g} seconds") from None

    async def new_channel(self, wire: Wire) -> AbstractChannel:
        """Open an AMQP channel to receive on.

        Raises:
            ChannelError: The connection was lost.
        """
        transport = wire.connection.transport
        if transport is None:
            raise ChannelError("RabbitMQ: the connection was closed")
        opening = transport.connection.channel(publisher_confirms=False)
        return await self.ask(wire, opening, "opening an AMQP channel")

    @asynccontextmanager
    async def talk(self, wire: Wire) -> AsyncIterator[AbstractChannel]:
        """Open an AMQP channel for questions: the server closes it when it refuses one."""
        channel = await self.new_channel(wire)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await self.ask(wire, channel.close(), "closing an AMQP channel")


class GivenBack:
    """Remembers which messages were given back unhandled, for servers count that as a delivery, too."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, int] = OrderedDict()

    def note(self, key: str | None) -> None:
        """Note that a message is given back."""
        if key is not None:
            self._times[key] = self._times.pop(key, 0) + 1
            if len(self._times) > _REMEMBERED:
                self._times.popitem(last=False)

    def times(self, key: str | None) -> int:
        """Return how often a message was given back."""
        return 0 if key is None else self._times.get(key, 0)

    def forget(self, key: str | None) -> None:
        """Note that a message is settled."""
        if key is not None:
            self._times.pop(key, None)


def _is_alive(wire: Wire) -> bool:
    return wire.connection.transport is not None and wire.connection.connected.is_set()
