"""What is told of an application at one moment. Plain data: the web sends it as JSON, metrics read it."""

from dataclasses import dataclass
from datetime import datetime

from ecotone_fastapi.core.supervision import Condition


@dataclass(frozen=True, kw_only=True)
class Count:
    """How many there are, or why nobody can tell.

    Args:
        count: How many; `None` when it cannot be told.
        problem: Why it cannot be told.
    """

    count: int | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Why a consumer receives nothing for now.

    Args:
        reason: Why, in words.
        since: Since when.
        until: From when on messages are let through again, one at a time; without it, when somebody says so.
    """

    reason: str
    since: datetime
    until: datetime | None


@dataclass(frozen=True, kw_only=True)
class RunnableReport:
    """How a consumer is, or something else that runs beside the application, in this process.

    Args:
        name: Its name; a consumer has that of its channel.
        type: Its class.
        condition: How it is; `None` when this process does not run it.
        reason: Why it pauses, or what it failed with last while it waits to try again.
        failures: How often in a row its loop has broken off.
        last_error: What its loop broke off with last.
        handled: How many messages it has handled well.
        failed: How many messages or events did not go well, each attempt at one on its own; of a relay, those that
            could not be sent. `None` where nobody counts.
        rate: How many messages it handles well per second, over the last minute as far as somebody has looked, else
            since the last look; `None` when no time has passed.
        rate_seconds: Over how many seconds the rate was measured.
        paused: Whether it receives nothing for now.
        pauses: Why it does not.
    """

    name: str
    type: str
    condition: Condition | None
    reason: str | None
    failures: int
    last_error: str | None
    handled: int
    failed: int | None
    rate: float | None
    rate_seconds: float | None
    paused: bool
    pauses: tuple[Pause, ...]


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """How a channel is.

    Args:
        name: Its name.
        type: Its class.
        depth: How many messages wait on it or are lent, delayed ones included.
        oldest_age: For how many seconds the oldest message has been ready; `None` when none is.
        untold: Which of these a channel of this class never tells.
        problem: Why its server told nothing this time.
        consumer: What empties it, as far as this process knows of it.
    """

    name: str
    type: str
    depth: int | None
    oldest_age: float | None
    untold: tuple[str, ...]
    problem: str | None
    consumer: RunnableReport | None


@dataclass(frozen=True, kw_only=True)
class LaneReport:
    """How the outbox of one channel is.

    Args:
        channel: The channel that its messages are on their way to.
        depth: How many messages wait in it.
        oldest_age: For how many seconds the oldest message has been ready to be sent; `None` when none is.
        problem: Why that cannot be told.
        relay: The name of the runnable that empties it; `None` when no runnable of this application does.
        failures: How many attempts in a row have failed to reach the channel, in this process.
        last_error: What the last of them has failed with.
    """

    channel: str
    depth: int | None
    oldest_age: float | None
    problem: str | None
    relay: str | None
    failures: int
    last_error: str | None


@dataclass(frozen=True, kw_only=True)
class VersionReport:
    """How one version of a projection is.

    Args:
        number: Its number.
        condition: `live`, `building` or `retired`.
        behind: How many events it has not handled that can be read.
        lag: For how many seconds the oldest of them has waited.
        done: While it is being built, how much of it is done.
        total: While it is being built, how much there was to do when that began.
        seconds_left: While it is being built, after how many seconds that can be expected to be done.
        runner: Who runs it at this moment.
        halt: What it stands still for; of a partitioned one, how many partitions stand still.
    """

    number: int
    condition: str
    behind: int
    lag: float
    done: int | None
    total: int | None
    seconds_left: float | None
    runner: str | None
    halt: str | None


@dataclass(frozen=True, kw_only=True)
class ProjectionReport:
    """How a projection is.

    Args:
        name: Its name.
        mode: When its handlers run.
        partitioned: Whether it has partitions.
        condition: How its live version is, else its last one; `None` before it was initialised.
        version: The number of that version.
        lag: For how many seconds the oldest event has waited that this version has not handled.
        versions: All of its versions.
        blocked_by: What keeps readers of all events from seeing more, in words.
        problem: Why nothing could be told.
    """

    name: str
    mode: str | None
    partitioned: bool | None
    condition: str | None
    version: int | None
    lag: float | None
    versions: tuple[VersionReport, ...]
    blocked_by: str
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is told of an application at one moment.

    Args:
        at: The moment.
        process: The process that tells it, by host and process id: consumers and other runnables are those of this one
            alone, with all of their numbers.
        channels: Its channels, without those of the outbox.
        runnables: Everything that can run beside it; consumers are told with their channels, too.
        outbox: What is on its way to channels of brokers.
        dead_letters: How many messages were given up.
        scheduled: How many messages wait under a key.
        projections: Its projections.
    """

    at: datetime
    process: str
    channels: tuple[ChannelReport, ...]
    runnables: tuple[RunnableReport, ...]
    outbox: tuple[LaneReport, ...]
    dead_letters: Count
    scheduled: Count
    projections: tuple[ProjectionReport, ...]
