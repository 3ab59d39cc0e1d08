"""A server that can be down, for tests of what happens then."""

from collections.abc import Callable, Sequence

import anyio
from anyio.lowlevel import checkpoint

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.channel import Capabilities, Delivery
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, but not for ever."""
    with anyio.fail_after(60):
        while not condition():
            await checkpoint()


class Server:
    """A server that is up, down, or hangs, as the test says; and counts what is asked of it."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.receiving = 0
        self._failure: Exception | None = None
        self._down = False
        self._hangs = False
        self._waiting: set[anyio.Event] = set()

    def stop(self) -> None:
        self._down = True
        self._change()

    def start(self) -> None:
        self._down = self._hangs = False
        self._failure = None
        self._change()

    def hang(self) -> None:
        self._hangs = True

    def fail(self, error: Exception) -> None:
        self._failure = error
        self._change()

    def _change(self) -> None:
        for event in self._waiting:
            event.set()

    async def ask(self, name: str) -> None:
        """Do nothing when the server is up, else what it does then."""
        if self._hangs:
            await anyio.sleep_forever()
        if self._failure is not None:
            raise self._failure
        if self._down:
            raise ChannelError(f"the server of channel {name!r} is down")

    async def wait_for_a_change(self) -> None:
        event = anyio.Event()
        self._waiting.add(event)
        try:
            await event.wait()
        finally:
            self._waiting.discard(event)


class RemoteChannel:
    """A channel on a server that can be down."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.server = server
        self._inside = MemoryChannel(name)

    @property
    def capabilities(self) -> Capabilities:
        return self._inside.capabilities

    async def open(self) -> None:
        await self.server.ask(self.name)
        self.server.opened += 1

    async def close(self) -> None:
        self.server.closed += 1
        await checkpoint()
        await self.server.ask(self.name)
        await self._inside.close()

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await self.server.ask(self.name)
        await self._inside.send(messages)

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Wait for messages, until the connection breaks."""
        await self.server.ask(self.name)
        received: Sequence[Delivery] = ()
        self.server.receiving += 1
        try:
            async with anyio.create_task_group() as tasks:

                async def break_off() -> None:
                    await self.server.wait_for_a_change()
                    tasks.cancel_scope.cancel()

                tasks.start_soon(break_off)
                received = await self._inside.receive(limit, timeout)
                tasks.cancel_scope.cancel()
        finally:
            self.server.receiving -= 1
        if not received:
            await self.server.ask(self.name)
        return received
