"""Messages as no driver would write them: their properties byte by byte, sent on a connection of their own."""

import struct
from collections.abc import Iterable

from pamqp.commands import Basic
from pamqp.frame import marshal

from ecotone_fastapi.adapters.rabbitmq.frames import body
from ecotone_fastapi.adapters.rabbitmq.wire import Wire
from tests.conftest import SERVERS

CONTENT_TYPE, CONTENT_ENCODING, HEADERS, CORRELATION_ID, REPLY_TO = 1 << 15, 1 << 14, 1 << 13, 1 << 10, 1 << 9
EXPIRATION, MESSAGE_ID, TIMESTAMP, TYPE, APP_ID = 1 << 8, 1 << 7, 1 << 6, 1 << 5, 1 << 3
LARGEST = 131_072


def short(text: bytes) -> bytes:
    """A text that tells its length in one byte."""
    return bytes((len(text),)) + text


def long(data: bytes) -> bytes:
    """Anything that tells its length in four bytes."""
    return len(data).to_bytes(4, "big") + data


def text(value: bytes) -> bytes:
    """A text in a table."""
    return b"S" + long(value)


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """A table of names and values."""
    return long(b"".join(short(name) + value for name, value in entries))


def headers(*entries: tuple[bytes, bytes]) -> bytes:
    """Properties that are a table of headers and nothing else."""
    return properties((HEADERS, table(*entries)))


def properties(*given: tuple[int, bytes]) -> bytes:
    """Properties, in the order of their bits, the highest first."""
    return struct.pack(">H", sum(flag for flag, _ in given)) + b"".join(value for _, value in given)


def lists(depth: int) -> bytes:
    """Lists in a table, each in the one before."""
    return b"".join(b"A" + struct.pack(">I", 5 * rest + 2) for rest in reversed(range(depth))) + b"t\x01"


def publish(queue: str, exchange: str = "", routing_key: bytes = b"") -> bytes:
    """What says where a message goes."""
    if not exchange:
        return marshal(Basic.Publish(exchange="", routing_key=queue), 1)
    content = struct.pack(">HHH", 60, 40, 0) + short(exchange.encode()) + short(routing_key) + b"\x00"
    return struct.pack(">BHI", 1, 1, len(content)) + content + b"\xce"


def content(properties: bytes, payload: bytes) -> bytes:
    """What says what a message is."""
    content = struct.pack(">HHQ", 60, 0, len(payload)) + properties
    return struct.pack(">BHI", 2, 1, len(content)) + content + b"\xce" + body(1, payload, LARGEST)


async def send_raw(queue: str, messages: Iterable[bytes]) -> None:
    """Send messages and wait until the server has read them.

    Raises:
        AMQPError: It did not take one of them, and has closed the connection or the channel.
    """
    wire = await Wire.open(SERVERS["rabbitmq"].url, timeout=10.0, name="a stranger")
    try:
        channel = await wire.connection.channel(publisher_confirms=False)
        assert (await channel.get_underlay_channel()).number == 1
        wire.writer.write(b"".join(messages))
        await channel.get_queue(queue)
    finally:
        await wire.close()


async def send_strange(queue: str, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Send messages of these properties and payloads to a queue, as `send_raw`."""
    await send_raw(queue, [publish(queue) + content(*message) for message in messages])
