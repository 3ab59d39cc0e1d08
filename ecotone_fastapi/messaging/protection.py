"""Protection of consumers: they pause when somebody says so, and by themselves when everything fails.

    await ecotone.consumers.pause("notifications", reason="the mail server moves")
    Ecotone([...], plugins=[CircuitBreaker(failures=10, pause=30.0)])

Messages wait in their channel meanwhile. A consumer that pauses finishes what is under way, gives back what it has not
begun, and receives nothing.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, cast

import anyio

from ecotone_fastapi.core.consumer import Consumer, Hold
from ecotone_fastapi.core.errors import (
    ChannelError,
    ConfigurationError,
    ConversionError,
    LeaseLostError,
    RoutingError,
)
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.sending import unknown_channel
from ecotone_fastapi.core.supervision import Pauses
from ecotone_fastapi.core.texts import NAME, first_line, in_one_line

logger: logging.Logger = logging.getLogger("ecotone_fastapi.protection")


class PauseStore(Protocol):
    """Remembers which consumers pause, for all processes. A database adapter implements it."""

    async def pause(self, name: str, hold: Hold) -> None:
        """Note that the consumers with this name pause; replace what was noted before.

        Raises:
            ChannelError: The server cannot be reached.
        """
        ...

    async def resume(self, name: str) -> None:
        """Forget it again; do nothing when it was not noted.

        Raises:
            ChannelError: The server cannot be reached.
        """
        ...

    async def paused(self) -> Mapping[str, Hold]:
        """Return what is noted, by the name of the consumer.

        Raises:
            ChannelError: The server cannot be reached.
        """
        ...


class Consumers:
    """The plugin that lets consumers pause; installed by default. As a service it pauses and resumes them.

    With a database among the plugins a pause is for all processes and outlives them. This process knows at once, the
    others when they look next. Without one it is for this process.

    Args:
        interval: Seconds after which a process looks again which consumers pause.

    Example:
        >>> plugin = Consumers(interval=1.0)
    """

    def __init__(self, *, interval: float = 5.0) -> None:
        if not 0 < interval < math.inf:
            raise ConfigurationError(f"nobody can look every {interval} seconds", hint="use Consumers(interval=5.0)")
        self._interval = interval
        self._assembly: Assembly | None = None
        self._store: PauseStore | None = None
        self._changes = 0
        self._silent = False

    def __repr__(self) -> str:
        return f"Consumers(interval={self._interval})"

    def install(self, assembly: Assembly) -> None:
        """Offer itself as a service, and look from time to time which consumers pause."""
        self._assembly = assembly
        self._store = cast("PauseStore | None", assembly.services.get(PauseStore))
        assembly.add_service(Consumers, self)
        if self._store is not None:
            assembly.add_lifespan(self._looking)

    @property
    def shared(self) -> bool:
        """Whether a pause is for all processes."""
        return self._store is not None

    def paused(self) -> Mapping[str, Hold]:
        """Return which consumers of this process pause because somebody said so, by name, as it knows now."""
        return {name: one.holds[self] for name, one in self._all().items() if self in one.holds}

    async def pause(self, name: str, *, reason: str = "") -> None:
        """Let the consumers with this name pause until they are resumed.

        In a handler with a transaction other processes learn of it when that commits.

        Args:
            name: The name of the consumer, which is the one of its channel.
            reason: Why; shown where the pause is shown.

        Raises:
            ConfigurationError: There is no such consumer.
            ChannelError: The database cannot be reached; nothing pauses.
        """
        consumer = self._named(name)
        assert self._assembly is not None
        hold = Hold(reason=reason, since=self._assembly.gateway.clock.now())
        if self._store is not None:
            await self._store.pause(name, hold)
        self._changes += 1
        self._hold(consumer, hold)

    async def resume(self, name: str) -> None:
        """Let the consumers with this name go on; do nothing when they do not pause.

        Raises:
            ConfigurationError: There is no such consumer.
            ChannelError: The database cannot be reached; what pauses goes on pausing.
        """
        consumer = self._named(name)
        if self._store is not None:
            await self._store.resume(name)
        self._changes += 1
        self._let_go_on(consumer)

    async def look(self) -> None:
        """Look now which consumers pause, as other processes have said.

        Raises:
            ChannelError: The database cannot be reached; everything stays as it is.
        """
        if self._store is None:
            return
        changes = self._changes
        paused = await self._store.paused()
        if changes != self._changes:
            return  # somebody has said something here meanwhile, and what was read may be older
        for name, consumer in self._all().items():
            hold = paused.get(name)
            if hold is None:
                self._let_go_on(consumer)
            else:
                self._hold(consumer, hold)

    def _all(self) -> dict[str, Consumer]:
        runnables = self._assembly.runnables if self._assembly is not None else {}
        return {name: one for name, one in runnables.items() if isinstance(one, Consumer)}

    def _named(self, name: str) -> Consumer:
        consumers = self._all()
        if name not in consumers:
            raise ConfigurationError(
                f"there is no consumer {name!r} that could pause",
                tried=", ".join(sorted(consumers)) or "there are none",
                hint="a consumer is named like its channel",
            )
        return consumers[name]

    def _hold(self, consumer: Consumer, hold: Hold) -> None:
        if consumer.holds.get(self) != hold:
            logger.warning("consumer %s pauses: %s", consumer.name, first_line(hold.reason) or "no reason was given")
            consumer.hold(self, hold)

    def _let_go_on(self, consumer: Consumer) -> None:
        if self in consumer.holds:
            logger.info("consumer %s goes on", consumer.name)
            consumer.let_go_on(self)

    @asynccontextmanager
    async def _looking(self) -> AsyncIterator[None]:
        await self._look_patiently()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_again_and_again)
            failure: BaseException | None = None
            try:
                yield
            except BaseException as error:
                failure = error  # the task group would put it into a group
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _look_again_and_again(self) -> None:
        while True:
            await anyio.sleep(self._interval)
            with anyio.CancelScope(shield=True):  # what was asked is waited for by the database anyway
                await self._look_patiently()

    async def _look_patiently(self) -> None:
        if not self._all():
            return
        try:
            await self.look()
            self._silent = False
        except (ChannelError, ConfigurationError) as error:
            # Whoever has no tables of ours, or no server now, cannot have said that somebody pauses.
            (logger.debug if self._silent else logger.info)("cannot look which consumers pause: %s", error)
            self._silent = True


def tells_of_an_outage(error: Exception) -> bool:
    """Whether a failure says something about what a handler works with, and not only about its message."""
    return not isinstance(error, ConversionError | RoutingError | LeaseLostError)


class CircuitBreaker:
    """A plugin: a consumer in which everything fails pauses, so that its messages do not use up their retries.

    After the pause one message is let through. When its handler succeeds, the consumer goes on; when it fails, the
    consumer pauses again, twice as long. The messages wait in their channel. Each process decides for itself. The
    message that was let through is a message like any other: its failure counts as one of its attempts, so that one
    that can never succeed does not stop the channel for ever.

    Args:
        failures: How many failures in a row open the circuit; retries within one delivery are no failures of their own.
        pause: Seconds of the first pause.
        longest: Seconds that no pause exceeds, but for its jitter.
        jitter: The part by which a pause is longer or shorter by chance, so that not all processes try at once.
        channels: The channels whose consumers are protected; all of them, unless told otherwise.
        counts: Whether an error counts as a failure; what does not is no success either. Unless told otherwise,
            messages that cannot be read or find no handler do not count.

    Example:
        >>> plugin = CircuitBreaker(failures=5, pause=10.0, channels=["bank"])
    """

    def __init__(
        self,
        *,
        failures: int = 10,
        pause: float = 30.0,
        longest: float = 600.0,
        jitter: float = 0.2,
        channels: Sequence[str] | None = None,
        counts: Callable[[Exception], bool] = tells_of_an_outage,
    ) -> None:
        if failures < 1 or not 0 < pause <= longest < math.inf or not 0 <= jitter < 1:
            raise ConfigurationError(
                f"CircuitBreaker({failures=}, {pause=}, {longest=}, {jitter=}) protects nothing",
                hint="failures is at least 1, pause more than 0 and at most longest, jitter from 0 to less than 1",
            )
        self._failures = failures
        self._pauses = Pauses(first=pause, longest=longest, jitter=jitter)
        self._channels = [channels] if isinstance(channels, str) else channels
        self._counts = counts

    def __repr__(self) -> str:
        return f"CircuitBreaker(failures={self._failures}, pause={self._pauses.first})"

    def install(self, assembly: Assembly) -> None:
        """Watch what consumers handle."""
        circuits: dict[str, _Circuit] = {}

        async def watch(call: Call, proceed: Proceed) -> Any:
            """Count the failures in a row; after too many, let the consumer pause."""
            circuit = circuits.get(call.channel or "")
            if circuit is None:
                return await proceed(call)
            turn = circuit.turn
            try:
                result = await proceed(call)
            except Exception as error:
                if self._counts(error):
                    circuit.failed(error, turn)
                raise
            circuit.succeeded(turn)
            return result

        @asynccontextmanager
        async def protecting() -> AsyncIterator[None]:
            # Only now everybody has added what runs.
            consumers = {one.channel.name: one for one in assembly.runnables.values() if isinstance(one, Consumer)}
            for name in self._channels if self._channels is not None else consumers:
                if name not in consumers:
                    raise unknown_channel(name, consumers)
                circuits[name] = _Circuit(consumers[name], assembly, self._failures, self._pauses)
            try:
                yield
            finally:
                for circuit in circuits.values():
                    circuit.consumer.let_go_on(circuit)
                circuits.clear()

        assembly.add_lifespan(protecting)
        # Just inside of those who judge a failure: they swallow it.
        assembly.add_interceptor(watch, stage=Stage.RECEIVE, order=Order.FAILURE + 1)


@dataclass(eq=False)
class _Circuit:
    """What one consumer may do: everything when closed, nothing when open, and then one message to try."""

    consumer: Consumer
    assembly: Assembly
    limit: int
    pauses: Pauses
    failures: int = 0
    opened: int = 0
    turn: int = field(default=0)
    """Grows when it opens or closes: what was under way before says nothing about now."""

    def failed(self, error: Exception, turn: int) -> None:
        if turn != self.turn:
            return
        self.failures += 1
        if not self.opened and self.failures < self.limit:
            return
        self.opened += 1
        self.turn += 1
        seconds = self.pauses.after(self.opened)
        now = self.assembly.gateway.clock.now()
        times = (
            f"{self.failures} failures in a row" if self.opened == 1 else f"it failed again, {self.opened - 1} times"
        )
        reason = f"{times}, the last one {in_one_line(error, NAME)}"
        logger.warning("consumer %s pauses for %.1f s: %s", self.consumer.name, seconds, reason)
        self.consumer.hold(self, Hold(reason=reason, since=now, until=now + timedelta(seconds=seconds)))
        self.failures = 0

    def succeeded(self, turn: int) -> None:
        if turn != self.turn:
            return
        self.failures = 0
        if self.opened:
            self.opened = 0
            self.turn += 1
            logger.info("consumer %s works again", self.consumer.name)
            self.consumer.let_go_on(self)
