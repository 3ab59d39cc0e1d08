"""One AMQP channel on which one queue is received: for as long as it lives, what it has lent can be settled.

The server pushes, and `receive` pulls. So that nothing lies here that others could handle, the server is asked for as
many messages as are wanted, and told to stop as soon as nobody has asked for more for a moment.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage

from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.codes import code_in
from ecotone_fastapi.adapters.rabbitmq.wire import Wire
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message

logger: logging.Logger = logging.getLogger(__name__)

_MOMENT = 0.1  # seconds after which nobody is expected to ask for more soon
WATCHED = 30.0  # seconds of silence after which the server is not trusted to know of us any more
SHORT = 0.01  # seconds between two such questions
OVERTIME = 1.0  # seconds that are waited in addition for what the server says is ready


@dataclass(eq=False, slots=True)
class Arrival:
    """A message that has arrived and is not settled.

    Args:
        subscription: On which it has arrived.
        tag: Its number there.
        consumer: For which consumer of the subscription.
        message: The message.
        count: How often it was lent, this time included.
        suspect: Whether somebody had it before and went away, which this kind of queue does not count.
        forgiven: How many of these may have ended well: the server counts what was given back, too.
        costly: Whether to give it back at its place would look as if somebody had died with it.
        key: Tells it from all other messages, if its sender has given it an id.
        expires: When it is no longer worth handling, in seconds since 1970.
        overdue: Whether that time has passed, without the server knowing it.
        returned: Whether somebody had it before.
        line: Its partition key, if the order of keys is kept here.
        due: When it may be lent, in seconds since 1970, if it has to wait for that here.
        noted: Whether it is noted beside the queue each time it is lent.
        at: When it has arrived, in the loop's time.
    """

    subscription: "Subscription"
    tag: int
    consumer: str
    message: Message[bytes]
    count: int
    suspect: bool
    forgiven: int
    costly: bool
    key: str | None
    expires: float | None
    overdue: bool
    returned: bool = False
    line: str | None = None
    due: float = 0.0
    noted: bool = False
    at: float = 0.0


Arrived = Callable[["Subscription", DeliveredMessage], Arrival]
"""Makes an arrival of what the driver delivers."""


class Subscription:
    """What is received from one queue.

    Args:
        broker: Whose connection it is.
        wire: The connection.
        amqp: The channel, used for nothing else.
        queue: The name of the queue.
        prefetch: How many messages may be here without being settled.
        single: Whether the queue serves only one consumer at a time, which then must not come and go.
        arrived: Makes an arrival of what the driver delivers.
        returned: Gives back an arrival that nobody has asked for.

    Attributes:
        broker: Whose connection it is.
        lost: Why it is of no use any more; `None` while it is.
        renewable: Whether it was lost for no other reason than that a new one is safer.
        outstanding: What has arrived and is not settled, in the order of arrival.
    """

    def __init__(
        self,
        broker: Broker,
        wire: Wire,
        amqp: AbstractChannel,
        *,
        queue: str,
        prefetch: int,
        single: bool,
        arrived: Arrived,
        returned: Callable[[Arrival], Awaitable[None]],
    ) -> None:
        self.lost: str | None = None
        self.renewable: bool = False
        self.outstanding: dict[int, Arrival] = {}
        self.broker = broker
        self._wire = wire
        self._amqp = amqp
        self._queue = queue
        self._prefetch = prefetch
        self._single = single
        self._arrived = arrived
        self._returned = returned
        self._waiting: deque[Arrival] = deque()
        self._frames: deque[Any] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._room: dict[str, int] = {}  # what each consumer may still be given
        self._given = 0  # what all of them may have together
        self._numbers = itertools.count(1)
        self._changing = asyncio.Lock()
        self._news = asyncio.Event()
        self._receivers = 0
        self._idle: asyncio.TimerHandle | None = None
        self._heard_at = asyncio.get_running_loop().time()
        self._closed = False
        self._closing = amqp.closing
        self._closing.add_done_callback(self._amqp_closed)
        amqp.on_consumer_cancel_callbacks.add(self._cancelled)

    # --------------------------------------------------------------------------------------------------- receiving

    async def take(self, limit: int, timeout: float) -> Sequence[Arrival]:
        """Return what has arrived, else what arrives first, else nothing.

        Nothing, too, when it is closed meanwhile, or when a new subscription should be made in its place.

        Raises:
            ChannelError: The connection or the queue was lost.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        asked_last = False
        self._receivers += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            while True:
                if self._closed or self.renewable:
                    return ()
                if self.lost is not None:
                    raise ChannelError(
                        f"queue {self._queue!r} is not received any more: {self.lost}", code=code_in(self.lost)
                    )
                if self._waiting:
                    # Nothing is awaited from here on, so that whoever is cancelled loses nothing.
                    return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
                self._news.clear()
                if self._wants(limit):
                    await self._ask(self._consume(limit), "consuming")
                    continue
                rest = deadline - loop.time()
                if rest <= 0 and asked_last:
                    return ()
                if rest <= 0:
                    # Something may be on its way, on a busy machine for long; the server knows. But another consumer
                    # may have what is ready to itself.
                    asked_last = not await self._ask(self._is_more_to_come(), "looking into")
                    if loop.time() > deadline + OVERTIME:
                        asked_last = True
                    if not asked_last:
                        await self._wait(SHORT)
                    continue
                await self._wait(min(rest, self._heard_at + WATCHED - loop.time()))
        finally:
            self._receivers -= 1
            if not self._receivers and not self._single and self._room:
                self._idle = loop.call_later(_MOMENT, self._be_idle)

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            await self._ask(self._amqp.queue_declare(self._queue, passive=True), "looking for")
            self._heard_at = asyncio.get_running_loop().time()
            # A queue that is deleted and made anew at once may take us for its consumer, and what it sends us is lost
            # on the way (RabbitMQ 3.10). It comes back when this AMQP channel is closed.
            if not self.outstanding and not self._single:
                self.renewable = True
                self._lose("nothing has come for long")
            return
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    def _wants(self, limit: int) -> int:
        """How many more messages the server should be asked for."""
        room = sum(self._room.values())
        if room >= limit or (self._single and self._room):
            return 0
        most = self._prefetch - room - len(self.outstanding)
        if self._single:
            return max(most, 1)
        # Doubled, so that it settles soon; but never more than was asked for to begin with.
        return max(0, min(most, max(limit - room, self._given)))

    async def _consume(self, limit: int) -> None:
        async with self._changing:
            more = self._wants(limit)
            if self._closed or self.lost is not None or more <= 0:
                return
            await self._amqp.basic_qos(prefetch_count=more)
            # The room is there before the first delivery is.
            tag = f"ecotone-{next(self._numbers)}"
            self._room[tag] = more
            self._given += more
            try:
                await self._amqp.basic_consume(self._queue, self._deliver, consumer_tag=tag)
            except BaseException:
                self._room.pop(tag, None)
                raise
            self._heard_at = asyncio.get_running_loop().time()

    async def _is_more_to_come(self) -> bool:
        """Return whether something is ready that there is room for. If not, all that was sent before is here."""
        found = await self._amqp.queue_declare(self._queue, passive=True)
        # The answers to two questions do not overtake what was sent between them.
        await self._amqp.basic_qos(prefetch_count=1)
        return bool(found.message_count) and not self._waiting and sum(self._room.values()) > 0

    async def _deliver(self, delivered: DeliveredMessage) -> None:
        arrival = self._arrived(self, delivered)
        self._heard_at = arrival.at = asyncio.get_running_loop().time()
        self.outstanding[arrival.tag] = arrival
        if arrival.consumer in self._room:
            self._room[arrival.consumer] -= 1
        self._waiting.append(arrival)
        self._news.set()

    def _be_idle(self) -> None:
        self._idle = None
        if not self._closed and self.lost is None and not self._receivers:
            self.broker.start(self._stop_for_now())

    async def _stop_for_now(self) -> None:
        """Ask for no more, and give back what nobody has asked for."""
        async with self._changing:
            if self._receivers or self._closed or self.lost is not None:
                return
            await self._cancel_consumers()
            if not self._receivers:
                surplus, self._waiting = self._waiting, deque()
                await self._return(surplus)

    async def _return(self, arrivals: Iterable[Arrival]) -> None:
        await asyncio.gather(*map(self._returned, arrivals))

    async def _cancel_consumers(self) -> None:
        consumers, self._room, self._given = list(self._room), {}, 0
        for tag in consumers:
            await self._ask(self._amqp.basic_cancel(tag), "stopping to consume")

    # ---------------------------------------------------------------------------------------------------- settling

    def ack(self, arrivals: Iterable[Arrival]) -> None:
        """Ack what is outstanding of these: all at once as far as nothing else has arrived between them."""
        tags = {arrival.tag for arrival in arrivals if arrival.tag in self.outstanding}
        up_to = 0
        for tag in self.outstanding:
            if tag not in tags:
                break
            up_to = tag
        if up_to:
            self._send(self._amqp.basic_ack(up_to, multiple=True, wait=False))
        for tag in sorted(tags):
            if tag > up_to:
                self._send(self._amqp.basic_ack(tag, wait=False))
            self.broker.given_back.forget(self.outstanding[tag].key)
            self._forget(tag)

    def put_back(self, arrival: Arrival) -> None:
        """Let an arrival be taken once more."""
        if arrival.tag in self.outstanding:
            self._waiting.appendleft(arrival)
            self._news.set()

    def give_back(self, arrival: Arrival, *, unhandled: bool = True) -> None:
        """Let the server deliver it again, at its place in the queue."""
        if arrival.tag in self.outstanding:
            if unhandled:
                self.broker.given_back.note(arrival.key)
            self._send(self._amqp.basic_nack(arrival.tag, requeue=True, wait=False))
            self._forget(arrival.tag)

    def _forget(self, tag: int) -> None:
        arrival = self.outstanding.pop(tag)
        if arrival.consumer in self._room:
            self._room[arrival.consumer] += 1
        elif self._receivers:
            self._news.set()  # there is room for another consumer

    def _send(self, frame: Any) -> None:
        """Hand a frame to the driver, whatever happens to the caller.

        One after the other: in tasks of their own, those that wait for room in the driver's queue are overtaken, and an
        ack of many that overtakes one of them acks it, too, which the server then takes for a fault.
        """
        self._frames.append(frame)
        if len(self._frames) == 1:
            self._writing = self.broker.start(self._write_frames())

    async def _write_frames(self) -> None:
        try:
            while self._frames:
                await self._frames[0]
                self._frames.popleft()
        finally:
            for frame in self._frames:  # the AMQP channel is closed; what was lent on it comes back
                frame.close()
            self._frames.clear()

    # ------------------------------------------------------------------------------------------------------ ending

    async def close(self) -> None:
        """Ask for no more, and give back everything."""
        self._closed = True
        self._news.set()
        if self._idle is not None:
            self._idle.cancel()
        try:
            async with self._changing:
                if self.lost is None:
                    await self._give_everything_back()
                    # The answer tells that the server has read all of that.
                    await self._ask(self._amqp.close(), "closing an AMQP channel")
        except ChannelError as error:
            logger.debug("queue %r: what was lent comes back with the connection: %s", self._queue, error)
        finally:
            self._lose("it was closed")

    async def _give_everything_back(self) -> None:
        await self._cancel_consumers()
        await asyncio.sleep(0)  # what has arrived before that has its turn
        self._waiting.clear()
        await self._return(tuple(self.outstanding.values()))
        await self._written()

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.wait((self._writing,))

    def _amqp_closed(self, closing: "asyncio.Future[Any]") -> None:
        error = None if closing.cancelled() else closing.exception()
        self._lose(str(error) or type(error).__name__ if error is not None else "the connection was closed")

    def _cancelled(self, frame: Any) -> None:
        if frame.consumer_tag in self._room:
            self._lose("the server has cancelled the consumer; the queue may have been deleted")

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self._waiting.clear()
            self.outstanding.clear()
            self._news.set()
            if not self._amqp.is_closed:  # what it holds goes to others at once
                self.broker.start(self._amqp.close())

    async def _ask(self, question: Any, doing: str) -> Any:
        return await self.broker.ask(self._wire, question, f"{doing} queue {self._queue!r}")
