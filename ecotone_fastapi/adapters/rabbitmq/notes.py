"""What is known about messages that keep their place in a queue, written beside it.

A message that failed and keeps its place cannot be written anew, so its failures are counted here: in a queue of notes,
which whoever receives the messages next reads first. All notes are lent to the one that receives. A newer note about a
message takes the place of the older one, and when the message is settled its note goes, too.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import anyio
from aiormq.abc import AbstractChannel, DeliveredMessage

from ecotone_fastapi.adapters.rabbitmq.batches import Outgoing
from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.topology import Topology
from ecotone_fastapi.adapters.rabbitmq.wire import Wire
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message

logger: logging.Logger = logging.getLogger(__name__)

_MOST = 65535  # notes that may be here; there is about one for each message
_KEPT = 7 * 24 * 3600.0  # seconds that a note is kept whose message is never seen again, as when its queue was purged
_SHORT = 0.01  # seconds between two questions
_PATIENCE = 5.0  # seconds that are waited for the one who received before to be gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is known about one message.

    Args:
        about: Tells the message from all others.
        turn: The higher of two is the newer one.
        deliveries: How often it was lent.
        attempt: Its `attempt` header.
        first_failed_at: Its `first_failed_at` header.
        due: When it may be lent again, in seconds since 1970.
    """

    about: str
    turn: int
    deliveries: int
    attempt: str | None
    first_failed_at: str | None
    due: float


class Notes:
    """The notes about the messages of one queue, for as long as its subscription lives.

    Args:
        broker: Whose connections are used.
        wire: The connection to receive on.
        queue: The name of the queue that the notes are about.
        lost: Is called with the reason when the notes are lost.

    Attributes:
        complete: Whether all notes that there were are here.
        name: The name of the queue in which they are.
    """

    def __init__(self, broker: Broker, wire: Wire, queue: str, lost: Callable[[str], None]) -> None:
        self.complete: bool = False
        self.name: str = name_of(queue)
        self._queue = queue
        self._broker = broker
        self._wire = wire
        self._lost = lost
        self._amqp: AbstractChannel | None = None
        self._opening = anyio.Lock()
        self._closed = False
        self._opened_at: float = 0.0
        self._turn = 0
        self._newest: dict[str, Note] = {}
        self._tags: dict[str, list[int]] = {}

    @property
    def since(self) -> float | None:
        """When the oldest note may have arrived, in the loop's time; `None` when there is none."""
        return self._opened_at if self._tags else None

    def about(self, key: str) -> Note | None:
        """Return the newest note about a message."""
        return self._newest.get(key)

    async def read(self) -> None:
        """Read what others have noted, once they are gone. May be called again.

        Raises:
            ChannelError: The server cannot be reached, or somebody else keeps the notes.
        """
        async with self._opening:
            if self.complete or self._closed:
                return
            amqp = self._amqp = await self._broker.new_channel(self._wire)
            try:
                await self._read_all(amqp)
            except BaseException:
                self._end("they could not be read")
                raise
            self.complete = True

    async def _read_all(self, amqp: AbstractChannel) -> None:
        amqp.closing.add_done_callback(lambda _: self._end("their AMQP channel was closed"))
        amqp.on_consumer_cancel_callbacks.add(lambda _: self._end("their queue may have been deleted"))
        await self._ask(topology_of_notes(self._queue).declare_on(amqp), "declaring")
        await self._ask(amqp.basic_qos(prefetch_count=_MOST), "reading")
        await self._ask(amqp.basic_consume(self.name, self._deliver), "reading")
        self._opened_at = anyio.current_time()
        await self._until_all_are_here(amqp)

    async def _until_all_are_here(self, amqp: AbstractChannel) -> None:
        # Who received before may hold notes for a moment longer than messages; they come back when it is gone.
        ends_at = anyio.current_time() + _PATIENCE
        while True:
            found = await self._ask(amqp.queue_declare(self.name, passive=True), "looking into")
            if self._closed or (found.consumer_count == 1 and not found.message_count):
                # The answers to two questions do not overtake what was sent between them.
                await self._ask(amqp.basic_qos(prefetch_count=_MOST), "reading")
                return
            if anyio.current_time() > ends_at:
                raise ChannelError(
                    f"queue {self.name!r} has {found.consumer_count} consumers and {found.message_count} notes that do "
                    "not arrive: somebody else still keeps them"
                )
            await anyio.sleep(_SHORT)

    async def write(
        self, key: str, *, deliveries: int, attempt: str | None, first_failed_at: str | None, due: float
    ) -> None:
        """Note what is known about a message; return when the server has confirmed it.

        Raises:
            ChannelError: The server cannot be reached.
            SendError: It did not accept the note.
        """
        await self.read()
        self._turn += 1
        note = Note(
            about=key,
            turn=self._turn,
            deliveries=deliveries,
            attempt=attempt,
            first_failed_at=first_failed_at,
            due=due,
        )
        self._newest[key] = note
        body = Message(json.dumps(asdict(note)).encode(), {})
        kept = _KEPT + max(0.0, due - time.time())
        await self._broker.publisher.publish([Outgoing(body, routing_key=self.name, expiration=kept)])

    def erase(self, key: str) -> None:
        """Forget what is known about a message; what is still on its way goes when it arrives."""
        self._newest.pop(key, None)
        self._ack(self._tags.pop(key, ()))

    async def close(self) -> None:
        """Leave the notes to whoever receives next. May be called again."""
        self._closed = True
        async with self._opening:
            amqp, self._amqp = self._amqp, None
            if amqp is not None and not amqp.is_closed:
                await self._ask(amqp.close(), "closing")

    async def _deliver(self, delivered: DeliveredMessage) -> None:
        delivery: Any = delivered.delivery
        note, tag = _read(delivered.body), delivery.delivery_tag
        if note is None:
            logger.warning("queue %r: something is in it that is no note, and is removed", self.name)
            self._ack([tag])
            return
        newest = self._newest.get(note.about)
        self._turn = max(self._turn, note.turn)
        # One that is unknown after everything was read is of a message that is settled by now.
        if self.complete if newest is None else note.turn < newest.turn:
            self._ack([tag])
            return
        self._newest[note.about] = note
        self._ack(self._tags.get(note.about, ()))
        self._tags[note.about] = [tag]

    def _ack(self, tags: Iterable[int]) -> None:
        if self._amqp is not None and not self._amqp.is_closed:
            for tag in tags:
                acking: Any = self._amqp.basic_ack(tag, wait=False)
                self._broker.start(acking)

    def _end(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._lost(f"its notes were lost: {reason}")

    async def _ask(self, question: Any, doing: str) -> Any:
        return await self._broker.ask(self._wire, question, f"{doing} queue {self.name!r}")


def name_of(queue: str) -> str:
    """Return the name of the queue with the notes about another one."""
    return f"ecotone.notes.{queue}"


def topology_of_notes(queue: str) -> Topology:
    """Return what there must be for the notes about a queue."""
    name = name_of(queue)
    return Topology(queue=name, type="quorum", exchange="", routing_key=name, declare=True)


def _read(body: bytes) -> Note | None:
    try:
        note = Note(**json.loads(body))
    except (ValueError, TypeError):
        return None
    told: tuple[object, ...] = (note.about, note.turn, note.deliveries, note.due)
    return note if all(map(isinstance, told, (str, int, int, int | float))) else None
