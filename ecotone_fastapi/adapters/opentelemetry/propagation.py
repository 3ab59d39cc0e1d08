"""The context of a trace on its way: as plain texts in the headers of messages.

By default these are `traceparent`, `tracestate` and `baggage` of the W3C. What somebody else has written there may be
anything: it never fails a message, and what cannot be read begins a new trace.
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import Link, SpanContext

from ecotone_fastapi.adapters.opentelemetry import conventions
from ecotone_fastapi.core import HeaderName, Message
from ecotone_fastapi.core.message import LateHeaders, plain_headers
from ecotone_fastapi.core.texts import named

P = TypeVar("P")

logger: logging.Logger = logging.getLogger("ecotone_fastapi.tracing")

LONGEST = 8192
"""Characters of a header that are read: as many as the W3C allows for baggage. A longer one is taken for broken."""
MOST_LINKS = 128
"""How many links a span has at most: as many as the SDK keeps by default."""


class _Headers(Getter[Mapping[str, Any]]):
    """Reads headers of messages, also those of a foreign channel that are bytes."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if isinstance(value, bytes | bytearray | memoryview):
            value = bytes(value).decode("ascii", "replace")
        return [value] if isinstance(value, str) and len(value) <= LONGEST else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_HEADERS = _Headers()


class Propagation:
    """Writes the context of a trace into messages, and reads it there.

    Args:
        propagator: How it is written; that of the process unless told otherwise, which follows `OTEL_PROPAGATORS`.

    Attributes:
        fields: The headers that it writes.

    Example:
        >>> broken = Message(b"", {"traceparent": "00-what?"})
        >>> Propagation().creation_of(broken).is_valid
        False
    """

    def __init__(self, propagator: TextMapPropagator | None = None) -> None:
        self._propagator: TextMapPropagator = propagator or propagate.get_global_textmap()
        self.fields: frozenset[str] = frozenset(self._propagator.fields)

    def is_told(self, headers: Mapping[str, str]) -> bool:
        """Whether headers say anything about a trace or its baggage."""
        return not self.fields.isdisjoint(plain_headers(headers))

    def read(self, headers: Mapping[str, str], onto: Context | None = None) -> Context:
        """Return a context with what headers say about a trace and its baggage.

        Args:
            headers: Of a message.
            onto: The context that is returned otherwise; an empty one unless told.
        """
        context = Context() if onto is None else onto
        if not self.is_told(headers):
            return context
        try:
            return self._propagator.extract(headers, context, _HEADERS)
        except Exception as error:  # whatever was written there, and whoever reads it: a message is worth more
            logger.warning("the headers of message %s tell no trace: %r", headers.get(HeaderName.id), error)
            return context

    def creation_of(self, message: Message[Any]) -> SpanContext:
        """Return the context in which a message was created; an invalid one when it does not say."""
        return trace.get_current_span(self.read(message.headers)).get_span_context()

    def carrier(self, context: Context | None = None) -> dict[str, str]:
        """Return the headers that tell of a context; of the current one unless told otherwise."""
        headers: dict[str, str] = {}
        try:
            self._propagator.inject(headers, context)
        except Exception as error:  # such as baggage with half a character in it
            logger.warning("a message does not tell all about its trace: %r", error)
        return {name: value for name, value in headers.items() if value.isascii() or _is_writable(value)}

    def renewed(self, message: Message[P], context: Context) -> Message[P]:
        """Return a message that tells of another context, and no longer of the one that it has inherited."""
        return Message(message.payload, self.headers(message.headers, context))

    def headers(self, before: Mapping[str, str], context: Context, *, lasting: bool = False) -> dict[str, str]:
        """Return headers that tell of another context than before.

        Args:
            before: The headers before.
            context: The context.
            lasting: Whether they are kept for ever: then without baggage, which is a matter of those on their way.
        """
        if lasting:
            context = baggage.clear(context)
        headers = {name: value for name, value in plain_headers(before).items() if name not in self.fields}
        headers.update(self.carrier(context))
        return headers

    def links_to(self, messages: "list[Message[Any]]") -> list[Link]:
        """Return links to where messages were created, each place once, and at most `MOST_LINKS`."""
        links: dict[tuple[int, int], Link] = {}
        for message in messages:
            creation = self.creation_of(message)
            if creation.is_valid:
                links.setdefault((creation.trace_id, creation.span_id), link_to(creation, message))
            if len(links) == MOST_LINKS:
                break
        return list(links.values())


class ToldHeaders(LateHeaders):
    """Headers that tell of another context than before, written when somebody looks at them.

    Args:
        propagation: Writes them.
        before: The headers before.
        context: The context.
        lasting: See `Propagation.headers`.
    """

    __slots__ = ("_lasting", "_propagation", "_unwritten")

    def __init__(
        self, propagation: Propagation, before: Mapping[str, str], context: Context, *, lasting: bool = False
    ) -> None:
        self._written = None
        self._propagation = propagation
        self._lasting = lasting
        self._unwritten: tuple[Mapping[str, str], Context] | None = (before, context)

    def write(self) -> dict[str, str]:
        """Return the headers before, with the context."""
        assert self._unwritten is not None
        headers = self._propagation.headers(*self._unwritten, lasting=self._lasting)
        self._unwritten = None  # a long conversation must not be kept in memory by its last message
        return headers


def link_to(creation: SpanContext, message: Message[Any]) -> Link:
    """Return a link to where a message was created."""
    id_ = message.headers.get(HeaderName.id)
    return Link(creation, {conventions.MESSAGE_ID: named(id_)} if id_ is not None else None)


def _is_writable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
