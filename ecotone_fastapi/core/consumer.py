"""The loop that empties a channel.

It borrows a batch, handles up to `concurrency` messages of it at a time, each in a task and a context of its own, and
settles what is done in batches, too. Messages with the same partition key are handled one after the other, in order.
"""

import logging
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ecotone_fastapi.core.channel import Channel, Delivery, SettlesTogether
from ecotone_fastapi.core.errors import ChannelError, LeaseLostError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.pipeline import Proceed
from ecotone_fastapi.core.plugin import Limits

try:
    import resource
except ImportError:  # Windows has none; there the memory limit has no effect
    resource = None  # type: ignore[assignment]

logger: logging.Logger = logging.getLogger("ecotone_fastapi.consumer")

# How long one `receive` waits; a channel wakes up earlier when something arrives.
_PATIENCE = 5.0


class Consumer:
    """Empties one channel.

    Args:
        channel: The channel.
        gateway: Where its messages go.
        target: What is done with each; `gateway.deliver` unless told otherwise.
        concurrency: How many messages are handled at the same time.
        batch: How many messages are borrowed at a time; at least `concurrency`.

    Attributes:
        handled: How many messages it has handled well, in all its runs so far.
        together: The channel, if it settles several deliveries at once.
    """

    def __init__(
        self,
        channel: Channel,
        gateway: Gateway,
        *,
        target: Proceed | None = None,
        concurrency: int = 1,
        batch: int = 10,
    ) -> None:
        self.channel = channel
        self.concurrency = concurrency
        self.batch: int = max(batch, concurrency)
        self.handled = 0
        # To ask whether something has the shape of a protocol takes longer than to handle a message.
        self.together: SettlesTogether | None = channel if isinstance(channel, SettlesTogether) else None
        self._gateway = gateway
        self._target = target

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self.channel.name

    async def run(self, limits: Limits) -> int:
        """Handle messages until a limit is reached; return how many were handled well.

        Raises:
            ChannelError: The channel was lost. What was under way has been finished or will come back.
        """
        return await _Run(self, limits).run()

    async def handle(self, delivery: Delivery) -> bool:
        """Take one message through the gateway; return whether that went well.

        Raises:
            Exception: What nobody took care of. The gateway has given the message back, if the channel took it.
        """
        return await self._gateway.receive(self.channel.name, delivery, self._target)


@dataclass
class _Lane:
    """Those who wait for one partition key."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0


class _Run:
    """One run of a consumer.

    A delivery is waiting, then running, then done and to be acked. One whose handler failed has been given back by
    then, unless the channel refused it; it is offered again before more is received, and must never be acked.
    """

    def __init__(self, consumer: Consumer, limits: Limits) -> None:
        self.consumer = consumer
        self.channel = consumer.channel
        self.limits = limits
        self.handled = 0
        self.waiting: dict[int, Delivery] = {}
        self.running: dict[int, Delivery] = {}
        self.done: list[Delivery] = []
        self.refused: list[Delivery] = []
        self.settling = False
        self.over = False
        self.lanes: dict[str, _Lane] = {}
        self.places = anyio.Semaphore(consumer.concurrency, fast_acquire=True)
        self.one_less = anyio.Event()
        self.ends_at = None if limits.seconds is None else time.monotonic() + limits.seconds

    async def run(self) -> int:
        lost: Exception | None = None
        try:
            async with anyio.create_task_group() as handlers:
                with anyio.CancelScope() as receiving:
                    if self.limits.stop is not None:
                        handlers.start_soon(self._wait_for_stop, self.limits.stop, receiving)
                    try:
                        await self._receive_until_done(handlers)
                    except Exception as error:  # raised when those under way, who have no part in it, have finished
                        lost = error
                self.over = True
                with anyio.move_on_after(self.limits.grace):
                    while self.running:
                        await self._one_less(None)
                handlers.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._settle()
                await self._give_back()
        if lost is not None:
            raise lost
        return self.handled

    async def _wait_for_stop(self, stop: anyio.Event, receiving: anyio.CancelScope) -> None:
        await stop.wait()
        receiving.cancel()

    async def _receive_until_done(self, handlers: TaskGroup) -> None:
        while not self._reached():
            room = self._room()
            if room <= 0:
                await self._one_less(self._time_left())
                continue
            await self._return_refused()
            deliveries = await self.channel.receive(room, self._patience())
            for delivery in deliveries:
                self.waiting[id(delivery)] = delivery
                handlers.start_soon(self._handle, delivery)
            if not deliveries and self.limits.until_empty:
                if self._lent() or self.settling:
                    await self._one_less(self._time_left())
                elif not self.refused:
                    return

    def _reached(self) -> bool:
        limits = self.limits
        return (
            self._ending()
            or (limits.messages is not None and self.handled >= limits.messages)
            or self._time_left() == 0.0
            or (limits.memory is not None and _megabytes() > limits.memory)
        )

    def _ending(self) -> bool:
        return self.over or (self.limits.stop is not None and self.limits.stop.is_set())

    def _lent(self) -> int:
        return len(self.waiting) + len(self.running)

    def _room(self) -> int:
        """How many messages to ask for: the next batch when half of the last one is done, or a place is free."""
        lent = self._lent()
        is_idle = not self.waiting and len(self.running) < self.consumer.concurrency
        room = self.consumer.batch - lent if is_idle or lent <= self.consumer.batch // 2 else 0
        if self.limits.messages is not None:
            room = min(room, self.limits.messages - self.handled - lent)
        return room

    def _time_left(self) -> float | None:
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    def _patience(self) -> float:
        if self.limits.until_empty:
            return 0.0
        left = self._time_left()
        return _PATIENCE if left is None else min(_PATIENCE, left)

    async def _one_less(self, timeout: float | None) -> None:
        self.one_less = anyio.Event()
        with anyio.move_on_after(timeout):
            await self.one_less.wait()

    async def _handle(self, delivery: Delivery) -> None:
        key = delivery.message.headers.get(HeaderName.partition_key)
        try:
            async with self._lane(key), self.places:
                if self._ending():
                    return  # it is given back at the end of the run
                self.running[id(delivery)] = self.waiting.pop(id(delivery))
                if not self.waiting:
                    self.one_less.set()  # there may be a free place, and nothing for it
                try:
                    await self._run_handler(delivery)
                finally:
                    del self.running[id(delivery)]
            await self._settle()
        finally:
            self.one_less.set()

    async def _run_handler(self, delivery: Delivery) -> None:
        try:
            if await self.consumer.handle(delivery):
                self.handled += 1
                self.consumer.handled += 1
        except Exception:
            # The consumer goes on with the other messages.
            name, id_ = self.channel.name, delivery.message.headers.get(HeaderName.id)
            logger.exception("channel %s: message %s failed", name, id_)
            if not delivery.settled:
                self.refused.append(delivery)
        else:
            if not delivery.settled:
                self.done.append(delivery)

    async def _return_refused(self) -> None:
        while self.refused:
            await self.refused[-1].nack()
            self.refused.pop()

    @asynccontextmanager
    async def _lane(self, key: str | None) -> AsyncIterator[None]:
        if key is None:
            yield
            return
        lane = self.lanes.setdefault(key, _Lane())
        lane.users += 1
        try:
            async with lane.lock:
                yield
        finally:
            lane.users -= 1
            if lane.users == 0:
                del self.lanes[key]

    async def _settle(self) -> None:
        """Ack what is done. Who comes while another one is at it leaves it to that one: so acks come in batches."""
        if self.settling or not self.done:
            return
        self.settling = True
        try:
            with anyio.CancelScope(shield=True):
                while self.done:
                    batch, self.done = self.done, []
                    await self._ack(batch)
        finally:
            self.settling = False

    async def _ack(self, batch: Sequence[Delivery]) -> None:
        try:
            if self.consumer.together is not None:
                await self.consumer.together.ack_all(batch)
            else:
                for delivery in batch:
                    await delivery.ack()
        except LeaseLostError as error:
            logger.warning("channel %s: handled, but lost before the ack: %s", self.channel.name, error)
        except ChannelError as error:
            logger.warning("channel %s: handled, but not acked; it will come again: %s", self.channel.name, error)

    async def _give_back(self) -> None:
        never_ran = [(delivery, False) for delivery in self.waiting.values()]
        for delivery, attempted in [*never_ran, *((delivery, True) for delivery in self.refused)]:
            try:
                await delivery.nack(attempted=attempted)
            except ChannelError as error:
                logger.warning("channel %s: not given back; it will come again: %s", self.channel.name, error)


def _megabytes() -> float:
    """How much memory this process has taken at its peak."""
    system: Any = resource
    if system is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return float(system.getrusage(system.RUSAGE_SELF).ru_maxrss * unit / 1_000_000)
