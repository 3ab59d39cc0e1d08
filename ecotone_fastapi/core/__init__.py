"""The kernel, as authors of plugins and transports see it."""

from ecotone_fastapi.core.bus import CommandBus, EventBus, QueryBus
from ecotone_fastapi.core.channel import (
    Capabilities,
    Channel,
    Delivery,
    Destination,
    Inspectable,
    SettlesTogether,
    TellsDestination,
    destination_of,
)
from ecotone_fastapi.core.clock import Clock, SystemClock, TellsTime
from ecotone_fastapi.core.consumer import Consumer, Hold
from ecotone_fastapi.core.conversion import Converter
from ecotone_fastapi.core.current import (
    conversation,
    current_call,
    current_correlation_id,
    current_message,
    current_scope,
)
from ecotone_fastapi.core.endpoint import Endpoint, Inline, Kind, mark
from ecotone_fastapi.core.examination import Examinable, Finding, Level
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call, Interceptor, Order, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly, HealthCheck, Limits, Migratable, Plugin, Runnable
from ecotone_fastapi.core.signatures import Parameter
from ecotone_fastapi.core.suppliers import (
    Constant,
    Dependency,
    FromMessage,
    FromScope,
    HeaderValue,
    ParameterResolver,
    Supplier,
    Wanted,
)
from ecotone_fastapi.core.watching import Operation, Watcher, Work

__all__ = [
    "Assembly",
    "Call",
    "Capabilities",
    "Channel",
    "Clock",
    "CommandBus",
    "Constant",
    "Consumer",
    "Converter",
    "Delivery",
    "Dependency",
    "Destination",
    "Endpoint",
    "EventBus",
    "Examinable",
    "Finding",
    "FromMessage",
    "FromScope",
    "Gateway",
    "HeaderName",
    "HeaderValue",
    "HealthCheck",
    "Hold",
    "Inline",
    "Inspectable",
    "Interceptor",
    "Kind",
    "Level",
    "Limits",
    "Message",
    "Migratable",
    "Operation",
    "Order",
    "Parameter",
    "ParameterResolver",
    "Plugin",
    "Proceed",
    "QueryBus",
    "Runnable",
    "Scope",
    "SettlesTogether",
    "Stage",
    "Supplier",
    "SystemClock",
    "TellsDestination",
    "TellsTime",
    "Wanted",
    "Watcher",
    "Work",
    "conversation",
    "current_call",
    "current_correlation_id",
    "current_message",
    "current_scope",
    "destination_of",
    "mark",
]
