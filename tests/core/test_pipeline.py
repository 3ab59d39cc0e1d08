from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from types import TracebackType
from typing import Any

import anyio
import pytest

from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Exit, Interceptor, Order, Proceed, Scope, Stage, compose, unwind


def call() -> Call:
    return Call(Message("payload", {"id": "1"}), None, None, Scope())


def noting(name: str, log: list[str]) -> Interceptor:
    async def note(call: Call, proceed: Proceed) -> Any:
        log.append(f"before {name}")
        try:
            return await proceed(call)
        finally:
            log.append(f"after {name}")

    return note


# -------------------------------------------------------------------------------------------------------------- compose


async def test_the_first_interceptor_is_outermost() -> None:
    log: list[str] = []

    async def target(call: Call) -> str:
        log.append("target")
        return "result"

    pipeline = compose([noting("outer", log), noting("inner", log)], target)

    assert await pipeline(call()) == "result"
    assert log == ["before outer", "before inner", "target", "after inner", "after outer"]


async def test_without_interceptors_there_is_only_the_target() -> None:
    async def target(call: Call) -> Any:
        return call.message.payload

    assert compose([], target) is target
    assert await compose(iter([]), target)(call()) == "payload"


async def test_an_interceptor_may_change_the_call_the_result_or_both() -> None:
    async def shout(call: Call, proceed: Proceed) -> Any:
        louder = replace(call, message=call.message.with_payload(call.message.payload.upper()))
        return f"{await proceed(louder)}!"

    async def target(call: Call) -> Any:
        return call.message.payload

    original = call()

    assert await compose([shout], target)(original) == "PAYLOAD!"
    assert original.message.payload == "payload"


async def test_an_interceptor_may_repeat_a_call_or_not_let_it_through() -> None:
    calls = 0

    async def target(call: Call) -> int:
        nonlocal calls
        calls += 1
        return calls

    async def twice(call: Call, proceed: Proceed) -> Any:
        return await proceed(call), await proceed(call)

    async def never(call: Call, proceed: Proceed) -> Any:
        return "refused"

    assert await compose([twice], target)(call()) == (1, 2)
    assert await compose([never, twice], target)(call()) == "refused"
    assert calls == 2


async def test_one_pipeline_serves_many_calls_at_the_same_time() -> None:
    arrived = 0
    together = anyio.Event()

    async def meet(call: Call, proceed: Proceed) -> Any:
        nonlocal arrived
        arrived += 1
        if arrived == 3:
            together.set()
        await together.wait()
        return await proceed(call)

    async def target(call: Call) -> Any:
        results.append(call.message.payload)

    results: list[Any] = []
    pipeline = compose([meet], target)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(pipeline, replace(call(), message=Message(number, {})))

    assert sorted(results) == [0, 1, 2]


def test_there_are_four_stages_and_the_named_orders_do_not_touch() -> None:
    assert [*Stage] == ["dispatch", "handle", "send", "receive"]
    assert [order.name for order in sorted(Order)] == [
        "TRACING",
        "ASYNCHRONOUS",
        "FAILURE",
        "RETRY",
        "TENANT",
        "TRANSACTION",
        "DEDUPLICATION",
        "OUTGOING",
        "USER",
        "STATE",
    ]
    # A user can stand between any two of ours.
    assert all(inner - outer >= 2 for outer, inner in pairwise(sorted(Order)))


# ---------------------------------------------------------------------------------------------------------------- scope


class Left:
    """A context manager that notes with what it was left."""

    def __init__(
        self, name: str, log: list[str], *, raises: BaseException | None = None, swallows: bool = False
    ) -> None:
        self.name = name
        self.log = log
        self.raises = raises
        self.swallows = swallows

    async def __aenter__(self) -> str:
        return self.name

    async def __aexit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert (type_ is None) == (error is None)
        self.log.append(f"{self.name}: {error!r}" if error else self.name)
        if self.raises is not None:
            raise self.raises
        return self.swallows

    @property
    def exit(self) -> tuple[Exit, str]:
        return self.__aexit__, self.name


async def test_what_was_opened_last_is_closed_first() -> None:
    log: list[str] = []

    assert await unwind([Left("first", log).exit, Left("second", log).exit], None) is None
    assert log == ["second", "first"]


async def test_with_nothing_open_nothing_is_closed() -> None:
    error = ValueError()

    assert await unwind([], None) is None
    assert await unwind([], error) is error


async def test_each_teardown_is_told_the_failure() -> None:
    log: list[str] = []
    error = ValueError("no")

    assert await unwind([Left("first", log).exit, Left("second", log).exit], error) is error
    assert log == ["second: ValueError('no')", "first: ValueError('no')"]


async def test_a_teardown_that_swallows_the_failure_does_not_make_it_go_away() -> None:
    log: list[str] = []
    error = ValueError("no")

    left = await unwind([Left("transaction", log).exit, Left("careless", log, swallows=True).exit], error)

    assert left is error
    assert log == ["careless: ValueError('no')", "transaction: ValueError('no')"]
    assert error.__notes__ == ["dependency careless swallowed this exception; it was raised again"]


async def test_a_teardown_that_raises_fails_those_outside_of_it() -> None:
    log: list[str] = []
    broken = OSError("disk full")

    left = await unwind([Left("transaction", log).exit, Left("file", log, raises=broken).exit], None)

    assert left is broken
    assert log == ["file", "transaction: OSError('disk full')"]


async def test_a_teardown_that_raises_replaces_the_failure_before() -> None:
    broken = OSError("disk full")

    assert await unwind([Left("file", [], raises=broken).exit], ValueError("no")) is broken


async def test_cancellation_does_not_interrupt_teardown() -> None:
    closed: list[str] = []

    async def close_slowly(*_: object) -> None:
        await anyio.lowlevel.checkpoint()
        closed.append("connection")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await unwind([(close_slowly, "connection")], None)

    assert closed == ["connection"]


async def test_a_unit_closes_its_dependencies_before_what_plugins_entered() -> None:
    log: list[str] = []
    scope = Scope()

    assert await scope.enter(Left("transaction", log)) == "transaction"
    assert await scope.enter(Left("ack", log)) == "ack"
    await scope.enter(Left("after commit", log), outermost=True)
    scope.exits.append(Left("session", log).exit)
    await scope.close()

    assert log == ["session", "ack", "transaction", "after commit"]
    assert scope.closed


async def test_what_is_entered_while_a_unit_ends_is_left_as_well() -> None:
    log: list[str] = []
    scope = Scope()

    @asynccontextmanager
    async def late() -> AsyncIterator[None]:
        yield
        await scope.enter(Left("entered late", log))

    await scope.enter(Left("transaction", log))
    await scope.enter(late())
    await scope.close()

    assert log == ["entered late", "transaction"]


async def test_a_unit_that_failed_is_closed_with_its_failure_which_stays_in_the_callers_hand() -> None:
    log: list[str] = []
    scope = Scope()

    await scope.enter(Left("transaction", log, swallows=True))
    await scope.close(ValueError("no"))

    assert log == ["transaction: ValueError('no')"]
    assert scope.closed


async def test_a_commit_that_fails_fails_the_unit() -> None:
    log: list[str] = []
    scope = Scope()

    await scope.enter(Left("after commit", log))
    await scope.enter(Left("transaction", log, raises=OSError("serialization failure")))
    with pytest.raises(OSError, match="serialization failure"):
        await scope.close()

    assert log == ["transaction", "after commit: OSError('serialization failure')"]
    assert scope.closed


async def test_an_empty_unit_just_ends() -> None:
    scope = Scope("request", {"key": "shared"})

    await scope.close()

    assert scope.closed
    assert (scope.connection, scope.cache, scope.state, scope.threads) == ("request", {"key": "shared"}, {}, 0)


def test_changes_in_memory_are_taken_back_the_last_one_first() -> None:
    scope = Scope()
    values = ["first"]
    scope.note_change(lambda: values.append("first is taken back"))
    before = scope.changes()
    for name in ("second", "third"):
        values.append(name)
        scope.note_change(lambda name=name: values.remove(name) or values.append(f"no {name}"))

    scope.take_back(before)

    assert values == ["first", "no third", "no second"]
    assert scope.changes() == before == 1
    assert Scope().changes() == 0
