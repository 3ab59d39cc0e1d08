"""Names of streams: `category-identifier`. All streams of one category can be read as one.

>>> category_of(stream_of("basket", "7"))
'basket'
"""

from ecotone_fastapi.core.errors import ConversionError

LONGEST_STREAM = 190
"""Characters that the name of a stream may have: every database can index them."""


def stream_of(category: str, identifier: str) -> str:
    """Return the name of the stream of one thing in a category.

    Example:
        >>> stream_of("basket", "7")
        'basket-7'
    """
    return f"{category}-{identifier}"


def category_of(stream: str) -> str:
    """Return the category of a stream: what stands before the first dash.

    Example:
        >>> category_of("basket-7-b")
        'basket'
    """
    return stream.partition("-")[0]


def check_stream(stream: str) -> str:
    """Return the name of a stream if it is one.

    Raises:
        ConversionError: It is empty, too long, or has a character that databases do not compare alike.
    """
    if not stream or len(stream) > LONGEST_STREAM or not stream.isprintable() or stream != stream.strip():
        raise ConversionError(
            f"{stream[:80]!r} is no name for a stream",
            hint=f"1 to {LONGEST_STREAM} printable characters, without a space at either end",
        )
    return stream
