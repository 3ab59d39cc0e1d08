"""Any order of commands, failures, runs and rebuilds: in the end every committed event counts once, and in order."""

from collections import Counter
from contextlib import suppress

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from ecotone_fastapi import ProjectionError
from ecotone_fastapi.core.plugin import Limits
from tests.modelling.ledgers import (
    AtOnce,
    Beside,
    BesideAtOnce,
    BesideParts,
    Later,
    Parts,
    PartsAtOnce,
    Place,
    Where,
    place,
)

PROJECTIONS = (Later, AtOnce, Parts, PartsAtOnce, Beside, BesideAtOnce, BesideParts)
NAMES = ("later", "at_once", "parts", "parts_at_once", "beside", "beside_at_once", "beside_parts")

names = st.sampled_from(NAMES)
streams = st.sampled_from("abc")
steps = st.one_of(
    st.tuples(st.just("count"), streams, st.integers(1, 4), st.sampled_from([False, False, False, True])),
    st.tuples(st.just("run"), names, st.sampled_from([None, 1, 3])),
    st.tuples(st.just("rebuild"), names, st.booleans()),
    st.tuples(st.just("poison"), st.integers(0, 30)),
    st.tuples(st.just("mend")),
    st.tuples(st.just("switch"), names),
    st.tuples(st.just("cancel"), names),
    st.tuples(st.just("both"), names, streams),
)


class Story:
    """What happens to an application, and what must be true of it."""

    def __init__(self, at: Place) -> None:
        self.at = at
        self.committed: list[tuple[str, int]] = []
        self._next = 0

    async def count(self, stream: str, how_many: int, fails: bool) -> None:
        numbers = range(self._next, self._next + how_many)
        self._next += how_many
        try:
            await self.at.count(stream, *numbers, fails=fails)
        except ValueError:
            assert self.at.poison.numbers & set(numbers)  # a synchronous projection has refused it
        else:
            if not fails:
                self.committed += [(stream, number) for number in numbers]

    async def run(self, name: str, limit: int | None) -> None:
        await self.at.flow.run(name, Limits(until_empty=True, messages=limit), raises=False)

    async def rebuild(self, name: str, switch: bool) -> None:
        with suppress(ProjectionError):
            await self.at.flow.ecotone.projections.rebuild(name, switch=switch)

    async def poison(self, number: int) -> None:
        self.at.poison.numbers.add(number)

    async def mend(self) -> None:
        self.at.poison.numbers.clear()
        for name in NAMES:
            await self.at.flow.ecotone.projections.retry(name)

    async def switch(self, name: str) -> None:
        with suppress(ProjectionError):
            await self.at.flow.ecotone.projections.switch(name)

    async def cancel(self, name: str) -> None:
        with suppress(ProjectionError):
            await self.at.flow.ecotone.projections.cancel(name)

    async def both(self, name: str, stream: str) -> None:
        """Rebuild, run and count at the same time."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.rebuild, name, True)
            tasks.start_soon(self.run, name, None)
            for _ in range(3):
                tasks.start_soon(self.count, stream, 1, False)

    async def check(self) -> None:
        await self.mend()
        for name in NAMES:
            await self.run(name, None)
            status = await self.at.flow.ecotone.projections.status(name)
            if status.live is None:
                assert await self.at.flow.ecotone.projections.backfill(name)
        expected = Counter(self.committed)
        for name in NAMES:
            rows = await self.at.rows(name)
            assert Counter(rows) == expected, name
            for stream in "abc":
                numbers = [number for one, number in rows if one == stream]
                assert numbers == [number for one, number in self.committed if one == stream], name
        told = await self.at.told()
        # Three projections tell each number once, whatever was rebuilt, switched and cancelled.
        assert told == Counter({number: 3 for _, number in self.committed})


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=14))
def test_each_event_counts_once_in_order_whatever_happens(story: list[tuple[object, ...]]) -> None:
    async def tell() -> None:
        async with place(Where(None), *PROJECTIONS) as at:
            told = Story(at)
            with anyio.fail_after(60):
                for step, *arguments in story:
                    await getattr(told, str(step))(*arguments)
                await told.check()

    anyio.run(tell)
