"""The three buses: send a command, ask a query, publish an event."""

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from ecotone_fastapi.core.endpoint import Kind
from ecotone_fastapi.core.gateway import Gateway

R = TypeVar("R")

# To look up a member of an enum takes as long as a call.
_COMMAND, _QUERY, _EVENT = Kind.COMMAND, Kind.QUERY, Kind.EVENT


class Bus:
    """What the three buses have in common: the way in, and where they are used from.

    Args:
        gateway: The way in.
        connection: The HTTP request or WebSocket in which the bus is used.
        shared: Results of dependencies that handlers are to use instead of their own.
    """

    def __init__(
        self, gateway: Gateway, *, connection: object = None, shared: Mapping[object, Any] | None = None
    ) -> None:
        self._gateway = gateway
        self._connection = connection
        self._shared = shared


class CommandBus(Bus):
    """Sends commands, each to its one handler."""

    async def send(
        self, command: Any = None, *, to: str | None = None, headers: Mapping[str, Any] | None = None
    ) -> Any:
        """Send a command and wait until it is handled.

        Args:
            command: The command; its class is the route unless a key is given. With a key it may be anything that
                fits the handler's first parameter: an object, a dict, or JSON as bytes or text together with the
                header `content_type`.
            to: The key of the handler.
            headers: What travels with the message, and with every message that is sent while it is handled.

        Returns:
            What the handler returned; `None` when the handler is asynchronous.

        Raises:
            HandlerNotFoundError: Nobody handles it.
            ConversionError: It does not fit the handler's first parameter.

        Example:
            >>> await commands.send(PlaceOrder("order-1"), headers={"tenant": "acme"})
        """
        message = self._gateway.message(command, headers)
        return await self._gateway.dispatch(_COMMAND, message, to, connection=self._connection, shared=self._shared)


class QueryBus(Bus):
    """Asks queries, each of its one handler."""

    @overload
    async def ask(
        self, query: Any = None, *, to: str | None = None, headers: Mapping[str, Any] | None = None, returns: type[R]
    ) -> R: ...
    @overload
    async def ask(
        self, query: Any = None, *, to: str | None = None, headers: Mapping[str, Any] | None = None, returns: Any = ...
    ) -> Any: ...
    async def ask(
        self, query: Any = None, *, to: str | None = None, headers: Mapping[str, Any] | None = None, returns: Any = None
    ) -> Any:
        """Ask a query.

        Args:
            query: The query; its class is the route unless a key is given.
            to: The key of the handler.
            headers: What travels with the message.
            returns: The type that the answer is wanted in; `bytes` for JSON. Without it, the answer comes as it is.

        Returns:
            The answer.

        Raises:
            HandlerNotFoundError: Nobody answers it.
            ConversionError: The query does not fit its handler, or the answer does not fit `returns`.

        Example:
            >>> await queries.ask("order-1", to="order.get_status", returns=str)
            'placed'
        """
        message = self._gateway.message(query, headers)
        answer = await self._gateway.dispatch(_QUERY, message, to, connection=self._connection, shared=self._shared)
        if returns is None or (isinstance(returns, type) and isinstance(answer, returns)):
            return answer
        if returns is bytes:
            return self._gateway.conversion.answer(answer)
        return self._gateway.conversion.convert(answer, returns)


class EventBus(Bus):
    """Publishes events to any number of handlers."""

    async def publish(self, event: Any, *, to: str | None = None, headers: Mapping[str, Any] | None = None) -> None:
        """Publish an event and wait until its synchronous handlers are done.

        The first one that fails ends it, and with it the command in which the event was published. Each asynchronous
        handler gets a message of its own.

        Args:
            event: The event; its class is the route unless a key is given.
            to: The key that handlers are subscribed to.
            headers: What travels with the message, and with every message that is sent while it is handled.

        Example:
            >>> await events.publish(OrderWasPlaced("order-1"))
        """
        message = self._gateway.message(event, headers)
        await self._gateway.dispatch(_EVENT, message, to, connection=self._connection, shared=self._shared)
