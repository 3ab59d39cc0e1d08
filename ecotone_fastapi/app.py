"""`Ecotone`: collect the handlers, install the plugins, check everything, open, run, close."""

import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
from fastapi import APIRouter, FastAPI

from ecotone_fastapi.adapters.memory import (
    MemoryAggregates,
    MemoryChannel,
    MemoryDeadLetters,
    MemoryDocuments,
    MemoryEvents,
    MemoryInbox,
    MemoryProjections,
    MemorySchedules,
    MemorySnapshots,
)
from ecotone_fastapi.core import bus
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock, SystemClock, TellsTime
from ecotone_fastapi.core.conversion import Conversion, Converter
from ecotone_fastapi.core.endpoint import Endpoint, discover
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.handler import Overrides
from ecotone_fastapi.core.injection import Injector
from ecotone_fastapi.core.plugin import Assembly, Limits, Plugin, Runnable
from ecotone_fastapi.core.routing import Routing
from ecotone_fastapi.core.supervision import RunnableHealth, Supervisor
from ecotone_fastapi.messaging.asynchronous import Asynchronous, AsynchronousHandlers, runs_in_consumer
from ecotone_fastapi.messaging.dead_letter import DeadLetterOffice, DeadLetters, DeadLetterStore
from ecotone_fastapi.messaging.deduplication import Deduplication, DeduplicationStore
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.outbox import Outbox
from ecotone_fastapi.messaging.protection import Consumers
from ecotone_fastapi.messaging.retries import InstantRetries
from ecotone_fastapi.messaging.scheduling import Scheduling
from ecotone_fastapi.messaging.transactions import Transactions
from ecotone_fastapi.modelling.aggregates import Aggregates
from ecotone_fastapi.modelling.documents import DocumentStore
from ecotone_fastapi.modelling.event_sourcing import EventSourcing
from ecotone_fastapi.modelling.event_store import EventStorage
from ecotone_fastapi.modelling.keeping import aggregate_mark
from ecotone_fastapi.modelling.projection_plugin import Projecting
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.modelling.projections import projection_mark
from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.modelling.snapshots import Background, SnapshotStore
from ecotone_fastapi.operations.asyncapi import asyncapi_document
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.web.buses import (
    CommandBus,
    EventBus,
    QueryBus,
    get_command_bus,
    get_event_bus,
    get_query_bus,
)
from ecotone_fastapi.web.correlation import (
    CORRELATION_HEADER,
    CorrelationMiddleware,
    answer_unexpected,
    check_header,
)
from ecotone_fastapi.web.edge import KEY, EcotoneMiddleware
from ecotone_fastapi.web.errors import add_error_handlers
from ecotone_fastapi.web.health import Health, health_router
from ecotone_fastapi.web.markers import FastAPIMarkers
from ecotone_fastapi.web.operations import checked, operations_router


class InBackground:
    """The plugin that lets models work behind channels: what they mark for one is an asynchronous handler.

    Args:
        in_line: Whether it runs in the caller instead, for tests.
    """

    def __init__(self, *, in_line: bool = False) -> None:
        self._in_line = in_line

    def install(self, assembly: Assembly) -> None:
        """Mark what is to be behind a channel."""
        if not self._in_line:
            assembly.endpoints = [
                replace(one, marks=(Asynchronous((background.channel,)), *one.marks))
                if (background := one.find(Background)) is not None
                else one
                for one in assembly.endpoints
            ]


_DEFAULTS: tuple[
    type[
        Outbox
        | EventSourcing
        | InBackground
        | Aggregates
        | Projecting
        | Transactions
        | Scheduling
        | AsynchronousHandlers
        | InstantRetries
        | Failures
        | DeadLetterOffice
        | Deduplication
        | Consumers
    ],
    ...,
] = (
    Outbox,  # the others are to see what stands in front of a broker's channel
    EventSourcing,  # what it takes out of the handlers is for nobody else
    InBackground,
    Aggregates,  # and which of two handlers of one message stays on the bus
    Projecting,  # and which handlers are reached by stored events alone
    Transactions,
    Scheduling,
    AsynchronousHandlers,
    InstantRetries,
    Failures,
    DeadLetterOffice,
    Deduplication,
    Consumers,
)


class Ecotone:
    """One application: its handlers, its channels, and what extends it.

    Nothing happens before it is started by `lifespan`, `install`, `running` or the first message: then everything is
    put together and checked at once.

    Args:
        handlers: Classes, instances and functions with handlers, modules and packages, or names of these.
        channels: Where messages of asynchronous handlers go; swapped in one line.
        plugins: Databases and other extensions. One of the default plugins (`Transactions`, `AsynchronousHandlers`,
            `InstantRetries`, `Failures`, `Deduplication`, `Outbox`) given here replaces the default.
        services: What handlers ask for by type: an object, or a class or function that makes it.
        converters: For types and media types that pydantic does not know.
        consumers: Which consumers the lifespan runs: all, none, or those of these channels.
        grace: Seconds that handlers under way get to finish at shutdown.
        clock: What time it is.
        overrides: Dependencies that are replaced, like `app.dependency_overrides`, which is used, too.
        operations: The dependencies of FastAPI that stand before everything that can be operated under
            `router` + `/operations`: `[Depends(require_admin)]`. They answer 401 or 403 to those who may not. Without
            any, nobody may.

    Example:
        >>> from ecotone_fastapi import query_handler
        >>> class Greeter:
        ...     @query_handler("greet")
        ...     async def greet(self, name: str) -> str:
        ...         return f"Hello {name}"
        >>> async with Ecotone([Greeter]).running() as ecotone:
        ...     print(await ecotone.query_bus.ask("Ada", to="greet"))
        Hello Ada
    """

    def __init__(
        self,
        handlers: Iterable[object],
        *,
        channels: Iterable[Channel] = (),
        plugins: Iterable[Plugin] = (),
        services: Mapping[Any, object] | None = None,
        converters: Iterable[Converter] = (),
        consumers: bool | Sequence[str] = True,
        grace: float = 30.0,
        clock: Clock | None = None,
        overrides: Overrides | None = None,
        operations: Iterable[object] | None = None,
    ) -> None:
        _check_given(handlers, channels, plugins)
        self._handlers: tuple[object, ...] = tuple(handlers)
        self._channels: tuple[Channel, ...] = tuple(channels)
        self._plugins: tuple[Plugin, ...] = tuple(plugins)
        for part in (*self._channels, *self._plugins):
            if isinstance(part, type | str):
                raise ConfigurationError(
                    f"{part!r} is no channel and no plugin",
                    hint="give an object: [MemoryChannel(...)], [SqlAlchemy(...)]",
                )
        self._services: dict[Any, object] = dict(services or {})
        self._clock: Clock = clock or SystemClock()
        self._consumers: bool | Sequence[str] = consumers
        self._grace: float = grace
        self._overrides: Overrides = overrides or {}
        self._operations: tuple[object, ...] | None = checked(operations)
        self._gateway: Gateway = Gateway(Conversion(converters), self._clock)
        self._supervisor: Supervisor | None = None
        self._preparing: threading.RLock = threading.RLock()
        self._app: FastAPI | None = None

    # Putting together

    def prepare(self) -> Gateway:
        """Put everything together and check it, if that has not happened yet.

        Raises:
            ConfigurationError: Something is wrong with the wiring; all that was found is in it.
        """
        self._prepared()
        return self._gateway

    @property
    def assembly(self) -> Assembly:
        """What everything was put together to, for tools that look at it."""
        return self._prepared().assembly

    def _prepared(self) -> Supervisor:
        if self._supervisor is None:
            with self._preparing:  # FastAPI makes `Annotated[CommandBus, Depends()]` in a thread
                if self._supervisor is None:
                    self._supervisor = Supervisor(self._assemble(), self._plugins)
        return self._supervisor

    def _assemble(self) -> Assembly:
        found = discover(self._handlers)
        buses: dict[object, object] = self._buses()
        resolvers = [FastAPIMarkers()]
        assembly = Assembly(self._gateway, resolvers=list(resolvers))
        early = Injector(resolvers=resolvers, offers=buses, services=self._services)
        # Plugins want to see payload types; what only their resolvers can tell is found out after them.
        known = {one.id: one for one in _with_payload_types(found.endpoints, early, [])}
        assembly.endpoints = [known.get(one.id, one) for one in found.endpoints]
        for type_, provider in self._services.items():
            assembly.add_service(type_, provider)
        assembly.add_service(Overview, Overview(assembly, self._health_of_runnables))
        problems = [*_asynchronous_projections(found.endpoints), *_objects_of_aggregates(found.instances)]
        for channel in self._channels:
            try:
                assembly.add_channel(channel)
            except ConfigurationError as problem:
                problems.append(problem)
        for plugin in self._with_defaults():
            assembly.plugins.append(plugin)
            try:
                plugin.install(assembly)
            except ConfigurationError as problem:
                problems += problem.problems or [problem]
        for part in (*self._plugins, *self._channels):
            if isinstance(part, TellsTime):
                part.use_clock(self._clock)
        injector = Injector(
            resolvers=assembly.resolvers, offers=buses, services=assembly.services, instances=found.instances
        )
        problems += self._wire(assembly, injector)
        ConfigurationError.raise_all(problems)
        return assembly

    def _with_defaults(self) -> Iterable[Plugin]:
        # The defaults look at the services and channels that all others have brought: they come last, given or not.
        yield from (plugin for plugin in self._plugins if not isinstance(plugin, _DEFAULTS))
        yield _InMemory(self._channels)
        for default in _DEFAULTS:
            yield from [plugin for plugin in self._plugins if isinstance(plugin, default)] or [default()]

    def _wire(self, assembly: Assembly, injector: Injector) -> list[ConfigurationError]:
        problems: list[ConfigurationError] = []
        endpoints = assembly.endpoints = _with_payload_types(assembly.endpoints, injector, problems)
        try:
            routing = Routing(endpoints)
        except ConfigurationError as problem:
            # Without routes there is no gateway, but one start is to show everything that is wrong.
            unplanned = self._unplannable(endpoints, injector)
            return [*problems, *(problem.problems or [problem]), *unplanned]
        problems += self._gateway.wire(
            routing=routing,
            injector=injector,
            asynchronous=runs_in_consumer,
            arounds=assembly.arounds,
            watchers=assembly.watchers,
            channels=assembly.channels,
            overrides=self._current_overrides,
        )
        for endpoint in endpoints:
            if runs_in_consumer(endpoint) and endpoint.payload_type is not None:
                try:
                    self._gateway.conversion.check(endpoint.payload_type)
                except ConfigurationError as problem:
                    problem.what = f"{endpoint.label} is asynchronous: {problem.what}"
                    problems.append(problem)
        return problems

    def _unplannable(self, endpoints: Iterable[Endpoint], injector: Injector) -> Iterable[ConfigurationError]:
        for endpoint in endpoints:
            try:
                injector.plan(
                    endpoint, asynchronous=runs_in_consumer(endpoint), overrides=dict(self._current_overrides())
                )
            except ConfigurationError as problem:
                yield problem

    def _current_overrides(self) -> Overrides:
        of_app = self._app.dependency_overrides if self._app is not None else None
        if not of_app:
            return self._overrides
        return {**self._overrides, **of_app} if self._overrides else of_app

    def _buses(self) -> dict[object, object]:
        commands, queries = CommandBus.of(self._gateway), QueryBus.of(self._gateway)
        events = EventBus.of(self._gateway)
        return {
            **dict.fromkeys((CommandBus, bus.CommandBus, get_command_bus), commands),
            **dict.fromkeys((QueryBus, bus.QueryBus, get_query_bus), queries),
            **dict.fromkeys((EventBus, bus.EventBus, get_event_bus), events),
            Clock: self._clock,
        }

    # The buses, for scripts and tests

    @property
    def command_bus(self) -> CommandBus:
        """The command bus."""
        return CommandBus.of(self.prepare())

    @property
    def query_bus(self) -> QueryBus:
        """The query bus."""
        return QueryBus.of(self.prepare())

    @property
    def event_bus(self) -> EventBus:
        """The event bus."""
        return EventBus.of(self.prepare())

    @property
    def projections(self) -> Projections:
        """The projections, and what can be done about them: `await ecotone.projections.rebuild("balances")`."""
        return cast("Projections", self.assembly.services[Projections])

    @property
    def dead_letters(self) -> DeadLetters:
        """What was parked, and what can be done about it."""
        return cast("DeadLetters", self.assembly.services[DeadLetters])

    @property
    def consumers(self) -> Consumers:
        """Lets consumers pause and resume: `await ecotone.consumers.pause("notifications")`."""
        return next(one for one in self.assembly.plugins if isinstance(one, Consumers))

    @property
    def overview(self) -> Overview:
        """How everything is: `(await ecotone.overview.report()).dead_letters.count`."""
        return cast("Overview", self.assembly.services[Overview])

    def asyncapi(self, *, title: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return the AsyncAPI 3 document of all channels and of the messages that go through them.

        Args:
            title: The name of the application; unless told, that of the FastAPI application that it serves.
            version: Its version; unless told, that of the FastAPI application.

        Raises:
            ConfigurationError: Something is wrong with the wiring.

        Example:
            >>> Ecotone([]).asyncapi(title="Shop", version="1.0.0")["info"]["version"]
            '1.0.0'
        """
        app = self._app
        return asyncapi_document(
            self.assembly,
            title=title or (app.title if app is not None else "Ecotone"),
            version=version or (app.version if app is not None else "0.1.0"),
        )

    # In FastAPI

    @property
    def router(self) -> APIRouter:
        """The router with health and operations, to be included under a prefix of your choice."""
        router = health_router(self.health)
        router.include_router(operations_router(self, self._operations), prefix="/operations")
        return router

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Serve this application while it runs: `FastAPI(lifespan=ecotone.lifespan)`.

        Within a lifespan of your own, write `async with ecotone.lifespan(app): yield`. Servers that are down do not
        prevent the start; readiness says so. For correlation ids by HTTP, `app.add_middleware(CorrelationMiddleware)`.

        Raises:
            ConfigurationError: Something is wrong with the wiring, a server is not prepared, or it is served already.

        Example:
            >>> ecotone = Ecotone([])
            >>> app = FastAPI(lifespan=ecotone.lifespan)
            >>> app.include_router(ecotone.router, prefix="/ecotone")
        """
        self._serve(app)
        try:
            async with self._started():
                yield
        finally:
            self._app = None
            delattr(app.state, KEY)

    def install(
        self,
        app: FastAPI,
        *,
        prefix: str | None = "/ecotone",
        error_handlers: bool = True,
        correlation_header: str | None = CORRELATION_HEADER,
    ) -> None:
        """Do all of it for an application: middleware, lifespan, router and error handlers.

        Its own lifespan is kept, and stands around this one. Must be called before the first request. Applications
        that are mounted into this one use the same buses, unless they have an Ecotone of their own; start that one in
        the lifespan of this application with `running()`, because lifespans of mounted applications are never run.

        Args:
            app: The application.
            prefix: Where the router is included; `None` leaves it out.
            error_handlers: Whether errors of messages are answered with their HTTP status.
            correlation_header: The header by which the correlation id comes in and goes out, see
                `CorrelationMiddleware`; `None` leaves it out.

        Raises:
            ConfigurationError: The application has an Ecotone, this one has an application, or it is too late.

        Example:
            >>> app = FastAPI()
            >>> ecotone = Ecotone([])
            >>> ecotone.install(app)
            >>> app.state.ecotone is ecotone
            True
        """
        self._check_free(app)
        if correlation_header is not None:
            check_header(correlation_header)
        try:
            app.add_middleware(EcotoneMiddleware, ecotone=self)
            if correlation_header is not None:
                app.add_middleware(CorrelationMiddleware, header=correlation_header)
        except RuntimeError as error:
            raise ConfigurationError(
                "install(app) comes too late: the application has been started",
                hint="call it where the application is made, before the first request",
            ) from error
        self._serve(app)

        @asynccontextmanager
        async def started(_: FastAPI) -> AsyncIterator[None]:
            async with self._started():
                yield

        app.include_router(APIRouter(lifespan=started))
        if prefix is not None:
            app.include_router(self.router, prefix=prefix)
        if error_handlers:
            add_error_handlers(app)
            if correlation_header is not None and not {500, Exception} & app.exception_handlers.keys():
                app.add_exception_handler(Exception, answer_unexpected)

    def _serve(self, app: FastAPI) -> None:
        self._check_free(app)
        self._app = app
        setattr(app.state, KEY, self)

    def _check_free(self, app: FastAPI) -> None:
        if self._app is not None:
            served = "this" if self._app is app else "another"
            raise ConfigurationError(
                f"this Ecotone serves {served} application already",
                hint="use install(app) or its lifespan, once, and make one Ecotone for each application",
            )
        if getattr(app.state, KEY, None) is not None:
            raise ConfigurationError("another Ecotone serves this application already", hint="use one of them")

    async def health(self) -> Health:
        """Report on every consumer of this process, and on every server that can be asked."""
        supervisor = self._supervisor
        if supervisor is None:
            return Health(running=False)
        return Health(supervisor.running, supervisor.health(), await supervisor.check())

    def _health_of_runnables(self) -> Sequence[RunnableHealth]:
        return self._supervisor.health() if self._supervisor is not None else ()

    # Running

    @asynccontextmanager
    async def running(
        self, *, consumers: bool | Sequence[str] | None = None, patient: bool | None = None
    ) -> AsyncIterator["Ecotone"]:
        """Open everything, run the consumers beside the block, and close everything in the end.

        With consumers, a server that is down does not prevent the start: its consumers wait for it, and readiness says
        so. Without, it is an error.

        Args:
            consumers: Which consumers run: all, none, or those with these names. What was given to `Ecotone` unless
                told otherwise.
            patient: Whether a server that is down is waited for meanwhile; by default, when there are consumers.

        Raises:
            ConfigurationError: Something is wrong with the wiring, or a server is not prepared.
            ChannelError: Without patience: a server cannot be reached.

        Example:
            >>> async with Ecotone([]).running(consumers=False) as ecotone:
            ...     print((await ecotone.health()).ready)
            True
        """
        wanted = self._consumers if consumers is None else consumers
        async with self._started(wanted, patient=bool(wanted) if patient is None else patient):
            yield self

    @asynccontextmanager
    async def _started(
        self, consumers: bool | Sequence[str] | None = None, *, patient: bool = True
    ) -> AsyncIterator[None]:
        supervisor = self._prepared()
        chosen = self._chosen(self._consumers if consumers is None else consumers)
        async with supervisor.open(chosen, patient=patient), supervisor.run_beside(chosen, grace=self._grace):
            yield

    async def work(self, consumers: bool | Sequence[str] = True, *, limits: Limits | None = None) -> dict[str, int]:
        """Open everything, run consumers until each of them has reached a limit or is told to stop, and close.

        What a process of its own does. A server that is down is waited for, as in `running`.

        Args:
            consumers: Which consumers run: all, or those with these names.
            limits: When to end; for each consumer on its own. Without it, when the caller is cancelled.

        Returns:
            How many messages each consumer has handled well.

        Raises:
            ConfigurationError: Something is wrong with the wiring, or a server is not prepared.
        """
        supervisor, chosen = self._prepared(), self._chosen(consumers)
        limits = limits or Limits(grace=self._grace)
        async with supervisor.open(chosen, patient=True):
            return await supervisor.run(chosen, replace(limits, stop=limits.stop or anyio.Event()))

    async def run(self, name: str, limits: Limits | None = None) -> int:
        """Run one consumer or other runnable until a limit is reached; return how many messages were handled well.

        To be called inside `running(consumers=False)`.

        Args:
            name: The name of its channel, or its own.
            limits: When to end.

        Raises:
            ConfigurationError: There is none with this name.
        """
        return await self._runnable(name).run(limits or Limits())

    def _runnable(self, name: str) -> Runnable:
        runnables = self.assembly.runnables
        if name not in runnables:
            raise ConfigurationError(
                f"there is no consumer {name!r}",
                tried=", ".join(sorted(runnables)) or "there are none",
                hint="a consumer is named like its channel",
            )
        return runnables[name]

    def _chosen(self, consumers: bool | Sequence[str]) -> list[Runnable]:
        if isinstance(consumers, bool):
            return list(self.assembly.runnables.values()) if consumers else []
        names = [consumers] if isinstance(consumers, str) else dict.fromkeys(consumers)
        return [self._runnable(name) for name in names]


class _InMemory:
    """What is kept in memory when nothing better was given, and nothing that must last longer exists."""

    def __init__(self, channels: Iterable[Channel]) -> None:
        # What stands in front of a channel by now would hide it.
        self.schedules: MemorySchedules = MemorySchedules(one for one in channels if isinstance(one, MemoryChannel))
        self.aggregate_stores: Sequence[AggregateStore] = (MemoryAggregates(),)

    def install(self, assembly: Assembly) -> None:
        if not any(channel.capabilities.durable for channel in assembly.channels.values()):
            assembly.add_service(DeadLetterStore, MemoryDeadLetters())
        assembly.add_service(DeduplicationStore, MemoryInbox(assembly.gateway.clock))
        assembly.add_service(EventStorage, MemoryEvents(assembly.gateway.clock))
        assembly.add_service(ProjectionStore, MemoryProjections(assembly.gateway.clock))
        assembly.add_service(SnapshotStore, MemorySnapshots())
        documents = DocumentStore(MemoryDocuments(assembly.gateway.clock), assembly.gateway.conversion)
        assembly.add_service(DocumentStore, documents)
        self.schedules.watch(one for one in assembly.channels.values() if isinstance(one, MemoryChannel))


def _objects_of_aggregates(instances: Iterable[type]) -> Iterable[ConfigurationError]:
    for cls in instances:
        if aggregate_mark(cls) is not None:
            yield ConfigurationError(
                f"{cls.__qualname__} is an aggregate, and an object of it was given",
                hint=f"give the class, Ecotone([{cls.__qualname__}]): each message loads the one that it is for",
            )


def _check_given(handlers: object, channels: object, plugins: object) -> None:
    """Tell newcomers what they have mixed up before it fails in the middle of something."""
    for name, given, what in (
        ("handlers", handlers, "[OrderService]"),
        ("channels", channels, '[MemoryChannel("orders")]'),
        ("plugins", plugins, "[database]"),
    ):
        if isinstance(given, type | str | bytes) or not isinstance(given, Iterable):
            raise ConfigurationError(f"{name}={given!r} is no list", hint=f"write {what}")


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
