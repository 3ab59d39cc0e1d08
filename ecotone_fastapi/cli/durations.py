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
