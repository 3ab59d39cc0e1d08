"""Instant retries: what failed by bad luck is run again at once, in a transaction of its own.

    @retried(times=3, on=TimeoutError)
    @command_handler
    async def reserve(command: ReserveStock, warehouse: Warehouse) -> None: ...

Deadlocks, serialization failures and `ConcurrencyError` need no mark when there is a database. Only whole units of work
are run again: a message that is sent while another one is handled fails with that one, and both are tried again.
"""

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast, overload

import anyio

from ecotone_fastapi.core.endpoint import Endpoint, Kind, mark
from ecotone_fastapi.core.errors import ConcurrencyError, ConfigurationError, LeaseLostError
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.watching import Operation
from ecotone_fastapi.messaging.transactions import Untransacted

F = TypeVar("F")

logger: logging.Logger = logging.getLogger("ecotone_fastapi.retries")

_PAUSE = 0.01  # seconds that those who have collided spread over, twice as many from retry to retry


@dataclass(frozen=True)
class Retried:
    """Mark: after these errors the handler is run again at once; also the default of a bus or a channel.

    Args:
        times: How often it is run again at most. With 0 it never is.
        on: After which errors.
    """

    times: int = 3
    on: type[Exception] | tuple[type[Exception], ...] = Exception

    def __post_init__(self) -> None:
        """Refuse what would fail only when a handler does."""
        types: tuple[object, ...] = self.on if isinstance(self.on, tuple) else (self.on,)
        are_errors = all(isinstance(one, type) and issubclass(one, Exception) for one in types)
        if self.times < 0 or not types or not are_errors:
            raise ConfigurationError(
                f"{self!r} is no retry", hint="write @retried(times=3, on=(TimeoutError, ConnectionError))"
            )


@overload
def retried(handler: F, /) -> F: ...
@overload
def retried(*, times: int = 3, on: type[Exception] | tuple[type[Exception], ...] = Exception) -> Callable[[F], F]: ...
def retried(
    handler: Any = None, /, *, times: int = 3, on: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Any:
    """Run this handler, or all handlers of this class, again at once when it has failed.

    Each run has a transaction and dependencies of its own; what the one before has written and sent is rolled back, but
    not what it has done elsewhere. The handler of a command or query is run again wherever it is reached first, an
    asynchronous one in its consumer. One that is reached while another message is handled shares the fate of that one,
    whose mark decides; and so do the synchronous handlers of one event. Runs of this kind are no attempts: the policy
    of the channel, which retries later, sees one failure.

    Args:
        handler: The handler or class.
        times: How often it is run again at most; with 0 it never is, not even after a deadlock.
        on: After which errors; others are raised at once.

    Raises:
        ConfigurationError: These are no errors, or the number is negative.

    Example:
        >>> @retried(times=2, on=TimeoutError)
        ... async def ask_the_warehouse(command: dict) -> None: ...
    """
    attach: Callable[[Any], Any] = mark(Retried(times, on))
    return attach if handler is None else attach(handler)


class PassingErrors(Protocol):
    """Knows which errors pass by themselves. A database adapter offers it."""

    def is_passing(self, error: Exception) -> bool:
        """Whether a transaction was rolled back only because it has met another one: by a deadlock, for example."""
        ...


# What is noted in a unit of work: which retries its handler has, that it has committed, and that something was done
# in it that no rollback takes back.
_RULES, _COMMITTED, _LEFT = object(), object(), object()


class InstantRetries:
    """The plugin behind `@retried`; installed by default.

    What a handler's mark does not name is decided by the default of the bus or of the channel, and then by the
    database: when it says that a unit of work has failed by bad luck, and all of it was rolled back, it is run again.

    Args:
        passing: How often a unit is run again after deadlocks, serialization failures and `ConcurrencyError`.
        patience: Seconds after its first run in which it is; a lock that was waited for in vain is no bad luck.
        commands: The default for all handlers of commands that are sent on a bus.
        queries: The default for all handlers of queries.
        channels: Defaults for handlers behind channels, by the name of the channel; `"*"` for all that are not named.

    Example:
        >>> plugin = InstantRetries(commands=Retried(times=2, on=OSError), channels={"mail": Retried(times=1)})
    """

    def __init__(
        self,
        *,
        passing: int = 3,
        patience: float = 10.0,
        commands: Retried | None = None,
        queries: Retried | None = None,
        channels: Mapping[str, Retried] | None = None,
    ) -> None:
        self._passing = passing
        self._patience = patience
        self._buses: dict[Kind, Retried | None] = {Kind.COMMAND: commands, Kind.QUERY: queries}
        self._channels: dict[str, Retried] = dict(channels or {})

    def __repr__(self) -> str:
        buses = {"commands": self._buses[Kind.COMMAND], "queries": self._buses[Kind.QUERY]}
        given: dict[str, object] = {**buses, "channels": self._channels}
        told = "".join(f", {name}={value!r}" for name, value in given.items() if value)
        return f"InstantRetries(passing={self._passing}{told})"

    def install(self, assembly: Assembly) -> None:
        """Stand around root messages, if there is anything that could be retried."""
        gateway = assembly.gateway
        database = cast("PassingErrors | None", assembly.services.get(PassingErrors))
        any_default = bool(self._channels) or any(self._buses.values())
        watched = database is not None and self._passing > 0
        if not (watched or any_default or any(endpoint.find(Retried) for endpoint in assembly.endpoints)):
            return

        async def repeat(call: Call, proceed: Proceed) -> Any:
            """Run what failed by bad luck again, as another unit of work."""
            scope = call.scope
            if scope.joined or scope.shared:  # a nested message, or a transaction that the caller owns
                return await proceed(call)
            runs, began_at = 1, time.monotonic()
            while True:
                try:
                    return await proceed(call)
                except Exception as error:
                    left = self._left(error, call, database, time.monotonic() - began_at) - (runs - 1)
                    if left <= 0:
                        if runs > 1:
                            error.add_note(f"it was run {runs} times in a row")
                        raise
                    name, id_ = type(error).__name__, call.message.headers.get(HeaderName.id)
                    logger.info("message %s failed with %s in its %d. run, again at once", id_, name, runs)
                where = gateway.channels.get(call.channel or "")
                with gateway.watching.during(Operation.RETRY, "again", call.channel or "", [call.message], where):
                    await anyio.sleep(random.uniform(0, _PAUSE) * 2 ** min(runs - 1, 6))  # noqa: S311  no secret
                call = gateway.anew(call)
                runs += 1

        async def note_rules(call: Call, proceed: Proceed) -> Any:
            """Note which errors of this handler are worth another run."""
            if not call.scope.joined:
                rules = self._rules(call)
                call.scope.state[_RULES] = rules
                if rules:
                    await call.scope.enter(_noting_commit(call.scope))
            return await proceed(call)

        def note_untransacted(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Note that not all of this unit can be rolled back."""
            call.scope.state[_LEFT] = True
            return proceed(call)

        def note_sent(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Note that a message has left before the end of its unit."""
            call.scope.state[_LEFT] = True
            return proceed(call)

        for stage in (Stage.DISPATCH, Stage.RECEIVE):
            assembly.add_interceptor(repeat, stage=stage, order=Order.RETRY)
        assembly.add_interceptor(
            note_rules,
            stage=Stage.HANDLE,
            order=Order.RETRY,
            when=lambda endpoint: any_default or endpoint.find(Retried) is not None,
        )
        if watched:
            assembly.add_interceptor(note_untransacted, stage=Stage.HANDLE, order=Order.RETRY, when=_is_untransacted)
            # Only what the unit does not hold back comes this far.
            assembly.add_interceptor(note_sent, stage=Stage.SEND, order=Order.STATE + 1)

    def _left(self, error: Exception, call: Call, database: PassingErrors | None, seconds: float) -> int:
        """Return how many more runs than the first one a failed unit may have."""
        state = call.scope.state
        is_settled = call.delivery is not None and call.delivery.settled
        if is_settled or _COMMITTED in state or isinstance(error, LeaseLostError):
            return 0
        for rule in state.get(_RULES, ()):
            if isinstance(error, rule.on):
                return int(rule.times)
        if database is None or _LEFT in state or seconds > self._patience:
            return 0
        passing = error.passing if isinstance(error, ConcurrencyError) else database.is_passing(error)
        return self._passing if passing else 0

    def _rules(self, call: Call) -> tuple[Retried, ...]:
        assert call.endpoint is not None
        if call.delivery is not None:
            default = self._channels.get(call.channel or "") or self._channels.get("*")
        elif call.endpoint.kind is Kind.EVENT:
            return ()  # one handler of several: those before it have done their work
        else:
            default = self._buses.get(call.endpoint.kind)
        return tuple(rule for rule in (call.endpoint.find(Retried), default) if rule is not None)


def _is_untransacted(endpoint: Endpoint) -> bool:
    return endpoint.kind is not Kind.QUERY and endpoint.find(Untransacted) is not None


@asynccontextmanager
async def _noting_commit(scope: Scope) -> AsyncIterator[None]:
    """Entered before the transaction and left after it: when that went well, nothing may be run again."""
    yield
    scope.state[_COMMITTED] = True
