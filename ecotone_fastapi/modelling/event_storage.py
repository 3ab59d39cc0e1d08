"""What keeps streams of events: an adapter's `EventStorage`, and what goes in and out of it.

Every event has a version in its stream, counted from 1, and a position among all events of the store. Readers of all
events go by the position; it is opaque, and the store sees to it that nothing ever appears before a position that was
read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from ecotone_fastapi.core.errors import ConcurrencyError

NO_VERSION = 0
"""The version of a stream without events."""


class Expected(StrEnum):
    """What may be expected of a stream besides an exact version."""

    ANY = "any"
    """Append whatever its version is."""
    EXISTS = "exists"
    """Append only if it has events."""


class Position(NamedTuple):
    """Where an event stands among all events of a store. To be compared and kept, not computed with.

    Args:
        transaction: What orders commits, where the server counts them; 0 elsewhere.
        number: The number of the event.
    """

    transaction: int
    number: int

    def __str__(self) -> str:
        return f"{self.transaction}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Return the position that was written as text.

        Example:
            >>> Position.parse("7:12") > START
            True
        """
        transaction, _, number = text.partition(":")
        return cls(int(transaction), int(number))


START: Position = Position(0, 0)
"""Before the first event."""


class StoredEvent(NamedTuple):
    """An event as it is in the store.

    Args:
        stream: The stream that it was read from.
        version: Its version there.
        position: Where it stands among all events; `None` as long as the transaction that appends it is open.
        name: The name of its type, see `message_name`.
        body: Its payload as it was written.
        headers_text: Its headers as they were written: JSON.
        recorded_at: When it was appended, by the clock of the store.
        origin: The stream that a linked event was appended to, with its version there; `None` where it is at home.
    """

    stream: str
    version: int
    position: Position | None
    name: str
    body: bytes
    headers_text: str
    recorded_at: datetime
    origin: tuple[str, int] | None = None


class NewEvent(NamedTuple):
    """An event that is to be appended, in the form in which it is written.

    Args:
        id: The id of its message; unique in the store.
        name: The name of its type.
        body: Its payload.
        headers_text: Its headers as JSON.
        tags: What it can be found by besides its stream, see `EventFilter`.
    """

    id: str
    name: str
    body: bytes
    headers_text: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are meant: those of the given streams and categories that fit every other condition.

    Args:
        categories: Streams of one of these categories.
        streams: One of these streams, whatever its category.
        names: Of one of these names.
        tags: With all of these tags.
    """

    categories: frozenset[str] = frozenset()
    streams: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()


EVERYTHING: EventFilter = EventFilter()
"""All events."""


@dataclass(frozen=True, slots=True)
class AppendCondition:
    """Append only if no event has come that would have changed the decision.

    Whoever decides waits for others who decide on the same, or append what would change it: by a tag that is named,
    else by the names of events, so that all who append such events wait until the transaction of the decision has
    ended. A filter with neither is for rare decisions: on PostgreSQL everybody waits who appends anything.

    Args:
        filters: The events that the decision was made on: those that fit one of these.
        after: The position up to which they were known.
        known: The numbers of positions behind it whose events were known, too: those that are committed, but behind a
            transaction that is open.
    """

    filters: tuple[EventFilter, ...]
    after: Position
    known: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Page:
    """What a reader of all events has got.

    Args:
        events: The events, in order. There may be few although there are more to come, but not none.
        upto: Where to read on. It may be beyond the last event, when what lies between does not fit the filter.
        more: Whether there may be more at this moment.
    """

    events: Sequence[StoredEvent]
    upto: Position
    more: bool


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far readers of all events can see.

    Args:
        head: The position of the last event that can be seen; `START` without any.
        lag: For how many seconds something has kept readers from what lies behind it; 0 when nothing does.
        blocked_by: What it is, in words: which session of the server, since when, doing what.
    """

    head: Position
    lag: float = 0.0
    blocked_by: str = ""


class EventStorage(Protocol):
    """Keeps events. A database adapter implements it; `EventStoreConformance` tells whether it does so well."""

    async def append(
        self,
        stream: str,
        events: Sequence[NewEvent],
        *,
        expected: int | Expected,
        condition: AppendCondition | None = None,
    ) -> Sequence[StoredEvent]:
        """Append events to a stream, all or none, with the unit of work of the calling task's scope, if any.

        Returns:
            The events as they are stored, with their versions. Their positions are known where the store gives them at
            once.

        Raises:
            ConcurrencyError: The stream is not as expected, the error has both versions; or it is archived, an event
                with one of these ids is in the store, or one has come that the condition excludes. The unit of work may
                be unable to commit after that.
            ConfigurationError: The unit of work cannot see what is committed by now, and the store relies on that.
            ChannelError: The database cannot be reached.
        """
        ...

    async def read(
        self, stream: str, *, after: int = 0, limit: int | None = None, archived: bool = False, newest: bool = False
    ) -> Sequence[StoredEvent]:
        """Return events of one stream in the order of their versions, those of the open unit of work included.

        Args:
            stream: The stream.
            after: Return those with a greater version.
            limit: How many at most; `None` is all.
            archived: Whether a stream that is archived is read, too; else it is as if it had no events.
            newest: Whether all that is committed by now is read, whatever the open unit of work has read before.
        """
        ...

    async def read_all(
        self, *, after: Position, limit: int, which: EventFilter = EVERYTHING, settled: bool = False
    ) -> Page:
        """Return events of all streams in the order of their positions.

        What is appended after another event was committed comes behind that one, in one stream and in several. What was
        appended by a transaction that is still open is never passed over: nothing behind it is returned before it has
        ended. Events of the caller's own open unit of work are not returned. Links are returned only where `which`
        names the stream or category that they are in. What is in archived streams is returned, as it has happened.

        Args:
            after: Return those with a greater position.
            limit: How many at most.
            which: Which events are meant.
            settled: Whether the caller has seen to it that no transaction is open that has appended what is meant. Then
                everything that is committed is returned, whatever other transactions are open.
        """
        ...

    async def count(self, *, after: Position, which: EventFilter = EVERYTHING) -> int:
        """Return how many events `read_all` would return in all, without a limit."""
        ...

    async def version(self, stream: str) -> int:
        """Return the version of a stream, archived or not; 0 without events."""
        ...

    async def link(self, stream: str, events: Sequence[StoredEvent]) -> int:
        """Let events be read in another stream, too; return how many links were added. They are not copied.

        An event is linked to a stream once, and not to its own. One that is deleted at home is gone here, too; one that
        is archived there is hidden as it is there. The versions of the others stay as they are.

        Raises:
            ConcurrencyError: The stream is archived, or somebody else has just added one of these links.
        """
        ...

    async def archive(self, stream: str) -> bool:
        """Hide a stream: nothing can be appended to it any more. Return whether there was one.

        `read` and `streams` pass over it unless told otherwise. `read_all` does not: what has happened has happened,
        also for readers who have not come so far yet, and for those who begin anew.
        """
        ...

    async def delete(self, stream: str) -> int:
        """Delete all events of a stream, for ever; return how many there were.

        After that it may begin anew, with the version 1 and behind everything else.
        """
        ...

    async def streams(
        self, category: str, *, after: str = "", limit: int = 1000, archived: bool = False
    ) -> Sequence[str]:
        """Return the names of the streams of a category, in order, behind `after`; of archived ones only if told so."""
        ...

    async def horizon(self) -> Horizon:
        """Tell how far readers of all events can see, and what keeps them from more."""
        ...

    async def wait(self, heard: int, timeout: float) -> int:
        """Wait until something may have been appended and committed since `heard` was told; return what to tell next.

        It returns, too, when a transaction has failed behind which something may be seen now. Nobody is to rely on it:
        it may return without reason, and may hear late, or not at all, of what happens in other processes. Readers look
        for themselves as well, from time to time:

            heard = 0
            while True:
                heard = await storage.wait(heard, 5.0)
                ...  # read until there is nothing more: what is appended meanwhile makes the next wait short

        Args:
            heard: What it has returned before; 0 at first.
            timeout: Return after so many seconds at the latest.
        """
        ...

    async def check_restored(self) -> None:
        """Make sure that the database counts transactions on from where the events were written.

        Raises:
            ConfigurationError: It was restored elsewhere, and readers would miss what is appended from now on.
        """
        ...


@runtime_checkable
class ChecksIsolation(Protocol):
    """A storage that relies on what transactions see, and can tell at start whether they see enough."""

    async def check_isolation(self) -> None:
        """Make sure that events can be appended in transactions as handlers have them.

        Raises:
            ConfigurationError: They cannot: they do not see what was committed since they have begun.
            ChannelError: The database cannot be reached.
        """
        ...


def is_expected(expected: int | Expected, actual: int) -> bool:
    """Tell whether a stream of this version is as an append expects it."""
    if isinstance(expected, Expected):
        return expected is Expected.ANY or actual > NO_VERSION
    return actual == expected


def not_expected(
    stream: str, expected: int | Expected, actual: int | None, *, archived: bool = False
) -> ConcurrencyError:
    """Make the error that tells that a stream is not as an append expects it."""
    if archived:
        what, hint = f"the stream {stream!r} is archived: nothing can be appended to it", "use another stream"
    elif expected is Expected.EXISTS:
        what, hint = f"the stream {stream!r} was expected to exist, and has no events", ""
    elif expected == NO_VERSION:
        what, hint = f"the stream {stream!r} exists already", "load it and change it, or begin one with another name"
    else:
        what, hint = f"the stream {stream!r} was changed meanwhile", "load it again, decide again"
    if isinstance(expected, Expected):
        return ConcurrencyError(what, actual=actual, hint=hint)
    return ConcurrencyError(what, expected=expected, actual=actual, hint=hint)


def already_appended(ids: Iterable[str]) -> ConcurrencyError:
    """Make the error that tells that an event is in the store already."""
    return ConcurrencyError(
        "an event is in the store already",
        tried=f"event ids {', '.join(sorted(ids)[:5])}",
        hint="append each message once; a new one gets a new id",
    )


def excluded(stream: str, condition: AppendCondition) -> ConcurrencyError:
    """Make the error that tells that an event has come that the condition of an append excludes."""
    return ConcurrencyError(
        f"nothing was appended to {stream!r}: an event has come that would have changed the decision",
        tried=f"{len(condition.filters)} filters, behind the position {condition.after}",
        hint="read again what the decision depends on, and decide again",
    )
