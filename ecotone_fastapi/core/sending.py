"""The third door: a message becomes bytes and enters a channel."""

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import UnknownChannelError
from ecotone_fastapi.core.message import HeaderName, Message, copied_headers, name_of
from ecotone_fastapi.core.pipeline import Call, Interceptor, Scope, compose
from ecotone_fastapi.core.watching import Operation, Watching


class Sending:
    """Puts messages on channels.

    Args:
        conversion: How payloads become bytes.
        channels: All channels by name.
        watching: Who watches the work on channels.
        interceptors: Those of the SEND stage, outermost first.
    """

    def __init__(
        self,
        conversion: Conversion,
        channels: Mapping[str, Channel],
        watching: Watching,
        interceptors: Sequence[Interceptor],
    ) -> None:
        self._conversion = conversion
        self._channels = channels
        self._watching = watching or None
        self._names: dict[type, str] = {}
        self._send = compose(interceptors, self._transmit)

    def send(self, channel: str, message: Message[Any], extra: Mapping[str, str] | None) -> Awaitable[None]:
        """See `Gateway.send`."""
        payload, headers = message.payload, copied_headers(message.headers)
        if extra is not None:
            headers.update(extra)
        told = headers.get(HeaderName.content_type)
        body, headers[HeaderName.content_type] = self._conversion.encode(payload, told)
        if told is None and not isinstance(payload, bytes):
            cls = type(payload)
            name = self._names.get(cls)
            if name is None:
                name = self._names[cls] = name_of(cls)
            headers[HeaderName.type] = name
        return self._send(Call(Message(body, headers), None, channel, current_scope() or Scope()))

    def _transmit(self, call: Call) -> Awaitable[None]:
        assert call.channel is not None
        return self.transmit(call.channel, [call.message])

    def transmit(self, channel: str, messages: Sequence[Message[bytes]]) -> Awaitable[None]:
        """See `Gateway.transmit`."""
        target = self._channels.get(channel)
        if target is None:
            raise unknown_channel(channel, self._channels)
        if self._watching is None:
            return target.send(messages)
        return _watched(self._watching, channel, messages, target)


async def _watched(watching: Watching, channel: str, messages: Sequence[Message[bytes]], target: Channel) -> None:
    with watching.during(Operation.SEND, "send", channel, messages, target):
        await target.send(messages)


def unknown_channel(name: str, known: Iterable[str]) -> UnknownChannelError:
    """Return the error for a channel that nobody gave."""
    return UnknownChannelError(
        f"there is no channel {name!r}",
        tried=", ".join(sorted(known)) or "no channel was given",
        hint=f"Ecotone(..., channels=[MemoryChannel({name!r})]), or another channel with this name",
    )
