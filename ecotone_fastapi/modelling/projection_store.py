"""What is kept of projections: their versions with checkpoint and state, their partitions, and where they stand still.

A database adapter implements `ProjectionStore`; `ProjectionStoreConformance` tells whether it does so well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from ecotone_fastapi.core.errors import LeaseLostError
from ecotone_fastapi.modelling.event_storage import START, Position

EVER: Position = Position(2**62, 0)
"""Behind every event."""


class Condition(StrEnum):
    """How a version of a projection is."""

    LIVE = "live"
    """It is the one that is asked, and it follows what is appended."""
    BUILDING = "building"
    """It is being made of events that were appended before."""
    RETIRED = "retired"
    """Another one is live; nothing is done with it until it is deleted."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a projection, or a partition of it, stands still. It is tried again by itself, and never skips the event.

    Args:
        error_type: The type of the error.
        error_message: What the error says.
        traceback: Where it was raised.
        stream: The stream of the event that cannot be handled.
        stream_version: The version of the event there.
        position: Its position; `None` where only its version counts.
        event: The name of its type.
        since: Since when.
        attempts: How often it was tried.
        retry_at: When it is tried again.
    """

    error_type: str
    error_message: str
    traceback: str
    stream: str
    stream_version: int
    position: str | None
    event: str
    since: datetime
    attempts: int
    retry_at: datetime

    def to_json(self) -> str:
        """Return it as text."""
        fields = asdict(self) | {"since": self.since.isoformat(), "retry_at": self.retry_at.isoformat()}
        return json.dumps(fields, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> "Halt":
        """Return what was written as text."""
        fields = json.loads(text)
        for name in ("since", "retry_at"):
            fields[name] = datetime.fromisoformat(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class ProjectionRecord:
    """One version of a projection.

    Args:
        name: The projection.
        version: The number of the version, counted from 1.
        shape: How it counts, see `Projection.shape`.
        revision: The generation of the code that can work on it.
        condition: How it is.
        position: Up to which event it has come; of a partitioned one, up to which its partitions know of events.
        state: Its state as text.
        silent_until: Up to where it emits nothing, because that was done before.
        round: How often it was rebuilt in place; partitions of an earlier round are still to be rebuilt.
        by_hand: Whether it waits to be switched when it is built.
        done: How many events, or partitions, were handled since it began to be built.
        total: How many there were to handle when it began to be built.
        began_at: When it began to be built.
        halt: Why it stands still.
        token: Grows with everybody who runs it; what was written down under an older one is refused.
        runner: Who runs it.
        leased: For how many seconds it is lent to its runner; 0 when it is free.
    """

    name: str
    version: int
    shape: str
    revision: int = 1
    condition: Condition = Condition.LIVE
    position: Position = START
    state: str | None = None
    silent_until: Position = START
    round: int = 0
    by_hand: bool = False
    done: int = 0
    total: int = 0
    began_at: datetime | None = None
    halt: Halt | None = None
    token: int = 0
    runner: str | None = None
    leased: float = 0.0


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """One partition of a version of a projection.

    Args:
        stream: The stream whose events it has.
        position: Up to which version of the stream it has come.
        wanted: The version of the stream that is known.
        state: Its state as text.
        silent_until: Up to which version it emits nothing.
        round: In which round it was built last.
        halt: Why it stands still.
    """

    stream: str
    position: int = 0
    wanted: int = 0
    state: str | None = None
    silent_until: int = 0
    round: int = 0
    halt: Halt | None = None


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    """How the partitions of a version are.

    Args:
        total: How many there are.
        behind: How many have events that were not handled.
        halted: How many stand still.
        built: How many are of the round asked about.
        events: How many events were not handled, so far as they are known.
    """

    total: int = 0
    behind: int = 0
    halted: int = 0
    built: int = 0
    events: int = 0


def lost(before: ProjectionRecord, now: ProjectionRecord | None) -> LeaseLostError:
    """Return the error for a checkpoint that is not where it was."""
    if now is None:
        found = "it was deleted"
    elif now.condition is Condition.RETIRED:
        found = "another version is live by now"
    elif now.token != before.token:
        found = f"somebody else runs it by now: {now.runner or 'nobody at this moment'}"
    else:
        way = "further" if now.position > before.position else "back"
        found = f"it is {way}, at {now.position} instead of {before.position}"
    return LeaseLostError(
        f"version {before.version} of the projection {before.name!r} is not where this run has left it",
        tried=found,
        hint="nothing of this batch was written; whoever runs it now does it",
    )


class ProjectionStore(Protocol):
    """Keeps what is known of projections.

    What writes does so with the unit of work of the calling task's scope, if any, unless it says otherwise. Time is the
    store's own.
    """

    async def versions(self, name: str | None = None) -> Sequence[ProjectionRecord]:
        """Return the versions of a projection, or of all, in the order of names and numbers."""
        ...

    async def add(self, record: ProjectionRecord) -> bool:
        """Add a version; return whether it was not there. Waits for others that add the same."""
        ...

    async def lock(self, name: str, *, shared: bool = False) -> Sequence[ProjectionRecord]:
        """Return the versions of a projection as they are now; nobody else changes them before the unit of work ends.

        Args:
            name: The projection.
            shared: Whether others may do the same at the same time, if they ask for it shared, too.

        Raises:
            ConcurrencyError: Two units would wait for each other.
        """
        ...

    async def change(self, record: ProjectionRecord) -> None:
        """Write down everything of a version but its lease; for those who have locked it."""
        ...

    async def save(self, before: ProjectionRecord, after: ProjectionRecord) -> None:
        """Write down position, state, progress and halt, if the position and the token are still those from before.

        Raises:
            LeaseLostError: Somebody else has come further, gone back, or runs it now, or it was retired meanwhile. The
                unit of work must not commit.
        """
        ...

    async def lease(self, name: str, version: int, runner: str, seconds: float, *, force: bool = False) -> int | None:
        """Lend a version that is free to a runner, at once; return the new token, `None` when it is not free.

        Args:
            name: The projection.
            version: The version.
            runner: Who wants to run it.
            seconds: For how long, unless it is renewed.
            force: Whether it is taken from whoever has it.
        """
        ...

    async def renew(self, name: str, version: int, token: int, seconds: float) -> bool:
        """Lend it for longer, at once; return whether the token is still the newest."""
        ...

    async def release(self, name: str, version: int, token: int) -> None:
        """Give it back, at once; nothing happens when somebody else has it."""
        ...

    async def halt(self, name: str, version: int, token: int, halt: Halt) -> None:
        """Write down that it stands still, at once, if the token is still the newest."""
        ...

    async def remove(self, name: str, version: int) -> None:
        """Forget a version with all of its partitions."""
        ...

    # Partitions

    async def note(self, record: ProjectionRecord, wanted: Mapping[str, int]) -> None:
        """Write down how far streams have come: what is behind can be claimed from now on, what halts when it is time.

        Args:
            record: The version; new partitions are of its round.
            wanted: The versions by the streams. Smaller ones than known change nothing.
        """
        ...

    async def claim(self, name: str, version: int, *, limit: int, seconds: float) -> Sequence[PartitionRecord]:
        """Return partitions that have something to do, which nobody else gets before the unit of work ends.

        Those that somebody else has are passed over.

        Args:
            name: The projection.
            version: The version.
            limit: How many at most.
            seconds: After so long without a statement the unit of work is ended, where the server can do that: its
                process may have been frozen.
        """
        ...

    async def hold(self, record: ProjectionRecord, stream: str) -> PartitionRecord:
        """Return one partition, a new one of the version's round if need be, which nobody else gets meanwhile.

        Waits for whoever has it.

        Raises:
            ConcurrencyError: Two units would wait for each other.
        """
        ...

    async def keep(self, name: str, version: int, partitions: Sequence[PartitionRecord]) -> None:
        """Write down partitions that were claimed or held. What is still behind can be claimed again."""
        ...

    async def halt_partition(self, name: str, version: int, stream: str, halt: Halt, *, position: int) -> None:
        """Write down that a partition stands still, at once, if it has come no further meanwhile."""
        ...

    async def call(self, name: str, version: int, stream: str | None = None, *, halted: bool = False) -> int:
        """Let a partition, or all, be claimed from now on; return how many there are.

        Args:
            name: The projection.
            version: The version.
            stream: The partition.
            halted: Only those that stand still.
        """
        ...

    async def accept(self, name: str, version: int, round: int) -> None:  # noqa: A002 - a word of the field
        """Let all partitions be of this round, as they are."""
        ...

    async def partitions(
        self, name: str, version: int, *, after: str = "", limit: int = 100, halted: bool = False
    ) -> Sequence[PartitionRecord]:
        """Return partitions in the order of their streams, behind `after`; only those that stand still, if wanted."""
        ...

    async def partition(self, name: str, version: int, stream: str) -> PartitionRecord | None:
        """Return one partition."""
        ...

    async def count(self, name: str, version: int, round: int) -> PartitionCounts:  # noqa: A002 - a word of the field
        """Count partitions."""
        ...

    async def due_in(self, name: str, version: int) -> float | None:
        """Return after how many seconds something can be claimed; `None` when nothing is left."""
        ...
