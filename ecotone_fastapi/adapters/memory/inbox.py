"""An inbox in this process: each process has its own, and it is empty when the process begins."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from ecotone_fastapi.adapters.memory.claims import Claims
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.pipeline import Scope

_Key = tuple[str, str]


class MemoryInbox:
    """Remembers in this process which handler has handled which message.

    Args:
        clock: Tells how old a record is.
        most: How many records there are at most; the oldest make room for new ones.
    """

    durable: bool = False

    def __init__(self, clock: Clock = SystemClock(), *, most: int = 100_000) -> None:
        self._clock = clock
        self._most = most
        self._handled: dict[_Key, datetime] = {}  # the oldest first
        self._claims: Claims[_Key] = Claims(
            "two messages wait until it is known whether the other one is handled",
            "handle again what failed, or send nested commands with keys in the same order everywhere",
        )

    def covers(self, channel: Channel) -> bool:
        """Return that it covers none."""
        return False

    def takes_part(self) -> bool:
        """Whether the calling task is in a scope."""
        return current_scope() is not None

    async def record(self, message_id: str, endpoint: str) -> bool:
        """Note that a handler handles a message, for good when the scope of the calling task ends well.

        Raises:
            ConcurrencyError: The scope would wait for one that waits for it.
        """
        key, scope = (message_id, endpoint), current_scope()
        await self._claims.wait(key, scope)
        if self._claims.holder(key) is not None or key in self._handled:
            return False
        if scope is None:
            self._keep(key)
            return True
        self._claims.take(key, scope)
        await scope.enter(self._decided(key, scope), outermost=True)
        return True

    async def forget(self, message_id: str, endpoint: str) -> None:
        """Take a record back."""
        self._handled.pop((message_id, endpoint), None)
        self._claims.let_go((message_id, endpoint))

    async def knows(self, message_id: str, endpoint: str) -> bool:
        """Return whether a record is there, for good or in the scope of the calling task."""
        key = (message_id, endpoint)
        holder = self._claims.holder(key)
        return key in self._handled or (holder is not None and holder is current_scope())

    async def forget_before(self, moment: datetime, *, limit: int = 1000) -> int:
        """Forget the oldest records from before a moment; return how many."""
        old = [key for key, handled_at in self._handled.items() if handled_at < moment][:limit]
        for key in old:
            del self._handled[key]
        return len(old)

    @asynccontextmanager
    async def _decided(self, key: _Key, scope: Scope) -> AsyncIterator[None]:
        try:
            yield
            if self._claims.holder(key) is scope:
                self._keep(key)
        finally:
            if self._claims.holder(key) is scope:
                self._claims.let_go(key)

    def _keep(self, key: _Key) -> None:
        if len(self._handled) >= self._most:
            del self._handled[next(iter(self._handled))]
        self._handled[key] = self._clock.now()
