"""A plan: how to call one handler with all that it asks for, as a flat list of steps that is walked for every message.

Each step calls one dependency with the values of earlier steps and knows how long its result lives: as long as the
application, as the unit of work, or as the message.
"""

import contextvars
import operator
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call, Exit, Scope, unwind
from ecotone_fastapi.core.signatures import Way

PAYLOAD, WHOLE_MESSAGE, FIRST_FREE = 0, 1, 2
"""The slots of every plan: the payload, the message, and from there on what its steps make."""

Values = Sequence[Any]
Exits = list[tuple[Exit, str]]

_COROUTINE, _INLINE = Way.COROUTINE, Way.INLINE
_MISSING: Any = object()


def picking(slots: Sequence[int]) -> Callable[[Values], tuple[Any, ...]]:
    """Return what takes the values of these slots."""
    if len(slots) > 1:
        return operator.itemgetter(*slots)
    return lambda values: tuple([values[slot] for slot in slots])


def invoking(
    call: Callable[..., Any], positional: Sequence[int], keywords: Sequence[tuple[str, int]] = ()
) -> Callable[[Values], Any]:
    """Return what calls something with the values of these slots."""
    pick = picking(positional)
    if keywords:
        names, pick_named = [name for name, _ in keywords], picking([slot for _, slot in keywords])
        return lambda values: call(*pick(values), **dict(zip(names, pick_named(values), strict=True)))
    if len(positional) == 1:
        only = positional[0]
        return lambda values: call(values[only])
    return (lambda values: call(*pick(values))) if positional else (lambda values: call())


@dataclass(slots=True, kw_only=True)
class Step:
    """One call of a plan.

    Args:
        slot: Where its result goes.
        needs: The slots that it reads.
        invoke: Calls it with the values so far.
        way: How that is to be done.
        read: Reads it from the message or the scope instead of calling anything.
        key: Under which its result is kept for the unit of work; `None` is not at all.
        varies: Takes the header values that tell such results apart.
        per_message: Whether it is torn down with the message instead of the unit of work.
        name: Its name for people.
        limit: How many calls of it may run at the same time.
    """

    slot: int
    needs: tuple[int, ...] = ()
    invoke: Callable[[Values], Any] = lambda values: None
    way: Way = _INLINE
    read: Callable[[Message[Any], Scope], Any] | None = None
    key: object = None
    varies: Callable[[Values], tuple[Any, ...]] | None = None
    per_message: bool = False
    name: str = ""
    limit: anyio.Semaphore | None = None


class Lasting:
    """What lives as long as the application, made once for all plans."""

    def __init__(self) -> None:
        self._made: dict[object, Any] = {}
        self._limits: dict[int, tuple[object, anyio.Semaphore]] = {}
        self._making = anyio.Lock()

    async def complete(self, plan: "Plan", scope: Scope) -> None:
        """Give a plan what it has not got yet."""
        async with self._making:
            while plan.once:
                step = plan.once[0]
                if step.key not in self._made:
                    self._made[step.key] = await _take(step, plan.template, scope, scope.exits)
                plan.template[step.slot] = self._made[step.key]
                plan.once.pop(0)

    def limit(self, size: int, limited_by: object) -> anyio.Semaphore:
        """Return the one semaphore of a declaration."""
        if id(limited_by) not in self._limits:
            self._limits[id(limited_by)] = (limited_by, anyio.Semaphore(size))
        return self._limits[id(limited_by)][1]


@dataclass(kw_only=True)
class Plan:
    """How to call one handler. Made by `Injector.plan`.

    Attributes:
        payload_type: The type of the payload parameter; `None` when the handler takes none.
        lines: What every parameter is and how long it lives, one line each, for people. What a dependency asks for
            itself stands indented below it.
    """

    endpoint: Endpoint
    payload_type: Any
    way: Way
    invoke: Callable[[Values], Any]
    instance: int | None
    needs: tuple[int, ...]
    steps: tuple[Step, ...]
    once: list[Step]
    template: list[Any]
    lines: tuple[str, ...]
    lasting: Lasting
    _beside: dict[Collection[object], tuple[Step, ...]] = field(default_factory=dict)
    _tears_down: bool = False

    def __post_init__(self) -> None:
        self._tears_down = any(step.per_message for step in self.steps)

    @property
    def manner(self) -> str:
        """Where the handler runs, for people."""
        if self.way is _COROUTINE:
            return "async def, on the event loop"
        return "def, on the event loop" if self.way is _INLINE else "def, in a worker thread"

    def run(self, call: Call) -> Awaitable[Any]:
        """Resolve what the handler asks for, and call it.

        Dependencies of this message alone are torn down before this is done, the others when the scope ends.
        """
        if self.once or self._tears_down:
            return self._run_and_tear_down(call)
        return self._resolve_and_call(call, [])

    async def _run_and_tear_down(self, call: Call) -> Any:
        exits: Exits = []
        failure: BaseException | None = None
        result: Any = None
        try:
            if self.once:
                await self.lasting.complete(self, call.scope)
            result = await self._resolve_and_call(call, exits)
        except BaseException as error:
            failure = error
        failure = await unwind(exits, failure)
        if failure is not None:
            try:
                self._tell(failure, call)
                raise failure
            finally:
                del failure  # it refers to this frame
        return result

    async def _resolve_and_call(self, call: Call, exits: Exits) -> Any:
        message, scope = call.message, call.scope
        values = self.template.copy()
        values[PAYLOAD] = message.payload
        values[WHOLE_MESSAGE] = message
        try:
            if self.steps:
                await self._resolve(values, message, scope, exits)
            if call.instance is not None and self.instance is not None:
                values[self.instance] = call.instance
            if self.way is _COROUTINE:
                return await self.invoke(values)
            if self.way is _INLINE:
                return self.invoke(values)
            return await _in_thread(partial(self.invoke, values), scope)
        except Exception as error:
            self._tell(error, call)
            raise

    async def _resolve(self, values: list[Any], message: Message[Any], scope: Scope, exits: Exits) -> None:
        cache = scope.cache
        for step in self.steps if not scope.shared else self._steps_beside(scope.shared):
            key = step.key
            if key is not None:
                try:
                    if step.varies is not None and key not in cache:  # under its plain key stands what a caller shared
                        key = (key, step.varies(values))
                    value = cache.get(key, _MISSING)
                except TypeError:  # a header value that is not hashable cannot tell results apart
                    key, value = None, _MISSING
                if value is not _MISSING:
                    values[step.slot] = value
                    continue
            if step.read is not None:
                value = step.read(message, scope)
            elif step.way is _COROUTINE and step.limit is None:
                value = await step.invoke(values)
            else:
                value = await _take(step, values, scope, exits if step.per_message else scope.exits)
            values[step.slot] = value
            if key is not None:
                cache[key] = value

    def _tell(self, error: BaseException, call: Call) -> None:
        """Note on an error in whose hands it was raised."""
        note = f"while handling {self.endpoint.label}, message {call.message.headers.get(HeaderName.id)}"
        if isinstance(error, Exception) and note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def _steps_beside(self, shared: Collection[object]) -> tuple[Step, ...]:
        """The steps without those that only lead to what the caller has shared."""
        if shared not in self._beside:
            needed = set(self.needs)
            steps: list[Step] = []
            for step in reversed(self.steps):
                if step.slot in needed:
                    steps.append(step)
                    if step.key not in shared:
                        needed.update(step.needs)
            self._beside[shared] = tuple(reversed(steps))
        return self._beside[shared]


async def _take(step: Step, values: Values, scope: Scope, exits: Exits) -> Any:
    """Make one dependency, and note how it is torn down."""
    limit = step.limit
    if limit is None:
        return await _make(step, values, scope, exits)
    await limit.acquire()
    if step.way in (Way.ASYNC_GENERATOR, Way.GENERATOR):

        async def release(*failure: object) -> None:
            limit.release()

        # It keeps its place until it is torn down.
        exits.append((release, f"limit of {step.name}"))
        return await _make(step, values, scope, exits)
    try:
        return await _make(step, values, scope, exits)
    finally:
        limit.release()


async def _make(step: Step, values: Values, scope: Scope, exits: Exits) -> Any:
    if step.way is _COROUTINE:
        return await step.invoke(values)
    if step.way is _INLINE:
        return step.invoke(values)
    if step.way is Way.THREAD:
        return await _in_thread(partial(step.invoke, values), scope)
    manager = step.invoke(values)
    if step.way is Way.GENERATOR:
        return await _enter_in_thread(manager, step.name, scope, exits)
    value = await manager.__aenter__()
    exits.append((manager.__aexit__, step.name))
    return value


async def _enter_in_thread(manager: AbstractContextManager[Any], name: str, scope: Scope, exits: Exits) -> Any:
    """Run a generator until its `yield`.

    Both halves run in one context, so that it can reset a ContextVar that it has set. Its second half never waits for a
    worker that a handler may be holding.
    """
    entered: list[contextvars.Context] = []

    def enter() -> Any:
        context = contextvars.copy_context()
        value = context.run(manager.__enter__)
        entered.append(context)
        return value

    async def leave(*failure: Any) -> object:
        return await _run_in_thread(partial(entered[0].run, manager.__exit__, *failure), anyio.CapacityLimiter(1))

    try:
        return await _in_thread(enter, scope)
    finally:
        if entered:
            exits.append((leave, name))


_workers: RunVar[anyio.CapacityLimiter] = RunVar("ecotone_workers")


async def _in_thread(call: Callable[[], Any], scope: Scope) -> Any:
    """Run in a worker thread: one of as many as FastAPI has, but not of those, so that neither waits for the other.

    A thread that waits for a nested message must not hold the last worker that this message needs: nested calls of one
    unit of work get a worker beside the limit.
    """
    if scope.threads:
        limiter = anyio.CapacityLimiter(1)
    else:
        size = anyio.to_thread.current_default_thread_limiter().total_tokens
        try:
            limiter = _workers.get()
            if limiter.total_tokens != size:
                limiter.total_tokens = size
        except LookupError:
            limiter = anyio.CapacityLimiter(size)
            _workers.set(limiter)
    scope.threads += 1
    try:
        return await _run_in_thread(call, limiter)
    finally:
        scope.threads -= 1


async def _run_in_thread(call: Callable[[], Any], limiter: anyio.CapacityLimiter) -> Any:
    turn: Future[None] = Future()

    def work() -> Any:
        if not turn.set_running_or_notify_cancel():
            return None  # pragma: no cover  cancelled a moment after AnyIO has looked
        try:
            return call()
        finally:
            turn.set_result(None)

    try:
        return await anyio.to_thread.run_sync(work, limiter=limiter)
    except BaseException:
        # Cancelled by asyncio itself, AnyIO does not wait for the thread; but what it uses is about to be torn down.
        if not turn.done() and not turn.cancel():
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(turn.result, limiter=anyio.CapacityLimiter(1))
        raise
