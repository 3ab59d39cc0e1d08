"""Events in memory: the default, and the test double of every other event store."""

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from operator import attrgetter

import anyio

from ecotone_fastapi.adapters.memory.claims import wait_for
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    START,
    AppendCondition,
    EventFilter,
    Expected,
    Horizon,
    NewEvent,
    Page,
    Position,
    StoredEvent,
    already_appended,
    excluded,
    is_expected,
    not_expected,
)
from ecotone_fastapi.modelling.stream_names import category_of


class MemoryEvents:
    """Keeps events for as long as the process lives.

    A scope is a unit of work that begins with its first change and is undone when the scope fails. As in a database,
    readers of all events see nothing of what is appended behind a unit that is open, and whoever wants to change a
    stream that an open unit has changed waits for its end.

    Args:
        clock: Tells when an event is appended.
    """

    durable: bool = False

    def __init__(self, clock: Clock = SystemClock()) -> None:
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._ids: set[str] = set()
        self._open: dict[Scope, _Unit] = {}  # the oldest first
        self._begun = 0
        self._numbers = 0
        self._latest = 0  # of the transactions of what is committed
        self._seen: list[_Entry] = []  # what readers of all events can see, in order
        self._hidden: list[_Entry] = []  # what is committed behind a unit that is open
        self._heard = 0
        self._waiting: set[anyio.Event] = set()

    # ------------------------------------------------------------------------------------------------------- appending

    async def append(
        self,
        stream: str,
        events: Sequence[NewEvent],
        *,
        expected: int | Expected,
        condition: AppendCondition | None = None,
    ) -> Sequence[StoredEvent]:
        """Append events to a stream, with the unit of work of the calling task's scope, if any."""
        if not events:
            return ()
        scope = current_scope()
        await self._free(scope, stream, events, condition)
        unit = self._unit(scope)
        found = self._stream(stream, unit)
        if found.archived or not is_expected(expected, found.version):
            raise not_expected(stream, expected, found.version, archived=found.archived)
        if condition is not None:
            self._check(condition, stream, unit)
        ids = {event.id for event in events}
        if len(ids) < len(events) or self._ids & ids:
            raise already_appended(self._ids & ids or ids)
        async with self._changing(scope, stream) as unit:
            added = [self._entry(unit, stream, found.version + place, event) for place, event in enumerate(events, 1)]
            self._ids |= ids
            unit.add(stream, found, added)
            if condition is not None:
                unit.conditions += condition.filters
        return [entry.event for entry in added]

    def _entry(self, unit: "_Unit", stream: str, version: int, event: NewEvent) -> "_Entry":
        stored = StoredEvent(
            stream, version, self._position(unit), event.name, event.body, event.headers_text, self._clock.now()
        )
        return _Entry(stored, event.id, frozenset(event.tags))

    def _position(self, unit: "_Unit") -> Position:
        # Behind everything that is committed by now, also when the unit has begun before that.
        self._numbers += 1
        return Position(max(unit.transaction, self._latest), self._numbers)

    def _check(self, condition: AppendCondition, stream: str, unit: "_Unit | None") -> None:
        for entries in (self._seen, self._hidden, unit.added if unit is not None else ()):
            for entry in entries[bisect_right(entries, condition.after, key=_position_of) :]:
                has_come = entry.origin is None and entry.position.number not in condition.known
                if has_come and any(entry.fits(one) for one in condition.filters):
                    raise excluded(stream, condition)

    async def link(self, stream: str, events: Sequence[StoredEvent]) -> int:
        """Let events be read in another stream, too; return how many links were added."""
        scope = current_scope()
        await self._free(scope, stream)
        unit = self._unit(scope)
        found = self._stream(stream, unit)
        if found.archived:
            raise not_expected(stream, Expected.ANY, found.version, archived=True)
        linked = {entry.origin for entry in found.entries}
        added: list[_Entry] = []
        for event in events:
            home, version = event.origin or (event.stream, event.version)
            origin = self._stream(home, unit).find(version)
            if origin is not None:
                origin = origin.origin or origin
                if origin.event.stream != stream and origin not in linked:
                    linked.add(origin)
                    added.append(origin)
        if not added:
            return 0
        async with self._changing(scope, stream) as unit:
            links = [
                _Entry(
                    origin.event._replace(
                        stream=stream,
                        version=found.version + place,
                        position=self._position(unit),
                        origin=(origin.event.stream, origin.event.version),
                    ),
                    "",
                    origin.tags,
                    origin,
                )
                for place, origin in enumerate(added, 1)
            ]
            unit.add(stream, found, links)
        return len(links)

    async def archive(self, stream: str) -> bool:
        """Hide a stream; return whether there was one."""
        scope = current_scope()
        await self._free(scope, stream)
        found = self._stream(stream, self._unit(scope))
        if not found.entries or found.archived:
            return False
        async with self._changing(scope, stream) as unit:
            unit.streams[stream] = replace(found, archived=True)
        return True

    async def delete(self, stream: str) -> int:
        """Delete all events of a stream; return how many there were."""
        scope = current_scope()
        await self._free(scope, stream)
        found = self._stream(stream, self._unit(scope))
        if found.entries:
            async with self._changing(scope, stream) as unit:
                unit.streams[stream] = _NONE
                unit.gone.update(found.entries)
        return len(found.entries)

    # --------------------------------------------------------------------------------------------------------- reading

    async def read(
        self, stream: str, *, after: int = 0, limit: int | None = None, archived: bool = False, newest: bool = False
    ) -> Sequence[StoredEvent]:
        """Return events of one stream, those of the open unit of work included."""
        unit = self._unit(current_scope())
        found = self._stream(stream, unit)
        if found.archived and not archived:
            return ()
        return [entry.event for entry in found.entries[after:] if self._is_there(entry, unit, archived=archived)][
            :limit
        ]

    async def read_all(
        self, *, after: Position, limit: int, which: EventFilter = EVERYTHING, settled: bool = False
    ) -> Page:
        """Return events of all streams, up to the first one of a unit that is open."""
        events: list[StoredEvent] = []
        for entry in self._behind(after, which, settled=settled):
            events.append(entry.event)
            if len(events) == limit:
                return Page(events, entry.position, more=True)
        last = max(map(_position_of, self._hidden), default=self._head) if settled else self._head
        return Page(events, max(after, last), more=False)

    async def count(self, *, after: Position, which: EventFilter = EVERYTHING) -> int:
        """Return how many events of all streams there are behind a position."""
        return sum(1 for _ in self._behind(after, which, settled=False))

    def _behind(self, after: Position, which: EventFilter, *, settled: bool) -> "Iterator[_Entry]":
        for entries in (self._seen, sorted(self._hidden, key=_position_of) if settled else ()):
            for entry in islice(entries, bisect_right(entries, after, key=_position_of), None):
                if entry.fits(which) and self._is_there(entry, archived=True):
                    yield entry

    async def version(self, stream: str) -> int:
        """Return the version of a stream; 0 without events."""
        return self._stream(stream, self._unit(current_scope())).version

    async def streams(
        self, category: str, *, after: str = "", limit: int = 1000, archived: bool = False
    ) -> Sequence[str]:
        """Return the names of the streams of a category, in order."""
        unit = self._unit(current_scope())
        names = self._streams.keys() | unit.streams.keys() if unit is not None else self._streams.keys()
        found = (name for name in names if name > after and category_of(name) == category)
        kept = ((name, self._stream(name, unit)) for name in found)
        return sorted(name for name, one in kept if one.entries and (archived or not one.archived))[:limit]

    async def horizon(self) -> Horizon:
        """Tell how far readers of all events can see, for how long something is hidden from them, and by what."""
        if not self._hidden:
            return Horizon(self._head)
        oldest = next(iter(self._open.values()))
        return Horizon(
            self._head,
            (self._clock.now() - self._hidden[0].event.recorded_at).total_seconds(),
            f"a unit of work of this process that has been open since {oldest.began}",
        )

    async def check_restored(self) -> None:
        """Do nothing: memory is not restored."""

    async def wait(self, heard: int, timeout: float) -> int:
        """Return as soon as a unit that has changed something has ended since `heard` was told."""
        if self._heard == heard:
            bell = anyio.Event()
            self._waiting.add(bell)
            try:
                with anyio.move_on_after(timeout):
                    await bell.wait()
            finally:
                self._waiting.discard(bell)
        return self._heard

    @property
    def _head(self) -> Position:
        return self._seen[-1].position if self._seen else START

    def _stream(self, name: str, unit: "_Unit | None" = None) -> "_Stream":
        if unit is not None and name in unit.streams:
            return unit.streams[name]
        return self._streams.get(name, _NONE)

    def _is_there(self, entry: "_Entry", unit: "_Unit | None" = None, *, archived: bool = False) -> bool:
        """Tell whether an event is still to be read at home, where it is a link."""
        if entry.origin is None:
            return True
        home = self._stream(entry.origin.event.stream, unit)
        return home.find(entry.origin.event.version) is entry.origin and (archived or not home.archived)

    # --------------------------------------------------------------------------------------------------- units of work

    def _unit(self, scope: Scope | None) -> "_Unit | None":
        return self._open.get(scope) if scope is not None else None

    @asynccontextmanager
    async def _changing(self, scope: Scope | None, stream: str) -> AsyncIterator["_Unit"]:
        """Give the unit of a scope, which may begin with this; without a scope, one that ends with the block."""
        unit = self._unit(scope)
        if unit is None:
            self._begun += 1
            unit = _Unit(self._begun, self._clock.now())
            if scope is not None:
                self._open[scope] = unit
                await scope.enter(self._decided(scope, unit), outermost=True)
        if scope is not None:
            scope.note_change(partial(self._take_back, unit, stream, unit.before(stream)))
        yield unit
        if scope is None:
            self._commit(unit)
            self._settle()

    @asynccontextmanager
    async def _decided(self, scope: Scope, unit: "_Unit") -> AsyncIterator[None]:
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            del self._open[scope]
            if succeeded:
                self._commit(unit)
            else:
                self._ids.difference_update(entry.id for entry in unit.added)
            unit.over.set()
            self._settle()

    def _take_back(self, unit: "_Unit", stream: str, before: "_Before") -> None:
        self._ids.difference_update(entry.id for entry in unit.added[before.added :])
        unit.go_back(stream, before)

    def _commit(self, unit: "_Unit") -> None:
        for name, changed in unit.streams.items():
            if changed.entries:
                self._streams[name] = changed
            else:
                self._streams.pop(name, None)
        if unit.gone:
            self._ids.difference_update(entry.id for entry in unit.gone)
            self._seen = [entry for entry in self._seen if entry not in unit.gone]
            self._hidden = [entry for entry in self._hidden if entry not in unit.gone]
        self._hidden += [entry for entry in unit.added if entry not in unit.gone]
        self._latest = max([self._latest, *(entry.position.transaction for entry in unit.added[-1:])])

    def _settle(self) -> None:
        """Let readers see what is not behind an open unit any more, and wake them up."""
        if self._hidden:
            self._hidden.sort(key=_position_of)
            oldest = next(iter(self._open.values()), None)
            end = len(self._hidden)
            if oldest is not None:
                end = bisect_right(self._hidden, Position(oldest.transaction, 0), key=_position_of)
            self._seen += self._hidden[:end]
            del self._hidden[:end]
        self._heard += 1
        for bell in self._waiting:
            bell.set()

    async def _free(
        self,
        scope: Scope | None,
        stream: str,
        events: Sequence[NewEvent] = (),
        condition: AppendCondition | None = None,
    ) -> None:
        """Wait until no other unit is open that has anything to do with this change.

        Raises:
            ConcurrencyError: That one waits for this unit.
        """
        while (other := next(self._in_the_way(scope, stream, events, condition), None)) is not None:
            holder, unit = other
            await wait_for(
                unit.over,
                holder,
                scope,
                what=f"two units of work wait for each other, one of them to change {stream!r}",
                hint="handle again what failed, or change streams in the same order everywhere",
            )

    def _in_the_way(
        self, scope: Scope | None, stream: str, events: Sequence[NewEvent], condition: AppendCondition | None
    ) -> "Iterator[tuple[Scope, _Unit]]":
        for holder, unit in self._open.items():
            if holder is not scope and (
                stream in unit.streams
                or any(_fits(one, stream, event.name, event.tags) for one in unit.conditions for event in events)
                or (condition is not None and any(entry.fits(one) for one in condition.filters for entry in unit.added))
            ):
                yield holder, unit


@dataclass(eq=False, slots=True)
class _Entry:
    """An event, or the link to one, where it stands."""

    event: StoredEvent
    id: str
    tags: frozenset[str]
    origin: "_Entry | None" = None

    @property
    def position(self) -> Position:
        return self.event.position or START

    def fits(self, which: EventFilter) -> bool:
        """Tell whether it is meant; a link is only where its stream or category is named."""
        named = self.origin is None or which.streams or which.categories
        return bool(named) and _fits(which, self.event.stream, self.event.name, self.tags)


_position_of = attrgetter("position")


def _fits(which: EventFilter, stream: str, name: str, tags: Sequence[str] | frozenset[str]) -> bool:
    return (
        (stream in which.streams or category_of(stream) in which.categories or not (which.streams or which.categories))
        and (not which.names or name in which.names)
        and which.tags <= frozenset(tags)
    )


@dataclass(frozen=True, slots=True)
class _Stream:
    """What was appended to a stream: the event with version 1 first."""

    entries: tuple[_Entry, ...] = ()
    archived: bool = False

    @property
    def version(self) -> int:
        return len(self.entries)

    def find(self, version: int) -> _Entry | None:
        return self.entries[version - 1] if 0 < version <= len(self.entries) else None


_NONE = _Stream()


@dataclass(frozen=True, slots=True)
class _Before:
    """How far a unit of work had got."""

    stream: _Stream | None
    added: int
    gone: frozenset[_Entry]
    conditions: int


class _Unit:
    """What has changed in a unit of work that is open."""

    def __init__(self, transaction: int, began: datetime) -> None:
        self.transaction = transaction
        self.began = began
        self.streams: dict[str, _Stream] = {}  # as they are when it succeeds
        self.added: list[_Entry] = []
        self.gone: set[_Entry] = set()
        self.conditions: list[EventFilter] = []
        self.over = anyio.Event()

    def before(self, stream: str) -> "_Before":
        """Note how things are before a stream is changed."""
        return _Before(self.streams.get(stream), len(self.added), frozenset(self.gone), len(self.conditions))

    def go_back(self, stream: str, before: "_Before") -> None:
        """Let things be as they were before a stream was changed."""
        if before.stream is None:
            self.streams.pop(stream, None)
        else:
            self.streams[stream] = before.stream
        del self.added[before.added :], self.conditions[before.conditions :]
        self.gone = set(before.gone)

    def add(self, stream: str, found: _Stream, added: Sequence[_Entry]) -> None:
        self.added += added
        self.streams[stream] = replace(found, entries=(*found.entries, *added))
