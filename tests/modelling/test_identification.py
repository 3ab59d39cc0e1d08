"""Which aggregate a message is for: headers, payloads, mappings, functions, markers; and what is found at start."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, NewType, TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict

from ecotone_fastapi import (
    AggregateNotFoundError,
    ConfigurationError,
    ConversionError,
    MessageHeader,
    TargetIdentifier,
    aggregate,
    asynchronous,
    command_handler,
    event_handler,
    identified,
    query_handler,
    record,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.modelling.identification import tells
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class Pay:
    order_id: str


@dataclass(frozen=True)
class PayInvoice:
    number: Annotated[str, TargetIdentifier("order_id")]


@dataclass(frozen=True)
class Remind:
    text: str


class Nested(BaseModel):
    order: Pay


@aggregate(identifier="order_id")
@dataclass
class Order:
    order_id: str

    @staticmethod
    @command_handler("order.place")
    def place(order_id: str) -> "Order":
        return Order(order_id)

    @command_handler
    def pay(self, command: Pay) -> str:
        return self.order_id

    @command_handler
    def pay_invoice(self, command: PayInvoice) -> str:
        return self.order_id

    @command_handler
    def remind(self, command: Remind) -> str:
        return self.order_id

    @command_handler("order.touch")
    def touch(self) -> str:
        return self.order_id

    @command_handler("order.change_price")
    def change_price(self, price: int) -> str:
        return self.order_id

    @command_handler("order.of_dict")
    def of_dict(self, command: dict[str, Any]) -> str:
        return self.order_id

    @identified(by="number")
    @command_handler("order.by_name")
    def by_name(self, command: dict[str, Any]) -> str:
        return self.order_id

    @identified(by=MessageHeader("order"))
    @command_handler("order.by_header")
    def by_header(self, command: dict[str, Any]) -> str:
        return self.order_id

    @identified(by={"order_id": MessageHeader()})
    @command_handler("order.by_own_header")
    def by_own_header(self, command: dict[str, Any]) -> str:
        return self.order_id

    @identified(by={"order_id": lambda command: command.order.order_id})
    @command_handler
    def by_function(self, command: Nested) -> str:
        return self.order_id

    @query_handler("order.show")
    def show(self, order_id: str) -> str:
        return self.order_id


@pytest.mark.parametrize(
    ("command", "key", "headers"),
    [
        pytest.param(Pay("1"), None, {}, id="attribute"),
        pytest.param(PayInvoice("1"), None, {}, id="marked attribute"),
        pytest.param(Remind("now"), None, {"aggregate.id": "1"}, id="header"),
        pytest.param(Pay("2"), None, {"aggregate.id": "1"}, id="the header wins"),
        pytest.param(None, "order.touch", {"aggregate.id": "1"}, id="no payload"),
        pytest.param("1", "order.touch", {}, id="payload that nobody takes"),
        pytest.param({"order_id": "1"}, "order.touch", {}, id="attribute of a payload that nobody takes"),
        pytest.param(100, "order.change_price", {"aggregate.id": "1"}, id="payload that says something else"),
        pytest.param({"order_id": "1"}, "order.of_dict", {}, id="dict"),
        pytest.param({"number": "1"}, "order.by_name", {}, id="named attribute"),
        pytest.param({"order_id": "2"}, "order.by_header", {"order": "1"}, id="named header"),
        pytest.param({}, "order.by_own_header", {"ORDER_ID": "1"}, id="header of the same name in any case"),
        pytest.param({"order_id": "2"}, "order.by_header", {"order": "2", "aggregate.id": "1"}, id="header above all"),
        pytest.param(Nested(order=Pay("1")), None, {}, id="function"),
        pytest.param("1", "order.show", {}, id="payload named like the identifier"),
    ],
)
async def test_an_aggregate_is_found(command: Any, key: str | None, headers: dict[str, str]) -> None:
    async with flow_test([Order]) as flow:
        for one in ("1", "2", "100"):
            await flow.send(one, to="order.place")

        send = flow.ask if key == "order.show" else flow.send
        assert await send(command, to=key, headers=headers) == "1"


@pytest.mark.parametrize(
    ("command", "key", "headers", "looked_at"),
    [
        (Remind("now"), None, {}, "the header 'aggregate.id', else order_id of Remind"),
        (None, "order.touch", {}, "the header 'aggregate.id', else the payload"),
        (100, "order.change_price", {}, "the header 'aggregate.id', else order_id of int"),
        ({"number": "1"}, "order.of_dict", {}, "the header 'aggregate.id', else order_id of dict"),
        ({"order_id": "1"}, "order.by_header", {}, "the header 'aggregate.id', else the header 'order'"),
        ({}, "order.by_own_header", {}, "the header 'aggregate.id', else the header 'order_id'"),
    ],
)
async def test_a_message_that_does_not_tell_is_an_error_that_says_where_it_was_looked_for(
    command: Any, key: str | None, headers: dict[str, str], looked_at: str
) -> None:
    async with flow_test([Order]) as flow:
        await flow.send("1", to="order.place")

        with pytest.raises(AggregateNotFoundError, match="does not tell which Order it is for") as caught:
            await flow.send(command, to=key, headers=headers)
        assert caught.value.tried == looked_at
        assert "aggregate.id" in caught.value.hint


# -------------------------------------------------------------------------------------------------- several identifiers


class Choose(TypedDict):
    row: str
    place: Annotated[int, TargetIdentifier("number")]


@aggregate(identifier=("row", "number"))
@dataclass
class Seat:
    row: str
    number: int

    @staticmethod
    @command_handler("seat.make")
    def make(command: dict[str, Any]) -> "Seat":
        return Seat(**command)

    @command_handler("seat.choose")
    def choose(self, command: Choose) -> str:
        return f"{self.row}{self.number}"

    @identified(by={"row": MessageHeader("row")})
    @command_handler("seat.mixed")
    def mixed(self, command: dict[str, Any]) -> str:
        return f"{self.row}{self.number}"

    @identified(by=lambda command: {"row": command["at"][0], "number": command["at"][1:]})
    @command_handler("seat.together")
    def together(self, command: dict[str, Any]) -> str:
        return f"{self.row}{self.number}"

    @identified(by=MessageHeader("at"))
    @command_handler("seat.by_header")
    def by_header(self) -> str:
        return f"{self.row}{self.number}"


@pytest.mark.parametrize(
    ("command", "key", "headers"),
    [
        pytest.param({"row": "A", "place": 7}, "seat.choose", {}, id="attributes"),
        pytest.param({"row": "B", "place": 8}, "seat.choose", {"aggregate.id": {"row": "A", "number": 7}}, id="header"),
        pytest.param({"row": "B", "number": "7"}, "seat.mixed", {"row": "A"}, id="one by a header"),
        pytest.param({"at": "A7"}, "seat.together", {}, id="a function of both"),
        pytest.param(None, "seat.by_header", {"at": {"row": "A", "number": 7}}, id="a header of both"),
    ],
)
async def test_several_identifiers_are_found(command: Any, key: str, headers: dict[str, Any]) -> None:
    async with flow_test([Seat]) as flow:
        await flow.send({"row": "A", "number": 7}, to="seat.make")

        assert await flow.send(command, to=key, headers=headers) == "A7"


@pytest.mark.parametrize("header", ["A7", "[1]", '{"row": "A", "seat": 7}'])
async def test_a_header_that_does_not_name_all_identifiers_is_refused(header: str) -> None:
    async with flow_test([Seat]) as flow:
        with pytest.raises(ConversionError, match=r"header 'aggregate.id' is .*, and there are several identifiers"):
            await flow.send({"row": "A", "place": 7}, to="seat.choose", headers={"aggregate.id": header})


async def test_one_of_several_identifiers_is_not_enough() -> None:
    async with flow_test([Seat]) as flow:
        for headers in ({}, {"aggregate.id": {"number": 7}}):
            with pytest.raises(AggregateNotFoundError, match="does not tell which Seat"):
                await flow.send({"number": 7}, to="seat.mixed", headers=headers)


# ------------------------------------------------------------------------------------------------- types of identifiers


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class OrderNumber:
    year: int
    number: int


class CustomerId:
    def __init__(self, value: str) -> None:
        if not value.startswith("c-"):
            raise ValueError("no id of a customer")
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomerId) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return self.value


class ProductId(BaseModel):
    model_config = ConfigDict(frozen=True)

    sku: str


Count = NewType("Count", int)


@pytest.mark.parametrize(
    ("type_", "value", "as_text"),
    [
        (int, 7, "7"),
        (Count, 7, "7"),
        (UUID, UUID(int=7), str(UUID(int=7))),
        (UUID | None, UUID(int=7), str(UUID(int=7))),
        (Colour, Colour.RED, "red"),
        (OrderNumber, OrderNumber(2026, 1), '{"year": 2026, "number": 1}'),
        (CustomerId, CustomerId("c-7"), "c-7"),
        (ProductId, ProductId(sku="milk"), '{"sku": "milk"}'),
    ],
)
async def test_an_identifier_may_be_of_any_type_and_be_told_as_text(type_: Any, value: Any, as_text: str) -> None:
    @aggregate(identifier="key")
    class Keyed:
        def __init__(self, key: type_) -> None:
            self.key = key

        @staticmethod
        @command_handler("make")
        def make(key: Any) -> "Keyed":
            return Keyed(key)

        @query_handler("show")
        def show(self) -> Any:
            return self.key

    async with flow_test([Keyed]) as flow:
        assert await flow.send(value, to="make") == value

        assert await flow.ask({"key": value}, to="show") == value
        assert await flow.ask(to="show", headers={"aggregate.id": as_text}) == value


@pytest.mark.parametrize("type_", [int, UUID, OrderNumber, CustomerId])
async def test_a_text_that_is_no_identifier_is_refused(type_: Any) -> None:
    @aggregate(identifier="key")
    class Keyed:
        key: type_

        @query_handler("show")
        def show(self) -> Any: ...

    async with flow_test([Keyed]) as flow:
        with pytest.raises((ConversionError, AggregateNotFoundError)) as caught:
            await flow.ask(to="show", headers={"aggregate.id": "seven"})
    assert isinstance(caught.value, ConversionError) or type_ is CustomerId


# ------------------------------------------------------------------------------------------------------ from hop to hop


@dataclass(frozen=True)
class OrderWasShipped:
    order_id: str
    customer_id: str


@aggregate(identifier="order_id")
@dataclass
class Shipment:
    order_id: str

    @staticmethod
    @command_handler("shipment.make")
    def make(order_id: str) -> "Shipment":
        return Shipment(order_id)

    @asynchronous("shipping")
    @command_handler("shipment.send", id="shipment.send")
    def send(self, customer_id: str) -> None:
        record(self, OrderWasShipped(self.order_id, customer_id))


@aggregate(identifier="customer_id")
@dataclass
class Customer:
    customer_id: str
    received: int = 0

    @staticmethod
    @command_handler("customer.make")
    def make(customer_id: str) -> "Customer":
        return Customer(customer_id)

    @asynchronous("shipping")
    @event_handler(id="customer.receive")
    def receive(self, event: OrderWasShipped) -> None:
        self.received += 1

    @query_handler("customer.received")
    def get_received(self) -> int:
        return self.received


async def test_the_identifier_of_one_aggregate_does_not_follow_the_message_to_the_next_one() -> None:
    async with flow_test([Shipment, Customer], channels=[MemoryChannel("shipping")]) as flow:
        await flow.send("order-1", to="shipment.make")
        await flow.send("ada", to="customer.make")

        await flow.send("ada", to="shipment.send", headers={"aggregate.id": "order-1", "aggregate.version": 1})
        assert await flow.run("shipping") == 2

        assert await flow.ask("ada", to="customer.received") == 1


# ----------------------------------------------------------------------------------------------- what is found at start


@dataclass(frozen=True)
class Unrelated:
    text: str


class UnrelatedModel(BaseModel):
    text: str


class UnrelatedTuple(NamedTuple):
    text: str


class UnrelatedDict(TypedDict):
    text: str


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        (Unrelated, None),
        (Pay | Unrelated, None),
        (UnrelatedModel, None),
        (UnrelatedTuple, None),
        (UnrelatedDict, "some.key"),
        (str, "some.key"),
    ],
)
async def test_an_event_that_cannot_tell_the_identifier_is_found_at_start(payload: Any, key: str | None) -> None:
    @aggregate(identifier="order_id")
    class Order:
        order_id: str

        def hear(self, event: payload) -> None: ...

        hear = event_handler(key)(hear) if key else event_handler(hear)

    with pytest.raises(ConfigurationError, match=r"Order.hear: .* does not tell the order_id of Order") as caught:
        async with flow_test([Order]):
            pass
    assert "TargetIdentifier('order_id')" in caught.value.hint


@dataclass(frozen=True)
class Fact:
    """Somebody else derives from it."""


@dataclass(frozen=True)
class FactAboutAnOrder(Fact):
    order_id: str


async def test_what_may_be_told_is_left_to_the_message() -> None:
    heard: list[Fact] = []

    @aggregate(identifier="order_id")
    @dataclass
    class Hearing:
        order_id: str

        @staticmethod
        @command_handler("make")
        def make(order_id: str) -> "Hearing":
            return Hearing(order_id)

        @event_handler
        def hear(self, event: Fact) -> None:
            heard.append(event)

        @event_handler("order.*")
        def hear_by_key(self, event: dict[str, Any]) -> None:
            heard.append(event["fact"])

    async with flow_test([Hearing]) as flow:
        await flow.send("1", to="make")
        await flow.publish(FactAboutAnOrder("1"))
        await flow.publish({"order_id": "1", "fact": Fact()}, to="order.told")

    assert heard == [FactAboutAnOrder("1"), Fact()]


@pytest.mark.parametrize(
    ("by", "what"),
    [
        ({"order": "order_id"}, "'order' is no identifier of Order"),
        ({"order_id": "number"}, "'number' is no attribute of Unrelated"),
        ("number", "'number' is no attribute of Unrelated"),
    ],
)
async def test_a_mapping_that_fits_neither_aggregate_nor_payload_is_found_at_start(by: Any, what: str) -> None:
    @aggregate(identifier="order_id")
    class Order:
        order_id: str

        @identified(by=by)
        @command_handler
        def act(self, command: Unrelated) -> None: ...

    with pytest.raises(ConfigurationError, match=what):
        async with flow_test([Order]):
            pass


def test_a_type_tells_what_is_known_of_it() -> None:
    class Open(BaseModel, extra="allow"):
        pass

    class WithProperty:
        @property
        def order_id(self) -> str:
            return "1"

    @dataclass
    class DataWithProperty(WithProperty):
        pass

    assert tells(Open, "order_id")
    assert tells(DataWithProperty, "order_id")
    assert not tells(DataWithProperty, "number")
    assert not tells(str, "title")
    assert tells(object(), "order_id")
