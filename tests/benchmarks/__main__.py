"""Run the benchmarks: `poe bench [dispatch|memory|startup|postgresql|sqlite|rabbitmq|outbox|http|tracing|events|…]`."""

import asyncio
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import asyncpg
from rich.console import Console

from tests.benchmarks import dispatch, events, http, outbox, rabbitmq, sql_queue, tracing

SERVER = os.environ.get("ECOTONE_POSTGRESQL_URL", "postgresql+asyncpg://postgres@127.0.0.1:5432/test")


async def postgresql(console: Console) -> bool:
    return await on_a_new_database(partial(sql_queue.on_postgresql, console))


async def relaying(console: Console) -> bool:
    return await on_a_new_database(partial(outbox.relaying, console))


async def events_on_postgresql(console: Console) -> bool:
    return await on_a_new_database(partial(events.on_postgresql, console))


async def on_a_new_database(benchmark: Callable[[str], Awaitable[bool]]) -> bool:
    """On a PostgreSQL database of its own, which is dropped again."""
    plain = SERVER.replace("+asyncpg", "")
    name = f"ecotone_bench_{os.getpid()}"
    administration = await asyncpg.connect(plain)
    await administration.execute(f'CREATE DATABASE "{name}"')
    try:
        return await benchmark(SERVER.rpartition("/")[0] + "/" + name)
    finally:
        await administration.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await administration.close()


async def startup(console: Console) -> bool:
    return dispatch.starting(console)


BENCHMARKS: dict[str, Callable[[Console], Awaitable[bool]]] = {
    "dispatch": dispatch.dispatching,
    "memory": dispatch.memory,
    "startup": startup,
    "postgresql": postgresql,
    "sqlite": sql_queue.on_sqlite,
    "rabbitmq": rabbitmq.on_rabbitmq,
    "outbox": relaying,
    "http": http.posting,
    "tracing": tracing.tracing,
    "events": events_on_postgresql,
    "events-sqlite": events.on_sqlite,
}


def main(names: list[str]) -> int:
    console = Console(width=160)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        console.print(f"No benchmark {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}")
        return 2
    console.print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores\n")
    reached = [asyncio.run(BENCHMARKS[name](console)) for name in names or BENCHMARKS]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
