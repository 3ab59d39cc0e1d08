"""The second and the fourth door: a message that a channel has lent reaches the handler that it names, and is settled.

Each received message is the root of a unit of work.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.current import Frame, handled, noted
from ecotone_fastapi.core.errors import HandlerCancelledError, UnknownEndpointError
from ecotone_fastapi.core.handler import Handler, handler_of
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.pipeline import Call, Interceptor, Proceed, Scope, compose
from ecotone_fastapi.core.watching import Operation, Watching

_SUCCEEDED = object()  # under which a unit of work notes that the target of its message was reached and came back


class Receiving:
    """Takes lent messages to their handlers.

    Args:
        owner: The gateway whose units of work these are.
        handlers: All endpoints, ready to be called, by id.
        channels: All channels by name.
        watching: Who watches the work on channels.
        interceptors: Those of the RECEIVE stage, outermost first.
    """

    def __init__(
        self,
        owner: object,
        handlers: Mapping[str, Handler],
        channels: Mapping[str, Channel],
        watching: Watching,
        interceptors: Sequence[Interceptor],
    ) -> None:
        self._owner = owner
        self._handlers = handlers
        self._channels = channels
        self._watching = watching
        self._interceptors = tuple(interceptors)
        self._deliver = self._reaching(self.deliver)

    async def receive(self, channel: str, delivery: Delivery, target: Proceed | None) -> bool:
        """See `Gateway.receive`."""
        message = delivery.message
        scope = Scope()
        call = Call(message, None, channel, scope, delivery)
        frame = Frame(self._owner, message, scope)
        frame.call = call
        token = handled.set(frame)
        reached = self._deliver if target is None else self._reaching(target)
        try:
            await reached(call)
            succeeded = frame.scope.state.get(_SUCCEEDED, False)
        except BaseException as error:
            if not delivery.settled:
                with anyio.CancelScope(shield=True):
                    await self.nack(channel, delivery, 0.0, attempted=isinstance(error, Exception))
            raise
        finally:
            frame.end()
            handled.reset(token)
        return bool(succeeded)

    def _reaching(self, target: Proceed) -> Proceed:
        """Put the RECEIVE interceptors around a target."""

        async def reach(call: Call) -> Any:
            try:
                result = await target(call)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Nobody cancelled this task: the handler has awaited something that was. That is a failure like any
                # other, and must not end the consumer.
                raise HandlerCancelledError(
                    f"{call.message.headers.get(HeaderName.endpoint)} awaited something that was cancelled",
                    hint="catch asyncio.CancelledError of what you cancel yourself",
                ) from error
            call.scope.state[_SUCCEEDED] = True
            return result

        return compose(self._interceptors, reach)

    async def deliver(self, call: Call) -> Any:
        """See `Gateway.deliver`."""
        endpoint_id = call.message.headers.get(HeaderName.endpoint)
        if endpoint_id is None:
            raise UnknownEndpointError(
                f"a message on the channel {call.channel!r} names no handler",
                hint=f"what is sent to a channel by hand needs the header {HeaderName.endpoint!r}",
            )
        handler = handler_of(self._handlers, endpoint_id)
        try:
            result = await handler.handle_received(noted(call.reaching(handler.endpoint)))
        except BaseException as error:
            await call.scope.close(error)
            raise
        await call.scope.close()
        return result

    async def ack(self, channel: str, delivery: Delivery) -> None:
        """See `Gateway.ack`."""
        if delivery.settled:
            return
        where = self._channels.get(channel)
        with self._watching.during(Operation.SETTLE, "ack", channel, [delivery.message], where, delivery=delivery):
            await delivery.ack()

    async def nack(self, channel: str, delivery: Delivery, delay: float, *, attempted: bool) -> None:
        """See `Gateway.nack`."""
        if delivery.settled:
            return
        where = self._channels.get(channel)
        with self._watching.during(
            Operation.SETTLE, "nack", channel, [delivery.message], where, attempted=attempted, delivery=delivery
        ):
            await delivery.nack(delay, attempted=attempted)
