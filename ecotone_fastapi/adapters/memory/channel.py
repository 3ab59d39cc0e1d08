"""A channel in this process: the default, and the test double of every other channel.

It behaves like a table on a database server, without the server: the same order, the same fences, and a clock that a
test may move. What it holds is gone when the process ends.

    >>> orders = MemoryChannel("orders")
    >>> orders.capabilities.delay
    True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count

import anyio
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.channel import Capabilities, Delivery, Destination
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.errors import LeaseLostError
from ecotone_fastapi.core.message import LONGEST_TIME, HeaderName, Message, number_header

_NEVER = datetime.max.replace(tzinfo=UTC)
_NUMBERS = frozenset((HeaderName.delay, HeaderName.time_to_live, HeaderName.priority, HeaderName.attempt))


class MemoryChannel:
    """A queue in this process.

    Messages are lent by priority, then in the order in which they became available, then in the order of sending. One
    that is given back becomes available anew, but one whose handler never ran keeps its place.

    Args:
        name: The name by which `@asynchronous` and the command line know the channel.
        clock: Tells when a delay, a lifetime or a lease is over.
        lease: Seconds after which a delivery that is not settled comes back; `None` waits for ever. It is not renewed.
        queue: The queue of another channel, to share it as two processes share one on a server, clock included.
        keeps_order: Whether messages with the same partition key are handled one after the other in the order of
            sending, by all consumers, also while one of them is retried: its successors wait.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock = SystemClock(),
        lease: float | None = None,
        queue: "MemoryQueue | None" = None,
        keeps_order: bool = False,
    ) -> None:
        self.name = name
        self.capabilities: Capabilities = Capabilities(
            delay=True,
            ordered=True,
            competing=True,
            priority=True,
            time_to_live=True,
            leased=lease is not None,
            keeps_order=queue.keeps_order if queue is not None else keeps_order,
        )
        self.queue: MemoryQueue = queue or MemoryQueue(clock, keeps_order=keeps_order)
        self._lease = lease
        self._closings = 0

    def use_clock(self, clock: Clock) -> None:
        """Go by this clock from now on."""
        self.queue.clock = clock

    def destination(self, *, sending: bool) -> Destination:
        """Return where its messages are: in this process, under its name."""
        return Destination(system="ecotone_memory", name=self.name)

    async def open(self) -> None:
        """Do nothing: the queue is there."""

    async def close(self) -> None:
        """Give back what is lent and end every `receive` that waits; the messages stay."""
        self._closings += 1
        self.queue.take_back(self)

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        """Store these messages, all or none.

        Raises:
            ConversionError: A `delay`, `time_to_live`, `priority` or `attempt` header is malformed.
        """
        self.queue.add(messages)

    async def receive(self, limit: int, timeout: float) -> Sequence["MemoryDelivery"]:
        """Lend up to `limit` messages, waiting up to `timeout` seconds for the first."""
        await checkpoint()  # a full queue must not keep the event loop from everybody else
        deadline, closings = anyio.current_time() + timeout, self._closings
        # Nothing is awaited once messages are lent, so that whoever cancels this loses none.
        while not (deliveries := self.queue.lend(limit, self, self._lease)):
            rest = deadline - anyio.current_time()
            if rest <= 0:
                break
            await self.queue.wait(rest)
            if self._closings != closings:
                break
        return deliveries

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """Ack these deliveries.

        Raises:
            LeaseLostError: Some were lost to other consumers; all others are removed.
        """
        lost = []
        for delivery in deliveries:
            try:
                await delivery.ack()
            except LeaseLostError:
                lost.append(delivery.message.headers.get(HeaderName.id, "without id"))
        if lost:
            raise LeaseLostError(
                f"channel {self.name!r} has lent to somebody else: {', '.join(lost)}", leases=len(lost)
            )

    async def depth(self) -> int:
        """Count the messages that wait or are lent, delayed ones included."""
        return self.queue.depth()

    async def oldest_age(self) -> float | None:
        """Return for how many seconds the longest waiting message has been ready; `None` without one."""
        now = self.queue.clock.now()
        ready = [entry.available_at for entry in self.queue.waiting() if entry.available_at <= now]
        return (now - min(ready)).total_seconds() if ready else None

    async def peek(self, limit: int = 100) -> Sequence[Message[bytes]]:
        """Return the next messages, delayed ones included, without lending them."""
        return [entry.as_received() for entry in self.queue.waiting()[:limit]]

    async def purge(self) -> int:
        """Delete all messages, those that are lent included; return how many there were."""
        removed = self.queue.depth()
        self.queue.clear()
        return removed


class MemoryDelivery:
    """A message of a `MemoryQueue`, lent to one channel. It is also its own proof of the lease."""

    def __init__(self, entry: "MemoryEntry", queue: "MemoryQueue", owner: MemoryChannel) -> None:
        self.message: Message[bytes] = entry.as_received()
        self.count: int = entry.deliveries
        self.owner = owner
        self.settled: bool = False
        self._entry = entry
        self._queue = queue

    async def ack(self) -> None:
        """Remove the message from the channel.

        Raises:
            LeaseLostError: The lease has ended and the message is no longer this consumer's to remove.
        """
        if self.settled:
            return
        if self._entry.holder is not self:
            raise LeaseLostError(
                f"channel {self.owner.name!r}: message {self.message.headers.get(HeaderName.id)} was acked too late",
                tried="its lease has ended, or the channel was closed or purged in the meantime",
                hint="give the channel a longer lease",
            )
        self._queue.remove(self._entry)
        self.settled = True

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        """Give the message back; do nothing when it was lost."""
        if self._entry.holder is self and not self.settled:
            self._queue.give_back(self._entry, delay, attempted=attempted)
            self.settled = True


class MemoryQueue:
    """What the channels of one queue share: the messages, in one heap those that are ready, in another the rest.

    A heap cannot drop an entry from its middle. Therefore every place in a heap has a ticket, and a place whose ticket
    is no longer the entry's is passed over.

    Args:
        clock: Tells when a delay, a lifetime or a lease is over.
        keeps_order: Whether only the first message of each partition key is lent.

    Attributes:
        clock: The clock.
        keeps_order: Whether only the first message of each partition key is lent.
    """

    def __init__(self, clock: Clock = SystemClock(), *, keeps_order: bool = False) -> None:
        self.clock = clock
        self.keeps_order: bool = keeps_order
        self._lines: dict[str, dict[int, MemoryEntry]] = {}
        self._entries: dict[int, MemoryEntry] = {}
        self._ready: list[tuple[int, datetime, int, int]] = []
        self._later: list[tuple[datetime, int, int]] = []
        self._numbers = count(1)
        self._sleepers: set[anyio.Event] = set()

    def add(self, messages: Sequence[Message[bytes]]) -> None:
        """Store messages, all or none."""
        now = self.clock.now()
        for entry in [MemoryEntry.of(message, next(self._numbers), now) for message in messages]:
            self._entries[entry.number] = entry
            if self.keeps_order and entry.key is not None:
                self._lines.setdefault(entry.key, {})[entry.number] = entry
            self._place(entry, entry.ready_at)
        self.wake()

    def lend(self, limit: int, owner: MemoryChannel, lease: float | None) -> Sequence[MemoryDelivery]:
        """Lend what is ready; drop what has expired."""
        now = self.clock.now()
        self._find_ready(now)
        deliveries: list[MemoryDelivery] = []
        while self._ready and len(deliveries) < limit:
            *_, number, ticket = heappop(self._ready)
            if not (entry := self._entries.get(number)) or entry.ticket != ticket:
                continue
            if entry.expires_at <= now:
                self.remove(entry)
                self._find_ready(now)  # it may have been somebody's turn to go
                continue
            if self._waits_in_line(entry):
                entry.in_line = True  # it gets another place when it is its turn
                continue
            entry.deliveries += 1
            entry.holder = MemoryDelivery(entry, self, owner)
            entry.available_at = _NEVER
            if lease is not None:
                self._place(entry, _later(now, lease))
            deliveries.append(entry.holder)
        return deliveries

    def give_back(self, entry: "MemoryEntry", delay: float, *, attempted: bool) -> None:
        """Make a lent message available again; what was not attempted was not delivered either."""
        entry.holder = None
        entry.attempts += attempted
        if attempted and entry.first_failed_at is None:
            entry.first_failed_at = self.clock.now()
        entry.deliveries -= not attempted
        if attempted or delay > 0:
            entry.ready_at = _later(self.clock.now(), delay)
        self._place(entry, entry.ready_at)
        self.wake()

    def take_back(self, owner: MemoryChannel) -> None:
        """Make everything available again that is lent to one channel, and end every `wait`."""
        for entry in self._entries.values():
            if entry.holder is not None and entry.holder.owner is owner:
                self.give_back(entry, 0.0, attempted=False)
        self.wake()

    def remove(self, entry: "MemoryEntry") -> None:
        """Forget a message; whoever holds it has lost it."""
        entry.holder = None
        self._entries.pop(entry.number, None)
        line = self._lines.get(entry.key) if entry.key is not None else None
        if line is not None and line.pop(entry.number, None) is not None:
            if line:
                following = next(iter(line.values()))
                if following.in_line:
                    self.release(following)
            else:
                del self._lines[entry.key or ""]

    def hold(self, entry: "MemoryEntry") -> None:
        """Lend a message that waits to nobody, until it is removed, put off or released."""
        entry.holder, entry.ticket, entry.in_line = None, next(self._numbers), False

    def release(self, entry: "MemoryEntry") -> None:
        """Let a message wait again that was held."""
        self._place(entry, entry.ready_at)
        self.wake()

    def put_off(self, entry: "MemoryEntry", due_at: datetime) -> None:
        """Let a message that waits be due at another time, with as much time to live after that as before."""
        if entry.expires_at != _NEVER:
            entry.expires_at = _later(due_at, (entry.expires_at - entry.ready_at).total_seconds())
        entry.holder, entry.ready_at = None, due_at
        self._place(entry, due_at)
        self.wake()

    def clear(self) -> None:
        """Forget all messages."""
        for entry in tuple(self._entries.values()):
            self.remove(entry)

    def depth(self) -> int:
        """Count what waits and what is lent."""
        now = self.clock.now()
        return sum(entry.expires_at > now or entry.is_lent(now) for entry in self._entries.values())

    def waiting(self) -> "list[MemoryEntry]":
        """Return what is not lent: what is ready in the order of lending, then what is not by the time when it is."""
        now = self.clock.now()
        return sorted(
            (entry for entry in self._entries.values() if entry.expires_at > now and not entry.is_lent(now)),
            key=lambda entry: (max(entry.available_at, now), -entry.priority, entry.available_at, entry.number),
        )

    def _find_ready(self, now: datetime) -> None:
        while self._later and self._later[0][0] <= now:
            _, number, ticket = heappop(self._later)
            if (entry := self._entries.get(number)) and entry.ticket == ticket:
                heappush(self._ready, (-entry.priority, entry.available_at, number, ticket))

    def _waits_in_line(self, entry: "MemoryEntry") -> bool:
        line = self._lines.get(entry.key) if entry.key is not None else None
        return line is not None and next(iter(line)) != entry.number

    async def wait(self, seconds: float) -> None:
        """Return when something arrives or becomes due, at the latest after so many seconds."""
        if self._later:
            seconds = min(seconds, (self._later[0][0] - self.clock.now()).total_seconds())
        arrival = anyio.Event()
        self._sleepers.add(arrival)
        try:
            with anyio.move_on_after(seconds):
                await arrival.wait()
        finally:
            self._sleepers.discard(arrival)

    def wake(self) -> None:
        """End every `wait`."""
        for arrival in self._sleepers:
            arrival.set()

    def _place(self, entry: "MemoryEntry", available_at: datetime) -> None:
        entry.available_at, entry.ticket, entry.in_line = available_at, next(self._numbers), False
        heappush(self._later, (available_at, entry.number, entry.ticket))


@dataclass(eq=False, slots=True)
class MemoryEntry:
    """A message in a queue."""

    message: Message[bytes]
    number: int
    priority: int
    ready_at: datetime
    expires_at: datetime
    attempts: int
    key: str | None = None
    in_line: bool = False
    first_failed_at: datetime | None = None
    deliveries: int = 0
    available_at: datetime = _NEVER
    ticket: int = 0
    holder: MemoryDelivery | None = None

    @classmethod
    def of(cls, message: Message[bytes], number: int, now: datetime) -> "MemoryEntry":
        """Return the entry of a message that was sent now."""
        headers = message.headers
        key = headers.get(HeaderName.partition_key)
        if _NUMBERS.isdisjoint(headers):  # as of most messages
            return cls(message, number, 0, now, _NEVER, 0, key)
        lifetime = number_header(headers, HeaderName.time_to_live, float, LONGEST_TIME)
        return cls(
            message=message.without_headers((HeaderName.delay, HeaderName.attempt)),
            number=number,
            priority=number_header(headers, HeaderName.priority, int, 9) or 0,
            ready_at=_later(now, number_header(headers, HeaderName.delay, float, LONGEST_TIME) or 0.0),
            expires_at=_NEVER if lifetime is None else _later(now, lifetime),
            attempts=number_header(headers, HeaderName.attempt, int, LONGEST_TIME) or 0,
            key=key,
        )

    def as_received(self) -> Message[bytes]:
        """Return the message as a consumer gets it."""
        if not self.attempts:
            return self.message
        headers = {HeaderName.attempt: str(self.attempts)}
        # It may have failed before it was sent here, on a channel that passed it on.
        if self.first_failed_at is not None and HeaderName.first_failed_at not in self.message.headers:
            headers[HeaderName.first_failed_at] = self.first_failed_at.isoformat()
        return self.message.with_headers(headers)

    def is_lent(self, now: datetime) -> bool:
        """Whether a consumer has it."""
        return self.holder is not None and self.available_at > now


def _later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=min(seconds, LONGEST_TIME))
