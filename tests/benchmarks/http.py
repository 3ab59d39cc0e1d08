"""A FastAPI POST that sends a command to a channel, against the same POST that does nothing."""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, FastAPI
from pydantic import BaseModel, TypeAdapter
from rich.console import Console
from starlette.types import Receive, Scope, Send

from ecotone_fastapi import CommandBusDep, Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from tests.benchmarks.measure import Row, show

CONNECTIONS = 32
REQUESTS = 1_500  # in a round
ROUNDS = 11


class Order(BaseModel):
    order_id: str
    customer: str
    quantity: int


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    quantity: int


@asynchronous("orders")
@command_handler(id="place-order")
async def place_order(command: PlaceOrder) -> None: ...


orders = MemoryChannel("orders")
# What consumers do is another benchmark: here it is the request that is measured.
ecotone = Ecotone([place_order], channels=[orders], consumers=False)

# Each endpoint is the first of an application of its own: routes are tried one after the other, and that takes time.
empty, depending, by_hand, sending = FastAPI(), FastAPI(), FastAPI(), FastAPI(lifespan=ecotone.lifespan)
APPLICATIONS = {
    "/without": empty,
    "/depends": depending,
    "/by-hand": by_hand,
    "/with": sending,
    "/purge": sending,
    "/spent": sending,
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await APPLICATIONS[scope.get("path", "/with")](scope, receive, send)


@empty.post("/without", status_code=202)
async def without(order: Order) -> None: ...


async def nothing() -> None: ...


@depending.post("/depends", status_code=202)
async def with_a_dependency(order: Order, dependency: Annotated[None, Depends(nothing)]) -> None: ...


Queue = list[tuple[bytes, dict[str, str]]]
queue: Queue = []
json_of = TypeAdapter(PlaceOrder).dump_json


async def get_queue() -> Queue:
    return queue


@by_hand.post("/by-hand", status_code=202)
async def with_a_list(order: Order, waiting: Annotated[Queue, Depends(get_queue)]) -> None:
    """What has to be done at least: a payload of bytes, headers by which it can be found and read, a place to wait."""
    id_ = str(uuid4())
    headers = {
        "id": id_,
        "correlation_id": id_,
        "timestamp": datetime.now(UTC).isoformat(),
        "endpoint": "place-order",
        "content_type": "application/json",
        "type": "PlaceOrder",
    }
    waiting.append((json_of(PlaceOrder(order.order_id, order.quantity)), headers))


@sending.post("/with", status_code=202)
async def with_a_command(order: Order, commands: CommandBusDep) -> None:
    await commands.send(PlaceOrder(order.order_id, order.quantity))


@sending.post("/purge", status_code=202)
async def purge() -> None:
    queue.clear()
    await orders.purge()


@sending.post("/spent", status_code=202)
async def spent() -> float:
    """What the server has taken of its processor so far: what others take of it meanwhile is not its own."""
    return time.process_time()


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """Run the application in a process of its own."""
    port = 18_765
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "tests.benchmarks.http:app", "--port", str(port), "--log-level", "error"
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    break
        yield port
    finally:
        process.terminate()
        await process.wait()


BODY = b'{"order_id":"order-1","customer":"Ada","quantity":3}'


async def post(port: int, path: str, times: int) -> bytes:
    """Send so many requests one after the other on a connection of its own; return the last answer."""
    answer = b""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    for _ in range(times):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202"), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
    writer.close()
    return answer


async def posting(console: Console) -> bool:
    took: dict[str, list[float]] = {"/without": [], "/depends": [], "/by-hand": [], "/with": []}
    async with serving() as port:
        for number in range(ROUNDS + 1):
            for path, rounds in took.items():
                began = float(await post(port, "/spent", 1))
                await asyncio.gather(*(post(port, path, REQUESTS // CONNECTIONS) for _ in range(CONNECTIONS)))
                spent_on_it = float(await post(port, "/spent", 1)) - began
                if number:  # the first round warms up
                    rounds.append(spent_on_it / (REQUESTS // CONNECTIONS * CONNECTIONS))
            await post(port, "/purge", 1)
    limit, depends, hand, ours = (statistics.median(rounds) for rounds in took.values())
    return show(
        console,
        f"POST with a pydantic body under uvicorn, 1 worker, {CONNECTIONS} connections: processor time of the server",
        [
            Row("nothing done (limit)", limit, limit),
            Row("one dependency of FastAPI that does nothing", depends, limit),
            Row("a dependency, and by hand what a message takes at least", hand, limit),
            Row("command sent to a channel in memory", ours, limit, "0.9 of the limit", limit / ours >= 0.9),
            Row("the same, beside what is done by hand", ours, hand),
        ],
    )
