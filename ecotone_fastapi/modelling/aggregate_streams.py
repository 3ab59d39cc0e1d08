"""Aggregates that are streams of events: loaded by applying these, saved by appending new ones."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ecotone_fastapi.core.errors import AggregateError, ConfigurationError, ConversionError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.modelling.applying import Applying
from ecotone_fastapi.modelling.event_storage import StoredEvent
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.repository import Identifier, Saved, Versioned
from ecotone_fastapi.modelling.snapshots import SnapshotsOf
from ecotone_fastapi.modelling.stream_names import (
    LONGEST_STREAM,
    category_of,
    check_stream,
    stream_of,
)

A = TypeVar("A")

_PAGE = 1000  # events that are read at a time


@dataclass(frozen=True)
class Sourced:
    """One class of event-sourced aggregates.

    Args:
        cls: The class.
        category: What the names of its streams begin with.
        applying: What events do to its objects.
        snapshots: Its snapshots, if any are taken.
    """

    cls: type
    category: str
    applying: Applying
    snapshots: SnapshotsOf | None


class EventSourcedStore:
    """The store of event-sourced aggregates: one stream for each, and snapshots beside it.

    Args:
        events: The streams.
        describe: Tells about a class; `None` when its aggregates are no streams.
        when_due: Is told the channel and the stream when a snapshot is to be taken in the background.
    """

    def __init__(
        self,
        events: EventStore,
        describe: Callable[[type], Sourced | None],
        when_due: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._events = events
        self._describe = describe
        self._when_due = when_due
        self._known: dict[type, Sourced] = {}
        self._categories: dict[str, Sourced] = {}

    def serves(self, cls: type) -> bool:
        """Whether aggregates of this class are event-sourced.

        Raises:
            ConfigurationError: They are, and something is wrong with the class.
        """
        if cls in self._known:
            return True
        sourced = self._describe(cls)
        if sourced is None:
            return False
        taken = self._categories.setdefault(sourced.category, sourced)
        if taken is not sourced:
            raise ConfigurationError(
                f"{taken.cls.__qualname__} and {cls.__qualname__} both have the streams {sourced.category}-…",
                hint='give one of them another one: @event_sourced(..., stream="…")',
            )
        self._known[cls] = sourced
        return True

    async def load(self, cls: type[A], identifier: Identifier) -> Versioned[A] | None:
        """Return an aggregate to which has happened what is in its stream."""
        sourced = self._known[cls]
        state, version, _ = await self._load(sourced, _stream(sourced, identifier))
        return Versioned(state, version) if version else None

    async def save(
        self,
        cls: type[A],
        identifier: Identifier | None,
        state: A,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        """Append what an aggregate has recorded to its stream."""
        sourced = self._known[cls]
        if identifier is None:
            raise AggregateError(
                f"a new {cls.__name__} is not identified by its events",
                hint="return or record one, and let an @applies method set the attribute of its identifier",
            )
        if not events:
            if not expected:
                raise AggregateError(
                    f"a new {cls.__name__} has recorded no event, so there is nothing to save",
                    hint="an event-sourced aggregate begins with an event: return or record one",
                )
            return Saved(expected)
        stream = _stream(sourced, identifier)
        try:
            stored = await self._events.append_messages(stream, events, expected=expected)
        except ConversionError as error:  # no fault of who has sent the command
            raise AggregateError(
                f"what a {cls.__name__} has recorded cannot be stored: {error.what}", tried=error.tried, hint=error.hint
            ) from error
        version = stored[-1].version
        snapshots = sourced.snapshots
        if snapshots is not None and snapshots.settings.are_due(expected, version):
            if snapshots.settings.background is not None:
                await self._when_due(snapshots.settings.background, stream)
            else:
                await snapshots.save(stream, state, version, events[-1].id)
        return Saved(version, [_published(message, one) for message, one in zip(events, stored, strict=True)])

    async def delete(self, cls: type[A], identifier: Identifier, state: A, *, expected: int) -> None:
        """Refuse: whether what has happened is to be hidden or forgotten, nobody but the caller can know.

        Raises:
            AggregateError: Always.
        """
        stream = _stream(self._known[cls], identifier)
        raise AggregateError(
            f"the {cls.__name__} {identifier.value!r} is event-sourced: what has happened to it cannot be unmade",
            hint=f"let an event end it; then EventStore.archive({stream!r}) hides it from repositories and commands, "
            f"or EventStore.delete({stream!r}) erases its events for ever",
        )

    async def take_snapshot(self, stream: str) -> None:
        """Take a snapshot of a stream as it is now."""
        sourced = self._categories.get(category_of(stream))
        if sourced is None or sourced.snapshots is None:
            return  # the program does not take them any more
        state, version, last_id = await self._load(sourced, stream)
        if last_id is not None:
            await sourced.snapshots.save(stream, state, version, last_id)

    async def _load(self, sourced: Sourced, stream: str) -> tuple[Any, int, str | None]:
        """Return an aggregate, its version, and the id of the last event, if any came after its snapshot."""
        storage, read, applying = self._events.storage, self._events.reader.read, sourced.applying
        snapshots = sourced.snapshots
        found = await snapshots.load(check_stream(stream)) if snapshots is not None else None
        page: Sequence[StoredEvent] = ()
        state, version = None, 0
        if found is not None and snapshots is not None:
            # Its last event is read again: a stream that was deleted and begun anew is another one.
            page = await storage.read(stream, after=found.version - 1, limit=_PAGE)
            if page and page[0].version == found.version and read(page[0]).id == found.event_id:
                state, version = snapshots.restore(found), found.version
            elif page:
                snapshots.ignore(found, "it was taken of other events")
        if state is None:
            state, version = applying.new(), 0
            page = await storage.read(check_stream(stream), limit=_PAGE)
        message: Message[Any] | None = None
        while page:
            for event in page:
                if event.version > version:
                    try:
                        message = read(event)
                        applying.apply(state, message.payload, message.headers)
                    except ConversionError as error:  # no fault of who has sent the command
                        raise AggregateError(
                            f"version {event.version} of {stream!r} cannot be read: {error.what}", hint=error.hint
                        ) from error
                    except Exception as error:
                        error.add_note(f"while applying {event.name!r}, version {event.version} of {stream!r}")
                        raise
            version = page[-1].version
            page = await storage.read(stream, after=version, limit=_PAGE) if len(page) == _PAGE else ()
        return state, version, None if message is None else message.id


def _stream(sourced: Sourced, identifier: Identifier) -> str:
    """Return the name of the stream of an aggregate.

    Raises:
        ConversionError: It cannot have one.
    """
    try:
        return check_stream(stream_of(sourced.category, str(identifier)))
    except ConversionError as error:
        longest = LONGEST_STREAM - len(stream_of(sourced.category, ""))
        raise ConversionError(
            f"{str(identifier)[:80]!r} cannot identify a {sourced.cls.__name__}",
            tried=f"the identifier has {len(str(identifier))} characters, and names the stream of the object",
            hint=f"at most {longest} printable characters, without a space at the end",
        ) from error


def _published(message: Message[Any], stored: StoredEvent) -> Message[Any]:
    """Return the message of an event that was appended, as handlers see it."""
    return message.with_headers({HeaderName.stream: stored.stream, HeaderName.stream_version: str(stored.version)})
