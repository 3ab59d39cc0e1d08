"""The doors of the package: which names are public, and that each is there and described."""

import importlib
import inspect
import math
from types import ModuleType

import pytest

from tests.house.sources import PACKAGE, sources

# Names only grow, and only by decision. A door may not have all of them yet; it may never have another one.
AGREED = {
    PACKAGE: """
        Ecotone
        CommandBus QueryBus EventBus DistributedBus
        CommandBusDep QueryBusDep EventBusDep DistributedBusDep
        command_handler query_handler event_handler internal_handler
        asynchronous scheduled delayed expiring prioritized retried deduplicated distributed
        ScheduledMessage ScheduledMessages
        before after around output_to orchestrator
        aggregate event_sourced applies saga projection
        EventSourcing Snapshots revision upcaster
        Aggregates identified record take_recorded Fetched TargetIdentifier TargetVersion
        Message MessageHeader message_name
        HeaderName untransacted
        ErrorPolicy Backoff Failure Retry DeadLetter Discard Stop on_failure InstantRetries Retried
        DeadLetters DeadLettersDep DeadLetterFilter DeadLetterOffice ParkedMessage
        AsynchronousHandlers ConsumerSettings Deduplication Consumers CircuitBreaker Failures Outbox
        Repository EventStore DocumentStore Decisions Tag
        Projecting Projections ProjectionsDep ProjectionError ProjectionState ProjectionStatus ProjectionVersion
        Partition Emitter
        add_error_handlers command_bus event_bus query_bus
        MessageFields message_fields CorrelationMiddleware
        EcotoneError ConfigurationError ConversionError HandlerNotFoundError AggregateNotFoundError ConcurrencyError
    """,
    f"{PACKAGE}.testing": """
        flow_test Flow StartFlow Recorded TravellingClock ParkedMessage Limits
        AggregateStoreConformance ChannelConformance DocumentStoreConformance EventStoreConformance
        InboxConformance ProjectionStoreConformance StoreConformance
    """,
    f"{PACKAGE}.core": """
        Plugin Assembly Interceptor Call Scope Proceed Stage Order mark Inline Endpoint Kind
        Channel Delivery Capabilities Inspectable SettlesTogether Runnable Limits HealthCheck Migratable
        Examinable Finding Level
        Converter Clock SystemClock TellsTime Consumer Hold Gateway current_message current_scope
        current_call current_correlation_id conversation
        ParameterResolver Parameter Wanted Supplier Constant Dependency FromMessage FromScope HeaderValue
        CommandBus QueryBus EventBus Message HeaderName Watcher Work Operation
        Destination TellsDestination destination_of
    """,
}
MOST_NAMES_OF_AN_ADAPTER = 2

doors = [name for name, source in sources().items() if name in AGREED and source.is_written]
adapters = [
    name
    for name, source in sources().items()
    if name.startswith(f"{PACKAGE}.adapters.") and name.count(".") == 2 and source.is_written
]


def public(module: ModuleType) -> list[str]:
    assert hasattr(module, "__all__"), f"{module.__name__} has no __all__"
    return list(module.__all__)


@pytest.mark.parametrize("door", doors)
def test_a_door_shows_only_agreed_names(door: str) -> None:
    assert set(public(importlib.import_module(door))) <= set(AGREED[door].split())


@pytest.mark.parametrize("adapter", adapters)
def test_an_adapter_shows_one_or_two_names(adapter: str) -> None:
    # Memory is the double of every other adapter, so it has a name for each of their parts; SQL has two decorators, and
    # OpenTelemetry a function for log records.
    most = math.inf if adapter == f"{PACKAGE}.adapters.memory" else MOST_NAMES_OF_AN_ADAPTER
    names = set(public(importlib.import_module(adapter)))

    assert names
    assert len(names - {"query", "statement", "trace_fields"}) <= most


@pytest.mark.parametrize("door", doors + adapters)
def test_every_public_name_is_there_once_and_in_its_place(door: str) -> None:
    module = importlib.import_module(door)
    names = public(module)

    assert len(names) == len(set(names))
    assert names == sorted(names, key=reading_order)
    assert [name for name in names if not hasattr(module, name)] == []


def reading_order(name: str) -> tuple[bool, bool, str]:
    """Constants, then types, then functions, each by the alphabet: the order that the linter writes."""
    return (not (name.isupper() and len(name) > 1), name[0].islower(), name)


@pytest.mark.parametrize("door", doors + adapters)
def test_every_public_name_is_described(door: str) -> None:
    module = importlib.import_module(door)

    assert module.__doc__
    for name in public(module):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            # A dataclass without a docstring is given its signature for one.
            assert (value.__doc__ or "").strip(), name
            assert not (value.__doc__ or "").startswith(f"{value.__name__}("), name
