"""From what was given to what runs: handlers found, plugins installed, everything wired, all problems told at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ecotone_fastapi.app.defaults import with_defaults
from ecotone_fastapi.core import bus
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock, TellsTime
from ecotone_fastapi.core.endpoint import Endpoint, discover
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.handler import Overrides
from ecotone_fastapi.core.injection import Injector
from ecotone_fastapi.core.plugin import Assembly, Plugin
from ecotone_fastapi.core.routing import Routing
from ecotone_fastapi.core.supervision import RunnableHealth
from ecotone_fastapi.messaging.asynchronous import Asynchronous, runs_in_consumer
from ecotone_fastapi.modelling.keeping import aggregate_mark
from ecotone_fastapi.modelling.projections import projection_mark
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.web.buses import CommandBus, EventBus, QueryBus, get_command_bus, get_event_bus, get_query_bus
from ecotone_fastapi.web.markers import FastAPIMarkers


def check_given(handlers: object, channels: object, plugins: object) -> None:
    """Tell newcomers what they have mixed up before it fails in the middle of something.

    Raises:
        ConfigurationError: One of these is no list.
    """
    for name, given, what in (
        ("handlers", handlers, "[OrderService]"),
        ("channels", channels, '[MemoryChannel("orders")]'),
        ("plugins", plugins, "[database]"),
    ):
        if isinstance(given, type | str | bytes) or not isinstance(given, Iterable):
            raise ConfigurationError(f"{name}={given!r} is no list", hint=f"write {what}")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an application consists of, as it was given.

    Args:
        handlers: Classes, instances and functions with handlers, modules and packages, or names of these.
        channels: Where messages of asynchronous handlers go.
        plugins: Databases and other extensions, without those that everybody has.
        services: What handlers ask for by type.
        clock: What time it is.
        overrides: Tells which dependencies are replaced at this moment.
        gateway: The way into messaging that is wired.

    Raises:
        ConfigurationError: Something is no channel and no plugin.
    """

    handlers: Sequence[object]
    channels: Sequence[Channel]
    plugins: Sequence[Plugin]
    services: Mapping[Any, object]
    clock: Clock
    overrides: Callable[[], Overrides]
    gateway: Gateway

    def __post_init__(self) -> None:
        for part in (*self.channels, *self.plugins):
            if isinstance(part, type | str):
                raise ConfigurationError(
                    f"{part!r} is no channel and no plugin",
                    hint="give an object: [MemoryChannel(...)], [SqlAlchemy(...)]",
                )


def assemble(parts: Parts, health: Callable[[], Sequence[RunnableHealth]]) -> Assembly:
    """Put an application together, and check it.

    Args:
        parts: What it consists of.
        health: Tells how its consumers are.

    Raises:
        ConfigurationError: Something is wrong with the wiring; all that was found is in it.
    """
    found = discover(parts.handlers)
    offers: dict[object, object] = {**_buses(parts.gateway), Clock: parts.clock}
    resolvers = [FastAPIMarkers()]
    assembly = Assembly(parts.gateway, resolvers=list(resolvers))
    early = Injector(resolvers=resolvers, offers=offers, services=parts.services)
    # Plugins want to see payload types; what only their resolvers can tell is found out after them.
    known = {one.id: one for one in _with_payload_types(found.endpoints, early, [])}
    assembly.endpoints = [known.get(one.id, one) for one in found.endpoints]
    for type_, provider in parts.services.items():
        assembly.add_service(type_, provider)
    assembly.add_service(Overview, Overview(assembly, health))
    problems = [*_asynchronous_projections(found.endpoints), *_objects_of_aggregates(found.instances)]
    for channel in parts.channels:
        try:
            assembly.add_channel(channel)
        except ConfigurationError as problem:
            problems.append(problem)
    for plugin in with_defaults(parts.plugins, parts.channels):
        assembly.plugins.append(plugin)
        try:
            plugin.install(assembly)
        except ConfigurationError as problem:
            problems += problem.problems or [problem]
    for part in (*parts.plugins, *parts.channels):
        if isinstance(part, TellsTime):
            part.use_clock(parts.clock)
    injector = Injector(
        resolvers=assembly.resolvers, offers=offers, services=assembly.services, instances=found.instances
    )
    problems += _wire(assembly, injector, parts.overrides)
    ConfigurationError.raise_all(problems)
    return assembly


def _wire(assembly: Assembly, injector: Injector, overrides: Callable[[], Overrides]) -> list[ConfigurationError]:
    problems: list[ConfigurationError] = []
    endpoints = assembly.endpoints = _with_payload_types(assembly.endpoints, injector, problems)
    try:
        routing = Routing(endpoints)
    except ConfigurationError as problem:
        # Without routes there is no gateway, but one start is to show everything that is wrong.
        unplanned = _unplannable(endpoints, injector, dict(overrides()))
        return [*problems, *(problem.problems or [problem]), *unplanned]
    problems += assembly.gateway.wire(
        routing=routing,
        injector=injector,
        asynchronous=runs_in_consumer,
        arounds=assembly.arounds,
        watchers=assembly.watchers,
        channels=assembly.channels,
        overrides=overrides,
    )
    for endpoint in endpoints:
        if runs_in_consumer(endpoint) and endpoint.payload_type is not None:
            try:
                assembly.gateway.conversion.check(endpoint.payload_type)
            except ConfigurationError as problem:
                problem.what = f"{endpoint.label} is asynchronous: {problem.what}"
                problems.append(problem)
    return problems


def _unplannable(
    endpoints: Iterable[Endpoint], injector: Injector, overrides: Overrides
) -> Iterable[ConfigurationError]:
    for endpoint in endpoints:
        try:
            injector.plan(endpoint, asynchronous=runs_in_consumer(endpoint), overrides=overrides)
        except ConfigurationError as problem:
            yield problem


def _buses(gateway: Gateway) -> dict[object, object]:
    return {
        **dict.fromkeys((CommandBus, bus.CommandBus, get_command_bus), CommandBus.of(gateway)),
        **dict.fromkeys((QueryBus, bus.QueryBus, get_query_bus), QueryBus.of(gateway)),
        **dict.fromkeys((EventBus, bus.EventBus, get_event_bus), EventBus.of(gateway)),
    }


def _objects_of_aggregates(instances: Iterable[type]) -> Iterable[ConfigurationError]:
    for cls in instances:
        if aggregate_mark(cls) is not None:
            yield ConfigurationError(
                f"{cls.__qualname__} is an aggregate, and an object of it was given",
                hint=f"give the class, Ecotone([{cls.__qualname__}]): each message loads the one that it is for",
            )


def _asynchronous_projections(endpoints: Iterable[Endpoint]) -> Iterable[ConfigurationError]:
    """Find handlers that are to be reached both by a channel and by the events of the store."""
    for endpoint in endpoints:
        if projection_mark(endpoint.owner) is not None and endpoint.find(Asynchronous) is not None:
            yield ConfigurationError(
                f"{endpoint.label} belongs to a projection, whose events do not come through a channel",
                hint='take @asynchronous away; @projection(..., mode="asynchronous") runs beside the application',
            )


def _with_payload_types(
    endpoints: Iterable[Endpoint], injector: Injector, problems: list[ConfigurationError]
) -> list[Endpoint]:
    """Return the endpoints with the types of their payloads; one whose type cannot be told is left out and reported."""
    described = []
    for endpoint in endpoints:
        try:
            described.append(replace(endpoint, payload_type=injector.payload_type(endpoint)))
        except ConfigurationError as problem:
            problems.append(problem)
    return described
