"""A FastAPI POST that sends a command to a channel, against the same POST that does nothing."""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from rich.console import Console

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
app = FastAPI(lifespan=ecotone.lifespan)


@app.post("/without", status_code=202)
async def without(order: Order) -> None: ...


async def nothing() -> None: ...


@app.post("/depends", status_code=202)
async def with_a_dependency(order: Order, dependency: Annotated[None, Depends(nothing)]) -> None: ...


@app.post("/with", status_code=202)
async def with_a_command(order: Order, commands: CommandBusDep) -> None:
    await commands.send(PlaceOrder(order.order_id, order.quantity))


@app.post("/purge", status_code=202)
async def purge() -> int:
    return await orders.purge()


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


async def post(port: int, path: str, times: int) -> None:
    """Send so many requests one after the other on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    for _ in range(times):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202"), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()


async def posting(console: Console) -> bool:
    took: dict[str, list[float]] = {"/without": [], "/depends": [], "/with": []}
    async with serving() as port:
        for number in range(ROUNDS + 1):
            for path, rounds in took.items():
                began = time.perf_counter()
                await asyncio.gather(*(post(port, path, REQUESTS // CONNECTIONS) for _ in range(CONNECTIONS)))
                if number:  # the first round warms up
                    rounds.append((time.perf_counter() - began) / (REQUESTS // CONNECTIONS * CONNECTIONS))
            await post(port, "/purge", 1)
    limit, depends, ours = (statistics.median(rounds) for rounds in took.values())
    return show(
        console,
        f"POST with a pydantic body under uvicorn, 1 worker, {CONNECTIONS} connections",
        [
            Row("nothing done (limit)", limit, limit),
            Row("one dependency of FastAPI that does nothing", depends, limit),
            Row("command sent to a channel in memory", ours, limit, "0.9 of the limit", limit / ours >= 0.9),
        ],
    )
