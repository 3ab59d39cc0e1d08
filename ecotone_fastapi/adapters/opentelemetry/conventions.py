"""Names of OpenTelemetry's semantic conventions, version 1.44.0, and of ours: the one place where they are written.

The messaging conventions are still in development. When they change, the changes are made here.
"""

from typing import Final, Protocol, runtime_checkable

from ecotone_fastapi.core.channel import Channel

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_CONSUMER_GROUP_NAME: Final = "messaging.consumer.group.name"
ERROR_TYPE: Final = "error.type"

CLIENT_OPERATION_DURATION: Final = "messaging.client.operation.duration"
PROCESS_DURATION: Final = "messaging.process.duration"
CLIENT_SENT_MESSAGES: Final = "messaging.client.sent.messages"
CLIENT_CONSUMED_MESSAGES: Final = "messaging.client.consumed.messages"
DURATION_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds in seconds, for both durations."""

PROJECTIONS_SYSTEM: Final = "ecotone_projections"
"""The system of what a projection handles: stored events, which come through no channel."""


@runtime_checkable
class NamesSystem(Protocol):
    """A channel that tells what `messaging.system` its messages go through."""

    @property
    def system(self) -> str:
        """The name, as the conventions have it: `rabbitmq`, `kafka`; or one of its own."""
        ...


def system_of(channel: Channel | None) -> str:
    """Return the `messaging.system` of a channel; the name of its class when it does not tell."""
    if isinstance(channel, NamesSystem):
        return channel.system
    return "ecotone" if channel is None else type(channel).__name__


def error_type_of(error: BaseException) -> str:
    """Return the `error.type` of an error: its class with its module, and without for those of Python itself.

    Example:
        >>> error_type_of(TimeoutError())
        'TimeoutError'
    """
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
