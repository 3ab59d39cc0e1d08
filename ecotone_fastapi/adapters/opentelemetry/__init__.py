"""OpenTelemetry: traces from the request to the last effect, metrics of what is done and waits, and traces in logs."""

from ecotone_fastapi.adapters.opentelemetry.logs import trace_fields
from ecotone_fastapi.adapters.opentelemetry.metrics import Metrics
from ecotone_fastapi.adapters.opentelemetry.tracing import Tracing

__all__ = ["Metrics", "Tracing", "trace_fields"]
