"""Faults on purpose: a channel that fails, and interceptors that repeat or fail what passes through them.

    >>> channel = FailingChannel(MemoryChannel("orders"), sends=2)
    >>> channel.name
    'orders'

The first two calls of its `send` raise `ChannelError`, all others do what the channel inside does.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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


class TcpProxy:
    """Stands between a client and its server, and does what networks do. Made by `tcp_proxy`.

    Attributes:
        port: Where clients connect to.
        connections: How many connections are open through it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port: int = 0
        self._server = (host, port)
        self._refuses = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._left: int | None = None  # bytes that clients may still send before everything is cut
        self._deaf = False
        self._pairs: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}

    @property
    def serving(self) -> frozenset[asyncio.Task[None]]:
        """The tasks that pass on what clients and servers say, one for each connection."""
        return frozenset(self._pairs)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._pairs)

    def cut(self) -> None:
        """Reset all connections; new ones are let through."""
        for writers in self._pairs.values():
            for writer in writers:
                writer.transport.abort()

    def cut_after(self, sent: int) -> None:
        """Reset all connections when clients have sent so many more bytes; these still arrive."""
        self._left = sent

    def drop_answers(self) -> None:
        """Let what clients send arrive, and keep what servers answer, until `restore` or `cut`."""
        self._deaf = True

    def freeze(self) -> None:
        """Let nothing through in any direction, and keep all connections: a half-open network."""
        self._flows.clear()

    def refuse(self) -> None:
        """Reset all connections, and take no new ones: the server is down."""
        self._refuses = True
        self.cut()

    def restore(self) -> None:
        """Be an ordinary network again."""
        self._refuses = self._deaf = False
        self._left = None
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the server."""
        task = asyncio.current_task()
        assert task is not None
        if self._refuses:
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        self._pairs[task] = (writer, to_server)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, to_server, from_client=True))
                both.create_task(self._pass_on(from_server, writer, from_client=False))
        except* OSError:
            pass  # this is what the proxy is for: one side has gone, and the other one is told below
        finally:
            del self._pairs[task]
            for one in (writer, to_server):
                one.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            if from_client and self._left is not None:
                data, self._left = data[: self._left], self._left - len(data)
            if from_client or not self._deaf:
                writer.write(data)
                await writer.drain()
            if self._left is not None and self._left <= 0:
                self._left = None
                self.cut()
        raise ConnectionResetError


@asynccontextmanager
async def tcp_proxy(port: int, host: str = "127.0.0.1") -> AsyncIterator[TcpProxy]:
    """Open a proxy to a server, for tests of what happens when the network fails.

    Args:
        port: Where the server listens.
        host: On which machine.

    Example:
        >>> async with tcp_proxy(5672) as network:
        ...     url = f"amqp://guest:guest@127.0.0.1:{network.port}/"
    """
    proxy = TcpProxy(host, port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.restore()
        proxy.cut()
        if proxy.serving:
            await asyncio.wait(proxy.serving)


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
