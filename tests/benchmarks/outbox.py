"""The outbox on PostgreSQL against a relay that is written by hand for this one queue, with aio-pika."""

import asyncio
import gc
import json
import os
import time
import uuid
from collections.abc import Awaitable, Callable

import aio_pika
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ecotone_fastapi import Ecotone
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import HeaderName, Limits, Message
from tests.benchmarks.measure import Result, Row, show

RABBITMQ = os.environ.get("ECOTONE_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1/")
COUNT = 10_000  # messages in a round
BATCH = 1000
ROUNDS = 5
TARGET = 6000  # messages per second
BODY = b"x" * 256


async def relaying(console: Console, url: str) -> bool:
    """Bring rows to a quorum queue, with confirms, 1,000 at a time."""
    queue = f"ecotone-bench-{os.getpid()}"
    channel = RabbitMQChannel("orders", RABBITMQ, queue=queue)
    ecotone = Ecotone([], channels=[channel], plugins=[SqlAlchemy(url, create_schema=True)])
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    connection = await aio_pika.connect(RABBITMQ)
    async with connection, ecotone.running(consumers=False):
        publishing = await connection.channel(publisher_confirms=True, on_return_raises=True)
        by_hand = ByHand(engine, publishing, queue)

        async def by_the_outbox() -> int:
            return await ecotone.run("outbox", Limits(until_empty=True))

        async def measure(result: Result, relay: Callable[[], Awaitable[int]]) -> None:
            await publishing.queue_delete(queue)
            await channel.open()
            for _ in range(0, COUNT, BATCH):
                messages = [Message(BODY, _headers()) for _ in range(BATCH)]
                await ecotone.assembly.gateway.transmit("orders", messages)
            gc.collect()
            start = time.perf_counter()
            sent = await relay()
            result.rounds.append((time.perf_counter() - start) / COUNT)
            assert sent == COUNT

        try:
            limit, ours, warm = Result("by hand"), Result("the outbox"), Result("warming up")
            await measure(warm, by_hand.run)
            await measure(warm, by_the_outbox)
            for _ in range(ROUNDS):
                await measure(limit, by_hand.run)
                await measure(ours, by_the_outbox)
        finally:
            await publishing.queue_delete(queue)
            await engine.dispose()
    rows = [
        Row("by hand: Core, aio-pika with gather, one delete", limit.seconds, limit.seconds),
        Row(
            "the outbox and RabbitMQChannel",
            ours.seconds,
            limit.seconds,
            f"{TARGET:,} per second",
            1 / ours.seconds >= TARGET,
        ),
    ]
    return show(console, f"Outbox PostgreSQL → RabbitMQ, {COUNT:,} messages of {len(BODY)} bytes", rows)


class ByHand:
    """The relay that a good programmer would write for this one queue and nothing else."""

    def __init__(self, engine: AsyncEngine, publishing: aio_pika.abc.AbstractChannel, queue: str) -> None:
        self._engine = engine
        self._publishing = publishing
        self._queue = queue
        self._claim = text(
            "WITH due AS MATERIALIZED (SELECT id FROM ecotone_message WHERE channel = 'outbox/orders'"
            " AND priority = 0 AND available_at <= now() ORDER BY available_at, id LIMIT :n FOR UPDATE SKIP LOCKED)"
            " UPDATE ecotone_message m SET available_at = now() + interval '60 s', lease_token = :t,"
            " deliveries = m.deliveries + 1 FROM due WHERE m.id = due.id RETURNING m.id, m.headers, m.body"
        )
        self._delete = text("DELETE FROM ecotone_message WHERE id = ANY(:ids) AND lease_token = :t")

    async def run(self) -> int:
        sent = 0
        while count := await self._batch():
            sent += count
        return sent

    async def _batch(self) -> int:
        token = uuid.uuid4()
        async with self._engine.connect() as connection:
            rows = (await connection.execute(self._claim, {"n": BATCH, "t": token})).all()
        if not rows:
            return 0
        await asyncio.gather(*(self._publish(row.headers, row.body) for row in sorted(rows)))
        async with self._engine.connect() as connection:
            await connection.execute(self._delete, {"ids": [row.id for row in rows], "t": token})
        return len(rows)

    async def _publish(self, headers: str, body: bytes) -> None:
        message = aio_pika.Message(
            body,
            headers=json.loads(headers),
            message_id=uuid.uuid4().hex,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self._publishing.default_exchange.publish(message, self._queue)


def _headers() -> dict[str, str]:
    identity = str(uuid.uuid4())
    return {
        HeaderName.id: identity,
        HeaderName.correlation_id: identity,
        HeaderName.timestamp: "2026-01-01T00:00:00+00:00",
        HeaderName.content_type: "application/octet-stream",
        HeaderName.endpoint: "bench",
    }
