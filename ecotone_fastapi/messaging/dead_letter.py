"""The dead letter: where a message waits, with its bytes and its failure, when its handler could not do its work.

    for parked in await dead_letters.list(DeadLetterFilter(endpoint="notify-customer")):
        await dead_letters.replay(parked.id)

`DeadLetters` is given to handlers by type, to endpoints by `DeadLettersDep`, and is `ecotone.dead_letters`.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, cast

import anyio

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.conversion import header_texts
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import (
    ChannelError,
    ConcurrencyError,
    ConfigurationError,
    DeadLetterNotFoundError,
    EcotoneError,
    HeaderError,
    UnknownEndpointError,
)
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, Message, check_given, name_of
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.plugin import Assembly, Limits
from ecotone_fastapi.core.sending import unknown_channel
from ecotone_fastapi.core.watching import Operation
from ecotone_fastapi.messaging.dead_letter_store import EVERYTHING, DeadLetterFilter, DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.transactions import UnitOfWork

logger: logging.Logger = logging.getLogger("ecotone_fastapi.dead_letter")


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What became of several dead letters that were to be replayed.

    Args:
        count: How many went back to a channel.
        refused: Why the others did not, by their ids; they are where they were.
    """

    count: int
    refused: Mapping[str, EcotoneError]


Progress = Callable[[int, int], object]
"""Is told how many are done, and of how many."""

_AS_IT_WAS: Any = object()

# What was counted and waited for before belongs to the past; a replay starts anew, and must not expire on its way.
_PAST = (
    HeaderName.attempt,
    HeaderName.first_failed_at,
    HeaderName.delay,
    HeaderName.time_to_live,
    HeaderName.schedule_key,
    HeaderName.forward_until,
)


class DeadLetters:
    """What can be done about parked messages. Handlers ask for it by type, endpoints by `DeadLettersDep`.

    Args:
        gateway: The way to the channels.
        store: Where the messages are.
        unit: Opens transactions.

    Example:
        >>> async def replay_what_timed_out(dead_letters: DeadLetters) -> int:
        ...     return (await dead_letters.replay_all(DeadLetterFilter(error_type="TimeoutError"))).count
    """

    def __init__(self, gateway: Gateway, store: DeadLetterStore, unit: UnitOfWork | None = None) -> None:
        self._gateway = gateway
        self._store = store
        self._unit = unit

    async def list(
        self, which: DeadLetterFilter = EVERYTHING, *, limit: int = 100, offset: int = 0
    ) -> Sequence[ParkedMessage]:
        """Return dead letters, the newest first.

        Args:
            which: Which ones.
            limit: How many at most.
            offset: How many of the newest are left out.
        """
        return await self._store.list(which, limit=limit, offset=offset)

    async def ids(self, which: DeadLetterFilter = EVERYTHING) -> Sequence[str]:
        """Return the ids of dead letters, the oldest first."""
        return await self._store.ids(which)

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one dead letter.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        return await self._store.get(parked_id)

    async def count(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Return how many dead letters there are."""
        return await self._store.count(which)

    async def replay(
        self,
        parked_id: str,
        *,
        to: str | None = None,
        payload: Any = _AS_IT_WAS,
        headers: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        """Send a dead letter back to the channel it failed on.

        Only the handler that failed runs again, with all of its retries. The message keeps its id, its correlation and
        every header but those that count and wait. It leaves the dead letter in one transaction with its return where
        both are in one database; else when the channel has confirmed it. Should it fail again, it is parked anew.

        Args:
            parked_id: The id in the dead letter.
            to: Another channel, when the first one no longer exists, or another application is to handle it.
            payload: What the message is to say instead: bytes, or text in the media type of the message, as it goes
                over the wire; else an object, which is encoded.
            headers: Headers to set; `None` takes one away. `endpoint` may name another handler. What is said here of
                waiting, of a key or of a life counts from now on.
            revision: The `revision` of what you have seen; `None` takes it as it is.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
            ConcurrencyError: Somebody else has changed it meanwhile.
            UnknownChannelError: There is no such channel.
            UnknownEndpointError: The handler does not exist any more.
            ConversionError: What it is to say instead cannot be written.
            ChannelError: The channel did not take it.
        """
        parked = await self._seen(parked_id, revision)
        past = _PAST if to is None else (*_PAST, HeaderName.forward_to)
        message = self._edited(parked.message.without_headers(past), payload, headers)
        channel = to if to is not None else parked.channel
        self._check(parked, message, channel, elsewhere=to is not None)
        message = message.with_headers({HeaderName.replays: str(parked.replays + 1)})
        async with self._one_unit(message) as scope:
            if self._unit is None:
                await self._gateway.transmit(channel, [message])
                await self._delete_as_it_was(parked)
            elif self._unit.covers(self._store):
                async with self._undone_alone(scope):
                    # First: of what somebody else has edited meanwhile nothing may be sent.
                    await self._delete_as_it_was(parked)
                    await self._gateway.transmit(channel, [message])
            else:
                await self._gateway.transmit(channel, [message])
                # Deleted before the commit, it would be nowhere if that failed.
                await scope.enter(self._deleted_afterwards(parked), outermost=True)
        logger.info("dead letter %s went back to channel %s", parked_id, channel)

    async def replay_all(
        self,
        which: DeadLetterFilter | Iterable[str] = EVERYTHING,
        *,
        to: str | None = None,
        progress: Progress | None = None,
    ) -> Replayed:
        """Send dead letters back, the oldest first, each as `replay` does.

        Those that are parked meanwhile, because they fail again, stay. One that cannot go back does not hold up the
        others.

        Args:
            which: Which ones, or their ids.
            to: Another channel for all of them.
            progress: Is told after each one how many are done, and of how many.

        Raises:
            ChannelError: A channel or the database cannot be reached; what went back by then is back.
        """
        ids = await self._store.ids(which) if isinstance(which, DeadLetterFilter) else [*which]
        refused: dict[str, EcotoneError] = {}
        for done, parked_id in enumerate(ids, start=1):
            try:
                await self.replay(parked_id, to=to)
            except ChannelError:
                raise
            except EcotoneError as error:
                refused[parked_id] = error
            if progress is not None:
                progress(done, len(ids))
        return Replayed(count=len(ids) - len(refused), refused=refused)

    async def edit(
        self,
        parked_id: str,
        *,
        payload: Any = _AS_IT_WAS,
        headers: Mapping[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        """Change what a dead letter says, and leave it where it is, to be replayed later.

        Args:
            parked_id: The id in the dead letter, which stays the same.
            payload: What the message is to say instead, as in `replay`.
            headers: Headers to set; `None` takes one away. `endpoint` may name another handler.
            revision: The `revision` of what you have seen; `None` takes it as it is.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
            ConcurrencyError: Somebody else has changed it meanwhile.
            HeaderError: A header says what a later replay would take away: how long to wait, or under which key.
            ConversionError: What it is to say instead cannot be written.
        """
        parked = await self._seen(parked_id, revision)
        message = self._edited(parked.message, payload, headers)
        _check_lasting(parked, headers or {})
        endpoint = message.headers.get(HeaderName.endpoint, parked.endpoint)
        async with self._one_unit(message):
            # Who has replayed it meanwhile must not find it here again, and who has edited it is not to be overruled.
            await self._delete_as_it_was(parked)
            await self._store.park(replace(parked, message=message, endpoint=endpoint))
        logger.info("dead letter %s was edited", parked_id)

    async def delete(self, parked_id: str) -> None:
        """Delete one dead letter.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        await self._store.delete(parked_id)

    async def delete_all(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Delete dead letters; return how many there were."""
        return await self._store.delete_all(which)

    async def _seen(self, parked_id: str, revision: str | None) -> ParkedMessage:
        parked = await self._store.get(parked_id)
        if revision not in (None, parked.revision):
            raise _changed(parked_id)
        return parked

    async def _delete_as_it_was(self, parked: ParkedMessage) -> None:
        try:
            await self._store.delete(parked.id, saying=parked.message)
        except DeadLetterNotFoundError:
            await self._store.get(parked.id)  # says so when it is gone
            raise _changed(parked.id) from None

    def _edited(self, message: Message[bytes], payload: Any, headers: Mapping[str, Any] | None) -> Message[bytes]:
        if payload is not _AS_IT_WAS:
            message = self._saying(payload, message, headers)
        return _with(message, headers) if headers else message

    def _saying(self, payload: Any, message: Message[bytes], headers: Mapping[str, Any] | None) -> Message[bytes]:
        raw = isinstance(payload, bytes | str)
        content_type = (headers or {}).get(HeaderName.content_type) or message.headers.get(HeaderName.content_type)
        body, content_type = self._gateway.conversion.encode(payload, content_type if raw else None)
        extra = {} if isinstance(payload, bytes) else {HeaderName.content_type: content_type}
        if not raw and type(payload).__module__ != "builtins":  # a dict is as good as what it was before
            extra[HeaderName.type] = name_of(type(payload))
        return message.with_payload(body).with_headers(extra)

    def _check(self, parked: ParkedMessage, message: Message[bytes], channel: str, *, elsewhere: bool) -> None:
        if channel not in self._gateway.channels:
            error = unknown_channel(channel, self._gateway.channels)
            error.what = f"dead letter {parked.id}: {error.what}"
            error.hint = "replay it to one of these channels, or give the application one with this name"
            raise error
        endpoint = message.headers.get(HeaderName.endpoint)
        if elsewhere or endpoint is None or HeaderName.forward_to in message.headers:
            return
        try:
            self._gateway.plan_of(endpoint)
        except UnknownEndpointError as error:
            error.what = f"dead letter {parked.id}: {error.what}"
            error.hint = (
                "give a handler that was moved or renamed its former id, or set the header 'endpoint' to another one; "
                "when another application handles it, say to which channel it goes"
            )
            raise

    @asynccontextmanager
    async def _one_unit(self, message: Message[bytes]) -> AsyncIterator[Scope]:
        """Join the transaction of the handler that is at work, or open one."""
        present = current_scope()
        if present is not None and UnitOfWork in present.state:
            yield present
            return
        async with self._gateway.unit_of_work(message) as scope:
            if self._unit is not None:
                await scope.enter(self._unit.begin(scope))
            yield scope

    def _undone_alone(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """In the transaction of a handler, go back to here on a failure: the handler may catch it and go on."""
        if self._unit is None or UnitOfWork not in scope.state:
            return nullcontext()
        return self._unit.savepoint(scope)

    @asynccontextmanager
    async def _deleted_afterwards(self, parked: ParkedMessage) -> AsyncIterator[None]:
        yield
        await self._delete_as_it_was(parked)


def _changed(parked_id: str) -> ConcurrencyError:
    return ConcurrencyError(
        f"dead letter {parked_id!r} was edited by somebody else meanwhile",
        hint="look at what it says now, and decide again",
    )


def _check_lasting(parked: ParkedMessage, headers: Mapping[str, Any]) -> None:
    """Refuse headers that would be gone when the dead letter is replayed.

    Raises:
        HeaderError: There is one.
    """
    for name in _PAST:
        if headers.get(name) not in (None, parked.message.headers.get(name)):
            raise HeaderError(
                f"the header {name!r} would be taken away by the replay of the dead letter",
                hint="say it when you replay: replay(id, headers={...})",
            )


def _with(message: Message[bytes], headers: Mapping[str, Any]) -> Message[bytes]:
    """Return a message with headers as somebody wants them.

    Raises:
        HeaderError: One of them is written by the framework alone.
        ConversionError: One of them is not what it has to be.
    """
    texts = header_texts(headers)
    check_given({name: text for name, text in texts.items() if name != HeaderName.endpoint})
    return message.without_headers([name for name, value in headers.items() if value is None]).with_headers(texts)


class Parking:
    """Moves messages to the dead letter: on one database in one transaction, else parked first, acked second.

    Args:
        gateway: Opens units of work.
        store: Where the messages go.
        unit: Opens transactions.
    """

    def __init__(self, gateway: Gateway, store: DeadLetterStore, unit: UnitOfWork | None) -> None:
        self._gateway = gateway
        self._store = store
        self._unit = unit

    async def park(
        self, parked: ParkedMessage, ack: Callable[[], Awaitable[object]], *, where: Channel, taken_from: Channel
    ) -> None:
        """Park a message, and ack it where that is part of it; afterwards it is to be acked in any case.

        Args:
            parked: The message.
            ack: Acks it, as often as it is called.
            where: The channel that it could not be handled on, or sent to.
            taken_from: The channel that has lent it.

        Raises:
            ChannelError: It could not be parked, or not be acked.
        """
        async with self._gateway.unit_of_work(parked.message) as scope:
            if self._unit is not None:
                await scope.enter(self._unit.begin(scope))
            with self._gateway.watching.during(Operation.PARK, "park", parked.channel, [parked.message], where):
                await self._store.park(parked)
            if self._unit is None or self._unit.covers(taken_from):
                await ack()


class DeadLetterOffice:
    """The plugin that offers `DeadLetters`; installed by default.

    Args:
        keep: After which time dead letters are deleted; without it never, for nothing disappears by itself. Deleting
            is done by a runnable, `dead-letters`, which runs beside the consumers.

    Example:
        >>> plugin = DeadLetterOffice(keep=timedelta(days=90))
    """

    def __init__(self, *, keep: timedelta | None = None) -> None:
        if keep is not None and keep <= timedelta(0):
            raise ConfigurationError(f"dead letters cannot be kept for {keep}", hint="keep=timedelta(days=90)")
        self._keep = keep

    def __repr__(self) -> str:
        return f"DeadLetterOffice(keep={self._keep!r})"

    def install(self, assembly: Assembly) -> None:
        """Offer what can be done about the messages of the store, if there is one."""
        store = cast("DeadLetterStore | None", assembly.services.get(DeadLetterStore))
        if store is None:
            return  # the plugin that parks messages says so
        unit = cast("UnitOfWork | None", assembly.services.get(UnitOfWork))
        assembly.add_service(DeadLetters, DeadLetters(assembly.gateway, store, unit))
        if self._keep is not None:
            assembly.add_runnable(_Retention(assembly.gateway, store, self._keep))


_BETWEEN_SWEEPS = 3600.0  # seconds


class _Retention:
    """Deletes what is too old, again and again."""

    name = "dead-letters"

    def __init__(self, gateway: Gateway, store: DeadLetterStore, keep: timedelta) -> None:
        self._gateway = gateway
        self._store = store
        self._keep = keep

    async def run(self, limits: Limits) -> int:
        """Run until it is told to stop; once only, when it is to end with the messages."""
        deleted = 0
        once = limits.until_empty or limits.messages is not None
        stop = limits.stop or anyio.Event()
        with anyio.move_on_after(limits.seconds):
            while not stop.is_set():
                too_old = DeadLetterFilter(until=self._gateway.clock.now() - self._keep)
                swept = await self._store.delete_all(too_old)
                if swept:
                    logger.info("deleted %s dead letters that were older than %s", swept, self._keep)
                deleted += swept
                if once:
                    break
                with anyio.move_on_after(_BETWEEN_SWEEPS):
                    await stop.wait()
        return deleted
