"""Texts of others are cut where they are too long, and it is said how long they were."""

import pytest

from ecotone_fastapi.operations.cutting import HEADERS, VALUE, cut, cut_headers, cut_or_none, cut_within


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("short", "short"),
        ("exactly 10", "exactly 10"),
        ("eleven char", "eleven cha… (cut, 11 characters in all)"),
        ("\ud83d", "\\ud83d"),
        ("<b>\0\n", "<b>\0\n"),
    ],
)
def test_the_beginning_of_a_text_is_shown(text: str, shown: str) -> None:
    assert cut(text, 10) == shown


def test_no_text_stays_none() -> None:
    assert cut_or_none(None, 10) is None
    assert cut_or_none("eleven char", 10) == "eleven cha… (cut, 11 characters in all)"


def test_of_a_traceback_both_ends_are_shown() -> None:
    text = "begin" + "." * 1_000 + "end"

    assert cut_within(text, 10) == "begin… (cut, 1008 characters in all) …..end"
    assert cut_within("short", 10) == "short"


def test_what_is_written_in_another_way_is_not_cut_a_second_time() -> None:
    assert cut_within("\ud83d" * 100, 10) == "\\ud83d" * 5 + "… (cut, 100 characters in all) …" + "\\ud83d" * 5


def test_headers_are_cut_one_by_one_and_counted_when_they_are_too_many() -> None:
    headers = {f"name-{number:04}": "x" for number in range(1_000)} | {"a": "y" * (VALUE + 1)}

    shown = cut_headers(headers)

    assert shown["a"] == "y" * VALUE + f"… (cut, {VALUE + 1} characters in all)"
    assert len(shown) == HEADERS + 1
    assert shown["…"] == "(cut, 1001 headers in all)"
    assert "…" not in cut_headers({"a": "b"})
