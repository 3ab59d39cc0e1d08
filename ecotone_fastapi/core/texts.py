r"""Texts of others, made fit to be shown, logged and traced: not too long, and without what does harm there.

What clients, brokers, databases and errors say may be of any length, begin a line of a log, command a terminal, or have
no form as UTF-8, and then nothing beside it can be written down either.

>>> cut("a very long text", 6)
'a very… (cut, 16 characters in all)'
>>> print(named("order-1\nERROR somebody else's line"))
order-1\nERROR somebody else's line
"""

NAME, LINE, TEXT = 300, 1_000, 64_000
"""How many characters are shown of a name or an id, of a line, and of something long."""

_SPACES = "\u00a0\u202f\u3000"  # that sentences of some languages have between words


def cut(text: str, longest: int) -> str:
    """Return the beginning of a text, with a mark that says how long it was; all of it when it is not too long.

    Args:
        text: Anything, surrogates without their other half included.
        longest: How many characters are shown.
    """
    return _as_utf8(text if len(text) <= longest else f"{text[:longest]}{_mark(text)}")


def cut_or_none(text: str | None, longest: int) -> str | None:
    """Return the beginning of a text, if there is one."""
    return None if text is None else cut(text, longest)


def cut_within(text: str, longest: int) -> str:
    """Return beginning and end of a text, because a traceback tells most at its end; a mark is in between.

    >>> cut_within("0123456789", 4)
    '01… (cut, 10 characters in all) …89'
    """
    if len(text) <= longest:
        return _as_utf8(text)
    half = longest // 2
    return _as_utf8(f"{text[:half]}{_mark(text)} …{text[-half:]}")


def printable(text: str, kept: str = "") -> str:
    """Return a text with an escape for each character that cannot be seen or does something.

    Args:
        text: The text.
        kept: Characters that stay as they are all the same.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else repr(one)[1:-1] for one in text)


def named(text: object) -> str:
    """Return an id, a key or a name as it is shown: of one line, and at most 300 characters.

    Args:
        text: The text; what is none is told as one.
    """
    text = text if isinstance(text, str) else str(text)
    return text if len(text) <= NAME and text.isprintable() else printable(cut(text, NAME))


def first_line(text: str, longest: int = LINE) -> str:
    """Return the first line of a text as part of one line of a log.

    Args:
        text: The text.
        longest: How many characters are shown.
    """
    return printable(cut(next(iter(text.splitlines()), ""), longest), _SPACES)


def in_one_line(error: BaseException, longest: int = LINE) -> str:
    """Return the type and the first line of an error; a group of one error is that error.

    Args:
        error: The error.
        longest: How many characters are shown.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return first_line(f"{type(error).__name__}: {text_of(error)}".removesuffix(": "), longest)


def text_of(error: BaseException) -> str:
    """Return what an error says, of whatever length; that cannot be told when that, too, is an error."""
    try:
        return str(error)
    except Exception as failure:
        return f"(its text cannot be told: {type(failure).__name__})"


def _mark(text: str) -> str:
    return f"… (cut, {len(text)} characters in all)"


def _as_utf8(text: str) -> str:
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
