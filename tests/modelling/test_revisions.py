"""Code of two revisions of a synchronous projection appends: what one leaves, the other one handles, once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi import EventStore, command_handler
from tests.modelling.ledgers import Counted, Place, Where, place, revised
from tests.modelling.test_rebuilding import EVERYWHERE

NAME = "beside_revised"

both_shapes = pytest.mark.parametrize("partitioned", [False, True], ids=["global", "partitioned"])


@pytest.fixture(params=EVERYWHERE)
def where(request: pytest.FixtureRequest) -> Where:
    """Where everything is kept."""
    return Where(None if request.param is None else request.getfixturevalue(request.param))


def events_of(at: Place) -> Any:
    return at.flow.ecotone.assembly.services[EventStore]


async def switched(second: Place) -> None:
    await second.flow.ecotone.projections.backfill(NAME)
    await second.flow.ecotone.projections.switch(NAME)


@both_shapes
async def test_links_that_were_left_are_handled_although_some_are_of_streams_that_were_deleted(
    where: Where, partitioned: bool
) -> None:
    old, new = (revised(number, partitioned=partitioned) for number in (1, 2))
    async with place(where, old, lasting=True) as first, place(where, new, lasting=True) as second:
        await switched(second)
        for number, stream in enumerate(["home-a", "home-b", "home-c", "home-d", "home-e"], 1):
            await events_of(first).append(stream, [Counted("links", number)])
        for stream in ("home-a", "home-b", "home-c"):
            await events_of(first).link("counter-links", await events_of(first).load(stream))
        await events_of(first).delete("home-b")
        await events_of(first).delete("home-c")

        await events_of(second).link("counter-links", await events_of(second).load("home-d"))
        await events_of(second).link("counter-links", await events_of(second).load("home-e"))

        await second.check(NAME, [1, 4, 5])
        live = (await second.flow.ecotone.projections.status(NAME)).live
        assert live is not None
        assert (live.behind, live.halt) == (0, None)


@dataclass(frozen=True)
class CountLate:
    """Something is counted by a transaction that has read before."""

    stream: str
    number: int


@pytest.mark.mariadb
@both_shapes
async def test_a_transaction_that_cannot_see_what_was_left_is_done_again(mariadb_url: str, partitioned: bool) -> None:
    meanwhile: list[Callable[[], Awaitable[None]]] = []

    @command_handler
    async def count_late(command: CountLate, events: EventStore, session: AsyncSession) -> None:
        await session.execute(text("SELECT count(*) FROM beside_revised_2"))
        if meanwhile:
            await meanwhile.pop()()
        await events.append(f"counter-{command.stream}", [Counted(command.stream, command.number)])

    where = Where(mariadb_url)
    old, new = (revised(number, partitioned=partitioned) for number in (1, 2))
    engine = create_async_engine(mariadb_url, isolation_level="REPEATABLE READ", poolclass=NullPool)
    async with (
        place(where, old, lasting=True) as first,
        place(where, new, count_late, lasting=True, engine=engine) as second,
    ):
        await switched(second)
        await second.count("s1", 1)

        meanwhile.append(lambda: first.count("s1", 2))
        await second.flow.send(CountLate("s1", 3))

        assert [number for _, number in await second.rows(NAME)] == [1, 2, 3]
