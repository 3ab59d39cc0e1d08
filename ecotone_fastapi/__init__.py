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
)
from ecotone_fastapi.core.injection import MessageHeader
from ecotone_fastapi.core.message import HeaderName, Message, message_name
from ecotone_fastapi.messaging.asynchronous import AsynchronousHandlers, ConsumerSettings, asynchronous
from ecotone_fastapi.messaging.failures import Backoff, DeadLetter, Discard, ErrorPolicy, Failure, Failures, Retry
from ecotone_fastapi.messaging.transactions import untransacted
from ecotone_fastapi.web import (
    CommandBus,
    CommandBusDep,
    EventBus,
    EventBusDep,
    QueryBus,
    QueryBusDep,
    add_error_handlers,
    command_bus,
    event_bus,
    query_bus,
)

__all__ = [
    "AggregateNotFoundError",
    "AsynchronousHandlers",
    "Backoff",
    "CommandBus",
    "CommandBusDep",
    "ConcurrencyError",
    "ConfigurationError",
    "ConsumerSettings",
    "ConversionError",
    "DeadLetter",
    "Discard",
    "Ecotone",
    "EcotoneError",
    "ErrorPolicy",
    "EventBus",
    "EventBusDep",
    "Failure",
    "Failures",
    "HandlerNotFoundError",
    "HeaderName",
    "Message",
    "MessageHeader",
    "QueryBus",
    "QueryBusDep",
    "Retry",
    "add_error_handlers",
    "asynchronous",
    "command_bus",
    "command_handler",
    "event_bus",
    "event_handler",
    "internal_handler",
    "message_name",
    "query_bus",
    "query_handler",
    "untransacted",
]
