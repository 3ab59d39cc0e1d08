"""What is told of an application, and of what cannot be asked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest
from sqlalchemy import event

from ecotone_fastapi import (
    DeadLetter,
    Ecotone,
    EventStore,
    Failures,
    ProjectionState,
    asynchronous,
    command_handler,
    delayed,
    event_handler,
    projection,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import ChannelError, ProjectionError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.core.supervision import Condition, Pauses
from ecotone_fastapi.messaging.outbox import Outbox
from ecotone_fastapi.messaging.relay import Relay, RelaySettings
from ecotone_fastapi.operations import asking
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.operations.report import ChannelReport, Count, Report
from ecotone_fastapi.testing import TravellingClock
from tests.servers import RemoteChannel, Server, until


@asynchronous("orders")
@command_handler("fail", id="fail")
async def fail(order: str) -> None:
    raise ValueError(order)


@asynchronous("orders")
@command_handler("ship", id="ship")
async def ship(order: str) -> None: ...


@delayed(60.0, key="one")
@asynchronous("orders")
@command_handler("wait", id="wait")
async def wait(order: str) -> None: ...


@dataclass(frozen=True)
class Shipped:
    order: str


class Silent(MemoryChannel):
    """A channel whose server does not tell what it is asked."""

    def __init__(self, name: str, answer: Any) -> None:
        super().__init__(name)
        self.answer = answer

    async def depth(self) -> int:
        return int(await self.answer())


async def is_down() -> int:
    raise ChannelError("the broker is down")


async def has_a_bug() -> int:
    raise ZeroDivisionError("a bug")


def channel_of(report: Report, name: str) -> ChannelReport:
    return next(one for one in report.channels if one.name == name)


async def test_what_cannot_be_asked_says_why_and_hides_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    channels = [MemoryChannel("orders"), Silent("down", is_down), Silent("odd", has_a_bug)]
    async with Ecotone([ship], channels=channels).running(consumers=False) as ecotone:
        await ecotone.command_bus.send("1", to="ship")

        report = await ecotone.overview.report()

        assert channel_of(report, "orders").depth == 1
        assert (channel_of(report, "down").depth, channel_of(report, "down").problem) == (
            None,
            "ChannelError: the broker is down",
        )
        assert channel_of(report, "odd").problem == "ZeroDivisionError: a bug"
        assert report.dead_letters == Count(count=0)
        # A server that is down is no news to the log; a bug is.
        assert [record.message for record in caplog.records] == ["the depth of odd cannot tell how it is"]


async def test_a_server_that_does_not_answer_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_ANSWERING", 0.05)
    channels = [MemoryChannel("orders"), Silent("stuck", anyio.sleep_forever)]
    async with Ecotone([ship], channels=channels).running(consumers=False) as ecotone:
        report = await ecotone.overview.report()

        assert channel_of(report, "orders").problem is None
        assert (channel_of(report, "stuck").problem or "").startswith("no answer within")


async def test_a_channel_that_tells_nothing_is_told_as_one() -> None:
    async with Ecotone([], channels=[RemoteChannel("remote", Server())]).running() as ecotone:
        [channel] = (await ecotone.overview.report()).channels

        assert (channel.depth, channel.oldest_age, channel.untold) == (None, None, ("depth", "oldest_age"))
        assert (channel.type, channel.problem, channel.consumer) == ("RemoteChannel", None, None)


async def test_a_consumer_is_told_with_its_condition_and_what_it_waits_for() -> None:
    server = Server()
    server.stop()
    handlers = [asynchronous("remote")(command_handler("later", id="later")(_handle))]
    async with Ecotone(handlers, channels=[RemoteChannel("remote", server)]).running() as ecotone:
        await until(lambda: ecotone.overview.runnables()[0].failures)
        [waiting] = ecotone.overview.runnables()
        assert (waiting.condition, waiting.reason) == (
            Condition.WAITING,
            "ChannelError: the server of channel 'remote' is down",
        )

        server.start()
        await until(lambda: ecotone.overview.runnables()[0].condition is Condition.RUNNING)
        assert ecotone.overview.runnables()[0].reason is None

        await ecotone.consumers.pause("remote", reason="a move")
        [paused] = ecotone.overview.runnables()
        assert (paused.condition, paused.paused, paused.reason) == (Condition.PAUSED, True, "a move")
        assert (paused.pauses[0].reason, paused.pauses[0].until) == ("a move", None)


async def _handle(command: str) -> None: ...


async def test_a_consumer_that_this_process_does_not_run_has_no_condition() -> None:
    async with Ecotone([ship], channels=[MemoryChannel("orders")]).running(consumers=False) as ecotone:
        [consumer] = ecotone.overview.runnables()

        assert (consumer.condition, consumer.handled, consumer.failed) == (None, 0, 0)


async def test_handled_and_failed_are_counted_attempt_by_attempt() -> None:
    plugins = [Failures(DeadLetter())]
    async with Ecotone([fail, ship], channels=[MemoryChannel("orders")], plugins=plugins).running(
        consumers=False
    ) as ecotone:
        for to in ("fail", "ship", "fail", "ship", "ship"):
            await ecotone.command_bus.send("1", to=to)
        await ecotone.run("orders", Limits(until_empty=True))

        [consumer] = ecotone.overview.runnables()

        assert (consumer.handled, consumer.failed) == (3, 2)
        assert (await ecotone.overview.report()).dead_letters.count == 2


async def test_what_waits_under_a_key_is_counted() -> None:
    async with Ecotone([wait], channels=[MemoryChannel("orders")]).running(consumers=False) as ecotone:
        await ecotone.command_bus.send("1", to="wait")

        assert (await ecotone.overview.report()).scheduled == Count(count=1)


async def test_many_who_look_at_the_same_time_cost_as_much_as_one() -> None:
    asked = 0

    async def count() -> int:
        nonlocal asked
        asked += 1
        await anyio.lowlevel.checkpoint()
        return 7

    async with Ecotone([], channels=[Silent("orders", count)]).running() as ecotone:
        found: list[Report] = []

        async def look() -> None:
            found.append(await ecotone.overview.report(max_age=60.0))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(look)

        assert asked == 1
        assert len({id(one) for one in found}) == 1
        assert (await ecotone.overview.report()) is not found[0]
        assert asked == 2


async def test_those_who_wait_for_a_look_that_is_under_way_share_the_next_one() -> None:
    asked = 0
    goes_on = anyio.Event()

    async def count() -> int:
        nonlocal asked
        asked += 1
        await goes_on.wait()
        return asked

    async with Ecotone([], channels=[Silent("orders", count)]).running() as ecotone:
        found: list[int | None] = []

        async def look() -> None:
            found.append(channel_of(await ecotone.overview.report(), "orders").depth)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(look)
                await until(lambda: asked == 1)
            goes_on.set()

        assert asked == 2
        assert sorted(one or 0 for one in found) == [1, *[2] * 9]


async def test_a_handler_may_look_within_its_transaction(sqlite_url: str) -> None:
    @command_handler("look")
    async def look(order: str, overview: Overview) -> Any:
        return await overview.report()

    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with Ecotone([look, ship], channels=[database.channel("orders")], plugins=[database]).running(
        consumers=False
    ) as ecotone:
        await ecotone.command_bus.send("1", to="ship")

        report = await ecotone.command_bus.send("1", to="look")

        assert channel_of(report, "orders").depth == 1
        assert channel_of(report, "orders").problem is None


async def test_a_look_costs_few_statements_however_many_channels_there_are(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    channels = [database.channel("orders"), *(database.channel(f"other-{number}") for number in range(20))]
    async with Ecotone([ship], channels=channels, plugins=[database]).running(consumers=False) as ecotone:
        await ecotone.command_bus.send("1", to="ship")
        await ecotone.overview.report()
        statements: list[str] = []
        event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))

        report = await ecotone.overview.report()

        assert len([one for one in statements if "ecotone_" in one and "paused_at IS NOT NULL" not in one]) == 3
        assert [one.depth for one in report.channels] == [1] + [0] * 20


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def database(request: pytest.FixtureRequest) -> SqlAlchemy:
    return SqlAlchemy(request.getfixturevalue(f"{request.param}_url"), create_schema=True)


async def test_what_is_counted_together_is_what_each_channel_counts(database: SqlAlchemy) -> None:
    clock = TravellingClock()
    names = ["orders", "mails", "bank", "empty", "it's"]
    channels = [database.channel(name) for name in names]
    ecotone = Ecotone([ship], channels=channels, plugins=[database], clock=clock)
    async with ecotone.running(consumers=False):
        orders, mails, bank, _, quoted = channels
        await orders.send([Message(b"1", {"id": "1"}), Message(b"2", {"id": "2", "time_to_live": "30"})])
        await mails.send([Message(b"3", {"id": "3", "delay": "60"}), Message(b"4", {"id": "4", "delay": "600"})])
        await bank.send([Message(b"5", {"id": "5"}), Message(b"6", {"id": "6"})])
        await quoted.send([Message(b"7", {"id": "7"})])
        [lent] = await bank.receive(1, 0)

        for seconds in (0, 10, 60):
            clock.advance(timedelta(seconds=seconds))
            report = await ecotone.overview.report()

            for channel in channels:
                told, age = channel_of(report, channel.name), await channel.oldest_age()
                assert told.depth == await channel.depth(), channel.name
                assert (told.oldest_age is None) is (age is None), channel.name
                assert told.oldest_age == pytest.approx(age, abs=5) if age is not None else told.oldest_age is None
                assert told.problem is None
        await lent.nack(attempted=False)


async def test_a_database_that_is_down_has_a_problem_with_each_channel_and_hides_no_other() -> None:
    away = SqlAlchemy("postgresql+asyncpg://ada@127.0.0.1:1/shop")
    channels = [away.channel("orders"), MemoryChannel("here")]
    async with Ecotone([], channels=channels, plugins=[away]).running(consumers=False, patient=True) as ecotone:
        report = await ecotone.overview.report()

        there, here = channel_of(report, "orders"), channel_of(report, "here")
        assert (there.depth, there.oldest_age, there.untold) == (None, None, ())
        assert (there.problem or "").startswith("ChannelError: ")
        assert (here.depth, here.problem) == (0, None)


async def test_what_was_given_as_the_overview_is_the_overview() -> None:
    class Own(Overview):
        pass

    ecotone = Ecotone([])
    own = Own(ecotone.assembly, list)

    assert Ecotone([], services={Overview: own}).overview is own


@dataclass
class Opened:
    """Something has begun."""


@projection("openings", categories=["wallet"], mode="polling")
class Openings:
    """How many there were."""

    @event_handler
    async def opened(self, event: Opened, count: Annotated[int, ProjectionState(0)]) -> int:
        return count + 1


async def test_a_projection_is_told_with_its_lag() -> None:
    clock = TravellingClock()
    async with Ecotone([Openings], clock=clock).running(consumers=False) as ecotone:
        [before] = (await ecotone.overview.report()).projections
        assert (before.name, before.mode, before.condition, before.version) == ("openings", "polling", None, None)

        await ecotone.projections.init("openings")
        await _append(ecotone, Opened())
        clock.advance(timedelta(seconds=30))

        [behind] = (await ecotone.overview.report()).projections
        assert (behind.condition, behind.version, behind.versions[0].behind) == ("live", 1, 1)
        assert 30 <= (behind.lag or 0) < 40

        await ecotone.run("openings", Limits(until_empty=True))

        [after] = (await ecotone.overview.report()).projections
        assert (after.lag, after.versions[0].behind, after.problem) == (0.0, 0, None)


async def _append(ecotone: Ecotone, happened: object) -> None:
    store: Any = ecotone.assembly.services[EventStore]
    await store.append("wallet-1", [happened])


class Moody(MemoryChannel):
    """A broker that can be lost."""

    delivery = "outbox"
    is_lost = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.capabilities = replace(self.capabilities, durable=True)

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        if self.is_lost:
            raise ChannelError("the broker is down")
        await super().send(messages)


async def test_what_a_relay_cannot_send_is_told_until_it_can(sqlite_url: str) -> None:
    broker, settings = Moody("orders"), RelaySettings(unreachable=Pauses(first=0.01, longest=0.01))
    plugins = [SqlAlchemy(sqlite_url, create_schema=True), Outbox(settings=settings)]
    async with Ecotone([ship], channels=[broker], plugins=plugins).running(consumers=["outbox"]) as ecotone:
        await ecotone.command_bus.send("1", to="ship")
        relay = next(one for one in ecotone.assembly.runnables.values() if isinstance(one, Relay))
        await until(lambda: "orders" in relay.troubles and relay.troubles["orders"].failures >= 2)

        assert _failed(ecotone, "outbox") >= 2
        [lane] = (await ecotone.overview.report()).outbox
        assert (lane.failures >= 2, lane.last_error) == (True, "ChannelError: the broker is down")
        [same] = await ecotone.overview.outbox(await ecotone.overview.outboxes())
        assert same.last_error == lane.last_error

        broker.is_lost = False
        await until(lambda: relay.handled == 1 and not relay.troubles)
        [lane] = (await ecotone.overview.report()).outbox
        assert (lane.depth, lane.failures, lane.last_error) == (0, 0, None)


async def test_what_could_not_be_sent_is_no_trouble_any_more_when_it_is_gone(sqlite_url: str) -> None:
    settings = RelaySettings(unreachable=Pauses(first=0.01, longest=0.01))
    plugins = [SqlAlchemy(sqlite_url, create_schema=True), Outbox(settings=settings)]
    async with Ecotone([ship], channels=[Moody("orders")], plugins=plugins).running(consumers=["outbox"]) as ecotone:
        await ecotone.command_bus.send("1", to="ship")
        relay = next(one for one in ecotone.assembly.runnables.values() if isinstance(one, Relay))
        await until(lambda: "orders" in relay.troubles)

        outbox: Any = relay.lanes["orders"].outbox
        while await outbox.depth():  # as if another relay had sent it
            await outbox.purge()

        await until(lambda: not relay.troubles)


@pytest.mark.parametrize("partitioned", [False, True])
async def test_how_often_a_projection_has_failed_is_told(partitioned: bool) -> None:
    @projection("broken", categories=["order"], mode="asynchronous", partitioned=partitioned)
    class Broken:
        @event_handler
        async def count(self, event: Shipped) -> None:
            raise ValueError("unlucky")

    async with Ecotone([Broken]).running(consumers=False) as ecotone:
        store: Any = ecotone.assembly.services[EventStore]
        await store.append("order-1", [Shipped("1")])
        assert _failed(ecotone, "broken") == 0
        for _ in range(2):
            with pytest.raises(ProjectionError):
                await ecotone.run("broken", Limits(until_empty=True))
            await ecotone.projections.retry("broken")

        assert _failed(ecotone, "broken") == 2


def _failed(ecotone: Ecotone, name: str) -> int:
    [found] = [one.failed for one in ecotone.overview.runnables() if one.name == name]
    assert found is not None
    return found
