"""Recorded events: what an aggregate tells the world, once it has been saved.

    def cancel(self, command: CancelOrder) -> None:
        self.status = "cancelled"
        record(self, OrderWasCancelled(self.order_id))

They are kept beside the aggregate and not in it: what an object has in its `__dict__` would be part of its state to
whoever compares, copies or stores it.
"""

import weakref
from collections.abc import Callable
from inspect import isroutine
from typing import Any, Protocol, runtime_checkable

from ecotone_fastapi.core.endpoint import marks_of
from ecotone_fastapi.core.errors import AggregateError

_recorded: dict[int, tuple[weakref.ref[object], list[Any]]] = {}  # by the id of the object, and gone with it


@runtime_checkable
class HearsRecorded(Protocol):
    """A mark of a class that wants to know at once what its instances record."""

    def when_recorded(self, aggregate: Any, event: Any) -> None:
        """Do what is to be done as soon as an aggregate records an event."""
        ...


def record(aggregate: object, event: object) -> None:
    """Record an event: it is published when the aggregate has been saved, and never if it is not.

    Args:
        aggregate: Who records it.
        event: The event, or a `Message` of it with headers of its own; or a function that makes it when the aggregate
            has been saved, for an event with an identifier that the database gives.

    Raises:
        AggregateError: Nothing can be kept beside this object.

    Example:
        >>> class Order: ...
        >>> order = Order()
        >>> record(order, "placed")
        >>> take_recorded(order)
        ['placed']
    """
    marks = (one for cls in type(aggregate).__mro__ for one in marks_of(cls))
    nearest = next((one for one in marks if isinstance(one, HearsRecorded)), None)
    if nearest is not None:
        nearest.when_recorded(aggregate, event)
    _keep(aggregate, event)


def take_recorded(aggregate: object) -> list[Any]:
    """Return what an aggregate has recorded, and forget it; for tests of an aggregate alone."""
    return [made(event) for event in taken(aggregate)]


def taken(aggregate: object) -> list[Any]:
    """Take what an aggregate has recorded as it is: some of it may be made later."""
    _, events = _recorded.pop(id(aggregate), (None, []))
    return events


def is_made_later(event: object) -> bool:
    """Whether an event is still to be made."""
    return isroutine(event)


def made(event: Any) -> Any:
    """Return an event, which is made if it is not yet."""
    return event() if isroutine(event) else event


def hand_over(before: object, after: object) -> None:
    """Let one object have what another one has recorded, before what it has recorded itself."""
    for event in (*taken(before), *taken(after)):
        _keep(after, event)


def _keep(aggregate: object, event: object) -> None:
    key = id(aggregate)
    kept = _recorded.get(key)
    if kept is None:
        kept = _recorded[key] = (_referred(aggregate, _forgetting(key)), [])
    kept[1].append(event)


def _forgetting(key: int) -> Callable[[object], None]:
    def forget(_: object) -> None:
        _recorded.pop(key, None)

    return forget


def _referred(aggregate: object, forget: Callable[[object], None]) -> weakref.ref[object]:
    try:
        return weakref.ref(aggregate, forget)
    except TypeError as error:
        raise AggregateError(
            f"nothing can be recorded for a {type(aggregate).__qualname__}: it has __slots__",
            tried=str(error),
            hint="write @dataclass(slots=True, weakref_slot=True), or add '__weakref__' to __slots__",
        ) from error
