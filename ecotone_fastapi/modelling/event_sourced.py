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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ecotone_fastapi.core.conversion import header_texts
from ecotone_fastapi.core.current import current_message
from ecotone_fastapi.core.errors import AggregateError, ConfigurationError
from ecotone_fastapi.core.message import FRAMEWORK_HEADERS, Message, name_of
from ecotone_fastapi.modelling.aggregate_streams import EventSourcedStore
from ecotone_fastapi.modelling.aggregates import StateStored, attach
from ecotone_fastapi.modelling.applying import Applying
from ecotone_fastapi.modelling.event_types import may_be_event
from ecotone_fastapi.modelling.keeping import Aggregate, Kept, Outcome, aggregate_mark, kept_of
from ecotone_fastapi.modelling.recording import is_made_later, record
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.modelling.snapshots import Snapshots

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
        if is_made_later(payload):
            raise AggregateError(
                f"a {self._cls.__qualname__} has recorded a function",
                hint="record the event itself: it is applied at once",
            )
        self.applying.apply(aggregate, payload, _headers_of(event) if self.applying.reads_headers else {})

    def outcome(self, kept: Kept, instance: Any, result: Any, known: Mapping[type, Kept]) -> Outcome:
        """Record the events that were returned; on a new aggregate, when there was none."""
        if self.recording:
            return StateStored().outcome(kept, instance, result, known)
        returned = [] if result is None else list(result) if type(result) in (list, tuple) else [result]
        others = [one for one in returned if kept_of(one, known) is not None and one is not instance]
        events = [one for one in returned if kept_of(one, known) is None]
        for event in events:
            payload = event.payload if isinstance(event, Message) else event
            if not may_be_event(type(payload)):
                raise AggregateError(
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
        return f"EventSourced(stream={self.category!r}, recording={self.recording}, snapshots={self.snapshots})"


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


def model_of(cls: type) -> EventSourced | None:
    """Return the model of an event-sourced class; `None` when it is none."""
    described = aggregate_mark(cls)
    return described.model if described is not None and isinstance(described.model, EventSourced) else None
