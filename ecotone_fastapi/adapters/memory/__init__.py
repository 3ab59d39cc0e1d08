"""Everything in this process: the default, and the test double of every other adapter."""

from ecotone_fastapi.adapters.memory.aggregates import MemoryAggregates
from ecotone_fastapi.adapters.memory.channel import MemoryChannel, MemoryDelivery, MemoryEntry, MemoryQueue
from ecotone_fastapi.adapters.memory.dead_letters import MemoryDeadLetters
from ecotone_fastapi.adapters.memory.documents import MemoryDocuments
from ecotone_fastapi.adapters.memory.events import MemoryEvents
from ecotone_fastapi.adapters.memory.inbox import MemoryInbox
from ecotone_fastapi.adapters.memory.projections import MemoryProjections
from ecotone_fastapi.adapters.memory.schedules import MemorySchedules
from ecotone_fastapi.adapters.memory.snapshots import MemorySnapshots

__all__ = [
    "MemoryAggregates",
    "MemoryChannel",
    "MemoryDeadLetters",
    "MemoryDelivery",
    "MemoryDocuments",
    "MemoryEntry",
    "MemoryEvents",
    "MemoryInbox",
    "MemoryProjections",
    "MemoryQueue",
    "MemorySchedules",
    "MemorySnapshots",
]
