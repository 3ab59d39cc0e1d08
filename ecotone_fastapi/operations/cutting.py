"""Texts that somebody else has written, made fit to be shown: not too long, and nothing that JSON cannot say.

>>> cut("a very long text", 6)
'a very… (cut, 16 characters in all)'
"""

from collections.abc import Mapping

NAME, LINE, VALUE, TEXT = 300, 1_000, 4_000, 64_000
"""How many characters are shown of a name, of something in a list, of a header, and of something long."""
HEADERS = 200
"""How many headers are shown."""


def cut(text: str, longest: int) -> str:
    """Return the beginning of a text, with a mark that says how long it was; all of it when it is not too long.

    Args:
        text: Anything, surrogates without their other half included.
        longest: How many characters are shown.
    """
    shown = text if len(text) <= longest else f"{text[:longest]}… (cut, {len(text)} characters in all)"
    return shown.encode(errors="backslashreplace").decode()


def cut_or_none(text: str | None, longest: int) -> str | None:
    """Return the beginning of a text, if there is one."""
    return None if text is None else cut(text, longest)


def cut_within(text: str, longest: int) -> str:
    """Return beginning and end of a text, because a traceback tells most at its end; a mark is in between.

    >>> cut_within("0123456789", 4)
    '01… (cut, 10 characters in all) …89'
    """
    if len(text) <= longest:
        return cut(text, longest)
    half = longest // 2
    return cut(f"{text[:half]}… (cut, {len(text)} characters in all) …{text[-half:]}", longest + 60)


def cut_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by name, each cut where it is too long; those that are too many are counted in the last one."""
    shown = {cut(name, NAME): cut(value, VALUE) for name, value in sorted(headers.items())[:HEADERS]}
    if len(headers) > HEADERS:
        shown["…"] = f"(cut, {len(headers)} headers in all)"
    return shown
