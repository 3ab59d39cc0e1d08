"""The event store: streams of events that are never changed, appended to with an expected version.

    async def close(basket_id: str, events: EventStore) -> None:
        history = await events.load(f"basket-{basket_id}")
        await events.append(f"basket-{basket_id}", [BasketWasClosed(basket_id)], expected=len(history))

A stream is named `category-identifier`: all streams of one category can be read as one. What stands behind it is an
`EventStorage`: that of a database, in the transaction of the handler, or the one in memory.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import EcotoneError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    START,
    AppendCondition,
    EventFilter,
    EventStorage,
    Expected,
    NewEvent,
    Position,
    StoredEvent,
)
from ecotone_fastapi.modelling.stream_names import check_stream


class UnknownEventError(EcotoneError, LookupError):
    """An event in the store has a name, or a revision, that nothing here knows.

    Args:
        what: Which, and where.
        event: The event.
        known: The names that are known.
    """

    def __init__(self, what: str, *, event: StoredEvent, known: Iterable[str], hint: str) -> None:
        self.known: tuple[str, ...] = tuple(sorted(known))
        shown = ", ".join(self.known[:20]) + (", …" if len(self.known) > 20 else "")
        super().__init__(what, tried=f"known: {shown or 'none'}", hint=hint)
        self.stream: str = event.stream
        self.version: int = event.version
        self.position: Position | None = event.position


class EventReader(Protocol):
    """Makes messages of stored events: knows their types, and brings old ones up to date."""

    def write(self, event: Message[Any]) -> NewEvent:
        """Return an event in the form in which it is stored.

        Raises:
            ConversionError: It has no form as bytes.
        """
        ...

    def read(self, event: StoredEvent) -> Message[Any]:
        """Return the event as it is today.

        Raises:
            UnknownEventError: Its name or revision is not known.
            ConversionError: It does not fit its type.
        """
        ...


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event of a stream.

    Args:
        payload: The event.
        headers: What was written with it.
        stream: The stream that it was read from.
        version: Its version there.
        position: Where it stands among all events; `None` as long as the transaction that appends it is open.
        recorded_at: When it was appended.
        origin: Of a linked event, the stream and version where it is at home.
    """

    payload: Any
    headers: Mapping[str, str] = field(repr=False)
    stream: str
    version: int
    position: Position | None = field(repr=False)
    recorded_at: datetime = field(repr=False)
    origin: tuple[str, int] | None = field(default=None, repr=False)


Deleted = Callable[[str], Awaitable[None]]
"""Is told the name of a stream that is deleted, in the unit of work that deletes it."""

Within = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Does something in a unit of work."""

Appended = Callable[[Sequence[StoredEvent], Sequence[Message[Any]] | None], Awaitable[None]]
"""Is told what was appended or linked to a stream just now, in the unit of work that does it.

The messages are those of the events, where they are known.
"""


class EventStore:
    """Streams of events, for handlers that ask for it by its type.

    Args:
        storage: Keeps them.
        reader: Makes messages of them.
        gateway: Makes new messages.

    Example:
        >>> async def history(stream: str, events: EventStore) -> list[object]:
        ...     return [event.payload for event in await events.load(stream)]
    """

    def __init__(self, storage: EventStorage, reader: EventReader, gateway: Gateway) -> None:
        self.storage: EventStorage = storage
        self.reader: EventReader = reader
        self._gateway = gateway
        self._listeners: list[Appended] = []
        self._within: Within | None = None
        self._deletion_listeners: list[Deleted] = []

    def when_appended(self, listener: Appended, *, within: Within | None = None) -> None:
        """Call this with all that is appended or linked, in the unit of work that does it; what it raises fails that.

        Args:
            listener: What is called.
            within: Opens a unit of work for those who append or link outside of any.
        """
        self._listeners.append(listener)
        self._within = within or self._within

    def when_deleted(self, listener: Deleted) -> None:
        """Call this with each stream that is deleted, in the unit of work that deletes it."""
        self._deletion_listeners.append(listener)

    async def append(
        self,
        stream: str,
        events: Sequence[Any],
        *,
        expected: int | Expected = Expected.ANY,
        headers: Mapping[str, str] | None = None,
        condition: AppendCondition | None = None,
    ) -> Sequence[RecordedEvent]:
        """Append events to a stream, all or none, in the transaction of the handler. They are not published.

        Args:
            stream: Its name, `category-identifier`.
            events: Payloads, or `Message`s of payloads with headers of their own.
            expected: The version that the stream has to have; 0 is none.
            headers: What is written with each event, besides what it inherits from the message that is being handled.
            condition: What must not have happened meanwhile.

        Raises:
            ConcurrencyError: Somebody else was there first; it has both versions.
            ConversionError: An event cannot be written.
        """
        messages = [self.message(event, headers) for event in events]
        stored = await self.append_messages(stream, messages, expected=expected, condition=condition)
        return [_recorded(event, message) for event, message in zip(stored, messages, strict=True)]

    async def append_messages(
        self,
        stream: str,
        messages: Sequence[Message[Any]],
        *,
        expected: int | Expected,
        condition: AppendCondition | None = None,
    ) -> Sequence[StoredEvent]:
        """Append events that are messages already, with the headers that they have; as `append`."""
        if not messages:
            return ()
        if self._within is not None and current_scope() is None:
            append = partial(self.append_messages, stream, messages, expected=expected, condition=condition)
            together: Sequence[StoredEvent] = await self._within(append)
            return together
        written = [self.reader.write(message) for message in messages]
        stored = await self.storage.append(check_stream(stream), written, expected=expected, condition=condition)
        for listener in self._listeners:
            await listener(stored, messages)
        return stored

    def message(self, event: Any, headers: Mapping[str, str] | None = None) -> Message[Any]:
        """Make the message of an event: caused by the one that is being handled, with an id of its own."""
        given = dict(headers or {})
        if isinstance(event, Message):
            given.update(event.headers)
            event = event.payload
        return self._gateway.message(event, given or None)

    async def load(self, stream: str, *, after: int = 0, limit: int | None = None) -> Sequence[RecordedEvent]:
        """Return the events of a stream in their order; none when there is no such stream.

        Args:
            stream: Its name.
            after: Return those with a greater version.
            limit: How many at most.

        Raises:
            UnknownEventError: One has a name or a revision that nothing here knows.
        """
        return [self._read(event) for event in await self.storage.read(stream, after=after, limit=limit)]

    async def all(
        self, *, after: Position = START, which: EventFilter = EVERYTHING, batch: int = 500
    ) -> AsyncIterator[RecordedEvent]:
        """Yield the events of all streams, in the order of their positions, up to those that can be seen now.

        Args:
            after: Where to begin.
            which: Which events are meant.
            batch: How many are read at a time.
        """
        more = True
        while more:
            page = await self.storage.read_all(after=after, limit=batch, which=which)
            for event in page.events:
                yield self._read(event)
            after, more = page.upto, page.more

    async def version(self, stream: str) -> int:
        """Return the version of a stream; 0 when there is none."""
        return await self.storage.version(stream)

    async def link(self, stream: str, events: Sequence[RecordedEvent]) -> int:
        """Let events be read in another stream, too; return how many were not there already.

        Raises:
            ConcurrencyError: The stream is archived, or somebody else has just added one of these links.
        """
        stored = [
            StoredEvent(event.stream, event.version, event.position, "", b"", "{}", event.recorded_at, event.origin)
            for event in events
        ]
        return await self.link_stored(stream, stored)

    async def link_stored(self, stream: str, events: Sequence[StoredEvent]) -> int:
        """Let events be read in another stream, too, as they were read from the storage; as `link`."""
        if self._within is not None and current_scope() is None:
            together: int = await self._within(partial(self.link_stored, stream, events))
            return together
        linked = await self.storage.link(check_stream(stream), events)
        if linked and self._listeners:
            # Nobody else can have come behind them: they are the last ones that this unit of work sees.
            before = await self.storage.version(stream) - linked
            links = await self.storage.read(stream, after=before, archived=True)
            for listener in self._listeners if links else ():
                await listener(links, None)
        return linked

    async def archive(self, stream: str) -> bool:
        """Hide a stream from those who load it or append to it; return whether there was one.

        Projections still read its events, also when they are rebuilt; `delete` is for what nobody is to know any more.
        """
        return await self.storage.archive(stream)

    async def delete(self, stream: str) -> int:
        """Delete a stream for ever; return how many events it had."""
        for listener in self._deletion_listeners:
            await listener(stream)
        return await self.storage.delete(stream)

    async def streams(self, category: str, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Return the names of the streams of a category that are not archived, in order."""
        return await self.storage.streams(category, after=after, limit=limit)

    def _read(self, event: StoredEvent) -> RecordedEvent:
        return _recorded(event, self.reader.read(event))


def _recorded(event: StoredEvent, message: Message[Any]) -> RecordedEvent:
    return RecordedEvent(
        message.payload,
        message.headers,
        event.stream,
        event.version,
        event.position,
        event.recorded_at,
        event.origin,
    )
