"""What code of one revision appends for a synchronous projection whose version is worked on by code of another one.

Each process can handle events only for the versions of its own revision. What it appends for others it leaves to them:
it notes down in which stream, and where. Code of the other revision handles that before what it appends itself, and its
runners do so when it appends nothing. So both can append around a switch, nothing is missed, and the order stays.
"""

from collections.abc import Sequence
from dataclasses import replace

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.modelling.event_storage import EventStorage, Position, StoredEvent
from ecotone_fastapi.modelling.projection_store import (
    EVER,
    Condition,
    PartitionRecord,
    ProjectionRecord,
    ProjectionStore,
)

_MOST = 100_000  # streams in which something was left
_SETTLING = 3600.0  # seconds without a statement after which the server may end a transaction that settles


async def leave(store: ProjectionStore, record: ProjectionRecord, events: Sequence[StoredEvent]) -> None:
    """Leave events of one stream to code of the revision of a version; within the unit of work that appends them.

    Nobody else follows a live version without partitions meanwhile: all versions are locked.

    Args:
        store: Keeps what is known of projections.
        record: The version, which is of another revision.
        events: What was appended.
    """
    if not record.shape.startswith("synchronous") or record.condition is Condition.RETIRED:
        return  # it reads what is appended by itself, or needs it no more
    stream, first, last = events[0].stream, events[0].version, events[-1].version
    if "partitioned" in record.shape:
        await store.note(record, {stream: last})
    elif record.condition is Condition.LIVE:  # whoever builds a version finds them by their positions
        known = await store.hold(record, stream)
        behind = known.position < known.wanted < first
        position = known.position if behind else first - 1
        await store.keep(record.name, record.version, [replace(known, position=position, wanted=last)])


async def take_left(store: ProjectionStore, storage: EventStorage, record: ProjectionRecord) -> Sequence[StoredEvent]:
    """Return the events that were left to a version without partitions, in their order; they are none any more.

    Within a unit of work that has locked all versions, not shared with anybody, and that handles them.

    Raises:
        ConcurrencyError: This unit of work cannot see them, for it has read before they came.
    """
    left = await store.claim(record.name, record.version, limit=_MOST, seconds=_SETTLING)
    events: list[StoredEvent] = []
    for one in left:
        wanted = one.wanted - one.position
        found = await storage.read(one.stream, after=one.position, limit=wanted, archived=True)
        if len(found) < wanted:  # links to what was deleted count, but are not there
            check_sight(record, one, one.wanted, seen=await storage.version(one.stream) >= one.wanted)
        events += found
    await store.keep(record.name, record.version, [replace(one, position=one.wanted) for one in left])
    return sorted(events, key=_position)


def check_sight(record: ProjectionRecord, partition: PartitionRecord, version: int, *, seen: bool) -> None:
    """Make sure that a unit of work has seen an event that was left to a version.

    Raises:
        ConcurrencyError: It has not. It can be done again.
    """
    if not seen:
        raise ConcurrencyError(
            f"what was left to version {record.version} of the projection {record.name!r} cannot be seen here",
            tried=f"version {version} of {partition.stream!r}",
            hint="this transaction has read before it came: handle again what failed, or let the engine be READ "
            "COMMITTED",
        )


def _position(event: StoredEvent) -> Position:
    return EVER if event.position is None else event.position
