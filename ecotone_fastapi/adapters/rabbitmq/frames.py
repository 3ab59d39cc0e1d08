"""The frames of a message, as AMQP 0-9-1 lays them down.

pamqp can write them too, for every kind of message. Those that are sent here are all of one kind, with text headers:
what pamqp looks at for each is known, and writing them takes a sixth of the time, which was most of what publishing
took.
"""

import functools
import struct
from collections.abc import Mapping

from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from ecotone_fastapi.adapters.rabbitmq.batches import Outgoing

_FRAME = struct.Struct(">BHI")
_CONTENT = struct.Struct(">BHIHHQH")  # type, channel, size; class, weight, size of the body, which properties are there
_LENGTH = struct.Struct(">I")
_END = b"\xce"
_HEADER, _BODY, _BASIC = 2, 3, 60
_AROUND = 8  # bytes of a frame that are not its payload

# Which properties are there is told by bits; they come in this order.
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 13, 1 << 12
_PRIORITY, _EXPIRATION, _MESSAGE_ID = 1 << 11, 1 << 8, 1 << 7
_ALWAYS = _HEADERS | _DELIVERY_MODE | _MESSAGE_ID
_PERSISTENT = b"\x02"


@functools.lru_cache(maxsize=256)
def address(channel: int, exchange: str, routing_key: str) -> bytes:
    """Return the frame that says where the message goes, and that it comes back when there is no such place."""
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True), channel)


def head(channel: int, outgoing: Outgoing, message_id: str, largest: int) -> bytes:
    """Return the frames that come before the payload of a message.

    Args:
        channel: Number of the channel.
        outgoing: The message.
        message_id: By which it is known when it comes back.
        largest: Bytes that a frame may have on this connection.

    Raises:
        ValueError: It cannot be written.
        OverflowError: A number in it is out of range.
    """
    return address(channel, outgoing.exchange, outgoing.routing_key) + header(
        channel,
        len(outgoing.message.payload),
        headers=outgoing.headers,
        content_type=outgoing.content_type,
        priority=outgoing.priority,
        expiration=outgoing.milliseconds,
        message_id=message_id,
        largest=largest,
    )


def header(
    channel: int,
    size: int,
    *,
    headers: Mapping[str, str],
    content_type: str | None,
    priority: int | None,
    expiration: str | None,
    message_id: str,
    largest: int,
) -> bytes:
    """Return the frame with the properties of a persistent message.

    Args:
        channel: Number of the channel.
        size: Of the payload, in bytes.
        headers: Text headers; other values that AMQP knows are written, too.
        content_type: The property.
        priority: The property, 0 to 255.
        expiration: The property, milliseconds as text.
        message_id: The property.
        largest: Bytes that a frame may have on this connection: a header has to fit into one.

    Raises:
        ValueError: It cannot be written, or is too large.
    """
    entries: list[bytes] = []
    for name, value in headers.items():
        if type(value) is not str:
            properties = Basic.Properties(
                content_type=content_type,
                headers=dict(headers),
                delivery_mode=2,
                priority=priority,
                expiration=expiration,
                message_id=message_id,
            )
            return _by_the_book(channel, size, properties, largest)
        text = value.encode()
        entries += (_name(name), _LENGTH.pack(len(text)), text)
    table = b"".join(entries)
    flags, before, after = _ALWAYS, b"", b""
    if content_type:
        flags |= _CONTENT_TYPE
        before = _short(content_type)
    if priority is not None:
        flags |= _PRIORITY
        after = priority.to_bytes(1, "big")
    if expiration is not None:
        flags |= _EXPIRATION
        after += _short(expiration)
    id = message_id.encode()
    length = 14 + len(before) + 4 + len(table) + 1 + len(after) + 1 + len(id)
    _check(length + _AROUND, largest)
    return b"".join(
        (
            _CONTENT.pack(_HEADER, channel, length, _BASIC, 0, size, flags),
            before,
            _LENGTH.pack(len(table)),
            table,
            _PERSISTENT,
            after,
            len(id).to_bytes(1, "big"),
            id,
            _END,
        )
    )


def body(channel: int, payload: bytes, largest: int) -> bytes:
    """Return the frames of a payload: none for an empty one, several for one that does not fit into one frame."""
    room = largest - _AROUND
    if len(payload) <= room:
        return b"".join((_FRAME.pack(_BODY, channel, len(payload)), payload, _END)) if payload else b""
    parts: list[bytes] = []
    for start in range(0, len(payload), room):
        part = payload[start : start + room]
        parts += (_FRAME.pack(_BODY, channel, len(part)), part, _END)
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return _short(name) + b"S"


def _short(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > 255:
        raise ValueError(f"{text[:20]!r}… is longer than 255 bytes")
    return len(encoded).to_bytes(1, "big") + encoded


def _check(length: int, largest: int) -> None:
    if length > largest:
        raise ValueError(f"its headers take {length} bytes, and the server takes {largest}")


def _by_the_book(channel: int, size: int, properties: Basic.Properties, largest: int) -> bytes:
    frame = marshal(ContentHeader(body_size=size, properties=properties), channel)
    _check(len(frame), largest)
    return frame
