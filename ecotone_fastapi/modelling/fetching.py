"""Aggregates and repositories as parameters of any handler.

async def ship(command: ShipOrder, order: Annotated[Order, Fetched()], orders: Repository[Order]) -> None: ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_origin

from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.signatures import Parameter, parameters_of
from ecotone_fastapi.core.suppliers import (
    Constant,
    Dependency,
    Supplier,
    Wanted,
)
from ecotone_fastapi.modelling.identification import By, Finder, Identified
from ecotone_fastapi.modelling.keeping import Keeping, Kept, aggregate_mark
from ecotone_fastapi.modelling.publishing import StoredRepository
from ecotone_fastapi.modelling.repository import Repository


@dataclass(frozen=True, slots=True)
class Fetched:
    """Marker: this parameter of a handler is an aggregate, loaded by what the message says.

    It is not saved: ask for its `Repository` to do so. Of a type with `| None`, it may be missing.

    Args:
        by: Where its identifier is found, as for `identified`; by default under its own name.

    Example:
        >>> async def ship(command: dict, order: Annotated[object, Fetched(by="order_id")]) -> None: ...
    """

    by: By = None


def with_payload_type(endpoint: Endpoint) -> Endpoint:
    """Return a handler with the type of its payload, when something of ours stands in front of that."""
    if not _is_ours(endpoint.payload_type):
        return endpoint
    parameters = parameters_of(endpoint.function, endpoint.known_names)[1 if endpoint.needs_instance else 0 :]
    return replace(
        endpoint, payload_type=next((one.annotated for one in parameters if not _is_ours(one.annotated)), None)
    )


def _is_ours(annotation: Any) -> bool:
    markers = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return get_origin(annotation) is Repository or any(one is Fetched or isinstance(one, Fetched) for one in markers)


class AggregateParameters:
    """Supplies aggregates and their repositories, and finds out what handlers of aggregates need.

    Args:
        keeping: The classes of aggregates.
        makers: What makes an aggregate when a handler finds none, by its id.

    Attributes:
        finders: What finds the aggregate of a handler, by its id.
        asynchronous: The ids of handlers of aggregates that run in a consumer.
        saving: The ids of handlers that are given a repository, or something that was.
    """

    def __init__(self, keeping: Keeping, makers: Mapping[str, str]) -> None:
        self.finders: dict[str, Finder] = {}
        self.asynchronous: set[str] = set()
        self.saving: set[str] = set()
        self._keeping = keeping
        self._makers = makers
        self._repositories: dict[type, StoredRepository] = {}

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        """Supply a repository, an aggregate that is fetched, or the one whose handler it is."""
        annotation = parameter.annotation
        if get_origin(annotation) is Repository:
            return self._repository(get_args(annotation)[0], parameter, wanted)
        for marker in parameter.metadata:
            if isinstance(marker, Fetched) or marker is Fetched:
                return self._fetching(marker if isinstance(marker, Fetched) else Fetched(), parameter, wanted)
        owner = wanted.endpoint.owner
        if parameter.name != "self" or owner is None or annotation is not owner or aggregate_mark(owner) is None:
            return None
        if owner not in self._keeping.known:  # there is another error about it
            return Constant(None)
        return self._instance(self._keeping.known[owner], wanted.endpoint, wanted)

    def _repository(self, cls: Any, parameter: Parameter, wanted: Wanted) -> Supplier:
        kept = self._kept(cls, parameter, wanted)
        if kept.cls not in self._repositories:
            self._repositories[kept.cls] = StoredRepository(kept, self._keeping.gateway)
        self.saving.add(wanted.endpoint.id)
        return Constant(self._repositories[kept.cls], described=f"what is kept in {type(kept.store).__name__}")

    def _instance(self, kept: Kept, endpoint: Endpoint, wanted: Wanted) -> Supplier:
        told = endpoint.find(Identified)
        finder = Finder(kept.described.identifier, endpoint, told.by if told is not None else None)
        maker = self._makers.get(endpoint.id)
        if maker is None:
            _raise_problems(finder, kept, wanted)
        self.finders[endpoint.id] = finder
        if wanted.asynchronous:
            self.asynchronous.add(endpoint.id)
        # The one that is loaded takes its place.
        else_made = "" if maker is None else f"; if there is none, made by {maker}"
        return Constant(None, described=f"loaded from {type(kept.store).__name__} by {finder.described}{else_made}")

    def _fetching(self, marker: Fetched, parameter: Parameter, wanted: Wanted) -> Supplier:
        members = [one for one in get_args(parameter.annotation) if one is not type(None)]
        may_be_missing = bool(members)
        kept = self._kept(members[0] if members else parameter.annotation, parameter, wanted)
        finder = Finder(kept.described.identifier, wanted.endpoint, marker.by, header=False)
        if not may_be_missing:
            _raise_problems(finder, kept, wanted)

        async def fetch(message: Message[Any]) -> Any:
            told = finder.find(message)
            identifier = kept.identifier(told) if told is not None else None
            found = await kept.load(identifier) if identifier is not None else None
            if found is None and not may_be_missing:
                raise kept.not_found(identifier)
            return None if found is None else found.state

        return Dependency(fetch, described=f"loaded from {type(kept.store).__name__} by {finder.described}")

    def _kept(self, cls: Any, parameter: Parameter, wanted: Wanted) -> Kept:
        try:
            return self._keeping.kept(cls)
        except ConfigurationError as error:
            raise wanted.error(f"{parameter.name!r}: {error.what}", hint=error.hint) from error


def _raise_problems(finder: Finder, kept: Kept, wanted: Wanted) -> None:
    for what, hint in finder.problems(kept.label):
        raise wanted.error(what, hint=hint)
