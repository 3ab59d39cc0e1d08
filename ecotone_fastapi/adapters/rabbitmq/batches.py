"""What is sent, and what the server has said about it so far."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol

from aiormq.exceptions import PublishError

from ecotone_fastapi.adapters.rabbitmq.codes import code_in
from ecotone_fastapi.core.errors import ChannelError, OutcomeUnknownError, SendError
from ecotone_fastapi.core.message import HeaderName, Message

_NAMED = 10  # messages that the text of an error lists

_LONGEST_PROPERTY = 255  # bytes
_LONGEST_EXPIRATION = 0xFFFF_FFFF  # milliseconds, some 49 days

UNWRITABLE = "it cannot be written"
NOT_TAKEN = "not taken by the server, as by a queue that is full"


@dataclass(slots=True)
class Outgoing:
    """A message on its way to the server.

    Args:
        message: Its payload is what is sent; its `content_type` and `id` are read here, its other headers are not.
        exchange: Where it is sent to; the default exchange knows every queue by its name.
        routing_key: For the default exchange, the name of the queue.
        expiration: Seconds after which the server drops it or hands it on as dead. More than 49 days is more than it
            can count, and is not told to it.
        priority: For queues that have priorities.
        headers: What travels with it.
    """

    message: Message[bytes]
    _: KW_ONLY
    exchange: str = ""
    routing_key: str
    expiration: float | None = None
    priority: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str | None:
        """The content type as a property, unless it is too long for one: it is among the headers, too."""
        told = self.message.headers.get(HeaderName.content_type)
        return told if told is None or len(told.encode()) <= _LONGEST_PROPERTY else None

    @property
    def milliseconds(self) -> str | None:
        """The expiration as it is written, if it is.

        Raises:
            ValueError: It is negative, for which the server would close the channel.
        """
        if self.expiration is None or self.expiration * 1000 > _LONGEST_EXPIRATION:
            return None
        milliseconds = round(self.expiration * 1000)
        if milliseconds < 0:
            raise ValueError(f"an expiration of {self.expiration:g} seconds is not possible")
        return str(milliseconds)


class Batch:
    """The messages of one call, until the server has said something about each.

    Args:
        outgoing: The messages.
        loop: On which the caller waits.
        started: When the call began, in the loop's time.

    Attributes:
        outgoing: The messages.
        done: Ends with the call: with nothing, or with the error that it raises.
        moved_at: When the server last said something about one of them; before that, when the call began.
        written: How many of them were handed to the driver.
        timer: Looks after the batch while the caller waits.
    """

    __slots__ = ("_loop", "_refused", "_waiting", "done", "moved_at", "outgoing", "timer", "written")

    def __init__(self, outgoing: Sequence[Outgoing], loop: asyncio.AbstractEventLoop, started: float) -> None:
        self.outgoing: Sequence[Outgoing] = outgoing
        self.done: asyncio.Future[None] = loop.create_future()
        self.moved_at: float = started
        self.written: int = 0
        self.timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._waiting = len(outgoing)
        self._refused: list[tuple[str, str]] = []

    def accepted(self) -> None:
        """Note that the server has confirmed one of them."""
        self._waiting -= 1
        self.moved_at = self._loop.time()
        if not self._waiting:
            self._end()

    def refused(self, outgoing: Outgoing, reason: str) -> None:
        """Note that one of them was not accepted."""
        self._refused.append((outgoing.message.headers.get(HeaderName.id, "without id"), reason))
        self.accepted()

    def _end(self) -> None:
        if self.done.done():  # the caller was cancelled
            return
        if not self._refused:
            self.done.set_result(None)
            return
        listed = [f"{id} ({reason})" for id, reason in self._refused[:_NAMED]]
        if len(self._refused) > _NAMED:
            listed.append(f"and {len(self._refused) - _NAMED} more")
        codes = {code_in(reason) for _, reason in self._refused}
        self.done.set_exception(
            SendError(
                f"RabbitMQ did not accept {len(self._refused)} of {len(self.outgoing)} messages: {', '.join(listed)}",
                failed=[id for id, _ in self._refused],
                hint="is there a queue for them, and has it room?",
                code=codes.pop() if len(codes) == 1 else None,
            )
        )

    def fail(self, reason: str) -> None:
        """End the call with what is known: which of the messages were written and have had no answer."""
        if self.done.done():
            return
        total = len(self.outgoing)
        answered = total - self._waiting
        unknown = self.written - answered
        if not self.written:
            self.done.set_exception(ChannelError(f"{reason}; nothing was sent", code=code_in(reason)))
            return
        fate = f"{unknown} of {total} messages were sent without a confirm and may have arrived"
        if answered:
            fate += f", {answered - len(self._refused)} arrived, {len(self._refused)} were refused"
        if self.written < total:
            fate += f", {total - self.written} were not sent"
        if unknown:
            self.done.set_exception(OutcomeUnknownError(f"{reason}; {fate}", messages=unknown))
        else:
            self.done.set_exception(ChannelError(f"{reason}; {fate}", code=code_in(reason)))


def returned(error: PublishError) -> str:
    """Return why a message came back."""
    reply = getattr(error.frame, "reply_text", None)
    return f"returned by the server: {reply}" if reply else "returned by the server"


class Pen(Protocol):
    """Writes messages to the server and hears what it says about each."""

    def write(self, messages: Sequence[tuple[Batch, Outgoing]], answered: Callable[[Outgoing], None]) -> None:
        """Hand messages to the driver, in this order, without waiting for anything.

        Args:
            messages: Each with the batch that is told what becomes of it, unless the connection is lost before.
            answered: Called with each message about which its batch was told.
        """
        ...

    async def close(self) -> None:
        """Let go of what is left when the connection is gone."""
        ...
