"""Which aggregate a message is for.

The header `aggregate.id` is the strongest; then comes what the handler says, and then the attribute of the payload that
has the name of the identifier, or is marked.

    @identified(by={"order_id": MessageHeader("order")}, missing="ignore")
    @event_handler
    def when_paid(self, event: InvoiceWasPaid) -> None: ...
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from uuid import UUID

from pydantic import BaseModel

from ecotone_fastapi.core.endpoint import Endpoint, Kind, mark
from ecotone_fastapi.core.errors import ConversionError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.routing import is_typed_dict, members_of
from ecotone_fastapi.core.signatures import parameters_of
from ecotone_fastapi.core.suppliers import MessageHeader

F = TypeVar("F")

Source = str | MessageHeader | Callable[[Any], Any]
"""Where an identifier is found: an attribute of the payload, a header, or what a function makes of the payload."""

By = Mapping[str, Source] | Source | None
"""Where all identifiers are found: for each, or together."""


@dataclass(frozen=True)
class Identified:
    """Mark: where messages for this handler tell which aggregate is meant.

    Args:
        by: For each identifier, where it is found.
        missing: What becomes of a message for an aggregate that does not exist.
    """

    by: By
    missing: Literal["raise", "ignore"]


@dataclass(frozen=True, slots=True)
class TargetIdentifier:
    """Marker: this field of a message identifies the aggregate that it is for.

    Args:
        name: The identifier of the aggregate, when its name is another one.

    Example:
        >>> @dataclass
        ... class PayInvoice:
        ...     number: Annotated[str, TargetIdentifier("invoice_id")]
    """

    name: str | None = None


@dataclass(frozen=True, slots=True)
class TargetVersion:
    """Marker: this field of a command is the version that its sender expects the aggregate to have.

    Example:
        >>> @dataclass
        ... class RenameOrder:
        ...     order_id: str
        ...     version: Annotated[int, TargetVersion()]
    """


def identified(*, by: By = None, missing: Literal["raise", "ignore"] = "raise") -> Callable[[F], F]:
    """Tell where messages for this handler say which aggregate is meant.

    Without it, that is the attribute of the payload with the name of the identifier, or the payload itself when the
    parameter has that name. The header `aggregate.id` is stronger than both.

    Args:
        by: The name of an attribute, a `MessageHeader`, or a function of the payload; a mapping for several.
        missing: Whether a command or event for an aggregate that does not exist is an error, or ignored. Queries always
            are an error, and so is a message that does not tell which aggregate is meant.

    Example:
        >>> @identified(by=lambda event: event["order"]["id"], missing="ignore")
        ... def when_paid(self, event: dict) -> None: ...
    """
    return mark(Identified(by, missing))


class Finder:
    """Finds out which aggregate the messages for one handler are for.

    Args:
        names: The names of the identifiers.
        endpoint: The handler.
        by: Where they are told.
        header: Whether the header `aggregate.id` counts.
    """

    def __init__(self, names: tuple[str, ...], endpoint: Endpoint, by: By, *, header: bool = True) -> None:
        self._names = names
        self._endpoint = endpoint
        self._sources: Mapping[str, Source] = by if isinstance(by, Mapping) else {}
        self._together: Source | None = None if isinstance(by, Mapping) else by
        self._header = header
        # A handler without payload is sent the identifier alone, or nothing; another one says so by the name.
        self._payload_is_it = by is None and len(names) == 1 and _payload_name(endpoint) in (None, names[0])
        typed_dicts = [one for one in members_of(endpoint.payload_type) if isinstance(one, type) and is_typed_dict(one)]
        self._of_dicts = markers_of(typed_dicts[0]) if typed_dicts else ({}, None)

    def find(self, message: Message[Any]) -> Mapping[str, Any] | None:
        """Return the values that a message tells, by the names of the identifiers; `None` when it tells not all.

        Raises:
            ConversionError: What the header says is no mapping, although there are several identifiers.
        """
        values = self._told(message)
        return None if values is None or any(value is None for value in values.values()) else values

    def _told(self, message: Message[Any]) -> Mapping[str, Any] | None:
        names, payload = self._names, message.payload
        told = message.headers.get(HeaderName.aggregate_id) if self._header else None
        if told is not None:
            return self._spread(told, f"header {HeaderName.aggregate_id!r}")
        if self._together is not None:
            return self._spread(_read(self._together, message, names[0]), "what the handler is identified by")
        targets, _ = self._markers(payload)
        values = {
            name: _read(self._sources[name], message, name)
            if name in self._sources
            else _attribute(payload, targets.get(name, name))
            for name in names
        }
        if self._payload_is_it and values[names[0]] is None and self._may_identify(payload):
            values[names[0]] = payload
        return values

    def _markers(self, payload: Any) -> tuple[Mapping[str, str], str | None]:
        """The marked fields of a payload; a dict does not know its own type."""
        return self._of_dicts if isinstance(payload, Mapping) else markers_of(type(payload))

    def expected_version(self, message: Message[Any]) -> int | None:
        """Return the version that the sender of a message expects the aggregate to have.

        Raises:
            ConversionError: The header is no number.
        """
        told = message.headers.get(HeaderName.aggregate_version)
        if told is not None:
            if not told.isdecimal():
                raise ConversionError(f"header {HeaderName.aggregate_version!r} is {told!r}", hint="give a number")
            return int(told)
        _, field = self._markers(message.payload)
        value = _attribute(message.payload, field) if field is not None else None
        return None if value is None else int(value)

    def _may_identify(self, payload: Any) -> bool:
        if self._endpoint.payload_type is None:
            return isinstance(payload, _SCALARS)
        return not isinstance(payload, Mapping)

    def _spread(self, told: Any, where: str) -> Mapping[str, Any] | None:
        """Return one value for each identifier."""
        if told is None:
            return None
        if len(self._names) == 1:
            return {self._names[0]: told}
        value = told
        if isinstance(told, str):
            try:
                value = json.loads(told)
            except ValueError:
                value = None
        if not isinstance(value, Mapping) or not set(value) <= set(self._names):
            raise ConversionError(
                f"{where} is {told!r}, and there are several identifiers",
                hint=f"give a mapping with {', '.join(self._names)}",
            )
        return {name: value.get(name) for name in self._names}

    @property
    def described(self) -> str:
        """Where the identifiers are told, for people."""
        if self._together is not None:
            found = _source_text(self._together, self._names[0])
        else:
            found = ", ".join(
                _source_text(self._sources[name], name) if name in self._sources else self._default_text(name)
                for name in self._names
            )
        return f"the header {HeaderName.aggregate_id!r}, else {found}" if self._header else found

    def _default_text(self, name: str) -> str:
        if self._payload_is_it:
            return "the payload"
        payloads = members_of(self._endpoint.payload_type)
        fields = dict.fromkeys(markers_of(one)[0].get(name, name) for one in payloads if isinstance(one, type))
        of_payload = " or ".join(fields) or name
        types = " | ".join(getattr(one, "__name__", str(one)) for one in payloads)
        return f"{of_payload} of {types}" if types else of_payload

    def problems(self, of: str) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with it as far as that can be known before a message has come, each with a hint.

        Args:
            of: What the aggregate is called.
        """
        known = ", ".join(self._names)
        for name in self._sources:
            if name not in self._names:
                yield f"{name!r} is no identifier of {of}", f"identified by a mapping with {known}"
        payloads = members_of(self._endpoint.payload_type)
        for name in self._names:
            source = self._sources.get(name) or self._together
            for payload in payloads:
                shown = getattr(payload, "__name__", str(payload))
                if isinstance(source, str) and not tells(payload, source):
                    yield f"{source!r} is no attribute of {shown}", "name an attribute that tells the identifier"
                # A command or query may always come with the header.
                needs_payload = source is None and (self._endpoint.kind is Kind.EVENT or not self._header)
                field = markers_of(payload)[0].get(name, name) if isinstance(payload, type) else name
                if needs_payload and not self._payload_is_it and not tells(payload, field):
                    marked = f"add the attribute {name!r}, mark another one with TargetIdentifier({name!r})"
                    explicit = "@identified(by=…)" if self._header else "Fetched(by=…)"
                    yield f"{shown} does not tell the {name} of {of}", f"{marked}, or write {explicit}"


def markers_of(cls: Any) -> tuple[Mapping[str, str], str | None]:
    """Return the marked fields of a message type: those that identify, by the identifiers' names, and the version."""
    return _markers_of(cls)


@lru_cache(1000)
def _markers_of(cls: Hashable) -> tuple[Mapping[str, str], str | None]:
    targets: dict[str, str] = {}
    version: str | None = None
    for field, hint in hints_of(cls).items():
        for marker in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(marker, TargetIdentifier) or marker is TargetIdentifier:
                name = marker.name if isinstance(marker, TargetIdentifier) else None
                targets[name or field] = field
            elif isinstance(marker, TargetVersion) or marker is TargetVersion:
                version = field
    return targets, version


def hints_of(cls: Any) -> Mapping[str, Any]:
    """Return the annotations of a class with their markers; none when they cannot be evaluated."""
    if getattr(cls, "__module__", "builtins") == "builtins":
        return {}
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:  # one that only a type checker can read
        return {}


_SCALARS = (str, bytes, int, float, UUID)


def tells(cls: Any, attribute: str) -> bool:
    """Whether values of a type may have an attribute: not when it is known that they do not."""
    if cls in _SCALARS:
        return False
    known = _closed(cls)
    return known is None or attribute in known or hasattr(cls, attribute)


def _closed(cls: Any) -> Collection[str] | None:
    """All fields of a type, when no value of it can have others."""
    if not isinstance(cls, type):
        return None
    if is_typed_dict(cls):
        return hints_of(cls)
    if cls.__subclasses__():
        return None
    if issubclass(cls, BaseModel):
        return None if cls.model_config.get("extra") == "allow" else cls.model_fields
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        fields: tuple[str, ...] = cls._fields
        return fields
    return None


def _payload_name(endpoint: Endpoint) -> str | None:
    """The name of the parameter that is the payload; `None` when the handler takes none."""
    if endpoint.payload_type is None:
        return None
    parameters = parameters_of(endpoint.function, endpoint.known_names)[1 if endpoint.needs_instance else 0 :]
    return next((one.name for one in parameters if one.annotated == endpoint.payload_type), "")


def _attribute(payload: Any, name: str) -> Any:
    if isinstance(payload, Mapping):
        return payload.get(name)
    # A text has a title and an index, too.
    return None if isinstance(payload, _SCALARS) else getattr(payload, name, None)


def _read(source: Source, message: Message[Any], identifier: str) -> Any:
    if isinstance(source, str):
        return _attribute(message.payload, source)
    if isinstance(source, MessageHeader):
        name = source.name or identifier
        found = message.headers.get(name)
        if found is None:
            found = next((text for key, text in message.headers.items() if key.lower() == name.lower()), None)
        return found
    return source(message.payload)


def _source_text(source: Source, identifier: str) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, MessageHeader):
        return f"the header {source.name or identifier!r}"
    return f"what {getattr(source, '__name__', 'a function')} makes of the payload"
