"""Texts of others are cut where they are too long, it is said how long they were, and nothing in them does harm."""

import pytest

from ecotone_fastapi.core.texts import cut, cut_or_none, cut_within, first_line, in_one_line, named, printable


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order-1", "order-1"),
        ("a\nERROR forged", r"a\nERROR forged"),
        ("\x1b[31mé\ud800", r"\x1b[31mé\ud800"),
        ("x" * 301, "x" * 300 + "… (cut, 301 characters in all)"),
        (None, "None"),
    ],
)
def test_a_name_is_of_one_line_and_short(text: object, shown: str) -> None:
    assert named(text) == shown


def test_some_characters_may_stay_where_they_do_no_harm() -> None:
    assert printable("a\tb\nc\r", kept="\n\t") == "a\tb\nc\\r"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("one\ntwo", "one"),
        ("échec\u00a0: « x\u202f»", "échec\u00a0: « x\u202f»"),
        ("half a \ud83d", r"half a \ud83d"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
    ],
)
def test_the_first_line_is_what_any_log_can_take(text: str, line: str) -> None:
    assert first_line(text) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (ValueError(), "ValueError"),
        (ExceptionGroup("tasks", [ExceptionGroup("tasks", [ValueError("inside")])]), "ValueError: inside"),
        (OSError("x" * 2_000), "OSError: " + "x" * 991 + "… (cut, 2009 characters in all)"),
        (ExceptionGroup("tasks", [ValueError("1"), ValueError("2")]), "ExceptionGroup: tasks (2 sub-exceptions)"),
    ],
)
def test_an_error_is_told_in_one_line(error: BaseException, line: str) -> None:
    assert in_one_line(error) == line


def test_an_error_that_cannot_tell_what_it_is_is_told_all_the_same() -> None:
    class UntellableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not today")

    assert in_one_line(UntellableError()) == "UntellableError: (its text cannot be told: RuntimeError)"
