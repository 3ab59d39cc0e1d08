"""Deduplication: a handler does not handle a message twice, however often it is sent or delivered.

    @deduplicated(key=lambda command: command.payment_id)
    @command_handler
    async def pay(self, command: Pay) -> None: ...

What comes from a broker is recorded in the database anyway, by its id, in the transaction of its handler. Nothing needs
to be recorded of what comes from a channel in that database: there the message is removed in the same transaction.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, cast, overload

import anyio

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.endpoint import Endpoint, Kind, mark, marks_of
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, MissingServiceError
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly, Limits

F = TypeVar("F")

logger: logging.Logger = logging.getLogger("ecotone_fastapi.deduplication")


@dataclass(frozen=True)
class Deduplicated:
    """Mark: this handler skips what it has handled before.

    Args:
        key: What tells messages apart: the name of a header, or what computes it from the payload. `None` is the id.
        within: The name of the record that it shares with other handlers; `None` is one of its own.
    """

    key: str | Callable[[Any], object] | None = None
    within: str | None = None


@overload
def deduplicated(handler: F, /) -> F: ...
@overload
def deduplicated(
    *, key: str | Callable[[Any], object] | None = None, within: str | None = None
) -> Callable[[F], F]: ...
def deduplicated(
    handler: Any = None, /, *, key: str | Callable[[Any], object] | None = None, within: str | None = None
) -> Any:
    """Skip what this handler has handled before; on a class, each of its command and event handlers on its own.

    A duplicate is skipped without an error, and a bus that sent it returns `None`: the result of the first time is not
    kept. Only success is remembered, for as long as `Deduplication(keep=...)` says: what has failed may be sent,
    retried or replayed. A duplicate that comes while the first one is being handled waits for its end.

    The record is in the transaction of the handler, so handler and record succeed together or not at all. For handlers
    that are `@untransacted` it is written after they have succeeded: when the process dies in between, they handle the
    message again. Without a database it is kept in memory, and each process has its own.

    Args:
        handler: The handler or class.
        key: What tells messages apart: the name of a header, or a function of the payload. Without it, the `id` of the
            message, which senders may give: `headers={"id": "order-17-paid"}`. A message without the key is handled.
            What a handler sends inherits the headers of its message: for a handler that one message may reach several
            times, compute the key from the payload.
        within: A name shared by handlers of which only one is to handle each message.

    Raises:
        ConfigurationError: The key is neither a name nor a function.

    Example:
        >>> @deduplicated(key="idempotency_key")
        ... async def place_order(command: dict) -> None: ...
    """
    given: object = key
    if given is not None and not callable(given) and not (isinstance(given, str) and given):
        raise ConfigurationError(
            f"@deduplicated(key={key!r}) tells no messages apart",
            hint='give the name of a header, key="idempotency_key", or a function, key=lambda command: command.id',
        )
    attach: Callable[[Any], Any] = mark(Deduplicated(key, within))
    return attach if handler is None else attach(handler)


class DeduplicationStore(Protocol):
    """Remembers which handler has handled which message. Implemented in memory and by database adapters."""

    @property
    def durable(self) -> bool:
        """Whether it is shared by all processes and outlives them."""
        ...

    def covers(self, channel: Channel) -> bool:
        """Whether an ack on this channel commits or vanishes with what is recorded, so that nothing need be."""
        ...

    def takes_part(self) -> bool:
        """Whether what is recorded now commits or vanishes with the unit of work in the calling task's scope."""
        ...

    async def record(self, message_id: str, endpoint: str) -> bool:
        """Note that a handler handles a message; return whether that is new.

        In an open unit of work the record is part of it. When another unit has recorded the same and is still open,
        this waits for its end: it is new if that one rolls back. Where no unit is open, the record stays at once.

        Args:
            message_id: The id or key of the message; any text.
            endpoint: The id of the handler; any text.

        Raises:
            ChannelError: The store cannot be reached.
            ConcurrencyError: Two units wait for each other.
        """
        ...

    async def forget(self, message_id: str, endpoint: str) -> None:
        """Take a record back, as part of an open unit of work; do nothing when there is none."""
        ...

    async def knows(self, message_id: str, endpoint: str) -> bool:
        """Return whether a record is there, without waiting for anybody."""
        ...

    async def forget_before(self, moment: datetime, *, limit: int = 1000) -> int:
        """Forget the oldest records from before a moment, in no unit of work; return how many.

        Any number of processes may do so at once: none waits for another for long, and none forgets what another did.

        Args:
            moment: What is younger is kept.
            limit: How many at most. Few, so that nobody is locked out; call it again while it reaches the limit.
        """
        ...


class Deduplication:
    """The plugin that lets handlers handle nothing twice; installed by default.

    It stands around handlers that are `@deduplicated`, and around all that are reached through a durable channel whose
    ack is not in the handler's transaction, which is that of a broker: they are told apart by the `id` of the message.
    Handlers that are `@untransacted` get each message of a broker at least once, unless they are `@deduplicated`.

    What is older than it is kept for is forgotten by the runnable `inbox`, which runs beside the consumers, in any
    number of processes. Where consumers are named one by one, as in `ecotone run app orders`, name it once, too.

    Args:
        keep: How long a message is remembered. Longer than a sender or a broker may repeat it.
        inbox: Whether what comes from brokers is recorded without a mark.
        commands: The name of a header by which commands are told apart, whoever handles them; for buses behind an API
            whose clients send such a key. Commands that a handler sends are not meant, nor those without the header.
        name: The name by which the command line knows what forgets.

    Raises:
        ConfigurationError: It is to keep nothing.

    Example:
        >>> Deduplication(keep=timedelta(days=30), commands="idempotency_key")
        Deduplication(keep=timedelta(days=30), commands='idempotency_key')
    """

    def __init__(
        self,
        *,
        keep: timedelta = timedelta(days=7),
        inbox: bool = True,
        commands: str | None = None,
        name: str = "inbox",
    ) -> None:
        if keep <= timedelta(0):
            raise ConfigurationError(
                f"Deduplication(keep={keep!r}) remembers nothing", hint="give a time: keep=timedelta(days=7)"
            )
        self._keep = keep
        self._inbox = inbox
        self._commands = commands
        self._name = name
        self._unidentified: set[str] = set()

    def __repr__(self) -> str:
        days = f"days={self._keep.days}" if self._keep.days else f"seconds={self._keep.total_seconds():g}"
        inbox = "" if self._inbox else ", inbox=False"
        commands = f", commands={self._commands!r}" if self._commands else ""
        return f"Deduplication(keep=timedelta({days}){inbox}{commands})"

    def install(self, assembly: Assembly) -> None:
        """Stand around the handlers that are to handle nothing twice, and forget what is old.

        Raises:
            ConfigurationError: A query handler is marked, or a channel has the name of what forgets.
            MissingServiceError: There is no store.
        """
        problems = [
            ConfigurationError(
                f"{endpoint.label} answers a query and is marked @deduplicated",
                hint="who asks twice wants two answers: take the mark away",
            )
            for endpoint in assembly.endpoints
            if endpoint.kind is Kind.QUERY
            and any(isinstance(value, Deduplicated) for value in marks_of(endpoint.function))
        ]
        ConfigurationError.raise_all(problems)
        store = cast("DeduplicationStore | None", assembly.services.get(DeduplicationStore))
        repeating: frozenset[str] = frozenset()  # the channels whose messages may come again after they were handled
        if self._inbox and store is not None and store.durable:
            channels = assembly.channels.items()
            repeating = frozenset(
                name for name, channel in channels if channel.capabilities.durable and not store.covers(channel)
            )

        def is_concerned(endpoint: Endpoint) -> bool:
            if endpoint.kind is Kind.QUERY:
                return False
            by_bus = self._commands is not None and endpoint.kind is Kind.COMMAND
            return bool(repeating) or by_bus or endpoint.find(Deduplicated) is not None

        if not any(is_concerned(endpoint) for endpoint in assembly.endpoints):
            return
        if store is None:
            raise MissingServiceError(
                "there is nothing to remember handled messages in", hint="give Ecotone the database: plugins=[database]"
            )
        if self._name in assembly.runnables:
            raise ConfigurationError(
                f"a channel has the name {self._name!r} of what forgets handled messages",
                hint='rename one of them: plugins=[Deduplication(name="forgetting")]',
            )
        assembly.add_interceptor(
            self._around(store, repeating), stage=Stage.HANDLE, order=Order.DEDUPLICATION, when=is_concerned
        )
        assembly.add_runnable(_Forgetting(self._name, store, self._keep, assembly.gateway.clock))

    def _around(self, store: DeduplicationStore, repeating: frozenset[str]) -> Callable[[Call, Proceed], Any]:
        async def handle_once(call: Call, proceed: Proceed) -> Any:
            """Skip a message that this handler has handled before."""
            endpoint = call.endpoint
            assert endpoint is not None
            wanted = endpoint.find(Deduplicated)
            comes_again = call.delivery is not None and call.channel in repeating
            if wanted is None and not comes_again and self._commands is None:
                return await proceed(call)
            key = self._key(call, endpoint, wanted, comes_again=comes_again)
            if key is None:
                return await proceed(call)
            record = wanted.within if wanted is not None and wanted.within else endpoint.id
            if store.takes_part():
                if not await store.record(key, record):
                    return _skip(endpoint, key)
                try:
                    return await proceed(call)
                except BaseException:
                    if call.scope.joined:
                        await take_back(key, record)
                    raise
            if wanted is None and comes_again:
                return await proceed(call)  # recorded beforehand it could get lost, and who wants it later says so
            if await store.knows(key, record):
                return _skip(endpoint, key)
            result = await proceed(call)
            await store.record(key, record)
            return result

        async def take_back(key: str, record: str) -> None:
            # Whoever has sent the message may catch its failure, go on and commit. Where that is no longer possible,
            # neither is this, and it does not matter.
            with anyio.CancelScope(shield=True), suppress(ChannelError):
                await store.forget(key, record)

        return handle_once

    def _key(self, call: Call, endpoint: Endpoint, wanted: Deduplicated | None, *, comes_again: bool) -> str | None:
        """Return what tells the message apart from others; `None` when nothing does, or nobody wants to know."""
        headers = call.message.headers
        key: object = None
        if wanted is not None:
            match wanted.key:
                case None:
                    key = headers.get(HeaderName.id)
                case str(name):
                    key = headers.get(name)
                case compute:
                    key = compute(call.message.payload)
        elif self._commands is not None and endpoint.kind is Kind.COMMAND and HeaderName.causation_id not in headers:
            key = headers.get(self._commands)
        if comes_again and key in (None, ""):
            key = headers.get(HeaderName.id)
        if key not in (None, ""):
            return str(key)
        if (wanted is not None or comes_again) and endpoint.id not in self._unidentified:
            self._unidentified.add(endpoint.id)
            logger.debug("%s gets messages that nothing tells apart; all of them are handled", endpoint.label)
        return None


def _skip(endpoint: Endpoint, key: str) -> None:
    logger.info("%s has handled %s before; skipped", endpoint.label, key)


class _Forgetting:
    """The runnable that forgets what is old, in small portions, so that it never is in the way."""

    def __init__(self, name: str, store: DeduplicationStore, keep: timedelta, clock: Clock) -> None:
        self._name = name
        self._store = store
        self._keep = keep
        self._clock = clock

    @property
    def name(self) -> str:
        """The name by which the command line knows it."""
        return self._name

    async def run(self, limits: Limits) -> int:
        """Forget what is old, now and then; only now, when a limit other than time is set. Return how many it was.

        Raises:
            ChannelError: The store cannot be reached.
        """
        stop = limits.stop or anyio.Event()
        bounded = limits.until_empty or limits.messages is not None or limits.memory is not None
        pause = min(_LONGEST_PAUSE, max(1.0, self._keep.total_seconds() / 10))
        forgotten = 0
        with anyio.move_on_after(math.inf if limits.seconds is None else limits.seconds):
            while not stop.is_set():
                portion = await self._store.forget_before(self._clock.now() - self._keep, limit=_PORTION)
                forgotten += portion
                if portion >= _PORTION:
                    continue
                if bounded:
                    break
                with anyio.move_on_after(pause):
                    await stop.wait()
        return forgotten


_PORTION = 1000
_LONGEST_PAUSE = 3600.0
