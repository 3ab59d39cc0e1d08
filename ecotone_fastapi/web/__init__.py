"""The FastAPI edge: buses for endpoints, FastAPI's markers for handlers, errors as statuses, health."""

from ecotone_fastapi.core.supervision import Condition, RunnableHealth
from ecotone_fastapi.web.buses import (
    CommandBus,
    CommandBusDep,
    EventBus,
    EventBusDep,
    QueryBus,
    QueryBusDep,
    command_bus,
    event_bus,
    query_bus,
)
from ecotone_fastapi.web.correlation import CORRELATION_HEADER, CorrelationMiddleware, correlation_id_of
from ecotone_fastapi.web.dead_letters import DeadLettersDep
from ecotone_fastapi.web.errors import STATUS, add_error_handlers
from ecotone_fastapi.web.health import Health
from ecotone_fastapi.web.projections import ProjectionsDep

__all__ = [
    "CORRELATION_HEADER",
    "STATUS",
    "CommandBus",
    "CommandBusDep",
    "Condition",
    "CorrelationMiddleware",
    "DeadLettersDep",
    "EventBus",
    "EventBusDep",
    "Health",
    "ProjectionsDep",
    "QueryBus",
    "QueryBusDep",
    "RunnableHealth",
    "add_error_handlers",
    "command_bus",
    "correlation_id_of",
    "event_bus",
    "query_bus",
]
