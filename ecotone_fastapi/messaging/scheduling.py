"""Time: messages that wait, that are worth handling only for a while, and that overtake others.

    @delayed(timedelta(days=3), key=lambda event: f"reminder-{event.order_id}")
    @asynchronous("notifications")
    @event_handler(id="remind-customer")
    async def remind(event: OrderWasPlaced) -> None: ...

What waits under a key can be found, called off and put off: `ScheduledMessages`. A sender says the same of one message
by headers: `delay`, `time_to_live`, `priority` and `schedule_key`; what the sender says wins over the decorators.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.endpoint import Endpoint, Kind, mark, marks_of
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, HeaderError, UnsupportedCapabilityError
from ecotone_fastapi.core.message import LONGEST_TIME, HeaderName, Message, number_header, seconds_text
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly

F = TypeVar("F")

Time = float | timedelta | datetime
"""Seconds, a duration, or a moment that says how far it is from UTC."""

Rule = Callable[..., Any]
"""Computes something from a payload; with a second parameter, from the payload and the headers of its message."""


@dataclass(frozen=True)
class Delayed:
    """Mark: messages for this handler wait before they are handled.

    Args:
        delay: For how long, or until when; `None` is not at all.
        key: Under which they can be found, called off and put off; `None` is not at all.
    """

    delay: Time | Rule | None = None
    key: str | Rule | None = None


@dataclass(frozen=True)
class Expiring:
    """Mark: messages for this handler that have not been handled in time are dropped.

    Args:
        after: How long after they became due, or when; `None` is never.
    """

    after: Time | Rule | None


@dataclass(frozen=True)
class Prioritized:
    """Mark: messages for this handler overtake those with a lower priority, or are overtaken.

    Args:
        priority: 0 to 9; 9 is handled first, and 0 is what others have.
    """

    priority: int | Rule | None


def delayed(delay: Time | Rule | None = None, *, key: str | Rule | None = None) -> Callable[[F], F]:
    """Let messages for this asynchronous handler, or for those of this class, wait before they are handled.

    Other handlers of the same event are not delayed. The header `delay` at sending wins.

    Args:
        delay: Seconds, a `timedelta`, a `datetime` with its time zone, or a function that computes one of these, or
            `None`, from the payload; with a second parameter it is given the headers as well. What is past is due now.
        key: Under which a message that waits can be found, called off and put off by `ScheduledMessages`; text, or a
            function as above.

    Raises:
        ConfigurationError: It cannot be waited for so long, or nothing is said at all.

    Example:
        >>> @delayed(timedelta(days=3), key=lambda event: f"reminder-{event['order_id']}")
        ... async def remind(event: dict) -> None: ...
    """
    if delay is None and key is None:
        raise ConfigurationError("@delayed says nothing", hint="write @delayed(timedelta(minutes=5)) above the handler")
    _check_time("@delayed", HeaderName.delay, delay)
    return mark(Delayed(delay, key))


def expiring(after: Time | Rule) -> Callable[[F], F]:
    """Drop messages for this asynchronous handler, or for those of this class, that were not handled in time.

    A message that is dropped is logged. The header `time_to_live` at sending, which counts from then on, wins.

    Args:
        after: Seconds or a `timedelta` from when the message is due, which is at once unless it is delayed; or a
            `datetime` with its time zone; or a function that computes one of these, or `None`, from the payload; with
            a second parameter it is given the headers as well.

    Raises:
        ConfigurationError: No message can live for so long, or for no time at all.

    Example:
        >>> @expiring(timedelta(minutes=10))
        ... async def show_that_somebody_is_typing(event: dict) -> None: ...
    """
    _check_time("@expiring", HeaderName.time_to_live, after)
    if not callable(after) and not isinstance(after, datetime) and not float(_written("", after, _EPOCH)):
        raise ConfigurationError("@expiring lets messages live for no time at all", hint="say for how long")
    return mark(Expiring(after))


def prioritized(priority: int | Rule) -> Callable[[F], F]:
    """Let messages for this asynchronous handler, or for those of this class, overtake others on their channel.

    The header `priority` at sending wins.

    Args:
        priority: 0 to 9; 9 is handled first, and 0 is what others have. Or a function that computes it, or `None`, from
            the payload; with a second parameter it is given the headers as well.

    Raises:
        ConfigurationError: There is no such priority.

    Example:
        >>> @prioritized(lambda command: 9 if command["express"] else 0)
        ... async def ship(command: dict) -> None: ...
    """
    if not callable(priority) and priority not in range(10):
        raise ConfigurationError(f"@prioritized({priority!r}): there is no such priority", hint="0 to 9; 9 is first")
    return mark(Prioritized(priority))


@dataclass(frozen=True, kw_only=True)
class ScheduledMessage:
    """A message that waits under a key.

    Args:
        key: The key.
        channel: The channel that it waits on, or that it will be forwarded to from the outbox.
        endpoint: The id of the handler that it is meant for.
        due_at: When it will be handled, or has been due since.
        message: The message, in bytes.
    """

    key: str
    channel: str
    endpoint: str | None
    due_at: datetime
    message: Message[bytes]


class ScheduledMessages(Protocol):
    """Messages that wait under a key, on the channels in this process and in its databases; a service, by its type.

    A message waits until a consumer has borrowed it: one that is due and was not received yet can still be called off,
    and so can one that has failed and waits for another attempt; one that is being handled cannot. Several messages may
    have the same key.

    What is changed in a handler takes effect with its transaction. What the handler itself sends is not there before
    that: to cancel and to send anew, in whatever order, replaces what was there.
    """

    async def list(
        self,
        key: str | None = None,
        *,
        channel: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return what waits, the next one first.

        Args:
            key: Only under this key.
            channel: Only what will come to this channel.
            since: Only what is due at this moment or later.
            limit: How many.
            offset: How many to pass over.

        Raises:
            ChannelError: A database cannot be reached.
        """
        ...

    async def count(self, key: str | None = None, *, channel: str | None = None) -> int:
        """Return how many messages wait.

        Args:
            key: Only under this key.
            channel: Only those that will come to this channel.

        Raises:
            ChannelError: A database cannot be reached.
        """
        ...

    async def cancel(self, key: str) -> int:
        """Remove what waits under a key; return how many messages that were.

        Raises:
            ChannelError: A database cannot be reached.
        """
        ...

    async def reschedule(self, key: str, to: timedelta | datetime) -> int:
        """Let what waits under a key be due at another time; return how many messages that were.

        A message that expires has as much time after it is due as it had before.

        Args:
            key: The key.
            to: How long from now on, or a moment that says how far it is from UTC. What is past is due now.

        Raises:
            ConversionError: The moment does not say how far it is from UTC, or is too far away.
            ChannelError: A database cannot be reached.
        """
        ...


@runtime_checkable
class KeepsSchedules(Protocol):
    """A plugin whose channels hold messages that wait under a key."""

    @property
    def schedules(self) -> ScheduledMessages:
        """What waits on its channels."""
        ...


@runtime_checkable
class Crossing(Protocol):
    """A mark that sends messages for a handler through channels."""

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels, in this order."""
        ...

    def after(self, channel: str | None) -> str | None:
        """Return the channel that comes after this one."""
        ...


class Scheduling:
    """The plugin behind `@delayed`, `@expiring` and `@prioritized`, and `ScheduledMessages`; installed by default."""

    def install(self, assembly: Assembly) -> None:
        """Write the headers that channels go by, refuse what no channel would keep, and offer what waits.

        Raises:
            ConfigurationError: A marked handler is not asynchronous.
            UnsupportedCapabilityError: Its channel cannot do what the mark says.
        """
        clock = assembly.gateway.clock

        def schedule(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Write how long the message waits, how long it is worth handling, and what it overtakes."""
            if call.channel is not None or call.endpoint is None:  # it has crossed
                return proceed(call)
            headers = _headers_for(call.endpoint, call.message, clock.now())
            return proceed(call.saying(call.message.with_headers(headers)) if headers else call)

        def refuse(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Refuse a message that is to wait on a channel that would not let it wait."""
            if HeaderName.delay in call.message.headers:
                channel = assembly.channels.get(call.channel or "")
                if channel is not None and not channel.capabilities.delay:
                    raise HeaderError(
                        f"message {call.message.id} has the header {HeaderName.delay!r}, and the channel "
                        f"{channel.name!r} has no delay",
                        hint=_remedy(channel.name),
                    )
            return proceed(call)

        assembly.add_interceptor(schedule, stage=Stage.HANDLE, order=Order.ASYNCHRONOUS, when=_is_scheduled)
        assembly.add_interceptor(refuse, stage=Stage.SEND, order=Order.USER)
        keepers = [part for part in assembly.plugins if isinstance(part, KeepsSchedules)]
        stores = list({id(keeper.schedules): keeper.schedules for keeper in keepers}.values())
        assembly.add_service(ScheduledMessages, stores[0] if len(stores) == 1 else _Together(stores))
        problems: list[ConfigurationError] = []
        for endpoint in assembly.endpoints:
            for type_ in _MARKS:
                problems += _problems(endpoint, type_, assembly.channels)
        ConfigurationError.raise_all(problems)


_MARKS = (Delayed, Expiring, Prioritized)
_Mark = type[Delayed] | type[Expiring] | type[Prioritized]
_NEEDS: Mapping[object, str] = {Delayed: "delay", Expiring: "time_to_live", Prioritized: "priority"}
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def is_scheduling(value: object) -> bool:
    """Whether a mark of a handler says when its messages are handled."""
    return isinstance(value, _MARKS)


def _is_scheduled(endpoint: Endpoint) -> bool:
    return endpoint.kind is not Kind.QUERY and any(is_scheduling(value) for value in endpoint.marks)


def _problems(endpoint: Endpoint, type_: _Mark, channels: Mapping[str, Channel]) -> Iterable[ConfigurationError]:
    """Find out what keeps a mark from meaning anything."""
    found = endpoint.find(type_)
    decorator = f"@{type_.__name__.lower()}"
    way = next((value for value in endpoint.marks if isinstance(value, Crossing)), None)
    if found is None:
        return
    if endpoint.kind is Kind.QUERY:
        if found in marks_of(endpoint.function):
            yield ConfigurationError(
                f"{endpoint.label} answers a query and is marked {decorator}",
                hint="an answer cannot wait: take it away",
            )
    elif way is None:
        ordered = type_ is Prioritized and endpoint.kind is Kind.EVENT
        yield ConfigurationError(
            f"{endpoint.label} is marked {decorator}, and is not asynchronous",
            hint="synchronous handlers are put in order by @event_handler(priority=...)"
            if ordered
            else 'write @asynchronous("notifications") above it, so that its messages have a channel to wait on',
        )
    else:
        # A delay is over when the first channel is left; the other headers go all the way.
        for name in way.channels[:1] if type_ is Delayed else way.channels:
            channel = channels.get(name)
            if channel is not None and not getattr(channel.capabilities, _NEEDS[type_]):
                yield UnsupportedCapabilityError(
                    f"{endpoint.label} is marked {decorator}, and the channel {name!r} has no {_NEEDS[type_]}",
                    tried=f"{type(channel).__name__}, on the way {' → '.join(way.channels)}",
                    hint=_remedy(name),
                )


def _remedy(channel: str) -> str:
    return (
        "use a channel that has, such as that of a database, SqlAlchemy(...).channel(...); in front of a broker a "
        "delay is kept by the outbox of a database, or by a channel of it that is named first: "
        f'@asynchronous("waiting", {channel!r})'
    )


def _headers_for(endpoint: Endpoint, message: Message[Any], now: datetime) -> Mapping[str, str]:
    """Return the headers that the marks of a handler give to a message, but for those that its sender has given."""
    given, headers = message.headers, dict[str, str]()

    def say(name: str, value: Any) -> None:
        if value is not None and name not in given:
            headers[name] = str(value)

    delay = endpoint.find(Delayed)
    if delay is not None:
        say(HeaderName.delay, _in_seconds(HeaderName.delay, delay.delay, message, now))
        say(HeaderName.schedule_key, _computed(delay.key, message))
    expiry = endpoint.find(Expiring)
    if expiry is not None and HeaderName.time_to_live not in given:
        after = _computed(expiry.after, message)
        lives = _in_seconds(HeaderName.time_to_live, after, message, now)
        if lives is not None and not isinstance(after, datetime):
            lives += number_header({**given, **headers}, HeaderName.delay, float, LONGEST_TIME) or 0.0
        say(HeaderName.time_to_live, lives)
    priority = endpoint.find(Prioritized)
    if priority is not None:
        say(HeaderName.priority, _computed(priority.priority, message))
    # What a rule has computed is refused here, in front of its sender, and not by the channel in the end.
    number_header(headers, HeaderName.priority, int, 9)
    return headers


def _in_seconds(name: str, value: Any, message: Message[Any], now: datetime) -> float | None:
    time = _computed(value, message)
    if time is None:
        return None
    return number_header({HeaderName.id: message.id, name: _written(name, time, now)}, name, float, LONGEST_TIME)


def _written(name: str, time: Any, now: datetime) -> str:
    return seconds_text(name, time, now) if isinstance(time, timedelta | datetime) else str(time)


def _computed(value: Any, message: Message[Any]) -> Any:
    if not callable(value):
        return value
    return value(message.payload, message.headers) if _takes_headers(value) else value(message.payload)


@lru_cache(maxsize=1024)
def _takes_headers(rule: Rule) -> bool:
    """Whether a function has a second parameter that has to be given."""
    try:
        parameters = inspect.signature(rule).parameters.values()
    except ValueError:  # some that are written in C do not tell
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is inspect.Parameter.empty for one in parameters) > 1


def _check_time(decorator: str, name: str, time: Any) -> None:
    if time is None or callable(time):
        return
    try:
        number_header({name: _written(name, time, _EPOCH)}, name, float, LONGEST_TIME)
    except ConversionError as error:
        raise ConfigurationError(
            f"{decorator}({time!r}) cannot be waited for",
            hint="write seconds, a timedelta, or a datetime with its time zone, from now on and not for ever",
        ) from error


class _Together:
    """What waits in several places."""

    def __init__(self, stores: Sequence[ScheduledMessages]) -> None:
        self._stores = stores

    async def list(
        self,
        key: str | None = None,
        *,
        channel: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Sequence[ScheduledMessage]:
        """Return what waits, the next one first."""
        found: Sequence[ScheduledMessage] = ()
        for store in self._stores:
            found = [*found, *await store.list(key, channel=channel, since=since, limit=limit + offset)]
        return sorted(found, key=lambda one: one.due_at)[offset : offset + limit]

    async def count(self, key: str | None = None, *, channel: str | None = None) -> int:
        """Return how many messages wait."""
        return sum([await store.count(key, channel=channel) for store in self._stores])

    async def cancel(self, key: str) -> int:
        """Remove what waits under a key; return how many messages that were."""
        return sum([await store.cancel(key) for store in self._stores])

    async def reschedule(self, key: str, to: timedelta | datetime) -> int:
        """Let what waits under a key be due at another time; return how many messages that were."""
        return sum([await store.reschedule(key, to) for store in self._stores])


def seconds_from_now(to: timedelta | datetime, now: datetime) -> float:
    """Return the seconds until something that is put off is due; at least none.

    Raises:
        ConversionError: It is a moment that does not say how far it is from UTC, or too far away.
    """
    seconds = max(float(seconds_text("due", to, now)), 0.0)
    if seconds > LONGEST_TIME:
        raise ConversionError(f"nothing can be put off to {to}", hint="choose a time within the next 300 years")
    return seconds
