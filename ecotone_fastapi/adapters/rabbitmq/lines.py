"""Who waits behind whom: of each partition key only the first message that is here may be lent.

A message that failed keeps its place. Those behind it wait until it is settled; messages of other keys, and messages
without a key, do not.
"""

from collections import deque
from heapq import heappop, heappush

from ecotone_fastapi.adapters.rabbitmq.subscription import Arrival


class Lines:
    """The messages of one subscription that are not settled, each key in a line of its own.

    Attributes:
        lent: The numbers of those that are lent.
    """

    def __init__(self) -> None:
        self.lent: set[int] = set()
        self._lines: dict[str, deque[Arrival]] = {}
        # Numbers are given by the server in the order of the queue, so that no two of them are the same.
        self._ready: list[tuple[int, Arrival]] = []
        self._later: list[tuple[float, int, Arrival]] = []

    def add(self, arrival: Arrival) -> None:
        """Let a message wait behind all of its key."""
        if arrival.line is not None:
            line = self._lines.setdefault(arrival.line, deque())
            line.append(arrival)
            if line[0] is not arrival:
                return
        self._place(arrival)

    def lend(self, now: float) -> Arrival | None:
        """Lend the next message that is due and the first of its key, if there is one.

        Args:
            now: In seconds since 1970.
        """
        while self._later and self._later[0][0] <= now:
            _, tag, arrival = heappop(self._later)
            heappush(self._ready, (tag, arrival))
        if not self._ready:
            return None
        tag, arrival = heappop(self._ready)
        self.lent.add(tag)
        return arrival

    def give_back(self, arrival: Arrival) -> None:
        """Let a message that was lent wait again, where it has waited before."""
        self.lent.discard(arrival.tag)
        self._place(arrival)

    def remove(self, arrival: Arrival) -> None:
        """Let the next one of its key be the first, in the place of one that was lent."""
        self.lent.discard(arrival.tag)
        if arrival.line is None:
            return
        line = self._lines[arrival.line]
        line.popleft()
        if line:
            self._place(line[0])
        else:
            del self._lines[arrival.line]

    @property
    def due(self) -> float | None:
        """When the next message is due that may be lent then, in seconds since 1970; `None` if none waits for that."""
        return self._later[0][0] if self._later else None

    def _place(self, arrival: Arrival) -> None:
        if arrival.due > 0:
            heappush(self._later, (arrival.due, arrival.tag, arrival))
        else:
            heappush(self._ready, (arrival.tag, arrival))
