"""The trace of a log record, as fields beside those of the message.

handler.addFilter(MessageFields(trace_fields))
"""

from opentelemetry import trace


def trace_fields() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the current span, in hexadecimal as everywhere; nothing when there is none.

    Example:
        >>> trace_fields()
        {}
    """
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
