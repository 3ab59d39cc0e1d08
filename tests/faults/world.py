"""The world in which faults happen: a database, a queue, networks to both that can fail, workers that can be killed."""

import asyncio
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from ecotone_fastapi.adapters.rabbitmq.notes import name_of
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.testing.faults import TcpProxy, tcp_proxy
from tests.faults.shop import TABLES, PlaceOrder, RefusedError, make

PATIENCE = 150.0  # seconds; only a test that fails waits for so long
_BETWEEN_ORDERS = 0.02
ROOT = Path(__file__).parents[2]


class Worker:
    """A process with consumers and a relay."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self.process.returncode is None:
            self.process.kill()

    async def ends(self) -> int:
        """Wait for its end; return its exit code, negative when a signal has ended it."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def says(self, what: str) -> None:
        """Wait until it has logged this."""
        await eventually(lambda: what in self.log.read_text(errors="replace"), f"{what!r} in {self.log}")


class World:
    """A database, a queue and networks of its own. Made by `world`.

    Attributes:
        to_broker: The network between the workers and RabbitMQ.
        to_database: The network between the workers and PostgreSQL.
        queue: The queue of the channel `shipping`.
        database: The address of PostgreSQL, past its network.
        broker: The address of RabbitMQ, past its network.
    """

    def __init__(
        self, directory: Path, *, database: str, broker: str, to_broker: TcpProxy, to_database: TcpProxy
    ) -> None:
        self.to_broker = to_broker
        self.to_database = to_database
        self.database = database
        self.broker = broker
        self.queue = f"ecotone-faults-{uuid.uuid4().hex[:12]}"
        self._directory = directory
        self._runs = directory / "runs.txt"
        self._engine = create_async_engine(database, poolclass=NullPool)
        self._workers: list[Worker] = []

    # What is there

    @property
    def through_database(self) -> str:
        """The database's address through its network."""
        return (
            make_url(self.database)
            .set(host="127.0.0.1", port=self.to_database.port)
            .render_as_string(hide_password=False)
        )

    @property
    def through_broker(self) -> str:
        """The broker's address through its network."""
        credentials = self.broker.partition("@")[0]
        path = self.broker.partition("@")[2].partition("/")[2]
        return f"{credentials}@127.0.0.1:{self.to_broker.port}/{path}"

    def application(self, *, lease: float = 60.0) -> Ecotone:
        """Make the application for this process; its networks do not fail."""
        return make(self.database, self.broker, self.queue, lease=lease)

    async def execute(self, statement: str) -> Sequence[Any]:
        """Run a statement on a connection of its own."""
        async with self._engine.begin() as connection:
            result = await connection.execute(text(statement))
            return result.all() if result.returns_rows else ()

    async def accepted(self) -> list[int]:
        """The numbers of orders that were committed."""
        return sorted(row[0] for row in await self.execute("SELECT number FROM accepted"))

    async def effects(self, what: str) -> Counter[int]:
        """How often each order was shipped or billed."""
        rows = await self.execute(f"SELECT number FROM effect WHERE what = '{what}'")
        return Counter(row[0] for row in rows)

    async def parked(self) -> Sequence[Any]:
        """The errors of parked messages."""
        return await self.execute("SELECT error_type, error_message FROM ecotone_dead_letter")

    def runs(self) -> Counter[str]:
        """How often handlers of workers have begun, as `shipped:1`, whatever became of it."""
        return Counter(self._runs.read_text().split() if self._runs.exists() else ())

    async def waiting(self) -> int:
        """How many messages wait or are lent in the database: of the outbox and of the channel `billing`."""
        return int((await self.execute("SELECT count(*) FROM ecotone_message"))[0][0])

    # What is done

    async def place(self, numbers: Iterable[int], *, refused: Callable[[int], bool] = lambda number: False) -> None:
        """Place orders in this process, which runs no consumer; those that are refused must leave no trace."""
        async with self.application().running(consumers=False) as ecotone:
            for number in numbers:
                await place(ecotone, number, refused=refused(number))

    @asynccontextmanager
    async def placing(self) -> AsyncIterator[list[int]]:
        """Place orders beside the block, one after the other; gives their numbers, complete in the end.

        This process runs no consumer. No order may fail, whatever happens to RabbitMQ meanwhile.
        """
        placed: list[int] = []
        async with self.application().running(consumers=False, patient=True) as ecotone:
            over = asyncio.Event()

            async def go_on() -> None:
                while not over.is_set():
                    await place(ecotone, len(placed), refused=False)
                    placed.append(len(placed))
                    await asyncio.sleep(_BETWEEN_ORDERS)

            placing = asyncio.create_task(go_on())
            try:
                yield placed
            finally:
                over.set()
                await placing

    async def start(
        self, *names: str, application: str = "tests.faults.shop:from_environment", **environment: str
    ) -> Worker:
        """Start a worker process; without names it runs everything, the relay of the outbox included."""
        log = self._directory / f"worker-{len(self._workers)}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("ecotone"),
                "run",
                "--factory",
                application,
                *names,
                "--log-level",
                "info",
                cwd=ROOT,
                env={
                    **os.environ,
                    "FAULTS_DATABASE": self.through_database,
                    "FAULTS_BROKER": self.through_broker,
                    "FAULTS_QUEUE": self.queue,
                    "FAULTS_RUNS": str(self._runs),
                    **environment,
                },
                stderr=errors,
                stdout=asyncio.subprocess.DEVNULL,
            )
        worker = Worker(process, log)
        self._workers.append(worker)
        return worker

    async def settled(self, numbers: Iterable[int], *, within: float = PATIENCE) -> None:
        """Wait until all of these orders are shipped and billed."""
        wanted = set(numbers)

        async def done() -> bool:
            return all([wanted <= set(await self.effects(what)) for what in ("shipped", "billed")])

        await eventually(done, f"the effects of {len(wanted)} orders", within=within)

    async def once(self, numbers: Iterable[int]) -> None:
        """Check that these orders, and no others, were accepted, shipped and billed, each of them once."""
        expected = Counter(dict.fromkeys(numbers, 1))
        assert Counter(await self.accepted()) == expected
        for what in ("shipped", "billed"):
            assert await self.effects(what) == expected, what
        assert await self.parked() == []

    async def close(self) -> None:
        """End all workers, and remove the queue."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            await worker.ends()
        connection = await aio_pika.connect(self.broker, timeout=10)
        async with connection:
            channel = await connection.channel()
            for queue in (self.queue, name_of(self.queue)):
                await channel.queue_delete(queue)
        await self._engine.dispose()


async def place(ecotone: Ecotone, number: int, *, refused: bool) -> None:
    """Place one order."""
    try:
        await ecotone.command_bus.send(PlaceOrder(number, refused=refused))
    except RefusedError:
        assert refused


async def eventually(
    condition: Callable[[], Awaitable[object] | object], what: str, *, within: float = PATIENCE
) -> None:
    """Wait until something is so, but not for ever."""
    ends_at = time.monotonic() + within
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < ends_at, f"waited in vain for {what}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def world(directory: Path, database: str, broker: str) -> AsyncIterator[World]:
    """Make a world.

    Args:
        directory: Where workers write their logs.
        database: An empty PostgreSQL database.
        broker: The address of RabbitMQ.
    """
    async with AsyncExitStack() as stack:
        to_broker = await stack.enter_async_context(tcp_proxy(make_url(broker).port or 5672))
        to_database = await stack.enter_async_context(tcp_proxy(make_url(database).port or 5432))
        made = World(directory, database=database, broker=broker, to_broker=to_broker, to_database=to_database)
        stack.push_async_callback(made.close)
        for table in TABLES:
            await made.execute(table)
        await SqlAlchemy(database).migrate()
        yield made
