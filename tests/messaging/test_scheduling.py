"""Messages that wait, expire and overtake; and those that can be found, called off and put off."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Annotated, Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecotone_fastapi import (
    CommandBus,
    EventBus,
    HeaderName,
    MessageHeader,
    ScheduledMessages,
    asynchronous,
    command_handler,
    delayed,
    event_handler,
    expiring,
    prioritized,
    query_handler,
    untransacted,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Capabilities, Channel
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, HeaderError, UnsupportedCapabilityError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.testing import Flow, TravellingClock, flow_test
from tests.databases import ASYNCPG, MARIADB, PSYCOPG, SQLITE

MEMORY = pytest.param("memory", id="memory")
EVERY = pytest.mark.parametrize("kind", [MEMORY, SQLITE, ASYNCPG, PSYCOPG, MARIADB])
DATABASES = pytest.mark.parametrize("kind", [SQLITE, ASYNCPG, PSYCOPG, MARIADB])

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
Start = Callable[..., AbstractAsyncContextManager[Flow]]


def plugins_and_channels(url: str | None, names: Iterable[str]) -> tuple[list[SqlAlchemy], list[Channel]]:
    if url is None:
        return [], [MemoryChannel(name) for name in names]
    database = SqlAlchemy(url, create_schema=True)
    return [database], [database.channel(name) for name in names]


@pytest.fixture
def started(kind: str, request: pytest.FixtureRequest) -> Start:
    """Starts an application whose channels `work` and `other` are of one kind."""
    url: str | None = None if kind == "memory" else request.getfixturevalue("url")

    @asynccontextmanager
    async def start(*handlers: object) -> AsyncIterator[Flow]:
        plugins, channels = plugins_and_channels(url, ("work", "other"))
        async with flow_test(handlers, channels=channels, plugins=plugins) as flow:
            yield flow

    return start


@dataclass
class Log:
    """What was handled, in order."""

    handled: list[str] = field(default_factory=list)


class Worker(Log):
    """Handles in order what it is sent, and changes what waits."""

    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(self, text: str) -> None:
        self.handled.append(text)

    @asynchronous("work")
    @event_handler("happened", id="first")
    async def first(self, text: str) -> None:
        self.handled.append(f"first {text}")

    @asynchronous("other")
    @event_handler("happened", id="second")
    async def second(self, text: str) -> None:
        self.handled.append(f"second {text}")

    @command_handler("cancel")
    async def cancel(self, key: str, scheduled: ScheduledMessages) -> int:
        return await scheduled.cancel(key)

    @command_handler("put off")
    async def put_off(self, key: str, scheduled: ScheduledMessages) -> int:
        return await scheduled.reschedule(key, HOUR)

    @command_handler("cancel and fail")
    async def cancel_and_fail(self, key: str, scheduled: ScheduledMessages) -> None:
        assert await scheduled.cancel(key) == 1
        raise ValueError("after all")

    @command_handler("put off and fail")
    async def put_off_and_fail(self, key: str, scheduled: ScheduledMessages) -> None:
        assert await scheduled.reschedule(key, 2 * HOUR) == 1
        raise ValueError("after all")

    @command_handler("replace")
    async def replace(self, key: str, scheduled: ScheduledMessages, commands: CommandBus) -> int:
        await commands.send("new", to="work", headers=under(key, HOUR))
        cancelled = await scheduled.cancel(key)
        await commands.send("newer", to="work", headers=under(key, HOUR))
        return cancelled

    @command_handler("change twice")
    async def change_twice(self, key: str, scheduled: ScheduledMessages) -> list[int]:
        return [
            await scheduled.reschedule(key, 2 * HOUR),
            await scheduled.reschedule(key, 3 * HOUR),
            await scheduled.cancel(key),
            await scheduled.cancel(key),
            await scheduled.reschedule(key, HOUR),
        ]


def under(key: str, delay: timedelta) -> dict[str, Any]:
    return {HeaderName.schedule_key: key, HeaderName.delay: delay}


def service(flow: Flow) -> Any:
    return flow.ecotone.assembly.services[ScheduledMessages]


async def keys(flow: Flow) -> list[str]:
    return [one.key for one in await flow.scheduled()]


# ------------------------------------------------------------------------------------------------------------- delays


@EVERY
async def test_what_waits_under_a_key_is_counted(started: Start) -> None:
    async with started(Worker()) as flow:
        for key in ("a", "a", "b"):
            await flow.send("x", to="work", headers=under(key, HOUR))
        await flow.send("x", to="work", headers={"delay": HOUR})

        assert await service(flow).count() == 3
        assert await service(flow).count("a") == 2
        assert await service(flow).count("nobody") == 0
        assert await service(flow).count(channel="work") == 3
        assert await service(flow).count("b", channel="elsewhere") == 0
        await service(flow).cancel("a")
        assert await service(flow).count() == 1


@EVERY
async def test_what_is_due_later_is_listed_alone(started: Start) -> None:
    async with started(Worker()) as flow:
        for number in (1, 2, 3):
            await flow.send("x", to="work", headers=under(f"key-{number}", number * HOUR))
        [_, second, _] = await service(flow).list()

        later = await service(flow).list(since=second.due_at)

        assert [one.key for one in later] == ["key-2", "key-3"]
        assert [one.key for one in await service(flow).list(since=second.due_at, limit=1, offset=1)] == ["key-3"]
        assert [one.key for one in await service(flow).list("key-3", channel="work", since=second.due_at)] == ["key-3"]
        assert await service(flow).list("key-1", since=second.due_at) == []


@EVERY
async def test_only_the_delayed_handler_of_an_event_waits(started: Start) -> None:
    log = Log()

    @asynchronous("work")
    @event_handler("happened", id="at-once")
    async def at_once(text: str) -> None:
        log.handled.append("at once")

    @delayed(timedelta(hours=1))
    @asynchronous("work")
    @event_handler("happened", id="later")
    async def later(text: str) -> None:
        log.handled.append("later")

    async with started(at_once, later) as flow:
        await flow.publish("x", to="happened")
        await flow.run("work")
        assert log.handled == ["at once"]

        await flow.advance(HOUR - MINUTE)
        assert await flow.run("work") == 0
        await flow.advance(2 * MINUTE)
        assert await flow.run("work") == 1
        assert log.handled == ["at once", "later"]


@EVERY
async def test_a_short_delay_never_waits_behind_a_long_one(started: Start) -> None:
    worker = Worker()
    async with started(worker) as flow:
        for minutes in (500, 2, 90, 1, 0, 60):
            await flow.send(str(minutes), to="work", headers={"delay": timedelta(minutes=minutes)})

        await flow.run("work")
        assert worker.handled == ["0"]
        await flow.advance(5 * MINUTE)
        await flow.run("work")
        assert worker.handled == ["0", "1", "2"]
        await flow.advance(3 * HOUR)
        await flow.run("work")
        assert worker.handled == ["0", "1", "2", "60", "90"]


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (90, 90.0),
        (0.5, 0.5),
        (timedelta(minutes=2), 120.0),
        (NOON + timedelta(minutes=3), 180.0),
        (NOON.astimezone(tz=None) + timedelta(minutes=3), 180.0),
        (NOON - HOUR, 0.0),
        (lambda text: len(text), 5.0),
        (lambda text: None, None),
        (lambda text: timedelta(seconds=len(text)), 5.0),
        (lambda text: NOON + timedelta(seconds=len(text)), 5.0),
        (lambda text, headers: float(headers["patience"]), 7.0),
        (lambda text, more=3: more, 3.0),
        (int, None),
    ],
)
async def test_a_delay_is_a_number_a_duration_a_moment_or_computed(delay: Any, seconds: float | None) -> None:
    @delayed(delay)
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    text = "12345" if delay is not int else "0"
    expected = seconds if delay is not int else 0.0
    clock = TravellingClock(NOON)
    async with flow_test([work], channels=[MemoryChannel("work")], clock=clock) as flow:
        await flow.send(text, to="work", headers={"patience": 7})

        channel = flow.ecotone.assembly.channels["work"]
        assert isinstance(channel, MemoryChannel)
        [entry] = channel.queue.waiting()
        assert entry.ready_at == NOON + timedelta(seconds=expected or 0)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(timedelta(minutes=1), 60), (NOON + HOUR, 3600), (NOON - HOUR, 0), (5, 5), ("5", 5), (None, 1000)],
)
async def test_what_the_sender_says_wins_over_the_decorator(given: Any, seconds: int) -> None:
    @delayed(1000, key="decorated")
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work")], clock=TravellingClock(NOON)) as flow:
        await flow.send("x", to="work", headers={"delay": given, "schedule_key": "sent" if seconds == 5 else None})

        [one] = await flow.scheduled()
        assert one.due_at == NOON + timedelta(seconds=seconds)
        assert one.key == ("sent" if seconds == 5 else "decorated")


async def test_a_moment_without_its_offset_from_utc_is_refused() -> None:
    naive = NOON.replace(tzinfo=None)

    @delayed(lambda text: naive)
    @asynchronous("work")
    @command_handler("computed", id="computed")
    async def computed(text: str) -> None: ...

    async with flow_test([Worker(), computed], channels=[MemoryChannel("work"), MemoryChannel("other")]) as flow:
        with pytest.raises(ConversionError, match="without its offset"):
            await flow.send("x", to="work", headers={"delay": naive})
        with pytest.raises(ConversionError, match="without its offset"):
            await flow.send("x", to="computed")
        with pytest.raises(ConfigurationError, match="cannot be waited for"):
            delayed(naive)


@pytest.mark.parametrize("computed", [-1, timedelta(seconds=-1), "soon", 1e20, [], timedelta.max])
async def test_a_time_that_nobody_can_wait_for_is_refused_in_front_of_the_sender(computed: Any) -> None:
    @delayed(lambda text: computed)
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work")]) as flow:
        with pytest.raises(ConversionError, match="'delay'"):
            await flow.send("x", to="work")

        assert await flow.waiting("work") == []


async def test_a_rule_is_asked_once_about_the_payload_and_never_about_its_bytes() -> None:
    asked: list[object] = []

    def rule(payload: object) -> int:
        asked.append(payload)
        return 0

    @delayed(rule)
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work")]) as flow:
        await flow.send("x", to="work")
        assert await flow.run("work") == 1

    assert asked == ["x"]


async def test_a_delay_does_not_go_on_to_what_the_message_causes() -> None:
    worker = Worker()

    @delayed(60, key="k")
    @asynchronous("work")
    @command_handler("start", id="start")
    async def start(text: str, events: EventBus) -> None:
        await events.publish(text, to="happened")

    async with flow_test([worker, start], channels=[MemoryChannel("work"), MemoryChannel("other")]) as flow:
        await flow.send("x", to="start")
        await flow.advance(2 * MINUTE)
        await flow.run("work")
        assert worker.handled == ["first x"]
        assert await flow.scheduled() == []


# ----------------------------------------------------------------------------------------------- expiry and priority


@EVERY
async def test_what_is_not_handled_in_time_is_dropped(started: Start) -> None:
    log = Log()

    @expiring(HOUR)
    @asynchronous("work")
    @command_handler("soon", id="soon")
    async def soon(text: str) -> None:
        log.handled.append(text)

    async with started(soon) as flow:
        await flow.send("late", to="soon")
        await flow.send("patient", to="soon", headers={"time_to_live": timedelta(hours=3)})
        await flow.advance(2 * HOUR)
        await flow.send("new", to="soon")

        assert await flow.run("work") == 2
        assert log.handled == ["patient", "new"]


@EVERY
async def test_what_is_delayed_expires_so_long_after_it_was_due(started: Start) -> None:
    log = Log()

    @delayed(timedelta(days=1))
    @expiring(HOUR)
    @asynchronous("work")
    @command_handler("tomorrow", id="tomorrow")
    async def tomorrow(text: str) -> None:
        log.handled.append(text)

    async with started(tomorrow) as flow:
        await flow.send("in time", to="tomorrow")
        await flow.send("by header", to="tomorrow", headers={"delay": timedelta(hours=23.5)})
        await flow.send("too late", to="tomorrow", headers={"delay": 2 * HOUR})
        await flow.advance(timedelta(days=1) + MINUTE)

        assert await flow.run("work") == 2
        assert log.handled == ["by header", "in time"]


@pytest.mark.parametrize(
    ("after", "expires"),
    [(60, 100 + 60), (NOON + timedelta(seconds=130), 130), (lambda text: timedelta(seconds=1), 101)],
)
async def test_an_expiry_is_a_time_after_the_delay_or_a_moment(after: Any, expires: int) -> None:
    @delayed(100)
    @expiring(after)
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work")], clock=TravellingClock(NOON)) as flow:
        await flow.send("x", to="work")

        [message] = await flow.waiting("work")
        assert float(message.headers["time_to_live"]) == expires


async def test_a_rule_may_say_that_nothing_expires_and_nothing_overtakes() -> None:
    @expiring(lambda text: None)
    @prioritized(lambda text: None)
    @delayed(key=lambda text: None)
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work")]) as flow:
        await flow.send("x", to="work")

        [message] = await flow.waiting("work")
        assert not {"time_to_live", "priority", "schedule_key", "delay"} & message.headers.keys()


@EVERY
async def test_what_is_prioritized_overtakes(started: Start) -> None:
    log = Log()

    @prioritized(5)
    @asynchronous("work")
    @command_handler("urgent", id="urgent")
    async def urgent(text: str) -> None:
        log.handled.append(text)

    @prioritized(lambda text: len(text))
    @asynchronous("work")
    @command_handler("by length", id="by-length")
    async def by_length(text: str) -> None:
        log.handled.append(text)

    @asynchronous("work")
    @command_handler("plain", id="plain")
    async def plain(text: str) -> None:
        log.handled.append(text)

    async with started(urgent, by_length, plain) as flow:
        await flow.send("plain", to="plain")
        await flow.send("xx", to="by length")
        await flow.send("five", to="urgent")
        await flow.send("xxxxxxx", to="by length")
        await flow.send("nine", to="urgent", headers={"priority": 9})
        await flow.send("none", to="urgent", headers={"priority": 0})
        await flow.run("work")

        assert log.handled == ["nine", "xxxxxxx", "five", "xx", "plain", "none"]


async def test_a_computed_priority_that_there_is_not_is_refused_in_front_of_the_sender() -> None:
    @prioritized(lambda text: 10)
    @asynchronous("work")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work")]) as flow:
        with pytest.raises(ConversionError, match="'priority'"):
            await flow.send("x", to="work")


# ------------------------------------------------------------------------------------------------------------ at start


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: delayed(),
        lambda: delayed(-1),
        lambda: delayed(timedelta(days=-1)),
        lambda: delayed(timedelta.max),
        lambda: delayed("soon"),  # type: ignore[arg-type]
        lambda: expiring(0),
        lambda: expiring(timedelta(0)),
        lambda: expiring(-1),
        lambda: prioritized(10),
        lambda: prioritized(-1),
    ],
)
def test_a_decorator_that_means_nothing_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        wrong()


@delayed(60)
@command_handler("wait", id="wait")
async def waits_nowhere(text: str) -> None: ...


@prioritized(9)
@event_handler("happened", id="first")
async def is_put_first(text: str) -> None: ...


@expiring(60)
@query_handler("ask", id="ask")
async def expires_as_a_query(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("handler", "reason", "hint"),
    [
        (waits_nowhere, "waits_nowhere is marked @delayed, and is not asynchronous", "@asynchronous"),
        (is_put_first, "is_put_first is marked @prioritized, and is not", r"event_handler\(priority="),
        (expires_as_a_query, "expires_as_a_query answers a query and is marked @expiring", "take it away"),
    ],
)
async def test_a_marked_handler_that_is_not_asynchronous_does_not_start(
    handler: object, reason: str, hint: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s){reason}.*{hint}"):
        async with flow_test([handler], channels=[]):
            pass
    with pytest.raises(ConfigurationError, match=reason):
        async with flow_test([handler]):
            pass


class Simple(MemoryChannel):
    """A channel that can nothing of this."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.capabilities = Capabilities()


@pytest.mark.parametrize(
    ("decorator", "lacks"),
    [
        (delayed(60), "@delayed.*'simple' has no delay"),
        (expiring(60), "has no time_to_live"),
        (prioritized(1), "no prio"),
    ],
)
async def test_a_channel_that_cannot_do_it_does_not_start_and_the_remedy_is_told(decorator: Any, lacks: str) -> None:
    @decorator
    @asynchronous("simple")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    with pytest.raises(UnsupportedCapabilityError, match=rf"(?s){lacks}.*Simple.*outbox"):
        async with flow_test([work], channels=[Simple("simple")]):
            pass


async def test_what_is_to_wait_on_a_channel_that_would_not_let_it_is_refused_in_front_of_the_sender() -> None:
    @asynchronous("simple")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[Simple("simple")]) as flow:
        await flow.send("x", to="work")
        with pytest.raises(HeaderError, match=r"(?s)'simple' has no delay.*outbox"):
            await flow.send("y", to="work", headers={"delay": HOUR})

        assert [message.payload for message in await flow.waiting("simple")] == [b'"x"']


async def test_a_delay_is_the_business_of_the_first_channel_on_the_way() -> None:
    @delayed(60, key="k")
    @asynchronous("work", "simple")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[MemoryChannel("work"), Simple("simple")]) as flow:
        await flow.send("x", to="work")
        assert await keys(flow) == ["k"]
        await flow.advance(2 * MINUTE)
        await flow.run("work")

        [passed_on] = await flow.waiting("simple")
        assert "delay" not in passed_on.headers


async def test_a_channel_that_can_do_it_by_what_stands_in_front_of_it_is_fine() -> None:
    class Waiting(MemoryChannel):
        """Stands in front of a channel and keeps what is delayed."""

    class Front:
        def install(self, assembly: Assembly) -> None:
            assembly.wrap_channel("simple", lambda channel: Waiting(channel.name))

    @delayed(60)
    @asynchronous("simple")
    @command_handler("work", id="work")
    async def work(text: str) -> None: ...

    async with flow_test([work], channels=[Simple("simple")], plugins=[Front()]) as flow:
        await flow.send("x", to="work")
        assert await flow.run("simple") == 0


async def test_all_asynchronous_handlers_of_a_class_are_marked_with_it_and_its_queries_are_not() -> None:
    @delayed(60, key=lambda text: text)
    @asynchronous("work")
    class Everything:
        @command_handler("one", id="one")
        async def one(self, text: str) -> None: ...

        @delayed(60, key="own")
        @command_handler("two", id="two")
        async def two(self, text: str) -> None: ...

        @query_handler("ask")
        async def ask(self, text: str) -> str:
            return text

    async with flow_test([Everything], channels=[MemoryChannel("work")]) as flow:
        await flow.send("a", to="one")
        await flow.send("b", to="two")

        assert await keys(flow) == ["a", "own"]
        assert await flow.ask("x", to="ask") == "x"


async def test_without_channels_a_flow_test_runs_delayed_handlers_in_line_and_nothing_waits() -> None:
    log = Log()

    @delayed(60, key="k")
    @expiring(60)
    @prioritized(3)
    @asynchronous("work")
    @command_handler("in line", id="in-line")
    async def work(text: str) -> None:
        log.handled.append(text)

    async with flow_test([work, Worker()]) as flow:
        await flow.send("x", to="in line")

        assert log.handled == ["x"]
        assert await flow.send("k", to="cancel") == 0
        assert await flow.scheduled() == []


# ------------------------------------------------------------------------------------------- find, call off, put off


@EVERY
async def test_what_waits_is_listed_by_key_and_channel_the_next_one_first(started: Start) -> None:
    async with started(Worker()) as flow:
        before = flow.clock.now()
        await flow.publish("x", to="happened", headers=under("event", 2 * HOUR))
        await flow.send("x", to="work", headers=under("command", HOUR))
        await flow.send("x", to="work", headers={"delay": HOUR})
        await flow.send("x", to="work", headers={"schedule_key": "now"})

        found = await flow.scheduled()
        assert [(one.key, one.channel, one.endpoint) for one in found] == [
            ("now", "work", "work"),
            ("command", "work", "work"),
            ("event", "work", "first"),
            ("event", "other", "second"),
        ]
        assert abs(found[1].due_at - before - HOUR) < timedelta(seconds=5)
        assert found[1].due_at.utcoffset() == timedelta(0)
        assert found[0].message.payload == b'"x"'
        assert [one.key for one in await flow.scheduled("event")] == ["event", "event"]
        assert await flow.scheduled("nothing") == []

        scheduled = service(flow)
        assert [one.endpoint for one in await scheduled.list(channel="other")] == ["second"]
        assert [one.endpoint for one in await scheduled.list("event", channel="work")] == ["first"]
        assert await scheduled.list("command", channel="other") == []
        assert [one.key for one in await scheduled.list(limit=2, offset=1)] == ["command", "event"]


@EVERY
async def test_all_messages_under_a_key_are_cancelled_and_no_others(started: Start) -> None:
    worker = Worker()
    async with started(worker) as flow:
        await flow.publish("x", to="happened", headers=under("gone", HOUR))
        await flow.send("kept", to="work", headers=under("Gone", HOUR))
        await flow.send("also kept", to="work", headers={"delay": HOUR})

        assert await flow.send("gone", to="cancel") == 2
        assert await flow.send("gone", to="cancel") == 0
        await flow.advance(2 * HOUR)
        await flow.run("work")
        await flow.run("other")
        assert worker.handled == ["kept", "also kept"]


@EVERY
async def test_what_waits_is_put_off_and_brought_forward(started: Start) -> None:
    worker = Worker()
    async with started(worker) as flow:
        scheduled = service(flow)
        for key in ("later", "sooner", "at", "past", "moment past"):
            await flow.send(key, to="work", headers=under(key, HOUR))

        assert await scheduled.reschedule("later", timedelta(hours=10)) == 1
        assert await scheduled.reschedule("sooner", timedelta(minutes=10)) == 1
        assert await scheduled.reschedule("at", flow.clock.now() + timedelta(minutes=20)) == 1
        assert await scheduled.reschedule("past", timedelta(-1)) == 1
        assert await scheduled.reschedule("moment past", flow.clock.now() - timedelta(days=3)) == 1
        assert await scheduled.reschedule("nothing", HOUR) == 0

        await flow.run("work")
        assert worker.handled == ["past", "moment past"]
        await flow.advance(timedelta(minutes=11))
        await flow.run("work")
        await flow.advance(timedelta(minutes=10))
        await flow.run("work")
        assert worker.handled[2:] == ["sooner", "at"]
        await flow.advance(timedelta(hours=9))
        assert await flow.run("work") == 0
        await flow.advance(HOUR)
        await flow.run("work")
        assert worker.handled[4:] == ["later"]


@EVERY
async def test_what_is_put_off_lives_as_long_after_that_as_it_would_have(started: Start) -> None:
    worker = Worker()
    async with started(worker) as flow:
        for key in ("in time", "late"):
            headers = {**under(key, HOUR), "time_to_live": HOUR + timedelta(minutes=10)}
            await flow.send(key, to="work", headers=headers)
        await service(flow).reschedule("in time", 5 * HOUR)
        await service(flow).reschedule("late", flow.clock.now() + 4 * HOUR)

        await flow.advance(5 * HOUR + timedelta(minutes=5))
        await flow.run("work")
        assert worker.handled == ["in time"]


@EVERY
@pytest.mark.parametrize("to", [NOON.replace(tzinfo=None), timedelta.max])
async def test_nothing_is_put_off_to_a_time_that_is_none(started: Start, to: Any) -> None:
    async with started(Worker()) as flow:
        await flow.send("x", to="work", headers=under("k", HOUR))

        with pytest.raises(ConversionError):
            await service(flow).reschedule("k", to)
        assert abs((await flow.scheduled())[0].due_at - flow.clock.now() - HOUR) < MINUTE


@EVERY
async def test_what_is_being_handled_can_neither_be_cancelled_nor_put_off(started: Start) -> None:
    log: list[object] = []

    @untransacted
    @asynchronous("work")
    @command_handler("long", id="long")
    async def long(key: str, scheduled: ScheduledMessages) -> None:
        log.append([one.key for one in await scheduled.list()])
        log.append(await scheduled.cancel(key))
        log.append(await scheduled.reschedule(key, HOUR))

    async with started(long) as flow:
        await flow.send("k", to="long", headers=under("k", timedelta(0)))

        assert await flow.run("work") == 1
        assert log == [[], 0, 0]


@EVERY
async def test_what_is_due_and_what_has_failed_can_be_cancelled_until_a_consumer_has_it(started: Start) -> None:
    @asynchronous("work")
    @command_handler("fail", id="fail")
    async def fail(text: str) -> None:
        raise ValueError(text)

    async with started(Worker(), fail) as flow:
        await flow.send("x", to="fail", headers=under("failed", timedelta(0)))
        await flow.run("work", raises=False)
        await flow.send("x", to="work", headers=under("due", timedelta(0)))

        assert sorted(await keys(flow)) == ["due", "failed"]
        assert await service(flow).cancel("failed") == await service(flow).cancel("due") == 1
        await flow.advance(HOUR)
        assert await flow.run("work") == 0
        assert len(flow.failures) == 1


@EVERY
async def test_what_has_expired_is_neither_listed_nor_counted(started: Start) -> None:
    async with started(Worker()) as flow:
        await flow.send("x", to="work", headers={**under("k", timedelta(0)), "time_to_live": HOUR})
        await flow.advance(2 * HOUR)

        assert await flow.scheduled() == []
        assert await service(flow).reschedule("k", HOUR) == await service(flow).cancel("k") == 0


@EVERY
@pytest.mark.parametrize(
    "key", ["k" * 1000, "k" * 190, "", "a b", "ends with a blank ", "żółw 🐢", "'; DROP TABLE --", 'q"\\_%', "\x00nul"]
)
async def test_any_text_is_a_key_of_its_own(started: Start, key: str) -> None:
    async with started(Worker()) as flow:
        await flow.send("x", to="work", headers=under(key, HOUR))
        await flow.send("x", to="work", headers=under(f"{key}k", HOUR))
        await flow.send("x", to="work", headers=under(f"{key} ", HOUR))

        assert [one.key for one in await flow.scheduled(key)] == [key]
        assert await service(flow).cancel(key) == 1
        assert sorted(await keys(flow)) == sorted([f"{key}k", f"{key} "])


# ----------------------------------------------------------------------------------------------------- units of work


@EVERY
async def test_a_handler_that_fails_has_changed_nothing(started: Start) -> None:
    worker = Worker()
    async with started(worker) as flow:
        await flow.send("kept", to="work", headers=under("k", HOUR))

        for command in ("cancel and fail", "put off and fail"):
            with pytest.raises(ValueError, match="after all"):
                await flow.send("k", to=command)
        assert await keys(flow) == ["k"]
        await flow.advance(HOUR + MINUTE)
        assert await flow.run("work") == 1


@EVERY
async def test_what_a_handler_sends_itself_is_not_cancelled_by_it(started: Start) -> None:
    worker = Worker()
    async with started(worker) as flow:
        await flow.send("old", to="work", headers=under("k", HOUR))

        assert await flow.send("k", to="replace") == 1
        await flow.advance(2 * HOUR)
        await flow.run("work")
        assert worker.handled == ["new", "newer"]


@EVERY
async def test_a_handler_sees_what_it_has_changed_before(started: Start) -> None:
    async with started(Worker()) as flow:
        await flow.send("x", to="work", headers=under("k", HOUR))

        assert await flow.send("k", to="change twice") == [1, 1, 1, 0, 0]
        assert await flow.scheduled() == []


@EVERY
async def test_what_a_handler_has_cancelled_is_lent_to_nobody_before_it_is_over(started: Start, kind: str) -> None:
    worker = Worker()
    cancelled, handled = anyio.Event(), anyio.Event()

    @command_handler("cancel slowly")
    async def cancel_slowly(key: str, scheduled: ScheduledMessages) -> None:
        assert await scheduled.cancel(key) == 1
        cancelled.set()
        await handled.wait()

    async with started(worker, cancel_slowly) as flow:
        await flow.send("never", to="work", headers=under("k", timedelta(0)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: flow.send("k", to="cancel slowly"))
            await cancelled.wait()
            if kind == "sqlite":  # which has one writer: the consumer waits for the end of the handler
                tasks.start_soon(lambda: flow.run("work"))
            else:
                assert await flow.run("work") == 0
            handled.set()

        assert await flow.run("work") == 0
        assert worker.handled == []


@EVERY
async def test_of_two_that_change_the_same_message_at_once_each_counts_what_it_has_done(started: Start) -> None:
    async with started(Worker()) as flow:
        await flow.send("x", to="work", headers=under("k", MINUTE))
        done: dict[str, int] = {}

        async def change(command: str) -> None:
            done[command] = await flow.send("k", to=command)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change, "put off")
            tasks.start_soon(change, "cancel")

        assert sum(done.values()) >= 1
        assert len(await flow.scheduled()) == 1 - done["cancel"]


async def test_without_a_transaction_it_takes_effect_at_once() -> None:
    @untransacted
    @command_handler("cancel at once")
    async def cancel_at_once(key: str, scheduled: ScheduledMessages) -> None:
        await scheduled.cancel(key)
        raise ValueError("too late")

    async with flow_test([Worker(), cancel_at_once], channels=[MemoryChannel("work"), MemoryChannel("other")]) as flow:
        await flow.send("x", to="work", headers=under("k", HOUR))
        with suppress(ValueError):
            await flow.send("k", to="cancel at once")

        assert await flow.scheduled() == []


# --------------------------------------------------------------------------------------------------- several places


@DATABASES
async def test_what_waits_in_an_outbox_is_told_by_the_channel_it_goes_to(started: Start) -> None:
    async with started(Worker()) as flow:
        on_its_way = {"id": "1", "schedule_key": "k", "delay": "60", "forward_to": 'a "broker"', "endpoint": "ship"}
        await flow.ecotone.assembly.channels["other"].send([Message(b"1", on_its_way)])
        await flow.send("x", to="work", headers={**under("local", HOUR), "note": '"forward_to": "a \\"broker\\""'})

        [one] = await service(flow).list(channel='a "broker"')
        assert (one.key, one.channel, one.endpoint) == ("k", 'a "broker"', "ship")
        assert await service(flow).list(channel="broker") == []
        assert await service(flow).cancel("k") == 1


async def test_memory_and_several_databases_are_looked_through_together(sqlite_url: str) -> None:
    first = SqlAlchemy(sqlite_url, create_schema=True)
    second = SqlAlchemy(sqlite_url.replace("test.db", "second.db"), create_schema=True)
    channels = [MemoryChannel("memory"), first.channel("first"), second.channel("second")]

    def on(channel: str) -> object:
        @asynchronous(channel)
        @event_handler("happened", id=channel)
        async def handle(text: str) -> None: ...

        return handle

    async with flow_test([on("memory"), on("first"), on("second")], channels=channels, plugins=[first, second]) as flow:
        await flow.publish("x", to="happened", headers=under("k", HOUR))
        await flow.publish("x", to="happened", headers=under("sooner", MINUTE))

        assert await keys(flow) == ["sooner"] * 3 + ["k"] * 3
        assert {one.channel for one in await flow.scheduled("k")} == {"memory", "first", "second"}
        assert [one.key for one in await service(flow).list(limit=2, offset=2)] == ["sooner", "k"]
        assert await service(flow).reschedule("k", 2 * HOUR) == 3
        assert await service(flow).cancel("sooner") == 3


async def test_a_channel_in_memory_is_found_behind_what_stands_in_front_of_it_and_when_a_plugin_brings_it() -> None:
    shared = MemoryChannel("work")

    class Front:
        """Stands in front of a channel, which is hidden by it."""

        def __init__(self, inside: Channel) -> None:
            self.inside = inside

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inside, name)

    class Brings:
        def install(self, assembly: Assembly) -> None:
            assembly.wrap_channel("work", lambda channel: Front(channel))
            assembly.add_channel(MemoryChannel("other"))

    async with flow_test([Worker()], channels=[shared], plugins=[Brings()]) as flow:
        await flow.publish("x", to="happened", headers=under("k", HOUR))

        assert {one.channel for one in await flow.scheduled()} == {"work", "other"}


# ------------------------------------------------------------------------------------------------------------- a model

Step = tuple[str, str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "cancel", "reschedule", "advance", "run"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 5),
    ),
    max_size=25,
)


async def do_as_a_model_does(steps: Sequence[Step], url: str | None) -> None:
    """Send, cancel, put off and handle; whatever happens, it is what happens to a list of keys and times."""
    worker, numbers = Worker(), count()
    waiting: dict[int, tuple[str, timedelta]] = {}
    handled: set[int] = set()
    now = timedelta(0)
    plugins, channels = plugins_and_channels(url, ("work", "other"))
    async with flow_test([worker], channels=channels, plugins=plugins) as flow:
        for what, key, minutes in steps:
            due = now + minutes * MINUTE
            under_key = [number for number, (own, _) in waiting.items() if own == key]
            match what:
                case "send":
                    number = next(numbers)
                    await flow.send(str(number), to="work", headers=under(key, minutes * MINUTE))
                    waiting[number] = (key, due)
                case "cancel":
                    assert await flow.send(key, to="cancel") == len(under_key)
                    for number in under_key:
                        del waiting[number]
                case "reschedule":
                    assert await service(flow).reschedule(key, minutes * MINUTE) == len(under_key)
                    waiting.update(dict.fromkeys(under_key, (key, due)))
                case "advance":
                    # Not to the very moment: a server's clock goes on by itself.
                    now += minutes * MINUTE
                    await flow.advance(minutes * MINUTE + timedelta(seconds=0.01))
                case _:
                    ready = {number for number, (_, due) in waiting.items() if due <= now}
                    assert await flow.run("work") == len(ready)
                    handled |= ready
                    for number in ready:
                        del waiting[number]
            assert sorted(await keys(flow)) == sorted(key for key, _ in waiting.values())
        assert set(map(int, worker.handled)) == handled
        assert len(worker.handled) == len(handled)


@given(steps=steps)
@settings(max_examples=60, deadline=None)
async def test_what_waits_in_memory_is_a_list_of_keys_and_times(steps: Sequence[Step]) -> None:
    await do_as_a_model_does(steps, None)


@given(steps=steps)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_what_waits_in_a_database_is_a_list_of_keys_and_times(steps: Sequence[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        await do_as_a_model_does(steps, f"sqlite+aiosqlite:///{directory}/test.db")


async def test_headers_tell_times_in_seconds_only_where_channels_go_by_them() -> None:
    seen: list[str] = []

    @command_handler("note")
    async def note(text: str, patience: Annotated[str, MessageHeader("patience")]) -> None:
        seen.append(patience)

    async with flow_test([note]) as flow:
        await flow.send("x", to="note", headers={"patience": timedelta(minutes=1)})

    assert seen == ["PT1M"]
