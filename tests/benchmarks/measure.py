"""Candidates take turns, round by round; what counts is the ratio of their medians.

Absolute figures move by a factor of two from machine to machine and from minute to minute, ratios within one run by
about a tenth. A benchmark runner that measures one candidate after the other cannot give that.
"""

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

Candidate = Callable[[int], Awaitable[object]]
"""Does its work so many times."""


@dataclass(frozen=True)
class Target:
    """What a candidate is to reach.

    Args:
        ratio: Of the limit's rate, at least.
        seconds: For one time, at most, where a bare await takes 0.2 µs; scaled by what it takes here.
        rate: Times per second, at least, on the machine that the figure was set for.
    """

    ratio: float | None = None
    seconds: float | None = None
    rate: float | None = None


@dataclass
class Result:
    """What one candidate took."""

    name: str
    rounds: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of one time."""
        return statistics.median(self.rounds)


async def take_turns(candidates: Mapping[str, Candidate], *, times: int, rounds: int) -> dict[str, Result]:
    """Measure the candidates, `rounds` times `times` each, in turns."""
    results = {name: Result(name) for name in candidates}
    for candidate in candidates.values():
        await candidate(max(1, times // 10))
    for _ in range(rounds):
        for name, candidate in candidates.items():
            gc.collect()
            start = time.perf_counter()
            await candidate(times)
            results[name].rounds.append((time.perf_counter() - start) / times)
    return results


@dataclass
class Row:
    """One line of the table."""

    name: str
    seconds: float
    limit: float
    target: str = ""
    reached: bool | None = None


def show(console: Console, title: str, rows: Sequence[Row]) -> bool:
    """Print a table; return whether every target was reached."""
    table = Table(title=title, title_justify="left")
    for column in ("", "µs each", "per second", "of the limit's rate", "target", ""):
        table.add_column(column, justify="left" if column in ("", "target") else "right")
    for row in rows:
        verdict = "" if row.reached is None else "[green]reached[/]" if row.reached else "[red]not reached[/]"
        table.add_row(
            row.name,
            f"{row.seconds * 1e6:,.2f}",
            f"{1 / row.seconds:,.0f}",
            f"{row.limit / row.seconds:.2f}",
            row.target,
            verdict,
        )
    console.print(table)
    return all(row.reached is not False for row in rows)
