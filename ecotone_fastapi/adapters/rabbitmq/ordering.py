"""A subscription that keeps the order of each partition key: one process receives, and others only when that has gone.

What failed is not written anew, for its successors would overtake it. It is held here until its retry is due, they wait
behind it, and messages of other keys go on as long as the server may lend more to this process. When as many are here
as it may lend, everything waits for those that are held.

Nothing is given back to the server alone. A quorum queue lends what was given back before all else, in the order of
giving back: only of what comes back together is the order kept, and only for a consumer that may have all of it.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from aiormq.abc import AbstractChannel

from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.codes import code_in
from ecotone_fastapi.adapters.rabbitmq.lines import Lines
from ecotone_fastapi.adapters.rabbitmq.notes import Notes
from ecotone_fastapi.adapters.rabbitmq.subscription import OVERTIME, SHORT, WATCHED, Arrival, Arrived, Subscription
from ecotone_fastapi.adapters.rabbitmq.wire import Wire
from ecotone_fastapi.core.errors import ChannelError, SendError
from ecotone_fastapi.core.message import HeaderName, Message

logger: logging.Logger = logging.getLogger(__name__)

_MOMENT = 0.1  # seconds after which nobody is expected to ask for more soon, and others may have it
RENEWED = 900.0
"""Seconds that a message may be here before all are given back and received anew. The server takes a channel away whose
consumer holds a message for half an hour."""


class OrderedSubscription(Subscription):
    """What is received from one queue with a single active consumer, each partition key in order.

    Args:
        broker: Whose connection it is.
        wire: The connection.
        amqp: The channel, used for nothing else.
        queue: The name of the queue.
        prefetch: How many messages may be here without being settled; the same for all who receive from the queue.
        arrived: Makes an arrival of what the driver delivers.
    """

    def __init__(
        self, broker: Broker, wire: Wire, amqp: AbstractChannel, *, queue: str, prefetch: int, arrived: Arrived
    ) -> None:
        self._notes = Notes(broker, wire, queue, self._lose)
        self._lines = Lines()
        self._counted: deque[Arrival] = deque()  # lent, and noted as that, and waiting to be taken
        self._counting = 0
        self._reading: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        super().__init__(
            broker,
            wire,
            amqp,
            queue=queue,
            prefetch=prefetch,
            single=True,
            arrived=arrived,
            returned=self._keep,
        )

    # --------------------------------------------------------------------------------------------------- receiving

    async def take(self, limit: int, timeout: float) -> Sequence[Arrival]:
        """Return what may be lent, else what may be lent first, else nothing; see `Subscription.take`.

        Raises:
            ChannelError: The connection or the queue was lost.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        asked_last = False
        self._receivers += 1
        try:
            while True:
                if self._ending is not None:
                    await asyncio.wait((self._ending,))
                if self._closed:
                    return ()
                if self.lost is not None:
                    raise ChannelError(
                        f"queue {self._queue!r} is not received any more: {self.lost}", code=code_in(self.lost)
                    )
                self._line_up()
                if lent := self._lend(limit):
                    # Nothing is awaited from here on, so that whoever is cancelled loses nothing.
                    return lent
                if (self._is_too_old() and not self._in_hand()) or self._is_silent():
                    self._end()
                    continue
                self._news.clear()
                if not self._room:
                    await self._ask(self._consume(limit), "consuming")
                    continue
                rest = deadline - loop.time()
                if rest > 0:
                    await self._wait(min(rest, self._until_due(), self._heard_at + WATCHED - loop.time()))
                elif self._counting or (self._reading is not None and not self._reading.done()):
                    await self._wait(SHORT)  # what is here is being looked up, which has an end of its own
                elif asked_last or rest < -OVERTIME:
                    return ()
                else:
                    # Something may be on its way, on a busy machine for long; the server knows.
                    asked_last = not await self._ask(self._is_more_to_come(), "looking into")
                    if not asked_last:
                        await self._wait(SHORT)
        finally:
            self._receivers -= 1
            self._rest_soon()

    def _line_up(self) -> None:
        """Let what has arrived wait in its line; what somebody had before, when it is known what became of it."""
        while self._waiting:
            arrival = self._waiting[0]
            if arrival.returned:
                if not self._notes.complete:
                    if self._reading is None:
                        self._reading = self.broker.start(self._read())
                    return
                self._recall(arrival)
            self._lines.add(self._waiting.popleft())

    async def _read(self) -> None:
        try:
            await self._notes.read()
        except ChannelError as error:
            self._lose(error.what)
        finally:
            self._news.set()

    def _recall(self, arrival: Arrival) -> None:
        note = self._notes.about(_key(arrival))
        if note is None:
            return
        arrival.count, arrival.due, arrival.noted = note.deliveries + 1, max(arrival.due, note.due), True
        told = {HeaderName.attempt: note.attempt, HeaderName.first_failed_at: note.first_failed_at}
        arrival.message = arrival.message.with_headers({name: text for name, text in told.items() if text})

    def _lend(self, limit: int) -> Sequence[Arrival]:
        lent: list[Arrival] = []
        now = time.time()
        while len(lent) + self._counting < limit and not self._is_too_old():
            if self._counted:
                lent.append(self._counted.popleft())
                continue
            arrival = self._lines.lend(now)
            if arrival is None:
                break
            if arrival.expires is not None and arrival.expires <= now:
                self.ack([arrival])
            elif arrival.noted:
                self._counting += 1
                self.broker.start(self._count(arrival))
            else:
                lent.append(arrival)
        return lent

    async def _count(self, arrival: Arrival) -> None:
        """Note that a message is lent with which somebody has gone away before; then it may be taken."""
        try:
            await self._note(arrival, arrival.count)
        finally:
            self._counting -= 1
            if arrival.tag in self.outstanding:
                self._counted.append(arrival)
            self._news.set()

    async def _note(self, arrival: Arrival, deliveries: int) -> None:
        key, headers = _key(arrival), arrival.message.headers
        try:
            await self._notes.write(
                key,
                deliveries=deliveries,
                attempt=headers.get(HeaderName.attempt),
                first_failed_at=headers.get(HeaderName.first_failed_at),
                due=arrival.due,
            )
        except (ChannelError, SendError) as error:
            # It is known here; only if this process dies before the message is settled, it is not known elsewhere.
            logger.warning("queue %r: it was not noted how often %s was run: %s", self._queue, key, error.what)

    def _until_due(self) -> float:
        due = self._lines.due
        return WATCHED if due is None else max(0.001, due - time.time())

    def _is_too_old(self) -> bool:
        """Whether something is here for so long that everything should be received anew."""
        oldest = next(iter(self.outstanding.values()), None)
        moments = [self._notes.since, None if oldest is None else oldest.at]
        since = min((moment for moment in moments if moment is not None), default=None)
        return since is not None and asyncio.get_running_loop().time() - since > RENEWED

    def _is_silent(self) -> bool:
        """Whether nothing is here and nothing has come for long, as when the server sends it elsewhere by mistake."""
        return not self.outstanding and self._heard_at + WATCHED <= asyncio.get_running_loop().time()

    def _in_hand(self) -> bool:
        """Whether somebody has what was lent."""
        return bool(self._counting) or len(self._lines.lent) > len(self._counted)

    # ---------------------------------------------------------------------------------------------------- settling

    def ack(self, arrivals: Iterable[Arrival]) -> None:
        """Ack what is outstanding of these, and let the next ones of their keys go."""
        known = [arrival for arrival in arrivals if arrival.tag in self.outstanding]
        super().ack(known)
        for arrival in known:
            self._lines.remove(arrival)
            self._notes.erase(_key(arrival))
        self._news.set()
        self._rest_soon()

    def give_back(self, arrival: Arrival, *, unhandled: bool = True) -> None:
        """Let it be lent again from here, at its place."""
        if arrival.noted:
            self.broker.start(self._note(arrival, arrival.count - 1))
        self._put_back(arrival)

    async def hold(self, arrival: Arrival, message: Message[bytes], delay: float, *, attempted: bool) -> None:
        """Let a message be lent again from here when it is due, and no other of its key before that.

        Args:
            arrival: The message as it was lent.
            message: As it is lent next.
            delay: Seconds until then.
            attempted: Whether its handler has failed.
        """
        arrival.message = message
        arrival.count += attempted
        arrival.due = time.time() + delay if delay > 0 else 0.0
        if attempted or arrival.noted:
            await self._note(arrival, arrival.count - 1)
        self._put_back(arrival)

    def _put_back(self, arrival: Arrival) -> None:
        if arrival.tag in self.outstanding:
            self._lines.give_back(arrival)
            self._news.set()
            self._rest_soon()

    # ------------------------------------------------------------------------------------------------------ ending

    def _rest_soon(self) -> None:
        """Leave the queue to others when nobody asks for more and nobody has anything of it."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if not self._receivers and self._room and not self._in_hand():
            self._idle = asyncio.get_running_loop().call_later(_MOMENT, self._be_idle)

    def _be_idle(self) -> None:
        self._idle = None
        if not self._closed and self.lost is None and not self._receivers and not self._in_hand():
            self._end()

    def _end(self) -> None:
        self.renewable = True
        self._ending = self.broker.start(self.close())

    async def _give_everything_back(self) -> None:
        # Not one by one: what is on the AMQP channel comes back at once, and therefore in order, when it is closed.
        for arrival in self.outstanding.values():
            self.broker.given_back.note(arrival.key)
        await self._written()
        await self._notes.close()  # before anybody else receives

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self._lines = Lines()
            self._counted.clear()
            self.broker.start(self._notes.close())
        super()._lose(reason)

    async def _keep(self, arrival: Arrival) -> None:
        """Keep what nobody has asked for: it is given back when everything is."""


_CHANGING = frozenset({HeaderName.attempt, HeaderName.first_failed_at})


def _key(arrival: Arrival) -> str:
    """Return what tells a message from all others: there is one of each id for each handler of an event.

    What another program has sent without an id is told by all that it says. Twins of it share their notes.
    """
    headers: Any = arrival.message.headers
    if HeaderName.id in headers:
        return f"{headers[HeaderName.id]} {headers.get(HeaderName.endpoint, '')}"
    said = json.dumps(sorted(entry for entry in headers.items() if entry[0] not in _CHANGING))
    return hashlib.sha256(said.encode() + b"\0" + arrival.message.payload).hexdigest()
