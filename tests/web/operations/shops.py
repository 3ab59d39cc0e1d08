"""An application whose handlers fail, operated over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException

from ecotone_fastapi import (
    DeadLetter,
    Ecotone,
    Failures,
    asynchronous,
    command_handler,
    delayed,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.testing import TravellingClock

ADMIN = {"x-token": "secret"}
JSON = {"content-type": "application/json"}


async def require_admin(x_token: Annotated[str | None, Header()] = None) -> None:
    """Whom the application lets operate."""
    if x_token is None:
        raise HTTPException(401, "who are you?")
    if x_token != "secret":
        raise HTTPException(403, "not you")


class Shop:
    """Mails that cannot be sent while the mail server is down, and reminders that wait."""

    def __init__(self) -> None:
        self.is_down = True
        self.error: type[Exception] = TimeoutError
        self.sent: list[Any] = []

    @asynchronous("mails")
    @command_handler("mail", id="mail")
    async def mail(self, text: str) -> None:
        if self.is_down:
            raise self.error(f"no answer for {text}")
        self.sent.append(text)

    @asynchronous("bytes")
    @command_handler("bytes", id="bytes")
    async def raw(self, data: bytes) -> None:
        if self.is_down:
            raise self.error("unreadable")
        self.sent.append(data)

    @delayed(3600.0, key=lambda text: f"remind-{text}")
    @asynchronous("mails")
    @command_handler("remind", id="remind")
    async def remind(self, text: str) -> None:
        self.sent.append(text)

    @query_handler("sent")
    async def all_sent(self, _: str) -> list[Any]:
        return self.sent


class Operations:
    """The operations of an application, as a client with a token sees them."""

    def __init__(self, ecotone: Ecotone, shop: Shop, clock: TravellingClock, app: FastAPI, prefix: str) -> None:
        self.ecotone = ecotone
        self.shop = shop
        self.clock = clock
        self.app = app
        self._prefix = prefix
        transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", headers=ADMIN)

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask without a look at the answer."""
        return await self.http.request(method, f"{self._prefix}{path}", **options)

    async def get(self, path: str, **query: Any) -> Any:
        """Return what is told."""
        answer = await self.call("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **body: Any) -> Any:
        """Ask for a change; return what is told about it."""
        answer = await self.call("POST", path, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def fails(self, *texts: str, **headers: str) -> list[str]:
        """Let messages fail for good; return their ids in the dead letter, the oldest first."""
        for text in texts:
            await self.ecotone.command_bus.send(text, to="mail", headers=headers)
        await self.work("mails")
        return list(await self.ecotone.dead_letters.ids())

    async def fails_with(self, data: bytes, content_type: str = "application/octet-stream") -> str:
        """Let one message of bytes fail; return its id."""
        await self.ecotone.command_bus.send(data, to="bytes", headers={"content_type": content_type})
        await self.work("bytes")
        [parked] = [one for one in await self.ecotone.dead_letters.list() if one.message.payload == data]
        return parked.id

    async def work(self, channel: str) -> None:
        """Let a consumer handle everything that is there."""
        await self.ecotone.run(channel, Limits(until_empty=True))


Channels = Callable[[str], Any]


@asynccontextmanager
async def operated(
    channels: Channels = MemoryChannel,
    *plugins: Any,
    operations: Any = (Depends(require_admin),),
    error_handlers: bool = True,
    clock: TravellingClock | None = None,
    **options: Any,
) -> AsyncIterator[Operations]:
    """Run a shop without its consumers, and give its operations.

    Args:
        channels: Makes a channel.
        plugins: What it has besides.
        operations: Who may operate it.
        error_handlers: Whether its own errors are answered, too.
        clock: What time it is.
        options: What else is given to the Ecotone.
    """
    shop, clock = Shop(), clock or TravellingClock()
    ecotone = Ecotone(
        [shop],
        channels=[channels("mails"), channels("bytes")],
        plugins=[*plugins, Failures(DeadLetter())],
        operations=operations,
        clock=clock,
        **options,
    )
    app = FastAPI()
    ecotone.install(app, error_handlers=error_handlers)
    async with ecotone.running(consumers=False):
        yield Operations(ecotone, shop, clock, app, "/ecotone/operations")
