"""Consumers that pause: because somebody says so, and by themselves when everything fails."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings

from ecotone_fastapi import (
    AsynchronousHandlers,
    Backoff,
    CircuitBreaker,
    ConfigurationError,
    Consumers,
    ConsumerSettings,
    Ecotone,
    Failures,
    asynchronous,
    command_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Assembly, Limits, Message
from ecotone_fastapi.core.errors import ChannelError, ConversionError
from ecotone_fastapi.core.supervision import Condition
from ecotone_fastapi.testing import Flow, flow_test
from tests.databases import MARIADB, POSTGRESQL, SQLITE
from tests.orders import SENT, MovingClock, Sent, handled_in_order
from tests.servers import until


@dataclass(frozen=True)
class Send:
    mail: str


class Mails:
    """A mail server behind a handler; a test lets it fail, and holds what is under way."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.sent: list[str] = []
        self.tried: list[str] = []
        self.under_way = anyio.Event()
        self.go = anyio.Event()
        self.go.set()

    def hold(self) -> None:
        self.go = anyio.Event()

    @asynchronous("mails")
    @command_handler(id="send-mail")
    async def send(self, command: Send) -> None:
        self.tried.append(command.mail)
        self.under_way.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(command.mail)


SELDOM = 600.0  # seconds: no sooner than any test has ended


def flow_of(mails: Mails, *plugins: Any, channel: MemoryChannel | None = None) -> Any:
    return flow_test([mails], channels=[channel or MemoryChannel("mails")], plugins=plugins)


async def send(flow: Flow | Ecotone, *mails: str) -> None:
    ecotone = flow.ecotone if isinstance(flow, Flow) else flow
    for mail in mails:
        await ecotone.command_bus.send(Send(mail))


def ecotone_of(mails: Mails, *plugins: Any, **settings: int) -> tuple[Ecotone, MemoryChannel]:
    channel = MemoryChannel("mails")
    consumers = AsynchronousHandlers(consumers={"mails": ConsumerSettings(**settings)})
    return Ecotone([mails], channels=[channel], plugins=[*plugins, consumers]), channel


# ------------------------------------------------------------------------------------------------- pause and resume


async def test_a_consumer_that_pauses_receives_nothing_until_it_is_resumed() -> None:
    async with flow_of(mails := Mails()) as flow:
        await flow.ecotone.consumers.pause("mails", reason="the mail server moves")
        await send(flow, "a", "b")

        assert await flow.run("mails") == 0
        assert mails.tried == []
        assert flow.ecotone.consumers.paused()["mails"].reason == "the mail server moves"

        await flow.ecotone.consumers.resume("mails")
        assert await flow.run("mails") == 2
        assert flow.ecotone.consumers.paused() == {}


async def test_it_finishes_what_is_under_way_and_gives_back_the_rest_untouched() -> None:
    mails = Mails()
    mails.hold()
    ecotone, channel = ecotone_of(mails, concurrency=2, batch=10)
    async with ecotone.running():
        await send(ecotone, *"abcdef")
        await until(lambda: len(mails.tried) == 2)

        await ecotone.consumers.pause("mails")
        await until(lambda: len(channel.queue.waiting()) == 4)
        mails.go.set()
        await until(lambda: len(mails.sent) == 2)
        await send(ecotone, "g")
        with anyio.fail_after(60):
            deliveries = await channel.receive(10, 5.0)

        assert [one.message.payload for one in deliveries] == [b'{"mail":"%c"}' % name for name in b"cdefg"]
        assert [(one.count, one.message.headers.get("attempt")) for one in deliveries] == [(1, None)] * 5
        assert mails.tried == ["a", "b"]


async def test_a_running_consumer_goes_on_at_once_when_it_is_resumed() -> None:
    ecotone, _ = ecotone_of(mails := Mails(), Consumers(interval=SELDOM))
    async with ecotone.running():
        await ecotone.consumers.pause("mails")
        await send(ecotone, "a")
        with anyio.fail_after(60):  # sooner than it looks by itself
            await anyio.wait_all_tasks_blocked()
            assert mails.tried == []
            await ecotone.consumers.resume("mails")
            await mails.under_way.wait()


async def test_a_consumer_that_waits_for_messages_pauses_at_once() -> None:
    ecotone, channel = ecotone_of(mails := Mails())
    async with ecotone.running():
        await anyio.wait_all_tasks_blocked()  # it waits in receive
        await ecotone.consumers.pause("mails")
        await send(ecotone, "a")
        await anyio.wait_all_tasks_blocked()

        assert mails.tried == []
        (delivery,) = await channel.receive(10, 0)
        assert delivery.count == 1


@pytest.mark.parametrize(
    "limits", [Limits(until_empty=True), Limits(seconds=0.01), Limits(messages=1, seconds=0.01)], ids=str
)
async def test_limits_end_a_consumer_that_pauses(limits: Limits) -> None:
    async with flow_of(Mails(), Consumers(interval=SELDOM)) as flow:
        await flow.ecotone.consumers.pause("mails")
        await send(flow, "a")

        with anyio.fail_after(60):
            assert await flow.run("mails", limits) == 0


async def test_a_consumer_that_pauses_can_be_stopped() -> None:
    ecotone, _ = ecotone_of(Mails(), Consumers(interval=SELDOM))
    with anyio.fail_after(60):
        async with ecotone.running():
            await ecotone.consumers.pause("mails")
            await send(ecotone, "a")
            await anyio.wait_all_tasks_blocked()


async def test_to_pause_or_resume_twice_is_to_do_it_once() -> None:
    async with flow_of(Mails()) as flow:
        consumers = flow.ecotone.consumers
        await consumers.resume("mails")
        await consumers.pause("mails", reason="first")
        await consumers.pause("mails", reason="second")
        assert consumers.paused()["mails"].reason == "second"

        await consumers.resume("mails")
        await send(flow, "a")
        assert await flow.run("mails") == 1


async def test_only_consumers_can_pause() -> None:
    async with flow_of(Mails()) as flow:
        for act in (flow.ecotone.consumers.pause, flow.ecotone.consumers.resume):
            with pytest.raises(ConfigurationError, match="no consumer 'letters'"):
                await act("letters")


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="every 0 seconds"):
        Consumers(interval=0)


async def test_a_handler_may_ask_for_the_consumers_by_type() -> None:
    class Operations:
        @command_handler("stop-mails")
        async def stop(self, reason: str, consumers: Consumers) -> None:
            await consumers.pause("mails", reason=reason)

    async with flow_test([Mails(), Operations()], channels=[MemoryChannel("mails")]) as flow:
        await flow.send("too many bounces", to="stop-mails")

        assert flow.ecotone.consumers.paused()["mails"].reason == "too many bounces"


async def test_readiness_tells_that_a_consumer_pauses_and_is_ready_all_the_same() -> None:
    app = FastAPI()
    ecotone, _ = ecotone_of(Mails())
    ecotone.install(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await until(lambda: ecotone.consumers is not None)
        await anyio.wait_all_tasks_blocked()
        await ecotone.consumers.pause("mails", reason="the mail server moves")

        answer = await client.get("/ecotone/health/ready")

        assert answer.status_code == 200
        told = answer.json()["consumers"]["mails"]
        assert told["condition"] == "paused"
        assert told["pauses"][0]["reason"] == "the mail server moves"
        assert told["pauses"][0]["since"] == ecotone.consumers.paused()["mails"].since.isoformat()

        await ecotone.consumers.resume("mails")
        told = (await client.get("/ecotone/health/ready")).json()["consumers"]["mails"]
        assert told["condition"] == "running"
        assert "pauses" not in told


# ------------------------------------------------------------------------------------------------ several processes


class Processes:
    """Applications on one database, as several processes have them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.mails = Mails()

    @asynccontextmanager
    async def another(self, *, interval: float = 60.0, consumers: bool = False) -> AsyncIterator[Ecotone]:
        database = SqlAlchemy(self.url, create_schema=True)
        plugins = [database, Consumers(interval=interval)]
        ecotone = Ecotone([self.mails], channels=[database.channel("mails")], plugins=plugins)
        async with ecotone.running(consumers=consumers):
            yield ecotone


EVERY = pytest.mark.parametrize("kind", [SQLITE, POSTGRESQL, MARIADB])


@pytest.fixture
def processes(url: str) -> Processes:
    return Processes(url)


@EVERY
async def test_a_pause_is_for_all_processes_and_outlives_them(processes: Processes) -> None:
    async with processes.another() as here:
        await here.consumers.pause("mails", reason="it’s moving")
        since = here.consumers.paused()["mails"].since

    async with processes.another() as there:
        (hold,) = there.consumers.paused().values()
        assert (hold.reason, hold.since) == ("it’s moving", since)
        await send(there, "a")
        assert await there.run("mails", Limits(until_empty=True)) == 0
        await there.consumers.resume("mails")

    async with processes.another() as later:
        assert await later.run("mails", Limits(until_empty=True)) == 1


@EVERY
async def test_processes_that_run_learn_of_a_pause_by_looking(processes: Processes) -> None:
    async with processes.another() as here, processes.another() as there:
        await here.consumers.pause("mails")
        assert there.consumers.paused() == {}

        await there.consumers.look()
        assert "mails" in there.consumers.paused()

        await here.consumers.resume("mails")
        await there.consumers.look()
        assert there.consumers.paused() == {}


@pytest.mark.parametrize("kind", [SQLITE])
async def test_a_process_looks_from_time_to_time(processes: Processes) -> None:
    async with (
        processes.another(interval=0.01, consumers=True) as there,
        processes.another() as here,
    ):
        await here.consumers.pause("mails", reason="for all")
        await until(there.consumers.paused)
        assert next(one for one in (await there.health()).runnables).condition is Condition.PAUSED

        await send(here, "a")
        await here.consumers.resume("mails")
        with anyio.fail_after(60):
            await processes.mails.under_way.wait()


@EVERY
async def test_a_handler_that_fails_has_paused_nobody_else(processes: Processes) -> None:
    async with processes.another() as there:

        class Operations:
            @command_handler("stop-mails")
            async def stop(self, reason: str, consumers: Consumers) -> None:
                await consumers.pause("mails", reason=reason)
                raise OSError(reason)

        database = SqlAlchemy(processes.url, create_schema=True)
        channel = database.channel("mails")
        ecotone = Ecotone([Operations(), Mails()], channels=[channel], plugins=[database])
        async with ecotone.running(consumers=False):
            with pytest.raises(OSError, match="stop"):
                await ecotone.command_bus.send("stop", to="stop-mails")
            await ecotone.consumers.look()
            assert ecotone.consumers.paused() == {}

        await there.consumers.look()
        assert there.consumers.paused() == {}


async def test_what_was_said_meanwhile_counts_more_than_what_was_read(sqlite_url: str) -> None:
    async with Processes(sqlite_url).another() as ecotone:
        database = next(one for one in ecotone.assembly.plugins if isinstance(one, SqlAlchemy))
        read = database.pauses.paused

        async def read_slowly() -> Any:
            found = await read()
            await ecotone.consumers.pause("mails", reason="while somebody reads")
            return found

        database.pauses.paused = read_slowly  # type: ignore[method-assign]
        await ecotone.consumers.look()

        assert "mails" in ecotone.consumers.paused()


async def test_a_database_that_does_not_answer_leaves_everything_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ecotone_fastapi.protection")
    database = SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")  # without tables
    mails = Mails()
    ecotone = Ecotone(
        [mails], channels=[MemoryChannel("mails")], plugins=[database, Consumers(interval=0.01)], consumers=True
    )
    async with ecotone.running():
        assert ecotone.consumers.paused() == {}
        await send(ecotone, "a")
        with anyio.fail_after(60):
            await mails.under_way.wait()
        with pytest.raises(ChannelError):
            await ecotone.consumers.pause("mails")
        assert ecotone.consumers.paused() == {}

    assert [record.getMessage()[:40] for record in caplog.records] == ["cannot look which consumers pause: looki"]


# ------------------------------------------------------------------------------------------------- circuit breaker


BREAKER = CircuitBreaker(failures=3, pause=30.0, longest=100.0, jitter=0.0)
PATIENT = Failures(Backoff(retries=50, first=1.0, factor=1.0, jitter=0.0))


async def run(flow: Flow, seconds: float = 0.0) -> int:
    await flow.advance(timedelta(seconds=seconds))
    return await flow.run("mails", raises=False)


async def test_after_so_many_failures_in_a_row_the_consumer_pauses_and_its_messages_wait() -> None:
    async with flow_of(mails := Mails(), BREAKER, PATIENT) as flow:
        mails.error = OSError("the mail server is down")
        await send(flow, *"abcdef")

        await run(flow)

        assert mails.tried == ["a", "b", "c"]
        assert len(await flow.waiting("mails")) == 6
        assert await flow.dead_letters() == []
        attempts = sorted(message.headers.get("attempt", "0") for message in await flow.waiting("mails"))
        assert attempts == ["0", "0", "0", "1", "1", "1"]
        await run(flow, 29)
        assert len(mails.tried) == 3


async def test_after_the_pause_one_message_is_tried_and_its_success_lets_all_go_on() -> None:
    async with flow_of(mails := Mails(), BREAKER, PATIENT) as flow:
        mails.error = OSError("down")
        await send(flow, *"abcdef")
        await run(flow)

        mails.error = None
        assert await run(flow, 31) == 6
        assert len(mails.tried) == 9

        mails.error = OSError("down")
        await send(flow, *"ghij")
        await run(flow)
        assert len(mails.tried) == 12  # it takes three failures again


async def test_a_failure_of_the_one_that_is_tried_makes_the_pause_longer_up_to_a_limit() -> None:
    async with flow_of(mails := Mails(), BREAKER, PATIENT) as flow:
        mails.error = OSError("down")
        await send(flow, *"abcdef")
        await run(flow)

        for pause, tried in ((30, 4), (60, 5), (100, 6), (100, 7)):
            await run(flow, pause - 1)
            assert len(mails.tried) == tried - 1
            await run(flow, 1.5)
            assert len(mails.tried) == tried


async def test_only_one_message_is_tried_however_many_could_be_handled_at_a_time() -> None:
    mails = Mails()
    mails.error = OSError("down")
    consumers = AsynchronousHandlers(consumers={"*": ConsumerSettings(concurrency=10)})
    async with flow_of(mails, BREAKER, PATIENT, consumers) as flow:
        await send(flow, *"abcdefghijkl")
        await run(flow)
        before = len(mails.tried)

        await run(flow, 31)

        assert before <= 3 + 10
        assert len(mails.tried) == before + 1


async def test_what_was_under_way_when_it_opened_neither_closes_it_nor_opens_it_further() -> None:
    mails = Mails()
    ecotone, _ = ecotone_of(mails, BREAKER, PATIENT, concurrency=6)
    async with ecotone.running():
        mails.hold()
        mails.error = OSError("down")
        await send(ecotone, *"abcdef")
        await until(lambda: len(mails.tried) == 6)
        mails.go.set()
        await anyio.wait_all_tasks_blocked()

        (health,) = (await ecotone.health()).runnables
        (hold,) = health.holds
        assert health.condition is Condition.PAUSED
        assert health.ready
        assert hold.reason == "3 failures in a row, the last one OSError: down"
        assert hold.until is not None
        assert hold.until - hold.since == timedelta(seconds=30)


async def test_a_success_in_between_makes_it_count_anew() -> None:
    async with flow_of(mails := Mails(), BREAKER, PATIENT) as flow:
        for name in "abc":
            mails.error = OSError("down")
            await send(flow, name)
            await run(flow)
            mails.error = None
            await send(flow, f"good {name}")
            assert await run(flow) == 1


async def test_failures_that_tell_of_no_outage_do_not_count() -> None:
    async with flow_of(mails := Mails(), BREAKER) as flow:
        mails.error = ConversionError("unreadable")
        await send(flow, *"abcdef")

        await run(flow)

        assert len(mails.tried) == 6
        assert len(await flow.dead_letters()) == 6


async def test_what_counts_can_be_told() -> None:
    breaker = CircuitBreaker(failures=1, counts=lambda error: isinstance(error, OSError))
    async with flow_of(mails := Mails(), breaker, PATIENT) as flow:
        mails.error = ValueError("a bug")
        await send(flow, "a", "b")
        await run(flow)
        assert mails.tried == ["a", "b"]

        mails.error = OSError("down")
        await run(flow, 1.5)
        assert len(mails.tried) == 3


async def test_a_message_that_can_never_succeed_is_parked_and_does_not_stop_the_channel_for_ever() -> None:
    policy = Failures(Backoff(retries=2, first=1.0, factor=1.0, jitter=0.0))
    async with flow_of(mails := Mails(), CircuitBreaker(failures=1, pause=10.0, jitter=0.0), policy) as flow:
        mails.error = OSError("poison")
        await send(flow, "poison")
        await run(flow)
        await run(flow, 11)
        await run(flow, 21)
        assert len(await flow.dead_letters()) == 1

        mails.error = None
        await send(flow, "good")
        assert await run(flow, 41) == 1


async def test_a_breaker_protects_the_channels_that_it_is_given_for() -> None:
    @asynchronous("other")
    @command_handler("other", id="other")
    async def fail(name: str) -> None:
        tried.append(name)
        raise OSError

    tried: list[str] = []
    breaker = CircuitBreaker(failures=1, channels=["mails"])
    channels = [MemoryChannel("mails"), MemoryChannel("other")]
    async with flow_test([Mails(), fail], channels=channels, plugins=[breaker, PATIENT]) as flow:
        for name in "abc":
            await flow.send(name, to="other")
        await flow.run("other", raises=False)

        assert tried == ["a", "b", "c"]


async def test_a_breaker_for_a_channel_without_consumer_is_a_mistake_found_at_start() -> None:
    with pytest.raises(ConfigurationError, match="letters"):
        async with flow_of(Mails(), CircuitBreaker(channels="letters")):
            pass


@pytest.mark.parametrize(
    "settings",
    [{"failures": 0}, {"pause": 0.0}, {"pause": 10.0, "longest": 5.0}, {"jitter": 1.0}, {"longest": float("inf")}],
    ids=str,
)
def test_a_breaker_that_protects_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="protects nothing"):
        CircuitBreaker(**settings)


async def test_a_pause_and_a_breaker_hold_back_independently() -> None:
    async with flow_of(mails := Mails(), BREAKER, PATIENT) as flow:
        mails.error = OSError("down")
        await send(flow, *"abcd")
        await run(flow)
        await flow.ecotone.consumers.pause("mails")
        mails.error = None

        assert await run(flow, 31) == 0
        await flow.ecotone.consumers.resume("mails")
        assert await run(flow) == 4


async def test_a_running_consumer_tries_by_itself_when_the_pause_is_over() -> None:
    mails = Mails()
    mails.error = OSError("down")
    breaker = CircuitBreaker(failures=1, pause=0.05, jitter=0.0)
    ecotone, _ = ecotone_of(mails, breaker, Failures(Backoff(retries=50, first=0.01)))
    async with ecotone.running():
        await send(ecotone, "a", "b")
        await until(lambda: len(mails.tried) >= 3)
        mails.error = None
        await until(lambda: len(mails.sent) == 2)
        assert (await ecotone.health()).runnables[0].condition is Condition.RUNNING


async def test_an_application_that_starts_again_begins_with_a_closed_circuit() -> None:
    mails = Mails()
    ecotone, _ = ecotone_of(mails, CircuitBreaker(failures=1), PATIENT)
    async with ecotone.running(consumers=False):
        mails.error = OSError("down")
        await send(ecotone, "a", "b")
        await ecotone.run("mails", Limits(until_empty=True))
        mails.error = None
        assert await ecotone.run("mails", Limits(until_empty=True)) == 0

    async with ecotone.running(consumers=False):
        assert await ecotone.run("mails", Limits(messages=1)) == 1


def test_plugins_tell_how_they_are_set() -> None:
    assert repr(CircuitBreaker(failures=5)) == "CircuitBreaker(failures=5, pause=30.0)"
    assert repr(Consumers()) == "Consumers(interval=5.0)"


async def test_a_plugin_of_ones_own_may_hold_a_consumer_back() -> None:
    class Night:
        """Nothing is sent at night."""

        def install(self, assembly: Assembly) -> None:
            self.assembly = assembly

    async with flow_of(mails := Mails(), night := Night()) as flow:
        from ecotone_fastapi.core import Consumer, Hold

        consumer = night.assembly.runnables["mails"]
        assert isinstance(consumer, Consumer)
        consumer.hold(night, Hold(reason="night", since=flow.clock.now()))
        await send(flow, "a")
        assert await flow.run("mails") == 0

        consumer.let_go_on(night)
        consumer.let_go_on(night)
        assert await flow.run("mails") == 1
        assert mails.sent == ["a"]


# ----------------------------------------------------------------------------------------------- order in memory


def letter(name: str, key: str, **headers: str) -> Message[bytes]:
    return Message(name.encode(), {"id": name, "partition_key": key, **headers})


async def names(channel: MemoryChannel, act: Callable[[Any], Any] = lambda delivery: delivery.ack()) -> Sequence[str]:
    deliveries = await channel.receive(10, 0)
    for delivery in deliveries:
        await act(delivery)
    return [delivery.message.payload.decode() for delivery in deliveries]


async def test_a_channel_in_memory_keeps_the_order_of_a_key_when_told_to() -> None:
    clock = MovingClock()
    channel = MemoryChannel("orders", keeps_order=True, clock=clock)
    await channel.send([letter("a1", "a"), letter("a2", "a"), letter("b1", "b", time_to_live="5"), letter("b2", "b")])

    assert await names(channel, lambda delivery: delivery.nack(30.0)) == ["a1", "b1"]
    assert await names(channel) == []
    clock.offset += timedelta(seconds=31)
    assert await names(channel) == ["a1", "b2"]
    assert await names(channel) == ["a2"]
    assert await channel.depth() == 0


@settings(max_examples=100, deadline=None)
@given(sent=SENT)
async def test_in_memory_each_key_is_handled_in_the_order_of_sending(sent: Sequence[Sent]) -> None:
    clock = MovingClock()
    first = MemoryChannel("orders", keeps_order=True, clock=clock)

    await handled_in_order([first, MemoryChannel("orders", queue=first.queue), first], clock, sent)
