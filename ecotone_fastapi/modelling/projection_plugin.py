"""The plugin behind `@projection`: takes its handlers off the bus, and lets events of the store reach them."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, MissingServiceError
from ecotone_fastapi.core.injection import Injector
from ecotone_fastapi.core.message import Message, aliases_of, name_of
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.modelling.event_sourced import EventSourced
from ecotone_fastapi.modelling.event_storage import StoredEvent
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.event_types import EventTypes, may_be_event
from ecotone_fastapi.modelling.keeping import aggregate_mark
from ecotone_fastapi.modelling.projecting import Projector
from ecotone_fastapi.modelling.projection_leases import Settings
from ecotone_fastapi.modelling.projection_runner import ProjectionRunner
from ecotone_fastapi.modelling.projection_store import Condition, ProjectionStore
from ecotone_fastapi.modelling.projections import (
    RUN,
    OfProjections,
    Projection,
    ProjectionState,
    ProjectionVersion,
    Run,
    asked_for,
    filter_of,
    methods_of,
    projection_mark,
)
from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.modelling.stream_names import check_stream

logger: logging.Logger = logging.getLogger("ecotone_fastapi.projections")

_LONGEST_NAME = 120  # the streams of what it emits are named after it


class Projecting:
    """The plugin behind `@projection`; installed by default.

    Args:
        lease: Seconds after which another process takes a projection over whose runner has died or frozen.
        first_retry: Seconds after which what stands still is tried again for the first time; then twice as long each
            time.
        longest_retry: Seconds that it never waits longer.

    Example:
        >>> plugin = Projecting(lease=10.0)
    """

    def __init__(self, *, lease: float = 30.0, first_retry: float = 1.0, longest_retry: float = 300.0) -> None:
        self._settings = Settings(lease=lease, first=first_retry, longest=longest_retry)

    def install(self, assembly: Assembly) -> None:
        """Take the handlers of projections off the bus, and add what runs them.

        Raises:
            ConfigurationError: A projection cannot be as it is described.
            MissingServiceError: There is no event store, or nothing keeps checkpoints.
        """
        projectors: list[Projector] = []
        problems: list[ConfigurationError] = []
        resolver = OfProjections()
        owners = dict.fromkeys(one.owner for one in assembly.endpoints if projection_mark(one.owner) is not None)
        for cls in owners:
            described = projection_mark(cls)
            assert cls is not None
            assert described is not None
            try:
                if any(one.name == described.name for one in projectors):
                    raise ConfigurationError(
                        f"two projections are named {described.name!r}",
                        hint="its name is where its checkpoint is found",
                    )
                projectors.append(_projector(cls, described, _known(assembly, resolver), assembly))
            except ConfigurationError as problem:
                problems += problem.problems or [problem]
        ConfigurationError.raise_all(problems)
        assembly.add_resolver(resolver)
        runners = {one.name: ProjectionRunner(one, self._settings) for one in projectors}
        assembly.add_service(Projections, Projections(runners, assembly.gateway.clock))
        for projector in projectors:
            own = {one.id: one for one in projector.endpoints}
            assembly.endpoints = [own.pop(one.id, one) for one in assembly.endpoints]
            for endpoint in own.values():
                assembly.add_endpoint(endpoint)
            assembly.add_runnable(runners[projector.name])
        _answer_queries(assembly, projectors)
        synchronous = [one for one in projectors if one.synchronous]
        if synchronous:
            _follow(synchronous)
            assembly.add_lifespan(_beginning(synchronous))
        by_stream = [one for one in projectors if one.described.partitioned or one.synchronous]
        if by_stream:
            _forget_deleted(by_stream)


def _known(assembly: Assembly, resolver: OfProjections) -> Sequence[Endpoint]:
    """The handlers with the types of their payloads, now that it is known what projections supply."""
    injector = Injector(resolvers=[*assembly.resolvers, resolver], services=assembly.services)
    known = []
    for endpoint in assembly.endpoints:
        if endpoint.kind is Kind.EVENT and projection_mark(endpoint.owner) is not None:
            known.append(replace(endpoint, payload_type=injector.payload_type(endpoint)))
        else:
            known.append(endpoint)
    return known


def _projector(cls: type, described: Projection, endpoints: Sequence[Endpoint], assembly: Assembly) -> Projector:
    events = cast("EventStore | None", assembly.services.get(EventStore))
    store = cast("ProjectionStore | None", assembly.services.get(ProjectionStore))
    if events is None or store is None:
        raise MissingServiceError(
            f"the projection {described.name!r} has no {'event store' if events is None else 'store of checkpoints'}",
            hint="give a database that has one among the plugins",
        )
    _check(cls, described)
    methods = methods_of(cls, described, endpoints)
    if not methods.handlers:
        raise ConfigurationError(
            f"the projection {cls.__qualname__} handles no event",
            hint="put @event_handler above a method that takes one",
        )
    if described.revision > 1 and not methods.versioned:
        raise ConfigurationError(
            f"the projection {cls.__qualname__} has revision {described.revision}, and would write to the tables of "
            "the one before",
            hint="let its methods ask for the version, and name tables by it: version: ProjectionVersion",
        )
    if described.partitioned and any(_asks_for_state(one) for one in endpoints if _is_query_of(one, cls)):
        raise ConfigurationError(
            f"a query of the projection {cls.__qualname__} asks for its state, and each partition has its own",
            hint="ask for Projections, and its state(name, stream)",
        )
    categories = [*described.categories, *(_category(one, described) for one in described.of)]
    _check_names(cls, methods.handlers, assembly, endpoints)
    return Projector(
        described,
        methods,
        filter_of(categories, described.streams),
        gateway=assembly.gateway,
        events=events,
        store=store,
    )


def _check(cls: type, described: Projection) -> None:
    label = cls.__qualname__
    problems: list[ConfigurationError] = []

    def refuse(what: str, hint: str) -> None:
        problems.append(ConfigurationError(f"the projection {label} {what}", hint=hint))

    if not described.name or len(described.name) > _LONGEST_NAME:
        refuse(f"is named {described.name!r}", f"give it a name of 1 to {_LONGEST_NAME} characters")
    if "-" in described.name:
        refuse(
            f"is named {described.name!r}, with a dash",
            f"what it emits would share streams with others: name it {described.name.replace('-', '_')!r}",
        )
    if not (described.of or described.categories or described.streams):
        refuse("has no source", "tell what it reads: of=Wallet, categories=[...] or streams=[...]")
    if described.mode not in ("synchronous", "asynchronous", "polling"):
        refuse(f"has the mode {described.mode!r}", "a mode is synchronous, asynchronous or polling")
    if described.every <= 0:
        refuse(f"looks for events every {described.every} seconds", "give a positive number")
    for name in ("batch", "concurrency", "revision"):
        if getattr(described, name) < 1:
            refuse(f"has {name}={getattr(described, name)}", "give 1 or more")
    for category in described.categories:
        if "-" in category or not category:
            refuse(
                f"reads the category {category!r}, and no stream has it",
                "a category is what stands before the first dash of a stream: give streams=[...] for whole names",
            )
    for stream in described.streams:
        try:
            check_stream(stream)
        except ValueError as error:
            refuse(f"reads a stream that cannot be: {error}", "mend its name")
    ConfigurationError.raise_all(problems)


def _category(cls: type, described: Projection) -> str:
    kept = aggregate_mark(cls)
    category = kept.model.category if kept is not None and isinstance(kept.model, EventSourced) else None
    if category is None:
        raise ConfigurationError(
            f"the projection {described.name!r} reads the events of {cls.__qualname__}, which has none",
            hint="put @event_sourced(...) above that class, or write categories=[...]",
        )
    return category


def _check_names(cls: type, handlers: Sequence[Endpoint], assembly: Assembly, endpoints: Sequence[Endpoint]) -> None:
    """Make sure that names that handlers are reached by are those of events that somebody knows."""
    reader = cast(EventStore, assembly.services[EventStore]).reader
    known = {name for one in endpoints for member in members_of(one.payload_type) for name in _names_of(member)}
    if isinstance(reader, EventTypes):
        known.update(reader.names)
    for endpoint in handlers:
        route = endpoint.route
        if route is not None and "*" not in route and route not in known:
            close = get_close_matches(route, known, 3)
            raise ConfigurationError(
                f"{endpoint.label} waits for the event {route!r}, which nobody here knows",
                tried=f"names of events: {', '.join(sorted(known)[:20]) or 'there are none'}",
                hint=f"did you mean {' or '.join(map(repr, close))}?"
                if close
                else "give the event @message_name, and its class to EventSourcing(events=[...])",
            )


def _names_of(cls: Any) -> tuple[str, ...]:
    return (name_of(cls), *aliases_of(cls)) if isinstance(cls, type) and may_be_event(cls) else ()


def _is_query_of(endpoint: Endpoint, cls: type) -> bool:
    return endpoint.owner is cls and endpoint.kind is Kind.QUERY


def _asks_for_state(endpoint: Endpoint) -> bool:
    return any(
        isinstance(marker, ProjectionState) or marker is ProjectionState
        for parameter in asked_for(endpoint)
        for marker in parameter.metadata
    )


def _asks_for_version(endpoint: Endpoint) -> bool:
    return any(parameter.annotation is ProjectionVersion for parameter in asked_for(endpoint))


def _answer_queries(assembly: Assembly, projectors: Sequence[Projector]) -> None:
    """Supply the live version, and its state, to queries on the class of a projection that ask for it."""
    asking = {
        endpoint.id: projector
        for endpoint in assembly.endpoints
        for projector in projectors
        if endpoint.kind is Kind.QUERY
        and endpoint.owner is projector.methods.handlers[0].owner
        and (_asks_for_state(endpoint) or _asks_for_version(endpoint))
    }
    if not asking:
        return

    async def look_up(call: Call, proceed: Proceed) -> Any:
        assert call.endpoint is not None
        projector = asking[call.endpoint.id]
        versions = await projector.store.versions(projector.name)
        mine = projector.checked(versions)
        live = [one for one in versions if one.condition is Condition.LIVE]
        if not live and not mine:
            mine = await projector.mine()
        record = next(iter([*live, *mine]), None)
        state, outer = call.scope.state, call.scope.state.get(RUN)
        if record is not None:
            state[RUN] = Run(record, projector.load_of(record, record.state))
        try:
            return await proceed(call)
        finally:
            state[RUN] = outer

    assembly.add_interceptor(look_up, stage=Stage.HANDLE, order=Order.STATE, when=lambda one: one.id in asking)


def _follow(projectors: Sequence[Projector]) -> None:
    """Run synchronous projections where events are appended or linked."""
    store = projectors[0].events

    async def appended(events: Sequence[StoredEvent], messages: Sequence[Message[Any]] | None) -> None:
        for projector in projectors:
            if projector.reads(events[0].stream):
                await projector.follow(events, messages)

    store.when_appended(appended, within=projectors[0].unit)


def _forget_deleted(projectors: Sequence[Projector]) -> None:
    """Let partitions begin anew when their stream is deleted: it may be begun anew, too, with version 1."""

    async def deleted(stream: str) -> None:
        for projector in projectors:
            if projector.reads(stream):
                await projector.forget(stream)

    projectors[0].events.when_deleted(deleted)


def _beginning(projectors: Sequence[Projector]) -> Callable[[], Any]:
    @asynccontextmanager
    async def begin() -> AsyncIterator[None]:
        """Begin synchronous projections: their `init` is to be no part of the transaction of a command."""
        for projector in projectors:
            try:
                await projector.mine()
                for one in await projector.store.versions(projector.name):
                    if one.condition is Condition.LIVE and not projector.is_mine(one):
                        logger.warning(
                            "the live version of the projection %s is of revision %s: what this process, with revision "
                            "%s, appends for it is left to processes with that code until they are switched",
                            projector.name,
                            one.revision,
                            projector.described.revision,
                        )
            except ChannelError as error:
                logger.warning("the projection %s begins with its first event: %s", projector.name, error)
        yield

    return begin
