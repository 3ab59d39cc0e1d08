"""The flow test: the real application, its real consumers and real bytes, step by step in the test's own process.

async with flow_test([OrderService], channels=[MemoryChannel("notifications")]) as flow:
    await flow.send(PlaceOrder("order-1"))
    await flow.run("notifications")
    assert flow.published == [OrderWasPlaced("order-1")]
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.app.defaults import InBackground
from ecotone_fastapi.core.channel import Channel, Inspectable
from ecotone_fastapi.core.conversion import Converter
from ecotone_fastapi.core.endpoint import Kind
from ecotone_fastapi.core.errors import ConfigurationError, ProjectionError, UnsupportedCapabilityError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly, Limits, Plugin
from ecotone_fastapi.core.sending import unknown_channel
from ecotone_fastapi.messaging.asynchronous import Asynchronous
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.scheduling import ScheduledMessage, ScheduledMessages, is_scheduling
from ecotone_fastapi.messaging.transactions import UnitOfWork
from ecotone_fastapi.modelling.aggregates import Aggregates
from ecotone_fastapi.modelling.event_sourced import EventSourced
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.keeping import Kept
from ecotone_fastapi.modelling.publishing import StoredRepository
from ecotone_fastapi.modelling.stream_names import stream_of

A = TypeVar("A")

# A handler that sends to its own channel for ever ends a test run here.
_UNTIL_EMPTY = Limits(until_empty=True, messages=10_000, grace=5.0)


class TravellingClock:
    """A clock that a test moves forward.

    Args:
        start: Where it stands still until it is moved; without it, it goes on with the machine's clock.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start
        self._travelled: timedelta = timedelta(0)

    @property
    def offset(self) -> timedelta:
        """How far it has been moved."""
        return self._travelled

    def now(self) -> datetime:
        """Return the present time, aware and in UTC."""
        return (self._start or datetime.now(UTC)) + self._travelled

    def advance(self, by: timedelta) -> None:
        """Move it forward.

        Raises:
            ValueError: The way leads back.
        """
        if by < timedelta(0):
            raise ValueError(f"a clock does not go back: {by}")
        self._travelled += by


@dataclass(frozen=True)
class Recorded:
    """A message that went over a bus.

    Args:
        kind: Which bus.
        message: The message, with its headers.
        key: The key it was sent to.
    """

    kind: Kind
    message: Message[Any]
    key: str | None


class Flow:
    """An application under test. Made by `flow_test`.

    Attributes:
        ecotone: The application.
        clock: Its clock.
        recorded: Everything that went over a bus, in order.
        failures: What handlers raised while a channel was run, in order.
    """

    def __init__(
        self, ecotone: Ecotone, clock: TravellingClock, recorded: list[Recorded], failures: list[Exception]
    ) -> None:
        self.ecotone: Ecotone = ecotone
        self.clock: TravellingClock = clock
        self.recorded: list[Recorded] = recorded
        self.failures: list[Exception] = failures

    async def send(
        self, command: Any = None, *, to: str | None = None, headers: Mapping[str, Any] | None = None
    ) -> Any:
        """Send a command, as `CommandBus.send`."""
        return await self.ecotone.command_bus.send(command, to=to, headers=headers)

    async def ask(
        self, query: Any = None, *, to: str | None = None, headers: Mapping[str, Any] | None = None, returns: Any = None
    ) -> Any:
        """Ask a query, as `QueryBus.ask`."""
        return await self.ecotone.query_bus.ask(query, to=to, headers=headers, returns=returns)

    async def publish(self, event: Any, *, to: str | None = None, headers: Mapping[str, Any] | None = None) -> None:
        """Publish an event, as `EventBus.publish`."""
        await self.ecotone.event_bus.publish(event, to=to, headers=headers)

    async def run(self, name: str, limits: Limits = _UNTIL_EMPTY, *, raises: bool = True) -> int:
        """Run the consumer of a channel until nothing is left that is due, or until the limits are reached.

        What fails is retried and parked as in production; delayed messages wait for `advance`.

        Args:
            name: The name of the channel.
            limits: When to end.
            raises: Whether the first exception of a handler is raised when the run is over. Tests of failures say
                `raises=False` and look at `failures`, `dead_letters()` and `waiting()`.

        Returns:
            How many messages were handled well.
        """
        before, handled = len(self.failures), 0
        try:
            handled = await self.ecotone.run(name, limits)
        except ProjectionError as error:  # it stands still because of what a handler has raised
            cause = error.__cause__
            self.failures.append(cause if isinstance(cause, Exception) else error)
        if raises and len(self.failures) > before:
            raise self.failures[before]
        return handled

    async def advance(self, by: timedelta) -> None:
        """Move the clock forward: delayed messages that are due by then are delivered by the next `run`.

        Raises:
            ValueError: The way leads back.
        """
        self.clock.advance(by)

    async def travel_to(self, moment: datetime) -> None:
        """Move the clock forward to a moment.

        Raises:
            ValueError: The moment is past.
        """
        self.clock.advance(moment - self.clock.now())

    @property
    def commands(self) -> list[Any]:
        """The commands that were sent, by whomever."""
        return self._said(Kind.COMMAND)

    @property
    def queries(self) -> list[Any]:
        """The queries that were asked, by whomever."""
        return self._said(Kind.QUERY)

    @property
    def published(self) -> list[Any]:
        """The events that were published, by whomever."""
        return self._said(Kind.EVENT)

    def forget(self) -> None:
        """Forget what was recorded and what failed so far."""
        self.recorded.clear()
        self.failures.clear()

    async def waiting(self, channel: str) -> Sequence[Message[bytes]]:
        """Return the messages on a channel, delayed ones included, without consuming them.

        Raises:
            UnknownChannelError: There is no such channel.
            UnsupportedCapabilityError: It cannot be looked into.
        """
        channels = self.ecotone.assembly.channels
        if channel not in channels:
            raise unknown_channel(channel, channels)
        target = channels[channel]
        if not isinstance(target, Inspectable):
            raise UnsupportedCapabilityError(
                f"the channel {channel!r} cannot be looked into", hint="use MemoryChannel in this test"
            )
        return await target.peek()

    async def scheduled(self, key: str | None = None) -> Sequence[ScheduledMessage]:
        """Return what waits under a key, or under any key, the next one first."""
        store = cast("ScheduledMessages", self.ecotone.assembly.services[ScheduledMessages])
        return await store.list(key)

    # Aggregates and events

    async def given(self, stream: str | tuple[type, Any], events: Sequence[Any]) -> None:
        """Append events to a stream as its past: they are not published.

        Args:
            stream: Its name, or the class and the identifier of an event-sourced aggregate.
            events: Payloads, or `Message`s of payloads with headers of their own.

        Raises:
            ConfigurationError: The class is not event-sourced.

        Example:
            >>> async def test_it(flow: Flow) -> None:
            ...     await flow.given("basket-7", [BasketWasOpened("7"), ItemWasAdded("7", "apple")])
        """
        name = self._stream(stream)
        async with self._unit_of_work():
            await self._events.append(name, events)

    async def stream(self, stream: str | tuple[type, Any]) -> list[Any]:
        """Return the events of a stream.

        Args:
            stream: Its name, or the class and the identifier of an event-sourced aggregate.
        """
        return [event.payload for event in await self._events.load(self._stream(stream))]

    async def given_state(self, aggregate: Any) -> None:
        """Save an aggregate as it is; what it has recorded is not published.

        Raises:
            ConfigurationError: It is event-sourced: its past is events.
        """
        kept = self._kept(type(aggregate))
        if isinstance(kept.described.model, EventSourced):
            raise ConfigurationError(
                f"the state of a {kept.label} is what its events say",
                hint=f"await flow.given(({kept.label}, identifier), [...])",
            )
        async with self._unit_of_work():
            await kept.save(aggregate)

    async def state(self, cls: type[A], identifier: Any) -> A:
        """Return an aggregate as it is now.

        Raises:
            AggregateNotFoundError: There is none.
        """
        async with self._unit_of_work():
            found: A = await StoredRepository(self._kept(cls), self.ecotone.prepare()).get(identifier)
        return found

    @property
    def _events(self) -> EventStore:
        return cast("EventStore", self.ecotone.assembly.services[EventStore])

    def _kept(self, cls: type) -> Kept:
        return next(one for one in self.ecotone.assembly.plugins if isinstance(one, Aggregates)).kept(cls)

    def _stream(self, stream: str | tuple[type, Any]) -> str:
        if isinstance(stream, str):
            return stream
        cls, value = stream
        kept = self._kept(cls)
        model, identifier = kept.described.model, kept.identifier(value)
        if not isinstance(model, EventSourced) or identifier is None:
            raise ConfigurationError(
                f"a {kept.label} {value!r} has no stream", hint="name an event-sourced class and an identifier"
            )
        return stream_of(model.category, str(identifier))

    @asynccontextmanager
    async def _unit_of_work(self) -> AsyncIterator[None]:
        gateway = self.ecotone.prepare()
        unit = cast("UnitOfWork | None", self.ecotone.assembly.services.get(UnitOfWork))
        async with gateway.unit_of_work(gateway.message(None)) as scope:
            if unit is not None:
                await scope.enter(unit.begin(scope))
            yield

    # What was parked

    async def dead_letters(self) -> Sequence[ParkedMessage]:
        """Return what was parked, the newest first."""
        store = cast("DeadLetterStore", self.ecotone.assembly.services[DeadLetterStore])
        return await store.list()

    async def replay(self, parked: ParkedMessage | str, *, to: str | None = None) -> None:
        """Send a dead letter back to the channel it failed on, as `DeadLetters.replay`; `run` handles it.

        Args:
            parked: The dead letter, or its id.
            to: Another channel.

        Raises:
            DeadLetterNotFoundError: It is not there.
        """
        parked_id = parked.id if isinstance(parked, ParkedMessage) else parked
        await self.ecotone.dead_letters.replay(parked_id, to=to)

    def _said(self, kind: Kind) -> list[Any]:
        return [one.message.payload for one in self.recorded if one.kind is kind]


class _Recorder:
    """Records what goes over the buses, and what fails."""

    def __init__(self) -> None:
        self.recorded: list[Recorded] = []
        self.failures: list[Exception] = []

    def install(self, assembly: Assembly) -> None:
        async def record(call: Call, proceed: Proceed) -> Any:
            assert call.kind is not None
            if call.kind is not Kind.INTERNAL:
                self.recorded.append(Recorded(call.kind, call.message, call.key))
            return await proceed(call)

        async def note_failure(call: Call, proceed: Proceed) -> Any:
            try:
                return await proceed(call)
            except Exception as error:
                self.failures.append(error)
                raise

        assembly.add_interceptor(record, stage=Stage.DISPATCH, order=Order.TRACING)
        assembly.add_interceptor(note_failure, stage=Stage.RECEIVE, order=Order.FAILURE + 1)


class _InLine:
    """Runs asynchronous handlers in the caller, as if they had no mark."""

    def install(self, assembly: Assembly) -> None:
        assembly.endpoints = [
            replace(one, marks=tuple(value for value in one.marks if not _is_of_a_channel(value)))
            if one.find(Asynchronous) is not None
            else one
            for one in assembly.endpoints
        ]


def _is_of_a_channel(mark: object) -> bool:
    return isinstance(mark, Asynchronous) or is_scheduling(mark)


@asynccontextmanager
async def flow_test(
    handlers: Iterable[object],
    *,
    channels: Iterable[Channel] | None = None,
    plugins: Iterable[Plugin] = (),
    services: Mapping[Any, object] | None = None,
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    converters: Iterable[Converter] = (),
    clock: TravellingClock | None = None,
) -> AsyncIterator[Flow]:
    """Start an application for a test. No consumer runs by itself: `Flow.run` runs them, when the test says so.

    Args:
        handlers: What is under test, as for `Ecotone`; nothing else is loaded.
        channels: The channels. Without them, asynchronous handlers run in line.
        plugins: Databases and other extensions.
        services: What handlers ask for by type.
        overrides: Dependencies that are replaced, as `app.dependency_overrides` does.
        converters: For types and media types that pydantic does not know.
        clock: The clock; by default it goes with the machine's until it is moved.

    Raises:
        ConfigurationError: Something is wrong with the wiring.

    Example:
        >>> class Greeter:
        ...     @query_handler("greet")
        ...     async def greet(self, name: str) -> str:
        ...         return f"Hello {name}"
        >>> async with flow_test([Greeter]) as flow:
        ...     print(await flow.ask("Ada", to="greet"))
        Hello Ada
    """
    time = clock or TravellingClock()
    recorder = _Recorder()
    in_line: list[Plugin] = [_InLine(), InBackground(in_line=True)] if channels is None else []
    ecotone = Ecotone(
        handlers,
        channels=channels or (),
        plugins=[recorder, *in_line, *plugins],
        services=services,
        overrides=overrides,
        converters=converters,
        clock=time,
        consumers=False,
    )
    async with ecotone.running():
        yield Flow(ecotone, time, recorder.recorded, recorder.failures)
