"""The message: a payload and text headers, never changed, only copied.

A message that is made while another one is handled is *caused* by it: it gets an id of its own, keeps the correlation
id and the user's headers, and forgets everything the framework wrote about the way of its cause.

    >>> placed = Message("order-1", {"id": "1", "correlation_id": "1", "tenant": "acme", "delay": "60"})
    >>> mailed = placed.caused("mail-1")
    >>> mailed.headers["causation_id"], mailed.headers["correlation_id"], mailed.headers["tenant"]
    ('1', '1', 'acme')
    >>> "delay" in mailed.headers
    False
"""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import RLock
from typing import Any, Generic, TypeVar, get_origin

from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, HeaderError

P = TypeVar("P")
Q = TypeVar("Q")
C = TypeVar("C", bound=type)


class HeaderName:
    """The headers that the framework writes and reads. Every other header belongs to the user.

    The names are stored in databases and brokers: this list only grows.
    """

    id = "id"
    """UUIDv7 of the message; kept on its way through channels, retries and the dead letter."""
    type = "type"
    """Name of the payload's type, see `message_name`."""
    correlation_id = "correlation_id"
    """Id of the message that started it all, or what its sender calls the conversation."""
    causation_id = "causation_id"
    """Id of the message that was handled when this one was sent; absent on the first one."""
    timestamp = "timestamp"
    """When the message was made, ISO 8601 in UTC."""
    content_type = "content_type"
    """Media type of the bytes."""
    endpoint = "endpoint"
    """Id of the handler that the message is meant for, once it is on a channel."""
    attempt = "attempt"
    """How many runs of the handler have failed before this one; absent means none."""
    delay = "delay"
    """Seconds to wait on the channel before the message is delivered."""
    time_to_live = "time_to_live"
    """Seconds on the channel after which the message is no longer worth handling."""
    priority = "priority"
    """0 to 9; 9 is delivered first where the channel knows priorities."""
    partition_key = "partition_key"
    """Messages with the same key are handled in order."""
    first_failed_at = "first_failed_at"
    """When a run of the handler failed for the first time, ISO 8601 in UTC; absent before that."""
    schedule_key = "schedule_key"
    """Under which a message that waits for its time can be found, cancelled and put off."""
    forward_to = "forward_to"
    """The channel that a message in the outbox is on its way to."""
    forward_headers = "forward_headers"
    """Headers, as JSON, that a message in the outbox gets when it leaves: there they would mean something else."""
    forward_until = "forward_until"
    """When the time to live of a message in the outbox is over, ISO 8601 in UTC."""
    replays = "replays"
    """How often the message has come back from the dead letter; absent means never."""
    aggregate_id = "aggregate.id"
    """Which aggregate a message is for, stronger than what its payload says; a JSON object for several identifiers."""
    aggregate_version = "aggregate.version"
    """The version that its sender expects the aggregate to have."""
    stream = "event.stream"
    """The stream that an event was appended to."""
    stream_version = "event.version"
    """Its version there."""
    revision = "event.revision"
    """The revision of the event's type when it was written; absent means 1."""
    tags = "event.tags"
    """What an event can be found by besides its stream: a JSON array of texts."""


_OF_ADAPTERS = "x-ecotone-"  # what channels note for themselves begins with this

_WRITTEN_BY_FRAMEWORK = (
    HeaderName.endpoint,
    HeaderName.attempt,
    HeaderName.causation_id,
    HeaderName.first_failed_at,
    HeaderName.forward_to,
    HeaderName.forward_headers,
    HeaderName.forward_until,
    HeaderName.replays,
    HeaderName.stream,
    HeaderName.stream_version,
    HeaderName.revision,
)

FRAMEWORK_HEADERS = frozenset(value for name, value in vars(HeaderName).items() if not name.startswith("_"))


# Uniqueness is needed, secrecy is not. The generator is our own: `random.seed(1)` in an application, or in a test, must
# not give two messages one id, for the second would be taken for a repetition of the first. A fork is seeded anew.
_CHANCE = random.Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CHANCE.seed)


def new_id() -> str:
    """Return a UUIDv7 as text: unique, and sortable by the millisecond in which it was made (RFC 9562, 5.7)."""
    milliseconds, chance = time.time_ns() // 1_000_000, _CHANCE.getrandbits(74)
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031  the fastest way to write this
        milliseconds >> 16,
        milliseconds & 0xFFFF,
        chance >> 62,
        0x8000 | (chance >> 48) & 0x3FFF,
        chance & 0xFFFF_FFFF_FFFF,
    )


class LateHeaders(Mapping[str, str]):
    """Headers that are written down when somebody looks at them, and then once.

    Most messages are handled in the process that made them, by handlers that look at no header.
    """

    __slots__ = ("__weakref__", "_written")

    def __init__(self) -> None:
        self._written: dict[str, str] | None = None

    def write(self) -> dict[str, str]:
        """Return what they say. Called once, by one thread; then what it was made of can be let go."""
        raise NotImplementedError

    def read(self) -> dict[str, str]:
        """Return them as a dict that is not to be changed: many times as quick to go through."""
        if self._written is None:
            with _writing:  # a handler in a thread may look at the same time: a message has one id
                if self._written is None:
                    self._written = self.write()
        return self._written

    def copy(self) -> dict[str, str]:
        """Return them as a dict of one's own, much quicker than item by item."""
        return self.read().copy()

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        """Copy and pickle them as the dict that they stand for."""
        return dict, (self.read(),)

    def __or__(self, others: Mapping[str, str]) -> dict[str, str]:
        return {**self.read(), **others}

    def __ror__(self, others: Mapping[str, str]) -> dict[str, str]:
        return {**others, **self.read()}

    def __getitem__(self, name: str) -> str:
        return self.read()[name]

    def __contains__(self, name: object) -> bool:
        return name in self.read()  # that of `Mapping` raises an error to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())

    def __repr__(self) -> str:
        return repr(self.read())


class FreshHeaders(LateHeaders):
    """Headers of a message made just now. Its id and timestamp would be a third of what a dispatch costs.

    Args:
        cause: The message that is being handled; `None` for the first one of a conversation.
        given: What the sender says about the message.
        made_at: When it was made.
    """

    __slots__ = ("_cause", "_given", "_made_at")

    def __init__(self, cause: "Message[Any] | None", given: Mapping[str, str] | None, made_at: datetime) -> None:
        self._written = None
        self._cause = cause
        self._given = given
        self._made_at = made_at

    def write(self) -> dict[str, str]:
        """Return id, timestamp, what the sender says, and what is inherited from the cause."""
        headers = {HeaderName.timestamp: self._made_at.isoformat()}
        if self._given:
            headers.update(self._given)
        if self._cause is not None:
            headers = caused_headers(self._cause.headers, headers)
            self._cause = None  # a long conversation must not be kept in memory by its last message
            return headers
        if HeaderName.id not in headers:
            headers[HeaderName.id] = new_id()
        headers.setdefault(HeaderName.correlation_id, headers[HeaderName.id])
        return headers


def plain_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the same headers in the form that is quickest to read; it is not to be changed."""
    if type(headers) is dict:
        return headers
    # What is fresh is told by its very type: to ask an abstract class takes as long as to write the headers.
    return headers.read() if type(headers) is FreshHeaders or isinstance(headers, LateHeaders) else headers


def copied_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers as a dict of one's own."""
    return dict(plain_headers(headers))


def caused_headers(cause: Mapping[str, str], headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers of a message that one with the headers `cause` is the cause of; see `Message.caused`."""
    said = plain_headers(cause)
    inherited = {name: value for name, value in said.items() if name not in FRAMEWORK_HEADERS}
    if headers:
        inherited.update(headers)
    own_id = said.get(HeaderName.id)
    new = inherited.get(HeaderName.id)
    if new is None:
        new = inherited[HeaderName.id] = new_id()
    # What somebody else has put on a channel may have no id.
    conversation = said.get(HeaderName.correlation_id) or own_id
    if conversation is not None:
        inherited[HeaderName.correlation_id] = conversation
    else:
        inherited.setdefault(HeaderName.correlation_id, new)
    if own_id is not None and own_id != new:
        inherited[HeaderName.causation_id] = own_id
    return inherited


_writing = RLock()  # headers are written by reading those of their cause


@dataclass(frozen=True, slots=True, init=False)
class Message(Generic[P]):
    """A payload and the headers that travel with it.

    Args:
        payload: What is said. `bytes` on a channel, the user's type everywhere else.
        headers: Text about it; names in `HeaderName` are the framework's, all others the user's.
    """

    payload: P
    headers: Mapping[str, str]

    def __init__(self, payload: P, headers: Mapping[str, str]) -> None:
        # What a frozen dataclass does for itself takes twice as long, and every dispatch makes a message.
        _set_payload(self, payload)
        _set_headers(self, headers)

    @property
    def id(self) -> str:
        """The `id` header."""
        return self.headers[HeaderName.id]

    def with_payload(self, payload: Q) -> "Message[Q]":
        """Return the same message saying something else."""
        return Message(payload, self.headers)

    def with_headers(self, extra: Mapping[str, str]) -> "Message[P]":
        """Return the same message with these headers added or replaced."""
        headers = copied_headers(self.headers)
        headers.update(extra)
        return Message(self.payload, headers)

    def without_headers(self, names: Iterable[str]) -> "Message[P]":
        """Return the same message without these headers; names that it does not have are ignored."""
        headers = copied_headers(self.headers)
        for name in names:
            headers.pop(name, None)
        return Message(self.payload, headers)

    def caused(self, payload: Q, headers: Mapping[str, str] | None = None) -> "Message[Q]":
        """Return a new message that this one is the cause of.

        It inherits the user's headers and the correlation id. `headers` win over what is inherited, but never over
        the correlation id: whoever handles a message cannot leave its conversation.
        """
        return Message(payload, caused_headers(self.headers, headers))


_set_payload = vars(Message)["payload"].__set__
_set_headers = vars(Message)["headers"].__set__

_NAME = "__ecotone_message_name__"
_ALIASES = "__ecotone_message_aliases__"


LONGEST_TIME = 10_000_000_000.0
"""Seconds that a delay or a time to live may have at most: some 300 years, which can still be added to a date."""

N = TypeVar("N", int, float)


def number_header(headers: Mapping[str, str], name: str, kind: type[N], largest: float) -> N | None:
    """Read a header that tells a number to channels; `None` when it is absent.

    Args:
        headers: The headers of a message.
        name: Which one.
        kind: `int` or `float`.
        largest: The largest number that is allowed; the smallest is 0.

    Raises:
        ConversionError: It is no such number.

    Example:
        >>> number_header({"delay": "1.5"}, "delay", float, LONGEST_TIME)
        1.5
    """
    text = headers.get(name)
    if text is None:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = kind(-1)
    if not 0 <= number <= largest:
        raise ConversionError(
            f"header {name!r} of message {headers.get(HeaderName.id, 'without id')} is {text!r}",
            hint=f"it has to be a number from 0 to {largest:.0f}, of type {kind.__name__}",
        )
    return number


def failed_attempts(message: Message[Any]) -> int:
    """Return how many runs of its handler a message has failed in so far."""
    try:
        return max(0, min(int(message.headers.get(HeaderName.attempt, "0")), _MOST_ATTEMPTS))
    except ValueError:  # written by somebody else
        return 0


_MOST_ATTEMPTS = 1_000_000_000  # what somebody else has written may be more than a database can keep


def seconds_text(name: str, value: timedelta | datetime, now: datetime) -> str:
    """Return a duration, or the time until a moment, as headers tell it to channels: in seconds.

    Args:
        name: The header that it is for.
        value: The duration or the moment; a moment that is past is now.
        now: The present time.

    Raises:
        ConversionError: It is not told how far the moment is from UTC.

    Example:
        >>> seconds_text("delay", timedelta(minutes=1), datetime.now())
        '60.0'
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ConversionError(
                f"the header {name!r} is {value}, a moment without its offset from UTC",
                hint="give it a time zone: datetime.now(UTC), datetime(..., tzinfo=ZoneInfo('Europe/Warsaw'))",
            )
        value = max(value - now, timedelta(0))
    return str(value.total_seconds())


def check_given(headers: Mapping[str, str]) -> None:
    """Check the headers that somebody gives to a new message.

    Raises:
        HeaderError: One of them is written by the framework alone.
        ConversionError: One that channels go by is not the number that it has to be.
    """
    for name in headers:
        if name in _WRITTEN_BY_FRAMEWORK or name.startswith(_OF_ADAPTERS):
            raise HeaderError(
                f"the header {name!r} is written by the framework",
                hint="give your own header another name; headers to send are the user's, "
                "id, correlation_id, content_type, delay, time_to_live, priority, partition_key and schedule_key",
            )
    number_header(headers, HeaderName.delay, float, LONGEST_TIME)
    number_header(headers, HeaderName.time_to_live, float, LONGEST_TIME)
    number_header(headers, HeaderName.priority, int, 9)


def message_name(name: str, *, aliases: Iterable[str] = ()) -> Callable[[C], C]:
    """Give a message type a name that outlives its class.

    The name is what channels and stores write down. Handlers that are routed by this name receive the class, and
    handlers of the class receive what is sent under the name.

    Args:
        name: The name, unique in the application.
        aliases: Names that the type had before and that are still to be read.

    Example:
        >>> @message_name("order.placed")
        ... class OrderWasPlaced: ...
        >>> name_of(OrderWasPlaced)
        'order.placed'
    """

    def decorate(cls: C) -> C:
        setattr(cls, _NAME, name)
        setattr(cls, _ALIASES, tuple(aliases))
        return cls

    return decorate


def explicit_name_of(cls: object) -> str | None:
    """Return the name that `message_name` gave to this very class, not to one of its bases."""
    return vars(cls).get(_NAME) if isinstance(cls, type) else None


def name_of(cls: Any) -> str:
    """Return the name under which a type is written down: its `message_name`, else module and class."""
    if type(cls) is not type:  # a class with a metaclass of its own, or no class at all, may have an origin
        cls = get_origin(cls) or cls
    name = explicit_name_of(cls)
    if name is not None:
        return name
    module = getattr(cls, "__module__", "builtins")
    qualified = getattr(cls, "__qualname__", str(cls))
    return str(qualified) if module == "builtins" else f"{module}.{qualified}"


def aliases_of(cls: type) -> tuple[str, ...]:
    """Return the names that `message_name` says a class had before."""
    aliases: tuple[str, ...] = vars(cls).get(_ALIASES, ())
    return aliases


class MessageTypes:
    """The message types of one application, found by the names that are written down.

    Raises:
        ConfigurationError: Two classes have one name.
    """

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._classes: dict[str, type] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: type) -> None:
        """Make a class known by its name and its aliases."""
        for name in (name_of(cls), *aliases_of(cls)):
            known = self._classes.setdefault(name, cls)
            if known is not cls:
                raise ConfigurationError(
                    f"{known.__module__}.{known.__qualname__} and {cls.__module__}.{cls.__qualname__} "
                    f"are both named {name!r}",
                    hint="give one of them another @message_name",
                )

    def items(self) -> Iterable[tuple[str, type]]:
        """Return the known names and their classes."""
        return self._classes.items()

    def find(self, name: str) -> type | None:
        """Return the class with this name: a known one, or a subclass of a known one."""
        if name not in self._classes:
            for cls in list(self._classes.values()):
                for descendant in descendants_of(cls):
                    if name in (name_of(descendant), *aliases_of(descendant)):
                        self._classes[name] = descendant
                        return descendant
        return self._classes.get(name)


def descendants_of(cls: type) -> Iterable[type]:
    """Return the subclasses of a message type, and theirs."""
    # Builtins have thousands of unrelated subclasses, none of which is a message.
    if cls.__module__ == "builtins":
        return
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from descendants_of(child)
