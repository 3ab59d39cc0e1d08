"""How many messages a second: measured between looks, because nobody counts while nobody looks.

>>> from datetime import UTC, datetime, timedelta
>>> start = datetime(2026, 1, 1, tzinfo=UTC)
>>> rates = Rates(start)
>>> rates.measured("orders", 50, start + timedelta(seconds=10))
Rate(per_second=5.0, seconds=10.0)
"""

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

_STEP = timedelta(seconds=1)  # looks that come faster are not all remembered


@dataclass(frozen=True)
class Rate:
    """How fast something went.

    Args:
        per_second: How many, on the average.
        seconds: Over how many seconds that was measured.
    """

    per_second: float
    seconds: float


@dataclass(frozen=True)
class _Look:
    at: datetime
    count: int


class Rates:
    """Computes rates of counters that only grow.

    A rate is the average since the oldest look within the window, or since the last one when that is longer ago; before
    there was any, since the beginning, when all counters were zero.

    Args:
        since: The beginning.
        window: How far back looks are remembered.
    """

    def __init__(self, since: datetime, *, window: timedelta = timedelta(minutes=1)) -> None:
        self._since = since
        self._window = window
        self._looks: dict[str, deque[_Look]] = {}

    def measured(self, name: str, count: int, now: datetime) -> Rate | None:
        """Note how far a counter is; return its rate, or `None` when no time has passed in which it could grow.

        Args:
            name: The counter.
            count: How far it is.
            now: The present time.
        """
        looks = self._looks.setdefault(name, deque([_Look(self._since, 0)]))
        while len(looks) > 1 and looks[0].at < now - self._window:
            looks.popleft()
        first = looks[0]
        if now - looks[-1].at >= _STEP:
            looks.append(_Look(now, count))
        seconds = (now - first.at).total_seconds()
        return Rate(max(0, count - first.count) / seconds, seconds) if seconds > 0 else None
