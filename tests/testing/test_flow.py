import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

import pytest
from fastapi import Depends

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.bus import CommandBus, EventBus, QueryBus
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.core.endpoint import Kind, command_handler, event_handler, query_handler
from ecotone_fastapi.core.errors import (
    ConfigurationError,
    HandlerNotFoundError,
    UnknownChannelError,
    UnsupportedCapabilityError,
)
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.messaging.failures import Backoff, Failures
from ecotone_fastapi.testing import Flow, Recorded, TravellingClock, flow_test
from ecotone_fastapi.testing.faults import FailingChannel

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Mailer(Protocol):
    def send(self, order_id: str) -> None: ...


class Mailbox:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, order_id: str) -> None:
        if order_id == "unlucky":
            raise ValueError(order_id)
        self.sent.append(order_id)


def get_mailer() -> Mailer:
    raise AssertionError("a test sends no mail")


class Orders:
    def __init__(self) -> None:
        self.status: dict[str, str] = {}

    @command_handler
    async def place(self, command: PlaceOrder, events: EventBus, queries: QueryBus) -> str:
        self.status[command.order_id] = "placed"
        await events.publish(OrderWasPlaced(command.order_id))
        return str(await queries.ask(command.order_id, to="order.status"))

    @query_handler("order.status")
    async def get_status(self, order_id: str) -> str:
        return self.status[order_id]


class Notifications:
    @asynchronous("mail")
    @event_handler(id="mail")
    async def when_placed(self, event: OrderWasPlaced, mailer: Annotated[Mailer, Depends(get_mailer)]) -> None:
        mailer.send(event.order_id)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def shop(mailbox: Mailbox) -> AsyncIterator[Flow]:
    async with flow_test(
        [Orders, Notifications],
        channels=[MemoryChannel("mail")],
        overrides={get_mailer: lambda: mailbox},
        clock=TravellingClock(NOON),
    ) as flow:
        yield flow


# -------------------------------------------------------------------------------------------------------------- records


async def test_the_buses_are_those_of_the_application(shop: Flow) -> None:
    assert await shop.send(PlaceOrder("1"), headers={"tenant": "acme"}) == "placed"
    assert await shop.ask("1", to="order.status", returns=bytes) == b'"placed"'
    await shop.publish(OrderWasPlaced("2"), headers={"tenant": "acme"})

    assert len(await shop.waiting("mail")) == 2


async def test_everything_that_goes_over_a_bus_is_recorded_whoever_sent_it(shop: Flow) -> None:
    await shop.send(PlaceOrder("1"), headers={"tenant": "acme"})

    assert shop.commands == [PlaceOrder("1")]
    assert shop.published == [OrderWasPlaced("1")]
    assert shop.queries == ["1"]
    assert [(one.kind, one.key) for one in shop.recorded] == [
        (Kind.COMMAND, None),
        (Kind.EVENT, None),
        (Kind.QUERY, "order.status"),
    ]
    assert {one.message.headers["tenant"] for one in shop.recorded} == {"acme"}
    assert isinstance(shop.recorded[0], Recorded)


async def test_what_nobody_handles_is_recorded_as_well(shop: Flow) -> None:
    with pytest.raises(HandlerNotFoundError):
        await shop.send(OrderWasPlaced("1"))

    assert shop.commands == [OrderWasPlaced("1")]


async def test_what_was_recorded_and_what_failed_can_be_forgotten(shop: Flow) -> None:
    await shop.send(PlaceOrder("unlucky"))
    await shop.run("mail", raises=False)

    shop.forget()

    assert (shop.recorded, shop.failures, shop.commands, shop.published) == ([], [], [], [])


async def test_only_what_is_given_is_loaded() -> None:
    async with flow_test([Orders]) as flow:
        await flow.send(PlaceOrder("1"))

    assert flow.published == [OrderWasPlaced("1")]


# ------------------------------------------------------------------------------------------------------------- channels


async def test_nothing_is_consumed_until_the_test_says_so(shop: Flow, mailbox: Mailbox) -> None:
    await shop.send(PlaceOrder("1"))
    assert mailbox.sent == []

    assert await shop.run("mail") == 1

    assert mailbox.sent == ["1"]
    assert await shop.run("mail") == 0


async def test_without_channels_asynchronous_handlers_run_in_line(mailbox: Mailbox) -> None:
    async with flow_test([Orders, Notifications], overrides={get_mailer: lambda: mailbox}) as flow:
        await flow.send(PlaceOrder("1"))
        assert mailbox.sent == ["1"]
        with pytest.raises(ConfigurationError, match="there is no consumer 'mail'\nTried: there are none"):
            await flow.run("mail")
        with pytest.raises(ValueError, match="unlucky"):
            await flow.send(PlaceOrder("unlucky"))


async def test_an_empty_list_of_channels_is_no_wish_for_in_line(mailbox: Mailbox) -> None:
    with pytest.raises(UnknownChannelError, match=r"Notifications.when_placed: there is no channel 'mail'"):
        async with flow_test([Notifications], channels=[], overrides={get_mailer: lambda: mailbox}):
            pass


async def test_a_channel_is_looked_into_without_consuming(shop: Flow) -> None:
    await shop.send(PlaceOrder("1"), headers={"tenant": "acme"})

    [message] = await shop.waiting("mail")
    assert (message.payload, message.headers["tenant"]) == (b'{"order_id":"1"}', "acme")
    assert await shop.waiting("mail") == [message]


async def test_a_channel_that_is_not_there_or_cannot_be_looked_into(shop: Flow) -> None:
    with pytest.raises(UnknownChannelError, match="there is no channel 'letters'\nTried: mail"):
        await shop.waiting("letters")

    @asynchronous("closed")
    @command_handler("note")
    async def note(text: str) -> None: ...

    async with flow_test([note], channels=[FailingChannel(MemoryChannel("closed"))]) as flow:
        with pytest.raises(UnsupportedCapabilityError, match="the channel 'closed' cannot be looked into"):
            await flow.waiting("closed")


async def test_a_run_may_be_limited(shop: Flow, mailbox: Mailbox) -> None:
    for number in range(3):
        await shop.publish(OrderWasPlaced(str(number)))

    assert await shop.run("mail", Limits(messages=2)) == 2
    assert mailbox.sent == ["0", "1"]
    assert len(await shop.waiting("mail")) == 1


async def test_a_handler_that_sends_to_its_own_channel_for_ever_does_not_hang_a_test() -> None:
    @asynchronous("ping")
    @command_handler("ping", id="ping")
    async def ping(number: int, commands: CommandBus) -> None:
        await commands.send(number + 1, to="ping")

    async with flow_test([ping], channels=[MemoryChannel("ping")]) as flow:
        await flow.send(1, to="ping")
        default = inspect.signature(flow.run).parameters["limits"].default
        assert default.messages == 10_000
        assert await flow.run("ping", replace(default, messages=50)) == 50


# ------------------------------------------------------------------------------------------------------------- failures


async def test_the_first_failure_of_a_run_is_raised_when_the_run_is_over(shop: Flow, mailbox: Mailbox) -> None:
    for order_id in ("1", "unlucky", "2"):
        await shop.publish(OrderWasPlaced(order_id))

    with pytest.raises(ValueError, match="unlucky") as raised:
        await shop.run("mail")

    assert mailbox.sent == ["1", "2"]
    assert shop.failures == [raised.value]
    await shop.run("mail")


async def test_a_test_of_failures_looks_at_what_is_left(shop: Flow) -> None:
    await shop.publish(OrderWasPlaced("unlucky"))

    assert await shop.run("mail", raises=False) == 0

    assert [str(failure) for failure in shop.failures] == ["unlucky"]
    [message] = await shop.waiting("mail")
    assert message.headers["attempt"] == "1"
    assert await shop.dead_letters() == []


async def test_retries_go_by_the_clock_of_the_test(shop: Flow) -> None:
    await shop.publish(OrderWasPlaced("unlucky"))

    for _ in range(4):
        await shop.run("mail", raises=False)
        await shop.advance(timedelta(minutes=5))

    [parked] = await shop.dead_letters()
    assert (parked.endpoint, parked.attempts, parked.error_message) == ("mail", 4, "unlucky")
    assert parked.parked_at == NOON + timedelta(minutes=15)
    assert len(shop.failures) == 4


# ----------------------------------------------------------------------------------------------------------------- time


async def test_a_delayed_message_is_released_by_moving_the_clock(shop: Flow, mailbox: Mailbox) -> None:
    await shop.publish(OrderWasPlaced("later"), headers={"delay": 60})
    await shop.publish(OrderWasPlaced("now"))

    assert await shop.run("mail") == 1
    assert [message.id for message in await shop.waiting("mail")] == [shop.recorded[0].message.id]
    await shop.advance(timedelta(seconds=59))
    assert await shop.run("mail") == 0
    await shop.advance(timedelta(seconds=1))
    assert await shop.run("mail") == 1

    assert mailbox.sent == ["now", "later"]


async def test_the_clock_goes_forward_by_a_time_and_to_a_moment(shop: Flow) -> None:
    await shop.advance(timedelta(minutes=5))
    assert shop.clock.now() == NOON + timedelta(minutes=5)
    assert shop.clock.offset == timedelta(minutes=5)

    await shop.travel_to(NOON + timedelta(hours=1))
    assert shop.clock.now() == NOON + timedelta(hours=1)


async def test_the_clock_does_not_go_back(shop: Flow) -> None:
    with pytest.raises(ValueError, match="a clock does not go back"):
        await shop.advance(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="a clock does not go back"):
        await shop.travel_to(NOON - timedelta(days=1))

    assert shop.clock.now() == NOON


async def test_handlers_ask_for_the_clock_of_the_test() -> None:
    @query_handler("now")
    async def now(payload: None, clock: Clock) -> datetime:
        return clock.now()

    async with flow_test([now], clock=TravellingClock(NOON)) as flow:
        await flow.advance(timedelta(days=1))
        assert await flow.ask(to="now") == NOON + timedelta(days=1)


def test_a_clock_without_a_start_goes_with_the_machine() -> None:
    clock = TravellingClock()

    before, now, after = datetime.now(UTC), clock.now(), datetime.now(UTC)
    clock.advance(timedelta(hours=1))

    assert before <= now <= after
    assert clock.now() >= now + timedelta(hours=1)


# -------------------------------------------------------------------------------------------------------- what is given


async def test_services_are_given_by_type(mailbox: Mailbox) -> None:
    class Sender:
        @command_handler("send")
        async def send(self, order_id: str, mailer: Mailer) -> None:
            mailer.send(order_id)

    async with flow_test([Sender], services={Mailer: mailbox}) as flow:
        await flow.send("1", to="send")

    assert mailbox.sent == ["1"]


async def test_plugins_given_replace_the_defaults() -> None:
    async with flow_test(
        [Notifications],
        channels=[MemoryChannel("mail")],
        overrides={get_mailer: Mailbox},
        plugins=[Failures(Backoff(retries=0))],
    ) as flow:
        await flow.publish(OrderWasPlaced("unlucky"))
        await flow.run("mail", raises=False)

        assert len(await flow.dead_letters()) == 1


async def test_converters_are_given_for_other_media_types() -> None:
    class Semicolons:
        content_type = "text/csv"

        def handles(self, type_: Any) -> bool:
            return type_ is PlaceOrder

        def encode(self, value: Any) -> bytes:
            return f"{value.order_id};".encode()

        def decode(self, data: bytes, type_: Any) -> Any:
            return type_(data.decode().removesuffix(";"))

    @asynchronous("orders")
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None:
        placed.append(command)

    placed: list[PlaceOrder] = []

    async with flow_test([place], channels=[MemoryChannel("orders")], converters=[Semicolons()]) as flow:
        await flow.send(PlaceOrder("1"))
        [message] = await flow.waiting("orders")
        await flow.run("orders")

    assert (message.payload, message.headers["content_type"]) == (b"1;", "text/csv")
    assert placed == [PlaceOrder("1")]


async def test_what_is_wrong_with_the_wiring_is_told_before_the_test_begins() -> None:
    class Sender:
        @command_handler("send")
        async def send(self, order_id: str, mailer: Mailer) -> None: ...

    with pytest.raises(ConfigurationError, match="nothing supplies 'mailer: Mailer'"):
        async with flow_test([Sender]):
            pass


async def test_what_the_test_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        async with flow_test([Orders]):
            raise ZeroDivisionError


# ---------------------------------------------------------------------------------------------------------- the fixture


async def test_the_fixture_starts_flows_that_end_with_the_test(flow: Callable[..., Awaitable[Flow]]) -> None:
    orders = await flow([Orders])
    others = await flow([Orders], channels=[MemoryChannel("mail")])

    assert await orders.send(PlaceOrder("1")) == "placed"
    assert await others.send(PlaceOrder("1")) == "placed"
    assert (orders.commands, others.commands) == ([PlaceOrder("1")], [PlaceOrder("1")])


def test_without_pytest_the_package_says_what_is_missing() -> None:
    program = "import sys; sys.modules['pytest'] = None; import ecotone_fastapi.testing"

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert "pytest is not installed\nHint: pip install pytest" in run.stderr
