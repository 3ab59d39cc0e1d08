"""What an adapter tells the suites about itself, and the steps that their cases share."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, NoReturn, TypeVar

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectReceiveStream

from ecotone_fastapi.core.channel import Channel, Delivery, Inspectable, SettlesTogether
from ecotone_fastapi.core.errors import ChannelError, LeaseLostError
from ecotone_fastapi.core.message import HeaderName, Message, new_id
from ecotone_fastapi.core.plugin import Plugin

R = TypeVar("R")


class Rollback(Exception):  # noqa: N818 - it is no error: the cases roll back with it
    """Ends a transaction that is not to be committed."""


class Hooks:
    """What all suites ask for. A hook that is not implemented skips the cases that need it."""

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Hook: open the unit of work that transactional channels and stores take part in when used in the same task.

        Left well it commits; left by an exception it rolls back and lets the exception pass.
        """
        self._skip_without("transaction", "a unit of work")

    def _skip_without(self, hook: str, need: str) -> NoReturn:
        pytest.skip(f"needs {need}, but {type(self).__name__} does not implement {hook}()")

    def _has(self, hook: str) -> bool:
        """Tell whether a subclass implements a hook."""
        return getattr(type(self), hook) is not getattr(ChannelHooks, hook)

    @asynccontextmanager
    async def _rolled_back(self) -> AsyncIterator[None]:
        with pytest.raises(Rollback):  # noqa: PT012 - what it leaves is the transaction
            async with self.transaction():
                yield
                raise Rollback


class Begun(Generic[R]):
    """Something that is being done.

    Attributes:
        beginning: Is set when it begins.
        end: Is set when it has ended, however.
    """

    def __init__(self, work: Callable[[], Awaitable[R]]) -> None:
        self.beginning: anyio.Event = anyio.Event()
        self.end: anyio.Event = anyio.Event()
        self._work = work
        self._results: list[R] = []
        self._failures: list[Exception] = []

    async def run(self) -> None:
        """Do it."""
        self.beginning.set()
        try:
            self._results.append(await self._work())
        except Exception as error:
            self._failures.append(error)
        finally:
            self.end.set()

    async def result(self) -> R:
        """Wait for the end; return or raise what came of it."""
        await self.end.wait()
        if self._failures:
            raise self._failures[0]
        return self._results[0]

    async def ends_within(self, seconds: float) -> bool:
        """Tell whether it ends soon; if not, it waits for something."""
        with anyio.move_on_after(seconds):
            await self.end.wait()
        return self.end.is_set()


class OpenUnit:
    """A transaction in a task of its own, which does what it is told until it is told to end."""

    def __init__(self, transaction: Callable[[], AbstractAsyncContextManager[None]], tasks: TaskGroup) -> None:
        self._transaction = transaction
        self._orders, orders = anyio.create_memory_object_stream[Callable[[], Awaitable[None]] | bool](10)
        self._over = anyio.Event()
        self._failure: Exception | None = None
        tasks.start_soon(self._run, orders)

    async def do(self, work: Callable[[], Awaitable[R]]) -> R:
        """Do something in the transaction; return or raise what comes of it."""
        return await (await self.begin(work)).result()

    async def begin(self, work: Callable[[], Awaitable[R]]) -> "Begun[R]":
        """Begin to do something in the transaction; return when it was begun."""
        begun = Begun(work)
        self._orders.send_nowait(begun.run)
        await begun.beginning.wait()
        return begun

    async def commit(self) -> None:
        """End it well; raise what the commit raises."""
        await self._end(well=True)

    async def rollback(self) -> None:
        """End it badly."""
        await self._end(well=False)

    async def _end(self, *, well: bool) -> None:
        self._orders.send_nowait(well)
        await self._over.wait()
        if self._failure is not None:
            raise self._failure

    async def _run(self, orders: MemoryObjectReceiveStream[Callable[[], Awaitable[None]] | bool]) -> None:
        try:
            async with orders, self._transaction():
                async for order in orders:
                    if order is False:
                        raise Rollback
                    if order is True:
                        break
                    await order()
        except Rollback:
            pass
        except Exception as error:
            self._failure = error
        finally:
            self._orders.close()
            self._over.set()


class ChannelHooks(Hooks):
    """What the suite for channels asks for; `ChannelConformance` tells more."""

    patience: float = 15.0
    moment: float = 0.2
    volume: int = 10_000
    crowd: int = 20
    lease: float = 60.0

    def channel(self, name: str) -> AbstractAsyncContextManager[Channel]:
        """Open a channel, and close it in the end.

        Each call opens a channel of its own onto the same server: two with the same name are two consumers of one
        queue. Names are letters, digits and hyphens; every case makes up new ones.
        """
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Hook: let so much time pass for the server and for all channels, without waiting."""
        self._skip_without("advance", "time travel")

    def channel_with_lease(self, name: str, lease: float) -> AbstractAsyncContextManager[Channel]:
        """Hook: open a channel with a lease of so many seconds, which it renews as long as its consumer is alive."""
        self._skip_without("channel_with_lease", "a short lease that is renewed")

    def skewed_channel(self, name: str, seconds: float) -> AbstractAsyncContextManager[Channel]:
        """Hook: open a channel on a machine whose clock is ahead of the server's, or behind it when negative."""
        self._skip_without("skewed_channel", "a machine whose clock is wrong")

    async def drop_connections(self) -> None:
        """Hook: cut all connections between the open channels and the server, which accepts new ones."""
        self._skip_without("drop_connections", "a connection that breaks")

    def server_away(self) -> AbstractAsyncContextManager[None]:
        """Hook: let nobody reach the server while the context is open: connections are cut, and new ones refused."""
        self._skip_without("server_away", "a server that can be away")

    def refused_message(self) -> Message[bytes]:
        """Hook: return a message that the server refuses, while it accepts the others of the same batch."""
        self._skip_without("refused_message", "a message that the server refuses")

    def unroutable_channel(self, name: str) -> AbstractAsyncContextManager[Channel]:
        """Hook: open a channel whose messages reach nobody, because the server has no queue for them."""
        self._skip_without("unroutable_channel", "a server that may have no queue for a message")

    async def delete_queue(self, name: str) -> None:
        """Hook: delete the queue of a channel on the server, by the hand of somebody else, while it is in use."""
        self._skip_without("delete_queue", "a queue that somebody else may delete")

    def channel_that_keeps_order(self, name: str) -> AbstractAsyncContextManager[Channel]:
        """Hook: open a channel that keeps the order of each partition key over all of its consumers."""
        self._skip_without("channel_that_keeps_order", "a channel that keeps the order of each key")

    def stores(self) -> Sequence[Plugin]:
        """Hook: return the plugins that keep the dead letters and the inbox of an application with these channels.

        An empty sequence means those in memory; channels that are durable need others.
        """
        self._skip_without("stores", "an application with a dead letter")

    def _needs(self, channel: Channel, capability: str) -> None:
        if not getattr(channel.capabilities, capability):
            pytest.skip(f"{type(channel).__name__} does not claim to be {capability!r}")

    def _inspect(self, channel: Channel) -> Inspectable:
        if not isinstance(channel, Inspectable):
            pytest.skip(f"{type(channel).__name__} cannot be looked into")
        return channel

    async def _receive(self, channel: Channel, number: int, *, limit: int | None = None) -> list[Delivery]:
        """Receive at least so many deliveries, or fail."""
        deliveries: list[Delivery] = []
        while len(deliveries) < number:
            lent = await channel.receive((limit or number) - len(deliveries), self.patience)
            assert lent, f"{len(deliveries)} of {number} messages arrived within {self.patience} seconds"
            deliveries += lent
        return deliveries

    async def _take(self, channel: Channel, number: int) -> list[Message[bytes]]:
        """Receive and ack exactly so many messages, or fail."""
        taken: list[Message[bytes]] = []
        while len(taken) < number:
            deliveries = await self._receive(channel, 1, limit=min(number - len(taken), 100))
            await settle(channel, deliveries)
            taken += [delivery.message for delivery in deliveries]
        return taken

    async def _take_all(self, channel: Channel, wanted: Iterable[str]) -> list[Message[bytes]]:
        """Receive and ack what is there, and what is there again once the leases of all that is lent have ended.

        What is wanted is waited for: that nothing arrives for a moment says little on a busy machine.
        """
        taken: list[Message[bytes]] = []
        missing = set(wanted)
        leases_have_ended = not channel.capabilities.leased
        ends_at = anyio.current_time() + self.patience
        while True:
            deliveries = await channel.receive(100, self.moment)
            await settle(channel, deliveries)
            taken += [delivery.message for delivery in deliveries]
            missing.difference_update(delivery.message.id for delivery in deliveries)
            if deliveries:
                continue
            if not leases_have_ended:
                await self.advance(self.lease + 1)
                leases_have_ended = True
            elif not missing or anyio.current_time() > ends_at:
                return taken

    async def _collect(self, channel: Channel, received: list[Message[bytes]]) -> None:
        for delivery in await channel.receive(10, self.patience):
            with anyio.CancelScope(shield=True):
                await delivery.ack()
                received.append(delivery.message)

    async def _receive_until_closed(self, channel: Channel) -> None:
        try:
            await channel.receive(10, self.patience)
        except ChannelError:
            return

    async def _assert_nothing_arrives(self, channel: Channel) -> None:
        assert [delivery.message for delivery in await channel.receive(1, self.moment)] == []

    async def _let_pass(self, seconds: float) -> None:
        """Let time pass: by the hook, or by listening where nothing is said."""
        if self._has("advance"):
            await self.advance(seconds)
            return
        async with self.channel(unique()) as silent:
            await silent.receive(1, seconds)

    async def _insist(self, action: Callable[[], Awaitable[R]]) -> R:
        """Repeat what fails with `ChannelError`, but not for ever, and not what is lost."""
        with anyio.fail_after(2 * self.patience):
            while True:
                try:
                    return await action()
                except LeaseLostError:
                    raise
                except ChannelError:
                    await checkpoint()


def unique() -> str:
    """Return a name that no other case uses, on a server that may remember earlier runs."""
    return f"conformance-{uuid.uuid4().hex[:12]}"


def letter(payload: bytes = b"hello", /, **headers: str) -> Message[bytes]:
    """Return a message with an id of its own and these headers."""
    return Message(payload, {HeaderName.id: new_id(), **headers})


def letters(number: int, /, **headers: str) -> list[Message[bytes]]:
    """Return so many messages, numbered in their payloads."""
    return [letter(str(place).encode(), **headers) for place in range(number)]


def ids(messages: Iterable[Message[bytes]]) -> list[str]:
    """Return the ids of the messages."""
    return [message.id for message in messages]


def by_id(messages: Iterable[Message[bytes]]) -> dict[str, Message[bytes]]:
    """Return the messages by their ids."""
    return {message.id: message for message in messages}


async def settle(channel: Channel, deliveries: Sequence[Delivery]) -> None:
    """Ack deliveries in the cheapest way that the channel offers."""
    if isinstance(channel, SettlesTogether):
        await channel.ack_all(deliveries)
    else:
        for delivery in deliveries:
            await delivery.ack()
