"""Event sourcing: of an aggregate, what has happened to it is stored, and nothing else.

    @event_sourced(identifier="basket_id", stream="basket")
    @dataclass
    class Basket:
        basket_id: str
        items: list[str] = field(default_factory=list)

        @classmethod
        @command_handler
        def open(cls, command: OpenBasket) -> BasketWasOpened:
            return BasketWasOpened(command.basket_id)

        @command_handler
        def add(self, command: AddItem) -> ItemWasAdded | None:
            return None if command.sku in self.items else ItemWasAdded(self.basket_id, command.sku)

        @applies
        def opened(self, event: BasketWasOpened) -> None:
            self.basket_id = event.basket_id

        @applies
        def added(self, event: ItemWasAdded) -> None:
            self.items.append(event.sku)

What a handler returns is appended to the stream `basket-7` and then published, in one transaction.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar, cast, get_args, get_type_hints

from ecotone_fastapi.core.conversion import header_texts
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, MissingServiceError
from ecotone_fastapi.core.gateway import current_message
from ecotone_fastapi.core.message import FRAMEWORK_HEADERS, Message, message_name, name_of
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.modelling.aggregate_streams import EventSourcedStore, Sourced
from ecotone_fastapi.modelling.aggregates import (
    Aggregate,
    Kept,
    Outcome,
    StateStored,
    aggregate_mark,
    attach,
    record,
)
from ecotone_fastapi.modelling.applying import Applying
from ecotone_fastapi.modelling.event_store import EventStorage, EventStore
from ecotone_fastapi.modelling.event_types import EventTypes, may_be_event
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.modelling.snapshots import Background, Snapshots, SnapshotsOf, SnapshotStore
from ecotone_fastapi.modelling.upcasting import take_upcasters

C = TypeVar("C", bound=type)


class EventSourced:
    """The model of event-sourced aggregates: their handlers return what has happened, or record it.

    Args:
        cls: The class.
        stream: What the names of its streams begin with.
        recording: Whether its handlers record events; what they return is the answer then.
        snapshots: When snapshots are taken.
    """

    def __init__(self, cls: type, stream: str | None, recording: bool, snapshots: Snapshots | None) -> None:
        self._cls = cls
        self._stream = stream
        self.recording = recording
        self.snapshots = snapshots
        self.applying: Applying = Applying(cls)

    @property
    def category(self) -> str:
        """What the names of its streams begin with.

        Raises:
            ConfigurationError: Names could not be made of it.
        """
        category = name_of(self._cls) if self._stream is None else self._stream
        if not category or "-" in category:
            raise ConfigurationError(
                f"{category!r} cannot be the stream of {self._cls.__qualname__}",
                hint="a stream is named by its category, a dash and an identifier: give a category without a dash",
            )
        return category

    def choose(self, stores: Sequence[AggregateStore]) -> AggregateStore | None:
        """Choose the one for streams, whatever others there are."""
        return next((one for one in stores if isinstance(one, EventSourcedStore)), None)

    def when_recorded(self, aggregate: Any, event: Any) -> None:
        """Apply the event at once."""
        payload = event.payload if isinstance(event, Message) else event
        self.applying.apply(aggregate, payload, _headers_of(event) if self.applying.reads_headers else {})

    def outcome(self, kept: Kept, instance: Any, result: Any, known: Mapping[type, Kept]) -> Outcome:
        """Record the events that were returned; on a new aggregate, when there was none."""
        if self.recording:
            return StateStored().outcome(kept, instance, result, known)
        returned = [] if result is None else list(result) if type(result) in (list, tuple) else [result]
        others = [one for one in returned if type(one) in known and one is not instance]
        events = [one for one in returned if type(one) not in known]
        for event in events:
            payload = event.payload if isinstance(event, Message) else event
            if not may_be_event(type(payload)):
                raise ConversionError(
                    f"a handler of {kept.label} has returned {payload!r}, which is no event",
                    hint="return events, a list of them, or None; with @event_sourced(..., recording=True) methods "
                    "record(self, event), and answer what they like",
                )
        aggregate = self.applying.new() if instance is None and events else instance
        for event in events:
            record(aggregate, event)
        changed = [*([] if aggregate is None else [aggregate]), *others]
        return Outcome(changed, identify=instance is None and bool(changed))

    def __repr__(self) -> str:
        return f"EventSourced({self.category!r})"


def _headers_of(event: Any) -> Mapping[str, str]:
    """What an event will be stored with, without what the framework says about messages."""
    cause = current_message()
    headers = dict(cause.headers) if cause is not None else {}
    for name in FRAMEWORK_HEADERS:
        headers.pop(name, None)
    if isinstance(event, Message):
        headers.update(header_texts(event.headers))
    return headers


def event_sourced(
    *,
    identifier: str | Sequence[str],
    stream: str | None = None,
    recording: bool = False,
    snapshots: Snapshots | int | None = None,
    version: str | None = None,
) -> Callable[[C], C]:
    """Keep the events of a class, each object in a stream of its own: its state is what they have led to.

    Handlers find their object as with `aggregate`. They return what has happened: an event, a `Message` of one with
    headers of its own, a list of these, or `None`. A class method or static method returns the first events of a new
    object, and its sender is told the identifier that they set. Only `@applies` methods change attributes.

    Objects are made by calling the class without arguments. When a dataclass or a pydantic model requires some, they
    are made without its constructor: fields with a default have it, all others are missing until an event sets them.

    Args:
        identifier: The attribute that identifies an object, or several that do so together.
        stream: The category: what its streams are named after, without a dash. By default the name of the class, which
            is another one when it moves to another module, unless it has a `message_name`.
        recording: Whether methods `record(self, event)`, which applies it at once, and answer what they return. A
            factory returns the new object then.
        snapshots: After how many events the state is kept, so that they need not be read again.
        version: An attribute that is told the version.

    Example:
        >>> @event_sourced(identifier="counter_id", stream="counter")
        ... class Counter:
        ...     count = 0
    """
    names = (identifier,) if isinstance(identifier, str) else tuple(identifier)
    settings = Snapshots(every=snapshots) if isinstance(snapshots, int) else snapshots

    def decorate(cls: C) -> C:
        return attach(Aggregate(names, version, None, EventSourced(cls, stream, recording, settings)))(cls)

    return decorate


@message_name("ecotone.snapshot_due")
@dataclass(frozen=True, slots=True)
class SnapshotDue:
    """A stream has grown so far that a snapshot of it should be taken."""

    stream: str


class EventSourcing:
    """The plugin behind `@event_sourced` and `EventStore`; installed by default.

    The types of events are known from `@applies` methods, from what handlers take, and from what the methods of
    event-sourced classes return and name.

    Args:
        events: Classes of events that are known by none of these.
        upcasters: What brings former revisions of events up to date, besides what is among the handlers.

    Example:
        >>> plugin = EventSourcing()
    """

    def __init__(self, events: Iterable[type] = (), upcasters: Iterable[Callable[..., Any]] = ()) -> None:
        self._events = tuple(events)
        self._upcasters = tuple(upcasters)
        self.aggregate_stores: Sequence[AggregateStore] = ()

    def install(self, assembly: Assembly) -> None:
        """Offer the event store, and keep event-sourced aggregates in it.

        Raises:
            ConfigurationError: A former revision of an event cannot be read, or something is wrong with a class.
            MissingServiceError: There are event-sourced aggregates, and nothing keeps events.
        """
        gateway = assembly.gateway
        types = EventTypes(gateway, self._events, [*take_upcasters(assembly.endpoints), *self._upcasters])
        for cls in _handled(assembly.endpoints):
            types.learn(cls)
        storage = cast("EventStorage | None", assembly.services.get(EventStorage))
        if storage is not None:
            assembly.add_service(EventStore, EventStore(storage, types, gateway))
        sourced = [cls for cls in _owners(assembly.endpoints) if _model_of(cls) is not None]
        events = cast("EventStore | None", assembly.services.get(EventStore))
        if events is not None:
            self._keep_aggregates(assembly, sourced, events, types)
        elif sourced:
            raise MissingServiceError(
                f"nothing keeps the events of {sourced[0].__qualname__}", hint="give a database among the plugins"
            )
        types.check()
        assembly.add_lifespan(partial(_checked, types))

    def _keep_aggregates(
        self, assembly: Assembly, sourced: Sequence[type], events: EventStore, types: EventTypes
    ) -> None:
        gateway = assembly.gateway
        snapshots = cast("SnapshotStore | None", assembly.services.get(SnapshotStore))
        channels = {
            model.snapshots.background: f"{_BACKGROUND}{model.snapshots.background}"
            for model in map(_model_of, sourced)
            if model is not None and model.snapshots is not None and model.snapshots.background is not None
        }

        def describe(cls: type) -> Sourced | None:
            model = _model_of(cls)
            if model is None:
                return None
            model.applying.check()
            for event in model.applying.events:
                types.add(event)
            for named in _named_by(cls):
                types.learn(named)
            if model.snapshots is None:
                return Sourced(cls, model.category, model.applying, None)
            if snapshots is None:
                raise MissingServiceError(
                    f"nothing keeps the snapshots of {cls.__qualname__}", hint="give a database among the plugins"
                )
            if model.snapshots.background is not None and model.snapshots.background not in channels:
                raise ConfigurationError(
                    f"no snapshots of {cls.__qualname__} can be taken in the background: it has no handler",
                    hint="leave background= out",
                )
            of_class = SnapshotsOf(cls, model.snapshots, snapshots, gateway.conversion, gateway.clock)
            return Sourced(cls, model.category, model.applying, of_class)

        async def take_later(channel: str, stream: str) -> None:
            await gateway.dispatch(Kind.INTERNAL, gateway.message(SnapshotDue(stream)), channels[channel])

        async def take_snapshot(due: SnapshotDue) -> None:
            await store.take_snapshot(due.stream)

        async def forget(stream: str) -> None:
            if snapshots is not None:
                await snapshots.delete(stream)

        store = EventSourcedStore(events, describe, take_later)
        self.aggregate_stores = (store,)
        events.when_deleted(forget)
        for channel, route in channels.items():
            endpoint = Endpoint(route, Kind.INTERNAL, route, SnapshotDue, take_snapshot, marks=(Background(channel),))
            assembly.add_endpoint(endpoint)
        problems: list[ConfigurationError] = []
        for cls in sourced:
            try:
                store.serves(cls)
            except ConfigurationError as problem:
                problems.append(problem)
        ConfigurationError.raise_all(problems)


_BACKGROUND = "ecotone.snapshots/"


@asynccontextmanager
async def _checked(types: EventTypes) -> AsyncIterator[None]:
    """Check once more: by now also those classes are known that are only asked for, as `Repository[Basket]`."""
    types.check(complete=True)
    yield


def _model_of(cls: type) -> EventSourced | None:
    described = aggregate_mark(cls)
    return described.model if described is not None and isinstance(described.model, EventSourced) else None


def _owners(endpoints: Iterable[Endpoint]) -> Iterable[type]:
    return dict.fromkeys(one.owner for one in endpoints if one.owner is not None)


def _handled(endpoints: Iterable[Endpoint]) -> Iterator[type]:
    """The classes that handlers take."""
    for endpoint in endpoints:
        for member in members_of(endpoint.payload_type):
            if isinstance(member, type):
                yield member


def _named_by(cls: type) -> Iterator[type]:
    """The classes that the methods of a class say they return, or name in their code: events that they make."""
    for name in dict.fromkeys(name for base in cls.__mro__ for name in vars(base)):
        raw = inspect.getattr_static(cls, name)
        function = raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw
        if not isinstance(function, FunctionType):
            continue
        with suppress(Exception):  # an annotation that only a type checker can read
            yield from _classes_in(get_type_hints(function).get("return"))
        known = dict(function.__globals__)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # it has no value yet
                known[variable] = cell.cell_contents
        names = set(_names_in(function.__code__))
        for value in [known[one] for one in names if one in known]:
            if isinstance(value, type):
                yield value
            elif isinstance(value, ModuleType):  # `events.ItemWasAdded`
                yield from (one for one in map(vars(value).get, names) if isinstance(one, type))


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a comprehension
            yield from _names_in(constant)


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes_in(argument)
