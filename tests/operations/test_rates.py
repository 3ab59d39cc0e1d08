"""How fast something goes, as far as somebody has looked."""

from datetime import UTC, datetime, timedelta

from ecotone_fastapi.operations.rates import Rate, Rates

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_the_first_look_tells_the_average_since_the_beginning() -> None:
    assert Rates(START).measured("orders", 100, at(50)) == Rate(2.0, 50.0)


def test_without_any_time_there_is_no_rate() -> None:
    assert Rates(START).measured("orders", 100, at(0)) is None


def test_within_the_window_all_looks_count() -> None:
    rates = Rates(START, window=timedelta(seconds=60))
    for second in range(1, 60):
        rates.measured("orders", second, at(second))

    assert rates.measured("orders", 120, at(60)) == Rate(2.0, 60.0)


def test_what_was_before_the_window_is_forgotten() -> None:
    rates = Rates(START, window=timedelta(seconds=60))
    rates.measured("orders", 1_000, at(30))
    rates.measured("orders", 1_000, at(60))

    assert rates.measured("orders", 1_060, at(120)) == Rate(1.0, 60.0)


def test_after_a_long_time_in_which_nobody_looked_the_rate_is_the_one_since_the_last_look() -> None:
    rates = Rates(START, window=timedelta(seconds=60))
    rates.measured("orders", 10, at(10))

    assert rates.measured("orders", 3_610, at(3_610)) == Rate(1.0, 3_600.0)
    assert rates.measured("orders", 3_610, at(3_620)) == Rate(0.0, 10.0)


def test_looks_that_come_fast_make_no_rate_of_a_moment() -> None:
    rates = Rates(START)
    for tenth in range(1, 100):
        rates.measured("orders", tenth, at(tenth / 10))

    assert rates.measured("orders", 100, at(10)) == Rate(10.0, 10.0)


def test_looks_that_come_fast_are_not_all_kept() -> None:
    rates = Rates(START, window=timedelta(seconds=60))
    for tenth in range(1, 5_000):
        rates.measured("orders", tenth, at(tenth / 10))

    assert len(rates._looks["orders"]) <= 62


def test_each_counter_has_its_own_rate() -> None:
    rates = Rates(START)

    assert rates.measured("orders", 10, at(10)) == Rate(1.0, 10.0)
    assert rates.measured("mails", 30, at(10)) == Rate(3.0, 10.0)
    assert rates.measured("orders", 20, at(20)) == Rate(1.0, 20.0)


def test_a_counter_that_begins_anew_has_no_negative_rate() -> None:
    rates = Rates(START)
    rates.measured("orders", 100, at(100))

    assert rates.measured("orders", 5, at(110)) == Rate(0.0, 10.0)
