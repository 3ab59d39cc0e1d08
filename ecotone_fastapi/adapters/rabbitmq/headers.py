"""Messages as they are written on the wire of AMQP, and what can be read of what others have written there.

Headers are strings in the headers table, under their own names. What the adapter has to know about a message itself is
written beside them, in headers that nobody else sees.
"""

import json
import logging
from datetime import datetime
from typing import Any

from ecotone_fastapi.adapters.rabbitmq.properties import Properties
from ecotone_fastapi.core.errors import ConversionError
from ecotone_fastapi.core.message import HeaderName, Message

logger: logging.Logger = logging.getLogger(__name__)

DELIVERIES = "x-ecotone-deliveries"
"""How often the message was lent before it was written anew."""
EXPIRES = "x-ecotone-expires"
"""When it is no longer worth handling, in seconds since 1970; where the server cannot be told."""

DUE = "x-ecotone-due"
"""When it may be handled, in seconds since 1970; where it waits for that at its place in the queue."""

_OWN = frozenset({DELIVERIES, EXPIRES, DUE})
_OF_THE_SERVER = frozenset({"x-delivery-count", "x-acquired-count", "x-death"})
_OF_THE_SERVER_TOO = ("x-first-death-", "x-last-death-")

_LONGEST_NAME = 255
_MOST = 1_000_000_000
_LARGEST_TABLE = 100_000  # bytes; a table has to fit into one frame, which has 131072 by default
_LARGEST_AGAIN = 130_000  # bytes; what others have sent is not measured by our own limit


def written(message: Message[bytes]) -> dict[str, str]:
    """Return the headers of a message as they can be written.

    Raises:
        ConversionError: A header has too long a name, no valid text, or there is too much of them.
    """
    headers = {name: value for name, value in message.headers.items() if name != HeaderName.delay}
    size = 0
    for name, value in headers.items():
        try:
            length = len(name.encode())
            size += length + len(value.encode()) + 6
        except UnicodeEncodeError as error:
            raise _unfit(message, f"the header {name!r} is no valid text: {error.reason}") from error
        if length > _LONGEST_NAME:
            raise _unfit(message, f"the header {name[:40]!r}… has a name of {length} bytes, and 255 are allowed")
    if size > _LARGEST_TABLE:
        raise _unfit(message, f"its headers have {size} bytes, and {_LARGEST_TABLE} are allowed")
    return headers


def rewritten(message: Message[bytes]) -> dict[str, str]:
    """Return the headers of a message that has come from the server, so that they can be written once more.

    As texts they may take more room than before. What one frame cannot hold is left out, the largest first.
    """
    headers = {name: value for name, value in message.headers.items() if name != HeaderName.delay}
    sizes = {name: len(name.encode()) + len(value.encode()) + 6 for name, value in headers.items()}
    surplus = sum(sizes.values()) - _LARGEST_AGAIN
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True) if surplus > 0 else ():
        if surplus > 0:
            surplus -= sizes[name]
            del headers[name]
            id_ = headers.get(HeaderName.id, "without id")
            logger.warning("message %s is written anew without the header %.40r, for which there is no room", id_, name)
    return headers


def _unfit(message: Message[bytes], reason: str) -> ConversionError:
    return ConversionError(
        f"message {message.headers.get(HeaderName.id, 'without id')} cannot be sent by RabbitMQ: {reason}",
        hint="what is long or binary belongs into the payload",
    )


def read(properties: Properties, payload: bytes) -> tuple[Message[bytes], dict[str, Any]]:
    """Return a message, whoever has written it, and what the adapter or the server have noted about it."""
    headers: dict[str, str] = {}
    noted: dict[str, Any] = {}
    for name, value in properties.headers.items():
        if type(value) is str and name not in _OWN:
            headers[name] = value
        elif name in _OWN or name in _OF_THE_SERVER:
            noted[name] = value
        elif value is not None:
            headers[name] = _as_text(value)
    if "x-first-death-reason" in headers:
        headers = {name: value for name, value in headers.items() if not name.startswith(_OF_THE_SERVER_TOO)}
    if HeaderName.id not in headers:
        _read_properties(properties, headers)
    return Message(payload, headers), noted


def _read_properties(properties: Properties, headers: dict[str, str]) -> None:
    """Look into the properties of a message that is not of ours for what it says about itself."""
    for name, value in (
        (HeaderName.id, properties.message_id),
        (HeaderName.type, properties.type),
        (HeaderName.correlation_id, properties.correlation_id),
        (HeaderName.content_type, properties.content_type),
        (HeaderName.timestamp, properties.timestamp),
    ):
        if value:
            headers.setdefault(name, _as_text(value))


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        return value.decode(errors="replace")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return json.dumps(value, default=_as_text)
    return str(value)


def whole_number(value: object) -> int:
    """Read a count that somebody may have tampered with; a database has to be able to keep it."""
    try:
        number: int = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return 0
    return max(0, min(number, _MOST))
