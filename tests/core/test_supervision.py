"""What keeps an application running, and tells how it is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Assembly, Limits
from ecotone_fastapi.core.supervision import Condition, Pauses, RunnableHealth, Supervisor, supervise
from ecotone_fastapi.testing.faults import FailingChannel
from tests.servers import RemoteChannel, Server, until

AT_ONCE = Pauses(first=0.0)


class Script:
    """A runnable that does one thing after the other, one a run."""

    def __init__(self, *runs: Callable[[Limits], Awaitable[int]], name: str = "script") -> None:
        self.name = name
        self.limits: list[Limits] = []
        self._runs = list(runs)

    async def run(self, limits: Limits) -> int:
        self.limits.append(limits)
        return await self._runs.pop(0)(limits)


def handles(number: int) -> Callable[[Limits], Awaitable[int]]:
    async def run(limits: Limits) -> int:
        return number

    return run


def fails(error: BaseException) -> Callable[[Limits], Awaitable[int]]:
    async def run(limits: Limits) -> int:
        raise error

    return run


async def until_stopped(limits: Limits) -> int:
    assert limits.stop is not None
    await limits.stop.wait()
    return 0


async def for_ever(limits: Limits) -> int:
    await anyio.sleep_forever()
    return 0


def endless() -> Limits:
    return Limits(stop=anyio.Event())


# ---------------------------------------------------------------------------------------------------- one runnable


async def test_a_runnable_that_has_nothing_left_to_do_has_ended_and_is_ready() -> None:
    health = RunnableHealth("script")

    await supervise(Script(handles(3)), health, endless())

    assert (health.condition, health.handled, health.ready) == (Condition.ENDED, 3, True)


async def test_a_runnable_that_fails_is_run_again_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    health = RunnableHealth("script")
    script = Script(fails(ChannelError("gone")), fails(ChannelError("still gone")), handles(1))

    await supervise(script, health, endless(), AT_ONCE)

    assert (health.condition, health.failures, health.last_error) == (
        Condition.ENDED,
        2,
        "ChannelError: still gone",
    )
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_a_bug_is_logged_with_its_traceback_and_does_not_end_the_runnable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health = RunnableHealth("script")

    await supervise(Script(fails(ZeroDivisionError("a bug")), handles(0)), health, endless(), AT_ONCE)

    assert health.last_error == "ZeroDivisionError: a bug"
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


class Odd(BaseException):
    """Not an Exception, and not the end of the program either."""


async def test_whatever_is_raised_takes_nothing_else_down() -> None:
    health = RunnableHealth("script")

    await supervise(Script(fails(Odd("?")), handles(0)), health, endless(), AT_ONCE)

    assert health.last_error == "Odd: ?"


async def test_the_end_of_the_program_is_not_held_up() -> None:
    health = RunnableHealth("script")

    with pytest.raises(SystemExit):
        await supervise(Script(fails(SystemExit())), health, endless())

    assert health.condition is Condition.STOPPED


async def test_a_runnable_that_is_told_to_stop_stops_and_is_not_ready() -> None:
    health, limits = RunnableHealth("script"), endless()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, Script(until_stopped), health, limits)
        await until(lambda: health.condition is Condition.RUNNING)
        assert health.ready

        limits.stop.set()

    assert (health.condition, health.ready) == (Condition.STOPPED, False)


async def test_a_pause_ends_when_the_runnable_is_told_to_stop() -> None:
    health, limits = RunnableHealth("script"), endless()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            supervise, Script(fails(ChannelError("gone"))), health, limits, Pauses(first=1000, longest=1000)
        )
        await until(lambda: health.condition is Condition.WAITING)
        assert not health.ready

        limits.stop.set()

    assert health.condition is Condition.STOPPED


async def test_what_fails_while_it_stops_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    limits = endless()

    async def stop_and_fail(now: Limits) -> int:
        limits.stop.set()
        raise ChannelError("gone")

    health = RunnableHealth("script")

    await supervise(Script(stop_and_fail), health, limits)

    assert health.condition is Condition.STOPPED
    assert not caplog.records


async def test_a_cancelled_runnable_has_stopped() -> None:
    health = RunnableHealth("script")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, Script(for_ever), health, endless())
        await until(lambda: health.condition is Condition.RUNNING)
        tasks.cancel_scope.cancel()

    assert health.condition is Condition.STOPPED


async def test_failures_before_a_long_good_run_are_forgotten() -> None:
    health = RunnableHealth("script")
    gone = ChannelError("gone")

    # Every run is longer than a longest pause of nothing.
    await supervise(Script(fails(gone), fails(gone), fails(gone), handles(0)), health, endless(), Pauses(longest=-1.0))

    assert health.failures == 1


async def test_the_limits_hold_for_all_attempts_together() -> None:
    health = RunnableHealth("orders")
    gateway = Gateway(Conversion(), SystemClock())
    channel = FailingChannel(MemoryChannel("orders"), receives=0)
    reached: list[object] = []

    async def target(call: object) -> None:
        reached.append(call)
        channel.receives = 1 if len(reached) == 2 else 0

    consumer = Consumer(channel, gateway, target=target, batch=1)
    await channel.send([Message(b"", {"id": str(number)}) for number in range(9)])

    limits = Limits(messages=5, seconds=60.0, stop=anyio.Event())
    await supervise(consumer, health, limits, AT_ONCE)

    assert (health.failures, health.handled, len(reached)) == (1, 5, 5)


async def test_a_runnable_whose_time_is_over_is_not_tried_again() -> None:
    health = RunnableHealth("script")
    script = Script(fails(ChannelError("gone")))

    await supervise(script, health, Limits(seconds=0.01, stop=anyio.Event()), Pauses(first=1000, longest=1000))

    assert (health.condition, len(script.limits)) == (Condition.ENDED, 1)
    assert script.limits[0].seconds == pytest.approx(0.01, rel=0.5)


async def test_a_consumer_runs_only_on_a_channel_that_can_be_opened() -> None:
    server, health = Server(), RunnableHealth("orders")
    consumer = Consumer(RemoteChannel("orders", server), Gateway(Conversion(), SystemClock()))
    server.stop()
    health.failed(ChannelError("down at start"))
    limits = endless()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, consumer, health, limits, Pauses(first=0.001, longest=0.001))
        await until(lambda: health.failures > 3)
        assert (health.condition, server.opened, server.receiving) == (Condition.WAITING, 0, 0)

        server.start()
        await until(lambda: server.receiving == 1)

        assert (health.condition, server.opened) == (Condition.RUNNING, 1)
        limits.stop.set()


# ---------------------------------------------------------------------------------------------------------- pauses


def test_each_pause_is_twice_as_long_until_it_is_long_enough() -> None:
    pauses = Pauses(first=1.0, longest=10.0, jitter=0.0)

    assert [pauses.after(failures) for failures in (1, 2, 3, 4, 5, 100_000)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_pauses_differ_by_chance_so_that_not_all_come_back_at_once() -> None:
    pauses = [Pauses(first=1.0, jitter=0.2).after(1) for _ in range(100)]

    assert len(set(pauses)) > 90
    assert 0.8 <= min(pauses) < max(pauses) <= 1.2


# ------------------------------------------------------------------------------------------------ a whole assembly


def supervisor(*channels: RemoteChannel, plugins: tuple[object, ...] = (), **parts: object) -> Supervisor:
    assembly = Assembly(Gateway(Conversion(), SystemClock()), **parts)
    for channel in channels:
        assembly.add_channel(channel)
    return Supervisor(assembly, plugins)


async def test_lifespans_stand_around_the_channels_and_all_is_closed_in_the_end() -> None:
    server, seen = Server(), list[tuple[str, int]]()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        seen.append(("before", server.opened))
        yield
        seen.append(("after", server.closed))

    supervised = supervisor(RemoteChannel("a", server), RemoteChannel("b", server), lifespans=[lifespan])

    async with supervised.open(patient=False):
        assert (supervised.running, server.opened, server.closed) == (True, 2, 0)

    assert (supervised.running, seen) == (False, [("before", 0), ("after", 2)])


async def test_it_cannot_be_open_twice_at_a_time_but_again_afterwards() -> None:
    supervised = supervisor()

    async with supervised.open(patient=False):
        with pytest.raises(ConfigurationError, match="running already"):
            async with supervised.open(patient=False):
                pass
        assert supervised.running
    async with supervised.open(patient=False):
        assert supervised.running


async def test_a_consumer_whose_channel_is_down_at_start_opens_it_when_its_server_comes() -> None:
    server = Server()
    server.stop()
    channel = RemoteChannel("orders", server)
    consumer = Consumer(channel, Gateway(Conversion(), SystemClock()))
    supervised = supervisor(channel)

    async with supervised.open([consumer], patient=True), supervised.run_beside([consumer], grace=1.0):
        await until(lambda: supervised.runnables["orders"].condition is Condition.WAITING)
        assert supervised.runnables["orders"].last_error == "ChannelError: the server of channel 'orders' is down"
        server.start()
        await until(lambda: server.receiving == 1)
        assert supervised.runnables["orders"].ready

    assert (server.opened, server.closed) == (1, 1)


async def test_without_patience_a_server_that_is_down_is_an_error_and_what_is_open_is_closed() -> None:
    up, down = Server(), Server()
    down.stop()
    supervised = supervisor(RemoteChannel("a", up), RemoteChannel("b", down))

    with pytest.raises(ChannelError, match="'b'"):
        async with supervised.open(patient=False):
            pass

    assert (up.opened, up.closed, supervised.running) == (1, 1, False)


async def test_with_patience_a_channel_that_nobody_consumes_is_opened_when_its_server_comes() -> None:
    server = Server()
    server.stop()
    supervised = supervisor(RemoteChannel("a", server))

    async with supervised.open(patient=True):
        await until_answer(supervised, {"a": "ChannelError: the server of channel 'a' is down"})
        server.start()
        await until_answer(supervised, {"a": None})

    assert (server.opened, server.closed) == (1, 1)


async def until_answer(supervised: Supervisor, answer: dict[str, str | None]) -> None:
    with anyio.fail_after(60):
        while await supervised.check() != answer:
            await checkpoint()


async def test_a_channel_that_does_not_open_in_time_does_not_hold_up_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ecotone_fastapi.core.supervision._OPENING", 0.01)
    server = Server()
    server.hang()
    supervised = supervisor(RemoteChannel("a", server), RemoteChannel("b", server))

    async with supervised.open(patient=True):
        answers = await supervised.check()
        server.start()

    assert answers == {
        "a": "ChannelError: channel 'a' could not be opened in time",
        "b": "ChannelError: channel 'b' could not be opened in time",
    }


async def test_a_server_that_is_not_prepared_is_an_error_even_with_patience() -> None:
    server = Server()
    server.fail(ConfigurationError("a table is missing"))

    with pytest.raises(ConfigurationError, match="a table is missing"):
        async with supervisor(RemoteChannel("a", server)).open(patient=True):
            pass


async def test_a_channel_that_cannot_be_closed_is_only_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecotone_fastapi.core.supervision._CLOSING", 0.01)
    lost, hanging = Server(), Server()

    async with supervisor(RemoteChannel("lost", lost), RemoteChannel("hanging", hanging)).open(patient=False):
        lost.stop()
        hanging.hang()

    assert [record.getMessage() for record in caplog.records] == [
        "channel lost was not closed properly: ChannelError: the server of channel 'lost' is down",
        "channel hanging was not closed in time",
    ]


async def test_channels_are_closed_also_when_everything_is_cancelled() -> None:
    server = Server()

    with anyio.CancelScope() as scope:
        async with supervisor(RemoteChannel("a", server)).open(patient=False):
            scope.cancel()
            await checkpoint()

    assert server.closed == 1


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    supervised = supervisor()
    script = Script(until_stopped)

    with pytest.raises(KeyError, match="mine"):
        async with supervised.open([script], patient=True), supervised.run_beside([script], grace=1.0):
            raise KeyError("mine")

    assert supervised.runnables["script"].condition is Condition.STOPPED


async def test_what_runs_beside_begins_apart_from_what_is_current_and_what_the_caller_runs_does_not() -> None:
    current, seen = ContextVar[str]("current"), []

    async def look(limits: Limits) -> int:
        seen.append(current.get())
        return 0

    looking = Script(look, look)
    supervised = supervisor(beginnings=[lambda: current.set("apart")])
    current.set("the caller")

    async with supervised.open([looking], patient=False):
        async with supervised.run_beside([looking], grace=1.0):
            await until(lambda: seen)
        await supervised.run([looking], endless())

    assert seen == ["apart", "the caller"]
    assert current.get() == "the caller"


async def test_a_runnable_that_does_not_listen_is_cancelled_after_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecotone_fastapi.core.supervision._CLOSING", 0.0)
    supervised = supervisor()
    script = Script(for_ever)

    with anyio.fail_after(60):
        async with supervised.open([script], patient=True), supervised.run_beside([script], grace=0.01):
            await until(lambda: supervised.runnables["script"].ready)

    assert supervised.runnables["script"].condition is Condition.STOPPED


async def test_runnables_run_until_each_has_reached_its_limits() -> None:
    supervised = supervisor()
    scripts = [Script(handles(2), name="two"), Script(handles(3), name="three")]

    async with supervised.open(scripts, patient=True):
        assert await supervised.run(scripts, endless()) == {"two": 2, "three": 3}


class Plugin:
    """A plugin whose server can be asked how it is."""

    def __init__(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self.check = check


async def test_all_servers_are_asked_how_they_are_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecotone_fastapi.core.supervision._ANSWERING", 0.01)
    here = anyio.Event()

    async def arrive() -> None:
        here.set()

    async def fail() -> None:
        await here.wait()
        raise ChannelError("refused")

    parts = (Plugin("fails", fail), Plugin("hangs", anyio.sleep_forever), Plugin("works", arrive), object())

    assert await supervisor(plugins=parts).check() == {
        "works": None,
        "fails": "ChannelError: refused",
        "hangs": "no answer within 0 seconds",
    }
