"""OpenTelemetry: traces from the request to the last asynchronous effect, and metrics of all that is done and waits."""

from ecotone_fastapi.adapters.opentelemetry.metrics import Metrics
from ecotone_fastapi.adapters.opentelemetry.tracing import Tracing

__all__ = ["Metrics", "Tracing"]
