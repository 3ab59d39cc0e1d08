"""Publishes a whole window in one write: the only place that goes by what aiormq does not document.

What is used, beside documented calls: the numbers of the channel (`number`, `delivery_tag`) and the two tables from
which its reader tells who a confirm or a returned message is for (`confirmations`, `message_id_delivery_tag`). `unfit`
says whether the installed aiormq is one that this was tested with and still has them; if not, messages are published
the documented way, one by one.
"""

import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from aiormq.exceptions import PublishError

from ecotone_fastapi.adapters.rabbitmq import frames
from ecotone_fastapi.adapters.rabbitmq.batches import NOT_TAKEN, UNWRITABLE, Batch, Outgoing, returned

TESTED: tuple[tuple[int, int], tuple[int, int]] = ((7, 2), (7, 3))
"""From which version of aiormq on, and before which."""


class Insides(Protocol):
    """What of aiormq's channel is used here."""

    number: int
    delivery_tag: int
    confirmations: MutableMapping[int, Any]
    message_id_delivery_tag: MutableMapping[str, int]


class Socket(Protocol):
    """Where frames are written to."""

    def write(self, data: bytes) -> None:
        """Write without waiting."""
        ...


def unfit(channel: object, installed: str | None = None) -> str | None:
    """Return why the lean way cannot be taken on this channel of aiormq; `None` when it can.

    Args:
        channel: The driver's channel.
        installed: The version of aiormq; the installed one by default.
    """
    installed = installed or version("aiormq")
    try:
        numbers = tuple(int(part) for part in installed.split(".")[:2])
    except ValueError:
        return f"aiormq {installed} is of an unknown kind"
    if not TESTED[0] <= numbers < TESTED[1]:
        tested = " up to, without, ".join(".".join(map(str, end)) for end in TESTED)
        return f"aiormq {installed} is not among the tested versions, {tested}"
    for name, kind in USED.items():
        if not isinstance(getattr(channel, name, None), kind):
            return f"the channel of aiormq {installed} has no {name!r} that is a {kind.__name__}"
    return None


USED: Mapping[str, type] = {
    "number": int,
    "delivery_tag": int,
    "confirmations": dict,
    "message_id_delivery_tag": dict,
}


class _Confirmation:
    """Stands where aiormq has a future: for one message that was written."""

    __slots__ = ("_answered", "_batch", "_message_id", "_outgoing", "_returns")

    def __init__(
        self,
        batch: Batch,
        outgoing: Outgoing,
        message_id: str,
        returns: MutableMapping[str, int],
        answered: Callable[[Outgoing], None],
    ) -> None:
        self._batch = batch
        self._outgoing = outgoing
        self._message_id = message_id
        self._returns = returns
        self._answered = answered

    def done(self) -> bool:
        """Never: what was answered is asked for no more."""
        return False

    def set_result(self, frame: object) -> None:
        """Hear that the server has the message."""
        self._returns.pop(self._message_id, None)
        self._batch.accepted()
        self._answered(self._outgoing)

    def set_exception(self, error: BaseException) -> None:
        """Hear that it has not."""
        self._returns.pop(self._message_id, None)
        refusal = returned(error) if isinstance(error, PublishError) else NOT_TAKEN
        self._batch.refused(self._outgoing, refusal)
        self._answered(self._outgoing)


class LeanPen:
    """Writes all frames of the messages that it is given at once.

    Args:
        channel: Of aiormq, with publisher confirms, on which what is returned raises, and which is `fit`.
        socket: Of its connection.
        largest: Bytes that a frame may have on this connection.
    """

    def __init__(self, channel: Insides, socket: Socket, largest: int) -> None:
        self._channel = channel
        self._socket = socket
        self._number = channel.number
        self._largest = largest
        self._name = os.urandom(8).hex()

    def write(self, messages: Sequence[tuple[Batch, Outgoing]], answered: Callable[[Outgoing], None]) -> None:
        """Write messages, all at once."""
        channel, buffer = self._channel, bytearray()
        returns, confirmations = channel.message_id_delivery_tag, channel.confirmations
        tag = channel.delivery_tag
        for batch, one in messages:
            # The driver finds what is returned by this id: the same message may be under way twice.
            message_id = f"{self._name}-{tag + 1}"
            try:
                head = frames.head(self._number, one, message_id, self._largest)
            except Exception as error:  # whatever pamqp says about a header that it cannot write
                batch.refused(one, f"{UNWRITABLE}: {error}")
                answered(one)
                continue
            buffer += head
            buffer += frames.body(self._number, one.message.payload, self._largest)
            tag += 1
            returns[message_id] = tag
            confirmations[tag] = _Confirmation(batch, one, message_id, returns, answered)
        channel.delivery_tag = tag
        if buffer:
            self._socket.write(bytes(buffer))

    async def close(self) -> None:
        """There is nothing to let go of."""
