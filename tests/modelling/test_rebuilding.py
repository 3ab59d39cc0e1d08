"""Rebuild, backfill, switch, cancel: while others append, in memory and in every database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import pytest

from ecotone_fastapi import (
    EventStore,
    ProjectionError,
    ProjectionState,
    ProjectionVersion,
    event_handler,
    projection,
    query_handler,
)
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.modelling.projection_store import ProjectionStore
from ecotone_fastapi.modelling.projections import Mode
from ecotone_fastapi.modelling.rebuilding import Progress
from tests.modelling.ledgers import (
    IN_PLACE,
    VERSIONED,
    AtOnce,
    Beside,
    BesideAtOnce,
    BesideParts,
    BesidePartsInTurn,
    Counted,
    Later,
    Parts,
    PartsAtOnce,
    Place,
    Where,
    place,
    revised,
)

EVERYWHERE = [
    pytest.param(None, id="memory"),
    pytest.param("sqlite_url", id="sqlite"),
    pytest.param("postgresql_url", id="postgresql", marks=pytest.mark.postgresql),
    pytest.param("mariadb_url", id="mariadb", marks=pytest.mark.mariadb),
]


@pytest.fixture(params=EVERYWHERE)
def where(request: pytest.FixtureRequest) -> Where:
    """Where everything is kept."""
    return Where(None if request.param is None else request.getfixturevalue(request.param))


def name_of(cls: type) -> str:
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__)
    return words.removeprefix("_")


def is_synchronous(cls: type) -> bool:
    return cls.__name__.endswith("AtOnce")


async def more(counted: list[int]) -> None:
    """Wait until some more was counted."""
    wanted = len(counted) + 5
    while len(counted) < wanted:  # noqa: ASYNC110 - others count meanwhile
        await anyio.sleep(0.005)


@asynccontextmanager
async def counting(at: Place, streams: int = 3, base: int = 10_000) -> AsyncIterator[list[int]]:
    """Count beside the block, one number after the other, now and then in vain; gives what was counted."""
    counted: list[int] = []
    over = anyio.Event()

    async def go_on(stream: int) -> None:
        number = base + stream
        while not over.is_set():
            fails = number % 7 == 0
            await at.count(f"s{stream}", number, fails=fails)
            if not fails:
                counted.append(number)
            number += streams
            await anyio.sleep(0.05)  # less than a projection handles that emits

    async with anyio.create_task_group() as tasks:
        for stream in range(streams):
            tasks.start_soon(go_on, stream)
        await more(counted)
        try:
            yield counted
        finally:
            over.set()


@asynccontextmanager
async def running(at: Place, name: str) -> AsyncIterator[None]:
    """Run a projection beside the block, as a process does."""
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(at.flow.ecotone.run, name, Limits(stop=stop))
        try:
            yield
        finally:
            stop.set()


async def count_some(at: Place, numbers: range) -> None:
    for number in numbers:
        await at.count(f"s{number % 3}", number)


@pytest.mark.parametrize("cls", [*IN_PLACE, *VERSIONED])
async def test_e15_a_rebuild_while_others_append_loses_nothing_and_doubles_nothing(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        await count_some(at, range(40))
        await at.catch_up(name)
        projections = at.flow.ecotone.projections

        with anyio.fail_after(60):
            async with counting(at) as counted:
                assert await projections.rebuild(name)
                await more(counted)
        await at.catch_up(name)

        await at.check(name, [*range(40), *counted])
        live = await at.rows(name)
        by_stream = {stream: [number for one, number in live if one == stream] for stream, _ in live}
        assert all(numbers == sorted(numbers) for numbers in by_stream.values())

        assert await projections.rebuild(name)
        await at.check(name, [*range(40), *counted])
        if cls in (Later, Beside):
            assert await at.rows(name) == live  # E21: live order is the order of a rebuild


@pytest.mark.parametrize("cls", [Parts, Beside, BesideParts, BesidePartsInTurn])
async def test_a_rebuild_ends_behind_the_last_event_however_many_there_are(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        for stream in range(3):
            await at.count(f"s{stream}", *range(stream * 60, stream * 60 + 60))
        await at.catch_up(name)

        assert await at.flow.ecotone.projections.rebuild(name)

        await at.check(name, range(180))


@pytest.mark.parametrize("cls", [Later, Parts, BesidePartsInTurn])
async def test_a_backfill_of_what_is_live_ends_behind_the_last_event(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        await at.catch_up(name)
        await at.count("s1", *range(150))

        assert await at.flow.ecotone.projections.backfill(name)

        await at.check(name, range(150))


@pytest.mark.parametrize("cls", [Beside, BesideParts])
async def test_what_only_the_live_version_has_seen_is_not_told_again_after_a_switch(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        projections = at.flow.ecotone.projections
        await count_some(at, range(10))
        await at.catch_up(name)
        assert await projections.rebuild(name, switch=False)

        store: Any = at.flow.ecotone.assembly.services[ProjectionStore]
        await store.lease(name, 2, "a process that is frozen", 600.0)
        await at.count("s1", 10)
        await at.count("s9", 11)  # a stream that only the live version knows
        await at.catch_up(name)
        assert await projections.switch(name) == 2
        await at.catch_up(name)

        await at.check(name, range(12))
        assert await at.told() == dict.fromkeys(range(12), 1)


@pytest.mark.parametrize("cls", [*IN_PLACE, *VERSIONED])
async def test_a_rebuild_that_was_only_begun_is_done_by_whoever_runs_the_projection(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        await count_some(at, range(20))
        await at.catch_up(name)
        projections = at.flow.ecotone.projections

        version = await projections.begin_rebuild(name)
        building = {one.number: one.condition for one in (await projections.status(name)).versions}[version]
        await at.count("s1", 100)
        await at.flow.ecotone.run(name, Limits(until_empty=True))
        await at.catch_up(name)

        assert building == "building"
        status = await projections.status(name)
        assert status.live is not None
        assert (status.live.number, status.live.progress) == (version, None)
        await at.check(name, [*range(20), 100])


@pytest.mark.parametrize("cls", [*IN_PLACE, *VERSIONED])
async def test_a_projection_that_comes_late_is_built_of_what_was_there(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, Later) as at:
        await count_some(at, range(20))

    async with place(where, cls) as at:
        [*versions] = (await at.flow.ecotone.projections.status(name)).versions
        assert [one.condition for one in versions] == (["building"] if is_synchronous(cls) else [])
        await at.count("s1", 100)
        assert await at.flow.ecotone.projections.backfill(name)
        await at.count("s1", 101)
        await at.catch_up(name)

        await at.check(name, [*range(20), 100, 101])
        assert [one.condition for one in (await at.flow.ecotone.projections.status(name)).versions] == ["live"]


@pytest.mark.parametrize("cls", VERSIONED)
async def test_what_is_told_is_told_once_whatever_is_rebuilt_beside_it(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        await count_some(at, range(10))
        await at.catch_up(name)
        with anyio.fail_after(60):
            async with counting(at) as counted, running(at, name):
                assert await at.flow.ecotone.projections.rebuild(name)
        await at.catch_up(name)

        assert await at.told() == dict.fromkeys([*range(10), *counted], 1)


async def test_the_live_version_is_asked_until_the_new_one_is_switched_by_hand(where: Where) -> None:
    async with place(where, Beside) as at:
        projections = at.flow.ecotone.projections
        await count_some(at, range(10))
        await at.catch_up("beside")

        assert await projections.rebuild("beside", switch=False)
        assert [(one.number, one.condition) for one in (await projections.status("beside")).versions] == [
            (1, "live"),
            (2, "building"),
        ]
        await at.count("s1", 50)
        await at.catch_up("beside")
        assert await at.live_table("beside") == "beside_1"

        assert await projections.switch("beside") == 2

        assert await at.live_table("beside") == "beside_2"
        await at.count("s1", 51)
        await at.catch_up("beside")
        await at.check("beside", [*range(10), 50, 51])
        assert await at.told() == dict.fromkeys([*range(10), 50, 51], 1)

        await projections.delete("beside", 1)
        assert [one.number for one in (await projections.status("beside")).versions] == [2]
        with pytest.raises(ProjectionError, match=r"version 2 .* is live"):
            await projections.delete("beside", 2)
        with pytest.raises(ProjectionError, match=r"no version .* is being built"):
            await projections.switch("beside")


@pytest.mark.parametrize("cls", [Beside, BesideAtOnce])
async def test_a_rebuild_beside_the_live_version_is_cancelled(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        projections = at.flow.ecotone.projections
        await count_some(at, range(30))
        await at.catch_up(name)
        told: list[Progress] = []

        async def cancel(progress: Progress, name: str = name, told: list[Progress] = told, at: Place = at) -> None:
            told.append(progress)
            if len(told) == 2:
                await at.flow.ecotone.projections.cancel(name)

        assert not await projections.rebuild(name, told=cancel)

        assert [one.condition for one in (await projections.status(name)).versions] == ["live"]
        await at.check(name, range(30))
        assert (told[0].done, told[0].total) == (0, 30)
        await projections.delete(name)


@pytest.mark.parametrize("cls", [Parts, PartsAtOnce])
async def test_partitions_keep_what_they_have_when_a_rebuild_is_cancelled_or_fails(where: Where, cls: type) -> None:
    name = name_of(cls)
    async with place(where, cls) as at:
        projections = at.flow.ecotone.projections
        await count_some(at, range(30))
        await at.catch_up(name)
        at.poison.numbers = {4}

        with pytest.raises(ProjectionError, match="stands still"):
            await projections.rebuild(name)
        await at.check(name, range(30))
        assert [one.stream for one in await projections.partitions(name, halted=True)] == ["counter-s1"]

        await projections.cancel(name)
        at.poison.numbers = set()
        await projections.retry(name)
        await at.count("s1", 99)
        await at.catch_up(name)
        await at.check(name, [*range(30), 99])
        assert [one.condition for one in (await projections.status(name)).versions] == ["live"]

        assert await projections.rebuild(name)
        await at.check(name, [*range(30), 99])
        await projections.delete(name)


async def test_what_was_emptied_cannot_be_cancelled(where: Where) -> None:
    async with place(where, Later, AtOnce) as at:
        projections = at.flow.ecotone.projections
        await count_some(at, range(10))
        await at.catch_up("later")
        at.poison.numbers = {3}
        for name in ("later", "at_once"):
            with pytest.raises(ProjectionError, match="stands still"):
                await projections.rebuild(name)
            with pytest.raises(ProjectionError, match="cannot be cancelled"):
                await projections.cancel(name)

        at.poison.numbers = set()
        for name in ("later", "at_once"):
            await projections.retry(name)
            assert await projections.backfill(name)
            await at.check(name, range(10))


async def test_a_synchronous_projection_is_not_followed_while_it_is_built_and_is_afterwards(where: Where) -> None:
    async with place(where, AtOnce) as at:
        await count_some(at, range(20))
        inside: list[int] = []

        async def meanwhile(number: int) -> None:
            if number == 3 and not inside:
                inside.append(number)
                at.poison.meanwhile = None
                if not where.one_writer:
                    await at.count("s9", 500)  # must wait for nobody: it is not followed yet

        at.poison.meanwhile = meanwhile
        assert await at.flow.ecotone.projections.rebuild("at_once")
        await at.count("s9", 501)

        assert inside == [3]
        await at.check("at_once", [*range(20), *([] if where.one_writer else [500]), 501])


both_shapes = pytest.mark.parametrize("partitioned", [False, True], ids=["global", "partitioned"])


@both_shapes
async def test_code_of_two_revisions_appends_around_a_switch_and_nothing_is_refused_or_lost(
    where: Where, partitioned: bool
) -> None:
    name = "beside_revised"
    old, new = (revised(number, partitioned=partitioned) for number in (1, 2))
    async with place(where, old, lasting=True) as first, place(where, new, lasting=True) as second:
        await count_some(first, range(10))
        versions = (await second.flow.ecotone.projections.status(name)).versions
        assert [one.condition for one in versions] == ["live", "building"]

        await second.count("s1", 10)
        await second.count("s1", 11, 12)
        await second.count("s9", 13)
        await first.check(name, range(10))  # it is left to the other code,
        live = (await second.flow.ecotone.projections.status(name)).live
        assert live is not None
        assert live.behind == 4
        await first.count("s1", 14)  # which handles it before what it appends itself
        await first.check(name, [*range(13), *([] if partitioned else [13]), 14])
        await first.count("s9", 15)
        await first.check(name, range(16))
        assert [number for stream, number in await first.rows(name) if stream == "s1"][-4:] == [10, 11, 12, 14]

        assert await second.flow.ecotone.projections.backfill(name)
        await second.count("s1", 16)
        await first.count("s8", 17)
        assert await second.flow.ecotone.projections.switch(name) == 2
        await second.check(name, range(18))

        await first.count("s1", 18)
        await first.count("s1", 19)
        await second.catch_up(name)
        await second.check(name, range(20))
        await first.count("s8", 20)
        await second.count("s8", 21)
        await second.check(name, range(22))
        live = (await first.flow.ecotone.projections.status(name)).live
        assert live is not None
        assert live.behind == 0

        assert await first.flow.ecotone.projections.rebuild(name)  # back to the code from before
        await first.count("s1", 22)
        await second.count("s1", 23)
        await first.catch_up(name)
        await first.check(name, range(24))


@both_shapes
async def test_while_processes_with_two_revisions_append_at_the_same_time_no_command_fails(
    where: Where, partitioned: bool
) -> None:
    name = "beside_revised"
    old, new = (revised(number, partitioned=partitioned) for number in (1, 2))
    async with place(where, old, lasting=True) as first:
        await count_some(first, range(10))
        with anyio.fail_after(90):
            async with counting(first) as by_old, place(where, new, lasting=True) as second:
                projections = second.flow.ecotone.projections
                async with counting(second, base=20_000) as by_new:
                    assert await projections.backfill(name)
                    await more(by_new)
                    await projections.switch(name)
                    await more(by_new)
                    await more(by_old)
                await second.catch_up(name)
                stopped = [*by_new]
            await count_some(first, range(10, 13))
        async with place(where, new, lasting=True) as second:
            await second.catch_up(name)

            await second.check(name, [*range(13), *by_old, *stopped])
            rows = await second.rows(name)
            for stream in {stream for stream, _ in rows}:
                numbers = [number for one, number in rows if one == stream and number >= 10_000]
                assert [n for n in numbers if n < 20_000] == sorted(n for n in numbers if n < 20_000)
                assert [n for n in numbers if n >= 20_000] == sorted(n for n in numbers if n >= 20_000)


@both_shapes
async def test_what_was_left_and_cannot_be_handled_stands_still_and_is_tried_again(
    where: Where, partitioned: bool
) -> None:
    name = "beside_revised"
    old, new = (revised(number, partitioned=partitioned) for number in (1, 2))
    async with place(where, old, lasting=True) as first, place(where, new, lasting=True) as second:
        projections = second.flow.ecotone.projections
        await second.flow.ecotone.projections.backfill(name)
        await projections.switch(name)
        second.poison.numbers = {7}
        await first.count("s1", 7)

        await second.flow.run(name, raises=False)
        with pytest.raises(ValueError, match="7"):
            await second.count("s1", 8)  # nothing comes before it
        status = (await projections.status(name)).live
        assert status is not None
        assert (status.behind, (await projections.status(name)).versions[-1].number) == (1, 2)

        second.poison.numbers = set()
        await projections.retry(name)
        await second.catch_up(name)
        await second.count("s1", 8)
        await second.check(name, [7, 8])
        live = (await projections.status(name)).live
        assert live is not None
        assert (live.behind, live.halt) == (0, None)


@both_shapes
async def test_what_the_live_version_has_yet_to_emit_is_emitted_before_a_switch(
    where: Where, partitioned: bool
) -> None:
    name = "beside_revised"
    old, new = (revised(number, partitioned=partitioned, emits=True) for number in (1, 2))
    async with place(where, old, lasting=True) as first, place(where, new, lasting=True) as second:
        projections = second.flow.ecotone.projections
        await first.count("s1", 1)
        await second.count("s1", 2)
        await projections.backfill(name)
        with pytest.raises(ProjectionError, match="is further than the live one"):
            await projections.switch(name)

        await first.catch_up(name)
        await projections.switch(name)
        await first.count("s1", 3)
        await second.count("s1", 4)

        await second.check(name, range(1, 5))
        assert await second.told() == {1: 1, 2: 1, 3: 1, 4: 1}


@both_shapes
async def test_what_was_left_in_a_stream_that_is_deleted_is_forgotten(where: Where, partitioned: bool) -> None:
    name = "beside_revised"
    old, new = (revised(number, partitioned=partitioned) for number in (1, 2))
    async with place(where, old, lasting=True) as first, place(where, new, lasting=True) as second:
        await second.flow.ecotone.projections.backfill(name)
        await second.flow.ecotone.projections.switch(name)
        await first.count("s1", 1, 2, 3)
        store: Any = first.flow.ecotone.assembly.services[EventStore]
        await store.delete("counter-s1")
        await first.count("s1", 4)
        await second.count("s2", 5)
        await second.catch_up(name)

        await second.check(name, [4, 5])


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
async def test_queries_of_new_code_get_the_live_version_until_it_is_switched(where: Where, mode: Mode) -> None:
    async with place(where, revised(1, mode=mode), lasting=True) as at:
        assert await at.flow.ask(to="version that answers") == 1
    async with place(where, revised(2, mode=mode), lasting=True) as at:
        projections = at.flow.ecotone.projections
        assert await at.flow.ask(to="version that answers") == 1
        assert await projections.backfill("beside_revised")
        assert await at.flow.ask(to="version that answers") == 1
        assert await projections.switch("beside_revised") == 2
        assert await at.flow.ask(to="version that answers") == 2
    async with place(where, revised(1, mode=mode), lasting=True) as at:
        assert await at.flow.ask(to="version that answers") == 2


async def test_a_live_state_that_the_code_cannot_read_is_told_to_who_asks() -> None:
    def states(number: int, type_: Any, default: Any) -> type:
        @projection("sums", categories=["counter"], mode="synchronous", revision=number)
        class Sums:
            @event_handler
            async def add(
                self, event: Counted, version: ProjectionVersion, sums: Annotated[type_, ProjectionState(default)]
            ) -> Any:
                return sums + 1 if isinstance(sums, int) else {**sums, event.stream: event.number}

            @query_handler("sums")
            async def sums(self, sums: Annotated[type_, ProjectionState(default)]) -> Any:
                return sums

        return Sums

    where = Where(None)
    async with place(where, states(1, int, 0), lasting=True) as at:
        await at.count("s1", 7)
        assert await at.flow.ask(to="sums") == 1
    async with place(where, states(2, dict[str, int], {}), lasting=True) as at:
        projections = at.flow.ecotone.projections
        for asked in (at.flow.ask(to="sums"), projections.state("sums")):
            with pytest.raises(ProjectionError, match="is that of revision 1, which the code of revision 2 cannot"):
                await asked
        assert await projections.backfill("sums")
        assert await projections.switch("sums") == 2
        assert await at.flow.ask(to="sums") == {"s1": 7}


async def test_only_one_version_is_built_at_a_time(where: Where) -> None:
    async with place(where, Beside) as at:
        projections = at.flow.ecotone.projections
        await count_some(at, range(10))
        await at.catch_up("beside")
        await projections.rebuild("beside", switch=False)

        with pytest.raises(ProjectionError, match="is being built already"):
            await projections.rebuild("beside")


async def test_progress_is_told_with_the_time_that_is_left(where: Where) -> None:
    async with place(where, Later) as at:
        await count_some(at, range(30))
        await at.catch_up("later")
        told: list[Progress] = []

        await at.flow.ecotone.projections.rebuild("later", told=told.append)

        assert [one.done for one in told] == sorted(one.done for one in told)
        assert (told[0].done, told[-1].done, told[-1].total) == (0, 30, 30)
        assert told[0].left is None
        assert told[-1].left == 0.0
        assert told[-1].part == 1.0
        assert any(one.left for one in told if 0 < one.done < 30)
