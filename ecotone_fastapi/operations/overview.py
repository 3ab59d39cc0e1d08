"""The overview: depths, ages, consumers, dead letters, schedules and projections, asked together.

    report = await ecotone.overview.report()
    report.dead_letters.count

What cannot be asked is told as a text in its place: a broker that is down hides nothing else.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import anyio

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.plugin import Assembly, Runnable
from ecotone_fastapi.core.supervision import Condition, RunnableHealth
from ecotone_fastapi.messaging.dead_letter import DeadLetterStore
from ecotone_fastapi.messaging.outbox import ThroughOutbox
from ecotone_fastapi.messaging.relay import Relay
from ecotone_fastapi.messaging.scheduling import ScheduledMessages
from ecotone_fastapi.modelling.rebuilding import Projections, ProjectionStatus, VersionStatus
from ecotone_fastapi.operations.asking import Answer, Question, Subject, TellsAge, TellsDepth, ask_all
from ecotone_fastapi.operations.rates import Rates
from ecotone_fastapi.operations.report import (
    ChannelReport,
    Count,
    LaneReport,
    Pause,
    ProjectionReport,
    Report,
    RunnableReport,
    VersionReport,
)


class Overview:
    """Tells how an application is: the service behind the web, `ecotone status` and the metrics.

    Args:
        assembly: The application.
        health: Tells how those are that run in this process.

    Example:
        >>> async with Ecotone([], channels=[MemoryChannel("mails")]).running() as ecotone:
        ...     report = await ecotone.overview.report()
        ...     print([(one.name, one.depth) for one in report.channels], report.dead_letters.count)
        [('mails', 0)] 0
    """

    def __init__(self, assembly: Assembly, health: Callable[[], Sequence[RunnableHealth]]) -> None:
        self._assembly = assembly
        self._health = health
        self._rates = Rates(assembly.gateway.clock.now())
        self._looking = anyio.Lock()
        self._last: Report | None = None
        self._looked_at = 0.0

    async def report(self, *, max_age: float = 0.0) -> Report:
        """Ask all servers, and return what they tell. Fails for nobody: what cannot be told is a text.

        A channel costs two statements, each version of a projection about three, everything else two.

        Args:
            max_age: A report that somebody was given up to so many seconds ago is good enough. Those who ask at the
                same time share one, so that any number of watchers costs as much as one.
        """
        async with self._looking:
            if self._last is None or time.monotonic() - self._looked_at >= max_age:
                self._last = await self._look()
                self._looked_at = time.monotonic()
            return self._last

    def runnables(self) -> tuple[RunnableReport, ...]:
        """Return how everything is that can run beside the application; asks no server."""
        health = {one.name: one for one in self._health()}
        return tuple(self._runnable(one, health.get(name)) for name, one in self._assembly.runnables.items())

    async def channel(self, name: str) -> ChannelReport | None:
        """Return how one channel is, that of an outbox, too; `None` when there is none with this name."""
        channel = self._assembly.channels.get(name)
        if channel is None:
            return None
        answers = await ask_all(_about(name, channel))
        return _channel_report(name, channel, answers, self._consumers().get(name))

    async def projection(self, name: str) -> ProjectionReport:
        """Return how one projection is.

        Args:
            name: Its name, one of those that there are.
        """
        projections = cast("Projections", self._assembly.services[Projections])
        answers = await ask_all({("projection", name): _status_of(projections, name)})
        return _projection_report(name, answers["projection", name])

    async def _look(self) -> Report:
        services, channels = self._assembly.services, self._assembly.channels
        store = cast("DeadLetterStore | None", services.get(DeadLetterStore))
        scheduled = cast("ScheduledMessages | None", services.get(ScheduledMessages))
        projections = cast("Projections | None", services.get(Projections))
        names = projections.names if projections is not None else ()
        questions: dict[Subject, Question] = {}
        for name, channel in channels.items():
            questions |= _about(name, channel)
        if store is not None:
            questions["dead letters", ""] = store.count
        if scheduled is not None:
            questions["scheduled", ""] = scheduled.count
        if projections is not None:
            questions |= {("projection", name): _status_of(projections, name) for name in names}
        answers = await ask_all(questions)
        lanes = self._lanes()
        consumers = self._consumers()
        outboxes = {relay.lanes[name].outbox.name for name, relay in lanes.items()}
        return Report(
            at=self._assembly.gateway.clock.now(),
            channels=tuple(
                _channel_report(name, channel, answers, consumers.get(name))
                for name, channel in channels.items()
                if name not in outboxes
            ),
            runnables=self.runnables(),
            outbox=tuple(_lane_report(name, relay, answers) for name, relay in lanes.items()),
            dead_letters=_count(answers.get(("dead letters", "")), "the application has no dead letter"),
            scheduled=_count(answers.get(("scheduled", "")), "the application keeps no schedules"),
            projections=tuple(_projection_report(name, answers["projection", name]) for name in names),
        )

    def _lanes(self) -> dict[str, Relay]:
        relays = [one for one in self._assembly.runnables.values() if isinstance(one, Relay)]
        return {name: relay for relay in relays for name in relay.lanes}

    def _consumers(self) -> dict[str, RunnableReport]:
        of_channels = {
            name: one.channel.name for name, one in self._assembly.runnables.items() if isinstance(one, Consumer)
        }
        return {of_channels[one.name]: one for one in self.runnables() if one.name in of_channels}

    def _runnable(self, runnable: Runnable, health: RunnableHealth | None) -> RunnableReport:
        consumer = runnable if isinstance(runnable, Consumer) else None
        handled = health.handled if health is not None else 0
        if isinstance(runnable, Consumer | Relay):
            handled = runnable.handled  # theirs grows with every message, that of the others after a run
        rate = self._rates.measured(runnable.name, handled, self._assembly.gateway.clock.now())
        pauses = tuple(
            Pause(reason=hold.reason, since=hold.since, until=hold.until)
            for hold in (consumer.holds.values() if consumer is not None else ())
        )
        condition = health.condition if health is not None else None
        reason = "; ".join(one.reason for one in pauses if one.reason) or None
        if not pauses and health is not None and condition in (Condition.WAITING, Condition.STARTING):
            reason = health.last_error
        return RunnableReport(
            name=runnable.name,
            type=type(runnable).__name__,
            condition=condition,
            reason=reason,
            failures=health.failures if health is not None else 0,
            last_error=health.last_error if health is not None else None,
            handled=handled,
            failed=consumer.failed if consumer is not None else None,
            rate=rate.per_second if rate is not None else None,
            rate_seconds=rate.seconds if rate is not None else None,
            paused=bool(pauses),
            pauses=pauses,
        )


def _about(name: str, channel: Channel) -> dict[Subject, Question]:
    questions: dict[Subject, Question] = {}
    if isinstance(channel, TellsDepth):
        questions["depth of", name] = channel.depth
    if isinstance(channel, TellsAge):
        questions["age of", name] = channel.oldest_age
    return questions


def _status_of(projections: Projections, name: str) -> Question:
    return lambda: projections.status(name)


def _channel_report(
    name: str,
    channel: Channel,
    answers: Mapping[Subject, Answer],
    consumer: RunnableReport | None,
) -> ChannelReport:
    depth, age = answers.get(("depth of", name)), answers.get(("age of", name))
    untold = [told for told, answer in (("depth", depth), ("oldest_age", age)) if answer is None]
    return ChannelReport(
        name=name,
        type=type(channel.channel if isinstance(channel, ThroughOutbox) else channel).__name__,
        depth=depth.value if depth is not None else None,
        oldest_age=_age(age),
        untold=tuple(untold),
        problem=next((one.problem for one in (depth, age) if one is not None and one.problem), None),
        consumer=consumer,
    )


def _lane_report(name: str, relay: Relay, answers: Mapping[Subject, Answer]) -> LaneReport:
    outbox = relay.lanes[name].outbox.name
    depth, age = answers.get(("depth of", outbox), Answer()), answers.get(("age of", outbox))
    return LaneReport(
        channel=name,
        depth=depth.value,
        oldest_age=_age(age),
        problem=depth.problem or (age.problem if age is not None else None),
        relay=relay.name,
    )


def _age(answer: Answer | None) -> float | None:
    # The server's clock may be a little ahead of what it has stored.
    return None if answer is None or answer.value is None else max(0.0, answer.value)


def _count(answer: Answer | None, otherwise: str) -> Count:
    if answer is None:
        return Count(count=None, problem=otherwise)
    return Count(count=answer.value, problem=answer.problem)


def _projection_report(name: str, answer: Answer) -> ProjectionReport:
    status = cast("ProjectionStatus | None", answer.value)
    versions = status.versions if status is not None else ()
    shown = (status.live if status is not None else None) or (versions[-1] if versions else None)
    return ProjectionReport(
        name=name,
        mode=status.mode if status is not None else None,
        partitioned=status.partitioned if status is not None else None,
        condition=shown.condition.value if shown is not None else None,
        version=shown.number if shown is not None else None,
        lag=shown.lag if shown is not None else None,
        versions=tuple(map(_version_report, versions)),
        blocked_by=status.blocked_by if status is not None else "",
        problem=answer.problem,
    )


def _version_report(version: VersionStatus) -> VersionReport:
    progress, halt, partitions = version.progress, version.halt, version.partitions
    stands_still = None
    if halt is not None:
        stands_still = f"{halt.error_type}: {halt.error_message}, at version {halt.stream_version} of {halt.stream}"
    elif partitions is not None and partitions.halted:
        stands_still = f"{partitions.halted} of {partitions.total} partitions stand still"
    return VersionReport(
        number=version.number,
        condition=version.condition.value,
        behind=version.behind,
        lag=version.lag,
        done=progress.done if progress is not None else None,
        total=progress.total if progress is not None else None,
        seconds_left=progress.left if progress is not None else None,
        runner=version.runner,
        halt=stands_still,
    )
