"""`Ecotone`: collect the handlers, install the plugins, check everything, open, run, close."""

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI

from ecotone_fastapi.adapters.memory import MemoryDeadLetters
from ecotone_fastapi.core import bus
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock, SystemClock, TellsTime
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.conversion import Conversion, Converter
from ecotone_fastapi.core.endpoint import Endpoint, discover
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError
from ecotone_fastapi.core.gateway import Gateway, Overrides
from ecotone_fastapi.core.injection import Injector
from ecotone_fastapi.core.plugin import Assembly, HealthCheck, Limits, Plugin, Runnable
from ecotone_fastapi.core.routing import Routing
from ecotone_fastapi.messaging.asynchronous import AsynchronousHandlers, runs_in_consumer
from ecotone_fastapi.messaging.dead_letter import DeadLetterStore
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.transactions import Transactions
from ecotone_fastapi.web.buses import (
    CommandBus,
    EventBus,
    QueryBus,
    get_command_bus,
    get_event_bus,
    get_query_bus,
)
from ecotone_fastapi.web.edge import KEY, EcotoneMiddleware
from ecotone_fastapi.web.errors import add_error_handlers
from ecotone_fastapi.web.health import Condition, Health, RunnableHealth, health_router
from ecotone_fastapi.web.markers import FastAPIMarkers

logger = logging.getLogger("ecotone_fastapi")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # seconds between two attempts of a consumer that fails
_DEFAULTS: tuple[Callable[[], Plugin], ...] = (Transactions, AsynchronousHandlers, Failures)


class Ecotone:
    """One application: its handlers, its channels, and what extends it.

    Nothing happens before it is started by `lifespan`, `install`, `running` or the first message: then everything is
    put together and checked at once.

    Args:
        handlers: Classes, instances and functions with handlers, modules and packages, or names of these.
        channels: Where messages of asynchronous handlers go; swapped in one line.
        plugins: Databases and other extensions. One of the default plugins (`Transactions`, `AsynchronousHandlers`,
            `Failures`) given here replaces the default.
        services: What handlers ask for by type: an object, or a class or function that makes it.
        converters: For types and media types that pydantic does not know.
        consumers: Which consumers the lifespan runs: all, none, or those of these channels.
        grace: Seconds that handlers under way get to finish at shutdown.
        clock: What time it is.
        overrides: Dependencies that are replaced, like `app.dependency_overrides`, which is used, too.

    Example:
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
    ) -> None:
        self._handlers: tuple[object, ...] = tuple(handlers)
        self._channels: tuple[Channel, ...] = tuple(channels)
        self._plugins: tuple[Plugin, ...] = tuple(plugins)
        self._services: dict[Any, object] = dict(services or {})
        self._clock: Clock = clock or SystemClock()
        self._consumers: bool | Sequence[str] = consumers
        self._grace: float = grace
        self._overrides: Overrides = overrides or {}
        self._gateway: Gateway = Gateway(Conversion(converters), self._clock)
        self._assembly: Assembly | None = None
        self._app: FastAPI | None = None
        self._opened: dict[str, bool] = {}
        self._health: dict[str, RunnableHealth] = {}

    # Putting together

    def prepare(self) -> Gateway:
        """Put everything together and check it, if that has not happened yet.

        Raises:
            ConfigurationError: Something is wrong with the wiring; all that was found is in it.
        """
        if self._assembly is None:
            self._assembly = self._assemble()
        return self._gateway

    @property
    def assembly(self) -> Assembly:
        """What everything was put together to, for tools that look at it."""
        self.prepare()
        assert self._assembly is not None
        return self._assembly

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
        for channel in self._channels:
            assembly.add_channel(channel)
        problems: list[ConfigurationError] = []
        for plugin in self._with_defaults():
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
        yield from self._plugins
        if not any(channel.capabilities.durable for channel in self._channels):
            yield _InMemory()
        given = {type(plugin) for plugin in self._plugins}
        yield from (default() for default in _DEFAULTS if default not in given)

    def _wire(self, assembly: Assembly, injector: Injector) -> list[ConfigurationError]:
        problems: list[ConfigurationError] = []
        endpoints = assembly.endpoints = _with_payload_types(assembly.endpoints, injector, problems)
        try:
            routing = Routing(endpoints)
        except ConfigurationError as problem:
            return [*problems, *(problem.problems or [problem])]
        problems += self._gateway.wire(
            routing=routing,
            injector=injector,
            asynchronous=self._runs_in_consumer,
            arounds=assembly.arounds,
            channels=assembly.channels,
            overrides=self._current_overrides,
        )
        for endpoint in endpoints:
            if self._runs_in_consumer(endpoint) and endpoint.payload_type is not None:
                try:
                    self._gateway.conversion.check(endpoint.payload_type)
                except ConfigurationError as problem:
                    problem.what = f"{endpoint.label} is asynchronous: {problem.what}"
                    problems.append(problem)
        return problems

    def _runs_in_consumer(self, endpoint: Endpoint) -> bool:
        return runs_in_consumer(endpoint)

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

    # In FastAPI

    @property
    def router(self) -> APIRouter:
        """The router with the health endpoints, to be included under a prefix of your choice."""
        return health_router(self.health)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Serve this application while it runs: `FastAPI(lifespan=ecotone.lifespan)`.

        Within a lifespan of your own, write `async with ecotone.lifespan(app): yield`.
        """
        self._serve(app)
        async with self.running():
            yield

    def install(self, app: FastAPI, *, prefix: str = "/ecotone", error_handlers: bool = True) -> None:
        """Do all of it for an application: middleware, lifespan, health router and error handlers.

        Its own lifespan is kept, and stands around this one. Must be called before the first request.

        Args:
            app: The application.
            prefix: Where the router is included.
            error_handlers: Whether errors of messages are answered with their HTTP status.

        Raises:
            ConfigurationError: The application, or this object, is installed already.
        """
        if getattr(app.state, KEY, None) is not None:
            raise ConfigurationError("an Ecotone is installed in this application already", hint="install one of them")
        self._serve(app)

        @asynccontextmanager
        async def started(_: FastAPI) -> AsyncIterator[None]:
            async with self.running():
                yield

        app.add_middleware(EcotoneMiddleware, ecotone=self)
        app.include_router(APIRouter(lifespan=started))
        app.include_router(self.router, prefix=prefix)
        if error_handlers:
            add_error_handlers(app)

    def _serve(self, app: FastAPI) -> None:
        if self._app is not None and self._app is not app:
            raise ConfigurationError(
                "this Ecotone serves another application already", hint="make one Ecotone for each application"
            )
        self._app = app
        setattr(app.state, KEY, self)

    async def health(self) -> Health:
        """Report on every consumer of this process, and on every server that can be asked."""
        servers: dict[str, str | None] = {}
        for part in (*self._plugins, *self._channels):
            if isinstance(part, HealthCheck):
                try:
                    with anyio.fail_after(5):
                        await part.check()
                    servers[part.name] = None
                except Exception as error:
                    servers[part.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return Health(tuple(self._health.values()), servers)

    # Running

    @asynccontextmanager
    async def running(self, *, consumers: bool | Sequence[str] | None = None) -> AsyncIterator["Ecotone"]:
        """Open everything, run the consumers beside the block, and close everything in the end.

        With consumers, a server that is down does not prevent the start: its consumers wait for it, and readiness says
        so. Without, it is an error.

        Args:
            consumers: Which consumers run: all, none, or those with these names. What was given to `Ecotone` unless
                told otherwise.

        Raises:
            ConfigurationError: Something is wrong with the wiring, or a server is not prepared.
            ChannelError: Without consumers: a server cannot be reached.
        """
        assembly = self.assembly
        chosen = self._chosen(self._consumers if consumers is None else consumers)
        failure: BaseException | None = None
        async with AsyncExitStack() as stack:
            for lifespan in assembly.lifespans:
                await stack.enter_async_context(lifespan())
            for channel in assembly.channels.values():
                stack.push_async_callback(self._close, channel)
                await self._open(channel, patient=bool(chosen))
            async with anyio.create_task_group() as tasks:
                stop = anyio.Event()
                for runnable in chosen:
                    health = self._health[runnable.name] = RunnableHealth(runnable.name)
                    tasks.start_soon(self._supervise, runnable, health, stop)
                try:
                    yield self
                except BaseException as error:
                    # Raised again outside the task group, which would wrap it into an ExceptionGroup.
                    failure = error
                stop.set()
        if failure is not None:
            raise failure

    async def run(self, name: str, limits: Limits = Limits()) -> int:
        """Run one consumer or other runnable until a limit is reached; return how many messages were handled well.

        To be called inside `running(consumers=False)`.

        Args:
            name: The name of its channel, or its own.
            limits: When to end.

        Raises:
            ConfigurationError: There is none with this name.
        """
        return await self._runnable(name).run(limits)

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
        return [self._runnable(name) for name in consumers]

    async def _open(self, channel: Channel, *, patient: bool) -> None:
        try:
            await channel.open()
        except ChannelError as error:
            if not patient:
                raise
            logger.warning("channel %s cannot be opened yet: %s", channel.name, error)
            self._opened[channel.name] = False
        else:
            self._opened[channel.name] = True

    async def _close(self, channel: Channel) -> None:
        try:
            await channel.close()
        except ChannelError as error:
            logger.warning("channel %s was not closed properly: %s", channel.name, error)

    async def _supervise(self, runnable: Runnable, health: RunnableHealth, stop: anyio.Event) -> None:
        """Keep a runnable running: one that fails pauses, longer from time to time, and tries again."""
        limits = Limits(stop=stop, grace=self._grace)
        while not stop.is_set():
            started = anyio.current_time()
            try:
                if isinstance(runnable, Consumer) and not self._opened.get(runnable.channel.name, True):
                    await runnable.channel.open()
                    self._opened[runnable.channel.name] = True
                health.condition = Condition.RUNNING
                await runnable.run(limits)
                health.condition = Condition.STOPPED if stop.is_set() else Condition.ENDED
                return
            except Exception as error:
                if anyio.current_time() - started > _LONGEST_PAUSE:
                    health.failures = 0
                health.condition = Condition.WAITING
                health.failures += 1
                health.last_error = f"{type(error).__name__}: {error}".splitlines()[0]
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (health.failures - 1)) * random.uniform(0.8, 1.2)
                logger.warning(
                    "consumer %s failed, again in %.1f s", runnable.name, pause, exc_info=_unless_known(error)
                )
                with anyio.move_on_after(pause):
                    await stop.wait()
        health.condition = Condition.STOPPED


def _unless_known(error: Exception) -> Exception | None:
    """A lost server needs no traceback; everything else does."""
    return None if isinstance(error, ChannelError) else error


class _InMemory:
    """What is kept in memory when nothing better was given, and nothing that must last longer exists."""

    def install(self, assembly: Assembly) -> None:
        assembly.add_service(DeadLetterStore, MemoryDeadLetters())


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
