"""The spans around work on channels: what is sent, received and settled in batches, and what projections read."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Link, SpanKind

from ecotone_fastapi.adapters.opentelemetry import conventions
from ecotone_fastapi.adapters.opentelemetry.guarding import Guarded
from ecotone_fastapi.adapters.opentelemetry.interceptors import Described, handled, is_sending
from ecotone_fastapi.adapters.opentelemetry.propagation import Propagation
from ecotone_fastapi.adapters.opentelemetry.spans import about, ambient, delivered, detached, identified, note_failure
from ecotone_fastapi.core import Clock, Destination, HeaderName, Message, Operation, Work, destination_of
from ecotone_fastapi.core.texts import named

_TYPES = {
    Operation.SEND: conventions.SEND,
    Operation.RECEIVE: conventions.RECEIVE,
    Operation.SETTLE: conventions.SETTLE,
    Operation.PROCESS: conventions.PROCESS,
    Operation.PARK: conventions.SEND,
}
_FRESH = timedelta(minutes=1)  # a projection that is rebuilt does not reach into the traces of the past


class Watching:
    """What the plugin sees of work on channels. One operation is one span, however many messages it is about.

    Args:
        spans: Begins and ends the spans.
        propagation: Reads where messages were created.
        clock: What time it is.
        joins: Whether what is done with a single message belongs to the trace that has created it.
        receive: Whether there are spans of receiving.
        handlers: Whether there are spans of single handlers in batches of projections.
    """

    def __init__(
        self,
        spans: Guarded,
        propagation: Propagation,
        clock: Clock,
        *,
        joins: bool,
        receive: bool,
        handlers: bool,
    ) -> None:
        self.wants_handlers: bool = handlers
        self._spans = spans
        self._propagation = propagation
        self._clock = clock
        self._joins = joins
        self._receive = receive
        self._handlers: dict[str, Described] = {}

    @contextmanager
    def watch(self, work: Work) -> Iterator[None]:
        """Open a span around the work; what is received has one when it is there."""
        if work.operation is Operation.RECEIVE:
            with self._receiving(work):
                yield
        elif work.operation is Operation.HANDLE:
            with self._handling(work):
                yield
        elif work.operation not in _TYPES or (work.operation is Operation.SEND and is_sending()):
            yield
        else:
            with self._spanning(work):
                yield

    @contextmanager
    def _receiving(self, work: Work) -> Iterator[None]:
        if not self._receive:
            yield
            return
        began_at, failure = time.time_ns(), None
        try:
            yield
        except Exception as error:
            failure = error
            raise
        finally:
            if work.messages or failure is not None:
                links = self._propagation.links_to(list(work.messages))
                name, attributes = _described(work)
                current = get_current()
                context = detached(current) if ambient() is None else current
                span = self._spans.begin(name, context, SpanKind.CLIENT, attributes, links, at=began_at)
                if failure is not None:
                    note_failure(span, failure)
                self._spans.end(span)

    @contextmanager
    def _spanning(self, work: Work) -> Iterator[None]:
        name, attributes = _described(work)
        links = self._propagation.links_to(list(work.messages))
        kind = SpanKind.CONSUMER if work.operation is Operation.PROCESS else SpanKind.CLIENT
        span = self._spans.begin(name, self._parent_of(work, links), kind, attributes, links)
        token = attach(trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            note_failure(span, error, traceback=work.operation is Operation.PROCESS)
            if work.at is not None:  # of a batch nobody would know otherwise which one it was
                span.set_attributes(identified({}, work.at))
            if work.endpoint is not None:
                span.set_attribute(conventions.ENDPOINT, work.endpoint.id)
            raise
        finally:
            detach(token)
            self._spans.end(span)

    @contextmanager
    def _handling(self, work: Work) -> Iterator[None]:
        if not self.wants_handlers or work.endpoint is None:
            yield
            return
        known = self._handlers.get(work.endpoint.id)
        if known is None:
            known = self._handlers[work.endpoint.id] = handled(work.endpoint)
        [event] = work.messages
        links = self._propagation.links_to([event])
        span = self._spans.begin(known[0], attributes=identified(known[1], event), links=links)
        token = attach(trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            note_failure(span, error)
            raise
        finally:
            detach(token)
            self._spans.end(span)

    def _parent_of(self, work: Work, links: list[Link]) -> Context:
        current, around = get_current(), ambient()
        if around is not None and work.operation is Operation.PROCESS and not self._joins:
            links.append(Link(around))
        elif around is not None:
            return current
        # Relays send what they know nothing about; who handles or settles a message is part of its story.
        joins = self._joins and work.operation is not Operation.SEND and len(links) == 1
        if work.operation is Operation.PROCESS:
            joins = joins and self._is_fresh(work.messages[0])  # all of them were created by one handler
        else:
            joins = joins and len(work.messages) == 1
        apart = detached(current)
        return self._propagation.read(work.messages[0].headers, apart) if joins else apart

    def _is_fresh(self, message: Message[Any]) -> bool:
        try:
            made_at = datetime.fromisoformat(message.headers.get(HeaderName.timestamp, ""))
            return self._clock.now() - made_at < _FRESH
        except (ValueError, TypeError):  # written by somebody else
            return False


def _described(work: Work) -> tuple[str, dict[str, str | int]]:
    if work.operation is Operation.PROCESS:
        destination = Destination(system=conventions.EVENT_STORE, name=work.place)
    elif work.operation is Operation.PARK:
        destination = Destination(system=conventions.DEAD_LETTER, name="dead_letters")
    else:
        destination = destination_of(work.channel, work.place, sending=work.operation is Operation.SEND)
    attributes = about(destination, work.name, _TYPES[work.operation])
    if work.channel is not None:
        attributes[conventions.CHANNEL] = work.channel.name
    if work.operation is Operation.PROCESS:
        attributes[conventions.CONSUMER_GROUP] = named(work.place)
    if len(work.messages) == 1:
        attributes = identified(attributes, work.messages[0])
        delivered(attributes, work.delivery)
    elif work.messages:
        attributes[conventions.BATCH_COUNT] = len(work.messages)
    return f"{work.name} {named(destination.name)}", attributes
