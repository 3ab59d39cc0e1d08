from datetime import UTC, datetime, timedelta

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.clock import Clock, SystemClock, TellsTime


def test_the_clock_of_the_machine_tells_the_present_time_in_utc() -> None:
    clock: Clock = SystemClock()

    before, now, after = datetime.now(UTC), clock.now(), datetime.now(UTC)

    assert before <= now <= after
    assert now.tzinfo is UTC
    assert clock.offset == timedelta(0)


def test_a_part_whose_clock_can_be_set_is_told_by_its_shape() -> None:
    assert isinstance(MemoryChannel("orders"), TellsTime)
    assert not isinstance(SystemClock(), TellsTime)
