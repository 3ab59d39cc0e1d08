"""What code of one revision appends for a synchronous projection whose version is worked on by code of another one.

Each process can handle events only for the versions of its own revision. What it appends for others it leaves to them:
it notes down in which stream, and where. Code of the other revision handles that before what it appends itself, and its
runners do so when it appends nothing. So both can append around a switch, nothing is missed, and the order stays.
"""

from collections.abc import Sequence
from dataclasses import replace

from ecotone_fastapi.modelling.event_storage import EventStorage, Position, StoredEvent
from ecotone_fastapi.modelling.projection_store import EVER, Condition, ProjectionRecord, ProjectionStore

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
    """
    left = await store.claim(record.name, record.version, limit=_MOST, seconds=_SETTLING)
    events: list[StoredEvent] = []
    for one in left:
        events += await read_between(storage, one.stream, one.position, one.wanted)
    await store.keep(record.name, record.version, [replace(one, position=one.wanted) for one in left])
    return sorted(events, key=_position)


async def read_between(storage: EventStorage, stream: str, after: int, upto: int) -> Sequence[StoredEvent]:
    """Return the events of a stream behind one version, up to another one that is there, whoever has appended them.

    Links to what was deleted count, but are not there. What this unit of work cannot see, because it has read before it
    came, is read anyway; that waits for whoever appends there, so it is done only where something is missing.
    """
    found: Sequence[StoredEvent] = ()
    for newest in (False, True):
        if len(found) < upto - after:
            read = await storage.read(stream, after=after, limit=upto - after, archived=True, newest=newest)
            found = [event for event in read if event.version <= upto]
    return found


def _position(event: StoredEvent) -> Position:
    return EVER if event.position is None else event.position
