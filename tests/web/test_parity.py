"""Dependencies of a message handler behave as those of an endpoint: each case runs once in each, on every FastAPI.

A case is a function with what it depends on, and what comes out. `run` stands for an endpoint in one run of a test and
for a handler in the other, and the same must come out. Where we differ on purpose, a test asks both `in_endpoint` and
`in_handler`, asserts what each of them does, and says why.
"""

import asyncio
import contextvars
import functools
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Generic, NamedTuple, Protocol, TypeVar
from unittest.mock import Mock

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest
from fastapi import BackgroundTasks, Cookie, Depends, FastAPI, Header, Path, Query, Request, Response, Security
from fastapi.exceptions import FastAPIError, RequestValidationError
from fastapi.security import OAuth2PasswordBearer, SecurityScopes

from ecotone_fastapi import (
    CommandBus,
    Ecotone,
    QueryBusDep,
    asynchronous,
    command_bus,
    command_handler,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.errors import ConfigurationError, HeaderError, UnresolvableParameterError

FASTAPI = tuple(int(part) for part in version("fastapi").split(".")[:2])

T = TypeVar("T")


class Run(Protocol):
    """Calls something with what it depends on; several times at once, when asked to."""

    async def __call__(
        self,
        target: Callable[..., Any],
        *,
        headers: dict[str, str] | None = None,
        overrides: dict[Any, Any] | None = None,
        dependencies: list[Any] | None = None,
        times: int = 1,
    ) -> Any: ...


async def run_in_endpoint(
    target: Callable[..., Any],
    *,
    headers: dict[str, str] | None = None,
    overrides: dict[Any, Any] | None = None,
    dependencies: list[Any] | None = None,
    times: int = 1,
) -> Any:
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    async def let_it_out(request: Request, error: RequestValidationError) -> None:
        raise error

    app.get("/", dependencies=dependencies, response_model=None)(target)
    app.dependency_overrides.update(overrides or {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        if times == 1:
            return (await client.get("/", headers=headers)).json()
        return [one.json() for one in await asyncio.gather(*[client.get("/", headers=headers) for _ in range(times)])]


async def run_in_handler(
    target: Callable[..., Any],
    *,
    headers: dict[str, str] | None = None,
    overrides: dict[Any, Any] | None = None,
    dependencies: list[Any] | None = None,
    times: int = 1,
) -> Any:
    app = FastAPI()
    ecotone = Ecotone([query_handler("case", dependencies=dependencies or ())(target)])
    ecotone.install(app)
    app.dependency_overrides.update(overrides or {})
    queries = ecotone.query_bus
    if times == 1:
        return await queries.ask(to="case", headers=headers)
    return await asyncio.gather(*[queries.ask(to="case", headers=headers) for _ in range(times)])


@pytest.fixture(params=[run_in_endpoint, run_in_handler], ids=["endpoint", "handler"])
def run(request: pytest.FixtureRequest) -> Run:
    driver: Run = request.param
    return driver


@pytest.fixture
def in_endpoint() -> Run:
    return run_in_endpoint


@pytest.fixture
def in_handler() -> Run:
    return run_in_handler


def skip_endpoint_before(since: tuple[int, int], run: Run, why: str) -> None:
    """Leave out the endpoint on a FastAPI that cannot do it yet; the handler can on every FastAPI."""
    if run is run_in_endpoint and since > FASTAPI:
        pytest.skip(f"FastAPI {version('fastapi')} {why}")


class Counter:
    """A dependency that tells how often it was made."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


class BrokenError(Exception):
    """What the cases raise."""


class Session:
    """A session that tells how it ended."""

    def __init__(self, name: str = "session") -> None:
        self.name = name
        self.log: list[str] = []

    async def open(self) -> AsyncIterator["Session"]:
        try:
            yield self
        except BaseException as error:
            self.log.append(f"rolled back by {type(error).__name__}")
            raise
        self.log.append("committed")


# --------------------------------------------------------------------------------------------------- how often and when


async def test_a_dependency_is_made_once_for_all_who_ask_for_it(run: Run) -> None:
    counter = Counter()

    async def doubled(number: Annotated[int, Depends(counter)]) -> int:
        return 2 * number

    async def target(number: Annotated[int, Depends(counter)], twice: Annotated[int, Depends(doubled)]) -> list[int]:
        return [number, twice]

    assert await run(target) == [1, 2]


async def test_a_dependency_without_cache_is_made_anew_and_leaves_the_cached_one_alone(run: Run) -> None:
    counter = Counter()

    async def target(
        first: Annotated[int, Depends(counter)],
        second: Annotated[int, Depends(counter, use_cache=False)],
        third: Annotated[int, Depends(counter)],
    ) -> list[int]:
        return [first, second, third]

    assert await run(target) == [1, 2, 1]


async def test_a_dependency_without_cache_is_what_a_later_cached_one_gets(run: Run) -> None:
    counter = Counter()

    async def target(
        first: Annotated[int, Depends(counter, use_cache=False)], second: Annotated[int, Depends(counter)]
    ) -> list[int]:
        return [first, second]

    assert await run(target) == [1, 1]


async def test_what_an_uncached_parent_shares_is_made_once(run: Run) -> None:
    counter, parents = Counter(), Counter()

    async def parent(number: Annotated[int, Depends(counter)]) -> list[int]:
        return [await parents(), number]

    async def target(
        first: Annotated[list[int], Depends(parent, use_cache=False)],
        second: Annotated[list[int], Depends(parent, use_cache=False)],
    ) -> list[list[int]]:
        return [first, second]

    assert await run(target) == [[1, 1], [2, 1]]


async def test_what_only_a_cached_parent_needs_is_not_made_again_for_nothing(in_endpoint: Run, in_handler: Run) -> None:
    """FastAPI resolves what a dependency needs before it looks into its cache; we look first."""

    def case() -> tuple[Counter, Callable[..., Any]]:
        counter = Counter()

        async def parent(number: Annotated[int, Depends(counter, use_cache=False)]) -> int:
            return number

        async def target(first: Annotated[int, Depends(parent)], second: Annotated[int, Depends(parent)]) -> list[int]:
            return [first, second]

        return counter, target

    in_fastapi, target = case()
    assert await in_endpoint(target) == [1, 1]
    assert in_fastapi.count == 2

    here, target = case()
    assert await in_handler(target) == [1, 1]
    assert here.count == 1


async def test_requests_and_messages_at_the_same_time_have_dependencies_of_their_own(run: Run) -> None:
    counter, arrived = Counter(), anyio.Event()

    async def own(number: Annotated[int, Depends(counter)]) -> int:
        if number == 3:
            arrived.set()
        await arrived.wait()
        return number

    async def target(number: Annotated[int, Depends(own)], again: Annotated[int, Depends(counter)]) -> list[int]:
        return [number, again]

    assert sorted(await run(target, times=3)) == [[1, 1], [2, 2], [3, 3]]


async def test_dependencies_whose_result_is_not_needed_run_first(run: Run) -> None:
    log: list[str] = []

    async def checked() -> None:
        log.append("checked")

    async def asked() -> None:
        log.append("asked")

    async def target(value: Annotated[None, Depends(asked)]) -> list[str]:
        return log

    assert await run(target, dependencies=[Depends(checked)]) == ["checked", "asked"]


async def test_a_limit_holds_for_all_requests_and_messages_together(run: Run) -> None:
    if FASTAPI < (0, 163):
        pytest.skip("Depends(max_concurrency=) came with FastAPI 0.163")
    under_way, most = 0, 0

    async def narrow() -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        under_way -= 1
        return most

    async def target(value: Annotated[int, Depends(narrow, max_concurrency=2)]) -> int:
        return value

    assert max(await run(target, times=6)) == 2


# ------------------------------------------------------------------------------------------------------------ overrides


async def original() -> str:
    return "original"


async def test_an_override_may_come_after_the_start(run: Run) -> None:
    async def target(value: Annotated[str, Depends(original)]) -> str:
        return value

    assert await run(target) == "original"
    assert await run(target, overrides={original: lambda: "fake"}) == "fake"


async def test_an_override_may_have_another_signature(run: Run) -> None:
    async def other() -> str:
        return "other"

    async def fake(value: Annotated[str, Depends(other)], unused: int = 5) -> str:
        return f"{value} {unused}"

    async def target(value: Annotated[str, Depends(original)]) -> str:
        return value

    assert await run(target, overrides={original: fake}) == "other 5"


async def test_what_another_dependency_needs_can_be_overridden(run: Run) -> None:
    async def loud(value: Annotated[str, Depends(original)]) -> str:
        return value.upper()

    async def target(value: Annotated[str, Depends(loud)]) -> str:
        return value

    assert await run(target, overrides={original: lambda: "fake"}) == "FAKE"


async def test_a_generator_overrides_a_function_and_the_other_way_round(run: Run) -> None:
    log: list[str] = []

    async def generator() -> AsyncIterator[str]:
        yield "generator"
        log.append("torn down")

    async def of_function(value: Annotated[str, Depends(original)]) -> str:
        return value

    async def of_generator(value: Annotated[str, Depends(generator)]) -> str:
        return value

    assert await run(of_function, overrides={original: generator}) == "generator"
    assert log == ["torn down"]
    assert await run(of_generator, overrides={generator: original}) == "original"
    assert log == ["torn down"]


class Repository:
    def __init__(self, name: Annotated[str, Depends(original)]) -> None:
        self.name = name


class FakeRepository:
    name = "fake"


async def test_a_class_can_be_overridden(run: Run) -> None:
    async def target(repository: Annotated[Repository, Depends()]) -> str:
        return repository.name

    assert await run(target, overrides={Repository: FakeRepository}) == "fake"


async def test_a_mock_can_be_an_override(in_endpoint: Run, in_handler: Run) -> None:
    """FastAPI takes `*args` and `**kwargs` for query parameters; with us they are nobody's."""

    async def target(value: Annotated[str, Depends(original)]) -> str:
        return value

    overrides = {original: Mock(return_value="mocked")}

    with pytest.raises(RequestValidationError):
        await in_endpoint(target, overrides=overrides)
    assert await in_handler(target, overrides=overrides) == "mocked"


# ----------------------------------------------------------------------------------------------------- before and after


async def test_a_dependency_with_yield_sees_the_exception_and_rolls_back(run: Run) -> None:
    session = Session()

    async def target(session: Annotated[Session, Depends(session.open)]) -> None:
        raise BrokenError

    with pytest.raises(BrokenError):
        await run(target)
    assert session.log == ["rolled back by BrokenError"]


async def test_what_was_opened_last_is_closed_first(run: Run) -> None:
    log: list[str] = []

    async def outer() -> AsyncIterator[str]:
        yield "outer"
        log.append("outer closed")

    def inner(value: Annotated[str, Depends(outer)]) -> Iterator[str]:
        yield f"inner of {value}"
        log.append("inner closed")

    async def target(value: Annotated[str, Depends(inner)]) -> str:
        return value

    assert await run(target) == "inner of outer"
    assert log == ["inner closed", "outer closed"]


async def test_a_commit_that_fails_is_a_failure(run: Run) -> None:
    session = Session()

    async def committing(session: Annotated[Session, Depends(session.open)]) -> AsyncIterator[None]:
        yield
        raise BrokenError

    async def target(value: Annotated[None, Depends(committing)]) -> str:
        return "done"

    with pytest.raises(BrokenError):
        await run(target)
    assert session.log == ["rolled back by BrokenError"]


async def test_when_one_cannot_be_opened_those_before_it_are_closed(run: Run) -> None:
    session = Session()

    async def refused(session: Annotated[Session, Depends(session.open)]) -> AsyncIterator[None]:
        raise BrokenError
        yield

    async def target(value: Annotated[None, Depends(refused)]) -> None: ...

    with pytest.raises(BrokenError):
        await run(target)
    assert session.log == ["rolled back by BrokenError"]


async def test_a_generator_without_await_sees_where_the_exception_came_from(run: Run) -> None:
    skip_endpoint_before((0, 135), run, "throws it in without its traceback")
    frames: list[str] = []

    def watching() -> Iterator[None]:
        try:
            yield
        except BrokenError as error:
            frames.extend(frame.name for frame in traceback.extract_tb(error.__traceback__))
            raise

    async def target(value: Annotated[None, Depends(watching)]) -> None:
        raise BrokenError

    with pytest.raises(BrokenError):
        await run(target)
    assert "target" in frames


async def test_an_exception_that_a_dependency_swallows_is_raised_all_the_same(
    in_endpoint: Run, in_handler: Run
) -> None:
    """In FastAPI the outer session commits what has failed, and the exception is lost. That must not happen to data."""

    async def swallowing() -> AsyncIterator[None]:
        with suppress(BrokenError):
            yield

    def case() -> tuple[Session, Callable[..., Any]]:
        session = Session()

        async def target(
            outer: Annotated[Session, Depends(session.open)], inner: Annotated[None, Depends(swallowing)]
        ) -> None:
            raise BrokenError

        return session, target

    in_fastapi, target = case()
    with pytest.raises(FastAPIError):
        await in_endpoint(target)
    assert in_fastapi.log == ["committed"]

    here, target = case()
    with pytest.raises(BrokenError) as caught:
        await in_handler(target)
    assert here.log == ["rolled back by BrokenError"]
    assert "dependency test_an_exception" not in str(caught.value.__notes__)
    assert "dependency swallowing swallowed this exception; it was raised again" in caught.value.__notes__


async def test_a_generator_without_await_can_reset_the_context_variable_it_has_set(
    in_endpoint: Run, in_handler: Run
) -> None:
    """FastAPI runs its halves in two contexts; spans and tenants are kept in such variables, so we use one."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")

    def of_tenant() -> Iterator[str]:
        token = tenant.set("acme")
        yield tenant.get()
        tenant.reset(token)

    async def target(value: Annotated[str, Depends(of_tenant)]) -> str:
        return value

    with pytest.raises(ValueError, match="different Context"):
        await in_endpoint(target)
    assert await in_handler(target) == "acme"


async def test_what_is_cancelled_by_asyncio_is_torn_down_with_await(run: Run) -> None:
    log: list[str] = []
    started = anyio.Event()

    async def slow_to_close() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("closed")

    async def target(value: Annotated[None, Depends(slow_to_close)]) -> None:
        started.set()
        await anyio.Event().wait()

    task = asyncio.create_task(run(target))  # type: ignore[arg-type]
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["closed"]


async def test_what_is_cancelled_by_anyio_is_torn_down_with_await(run: Run) -> None:
    skip_endpoint_before((0, 163), run, "does not shield teardown")
    log: list[str] = []

    async def slow_to_close() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            log.append("closed")

    with anyio.CancelScope() as scope:

        async def target(value: Annotated[None, Depends(slow_to_close)]) -> None:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        await run(target)
    assert scope.cancelled_caught
    assert log == ["closed"]


async def test_a_teardown_that_lasts_until_after_the_response_is_over_when_a_message_is_handled(
    in_endpoint: Run, in_handler: Run
) -> None:
    """A message has no response to wait for, so `scope=` makes no difference, and what needs what is not restricted."""
    if FASTAPI < (0, 121):
        pytest.skip("Depends(scope=) came with FastAPI 0.121")
    log: list[str] = []

    async def short() -> AsyncIterator[str]:
        yield "short"
        log.append("short closed")

    async def long(value: Annotated[str, Depends(short, scope="function")]) -> AsyncIterator[str]:
        yield f"long of {value}"
        log.append("long closed")

    async def target(value: Annotated[str, Depends(long, scope="request")]) -> str:
        return value

    with pytest.raises(FastAPIError, match="scope"):
        await in_endpoint(target)
    assert await in_handler(target) == "long of short"
    assert log == ["long closed", "short closed"]


async def test_a_message_is_handled_when_all_is_torn_down(in_endpoint: Run, in_handler: Run) -> None:
    """FastAPI commits after the response is sent, since 0.118; who sends a command wants to know whether it worked."""

    def case(log: list[str]) -> Callable[..., Any]:
        async def session() -> AsyncIterator[None]:
            yield
            log.append("committed")

        async def target(value: Annotated[None, Depends(session)]) -> None: ...

        return target

    class Noted:
        def __init__(self, app: Any, log: list[str]) -> None:
            self.app = app
            self.log = log

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: Any) -> None:
                self.log.append(message["type"])
                await send(message)

            await self.app(scope, receive, noting)

    in_fastapi: list[str] = []
    app = FastAPI()
    app.add_middleware(Noted, log=in_fastapi)
    app.get("/")(case(in_fastapi))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/")
    answered = ["http.response.start", "http.response.body"]
    assert in_fastapi == (["committed", *answered] if FASTAPI < (0, 118) else [*answered, "committed"])

    here: list[str] = []
    await in_handler(case(here))
    assert here == ["committed"]


async def test_a_dependency_may_say_that_it_ends_with_the_function(run: Run) -> None:
    if FASTAPI < (0, 121):
        pytest.skip("Depends(scope=) came with FastAPI 0.121")
    session = Session()

    async def target(session: Annotated[Session, Depends(session.open, scope="function")]) -> str:
        return session.name

    assert await run(target) == "session"
    assert session.log == ["committed"]


# ---------------------------------------------------------------------------------------------- what can be depended on


async def test_a_class_gets_what_its_constructor_depends_on(run: Run) -> None:
    async def target(repository: Annotated[Repository, Depends()], named: Annotated[Any, Depends(Repository)]) -> Any:
        return [repository.name, repository is named]

    assert await run(target) == ["original", True]


async def test_a_class_without_a_constructor_can_be_depended_on(run: Run) -> None:
    async def target(repository: Annotated[FakeRepository, Depends()]) -> str:
        return repository.name

    assert await run(target) == "fake"


class Generically(Generic[T]):
    name = "generic"


class GenericRepository(Generic[T]):
    def __init__(self, name: Annotated[str, Depends(original)]) -> None:
        self.name = name


async def test_a_generic_class_can_be_depended_on(in_endpoint: Run, in_handler: Run) -> None:
    """FastAPI sees the `*args` and `**kwargs` of the generic alias, and asks the query for them."""

    async def target(
        without: Annotated[Generically[int], Depends()], repository: Annotated[GenericRepository[int], Depends()]
    ) -> list[str]:
        return [without.name, repository.name]

    with pytest.raises(RequestValidationError):
        await in_endpoint(target)
    assert await in_handler(target) == ["generic", "original"]


class Chicken:
    def __init__(self, egg: Any) -> None: ...


class Egg:
    def __init__(self, chicken: Annotated[Chicken, Depends()]) -> None: ...


# The oldest FastAPI does not evaluate text in constructors.
Chicken.__init__.__annotations__["egg"] = Annotated[Egg, Depends()]


async def test_classes_that_depend_on_each_other_are_found_at_start(in_endpoint: Run, in_handler: Run) -> None:
    """FastAPI runs out of stack; we name the circle."""

    async def target(egg: Annotated[Egg, Depends()]) -> None: ...

    with pytest.raises(RecursionError):
        await in_endpoint(target)
    with pytest.raises(ConfigurationError, match="circular dependency Egg -> Chicken -> Egg"):
        await in_handler(target)


async def test_an_annotation_may_have_other_metadata_and_a_default_beside_the_dependency(run: Run) -> None:
    async def target(value: Annotated[str | None, "documented", Depends(original), "twice"] = None) -> Any:
        return value

    assert await run(target) == "original"


async def test_a_dependency_may_be_written_as_a_default(run: Run) -> None:
    async def target(value: str = Depends(original)) -> str:
        return value

    assert await run(target) == "original"


async def test_a_dependency_in_the_annotation_and_as_the_default_is_refused(in_endpoint: Run, in_handler: Run) -> None:
    async def target(value: Annotated[str, Depends(original)] = Depends(original)) -> None: ...

    with pytest.raises(AssertionError, match="Depends"):
        await in_endpoint(target)
    with pytest.raises(UnresolvableParameterError, match="'value' has Depends in its annotation and as its default"):
        await in_handler(target)


class Greets:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def __call__(self, name: Annotated[str, Depends(original)]) -> str:
        return f"{self.greeting} {name}"


class GreetsAsynchronously(Greets):
    async def __call__(self, name: Annotated[str, Depends(original)]) -> str:  # type: ignore[override]
        return f"{self.greeting} {name}"


class GreetsAndLeaves(Greets):
    left = False

    async def __call__(self, name: Annotated[str, Depends(original)]) -> AsyncIterator[str]:  # type: ignore[override]
        yield f"{self.greeting} {name}"
        self.left = True


class GreetsAndLeavesInThread(Greets):
    left = False

    def __call__(self, name: Annotated[str, Depends(original)]) -> Iterator[str]:  # type: ignore[override]
        yield f"{self.greeting} {name}"
        self.left = True


@pytest.mark.parametrize("kind", [Greets, GreetsAsynchronously, GreetsAndLeaves, GreetsAndLeavesInThread])
async def test_an_object_that_can_be_called_can_be_depended_on(run: Run, kind: type[Greets]) -> None:
    hello = kind("hello")

    async def target(value: Annotated[str, Depends(hello)]) -> str:
        return value

    assert await run(target) == "hello original"
    assert getattr(hello, "left", True)


async def test_a_partial_function_can_be_depended_on(run: Run) -> None:
    skip_endpoint_before((0, 135), run, "does not await a partial coroutine function")

    async def greet(greeting: str, name: Annotated[str, Depends(original)], mark: str) -> str:
        return f"{greeting} {name}{mark}"

    async def target(value: Annotated[str, Depends(functools.partial(greet, "hello", mark="!"))]) -> str:
        return value

    assert await run(target) == "hello original!"


def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return (await function(*args, **kwargs)).lower()

    return wrapper


def by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(**kwargs: Any) -> Any:
        return function(**kwargs)

    return wrapper


@pytest.mark.parametrize("decorator", [quietly, by_name])
async def test_a_function_behind_a_decorator_can_be_depended_on(
    run: Run, decorator: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    skip_endpoint_before((0, 135), run, "does not look behind decorators")

    @decorator
    async def greet(name: Annotated[str, Depends(original)]) -> str:
        return f"hello {name}"

    async def target(value: Annotated[str, Depends(greet)]) -> str:
        return value

    assert await run(target) == "hello original"


async def test_an_endpoint_and_a_handler_may_be_decorated_too(run: Run) -> None:
    @quietly
    async def target(name: Annotated[str, Depends(original)]) -> str:
        return f"HELLO {name}"

    assert await run(target) == "hello original"


@dataclass
class Money:
    amount: int


class Point(NamedTuple):
    x: int


async def test_a_result_may_be_of_any_class(run: Run) -> None:
    class Opaque:
        def __init__(self, value: int) -> None:
            self.value = value

    async def opaque() -> Opaque:
        return Opaque(1)

    async def money() -> Money:
        return Money(2)

    async def point() -> Point:
        return Point(3)

    async def target(
        opaque: Annotated[Opaque, Depends(opaque)],
        money: Annotated[Money, Depends(money)],
        point: Annotated[Point, Depends(point)],
    ) -> list[int]:
        return [opaque.value, money.amount, point.x]

    assert await run(target) == [1, 2, 3]


class Parcel:
    def __init__(self, weight: int) -> None:
        self.weight = weight


async def test_a_payload_may_be_of_any_class() -> None:
    """FastAPI makes the payload of an endpoint from JSON, so pydantic must know it; a command is there already."""

    @command_handler
    async def send(parcel: Parcel) -> int:
        return parcel.weight

    with pytest.raises(FastAPIError):
        FastAPI().post("/")(send)
    assert await Ecotone([send]).command_bus.send(Parcel(5)) == 5


# -------------------------------------------------------------------------------------------------------------- threads


async def test_functions_without_await_run_in_a_thread(run: Run) -> None:
    def dependency() -> int:
        return threading.get_ident()

    def target(of_dependency: Annotated[int, Depends(dependency)]) -> list[bool]:
        return [one == threading.main_thread().ident for one in (of_dependency, threading.get_ident())]

    assert await run(target) == [False, False]


async def test_both_halves_of_a_generator_without_await_run_in_a_thread(run: Run) -> None:
    threads: list[int] = []

    def dependency() -> Iterator[None]:
        threads.append(threading.get_ident())
        yield
        threads.append(threading.get_ident())

    async def target(value: Annotated[None, Depends(dependency)]) -> None: ...

    await run(target)
    assert len(threads) == 2
    assert threading.main_thread().ident not in threads


async def test_a_function_without_await_may_depend_on_one_with_await(run: Run) -> None:
    def target(value: Annotated[str, Depends(original)]) -> str:
        return value

    assert await run(target) == "original"


async def test_a_thread_can_call_back_into_the_loop(run: Run) -> None:
    def target() -> Any:
        return anyio.from_thread.run(original)

    assert await run(target) == "original"


async def test_constructors_do_not_pay_for_a_thread(in_endpoint: Run, in_handler: Run) -> None:
    """A constructor keeps what it is given; a thread for it would cost twenty times as much as the rest."""

    class MadeIn:
        def __init__(self) -> None:
            self.thread = threading.current_thread()

    async def target(made: Annotated[MadeIn, Depends()]) -> bool:
        return made.thread is threading.main_thread()

    assert await in_endpoint(target) is False
    assert await in_handler(target) is True


# ---------------------------------------------------------------------------------------------------------- annotations


async def test_a_text_annotation_may_name_what_is_local(in_endpoint: Run, in_handler: Run) -> None:
    """FastAPI looks among the globals only. We look where the decorator stands, as tests define handlers there."""

    async def local() -> str:
        return "local"

    async def target(value: "Annotated[str, Depends(local)]") -> str:
        return value

    with pytest.raises((FastAPIError, RequestValidationError, NameError)):
        await in_endpoint(target)
    ecotone = Ecotone([query_handler("case")(target)])
    assert await ecotone.query_bus.ask(to="case") == "local"


async def test_what_a_dependency_returns_need_not_be_known(run: Run) -> None:
    def dependency() -> "Missing":  # type: ignore[name-defined]  # noqa: F821
        return 5

    async def target(value: Annotated[Any, Depends(dependency)]) -> Any:
        return value

    assert await run(target) == 5


async def test_a_parameter_that_keeps_its_default_need_not_be_of_a_known_type(run: Run) -> None:
    skip_endpoint_before((0, 163), run, "must know every annotation")

    def dependency(unused: "Missing" = 5) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return unused

    async def target(value: Annotated[Any, Depends(dependency)]) -> Any:
        return value

    assert await run(target) == 5


# -------------------------------------------------------------------------------------------- headers, scopes, requests


async def test_a_header_is_read_and_validated_as_it_is_annotated(run: Run) -> None:
    async def target(
        x_tenant: Annotated[str, Header()],
        count: Annotated[int, Header(alias="X-Count", ge=1)],
        flag: bool = Header(alias="x-flag"),
        missing: Annotated[str, Header()] = "nobody",
        made: list[str] = Header(default_factory=list),
    ) -> list[Any]:
        return [x_tenant, count, flag, missing, made]

    headers = {"X-Tenant": "acme", "x-count": "3", "x-flag": "yes"}

    assert await run(target, headers=headers) == ["acme", 3, True, "nobody", []]
    with pytest.raises((RequestValidationError, HeaderError)):
        await run(target, headers={**headers, "x-count": "0"})
    with pytest.raises((RequestValidationError, HeaderError)):
        await run(target, headers={**headers, "x-count": "many"})
    with pytest.raises((RequestValidationError, HeaderError)):
        await run(target, headers={"x-count": "3", "x-flag": "yes"})


async def test_a_dependency_that_reads_a_header_is_shared_with_endpoints(run: Run) -> None:
    async def tenant(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant.upper()

    async def target(tenant: Annotated[str, Depends(tenant)]) -> str:
        return tenant

    assert await run(target, headers={"x-tenant": "acme"}) == "ACME"


async def test_a_header_with_a_default_in_its_annotation_is_refused(in_endpoint: Run, in_handler: Run) -> None:
    async def target(tenant: Annotated[str, Header("tenant")]) -> None: ...

    with pytest.raises(AssertionError, match="default"):
        await in_endpoint(target)
    with pytest.raises(UnresolvableParameterError, match=r"for a message header use MessageHeader\('tenant'\)"):
        await in_handler(target)


async def test_security_scopes_add_up_on_the_way(run: Run) -> None:
    async def user(scopes: SecurityScopes) -> list[str]:
        return [*scopes.scopes, scopes.scope_str]

    async def active(user: Annotated[list[str], Security(user, scopes=["me"])]) -> list[str]:
        return user

    async def target(
        with_items: Annotated[list[str], Security(active, scopes=["items"])],
        again: Annotated[list[str], Security(active, scopes=["items"])],
        plain: Annotated[list[str], Depends(active)],
        none: Annotated[list[str], Depends(user)],
    ) -> list[list[str]]:
        return [with_items, again, plain, none]

    items = ["items", "me", "items me"]
    assert await run(target) == [items, items, ["me", "me"], [""]]


async def test_what_reads_no_security_scopes_is_shared_beyond_them(run: Run) -> None:
    skip_endpoint_before((0, 135), run, "tells everything apart by its scopes")
    counter = Counter()

    async def user(number: Annotated[int, Depends(counter)], scopes: SecurityScopes) -> int:
        return number

    async def target(
        user: Annotated[int, Security(user, scopes=["me"])], number: Annotated[int, Depends(counter)]
    ) -> list[int]:
        return [user, number]

    assert await run(target) == [1, 1]


async def test_what_reads_security_scopes_is_cached_for_each_set_of_them(run: Run) -> None:
    counter = Counter()

    async def user(scopes: SecurityScopes) -> int:
        return await counter()

    async def target(
        first: Annotated[int, Security(user, scopes=["a", "b"])],
        second: Annotated[int, Security(user, scopes=["b", "a"])],
        third: Annotated[int, Security(user, scopes=["a"])],
    ) -> list[int]:
        return [first, second, third]

    assert await run(target) == [1, 1, 2]


@pytest.mark.parametrize("marker", [Query(), Cookie(), Path()], ids=lambda marker: type(marker).__name__)
async def test_what_only_a_request_has_is_refused_at_start(in_handler: Run, marker: Any) -> None:
    """A message has no query, cookies, path, body or form. The error says what to do instead."""

    async def reads(x: Annotated[str, marker]) -> None: ...

    async def target(value: Annotated[None, Depends(reads)]) -> None: ...

    with pytest.raises(UnresolvableParameterError) as caught:
        await in_handler(target)
    assert f"target -> reads: 'x' is fastapi.{type(marker).__name__}()" in str(caught.value)
    assert "Depends(command_bus(share=[...]))" in caught.value.hint


@pytest.mark.parametrize("kind", [Response, BackgroundTasks])
async def test_what_only_an_endpoint_has_is_refused_at_start(
    in_endpoint: Run, in_handler: Run, kind: type[Response] | type[BackgroundTasks]
) -> None:
    """A message has no response; what should happen afterwards is an event."""

    async def target(value: kind) -> bool:  # type: ignore[valid-type]
        return isinstance(value, kind)

    assert await in_endpoint(target) is True
    with pytest.raises(UnresolvableParameterError, match=f"'value' is {kind.__name__}: it exists only in an endpoint"):
        await in_handler(target)


async def test_the_request_is_the_one_that_the_message_was_sent_from() -> None:
    async def path_of(request: Request) -> str:
        return request.url.path

    @query_handler("path")
    async def tell(path: Annotated[str, Depends(path_of)]) -> str:
        return path

    app = FastAPI()
    ecotone = Ecotone([tell])
    ecotone.install(app)

    @app.get("/somewhere")
    async def endpoint(path: Annotated[str, Depends(path_of)], queries: QueryBusDep) -> Any:
        return [path, await queries.ask(to="path")]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/somewhere")).json() == ["/somewhere", "/somewhere"]
    with pytest.raises(UnresolvableParameterError, match="'request' is Request, but the message was not sent from one"):
        await ecotone.query_bus.ask(to="path")


async def test_a_security_class_of_fastapi_reads_the_request_that_the_message_was_sent_from() -> None:
    token = OAuth2PasswordBearer("token")

    @query_handler("token")
    async def tell(token: Annotated[str, Depends(token)]) -> str:
        return token

    app = FastAPI()
    Ecotone([tell]).install(app)

    @app.get("/")
    async def endpoint(queries: QueryBusDep) -> Any:
        return await queries.ask(to="token")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/", headers={"Authorization": "Bearer secret"})).json() == "secret"
        assert (await client.get("/")).status_code == 401

    @asynchronous("later")
    @command_handler("later", id="later")
    async def later(token: Annotated[str, Depends(token)]) -> None: ...

    with pytest.raises(ConfigurationError, match="runs in a consumer, where there is no HTTP request"):
        Ecotone([later], channels=[MemoryChannel("later")]).prepare()


async def test_what_an_endpoint_shares_is_what_its_handlers_get() -> None:
    opened, session = Counter(), Session()

    async def get_engine() -> int:
        return await opened()

    async def get_session(engine: Annotated[int, Depends(get_engine)]) -> AsyncIterator[Session]:
        async for one in session.open():
            yield one

    @command_handler("rename")
    async def rename(session: Annotated[Session, Depends(get_session)]) -> None:
        session.name = "renamed"
        session.log.append("handled")

    app = FastAPI()
    Ecotone([rename]).install(app)

    @app.post("/")
    async def endpoint(
        session: Annotated[Session, Depends(get_session)],
        commands: Annotated[CommandBus, Depends(command_bus(share=[get_session]))],
    ) -> str:
        await commands.send(to="rename")
        return session.name

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/")).json() == "renamed"
    assert session.log == ["handled", "committed"]
    assert opened.count == 1, "what only led to the shared session is not made again"
