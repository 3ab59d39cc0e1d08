"""Spans that begin and end whatever is wrong with those who sample, process and export them.

A message is worth more than its span and its measures: what is broken in a provider must neither fail it nor let it
come again.
"""

import logging
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, Tracer

logger: logging.Logger = logging.getLogger("ecotone_fastapi.tracing")


class Faults:
    """What is broken in a provider: logged once for each type of error, and not with every message.

    Args:
        logger: Where it is logged.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: set[type[Exception]] = set()

    def tell(self, what: str, error: Exception) -> None:
        """Log what could not be done, and why."""
        if type(error) in self._told:
            self._logger.debug("%s: %r", what, error)
            return
        self._told.add(type(error))
        self._logger.error("%s, and messages go on without; this is told once", what, exc_info=error)


class Guarded:
    """Begins and ends spans for those who cannot be failed by it.

    Args:
        tracer: Makes the spans.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._faults = Faults(logger)

    def begin(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
        *,
        at: int | None = None,
    ) -> Span:
        """Begin a span; when that fails, return one that keeps nothing and stands for its parent.

        Args:
            name: Its name.
            context: Holds its parent; the current context unless told otherwise.
            kind: What it is to its parent.
            attributes: What is known before it begins.
            links: What else it belongs to.
            at: When it began, in nanoseconds since 1970; now unless told otherwise.
        """
        try:
            return self._tracer.start_span(name, context, kind, attributes, links, at)
        except Exception as error:
            self._faults.tell(f"the span {name!r} could not begin", error)
            return NonRecordingSpan(trace.get_current_span(context).get_span_context())

    def end(self, span: Span) -> None:
        """End a span."""
        try:
            span.end()
        except Exception as error:
            self._faults.tell("a span could not end", error)
