"""The table of messages as a channel: transactional, durable, delayed, and exactly once in effect.

`send` writes rows and `ack` deletes one in the transaction of the handler, so that messages come and go with the
handler's own writes or not at all. A message is lent for the length of a lease, which is renewed for as long as its
consumer holds the delivery; after that somebody else may have it, and a late `ack` rolls its transaction back.
"""

import asyncio
import hashlib
import json
import logging
import random
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import anyio
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.order import InOrder
from ecotone_fastapi.adapters.sqlalchemy.queue import ClaimedRow, Lease, NewRow, Queue
from ecotone_fastapi.adapters.sqlalchemy.tables import LONGEST_NAME
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions, Unit
from ecotone_fastapi.adapters.sqlalchemy.wakeup import Wakeup
from ecotone_fastapi.core.channel import Capabilities, Delivery, Destination
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, LeaseLostError
from ecotone_fastapi.core.message import LONGEST_TIME, HeaderName, Message, number_header
from ecotone_fastapi.core.process import this_process
from ecotone_fastapi.core.watching import Operation

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)

_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_UNREADABLE = "unreadable_headers"
_BATCH = 1000  # rows that one statement sends or settles


class SqlChannel:
    """A channel in a table. Made by `SqlAlchemy.channel`.

    Args:
        name: The name by which `@asynchronous` and the command line know the channel.
        transactions: Where statements run.
        queue: The statements.
        wakeup: Tells that there is something to receive.
        prepare: Sees to it that the tables are there.
        lease: Seconds for which a message is lent.
        renew: Whether leases are renewed while their deliveries are held.
        clock: Tells how far a test has travelled; all else is told by the server.
        in_order: Claims that keep the order of each partition key; without it, the plain ones are used.
    """

    def __init__(
        self,
        name: str,
        *,
        transactions: Transactions,
        queue: Queue,
        wakeup: Wakeup,
        prepare: Callable[[], Awaitable[None]],
        lease: float = 60.0,
        renew: bool = True,
        clock: Clock = SystemClock(),
        in_order: InOrder | None = None,
    ) -> None:
        if not 0 < len(name) <= LONGEST_NAME:
            raise ConfigurationError(
                f"a channel in a database cannot be named {name!r}", hint=f"use 1 to {LONGEST_NAME} characters"
            )
        if not lease > 0:
            raise ConfigurationError(f"channel {name!r} cannot lend messages for {lease} seconds", hint="use 60.0")
        self.name = name
        self.capabilities: Capabilities = Capabilities(
            delay=True,
            ordered=True,
            durable=True,
            transactional=True,
            competing=True,
            priority=True,
            time_to_live=True,
            leased=True,
            keeps_order=in_order is not None,
        )
        self._transactions = transactions
        self._queue = queue
        self._wakeup = wakeup
        self._prepare = prepare
        self._lease = lease
        self._renew = renew
        self._clock = clock
        self._in_order = in_order
        self._lent: dict[Lease, weakref.ref[SqlDelivery]] = {}
        self._renewal: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._pause = _SHORTEST_PAUSE
        self._open = False
        self._closings = 0

    def use_clock(self, clock: Clock) -> None:
        """Go by this clock from now on: by the time that it has travelled, for the rest is told by the server."""
        self._clock = clock

    def destination(self, *, sending: bool) -> Destination:
        """Return where its messages are: on the server of the database, under its name."""
        url = self._transactions.engine.url
        return Destination(system="ecotone_sql", name=self.name, address=url.host, port=url.port, client=this_process())

    async def open(self) -> None:
        """Make sure that the tables are there, and listen.

        Raises:
            ChannelError: The database cannot be reached; `open` may be tried again.
            ConfigurationError: A table is missing.
        """
        await self._prepare()
        if not self._open:
            self._open = True
            self._wakeup.open()

    async def close(self) -> None:
        """Give back what was lent and not settled, and end every `receive` that waits."""
        if self._open:
            self._open = False
            with anyio.CancelScope(shield=True):
                await self._let_go()

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        """Write these messages, all or none, in the unit of work that is open in the calling task's scope, if any.

        Raises:
            ConversionError: A `delay`, `time_to_live`, `priority` or `attempt` header is malformed.
            ChannelError: The database refused or could not be reached.
        """
        rows = [_row(message) for message in messages]
        if not rows:
            return

        async def insert(connection: AsyncConnection) -> None:
            for start in range(0, len(rows), _BATCH):
                await self._queue.insert(connection, self.name, rows[start : start + _BATCH], self._offset)

        unit = self._transactions.unit()
        several = len(rows) > self._queue.rows_at_once
        await self._transactions.join(insert, f"sending to channel {self.name!r}", several=several)
        if unit is None:
            self._wakeup.ring(self.name)
        else:
            unit.after_commit(self._ring)

    async def receive(self, limit: int, timeout: float) -> Sequence["SqlDelivery"]:
        """Lend up to `limit` messages, waiting up to `timeout` seconds for the first.

        Raises:
            ChannelError: The database cannot be reached; `receive` may be tried again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        closings = self._closings
        rung = True
        while closings == self._closings:
            bell = self._wakeup.bell(self.name)
            # To claim is to write, so it is not done for the sake of looking.
            due = 0.0 if rung else await self._next_due()
            if due is not None and due <= 0.0:
                deliveries = await self._claim(limit)
                if deliveries:
                    self._pause = _SHORTEST_PAUSE
                    return deliveries
                due = await self._next_due() if rung and deadline > loop.time() else None
            pause = self._pause * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if due is not None:
                pause = min(pause, max(due, 0.001))
            rest = deadline - loop.time()
            if rest <= 0:
                break
            try:
                async with asyncio.timeout(min(pause, rest)):
                    rung = await bell.wait()
            except TimeoutError:
                rung = False
        return ()

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """Ack these deliveries in one statement, outside any transaction.

        Raises:
            LeaseLostError: Some were lost to other consumers; all others are removed.
            ChannelError: The database could not be reached; what was not removed will come back.
        """
        unsettled: list[SqlDelivery] = []
        lost: list[SqlDelivery] = []
        for delivery in deliveries:
            if isinstance(delivery, SqlDelivery) and not delivery.settled:
                (unsettled if self._has_lent(delivery) else lost).append(delivery)
        for start in range(0, len(unsettled), _BATCH):
            chunk = unsettled[start : start + _BATCH]
            leases = [delivery.lease for delivery in chunk]
            removed = await self._transactions.run(
                partial(self._queue.delete, leases=leases),
                f"acking on channel {self.name!r}",
            )
            for delivery in chunk:
                self.forget(delivery.lease)
                if delivery.lease.id in removed:
                    delivery.conclude()
                else:
                    lost.append(delivery)
            self._turn_over()
        if lost:
            raise self._lease_lost(lost)

    async def depth(self) -> int:
        """Count the messages that wait or are lent, delayed ones included."""
        return await self._look(lambda c: self._queue.depth(c, self.name, self._offset), "counting")

    async def oldest_age(self) -> float | None:
        """Return for how many seconds the longest waiting message has been ready; `None` without one."""
        return await self._look(lambda c: self._queue.oldest_age(c, self.name, self._offset), "looking at the age")

    async def peek(self, limit: int = 100) -> Sequence[Message[bytes]]:
        """Return the next messages, delayed ones included, without lending them."""
        rows = await self._look(lambda c: self._queue.peek(c, self.name, limit, self._offset), "looking")
        return [self.read(row) for row in rows]

    async def purge(self) -> int:
        """Delete all messages, those that are lent included; return how many there were."""
        return await self._transactions.run(
            lambda connection: self._queue.purge(connection, self.name), f"purging channel {self.name!r}"
        )

    def is_in(self, transactions: Transactions) -> bool:
        """Whether the channel is in the database of these transactions."""
        return self._transactions is transactions

    # ---------------------------------------------------------------------------------------------- for deliveries

    async def remove(self, delivery: "SqlDelivery") -> None:
        """Ack one delivery; with the commit of the unit of work that is open in the calling task's scope, if any."""
        if not self._has_lent(delivery):
            raise self._lease_lost([delivery])

        def check(removed: bool) -> None:
            if not removed:
                self.forget(delivery.lease)
                raise self._lease_lost([delivery])

        delete = partial(self._queue.delete_one, lease=delivery.lease)
        unit, doing = self._transactions.unit(), f"acking on channel {self.name!r}"
        if unit is None:
            check(await self._transactions.run(delete, doing))
        else:
            unit.before_commit(delete, doing, check)
        self._settle(delivery, unit)

    async def give_back(self, delivery: "SqlDelivery", delay: float, *, attempted: bool) -> None:
        """Nack one delivery, in the unit of work that is open in the calling task's scope, if any."""

        async def statements(connection: AsyncConnection) -> None:
            if attempted or delay > 0:
                await self._queue.give_back(connection, delivery.lease, delay, attempted=attempted, offset=self._offset)
            else:
                await self._queue.restore(connection, [delivery.lease], unlent=True)

        if not self._has_lent(delivery):
            return
        unit = self._transactions.unit()
        await self._transactions.join(statements, f"giving back to channel {self.name!r}")
        self._settle(delivery, unit)
        if unit is None:
            self._wakeup.ring(self.name)
        else:
            unit.after_commit(self._ring)

    def read(self, row: ClaimedRow) -> Message[bytes]:
        """Return the message in a row."""
        headers = _headers(row)
        if row.attempts:
            headers[HeaderName.attempt] = str(row.attempts)
            if row.first_failed_at is not None:
                failed_at = self._queue.dialect.read_moment(row.first_failed_at).isoformat()
                # It may have failed before it was sent here, on a channel that passed it on.
                headers.setdefault(HeaderName.first_failed_at, failed_at)
        return Message(row.body, headers)

    def forget(self, lease: Lease) -> None:
        """Renew this lease no longer."""
        self._lent.pop(lease, None)

    def _has_lent(self, delivery: "SqlDelivery") -> bool:
        """Whether a delivery was lent since the channel was closed last: to close is to give back."""
        return delivery.closings == self._closings

    def _settle(self, delivery: "SqlDelivery", unit: Unit | None) -> None:
        if unit is None:
            self.forget(delivery.lease)
            delivery.conclude()
            self._turn_over()
        else:
            delivery.unit = unit
            unit.after_commit(lambda: self.forget(delivery.lease))
            unit.after_commit(self._turn_over)

    def _turn_over(self) -> None:
        """Look for the messages that have waited for the one that is settled."""
        if self._in_order is not None:
            self._wakeup.ring_here(self.name)

    def _lease_lost(self, lost: Sequence["SqlDelivery"]) -> LeaseLostError:
        names = ", ".join(delivery.message.headers.get(HeaderName.id, "without id") for delivery in lost)
        return LeaseLostError(
            f"channel {self.name!r}: acked too late: {names}",
            leases=len(lost),
            tried=f"a lease of {self._lease} seconds, which has ended, or the channel was closed or purged",
            hint="give the channel a longer lease, or find out what keeps the event loop from renewing it",
        )

    async def _let_go(self) -> None:
        self._closings += 1
        self._wakeup.ring_here(self.name)
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
            self._renewal = None
        while self._under_way:  # what ends may be followed by giving back
            await asyncio.wait(self._under_way)
        leases = list(self._lent)
        self._lent.clear()
        try:
            await self._restore(leases, unlent=True)
        except ChannelError as error:
            logger.warning("channel %r: %d messages come back when their leases end: %s", self.name, len(leases), error)
        await self._wakeup.close()

    # ---------------------------------------------------------------------------------------------------- claiming

    async def _claim(self, limit: int) -> Sequence["SqlDelivery"]:
        with self._transactions.watching.during(Operation.CLAIM, "claim", self.name, (), self) as work:
            deliveries = await self._claimed(limit)
            work.messages = [delivery.message for delivery in deliveries]
        return deliveries

    async def _claimed(self, limit: int) -> Sequence["SqlDelivery"]:
        closings = self._closings  # as it was before: what is claimed while the channel closes is given back
        while True:
            token = uuid4()
            claiming = self._transactions.start(
                partial(
                    self._queue.claim if self._in_order is None else self._in_order.claim,
                    channel=self.name,
                    limit=limit,
                    lease=self._lease,
                    token=token,
                    offset=self._offset,
                ),
                f"receiving from channel {self.name!r}",
                several=self._in_order is not None,
            )
            self._under_way.add(claiming)
            claiming.add_done_callback(self._under_way.discard)
            try:
                rows = await asyncio.shield(claiming)
            except asyncio.CancelledError:
                claiming.add_done_callback(partial(self._return_claim, token))
                raise
            expired = [row for row in rows if row.expired]
            if expired:
                self._in_background(self._drop(expired, token))
            deliveries = [SqlDelivery(self, row, token, closings) for row in rows if not row.expired]
            if deliveries or not expired:
                break
        for delivery in deliveries:
            self._lent[delivery.lease] = weakref.ref(delivery)
        if deliveries and self._open and self._renewal is None:
            self._renewal = asyncio.create_task(self._keep_leases(), name=f"ecotone: leases of {self.name}")
        return deliveries

    def _return_claim(self, token: UUID, claiming: asyncio.Task[Sequence[ClaimedRow]]) -> None:
        """Give back what was claimed for a receiver that was cancelled meanwhile."""
        if not claiming.cancelled() and claiming.exception() is None and claiming.result():
            leases = [Lease(row.id, token) for row in claiming.result()]
            self._in_background(self._restore(leases, unlent=True))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def logged() -> None:
            try:
                await work
            except ChannelError as error:
                logger.warning("channel %r: messages come back when their leases end: %s", self.name, error)

        task = asyncio.create_task(logged())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _drop(self, rows: Sequence[ClaimedRow], token: UUID) -> None:
        leases = [Lease(row.id, token) for row in rows]
        await self._transactions.run(
            partial(self._queue.delete, leases=leases), f"dropping what has expired on channel {self.name!r}"
        )
        for row in rows:
            message_id = self.read(row).headers.get(HeaderName.id)
            logger.info("channel %r: message %s was dropped, its time to live is over", self.name, message_id)
        self._turn_over()

    async def _restore(self, leases: Sequence[Lease], *, unlent: bool) -> None:
        if not leases:
            return
        await self._transactions.run(
            lambda connection: self._queue.restore(connection, leases, unlent=unlent),
            f"giving back to channel {self.name!r}",
            several=True,
        )
        self._wakeup.ring(self.name)

    async def _keep_leases(self) -> None:
        pause = self._lease / 3
        while True:
            await asyncio.sleep(pause)
            held, dropped = [], []
            for lease, reference in list(self._lent.items()):
                delivery = reference()
                if delivery is None:  # nobody can settle it any more
                    dropped.append(lease)
                    self.forget(lease)
                else:
                    held.append(lease)
            try:
                if held and self._renew:
                    await self._transactions.run(
                        partial(self._queue.renew, leases=held, seconds=self._lease, offset=self._offset),
                        f"renewing leases of channel {self.name!r}",
                    )
                await self._restore(dropped, unlent=False)
                pause = self._lease / 3
            except ChannelError as error:
                logger.warning("channel %r: leases were not renewed: %s", self.name, error)
                pause = self._lease / 10

    async def _next_due(self) -> float | None:
        due = await self._look(lambda c: self._queue.next_due(c, self.name, self._offset), "looking")
        if self._in_order is None or due is None or due > 0:
            return due
        # What is due may wait for its turn. To claim is to write, so it is not done for the sake of looking.
        in_order = self._in_order
        free = await self._look(lambda c: in_order.has_free(c, self.name, self._offset), "looking")
        return 0.0 if free else None

    async def _look(self, statements: Callable[[AsyncConnection], Awaitable[T]], doing: str) -> T:
        return await self._transactions.read(statements, f"{doing} at channel {self.name!r}")

    def _ring(self) -> None:
        self._wakeup.ring(self.name)

    @property
    def _offset(self) -> float:
        return self._clock.offset.total_seconds()


class SqlDelivery:
    """A message in a table, lent to one consumer.

    Attributes:
        message: The message.
        count: How often it was lent, this time included.
        lease: The right to settle it.
        unit: The unit of work in which it was settled last.
        closings: How often the channel had been closed when it was lent.
    """

    __slots__ = ("__weakref__", "_channel", "_settled", "closings", "count", "lease", "message", "unit")

    def __init__(self, channel: SqlChannel, row: ClaimedRow, token: UUID, closings: int) -> None:
        self.message: Message[bytes] = channel.read(row)
        self.count: int = row.deliveries
        self.lease: Lease = Lease(row.id, token)
        self.closings: int = closings
        self.unit: Unit | None = None
        self._channel = channel
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether an ack or nack has taken effect: inside a transaction, whether that has committed."""
        return self._settled or (self.unit is not None and self.unit.committed)

    @property
    def is_settling(self) -> bool:
        """Whether it was settled in a transaction that is still open."""
        return self.unit is not None and self.unit.open

    async def ack(self) -> None:
        """Remove the message from the channel.

        In a unit of work that is open in the calling task's scope this is done just before the commit, which then
        raises what is told here.

        Raises:
            LeaseLostError: The lease has ended and the message is no longer this consumer's to remove.
            ChannelError: The database could not be reached; the message will come back.
        """
        if not self.settled and not self.is_settling:
            await self._channel.remove(self)

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        """Give the message back; do nothing when it was lost.

        Args:
            delay: Seconds to wait before it is delivered again.
            attempted: Whether a handler ran and failed. If none did, the message keeps its place and the delivery
                does not count.

        Raises:
            ChannelError: The database could not be reached; the message will come back by itself.
        """
        if not self.settled and not self.is_settling:
            await self._channel.give_back(self, delay, attempted=attempted)

    def conclude(self) -> None:
        """Take note that it is settled."""
        self._settled = True


def _row(message: Message[bytes]) -> NewRow:
    kept = message.without_headers((HeaderName.delay, HeaderName.attempt))
    return NewRow(
        message_id=_short(message.headers.get(HeaderName.id)),
        priority=number_header(message.headers, HeaderName.priority, int, 9) or 0,
        delay=number_header(message.headers, HeaderName.delay, float, LONGEST_TIME) or 0.0,
        time_to_live=number_header(message.headers, HeaderName.time_to_live, float, LONGEST_TIME),
        attempts=number_header(message.headers, HeaderName.attempt, int, 2**31 - 1) or 0,
        partition_key=_short(message.headers.get(HeaderName.partition_key)),
        headers=json.dumps(dict(kept.headers)),
        body=bytes(message.payload),
        schedule_key=stored_key(message.headers.get(HeaderName.schedule_key)),
    )


def _headers(row: ClaimedRow) -> dict[str, str]:
    """Read headers; of those that somebody else has written in another form, save what can be saved.

    What names no endpoint finds no handler, and is parked at once instead of stopping the channel.
    """
    try:
        headers: object = json.loads(row.headers)
    except (ValueError, RecursionError):
        headers = None
    known = headers if isinstance(headers, dict) else {}
    texts = {name: value for name, value in known.items() if isinstance(value, str)}
    if known is headers and len(texts) == len(known):
        return texts
    texts.pop(HeaderName.endpoint, None)
    texts.setdefault(HeaderName.id, row.message_id or str(row.id))
    texts[_UNREADABLE] = row.headers
    return texts


def stored_key(key: str | None) -> str | None:
    """Return what stands in the table for a key: itself, or as much as there is room for and a digest of it all."""
    if key is None or (_short(key) == key and not key.endswith(" ")):  # MariaDB compares without blanks at the end
        return key
    digest = hashlib.sha256(key.encode(errors="backslashreplace")).hexdigest()
    return f"{_short(key[:100])} {digest}"


def _short(value: str | None) -> str | None:
    # For people who look into the table, and for indexes. What counts is in the headers.
    if value is None:
        return None
    return value.replace("\x00", "").encode(errors="replace").decode()[:LONGEST_NAME]
