"""The properties of a message as they come over the wire, whoever has written them.

pamqp reads them, too, but raises over some that servers take: names that are no UTF-8, moments after the year 9999,
tables in tables in tables. Here whatever comes can be read.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

# Which properties are there is told by bits; they come in this order.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID, _TIMESTAMP, _TYPE = (1 << bit for bit in range(10, 4, -1))

_LONGEST = 255  # bytes of a name and other short texts
_DEEPEST = 32  # tables and lists in each other

_TEXT, _BYTES, _LIST, _TABLE, _MOMENT, _DECIMAL = b"SxAFTD"
_NOTHING = b"V\0"
_NUMBERS: Mapping[int, struct.Struct] = {
    ord(kind): struct.Struct(f">{format_}")
    for kind, format_ in {
        "t": "?",
        "b": "b",
        "B": "B",
        "s": "h",
        "u": "H",
        "I": "i",
        "i": "I",
        "l": "q",
        "L": "q",
        "f": "f",
        "d": "d",
    }.items()
}
_SECONDS = struct.Struct(">Q")
_SCALED = struct.Struct(">Bi")


@dataclass(slots=True)
class Properties:
    """What a message says about itself, as far as that is read here.

    Args:
        headers: The headers table.
        content_type: The property.
        correlation_id: The property.
        expiration: The property.
        message_id: The property.
        timestamp: The property; the bare number when no `datetime` is so late.
        type: The property.
    """

    headers: dict[str, Any] = field(default_factory=dict)
    content_type: str | None = None
    correlation_id: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | int | None = None
    type: str | None = None


def properties_of(data: bytes) -> Properties:
    """Read the properties of a message; of what is cut short, as far as it goes.

    Args:
        data: What a content header says after the size of the body.
    """
    properties = Properties()
    try:
        _read(properties, data)
    except (IndexError, struct.error):
        return properties
    return properties


def _read(properties: Properties, data: bytes) -> None:
    flags, at = data[0] << 8 | data[1], 2
    if flags & _CONTENT_TYPE:
        properties.content_type, at = _short(data, at)
    if flags & _CONTENT_ENCODING:
        _, at = _short(data, at)
    if flags & _HEADERS:
        start = at + 4
        at = start + int.from_bytes(data[at:start])
        _read_table(properties.headers, data, start, at, 0)
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _PRIORITY:
        at += 1
    if flags & _CORRELATION_ID:
        properties.correlation_id, at = _short(data, at)
    if flags & _REPLY_TO:
        _, at = _short(data, at)
    if flags & _EXPIRATION:
        properties.expiration, at = _short(data, at)
    if flags & _MESSAGE_ID:
        properties.message_id, at = _short(data, at)
    if flags & _TIMESTAMP:
        properties.timestamp = _moment(*_SECONDS.unpack_from(data, at))
        at += 8
    if flags & _TYPE:
        properties.type, at = _short(data, at)


def _read_table(table: dict[str, Any], data: bytes, at: int, end: int, depth: int) -> None:
    while at < end:  # for every header of every message: what could be a call here would take half as long again
        start = at + 1
        at = start + data[at]
        try:
            name = data[start:at].decode()
        except UnicodeDecodeError:
            name = _mended(data[start:at])
        if data[at] == _TEXT:
            start = at + 5
            at = start + int.from_bytes(data[at + 1 : start])
            table[name] = data[start:at].decode("utf-8", "replace")
        else:
            table[name], at = _value(data, at, end, depth)


def _value(data: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    """Return a value and where the next one begins; what is of an unknown type may be as long as the table."""
    kind, at = data[at], at + 1
    if kind in _NUMBERS:
        number = _NUMBERS[kind]
        return number.unpack_from(data, at)[0], at + number.size
    if kind in _NOTHING:
        return None, at
    if kind == _MOMENT:
        return _moment(*_SECONDS.unpack_from(data, at)), at + 8
    if kind == _DECIMAL:
        scale, digits = _SCALED.unpack_from(data, at)
        return Decimal(digits).scaleb(-scale), at + 5
    if kind not in (_TEXT, _BYTES, _LIST, _TABLE):
        return data[at:end], end
    start = at + 4
    end = min(end, start + int.from_bytes(data[at:start]))  # nothing is longer than what it is in
    if kind == _TEXT:
        return data[start:end].decode("utf-8", "replace"), end
    if kind == _BYTES:
        return data[start:end], end
    if depth == _DEEPEST:
        return "…", end
    if kind == _TABLE:
        table: dict[str, Any] = {}
        _read_table(table, data, start, end, depth + 1)
        return table, end
    values: list[Any] = []
    at = start
    while at < end:
        value, at = _value(data, at, end, depth + 1)
        values.append(value)
    return values, end


def _short(data: bytes, at: int) -> tuple[str, int]:
    start = at + 1
    end = start + data[at]
    try:
        return data[start:end].decode(), end
    except UnicodeDecodeError:
        return _mended(data[start:end]), end


def _mended(text: bytes) -> str:
    """Decode what is no valid text, and cut off what it grows by, so that it can be written anew."""
    return text.decode(errors="replace").encode()[:_LONGEST].decode(errors="ignore")


def _moment(seconds: int) -> datetime | int:
    """Return a moment; numbers that are too large for seconds are taken for milliseconds, as pamqp does."""
    try:
        return datetime.fromtimestamp(seconds if seconds <= 0xFFFF_FFFF else seconds / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return seconds
