"""What of a report somebody should look at: what does not answer, what stands still, and what exceeds a limit."""

from collections.abc import Iterator
from dataclasses import dataclass

from ecotone_fastapi.cli.durations import span_text
from ecotone_fastapi.operations.report import Report


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is still fine; `None` is without a limit.

    Args:
        depth: How many messages may wait on one channel, or on their way to it.
        age: For how many seconds a message may have waited.
        dead_letters: How many messages may have been given up.
        lag: For how many seconds a projection may be behind.
    """

    depth: int | None = None
    age: float | None = None
    dead_letters: int | None = None
    lag: float | None = None


def needed(report: Report, limits: Limits) -> Iterator[str]:
    """Tell what needs attention, line by line.

    Args:
        report: How everything is.
        limits: What is still fine.
    """
    waiting = [(f"channel {one.name}", one.depth, one.oldest_age, one.problem) for one in report.channels]
    waiting += [(f"outbox of {one.channel}", one.depth, one.oldest_age, one.problem) for one in report.outbox]
    for where, depth, age, problem in waiting:
        if problem is not None:
            yield f"{where}: {problem}"
        if limits.depth is not None and depth is not None and depth > limits.depth:
            yield f"{where}: {depth} messages wait, more than {limits.depth}"
        if limits.age is not None and age is not None and age > limits.age:
            yield f"{where}: the oldest message waits for {span_text(age)}, longer than {span_text(limits.age)}"
    parked = report.dead_letters
    if parked.count is None and parked.problem is not None and _is_asked_for(report):
        yield f"dead letters: {parked.problem}"
    if limits.dead_letters is not None and parked.count is not None and parked.count > limits.dead_letters:
        yield f"dead letters: {parked.count}, more than {limits.dead_letters}"
    for one in report.projections:
        if one.problem is not None:
            yield f"projection {one.name}: {one.problem}"
        if limits.lag is not None and one.lag is not None and one.lag > limits.lag:
            yield f"projection {one.name}: {span_text(one.lag)} behind, longer than {span_text(limits.lag)}"
        for version in one.versions:
            if version.halt is not None:
                yield f"projection {one.name}, version {version.number}: stands still: {version.halt}"


def _is_asked_for(report: Report) -> bool:
    """Whether there is anything that could be parked: an application without consumers needs no dead letter."""
    return bool(report.channels or report.outbox)
