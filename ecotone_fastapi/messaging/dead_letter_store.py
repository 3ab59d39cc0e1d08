"""What keeps dead letters: a `DeadLetterStore`, what is in it, and how it is searched."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from traceback import format_exception
from typing import Any, Protocol

from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.texts import text_of

TENANT: str = "tenant"
"""The header that `DeadLetterFilter(tenant=...)` looks at."""


@dataclass(frozen=True, kw_only=True)
class ParkedMessage:
    """A message in the dead letter, and why it is there.

    Args:
        id: Its id in the dead letter: the same message can fail in several handlers.
        message: The message as it was on the wire: bytes and headers untouched.
        channel: The channel that it was taken from.
        endpoint: The id of the handler that failed; `None` when that could not be told.
        error_type: Module and class of the exception.
        error_message: Its text.
        traceback: Its traceback; empty when the handler never ran.
        attempts: How many runs failed.
        deliveries: How often the message was lent to a consumer.
        parked_at: When it was given up.
        first_failed_at: When it failed for the first time; `None` when that was not written down.
    """

    id: str
    message: Message[bytes]
    channel: str
    endpoint: str | None
    error_type: str
    error_message: str
    traceback: str
    attempts: int
    deliveries: int
    parked_at: datetime
    first_failed_at: datetime | None = None

    @classmethod
    def of(
        cls,
        message: Message[bytes],
        error: Exception,
        *,
        channel: str,
        attempts: int,
        deliveries: int,
        parked_at: datetime,
        first_failed_at: datetime | None = None,
    ) -> "ParkedMessage":
        """Return what is parked of a message that failed for good, see `ParkedMessage`."""
        endpoint = message.headers.get(HeaderName.endpoint)
        return cls(
            id=parked_id(message, endpoint),
            message=message,
            channel=channel,
            endpoint=endpoint,
            error_type=f"{type(error).__module__}.{type(error).__qualname__}",
            error_message=text_of(error),
            traceback="".join(format_exception(error)),
            attempts=attempts,
            deliveries=deliveries,
            parked_at=parked_at,
            first_failed_at=first_failed_at,
        )

    @property
    def replays(self) -> int:
        """How often it had been here before, and was replayed."""
        return replays_of(self.message)

    @property
    def revision(self) -> str:
        """What tells this state of it from any other: give it back when you change what you have seen."""
        told = json.dumps([self.id, sorted(self.message.headers.items()), self.parked_at.astimezone(UTC).isoformat()])
        return hashlib.sha256(told.encode() + bytes(self.message.payload)).hexdigest()[:32]


def replays_of(message: Message[Any]) -> int:
    """Return how often a message has come back from the dead letter."""
    told = message.headers.get(HeaderName.replays, "0")[:9]  # somebody else may have written anything
    return int(told) if told.isdecimal() else 0


def parked_id(message: Message[bytes], endpoint: str | None) -> str:
    """Return the id in the dead letter: one for each handler that a message failed in."""
    message_id = message.headers.get(HeaderName.id, "unknown")
    if len(message_id) > _LONGEST_ID:  # somebody's own, longer than a database can index
        message_id = hashlib.sha256(message_id.encode(errors="replace")).hexdigest()
    # Senders may give several messages one id: what these say tells them apart.
    told_apart_by = (endpoint or "").encode(errors="replace") + b"\0" + bytes(message.payload)
    return f"{message_id}-{zlib.crc32(told_apart_by):08x}"


_LONGEST_ID = 120


@dataclass(frozen=True, kw_only=True)
class DeadLetterFilter:
    """Which dead letters are meant: those to which everything applies that is said here. Without anything, all.

    Args:
        endpoint: The id of the handler that failed.
        channel: The channel that it was taken from.
        error_type: The class of the exception, with its module or without.
        since: Parked at this moment or later.
        until: Parked before this moment.
        tenant: What its header `tenant` says.
        headers: What its headers say, each exactly.
        text: Is part of its id, its error, its traceback, its headers (as JSON) or its body; upper and lower case
            differ.

    Example:
        >>> DeadLetterFilter(error_type="TimeoutError", tenant="acme").wanted_headers
        {'tenant': 'acme'}
    """

    endpoint: str | None = None
    channel: str | None = None
    error_type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    tenant: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None

    def __post_init__(self) -> None:
        """Refuse moments that could be any hour of the day."""
        for moment in (self.since, self.until):
            if moment is not None and moment.tzinfo is None:
                raise ConfigurationError(
                    f"{moment!r} tells no time zone", hint="write datetime.now(UTC), or moment.astimezone()"
                )

    @property
    def wanted_headers(self) -> Mapping[str, str]:
        """All headers that are asked for, the tenant included."""
        return self.headers if self.tenant is None else {**self.headers, TENANT: self.tenant}

    def matches(self, parked: ParkedMessage) -> bool:
        """Whether a dead letter is meant. Stores that search in another way find the same."""
        return (
            self.endpoint in (None, parked.endpoint)
            and self.channel in (None, parked.channel)
            and (self.error_type is None or f".{parked.error_type}".endswith(f".{self.error_type}"))
            and (self.since is None or parked.parked_at >= self.since)
            and (self.until is None or parked.parked_at < self.until)
            and all(parked.message.headers.get(name) == value for name, value in self.wanted_headers.items())
            and (self.text is None or self._is_told(self.text, parked))
        )

    @staticmethod
    def _is_told(text: str, parked: ParkedMessage) -> bool:
        told = (parked.id, parked.error_type, parked.error_message, parked.traceback)
        return (
            any(text in one for one in told)
            or in_json(text) in headers_as_json(parked.message.headers)
            or text.encode(errors="replace") in parked.message.payload
        )


EVERYTHING: DeadLetterFilter = DeadLetterFilter()
"""All dead letters."""


def headers_as_json(headers: Mapping[str, str]) -> str:
    """Return headers as stores write and search them: one JSON object, in ASCII."""
    return json.dumps(dict(headers))


def in_json(text: str) -> str:
    """Return a text as it is written inside of JSON."""
    return json.dumps(text)[1:-1]


class DeadLetterStore(Protocol):
    """Keeps parked messages. Implemented in memory and by database adapters."""

    async def park(self, parked: ParkedMessage) -> None:
        """Store it durably, in the unit of work that is open in the calling task's scope on the same database, if any.

        Parking the same id again replaces what is there.
        """
        ...

    async def list(
        self, which: DeadLetterFilter = EVERYTHING, *, limit: int = 100, offset: int = 0
    ) -> Sequence[ParkedMessage]:
        """Return parked messages, the newest first."""
        ...

    async def ids(self, which: DeadLetterFilter = EVERYTHING) -> Sequence[str]:
        """Return the ids of all that are meant, the oldest first: the order in which they are replayed."""
        ...

    async def get(self, parked_id: str) -> ParkedMessage:
        """Return one parked message.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id.
        """
        ...

    async def delete(self, parked_id: str, *, saying: Message[bytes] | None = None) -> None:
        """Remove one parked message, in the unit of work that is open in the calling task's scope, if any.

        Args:
            parked_id: Its id.
            saying: Only if it still says this: somebody may have edited it meanwhile.

        Raises:
            DeadLetterNotFoundError: No dead letter has this id, or it says something else.
        """
        ...

    async def delete_all(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Remove all that are meant, in the unit of work of the calling task's scope, if any; return how many."""
        ...

    async def count(self, which: DeadLetterFilter = EVERYTHING) -> int:
        """Return how many messages are parked."""
        ...
