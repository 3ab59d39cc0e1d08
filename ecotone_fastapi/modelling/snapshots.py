"""Snapshots: what many events have led to, so that not all of them are read again.

    @event_sourced(identifier="account_id", snapshots=Snapshots(every=200))
    @dataclass
    class Account: ...

A snapshot is taken after the events were appended, in the same transaction. It is never needed: one of another form of
the class, or of events that are gone, is left aside, and the aggregate is made of all of its events.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime
from inspect import get_annotations
from typing import Any, Protocol

from pydantic import PydanticInvalidForJsonSchema, PydanticUserError, TypeAdapter
from pydantic_core import to_json

from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.conversion import JSON, Conversion
from ecotone_fastapi.core.errors import AggregateError, ConfigurationError, ConversionError
from ecotone_fastapi.modelling.state import StateForm

logger: logging.Logger = logging.getLogger("ecotone_fastapi.snapshots")


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """When snapshots of the aggregates of a class are taken.

    Args:
        every: After so many events.
        revision: To be counted up when `@applies` methods make something else of the same events. That fields have
            changed is seen without it.
        background: The name of a channel: its consumer takes the snapshot later, instead of the handler that appends.
    """

    every: int = 100
    revision: int = 1
    background: str | None = None

    def __post_init__(self) -> None:
        """Refuse a number that would never take one."""
        if self.every < 1:
            raise ConfigurationError(f"snapshots every {self.every} events are none", hint="it is at least 1")

    def are_due(self, before: int, after: int) -> bool:
        """Whether one is to be taken when a stream has got from one version to another."""
        return before // self.every < after // self.every


@dataclass(frozen=True, slots=True)
class Background:
    """Mark: this handler takes snapshots, and is to run behind this channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An aggregate as it was.

    Args:
        stream: The stream of its events.
        version: The version that the stream had.
        event_id: The id of the event with this version.
        form: The form of its class: what is of another one is of no use.
        content_type: The media type of the body.
        body: Its state.
        taken_at: When it was taken.
    """

    stream: str
    version: int
    event_id: str
    form: str
    content_type: str
    body: bytes
    taken_at: datetime


class SnapshotStore(Protocol):
    """Keeps the last snapshot of each stream. A database adapter implements it."""

    async def load(self, stream: str) -> Snapshot | None:
        """Return the snapshot of a stream, also the one that the open unit of work has saved; `None` without one."""
        ...

    async def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot instead of the one before, with the unit of work of the calling task's scope, if any."""
        ...

    async def delete(self, stream: str) -> None:
        """Forget the snapshot of a stream, with the unit of work of the calling task's scope, if any."""
        ...


class SnapshotsOf:
    """The snapshots of one class.

    Args:
        cls: The class.
        blank: An object of it to which nothing has happened.
        settings: When they are taken.
        store: Where they are.
        conversion: The converters of the user, one of which may be for the class.
        clock: Tells when they are taken.

    Raises:
        ConfigurationError: Objects of the class would not come back as they were.
    """

    def __init__(
        self,
        cls: type,
        blank: object,
        *,
        settings: Snapshots,
        store: SnapshotStore,
        conversion: Conversion,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self._cls = cls
        self._store = store
        self._conversion = conversion
        self._clock = clock
        self._told: set[str] = set()
        try:
            self._state: StateForm[Any] | None = None if conversion.has_converter(cls) else StateForm(cls, conversion)
        except ConfigurationError as problem:
            problem.what = f"no snapshots of {cls.__qualname__} can be taken: {problem.what}"
            raise
        self._form: str = f"{settings.revision}:{_fingerprint(cls, blank, self._state)}"

    async def load(self, stream: str) -> Snapshot | None:
        """Return the snapshot of a stream; `None` without one of the class as it is."""
        snapshot = await self._store.load(stream)
        if snapshot is not None and snapshot.form != self._form:
            self.ignore(snapshot, f"its form is {snapshot.form}, that of the class {self._form}")
            return None
        return snapshot

    def restore(self, snapshot: Snapshot) -> Any:
        """Return an aggregate as it was; `None` when the snapshot cannot be read."""
        try:
            if self._state is None:
                return self._conversion.decode(snapshot.body, self._cls, snapshot.content_type)
            if snapshot.content_type == JSON:
                return self._state.read(snapshot.body.decode())
            self.ignore(snapshot, f"it is {snapshot.content_type}, and nothing reads that any more")
        except (AggregateError, ConversionError) as error:
            self.ignore(snapshot, error.what)
        return None

    async def save(self, stream: str, state: Any, version: int, event_id: str) -> None:
        """Take a snapshot. That it cannot be written is no reason for a handler to fail."""
        try:
            if self._state is None:
                body, content_type = self._conversion.encode(state)
            else:
                body, content_type = self._state.write(state).encode(), JSON
        except (AggregateError, ConversionError) as error:
            logger.warning("no snapshot of %s was taken at version %s: %s", stream, version, error.what)
            return
        await self._store.save(Snapshot(stream, version, event_id, self._form, content_type, body, self._clock.now()))

    def ignore(self, snapshot: Snapshot, why: str) -> None:
        """Tell once for each form of the class that snapshots are left aside."""
        if snapshot.form not in self._told:
            self._told.add(snapshot.form)
            logger.warning(
                "a snapshot of %s is left aside, and so may be others: all events of %s are read again: %s",
                self._cls.__qualname__,
                snapshot.stream,
                why,
            )


def _fingerprint(cls: type, blank: object, state: StateForm[Any] | None) -> str:
    """Return a text that is another one when the attributes of a class, or their types, have changed."""
    try:
        form = to_json(TypeAdapter(cls).json_schema())
    except (PydanticUserError, PydanticInvalidForJsonSchema):
        # Of a plain class that is known what it says, and what its constructor sets; of what it holds, all.
        told = [sorted(map(str, get_annotations(one).items())) for one in cls.__mro__]
        made = sorted((name, type(value).__qualname__) for name, value in getattr(blank, "__dict__", {}).items())
        form = repr((told, made, state and state.shape())).encode()
    return hashlib.sha256(form).hexdigest()[:16]
