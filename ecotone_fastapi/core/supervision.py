"""Opens what an application consists of and keeps its runnables running: what fails pauses, and tries again.

>>> Pauses(first=1.0, longest=10.0, jitter=0.0).after(3)
4.0
"""

import logging
import math
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

import anyio
from anyio.abc import TaskGroup

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.consumer import Consumer, Hold
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, ConsumerStoppedError, ProjectionError
from ecotone_fastapi.core.plugin import Assembly, HealthCheck, Limits, Runnable
from ecotone_fastapi.core.texts import in_one_line

logger: logging.Logger = logging.getLogger("ecotone_fastapi.supervision")

# Seconds that servers have to let all channels be opened at start, to answer how they are, and to be left.
_OPENING, _ANSWERING, _CLOSING = 10.0, 5.0, 5.0


class Condition(StrEnum):
    """How a runnable is."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """It was told to receive nothing for now."""
    WAITING = "waiting"
    """It failed, and tries again after a pause."""
    ENDED = "ended"
    """It reached a limit, or had nothing left to do."""
    STOPPED = "stopped"
    """It was told to stop."""


@dataclass
class RunnableHealth:
    """How one consumer or other runnable is.

    Args:
        name: Its name.
        condition: How it is.
        failures: How often it has failed since it last ran for longer than the longest pause.
        last_error: What it failed with last.
        handled: How many messages it has handled well.
        holds: Why it pauses, if it does.
    """

    name: str
    condition: Condition = Condition.STARTING
    failures: int = 0
    last_error: str | None = None
    handled: int = 0
    holds: tuple[Hold, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it does its work, or has nothing left to do, or somebody wants it to pause."""
        return self.condition in (Condition.RUNNING, Condition.PAUSED, Condition.ENDED)

    def failed(self, error: BaseException) -> None:
        """Note a failure, and that another attempt follows."""
        self.condition = Condition.WAITING
        self.failures += 1
        self.last_error = in_one_line(error)


@dataclass(frozen=True, kw_only=True)
class Pauses:
    """How long something that failed pauses before it tries again.

    Args:
        first: Seconds after the first failure; each pause is twice as long as the one before.
        longest: Seconds that no pause exceeds, but for its jitter.
        jitter: The part by which a pause is longer or shorter by chance, so that not all processes come back at once.
    """

    first: float = 0.2
    longest: float = 30.0
    jitter: float = 0.2

    def after(self, failures: int) -> float:
        """Return the seconds to pause after so many failures in a row."""
        doubled = 2.0 ** min(failures - 1, 60)  # a server may be down for days
        by_chance = random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  no secret
        return min(self.longest, self.first * doubled) * by_chance


async def supervise(runnable: Runnable, health: RunnableHealth, limits: Limits, pauses: Pauses = Pauses()) -> None:
    """Keep a runnable running until it has reached its limits or is told to stop; raise nothing that it raises.

    Args:
        runnable: What runs.
        health: Where it is written down how the runnable is. With failures in it, the first attempt waits, too.
        limits: When to end, over all attempts. Its `stop` must be given.
        pauses: How long to wait between attempts.
    """
    stop = limits.stop
    assert stop is not None
    ends_at = math.inf if limits.seconds is None else anyio.current_time() + limits.seconds
    health.condition = Condition.WAITING if health.failures else Condition.STARTING
    try:
        while True:
            if health.failures and not stop.is_set():
                pause = pauses.after(health.failures)
                logger.warning("%s failed, again in %.1f s: %s", runnable.name, pause, health.last_error)
                with anyio.move_on_at(min(ends_at, anyio.current_time() + pause)):
                    await stop.wait()
            if stop.is_set():
                return
            started = anyio.current_time()
            if started >= ends_at:
                health.condition = Condition.ENDED
                return
            if await _attempt(runnable, health, _rest(limits, health, ends_at - started)):
                health.condition = Condition.STOPPED if stop.is_set() else Condition.ENDED
                return
            if anyio.current_time() - started > pauses.longest:
                health.failures = 1
    finally:
        if health.condition is not Condition.ENDED:
            health.condition = Condition.STOPPED


async def _attempt(runnable: Runnable, health: RunnableHealth, limits: Limits) -> bool:
    """Run once; return whether it ended well."""
    consumer = runnable if isinstance(runnable, Consumer) else None
    before = consumer.handled if consumer is not None else 0
    handled = 0
    try:
        if consumer is not None and health.failures:
            # Only a channel that can be opened is one that works again.
            await _open(consumer.channel, anyio.current_time() + _OPENING)
        health.condition = Condition.RUNNING
        handled = await runnable.run(limits)
    except (KeyboardInterrupt, SystemExit, anyio.get_cancelled_exc_class()):
        raise
    except BaseException as error:
        health.failed(error)
        # A lost server needs no traceback, nor does a message that was told to hold its consumer up; that of a
        # projection is told where it stands still.
        if not isinstance(error, ChannelError | ConsumerStoppedError | ProjectionError):
            logger.error("%s failed", runnable.name, exc_info=error)
        return False
    else:
        return True
    finally:
        health.handled += handled if consumer is None else consumer.handled - before


def _rest(limits: Limits, health: RunnableHealth, seconds: float) -> Limits:
    """What earlier attempts have left of the limits."""
    messages = None if limits.messages is None else max(0, limits.messages - health.handled)
    return replace(limits, messages=messages, seconds=None if limits.seconds is None else seconds)


class Supervisor:
    """Opens what was put together, runs it, and knows how it is.

    Args:
        assembly: What was put together.
        plugins: Whose servers are asked how they are, beside those of the channels.

    Attributes:
        assembly: What was put together.
        running: Whether it is open.
        runnables: How those are that run, or ran last, by name.
    """

    def __init__(self, assembly: Assembly, plugins: Iterable[object]) -> None:
        self.assembly = assembly
        self.running: bool = False
        self.runnables: dict[str, RunnableHealth] = {}
        self._plugins = tuple(plugins)
        self._opened_later: dict[str, RunnableHealth] = {}

    @asynccontextmanager
    async def open(self, runnables: Sequence[Runnable] = (), *, patient: bool) -> AsyncIterator[None]:
        """Open everything, and close it in the end.

        Args:
            runnables: What is going to run.
            patient: Whether a channel that cannot be opened yet is opened later; else it is an error.

        Raises:
            ConfigurationError: It is open already, or a server is not prepared.
            ChannelError: A server cannot be reached, and there is no patience.
        """
        if self.running:
            raise ConfigurationError(
                "this Ecotone is running already",
                hint="one lifespan, install or running() starts it; leave the others out",
            )
        self.running = True
        self.runnables = {one.name: RunnableHealth(one.name) for one in runnables}
        self._opened_later = {}
        try:
            async with AsyncExitStack() as stack:
                for lifespan in self.assembly.lifespans:
                    await stack.enter_async_context(lifespan())
                stack.push_async_callback(_close_all, self.assembly.channels.values())
                tasks = await stack.enter_async_context(_tasks())
                stack.callback(tasks.cancel_scope.cancel)
                await self._open_channels(runnables, tasks, patient=patient)
                yield
        finally:
            self.running = False

    async def _open_channels(self, runnables: Iterable[Runnable], tasks: TaskGroup, *, patient: bool) -> None:
        consumed = {id(one.channel): one.name for one in runnables if isinstance(one, Consumer)}
        until = anyio.current_time() + _OPENING if patient else math.inf
        for channel in self.assembly.channels.values():
            try:
                await _open(channel, until)
            except ChannelError as error:
                if not patient:
                    raise
                if id(channel) in consumed:
                    self.runnables[consumed[id(channel)]].failed(error)  # its consumer will open it
                else:
                    health = self._opened_later[channel.name] = RunnableHealth(channel.name)
                    health.failed(error)
                    tasks.start_soon(self._beside, _Opening(channel), health, Limits(stop=anyio.Event()))

    @asynccontextmanager
    async def run_beside(self, runnables: Iterable[Runnable], *, grace: float) -> AsyncIterator[None]:
        """Run beside the block, and stop when it ends.

        Args:
            runnables: What runs; those with which it was opened.
            grace: Seconds that handlers under way get to finish.
        """
        limits = Limits(stop=anyio.Event(), grace=grace)
        assert limits.stop is not None
        async with _tasks() as tasks:
            for runnable in runnables:
                tasks.start_soon(self._beside, runnable, self.runnables[runnable.name], limits)
            try:
                yield
            finally:
                limits.stop.set()
                # Consumers keep the grace themselves; this is for those that do not listen.
                tasks.cancel_scope.deadline = anyio.current_time() + grace + _CLOSING

    async def run(self, runnables: Iterable[Runnable], limits: Limits) -> dict[str, int]:
        """Run until each has reached its limits; return how many messages each has handled well.

        Args:
            runnables: What runs; those with which it was opened.
            limits: When to end, for each on its own.
        """
        async with anyio.create_task_group() as tasks:
            for runnable in runnables:
                tasks.start_soon(supervise, runnable, self.runnables[runnable.name], limits)
        return {name: health.handled for name, health in self.runnables.items()}

    async def _beside(self, runnable: Runnable, health: RunnableHealth, limits: Limits) -> None:
        for beginning in self.assembly.beginnings:
            beginning()
        await supervise(runnable, health, limits)

    def health(self) -> tuple[RunnableHealth, ...]:
        """Return how those are at this moment that run, or ran last."""
        return tuple(self._as_now(health) for health in self.runnables.values())

    def _as_now(self, health: RunnableHealth) -> RunnableHealth:
        runnable = self.assembly.runnables.get(health.name)
        if isinstance(runnable, Consumer) and runnable.holds and health.condition is Condition.RUNNING:
            return replace(health, condition=Condition.PAUSED, holds=tuple(runnable.holds.values()))
        return health

    async def check(self) -> dict[str, str | None]:
        """Ask all servers that can be asked; return for each its error, or `None` when it answers."""
        answers = {
            name: None if health.condition is Condition.ENDED else health.last_error
            for name, health in self._opened_later.items()
        }

        async def ask(part: HealthCheck) -> None:
            answer = await _answer(part)
            answers[part.name] = answers.get(part.name) or answer

        async with anyio.create_task_group() as tasks:
            for part in (*self._plugins, *self.assembly.channels.values()):
                if isinstance(part, HealthCheck):
                    tasks.start_soon(ask, part)
        return answers


class _Opening:
    """A runnable that ends when a channel is open."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def name(self) -> str:
        return self._channel.name

    async def run(self, limits: Limits) -> int:
        await _open(self._channel, anyio.current_time() + _OPENING)
        return 0


@asynccontextmanager
async def _tasks() -> AsyncIterator[TaskGroup]:
    """A task group that does not wrap what its block raises into an ExceptionGroup."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


async def _open(channel: Channel, until: float) -> None:
    try:
        with anyio.fail_after(until - anyio.current_time()):
            await channel.open()
    except TimeoutError as error:
        raise ChannelError(f"channel {channel.name!r} could not be opened in time") from error


async def _close_all(channels: Iterable[Channel]) -> None:
    # What was lent is given back even when everything around is cancelled.
    with anyio.move_on_after(_CLOSING, shield=True):
        async with anyio.create_task_group() as tasks:
            for channel in channels:
                tasks.start_soon(_close, channel)


async def _close(channel: Channel) -> None:
    try:
        await channel.close()
    except anyio.get_cancelled_exc_class():
        logger.warning("channel %s was not closed in time", channel.name)
        raise
    except Exception as error:
        logger.warning("channel %s was not closed properly: %s", channel.name, in_one_line(error))


async def _answer(part: HealthCheck) -> str | None:
    try:
        with anyio.move_on_after(_ANSWERING):
            await part.check()
            return None
    except Exception as error:
        return in_one_line(error)
    return f"no answer within {_ANSWERING:.0f} seconds"
