"""Keeps the driver from reading what others have written: it is handed the properties of a message as bytes.

The driver reads what comes before anybody else can look at it, and over what it cannot read it ends the connection, on
which the server delivers the same again, for ever. So whatever the sender of a message has put around its payload is
sealed before the driver sees it: in a header of its own, which is the only one.
"""

import asyncio
import struct

from pamqp.header import ContentHeader

from ecotone_fastapi.adapters.rabbitmq.properties import Properties, properties_of

_SEAL = "sealed"
_ENTRY = bytes((len(_SEAL),)) + _SEAL.encode() + b"x"  # the name of the header, and that bytes follow
_HEADERS = 1 << 13  # says that headers are the only property

_FRAME = struct.Struct(">BHI")  # type, channel, size
_SEALED = struct.Struct(f">BHI12sHI{len(_ENTRY)}sI")
_END = b"\xce"
_METHOD, _HEADER = 1, 2
_DELIVER = bytes((0, 60, 0, 60))
_AROUND, _BEFORE = 8, 7  # bytes of a frame that are not its content, and of those the ones before it
_FIXED = 12  # bytes of a content header before the properties: kind of content, weight, size of the body
_CHUNK = 65536


def unsealed(header: ContentHeader) -> Properties:
    """Read the properties of a message that has come by way of a `SealingReader`."""
    data = (header.properties.headers or {})[_SEAL]
    assert isinstance(data, bytes | bytearray)
    return properties_of(bytes(data))


class SealingReader(asyncio.StreamReader):
    """Reads frames of a server, with all that the senders of messages have written around their payloads sealed.

    It reads by `read` and `readexactly`, as is done with frames, and knows no lines.

    Args:
        socket: Where the frames come from.
    """

    def __init__(self, socket: asyncio.StreamReader) -> None:
        super().__init__()
        self._socket = socket
        self._unsealed = bytearray()  # what has come since the last whole frame
        self._ready = b""
        self._at = 0  # so much of what is ready was read

    def at_eof(self) -> bool:
        """Return whether nothing is left, and nothing will come."""
        return self._at == len(self._ready) and not self._unsealed and self._socket.at_eof()

    async def read(self, n: int = -1) -> bytes:
        """Read what there is, up to `n` bytes; everything until the end when `n` is negative."""
        while (n < 0 or self._at == len(self._ready)) and await self._fill():
            continue
        return self._take(len(self._ready) if n < 0 else n)

    async def readexactly(self, n: int) -> bytes:
        """Read `n` bytes.

        Raises:
            IncompleteReadError: The connection has ended before.
        """
        while len(self._ready) - self._at < n:
            if not await self._fill():
                raise asyncio.IncompleteReadError(self._take(n), n)
        return self._take(n)

    def _take(self, n: int) -> bytes:
        data = self._ready[self._at : self._at + n]
        self._at += len(data)
        return data

    async def _fill(self) -> bool:
        """Wait for more; return whether there is any, or may be."""
        data = await self._socket.read(_CHUNK)
        self._unsealed += data
        more = sealed(self._unsealed)
        if not data:  # what is no whole frame is for the driver to complain about
            more += self._unsealed
            self._unsealed.clear()
        self._ready, self._at = self._ready[self._at :] + more, 0
        return bool(data or more)


def sealed(arrived: bytearray) -> bytes:
    """Take all whole frames from the front of what has arrived, and return them sealed."""
    at, done, size = 0, 0, len(arrived)
    parts: list[bytes | bytearray] = []
    while at + _AROUND <= size:
        kind, channel, length = _FRAME.unpack_from(arrived, at)
        end = at + _AROUND + length
        if end > size:
            break
        if kind == _HEADER:
            parts += (arrived[done:at], _sealed_header(channel, arrived[at:end]))
            done = end
        elif kind == _METHOD and arrived.startswith(_DELIVER, at + _BEFORE):
            parts += (arrived[done:at], _without_its_way(channel, arrived[at:end]))
            done = end
        at = end
    parts.append(arrived[done:at])
    del arrived[:at]
    return b"".join(parts)


def _sealed_header(channel: int, frame: bytearray) -> bytes:
    begin = _BEFORE + _FIXED
    properties = frame[begin:-1]
    size = len(properties)
    entry = len(_ENTRY) + 4 + size
    return b"".join(
        (
            _SEALED.pack(_HEADER, channel, _FIXED + 2 + 4 + entry, frame[_BEFORE:begin], _HEADERS, entry, _ENTRY, size),
            properties,
            _END,
        )
    )


def _without_its_way(channel: int, frame: bytearray) -> bytes:
    """Leave out the exchange and the routing key, of which a sender may have made anything."""
    tag = _BEFORE + len(_DELIVER)  # the name of the consumer, a number and a bit follow
    end = tag + 1 + frame[tag] + 8 + 1
    return b"".join((_FRAME.pack(_METHOD, channel, end - _BEFORE + 2), frame[_BEFORE:end], b"\0\0", _END))
