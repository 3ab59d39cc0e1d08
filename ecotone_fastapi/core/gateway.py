"""The four doors of the kernel: dispatch, deliver, send, receive.

A unit of work (`Scope`) begins with a root message: one that is dispatched while none is being handled, or one that a
consumer received. Whatever is dispatched while it is handled joins it, one message after the other.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import UnionType
from typing import Any, Union, get_args, get_origin

import anyio

from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.conversion import Conversion, header_texts
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import (
    ConfigurationError,
    ConversionError,
    EcotoneError,
    HandlerCancelledError,
    UnknownChannelError,
    UnknownEndpointError,
)
from ecotone_fastapi.core.injection import Injector
from ecotone_fastapi.core.message import FreshHeaders, HeaderName, Message, MessageTypes, check_given, name_of
from ecotone_fastapi.core.pipeline import Call, Interceptor, Order, Proceed, Scope, Stage, compose
from ecotone_fastapi.core.plan import Plan
from ecotone_fastapi.core.routing import Routing, is_typed_dict, members_of
from ecotone_fastapi.core.watching import Operation, Watcher, Watching

_RAW = (bytes, str)  # what may be the payload in the form of a wire
_EVENT = Kind.EVENT  # to look up a member of an enum takes as long as a call

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class _Frame:
    """The message that the running task handles. Nested messages of one frame wait for each other."""

    __slots__ = ("call", "gateway", "message", "scope", "turn")

    call: Call  # set as soon as there is one, which is not worth an assignment before

    def __init__(self, gateway: "Gateway | None", message: Message[Any], scope: Scope) -> None:
        self.gateway = gateway
        self.message = message
        self.scope = scope
        self.turn: anyio.Lock | None = None


class _Conversation(_Frame):
    """What messages belong to that are sent while none is handled. It is no frame of any gateway."""

    __slots__ = ("correlation_id",)

    def __init__(self, correlation_id: str) -> None:
        super().__init__(None, Message(None, {}), Scope())
        self.scope.joinable, self.scope.closed = False, True
        self.correlation_id = correlation_id


_SUCCEEDED = object()  # under which a unit of work notes that the target of its message was reached and came back

# The only ambient state of the kernel.
_handled: ContextVar[_Frame | None] = ContextVar("ecotone_handled", default=None)


def current_scope() -> Scope | None:
    """Return the unit of work that the running task belongs to; `None` outside and after it."""
    frame = _handled.get()
    return None if frame is None or frame.scope.closed else frame.scope


def current_message() -> Message[Any] | None:
    """Return the message that the running task handles; `None` outside."""
    frame = _handled.get()
    return None if frame is None or isinstance(frame, _Conversation) else frame.message


def current_call() -> Call | None:
    """Return the call by which the running task came to its handler, or to what stands around it; `None` outside.

    It tells the handler, the channel and the delivery. Which message is handled tells `current_message`.
    """
    return getattr(_handled.get(), "call", None)


def current_correlation_id() -> str | None:
    """Return the correlation id that a message sent now would have; `None` when it would begin a conversation."""
    frame = _handled.get()
    if frame is None or isinstance(frame, _Conversation):
        return None if frame is None else frame.correlation_id
    headers = frame.message.headers
    return headers.get(HeaderName.correlation_id) or headers.get(HeaderName.id)


@contextmanager
def conversation(correlation_id: str) -> Iterator[None]:
    """Let what is sent in this block begin no conversation of its own, but belong to this one.

    A message that is sent while another one is handled belongs to the conversation of that one all the same.

    Args:
        correlation_id: The correlation id of the messages, unless their sender gives another one.

    Example:
        >>> with conversation("import-7"):
        ...     print(current_correlation_id())
        import-7
    """
    if current_message() is not None:
        yield
        return
    token = _handled.set(_Conversation(correlation_id))
    try:
        yield
    finally:
        _handled.reset(token)


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


class _Handler:
    """An endpoint, ready to be called."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        plan: Callable[[Overrides], Plan],
        overrides: Callable[[], Overrides],
        conversion: Conversion,
        routing: Routing,
        arounds: Callable[[], Sequence[Around]],
    ) -> None:
        self.endpoint = endpoint
        self._make_plan = plan
        self._overrides = overrides
        self._conversion = conversion
        self._routing = routing
        self._first_overrides = dict(overrides())
        self.plan = plan(self._first_overrides)
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._wanted = self.plan.payload_type
        # Exactly these can be told by `isinstance`; constrained, generic and typed-dict payloads are validated.
        self._classes: tuple[type, ...] | None = None
        if _is_plain(self._wanted) or not conversion.validates(self._wanted):
            classes = [member for member in members_of(self._wanted) if isinstance(member, type)]
            self._classes = tuple(dict if is_typed_dict(cls) else cls for cls in classes)
        # Types of payloads that were let through as they are; `isinstance` need not be asked again.
        self._accepted: set[type] = set()
        # Asked when there is a plan: what a handler is given may decide who stands around it.
        self._arounds = arounds
        self.surround()

    def surround(self) -> None:
        """Put all interceptors around the handler that are to stand there by now."""
        around_it = self._arounds()
        outer = [around.interceptor for around in around_it if around.order <= Order.ASYNCHRONOUS]
        inner = [around.interceptor for around in around_it if around.order > Order.ASYNCHRONOUS]
        users = [around.interceptor for around in around_it if Order.OUTGOING < around.order < Order.STATE]
        self.handle = compose([*outer, *inner], self._run)
        self.handle_within = self._reading(compose(users, self._run))
        # What only crosses a channel is never read: bytes become a payload inside the asynchronous interceptor.
        self.handle_received = compose(outer, self._reading(compose(inner, self._run)))

    def _reading(self, proceed: Proceed) -> Proceed:
        return lambda call: proceed(call.saying(self.accept(call.message)))

    def _run(self, call: Call) -> Awaitable[Any]:
        overrides = self._overrides()
        plan = self.plan if not overrides and not self._first_overrides else self._plan_under(overrides)
        return plan.run(call)

    def _plan_under(self, overrides: Overrides) -> Plan:
        key = tuple(overrides.items())
        if key not in self._plans:
            self._plans[key] = self._make_plan(dict(key))
        return self._plans[key]

    def accept(self, message: Message[Any]) -> Message[Any]:
        """Return the message with a payload of the type that the handler wants.

        Raises:
            ConversionError: They do not fit.
        """
        payload, wanted = message.payload, self._wanted
        if wanted is None or type(payload) in self._accepted:
            return message
        try:
            if isinstance(payload, _RAW):
                content_type = message.headers.get(HeaderName.content_type)
                if content_type is not None:
                    data = payload.encode() if isinstance(payload, str) else payload
                    value = self._conversion.decode(data, self._concrete(message), content_type)
                    return message.without_headers([HeaderName.content_type]).with_payload(value)
            if wanted is Any or (self._classes is not None and isinstance(payload, self._classes)):
                if not isinstance(payload, _RAW):
                    self._accepted.add(type(payload))
                return message
            return message.with_payload(self._conversion.convert(payload, wanted))
        except ConversionError as error:
            error.add_note(f"while reading the payload for {self.endpoint.label}")
            raise

    def _concrete(self, message: Message[Any]) -> Any:
        """The type to read: the one that the sender named, when the handler takes it, else what the handler says."""
        name = message.headers.get(HeaderName.type)
        named = self._routing.types.find(name) if name is not None else None
        if named is not None and self._classes is not None and issubclass(named, self._classes):
            return named
        if name is not None and named is None and self._wanted is object:
            raise ConversionError(
                f"nothing here is known by the message name {name!r}",
                tried="payload types of all handlers and their subclasses",
                hint="import its class here, or tell the old name: @message_name(..., aliases=[...])",
            )
        return self._wanted


def _noted(call: Call) -> Call:
    """Return the call; from now on it is the one that the running task is in."""
    frame = _handled.get()
    if frame is not None:
        frame.call = call
    return call


def _is_plain(type_: Any) -> bool:
    """Whether values of a type can be told by `isinstance` alone."""
    if isinstance(type_, UnionType) or get_origin(type_) is Union:
        return all(_is_plain(member) for member in get_args(type_))
    return isinstance(type_, type) and get_origin(type_) is None and not is_typed_dict(type_)


class Gateway:
    """The way into messaging. Made empty, so that plugins can hold it, and wired once before the first message.

    Args:
        conversion: How payloads become bytes.
        clock: What time it is.
    """

    def __init__(self, conversion: Conversion, clock: Clock) -> None:
        self.conversion = conversion
        self.clock = clock
        self.channels: Mapping[str, Channel] = {}
        self.watching: Watching = Watching()
        self._arounds: tuple[Around, ...] = ()
        self._handlers: dict[str, _Handler] = {}
        self._routing = Routing(())
        self._dispatch: Proceed | None = None
        self._send: Proceed = self._transmit
        self._receive: Proceed = self.deliver

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
        self._routing = routing
        self.channels = channels
        self.watching = Watching(watchers)
        self._arounds = tuple(sorted(arounds, key=lambda around: around.order))
        problems: list[ConfigurationError] = []
        for endpoint in routing.endpoints.values():

            def plan(now: Overrides, endpoint: Endpoint = endpoint) -> Plan:
                return injector.plan(endpoint, asynchronous=asynchronous(endpoint), overrides=now)

            try:
                self._handlers[endpoint.id] = _Handler(
                    endpoint,
                    plan=plan,
                    overrides=overrides,
                    conversion=self.conversion,
                    routing=routing,
                    arounds=partial(self.around, Stage.HANDLE, endpoint),
                )
            except ConfigurationError as problem:
                problems.append(problem)
        self._surround()
        return problems

    def rewire(self, *, arounds: Iterable[Around], watchers: Sequence[Watcher]) -> None:
        """Put interceptors and watchers in their places that came after all else was; before anything runs.

        Args:
            arounds: All interceptors.
            watchers: All watchers.
        """
        self.watching = Watching(watchers)
        self._arounds = tuple(sorted(arounds, key=lambda around: around.order))
        for handler in self._handlers.values():
            handler.surround()
        self._surround()

    def _surround(self) -> None:
        dispatching = [around.interceptor for around in self.around(Stage.DISPATCH)]
        self._dispatch = compose(dispatching, self._dispatch_root) if dispatching else None
        self._dispatch_nested = compose(dispatching, self._dispatch_joined) if dispatching else None
        self._send = compose([around.interceptor for around in self.around(Stage.SEND)], self._transmit)
        self._receive = self._receiving(self.deliver)

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

    def plan_of(self, endpoint_id: str) -> Plan:
        """Return how a handler is called, without overrides."""
        return self._handler(endpoint_id).plan

    def message(self, payload: Any, headers: Mapping[str, Any] | None = None) -> Message[Any]:
        """Make a message: caused by the one that is being handled, else the first of a conversation.

        Raises:
            ConversionError: A header cannot be written as text, or is not for the user to write.
        """
        now = self.clock.now()
        texts = header_texts(headers, now) if headers else None
        if texts:
            check_given(texts)
        frame = _handled.get()
        if frame is None:
            cause = None
        elif isinstance(frame, _Conversation):
            cause, texts = None, {HeaderName.correlation_id: frame.correlation_id, **(texts or {})}
        else:
            cause = frame.message
        return Message(payload, FreshHeaders(cause, texts, now))

    async def dispatch(
        self,
        kind: Kind,
        message: Message[Any],
        to: str | None = None,
        *,
        connection: object = None,
        shared: Mapping[object, Any] | None = None,
    ) -> Any:
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
        outer = _handled.get()
        if outer is not None and outer.gateway is self and outer.scope.joinable:
            return await self._dispatch_joining(outer, kind, message, to)
        scope = Scope(connection, dict(shared) if shared else None)
        frame = _Frame(self, message, scope)
        token = _handled.set(frame)
        try:
            if self._dispatch is not None:
                frame.call = Call(message, None, None, scope, None, None, kind, to)
                return await self._dispatch(frame.call)
            try:
                result = await self._route(kind, message, to, scope, frame)
            except BaseException as error:
                await scope.close(error)
                raise
            if scope.exits or scope.entered or scope.joined:
                await scope.close()
            return result
        finally:
            frame.scope.joinable, frame.scope.closed = False, True
            _handled.reset(token)

    def anew(self, call: Call) -> Call:
        """Return a call for another attempt at the same root message, in a unit of work of its own.

        For interceptors of the DISPATCH and the RECEIVE stage that run the rest of the pipeline again after a failure:
        by then the unit of work of the attempt before is over.
        """
        frame = _handled.get()
        assert frame is not None
        frame.scope.joinable, frame.scope.closed = False, True
        before = frame.scope
        frame.scope = Scope(before.connection, {key: before.cache[key] for key in before.shared} or None)
        return replace(call, scope=frame.scope)

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

    def inner(self, endpoint_id: str) -> Proceed:
        """Return what runs one handler within the unit of work of the call it is given, and nothing that opens one.

        Of the interceptors, only those of users stand around it. For plugins that reach handlers on ways of their own.

        Raises:
            UnknownEndpointError: There is no such handler.
        """
        handle = self._handler(endpoint_id).handle_within
        return lambda call: handle(_noted(call))

    async def _dispatch_joining(self, outer: _Frame, kind: Kind, message: Message[Any], to: str | None) -> Any:
        scope = outer.scope
        with scope.joining():
            # One unit has one session: two messages of one handler, sent by `gather`, take turns.
            if outer.turn is None:
                outer.turn = anyio.Lock()
            try:
                outer.turn.acquire_nowait()
            except anyio.WouldBlock:
                await outer.turn.acquire()
            frame = _Frame(self, message, scope)
            token = _handled.set(frame)
            try:
                if self._dispatch_nested is not None:
                    frame.call = Call(message, None, None, scope, None, None, kind, to)
                    return await self._dispatch_nested(frame.call)
                return await self._route(kind, message, to, scope, frame)
            except EcotoneError as error:
                error.nested = True
                raise
            finally:
                _handled.reset(token)
                outer.turn.release()

    async def _dispatch_root(self, call: Call) -> Any:
        frame = _handled.get()
        assert call.kind is not None
        assert frame is not None
        try:
            result = await self._route(call.kind, call.message, call.key, call.scope, frame)
        except BaseException as error:
            await call.scope.close(error)
            raise
        scope = call.scope
        if scope.exits or scope.entered or scope.joined:
            await scope.close()
        return result

    def _dispatch_joined(self, call: Call) -> Awaitable[Any]:
        frame = _handled.get()
        assert call.kind is not None
        assert frame is not None
        return self._route(call.kind, call.message, call.key, call.scope, frame)

    def _route(self, kind: Kind, message: Message[Any], to: str | None, scope: Scope, frame: _Frame) -> Awaitable[Any]:
        endpoints = self._routing.find(kind, message.payload, to)
        if kind is _EVENT:
            return self._fan_out(endpoints, message, scope, frame)
        handler = self._handlers[endpoints[0].id]
        call = frame.call = Call(handler.accept(message), handler.endpoint, None, scope)
        return handler.handle(call)

    async def _fan_out(self, endpoints: Sequence[Endpoint], message: Message[Any], scope: Scope, frame: _Frame) -> None:
        for endpoint in endpoints:
            handler = self._handlers[endpoint.id]
            call = frame.call = Call(handler.accept(message), endpoint, None, scope)
            await handler.handle(call)

    async def deliver(self, call: Call) -> Any:
        """Run the one handler that a received message names, in a unit of work of its own.

        Args:
            call: The message and the channel that it came from, as in the RECEIVE stage.

        Raises:
            UnknownEndpointError: The message names no handler, or one that is not here.
        """
        endpoint_id = call.message.headers.get(HeaderName.endpoint)
        if endpoint_id is None:
            raise UnknownEndpointError(
                f"a message on the channel {call.channel!r} names no handler",
                hint=f"what is sent to a channel by hand needs the header {HeaderName.endpoint!r}",
            )
        handler = self._handler(endpoint_id)
        try:
            result = await handler.handle_received(_noted(call.reaching(handler.endpoint)))
        except BaseException as error:
            await call.scope.close(error)
            raise
        await call.scope.close()
        return result

    def _handler(self, endpoint_id: str) -> _Handler:
        try:
            return self._handlers[endpoint_id]
        except KeyError:
            raise UnknownEndpointError(
                f"there is no handler {endpoint_id!r} here",
                tried=", ".join(sorted(self._handlers)[:20]),
                hint="give a handler that was moved or renamed its former id: @event_handler(id=...)",
            ) from None

    async def send(self, channel: str, message: Message[Any]) -> None:
        """Put a message on a channel: encode it, run the SEND interceptors, send.

        Raises:
            ConversionError: The payload has no form as bytes; nothing was sent.
            ChannelError: The channel did not take it.
        """
        payload = message.payload
        body, content_type = self.conversion.encode(payload, message.headers.get(HeaderName.content_type))
        extra = {HeaderName.content_type: content_type}
        if not isinstance(payload, bytes) and HeaderName.content_type not in message.headers:
            extra[HeaderName.type] = name_of(type(payload))
        encoded = Message(body, {**message.headers, **extra})
        await self._send(Call(encoded, None, channel, current_scope() or Scope()))

    async def _transmit(self, call: Call) -> None:
        assert call.channel is not None
        await self.transmit(call.channel, [call.message])

    async def transmit(self, channel: str, messages: Sequence[Message[bytes]]) -> None:
        """Hand encoded messages to a channel as they are.

        Raises:
            UnknownChannelError: There is no such channel.
            ChannelError: The channel did not take them.
        """
        try:
            target = self.channels[channel]
        except KeyError:
            raise unknown_channel(channel, self.channels) from None
        with self.watching.during(Operation.SEND, "send", channel, messages, target):
            await target.send(messages)

    async def ack(self, channel: str, delivery: Delivery) -> None:
        """Ack a delivery of a channel, and let it be watched.

        Raises:
            LeaseLostError: It is no longer this consumer's to remove.
            ChannelError: The server could not be reached; the message will come back.
        """
        if delivery.settled:
            return
        where = self.channels.get(channel)
        with self.watching.during(Operation.SETTLE, "ack", channel, [delivery.message], where, delivery=delivery):
            await delivery.ack()

    async def nack(self, channel: str, delivery: Delivery, delay: float = 0.0, *, attempted: bool = True) -> None:
        """Give a delivery of a channel back, and let it be watched; see `Delivery.nack`.

        Raises:
            ChannelError: The server could not be reached; the message will come back by itself.
        """
        if delivery.settled:
            return
        where = self.channels.get(channel)
        with self.watching.during(
            Operation.SETTLE, "nack", channel, [delivery.message], where, attempted=attempted, delivery=delivery
        ):
            await delivery.nack(delay, attempted=attempted)

    async def receive(self, channel: str, delivery: Delivery, target: Proceed | None = None) -> bool:
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
        message = delivery.message
        scope = Scope()
        call = Call(message, None, channel, scope, delivery)
        frame = _Frame(self, message, scope)
        frame.call = call
        token = _handled.set(frame)
        reached = self._receive if target is None else self._receiving(target)
        try:
            await reached(call)
            succeeded = frame.scope.state.get(_SUCCEEDED, False)
        except BaseException as error:
            if not delivery.settled:
                with anyio.CancelScope(shield=True):
                    await self.nack(channel, delivery, attempted=isinstance(error, Exception))
            raise
        finally:
            frame.scope.joinable, frame.scope.closed = False, True
            _handled.reset(token)
        return bool(succeeded)

    def _receiving(self, target: Proceed) -> Proceed:
        """Put the RECEIVE interceptors around a target."""

        async def watched(call: Call) -> Any:
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

        return compose([around.interceptor for around in self.around(Stage.RECEIVE)], watched)

    def standing_for(self, message: Message[Any]) -> None:
        """Let what the running task sends from now on be caused by this message, not by the one that it handles.

        For handlers of a plugin's that take many messages to others, one after the other, in one unit of work.
        """
        frame = _handled.get()
        assert frame is not None
        frame.message = message

    @asynccontextmanager
    async def unit_of_work(self, message: Message[Any]) -> AsyncIterator[Scope]:
        """Open a unit of work of its own that the message is the cause of; it ends with the block."""
        scope = Scope()
        token = _handled.set(_Frame(self, message, scope))
        try:
            yield scope
        except BaseException as error:
            await scope.close(error)
            raise
        else:
            await scope.close()
        finally:
            _handled.reset(token)


def unknown_channel(name: str, known: Iterable[str]) -> UnknownChannelError:
    """Return the error for a channel that nobody gave."""
    return UnknownChannelError(
        f"there is no channel {name!r}",
        tried=", ".join(sorted(known)) or "no channel was given",
        hint=f"Ecotone(..., channels=[MemoryChannel({name!r})]), or another channel with this name",
    )
