from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field, SecretStr

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.bus import EventBus
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.endpoint import command_handler, discover, event_handler, internal_handler, query_handler
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, UnknownChannelError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.messaging.asynchronous import (
    Asynchronous,
    AsynchronousHandlers,
    ConsumerSettings,
    asynchronous,
    runs_in_consumer,
)
from ecotone_fastapi.testing.flow import flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    customer: str = "ada"


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Subscribers:
    """Three handlers of one event, two of them asynchronous."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.ids: list[str] = []
        self.fails = False

    @asynchronous("mail")
    @event_handler(id="mail")
    async def mail(self, event: OrderWasPlaced, message: Message[Any]) -> None:
        self.ids.append(message.id)
        if self.fails:
            raise ValueError("no mail")
        self.log.append(f"mail {event.order_id}")

    @asynchronous("mail")
    @event_handler(id="count")
    async def count(self, event: OrderWasPlaced, message: Message[Any]) -> None:
        self.ids.append(message.id)
        self.log.append(f"count {event.order_id}")

    @event_handler
    async def at_once(self, event: OrderWasPlaced, message: Message[Any]) -> None:
        self.ids.append(message.id)
        self.log.append(f"at once {event.order_id}")


# ------------------------------------------------------------------------------------------------------------- messages


async def test_each_asynchronous_handler_of_an_event_gets_a_message_of_its_own_with_the_same_id() -> None:
    subscribers = Subscribers()

    async with flow_test([subscribers], channels=[MemoryChannel("mail")]) as flow:
        await flow.publish(OrderWasPlaced("1"), headers={"tenant": "acme"})
        waiting = await flow.waiting("mail")
        assert subscribers.log == ["at once 1"]
        assert await flow.run("mail") == 2

    assert subscribers.log == ["at once 1", "mail 1", "count 1"]
    assert [message.headers["endpoint"] for message in waiting] == ["mail", "count"]
    assert {message.headers["tenant"] for message in waiting} == {"acme"}
    assert len({*subscribers.ids, *(message.id for message in waiting)}) == 1


async def test_a_handler_that_fails_leaves_the_messages_of_the_others_alone() -> None:
    subscribers = Subscribers()
    subscribers.fails = True

    async with flow_test([subscribers], channels=[MemoryChannel("mail")]) as flow:
        await flow.publish(OrderWasPlaced("1"))
        assert await flow.run("mail", raises=False) == 1
        waiting = await flow.waiting("mail")

    assert subscribers.log == ["at once 1", "count 1"]
    assert [message.headers["endpoint"] for message in waiting] == ["mail"]


async def test_what_is_on_a_channel_says_what_it_is_and_where_it_came_from() -> None:
    @asynchronous("orders")
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None: ...

    async with flow_test([place], channels=[MemoryChannel("orders")]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "my-id"})
        [message] = await flow.waiting("orders")

    assert message.payload == b'{"order_id":"1","customer":"ada"}'
    assert message.headers == {
        "id": "my-id",
        "correlation_id": "my-id",
        "timestamp": message.headers["timestamp"],
        "content_type": "application/json",
        "type": f"{__name__}.PlaceOrder",
        "endpoint": "place",
    }


async def test_the_bus_returns_as_soon_as_the_message_is_on_its_way() -> None:
    handled: list[str] = []

    @asynchronous("orders")
    @command_handler
    async def place(command: PlaceOrder) -> str:
        handled.append(command.order_id)
        return command.order_id

    async with flow_test([place], channels=[MemoryChannel("orders")]) as flow:
        assert await flow.send(PlaceOrder("1")) is None
        assert handled == []
        await flow.run("orders")

    assert handled == ["1"]


async def test_a_command_that_does_not_fit_fails_at_the_sender() -> None:
    @asynchronous("orders")
    @command_handler("place")
    async def place(command: PlaceOrder) -> None: ...

    async with flow_test([place], channels=[MemoryChannel("orders")]) as flow:
        with pytest.raises(ConversionError, match="order_id"):
            await flow.send({}, to="place")
        with pytest.raises(ConversionError, match="cannot be written as JSON"):
            await flow.send(PlaceOrder(order_id=5), to="place")  # type: ignore[arg-type]
        assert await flow.waiting("orders") == []


async def test_what_is_published_while_a_message_is_consumed_belongs_to_its_conversation() -> None:
    seen: list[Message[Any]] = []

    @asynchronous("orders")
    @command_handler
    async def place(command: PlaceOrder, message: Message[Any], events: EventBus) -> None:
        seen.append(message)
        await events.publish(OrderWasPlaced(command.order_id))

    @event_handler
    async def note(event: OrderWasPlaced, message: Message[Any]) -> None:
        seen.append(message)

    async with flow_test([place, note], channels=[MemoryChannel("orders")]) as flow:
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme"})
        await flow.send(PlaceOrder("2"))
        await flow.run("orders")

    for command, event in (seen[:2], seen[2:]):
        assert event.headers["causation_id"] == command.id
        assert event.headers["correlation_id"] == command.headers["correlation_id"]
        assert "endpoint" not in event.headers
    assert [message.headers.get("tenant") for message in seen] == ["acme", "acme", None, None]


# ----------------------------------------------------------------------------------------------------------- on a class


@asynchronous("orders")
class Orders:
    def __init__(self) -> None:
        self.placed: list[str] = []

    @command_handler
    async def place(self, command: PlaceOrder) -> None:
        self.placed.append(command.order_id)

    @asynchronous("elsewhere")
    @event_handler(id="elsewhere")
    async def elsewhere(self, event: OrderWasPlaced) -> None: ...

    @query_handler("order.placed")
    async def all_placed(self) -> list[str]:
        return self.placed

    @internal_handler("verify")
    async def verify(self, order_id: str) -> None: ...


async def test_on_a_class_it_is_for_all_handlers_but_those_of_queries() -> None:
    orders = Orders()

    async with flow_test([orders], channels=[MemoryChannel("orders"), MemoryChannel("elsewhere")]) as flow:
        await flow.send(PlaceOrder("1"))
        assert await flow.ask(to="order.placed") == []
        await flow.run("orders")
        assert await flow.ask(to="order.placed") == ["1"]


async def test_the_mark_of_a_handler_wins_over_that_of_its_class() -> None:
    async with flow_test([Orders], channels=[MemoryChannel("orders"), MemoryChannel("elsewhere")]) as flow:
        await flow.publish(OrderWasPlaced("1"))

        assert await flow.waiting("orders") == []
        assert len(await flow.waiting("elsewhere")) == 1


def test_which_handlers_run_in_a_consumer() -> None:
    runs = {endpoint.label: runs_in_consumer(endpoint) for endpoint in discover([Orders, Subscribers]).endpoints}

    assert runs == {
        "Orders.place": True,
        "Orders.elsewhere": True,
        "Orders.all_placed": False,
        "Orders.verify": True,
        "Subscribers.mail": True,
        "Subscribers.count": True,
        "Subscribers.at_once": False,
    }


# ----------------------------------------------------------------------------------------------------- several channels


class Recording(MemoryChannel):
    """Keeps a copy of everything that was sent to it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sent: list[Message[bytes]] = []
        self.down = False

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        if self.down:
            raise ConnectionError(f"{self.name} is down")
        self.sent += messages
        await super().send(messages)


async def test_a_message_goes_from_channel_to_channel_and_is_handled_behind_the_last() -> None:
    handled: list[str] = []

    @asynchronous("outbox", "rabbit")
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None:
        handled.append(command.order_id)

    outbox, rabbit = Recording("outbox"), Recording("rabbit")

    async with flow_test([place], channels=[outbox, rabbit]) as flow:
        await flow.send(PlaceOrder("1"))
        assert await flow.run("rabbit") == 0
        assert await flow.run("outbox") == 1
        assert handled == []
        assert await flow.run("rabbit") == 1

    assert handled == ["1"]


async def test_what_is_passed_on_keeps_its_id_its_headers_and_its_very_bytes() -> None:
    @asynchronous("outbox", "rabbit")
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None: ...

    outbox, rabbit = Recording("outbox"), Recording("rabbit")

    async with flow_test([place], channels=[outbox, rabbit]) as flow:
        gateway = flow.ecotone.prepare()
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme", "priority": 3})
        # Nobody can read this one; whoever only passes it on does not try.
        await gateway.transmit("outbox", [Message(b"\xff", {"id": "2", "endpoint": "place", "content_type": "x/y"})])
        assert await flow.run("outbox") == 2

    assert rabbit.sent == outbox.sent
    assert [message.payload for message in rabbit.sent] == [b'{"order_id":"1","customer":"ada"}', b"\xff"]
    assert flow.failures == []


async def test_a_message_that_cannot_be_passed_on_stays_on_the_channel_before() -> None:
    @asynchronous("outbox", "rabbit")
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None: ...

    outbox, rabbit = Recording("outbox"), Recording("rabbit")
    rabbit.down = True

    async with flow_test([place], channels=[outbox, rabbit]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("outbox", raises=False)

        [message] = await flow.waiting("outbox")
        assert message.headers["attempt"] == "1"


async def test_what_failed_or_waited_on_one_channel_does_not_count_on_the_next() -> None:
    attempts: list[str | None] = []

    @asynchronous("outbox", "rabbit")
    @command_handler(id="place")
    async def place(command: PlaceOrder, message: Message[Any]) -> None:
        attempts.append(message.headers.get("attempt"))

    class KeepsDelay(Recording):
        """Like a broker that leaves the header in the message that it delivers."""

        async def receive(self, limit: int, timeout: float) -> Any:
            deliveries = await super().receive(limit, timeout)
            for delivery in deliveries:
                delivery.message = delivery.message.with_headers({"delay": "60"})
            return deliveries

    outbox, rabbit = KeepsDelay("outbox"), Recording("rabbit")
    rabbit.down = True

    async with flow_test([place], channels=[outbox, rabbit]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("outbox", raises=False)
        rabbit.down = False
        await flow.advance(timedelta(hours=1))
        await flow.run("outbox", raises=False)
        await flow.run("rabbit")

    assert attempts == [None]
    assert "delay" not in rabbit.sent[0].headers


async def test_a_message_from_a_channel_that_is_no_longer_named_is_handled() -> None:
    handled: list[str] = []

    @asynchronous("rabbit")
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None:
        handled.append(command.order_id)

    @asynchronous("old")
    @event_handler("other")
    async def other(payload: str) -> None: ...

    async with flow_test([place, other], channels=[MemoryChannel("old"), MemoryChannel("rabbit")]) as flow:
        left_over = Message(b'{"order_id":"1"}', {"id": "1", "endpoint": "place", "content_type": "application/json"})
        await flow.ecotone.prepare().transmit("old", [left_over])
        await flow.run("old")

    assert handled == ["1"]


def test_the_way_of_a_message() -> None:
    way = Asynchronous(("outbox", "rabbit"))

    assert way.after(None) == "outbox"
    assert way.after("outbox") == "rabbit"
    assert way.after("rabbit") is None
    assert way.after("elsewhere") is None


# ----------------------------------------------------------------------------------------------------------- partitions


async def test_messages_with_one_key_are_handled_in_the_order_of_sending_whatever_the_concurrency() -> None:
    log: list[str] = []
    both = anyio.Event()

    @asynchronous("orders", partition_by=lambda command: command.customer)
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None:
        # Grace's first order overtakes Ada's, but Ada's second one waits for her first.
        if command.customer == "grace":
            both.set()
        await both.wait()
        log.append(f"{command.customer} {command.order_id}")

    plugin = AsynchronousHandlers(consumers={"orders": ConsumerSettings(concurrency=2)})

    async with flow_test([place], channels=[MemoryChannel("orders")], plugins=[plugin]) as flow:
        for command in (PlaceOrder("1"), PlaceOrder("2"), PlaceOrder("1", "grace")):
            await flow.send(command)
        keys = [message.headers["partition_key"] for message in await flow.waiting("orders")]
        await flow.run("orders")

    assert keys == ["ada", "ada", "grace"]
    assert [line for line in log if line.startswith("ada")] == ["ada 1", "ada 2"]


async def test_a_key_is_computed_once_and_passed_on_from_channel_to_channel() -> None:
    @asynchronous("outbox", "rabbit", partition_by=lambda command: command.customer)
    @command_handler(id="place")
    async def place(command: PlaceOrder) -> None: ...

    rabbit = Recording("rabbit")

    async with flow_test([place], channels=[MemoryChannel("outbox"), rabbit]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.run("outbox")

    assert rabbit.sent[0].headers["partition_key"] == "ada"


# ------------------------------------------------------------------------------------------------------------- at start


@pytest.mark.parametrize("channels", [(), (lambda: None,)])
def test_a_decorator_without_a_channel_is_a_mistake(channels: Any) -> None:
    with pytest.raises(ConfigurationError, match="@asynchronous names no channel"):
        asynchronous(*channels)


async def test_a_channel_that_nobody_gave_is_told_with_the_handlers_that_want_it() -> None:
    with pytest.raises(UnknownChannelError) as raised:
        async with flow_test([Subscribers], channels=[MemoryChannel("letters")]):
            pass

    assert str(raised.value).splitlines() == [
        "Subscribers.mail, Subscribers.count: there is no channel 'mail'",
        "Tried: letters",
        "Hint: Ecotone(..., channels=[MemoryChannel('mail')]), or another channel with this name",
    ]


async def test_a_setting_for_a_channel_that_nobody_gave_is_a_mistake() -> None:
    plugin = AsynchronousHandlers(consumers={"male": ConsumerSettings(), "*": ConsumerSettings()})

    with pytest.raises(UnknownChannelError, match="there is no channel 'male'"):
        async with flow_test([Subscribers], channels=[MemoryChannel("mail")], plugins=[plugin]):
            pass


async def test_a_payload_that_cannot_cross_a_channel_is_told_at_start() -> None:
    class Plain: ...

    @asynchronous("orders")
    @command_handler
    async def place(command: Plain) -> None: ...

    with pytest.raises(ConfigurationError, match="place is asynchronous: pydantic has no schema"):
        async with flow_test([place], channels=[MemoryChannel("orders")]):
            pass


class Login(BaseModel):
    user: str
    password: SecretStr
    captcha: str = Field(default="", exclude=True)


@dataclass(frozen=True)
class Measured:
    value: float
    average: float | None = None


async def test_a_payload_that_would_not_come_back_from_its_channel_is_told_at_start() -> None:
    @asynchronous("orders")
    @command_handler
    async def log_in(command: Login) -> None: ...

    @asynchronous("orders")
    @event_handler(id="note")
    async def note(event: list[Login | None]) -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        async with flow_test([log_in, note], channels=[MemoryChannel("orders")]):
            pass

    of_command, of_event = raised.value.problems
    assert str(of_command).splitlines() == [
        (
            f"log_in is asynchronous: {__name__}.Login does not come back from a channel as it was sent: "
            "Login.password: a secret is written as asterisks, and the receiver gets these; "
            "Login.captcha: it is not written (exclude=True), and the receiver gets its default"
        ),
        (
            "Hint: let a @field_serializer reveal the secret, or send what the receiver can find it by; "
            "take exclude=True away, or make it a PrivateAttr if the receiver does not need it; "
            "or give Ecotone(converters=[...]) a converter"
        ),
    ]
    assert str(of_event).startswith("note is asynchronous: list[")
    assert "Login.password" in str(of_event)


async def test_a_synchronous_handler_takes_payloads_that_could_cross_no_channel() -> None:
    seen: list[str] = []

    @command_handler
    async def log_in(command: Login) -> None:
        seen.append(command.password.get_secret_value() + command.captcha)

    async with flow_test([log_in]) as flow:
        await flow.send(Login(user="ada", password=SecretStr("1234"), captcha="x"))

    assert seen == ["1234x"]


async def test_a_number_that_is_not_finite_crosses_a_channel() -> None:
    seen: list[float | None] = []

    @asynchronous("orders")
    @event_handler(id="note")
    async def note(event: Measured) -> None:
        seen.extend([event.value, event.average])

    async with flow_test([note], channels=[MemoryChannel("orders")]) as flow:
        await flow.publish(Measured(inf))
        await flow.publish(Measured(1.5, -inf))
        await flow.run("orders")

    assert seen == [inf, None, 1.5, -inf]


async def test_a_consumer_works_as_it_was_set_up() -> None:
    plugin = AsynchronousHandlers(
        consumers={"mail": ConsumerSettings(concurrency=20, batch=5), "*": ConsumerSettings(batch=3)}
    )

    async with flow_test(
        [Subscribers, Orders],
        channels=[MemoryChannel(name) for name in ("mail", "orders", "elsewhere")],
        plugins=[plugin],
    ) as flow:
        runnables = flow.ecotone.assembly.runnables

    mail, orders = runnables["mail"], runnables["orders"]
    assert isinstance(mail, Consumer)
    assert isinstance(orders, Consumer)
    assert (mail.concurrency, mail.batch) == (20, 20)
    assert (orders.concurrency, orders.batch) == (1, 3)


async def test_a_channel_that_no_handler_names_has_no_consumer() -> None:
    async with flow_test([Subscribers], channels=[MemoryChannel("mail"), MemoryChannel("unused")]) as flow:
        assert [*flow.ecotone.assembly.runnables] == ["mail"]
        with pytest.raises(ConfigurationError, match="there is no consumer 'unused'\nTried: mail"):
            await flow.run("unused", Limits(messages=1))


async def test_a_handler_of_a_program_is_warned_about_because_others_know_it_by_another_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(number: int) -> None: ...

    work.__module__, work.__qualname__ = "__main__", "work"
    named = asynchronous("work")(command_handler("named", id="named")(work))

    async with flow_test([named], channels=[MemoryChannel("work")]):
        assert caplog.records == []

    async def other(number: int) -> None: ...

    other.__module__, other.__qualname__ = "__main__", "other"
    unnamed = asynchronous("work")(command_handler("other")(other))

    async with flow_test([unnamed], channels=[MemoryChannel("work")]):
        [record] = caplog.records
        assert "__main__.other" in record.getMessage()
        assert "id=" in record.getMessage()


async def test_a_handler_without_partition_by_is_warned_about_on_a_channel_that_keeps_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynchronous("any", "orders")
    @command_handler("forgotten", id="forgotten")
    async def forgotten(number: int) -> None: ...

    @asynchronous("orders", partition_by=lambda number: number % 2)
    @command_handler("ordered", id="ordered")
    async def ordered(number: int) -> None: ...

    channels = [MemoryChannel("any"), MemoryChannel("orders", keeps_order=True)]
    async with flow_test([forgotten, ordered], channels=channels):
        [record] = caplog.records

    assert record.levelname == "WARNING"
    assert "forgotten has no partition_by, and channel orders keeps the order" in record.getMessage()
    assert '@asynchronous("any", "orders", partition_by=...)' in record.getMessage()


async def test_a_partition_key_that_is_never_the_same_twice_is_refused() -> None:
    class Customer:
        pass

    @asynchronous("orders", partition_by=lambda number: Customer() if number else None)
    @command_handler("order", id="order")
    async def order(number: int) -> None: ...

    async with flow_test([order], channels=[MemoryChannel("orders", keeps_order=True)]) as flow:
        with pytest.raises(ConversionError, match="Customer, whose text is its place in memory"):
            await flow.send(1, to="order")
        await flow.send(0, to="order")
        [waiting] = await flow.waiting("orders")

    assert waiting.headers["partition_key"] == "None"
