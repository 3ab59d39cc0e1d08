"""OpenTelemetry: which trace a log record belongs to."""

from ecotone_fastapi.adapters.opentelemetry.logs import trace_fields

__all__ = ["trace_fields"]
