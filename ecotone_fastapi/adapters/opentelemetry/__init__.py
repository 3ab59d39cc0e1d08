"""OpenTelemetry: traces from the request to the last asynchronous effect, in the conventions that its tools know."""

from ecotone_fastapi.adapters.opentelemetry.logs import trace_fields
from ecotone_fastapi.adapters.opentelemetry.tracing import Tracing

__all__ = ["Tracing", "trace_fields"]
