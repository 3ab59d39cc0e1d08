"""The four doors of the kernel: dispatch, deliver, send, receive.

What is behind each is in `dispatching`, `receiving` and `sending`; here they are put together.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.conversion import Conversion, header_texts
from ecotone_fastapi.core.current import Conversation, Frame, current_frame, handled, noted
from ecotone_fastapi.core.dispatching import Dispatching
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.handler import Handler, Overrides, handler_of
from ecotone_fastapi.core.injection import Injector
from ecotone_fastapi.core.message import FreshHeaders, HeaderName, Message, MessageTypes, check_given
from ecotone_fastapi.core.pipeline import Around, Call, Interceptor, Proceed, Scope, Stage
from ecotone_fastapi.core.plan import Plan
from ecotone_fastapi.core.receiving import Receiving
from ecotone_fastapi.core.routing import Routing
from ecotone_fastapi.core.sending import Sending
from ecotone_fastapi.core.watching import Watcher, Watching


class Gateway:
    """The way into messaging. Made empty, so that plugins can hold it, and wired once before the first message.

    Args:
        conversion: How payloads become bytes.
        clock: What time it is.
    """

    def __init__(self, conversion: Conversion, clock: Clock) -> None:
        self.conversion = conversion
        self.clock = clock
        self._handlers: dict[str, Handler] = {}
        self._put_together(Routing(()), (), Watching(), {})

    def _put_together(
        self, routing: Routing, arounds: Iterable[Around], watching: Watching, channels: Mapping[str, Channel]
    ) -> None:
        self._routing = routing
        self._arounds = tuple(sorted(arounds, key=lambda around: around.order))
        self.watching: Watching = watching
        self.channels: Mapping[str, Channel] = channels
        self._dispatching = Dispatching(self, routing, self._handlers, self._interceptors(Stage.DISPATCH))
        self._sending = Sending(self.conversion, channels, watching, self._interceptors(Stage.SEND))
        self._receiving = Receiving(self, self._handlers, channels, watching, self._interceptors(Stage.RECEIVE))

    def wire(
        self,
        *,
        routing: Routing,
        injector: Injector,
        asynchronous: Callable[[Endpoint], bool],
        arounds: Iterable[Around],
        watchers: Sequence[Watcher] = (),
        channels: Mapping[str, Channel],
        overrides: Callable[[], Overrides],
    ) -> list[ConfigurationError]:
        """Put everything in its place.

        Args:
            routing: Which endpoints a message reaches.
            injector: Makes the plans.
            asynchronous: Whether an endpoint runs in a consumer.
            arounds: All interceptors.
            watchers: Who watches the work on channels.
            channels: All channels by name.
            overrides: Tells what replaces dependencies just now.

        Returns:
            What is wrong with single handlers.
        """
        self._put_together(routing, arounds, Watching(watchers), channels)
        problems: list[ConfigurationError] = []
        for endpoint in routing.endpoints.values():

            def plan(now: Overrides, endpoint: Endpoint = endpoint) -> Plan:
                return injector.plan(endpoint, asynchronous=asynchronous(endpoint), overrides=now)

            try:
                self._handlers[endpoint.id] = Handler(
                    endpoint,
                    plan=plan,
                    overrides=overrides,
                    conversion=self.conversion,
                    routing=routing,
                    arounds=partial(self.around, Stage.HANDLE, endpoint),
                )
            except ConfigurationError as problem:
                problems.append(problem)
        return problems

    def rewire(self, *, arounds: Iterable[Around], watchers: Sequence[Watcher]) -> None:
        """Put interceptors and watchers in their places that came after all else was; before anything runs.

        Args:
            arounds: All interceptors.
            watchers: All watchers.
        """
        self._put_together(self._routing, arounds, Watching(watchers), self.channels)
        for handler in self._handlers.values():
            handler.surround()

    @property
    def types(self) -> MessageTypes:
        """The types that the handlers take, by their names."""
        return self._routing.types

    def around(self, stage: Stage, endpoint: Endpoint | None = None) -> Sequence[Around]:
        """Return the interceptors of a stage, the outermost first; in HANDLE, those for this endpoint."""
        return [
            around
            for around in self._arounds
            if around.stage is stage and (endpoint is None or around.when is None or around.when(endpoint))
        ]

    def _interceptors(self, stage: Stage) -> Sequence[Interceptor]:
        return [around.interceptor for around in self.around(stage)]

    def plan_of(self, endpoint_id: str) -> Plan:
        """Return how a handler is called, without overrides."""
        return handler_of(self._handlers, endpoint_id).plan

    def endpoints_of(self, kind: Kind, message: Message[Any], to: str | None) -> Sequence[Endpoint]:
        """Return the handlers that a message would reach.

        Raises:
            HandlerNotFoundError: Nobody handles this command or query.
        """
        return self._routing.find(kind, message.payload, to)

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Return the handler with this id; `None` when there is none."""
        handler = self._handlers.get(endpoint_id)
        return None if handler is None else handler.endpoint

    def message(self, payload: Any, headers: Mapping[str, Any] | None = None) -> Message[Any]:
        """Make a message: caused by the one that is being handled, else the first of a conversation.

        Raises:
            ConversionError: A header cannot be written as text, or is not for the user to write.
        """
        now = self.clock.now()
        texts = header_texts(headers, now) if headers else None
        if texts:
            check_given(texts)
        frame = handled.get()
        if frame is None:
            cause = None
        elif isinstance(frame, Conversation):
            cause, texts = None, {HeaderName.correlation_id: frame.correlation_id, **(texts or {})}
        else:
            cause = frame.message
        return Message(payload, FreshHeaders(cause, texts, now))

    def dispatch(
        self,
        kind: Kind,
        message: Message[Any],
        to: str | None = None,
        *,
        connection: object = None,
        shared: Mapping[object, Any] | None = None,
    ) -> Awaitable[Any]:
        """Hand a message to its handlers: a command or query to one, an event to all, one after the other.

        Args:
            kind: What it is.
            message: The message.
            to: The key that it goes to; without it, the class of its payload decides.
            connection: The HTTP request or WebSocket that it is sent from.
            shared: Results of dependencies that handlers are to use, by `cache_key`.

        Returns:
            What the handler of a command or query returned; `None` for an event and for an asynchronous handler.

        Raises:
            HandlerNotFoundError: Nobody handles this command or query.
            ConversionError: The payload is not what the handler wants.
        """
        return self._dispatching.dispatch(kind, message, to, connection, shared)

    async def deliver(self, call: Call) -> Any:
        """Run the one handler that a received message names, in a unit of work of its own.

        Args:
            call: The message and the channel that it came from, as in the RECEIVE stage.

        Raises:
            UnknownEndpointError: The message names no handler, or one that is not here.
        """
        return await self._receiving.deliver(call)

    def send(self, channel: str, message: Message[Any], extra: Mapping[str, str] | None = None) -> Awaitable[None]:
        """Put a message on a channel: encode it, run the SEND interceptors, send.

        Args:
            channel: The name of the channel.
            message: The message.
            extra: Headers that it has there besides.

        Raises:
            ConversionError: The payload has no form as bytes; nothing was sent.
            ChannelError: The channel did not take it.
        """
        return self._sending.send(channel, message, extra)

    def transmit(self, channel: str, messages: Sequence[Message[bytes]]) -> Awaitable[None]:
        """Hand encoded messages to a channel as they are.

        Raises:
            UnknownChannelError: There is no such channel.
            ChannelError: The channel did not take them.
        """
        return self._sending.transmit(channel, messages)

    def receive(self, channel: str, delivery: Delivery, target: Proceed | None = None) -> Awaitable[bool]:
        """Take a lent message through the RECEIVE interceptors to its target.

        The message is left to the caller to ack when it was not settled on the way; when something fails that no
        interceptor took care of, it is given back.

        Args:
            channel: Where it was lent.
            delivery: The lent message.
            target: What is done with it; `deliver` unless told otherwise.

        Returns:
            Whether the target succeeded.
        """
        return self._receiving.receive(channel, delivery, target)

    def ack(self, channel: str, delivery: Delivery) -> Awaitable[None]:
        """Ack a delivery of a channel, and let it be watched.

        Raises:
            LeaseLostError: It is no longer this consumer's to remove.
            ChannelError: The server could not be reached; the message will come back.
        """
        return self._receiving.ack(channel, delivery)

    def nack(self, channel: str, delivery: Delivery, delay: float = 0.0, *, attempted: bool = True) -> Awaitable[None]:
        """Give a delivery of a channel back, and let it be watched; see `Delivery.nack`.

        Raises:
            ChannelError: The server could not be reached; the message will come back by itself.
        """
        return self._receiving.nack(channel, delivery, delay, attempted=attempted)

    def inner(self, endpoint_id: str) -> Proceed:
        """Return what runs one handler within the unit of work of the call it is given, and nothing that opens one.

        Of the interceptors, only those of users stand around it. For plugins that reach handlers on ways of their own.

        Raises:
            UnknownEndpointError: There is no such handler.
        """
        handle = handler_of(self._handlers, endpoint_id).handle_within
        return lambda call: handle(noted(call))

    def anew(self, call: Call) -> Call:
        """Return a call for another attempt at the same root message, in a unit of work of its own.

        For interceptors of the DISPATCH and the RECEIVE stage that run the rest of the pipeline again after a failure:
        by then the unit of work of the attempt before is over.
        """
        return replace(call, scope=current_frame().begin_anew())

    def standing_for(self, message: Message[Any]) -> None:
        """Let what the running task sends from now on be caused by this message, not by the one that it handles.

        For handlers of a plugin's that take many messages to others, one after the other, in one unit of work.
        """
        current_frame().message = message

    @asynccontextmanager
    async def unit_of_work(self, message: Message[Any]) -> AsyncIterator[Scope]:
        """Open a unit of work of its own that the message is the cause of; it ends with the block."""
        scope = Scope()
        token = handled.set(Frame(self, message, scope))
        try:
            yield scope
        except BaseException as error:
            await scope.close(error)
            raise
        else:
            await scope.close()
        finally:
            handled.reset(token)
