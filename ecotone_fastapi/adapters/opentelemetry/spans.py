"""What spans say: where something is done with which message, and why it has failed."""

import logging
from collections.abc import Mapping
from traceback import format_exception
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import Span, SpanContext, Status, StatusCode

from ecotone_fastapi.adapters.opentelemetry import conventions
from ecotone_fastapi.core import Delivery, Destination, HeaderName, Message
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import plain_headers
from ecotone_fastapi.core.texts import LINE, cut, cut_within, named, text_of

logger: logging.Logger = logging.getLogger("ecotone_fastapi.tracing")

_LONGEST_TRACEBACK = 20_000  # characters; a span is not the place for a payload


def about(destination: Destination, name: str, type_: str) -> dict[str, str | int]:
    """Return the attributes of an operation at a destination.

    Args:
        destination: Where it is done.
        name: What it is called here.
        type_: What it is in the conventions.
    """
    attributes: dict[str, str | int] = {
        conventions.SYSTEM: destination.system,
        conventions.OPERATION_NAME: name,
        conventions.OPERATION_TYPE: type_,
        conventions.DESTINATION_NAME: named(destination.name),
    }
    if destination.address is not None:
        attributes[conventions.SERVER_ADDRESS] = destination.address
        if destination.port is not None:
            attributes[conventions.SERVER_PORT] = destination.port
    if destination.routing_key is not None:
        attributes[conventions.ROUTING_KEY] = named(destination.routing_key)
    if destination.client is not None:
        attributes[conventions.CLIENT_ID] = named(destination.client)
    return attributes


def identified(attributes: Mapping[str, str | int], message: Message[Any]) -> dict[str, str | int]:
    """Return attributes, and with them those that tell which message it is about."""
    headers, told = plain_headers(message.headers), dict(attributes)
    id_, conversation = headers.get(HeaderName.id), headers.get(HeaderName.correlation_id)
    if id_ is not None:
        told[conventions.MESSAGE_ID] = named(id_)
    if conversation is not None:
        begins = conversation is id_
        told[conventions.CONVERSATION_ID] = told[conventions.MESSAGE_ID] if begins else named(conversation)
    return told


def delivered(attributes: dict[str, str | int], delivery: Delivery | None) -> None:
    """Add the number that a server has given a delivery, where it gives numbers."""
    tag = getattr(delivery, "tag", None)
    if tag is not None:
        attributes[conventions.DELIVERY_TAG] = tag


def ambient() -> SpanContext | None:
    """Return what is going on that a span can be part of: a request, for example, but no span that has ended.

    What is run in a task that outlives the span it was made in has that in its context for ever.
    """
    span = trace.get_current_span()
    context = span.get_span_context()
    goes_on = context.is_valid and (span.is_recording() or context.is_remote or not context.trace_flags.sampled)
    return context if goes_on else None


def joined(creation: Context, current: Context) -> Context:
    """Return the current context with the baggage of a message."""
    for name, value in baggage.get_all(creation).items():
        current = baggage.set_baggage(name, value, current)
    return current


def detached(current: Context) -> Context:
    """Return the current context without its span and its baggage: a message brings its own."""
    return baggage.clear(trace.set_span_in_context(trace.INVALID_SPAN, current))


def apart() -> None:
    """Let the running task begin without the span and the baggage of whoever has started it."""
    attach(detached(get_current()))


def type_of(error: BaseException) -> str:
    """Return what the attribute `error.type` says of an exception: the code of the server, if it has told one."""
    if isinstance(error, ChannelError) and error.code is not None:
        return error.code
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def note_failure(span: Span, error: BaseException, *, traceback: bool = False) -> None:
    """Note on a span that what it stands for has failed.

    Args:
        span: The span.
        error: Why.
        traceback: Whether its traceback is kept, too: where the error was raised, not on all spans that it passes.
    """
    if not span.is_recording():
        return
    text = cut(text_of(error), LINE)
    span.set_attribute(conventions.ERROR_TYPE, type_of(error))
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {text}"))
    if traceback:
        try:
            told = cut_within("".join(format_exception(error)), _LONGEST_TRACEBACK)
            span.record_exception(error, {"exception.message": text, "exception.stacktrace": told})
        except Exception as failure:  # it asks the error for its text, too
            logger.debug("%s is not recorded: %r", type_of(error), failure)
