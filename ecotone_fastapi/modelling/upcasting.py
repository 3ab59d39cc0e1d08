"""Upcasting: events that were written in an older form are read in today's.

    @message_name("order.placed")
    @revision(2)
    @dataclass(frozen=True)
    class OrderWasPlaced:
        order_id: str
        currency: str

    @upcaster("order.placed", revision=1)
    def with_currency(payload: dict) -> dict:
        return {**payload, "currency": "EUR"}

What is stored is never changed. A revision that nothing leads away from is an error at start.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ecotone_fastapi.core.endpoint import Endpoint, Handles, Kind, mark, marks_of
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import MessageTypes, name_of
from ecotone_fastapi.core.signatures import label

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Revision:
    """Mark: in which form events of this class are written.

    Args:
        number: Counted from 1.
    """

    number: int


@dataclass(frozen=True, slots=True)
class Upcaster:
    """Mark: this function takes the payload of an event one step further.

    Args:
        name: The name of the event.
        revision: The revision that the function takes.
        to: The name that the event has after it.
        to_revision: The revision that it has after it.
    """

    name: str
    revision: int
    to: str
    to_revision: int


def revision(number: int) -> Callable[[C], C]:
    """Count the forms that an event has had: the first one needs no mark, the next one is revision 2.

    Args:
        number: The revision of this class, as it is now.

    Example:
        >>> @revision(2)
        ... class OrderWasPlaced: ...
        >>> revision_of(OrderWasPlaced)
        2
    """
    if number < 1:
        raise ConfigurationError(f"{number} is no revision", hint="they are counted from 1")
    return mark(Revision(number))


def revision_of(cls: type) -> int:
    """Return the revision in which events of a class are written."""
    return next((one.number for one in marks_of(cls) if isinstance(one, Revision)), 1)


def upcaster(name: str, *, revision: int, to: str | None = None, to_revision: int | None = None) -> Callable[[F], F]:
    """Take events of one revision to the next, by a function of their payload as plain JSON.

    It is given to `Ecotone` among the handlers, or to `EventSourcing(upcasters=[...])`.

    Args:
        name: The name of the event, see `message_name`; or one that it had before.
        revision: The revision that the function takes.
        to: What the event is called from then on, when that changes.
        to_revision: The revision that it has then; by default the next one.

    Example:
        >>> @upcaster("order.placed", revision=1)
        ... def with_currency(payload: dict) -> dict:
        ...     return {**payload, "currency": "EUR"}
    """
    described = Upcaster(name, revision, to or name, to_revision or revision + 1)
    # As a handler it is found wherever handlers are; the plugin takes it out before anybody could send to it.
    handles = Handles(Kind.INTERNAL, f"upcast {name} {revision}")

    def attach(function: F) -> F:
        return mark(described)(mark(handles)(function))

    return attach


@dataclass(frozen=True, slots=True)
class Way:
    """How an event gets from a former form to today's.

    Args:
        steps: The functions that its payload goes through.
        name: The name that it has then.
        revision: The revision that it has then.
    """

    steps: tuple[Callable[[Any], Any], ...]
    name: str
    revision: int


class Upcasters:
    """All upcasters of an application.

    Args:
        functions: Functions that are marked by `upcaster`.

    Raises:
        ConfigurationError: One is not marked, or cannot be called in the middle of a read; two take one revision.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]] = ()) -> None:
        self._steps: dict[tuple[str, int], tuple[Upcaster, Callable[..., Any]]] = {}
        for function in dict.fromkeys(functions):
            described = [one for one in marks_of(function) if isinstance(one, Upcaster)]
            if not described:
                raise ConfigurationError(
                    f"{label(function)} is no upcaster", hint='write @upcaster("order.placed", revision=1) above it'
                )
            if inspect.iscoroutinefunction(function):
                raise ConfigurationError(
                    f"the upcaster {label(function)} is async: it is called in the middle of a read",
                    hint="write it with def; what it needs has to be in the payload",
                )
            for one in described:
                self._add(one, function)

    def _add(self, described: Upcaster, function: Callable[..., Any]) -> None:
        taken = self._steps.setdefault((described.name, described.revision), (described, function))
        if taken[1] is not function:
            raise ConfigurationError(
                f"{label(taken[1])} and {label(function)} both take revision {described.revision} of "
                f"{described.name!r}",
                hint="leave one of them",
            )

    def way(self, name: str, revision: int) -> Way:
        """Return how an event of this form is brought up to date, as far as that goes."""
        steps: list[Callable[[Any], Any]] = []
        been = {(name, revision)}
        while (name, revision) in self._steps:
            step, function = self._steps[name, revision]
            name, revision = step.to, step.to_revision
            steps.append(function)
            if (name, revision) in been:
                raise ConfigurationError(
                    f"upcasters lead from revision {revision} of {name!r} back to it", hint="each leads to a later one"
                )
            been.add((name, revision))
        return Way(tuple(steps), name, revision)

    def names_before(self, names: Iterable[str]) -> set[str]:
        """Return these names, with all those that events had before they were called so."""
        known = set(names)
        while more := {step.name for step, _ in self._steps.values() if step.to in known} - known:
            known |= more
        return known

    def rename(self, canonical: Mapping[str, str]) -> None:
        """Let steps that name an event by a former name be found under its present one."""
        if not canonical:
            return
        steps, self._steps = self._steps, {}
        for step, function in steps.values():
            name, to = canonical.get(step.name, step.name), canonical.get(step.to, step.to)
            self._add(Upcaster(name, step.revision, to, step.to_revision), function)

    def problems(self, types: MessageTypes, classes: Iterable[type], *, complete: bool) -> Iterable[ConfigurationError]:
        """Find chains that do not end at the present revision of a known class.

        Args:
            types: The classes of events by their names.
            classes: Those whose former revisions have to be readable.
            complete: Whether a name that is not known by now is none.
        """
        for name, number in self._steps:
            try:
                way = self.way(name, number)
            except ConfigurationError as problem:
                yield problem
                continue
            cls = types.find(way.name)
            if cls is None and complete:
                yield ConfigurationError(
                    f"upcasters lead from revision {number} of {name!r} to {way.name!r}, which is no event here",
                    hint="give its class to EventSourcing(events=[...]), or mend the name",
                )
            elif cls is not None and way.revision > revision_of(cls):
                yield ConfigurationError(
                    f"upcasters lead from revision {number} of {name!r} to revision {way.revision} of {way.name!r}, "
                    f"but {cls.__qualname__} is revision {revision_of(cls)}",
                    hint=f"write @revision({way.revision}) above the class, or take an upcaster away",
                )
        arriving: dict[str, int] = {}
        for step, _ in self._steps.values():
            if step.to != step.name:
                arriving[step.to] = min(step.to_revision, arriving.get(step.to, step.to_revision))
        for cls in classes:
            # A name that others are renamed to begins with the revision that they arrive at.
            name, current = name_of(cls), revision_of(cls)
            for number in range(min(arriving.get(name, 1), current), current):
                if (name, number) not in self._steps:
                    yield ConfigurationError(
                        f"{cls.__qualname__} is revision {current} of {name!r}, and nothing takes revision {number} "
                        "further",
                        hint=f"write @upcaster({name!r}, revision={number}) above a function that does",
                    )


def take_upcasters(endpoints: list[Endpoint]) -> list[Callable[..., Any]]:
    """Take the upcasters out of the handlers that were found, and return them.

    Raises:
        ConfigurationError: One is a method that needs an object.
    """
    found = [one for one in endpoints if one.find(Upcaster) is not None and one.kind is Kind.INTERNAL]
    for endpoint in found:
        if endpoint.needs_instance:
            raise ConfigurationError(
                f"the upcaster {endpoint.label} needs an object", hint="make it a function, or put @staticmethod above"
            )
        endpoints.remove(endpoint)
    return [one.function for one in found]
