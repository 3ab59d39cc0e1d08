"""What extends the kernel, and where: eleven sockets, used by our own features and by the user's alike.

>>> class Greeting:
...     def install(self, assembly):
...         async def greet(call, proceed):
...             print("hello")
...             return await proceed(call)
...
...         assembly.add_interceptor(greet, stage=Stage.HANDLE)
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import anyio

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.pipeline import Around, Interceptor, Order, Stage
from ecotone_fastapi.core.sending import unknown_channel
from ecotone_fastapi.core.suppliers import ParameterResolver
from ecotone_fastapi.core.watching import Watcher


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run ends. Without any limit it runs until it is told to stop.

    Args:
        messages: After so many messages that were handled well; failures do not count.
        seconds: After this time.
        memory: When the process has grown beyond so many megabytes.
        until_empty: When nothing is left that could be handled now.
        stop: When this event is set.
        grace: Seconds that handlers under way get to finish when the run ends; then they are cancelled and their
            messages given back.
    """

    messages: int | None = None
    seconds: float | None = None
    memory: int | None = None
    until_empty: bool = False
    stop: anyio.Event | None = None
    grace: float = 30.0


class Runnable(Protocol):
    """Something that runs beside the application: a consumer, a projection, a relay, a schedule."""

    @property
    def name(self) -> str:
        """The name by which the command line knows it."""
        ...

    async def run(self, limits: Limits) -> int:
        """Run until a limit is reached; return how many messages were handled well.

        May be called again after it has ended. Cancelling it gives back what was not finished.

        Raises:
            ChannelError: Its channel was lost; running it again later is worth it.
        """
        ...


@runtime_checkable
class HealthCheck(Protocol):
    """A channel or plugin that can tell whether its server answers."""

    @property
    def name(self) -> str:
        """How it is called in a report."""
        ...

    async def check(self) -> None:
        """Ask the server.

        Raises:
            ChannelError: It does not answer.
        """
        ...


@runtime_checkable
class Migratable(Protocol):
    """A plugin that keeps tables or the like on a server. `ecotone migrate` brings them up to date.

    It is asked while the application does not run, and lets go of what it has opened for the answer.
    """

    @property
    def name(self) -> str:
        """How it is called in a report."""
        ...

    async def missing(self) -> Sequence[str]:
        """Return what is missing or too old, line by line; change nothing.

        Raises:
            ChannelError: The server does not answer.
        """
        ...

    async def migrate(self) -> Sequence[str]:
        """Create what is missing and change what is old; return what was done, line by line. Safe to repeat.

        Raises:
            ChannelError: The server does not answer.
        """
        ...

    def migration_sql(self) -> str:
        """Return the statements that create everything, for people who run them by hand; asks no server."""
        ...


class Plugin(Protocol):
    """Extends an application when it is put together."""

    def install(self, assembly: "Assembly") -> None:
        """Read what there is and plug in what is new. Runs once, before anything is opened or sent."""
        ...


Provider = object
"""An object that is supplied as it is, or a class or function that makes it."""

Lifespan = Callable[[], AbstractAsyncContextManager[object]]
"""Opens something for as long as the application runs."""


@dataclass
class Assembly:
    """An application that is being put together.

    Attributes:
        gateway: The way in; to be used at run time, from a closure.
        endpoints: The handlers found so far; read them, look at their marks.
        services: What is supplied by type so far.
        channels: The channels so far, by name.
        plugins: The plugins that were installed so far; the last one is being installed.
    """

    gateway: Gateway
    endpoints: list[Endpoint] = field(default_factory=list)
    services: dict[object, Provider] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=dict)
    resolvers: list[ParameterResolver] = field(default_factory=list)
    arounds: list[Around] = field(default_factory=list)
    runnables: dict[str, Runnable] = field(default_factory=dict)
    lifespans: list[Lifespan] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    beginnings: list[Callable[[], object]] = field(default_factory=list)

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Add a handler."""
        self.endpoints.append(endpoint)

    def add_interceptor(
        self,
        interceptor: Interceptor,
        *,
        stage: Stage,
        order: int = Order.USER,
        when: Callable[[Endpoint], object] | None = None,
    ) -> None:
        """Put an interceptor around a stage.

        Args:
            interceptor: `async def interceptor(call, proceed)`.
            stage: Where it stands.
            order: How far out, see `Order`; those with the same order stand as they were added, first outermost.
            when: For which endpoints; only in the HANDLE stage. Without it, for all.

        Raises:
            ConfigurationError: `when` is given for another stage.
        """
        if when is not None and stage is not Stage.HANDLE:
            raise ConfigurationError(
                f"an interceptor of the {stage} stage has no endpoint to choose by",
                hint="leave when= out and look at the call, or use stage=Stage.HANDLE",
            )
        self.arounds.append(Around(interceptor, stage, order, when, self.plugins[-1] if self.plugins else None))

    def add_service(self, type_: object, provider: Provider) -> None:
        """Supply parameters of this type. The first one wins, so users beat defaults."""
        self.services.setdefault(type_, provider)

    def add_resolver(self, resolver: ParameterResolver) -> None:
        """Supply parameters by their markers, before the payload is considered."""
        self.resolvers.append(resolver)

    def add_channel(self, channel: Channel) -> None:
        """Add a channel.

        Raises:
            ConfigurationError: There is one with this name.
        """
        if channel.name in self.channels:
            raise ConfigurationError(
                f"two channels are named {channel.name!r}", hint="a channel is given once; give the other another name"
            )
        self.channels[channel.name] = channel

    def wrap_channel(self, name: str, wrapper: Callable[[Channel], Channel]) -> None:
        """Replace a channel by one that stands in front of it.

        Raises:
            UnknownChannelError: There is no such channel.
        """
        if name not in self.channels:
            raise unknown_channel(name, self.channels)
        self.channels[name] = wrapper(self.channels[name])

    def add_runnable(self, runnable: Runnable) -> None:
        """Add something that runs beside the application.

        Raises:
            ConfigurationError: There is one with this name.
        """
        if runnable.name in self.runnables:
            raise ConfigurationError(f"two runnables are named {runnable.name!r}", hint="rename one of them")
        self.runnables[runnable.name] = runnable

    def add_watcher(self, watcher: Watcher) -> None:
        """Let something watch the work on channels: what is sent, received and settled, in its batches."""
        self.watchers.append(watcher)

    def add_lifespan(self, lifespan: Lifespan) -> None:
        """Open something before the channels and close it after them."""
        self.lifespans.append(lifespan)

    def add_late(self, plugin: Plugin, add: Callable[[], object]) -> None:
        """Let a plugin add interceptors, watchers, lifespans and beginnings for which it was too early before.

        To be called in a lifespan that the plugin has added, when an application starts and nothing runs yet.

        Args:
            plugin: Who adds.
            add: Adds.
        """
        self.plugins.append(plugin)  # the last one is the one that adds
        try:
            add()
        finally:
            self.plugins.pop()
        self.gateway.rewire(arounds=self.arounds, watchers=self.watchers)

    def add_beginning(self, beginning: Callable[[], object]) -> None:
        """Do something in each task that runs beside the application, before its consumer or other runnable begins.

        For what is current where the application is started, and must not be current for as long as it runs. What a
        beginning sets in a `ContextVar` is seen by its task and all that it starts. What is run by the caller itself,
        by `Ecotone.run` or `work`, is part of what is current there.
        """
        self.beginnings.append(beginning)
