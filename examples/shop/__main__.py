"""Serve the shop with uvicorn, order something over HTTP, and show what happens: `poe demo`.

`--once`, or `SHOP_ONCE=1`, ends after that. `SHOP_PORT` is 8000 unless set; 0 takes any free port.
"""

import logging
import os
import socket
import sys
import time
from contextlib import suppress

import anyio
import httpx
import uvicorn
from anyio.abc import TaskGroup
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from examples.shop.database import database
from examples.shop.main import app

console = Console()

ORDERS = [("Milk", "ada@example.com"), ("Bread", "grace@example.com"), ("Honey", "alan@example.com")]


def listen(port: int) -> socket.socket:
    """Listen before the application has started: requests wait until it has."""
    # asyncio sends small answers without delay only on sockets that say that they are TCP.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


async def demonstrate(address: str) -> None:
    """Be a customer who orders over HTTP, and then looks into the mailbox."""
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        earlier = len((await client.get("/mails")).raise_for_status().json())

        heading("Orders over HTTP", "each is saved together with the message that tells of it")
        order_ids: list[str] = []
        for product, customer in ORDERS:
            started = time.perf_counter()
            response = await client.post("/orders", json={"product": product, "customer": customer})
            order_ids.append(response.raise_for_status().json()["order_id"])
            took = (time.perf_counter() - started) * 1000
            console.print(f"POST /orders  {product:<5}  {response.status_code}  {order_ids[-1]}  [dim]{took:.0f} ms")

        heading("Mails", "the consumer, a task of the same process, handles the messages")
        with anyio.fail_after(30):
            while len(mails := (await client.get("/mails")).json()[earlier:]) < len(ORDERS):  # noqa: ASYNC110 - HTTP
                await anyio.sleep(0.02)
        table = Table(title="GET /mails", title_justify="left", header_style="not bold")
        for column in ("from", "to", "subject"):
            table.add_column(column)
        for mail in mails:
            table.add_row(mail["from"], mail["to"], mail["subject"])
        console.print(table)

        heading("A query", "asks what the command has written")
        for order_id in order_ids:
            answer = (await client.get(f"/orders/{order_id}")).raise_for_status().json()
            console.print(f"GET /orders/{order_id}  {answer['status']}")


def heading(title: str, text: str) -> None:
    console.print(f"\n[bold]{title}[/]: {text}")


def invite(address: str) -> None:
    """Say what to try next."""
    heading("Your turn", "in another terminal; Ctrl-C ends the shop")
    order = """'{"product": "Tea", "customer": "you@example.com"}'"""
    for line in (
        f"curl {address}/orders -H 'content-type: application/json' -d {order}",
        f"curl {address}/mails",
        f"curl {address}/ecotone/health/ready",
        f"{address}/docs",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


async def serve(server: uvicorn.Server, listener: socket.socket, tasks: TaskGroup) -> None:
    """Serve until Ctrl-C, or until the demonstration is over."""
    with suppress(SystemExit):  # when the application cannot start; uvicorn has said why
        await server.serve([listener])
    tasks.cancel_scope.cancel()


async def main(port: int, once: bool) -> bool:
    """Return whether everything was shown."""
    shown = False
    with listen(port) as listener:
        address = "http://{}:{}".format(*listener.getsockname())
        console.print(f"The shop is at {address} and keeps its orders in", database.engine.url, soft_wrap=True)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, server, listener, tasks)
            await demonstrate(address)
            shown = True
            if once:
                server.should_exit = True
            else:
                invite(address)
    return shown


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_time=False, show_path=False)])
    logging.getLogger("shop").setLevel(logging.INFO)
    try:
        shown = anyio.run(
            main, int(os.environ.get("SHOP_PORT", "8000")), "--once" in sys.argv or os.environ.get("SHOP_ONCE") == "1"
        )
    except KeyboardInterrupt:
        shown = True
    except OSError as error:
        sys.exit(f"{error}; with SHOP_PORT=8001 the shop listens somewhere else")
    sys.exit(not shown)
