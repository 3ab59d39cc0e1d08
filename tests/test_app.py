"""`Ecotone`: put together once, started and stopped any number of times, outside of FastAPI."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi import CommandBus, ConfigurationError, Ecotone, asynchronous, command_handler, query_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.plugin import Assembly, Limits
from tests.servers import RemoteChannel, Server, until


class Mails:
    """Handles messages of two channels, when the test lets it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.go_on = True
        self.waiting: list[anyio.Event] = []

    @asynchronous("mails")
    @command_handler("mail")
    async def mail(self, to: str) -> None:
        self.begun.append(to)
        if not self.go_on:
            self.waiting.append(anyio.Event())
            await self.waiting[-1].wait()
        self.done.append(to)

    @asynchronous("letters")
    @command_handler("write")
    async def write(self, to: str) -> None:
        self.done.append(to)

    @query_handler("done")
    async def tell(self) -> list[str]:
        return self.done


def mailing(mails: Mails | None = None, **options: Any) -> Ecotone:
    return Ecotone([mails or Mails()], channels=[MemoryChannel("mails"), MemoryChannel("letters")], **options)


def conditions(ecotone_health: Any) -> dict[str, str]:
    return {one.name: one.condition.value for one in ecotone_health.runnables}


# ----------------------------------------------------------------------------------------------------- putting together


def test_nothing_is_put_together_before_it_is_needed() -> None:
    installs: list[Assembly] = []

    class Counted:
        def install(self, assembly: Assembly) -> None:
            installs.append(assembly)

    ecotone = Ecotone([], plugins=[Counted()])
    assert installs == []
    assert ecotone.router.routes
    assert installs == []

    ecotone.prepare()
    ecotone.prepare()
    assert ecotone.assembly is installs[0]
    assert len(installs) == 1


async def test_everything_that_is_wrong_is_told_every_time() -> None:
    class Refuses:
        def __init__(self, *reasons: str) -> None:
            self.reasons = reasons

        def install(self, assembly: Assembly) -> None:
            ConfigurationError.raise_all([ConfigurationError(reason) for reason in self.reasons])

    ecotone = Ecotone([Mails], plugins=[Refuses("one"), Refuses("two", "three")])

    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            async with ecotone.running():
                pass
        for reason in ("one", "two", "three", "there is no channel 'mails'", "there is no channel 'letters'"):
            assert reason in str(caught.value)


async def test_what_cannot_cross_a_channel_is_told_with_everything_else() -> None:
    class Opaque:
        def __init__(self, value: object) -> None:
            self.value = value

    @asynchronous("mails")
    @command_handler
    async def handle(command: Opaque) -> None: ...

    ecotone = Ecotone([handle], channels=[MemoryChannel("mails"), MemoryChannel("mails")])

    with pytest.raises(ConfigurationError) as caught:
        ecotone.prepare()

    assert "two channels are named 'mails'" in str(caught.value)
    assert "handle is asynchronous: pydantic has no schema for" in str(caught.value)


async def test_the_buses_work_before_it_is_started() -> None:
    ecotone = mailing()

    assert await ecotone.query_bus.ask(to="done") == []
    await ecotone.event_bus.publish("nobody listens")


async def test_services_are_given_to_handlers_by_their_type() -> None:
    class Sender:
        def __init__(self, name: str = "made") -> None:
            self.name = name

    @query_handler("sender")
    async def tell(sender: Sender) -> str:
        return sender.name

    async def answer(sender: object) -> object:
        return await Ecotone([tell], services={Sender: sender}).query_bus.ask(to="sender")

    assert await answer(Sender("given")) == "given"
    assert await answer(lambda: Sender("from a function")) == "from a function"
    assert await answer(lambda name="made": Sender(name)) == "made"


# ----------------------------------------------------------------------------------------------- running beside a block


async def test_consumers_run_beside_the_block() -> None:
    mails = Mails()

    async with mailing(mails).running() as ecotone:
        await ecotone.command_bus.send("Ada", to="mail")
        await ecotone.command_bus.send("Grace", to="write")
        await until(lambda: len(mails.done) == 2)


@pytest.mark.parametrize(
    ("given", "asked", "running"),
    [
        (True, None, {"mails", "letters"}),
        (False, None, set()),
        (["mails"], None, {"mails"}),
        (False, True, {"mails", "letters"}),
        (True, False, set()),
        (True, ["letters", "letters"], {"letters"}),
        (True, [], set()),
        ("mails", None, {"mails"}),
    ],
)
async def test_only_chosen_consumers_run(given: Any, asked: Any, running: set[str]) -> None:
    async with mailing(consumers=given).running(consumers=asked) as ecotone:
        assert {one.name for one in (await ecotone.health()).runnables} == running


async def test_a_consumer_that_is_not_there_cannot_be_chosen() -> None:
    with pytest.raises(ConfigurationError, match=r"no consumer 'mail'\nTried: letters, mails\n"):
        async with mailing(consumers=["mail"]).running():
            pass
    with pytest.raises(ConfigurationError, match=r"no consumer 'mail'\nTried: there are none\n"):
        async with Ecotone([]).running(consumers=["mail"]):
            pass


async def test_a_consumer_can_be_run_by_hand() -> None:
    mails = Mails()

    async with mailing(mails).running(consumers=False) as ecotone:
        await ecotone.command_bus.send("Ada", to="mail")
        await ecotone.command_bus.send("Grace", to="mail")

        assert await ecotone.run("mails", Limits(messages=1)) == 1
        assert mails.done == ["Ada"]
        with pytest.raises(ConfigurationError, match="no consumer"):
            await ecotone.run("nothing")


async def test_an_exception_of_the_block_comes_out_as_it_is() -> None:
    class Broken:
        name = "broken"

        def install(self, assembly: Assembly) -> None:
            assembly.add_runnable(self)

        async def run(self, limits: Limits) -> int:
            raise ZeroDivisionError("another one")

    async def serve() -> None:
        async with mailing(plugins=[Broken()]).running() as ecotone:
            await until_failed(ecotone, "broken")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await serve()


async def until_failed(ecotone: Ecotone, name: str) -> None:
    with anyio.fail_after(60):
        while not any(one.name == name and one.failures for one in (await ecotone.health()).runnables):
            await checkpoint()


async def test_it_can_be_cancelled_and_started_again() -> None:
    mails = Mails()
    ecotone = mailing(mails)
    started = anyio.Event()

    async def serve() -> None:
        async with ecotone.running():
            started.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert not (await ecotone.health()).running

    async with ecotone.running():
        await ecotone.command_bus.send("Ada", to="mail")
        await until(lambda: mails.done)


async def test_a_cancelled_task_finishes_what_its_consumers_have_begun() -> None:
    mails = Mails()
    mails.go_on = False
    ecotone = mailing(mails)

    async def serve() -> None:
        async with ecotone.running():
            await ecotone.command_bus.send("Ada", to="mail")
            await anyio.sleep_forever()

    task = asyncio.create_task(serve())
    await until(lambda: mails.begun)
    task.cancel()
    await checkpoint()
    mails.waiting[0].set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert mails.done == ["Ada"]


async def test_it_does_not_run_twice_at_a_time() -> None:
    async with mailing().running() as ecotone:
        with pytest.raises(ConfigurationError, match="running already"):
            async with ecotone.running():
                pass
        assert (await ecotone.health()).running


def test_it_runs_in_one_event_loop_after_the_other() -> None:
    mails = Mails()
    ecotone = mailing(mails)

    async def main(number: int) -> None:
        async with ecotone.running():
            async with anyio.create_task_group() as tasks:
                for name in ("Ada", "Grace"):
                    tasks.start_soon(lambda name=name: ecotone.command_bus.send(name, to="mail"))
            await until(lambda: len(mails.done) == 2 * number)

    for number in (1, 2, 3):
        asyncio.run(main(number))


# ------------------------------------------------------------------------------------------------------------- stopping


async def test_handlers_under_way_finish_when_it_stops() -> None:
    mails = Mails()
    mails.go_on = False
    ecotone = mailing(mails, grace=10.0)

    async with anyio.create_task_group() as tasks:

        async def serve() -> None:
            async with ecotone.running():
                await ecotone.command_bus.send("Ada", to="mail")
                await until(lambda: mails.begun)

        tasks.start_soon(serve)
        await until(lambda: mails.begun)
        assert mails.done == []
        mails.waiting[0].set()

    assert mails.done == ["Ada"]
    assert await ecotone.assembly.channels["mails"].depth() == 0


async def test_what_is_not_finished_in_time_is_given_back() -> None:
    mails = Mails()
    mails.go_on = False
    ecotone = mailing(mails, grace=0.01)

    async with ecotone.running():
        for name in ("Ada", "Grace"):
            await ecotone.command_bus.send(name, to="mail")
        await until(lambda: mails.begun)

    assert mails.done == []
    assert conditions(await ecotone.health()) == {"mails": "stopped", "letters": "stopped"}
    back = await ecotone.assembly.channels["mails"].peek()
    assert [(message.payload, message.headers.get("attempt")) for message in back] == [
        (b'"Ada"', None),
        (b'"Grace"', None),
    ]
    mails.go_on = True
    async with ecotone.running():
        await until(lambda: mails.done == ["Ada", "Grace"])


async def test_the_block_ends_before_the_consumers_and_they_before_the_resources() -> None:
    order: list[str] = []

    class Resource:
        @asynccontextmanager
        async def hold(self) -> AsyncIterator[None]:
            order.append("open")
            yield
            order.append("close")

        def install(self, assembly: Assembly) -> None:
            assembly.add_lifespan(self.hold)
            assembly.add_runnable(self)

        name = "runs"

        async def run(self, limits: Limits) -> int:
            assert limits.stop is not None
            order.append("run")
            await limits.stop.wait()
            order.append("stop")
            return 0

    async with Ecotone([], plugins=[Resource()]).running():
        await until(lambda: "run" in order)
        order.append("block")

    assert order == ["open", "run", "block", "stop", "close"]


# ------------------------------------------------------------------------------------------------ servers that are down


def remote(server: Server) -> Ecotone:
    @asynchronous("remote")
    @command_handler("later")
    async def later(command: str) -> None: ...

    return Ecotone([later], channels=[RemoteChannel("remote", server)])


async def test_with_consumers_it_starts_although_a_server_is_down() -> None:
    server = Server()
    server.stop()

    async with remote(server).running() as ecotone:
        assert not (await ecotone.health()).ready
        server.start()
        await until(lambda: server.receiving)
        assert (await ecotone.health()).ready


async def test_without_consumers_a_server_that_is_down_is_an_error() -> None:
    server = Server()
    server.stop()
    ecotone = remote(server)

    with pytest.raises(ChannelError, match="the server of channel 'remote' is down"):
        async with ecotone.running(consumers=False):
            pass

    server.start()
    async with ecotone.running(consumers=False):
        assert server.opened == 1


@pytest.mark.parametrize("consumers", [True, False])
async def test_a_server_that_is_not_prepared_is_an_error(consumers: bool) -> None:
    server = Server()
    server.fail(ConfigurationError("the table is missing"))

    with pytest.raises(ConfigurationError, match="the table is missing"):
        async with remote(server).running(consumers=consumers):
            pass

    assert server.receiving == 0


# ------------------------------------------------------------------------------------------------- a process of its own


async def test_a_process_of_its_own_works_until_its_limits_are_reached() -> None:
    mails = Mails()
    ecotone = mailing(mails)
    for name in ("Ada", "Grace"):
        await ecotone.command_bus.send(name, to="mail")
    await ecotone.command_bus.send("Barbara", to="write")

    assert await ecotone.work(limits=Limits(until_empty=True)) == {"mails": 2, "letters": 1}
    assert await ecotone.work(["mails"], limits=Limits(until_empty=True)) == {"mails": 0}
    assert sorted(mails.done) == ["Ada", "Barbara", "Grace"]


async def test_a_process_of_its_own_works_until_it_is_cancelled() -> None:
    mails = Mails()
    ecotone = mailing(mails)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ecotone.work)
        await ecotone.command_bus.send("Ada", to="mail")
        await until(lambda: mails.done)
        tasks.cancel_scope.cancel()

    assert not (await ecotone.health()).running


async def test_a_process_of_its_own_waits_for_its_server() -> None:
    server, stop = Server(), anyio.Event()
    server.stop()
    ecotone = remote(server)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: ecotone.work(limits=Limits(stop=stop)))
        await until_failed(ecotone, "remote")
        server.start()
        await until(lambda: server.receiving)
        stop.set()

    assert (server.opened, server.closed) == (1, 1)


async def test_handlers_get_the_buses_of_their_own_application() -> None:
    @command_handler("outer")
    async def outer(commands: CommandBus) -> Any:
        return await commands.send(to="inner")

    def inner(answer: str) -> Any:
        @command_handler("inner")
        async def inner() -> str:
            return answer

        return inner

    one, other = Ecotone([outer, inner("one")]), Ecotone([outer, inner("other")])

    assert [await each.command_bus.send(to="outer") for each in (one, other)] == ["one", "other"]


def test_one_start_shows_wrong_routes_and_wrong_parameters_together() -> None:
    class Handlers:
        @command_handler("place")
        async def place(self, command: dict[str, str]) -> None: ...

        @command_handler("place")
        async def place_again(self, command: dict[str, str]) -> None: ...

        @command_handler("cancel")
        async def cancel(self, command: dict[str, str], reason: int) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        Ecotone([Handlers]).prepare()

    assert "both handle the command place" in str(caught.value)
    assert "Handlers.cancel: nothing supplies 'reason: int'" in str(caught.value)
