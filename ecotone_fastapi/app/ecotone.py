"""`Ecotone`: collect the handlers, install the plugins, check everything, open, run, close."""

import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
from fastapi import APIRouter, FastAPI

from ecotone_fastapi.app.assembling import Parts, assemble, check_given
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.conversion import Conversion, Converter
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.handler import Overrides
from ecotone_fastapi.core.plugin import Assembly, Limits, Plugin, Runnable
from ecotone_fastapi.core.supervision import RunnableHealth, Supervisor
from ecotone_fastapi.messaging.dead_letter import DeadLetters
from ecotone_fastapi.messaging.protection import Consumers
from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.operations.asyncapi import asyncapi_document
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.web.buses import CommandBus, EventBus, QueryBus
from ecotone_fastapi.web.correlation import CORRELATION_HEADER
from ecotone_fastapi.web.health import Health, health_router
from ecotone_fastapi.web.operations import checked, operations_router
from ecotone_fastapi.web.serving import Serving


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
        check_given(handlers, channels, plugins)
        clock = clock or SystemClock()
        self._serving: Serving = Serving(self, overrides or {})
        self._parts: Parts = Parts(
            handlers=tuple(handlers),
            channels=tuple(channels),
            plugins=tuple(plugins),
            services=dict(services or {}),
            clock=clock,
            overrides=self._serving.overrides,
            gateway=Gateway(Conversion(converters), clock),
        )
        self._consumers: bool | Sequence[str] = consumers
        self._grace: float = grace
        self._operations: tuple[object, ...] | None = checked(operations)
        self._supervisor: Supervisor | None = None
        self._preparing: threading.RLock = threading.RLock()

    # Putting together

    def prepare(self) -> Gateway:
        """Put everything together and check it, if that has not happened yet.

        Raises:
            ConfigurationError: Something is wrong with the wiring; all that was found is in it.
        """
        self._prepared()
        return self._parts.gateway

    @property
    def assembly(self) -> Assembly:
        """What everything was put together to, for tools that look at it."""
        return self._prepared().assembly

    def _prepared(self) -> Supervisor:
        if self._supervisor is None:
            with self._preparing:  # FastAPI makes `Annotated[CommandBus, Depends()]` in a thread
                if self._supervisor is None:
                    self._supervisor = Supervisor(assemble(self._parts, self._health_of_runnables), self._parts.plugins)
        return self._supervisor

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
        app = self._serving.app
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
        async with self._serving.during(app), self._started():
            yield

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
        self._serving.install(app, self._started, error_handlers=error_handlers, correlation_header=correlation_header)
        if prefix is not None:
            app.include_router(self.router, prefix=prefix)

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
