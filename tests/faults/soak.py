"""`poe soak [minutes]`: orders at a steady rate, workers that are killed, networks that are cut; then three ledgers.

What was accepted must have been shipped and billed, each once, and what was refused must have left no trace.
"""

import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncpg
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from ecotone_fastapi.core.errors import ChannelError
from tests.conftest import SERVERS
from tests.faults.world import World, place, world

console = Console(width=160)

RATE = 50  # orders per second
WORKERS = 3


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """Make a database of its own."""
    server, name = SERVERS["postgresql"].url, f"ecotone_soak_{uuid.uuid4().hex[:8]}"
    administration = await asyncpg.connect(server.replace("+asyncpg", ""))
    await administration.execute(f'CREATE DATABASE "{name}"')
    try:
        yield server.rpartition("/")[0] + "/" + name
    finally:
        await administration.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await administration.close()


async def send_orders(there: World, until: float, sent: set[int], refused: set[int], unknown: set[int]) -> None:
    """Place orders; every tenth is refused after it has written and published."""
    number = 0
    async with there.application().running(consumers=False) as ecotone:
        while time.monotonic() < until:
            began = time.monotonic()
            for _ in range(RATE // 10):
                number += 1
                try:
                    await place(ecotone, number, refused=number % 10 == 0)
                except (OSError, ChannelError, DBAPIError):
                    unknown.add(number)  # the database has gone away: it may have committed
                else:
                    (refused if number % 10 == 0 else sent).add(number)
            await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))


async def do_harm(there: World, until: float, done: Counter[str]) -> None:
    """Kill a worker now and then, stop one properly, cut a network; there are always as many workers as before."""
    workers = [await there.start(FAULTS_LEASE="3", FAULTS_UNLUCKY="0.02") for _ in range(WORKERS)]
    while time.monotonic() < until:
        await asyncio.sleep(random.uniform(2, 6))
        harm = random.choice(["kill", "kill", "terminate", "freeze", "cut broker", "cut database", "backends"])
        done[harm] += 1
        if harm == "cut broker":
            there.to_broker.cut()
        elif harm == "cut database":
            there.to_database.cut()
        elif harm == "backends":
            await there.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
            )
        else:
            victim = workers.pop(random.randrange(len(workers)))
            if harm == "freeze":
                victim.send(signal.SIGSTOP)
                await asyncio.sleep(5)
                victim.send(signal.SIGCONT)
                workers.append(victim)
                continue
            victim.send(signal.SIGTERM if harm == "terminate" else signal.SIGKILL)
            workers.append(await there.start(FAULTS_LEASE="3", FAULTS_UNLUCKY="0.02"))


async def keep(there: World, directory: Path) -> str:
    """Keep what may tell why something is missing."""
    rows = await there.execute(
        "SELECT channel, deliveries, attempts, available_at - now() AS due, lease_token FROM ecotone_message"
        " ORDER BY id LIMIT 50"
    )
    kept = shutil.copytree(directory, tempfile.mkdtemp(prefix="ecotone-soak-"), dirs_exist_ok=True)
    await anyio.Path(kept, "messages.txt").write_text("\n".join(map(str, rows)))
    return kept


async def soak(minutes: float) -> bool:
    """Run, compare, tell; return whether nothing was lost, repeated or seen that was rolled back."""
    sent: set[int] = set()
    refused: set[int] = set()
    unknown: set[int] = set()
    harm: Counter[str] = Counter()
    broker = SERVERS["rabbitmq"].url
    with tempfile.TemporaryDirectory() as directory:
        async with database() as url, world(Path(directory), url, broker) as there:
            until = time.monotonic() + minutes * 60
            async with asyncio.TaskGroup() as both:
                both.create_task(send_orders(there, until, sent, refused, unknown))
                both.create_task(do_harm(there, until, harm))
            accepted = Counter(await there.accepted())
            began = time.monotonic()
            try:
                await there.settled(accepted)
            except AssertionError as error:
                console.print(f"{error}; the logs of the workers are in {await keep(there, Path(directory))}")
            took = time.monotonic() - began
            shipped, billed = await there.effects("shipped"), await there.effects("billed")
            parked = await there.parked()
    console.print(f"{minutes:g} minutes; harm: {dict(harm)}; answers unknown to the sender: {len(unknown)}")
    console.print(f"accepted {len(accepted)}, shipped {len(shipped)}, billed {len(billed)}, parked {len(parked)}")
    console.print(f"the last effect came {took:.1f} s after the last order")
    faults = {
        "confirmed to the sender and lost": sent - set(accepted),
        "accepted twice": {number for number, count in accepted.items() if count > 1},
        "accepted and not shipped": set(accepted) - set(shipped),
        "accepted and not billed": set(accepted) - set(billed),
        "shipped twice": {number for number, count in shipped.items() if count > 1},
        "billed twice": {number for number, count in billed.items() if count > 1},
        "refused and seen": refused & (set(accepted) | set(shipped) | set(billed)),
        "never accepted and seen": (set(shipped) | set(billed)) - set(accepted),
    }
    for what, numbers in faults.items():
        console.print(f"{what}: {sorted(numbers)[:20] if numbers else 'none'}")
    return not any(faults.values())


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(soak(float(sys.argv[1]) if len(sys.argv) > 1 else 10)) else 1)
