"""The spans around single messages: on a bus, in a handler, on their way into a channel, and out of it."""

from contextvars import ContextVar
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, get_value, set_value
from opentelemetry.trace import Link, Span, SpanKind, set_span_in_context

from ecotone_fastapi.adapters.opentelemetry import conventions
from ecotone_fastapi.adapters.opentelemetry.guarding import Guarded
from ecotone_fastapi.adapters.opentelemetry.propagation import Propagation, ToldHeaders, link_to
from ecotone_fastapi.adapters.opentelemetry.spans import (
    about,
    ambient,
    delivered,
    detached,
    identified,
    joined,
    note_failure,
)
from ecotone_fastapi.core import (
    Assembly,
    Call,
    Channel,
    Endpoint,
    HeaderName,
    Kind,
    Message,
    Proceed,
    current_message,
    destination_of,
)
from ecotone_fastapi.core.errors import EcotoneError
from ecotone_fastapi.core.message import failed_attempts, name_of
from ecotone_fastapi.core.texts import named
from ecotone_fastapi.messaging.outbox import ThroughOutbox
from ecotone_fastapi.messaging.transactions import Outgoing

ProcessParent = Literal["creation", "link"]
"""Whether handling a message belongs to the trace that created it, or is only linked to it."""

Described = tuple[str, dict[str, str | int]]
"""The name of a span, and the attributes that are the same each time."""

_INTERNAL = Kind.INTERNAL  # to look up a member of an enum takes as long as a call
_VERBS = {Kind.COMMAND: "send", Kind.QUERY: "ask", Kind.EVENT: "publish"}
_MOST_DESCRIBED = 1024  # a key may be of a pattern, and classes may be made while the application runs
_SENDING = create_key("ecotone-sending")


def is_sending() -> bool:
    """Whether the span of a message that is sent at once stands for the sending itself."""
    return get_value(_SENDING) is not None


class _Process:
    """A message that is being processed."""

    __slots__ = ("reached", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.reached = False


# Set in the task of each message.
_processing: ContextVar[_Process] = ContextVar("ecotone_processing")


class Interceptors:
    """What the plugin puts around messages, all of it as small as a hot path wants it.

    Args:
        assembly: The application.
        spans: Begins and ends the spans.
        propagation: Writes their context into messages.
        process_parent: See `Tracing`.
    """

    def __init__(
        self, assembly: Assembly, spans: Guarded, propagation: Propagation, process_parent: ProcessParent
    ) -> None:
        self._gateway = assembly.gateway
        self._channels = assembly.channels
        self._spans = spans
        self._propagation = propagation
        self._joins_creation = process_parent == "creation"
        self._handlers: dict[str, Described] = {}
        self._dispatched_described: dict[tuple[Kind, type[Any], str | None], Described] = {}
        self._channels_described: dict[tuple[str, str], Described] = {}

    async def dispatch(self, call: Call, proceed: Proceed) -> Any:
        """Open a span around a message on a bus, and all that happens until its unit of work is over."""
        message, kind = call.message, call.kind
        if kind is None or kind is _INTERNAL:  # the framework's own: projections and the like
            return await proceed(call)
        payload_type: Any = type(message.payload)
        name, attributes = self._dispatched(call, kind, payload_type)
        context = get_current()
        # Whoever has lost the context, or brings one from elsewhere, may have it in the message.
        if self._propagation.is_told(message.headers) and not _has_span(context):
            context = self._propagation.read(message.headers, context)
        span = self._spans.begin(name, context, attributes=identified(attributes, message))
        token = attach(set_span_in_context(span, context))
        try:
            return await proceed(call)
        except BaseException as error:
            note_failure(span, error)
            raise
        finally:
            detach(token)
            self._spans.end(span)

    async def handle(self, call: Call, proceed: Proceed) -> Any:
        """Open a span around the handler, and let what it sends and stores tell where it came from."""
        endpoint, message = call.endpoint, call.message
        assert endpoint is not None
        known = self._handlers.get(endpoint.id)
        if known is None:
            known = self._handlers[endpoint.id] = handled(endpoint)
        current = get_current()
        span = self._spans.begin(known[0], current, attributes=known[1])
        context = set_span_in_context(span, current)
        told = Message(message.payload, ToldHeaders(self._propagation, message.headers, context))
        cause = current_message()
        assert cause is not None
        # What it stores tells of the span for ever; what it sends is told the baggage, too, where it leaves.
        lasting = ToldHeaders(self._propagation, cause.headers, context, lasting=True)
        self._gateway.standing_for(Message(cause.payload, lasting))
        token = attach(context)
        try:
            return await proceed(call.saying(told))
        except BaseException as error:
            note_failure(span, error, traceback=True)
            raise
        finally:
            detach(token)
            self._gateway.standing_for(cause)
            self._spans.end(span)

    async def send(self, call: Call, proceed: Proceed) -> Any:
        """Write into a message where it was created: in a span that is the sending if it leaves at once."""
        assert call.channel is not None
        channel = self._channels.get(call.channel)
        waits = call.scope.state.get(Outgoing) is not None or isinstance(channel, ThroughOutbox)
        operation = conventions.CREATE if waits else conventions.SEND
        name, attributes = self._at(call.channel, operation)
        span = self._spans.begin(name, kind=SpanKind.PRODUCER, attributes=identified(attributes, call.message))
        context = set_span_in_context(span)
        message = self._propagation.renewed(call.message, context)
        token = attach(context if waits else set_value(_SENDING, True, context))
        try:
            return await proceed(call.saying(message))
        except BaseException as error:
            note_failure(span, error)
            raise
        finally:
            detach(token)
            self._spans.end(span)

    async def process(self, call: Call, proceed: Proceed) -> Any:
        """Open a span around a message that was received, in the trace that has created it."""
        message, delivery = call.message, call.delivery
        assert call.channel is not None
        assert delivery is not None
        current = get_current()
        creation = self._propagation.read(message.headers, detached(current))
        created = trace.get_current_span(creation).get_span_context()
        links = [link_to(created, message)] if created.is_valid else []
        around = ambient()
        if not self._joins_creation:
            context = set_span_in_context(trace.INVALID_SPAN, creation)
            if around is not None:
                links.append(Link(around))
        else:
            context = creation if around is None else joined(creation, current)
        name, attributes = self._at(call.channel, conventions.PROCESS)
        attributes = identified(attributes, message)
        endpoint = message.headers.get(HeaderName.endpoint)
        if endpoint is not None:
            attributes[conventions.CONSUMER_GROUP] = named(endpoint)
        attributes[conventions.ATTEMPT] = failed_attempts(delivery.message) + 1
        delivered(attributes, delivery)
        span = self._spans.begin(name, context, SpanKind.CONSUMER, attributes, links)
        processing = _Process(span)
        known = _processing.set(processing)
        token = attach(set_span_in_context(span, context))
        try:
            result = await proceed(call)
            if not processing.reached:  # given up before it was tried: it may be killing its consumers
                span.set_attribute(conventions.ERROR_TYPE, conventions.ERROR_OTHER)
            return result
        except BaseException as error:
            note_failure(span, error)
            raise
        finally:
            detach(token)
            self._spans.end(span)
            _processing.reset(known)

    async def note(self, call: Call, proceed: Proceed) -> Any:
        """Note on the span of a received message why it has failed, before somebody decides what becomes of it."""
        processing = _processing.get()
        processing.reached = True
        try:
            return await proceed(call)
        except Exception as error:
            note_failure(processing.span, error)
            raise

    def _dispatched(self, call: Call, kind: Kind, type_: type[Any]) -> Described:
        """Describe a message on a bus; once for each key that leads anywhere, for the others may come from anybody."""
        key = call.key
        known = self._dispatched_described.get((kind, type_, key))
        if known is None:
            leads = key is None or self._leads(call, kind)
            known = _described(kind, type_, key, leads=leads)
            if leads and len(self._dispatched_described) < _MOST_DESCRIBED:
                self._dispatched_described[kind, type_, key] = known
        return known

    def _leads(self, call: Call, kind: Kind) -> bool:
        try:
            return bool(self._gateway.endpoints_of(kind, call.message, call.key))
        except EcotoneError:  # the message itself is told about it
            return False

    def _at(self, channel: str, operation: str) -> Described:
        """Describe an operation at a channel; once, for an adapter has to ask itself where its messages are."""
        known = self._channels_described.get((channel, operation))
        if known is None:
            found: Channel | None = self._channels.get(channel)
            sending = operation != conventions.PROCESS
            if sending and isinstance(found, ThroughOutbox):  # where it is going, not where it waits
                found = found.channel
            destination = destination_of(found, channel, sending=sending)
            attributes = {**about(destination, operation, operation), conventions.CHANNEL: channel}
            known = self._channels_described[channel, operation] = (
                f"{operation} {named(destination.name)}",
                attributes,
            )
        return known


def _has_span(context: Context) -> bool:
    return trace.get_current_span(context).get_span_context().is_valid


def _described(kind: Kind, type_: type[Any], key: str | None, *, leads: bool) -> Described:
    attributes: dict[str, str | int] = {conventions.KIND: kind.value, conventions.TYPE: name_of(type_)}
    if key is not None:
        attributes[conventions.KEY] = named(key)
    return f"{_VERBS[kind]} {named(key) if leads and key else type_.__name__}", attributes


def is_of_users(endpoint: Endpoint) -> bool:
    """Whether a handler is anybody's business: what the framework sends to itself is none."""
    return endpoint.kind is not Kind.INTERNAL or not endpoint.function.__module__.startswith("ecotone_fastapi.")


def handled(endpoint: Endpoint) -> Described:
    """Describe the run of a handler."""
    function = endpoint.function
    name = f"{function.__module__}.{getattr(function, '__qualname__', endpoint.label)}"
    return f"handle {endpoint.label}", {conventions.ENDPOINT: endpoint.id, conventions.FUNCTION_NAME: name}
