"""Everything in this process: the default, and the test double of every other adapter."""

from ecotone_fastapi.adapters.memory.channel import MemoryChannel, MemoryDelivery, MemoryQueue
from ecotone_fastapi.adapters.memory.dead_letters import MemoryDeadLetters

__all__ = ["MemoryChannel", "MemoryDeadLetters", "MemoryDelivery", "MemoryQueue"]
