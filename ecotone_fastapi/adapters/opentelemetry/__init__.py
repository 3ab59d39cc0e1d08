"""OpenTelemetry: metrics of what is sent, handled and waiting."""

from ecotone_fastapi.adapters.opentelemetry.metrics import Metrics

__all__ = ["Metrics"]
