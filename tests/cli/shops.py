"""An application with a database and handlers that a test holds and lets go by files."""

import asyncio
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi.core.plugin import Limits
from tests.cli.processes import eventually

MODULE = '''
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Depends
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    AsynchronousHandlers, Backoff, ConsumerSettings, Ecotone, Failures, asynchronous, command_handler
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

here = Path(__file__).parent
database = SqlAlchemy((here / "url").read_text())
SessionDep = Annotated[AsyncSession, Depends(database.session)]


@dataclass(frozen=True)
class Work:
    number: int


@dataclass(frozen=True)
class OtherWork:
    number: int


def starts(number: int) -> None:
    (here / f"started-{number}-{os.getpid()}").touch()


async def may_go_on(number: int) -> None:
    while not ((here / "go").exists() or (here / f"go-{number}").exists()):
        await anyio.sleep(0.01)


class Worker:
    @asynchronous("work")
    @command_handler(id="work")
    async def work(self, command: Work, session: SessionDep) -> None:
        """Take effect first, and wait in the transaction."""
        await session.execute(text(f"INSERT INTO effect (number) VALUES ({command.number})"))
        starts(command.number)
        await may_go_on(command.number)

    @asynchronous("other")
    @command_handler(id="other-work")
    async def other_work(self, command: OtherWork, session: SessionDep) -> None:
        """Wait first, and then take effect."""
        starts(command.number)
        await may_go_on(command.number)
        await session.execute(text(f"INSERT INTO effect (number) VALUES ({command.number})"))


ecotone = Ecotone(
    [Worker],
    channels=[
        database.channel("work", lease=float(os.environ.get("LEASE", "60"))),
        database.channel("other", lease=float(os.environ.get("LEASE", "60"))),
    ],
    plugins=[
        database,
        AsynchronousHandlers(
            consumers={"*": ConsumerSettings(concurrency=int(os.environ.get("CONCURRENCY", "1")))}
        ),
        Failures(Backoff(first=0.1), unsettled=50),
    ],
)


async def send(command: type, numbers: list[int]) -> None:
    async with ecotone.running(consumers=False):
        for number in numbers:
            await ecotone.command_bus.send(command(number))
'''


class Shop:
    """The application, in a directory of its own, and what its handlers have done."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        (directory / "jobs.py").write_text(MODULE)
        (directory / "url").write_text(url)
        asyncio.run(self._module().database.migrate())
        self.execute("CREATE TABLE effect (number INTEGER)")

    def send(self, *numbers: int, command: str = "Work") -> None:
        jobs = self._module()
        asyncio.run(jobs.send(getattr(jobs, command), numbers))

    def handle_the_rest(self, channel: str) -> int:
        """Let all handlers end, and handle in this process what is there now; return how many messages that were."""
        self.let_go()
        handled: dict[str, int] = asyncio.run(self._module().ecotone.work([channel], limits=Limits(until_empty=True)))
        return handled[channel]

    def _module(self) -> Any:
        """The application in this process, made anew, because each one belongs to one event loop."""
        found = importlib.util.spec_from_file_location("jobs", self.directory / "jobs.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    def started(self, pid: int | None = None) -> list[int]:
        """The numbers of the messages that handlers have begun with, once for each process, or in one process."""
        wanted = pid or r"\d+"
        names = [re.fullmatch(rf"started-(\d+)-{wanted}", path.name) for path in self.directory.glob("started-*")]
        return sorted(int(found[1]) for found in names if found)

    def begins(self, *numbers: int) -> None:
        """Wait until handlers have begun with these."""
        eventually(lambda: set(numbers) <= set(self.started()), f"the handling of {numbers}")

    def let_go(self, *numbers: int) -> None:
        """Let the handlers of these end, or all."""
        for name in [f"go-{number}" for number in numbers] or ["go"]:
            (self.directory / name).touch()

    def effects(self) -> list[int]:
        return [number for (number,) in self.execute("SELECT number FROM effect ORDER BY number")]

    def waiting(self) -> int:
        ((count,),) = self.execute("SELECT count(*) FROM ecotone_message")
        return int(count)

    def parked(self) -> int:
        ((count,),) = self.execute("SELECT count(*) FROM ecotone_dead_letter")
        return int(count)

    def execute(self, statement: str) -> Sequence[Any]:
        async def run() -> Sequence[Any]:
            engine = create_async_engine(self.url, poolclass=NullPool)
            async with engine.begin() as connection:
                result = await connection.execute(text(statement))
                return result.all() if result.returns_rows else ()

        return asyncio.run(run())
