"""The outbox and its relay, with outboxes in memory and a broker that does what a test wants."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import anyio
import pytest

from ecotone_fastapi import Ecotone, Outbox
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDeadLetters
from ecotone_fastapi.core.bus import EventBus
from ecotone_fastapi.core.channel import Capabilities, Channel, Inspectable, SettlesTogether
from ecotone_fastapi.core.clock import TellsTime
from ecotone_fastapi.core.endpoint import command_handler, event_handler
from ecotone_fastapi.core.errors import (
    ChannelError,
    ConfigurationError,
    ConversionError,
    LeaseLostError,
    MissingServiceError,
    SendError,
)
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.plugin import Assembly, HealthCheck, Limits
from ecotone_fastapi.core.supervision import Pauses
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.failures import Backoff, Failures
from ecotone_fastapi.messaging.outbox import DelaysThrough, OutboxStorage, Send, ThroughOutbox
from ecotone_fastapi.messaging.relay import RelaySettings, packed, unpacked
from ecotone_fastapi.testing.flow import Flow, TravellingClock, flow_test
from tests.servers import until

AT_ONCE = Pauses(first=0.0, longest=0.0)
QUICK = RelaySettings(unreachable=AT_ONCE)


class Broker(MemoryChannel):
    """A channel on a server of its own, which can be away and refuse messages."""

    def __init__(self, name: str = "orders", *, delivery: str = "outbox", durable: bool = True) -> None:
        super().__init__(name)
        self.capabilities: Capabilities = replace(self.capabilities, durable=durable, delay=False)
        self.delivery = delivery
        self.away = False
        self.refused: set[str] = set()
        self.unbearable: set[bytes] = set()
        self.batches: list[int] = []
        self.taken: list[Message[bytes]] = []
        self.taking: Callable[[], Awaitable[object]] | None = None
        self.attempts = 0

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        self.attempts += 1
        if self.taking is not None:
            await self.taking()
        if self.away:
            raise ChannelError(f"the broker of {self.name!r} is away")
        if unbearable := [message for message in messages if message.payload in self.unbearable]:
            raise ConversionError(f"too large: {unbearable}")
        taken = [message for message in messages if message.headers.get(HeaderName.id) not in self.refused]
        self.batches.append(len(messages))
        self.taken += taken
        await super().send(taken)
        if len(taken) < len(messages):
            raise SendError(f"channel {self.name!r} refused some", failed=sorted(self.refused))


class Deferring(Broker):
    """A broker that lets somebody else keep what has to wait."""

    elsewhere: Send | None = None

    def delay_through(self, send: Send) -> None:
        self.elsewhere = send

    async def check(self) -> None: ...


class Database:
    """Keeps outboxes in memory. They are those of a database to the plugin, and wait for no transaction."""

    def __init__(self, *, letters: bool = True) -> None:
        self.kept: dict[str, MemoryChannel] = {}
        self.dead_letters = MemoryDeadLetters()
        self._letters = letters

    def install(self, assembly: Assembly) -> None:
        assembly.add_service(OutboxStorage, self)
        if self._letters:
            assembly.add_service(DeadLetterStore, self.dead_letters)

    def outbox_for(self, channel: str, *, keeps_order: bool = False) -> Channel:
        made = MemoryChannel(f"outbox/{channel}", lease=60.0, keeps_order=keeps_order)
        return self.kept.setdefault(channel, made)

    async def outboxes(self) -> Sequence[str]:
        return [name for name, channel in self.kept.items() if await channel.depth()]


@dataclass(frozen=True)
class Placed:
    number: int = 1


class Orders:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.fails = False

    @command_handler("place")
    async def place(self, number: int, events: EventBus) -> None:
        await events.publish(Placed(number))
        if self.fails:
            raise OSError("the handler failed after it had sent")

    @asynchronous("orders")
    @event_handler(id="when-placed")
    async def when_placed(self, event: Placed) -> None:
        self.seen.append(event.number)


def order(number: int = 1, **headers: str) -> Message[bytes]:
    return Message(b"%d" % number, {HeaderName.id: f"order-{number}", **headers})


def numbers(messages: Sequence[Message[bytes]]) -> list[int]:
    return [int(message.payload) for message in messages]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
async def flow(broker: Broker, database: Database):
    async with flow_test([Orders()], channels=[broker], plugins=[database, Outbox(settings=QUICK)]) as flow:
        yield flow


async def store(flow: Flow, *messages: Message[bytes], channel: str = "orders") -> None:
    await flow.ecotone.assembly.gateway.transmit(channel, messages)


# ------------------------------------------------------------------------------------------------------ the way through


async def test_what_a_handler_sends_waits_in_the_outbox_until_the_relay_takes_it_to_the_broker(
    broker: Broker, database: Database
) -> None:
    orders = Orders()
    async with flow_test([orders], channels=[broker], plugins=[database]) as flow:
        await flow.send(1, to="place")
        [waiting] = await flow.waiting("outbox/orders")
        assert (broker.taken, waiting.headers["forward_to"]) == ([], "orders")

        assert await flow.run("outbox") == 1
        assert await flow.run("orders") == 1

    assert orders.seen == [1]
    assert await database.kept["orders"].depth() == 0


async def test_nothing_is_sent_of_a_handler_that_fails(broker: Broker, database: Database) -> None:
    orders = Orders()
    orders.fails = True
    async with flow_test([orders], channels=[broker], plugins=[database]) as flow:
        with pytest.raises(OSError, match="after it had sent"):
            await flow.send(1, to="place")

        assert await flow.run("outbox") == 0
    assert broker.taken == []


async def test_bytes_and_headers_arrive_as_they_were_sent(flow: Flow, broker: Broker) -> None:
    sent = order(
        attempt="2", first_failed_at="2026-01-01T00:00:00+00:00", priority="7", partition_key="k", tenant="acme"
    )

    await store(flow, sent)
    await flow.run("outbox")

    [taken] = broker.taken
    assert taken.payload == sent.payload
    assert dict(taken.headers) == dict(sent.headers)


async def test_failures_of_the_relay_are_not_counted_as_those_of_the_handler(flow: Flow, broker: Broker) -> None:
    broker.refused = {"order-1"}
    await store(flow, order(attempt="2"))
    await flow.run("outbox")
    [waiting] = await flow.waiting("outbox/orders")
    assert waiting.headers["attempt"] == "1"

    broker.refused = set()
    await flow.advance(timedelta(minutes=2))
    await flow.run("outbox")

    assert [message.headers["attempt"] for message in broker.taken] == ["2"]


async def test_a_delay_is_waited_for_in_the_outbox(flow: Flow, broker: Broker) -> None:
    await store(flow, order(delay="3600"))
    assert await flow.run("outbox") == 0

    await flow.advance(timedelta(hours=1))
    assert await flow.run("outbox") == 1

    assert "delay" not in broker.taken[0].headers


async def test_what_is_left_of_a_time_to_live_goes_to_the_broker(broker: Broker, database: Database) -> None:
    clock = TravellingClock(start=TravellingClock().now())
    async with flow_test([Orders()], channels=[broker], plugins=[database], clock=clock) as flow:
        await store(flow, order(time_to_live="100"))
        await flow.advance(timedelta(seconds=40))
        await flow.run("outbox")

    assert [float(message.headers["time_to_live"]) for message in broker.taken] == [60.0]


async def test_what_expires_in_the_outbox_is_never_sent(flow: Flow, broker: Broker) -> None:
    await store(flow, order(time_to_live="10"))
    await flow.advance(timedelta(seconds=11))

    assert await flow.run("outbox") == 0
    assert broker.taken == []
    assert await flow.waiting("outbox/orders") == []


def test_what_expires_between_the_outbox_and_the_broker_is_not_unpacked() -> None:
    now = TravellingClock().now()

    assert unpacked(packed(order(time_to_live="1"), "orders", now), now + timedelta(seconds=1)) is None


def test_what_can_be_put_off_has_the_time_after_it_is_due_that_it_would_have_had() -> None:
    now = TravellingClock().now()
    sent = packed(order(time_to_live="100", delay="40", schedule_key="key"), "orders", now)

    unpacked_much_later = unpacked(sent, now + timedelta(days=1))

    assert unpacked_much_later is not None
    assert float(unpacked_much_later.headers["time_to_live"]) == 60.0


async def test_a_malformed_header_is_refused_before_anything_is_stored(flow: Flow) -> None:
    with pytest.raises(ConversionError):
        await store(flow, order(1), order(2, time_to_live="soon"))

    assert await flow.waiting("outbox/orders") == []


async def test_without_a_database_messages_go_directly(broker: Broker) -> None:
    async with flow_test([Orders()], channels=[broker], plugins=[Letters()]) as flow:
        await flow.send(1, to="place")
        assert "outbox" not in flow.ecotone.assembly.runnables
    assert len(broker.taken) == 1


async def test_a_channel_may_send_directly(database: Database) -> None:
    broker = Broker(delivery="direct")
    async with flow_test([Orders()], channels=[broker], plugins=[database]) as flow:
        await flow.send(1, to="place")
        assert "outbox" not in flow.ecotone.assembly.runnables
    assert len(broker.taken) == 1


async def test_a_channel_that_keeps_nothing_needs_no_outbox(database: Database) -> None:
    async with flow_test([Orders()], channels=[Broker(durable=False)], plugins=[database]) as flow:
        assert set(flow.ecotone.assembly.channels) == {"orders"}


async def test_a_message_crosses_several_channels_and_the_outbox_between_them(
    broker: Broker, database: Database
) -> None:
    seen: list[Placed] = []

    @asynchronous("db", "orders")
    @event_handler(id="chained")
    async def when_placed(event: Placed) -> None:
        seen.append(event)

    async with flow_test([when_placed], channels=[MemoryChannel("db"), broker], plugins=[database]) as flow:
        await flow.publish(Placed())
        assert [await flow.run(name) for name in ("db", "outbox", "orders")] == [1, 1, 1]

    assert seen == [Placed()]


# ---------------------------------------------------------------------------------------------------------- the wiring


class Letters:
    def install(self, assembly: Assembly) -> None:
        assembly.add_service(DeadLetterStore, MemoryDeadLetters())


async def test_a_channel_called_like_the_relay_is_a_mistake_that_is_found_at_start(database: Database) -> None:
    channels = [Broker(), MemoryChannel("outbox")]

    with pytest.raises(ConfigurationError, match="has the name 'outbox' of the relay"):
        Ecotone([Orders()], channels=channels, plugins=[database]).prepare()
    Ecotone([Orders()], channels=channels, plugins=[Database(), Outbox("relay")]).prepare()


def test_an_outbox_without_a_dead_letter_is_a_mistake_that_is_found_at_start() -> None:
    with pytest.raises(MissingServiceError, match="no dead letter"):
        Outbox().install(assembly_with(Broker(), Database(letters=False)))


def assembly_with(channel: Channel, database: Database) -> Assembly:
    assembly = Assembly(Ecotone([], channels=[MemoryChannel("any")]).prepare())
    assembly.add_channel(channel)
    database.install(assembly)
    return assembly


@pytest.mark.parametrize("numbers", [{"batch": 0}, {"retries": -1}])
def test_numbers_with_which_nothing_is_sent_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="sends nothing"):
        RelaySettings(**numbers)


def test_the_wrapped_channel_offers_what_the_channel_offers_and_delays() -> None:
    inside = Deferring()
    wrapped = ThroughOutbox(inside, MemoryChannel("outbox/orders"), TravellingClock())

    for protocol in (SettlesTogether, Inspectable, TellsTime, HealthCheck, DelaysThrough):
        assert isinstance(wrapped, protocol), protocol
    # This is how Python 3.12 looks for what a protocol wants.
    for name in ("ack_all", "depth", "oldest_age", "peek", "purge", "use_clock", "check", "delay_through"):
        assert inspect.getattr_static(wrapped, name)
    assert wrapped.capabilities == replace(inside.capabilities, delay=True)
    assert wrapped.queue is inside.queue


def test_the_wrapped_channel_does_not_offer_what_the_channel_does_not_offer() -> None:
    wrapped = ThroughOutbox(Broker(), MemoryChannel("outbox/orders"), TravellingClock())

    assert not isinstance(wrapped, HealthCheck)
    with pytest.raises(AttributeError):
        _ = wrapped.nothing_like_that


async def test_a_channel_can_let_its_delayed_retries_wait_in_the_outbox(database: Database) -> None:
    broker = Deferring()
    async with flow_test([Orders()], channels=[broker], plugins=[database]) as flow:
        assert broker.elsewhere is not None
        await broker.elsewhere([order(delay="60", attempt="1")])
        assert await flow.run("outbox") == 0
        await flow.advance(timedelta(minutes=1))
        assert await flow.run("outbox") == 1

    assert broker.taken[0].headers["attempt"] == "1"


async def test_the_depth_of_an_outbox_is_that_of_its_own_channel(flow: Flow, broker: Broker) -> None:
    await store(flow, order(1), order(2))
    channels = flow.ecotone.assembly.channels
    outbox, wrapped = channels["outbox/orders"], channels["orders"]
    assert isinstance(outbox, Inspectable)
    assert isinstance(wrapped, Inspectable)

    assert (await outbox.depth(), await wrapped.depth()) == (2, 0)
    assert await outbox.oldest_age() is not None
    await flow.run("outbox")
    assert (await outbox.depth(), await wrapped.depth()) == (0, 2)


# ------------------------------------------------------------------------------------------------------------ the relay


async def test_the_relay_sends_batches_in_the_order_of_sending(broker: Broker, database: Database) -> None:
    plugins = [database, Outbox(settings=RelaySettings(batch=10))]
    async with flow_test([Orders()], channels=[broker], plugins=plugins) as flow:
        await store(flow, *(order(number) for number in range(25)))
        assert await flow.run("outbox") == 25

    assert broker.batches == [10, 10, 5]
    assert numbers(broker.taken) == list(range(25))


async def test_only_what_was_refused_stays_and_is_tried_again_later_and_later(
    broker: Broker, flow: Flow, caplog: pytest.LogCaptureFixture
) -> None:
    broker.refused = {"order-2"}
    await store(flow, order(1), order(2), order(3))

    assert await flow.run("outbox") == 2
    assert numbers(await flow.waiting("outbox/orders")) == [2]
    assert await flow.run("outbox") == 0
    await flow.advance(timedelta(seconds=1.3))
    await flow.run("outbox")
    [waiting] = await flow.waiting("outbox/orders")
    assert waiting.headers["attempt"] == "2"
    await flow.advance(timedelta(seconds=1.3))
    assert await flow.run("outbox") == 0
    assert broker.batches == [3, 1]

    broker.refused = set()
    await flow.advance(timedelta(seconds=2))
    assert await flow.run("outbox") == 1
    assert numbers(broker.taken) == [1, 3, 2]
    assert "channel orders did not take message order-2, attempt 2 (SendError" in caplog.text


async def test_on_the_way_to_a_channel_that_keeps_order_nothing_overtakes_what_was_refused_of_its_key(
    broker: Broker, database: Database
) -> None:
    broker.capabilities = replace(broker.capabilities, keeps_order=True)
    broker.refused = {"order-2"}
    async with flow_test([Orders()], channels=[broker], plugins=[database]) as flow:
        await store(flow, *(order(number, partition_key="odd" if number % 2 else "even") for number in range(1, 7)))

        assert await flow.run("outbox") == 3
        assert numbers(broker.taken) == [1, 3, 5]
        broker.refused = set()
        await flow.advance(timedelta(seconds=2))
        assert await flow.run("outbox") == 3

    assert numbers(broker.taken) == [1, 3, 5, 2, 4, 6]


async def test_behind_a_message_that_is_parked_its_key_goes_on(broker: Broker, database: Database) -> None:
    broker.capabilities = replace(broker.capabilities, keeps_order=True)
    broker.unbearable = {b"1"}
    plugins = [database, Outbox(settings=RelaySettings(retries=1))]
    async with flow_test([Orders()], channels=[broker], plugins=plugins) as flow:
        await store(flow, order(1, partition_key="a"), order(2, partition_key="a"))

        assert await flow.run("outbox") == 0
        await flow.advance(timedelta(seconds=2))
        await flow.run("outbox")
        assert len(await flow.dead_letters()) == 1

    assert numbers(broker.taken) == [2]


async def test_what_is_on_its_way_with_a_delay_holds_up_its_key_where_order_is_kept(
    broker: Broker, database: Database
) -> None:
    broker.capabilities = replace(broker.capabilities, keeps_order=True)
    async with flow_test([Orders()], channels=[broker], plugins=[database]) as flow:
        await store(flow, order(1, partition_key="a", delay="30"), order(2, partition_key="a"), order(3))

        assert await flow.run("outbox") == 1
        await flow.advance(timedelta(seconds=31))
        assert await flow.run("outbox") == 2

    assert numbers(broker.taken) == [3, 1, 2]


async def test_what_is_refused_for_a_long_time_is_never_given_up(broker: Broker, flow: Flow) -> None:
    broker.refused = {"order-1"}
    await store(flow, order(1))

    for _ in range(20):
        await flow.run("outbox")
        await flow.advance(timedelta(minutes=2))

    assert await flow.dead_letters() == []
    broker.refused = set()
    assert await flow.run("outbox") == 1


async def test_messages_of_one_id_are_told_apart_by_nothing_and_stay_together(broker: Broker, flow: Flow) -> None:
    broker.refused = {"order-1"}
    await store(flow, order(1, endpoint="one"), order(1, endpoint="two"))

    assert await flow.run("outbox") == 0
    assert len(await flow.waiting("outbox/orders")) == 2


async def test_a_refusal_that_names_nobody_gives_everything_back(broker: Broker, flow: Flow) -> None:
    async def refuse() -> None:
        raise SendError("refused", failed=["somebody else"])

    broker.taking = refuse
    await store(flow, order(1), order(2))

    with pytest.raises(SendError):
        await flow.run("outbox")
    assert [message.headers.get("attempt") for message in await flow.waiting("outbox/orders")] == [None, None]


async def test_a_message_that_the_broker_cannot_take_holds_up_no_other_and_is_parked(
    broker: Broker, flow: Flow, caplog: pytest.LogCaptureFixture
) -> None:
    broker.unbearable = {b"3"}
    await store(flow, *(order(number, endpoint="when-placed") for number in range(8)))

    assert await flow.run("outbox") == 7
    assert numbers(broker.taken) == [0, 1, 2, 4, 5, 6, 7]
    for _ in range(5):
        assert await flow.dead_letters() == []
        await flow.advance(timedelta(minutes=2))
        await flow.run("outbox")

    [parked] = await flow.dead_letters()
    assert (parked.channel, parked.endpoint, parked.attempts) == ("orders", "when-placed", 6)
    assert parked.error_type == "ecotone_fastapi.core.errors.ConversionError"
    assert "too large" in parked.error_message
    assert "too large" in parked.traceback
    assert parked.message.payload == b"3"
    assert not set(parked.message.headers) & {"forward_to", "attempt"}
    assert await flow.waiting("outbox/orders") == []
    assert "message order-3, attempt 6, parked" in caplog.text


async def test_what_was_parked_can_be_replayed_through_the_outbox(broker: Broker, flow: Flow) -> None:
    broker.unbearable = {b"1"}
    await store(flow, order(1, endpoint="when-placed", content_type="application/json"))
    for _ in range(6):
        await flow.run("outbox")
        await flow.advance(timedelta(minutes=2))
    [parked] = await flow.dead_letters()

    broker.unbearable = set()
    await flow.ecotone.dead_letters.replay(parked.id)

    assert await flow.run("outbox") == 1
    assert numbers(broker.taken) == [1]


async def test_what_cannot_be_parked_stays(broker: Broker, database: Database) -> None:
    class Full(MemoryDeadLetters):
        async def park(self, parked: object) -> None:
            raise OSError("the disk is full")

    database.dead_letters = Full()
    broker.unbearable = {b"1"}
    plugins = [database, Outbox(settings=RelaySettings(retries=0))]
    async with flow_test([Orders()], channels=[broker], plugins=plugins) as flow:
        await store(flow, order(1))
        await flow.run("outbox")

        assert numbers(await flow.waiting("outbox/orders")) == [1]


async def test_what_somebody_has_spoilt_in_the_outbox_is_parked(broker: Broker, flow: Flow, database: Database) -> None:
    await database.kept["orders"].send([order(1, forward_headers="{"), order(2, forward_until="soon"), order(3)])

    for _ in range(6):
        await flow.run("outbox")
        await flow.advance(timedelta(minutes=2))

    assert numbers(broker.taken) == [3]
    assert len(await flow.dead_letters()) == 2


async def test_a_broker_that_is_away_is_told_and_its_messages_keep_their_places(broker: Broker, flow: Flow) -> None:
    broker.away = True
    await store(flow, order(1), order(2))

    with pytest.raises(ChannelError, match="is away"):
        await flow.run("outbox")
    await store(flow, order(3))
    waiting = await flow.waiting("outbox/orders")
    assert (numbers(waiting), [message.headers.get("attempt") for message in waiting]) == ([1, 2, 3], [None] * 3)

    broker.away = False
    assert await flow.run("outbox") == 3
    assert numbers(broker.taken) == [1, 2, 3]


async def test_a_broker_that_is_away_keeps_nobody_but_its_own_messages_waiting(database: Database) -> None:
    away, there = Broker("away"), Broker("there")
    away.away = True
    async with flow_test([], channels=[away, there], plugins=[database]) as flow:
        await store(flow, order(1), channel="away")
        await store(flow, order(2), channel="there")

        with pytest.raises(ChannelError, match="is away"):
            await flow.run("outbox")
        assert numbers(there.taken) == [2]


async def test_the_relay_waits_for_a_broker_and_asks_with_one_message(
    broker: Broker, flow: Flow, caplog: pytest.LogCaptureFixture
) -> None:
    broker.away = True
    await store(flow, order(1), order(2), order(3))
    stop = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        await until(lambda: broker.attempts > 3)
        broker.away = False
        await until(lambda: len(broker.taken) == 3)
        stop.set()

    assert numbers(broker.taken) == [1, 2, 3]
    assert broker.batches == [1, 2]
    assert "channel orders cannot be reached (ChannelError: the broker of 'orders' is away), again in" in caplog.text


async def test_what_is_stored_while_the_relay_runs_is_sent_at_once(broker: Broker, flow: Flow) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        await flow.send(1, to="place")
        await until(lambda: broker.taken)
        stop.set()


async def test_a_relay_that_is_stopped_finishes_what_is_under_way(broker: Broker, flow: Flow) -> None:
    stop, confirm = anyio.Event(), anyio.Event()
    broker.taking = confirm.wait
    await store(flow, order(1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        await until(lambda: broker.attempts)
        stop.set()
        await store(flow, order(2))
        confirm.set()

    assert numbers(broker.taken) == [1]
    assert numbers(await flow.waiting("outbox/orders")) == [2]


async def test_a_relay_that_has_no_more_grace_gives_back_what_it_has_not_sent(broker: Broker, flow: Flow) -> None:
    stop = anyio.Event()
    broker.taking = anyio.sleep_forever
    await store(flow, order(1), order(2))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop, grace=0.0))
        await until(lambda: broker.attempts)
        stop.set()

    waiting = await flow.waiting("outbox/orders")
    assert numbers(waiting) == [1, 2]
    assert [message.headers.get("attempt") for message in waiting] == [None, None]


async def test_the_relay_ends_after_so_many_messages_of_all_channels_together(database: Database) -> None:
    brokers = [Broker("one"), Broker("two")]
    async with flow_test([], channels=brokers, plugins=[database]) as flow:
        for broker in brokers:
            await store(flow, *(order(number) for number in range(10)), channel=broker.name)

        assert await flow.ecotone.run("outbox", Limits(messages=7)) == 7
        left = [await flow.waiting(f"outbox/{broker.name}") for broker in brokers]
        assert sum(map(len, left)) == 13
        assert await flow.ecotone.run("outbox", Limits(messages=13)) == 13


async def test_the_relay_ends_when_its_time_is_over_or_it_has_grown_too_large(broker: Broker, flow: Flow) -> None:
    assert await flow.ecotone.run("outbox", Limits(seconds=0.01)) == 0
    assert await flow.ecotone.run("outbox", Limits(memory=1)) == 0


async def test_an_outbox_that_is_lost_ends_the_run(
    broker: Broker, flow: Flow, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(limit: int, timeout: float) -> Sequence[object]:
        raise ChannelError("the database is away")

    monkeypatch.setattr(database.kept["orders"], "receive", lost)

    with pytest.raises(ChannelError, match="the database is away"):
        await flow.ecotone.run("outbox", Limits())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LeaseLostError("somebody else has it"), "sent, but lost before the end; sent twice: somebody else has it"),
        (ChannelError("the database is away"), "sent, but not removed; sent again: ChannelError: the database is away"),
    ],
)
async def test_what_was_sent_and_could_not_be_removed_is_told(
    error: ChannelError,
    told: str,
    *,
    flow: Flow,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(deliveries: object) -> None:
        raise error

    monkeypatch.setattr(database.kept["orders"], "ack_all", fail)
    await store(flow, order(1))

    assert await flow.run("outbox") == 1
    assert told in caplog.text


async def test_what_cannot_be_given_back_comes_back_by_itself(
    broker: Broker, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: object, **options: object) -> None:
        raise ChannelError("the database is away")

    broker.away = True
    async with flow_test([Orders()], channels=[broker], plugins=[database]) as flow:
        await store(flow, order(1))
        with monkeypatch.context() as patched:
            patched.setattr("ecotone_fastapi.adapters.memory.channel.MemoryDelivery.nack", fail)
            with pytest.raises(ChannelError):
                await flow.run("outbox")
        assert "outbox of orders: not given back, comes back by itself" in caplog.text

        broker.away = False
        await flow.advance(timedelta(seconds=61))
        assert await flow.run("outbox") == 1


async def test_an_outbox_that_settles_one_by_one_does_as_well(broker: Broker) -> None:
    class OneByOne:
        """Only what every channel must have."""

        def __init__(self, inside: MemoryChannel) -> None:
            self.name, self.capabilities = inside.name, inside.capabilities
            self.open, self.close, self.send, self.receive = inside.open, inside.close, inside.send, inside.receive

    class Simple(Database):
        def outbox_for(self, channel: str, *, keeps_order: bool = False) -> Channel:
            return OneByOne(self.kept.setdefault(channel, MemoryChannel(f"outbox/{channel}")))

    database = Simple()
    async with flow_test([Orders()], channels=[broker], plugins=[database]) as flow:
        await store(flow, order(1), order(2))
        assert await flow.run("outbox") == 2
    assert await database.kept["orders"].depth() == 0


async def test_messages_for_channels_that_are_not_here_stay_and_are_told(
    broker: Broker, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("gone", "direct"):
        await database.outbox_for(name).send([order(1)])
    channels = [broker, Broker("direct", delivery="direct")]
    async with flow_test([Orders()], channels=channels, plugins=[database]) as flow:
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
            await until(lambda: "channel gone" in caplog.text and "channel direct" in caplog.text)
            stop.set()

    assert "holds messages for the channel gone, which does not exist here" in caplog.text
    assert "holds messages for the channel direct, which sends directly here" in caplog.text
    assert await database.kept["gone"].depth() == 1


async def test_an_outbox_that_cannot_be_searched_is_no_reason_to_stop(
    broker: Broker, flow: Flow, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def lost() -> Sequence[str]:
        raise ChannelError("the database is away")

    caplog.set_level(logging.DEBUG, "ecotone_fastapi.outbox")
    relay = flow.ecotone.assembly.runnables["outbox"]
    relay._stray = lost  # type: ignore[attr-defined]
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.ecotone.run, "outbox", Limits(stop=stop))
        await until(lambda: "the outbox was not searched" in caplog.text)
        await store(flow, order(1))
        await until(lambda: broker.taken)
        stop.set()


async def test_two_relays_share_the_work_and_send_nothing_twice(database: Database) -> None:
    broker = Broker()
    plugin = Outbox(settings=RelaySettings(batch=7))
    async with flow_test([Orders()], channels=[broker], plugins=[database, plugin]) as flow:
        await store(flow, *(order(number) for number in range(100)))
        broker.taking = anyio.lowlevel.checkpoint
        sent: list[int] = []

        async def relay() -> None:
            sent.append(await flow.run("outbox"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay)
            tasks.start_soon(relay)

    assert sum(sent) == 100
    assert min(sent) > 0
    assert sorted(numbers(broker.taken)) == list(range(100))


async def test_the_relay_runs_beside_an_application_and_handlers_behind_the_broker_run(database: Database) -> None:
    orders = Orders()
    ecotone = Ecotone([orders], channels=[Broker()], plugins=[database, Failures(Backoff(retries=0))])

    async with ecotone.running():
        await ecotone.command_bus.send(7, to="place")
        await until(lambda: orders.seen)
        assert {one.name for one in (await ecotone.health()).runnables} == {"outbox", "orders"}

    assert orders.seen == [7]
