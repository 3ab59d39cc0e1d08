"""Shows what is: depths, ages, lags and states, from a report that is made anew every few seconds.

Readers collect in threads of their own, and must not wait for a server: they are given what the last report says.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import cast

import anyio
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ecotone_fastapi.adapters.opentelemetry import conventions
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.supervision import Condition
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.operations.report import Report

logger: logging.Logger = logging.getLogger("ecotone_fastapi.metrics")

_FIRST = 1.0  # seconds that channels get to be opened before the first look
_TOO_OLD = 3.0  # how many intervals a report is good for

Read = Callable[[Report], Iterator[Observation]]


class Observing:
    """Shows readers what was seen last of the applications that run.

    Args:
        meter: Makes the instruments.

    Attributes:
        sights: What is seen of each application that runs.
    """

    def __init__(self, meter: Meter) -> None:
        self.sights: list[Sight] = []
        for name, unit, description, read in GAUGES:
            meter.create_observable_gauge(name, [self._shown(read)], unit=unit, description=description)
        meter.create_observable_gauge(
            "ecotone.observation.age",
            [self._ages_shown],
            unit="s",
            description="How long ago the gauges of ecotone were looked at; those of a report too old are not shown.",
        )

    def _shown(self, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def show(options: CallbackOptions) -> Iterable[Observation]:
            return [one for sight in tuple(self.sights) if (seen := sight.seen()) is not None for one in read(seen)]

        return show

    def _ages_shown(self, options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(age) for sight in tuple(self.sights) if (age := sight.age()) is not None]


class Sight:
    """What is seen of one application.

    Args:
        assembly: The application.
        interval: Seconds between two looks.
    """

    def __init__(self, assembly: Assembly, interval: float) -> None:
        self._assembly = assembly
        self._interval = interval
        self._report: Report | None = None
        self._problems: dict[tuple[str, str], str] = {}

    def seen(self) -> Report | None:
        """Return what was seen last, unless that is too long ago."""
        age = self.age()
        return self._report if age is not None and age <= _TOO_OLD * self._interval else None

    def age(self) -> float | None:
        """Return how many seconds ago that was; `None` when nobody has looked yet."""
        report = self._report
        if report is None:
            return None
        return max(0.0, (self._assembly.gateway.clock.now() - report.at).total_seconds())

    async def look(self) -> None:
        """Look now."""
        overview = cast("Overview", self._assembly.services[Overview])
        self._report = await overview.report()
        self._tell(dict(problems_of(self._report)))

    async def look_always(self) -> None:
        """Look again and again, until cancelled."""
        await anyio.sleep(min(_FIRST, self._interval))
        while True:
            try:
                await self.look()
            except Exception:  # a gauge that is missing must not end the application
                logger.exception("the application could not be looked at, again in %.1f s", self._interval)
            await anyio.sleep(self._interval)

    def _tell(self, problems: dict[tuple[str, str], str]) -> None:
        """Log what cannot be told from now on, and what can be told again: once, not with every look."""
        before, self._problems = self._problems, problems
        for (part, name), problem in problems.items():
            if (part, name) not in before:
                logger.warning("metrics: %s cannot be told: %s", f"{part} {name}".rstrip(), problem)
        for part, name in before.keys() - problems.keys():
            logger.info("metrics: %s can be told again", f"{part} {name}".rstrip())


@asynccontextmanager
async def observed(observing: Observing, sight: Sight) -> AsyncIterator[None]:
    """Look again and again beside the block, and show what is seen as long as it lasts."""
    failure: BaseException | None = None
    observing.sights.append(sight)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sight.look_always)
        try:
            yield
        except BaseException as error:  # as it is, and not in a group of one
            failure = error
        finally:
            observing.sights.remove(sight)  # what has ended is not how it is
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def problems_of(report: Report) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield what could not be asked, as a part and a name in it, with the reason."""
    found = [
        *((("channel", one.name), one.problem) for one in report.channels),
        *((("outbox", one.channel), one.problem) for one in report.outbox),
        (("dead_letters", ""), report.dead_letters.problem),
        (("scheduled", ""), report.scheduled.problem),
        *((("projection", one.name), one.problem) for one in report.projections),
    ]
    yield from ((part, problem) for part, problem in found if problem is not None)


def _channel_depths(report: Report) -> Iterator[Observation]:
    for one in report.channels:
        if one.depth is not None:
            yield Observation(one.depth, {conventions.DESTINATION_NAME: one.name})


def _channel_ages(report: Report) -> Iterator[Observation]:
    for one in report.channels:
        if one.problem is None and "oldest_age" not in one.untold:
            yield Observation(one.oldest_age or 0.0, {conventions.DESTINATION_NAME: one.name})


def _outbox_depths(report: Report) -> Iterator[Observation]:
    for one in report.outbox:
        if one.depth is not None:
            yield Observation(one.depth, {conventions.DESTINATION_NAME: one.channel})


def _outbox_ages(report: Report) -> Iterator[Observation]:
    for one in report.outbox:
        if one.problem is None:
            yield Observation(one.oldest_age or 0.0, {conventions.DESTINATION_NAME: one.channel})


def _dead_letters(report: Report) -> Iterator[Observation]:
    if report.dead_letters.count is not None:
        yield Observation(report.dead_letters.count)


def _scheduled(report: Report) -> Iterator[Observation]:
    if report.scheduled.count is not None:
        yield Observation(report.scheduled.count)


def _states(report: Report) -> Iterator[Observation]:
    """One for each state that a consumer can be in, 1 for that in which it is."""
    for one in report.runnables:
        if one.condition is not None:  # else another process runs it
            now = Condition.PAUSED if one.paused and one.condition is Condition.RUNNING else one.condition
            for condition in Condition:
                attributes = {conventions.CONSUMER_NAME: one.name, conventions.CONSUMER_STATE: condition.value}
                yield Observation(int(condition is now), attributes)


def _lags(report: Report) -> Iterator[Observation]:
    for one in report.projections:
        if one.lag is not None:
            yield Observation(one.lag, {conventions.PROJECTION_NAME: one.name})


def _behind(report: Report) -> Iterator[Observation]:
    for one in report.projections:
        for version in one.versions:
            if version.number == one.version:
                yield Observation(version.behind, {conventions.PROJECTION_NAME: one.name})


def _unobserved(report: Report) -> Iterator[Observation]:
    for (part, name), _ in problems_of(report):
        named = {conventions.OBSERVATION_NAME: name} if name else {}
        yield Observation(1, {conventions.OBSERVATION_PART: part, **named})


GAUGES: tuple[tuple[str, str, str, Read], ...] = (
    ("ecotone.channel.depth", "{message}", "Messages that wait on a channel or are lent.", _channel_depths),
    ("ecotone.channel.oldest_age", "s", "For how long the oldest message of a channel has been ready.", _channel_ages),
    ("ecotone.outbox.depth", "{message}", "Messages that are on their way to a channel.", _outbox_depths),
    ("ecotone.outbox.oldest_age", "s", "For how long the oldest message has been on its way.", _outbox_ages),
    ("ecotone.dead_letters", "{message}", "Messages that were given up and wait for somebody.", _dead_letters),
    ("ecotone.scheduled.messages", "{message}", "Messages that wait under a key until they are due.", _scheduled),
    ("ecotone.consumer.state", "{consumer}", "1 for the state in which a consumer is, 0 for all others.", _states),
    ("ecotone.projection.lag", "s", "For how long the oldest event has waited for a projection.", _lags),
    ("ecotone.projection.events_behind", "{event}", "Events that a projection has not handled yet.", _behind),
    ("ecotone.observation.failed", "{part}", "1 for each part that could not be asked how it is.", _unobserved),
)
"""Name, unit and description of each gauge, and what it takes from a report."""
