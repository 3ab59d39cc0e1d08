"""Commands, queries and events for FastAPI: the messaging layer for plain Python classes.

from ecotone_fastapi import CommandBusDep, Ecotone, command_handler
"""

from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.core.endpoint import command_handler, event_handler, internal_handler, query_handler
from ecotone_fastapi.core.errors import (
    AggregateNotFoundError,
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    EcotoneError,
    HandlerNotFoundError,
    ProjectionError,
)
from ecotone_fastapi.core.message import HeaderName, Message, message_name
from ecotone_fastapi.core.suppliers import MessageHeader
from ecotone_fastapi.messaging.asynchronous import AsynchronousHandlers, ConsumerSettings, asynchronous
from ecotone_fastapi.messaging.dead_letter import DeadLetterOffice, DeadLetters
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterFilter, ParkedMessage
from ecotone_fastapi.messaging.deduplication import Deduplication, deduplicated
from ecotone_fastapi.messaging.failures import Failures, on_failure
from ecotone_fastapi.messaging.logs import MessageFields, message_fields
from ecotone_fastapi.messaging.outbox import Outbox
from ecotone_fastapi.messaging.policies import Backoff, DeadLetter, Discard, ErrorPolicy, Failure, Retry, Stop
from ecotone_fastapi.messaging.protection import CircuitBreaker, Consumers
from ecotone_fastapi.messaging.retries import InstantRetries, Retried, retried
from ecotone_fastapi.messaging.scheduling import ScheduledMessage, ScheduledMessages, delayed, expiring, prioritized
from ecotone_fastapi.messaging.transactions import untransacted
from ecotone_fastapi.modelling.aggregates import Aggregates, aggregate
from ecotone_fastapi.modelling.applying import applies
from ecotone_fastapi.modelling.consistency import Decisions
from ecotone_fastapi.modelling.documents import DocumentStore
from ecotone_fastapi.modelling.event_sourced import event_sourced
from ecotone_fastapi.modelling.event_sourcing import EventSourcing
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.fetching import Fetched
from ecotone_fastapi.modelling.identification import TargetIdentifier, TargetVersion, identified
from ecotone_fastapi.modelling.projection_plugin import Projecting
from ecotone_fastapi.modelling.projections import (
    Emitter,
    Partition,
    ProjectionState,
    ProjectionVersion,
    projection,
)
from ecotone_fastapi.modelling.rebuilding import Projections, ProjectionStatus
from ecotone_fastapi.modelling.recording import record, take_recorded
from ecotone_fastapi.modelling.repository import Repository
from ecotone_fastapi.modelling.snapshots import Snapshots
from ecotone_fastapi.modelling.tags import Tag
from ecotone_fastapi.modelling.upcasting import revision, upcaster
from ecotone_fastapi.web import (
    CommandBus,
    CommandBusDep,
    CorrelationMiddleware,
    DeadLettersDep,
    EventBus,
    EventBusDep,
    ProjectionsDep,
    QueryBus,
    QueryBusDep,
    add_error_handlers,
    command_bus,
    event_bus,
    query_bus,
)

__all__ = [
    "AggregateNotFoundError",
    "Aggregates",
    "AsynchronousHandlers",
    "Backoff",
    "CircuitBreaker",
    "CommandBus",
    "CommandBusDep",
    "ConcurrencyError",
    "ConfigurationError",
    "ConsumerSettings",
    "Consumers",
    "ConversionError",
    "CorrelationMiddleware",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetterOffice",
    "DeadLetters",
    "DeadLettersDep",
    "Decisions",
    "Deduplication",
    "Discard",
    "DocumentStore",
    "Ecotone",
    "EcotoneError",
    "Emitter",
    "ErrorPolicy",
    "EventBus",
    "EventBusDep",
    "EventSourcing",
    "EventStore",
    "Failure",
    "Failures",
    "Fetched",
    "HandlerNotFoundError",
    "HeaderName",
    "InstantRetries",
    "Message",
    "MessageFields",
    "MessageHeader",
    "Outbox",
    "ParkedMessage",
    "Partition",
    "Projecting",
    "ProjectionError",
    "ProjectionState",
    "ProjectionStatus",
    "ProjectionVersion",
    "Projections",
    "ProjectionsDep",
    "QueryBus",
    "QueryBusDep",
    "Repository",
    "Retried",
    "Retry",
    "ScheduledMessage",
    "ScheduledMessages",
    "Snapshots",
    "Stop",
    "Tag",
    "TargetIdentifier",
    "TargetVersion",
    "add_error_handlers",
    "aggregate",
    "applies",
    "asynchronous",
    "command_bus",
    "command_handler",
    "deduplicated",
    "delayed",
    "event_bus",
    "event_handler",
    "event_sourced",
    "expiring",
    "identified",
    "internal_handler",
    "message_fields",
    "message_name",
    "on_failure",
    "prioritized",
    "projection",
    "query_bus",
    "query_handler",
    "record",
    "retried",
    "revision",
    "take_recorded",
    "untransacted",
    "upcaster",
]
