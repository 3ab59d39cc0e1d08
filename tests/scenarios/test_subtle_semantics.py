"""What is easily got wrong: one test for each promise that nobody thinks of until it is broken."""

from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any

import anyio
import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.bus import CommandBus, EventBus
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.endpoint import command_handler, event_handler
from ecotone_fastapi.core.errors import ConversionError, DuplicateHandlerError, HandlerNotFoundError
from ecotone_fastapi.core.message import Message, message_name
from ecotone_fastapi.core.pipeline import Call, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly, Limits
from ecotone_fastapi.core.suppliers import MessageHeader
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.messaging.failures import Backoff, Failures
from ecotone_fastapi.messaging.transactions import UnitOfWork
from ecotone_fastapi.testing import Flow, flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderHappened:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced(OrderHappened): ...


class Shop:
    """Places orders and tells two asynchronous subscribers."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.messages: list[tuple[str, Message[Any]]] = []

    def seen(self, where: str) -> list[Message[Any]]:
        return [message for place, message in self.messages if place == where]

    def _see(self, where: str, message: Message[Any]) -> None:
        self.messages.append((where, message))
        if where in self.failing:
            raise ValueError(where)

    @command_handler
    async def place(self, command: PlaceOrder, message: Message[Any], events: EventBus) -> str:
        await events.publish(OrderWasPlaced(command.order_id), headers={"correlation_id": "somebody else's"})
        self._see("place", message)
        return command.order_id

    @asynchronous("mail")
    @event_handler(id="mail")
    async def mail(self, event: OrderWasPlaced, message: Message[Any], events: EventBus) -> None:
        await events.publish(event.order_id, to="mailed")
        self._see("mail", message)

    @asynchronous("mail")
    @event_handler(id="bill")
    async def bill(self, event: OrderWasPlaced, message: Message[Any]) -> None:
        self._see("bill", message)

    @event_handler("mailed")
    async def mailed(self, order_id: str, message: Message[Any]) -> None:
        self._see("mailed", message)


@asynccontextmanager
async def open_(*handlers: object, plugins: Sequence[Any] = (), channel: MemoryChannel | None = None) -> Any:
    async with flow_test(handlers, channels=[channel or MemoryChannel("mail")], plugins=plugins) as flow:
        yield flow


async def settle(flow: Flow) -> None:
    """Run the channel until every retry is used up."""
    for _ in range(10):
        await flow.run("mail", raises=False)
        await flow.advance(timedelta(hours=1))


# ------------------------------------------------------------------------------------------------- messages and headers


async def test_two_asynchronous_handlers_of_one_event_succeed_and_fail_apart() -> None:
    shop = Shop("mail")

    async with open_(shop) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mail", raises=False)
        left = await flow.waiting("mail")

    assert [message.headers["endpoint"] for message in left] == ["mail"]
    assert len({message.id for _, message in shop.messages if message.headers.get("endpoint")}) == 1


async def test_a_nested_message_cannot_leave_its_conversation() -> None:
    shop = Shop()

    async with open_(shop) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mail")

    assert {message.headers["correlation_id"] for _, message in shop.messages} == {shop.seen("place")[0].id}


async def test_a_root_message_has_no_cause_and_a_nested_one_names_it() -> None:
    shop = Shop()

    async with open_(shop) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("mail")

    [root], [event], [mailed] = shop.seen("place"), shop.seen("mail"), shop.seen("mailed")
    assert "causation_id" not in root.headers
    assert (event.headers["causation_id"], mailed.headers["causation_id"]) == (root.id, event.id)


async def test_how_a_command_was_to_be_delivered_is_not_inherited_by_its_events() -> None:
    shop = Shop()
    own = {"delay": 5, "time_to_live": 60, "priority": 9, "partition_key": "a"}

    async with open_(shop) as flow:
        await flow.send(PlaceOrder("1"), headers={**own, "tenant": "acme"})
        [mail, *_] = await flow.waiting("mail")

    assert not own.keys() & mail.headers.keys()
    assert mail.headers["tenant"] == "acme"


async def test_a_consumer_does_not_carry_headers_from_one_message_to_the_next() -> None:
    shop = Shop()

    async with open_(shop) as flow:
        await flow.publish(OrderWasPlaced("1"), headers={"tenant": "acme"})
        await flow.publish(OrderWasPlaced("2"))
        await flow.run("mail")

    assert [message.headers.get("tenant") for message in shop.seen("mailed")] == ["acme", None]


async def test_messages_that_are_handled_at_the_same_time_share_nothing() -> None:
    together = anyio.Event()
    units: dict[str, tuple[str, Scope | None]] = {}

    @command_handler("enter")
    async def enter(name: str, tenant: Annotated[str, MessageHeader()], commands: CommandBus) -> None:
        if len(units) == 9:
            together.set()
        units[name] = (tenant, current_scope())
        await together.wait()
        await commands.send(name, to="leave")

    @command_handler("leave")
    async def leave(name: str, tenant: Annotated[str, MessageHeader()]) -> None:
        assert units.pop(name) == (tenant, current_scope())

    async with open_(Shop(), enter, leave) as flow:

        async def send(name: str) -> None:
            await flow.send(name, to="enter", headers={"tenant": name})

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(send, str(number))

    assert units == {}


# -------------------------------------------------------------------------------------------------------------- routing


async def test_a_handler_of_a_key_is_not_a_handler_of_its_class_unless_the_class_has_that_name() -> None:
    @message_name("named.event")
    @dataclass(frozen=True)
    class Named:
        order_id: str

    seen: list[str] = []

    class Subscribers:
        @event_handler("plain.event")
        async def plain(self, event: OrderWasPlaced) -> None:
            seen.append("plain")

        @event_handler("named.event")
        async def named(self, event: Named) -> None:
            seen.append("named")

    async with flow_test([Subscribers]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await flow.publish(Named("1"))

    assert seen == ["named"]


async def test_a_handler_of_a_base_class_hears_its_subclasses_and_a_handler_of_everything_no_keys() -> None:
    seen: list[Any] = []

    class Subscribers:
        @event_handler
        async def base(self, event: OrderHappened) -> None:
            seen.append("base")

        @event_handler
        async def everything(self, event: object) -> None:
            seen.append(event)

    async with flow_test([Subscribers]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await flow.publish({"order_id": "1"}, to="order.placed")

    assert seen == ["base", OrderWasPlaced("1")]


async def test_two_handlers_of_a_command_are_found_at_start_and_none_when_it_is_sent() -> None:
    @command_handler
    async def place_too(command: PlaceOrder) -> None: ...

    with pytest.raises(DuplicateHandlerError):
        async with open_(Shop(), place_too):
            pass
    async with open_(Shop()) as flow:
        with pytest.raises(HandlerNotFoundError):
            await flow.send(OrderWasPlaced("1"))
        await flow.publish(PlaceOrder("1"))


async def test_an_asynchronous_command_returns_nothing_though_its_handler_does() -> None:
    @asynchronous("mail")
    @command_handler(id="later")
    async def later(command: OrderHappened) -> str:
        return command.order_id

    async with open_(Shop(), later) as flow:
        assert await flow.send(PlaceOrder("1")) == "1"
        assert await flow.send(OrderHappened("1")) is None


# ---------------------------------------------------------------------------------------------------- outgoing messages


async def test_a_message_that_cannot_be_written_fails_before_any_other_leaves() -> None:
    @command_handler("careless")
    async def careless(payload: str, events: EventBus) -> None:
        await events.publish(OrderWasPlaced("1"))
        await events.publish(OrderWasPlaced(object()))  # type: ignore[arg-type]

    async with open_(Shop(), careless) as flow:
        with pytest.raises(ConversionError):
            await flow.send("", to="careless")
        assert await flow.waiting("mail") == []


async def test_a_synchronous_subscriber_that_fails_keeps_everything_from_leaving() -> None:
    @event_handler(priority=-1)
    async def refuse(event: OrderWasPlaced) -> None:
        raise ValueError("refused")

    async with open_(Shop(), refuse) as flow:
        with pytest.raises(ValueError, match="refused"):
            await flow.send(PlaceOrder("1"))
        assert await flow.waiting("mail") == []


async def test_an_inner_success_goes_with_its_outer_failure() -> None:
    @command_handler("outer")
    async def outer(payload: str, commands: CommandBus) -> None:
        await commands.send(PlaceOrder("1"))
        raise ValueError("outer")

    database = Database()

    async with open_(Shop(), outer, plugins=[database]) as flow:
        with pytest.raises(ValueError, match="outer"):
            await flow.send("", to="outer")
        assert await flow.waiting("mail") == []

    assert database.log == ["begin", "rollback"]


async def test_an_event_published_outside_of_a_command_leaves_at_once_without_a_transaction() -> None:
    database = Database()

    async with open_(Shop(), plugins=[database]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        assert len(await flow.waiting("mail")) == 2

    assert database.log == []


class Database:
    """A unit of work that notes what is done with it."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def install(self, assembly: Assembly) -> None:
        assembly.add_service(UnitOfWork, self)

    @asynccontextmanager
    async def begin(self, scope: Scope) -> Any:
        self.log.append("begin")
        try:
            yield
        except BaseException:
            self.log.append("rollback")
            raise
        self.log.append("commit")

    @asynccontextmanager
    async def savepoint(self, scope: Scope) -> Any:
        yield

    def covers(self, part: object) -> bool:
        return False


# ------------------------------------------------------------------------------------------------------------- failures


async def test_three_retries_are_four_runs() -> None:
    shop = Shop("bill")

    async with open_(shop) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await settle(flow)
        [parked] = await flow.dead_letters()

    assert (len(shop.seen("bill")), parked.endpoint, parked.attempts) == (4, "bill", 4)


async def test_a_retried_message_is_the_same_message_and_says_only_when_and_how_often_it_failed() -> None:
    shop = Shop("bill")

    async with open_(shop) as flow:
        await flow.publish(OrderWasPlaced("1"), headers={"tenant": "acme"})
        [_, before] = await flow.waiting("mail")
        await flow.run("mail", raises=False)
        [after] = await flow.waiting("mail")
        assert await flow.run("mail") == 0

    failed_at = after.headers["first_failed_at"]
    assert after == before.with_headers({"attempt": "1", "first_failed_at": failed_at})


async def test_a_failed_run_does_not_count_for_the_messages_that_it_published() -> None:
    attempts: list[str | None] = []

    class Chain:
        @asynchronous("mail")
        @command_handler("first", id="first")
        async def first(self, payload: str, message: Message[Any], commands: CommandBus) -> None:
            if "attempt" not in message.headers:
                raise ValueError
            await commands.send(payload, to="second")

        @asynchronous("mail")
        @command_handler("second", id="second")
        async def second(self, payload: str, message: Message[Any]) -> None:
            attempts.append(message.headers.get("attempt"))

    async with open_(Shop(), Chain) as flow:
        await flow.send("1", to="first")
        await settle(flow)

    assert attempts == [None]


async def test_a_failure_that_was_taken_care_of_is_acked_and_only_one_that_was_not_comes_again() -> None:
    shop = Shop("bill")
    channel = MemoryChannel("mail")

    async with open_(shop, plugins=[Failures(Backoff(retries=0))], channel=channel) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await flow.run("mail", raises=False)

        assert await channel.depth() == 0
        assert len(await flow.dead_letters()) == 1


async def test_one_event_that_fails_in_two_handlers_is_parked_for_each_of_them() -> None:
    shop = Shop("mail", "bill")

    async with open_(shop) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await settle(flow)
        parked = await flow.dead_letters()

    assert {one.endpoint for one in parked} == {"mail", "bill"}
    assert len({one.id for one in parked}) == 2
    assert len({one.message.id for one in parked}) == 1


async def test_what_an_interceptor_did_to_a_message_is_gone_when_it_is_tried_again() -> None:
    shop = Shop("bill")

    class Scribbling:
        def install(self, assembly: Assembly) -> None:
            async def scribble(call: Call, proceed: Proceed) -> Any:
                assert "scribble" not in call.message.headers
                return await proceed(replace(call, message=call.message.with_headers({"scribble": "x"})))

            assembly.add_interceptor(scribble, stage=Stage.RECEIVE)

    async with open_(shop, plugins=[Scribbling()]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        await settle(flow)

    assert [message.headers["scribble"] for message in shop.seen("bill")] == ["x"] * 4


# ------------------------------------------------------------------------------------------------------------ consumers


async def test_a_run_until_empty_goes_on_when_a_handler_sends_to_its_own_channel() -> None:
    handled: list[int] = []

    @asynchronous("mail")
    @command_handler("count", id="count")
    async def count(number: int, commands: CommandBus) -> None:
        handled.append(number)
        if number > 0:
            await commands.send(number - 1, to="count")

    async with open_(Shop(), count) as flow:
        await flow.send(3, to="count")
        assert await flow.run("mail") == 4

    assert handled == [3, 2, 1, 0]


async def test_a_limit_of_messages_counts_successes_only() -> None:
    shop = Shop("mail")

    async with open_(shop) as flow:
        for number in range(3):
            await flow.publish(OrderWasPlaced(str(number)))
        assert await flow.run("mail", Limits(messages=2), raises=False) == 2

    assert len(shop.seen("bill")) == 2
    assert len(shop.seen("mail")) >= 1


async def test_a_consumer_that_is_told_to_stop_finishes_and_loses_or_repeats_nothing() -> None:
    stop = anyio.Event()
    handled: list[int] = []

    @asynchronous("mail")
    @command_handler("work", id="work")
    async def work(number: int) -> None:
        stop.set()
        await anyio.lowlevel.checkpoint()
        handled.append(number)

    async with open_(Shop(), work) as flow:
        for number in range(5):
            await flow.send(number, to="work")
        first = await flow.run("mail", Limits(stop=stop))
        assert len(await flow.waiting("mail")) == 5 - first
        await flow.run("mail")

    assert first == 1
    assert handled == [0, 1, 2, 3, 4]


async def test_a_message_that_is_ready_overtakes_one_that_is_delayed() -> None:
    shop = Shop()

    async with open_(shop) as flow:
        await flow.publish(OrderWasPlaced("later"), headers={"delay": 60})
        await flow.publish(OrderWasPlaced("now"))
        await flow.run("mail")
        await flow.advance(timedelta(seconds=61))
        await flow.run("mail")

    assert [message.payload.order_id for message in shop.seen("mail")] == ["now", "later"]


# ----------------------------------------------------------------------------------------------------------- flow tests


async def test_without_channels_asynchronous_handlers_run_in_line() -> None:
    shop = Shop()

    async with flow_test([shop]) as flow:
        await flow.send(PlaceOrder("1"))

    assert [where for where, _ in shop.messages] == ["mailed", "mail", "bill", "place"]


async def test_the_clock_of_a_test_is_moved_by_a_time_and_never_back() -> None:
    async with open_(Shop()) as flow:
        before = flow.clock.now()
        await flow.advance(timedelta(hours=2))
        assert timedelta(hours=2) <= flow.clock.now() - before < timedelta(hours=2, minutes=1)
        with pytest.raises(ValueError, match="does not go back"):
            await flow.travel_to(before)
