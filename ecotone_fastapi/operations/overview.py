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
from ecotone_fastapi.core.process import this_process
from ecotone_fastapi.core.supervision import RunnableHealth
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.outbox import OutboxStorage
from ecotone_fastapi.messaging.relay import Relay
from ecotone_fastapi.messaging.scheduling import ScheduledMessages
from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.operations.asking import Question, Subject, ask_all
from ecotone_fastapi.operations.counting import CountsTogether, ask_about
from ecotone_fastapi.operations.rates import Rates
from ecotone_fastapi.operations.report import ChannelReport, LaneReport, ProjectionReport, Report, RunnableReport
from ecotone_fastapi.operations.telling import (
    channel_report,
    count_of,
    handled_so_far,
    lane_report,
    projection_report,
    runnable_report,
    status_of,
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

        All channels of the database cost one statement, dead letters and schedules one each, a version of a projection
        about three, and a channel elsewhere up to two questions.

        Args:
            max_age: A report that was begun up to so many seconds ago is good enough. Those who ask at the same time
                share one, so that any number of watchers costs as much as one or two.
        """
        earliest = time.monotonic() - max_age
        async with self._looking:
            # Those who have waited for a look that was under way share the next one.
            if self._last is None or self._looked_at < earliest:
                began = time.monotonic()
                self._last = await self._look()
                self._looked_at = began
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
        answers = await ask_about({name: channel})
        return channel_report(name, channel, answers, self._consumers().get(name))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of all channels but those of the outbox."""
        outboxes = {relay.lanes[name].outbox.name for name, relay in self._lanes().items()}
        return tuple(name for name in self._assembly.channels if name not in outboxes)

    async def channels(self, names: Sequence[str]) -> Sequence[ChannelReport]:
        """Return how some channels are.

        Args:
            names: Their names, some of those that there are.
        """
        channels = {name: self._assembly.channels[name] for name in names}
        answers, consumers = await ask_about(channels, self._together), self._consumers()
        return [channel_report(name, one, answers, consumers.get(name)) for name, one in channels.items()]

    async def projection(self, name: str) -> ProjectionReport:
        """Return how one projection is.

        Args:
            name: Its name, one of those that there are.
        """
        [report] = await self.projections([name])
        return report

    async def projections(self, names: Sequence[str]) -> Sequence[ProjectionReport]:
        """Return how some projections are.

        Args:
            names: Their names, some of those that there are.
        """
        projections = cast("Projections", self._assembly.services[Projections])
        answers = await ask_all({("projection", name): status_of(projections, name) for name in names})
        return [projection_report(name, answers["projection", name]) for name in names]

    async def outboxes(self) -> Mapping[str, Channel]:
        """Return where messages wait for channels of brokers, also for those that nobody here can send to.

        Finding those takes a look at everything that waits in the database; a report is without them.

        Raises:
            ChannelError: The database cannot be reached.
        """
        waiting = {name: relay.lanes[name].outbox for name, relay in self._lanes().items()}
        storage = cast("OutboxStorage | None", self._assembly.services.get(OutboxStorage))
        if storage is not None:
            waiting |= {name: storage.outbox_for(name) for name in await storage.outboxes() if name not in waiting}
        return waiting

    async def outbox(self, waiting: Mapping[str, Channel]) -> Sequence[LaneReport]:
        """Return what is on its way to some channels of brokers.

        Args:
            waiting: Where it waits, by the names of the channels; some of what `outboxes` has told.
        """
        relays = self._lanes()
        answers = await ask_about({one.name: one for one in waiting.values()}, self._together)
        return [lane_report(name, channel.name, relays.get(name), answers) for name, channel in waiting.items()]

    async def _look(self) -> Report:
        services, channels = self._assembly.services, self._assembly.channels
        store = cast("DeadLetterStore | None", services.get(DeadLetterStore))
        scheduled = cast("ScheduledMessages | None", services.get(ScheduledMessages))
        projections = cast("Projections | None", services.get(Projections))
        names = projections.names if projections is not None else ()
        questions: dict[Subject, Question] = {}
        if store is not None:
            questions["dead letters", ""] = store.count
        if scheduled is not None:
            questions["scheduled", ""] = scheduled.count
        if projections is not None:
            questions |= {("projection", name): status_of(projections, name) for name in names}
        answers = await ask_about(channels, self._together, questions)
        lanes = self._lanes()
        consumers = self._consumers()
        outboxes = {name: relay.lanes[name].outbox.name for name, relay in lanes.items()}
        return Report(
            at=self._assembly.gateway.clock.now(),
            process=this_process(),
            channels=tuple(
                channel_report(name, channel, answers, consumers.get(name))
                for name, channel in channels.items()
                if name not in outboxes.values()
            ),
            runnables=self.runnables(),
            outbox=tuple(lane_report(name, outboxes[name], relay, answers) for name, relay in lanes.items()),
            dead_letters=count_of(answers.get(("dead letters", "")), "the application has no dead letter"),
            scheduled=count_of(answers.get(("scheduled", "")), "the application keeps no schedules"),
            projections=tuple(projection_report(name, answers["projection", name]) for name in names),
        )

    @property
    def _together(self) -> CountsTogether | None:
        return cast("CountsTogether | None", self._assembly.services.get(CountsTogether))

    def _lanes(self) -> dict[str, Relay]:
        relays = [one for one in self._assembly.runnables.values() if isinstance(one, Relay)]
        return {name: relay for relay in relays for name in relay.lanes}

    def _consumers(self) -> dict[str, RunnableReport]:
        of_channels = {
            name: one.channel.name for name, one in self._assembly.runnables.items() if isinstance(one, Consumer)
        }
        return {of_channels[one.name]: one for one in self.runnables() if one.name in of_channels}

    def _runnable(self, runnable: Runnable, health: RunnableHealth | None) -> RunnableReport:
        handled = handled_so_far(runnable, health)
        rate = self._rates.measured(runnable.name, handled, self._assembly.gateway.clock.now())
        return runnable_report(runnable, health, handled, rate)
