"""What a reader of metrics is shown, in a form that tests can compare."""

from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint

from ecotone_fastapi.adapters.opentelemetry import Metrics


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
