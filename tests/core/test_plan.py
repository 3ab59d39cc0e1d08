"""How a handler is called: in which unit of work, in which thread, and what happens when it fails."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
from fastapi import Depends, FastAPI, Header, Security
from fastapi.security import SecurityScopes

from ecotone_fastapi import (
    CommandBus,
    Ecotone,
    Message,
    QueryBus,
    command_handler,
    query_handler,
)
from ecotone_fastapi.core.endpoint import Inline, mark
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.signatures import Parameter
from ecotone_fastapi.core.suppliers import Dependency, Supplier, Wanted
from ecotone_fastapi.web import command_bus, query_bus
from tests.servers import until


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Counter:
    """A dependency that tells how often it was made."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


class BrokenError(Exception):
    pass


async def ask(handler: Callable[..., Any]) -> Any:
    """The answer of a function."""
    return await Ecotone([query_handler("ask")(handler)]).query_bus.ask(to="ask")


# --------------------------------------------------------------------------------------------------------- unit of work


@dataclass
class Session:
    """A session that tells how it ended."""

    log: list[str] = field(default_factory=list)

    async def open(self) -> AsyncIterator["Session"]:
        self.log.append("opened")
        try:
            yield self
        except BaseException as error:
            self.log.append(f"rolled back by {type(error).__name__}")
            raise
        self.log.append("committed")


async def test_messages_of_one_handler_that_are_sent_at_once_take_turns() -> None:
    under_way, most = 0, 0

    @command_handler("root")
    async def root(commands: CommandBus) -> None:
        await asyncio.gather(*[commands.send(to="nested") for _ in range(5)])

    @command_handler("nested")
    async def nested(commands: CommandBus) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await anyio.lowlevel.checkpoint()
        await commands.send(to="deeper")
        under_way -= 1

    @command_handler("deeper")
    async def deeper() -> None: ...

    await Ecotone([root, nested, deeper]).command_bus.send(to="root")

    assert most == 1


async def test_messages_that_are_sent_from_outside_run_at_the_same_time() -> None:
    together = 0
    both = anyio.Event()

    @command_handler("meet")
    async def meet() -> None:
        nonlocal together
        together += 1
        if together == 2:
            both.set()
        await both.wait()

    commands = Ecotone([meet]).command_bus

    await asyncio.gather(commands.send(to="meet"), commands.send(to="meet"))


async def test_a_unit_of_work_is_committed_before_the_bus_returns() -> None:
    session = Session()

    @command_handler("root")
    async def root(commands: CommandBus, session: Annotated[Session, Depends(session.open)]) -> None:
        await commands.send(to="nested")
        session.log.append("root handled")

    @command_handler("nested")
    async def nested(session: Annotated[Session, Depends(session.open)]) -> None:
        session.log.append("nested handled")

    await Ecotone([root, nested]).command_bus.send(to="root")

    assert session.log == ["opened", "nested handled", "root handled", "committed"]


async def test_a_nested_failure_that_the_handler_survives_does_not_roll_back() -> None:
    session = Session()

    @command_handler("root")
    async def root(commands: CommandBus, session: Annotated[Session, Depends(session.open)]) -> None:
        with pytest.raises(BrokenError):
            await commands.send(to="nested")

    @command_handler("nested")
    async def nested(session: Annotated[Session, Depends(session.open)]) -> None:
        raise BrokenError

    await Ecotone([root, nested]).command_bus.send(to="root")

    assert session.log == ["opened", "committed"]


async def test_a_teardown_that_fails_replaces_the_failure_and_keeps_the_chain() -> None:
    class RollbackError(Exception): ...

    async def failing(message: Message[Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise RollbackError

    session = Session()

    async def handler(
        session: Annotated[Session, Depends(session.open)], failing: Annotated[None, Depends(failing)]
    ) -> None:
        raise BrokenError

    with pytest.raises(RollbackError) as caught:
        await ask(handler)

    assert isinstance(caught.value.__context__, BrokenError)
    assert session.log == ["opened", "rolled back by RollbackError"]


async def test_a_teardown_of_the_message_that_fails_fails_the_message() -> None:
    async def failing(message: Message[Any]) -> AsyncIterator[None]:
        yield
        raise BrokenError

    async def handler(failing: Annotated[None, Depends(failing)]) -> None: ...

    with pytest.raises(BrokenError):
        await ask(handler)


async def test_a_swallowed_failure_is_raised_again_with_a_note() -> None:
    async def swallowing(message: Message[Any]) -> AsyncIterator[None]:
        try:
            yield
        except BrokenError:
            return

    async def handler(value: Annotated[None, Depends(swallowing)]) -> None:
        raise BrokenError

    with pytest.raises(BrokenError) as caught:
        await ask(handler)

    assert "dependency swallowing swallowed this exception; it was raised again" in caught.value.__notes__
    assert any(note.startswith("while handling handler, message ") for note in caught.value.__notes__)


@pytest.mark.parametrize("life", [Annotated[Any, None], Message[Any]], ids=["unit", "message"])
async def test_teardown_is_not_interrupted_by_cancellation(life: Any) -> None:
    log: list[str] = []

    async def session(message: life = None) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("closed")

    async def handler(value: Annotated[None, Depends(session)]) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    with anyio.CancelScope() as scope:
        await ask(handler)

    assert scope.cancelled_caught
    assert log == ["closed"]


async def test_what_is_sent_after_the_unit_is_over_is_a_unit_of_its_own() -> None:
    counter = Counter()
    tasks: list[asyncio.Task[Any]] = []
    over = anyio.Event()

    @command_handler("root")
    async def root(commands: CommandBus, number: Annotated[int, Depends(counter)]) -> None:
        async def later() -> Any:
            await over.wait()
            return await commands.send(to="nested")

        tasks.append(asyncio.create_task(later()))

    @command_handler("nested")
    async def nested(number: Annotated[int, Depends(counter)]) -> int:
        return number

    await Ecotone([root, nested]).command_bus.send(to="root")
    over.set()

    assert await tasks[0] == 2


# -------------------------------------------------------------------------------------------------------------- threads


async def test_forty_handlers_in_threads_that_send_to_handlers_in_threads_do_not_wait_for_ever() -> None:
    all_started = threading.Barrier(40)

    def session() -> Iterator[str]:
        yield "session"

    @command_handler("root")
    def root(commands: CommandBus, session: Annotated[str, Depends(session)]) -> Any:
        all_started.wait(60)
        return anyio.from_thread.run(functools.partial(commands.send, to="nested"))

    @command_handler("nested")
    def nested(commands: CommandBus, session: Annotated[str, Depends(session)]) -> Any:
        return anyio.from_thread.run(functools.partial(commands.send, to="deepest"))

    @command_handler("deepest")
    def deepest(session: Annotated[str, Depends(session)]) -> str:
        return session

    commands = Ecotone([root, nested, deepest]).command_bus

    with anyio.fail_after(60):
        assert await asyncio.gather(*[commands.send(to="root") for _ in range(40)]) == ["session"] * 40


async def test_threads_that_are_not_ours_may_wait_for_handlers_in_threads() -> None:
    @command_handler
    def place(command: PlaceOrder) -> str:
        return command.order_id

    commands = Ecotone([place]).command_bus
    limit = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
    barrier = threading.Barrier(limit)

    def endpoint() -> Any:
        barrier.wait(60)
        return anyio.from_thread.run(commands.send, PlaceOrder("1"))

    with anyio.fail_after(60):
        assert await asyncio.gather(*[anyio.to_thread.run_sync(endpoint) for _ in range(limit)]) == ["1"] * limit


async def test_handlers_get_as_many_threads_as_the_application_allows() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    @command_handler("place")
    def place() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        anyio.from_thread.run(anyio.lowlevel.checkpoint)
        with lock:
            under_way -= 1

    commands = Ecotone([place]).command_bus
    limiter = anyio.to_thread.current_default_thread_limiter()
    before = limiter.total_tokens
    await commands.send(to="place")
    limiter.total_tokens = 2
    try:
        most = 0
        await asyncio.gather(*[commands.send(to="place") for _ in range(8)])
    finally:
        limiter.total_tokens = before

    assert most <= 2


async def test_an_inline_function_runs_on_the_loop() -> None:
    @mark(Inline())
    def dependency() -> bool:
        return threading.current_thread() is threading.main_thread()

    @mark(Inline())
    @query_handler("function")
    def function(value: Annotated[bool, Depends(dependency)]) -> list[bool]:
        return [value, threading.current_thread() is threading.main_thread()]

    @mark(Inline())
    class Orders:
        @query_handler("method")
        def method(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    class Marked:
        @query_handler("thread")
        def method(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    @query_handler("coroutine")
    async def coroutine() -> None: ...

    ecotone = Ecotone([function, Orders, Marked, coroutine])

    assert await ecotone.query_bus.ask(to="function") == [True, True]
    assert await ecotone.query_bus.ask(to="method") is True
    assert await ecotone.query_bus.ask(to="thread") is False
    assert [ecotone.prepare().plan_of(one.id).manner for one in ecotone.assembly.endpoints] == [
        "def, on the event loop",
        "def, on the event loop",
        "def, in a worker thread",
        "async def, on the event loop",
    ]


async def test_a_generator_in_a_thread_keeps_its_context() -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")

    def of_tenant() -> Iterator[str]:
        token = tenant.set("acme")
        yield tenant.get()
        tenant.reset(token)
        assert tenant.get() == "nobody"

    async def handler(value: Annotated[str, Depends(of_tenant)]) -> str:
        return value

    assert await ask(handler) == "acme"


async def test_a_thread_is_waited_for_before_what_it_uses_is_closed() -> None:
    """AnyIO waits for a thread by itself when it cancels, asyncio does not."""
    log: list[str] = []
    started, proceed = threading.Event(), threading.Event()

    def closing() -> Iterator[None]:
        try:
            yield
        finally:
            log.append("closed")

    @command_handler("work")
    def work(session: Annotated[None, Depends(closing)]) -> None:
        started.set()
        assert proceed.wait(30)
        log.append("worked")

    task = asyncio.create_task(Ecotone([work]).command_bus.send(to="work"))
    await anyio.to_thread.run_sync(started.wait)
    task.cancel()
    await anyio.lowlevel.checkpoint()
    proceed.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["worked", "closed"]


async def test_a_generator_that_is_cancelled_while_it_opens_is_closed() -> None:
    log: list[str] = []
    started, proceed = threading.Event(), threading.Event()

    def session() -> Iterator[None]:
        started.set()
        assert proceed.wait(30)
        log.append("opened")
        try:
            yield
        finally:
            log.append("closed")

    @command_handler("work")
    async def work(session: Annotated[None, Depends(session)]) -> None: ...

    task = asyncio.create_task(Ecotone([work]).command_bus.send(to="work"))
    await anyio.to_thread.run_sync(started.wait)
    task.cancel()
    await anyio.lowlevel.checkpoint()
    proceed.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["opened", "closed"]


async def test_a_function_that_is_cancelled_before_its_thread_has_begun_does_not_run() -> None:
    ran: list[int] = []
    started, proceed = threading.Event(), threading.Event()

    @command_handler("first")
    def first() -> None:
        started.set()
        assert proceed.wait(30)

    @command_handler("second")
    def second() -> None:
        ran.append(1)

    commands = Ecotone([first, second]).command_bus
    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(commands.send, to="first"))
            limiter.total_tokens = 2
            await anyio.to_thread.run_sync(started.wait)
            limiter.total_tokens = 1
            waiting = asyncio.create_task(commands.send(to="second"))
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            proceed.set()
    finally:
        limiter.total_tokens = before

    assert ran == []


async def test_an_exception_leaves_a_thread_as_it_is() -> None:
    def failing() -> None:
        raise BrokenError

    async def handler(value: Annotated[None, Depends(failing)]) -> None: ...

    with pytest.raises(BrokenError):
        await ask(handler)


# --------------------------------------------------------------------------------------------------------------- limits


class Gauge:
    """Tells how many were in it at the same time. Those who come first wait for each other, until there are two."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.two = threading.Event()
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == 2:
                self.two.set()

    def enter_thread(self) -> None:
        self.enter()
        assert self.two.wait(60)

    async def enter_task(self) -> None:
        self.enter()
        await until(self.two.is_set)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


@dataclass(frozen=True)
class AtMost:
    """A marker of a plugin, so that it is not tied to what FastAPI can do."""

    call: Callable[..., Any]
    limit: int


class Limits:
    def install(self, assembly: Assembly) -> None:
        assembly.add_resolver(self)

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        for one in parameter.metadata:
            if isinstance(one, AtMost):
                return Dependency(one.call, limit=one.limit, limited_by=one)
        return None


def gauged(gauge: Gauge) -> list[Callable[..., Any]]:
    async def coroutine() -> None:
        await gauge.enter_task()
        await anyio.lowlevel.checkpoint()
        gauge.leave()

    def function() -> None:
        gauge.enter_thread()
        anyio.from_thread.run(anyio.lowlevel.checkpoint)
        gauge.leave()

    async def generator() -> AsyncIterator[None]:
        await gauge.enter_task()
        yield
        gauge.leave()

    def generator_in_thread() -> Iterator[None]:
        gauge.enter_thread()
        yield
        gauge.leave()

    return [coroutine, function, generator, generator_in_thread]


@pytest.mark.parametrize("which", range(4), ids=["coroutine", "function", "generator", "generator in a thread"])
async def test_a_limit_holds_for_every_kind_and_in_all_handlers(which: int) -> None:
    gauge = Gauge()
    marker = AtMost(gauged(gauge)[which], 2)

    @query_handler("one")
    async def one(value: Annotated[None, marker]) -> None:
        await anyio.lowlevel.checkpoint()

    @query_handler("two")
    async def two(value: Annotated[None, marker]) -> None:
        await anyio.lowlevel.checkpoint()

    queries = Ecotone([one, two], plugins=[Limits()]).query_bus

    await asyncio.gather(*[queries.ask(to=key) for key in ("one", "two") for _ in range(4)])

    assert gauge.most == 2
    assert gauge.now == 0


async def test_a_limit_is_given_back_when_something_fails() -> None:
    async def failing() -> AsyncIterator[None]:
        raise BrokenError
        yield

    def failing_function() -> None:
        raise BrokenError

    for call in (failing, failing_function):

        async def handler(value: Annotated[None, AtMost(call, 1)]) -> None: ...

        queries = Ecotone([query_handler("ask")(handler)], plugins=[Limits()]).query_bus
        for _ in range(3):
            with pytest.raises(BrokenError):
                await queries.ask(to="ask")


# ---------------------------------------------------------------------------------------- what is shared by an endpoint


@asynccontextmanager
async def serving(handlers: list[Any], endpoint: Callable[..., Any]) -> AsyncIterator[Any]:
    app = FastAPI()
    Ecotone(handlers).install(app)
    app.post("/")(endpoint)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield lambda: client.post("/")


async def test_what_an_endpoint_shares_reaches_nested_messages_and_what_led_to_it_is_not_made() -> None:
    opened, used = Counter(), Counter()

    async def engine() -> int:
        return await opened()

    async def session(engine: Annotated[int, Depends(engine)], tenant: Annotated[str, Header()] = "none") -> str:
        return f"session {await used()}"

    async def repository(session: Annotated[str, Depends(session)]) -> str:
        return f"repository of {session}"

    @command_handler("root")
    async def root(commands: CommandBus, repository: Annotated[str, Depends(repository)]) -> list[Any]:
        return [repository, await commands.send(to="nested")]

    @command_handler("nested", dependencies=[Depends(session)])
    async def nested(session: Annotated[str, Depends(session)]) -> str:
        return session

    async def endpoint(commands: Annotated[CommandBus, Depends(command_bus(share=[session]))]) -> Any:
        return await commands.send(to="root")

    async with serving([root, nested], endpoint) as post:
        assert (await post()).json() == ["repository of session 1", "session 1"]
        assert (await post()).json() == ["repository of session 2", "session 2"]
    assert opened.count == 2, "once in each request, by FastAPI"


async def test_what_is_shared_with_security_scopes_is_shared_with_those_who_ask_with_them() -> None:
    async def user(scopes: SecurityScopes) -> str:
        return f"user with {scopes.scope_str}"

    @query_handler("who")
    async def who(
        scoped: Annotated[str, Security(user, scopes=["me"])], plain: Annotated[str, Depends(user)]
    ) -> list[Any]:
        return [scoped, plain]

    async def endpoint(queries: Annotated[QueryBus, Depends(query_bus(share=[Security(user, scopes=["me"])]))]) -> Any:
        return await queries.ask(to="who")

    async with serving([who], endpoint) as post:
        assert (await post()).json() == ["user with me", "user with "]
