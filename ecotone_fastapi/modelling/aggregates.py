"""Aggregates: handlers are methods of the thing that they change; it is loaded before, and saved after.

    @aggregate(identifier="order_id")
    @dataclass
    class Order:
        order_id: str
        status: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Order":
            order = cls(command.order_id, "placed")
            record(order, OrderWasPlaced(command.order_id))
            return order

        @command_handler
        def cancel(self, command: CancelOrder) -> None:
            self.status = "cancelled"

What was recorded is published when everything is saved, in the same transaction.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints, runtime_checkable

from ecotone_fastapi.core.endpoint import Endpoint, Inline, Kind, mark, marks_of
from ecotone_fastapi.core.errors import (
    AggregateNotFoundError,
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    MissingServiceError,
)
from ecotone_fastapi.core.gateway import Gateway, current_scope
from ecotone_fastapi.core.injection import Constant, Dependency, MessageHeader, Supplier, Wanted
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.signatures import Parameter
from ecotone_fastapi.modelling.repository import AggregateStore, Identifier, Repository, Saved, Versioned

C = TypeVar("C", bound=type)
F = TypeVar("F")

Source = str | MessageHeader | Callable[[Any], Any]
"""Where an identifier is found: an attribute of the payload, a header, or what a function makes of the payload."""


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

    def choose(self, stores: "Sequence[AggregateStore]") -> "AggregateStore | None":
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


# ------------------------------------------------------------------------------------------------- marks and decorators


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


@dataclass(frozen=True)
class Identified:
    """Mark: where messages for this handler tell which aggregate is meant.

    Args:
        by: For each identifier, where it is found.
        missing: What becomes of a message for an aggregate that does not exist.
    """

    by: Mapping[str, Source] | Source | None
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


@dataclass(frozen=True, slots=True)
class Fetched:
    """Marker: this parameter of a handler is an aggregate, loaded by what the message says.

    Args:
        by: Where its identifier is found, as for `identified`; by default under its own name.

    Example:
        >>> async def ship(command: dict, order: Annotated[object, Fetched(by="order_id")]) -> None: ...
    """

    by: Mapping[str, Source] | Source | None = None


def aggregate(
    *, identifier: str | Sequence[str], version: str | None = None, events: str | None = None
) -> Callable[[C], C]:
    """Keep instances of a class: its handlers are called on the one that a message is for.

    A handler that is a class method or static method returns a new aggregate. A message may have one of each kind: then
    the method is called on the aggregate, if there is one, and else the class method makes it.

    Args:
        identifier: The attribute that identifies one, or several that do so together.
        version: An attribute that is set to the version when the aggregate is loaded and saved.
        events: An attribute with a list of recorded events, or a method that returns them, where you have one already.
            It is emptied.

    Example:
        >>> @aggregate(identifier="order_id")
        ... class Order:
        ...     def __init__(self, order_id: str) -> None:
        ...         self.order_id = order_id
    """
    names = (identifier,) if isinstance(identifier, str) else tuple(identifier)
    return attach(Aggregate(names, version, events, StateStored()))


def attach(described: Aggregate) -> Callable[[C], C]:
    """Put the marks of an aggregate on a class."""
    if not described.identifier:
        raise ConfigurationError("an aggregate has an identifier", hint='write @aggregate(identifier="order_id")')

    def decorate(cls: C) -> C:
        return mark(described)(mark(Inline())(cls))

    return decorate


def identified(
    *, by: Mapping[str, Source] | Source | None = None, missing: Literal["raise", "ignore"] = "raise"
) -> Callable[[F], F]:
    """Tell where messages for this handler say which aggregate is meant.

    Without it, that is the attribute of the payload with the name of the identifier. The header `aggregate.id` is
    stronger than both.

    Args:
        by: The name of an attribute, a `MessageHeader`, or a function of the payload; a mapping for several.
        missing: Whether a command or event for an aggregate that does not exist is an error, or ignored. Queries always
            are an error, and so is a message that does not tell which aggregate is meant.

    Example:
        >>> @identified(by=lambda event: event["order"]["id"], missing="ignore")
        ... def when_paid(self, event: dict) -> None: ...
    """
    return mark(Identified(by, missing))


_RECORDED = "__ecotone_recorded__"


def record(aggregate: object, event: object) -> None:
    """Record an event: it is published when the aggregate has been saved, and never if it is not.

    Args:
        aggregate: Who records it.
        event: The event, or a `Message` of it with headers of its own.

    Example:
        >>> class Order: ...
        >>> order = Order()
        >>> record(order, "placed")
        >>> take_recorded(order)
        ['placed']
    """
    described = aggregate_mark(type(aggregate))
    if described is not None:
        described.model.when_recorded(aggregate, event)
    recorded: list[object] | None = getattr(aggregate, _RECORDED, None)
    if recorded is None:
        recorded = []
        try:
            object.__setattr__(aggregate, _RECORDED, recorded)
        except AttributeError as error:
            raise ConfigurationError(
                f"{type(aggregate).__qualname__} has no place for what it records",
                hint=f"its class has __slots__: add {_RECORDED!r} to them",
            ) from error
    recorded.append(event)


def take_recorded(aggregate: object) -> list[Any]:
    """Return what an aggregate has recorded, and forget it; for tests of an aggregate alone."""
    recorded: list[Any] | None = getattr(aggregate, _RECORDED, None)
    if not recorded:
        return []
    taken = recorded[:]
    recorded.clear()
    return taken


class StateStored:
    """The state is saved; what a method returns is the answer, unless it is another aggregate."""

    def choose(self, stores: Sequence[AggregateStore]) -> AggregateStore | None:
        """Choose the first one."""
        return next(iter(stores), None)

    def when_recorded(self, aggregate: Any, event: Any) -> None:
        """Do nothing: the method that records has changed the state."""

    def outcome(self, kept: "Kept", instance: Any, result: Any, known: "Mapping[type, Kept]") -> Outcome:
        """Save the aggregate, and those that were returned."""
        returned = list(result) if isinstance(result, list | tuple) and result else [result]
        made = [one for one in returned if type(one) in known]
        if instance is None and (not made or len(made) < len(returned)):
            raise ConversionError(
                f"a factory of {kept.label} has returned {result!r}",
                hint="return the new aggregate, or a list of several",
            )
        made = [one for one in made if one is not instance]
        if made and len(made) < len([one for one in returned if one is not instance]):
            made = []  # a list of this and that is an answer
        changed = [*([instance] if instance is not None else []), *made]
        if instance is None:
            return Outcome(changed, identify=True)
        return Outcome(changed, answer=None if made else result)

    def __repr__(self) -> str:
        return "StateStored()"


# -------------------------------------------------------------------------------------------------------- the aggregate


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
        try:
            hints = get_type_hints(cls)
        except Exception:  # an annotation that only a type checker can read
            hints = {}
        self._types: dict[str, Any] = {name: hints[name] for name in described.identifier if name in hints}

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
        wanted = self._types.get(name)
        if wanted is None or (isinstance(wanted, type) and get_origin(wanted) is None and isinstance(value, wanted)):
            return value
        return self._gateway.conversion.convert(value, wanted)

    def identifier_of(self, instance: Any) -> Identifier | None:
        """Return the identifier of an aggregate; `None` while it has none."""
        values = tuple(getattr(instance, name, None) for name in self.described.identifier)
        return None if any(value is None for value in values) else Identifier(self.described.identifier, values)

    def recorded(self, instance: Any) -> list[Any]:
        """Take the events that an aggregate has recorded."""
        taken = take_recorded(instance)
        if self.described.events is not None:
            own = getattr(instance, self.described.events)
            taken += list(own()) if callable(own) else list(own)
            if not callable(own):
                own.clear()
        return taken

    def tell_version(self, instance: Any, version: int) -> None:
        """Set the attribute that wants to know the version."""
        if self.described.version is not None:
            setattr(instance, self.described.version, version)

    async def load(self, identifier: Identifier) -> Versioned[Any] | None:
        """Load an aggregate, and remember its version for the unit of work."""
        found: Versioned[Any] | None = await self.store.load(self.cls, identifier)
        if found is not None:
            self.tell_version(found.state, found.version)
            _loaded()[id(found.state)] = found
        return found

    async def save(self, instance: Any) -> tuple[Identifier, Saved]:
        """Save an aggregate with what it has recorded; return its identifier, and what is to be published.

        Raises:
            ConcurrencyError: Somebody else was there first.
            ConversionError: It has no identifier.
        """
        loaded = _loaded()
        before = loaded.get(id(instance))
        expected = before.version if before is not None else 0
        events = [self._gateway.message(*_with_headers(one)) for one in self.recorded(instance)]
        saved = await self.store.save(
            self.cls, self.identifier_of(instance), instance, events=events, expected=expected
        )
        self.tell_version(instance, saved.version)
        loaded[id(instance)] = Versioned(instance, saved.version)
        identifier = self.identifier_of(instance)
        if identifier is None:
            raise ConversionError(
                f"a new {self.label} has no {', '.join(self.described.identifier)}",
                hint="set it before the handler returns, or let the database do so",
            )
        return identifier, saved

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


_LOADED = object()


def _loaded() -> dict[int, Versioned[Any]]:
    """What was loaded and saved in the unit of work so far; it keeps the objects, so that no other gets their id."""
    scope = current_scope() or Scope()
    loaded: dict[int, Versioned[Any]] = scope.state.setdefault(_LOADED, {})
    return loaded


class Finder:
    """Finds out which aggregate a message is for."""

    def __init__(self) -> None:
        self._marked: dict[type, tuple[Mapping[str, str], str | None]] = {}

    def find(
        self,
        kept: Kept,
        message: Message[Any],
        by: Mapping[str, Source] | Source | None,
        *,
        headers: bool = True,
    ) -> Identifier | None:
        """Return the identifier that a message tells; `None` when it tells none.

        Args:
            kept: The class of the aggregate.
            message: The message.
            by: Where it is told.
            headers: Whether the header `aggregate.id` counts.
        """
        names = kept.described.identifier
        told = message.headers.get(HeaderName.aggregate_id) if headers else None
        if told is not None:
            return kept.identifier(_from_header(told, kept))
        if by is not None and not isinstance(by, Mapping):
            if len(names) == 1:
                return kept.identifier({names[0]: _read(by, message)})
            return kept.identifier(_read(by, message) or {})
        targets, _ = self._markers(type(message.payload))
        values: dict[str, Any] = {}
        for name in names:
            if by is not None and name in by:
                values[name] = _read(by[name], message)
            else:
                values[name] = _attribute(message.payload, targets.get(name, name))
        if len(names) == 1 and values[names[0]] is None and isinstance(message.payload, _SCALARS) and by is None:
            values[names[0]] = message.payload
        return kept.identifier(values)

    def expected_version(self, message: Message[Any]) -> int | None:
        """Return the version that the sender of a message expects.

        Raises:
            ConversionError: The header is no number.
        """
        told = message.headers.get(HeaderName.aggregate_version)
        if told is not None:
            if not told.isdecimal():
                raise ConversionError(f"header {HeaderName.aggregate_version!r} is {told!r}", hint="give a number")
            return int(told)
        _, field = self._markers(type(message.payload))
        value = _attribute(message.payload, field) if field is not None else None
        return None if value is None else int(value)

    def _markers(self, cls: type) -> tuple[Mapping[str, str], str | None]:
        """The fields of a message type that are marked: identifiers by their names, and the version."""
        known = self._marked.get(cls)
        if known is None:
            targets: dict[str, str] = {}
            version: str | None = None
            try:
                hints = get_type_hints(cls, include_extras=True) if not _is_builtin(cls) else {}
            except Exception:  # an annotation that only a type checker can read
                hints = {}
            for field, hint in hints.items():
                for marker in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
                    if isinstance(marker, TargetIdentifier):
                        targets[marker.name or field] = field
                    elif isinstance(marker, TargetVersion) or marker is TargetVersion:
                        version = field
            known = self._marked[cls] = (targets, version)
        return known


_SCALARS = (str, int)


def _is_builtin(cls: type) -> bool:
    return cls.__module__ == "builtins"


def _from_header(told: str, kept: Kept) -> Any:
    if len(kept.described.identifier) == 1:
        return told
    try:
        value = json.loads(told)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConversionError(
            f"header {HeaderName.aggregate_id!r} is {told!r}, and a {kept.label} has several identifiers",
            hint=f"give a mapping with {', '.join(kept.described.identifier)}",
        )
    return value


def _attribute(payload: Any, name: str) -> Any:
    if isinstance(payload, Mapping):
        return payload.get(name)
    return getattr(payload, name, None)


def _read(source: Source, message: Message[Any]) -> Any:
    if isinstance(source, str):
        return _attribute(message.payload, source)
    if isinstance(source, MessageHeader):
        return message.headers.get(source.name or "")
    return source(message.payload)


class StoredRepository:
    """The aggregates of one class. What a `Repository[Order]` parameter is given."""

    def __init__(self, kept: Kept, gateway: Gateway) -> None:
        self._kept = kept
        self._gateway = gateway

    async def get(self, identifier: Any) -> Any:
        """Return an aggregate.

        Raises:
            AggregateNotFoundError: There is none.
        """
        found = await self.find(identifier)
        if found is None:
            raise self._kept.not_found(self._kept.identifier(identifier))
        return found

    async def find(self, identifier: Any) -> Any:
        """Return an aggregate; `None` when there is none."""
        wanted = self._kept.identifier(identifier)
        found = await self._kept.load(wanted) if wanted is not None else None
        return None if found is None else found.state

    async def save(self, aggregate: Any) -> None:
        """Save an aggregate, and publish what it has recorded."""
        _, saved = await self._kept.save(aggregate)
        await publish(self._gateway, saved.events)


def _with_headers(event: Any) -> tuple[Any, Mapping[str, str] | None]:
    return (event.payload, event.headers) if isinstance(event, Message) else (event, None)


async def publish(gateway: Gateway, events: Iterable[Message[Any]]) -> None:
    """Publish events, one after the other."""
    for event in events:
        await gateway.dispatch(Kind.EVENT, event)


# ----------------------------------------------------------------------------------------------------------- the plugin


@runtime_checkable
class KeepsAggregates(Protocol):
    """A plugin with stores of aggregates."""

    @property
    def aggregate_stores(self) -> Sequence[AggregateStore]:
        """The stores; the first one that serves a class has its aggregates."""
        ...


class Aggregates:
    """The plugin behind `@aggregate`; installed by default.

    Args:
        stores: Your own stores of aggregates; they are asked before all others.

    Example:
        >>> plugin = Aggregates()
    """

    def __init__(self, stores: Sequence[AggregateStore] = ()) -> None:
        self._stores = tuple(stores)
        self._known: dict[type, Kept] = {}
        self._finder = Finder()

    def install(self, assembly: Assembly) -> None:
        """Load and save around the handlers of aggregates, and offer repositories.

        Raises:
            ConfigurationError: A factory and a method do not fit together.
            MissingServiceError: Nothing keeps aggregates of a class.
        """
        self._known = {}
        self._of_plugins: list[AggregateStore] = []
        for plugin in assembly.plugins:
            if isinstance(plugin, KeepsAggregates):
                self._of_plugins += plugin.aggregate_stores
        gateway = assembly.gateway
        self._gateway = gateway
        problems: list[ConfigurationError] = []
        for endpoint in assembly.endpoints:
            if endpoint.owner is not None and endpoint.find(Aggregate) is not None:
                try:
                    self.kept(endpoint.owner)
                except ConfigurationError as problem:
                    problems.append(problem)
        factories = _pair(assembly)

        async def act(call: Call, proceed: Proceed) -> Any:
            """Load the aggregate, let it handle the message, save it, publish what it has recorded."""
            endpoint = call.endpoint
            assert endpoint is not None
            assert endpoint.owner is not None
            kept = self._known[endpoint.owner]
            instance: Any = None
            if endpoint.needs_instance:
                loaded = await self._load(kept, endpoint, call.message, may_be_missing=endpoint.id in factories)
                if loaded is not None:
                    instance = loaded.state
                    call = replace(call, instance=instance)
                elif endpoint.id in factories:
                    proceed = gateway.inner(factories[endpoint.id])
                else:
                    return None
            result = await proceed(call)
            if endpoint.kind is Kind.QUERY:
                return result
            outcome = kept.described.model.outcome(kept, instance, result, self._known)
            published: list[Message[Any]] = []
            first: Identifier | None = None
            for changed in outcome.changed:
                identifier, saved = await self._known[type(changed)].save(changed)
                first = first or identifier
                published += saved.events
            await publish(gateway, published)
            return first.value if outcome.identify and first is not None else outcome.answer

        assembly.add_interceptor(act, stage=Stage.HANDLE, order=Order.STATE, when=_is_of_aggregate)
        assembly.add_resolver(_Resolver(self))
        ConfigurationError.raise_all(problems)

    def kept(self, cls: type) -> Kept:
        """Return what is known of a class of aggregates.

        Raises:
            ConfigurationError: It is none.
            MissingServiceError: Nothing keeps its instances.
        """
        known = self._known.get(cls)
        if known is None:
            described = aggregate_mark(cls)
            if described is None:
                raise ConfigurationError(
                    f"{cls.__qualname__} is no aggregate", hint='put @aggregate(identifier="…") above the class'
                )
            store = next((one for one in self._stores if one.serves(cls)), None)
            store = store or described.model.choose([one for one in self._of_plugins if one.serves(cls)])
            if store is None:
                raise MissingServiceError(
                    f"nothing keeps the aggregates of {cls.__qualname__}",
                    tried=", ".join(type(one).__name__ for one in (*self._stores, *self._of_plugins))
                    or "no store was given",
                    hint="give a database among the plugins, or Aggregates(stores=[...])",
                )
            known = self._known[cls] = Kept(cls, described, store, self._gateway)
        return known

    def find(self, cls: type) -> "tuple[Kept, Finder]":
        """Return a class of aggregates, and what finds out which one a message is for."""
        return self.kept(cls), self._finder

    async def _load(
        self, kept: Kept, endpoint: Endpoint, message: Message[Any], *, may_be_missing: bool
    ) -> Versioned[Any] | None:
        told = endpoint.find(Identified) or Identified(None, "raise")
        identifier = self._finder.find(kept, message, told.by)
        if identifier is None:
            if may_be_missing:
                return None
            names = ", ".join(kept.described.identifier)
            raise AggregateNotFoundError(
                f"{endpoint.label}: the message does not tell which {kept.label} it is for",
                tried=f"the header {HeaderName.aggregate_id!r}, and {names} of {type(message.payload).__name__}",
                hint=f"send it with headers={{{HeaderName.aggregate_id!r}: …}}, mark a field with TargetIdentifier, or "
                "write @identified(by=…) above the handler",
            )
        loaded = await kept.load(identifier)
        if loaded is None:
            if may_be_missing or (told.missing == "ignore" and endpoint.kind is not Kind.QUERY):
                return None
            raise kept.not_found(identifier)
        expected = self._finder.expected_version(message)
        if expected is not None and expected != loaded.version:
            raise ConcurrencyError(
                f"the {kept.label} {identifier.value!r} is not as its sender knows it",
                expected=expected,
                actual=loaded.version,
                hint="load it again, and decide anew",
            )
        return loaded


def aggregate_mark(cls: type) -> Aggregate | None:
    """Return the mark of a class of aggregates; `None` when it is none."""
    return next((one for one in marks_of(cls) if isinstance(one, Aggregate)), None)


def _is_of_aggregate(endpoint: Endpoint) -> bool:
    return endpoint.owner is not None and endpoint.find(Aggregate) is not None


def _pair(assembly: Assembly) -> Mapping[str, str]:
    """Take the factories out of the routes that a method of the same aggregate has, too; return them by that method.

    Raises:
        ConfigurationError: There are several of a kind.
    """
    methods: dict[object, Endpoint] = {}
    for endpoint in assembly.endpoints:
        if _is_of_aggregate(endpoint) and endpoint.needs_instance:
            methods.setdefault(_route(endpoint), endpoint)
    factories: dict[str, str] = {}
    for at, endpoint in enumerate(assembly.endpoints):
        method = methods.get(_route(endpoint))
        if method is None or endpoint.needs_instance or not _is_of_aggregate(endpoint):
            continue
        if method.id in factories:
            raise ConfigurationError(
                f"{endpoint.label} and another factory make a {method.owner.__name__ if method.owner else ''} of one "
                "message",
                hint="leave one of them",
            )
        hidden = f"{method.id}:or:{endpoint.label}"
        factories[method.id] = hidden
        assembly.endpoints[at] = replace(endpoint, id=hidden, kind=Kind.INTERNAL, route=hidden)
    return factories


def _route(endpoint: Endpoint) -> object:
    return (endpoint.owner, endpoint.kind, endpoint.route or endpoint.payload_type)


class _Resolver:
    """Supplies aggregates, and their repositories, to parameters of handlers."""

    def __init__(self, aggregates: Aggregates) -> None:
        self._aggregates = aggregates

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        annotation = parameter.annotation
        if get_origin(annotation) is Repository:
            [cls] = get_args(annotation)
            kept, _ = self._find(cls, parameter, wanted)
            return Constant(StoredRepository(kept, self._aggregates._gateway))  # noqa: SLF001 - of this module
        for marker in parameter.metadata:
            if isinstance(marker, Fetched):
                return self._fetching(marker, parameter, wanted)
        if parameter.name == "self" and isinstance(annotation, type) and aggregate_mark(annotation) is not None:
            return Constant(None)  # the one that is loaded takes its place
        return None

    def _fetching(self, marker: Fetched, parameter: Parameter, wanted: Wanted) -> Supplier:
        members = [one for one in get_args(parameter.annotation) if one is not type(None)]
        optional = bool(members)
        kept, finder = self._find(members[0] if members else parameter.annotation, parameter, wanted)

        async def fetch(message: Message[Any]) -> Any:
            identifier = finder.find(kept, message, marker.by, headers=False)
            found = await kept.load(identifier) if identifier is not None else None
            if found is None and not optional:
                raise kept.not_found(identifier)
            return None if found is None else found.state

        return Dependency(fetch)

    def _find(self, cls: Any, parameter: Parameter, wanted: Wanted) -> tuple[Kept, Finder]:
        try:
            return self._aggregates.find(cls)
        except ConfigurationError as error:
            raise wanted.error(f"{parameter.name!r}: {error.what}", hint=error.hint) from error
