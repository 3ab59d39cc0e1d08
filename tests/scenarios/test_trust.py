"""What handlers do when nobody is looking: they leave tasks behind, cancel, catch, and raise the unspeakable."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated

import pytest
from anyio.lowlevel import checkpoint
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from ecotone_fastapi import (
    AsynchronousHandlers,
    Backoff,
    CommandBus,
    CommandBusDep,
    ConfigurationError,
    ConsumerSettings,
    ConversionError,
    Ecotone,
    EventBus,
    Failures,
    asynchronous,
    command_handler,
    event_handler,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.testing import flow_test

# ------------------------------------------------------------------------------------- tasks that outlive a handler


class Resource:
    """Something that lives as long as the unit of work."""

    def __init__(self) -> None:
        self.closed = False
        self.used_after_close = False

    def use(self) -> None:
        self.used_after_close |= self.closed


async def test_a_unit_ends_after_the_messages_that_its_handler_has_not_waited_for() -> None:
    resource, tasks = Resource(), list[asyncio.Task[object]]()

    async def get_resource() -> object:
        yield resource
        resource.closed = True

    class Handlers:
        @command_handler("place")
        async def place(self, order: str, commands: CommandBus, r: Annotated[Resource, Depends(get_resource)]) -> None:
            tasks.append(asyncio.create_task(commands.send(order, to="audit")))
            await checkpoint()

        @command_handler("audit")
        async def audit(self, order: str, r: Annotated[Resource, Depends(get_resource)]) -> str:
            for _ in range(5):
                await checkpoint()
            r.use()
            return "audited"

    async with flow_test([Handlers]) as flow:
        await flow.send("order-1", to="place")

        assert await tasks[0] == "audited"
        assert resource.closed
        assert not resource.used_after_close


async def test_when_one_of_two_gathered_commands_fails_the_unit_waits_for_the_other() -> None:
    resource, done = Resource(), list[str]()

    async def get_resource() -> object:
        try:
            yield resource
        finally:
            resource.closed = True

    class Handlers:
        @command_handler("both")
        async def both(self, commands: CommandBus, r: Annotated[Resource, Depends(get_resource)]) -> None:
            await asyncio.gather(commands.send("a", to="fail"), commands.send("b", to="slow"))

        @command_handler("fail")
        async def fail(self, name: str) -> None:
            raise ValueError(name)

        @command_handler("slow")
        async def slow(self, name: str, r: Annotated[Resource, Depends(get_resource)]) -> None:
            await checkpoint()
            r.use()
            done.append(name)

    async with flow_test([Handlers]) as flow:
        with pytest.raises(ValueError, match="a"):
            await flow.send(to="both")

        assert done == ["b"]
        assert not resource.used_after_close


# ------------------------------------------------------------------------------------------ failures in a consumer


def failing(how: Callable[[], Awaitable[None]]) -> type:
    class Mails:
        @asynchronous("mails")
        @command_handler("mail", id="mail")
        async def mail(self, order: str) -> None:
            await how()

    return Mails


async def test_a_handler_that_awaits_something_cancelled_fails_like_any_other() -> None:
    async def await_what_was_cancelled() -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel()
        await task

    async with flow_test([failing(await_what_was_cancelled)], channels=[MemoryChannel("mails")]) as flow:
        await flow.send("order-1", to="mail")

        assert await flow.run("mails", raises=False) == 0
        (waiting,) = await flow.waiting("mails")
        assert waiting.headers["attempt"] == "1"


async def test_a_run_that_is_really_cancelled_gives_the_message_back_untouched() -> None:
    started = asyncio.Event()

    async def wait_for_ever() -> None:
        started.set()
        await asyncio.Event().wait()

    async with flow_test([failing(wait_for_ever)], channels=[MemoryChannel("mails")]) as flow:
        await flow.send("order-1", to="mail")

        run = asyncio.create_task(flow.run("mails"))
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

        (waiting,) = await flow.waiting("mails")
        assert "attempt" not in waiting.headers


async def test_an_exception_whose_text_cannot_be_told_is_retried_and_parked() -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise AttributeError("no text")

    async def fail() -> None:
        raise UnspeakableError

    async with flow_test([failing(fail)], channels=[MemoryChannel("mails")]) as flow:
        await flow.send("order-1", to="mail")

        for _ in range(4):
            await flow.run("mails", raises=False)
            await flow.advance(timedelta(hours=1))

        (parked,) = await flow.dead_letters()
        assert parked.attempts == 4
        assert "AttributeError" in parked.error_message


async def test_two_messages_with_one_id_are_parked_side_by_side() -> None:
    async def fail() -> None:
        raise ConversionError("never readable")

    async with flow_test([failing(fail)], channels=[MemoryChannel("mails")]) as flow:
        await flow.send("order-1", to="mail", headers={"id": "request-1"})
        await flow.send("order-2", to="mail", headers={"id": "request-1"})

        await flow.run("mails", raises=False)

        assert {parked.message.payload for parked in await flow.dead_letters()} == {b'"order-1"', b'"order-2"'}


async def test_a_consumer_fills_its_free_places_while_slow_messages_are_handled() -> None:
    release, running = asyncio.Event(), list[str]()

    class Mails:
        @asynchronous("mails")
        @command_handler("mail", id="mail")
        async def mail(self, order: str) -> None:
            running.append(order)
            if order.startswith("slow"):
                await release.wait()
            if order == "quick":
                release.set()

    ecotone = Ecotone(
        [Mails],
        channels=[MemoryChannel("mails")],
        plugins=[AsynchronousHandlers({"mails": ConsumerSettings(concurrency=10)})],
        consumers=["mails"],
    )
    async with ecotone.running():
        for number in range(6):
            await ecotone.command_bus.send(f"slow-{number}", to="mail")
        while len(running) < 6:
            await checkpoint()

        await ecotone.command_bus.send("quick", to="mail")
        async with asyncio.timeout(60):
            await release.wait()


# ------------------------------------------------------------------------------------------- failures that are caught


class Failing:
    """A command whose inner command fails after it has published, and goes on."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @command_handler("outer")
    async def outer(self, commands: CommandBus, events: EventBus) -> None:
        await events.publish("outer", to="said")
        with pytest.raises(ValueError, match="no stock"):
            await commands.send(to="inner")
        await events.publish("still outer", to="said")

    @command_handler("inner")
    async def inner(self, events: EventBus) -> None:
        await events.publish("inner", to="said")
        raise ValueError("no stock")

    @asynchronous("said")
    @event_handler("said", id="hear")
    async def hear(self, what: str) -> None:
        self.heard.append(what)


async def test_of_an_inner_command_whose_failure_is_caught_no_message_is_left() -> None:
    failing = Failing()

    async with flow_test([failing], channels=[MemoryChannel("said")]) as flow:
        await flow.send(to="outer")
        await flow.run("said")

    assert failing.heard == ["outer", "still outer"]


# ------------------------------------------------------------------------------------------------ what is said to whom


def test_a_wrong_message_that_a_handler_sends_is_no_fault_of_the_client() -> None:
    class Handlers:
        @command_handler("outer")
        async def outer(self, commands: CommandBus) -> None:
            await commands.send({"amount": "ten"}, to="pay")

        @command_handler("pay")
        async def pay(self, amounts: dict[str, int]) -> None: ...

    app = FastAPI()
    Ecotone([Handlers]).install(app)

    @app.post("/outer")
    async def outer(commands: CommandBusDep) -> None:
        await commands.send(to="outer")

    @app.post("/pay")
    async def pay(commands: CommandBusDep) -> None:
        await commands.send({"amount": "ten"}, to="pay")

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/pay").status_code == 422

        answer = client.post("/outer")
        assert answer.status_code == 500
        assert "ten" not in answer.text


@pytest.mark.parametrize(
    "headers", [{"delay": "soon"}, {"priority": 10}, {"time_to_live": -1}, {"attempt": 3}, {"endpoint": "x"}]
)
async def test_a_header_that_no_channel_could_honour_is_refused_before_anything_happens(
    headers: dict[str, object],
) -> None:
    handled = []

    class Handlers:
        @command_handler("place")
        async def place(self, order: str) -> None:
            handled.append(order)

    async with flow_test([Handlers]) as flow:
        with pytest.raises(ConversionError, match=next(iter(headers))):
            await flow.send("order-1", to="place", headers=headers)

    assert handled == []


def wired(*handlers: object, **options: object) -> None:
    Ecotone(handlers, channels=[MemoryChannel("mails")], **options).prepare()  # type: ignore[arg-type]


def test_slips_of_newcomers_are_told_at_start() -> None:
    class Queries:
        @asynchronous("mails")
        @query_handler("status")
        async def status(self, order: str) -> str:
            return order

    with pytest.raises(ConfigurationError, match="an answer cannot wait"):
        wired(Queries)
    with pytest.raises(ConfigurationError, match="is no list"):
        Ecotone(Queries)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is no channel and no plugin"):
        Ecotone([Queries], channels=["mails"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="is no channel and no plugin"):
        Ecotone([Queries], plugins=[Failures])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="twice"):
        asynchronous("mails", "mails")
    with pytest.raises(ConfigurationError, match="handles nothing"):
        ConsumerSettings(concurrency=0)
    with pytest.raises(ConfigurationError, match="is no policy"):
        Backoff(retries=-1)
    with pytest.raises(ConfigurationError, match="is no policy"):
        Backoff(first=float("nan"))
