"""The one shape that everything around a handler has: `async def interceptor(call, proceed)`.

There are four stages, and at each of them interceptors are nested by their `Order`, the smallest outermost:

- DISPATCH: a bus accepted a message.
- HANDLE: one endpoint is about to run.
- SEND: bytes are about to enter a channel.
- RECEIVE: bytes were taken from a channel.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import TracebackType
from typing import Any, Protocol, TypeVar

import anyio

from ecotone_fastapi.core.channel import Delivery
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.message import Message

T = TypeVar("T")

Exit = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], Awaitable[object]]
"""The second half of an asynchronous context manager."""


_NOTHING: frozenset[Any] = frozenset()
_CHANGES = object()  # under which a unit of work keeps how to take back what nested commands have changed


class Stage(StrEnum):
    """Where an interceptor stands."""

    DISPATCH = "dispatch"
    HANDLE = "handle"
    SEND = "send"
    RECEIVE = "receive"


class Order(IntEnum):
    """Which interceptor is inside which: the smallest is outermost.

    A span must see everything. A message that only crosses a channel must not open a transaction. A failure is judged
    after all retries. A retry starts from scratch, so it is outside the transaction. The tenant decides which database,
    so it is outside too. The deduplication record rolls back with the work, so it is inside. Outgoing messages wait
    until the handler has succeeded. State is loaded last and saved first.
    """

    TRACING = 100
    ASYNCHRONOUS = 150
    FAILURE = 200
    RETRY = 300
    TENANT = 350
    TRANSACTION = 400
    DEDUPLICATION = 450
    OUTGOING = 500
    USER = 600
    STATE = 700


class Scope:
    """The unit of work of one root message and of everything that is sent and handled synchronously because of it.

    Closing it runs the teardown of its dependencies, last opened first, and after that whatever plugins entered, last
    entered first: so a transaction that a plugin entered before the handler ran commits after every dependency is done.

    Attributes:
        cache: Results of dependencies that live as long as the unit.
        exits: Teardown of dependencies, with their names.
        entered: What plugins have entered, in the order in which it is left, last one first.
        state: What plugins keep for the unit, by a key of their own.
        connection: The HTTP request or WebSocket that the root message was sent from.
        shared: The keys of results that the caller has put into the cache.
        joined: How many messages are being handled in the unit just now, besides the root.
        joinable: Whether messages that are sent now belong to the unit.
        closed: Whether the unit is over.
        threads: How many handlers and dependencies of the unit are in worker threads just now.
    """

    __slots__ = (
        "_alone",
        "cache",
        "closed",
        "connection",
        "entered",
        "exits",
        "joinable",
        "joined",
        "shared",
        "state",
        "threads",
    )

    def __init__(self, connection: object = None, cache: dict[Any, Any] | None = None) -> None:
        self.cache: dict[Any, Any] = {} if cache is None else cache
        self.shared: frozenset[Any] = frozenset(cache) if cache else _NOTHING
        self.exits: list[tuple[Exit, str]] = []
        self.state: dict[Any, Any] = {}
        self.connection: object = connection
        self.joinable: bool = True
        self.joined: int = 0
        self.closed: bool = False
        self.threads: int = 0
        self._alone: anyio.Event | None = None
        self.entered: list[tuple[Exit, str]] = []

    async def enter(self, manager: AbstractAsyncContextManager[T], *, outermost: bool = False) -> T:
        """Enter a context manager that is left when the unit ends, after the teardown of all dependencies.

        It is left with the unit's failure, if any, and cannot swallow it. What it raises itself fails the unit.

        Args:
            manager: The context manager.
            outermost: Leave it after all others, as if it had been entered first.
        """
        value = await manager.__aenter__()
        entered = (manager.__aexit__, type(manager).__name__)
        self.entered.insert(0 if outermost else len(self.entered), entered)
        return value

    def note_change(self, undo: Callable[[], object]) -> None:
        """Note how a change in memory is taken back if the nested command fails that has made it."""
        self.state.setdefault(_CHANGES, []).append(undo)

    def changes(self) -> int:
        """Return how many changes were noted and not taken back."""
        return len(self.state.get(_CHANGES, ()))

    def take_back(self, count: int) -> None:
        """Take back all changes but the first so many, the last one first."""
        noted: list[Callable[[], object]] = self.state.get(_CHANGES, [])
        while len(noted) > count:
            noted.pop()()

    async def close(self, error: BaseException | None = None) -> None:
        """End the unit.

        Args:
            error: Why the unit failed; `None` when it succeeded.

        Raises:
            BaseException: A teardown failed. The given error itself is not raised, the caller has it in hand.
        """
        await self._left_alone()
        failure = await unwind(self.exits, error)
        await self._left_alone()
        self.joinable = False
        failure = await unwind(self.entered, failure)
        self.closed = True
        if failure is not None and failure is not error:
            raise failure

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Handle another message in the unit; it does not end before that."""
        self.joined += 1
        try:
            yield
        finally:
            self.joined -= 1
            if self.joined == 0 and self._alone is not None:
                self._alone.set()

    async def _left_alone(self) -> None:
        # A handler may have left tasks behind that send on its behalf: `gather` does when one of them fails.
        if self.joined:
            with anyio.CancelScope(shield=True):
                while self.joined:
                    self._alone = anyio.Event()
                    await self._alone.wait()


async def unwind(exits: list[tuple[Exit, str]], error: BaseException | None) -> BaseException | None:
    """Run teardowns, last one first, each with the failure so far; return the failure that is left.

    Cancellation does not interrupt it. A teardown that swallows the failure does not make it go away: a unit in which
    something failed must not be committed by the next one. A teardown that raises replaces it.
    """
    if not exits:
        return error
    with anyio.CancelScope(shield=True):
        while exits:
            leave, name = exits.pop()
            try:
                if error is None:
                    await leave(None, None, None)
                elif await leave(type(error), error, error.__traceback__):
                    error.add_note(f"dependency {name} swallowed this exception; it was raised again")
            except BaseException as raised:
                error = raised
    return error


@dataclass(slots=True, eq=False)
class Call:
    """One message on its way through one stage.

    An interceptor passes on a changed copy, by `dataclasses.replace`, and leaves the one it was given alone. That is
    not enforced: a frozen one costs three times as much to make, and several are made for each message.

    Args:
        message: The message; its payload is bytes in the RECEIVE and SEND stages.
        endpoint: The handler that is about to run, in the HANDLE stage.
        channel: The channel that the message came from or is going to.
        scope: The unit of work.
        delivery: The lent message, in the RECEIVE stage and in the unit that handles it.
        instance: The object whose method is called, when an interceptor has loaded it.
        kind: What was sent, in the DISPATCH stage.
        key: The key it was sent to, in the DISPATCH stage.
    """

    message: Message[Any]
    endpoint: Endpoint | None
    channel: str | None
    scope: Scope
    delivery: Delivery | None = None
    instance: object | None = None
    kind: Kind | None = None
    key: str | None = None

    def saying(self, message: Message[Any]) -> "Call":
        """Return the same call of another message; quicker than `dataclasses.replace`."""
        return Call(message, self.endpoint, self.channel, self.scope, self.delivery, self.instance, self.kind, self.key)

    def reaching(self, endpoint: Endpoint) -> "Call":
        """Return the same call for an endpoint."""
        return Call(self.message, endpoint, self.channel, self.scope, self.delivery, self.instance, self.kind, self.key)


Proceed = Callable[[Call], Awaitable[Any]]
"""The rest of the pipeline."""


class Interceptor(Protocol):
    """Stands around a call. It may change the call, repeat it, replace its result, or not let it through.

    One that does nothing after the rest of the pipeline can be a `def` that returns `proceed(call)`: for most calls it
    then is no coroutine of its own.
    """

    def __call__(self, call: Call, proceed: Proceed, /) -> Awaitable[Any]:
        """Do something before and after `await proceed(call)`, in an `async def`."""
        ...


@dataclass(frozen=True)
class Around:
    """An interceptor and where it stands.

    Args:
        interceptor: What is called.
        stage: At which stage.
        order: How far out; the smallest is outermost.
        when: For which endpoints; only in the HANDLE stage. It is asked when it is known what the handler is given.
        plugin: Who put it there, for tools that tell.
    """

    interceptor: Interceptor
    stage: Stage
    order: int = Order.USER
    when: Callable[[Endpoint], object] | None = None
    plugin: object | None = None


def compose(interceptors: Iterable[Interceptor], target: Proceed) -> Proceed:
    """Return one function that runs the interceptors, the first one outermost, around the target."""
    for interceptor in reversed(tuple(interceptors)):
        target = _around(interceptor, target)
    return target


def _around(interceptor: Interceptor, proceed: Proceed) -> Proceed:
    return lambda call: interceptor(call, proceed)
