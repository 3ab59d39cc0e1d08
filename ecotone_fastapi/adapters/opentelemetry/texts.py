"""Texts as spans can bear them: whatever a client, a file name or a server has put into them."""

LONGEST = 256
"""Characters of an id, a key or a name; nobody searches for a longer one."""


def shown(text: object, longest: int) -> str:
    r"""Return a text that every exporter can write: of bounded length, and without halves of characters.

    One text that has no form as UTF-8 costs an exporter its whole batch, with the spans of everybody else; so does one
    that is too long for the receiver.

    Args:
        text: The text; what is none is told as one.
        longest: How many characters are kept. What was cut says how many there were.

    Example:
        >>> shown("caf\udce9.txt", 9), shown("a" * 1000, 3)
        ('caf\\udce9.txt', 'aaa… (1000 characters)')
    """
    text = text if isinstance(text, str) else str(text)
    if len(text) > longest:
        text = f"{text[:longest]}… ({len(text)} characters)"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def named(text: object) -> str:
    r"""Return an id, a key or a name as it is shown: of one line, too.

    Args:
        text: The text; what is none is told as one.

    Example:
        >>> print(named("order-1\nERROR somebody else's line"))
        order-1\nERROR somebody else's line
    """
    text = shown(text, LONGEST)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
