"""Which events there are: from what is stored to objects of today's classes, and back.

An event is written down under the name of its class, see `message_name`, with its revision. What nothing here knows is
never passed over and never handed out as something else: reading it is an `UnknownEventError`.

Payloads are written and read by the converters of the application, so that is where personal data is encrypted: a
`Converter` that handles a type, given as `Ecotone(converters=[...])`, makes the bytes of its events, and of snapshots
of a class that it handles. Its media type is stored with the event, and says who reads it. Names, headers and streams
are stored as they are: nothing personal belongs there.
"""

import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from ecotone_fastapi.core.conversion import JSON
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import (
    FRAMEWORK_HEADERS,
    HeaderName,
    Message,
    MessageTypes,
    aliases_of,
    copied_headers,
    descendants_of,
    name_of,
)
from ecotone_fastapi.modelling.event_storage import NewEvent, StoredEvent
from ecotone_fastapi.modelling.event_store import UnknownEventError
from ecotone_fastapi.modelling.tags import tags_of
from ecotone_fastapi.modelling.upcasting import Upcasters, revision_of

# What the framework says about an event itself. All else is about the way of a message, or stands beside it.
_STORED = (HeaderName.id, HeaderName.correlation_id, HeaderName.causation_id, HeaderName.timestamp, HeaderName.tags)
_NOT_STORED = FRAMEWORK_HEADERS - set(_STORED)

# Text of headers is read only where it is asked for; whether these are among them can be told without.
_TELLS_REVISION = f'"{HeaderName.revision}"'
_TELLS_CONTENT_TYPE = f'"{HeaderName.content_type}"'


class StoredHeaders(Mapping[str, str]):
    """The headers of an event in the store, read when somebody looks at them.

    Args:
        event: The event.
    """

    __slots__ = ("_event", "_read")

    def __init__(self, event: StoredEvent) -> None:
        self._event = event
        self._read: dict[str, str] | None = None

    def _headers(self) -> dict[str, str]:
        if self._read is None:
            event = self._event
            home, version = event.origin or (event.stream, event.version)
            headers: dict[str, str] = from_json(event.headers_text)
            headers.pop(HeaderName.content_type, None)  # it is about the bytes
            headers[HeaderName.stream] = home
            headers[HeaderName.stream_version] = str(version)
            self._read = headers
        return self._read

    def __getitem__(self, name: str) -> str:
        return self._headers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers())

    def __len__(self) -> int:
        return len(self._headers())

    def __repr__(self) -> str:
        return repr(self._headers())


class _Form:
    """How events of one name and revision are read."""

    __slots__ = ("cls", "steps")

    def __init__(self, cls: type, steps: tuple[Callable[[Any], Any], ...]) -> None:
        self.cls = cls
        self.steps = steps


class EventTypes:
    """The types of events that an application knows; the `EventReader` of its store.

    Args:
        gateway: Converts payloads, and knows the types that handlers take.
        classes: What is known besides these.
        upcasters: What brings former revisions up to date.

    Raises:
        ConfigurationError: Two classes have one name, or a chain of upcasters does not lead to today's revision.
    """

    def __init__(
        self, gateway: Gateway, classes: Iterable[type] = (), upcasters: Iterable[Callable[..., Any]] = ()
    ) -> None:
        self._gateway = gateway
        self._types = MessageTypes()
        self._upcasters = Upcasters(upcasters)
        self._reading: dict[tuple[str, int], _Form] = {}
        self._writing: dict[type, tuple[str, int]] = {}
        self._classes: dict[type, None] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: type) -> None:
        """Make a class of events known.

        Raises:
            ConfigurationError: Another one has its name.
        """
        if cls not in self._classes:
            self._types.add(cls)
            self._classes[cls] = None
            self._upcasters.rename({alias: name_of(cls) for alias in aliases_of(cls)})

    def learn(self, cls: type) -> None:
        """Make a class known that may be one of events, unless another one has its name."""
        if may_be_event(cls) and self._types.find(name_of(cls)) in (None, cls):
            self.add(cls)

    def check(self, *, complete: bool = False) -> None:
        """Make sure that every former revision of the known events can be read.

        Args:
            complete: Whether all classes are known by now.

        Raises:
            ConfigurationError: A chain of upcasters has a gap, or leads elsewhere.
        """
        classes = dict.fromkeys(one for cls in self._classes for one in (cls, *descendants_of(cls)))
        ConfigurationError.raise_all(list(self._upcasters.problems(self._types, classes, complete=complete)))

    @property
    def names(self) -> Iterable[str]:
        """The names of the classes that were made known, former ones included."""
        return [name for cls in self._classes for name in (name_of(cls), *aliases_of(cls))]

    def names_of(self, classes: Iterable[type]) -> frozenset[str]:
        """Return all names under which events of these classes and of their subclasses may be stored."""
        every = dict.fromkeys(one for cls in classes for one in (cls, *descendants_of(cls)))
        present = {name for cls in every for name in (name_of(cls), *aliases_of(cls))}
        return frozenset(self._upcasters.names_before(present))

    def knows(self, cls: type) -> bool:
        """Whether objects of a class are events."""
        return cls in self._writing or (may_be_event(cls) and self._find(name_of(cls)) is cls)

    def write(self, event: Message[Any]) -> NewEvent:
        """Return an event in the form in which it is stored.

        Raises:
            ConversionError: It is no event, or has no form as bytes.
        """
        payload = event.payload
        cls = type(payload)
        name, revision = self._writing.get(cls) or self._name(cls)
        body, content_type = self._gateway.conversion.encode(payload)
        headers = copied_headers(event.headers)
        if not _NOT_STORED.isdisjoint(headers):
            for key in _NOT_STORED & headers.keys():
                del headers[key]
        if revision > 1:
            headers[HeaderName.revision] = str(revision)
        if content_type != JSON:
            headers[HeaderName.content_type] = content_type
        tags = tags_of(payload)
        if HeaderName.tags in headers:
            tags = tuple(dict.fromkeys((*tags, *_tags(headers[HeaderName.tags]))))
        try:
            text = to_json(headers).decode()
        except PydanticSerializationError as error:
            raise ConversionError(f"the headers of a {name} cannot be written: {error}") from error
        return NewEvent(headers[HeaderName.id], name, body, text, tags)

    def read(self, event: StoredEvent) -> Message[Any]:
        """Return the event as it is today.

        Raises:
            UnknownEventError: Its name or revision is not known.
            ConversionError: It does not fit its type.
        """
        text = event.headers_text
        headers = StoredHeaders(event)
        revision = revision_in(event)
        form = self._reading.get((event.name, revision)) or self._form(event, revision)
        content_type = JSON
        if _TELLS_CONTENT_TYPE in text:
            content_type = from_json(text).get(HeaderName.content_type, JSON)
        conversion = self._gateway.conversion
        try:
            body = event.body if not form.steps else _upcast(event.body, form, content_type)
            return Message(conversion.decode(body, form.cls, content_type), headers)
        except Exception as error:
            error.add_note(
                f"while reading {event.name!r}, revision {revision}, version {event.version} of the stream "
                f"{event.stream!r}"
            )
            raise

    def _name(self, cls: type) -> tuple[str, int]:
        if not self.knows(cls):
            if not may_be_event(cls):
                raise ConversionError(
                    f"a {name_of(cls)} is no event",
                    hint="an event is an object of a class of your own, e.g. a dataclass",
                )
            raise ConversionError(
                f"nothing here could read a {name_of(cls)} again once it is stored",
                tried="@applies methods, what they and the handlers of event-sourced classes name, handlers of events",
                hint=f"give the class to EventSourcing(events=[{cls.__name__}])",
            )
        written = self._writing[cls] = (name_of(cls), revision_of(cls))
        return written

    def _find(self, name: str) -> type | None:
        for types in (self._types, self._gateway.types):
            cls = types.find(name)
            if cls is not None and may_be_event(cls):
                return cls
        return None

    def _form(self, event: StoredEvent, revision: int) -> _Form:
        cls = self._find(event.name)
        way = self._upcasters.way(event.name if cls is None else name_of(cls), revision)
        known = self._find(way.name)
        if known is None:
            raise self._unknown(
                f"nothing here knows the event {event.name!r}",
                event,
                "import its class here and give it to EventSourcing(events=[...]), or tell its former name: "
                "@message_name(..., aliases=[...])",
            )
        current = revision_of(known)
        if way.revision > current:
            raise self._unknown(
                f"revision {revision} of {event.name!r} is newer than this program, which knows revision {current}",
                event,
                "a later version of the program has written it: run that one",
            )
        if way.revision < current:
            raise self._unknown(
                f"nothing takes revision {way.revision} of {way.name!r} to revision {current}",
                event,
                f"write @upcaster({way.name!r}, revision={way.revision}) above a function that does",
            )
        form = self._reading[event.name, revision] = _Form(known, way.steps)
        return form

    def _unknown(self, what: str, event: StoredEvent, hint: str) -> UnknownEventError:
        where = f"version {event.version} of the stream {event.stream!r}"
        if event.position is not None:
            where += f", position {event.position}"
        known = {
            name for types in (self._types, self._gateway.types) for name, cls in types.items() if may_be_event(cls)
        }
        return UnknownEventError(f"{what}: {where}", event=event, known=known, hint=hint)


def revision_in(event: StoredEvent) -> int:
    """Return the revision in which an event was written."""
    if _TELLS_REVISION not in event.headers_text:
        return 1
    return int(StoredHeaders(event).get(HeaderName.revision, 1))


def may_be_event(cls: type) -> bool:
    """Whether a class is one that somebody has written, and not a piece of Python."""
    if cls.__module__.partition(".")[0] not in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    # A module of the user's may have the name of one that comes with Python.
    return file is not None and not Path(file).is_relative_to(_PYTHON)


_PYTHON = Path(sysconfig.get_path("stdlib"))


def _upcast(body: bytes, form: _Form, content_type: str) -> bytes:
    if content_type != JSON:
        raise ConversionError(
            f"a former revision of {name_of(form.cls)} is stored as {content_type}, and upcasters take JSON",
            hint="let the converter of this type read former revisions itself",
        )
    payload = json.loads(body)
    for step in form.steps:
        payload = step(payload)
    return to_json(payload, inf_nan_mode="constants")


def _tags(text: str) -> tuple[str, ...]:
    tags: object = None
    with suppress(ValueError):
        tags = from_json(text)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConversionError(
            f"the header {HeaderName.tags!r} is {text!r}", hint='give a list of texts: {"event.tags": ["course:1"]}'
        )
    return tuple(tags)
