"""The headers that messages have on a channel, described for whoever writes or reads them elsewhere."""

from typing import Any

from ecotone_fastapi.core.message import HeaderName

HEADERS = "ecotone.headers"
"""The name of their schema. A class cannot have it, because of the dot."""

_MOMENT = {"type": "string", "format": "date-time"}
_WHOLE = {"type": "string", "pattern": "^[0-9]+$"}
_SECONDS = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(e-?[0-9]+)?$"}
_TEXT = {"type": "string"}

_DESCRIBED: dict[str, tuple[dict[str, Any], str]] = {
    HeaderName.id: (_TEXT, "Id of the message, a UUIDv7; on the way it stays the same."),
    HeaderName.type: (_TEXT, "Name of the payload's type."),
    HeaderName.correlation_id: (_TEXT, "What all messages of one conversation have in common."),
    HeaderName.causation_id: (_TEXT, "Id of the message that was handled when this one was sent."),
    HeaderName.timestamp: (_MOMENT, "When the message was made."),
    HeaderName.content_type: (_TEXT, "Media type of the payload."),
    HeaderName.endpoint: (_TEXT, "Id of the handler that the message is for."),
    HeaderName.attempt: (_WHOLE, "How many runs of the handler have failed; absent means none."),
    HeaderName.first_failed_at: (_MOMENT, "When a run of the handler failed for the first time."),
    HeaderName.replays: (_WHOLE, "How often the message has come back from the dead letter."),
    HeaderName.delay: (_SECONDS, "Seconds to wait before the message is delivered."),
    HeaderName.time_to_live: (_SECONDS, "Seconds after which the message is no longer worth handling."),
    HeaderName.priority: ({"type": "string", "pattern": "^[0-9]$"}, "0 to 9; 9 is delivered first."),
    HeaderName.partition_key: (_TEXT, "Messages with the same key are handled in order."),
    HeaderName.schedule_key: (_TEXT, "Under which a message that waits can be found."),
    HeaderName.aggregate_id: (_TEXT, "Which aggregate the message is for; a JSON object for several identifiers."),
    HeaderName.aggregate_version: (_WHOLE, "The version that its sender expects the aggregate to have."),
}


def header_schemas() -> dict[str, Any]:
    """Return the schema of all headers of the framework; those of users go beside them, as text, too."""
    return {
        "title": "Headers",
        "description": "Headers are text. Beside these, a message may have any others of its sender.",
        "type": "object",
        "properties": {name: {**schema, "description": text} for name, (schema, text) in _DESCRIBED.items()},
        "required": [HeaderName.endpoint, HeaderName.content_type],
        "additionalProperties": {"type": "string"},
    }
