"""What becomes of streams, as handlers and projections see it: linked and archived, in memory and in databases."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from ecotone_fastapi import (
    EventSourcing,
    EventStore,
    ProjectionState,
    command_handler,
    event_handler,
    message_name,
    projection,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.modelling.event_store import RecordedEvent
from ecotone_fastapi.modelling.projections import Emitter
from ecotone_fastapi.testing import Flow, flow_test

Start = Callable[..., AbstractAsyncContextManager[Flow]]


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def start(request: pytest.FixtureRequest) -> Start:
    """Starts an application."""
    plugins: list[Any] = [EventSourcing(events=[Paid, Closed])]
    if request.param != "memory":
        plugins.append(SqlAlchemy(request.getfixturevalue(f"{request.param}_url"), create_schema=True))

    def flow(*handlers: Any) -> AbstractAsyncContextManager[Flow]:
        return flow_test([Accounts, *handlers], plugins=plugins)

    return flow


@message_name("account.paid")
@dataclass(frozen=True)
class Paid:
    account: str
    amount: int


@message_name("account.closed")
@dataclass(frozen=True)
class Closed:
    account: str


class Accounts:
    """Appends to the streams of accounts."""

    @command_handler("pay")
    async def pay(self, event: Paid, store: EventStore) -> None:
        await store.append(f"account-{event.account}", [event])

    @command_handler("close")
    async def close(self, account: str, store: EventStore) -> None:
        await store.append(f"account-{account}", [Closed(account)])
        await store.archive(f"account-{account}")

    @command_handler("link")
    async def link(self, account: str, store: EventStore) -> int:
        return await store.link("audit-1", await store.load(f"account-{account}"))

    @command_handler("link-and-fail")
    async def link_and_fail(self, account: str, store: EventStore) -> None:
        await self.link(account, store)
        raise ValueError(account)


@projection("large", categories=["account"])
class Large:
    @event_handler
    async def sort(self, event: Paid, emitter: Emitter) -> None:
        if event.amount >= 100:
            await emitter.link("large-all")


@projection("sum", streams=["large-all"])
class SumOfLarge:
    @event_handler
    async def add(self, event: Paid, n: Annotated[int, ProjectionState(0)]) -> int:
        return n + event.amount


def store_of(flow: Flow) -> EventStore:
    store: Any = flow.ecotone.assembly.services[EventStore]
    assert isinstance(store, EventStore)
    return store


async def test_a_handler_links_events_to_another_stream_and_only_if_it_succeeds(start: Start) -> None:
    async with start() as flow:
        store = store_of(flow)
        await flow.send(Paid("a", 1), to="pay")
        await flow.send(Paid("a", 2), to="pay")

        with pytest.raises(ValueError, match="a"):
            await flow.send("a", to="link-and-fail")
        assert await store.load("audit-1") == []
        assert [await flow.send("a", to="link") for _ in range(2)] == [2, 0]

        links = [(one.payload, one.version, one.origin) for one in await store.load("audit-1")]
        assert links == [(Paid("a", 1), 1, ("account-a", 1)), (Paid("a", 2), 2, ("account-a", 2))]
        assert [(one.stream, one.version) async for one in store.all()] == [("account-a", 1), ("account-a", 2)]


async def test_a_projection_links_what_it_reads_for_another_projection(start: Start) -> None:
    async with start(Large, SumOfLarge) as flow:
        for account, amount in (("a", 100), ("a", 1), ("b", 200)):
            await flow.send(Paid(account, amount), to="pay")
        await flow.run("large")
        await flow.run("sum")

        assert await flow.ecotone.projections.state("sum") == 300
        found = [(one.payload, one.origin) for one in await store_of(flow).load("large-all")]
        assert found == [(Paid("a", 100), ("account-a", 1)), (Paid("b", 200), ("account-b", 1))]


@pytest.mark.parametrize("partitioned", [False, True], ids=["global", "partitioned"])
async def test_a_synchronous_projection_counts_what_is_linked_at_once_and_the_same_when_it_is_made_anew(
    start: Start, partitioned: bool
) -> None:
    @projection("audit", categories=["audit"], mode="synchronous", partitioned=partitioned)
    class Audit:
        @event_handler
        async def add(self, event: Paid, n: Annotated[int, ProjectionState(0)]) -> int:
            return n * 10 + event.amount

    partition = "audit-1" if partitioned else None
    async with start(Audit) as flow:
        store, projections = store_of(flow), flow.ecotone.projections
        for amount in (1, 2):
            await flow.send(Paid("a", amount), to="pay")
        with pytest.raises(ValueError, match="a"):
            await flow.send("a", to="link-and-fail")
        assert await projections.state("audit", partition) == 0

        assert [await flow.send("a", to="link") for _ in range(2)] == [2, 0]
        assert await projections.state("audit", partition) == 12

        await flow.send(Paid("a", 3), to="pay")
        await store.append("audit-1", [Paid("-", 4)])
        await store.link("audit-1", await store.load("account-a"))  # outside of a handler
        assert await projections.state("audit", partition) == 1243

        await projections.rebuild("audit")
        assert await projections.state("audit", partition) == 1243


async def test_a_synchronous_projection_that_cannot_handle_a_link_refuses_it(start: Start) -> None:
    @projection("audit", categories=["audit"], mode="synchronous")
    class Audit:
        @event_handler
        async def add(self, event: Paid) -> None:
            raise ValueError("not me")

    async with start(Audit) as flow:
        await flow.send(Paid("a", 1), to="pay")
        with pytest.raises(ValueError, match="not me"):
            await flow.send("a", to="link")
        assert await store_of(flow).load("audit-1") == []


async def test_what_a_projection_links_reaches_a_synchronous_one_in_its_transaction(start: Start) -> None:
    @projection("sum_at_once", streams=["large-all"], mode="synchronous")
    class SumAtOnce(SumOfLarge):
        pass

    async with start(Large, SumAtOnce) as flow:
        for account, amount in (("a", 100), ("a", 1), ("b", 200)):
            await flow.send(Paid(account, amount), to="pay")
        assert await flow.ecotone.projections.state("sum_at_once") == 0

        await flow.run("large")

        assert await flow.ecotone.projections.state("sum_at_once") == 300


async def test_a_synchronous_projection_counts_what_it_links_and_emits_to_what_it_reads_itself(start: Start) -> None:
    @projection("own", categories=["account", "large", "projection"], mode="synchronous")
    class Own:
        @event_handler
        async def add(
            self,
            event: Paid,
            recorded: RecordedEvent,
            emitter: Emitter,
            seen: Annotated[list[str], ProjectionState([])],
        ) -> list[str]:
            if recorded.stream.startswith("account-"):
                await emitter.link("large-all")
                await emitter.emit(Paid("-", event.amount + 1))
            return [*seen, f"{recorded.stream} {event.amount}"]

    async with start(Own) as flow:
        await flow.send(Paid("a", 1), to="pay")

        assert await flow.ecotone.projections.state("own") == ["account-a 1", "large-all 1", "projection-own 2"]


class Open:
    """How many accounts are open, as far as it has read."""

    @event_handler
    async def pay(self, event: Paid, n: Annotated[int, ProjectionState(0)]) -> int:
        return n + 1

    @event_handler
    async def close(self, event: Closed, n: Annotated[int, ProjectionState(0)]) -> int:
        return n - 1

    @projection.reset
    async def reset(self) -> None: ...


@projection("open", categories=["account"])
class OpenAccounts(Open): ...


@projection("open_each", categories=["account"], partitioned=True)
class OpenOfEach(Open): ...


async def test_projections_hear_the_last_of_a_stream_that_is_archived_with_it_and_again_when_rebuilt(
    start: Start,
) -> None:
    async with start(OpenAccounts, OpenOfEach) as flow:

        async def opened() -> list[Any]:
            projections = flow.ecotone.projections
            each = [await projections.state("open_each", partition=f"account-{one}") for one in "ab"]
            return [await projections.state("open"), *each]

        for account in ("a", "b"):
            await flow.send(Paid(account, 1), to="pay")
        for name in ("open", "open_each"):
            await flow.run(name)
        assert await opened() == [2, 1, 1]

        await flow.send("a", to="close")
        for name in ("open", "open_each"):
            await flow.run(name)
        assert await opened() == [1, 0, 1]
        assert await store_of(flow).load("account-a") == []

        for name in ("open", "open_each"):
            await flow.ecotone.projections.rebuild(name)
        assert await opened() == [1, 0, 1]
