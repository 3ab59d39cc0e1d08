"""Factories: what they share with methods, and what is found at start in a class of aggregates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from ecotone_fastapi import (
    AggregateNotFoundError,
    Aggregates,
    ConfigurationError,
    Repository,
    aggregate,
    asynchronous,
    command_handler,
    event_handler,
    identified,
    message_name,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.errors import MissingServiceError
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class CancelOrder:
    order_id: str


@dataclass(frozen=True)
class CustomerWasRegistered:
    customer_id: str


@dataclass(frozen=True)
class OrderWasPaid:
    customer_id: str


@dataclass(frozen=True)
class OrderWasRefunded:
    customer_id: str


async def test_a_message_with_a_factory_and_a_method_creates_first_and_acts_then() -> None:
    @dataclass(frozen=True)
    class Add:
        wallet_id: str
        amount: int

    @aggregate(identifier="wallet_id")
    @dataclass
    class Wallet:
        wallet_id: str
        balance: int

        @classmethod
        @command_handler
        def open(cls, command: Add) -> "Wallet":
            return cls(command.wallet_id, command.amount)

        @command_handler
        def add(self, command: Add) -> int:
            self.balance += command.amount
            return self.balance

    async with flow_test([Wallet]) as flow:
        assert await flow.send(Add("w", 100)) == "w"
        assert await flow.send(Add("w", 50)) == 150
        assert await flow.send(Add("v", 1)) == "v"


async def test_without_an_identifier_the_factory_of_a_pair_is_called() -> None:
    @dataclass(frozen=True)
    class Write:
        text: str
        note_id: UUID | None = None

    @aggregate(identifier="note_id")
    @dataclass
    class Note:
        note_id: UUID
        text: str

        @classmethod
        @command_handler
        def begin(cls, command: Write) -> "Note":
            return cls(uuid4(), command.text)

        @command_handler
        def go_on(self, command: Write) -> str:
            self.text += command.text
            return self.text

    async with flow_test([Note]) as flow:
        note_id = await flow.send(Write("a"))

        assert isinstance(note_id, UUID)
        assert await flow.send(Write("b", note_id)) == "ab"


async def test_a_factory_may_share_one_of_several_events_of_a_method() -> None:
    @aggregate(identifier="customer_id")
    @dataclass
    class Statistics:
        customer_id: str
        count: int

        @classmethod
        @event_handler
        def begin(cls, event: OrderWasPaid) -> "Statistics":
            return cls(event.customer_id, 1)

        @event_handler
        def go_on(self, event: OrderWasPaid | OrderWasRefunded) -> None:
            self.count += 1

        @query_handler("statistics.count")
        def get_count(self) -> int:
            return self.count

    async with flow_test([Statistics]) as flow:
        with pytest.raises(AggregateNotFoundError):
            await flow.publish(OrderWasRefunded("ada"))
        await flow.publish(OrderWasPaid("ada"))
        await flow.publish(OrderWasPaid("ada"))
        await flow.publish(OrderWasRefunded("ada"))

        assert await flow.ask("ada", to="statistics.count") == 3


# --------------------------------------------------------------------------------------------- what is wrong in a class


async def found_at_start(*handlers: Any, **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with flow_test(handlers, **given):
            pass
    return str(caught.value)


async def test_an_identifier_that_is_no_attribute_is_found_at_start() -> None:
    @aggregate(identifier="id", version="version", events="events")
    @dataclass
    class Wrong:
        order_id: str

        @query_handler("x")
        def x(self) -> None: ...

    assert "Wrong has no id, version, events" in await found_at_start(Wrong)


def test_an_aggregate_without_identifier_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has an identifier"):
        aggregate(identifier=())


async def test_two_factories_for_one_message_are_found_at_start() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Twice:
        order_id: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Twice":
            return cls(command.order_id)

        @staticmethod
        @command_handler
        def place_again(command: PlaceOrder) -> "Twice":
            return Twice(command.order_id)

        @command_handler
        def act(self, command: PlaceOrder) -> None: ...

    text = await found_at_start(Twice)
    assert "Twice.place and Twice.place_again both make an aggregate of one message" in text


async def test_a_factory_and_a_method_are_a_pair_whatever_stands_in_front_of_their_payloads() -> None:
    @aggregate(identifier="customer_id")
    @dataclass
    class Led:
        customer_id: str
        count: int = 1

        @classmethod
        @event_handler
        async def open(cls, led: Repository["Led"], event: CustomerWasRegistered) -> "Led":
            return cls(event.customer_id)

        @event_handler
        async def count_up(self, event: CustomerWasRegistered, led: Repository["Led"]) -> None:
            self.count += 1

        @query_handler("led.count")
        def get_count(self) -> int:
            return self.count

    async with flow_test([Led]) as flow:
        for _ in range(3):
            await flow.publish(CustomerWasRegistered("ada"))

        assert await flow.ask("ada", to="led.count") == 3


async def test_a_factory_and_two_methods_for_one_event_are_found_at_start() -> None:
    @aggregate(identifier="customer_id")
    @dataclass
    class Thrice:
        customer_id: str

        @classmethod
        @event_handler
        def open(cls, event: CustomerWasRegistered) -> "Thrice":
            return cls(event.customer_id)

        @event_handler
        def one(self, event: CustomerWasRegistered) -> None: ...

        @event_handler
        def two(self, event: CustomerWasRegistered) -> None: ...

    assert "Thrice.open has Thrice.one and Thrice.two beside it" in await found_at_start(Thrice)


async def test_a_factory_with_more_messages_than_the_method_beside_it_is_found_at_start() -> None:
    @aggregate(identifier="customer_id")
    @dataclass
    class Wider:
        customer_id: str

        @classmethod
        @event_handler
        def open(cls, event: OrderWasPaid | OrderWasRefunded) -> "Wider":
            return cls(event.customer_id)

        @event_handler
        def act(self, event: OrderWasRefunded) -> None: ...

    assert "share some messages, and Wider.open has others" in await found_at_start(Wider)


async def test_a_mark_on_a_factory_that_stands_behind_a_method_is_found_at_start() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Marked:
        order_id: str

        @classmethod
        @asynchronous("orders")
        @command_handler
        def place(cls, command: PlaceOrder) -> "Marked":
            return cls(command.order_id)

        @command_handler
        def act(self, command: PlaceOrder) -> None: ...

    text = await found_at_start(Marked, channels=[MemoryChannel("orders")])
    assert "Marked.place is reached by way of Marked.act, and its mark Asynchronous" in text


async def test_a_factory_that_says_it_returns_nothing_is_found_at_start() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Forgetful:
        order_id: str

        @classmethod
        @identified(by="order_id")
        @command_handler
        def place(cls, command: PlaceOrder) -> None: ...

    text = await found_at_start(Forgetful)
    assert "Forgetful.place is a factory, and returns nothing" in text
    assert "Forgetful.place makes an aggregate, and is told by @identified which one it is for" in text


async def test_a_handler_that_yields_is_found_at_start() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Yielding:
        order_id: str

        @command_handler
        def cancel(self, command: CancelOrder) -> Iterator[str]:
            yield "no"

    assert "a message handler cannot use yield" in await found_at_start(Yielding)


async def test_two_classes_with_one_name_are_found_at_start() -> None:
    @message_name("order")
    @aggregate(identifier="order_id")
    @dataclass
    class First:
        order_id: str

        @query_handler("first")
        def first(self) -> None: ...

    @message_name("order")
    @aggregate(identifier="order_id")
    @dataclass
    class Second:
        order_id: str

        @query_handler("second")
        def second(self) -> None: ...

    assert "are both named 'order'" in await found_at_start(First, Second)


async def test_all_that_is_wrong_is_told_at_once() -> None:
    @aggregate(identifier="id")
    @dataclass
    class One:
        order_id: str

        @query_handler("one")
        def one(self) -> None: ...

    @aggregate(identifier="id")
    @dataclass
    class Two:
        order_id: str

        @query_handler("two")
        def two(self) -> None: ...

    text = await found_at_start(One, Two)
    assert text.startswith("2 things are wrong")
    assert "One has no id" in text
    assert "Two has no id" in text


async def test_a_class_that_nobody_keeps_is_found_at_start() -> None:
    class Nothing:
        def serves(self, cls: type) -> bool:
            return False

    @aggregate(identifier="order_id")
    class Mapped:
        __mapper__ = "as SQLAlchemy writes it"
        order_id: str

        @query_handler("x")
        def x(self) -> None: ...

    with pytest.raises(MissingServiceError, match=r"nothing keeps the aggregates of .*Mapped") as caught:
        async with flow_test([Mapped], plugins=[Aggregates(stores=[Nothing()])]):  # type: ignore[list-item]
            pass

    assert "Tried: Nothing, " in str(caught.value)
    assert "MemoryAggregates" in str(caught.value)
    assert "database" in caught.value.hint


async def test_an_object_of_an_aggregate_is_refused_at_start() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Given:
        order_id: str

        @command_handler
        def cancel(self, command: CancelOrder) -> None: ...

    assert "Given is an aggregate, and an object of it was given" in await found_at_start(Given("1"))
