"""Aggregates in memory: the default, and the test double of every other store."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

from ecotone_fastapi.adapters.memory.claims import Claims
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.repository import Identifier, Saved, Versioned, lacks_identifier

A = TypeVar("A")

_Key = tuple[type, str]
_Copy = tuple[Any, int]


class MemoryAggregates:
    """Keeps copies of aggregates, for as long as the process lives.

    What a unit of work saves is its own until it ends well; others that want to save the same aggregate wait for that,
    as they would for a row in a database, and then find that they came too late. Entities of an ORM are not kept here:
    a copy of one belongs to no session, gets no identifier, and is no test of its mapping.
    """

    durable: bool = False

    def __init__(self) -> None:
        self._kept: dict[_Key, _Copy] = {}
        self._changes: dict[Scope, dict[_Key, _Copy | None]] = {}
        self._claims: Claims[_Key] = Claims(
            "two units of work wait for aggregates that the other one has saved",
            "handle again what failed, or save aggregates in the same order everywhere",
        )

    def serves(self, cls: type) -> bool:
        """Return that it keeps them all, but for classes that are mapped to tables."""
        return not hasattr(cls, "__mapper__")

    async def load(self, cls: type[A], identifier: Identifier) -> Versioned[A] | None:
        """Return a copy of an aggregate."""
        found = self._seen(current_scope(), (cls, str(identifier)))
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
        """Keep a copy of an aggregate, for good when the scope of the calling task ends well.

        Raises:
            ConcurrencyError: Somebody else has saved it.
            AggregateError: It has no identifier.
        """
        if identifier is None:
            raise lacks_identifier(cls)
        await self._write(cls, identifier, expected, (deepcopy(state), expected + 1))
        return Saved(expected + 1, events)

    async def delete(self, cls: type[A], identifier: Identifier, state: A, *, expected: int) -> None:
        """Forget an aggregate, for good when the scope of the calling task ends well.

        Raises:
            ConcurrencyError: Somebody else has saved or deleted it.
        """
        await self._write(cls, identifier, expected, None)

    async def _write(self, cls: type, identifier: Identifier, expected: int, copy: _Copy | None) -> None:
        key, scope = (cls, str(identifier)), current_scope()
        await self._claims.wait(key, scope)
        found = self._seen(scope, key)
        actual = 0 if found is None else found[1]
        if actual != expected:
            raise ConcurrencyError(
                f"the {cls.__name__} {identifier} was {'saved' if actual else 'deleted'} by somebody else",
                expected=expected,
                actual=actual,
            )
        if scope is None:
            self._settle({key: copy})
        else:
            await self._change(scope, key, copy)

    def _seen(self, scope: Scope | None, key: _Key) -> _Copy | None:
        changes = self._changes.get(scope, {}) if scope is not None else {}
        return changes[key] if key in changes else self._kept.get(key)

    def _settle(self, changes: Mapping[_Key, _Copy | None]) -> None:
        for key, copy in changes.items():
            if copy is None:
                self._kept.pop(key, None)
            else:
                self._kept[key] = copy

    async def _change(self, scope: Scope, key: _Key, copy: _Copy | None) -> None:
        self._claims.take(key, scope)
        if scope not in self._changes:
            self._changes[scope] = {}
            await scope.enter(self._decided(scope))
        changes = self._changes[scope]
        scope.note_change(
            partial(changes.pop, key, None) if key not in changes else partial(changes.update, {key: changes[key]})
        )
        changes[key] = copy

    @asynccontextmanager
    async def _decided(self, scope: Scope) -> AsyncIterator[None]:
        try:
            yield
            self._settle(self._changes[scope])
        finally:
            del self._changes[scope]
            self._claims.let_go_all(scope)
