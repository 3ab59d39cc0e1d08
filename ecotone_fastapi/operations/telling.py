"""From answers to a report."""

from collections.abc import Mapping
from typing import Protocol, cast, runtime_checkable

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.plugin import Runnable
from ecotone_fastapi.core.supervision import Condition, RunnableHealth
from ecotone_fastapi.core.texts import LINE, cut
from ecotone_fastapi.messaging.outbox import ThroughOutbox
from ecotone_fastapi.messaging.relay import Relay
from ecotone_fastapi.modelling.rebuilding import Projections, ProjectionStatus, VersionStatus
from ecotone_fastapi.operations.asking import Answer, Question, Subject
from ecotone_fastapi.operations.rates import Rate
from ecotone_fastapi.operations.report import (
    ChannelReport,
    Count,
    LaneReport,
    Pause,
    ProjectionReport,
    RunnableReport,
    VersionReport,
)


def handled_so_far(runnable: Runnable, health: RunnableHealth | None) -> int:
    """Return how many messages a runnable has handled well in this process."""
    if isinstance(runnable, Consumer | Relay):
        return runnable.handled  # theirs grows with every message, that of the others after a run
    return health.handled if health is not None else 0


def runnable_report(
    runnable: Runnable, health: RunnableHealth | None, handled: int, rate: Rate | None
) -> RunnableReport:
    """Return how a runnable is.

    Args:
        runnable: The runnable.
        health: How its supervisor says it is; `None` when this process does not run it.
        handled: How many messages it has handled well.
        rate: How many per second.
    """
    consumer = runnable if isinstance(runnable, Consumer) else None
    pauses = tuple(
        Pause(reason=cut(hold.reason, LINE), since=hold.since, until=hold.until)
        for hold in (consumer.holds.values() if consumer is not None else ())
    )
    condition = health.condition if health is not None else None
    last_error = health.last_error if health is not None else None
    reason = "; ".join(one.reason for one in pauses if one.reason) or None
    if not pauses and condition in (Condition.WAITING, Condition.STARTING):
        reason = last_error
    return RunnableReport(
        name=runnable.name,
        type=type(runnable).__name__,
        condition=condition,
        reason=reason,
        failures=health.failures if health is not None else 0,
        last_error=last_error,
        handled=handled,
        failed=runnable.failed if isinstance(runnable, _CountsFailures) else None,
        rate=rate.per_second if rate is not None else None,
        rate_seconds=rate.seconds if rate is not None else None,
        paused=bool(pauses),
        pauses=pauses,
    )


@runtime_checkable
class _CountsFailures(Protocol):
    """A runnable that counts what did not go well."""

    failed: int


def status_of(projections: Projections, name: str) -> Question:
    """Return the question how a projection is."""
    return lambda: projections.status(name)


def channel_report(
    name: str, channel: Channel, answers: Mapping[Subject, Answer], consumer: RunnableReport | None
) -> ChannelReport:
    """Return how a channel is.

    Args:
        name: Its name.
        channel: The channel.
        answers: What it has answered, among others.
        consumer: What empties it.
    """
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


def lane_report(name: str, outbox: str, relay: Relay | None, answers: Mapping[Subject, Answer]) -> LaneReport:
    """Return how the outbox of a channel is.

    Args:
        name: The channel.
        outbox: The name of the channel that its messages wait on.
        relay: What empties that.
        answers: What it has answered, among others.
    """
    trouble = relay.troubles.get(name) if relay is not None else None
    depth, age = answers.get(("depth of", outbox), Answer()), answers.get(("age of", outbox))
    return LaneReport(
        channel=name,
        depth=depth.value,
        oldest_age=_age(age),
        problem=depth.problem or (age.problem if age is not None else None),
        relay=relay.name if relay is not None else None,
        failures=trouble.failures if trouble is not None else 0,
        last_error=cut(trouble.error, LINE) if trouble is not None else None,
    )


def _age(answer: Answer | None) -> float | None:
    # The server's clock may be a little ahead of what it has stored.
    return None if answer is None or answer.value is None else max(0.0, answer.value)


def count_of(answer: Answer | None, otherwise: str) -> Count:
    """Return how many there are; `otherwise` when nobody was asked."""
    if answer is None:
        return Count(count=None, problem=otherwise)
    return Count(count=answer.value, problem=answer.problem)


def projection_report(name: str, answer: Answer) -> ProjectionReport:
    """Return how a projection is."""
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
        blocked_by=cut(status.blocked_by, LINE) if status is not None else "",
        problem=answer.problem,
    )


def _version_report(version: VersionStatus) -> VersionReport:
    progress, halt, partitions = version.progress, version.halt, version.partitions
    stands_still = None
    if halt is not None:
        why, stream = cut(halt.error_message, LINE), cut(halt.stream, LINE)
        stands_still = f"{halt.error_type}: {why}, at version {halt.stream_version} of {stream}"
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
