"""The event store of an application, and the aggregates in it."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any, cast

from pydantic import BaseModel

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, MissingServiceError
from ecotone_fastapi.core.message import message_name
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.modelling.aggregate_streams import EventSourcedStore, Sourced
from ecotone_fastapi.modelling.applying import applied_by
from ecotone_fastapi.modelling.consistency import Decisions
from ecotone_fastapi.modelling.event_sourced import model_of
from ecotone_fastapi.modelling.event_storage import ChecksIsolation, EventStorage
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.event_types import EventTypes
from ecotone_fastapi.modelling.mentions import mentioned_by, mentioned_in
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.modelling.snapshots import Background, SnapshotsOf, SnapshotStore
from ecotone_fastapi.modelling.upcasting import take_upcasters

logger: logging.Logger = logging.getLogger("ecotone_fastapi.events")


@message_name("ecotone.snapshot_due")
@dataclass(frozen=True, slots=True)
class SnapshotDue:
    """A stream has grown so far that a snapshot of it should be taken."""

    stream: str


class EventSourcing:
    """The plugin behind `@event_sourced` and `EventStore`; installed by default.

    The types of events are known from `@applies` methods, from what handlers take, and from the classes that handlers
    and the methods of event-sourced classes return and name.

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
        for cls in _mentioned(assembly.endpoints):
            for event in (cls, *applied_by(cls)):
                types.learn(event)
        storage = cast("EventStorage | None", assembly.services.get(EventStorage))
        if storage is not None:
            store = EventStore(storage, types, gateway)
            assembly.add_service(EventStore, store)
            assembly.add_service(Decisions, Decisions(store, types, gateway))
        sourced = [cls for cls in _owners(assembly.endpoints) if model_of(cls) is not None]
        events = cast("EventStore | None", assembly.services.get(EventStore))
        if events is not None:
            self._keep_aggregates(assembly, sourced, events, types)
        elif sourced:
            raise MissingServiceError(
                f"nothing keeps the events of {sourced[0].__qualname__}", hint="give a database among the plugins"
            )
        types.check()
        assembly.add_lifespan(partial(_checked, types))
        given: object = storage
        if sourced and isinstance(given, ChecksIsolation):
            assembly.add_lifespan(partial(_isolated, given))

    def _keep_aggregates(
        self, assembly: Assembly, sourced: Sequence[type], events: EventStore, types: EventTypes
    ) -> None:
        gateway = assembly.gateway
        snapshots = cast("SnapshotStore | None", assembly.services.get(SnapshotStore))
        channels = {
            model.snapshots.background: f"{_BACKGROUND}{model.snapshots.background}"
            for model in map(model_of, sourced)
            if model is not None and model.snapshots is not None and model.snapshots.background is not None
        }

        def describe(cls: type) -> Sourced | None:
            model = model_of(cls)
            if model is None:
                return None
            model.applying.check()
            for event in model.applying.events:
                types.add(event)
            for mentioned in mentioned_by(cls):
                types.learn(mentioned)
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
            of_class = SnapshotsOf(
                cls,
                model.applying.new(),
                settings=model.snapshots,
                store=snapshots,
                conversion=gateway.conversion,
                clock=gateway.clock,
            )
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


@asynccontextmanager
async def _isolated(storage: ChecksIsolation) -> AsyncIterator[None]:
    """Find out at start, and not by the first command, that nothing can be appended."""
    try:
        await storage.check_isolation()
    except ChannelError as error:
        logger.warning("whether events can be appended is found out when that is tried: %s", error)
    yield


def _owners(endpoints: Iterable[Endpoint]) -> Iterable[type]:
    return dict.fromkeys(one.owner for one in endpoints if one.owner is not None)


def _handled(endpoints: Iterable[Endpoint]) -> Iterator[type]:
    """The classes that handlers take."""
    for endpoint in endpoints:
        for member in members_of(endpoint.payload_type):
            if isinstance(member, type):
                yield member


def _mentioned(endpoints: Iterable[Endpoint]) -> Iterator[type]:
    """The classes that handlers name in their code and that hold data: events that they append, or models of these."""
    for endpoint in endpoints:
        for cls in mentioned_in(endpoint.function):
            if is_dataclass(cls) or (issubclass(cls, BaseModel) and cls is not BaseModel) or applied_by(cls):
                yield cls
