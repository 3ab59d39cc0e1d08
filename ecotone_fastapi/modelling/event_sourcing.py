"""Event sourcing: what has happened is stored, and nothing else."""

from collections.abc import Callable, Iterable
from typing import Any, cast

from ecotone_fastapi.core.message import name_of
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.modelling.event_store import EventStorage, EventStore
from ecotone_fastapi.modelling.event_types import EventTypes, may_be_event
from ecotone_fastapi.modelling.upcasting import take_upcasters


class EventSourcing:
    """The plugin behind `EventStore`; installed by default.

    Args:
        events: Classes of events that are in the store, besides those that handlers take.
        upcasters: What brings former revisions of events up to date, besides what is among the handlers.

    Example:
        >>> plugin = EventSourcing()
    """

    def __init__(self, events: Iterable[type] = (), upcasters: Iterable[Callable[..., Any]] = ()) -> None:
        self._events = tuple(events)
        self._upcasters = tuple(upcasters)

    def install(self, assembly: Assembly) -> None:
        """Offer the event store.

        Raises:
            ConfigurationError: A former revision of an event cannot be read.
        """
        upcasters = [*take_upcasters(assembly.endpoints), *self._upcasters]
        types = EventTypes(assembly.gateway, [*self._events, *_handled(assembly)], upcasters)
        types.check()
        storage = cast("EventStorage | None", assembly.services.get(EventStorage))
        if storage is not None:
            assembly.add_service(EventStore, EventStore(storage, types, assembly.gateway))


def _handled(assembly: Assembly) -> Iterable[type]:
    """The classes that handlers take. That two of them have one name is told by the routes."""
    names: dict[str, type] = {}
    for endpoint in assembly.endpoints:
        for member in members_of(endpoint.payload_type):
            if isinstance(member, type) and may_be_event(member):
                names.setdefault(name_of(member), member)
    return names.values()
