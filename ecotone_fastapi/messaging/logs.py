"""What is logged while a message is handled tells which message that is, as fields of the log record.

    handler = logging.StreamHandler()
    handler.addFilter(MessageFields(absent="-"))
    handler.setFormatter(logging.Formatter("%(levelname)s %(correlation_id)s %(endpoint)s %(message)s"))

Nothing of logging is configured here: handlers, formatters and levels are the application's, and so is the filter.
"""

import logging
from collections.abc import Callable, Mapping

from ecotone_fastapi.core.current import current_call, current_correlation_id, current_message
from ecotone_fastapi.core.message import HeaderName, failed_attempts
from ecotone_fastapi.core.texts import named

FIELDS = (
    "message_id",
    "correlation_id",
    "causation_id",
    "endpoint",
    "channel",
    "attempt",
    "trace_id",
    "span_id",
)
"""The names of all fields that a record may have, those of a trace included."""


def message_fields() -> dict[str, str | int]:
    """Return what is known of the message that the running task handles; what is not known is left out.

    - `message_id`, `correlation_id`, `causation_id`: its headers.
    - `endpoint`: the id of the handler, once it is known.
    - `channel`: the channel that it was taken from.
    - `attempt`: the number of this run of the handler, from 1; that of a channel's delivery.

    What others have written is cut to 300 characters with a mark, and has no line breaks.

    Outside of any message there is at most the `correlation_id`: that of the HTTP request, or of the block
    `with conversation(...)`, which a message would have that is sent now. A task that a handler has left behind still
    belongs to its message.

    Example:
        >>> message_fields()
        {}
        >>> def add_message_fields(logger, name, event):  # a processor of structlog
        ...     return {**message_fields(), **event}
    """
    correlation_id = current_correlation_id()
    message = current_message()
    if message is None:
        return {} if correlation_id is None else {"correlation_id": correlation_id}
    headers, call = message.headers, current_call()
    handler = None if call is None or call.endpoint is None else call.endpoint.id
    texts = {
        "message_id": headers.get(HeaderName.id),
        "correlation_id": correlation_id,
        "causation_id": headers.get(HeaderName.causation_id),
        "endpoint": handler or headers.get(HeaderName.endpoint),
        "channel": None if call is None else call.channel,
    }
    fields: dict[str, str | int] = {name: named(text) for name, text in texts.items() if text is not None}
    fields["attempt"] = 1 + failed_attempts(message)
    return fields


class _Absent(str):
    """What stands for a field that one filter did not know; another one may."""

    __slots__ = ()


class MessageFields(logging.Filter):
    """Lets every record pass, and puts the fields of `message_fields` on it as attributes.

    To be added to handlers, because the filters of a logger see only what is logged to this very logger. Where records
    go through a queue to another thread, it belongs to the `QueueHandler`: the message is known where it is handled.
    What a record has already, by `extra=` for instance, is left as it is.

    Args:
        more: Returns further fields, such as `trace_fields` of `ecotone_fastapi.adapters.opentelemetry`.
        absent: What stands for fields that are not known, for format strings, which want every field; without it they
            are left out, which suits formatters that write JSON.

    Example:
        >>> handler = logging.StreamHandler()
        >>> handler.addFilter(MessageFields(absent="-"))
    """

    def __init__(self, more: Callable[[], Mapping[str, object]] | None = None, *, absent: str | None = None) -> None:
        super().__init__()
        self._more = more
        self._absent = None if absent is None else _Absent(absent)

    def filter(self, record: logging.LogRecord) -> bool:
        """Put the fields on the record; return True."""
        fields: dict[str, object] = {**message_fields()}
        if self._more is not None:
            fields.update(self._more())
        if self._absent is not None:
            fields = {**dict.fromkeys(FIELDS, self._absent), **fields}
        known = vars(record)
        for name, value in fields.items():
            if name not in known or isinstance(known[name], _Absent):
                known[name] = value
        return True
