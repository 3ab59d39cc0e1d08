"""What a reader of metrics is shown, in a form that tests can compare; and something that is worth measuring."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aio_pika
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint

from ecotone_fastapi import asynchronous, command_handler
from ecotone_fastapi.adapters.opentelemetry import Metrics
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.core import Limits
from ecotone_fastapi.testing.faults import TcpProxy
from tests.conftest import SERVERS

ALL = Limits(until_empty=True)


@dataclass(frozen=True)
class Ship:
    order: int


@dataclass(frozen=True)
class Shipped:
    order: int


class Shipping:
    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(self, command: Ship) -> None:
        if command.order == 13:
            raise ValueError("unlucky")


@asynccontextmanager
async def rabbit(network: TcpProxy) -> AsyncIterator[RabbitMQChannel]:
    queue = f"metrics-test-{uuid4().hex[:8]}"
    yield RabbitMQChannel("shipping", f"amqp://guest:guest@127.0.0.1:{network.port}/", queue=queue, timeout=2.0)
    connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
    async with connection:
        await (await connection.channel()).queue_delete(queue)


@dataclass(frozen=True)
class Point:
    """One series of an instrument."""

    value: float
    attributes: dict[str, Any]
    count: int = 0
    buckets: tuple[float, ...] = ()


class Measured:
    """A plugin that measures, and a reader of its own: who asks is shown what is now."""

    def __init__(self, *, interval: float = 3600.0) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])
        self.plugin = Metrics(self.provider, interval=interval)

    def metrics(self) -> dict[str, Metric]:
        """Everything that is shown, by its name."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        [resource] = data.resource_metrics
        return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}

    def points(self, name: str, /, **wanted: object) -> list[Point]:
        """The series of an instrument; of those, the ones whose attributes end like this: `state="paused"`."""
        metric = self.metrics().get(name)
        points = [] if metric is None else [_point(one) for one in metric.data.data_points]
        return [
            point
            for point in points
            if all(
                any(key.rpartition(".")[2] == name and value == found for key, found in point.attributes.items())
                for name, value in wanted.items()
            )
        ]

    def value(self, name: str, /, **wanted: object) -> float | None:
        """The sum of these series; `None` when none is shown."""
        points = self.points(name, **wanted)
        return sum(point.value for point in points) if points else None

    async def seen(self, name: str, /, **wanted: object) -> float | None:
        """The same, of what is looked at now."""
        await self.plugin.refresh()
        return self.value(name, **wanted)


def _point(point: Any) -> Point:
    attributes = dict(point.attributes or {})
    if isinstance(point, HistogramDataPoint):
        return Point(point.sum, attributes, point.count, tuple(point.explicit_bounds))
    assert isinstance(point, NumberDataPoint)
    return Point(point.value, attributes)
