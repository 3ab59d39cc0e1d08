"""Events in memory: the shipped suite, and what is particular about them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ecotone_fastapi.adapters.memory import MemoryEvents
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.event_store import EventStorage
from ecotone_fastapi.testing import EventStoreConformance


class TestMemoryEvents(EventStoreConformance):
    @pytest.fixture(autouse=True)
    def memory(self) -> None:
        self.store = MemoryEvents()

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStorage]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})):
            yield
