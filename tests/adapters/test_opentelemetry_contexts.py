"""Whose span is the current one: side by side, in threads, in generators, when cancelled; and what samplers see."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import Depends
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, NoOpTracerProvider, SpanKind

from ecotone_fastapi import (
    AsynchronousHandlers,
    CommandBus,
    ConfigurationError,
    ConsumerSettings,
    Ecotone,
    EventBus,
    HandlerNotFoundError,
    asynchronous,
    command_handler,
    event_handler,
    untransacted,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits, Message, destination_of
from ecotone_fastapi.testing import flow_test
from tests.adapters.traces import Traces, id_of, trace_of


@dataclass(frozen=True)
class Ship:
    order_id: str


@dataclass(frozen=True)
class Pack:
    order_id: str


def current() -> int:
    return trace.get_current_span().get_span_context().span_id


async def test_messages_side_by_side_have_traces_of_their_own() -> None:
    traces, seen = Traces(), {}
    together = anyio.Event()

    @command_handler
    async def ship(command: Ship, commands: CommandBus) -> None:
        seen[command.order_id] = current()
        if len(seen) == 20:
            together.set()
        await together.wait()
        assert current() == seen[command.order_id]
        await commands.send(Pack(command.order_id))

    @command_handler
    async def pack(command: Pack) -> None: ...

    async with flow_test([ship, pack], plugins=[Tracing(traces.provider)]) as flow:
        await asyncio.gather(*(flow.send(Ship(str(number))) for number in range(20)))

    assert len({trace_of(span) for span in traces.spans}) == 20
    assert len(traces.spans) == 80
    roots = {trace_of(span): id_of(span) for span in traces.named("send Ship")}
    assert all(
        span.parent and span.parent.span_id == roots[trace_of(span)] for span in traces.spans if "ship" in span.name
    )


async def test_what_a_handler_sends_side_by_side_is_below_its_span() -> None:
    traces = Traces()

    @command_handler
    async def ship(command: Ship, commands: CommandBus) -> None:
        await asyncio.gather(*(commands.send(Pack(str(number))) for number in range(5)))

    @command_handler
    async def pack(command: Pack) -> None: ...

    async with flow_test([ship, pack], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"))

    (shipping,) = [span for span in traces.spans if span.name.startswith("handle") and span.name.endswith("ship")]
    assert [span.parent and span.parent.span_id for span in traces.named("send Pack")] == [id_of(shipping)] * 5
    assert len({span.parent and span.parent.span_id for span in traces.spans if span.name.endswith("pack")}) == 5


async def test_messages_of_a_concurrent_consumer_have_spans_of_their_own() -> None:
    traces, seen = Traces(), []

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None:
        before = current()
        await anyio.lowlevel.checkpoint()
        seen.append((before, current()))

    settings = AsynchronousHandlers({"shipping": ConsumerSettings(concurrency=8)})
    async with flow_test(
        [ship], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider), settings]
    ) as flow:
        for number in range(16):
            await flow.send(Ship(str(number)))
        assert await flow.run("shipping") == 16

    assert all(before == after for before, after in seen)
    assert len({before for before, _ in seen}) == 16


async def test_handlers_and_dependencies_in_threads_have_the_span_of_their_message() -> None:
    traces, seen = Traces(), []

    def customer() -> str:
        seen.append(current())
        return "ada"

    @command_handler
    def ship(command: Ship, name: Annotated[str, Depends(customer)]) -> None:
        with traces.provider.get_tracer("test").start_as_current_span("in a thread"):
            seen.append(current())

    async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"))

    _, handled, inside = traces.spans
    assert seen == [id_of(handled), id_of(inside)]
    assert inside.parent is not None
    assert inside.parent.span_id == id_of(handled)


@pytest.mark.parametrize("way", ["async", "sync"])
async def test_the_teardown_of_a_dependency_that_holds_a_span_is_within_the_span_of_the_message(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    traces, seen = Traces(), []
    tracer = traces.provider.get_tracer("test")

    async def session() -> AsyncIterator[None]:
        with tracer.start_as_current_span("session"):
            yield
        with tracer.start_as_current_span("teardown"):
            pass

    def session_in_a_thread() -> Iterator[None]:
        with tracer.start_as_current_span("session"):
            yield
        with tracer.start_as_current_span("teardown"):
            pass

    @command_handler
    async def ship(
        command: Ship, held: Annotated[None, Depends(session if way == "async" else session_in_a_thread)]
    ) -> None: ...

    with tracer.start_as_current_span("POST /ships") as request:
        async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
            await flow.send(Ship("1"))
            seen.append(current())
            with tracer.start_as_current_span("http send"):
                pass

    assert seen == [request.get_span_context().span_id]
    sent, teardown, after = traces.one("send Ship"), traces.one("teardown"), traces.one("http send")
    assert sent.end_time is not None
    assert teardown.end_time is not None
    assert teardown.end_time <= sent.end_time
    assert trace_of(teardown) == trace_of(sent)
    assert after.parent is not None
    assert after.parent.span_id == request.get_span_context().span_id
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_teardown_that_fails_is_told_by_the_span_of_the_message() -> None:
    traces = Traces()

    async def session() -> AsyncIterator[None]:
        yield
        raise BrokenPipeError("the session is lost")

    @command_handler
    async def ship(command: Ship, held: Annotated[None, Depends(session)]) -> None: ...

    async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
        with pytest.raises(BrokenPipeError):
            await flow.send(Ship("1"))

    sent, handled = traces.spans
    assert sent.attributes is not None
    assert sent.attributes["error.type"] == "BrokenPipeError"
    assert "error.type" not in (handled.attributes or {})


async def test_a_cancelled_message_ends_its_spans_and_leaves_nothing_behind() -> None:
    traces, begun = Traces(), anyio.Event()

    @command_handler
    async def ship(command: Ship) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
        before = current()
        task = asyncio.create_task(flow.send(Ship("1")))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert current() == before

    assert [(span.attributes or {})["error.type"] for span in traces.spans] == ["asyncio.exceptions.CancelledError"] * 2


async def test_a_message_whose_consumer_is_stopped_ends_its_spans_and_is_given_back() -> None:
    traces, stop = Traces(), anyio.Event()

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None:
        stop.set()
        await anyio.sleep_forever()

    async with flow_test([ship], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"))
        await flow.run("shipping", Limits(stop=stop, grace=0.0))
        assert len(await flow.waiting("shipping")) == 1

    assert (
        traces.tree()
        == dedent("""
        send Ship
          send shipping PRODUCER
            process shipping CONSUMER ~ send shipping ! asyncio.exceptions.CancelledError
              handle ship ! asyncio.exceptions.CancelledError
            nack shipping CLIENT ~ send shipping
    """).strip()
    )


async def test_a_message_that_names_no_handler_is_a_span_with_its_error() -> None:
    traces, channel = Traces(), MemoryChannel("shipping")

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None: ...

    async with flow_test([ship], channels=[channel], plugins=[Tracing(traces.provider)]) as flow:
        await channel.send([Message(b"hello", {})])
        await flow.run("shipping", raises=False)

    assert (
        traces.tree()
        == dedent("""
        process shipping CONSUMER ! ecotone_fastapi.core.errors.UnknownEndpointError
          park dead_letters CLIENT
          ack shipping CLIENT
    """).strip()
    )
    assert traces.spans[0].attributes is not None
    assert "messaging.message.id" not in traces.spans[0].attributes


@pytest.mark.parametrize(("receive", "spans"), [(True, ["receive shipping ! ConnectionError"]), (False, [])])
async def test_receiving_that_fails_is_a_span_for_those_who_want_to_know(receive: bool, spans: list[str]) -> None:
    class Lost(MemoryChannel):
        async def receive(self, limit: int, timeout: float) -> Any:
            raise ConnectionError("lost")

    traces = Traces()

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None: ...

    plugins = [Tracing(traces.provider, receive=receive)]
    async with flow_test([ship], channels=[Lost("shipping")], plugins=plugins) as flow:
        with pytest.raises(ConnectionError):
            await flow.run("shipping")

    assert traces.tree().replace(" CLIENT", "").splitlines() == spans


async def test_waiting_in_vain_is_no_span() -> None:
    traces = Traces()

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None: ...

    plugins = [Tracing(traces.provider, receive=True)]
    async with flow_test([ship], channels=[MemoryChannel("shipping")], plugins=plugins) as flow:
        assert await flow.run("shipping") == 0

    assert traces.spans == []


async def test_an_error_whose_text_cannot_be_told_is_raised_as_it_is() -> None:
    traces = Traces()

    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @command_handler
    async def ship(command: Ship) -> None:
        raise UnspeakableError

    async with flow_test([ship], plugins=[Tracing(traces.provider)]) as flow:
        with pytest.raises(UnspeakableError):
            await flow.send(Ship("1"))

    assert all("cannot be told" in (span.status.description or "") for span in traces.spans)


async def test_a_message_that_reaches_nobody_is_a_span_with_its_error() -> None:
    traces = Traces()
    async with flow_test([], plugins=[Tracing(traces.provider)]) as flow:
        with pytest.raises(HandlerNotFoundError):
            await flow.send(Ship("1"))

    (sent,) = traces.spans
    assert sent.attributes is not None
    assert sent.attributes["error.type"] == "ecotone_fastapi.core.errors.HandlerNotFoundError"


class Looking(Sampler):
    """A sampler that writes down what it sees."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[SpanKind | None, dict[str, Any]]] = {}

    def should_sample(  # noqa: PLR0917  as the SDK calls it
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[Link] | None = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        self.seen[name] = (kind, dict(attributes or {}))
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return "Looking"


async def test_a_sampler_sees_where_messages_go_before_a_span_begins() -> None:
    looking = Looking()
    traces = Traces(looking)

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None: ...

    async with flow_test(
        [ship], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider, receive=True)]
    ) as flow:
        await flow.send(Ship("1"))
        (waiting,) = await flow.waiting("shipping")
        await flow.run("shipping")

    where = {
        "messaging.system": "ecotone_memory",
        "messaging.destination.name": "shipping",
        "ecotone.channel": "shipping",
    }
    which = {"messaging.message.id": waiting.id, "messaging.message.conversation_id": waiting.headers["correlation_id"]}
    assert looking.seen == {
        "send Ship": (
            SpanKind.INTERNAL,
            {"ecotone.message.kind": "command", "ecotone.message.type": f"{__name__}.Ship", **which},
        ),
        "send shipping": (
            SpanKind.PRODUCER,
            {**where, **which, "messaging.operation.name": "send", "messaging.operation.type": "send"},
        ),
        "receive shipping": (
            SpanKind.CLIENT,
            {**where, **which, "messaging.operation.name": "receive", "messaging.operation.type": "receive"},
        ),
        "process shipping": (
            SpanKind.CONSUMER,
            {
                **where,
                **which,
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.consumer.group.name": "ship",
                "ecotone.attempt": 1,
            },
        ),
        "handle ship": (
            SpanKind.INTERNAL,
            {"ecotone.endpoint": "ship", "code.function.name": f"{__name__}.{ship.__qualname__}"},
        ),
        "ack shipping": (
            SpanKind.CLIENT,
            {**where, **which, "messaging.operation.name": "ack", "messaging.operation.type": "settle"},
        ),
    }


async def test_what_is_not_sampled_is_not_sampled_anywhere_else() -> None:
    traces = Traces(ParentBased(ALWAYS_OFF))

    @asynchronous("shipping")
    @command_handler(id="ship")
    async def ship(command: Ship) -> None: ...

    async with flow_test([ship], channels=[MemoryChannel("shipping")], plugins=[Tracing(traces.provider)]) as flow:
        await flow.send(Ship("1"))
        (waiting,) = await flow.waiting("shipping")

    assert traces.spans == []
    flags = int(waiting.headers["traceparent"].rpartition("-")[2], 16)
    assert flags & 1 == 0

    sampling = Traces(ParentBased(ALWAYS_ON))
    channel = MemoryChannel("shipping")
    async with flow_test([ship], channels=[channel], plugins=[Tracing(sampling.provider)]) as flow:
        await channel.send([waiting])
        assert await flow.run("shipping") == 1

    assert sampling.spans == []


@pytest.mark.parametrize("provider", [None, NoOpTracerProvider()])
def test_without_a_provider_nothing_is_plugged_in(provider: Any) -> None:
    assembly = Ecotone([], plugins=[Tracing(provider)]).assembly

    assert assembly.watchers == []
    assert [around for around in assembly.arounds if isinstance(around.plugin, Tracing)] == []


@pytest.mark.parametrize("provider", [TracerProvider, "http://localhost:4318", object()])
def test_what_makes_no_spans_is_refused_as_a_provider(provider: Any) -> None:
    with pytest.raises(ConfigurationError, match="given no provider"):
        Tracing(provider)


def test_a_parent_that_is_not_known_is_refused() -> None:
    parent: Any = "request"

    with pytest.raises(ConfigurationError, match="no such parent"):
        Tracing(process_parent=parent)


def test_an_application_is_traced_once() -> None:
    with pytest.raises(ConfigurationError, match="two plugins that trace"):
        Ecotone([], plugins=[Tracing(), Tracing()]).prepare()


def test_an_sdk_that_is_switched_off_plugs_nothing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    assert Ecotone([], plugins=[Tracing(TracerProvider(shutdown_on_exit=False))]).assembly.watchers == []


@untransacted(holding=False)
@command_handler
async def ship_at_once(command: Ship, events: EventBus) -> None:
    await events.publish(Pack(command.order_id))


async def test_who_holds_nothing_back_sends_in_one_span() -> None:
    traces = Traces()

    @asynchronous("packing")
    @event_handler(id="pack")
    async def pack(event: Pack) -> None: ...

    async with flow_test(
        [ship_at_once, pack], channels=[MemoryChannel("packing")], plugins=[Tracing(traces.provider)]
    ) as flow:
        await flow.send(Ship("1"))

    assert (
        traces.tree()
        == dedent("""
        send Ship
          handle ship_at_once
            publish Pack
              send packing PRODUCER
    """).strip()
    )


async def test_sending_that_fails_is_an_error_of_its_span() -> None:
    class Full(MemoryChannel):
        async def send(self, messages: Sequence[Message[bytes]]) -> None:
            raise ConnectionError("full")

    traces = Traces()

    @asynchronous("packing")
    @event_handler(id="pack")
    async def pack(event: Pack) -> None: ...

    async with flow_test([pack], channels=[Full("packing")], plugins=[Tracing(traces.provider)]) as flow:
        with pytest.raises(ConnectionError):
            await flow.publish(Pack("1"))

    assert (
        traces.tree()
        == dedent("""
        publish Pack ! ConnectionError
          send packing PRODUCER ! ConnectionError
    """).strip()
    )


def test_adapters_tell_where_their_messages_are() -> None:
    database = SqlAlchemy("postgresql+asyncpg://shop@db.example:5433/shop")
    queue = RabbitMQChannel("orders", "amqp://guest:guest@broker.example/")
    behind = RabbitMQChannel("orders", "amqps://broker.example", queue="q", exchange="shop", routing_key="placed")
    outbox = Ecotone([], channels=[queue], plugins=[database]).assembly.channels["orders"]

    def told(channel: object, *, sending: bool) -> tuple[str, str, str | None, int | None]:
        found = destination_of(channel, "?", sending=sending)
        return (found.system, found.name, found.address, found.port)

    assert told(database.channel("orders"), sending=True) == ("ecotone_sql", "orders", "db.example", 5433)
    assert told(MemoryChannel("orders"), sending=False) == ("ecotone_memory", "orders", None, None)
    assert told(queue, sending=True) == ("rabbitmq", "orders", "broker.example", 5672)
    assert told(behind, sending=True) == ("rabbitmq", "shop:placed", "broker.example", 5671)
    assert told(behind, sending=False) == ("rabbitmq", "shop:placed:q", "broker.example", 5671)
    assert told(RabbitMQChannel("o", "amqp://broker:what/"), sending=False) == ("rabbitmq", "o", "broker", None)
    assert told(outbox, sending=True) == ("ecotone_sql", "outbox/orders", "db.example", 5433)
    assert told(outbox, sending=False) == ("rabbitmq", "orders", "broker.example", 5672)
    assert told(object(), sending=True) == ("ecotone", "?", None, None)
