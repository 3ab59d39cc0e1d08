"""Asynchronous handlers: the handler stays as it is, its messages take the way through a channel.

    class NotificationService:
        @asynchronous("notifications")
        @event_handler(id="notify-customer")
        async def when_order_placed(self, event: OrderWasPlaced) -> None: ...

Each asynchronous handler of an event gets a message of its own, so it fails, is retried and is parked alone.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.endpoint import Endpoint, Kind, mark, marks_of
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.sending import unknown_channel

F = TypeVar("F")

logger: logging.Logger = logging.getLogger("ecotone_fastapi.asynchronous")


@dataclass(frozen=True)
class Asynchronous:
    """Mark: messages for this handler go through these channels, one after the other.

    Args:
        channels: Names of channels; the handler runs behind the last one.
        partition_by: Computes the key of a payload; messages with the same key are handled in order.
    """

    channels: tuple[str, ...]
    partition_by: Callable[[Any], object] | None = None

    def after(self, channel: str | None) -> str | None:
        """Return the channel that comes after this one; `None` behind the last."""
        if channel is None:
            return self.channels[0]
        following = self.channels.index(channel) + 1 if channel in self.channels else len(self.channels)
        return self.channels[following] if following < len(self.channels) else None


def asynchronous(*channels: str, partition_by: Callable[[Any], object] | None = None) -> Callable[[F], F]:
    """Handle messages later, taken from a channel; on a class, for all its command and event handlers.

    The bus returns as soon as the message is on its way, and then returns `None`. Query handlers stay synchronous.

    Args:
        channels: The name of the channel. With several, the message is passed on from one to the next before it is
            handled: `("outbox", "rabbit")`.
        partition_by: Computes a key from the payload: messages with the same key are handled one after the other, in
            the order of sending, by each consumer. Keys are compared by their texts; `None` is a key like any other.

    Raises:
        ConfigurationError: No channel is named.

    Example:
        >>> @asynchronous("orders", partition_by=lambda command: command["customer"])
        ... async def handler(command: dict) -> None: ...
    """
    if not channels or not all(isinstance(name, str) for name in channels):
        raise ConfigurationError(
            "@asynchronous names no channel", hint='write @asynchronous("notifications") above the handler'
        )
    if len(set(channels)) < len(channels):
        raise ConfigurationError(
            f"@asynchronous names a channel twice: {', '.join(channels)}",
            hint="a message goes through each channel once, in the order in which they are named",
        )
    return mark(Asynchronous(channels, partition_by))


def _text_of(key: object, endpoint: Endpoint) -> str:
    """Return the text of a partition key that is none itself."""
    told: Any = type(key)
    if told.__str__ is object.__str__ and told.__repr__ is object.__repr__:
        raise ConversionError(
            f"{endpoint.label}: partition_by returns a {told.__qualname__}, whose text is its place in memory: no two "
            "messages would have the same key",
            hint="return what tells them apart, such as an id: a text, a number or a UUID",
        )
    return str(key)


_OF_ONE_CHANNEL = (HeaderName.attempt, HeaderName.delay, HeaderName.first_failed_at)


def runs_in_consumer(endpoint: Endpoint) -> bool:
    """Whether an endpoint is asynchronous."""
    return endpoint.kind is not Kind.QUERY and endpoint.find(Asynchronous) is not None


@dataclass(frozen=True, kw_only=True)
class ConsumerSettings:
    """How the consumer of one channel works.

    Args:
        concurrency: How many messages it handles at the same time. One keeps the order of the channel.
        batch: How many messages it borrows at a time. Fewer share work better among several processes, more cost less.
    """

    concurrency: int = 1
    batch: int = 10

    def __post_init__(self) -> None:
        """Refuse numbers that would never handle anything."""
        if self.concurrency < 1 or self.batch < 1:
            raise ConfigurationError(
                f"a consumer with concurrency={self.concurrency} and batch={self.batch} handles nothing",
                hint="both are at least 1",
            )


class AsynchronousHandlers:
    """The plugin behind `@asynchronous`; installed by default.

    Args:
        consumers: Settings by the name of the channel; `"*"` for all that are not named.

    Example:
        >>> plugin = AsynchronousHandlers(consumers={"notifications": ConsumerSettings(concurrency=20)})
    """

    def __init__(self, consumers: "dict[str, ConsumerSettings] | None" = None) -> None:
        self._settings = consumers or {}

    def install(self, assembly: Assembly) -> None:
        """Send messages of marked handlers to their channels, and empty these channels.

        Raises:
            UnknownChannelError: A handler or a setting names a channel that nobody gave.
        """
        gateway = assembly.gateway

        def cross(call: Call, proceed: Proceed) -> Awaitable[Any]:
            """Send the message to the handler's next channel; behind the last one, let it pass."""
            assert call.endpoint is not None
            way = call.endpoint.find(Asynchronous)
            following = way.after(call.channel) if way is not None else None
            if way is None or following is None:
                return proceed(call)
            headers = {HeaderName.endpoint: call.endpoint.id}
            if way.partition_by is not None and call.channel is None:
                key = way.partition_by(call.message.payload)
                headers[HeaderName.partition_key] = key if type(key) is str else _text_of(key, call.endpoint)
            # What failed or waited on the channel before does not count on the next one.
            message = call.message if call.channel is None else call.message.without_headers(_OF_ONE_CHANNEL)
            return gateway.send(following, message, headers)

        assembly.add_interceptor(cross, stage=Stage.HANDLE, order=Order.ASYNCHRONOUS, when=runs_in_consumer)
        for endpoint in assembly.endpoints:
            if runs_in_consumer(endpoint) and endpoint.id.startswith("__main__."):
                logger.warning(
                    "%s has the id %s, because its module is run as a program: another process that imports the module "
                    "knows it by another name; give it an id=",
                    endpoint.label,
                    endpoint.id,
                )
        problems: list[ConfigurationError] = [
            ConfigurationError(
                f"{endpoint.label} answers a query and is marked @asynchronous",
                hint="an answer cannot wait: take one away",
            )
            for endpoint in assembly.endpoints
            if endpoint.kind is Kind.QUERY
            and any(isinstance(value, Asynchronous) for value in marks_of(endpoint.function))
        ]
        for name, users in self._channels(assembly.endpoints).items():
            if name not in assembly.channels:
                problem = unknown_channel(name, assembly.channels)
                problem.what = f"{', '.join(users)}: {problem.what}"
                problems.append(problem)
                continue
            settings = self._settings.get(name) or self._settings.get("*") or ConsumerSettings()
            assembly.add_runnable(
                Consumer(assembly.channels[name], gateway, concurrency=settings.concurrency, batch=settings.batch)
            )
        problems += [
            unknown_channel(name, assembly.channels)
            for name in self._settings
            if name != "*" and name not in assembly.channels
        ]
        ConfigurationError.raise_all(problems)
        self._warn_of_no_order(assembly)

    @staticmethod
    def _warn_of_no_order(assembly: Assembly) -> None:
        for endpoint in filter(runs_in_consumer, assembly.endpoints):
            way = endpoint.find(Asynchronous)
            if way is None or way.partition_by is not None:
                continue
            in_order = [name for name in way.channels if assembly.channels[name].capabilities.keeps_order]
            if in_order:
                logger.warning(
                    "%s has no partition_by, and channel %s keeps the order of partition keys: its messages overtake "
                    "each other there, unless who sends them gives a %s header; write @asynchronous(%s, "
                    "partition_by=...)",
                    endpoint.label,
                    ", ".join(in_order),
                    HeaderName.partition_key,
                    ", ".join(f'"{name}"' for name in way.channels),
                )

    @staticmethod
    def _channels(endpoints: Iterable[Endpoint]) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for endpoint in endpoints:
            way = endpoint.find(Asynchronous)
            if way is not None and runs_in_consumer(endpoint):
                for name in way.channels:
                    users.setdefault(name, []).append(endpoint.label)
        return users
