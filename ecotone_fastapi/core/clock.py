"""Time as a service, so that a test can travel and production cannot."""

from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable


class Clock(Protocol):
    """Tells the time. Never reads backwards."""

    @property
    def offset(self) -> timedelta:
        """How far this clock is ahead of the machine's: zero in production, more after a test has travelled.

        A store that goes by its server's clock adds this to it, so that time travel reaches the store as well.
        """
        ...

    def now(self) -> datetime:
        """Return the present time, aware and in UTC."""
        ...


@runtime_checkable
class TellsTime(Protocol):
    """A channel or plugin whose clock is set at start."""

    def use_clock(self, clock: Clock) -> None:
        """Go by this clock from now on."""
        ...


class SystemClock:
    """The machine's clock."""

    offset: timedelta = timedelta(0)

    def now(self) -> datetime:
        """Return the present time, aware and in UTC."""
        return datetime.now(UTC)
