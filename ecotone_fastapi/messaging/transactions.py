"""Transactions: a command or an asynchronous handler succeeds with all its writes and messages, or with none of them.

async def place_order(self, command: PlaceOrder, session: Session, events: EventBus) -> None:
    session.add(Order(command.order_id))
    await events.publish(OrderWasPlaced(command.order_id))  # leaves when the order is saved, or not at all
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast, overload

from ecotone_fastapi.core.channel import Delivery
from ecotone_fastapi.core.endpoint import Endpoint, Kind, mark
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly

F = TypeVar("F")


@dataclass(frozen=True)
class Untransacted:
    """Mark: no transaction is opened for this handler.

    Args:
        holding: Whether messages that it sends still wait until it has succeeded.
    """

    holding: bool = True


@overload
def untransacted(handler: F, /) -> F: ...
@overload
def untransacted(*, holding: bool = True) -> Callable[[F], F]: ...
def untransacted(handler: Any = None, /, *, holding: bool = True) -> Any:
    """Open no transaction for this handler, or for all handlers of this class.

    For handlers whose effect is elsewhere, such as a call to another system: they hold no connection meanwhile, and
    their messages are acked in batches.

    Args:
        handler: The handler or class.
        holding: Whether messages that it sends wait until it has succeeded. With `False` they leave at once.

    Example:
        >>> @untransacted
        ... async def call_the_bank(command: dict) -> None: ...
    """
    attach: Callable[[Any], Any] = mark(Untransacted(holding))
    return attach if handler is None else attach(handler)


class UnitOfWork(Protocol):
    """Opens a transaction for a scope. A database adapter implements it."""

    def begin(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """Open a transaction that everything in the scope shares; commit it when left well, else roll it back.

        Called at most once at a time for a scope. Leaving raises what the commit raises.
        """
        ...

    def savepoint(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        """Mark a place in the scope's open transaction; roll back to it when left with a failure, and only to it."""
        ...

    def covers(self, part: object) -> bool:
        """Whether what is done with a channel or a store commits or vanishes with the transaction."""
        ...


# Most units of work send nothing: what holds their messages is made for the first one.
_NOTHING_YET = object()


class Transactions:
    """The plugin that puts a unit of work around commands, events and asynchronous handlers; installed by default.

    The first handler of a root message opens it and its end closes it; nested messages join it, a nested command behind
    a savepoint: when it fails and its sender goes on, nothing of it is left. Queries open none. Of a root handler that
    is `untransacted`, the first nested one that is not opens it. Without a database it still holds messages back until
    the handler has succeeded.
    """

    def install(self, assembly: Assembly) -> None:
        """Open a transaction around handlers, and hold outgoing messages until they have succeeded."""
        gateway = assembly.gateway
        unit = cast("UnitOfWork | None", assembly.services.get(UnitOfWork))

        def transact(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Open a transaction unless one is open; ack in it where possible."""
            scope = call.scope
            within = proceed
            if scope.joined > 0 and call.endpoint is not None and call.endpoint.kind is Kind.COMMAND:
                within = partial(all_or_nothing, proceed=proceed)
            if UnitOfWork not in scope.state:
                # What an untransacted handler around this one has sent so far keeps its own place to wait.
                scope.state[UnitOfWork] = scope.state[Outgoing] = _NOTHING_YET
                if unit is not None:
                    return begin(unit, call, within)
            return within(call)

        async def begin(unit: UnitOfWork, call: Call, proceed: Proceed) -> Any:
            await call.scope.enter(unit.begin(call.scope))
            if call.delivery is not None and unit.covers(gateway.channels[call.channel or ""]):
                await call.scope.enter(_acked(gateway, call.channel or "", call.delivery))
            return await proceed(call)

        async def all_or_nothing(call: Call, proceed: Proceed) -> Any:
            # Whoever has sent this command may catch its failure and go on: then nothing of it may be left.
            outgoing = call.scope.state.get(Outgoing)
            before = len(outgoing) if isinstance(outgoing, Outgoing) else 0
            changes = call.scope.changes()
            try:
                if unit is None:
                    return await proceed(call)
                async with unit.savepoint(call.scope):
                    return await proceed(call)
            except BaseException:
                call.scope.take_back(changes)
                outgoing = call.scope.state.get(Outgoing)
                if isinstance(outgoing, Outgoing):
                    outgoing.forget_after(before)
                raise

        def leave_untransacted(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Open no transaction; hold messages back unless the handler wants them to leave at once."""
            untransacted = call.endpoint.find(Untransacted) if call.endpoint is not None else None
            holding = untransacted is None or untransacted.holding
            call.scope.state.setdefault(Outgoing, _NOTHING_YET if holding else None)
            return proceed(call)

        def hold(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Keep the message until the handlers of the unit of work have succeeded."""
            outgoing = call.scope.state.get(Outgoing)
            if outgoing is None:
                return proceed(call)
            if outgoing is _NOTHING_YET:
                outgoing = call.scope.state[Outgoing] = Outgoing(gateway)
            assert call.channel is not None
            held: Awaitable[None] = outgoing.hold(call.channel, call.message, call.scope)
            return held

        assembly.add_interceptor(transact, stage=Stage.HANDLE, order=Order.TRANSACTION, when=_is_transacted)
        assembly.add_interceptor(leave_untransacted, stage=Stage.HANDLE, order=Order.TRANSACTION, when=_is_untransacted)
        # Innermost: what is held is what the other interceptors of this stage have made of the message.
        assembly.add_interceptor(hold, stage=Stage.SEND, order=Order.STATE)


def _is_transacted(endpoint: Endpoint) -> bool:
    return endpoint.kind is not Kind.QUERY and endpoint.find(Untransacted) is None


def _is_untransacted(endpoint: Endpoint) -> bool:
    return endpoint.kind is not Kind.QUERY and endpoint.find(Untransacted) is not None


@asynccontextmanager
async def _acked(gateway: Gateway, channel: str, delivery: Delivery) -> AsyncIterator[None]:
    """Remove the message that is handled, in the transaction of its handler."""
    yield
    await gateway.ack(channel, delivery)


class Outgoing:
    """Messages of one unit of work that wait until its handlers have succeeded.

    Those for durable channels leave just before the commit: on the same database they commit with it. Those for
    channels in memory leave after it, so that nobody sees what is not committed.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._held: list[tuple[bool, str, Message[bytes]]] = []
        self._leaving: set[bool] = set()

    def __len__(self) -> int:
        return len(self._held)

    async def hold(self, channel: str, message: Message[bytes], scope: Scope) -> None:
        """Keep a message until the unit ends."""
        target = self._gateway.channels.get(channel)
        durable = target is None or target.capabilities.durable
        if durable not in self._leaving:
            self._leaving.add(durable)
            await scope.enter(self._left(durable), outermost=not durable)
        self._held.append((durable, channel, message))

    def forget_after(self, count: int) -> None:
        """Forget what was sent by somebody who has failed: everything but the first so many messages."""
        del self._held[count:]

    @asynccontextmanager
    async def _left(self, durable: bool) -> AsyncIterator[None]:
        yield
        # In the order of their first messages, each channel with all of its messages at once.
        leaving: dict[str, list[Message[bytes]]] = {}
        for held_durable, channel, message in self._held:
            if held_durable is durable:
                leaving.setdefault(channel, []).append(message)
        self._held = [held for held in self._held if held[0] is not durable]
        self._leaving.discard(durable)
        for channel, messages in leaving.items():
            await self._gateway.transmit(channel, messages)
