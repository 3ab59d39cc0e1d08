"""What `ecotone doctor` finds, and what lets itself be examined: a channel or plugin that knows its server.

>>> Finding(Level.OK, "server", "shop", "PostgreSQL 15.6 answers").hint
''
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not for ever, or not whatever happens."""
    PROBLEM = "problem"
    """Does not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: How much it matters.
        topic: What it is about, in a word: `wiring`, `schema`, `server`, `clock`, `durability`, `versions`, …
        where: What was looked at.
        what: How it is.
        hint: What can be done about it.
    """

    level: Level
    topic: str
    where: str
    what: str
    hint: str = ""


@runtime_checkable
class Examinable(Protocol):
    """A channel or plugin that finds out how its server is, and whether it suits: version, clock, settings.

    It is asked while the application does not run, changes nothing, and lets go of what it has opened for the answer.
    """

    @property
    def name(self) -> str:
        """How it is called in a report."""
        ...

    async def examine(self) -> Sequence[Finding]:
        """Return what was found, good and bad.

        Raises:
            ChannelError: The server does not answer.
        """
        ...


@runtime_checkable
class TellsDurability(Protocol):
    """A store that says whether what is in it outlasts the process."""

    @property
    def durable(self) -> bool:
        """Whether it does."""
        ...


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, up to the first one that is no number.

    Example:
        >>> version_numbers("2.0.40rc1"), version_numbers("10.11.19-MariaDB")
        ((2, 0, 40), (10, 11, 19))
    """
    found = re.match(r"\d+(?:\.\d+)*", version.strip())
    return tuple(map(int, found[0].split("."))) if found else ()
