"""The suite for event stores: streams and versions, and readers that miss nothing and get nothing twice.

The numbers in the names of the cases, E1 to E21, are those under which they can be compared with other stores:

| | what it shows |
| --- | --- |
| E1 | what is appended after a commit comes behind it, whichever transaction began first |
| E2 | readers wait for a transaction that has appended and is open |
| E3, E4 | a slow transaction is not skipped when a fast one commits before it, with one event or several |
| E5 | nor are several slow ones that end in any order |
| E6 | nor one that stays open while thousands of events come behind it |
| E7 | what was rolled back is in nobody's way |
| E8 | the events of one transaction are seen once |
| E9 | a transaction that only reads is in nobody's way |
| E10 | expected versions: exact, any, none, some; one of several writers wins |
| E11 | no, one and a thousand events are appended at once, all or none |
| E12 | two processes see the same |
| E13 to E15 | *not here: they are about projections* |
| E16 | a database that was restored on another server is noticed |
| E17 | conditions: overlapping decisions exclude each other, disjoint ones do not |
| E18, E19 | *not here: they are about event sourcing* |
| E20 | any interleaving of writers and readers agrees with a model |
| E21 | events are read again in the order in which they were read live |
"""

import pytest

from ecotone_fastapi.testing.conformance.event_conditions import Conditions
from ecotone_fastapi.testing.conformance.event_order import Filters, Interleavings, Visibility, Waiting
from ecotone_fastapi.testing.conformance.event_streams import Lives, Streams, StreamsInTransactions, Versions


@pytest.mark.anyio
class EventStoreConformance(
    Streams, Versions, StreamsInTransactions, Lives, Visibility, Filters, Waiting, Interleavings, Conditions
):
    """What every store of events must do. Subclass it and implement `events` and `transaction`.

    A hook that is not implemented skips the cases that need it, and the reason says so. Within a case, all calls of a
    hook open the same store, as several processes would; each case begins with an empty one. Transactions are opened in
    several tasks at once.

    Attributes:
        moment: Seconds after which something that waits is taken to wait.
        patience: Seconds after which nothing is expected any more.
        volume: Events in the largest case.
        crowd: Writers at one time in the cases that need many of them.
        one_writer: Whether a transaction that wants to write waits until the one before has ended.
        hides: Whether what was appended behind an open transaction is hidden until that has ended. Where transactions
            are ordered by their ends, it need not be.
        decides_together: Whether transactions with conditions that have nothing to do with each other are open at one
            time.

    Example:
        ```python
        class TestMemoryEvents(EventStoreConformance):
            @pytest.fixture(autouse=True)
            def memory(self) -> None:
                self.store = MemoryEvents()

            @asynccontextmanager
            async def events(self) -> AsyncIterator[EventStorage]:
                yield self.store

            @asynccontextmanager
            async def transaction(self) -> AsyncIterator[None]:
                async with gateway.unit_of_work(Message(b"", {"id": "cause"})):
                    yield
        ```
    """
