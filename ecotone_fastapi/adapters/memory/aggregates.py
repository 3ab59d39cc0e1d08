"""Aggregates in memory: the default, and the test double of every other store."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.repository import Identifier, Saved, Versioned

A = TypeVar("A")


class MemoryAggregates:
    """Keeps copies of aggregates of any class, for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[tuple[type, str], tuple[Any, int]] = {}

    def serves(self, cls: type) -> bool:
        """Return that it keeps them all."""
        return True

    async def load(self, cls: type[A], identifier: Identifier) -> Versioned[A] | None:
        """Return a copy of an aggregate."""
        found = self._kept.get((cls, str(identifier)))
        return None if found is None else Versioned(deepcopy(found[0]), found[1])

    async def save(
        self,
        cls: type[A],
        identifier: Identifier | None,
        state: A,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        """Keep a copy of an aggregate."""
        key = (cls, str(identifier))
        _, actual = self._kept.get(key, (None, 0))
        if actual != expected:
            raise ConcurrencyError(
                f"the {cls.__name__} {identifier} was saved meanwhile", expected=expected, actual=actual
            )
        self._kept[key] = (deepcopy(state), expected + 1)
        return Saved(expected + 1, events)
