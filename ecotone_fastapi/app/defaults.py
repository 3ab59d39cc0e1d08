"""The plugins that an application has unless others were given, and what is kept in memory then."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ecotone_fastapi.adapters.memory import (
    MemoryAggregates,
    MemoryChannel,
    MemoryDeadLetters,
    MemoryDocuments,
    MemoryEvents,
    MemoryInbox,
    MemoryProjections,
    MemorySchedules,
    MemorySnapshots,
)
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.plugin import Assembly, Plugin
from ecotone_fastapi.messaging.asynchronous import Asynchronous, AsynchronousHandlers
from ecotone_fastapi.messaging.dead_letter import DeadLetterOffice
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.deduplication import Deduplication, DeduplicationStore
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.outbox import Outbox
from ecotone_fastapi.messaging.protection import Consumers
from ecotone_fastapi.messaging.retries import InstantRetries
from ecotone_fastapi.messaging.scheduling import Scheduling
from ecotone_fastapi.messaging.transactions import Transactions
from ecotone_fastapi.modelling.aggregates import Aggregates
from ecotone_fastapi.modelling.documents import DocumentStore
from ecotone_fastapi.modelling.event_sourcing import EventSourcing
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.projection_plugin import Projecting
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.modelling.repository import AggregateStore
from ecotone_fastapi.modelling.snapshots import Background, SnapshotStore


class InBackground:
    """The plugin that lets models work behind channels: what they mark for one is an asynchronous handler.

    Args:
        in_line: Whether it runs in the caller instead, for tests.
    """

    def __init__(self, *, in_line: bool = False) -> None:
        self._in_line = in_line

    def install(self, assembly: Assembly) -> None:
        """Mark what is to be behind a channel."""
        if not self._in_line:
            assembly.endpoints = [
                replace(one, marks=(Asynchronous((background.channel,)), *one.marks))
                if (background := one.find(Background)) is not None
                else one
                for one in assembly.endpoints
            ]


_DEFAULTS: tuple[
    type[
        Outbox
        | EventSourcing
        | InBackground
        | Aggregates
        | Projecting
        | Transactions
        | Scheduling
        | AsynchronousHandlers
        | InstantRetries
        | Failures
        | DeadLetterOffice
        | Deduplication
        | Consumers
    ],
    ...,
] = (
    Outbox,  # the others are to see what stands in front of a broker's channel
    EventSourcing,  # what it takes out of the handlers is for nobody else
    InBackground,
    Aggregates,  # and which of two handlers of one message stays on the bus
    Projecting,  # and which handlers are reached by stored events alone
    Transactions,
    Scheduling,
    AsynchronousHandlers,
    InstantRetries,
    Failures,
    DeadLetterOffice,
    Deduplication,
    Consumers,
)


def with_defaults(plugins: Sequence[Plugin], channels: Iterable[Channel]) -> Iterator[Plugin]:
    """Yield all plugins of an application in the order in which they are installed.

    Args:
        plugins: Those that were given. One of a default's kind replaces that default.
        channels: Its channels.
    """
    # The defaults look at the services and channels that all others have brought: they come last, given or not.
    yield from (plugin for plugin in plugins if not isinstance(plugin, _DEFAULTS))
    yield _InMemory(channels)
    for default in _DEFAULTS:
        yield from [plugin for plugin in plugins if isinstance(plugin, default)] or [default()]


class _InMemory:
    """What is kept in memory when nothing better was given, and nothing that must last longer exists."""

    def __init__(self, channels: Iterable[Channel]) -> None:
        # What stands in front of a channel by now would hide it.
        self.schedules: MemorySchedules = MemorySchedules(one for one in channels if isinstance(one, MemoryChannel))
        self.aggregate_stores: Sequence[AggregateStore] = (MemoryAggregates(),)

    def install(self, assembly: Assembly) -> None:
        if not any(channel.capabilities.durable for channel in assembly.channels.values()):
            assembly.add_service(DeadLetterStore, MemoryDeadLetters())
        assembly.add_service(DeduplicationStore, MemoryInbox(assembly.gateway.clock))
        assembly.add_service(EventStorage, MemoryEvents(assembly.gateway.clock))
        assembly.add_service(ProjectionStore, MemoryProjections(assembly.gateway.clock))
        assembly.add_service(SnapshotStore, MemorySnapshots())
        documents = DocumentStore(MemoryDocuments(assembly.gateway.clock), assembly.gateway.conversion)
        assembly.add_service(DocumentStore, documents)
        self.schedules.watch(one for one in assembly.channels.values() if isinstance(one, MemoryChannel))
