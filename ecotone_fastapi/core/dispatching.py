"""The first door: a message from a bus finds its handlers.

A unit of work (`Scope`) begins with a root message: one that is dispatched while none is being handled. Whatever is
dispatched while it is handled joins its unit, one message after the other.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import anyio

from ecotone_fastapi.core.current import Frame, current_frame, handled
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import EcotoneError
from ecotone_fastapi.core.handler import Handler
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Interceptor, Scope, compose
from ecotone_fastapi.core.routing import Routing

_EVENT = Kind.EVENT  # to look up a member of an enum takes as long as a call


class Dispatching:
    """Takes messages of buses to their handlers.

    Args:
        owner: The gateway whose units of work these are.
        routing: Finds the endpoints of a message.
        handlers: Those endpoints, ready to be called, by id.
        interceptors: Those of the DISPATCH stage, outermost first.
    """

    def __init__(
        self, owner: object, routing: Routing, handlers: Mapping[str, Handler], interceptors: Sequence[Interceptor]
    ) -> None:
        self._owner = owner
        self._routing = routing
        self._handlers = handlers
        self._root = compose(interceptors, self._route_root) if interceptors else None
        self._nested = compose(interceptors, self._route_nested) if interceptors else None

    async def dispatch(
        self, kind: Kind, message: Message[Any], to: str | None, connection: object, shared: Mapping[object, Any] | None
    ) -> Any:
        """See `Gateway.dispatch`."""
        outer = handled.get()
        if outer is not None and outer.owner is self._owner and outer.scope.joinable:
            return await self._join(outer, kind, message, to)
        scope = Scope(connection, dict(shared) if shared else None)
        frame = Frame(self._owner, message, scope)
        token = handled.set(frame)
        try:
            if self._root is not None:
                frame.call = Call(message, None, None, scope, None, None, kind, to)
                return await self._root(frame.call)
            # As in `_route_root`, without a coroutine of its own.
            try:
                result = await self._route(kind, message, to, scope, frame)
            except BaseException as error:
                await scope.close(error)
                raise
            if scope.exits or scope.entered or scope.joined:
                await scope.close()
            return result
        finally:
            frame.scope.joinable, frame.scope.closed = False, True  # as `frame.end` does
            handled.reset(token)

    async def _join(self, outer: Frame, kind: Kind, message: Message[Any], to: str | None) -> Any:
        scope = outer.scope
        with scope.joining():
            # One unit has one session: two messages of one handler, sent by `gather`, take turns.
            if outer.turn is None:
                outer.turn = anyio.Lock()
            try:
                outer.turn.acquire_nowait()
            except anyio.WouldBlock:
                await outer.turn.acquire()
            frame = Frame(self._owner, message, scope)
            token = handled.set(frame)
            try:
                if self._nested is not None:
                    frame.call = Call(message, None, None, scope, None, None, kind, to)
                    return await self._nested(frame.call)
                return await self._route(kind, message, to, scope, frame)
            except EcotoneError as error:
                error.nested = True
                raise
            finally:
                handled.reset(token)
                outer.turn.release()

    async def _route_root(self, call: Call) -> Any:
        assert call.kind is not None
        scope = call.scope
        try:
            result = await self._route(call.kind, call.message, call.key, scope, current_frame())
        except BaseException as error:
            await scope.close(error)
            raise
        if scope.exits or scope.entered or scope.joined:
            await scope.close()
        return result

    def _route_nested(self, call: Call) -> Awaitable[Any]:
        assert call.kind is not None
        return self._route(call.kind, call.message, call.key, call.scope, current_frame())

    def _route(self, kind: Kind, message: Message[Any], to: str | None, scope: Scope, frame: Frame) -> Awaitable[Any]:
        endpoints = self._routing.find(kind, message.payload, to)
        if kind is _EVENT:
            return self._fan_out(endpoints, message, scope, frame)
        handler = self._handlers[endpoints[0].id]
        call = frame.call = Call(handler.accept(message), handler.endpoint, None, scope)
        return handler.handle(call)

    async def _fan_out(self, endpoints: Sequence[Endpoint], message: Message[Any], scope: Scope, frame: Frame) -> None:
        for endpoint in endpoints:
            handler = self._handlers[endpoint.id]
            call = frame.call = Call(handler.accept(message), endpoint, None, scope)
            await handler.handle(call)
