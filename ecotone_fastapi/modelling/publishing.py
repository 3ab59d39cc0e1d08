"""Publishing what aggregates have recorded: when the handler has returned that has saved them, and all is saved."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ecotone_fastapi.core.endpoint import Kind
from ecotone_fastapi.core.errors import AggregateError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.keeping import Kept
from ecotone_fastapi.modelling.repository import Saved


class _Held(list[Message[Any]]):
    """Events that somebody publishes later."""

    over: bool = False


# What repositories have saved for the handler that is running.
_held: ContextVar[_Held | None] = ContextVar("ecotone_recorded_events", default=None)


@contextmanager
def holding() -> Iterator[list[Message[Any]]]:
    """Hold the events of aggregates that are saved in the block; it is up to the caller to publish them."""
    events = _Held()
    token = _held.set(events)
    try:
        yield events
    finally:
        events.over = True  # for tasks that outlive their handler
        _held.reset(token)


async def publish(gateway: Gateway, events: Iterable[Message[Any]]) -> None:
    """Publish events, one after the other."""
    for event in events:
        await gateway.dispatch(Kind.EVENT, event)


class StoredRepository:
    """The aggregates of one class. What a `Repository[Order]` parameter is given."""

    def __init__(self, kept: Kept, gateway: Gateway) -> None:
        self._kept = kept
        self._gateway = gateway

    async def get(self, identifier: Any) -> Any:
        """Return an aggregate.

        Raises:
            AggregateNotFoundError: There is none.
        """
        found = await self.find(identifier)
        if found is None:
            raise self._kept.not_found(self._kept.identifier(identifier))
        return found

    async def find(self, identifier: Any) -> Any:
        """Return an aggregate; `None` when there is none."""
        wanted = self._kept.identifier(identifier)
        found = await self._kept.load(wanted) if wanted is not None else None
        return None if found is None else found.state

    async def save(self, aggregate: Any) -> None:
        """Save an aggregate; what it has recorded is published when the handler has returned."""
        self._check(aggregate)
        _, saved = await self._kept.save(aggregate)
        await self._publish(saved)

    async def delete(self, aggregate: Any) -> None:
        """Delete an aggregate; what it has recorded is published when the handler has returned."""
        self._check(aggregate)
        await self._publish(await self._kept.delete(aggregate))

    def _check(self, aggregate: Any) -> None:
        if not isinstance(aggregate, self._kept.cls):
            raise AggregateError(
                f"a {type(aggregate).__qualname__} is no {self._kept.label}",
                hint="ask for the repository of its own class",
            )

    async def _publish(self, saved: Saved) -> None:
        held = _held.get()
        if held is not None and not held.over:
            held += saved.events
        else:
            await publish(self._gateway, saved.events)
