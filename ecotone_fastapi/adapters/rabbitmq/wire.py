"""A connection to the server that can be opened, asked, closed and cut off, each within a time of one's own.

aio-pika's connection has no time limit on closing, and none of its calls ends a connection whose peer has fallen
silent. This one keeps hold of the socket, by way of the transport factory that aiormq lets its users bring. It may
also keep from the driver what others have written, over which the driver could stumble.
"""

import asyncio
import logging
from typing import Any

import aio_pika
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from ecotone_fastapi.adapters.rabbitmq.codes import code_in
from ecotone_fastapi.adapters.rabbitmq.sealing import SealingReader
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.process import this_process

logger: logging.Logger = logging.getLogger(__name__)

HEARTBEAT = 15
"""Seconds between two signs of life, unless the URL says otherwise; the driver's own default is 60."""

_CLOSING = 2.0


class _KeepsSocket(TransportFactory):
    """Opens the socket as the driver does, and remembers it; what arrives on it may be sealed."""

    def __init__(self, inside: TransportFactory, *, sealed: bool) -> None:
        self.writer: asyncio.StreamWriter | None = None
        self._inside = inside
        self._sealed = sealed

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._inside.create(url, **kwargs)
        self.writer = writer
        return SealingReader(reader) if self._sealed else reader, writer


class _Connection(aio_pika.Connection):
    """aio-pika's connection on a socket that can be reached."""

    def __init__(self, url: URL, *, sealed: bool, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        inside = TLSTransportFactory() if self.url.scheme == "amqps" else TCPTransportFactory()
        self.socket = _KeepsSocket(inside, sealed=sealed)
        self.kwargs["transport_factory"] = self.socket


def client_name(doing: str) -> str:
    """Return by which name the server knows the connection of this process, for what it does there."""
    return f"ecotone: {doing} {this_process()}"


class Wire:
    """One connection to the server.

    Args:
        connection: The driver's connection.
        writer: Its socket.
    """

    def __init__(self, connection: aio_pika.Connection, writer: asyncio.StreamWriter) -> None:
        self.connection = connection
        self.writer = writer

    @classmethod
    async def open(cls, url: str, *, timeout: float, name: str, sealed: bool = False) -> "Wire":
        """Connect to the server.

        Args:
            url: Of the server, as `amqp://user:password@host:port/vhost`.
            timeout: Seconds that the server has for it.
            name: By which the connection is known in the server's own tools.
            sealed: Whether the driver is to read nothing that others have written; `unsealed` then does.

        Raises:
            ChannelError: The server cannot be reached, or does not want this user.
        """
        address = URL(url)
        if "heartbeat" not in address.query:
            address = address.update_query(heartbeat=HEARTBEAT)
        connection = _Connection(address, sealed=sealed, client_properties={"connection_name": name})
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()
        except BaseException as error:
            cls._abort(connection.socket.writer)
            if is_meant_for_us(error):
                raise
            await connection.close()
            reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise ChannelError(f"RabbitMQ at {connection} cannot be reached: {reason}", code=code_in(reason)) from error
        assert connection.socket.writer is not None
        return cls(connection, connection.socket.writer)

    @property
    def blocked(self) -> bool:
        """Whether the server has said that it takes no messages on this connection, because of memory or disk."""
        if self.connection.transport is None:
            return False
        # The driver only lets wait for it: what does not have to wait ends at the first step.
        waiting: Any = self.connection.transport.connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True

    async def unblocked(self) -> None:
        """Wait until the server takes messages, for ever if need be."""
        if self.connection.transport is not None:
            await self.connection.transport.connection.ready()

    def abort(self) -> None:
        """Cut the connection off without a word: whoever waits for something on it is told at once."""
        self._abort(self.writer)

    async def close(self) -> None:
        """Take leave of the server; cut the connection off when it does not answer."""
        closing = asyncio.ensure_future(self.connection.close())
        try:
            await asyncio.wait((closing,), timeout=_CLOSING)
        finally:
            if not closing.done():
                self.abort()
        await asyncio.wait((closing,), timeout=_CLOSING)
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            logger.debug("the connection was not closed properly: %s", error)

    @staticmethod
    def _abort(writer: asyncio.StreamWriter | None) -> None:
        if writer is not None:
            writer.transport.abort()


def is_meant_for_us(error: BaseException) -> bool:
    """Tell whether what a call of the driver raised is to be raised on, and is no failure of the call.

    The driver ends what it cannot finish by cancelling it, and then the error looks as if we had been cancelled.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return not isinstance(error, Exception)
