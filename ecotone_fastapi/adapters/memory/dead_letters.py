"""A dead letter in this process, gone when the process ends."""

from collections.abc import Sequence

from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.dead_letter_store import EVERYTHING, DeadLetterFilter, ParkedMessage


class MemoryDeadLetters:
    """A dead letter in this process."""

    durable: bool = False

    def __init__(self) -> None:
        self._parked: dict[str, ParkedMessage] = {}

    async def park(self, parked: ParkedMessage) -> None:
        """Store it, in place of what has the same id."""
        self._parked.pop(parked.id, None)
        self._parked[parked.id] = parked

    async def list(
        self, which: DeadLetterFilter = EVERYTHING, *, limit: int = 100, offset: int = 0
    ) -> Sequence[ParkedMessage]:
        """Return parked messages, the newest first."""
        return self._oldest_first(which)[::-1][offset : offset + limit]

    async def ids(self, which: DeadLetterFilter = EVERYTHING) -> Sequence[str]:
        """Return the ids of all that are meant, the oldest first."""
        return [parked.id for parked in self._oldest_first(which)]

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        try:
            return self._parked[parked_id]
        except KeyError:
            raise self._unknown(parked_id) from None

    async def delete(self, parked_id: str, *, saying: Message[bytes] | None = None) -> None:
        """Remove one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id, or it says something else.
        """
        parked = self._parked.get(parked_id)
        if parked is None or (saying is not None and parked.message != saying):
            raise self._unknown(parked_id)
        del self._parked[parked_id]

    async def delete_all(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Remove all that are meant; return how many."""
        meant = self._oldest_first(which)
        for parked in meant:
            del self._parked[parked.id]
        return len(meant)

    async def count(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Return how many messages are parked."""
        return len(self._oldest_first(which))

    def _oldest_first(self, which: DeadLetterFilter) -> Sequence[ParkedMessage]:
        meant = [parked for parked in self._parked.values() if which.matches(parked)]
        return sorted(meant, key=lambda parked: (parked.parked_at, parked.id))

    def _unknown(self, parked_id: str) -> DeadLetterNotFoundError:
        return DeadLetterNotFoundError(
            f"no dead letter has the id {parked_id!r}",
            tried=f"the memory of this process, where {len(self._parked)} are parked",
            hint="it may have been replayed, edited or deleted; list() tells what is there",
        )
