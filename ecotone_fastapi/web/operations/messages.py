"""Messages as they are shown: text where it is text, base64 where it is not."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.texts import LINE, NAME, TEXT, cut, cut_or_none

LONGEST_HEADER, MOST_HEADERS = 4_000, 200
"""How many characters are shown of a header, and how many headers."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A payload as it is shown.

    Args:
        payload: The text, or base64 of the bytes; when it is too long, its beginning.
        payload_encoding: Which of both.
        payload_length: How many bytes it has in all.
        payload_cut: Whether this is only its beginning, and a mark where that is a text.
    """

    payload: str
    payload_encoding: Literal["text", "base64"]
    payload_length: int
    payload_cut: bool


@dataclass(frozen=True, kw_only=True)
class ShownMessage(Payload):
    """A message as it is shown.

    Args:
        payload: The text, or base64 of the bytes; when it is too long, its beginning.
        payload_encoding: Which of both.
        payload_length: How many bytes it has in all.
        payload_cut: Whether this is only its beginning, and a mark where that is a text.
        id: Its id.
        endpoint: The handler that it is meant for.
        headers: Its headers; the values of long ones are cut.
    """

    id: str | None
    endpoint: str | None
    headers: dict[str, str]


def shown(message: Message[bytes]) -> ShownMessage:
    """Return a message as it is shown."""
    told = {name: message.headers.get(name) for name in (HeaderName.id, HeaderName.endpoint)}
    id_, endpoint = (cut_or_none(one, LINE) for one in told.values())
    payload = payload_of(message)
    return ShownMessage(
        id=id_,
        endpoint=endpoint,
        headers=cut_headers(message.headers),
        payload=payload.payload,
        payload_encoding=payload.payload_encoding,
        payload_length=payload.payload_length,
        payload_cut=payload.payload_cut,
    )


def cut_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by name, each cut where it is too long; those that are too many are counted in the last one."""
    first = sorted(headers.items())[:MOST_HEADERS]
    shown = {cut(name, NAME): cut(value, LONGEST_HEADER) for name, value in first}
    if len(headers) > MOST_HEADERS:
        shown["…"] = f"(cut, {len(headers)} headers in all)"
    return shown


def payload_of(message: Message[bytes], longest: int = TEXT) -> Payload:
    """Return the payload of a message as it is shown.

    Args:
        message: The message.
        longest: How many bytes are shown.
    """
    raw = bytes(message.payload)
    is_long = len(raw) > longest
    beginning = raw[:longest] if is_long else raw
    text = _text(beginning, whole=not is_long)
    if text is None:
        encoded = base64.b64encode(beginning).decode()
        return Payload(payload=encoded, payload_encoding="base64", payload_length=len(raw), payload_cut=is_long)
    if is_long:
        text = f"{text}… (cut, {len(raw)} bytes in all)"
    return Payload(payload=text, payload_encoding="text", payload_length=len(raw), payload_cut=is_long)


def _text(raw: bytes, *, whole: bool) -> str | None:
    """Return what bytes say, if they are a text; of a beginning, without a character that was cut in two."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        if whole or error.start < len(raw) - 3:
            return None
        text = raw[: error.start].decode()
    return None if "\0" in text else text
