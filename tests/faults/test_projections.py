"""Projections are killed and frozen in the worst moments: each event counts once, and somebody else goes on."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from tests.faults.projections import TABLES, Counted, make
from tests.faults.world import ROOT, Worker, eventually

pytestmark = pytest.mark.postgresql

NUMBERS = range(120)


class Projected:
    """A database with events, and processes that project them."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self._url = url
        self._engine = create_async_engine(url, poolclass=NullPool)
        self._workers: list[Worker] = []

    async def execute(self, statement: str) -> list[Any]:
        async with self._engine.begin() as connection:
            result = await connection.execute(text(statement))
            return list(result.all()) if result.returns_rows else []

    async def count(self, numbers: Iterable[int]) -> None:
        async with make(self._url).running(consumers=False) as ecotone:
            for number in numbers:
                await ecotone.command_bus.send(Counted(f"s{number % 5}", number))

    async def start(self, *arguments: str, **environment: str) -> Worker:
        log = self._directory / f"worker-{len(self._workers)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("ecotone"),
                *arguments,
                cwd=ROOT,
                env={
                    **os.environ,
                    "FAULTS_DATABASE": self._url,
                    "ECOTONE_APP": "tests.faults.projections:from_environment",
                    "ECOTONE_FACTORY": "1",
                    **environment,
                },
                stderr=output,
                stdout=output,
            )
        worker = Worker(process, log)
        self._workers.append(worker)
        return worker

    async def rows(self, table: str) -> Counter[int]:
        return Counter(row[0] for row in await self.execute(f"SELECT number FROM {table}"))

    async def once(self, table: str, numbers: Iterable[int] = NUMBERS) -> None:
        """Wait until all of these are there; each of them is there once."""
        expected = Counter(dict.fromkeys(numbers, 1))

        async def done() -> bool:
            return set(expected) <= set(await self.rows(table))

        await eventually(done, f"all rows of {table}")
        assert await self.rows(table) == expected

    async def close(self) -> None:
        for worker in self._workers:
            worker.send(signal.SIGCONT)
            worker.kill()
        for worker in self._workers:
            await worker.ends()
        await self._engine.dispose()


@pytest.fixture
async def projected(tmp_path: Path, postgresql_url: str) -> AsyncIterator[Projected]:
    made = Projected(tmp_path, postgresql_url)
    await SqlAlchemy(postgresql_url).migrate()
    for table in TABLES:
        await made.execute(table)
    yield made
    await made.close()


@pytest.mark.parametrize("place", ["projected:30", "flushed:2"])
@pytest.mark.parametrize("name", ["plain", "parts"])
async def test_e14_who_is_killed_between_the_read_model_and_the_checkpoint_repeats_nothing(
    projected: Projected, name: str, place: str
) -> None:
    await projected.count(NUMBERS)
    killed = await projected.start("run", name, FAULTS_CRASH=place)
    assert await killed.ends() == -signal.SIGKILL
    assert len(await projected.rows(name)) < len(NUMBERS)

    await projected.start("run", name)

    await projected.once(name)


@pytest.mark.parametrize("name", ["plain", "parts", "beside"])
async def test_scenario_32_a_rebuild_that_is_killed_is_carried_on_by_the_runner(
    projected: Projected, name: str
) -> None:
    await projected.count(NUMBERS)
    assert await (await projected.start("projection", "run", name)).ends() == 0
    live, rebuilt = ("beside_1", "beside_2") if name == "beside" else (name, name)
    await projected.once(live)

    killed = await projected.start("projection", "rebuild", name, FAULTS_CRASH="projected:45")
    assert await killed.ends() == -signal.SIGKILL
    runner = await projected.start("run", name)
    await projected.count([1000])

    await projected.once(rebuilt, [*NUMBERS, 1000])
    await eventually(lambda: _is_live(projected, name), "the end of the rebuild")
    runner.send(signal.SIGTERM)
    assert await runner.ends() == 0
    await projected.once(rebuilt, [*NUMBERS, 1000])


async def _is_live(projected: Projected, name: str) -> bool:
    rows = await projected.execute(f"SELECT status FROM ecotone_projection WHERE name = '{name}' ORDER BY version")
    return [row[0] for row in rows] == (["retired", "live"] if name == "beside" else ["live"])


@pytest.mark.parametrize("name", ["plain", "parts"])
async def test_scenario_28_a_runner_that_was_frozen_does_no_harm_when_it_thaws(projected: Projected, name: str) -> None:
    await projected.count(NUMBERS)
    frozen = await projected.start("run", name, FAULTS_SLOWNESS="0.02")
    await eventually(lambda: _has_begun(projected, name), "the first batch")
    frozen.send(signal.SIGSTOP)
    before = len(await projected.rows(name))
    assert before < len(NUMBERS)

    second = await projected.start("run", name)
    await eventually(lambda: _has_come_further(projected, name, before), "somebody else to take over")
    frozen.send(signal.SIGCONT)

    await projected.once(name)
    await projected.count([1000])
    await projected.once(name, [*NUMBERS, 1000])
    for worker in (frozen, second):
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0
    await projected.once(name, [*NUMBERS, 1000])


async def _has_begun(projected: Projected, name: str) -> bool:
    return bool(await projected.rows(name))


async def _has_come_further(projected: Projected, name: str, before: int) -> bool:
    return len(await projected.rows(name)) > before


async def test_several_processes_share_the_partitions_of_a_projection(projected: Projected) -> None:
    workers = [await projected.start("run", "parts", "plain") for _ in range(3)]
    for worker in workers:
        await worker.says("running")

    await projected.count(range(60))
    workers[0].kill()
    await projected.count(range(60, 120))

    await projected.once("parts")
    await projected.once("plain")
