"""What handlers declare: which messages they are for, and which events they say they return."""

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from ecotone_fastapi.core.endpoint import Endpoint, Handles, Kind, marks_of
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import Message, explicit_name_of
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.core.signatures import parameters_of, returned_by
from ecotone_fastapi.modelling.event_sourced import model_of
from ecotone_fastapi.modelling.event_types import may_be_event
from ecotone_fastapi.modelling.fetching import Fetched
from ecotone_fastapi.modelling.keeping import aggregate_mark
from ecotone_fastapi.modelling.projecting import Projector
from ecotone_fastapi.modelling.projections import projection_mark
from ecotone_fastapi.modelling.repository import Repository
from ecotone_fastapi.operations.wording import told_kind, told_route


@dataclass(frozen=True)
class Handled:
    """Which messages a handler is for.

    Args:
        kind: What they are.
        route: Their key, or a glob; `None` when they are told by type.
        types: Their classes, when they are told by type.
    """

    kind: Kind
    route: str | None
    types: tuple[type, ...]

    def reached_by(self, event: type | str) -> bool:
        """Whether an event reaches the handler.

        Args:
            event: Its class, or the key that it is published to.
        """
        name = event if isinstance(event, str) else explicit_name_of(event)
        if self.route is not None:
            pattern = ".*".join(map(re.escape, self.route.split("*")))
            return name is not None and (name == self.route or bool(re.fullmatch(pattern, name, re.IGNORECASE)))
        return isinstance(event, type) and any(issubclass(event, one) for one in self.types)


def handled_by(endpoint: Endpoint) -> Handled | None:
    """Return which messages a handler is for; `None` for what no message reaches, such as hooks of projections."""
    if endpoint.function.__module__ == Projector.__module__:  # what stands for its unit of work
        return None
    kind, route = told_kind(endpoint), told_route(endpoint)
    described = projection_mark(endpoint.owner)
    if described is not None and kind is Kind.INTERNAL:
        # Its plugin has taken it off the bus: what it is for stands where it is written.
        written = _written(endpoint)
        if written is None:
            return None
        kind, route = written.kind, written.route
    types = (
        () if route is not None else tuple(one for one in members_of(endpoint.payload_type) if isinstance(one, type))
    )
    return Handled(kind, route, types)


def _written(endpoint: Endpoint) -> Handles | None:
    """The mark of a handler of events, as its decorator has left it."""
    name = getattr(endpoint.function, "__name__", "")
    raw = inspect.getattr_static(endpoint.owner, name, endpoint.function)
    # A decorator that stands above @classmethod has marked the descriptor, one below it the function.
    marks = (*marks_of(raw), *marks_of(getattr(raw, "__func__", None)))
    found = [one for one in marks if isinstance(one, Handles) and one.kind is Kind.EVENT]
    own = [one for one in found if one.id == endpoint.id or endpoint.id.endswith(f":{one.route}")]
    return next(iter([*own, *found]), None)


def returned_events(endpoint: Endpoint) -> Iterable[type]:
    """Return the classes of events that a handler of an event-sourced aggregate says it returns.

    None when its answers are no events, when it says nothing, or nothing that can be read.
    """
    model = model_of(endpoint.owner) if endpoint.owner is not None else None
    if model is None or model.recording or told_kind(endpoint) is Kind.QUERY:
        return ()
    with suppress(ConfigurationError):  # only for type checkers; nothing else needs it
        return list(dict.fromkeys(_events_in(returned_by(endpoint.function, endpoint.known_names))))
    return ()


def asked_aggregates(endpoint: Endpoint) -> Iterator[tuple[type, bool]]:
    """Yield the classes of aggregates that a handler asks for in its parameters, and whether it only reads them."""
    for parameter in parameters_of(endpoint.function, endpoint.known_names):
        if get_origin(parameter.annotation) is Repository:
            yield from ((one, False) for one in get_args(parameter.annotation) if isinstance(one, type))
        elif any(marker is Fetched or isinstance(marker, Fetched) for marker in parameter.metadata):
            yield from ((one, True) for one in members_of(parameter.annotation) if isinstance(one, type))


def _events_in(annotation: Any) -> Iterator[type]:
    origin = get_origin(annotation)
    if origin is not None and not _is_event(origin):
        for one in get_args(annotation):
            yield from _events_in(one)
    elif _is_event(origin or annotation):
        yield origin or annotation


def _is_event(cls: Any) -> bool:
    return isinstance(cls, type) and cls is not Message and may_be_event(cls) and aggregate_mark(cls) is None
