"""The loop that empties a channel.

It borrows a batch, handles up to `concurrency` messages of it at a time, each in a task and a context of its own, and
settles what is done in batches, too. Messages with the same partition key are handled one after the other, in order.
"""

import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ecotone_fastapi.core.channel import Channel, Delivery, SettlesTogether
from ecotone_fastapi.core.errors import ChannelError, ConsumerStoppedError, LeaseLostError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, failed_attempts
from ecotone_fastapi.core.pipeline import Proceed
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.core.watching import Operation, Watching

try:
    import resource
except ImportError:  # Windows has none; there the memory limit has no effect
    resource = None  # type: ignore[assignment]

logger: logging.Logger = logging.getLogger("ecotone_fastapi.consumer")

# How long one `receive` waits; a channel wakes up earlier when something arrives.
_PATIENCE = 5.0
# How many consumers died with a message in hand before it is handled alone. One may be chance.
_SUSPICIOUS = 2


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Why a consumer receives nothing for now. It finishes what is under way, and gives back what has not begun.

    Args:
        reason: Why, in words.
        since: Since when.
        until: From then on one message at a time is let through, to try; without it, nothing until it is let go on.
    """

    reason: str
    since: datetime
    until: datetime | None = None

    def allowed(self, now: datetime) -> int:
        """Return how many messages may be lent to the consumer at this moment."""
        return 1 if self.until is not None and self.until <= now else 0


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
        failed: How many deliveries did not go well, in all its runs so far; each attempt at a message counts.
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
        self.failed: int = 0
        # To ask whether something has the shape of a protocol takes longer than to handle a message.
        self.together: SettlesTogether | None = channel if isinstance(channel, SettlesTogether) else None
        self._gateway = gateway
        self._target = target
        self._holds: dict[object, Hold] = {}
        self._runs: list[_Run] = []

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self.channel.name

    @property
    def holds(self) -> Mapping[object, Hold]:
        """What holds it back, by who does so."""
        return self._holds

    def hold(self, holder: object, hold: Hold) -> None:
        """Hold it back, at once, until the same one lets it go on; in this process.

        Args:
            holder: Who holds it back; what it said before is replaced.
            hold: Why, and until when.
        """
        self._holds[holder] = hold
        for run in self._runs:
            run.hold_back()

    def let_go_on(self, holder: object) -> None:
        """Hold it back no longer; do nothing when this one does not."""
        if self._holds.pop(holder, None) is not None:
            for run in self._runs:
                run.one_less.set()

    def allowed(self) -> int | None:
        """Return how many messages it may have lent now; `None` without a bound, when nobody holds it back."""
        if not self._holds:
            return None
        now = self._gateway.clock.now()
        return min(hold.allowed(now) for hold in self._holds.values())

    def seconds_held(self) -> float | None:
        """Return after how many seconds `allowed` may be another number by itself; `None` when never."""
        now = self._gateway.clock.now()
        moments = [hold.until for hold in self._holds.values() if hold.until is not None and hold.until > now]
        return min((moment - now).total_seconds() for moment in moments) if moments else None

    async def run(self, limits: Limits) -> int:
        """Handle messages until a limit is reached; return how many were handled well.

        Raises:
            ChannelError: The channel was lost. What was under way has been finished or will come back.
            ConsumerStoppedError: A message failed, and what comes behind it has to wait.
        """
        run = _Run(self, limits)
        self._runs.append(run)
        try:
            return await run.run()
        finally:
            self._runs.remove(run)

    async def handle(self, delivery: Delivery) -> bool:
        """Take one message through the gateway; return whether that went well.

        Raises:
            Exception: What nobody took care of. The gateway has given the message back, if the channel took it.
        """
        return await self._gateway.receive(self.channel.name, delivery, self._target)

    async def ack(self, delivery: Delivery) -> None:
        """Remove a message that was lent here.

        Raises:
            LeaseLostError: It is no longer this consumer's to remove.
            ChannelError: The server could not be reached; it will come back.
        """
        await self._gateway.ack(self.channel.name, delivery)

    async def nack(self, delivery: Delivery, *, attempted: bool) -> None:
        """Give back a message that was lent here; see `Delivery.nack`.

        Raises:
            ChannelError: The server could not be reached; it will come back by itself.
        """
        await self._gateway.nack(self.channel.name, delivery, attempted=attempted)

    @property
    def watching(self) -> Watching:
        """Who watches the work on the channel."""
        return self._gateway.watching


@dataclass
class _Lane:
    """Those who wait for one partition key."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    users: int = 0


class _Run:
    """One run of a consumer.

    A delivery is waiting, then running, then done and to be acked. One whose handler failed has been given back by
    then, unless the channel refused it; it is offered again before more is received, and must never be acked. When the
    consumer is held back, what waits is given back, too: those to be given back are kept with whether they were run.
    """

    def __init__(self, consumer: Consumer, limits: Limits) -> None:
        self.consumer = consumer
        self.channel = consumer.channel
        self.watching = consumer.watching
        self.limits = limits
        self.handled = 0
        self.waiting: dict[int, Delivery] = {}
        self.running: dict[int, Delivery] = {}
        self.done: list[Delivery] = []
        self.returning: list[tuple[Delivery, bool]] = []
        self.settling = False
        self.over = False
        self.careful = False
        self.first = True
        self.stopped: ConsumerStoppedError | None = None
        self.lanes: dict[str, _Lane] = {}
        self.places = anyio.Semaphore(consumer.concurrency, fast_acquire=True)
        self.one_less = anyio.Event()
        self.receiving: anyio.CancelScope | None = None
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
        failure = lost if lost is not None else self.stopped
        if failure is not None:
            raise failure
        return self.handled

    async def _wait_for_stop(self, stop: anyio.Event, receiving: anyio.CancelScope) -> None:
        await stop.wait()
        receiving.cancel()

    def hold_back(self) -> None:
        """Receive no longer; look again what is allowed."""
        self.one_less.set()
        if self.receiving is not None:
            self.receiving.cancel()

    async def _receive_until_done(self, handlers: TaskGroup) -> None:
        while not self._reached():
            allowed = self.consumer.allowed()
            if allowed is not None:
                self._take_back(allowed)
                await self._return()
                allowed = self.consumer.allowed()
            room = self._room(allowed)
            if room <= 0:
                if allowed is not None and self._has_nothing_left():
                    return
                await self._one_less(self._time_left() if allowed is None else self._time_held())
                continue
            await self._return()
            busy = bool(self._lent()) or self.settling  # what is under way now may have been given back meanwhile
            deliveries = await self._receive(room)
            if deliveries is None:
                continue
            for delivery in await self._kept_apart(deliveries):
                handlers.start_soon(self._handle, delivery)
            if not deliveries and self.limits.until_empty:
                if self._lent() or self.settling:
                    await self._one_less(self._time_left())
                elif not busy and self._has_nothing_left():
                    return

    async def _receive(self, room: int) -> Sequence[Delivery] | None:
        """Receive; return `None` when it was held back meanwhile, and is to look again what it may do."""
        deliveries: Sequence[Delivery] | None = None
        with anyio.CancelScope() as self.receiving:
            with self.watching.during(Operation.RECEIVE, "receive", self.channel.name, (), self.channel) as work:
                deliveries = await self.channel.receive(room, self._patience())
                work.messages = [delivery.message for delivery in deliveries]
        self.receiving = None
        return deliveries

    async def _kept_apart(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return what can be handled together; give back the rest for now. The order is kept.

        A message that kills its consumers would take its neighbours with it again and again, until it looks as if each
        of them did. Therefore one with which consumers have died is handled while nothing else is lent.
        """
        together = next((at for at, delivery in enumerate(deliveries) if _is_suspicious(delivery)), None)
        self.careful = together is not None
        if deliveries:
            self.first = False
        if together == 0 and not self._lent():
            together = 1
        kept = deliveries if together is None else deliveries[:together]
        self.waiting.update((id(delivery), delivery) for delivery in kept)
        self.returning += [(delivery, False) for delivery in deliveries[len(kept) :]]
        if together is not None:
            await self._return()
        return kept

    def _has_nothing_left(self) -> bool:
        return self.limits.until_empty and not (self._lent() or self.settling or self.returning)

    def _reached(self) -> bool:
        limits = self.limits
        return (
            self._ending()
            or (limits.messages is not None and self.handled >= limits.messages)
            or self._time_left() == 0.0
            or (limits.memory is not None and megabytes() > limits.memory)
        )

    def _ending(self) -> bool:
        stop = self.limits.stop
        return self.over or self.stopped is not None or (stop is not None and stop.is_set())

    def _lent(self) -> int:
        return len(self.waiting) + len(self.running)

    def _room(self, allowed: int | None) -> int:
        """How many messages to ask for: the next batch when half of the last one is done, or a place is free."""
        lent = self._lent()
        if self.careful and lent:
            return 0
        is_idle = not self.waiting and len(self.running) < self.consumer.concurrency
        # Where consumers have died, the first message tells; its neighbours would count as lent once more for nothing.
        batch = 1 if self.careful or self.first else self.consumer.batch
        room = batch - lent if is_idle or lent <= batch // 2 else 0
        if self.limits.messages is not None:
            room = min(room, self.limits.messages - self.handled - lent)
        return room if allowed is None else min(room, allowed - lent)

    def _time_left(self) -> float | None:
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    def _time_held(self) -> float:
        """How long to wait while held back: never for long, because a clock may be moved forward meanwhile."""
        times = (_PATIENCE, self._time_left(), self.consumer.seconds_held())
        return min(seconds for seconds in times if seconds is not None)

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
                if self._ending() or id(delivery) not in self.waiting or self._is_held():
                    return  # it is given back, at the end of the run or before
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
            else:
                self.consumer.failed += 1
        except Exception as error:
            self.consumer.failed += 1
            if isinstance(error, ConsumerStoppedError):
                self.stopped = error
                self.hold_back()
            else:
                # The consumer goes on with the other messages.
                name, id_ = self.channel.name, delivery.message.headers.get(HeaderName.id)
                logger.exception("channel %s: message %s failed", name, id_)
            if not delivery.settled:
                self.returning.append((delivery, True))
        else:
            if not delivery.settled:
                self.done.append(delivery)

    def _is_held(self) -> bool:
        allowed = self.consumer.allowed()
        return allowed is not None and len(self.running) >= allowed

    def _take_back(self, allowed: int) -> None:
        """Give back, before they begin, those that are more than allowed."""
        for key in list(self.waiting)[max(0, allowed - len(self.running)) :]:
            self.returning.append((self.waiting.pop(key), False))

    async def _return(self) -> None:
        while self.returning:
            first = self.returning[0]
            delivery, attempted = first
            await self.consumer.nack(delivery, attempted=attempted)
            self.returning.remove(first)

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
                messages, where = [delivery.message for delivery in batch], self.channel
                single = batch[0] if len(batch) == 1 else None
                with self.watching.during(Operation.SETTLE, "ack", where.name, messages, where, delivery=single):
                    await self.consumer.together.ack_all(batch)
            else:
                for delivery in batch:
                    await self.consumer.ack(delivery)
        except LeaseLostError as error:
            logger.warning("channel %s: handled, but lost before the ack: %s", self.channel.name, error)
        except ChannelError as error:
            logger.warning("channel %s: handled, but not acked; it will come again: %s", self.channel.name, error)

    async def _give_back(self) -> None:
        never_ran = [(delivery, False) for delivery in self.waiting.values()]
        for delivery, attempted in [*never_ran, *self.returning]:
            try:
                await self.consumer.nack(delivery, attempted=attempted)
            except ChannelError as error:
                logger.warning("channel %s: not given back; it will come again: %s", self.channel.name, error)


def _is_suspicious(delivery: Delivery) -> bool:
    """Whether several consumers had the message and never told what became of it."""
    if delivery.count <= _SUSPICIOUS:
        return False
    return delivery.count - 1 - failed_attempts(delivery.message) >= _SUSPICIOUS


def megabytes() -> float:
    """How much memory this process has taken at its peak."""
    system: Any = resource
    if system is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return float(system.getrusage(system.RUSAGE_SELF).ru_maxrss * unit / 1_000_000)
