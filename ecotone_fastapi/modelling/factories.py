"""Factories of aggregates: what makes a new one, alone or beside a method that handles the same message.

@classmethod
@event_handler
def open(cls, event: CustomerWasRegistered) -> "Account": ...  # when there is none

@event_handler
def reopen(self, event: CustomerWasRegistered) -> None: ...  # when there is one
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import get_type_hints

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.modelling.identification import Identified
from ecotone_fastapi.modelling.keeping import Aggregate


@dataclass(frozen=True)
class CreatesInstead:
    """Mark: this factory is called for messages of a method that find no aggregate.

    Args:
        method: The name of that handler.
        kind: What both handle.
        route: The key of both.
    """

    method: str
    kind: Kind
    route: str | None


@dataclass(frozen=True)
class Factory:
    """A factory that has a method beside it.

    Args:
        id: The id that it has behind that method.
        label: Its name.
        types: The classes of messages that it is for; none when these have a key.
    """

    id: str
    label: str
    types: tuple[type, ...]

    def takes(self, payload: object) -> bool:
        """Whether it is for a message that says this."""
        return not self.types or isinstance(payload, self.types)


def is_of_aggregate(endpoint: Endpoint) -> bool:
    """Whether a handler was found on a class of aggregates."""
    return endpoint.owner is not None and endpoint.find(Aggregate) is not None


def pair(assembly: Assembly) -> tuple[Mapping[str, Sequence[Factory]], list[ConfigurationError]]:
    """Take the factories off the routes that a method of the same aggregate has, too.

    Returns:
        The factories that stand behind a method, by the id of that method; and what does not fit together.
    """
    endpoints = [(at, one) for at, one in enumerate(assembly.endpoints) if is_of_aggregate(one)]
    factories: dict[str, list[Factory]] = {}
    problems: list[ConfigurationError] = []
    for at, factory in endpoints:
        if factory.needs_instance or factory.kind is Kind.QUERY:
            continue
        methods = [one for _, one in endpoints if one.needs_instance and _overlap(factory, one)]
        if not methods:
            continue
        problem = _misfit(factory, methods, [one for _, one in endpoints])
        if problem is not None:
            problems.append(problem)
            continue
        [method] = methods
        hidden = f"{method.id}:or:{factory.label}"
        types = () if factory.route is not None else _classes(factory)
        factories.setdefault(method.id, []).append(Factory(hidden, factory.label, types))
        marks = (CreatesInstead(method.label, factory.kind, factory.route), *factory.marks)
        assembly.endpoints[at] = replace(factory, id=hidden, kind=Kind.INTERNAL, route=hidden, marks=marks)
    return factories, [*problems, *_senseless(assembly)]


def _misfit(factory: Endpoint, methods: Sequence[Endpoint], all_: Sequence[Endpoint]) -> ConfigurationError | None:
    others = [one for one in all_ if one is not factory and not one.needs_instance and _overlap(factory, one)]
    if others:
        return ConfigurationError(
            f"{factory.label} and {others[0].label} both make an aggregate of one message", hint="leave one of them"
        )
    if len(methods) > 1:
        return ConfigurationError(
            f"{factory.label} has {' and '.join(one.label for one in methods)} beside it for one message",
            hint="a factory and one method can share a message",
        )
    [method] = methods
    if factory.route is None and not all(issubclass(one, _classes(method)) for one in _classes(factory)):
        return ConfigurationError(
            f"{factory.label} and {method.label} share some messages, and {factory.label} has others",
            hint="let both handle the same messages, or make two factories",
        )
    ignored = [one for one in factory.marks if one not in method.marks]
    if ignored:
        return ConfigurationError(
            f"{factory.label} is reached by way of {method.label}, and its mark {ignored[0]!r} has no effect",
            hint=f"put it above {method.label}",
        )
    return None


def _senseless(assembly: Assembly) -> list[ConfigurationError]:
    """Find what cannot mean anything."""
    problems = []
    for endpoint in assembly.endpoints:
        if not is_of_aggregate(endpoint) or endpoint.needs_instance:
            continue
        if endpoint.find(Identified) is not None and endpoint.find(CreatesInstead) is None:
            problems.append(
                ConfigurationError(
                    f"{endpoint.label} makes an aggregate, and is told by @identified which one it is for",
                    hint="take it away: the new aggregate has its identifier as an attribute",
                )
            )
        if endpoint.kind is not Kind.QUERY and _returns_nothing(endpoint):
            problems.append(
                ConfigurationError(
                    f"{endpoint.label} is a factory, and returns nothing",
                    hint="return the new aggregate; a handler of an aggregate that exists is a method with self",
                )
            )
    return problems


def _returns_nothing(endpoint: Endpoint) -> bool:
    try:
        return get_type_hints(endpoint.function).get("return") is NoneType
    except Exception:  # an annotation that only a type checker can read
        return False


def _overlap(one: Endpoint, other: Endpoint) -> bool:
    """Whether one message reaches both."""
    if one.owner is not other.owner or one.kind is not other.kind or one.route != other.route:
        return False
    return one.route is not None or any(
        issubclass(first, second) or issubclass(second, first) for first in _classes(one) for second in _classes(other)
    )


def _classes(endpoint: Endpoint) -> tuple[type, ...]:
    return tuple(one for one in members_of(endpoint.payload_type) if isinstance(one, type))
