"""How aggregates are kept: each class with its store, and what was loaded and saved in a unit of work."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, get_origin, get_type_hints

from ecotone_fastapi.core.conversion import JSON
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.endpoint import marks_of
from ecotone_fastapi.core.errors import (
    AggregateError,
    AggregateNotFoundError,
    ConfigurationError,
    ConversionError,
    MissingServiceError,
)
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message, MessageTypes
from ecotone_fastapi.modelling.identification import hints_of, tells
from ecotone_fastapi.modelling.recording import hand_over, is_made_later, made, taken
from ecotone_fastapi.modelling.repository import (
    AggregateStore,
    ChecksAggregates,
    DeletesAggregates,
    Identifier,
    Saved,
    TypesIdentifiers,
    Versioned,
    lacks_identifier,
)


@dataclass(frozen=True)
class Outcome:
    """What the handler of an aggregate has led to.

    Args:
        changed: The aggregates that are to be saved, with what they have recorded.
        answer: What the sender is told; `None` leaves it to `identify`.
        identify: Whether the sender is told the identifier of the first aggregate.
    """

    changed: Sequence[Any]
    answer: Any = None
    identify: bool = False


class Model(Protocol):
    """What a handler of an aggregate means by what it returns, and where the aggregate is kept."""

    def choose(self, stores: Sequence[AggregateStore]) -> AggregateStore | None:
        """Choose among those stores of plugins that serve the class; the user's own are asked before."""
        ...

    def when_recorded(self, aggregate: Any, event: Any) -> None:
        """Do what is to be done as soon as an aggregate records an event."""
        ...

    def outcome(self, kept: "Kept", instance: Any, result: Any, known: "Mapping[type, Kept]") -> Outcome:
        """Tell what is to be saved and answered.

        Args:
            kept: The class that the handler was found on.
            instance: The aggregate that was loaded; `None` behind a factory.
            result: What the handler has returned.
            known: All aggregates.
        """
        ...


@dataclass(frozen=True)
class Aggregate:
    """Mark: instances of this class are loaded by their identifier and saved.

    Args:
        identifier: The names of the attributes that identify one.
        version: The attribute that is told the version.
        events: The attribute or method that has the recorded events, besides `record`.
        model: What handlers mean by what they return.
    """

    identifier: tuple[str, ...]
    version: str | None
    events: str | None
    model: Model

    def when_recorded(self, aggregate: Any, event: Any) -> None:
        """Let the model know."""
        self.model.when_recorded(aggregate, event)


def aggregate_mark(cls: type) -> Aggregate | None:
    """Return the mark of a class of aggregates; `None` when it is none."""
    return next((one for one in marks_of(cls) if isinstance(one, Aggregate)), None)


class Kept:
    """One class of aggregates, with where it is kept.

    Args:
        cls: The class.
        described: Its mark.
        store: Where its instances are.
        gateway: Converts identifiers.
    """

    def __init__(self, cls: type, described: Aggregate, store: AggregateStore, gateway: Gateway) -> None:
        self.cls = cls
        self.described = described
        self.store = store
        self.label: str = cls.__name__
        self._gateway = gateway
        self._types: Mapping[str, Any] = {
            **_hints_of_init(cls),
            **hints_of(cls),
            **(store.identifier_types(cls) if isinstance(store, TypesIdentifiers) else {}),
        }

    def identifier(self, value: Any) -> Identifier | None:
        """Make an identifier of a value, or of a mapping of names and values; `None` when one of them is missing.

        Raises:
            ConversionError: A value does not fit, or there are others than the identifiers.
        """
        names = self.described.identifier
        if isinstance(value, Identifier):
            return value
        if len(names) == 1 and not (isinstance(value, Mapping) and set(value) == set(names)):
            value = {names[0]: value}
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise ConversionError(
                f"{value!r} does not identify a {self.label}", hint=f"give a mapping with {', '.join(names)}"
            )
        values = [value.get(name) for name in names]
        if any(one is None for one in values):
            return None
        return Identifier(names, tuple(self._fit(name, one) for name, one in zip(names, values, strict=True)))

    def _fit(self, name: str, value: Any) -> Any:
        wanted, conversion = self._types.get(name), self._gateway.conversion
        is_class = isinstance(wanted, type) and get_origin(wanted) is None
        if wanted is None or (is_class and isinstance(value, wanted)):
            return value
        error: ConversionError | None = None
        if conversion.validates(wanted):
            try:
                return conversion.convert(value, wanted)
            except ConversionError as failure:
                error = failure
            if isinstance(value, str) and value.startswith("{"):  # a header has only text
                return conversion.decode(value.encode(), wanted, JSON)
        if is_class and isinstance(value, str | int) and wanted.__module__ != "builtins":
            # A value object is made of what a message tells.
            with suppress(TypeError, ValueError):
                return wanted(value)
        if error is not None:
            raise error
        return value

    def identifier_of(self, instance: Any) -> Identifier | None:
        """Return the identifier of an aggregate; `None` while it has none."""
        values = tuple(getattr(instance, name, None) for name in self.described.identifier)
        return None if any(value is None for value in values) else Identifier(self.described.identifier, values)

    def _untyped(self, loaded: Identifier, now: Identifier | None) -> str | None:
        """Tell what is to be annotated, if the message has given the same value as another type."""
        if now is None or str(now) != str(loaded):
            return None
        told = [f"{name}: {type(value).__name__}" for name, value in now.items() if name not in self._types]
        return f"a header is a text unless the class says more: annotate {', '.join(told)} in it" if told else None

    def recorded(self, instance: Any) -> list[Any]:
        """Take the events that an aggregate has recorded."""
        recorded = taken(instance)
        if self.described.events is not None:
            own = getattr(instance, self.described.events)
            recorded += list(own()) if callable(own) else list(own)
            if not callable(own):
                own.clear()
        return recorded

    def tell_version(self, instance: Any, version: int) -> None:
        """Set the attribute that wants to know the version."""
        name = self.described.version
        if name is None or getattr(instance, name, None) == version:
            return
        try:
            setattr(instance, name, version)
        except (AttributeError, ValueError):  # it is frozen, for everybody else
            object.__setattr__(instance, name, version)

    async def load(self, identifier: Identifier) -> Versioned[Any] | None:
        """Load an aggregate, and remember its version for the unit of work."""
        loaded = _loaded()
        found: Versioned[Any] | None = await self.store.load(self.cls, identifier)
        if found is not None:
            self.tell_version(found.state, found.version)
            loaded[id(found.state)] = _Loaded(found.state, found.version, identifier)
        return found

    async def save(self, instance: Any) -> tuple[Identifier, Saved]:
        """Save an aggregate with what it has recorded; return its identifier, and what is to be published.

        Raises:
            ConcurrencyError: Somebody else was there first.
            AggregateError: It has no identifier, another one than it was loaded by, or was deleted.
        """
        loaded = _loaded()
        before = loaded.get(id(instance))
        if before is not None and before.deleted:
            raise AggregateError(
                f"the {self.label} {before.identifier.value!r} was deleted in this unit of work",
                hint="to begin it anew, make and save another object",
            )
        identifier = self._same_identifier(instance, before)
        recorded = self.recorded(instance)
        # What tells something that the database gives, such as an identifier, is made after it has done so.
        later = any(map(is_made_later, recorded))
        events = () if later else self._messages(recorded)
        saved = await self.store.save(
            self.cls, identifier, instance, events=events, expected=before.version if before is not None else 0
        )
        self.tell_version(instance, saved.version)
        if identifier is None:
            identifier = self.identifier_of(instance)
            if identifier is None:
                raise lacks_identifier(self.cls)
        loaded[id(instance)] = _Loaded(instance, saved.version, identifier)
        return identifier, Saved(saved.version, self._messages(recorded)) if later else saved

    def _same_identifier(self, instance: Any, before: "_Loaded | None") -> Identifier | None:
        """Return the identifier of an aggregate.

        Raises:
            AggregateError: It is another one than it was loaded by.
        """
        identifier = self.identifier_of(instance)
        if before is not None and before.identifier != identifier:
            raise AggregateError(
                f"the {self.label} {before.identifier.value!r} has become {identifier and identifier.value!r}",
                hint=self._untyped(before.identifier, identifier)
                or "an identifier never changes: make a new aggregate",
            )
        return identifier

    async def delete(self, instance: Any) -> Saved:
        """Delete an aggregate that was loaded or saved in the unit of work; return what is to be published.

        Raises:
            ConcurrencyError: Somebody else was there first.
            AggregateError: It was not loaded, has become another one, or its store does not delete.
        """
        loaded = _loaded()
        before = loaded.get(id(instance))
        if before is None:
            raise AggregateError(
                f"a {self.label} cannot be deleted that was neither loaded nor saved while this message is handled",
                hint="get() it from the repository first: its version tells whether somebody else has changed it",
            )
        if not isinstance(self.store, DeletesAggregates):
            raise AggregateError(
                f"{type(self.store).__name__}, which keeps the aggregates of {self.cls.__qualname__}, deletes none",
                hint="write its method delete: see DeletesAggregates in ecotone_fastapi.modelling.repository",
            )
        self._same_identifier(instance, before)
        if not before.deleted:
            await self.store.delete(self.cls, before.identifier, instance, expected=before.version)
            loaded[id(instance)] = replace(before, deleted=True)
            scope = current_scope()
            assert scope is not None
            scope.note_change(partial(loaded.update, {id(instance): before}))  # a savepoint brings it back
        return self.remains(instance)[1]

    def is_deleted(self, instance: Any) -> bool:
        """Whether an aggregate was deleted in the unit of work."""
        before = _loaded().get(id(instance))
        return before is not None and before.deleted

    def remains(self, instance: Any) -> tuple[Identifier, Saved]:
        """Return the identifier of a deleted aggregate, and what it has recorded since."""
        before = _loaded()[id(instance)]
        return before.identifier, Saved(before.version, self._messages(self.recorded(instance)))

    def succeed(self, instance: Any, successor: Any) -> None:
        """Let another object be saved in place of one that was loaded, with what both have recorded."""
        loaded = _loaded()
        before = loaded[id(instance)]
        loaded[id(successor)] = replace(before, state=successor)
        hand_over(instance, successor)

    def not_found(self, identifier: Identifier | None) -> AggregateNotFoundError:
        """Make the error that tells that there is none."""
        if identifier is None:
            return AggregateNotFoundError(
                f"no {self.label} can be found without {', '.join(self.described.identifier)}"
            )
        return AggregateNotFoundError(
            f"there is no {self.label} {identifier.value!r}",
            tried=", ".join(f"{name}={value!r}" for name, value in identifier.items()),
            hint="was it created, and under this identifier? @identified(missing='ignore') ignores such messages",
        )

    def _messages(self, recorded: Sequence[Any]) -> Sequence[Message[Any]]:
        return [self._gateway.message(*_with_headers(made(one))) for one in recorded]


def kept_of(instance: object, known: Mapping[type, Kept]) -> Kept | None:
    """Return what is known of the class of an object, or of the nearest of its bases; `None` if it is no aggregate."""
    return next((known[cls] for cls in type(instance).__mro__ if cls in known), None)


class Keeping:
    """All classes of aggregates of one application.

    Args:
        own: Stores of the user: the first one that serves a class has its aggregates.
        others: Stores of plugins, among which the model of the class chooses.
        gateway: Makes messages of events.

    Attributes:
        known: The classes that were asked for.
    """

    def __init__(self, own: Sequence[AggregateStore], others: Sequence[AggregateStore], gateway: Gateway) -> None:
        self.known: dict[type, Kept] = {}
        self.gateway = gateway
        self._names = MessageTypes()
        self._own = own
        self._others = others

    def kept(self, cls: Any) -> Kept:
        """Return what is known of a class of aggregates.

        Raises:
            ConfigurationError: It is none, has no such attributes, or has the name of another one.
            MissingServiceError: Nothing keeps its instances.
        """
        known = self.known.get(cls)
        if known is None:
            described = aggregate_mark(cls) if isinstance(cls, type) else None
            if described is None:
                raise ConfigurationError(
                    f"{getattr(cls, '__qualname__', cls)} is no aggregate",
                    hint='put @aggregate(identifier="…") above the class',
                )
            _check_attributes(cls, described)
            store = next((one for one in self._own if one.serves(cls)), None)
            store = store or described.model.choose([one for one in self._others if one.serves(cls)])
            if store is None:
                raise MissingServiceError(
                    f"nothing keeps the aggregates of {cls.__qualname__}",
                    tried=", ".join(type(one).__name__ for one in (*self._own, *self._others)) or "no store was given",
                    hint="give the database that has them among the plugins, or Aggregates(stores=[...])",
                )
            if isinstance(store, ChecksAggregates):
                store.check(cls)
            self._names.add(cls)
            known = self.known[cls] = Kept(cls, described, store, self.gateway)
        return known


def _check_attributes(cls: type, described: Aggregate) -> None:
    wanted = [*described.identifier, *filter(None, [described.version, described.events])]
    unknown = [name for name in wanted if not tells(cls, name)]
    if unknown:
        raise ConfigurationError(
            f"{cls.__qualname__} has no {', '.join(unknown)}",
            hint="@aggregate names attributes of the class: its identifier, version and events",
        )


def _hints_of_init(cls: type) -> Mapping[str, Any]:
    try:
        return get_type_hints(getattr(cls, "__init__"))  # noqa: B009 - of this class, whatever its subclasses have
    except Exception:  # one that only a type checker can read, or no function
        return {}


@dataclass(frozen=True, slots=True)
class _Loaded:
    state: Any  # kept, so that no other object gets its id
    version: int
    identifier: Identifier
    deleted: bool = False


_LOADED = object()


def _loaded() -> dict[int, _Loaded]:
    """What was loaded and saved in the unit of work so far."""
    scope = current_scope()
    if scope is None:
        raise AggregateError(
            "aggregates are loaded and saved while a message is handled",
            hint="let a handler do it, and send it a command or query",
        )
    loaded: dict[int, _Loaded] = scope.state.setdefault(_LOADED, {})
    return loaded


def _with_headers(event: Any) -> tuple[Any, Mapping[str, str] | None]:
    return (event.payload, event.headers) if isinstance(event, Message) else (event, None)
