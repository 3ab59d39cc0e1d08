"""How a receiver learns that there is something to receive: an event in this process, and `NOTIFY` on PostgreSQL.

Neither is relied on: a notification is lost when its connection is, and not every proxy lets it through. Receivers
therefore look for themselves as well, from time to time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.core.errors import ChannelError

logger: logging.Logger = logging.getLogger(__name__)

_TOPIC = "ecotone_message"
_PAUSE = 0.05  # seconds between two notifications of one process
_KEEP_ALIVE = 20.0  # seconds after which a silent connection is asked whether it is still one
_RECONNECT = 1.0
_ANSWER = 5.0


class Wakeup:
    """Wakes up the receivers of a channel, here and, where the database can do that, in other processes.

    Args:
        transactions: Where notifications are sent from.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._bells: dict[str, asyncio.Event] = {}
        self._id = uuid4().hex
        self._users = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: dict[str, None] = {}
        self._wanted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._notify = text("SELECT pg_notify(:topic, heard) FROM unnest(CAST(:heard AS text[])) AS heard")

    def bell(self, channel: str) -> asyncio.Event:
        """Return an event that is set when something may have arrived after this call."""
        return self._bells.setdefault(channel, asyncio.Event())

    def ring(self, channel: str) -> None:
        """Wake up everybody who receives from a channel."""
        self.ring_here(channel)
        if self._transactions.dialect.notifies:
            self._pending[channel] = None
            self._wanted.set()

    def ring_here(self, channel: str) -> None:
        """Wake up everybody in this process who receives from a channel."""
        bell = self._bells.pop(channel, None)
        if bell is not None:
            bell.set()

    def open(self) -> None:
        """Begin to listen and to notify. Each call is undone by one `close`."""
        self._users += 1
        if self._users > 1:
            return
        self._bells.clear()  # they may be of another event loop
        if self._transactions.dialect.notifies:
            self._stopping = asyncio.Event()
            self._wanted = asyncio.Event()
            if self._pending:
                self._wanted.set()
            self._tasks = [
                asyncio.create_task(self._notify_others(), name="ecotone: notify"),
                asyncio.create_task(self._listen(), name="ecotone: listen"),
            ]

    async def close(self) -> None:
        """Stop, when this undoes the last `open`."""
        self._users -= 1
        if self._users == 0:
            self._stopping.set()
            self._wanted.set()
            if self._tasks:
                await asyncio.wait(self._tasks)
            self._tasks = []

    async def _notify_others(self) -> None:
        # NOTIFY in the transaction that sends would take a lock at commit that is global to the server.
        while not self._stopping.is_set():
            await self._wanted.wait()
            self._wanted.clear()
            if not self._pending:
                continue
            parameters = {"topic": _TOPIC, "heard": [f"{self._id} {channel}" for channel in self._pending]}
            self._pending = {}
            try:
                await self._transactions.run(
                    partial(AsyncConnection.execute, statement=self._notify, parameters=parameters),
                    "waking up other processes",
                )
            except ChannelError as error:
                logger.debug("other processes were not woken up and will find the messages by themselves: %s", error)
            await self._unless_stopping(asyncio.sleep(_PAUSE))

    def _hear(self, notification: str) -> None:
        sender, _, channel = notification.partition(" ")
        if sender != self._id:  # here they know already
            self.ring_here(channel)

    async def _listen(self) -> None:
        listen = _listen_with_asyncpg if self._transactions.engine.dialect.driver == "asyncpg" else _listen_with_psycopg
        reported = False
        while not self._stopping.is_set():
            try:
                with self._transactions.translated("listening for messages"):
                    async with _detached(self._transactions.own_engine) as driver:
                        reported = False
                        await self._unless_stopping(listen(driver, self._hear))
            except ChannelError as error:
                if not reported:
                    logger.warning("no longer woken up by the database, looking for messages instead: %s", error)
                reported = True
                await self._unless_stopping(asyncio.sleep(_RECONNECT))

    async def _unless_stopping(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that can be cancelled at any time, and cancel it when it is time to stop."""
        stopping = asyncio.create_task(self._stopping.wait())
        working = asyncio.create_task(work)
        try:
            await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait((working,))
        if not working.cancelled():
            working.result()


@asynccontextmanager
async def _detached(engine: AsyncEngine) -> AsyncIterator[Any]:
    """Open a connection of the driver's that is not counted among those of the pool."""
    driver: Any = None
    try:
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver = raw.driver_connection
            raw.detach()
            yield driver
    finally:
        if driver is not None:
            await driver.close()  # not every dialect closes what was detached


async def _listen_with_asyncpg(driver: Any, ring: Callable[[str], None]) -> None:
    gone = asyncio.Event()
    driver.add_termination_listener(lambda connection: gone.set())
    await driver.add_listener(_TOPIC, lambda connection, pid, topic, payload: ring(payload))
    while not gone.is_set():
        try:
            async with asyncio.timeout(_KEEP_ALIVE):
                await gone.wait()
        except TimeoutError:
            await driver.execute("SELECT 1", timeout=_ANSWER)
    raise ConnectionError("the connection was closed")


async def _listen_with_psycopg(driver: Any, ring: Callable[[str], None]) -> None:
    await driver.execute(f"LISTEN {_TOPIC}")
    while True:
        async for notification in driver.notifies(timeout=_KEEP_ALIVE):
            ring(notification.payload)
        async with asyncio.timeout(_ANSWER):
            await driver.execute("SELECT 1")
