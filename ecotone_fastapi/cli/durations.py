"""How long something lasts, as it is written on the command line."""

import re
from datetime import timedelta

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(rf"(\d+)([{''.join(_UNITS)}])")


def duration(text: str) -> timedelta | None:
    """Read what is written as 90s, 30m, 2h, 7d or 4w; `None` when something else is written.

    Raises:
        OverflowError: Nothing lasts so long.
    """
    found = _DURATION.fullmatch(text)
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


def span_text(seconds: float) -> str:
    """Return how long something lasts as people say it, in two units at most.

    Example:
        >>> [span_text(one) for one in (0.25, 59.96, 3725, 200_000)]
        ['0.2 s', '1 min', '1 h 2 min', '2 d 7 h']
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    sizes = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    at = next(number for number, (_, size) in enumerate(sizes) if whole >= size)
    parts = [(whole // size if number == at else whole % sizes[number - 1][1] // size, unit)
             for number, (unit, size) in enumerate(sizes)][at : at + 2]  # fmt: skip
    return " ".join(f"{count} {unit}" for count, unit in parts if count)
