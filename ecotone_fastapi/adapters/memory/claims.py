"""Claims: which unit of work has what until it ends. In memory they are what locks of rows are in a database."""

from collections.abc import Hashable
from typing import Generic, TypeVar

import anyio

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.pipeline import Scope

K = TypeVar("K", bound=Hashable)

_WAITS_FOR = object()  # under which a scope notes for whom it waits, whichever store makes it wait


class Claims(Generic[K]):
    """What units of work have claimed.

    Args:
        what: What has happened when two units wait for each other.
        hint: What somebody can do about it.
    """

    def __init__(self, what: str, hint: str) -> None:
        self._what = what
        self._hint = hint
        self._claims: dict[K, _Claim] = {}

    def holder(self, key: K) -> Scope | None:
        """Return who has claimed something."""
        claim = self._claims.get(key)
        return None if claim is None else claim.scope

    async def wait(self, key: K, scope: Scope | None) -> None:
        """Wait until nobody else has it.

        Args:
            key: What is wanted.
            scope: Who wants it; `None` is somebody outside of all units.

        Raises:
            ConcurrencyError: The one who has it waits for the one who wants it.
        """
        while (claim := self._claims.get(key)) is not None and claim.scope is not scope:
            await wait_for(claim.over, claim.scope, scope, what=self._what, hint=self._hint)

    def take(self, key: K, scope: Scope) -> None:
        """Claim what nobody else has."""
        self._claims.setdefault(key, _Claim(scope))

    def let_go(self, key: K) -> None:
        """Let others have it."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            claim.over.set()

    def let_go_all(self, scope: Scope) -> None:
        """Let others have all that one unit of work has."""
        for key in [key for key, claim in self._claims.items() if claim.scope is scope]:
            self.let_go(key)


async def wait_for(over: anyio.Event, holder: Scope, scope: Scope | None, *, what: str, hint: str) -> None:
    """Wait until another unit of work has let go of something.

    Args:
        over: Is set then.
        holder: The other unit.
        scope: Who waits; `None` is somebody outside of all units.
        what: What has happened when the two wait for each other.
        hint: What somebody can do about it.

    Raises:
        ConcurrencyError: The other one waits for this one, whatever for.
    """
    if scope is None:
        await over.wait()
        return
    waited_for: Scope | None = holder
    while waited_for is not None:
        if waited_for is scope:
            raise ConcurrencyError(what, hint=hint)
        waited_for = waited_for.state.get(_WAITS_FOR)
    scope.state[_WAITS_FOR] = holder
    try:
        await over.wait()
    finally:
        scope.state.pop(_WAITS_FOR, None)  # two tasks of one unit may have waited


class _Claim:
    """What one unit of work has until it ends."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.over = anyio.Event()
