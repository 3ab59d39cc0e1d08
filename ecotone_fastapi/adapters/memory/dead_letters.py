"""A dead letter in this process, gone when the process ends."""

from collections.abc import Sequence

from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.messaging.dead_letter import ParkedMessage


class MemoryDeadLetters:
    """A dead letter in this process."""

    def __init__(self) -> None:
        self._parked: dict[str, ParkedMessage] = {}

    async def park(self, parked: ParkedMessage) -> None:
        """Store it, in place of what has the same id."""
        self._parked.pop(parked.id, None)
        self._parked[parked.id] = parked

    async def list(self, *, limit: int = 100, offset: int = 0) -> Sequence[ParkedMessage]:
        """Return parked messages, the newest first."""
        oldest_first = sorted(self._parked.values(), key=lambda parked: parked.parked_at)
        return oldest_first[::-1][offset : offset + limit]

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        try:
            return self._parked[parked_id]
        except KeyError:
            raise self._unknown(parked_id) from None

    async def delete(self, parked_id: str) -> None:
        """Remove one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        if self._parked.pop(parked_id, None) is None:
            raise self._unknown(parked_id)

    async def count(self) -> int:
        """Return how many messages are parked."""
        return len(self._parked)

    def _unknown(self, parked_id: str) -> DeadLetterNotFoundError:
        return DeadLetterNotFoundError(
            f"no dead letter has the id {parked_id!r}",
            tried=f"the memory of this process, where {len(self._parked)} are parked",
            hint="it may have been replayed or deleted; list() tells what is there",
        )
