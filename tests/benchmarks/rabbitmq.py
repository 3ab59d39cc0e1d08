"""The RabbitMQ channel beside aio-pika used by hand for the same work, with the same guarantees.

Both send the same headers and bytes, persistent, with publisher confirms, and are told of what no queue takes.
"""

import asyncio
import gc
import json
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from rich.console import Console
from rich.table import Table

from ecotone_fastapi import AsynchronousHandlers, ConsumerSettings, Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryDeadLetters
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.rabbitmq.topology import QueueType
from ecotone_fastapi.core import Assembly, HeaderName, Limits, Message
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from tests.benchmarks.measure import Row, show

URL = os.environ.get("ECOTONE_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")
KINDS: tuple[QueueType, ...] = ("classic", "quorum")
ROUNDS = 9
PADDING = "x" * 200
PREFETCH = 100
RATE, SECONDS = 200, 2.0  # messages per second of the latency, and how long a round of it takes


@dataclass(frozen=True)
class Work:
    number: int
    padding: str = PADDING


def headers() -> dict[str, str]:
    return {
        HeaderName.id: str(uuid.uuid4()),
        HeaderName.correlation_id: str(uuid.uuid4()),
        HeaderName.timestamp: "2026-01-01T00:00:00+00:00",
        HeaderName.content_type: "application/json",
        HeaderName.endpoint: "work",
        HeaderName.type: "tests.benchmarks.rabbitmq.Work",
    }


BODY = json.dumps({"number": 1, "padding": PADDING}).encode()

handled: list[float] = []


class Handlers:
    @asynchronous("work")
    @command_handler(id="work")
    async def work(self, command: Work) -> None:
        if command.number > 1:
            handled.append(time.perf_counter() - command.number / 1e9)


class ByHand:
    """What a good programmer would write with aio-pika for this one queue and nothing else."""

    def __init__(self, connections: tuple[aio_pika.Connection, aio_pika.Connection], queue: str) -> None:
        self._sending, self._receiving = connections
        self._queue = queue

    async def open(self) -> "ByHand":
        channel = await self._sending.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = channel.default_exchange
        consuming = await self._receiving.channel()
        await consuming.set_qos(prefetch_count=PREFETCH)
        self.queue = await consuming.get_queue(self._queue)
        return self

    async def publish(self, body: bytes = BODY) -> None:
        message = aio_pika.Message(
            body,
            headers=dict(headers()),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=uuid.uuid4().hex,
        )
        await self._exchange.publish(message, self._queue)

    async def publish_together(self, count: int) -> None:
        await asyncio.gather(*(self.publish() for _ in range(count)))

    async def consume(self, times: int) -> None:
        count, done = 0, asyncio.Event()

        async def handle(message: AbstractIncomingMessage) -> None:
            nonlocal count
            work = Work(**json.loads(message.body))
            if work.number > 1:
                handled.append(time.perf_counter() - work.number / 1e9)
            await message.ack()
            count += 1
            if count == times:
                done.set()

        tag = await self.queue.consume(handle)
        await done.wait()
        await self.queue.cancel(tag)


class NothingFails:
    """Gives a dead letter that stays empty, for there is no database to write it to."""

    def install(self, assembly: Assembly) -> None:
        assembly.add_service(DeadLetterStore, MemoryDeadLetters())


class Ours:
    """The application under measurement."""

    def __init__(self, queue: str, kind: QueueType) -> None:
        self.channel = RabbitMQChannel("work", URL, queue=queue, queue_type=kind, prefetch=PREFETCH, delivery="direct")
        self.ecotone = Ecotone(
            [Handlers],
            channels=[self.channel],
            plugins=[NothingFails(), AsynchronousHandlers(consumers={"work": ConsumerSettings(batch=PREFETCH)})],
        )

    async def publish_in_one_call(self, count: int) -> None:
        await self.channel.send([Message(BODY, headers()) for _ in range(count)])

    async def publish_together(self, count: int) -> None:
        await asyncio.gather(*(self.channel.send([Message(BODY, headers())]) for _ in range(count)))

    async def consume(self, times: int) -> None:
        assert await self.ecotone.run("work", Limits(messages=times)) == times


@asynccontextmanager
async def both(kind: QueueType) -> AsyncIterator[tuple[Ours, ByHand]]:
    """Open both on queues of their own, which are deleted again."""
    async with await aio_pika.connect(URL) as sending, await aio_pika.connect(URL) as receiving:
        channel = await receiving.channel()
        name = f"ecotone_bench_{uuid.uuid4().hex[:8]}"
        queue = await channel.declare_queue(f"{name}_by_hand", durable=True, arguments={"x-queue-type": kind})
        ours = Ours(name, kind)
        try:
            async with ours.ecotone.running(consumers=False):
                yield ours, await ByHand((sending, receiving), queue.name).open()
        finally:
            for one in (queue.name, name):
                await (await channel.get_queue(one, ensure=False)).delete(if_unused=False, if_empty=False)


async def take_turns(
    work: Mapping[str, Callable[[], Awaitable[object]]],
    before: Callable[[str], Awaitable[object]],
    count: int,
    turns: int = ROUNDS,
) -> dict[str, float]:
    """Return the median seconds of one message; what `before` does for a candidate is not measured."""
    rounds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(turns + 1):
        for name, do in work.items():
            await before(name)
            gc.collect()
            start = time.perf_counter()
            await do()
            if number:  # the first round warms up
                rounds[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(one) for name, one in rounds.items()}


async def publishing(console: Console, kind: QueueType) -> bool:
    rows: list[Row] = []
    # What takes long by itself takes short turns: the machine has moods.
    for flight, count, turns in ((1, 40, 41), (100, 2_000, ROUNDS), (1_000, 3_000, ROUNDS)):
        async with both(kind) as (ours, by_hand):

            def repeat(
                publish: Callable[[int], Awaitable[None]], flight: int = flight, count: int = count
            ) -> Callable[[], Awaitable[None]]:
                async def run() -> None:
                    for _ in range(count // flight):
                        await publish(flight)

                return run

            async def empty(name: str, ours: Ours = ours, by_hand: ByHand = by_hand) -> None:
                await ours.channel.purge()
                await by_hand.queue.purge()

            work = {"by hand": repeat(by_hand.publish_together), "one call": repeat(ours.publish_in_one_call)}
            if flight > 1:
                work["callers"] = repeat(ours.publish_together)
            took = await take_turns(work, empty, count, turns)
        limit = took["by hand"]
        together = f"{flight:,} in flight" if flight > 1 else "one at a time"
        rows.append(Row(f"{together}: aio-pika by hand (limit)", limit, limit))
        for name, what in (("one call", "ecotone_fastapi, in one call"), ("callers", "ecotone_fastapi, a caller each")):
            if name in took:
                least = 15_000 if (flight, name) == (1_000, "one call") else 0
                reached = limit / took[name] >= 0.9 and 1 / took[name] >= least
                target = "0.9 of aio-pika" + (f" and {least:,}/s" if least else "")
                rows.append(Row(f"    {what if flight > 1 else 'ecotone_fastapi'}", took[name], limit, target, reached))
    return show(console, f"RabbitMQ, {kind} queue: publish with confirms", rows)


async def consuming(console: Console, kind: QueueType) -> bool:
    count = 3_000
    async with both(kind) as (ours, by_hand):

        async def fill(name: str) -> None:
            await (by_hand.publish_together(count) if name == "by hand" else ours.publish_in_one_call(count))

        async def borrow_and_ack() -> None:
            left = count
            while left:
                deliveries = await ours.channel.receive(PREFETCH, 5.0)
                for delivery in deliveries:
                    Work(**json.loads(delivery.message.payload))
                await ours.channel.ack_all(deliveries)
                left -= len(deliveries)

        took = await take_turns(
            {
                "by hand": lambda: by_hand.consume(count),
                "channel": borrow_and_ack,
                "application": lambda: ours.consume(count),
            },
            fill,
            count,
        )
    limit = took["by hand"]
    return show(
        console,
        f"RabbitMQ, {kind} queue: consume at a prefetch of {PREFETCH}, trivial handler",
        [
            Row("aio-pika by hand (limit)", limit, limit),
            Row("    the channel alone", took["channel"], limit),
            Row(
                "    ecotone_fastapi", took["application"], limit, "0.7 of aio-pika", limit / took["application"] >= 0.7
            ),
        ],
    )


async def latency(console: Console, kind: QueueType) -> bool:
    """From before a message is sent until its handler runs, when the machine has little to do."""
    count = int(RATE * SECONDS)
    taken: dict[str, list[float]] = {"by hand": [], "ours": []}
    async with both(kind) as (ours, by_hand):

        async def pace(send: Callable[[Work], Awaitable[object]]) -> None:
            start = time.perf_counter()
            for number in range(count):
                await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))
                await send(Work(int(time.perf_counter() * 1e9)))

        async def send_by_hand(work: Work) -> None:
            await by_hand.publish(json.dumps({"number": work.number, "padding": work.padding}).encode())

        for _ in range(3):
            for name, consume, send in (
                ("by hand", by_hand.consume, send_by_hand),
                ("ours", ours.consume, ours.ecotone.command_bus.send),
            ):
                handled.clear()
                gc.collect()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(consume(count))
                    await asyncio.sleep(0.2)  # both are ready to receive
                    tasks.create_task(pace(send))
                taken[name] += handled
    table = Table(title=f"RabbitMQ, {kind} queue: end to end at {RATE} messages/s", title_justify="left")
    for column in ("", "p50 ms", "p99 ms", "p50 of the limit's", "p99 of the limit's"):
        table.add_column(column, justify="right" if column else "left")
    quantiles = {name: statistics.quantiles(values, n=100) for name, values in taken.items()}
    for name, what in (("by hand", "aio-pika by hand (limit)"), ("ours", "    ecotone_fastapi")):
        figures = (quantiles[name][49], quantiles[name][98])
        ratios = (figure / quantiles["by hand"][at] for figure, at in zip(figures, (49, 98), strict=True))
        table.add_row(what, *(f"{figure * 1e3:.2f}" for figure in figures), *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    return True


async def on_rabbitmq(console: Console) -> bool:
    reached = True
    for measure in (publishing, consuming, latency):
        for kind in KINDS:
            reached &= await measure(console, kind)
    return reached
