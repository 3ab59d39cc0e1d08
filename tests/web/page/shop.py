"""A shop that a real server serves, with something of everything that its operations page shows."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ecotone_fastapi import (
    DeadLetter,
    Ecotone,
    EventStore,
    ProjectionState,
    ProjectionVersion,
    asynchronous,
    command_handler,
    delayed,
    event_handler,
    on_failure,
    projection,
    query_handler,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Assembly

SCRIPT = "<script>alert('run')</script><img src=x onerror=\"alert('loaded')\">"


@dataclass(frozen=True)
class ChargeCard:
    order_id: str
    amount: int
    note: str = ""


@dataclass(frozen=True)
class RemindCustomer:
    order_id: str


@dataclass(frozen=True)
class SendReceipt:
    order_id: str


@dataclass(frozen=True)
class MoneyWasMoved:
    wallet: str
    amount: int


class CardError(Exception):
    """The bank refuses."""


@dataclass
class Bank:
    """What the handlers do, and whether they can."""

    works: bool = False
    charged: list[ChargeCard] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    mails: bool = False
    down: bool = False
    rebuilding: anyio.Event = field(default_factory=anyio.Event)
    """Set when projections may go on."""


@on_failure(DeadLetter())
class Payments:
    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    @asynchronous("payments")
    @command_handler(id="charge-card")
    async def charge(self, command: ChargeCard, message: Message[Any]) -> None:
        """Charge a card."""
        if not self._bank.works and command.amount > 0:
            raise CardError(f"card refused for {command.order_id} {command.note}")
        self._bank.charged.append(command)
        self._bank.headers.append(dict(message.headers))

    @asynchronous("mails")
    @command_handler(id="send-receipt")
    async def receipt(self, command: SendReceipt) -> None:
        if not self._bank.mails:
            raise TimeoutError(f"the mail server does not answer for {command.order_id}")

    @delayed(timedelta(days=3), key=lambda command: f"reminder-{command.order_id}")
    @asynchronous("mails")
    @command_handler(id="remind")
    async def remind(self, command: RemindCustomer) -> None: ...

    @query_handler("charged")
    async def charged(self, query: str) -> int:
        return len(self._bank.charged)


@command_handler(id="move-money")
async def move(command: MoneyWasMoved, events: EventStore) -> None:
    await events.append(f"wallet-{command.wallet}", [command])


class BankServer:
    """A plugin whose server can be asked how it is."""

    name = "bank"

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def install(self, assembly: Assembly) -> None:
        """Plug in nothing."""

    async def check(self) -> None:
        if self._bank.down:
            raise ChannelError("the line is dead")


def balances(bank: Bank) -> type:
    @projection("balances", categories=["wallet"])
    class Balances:
        @event_handler
        async def moved(
            self, event: MoneyWasMoved, version: ProjectionVersion, balance: Annotated[int, ProjectionState(0)]
        ) -> int:
            if event.amount < 0 and not bank.works:
                raise ValueError("no overdraft")
            if version.number > 1:
                await bank.rebuilding.wait()
            return balance + event.amount

    return Balances


class Shop:
    """The application and where it is served.

    Args:
        url: The URL of its database.
        prefix: Where its router is included.
        operations: What its operations stand behind.
        handlers: What it handles beside the usual.
        channels: Channels beside the usual.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "/ecotone",
        operations: Sequence[Any] | None,
        handlers: Sequence[object] = (),
        channels: Sequence[Channel] = (),
    ) -> None:
        self.bank = Bank()
        self.database = SqlAlchemy(url, create_schema=True)
        self.prefix = prefix
        self.ecotone = Ecotone(
            [Payments(self.bank), move, balances(self.bank), *handlers],
            channels=[self.database.channel("payments"), self.database.channel("mails"), *channels],
            plugins=[self.database, BankServer(self.bank)],
            operations=operations,
        )
        self.app = FastAPI()
        self.ecotone.install(self.app, prefix=prefix)
        self.port = 0

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}{self.prefix}/operations/page?seconds=0.2"

    @asynccontextmanager
    async def served(self) -> AsyncIterator["Shop"]:
        """Serve it while the block runs."""
        async with self.ecotone.running(), self.listening():
            try:
                yield self
            finally:
                self.bank.rebuilding.set()
        await self.database.engine.dispose()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answer requests while the block runs; the second time at the same port as the first."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        # Streams of news have no end of their own: the server does not wait for it.
        config = uvicorn.Config(self.app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            while not server.started:
                await anyio.lowlevel.checkpoint()
            try:
                yield
            finally:
                server.should_exit = True

    # What happens in it

    async def charge(
        self, *orders: str, amount: int = 5, note: str = "", headers: dict[str, Any] | None = None
    ) -> None:
        """Charge cards, and wait until that has gone as well as it can."""
        before = await self.parked()
        for order in orders:
            await self.ecotone.command_bus.send(ChargeCard(order, amount, note), headers=headers)
        if not self.bank.works:
            await self.until(self.parked, before + len(orders))

    async def receipt(self, *orders: str) -> None:
        """Send receipts, which fails."""
        before = await self.parked()
        for order in orders:
            await self.ecotone.command_bus.send(SendReceipt(order))
        await self.until(self.parked, before + len(orders))

    async def parked(self) -> int:
        """Return how many messages are in the dead letter."""
        return await self.ecotone.dead_letters.count()

    async def charged(self) -> int:
        """Return how many cards were charged."""
        return len(self.bank.charged)

    async def until(self, ask: Any, wanted: object) -> None:
        """Wait until something is as it should be."""
        with anyio.fail_after(60):
            while await ask() != wanted:
                await anyio.lowlevel.checkpoint()


def anybody() -> None:
    """A dependency that lets everybody pass."""


async def with_password(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
    """Let those pass who know the password."""
    if (credentials.username, credentials.password) != ("ada", "secret"):
        raise HTTPException(401, "This is not the password.", headers={"WWW-Authenticate": "Basic"})


async def with_cookie(request: Request) -> None:
    """Let those pass who have signed in."""
    if request.cookies.get("session") != "ada":
        raise HTTPException(403, "Sign in first, as somebody who may operate.")
