"""The dead letter: where a message waits, with its bytes and its failure, when its handler could not do its work."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ecotone_fastapi.core.message import Message


@dataclass(frozen=True, kw_only=True)
class ParkedMessage:
    """A message in the dead letter, and why it is there.

    Args:
        id: Its id in the dead letter: the same message can fail in several handlers.
        message: The message as it was on the wire: bytes and headers untouched.
        channel: The channel that it was taken from.
        endpoint: The id of the handler that failed; `None` when that could not be told.
        error_type: Module and class of the exception.
        error_message: Its text.
        traceback: Its traceback; empty when the handler never ran.
        attempts: How many runs failed.
        deliveries: How often the message was lent to a consumer.
        parked_at: When it was given up.
    """

    id: str
    message: Message[bytes]
    channel: str
    endpoint: str | None
    error_type: str
    error_message: str
    traceback: str
    attempts: int
    deliveries: int
    parked_at: datetime


class DeadLetterStore(Protocol):
    """Keeps parked messages. Implemented in memory and by database adapters."""

    async def park(self, parked: ParkedMessage) -> None:
        """Store it durably, in the unit of work that is open in the calling task's scope on the same database, if any.

        Parking the same id again replaces what is there.
        """
        ...

    async def list(self, *, limit: int = 100, offset: int = 0) -> Sequence[ParkedMessage]:
        """Return parked messages, the newest first."""
        ...

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        ...

    async def delete(self, parked_id: str) -> None:
        """Remove one parked message, in the unit of work that is open in the calling task's scope, if any.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        ...

    async def count(self) -> int:
        """Return how many messages are parked."""
        ...
