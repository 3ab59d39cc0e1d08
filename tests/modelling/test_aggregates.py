"""State-stored aggregates: factories and methods, what they return, what they record, and what is found at start."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict

from ecotone_fastapi import (
    AggregateNotFoundError,
    Aggregates,
    CommandBus,
    ConcurrencyError,
    EventBus,
    HeaderName,
    Message,
    Repository,
    TargetVersion,
    aggregate,
    asynchronous,
    command_handler,
    event_handler,
    identified,
    query_handler,
    record,
    take_recorded,
)
from ecotone_fastapi.adapters.memory import MemoryAggregates, MemoryChannel
from ecotone_fastapi.core.errors import AggregateError
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    product: str = "milk"


@dataclass(frozen=True)
class CancelOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@dataclass(frozen=True)
class OrderWasCancelled:
    order_id: str


@aggregate(identifier="order_id")
@dataclass
class Order:
    order_id: str
    product: str
    status: str = "placed"

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> "Order":
        order = cls(command.order_id, command.product)
        record(order, OrderWasPlaced(command.order_id))
        return order

    @command_handler
    def cancel(self, command: CancelOrder) -> str:
        before, self.status = self.status, "cancelled"
        record(self, OrderWasCancelled(self.order_id))
        return before

    @query_handler("order.status")
    def get_status(self) -> str:
        return self.status


# ------------------------------------------------------------------------------------------------ factories and methods


async def test_a_factory_makes_an_aggregate_and_its_sender_is_told_the_identifier() -> None:
    async with flow_test([Order]) as flow:
        assert await flow.send(PlaceOrder("order-1")) == "order-1"

        assert await flow.ask("order-1", to="order.status") == "placed"


async def test_a_method_acts_on_the_aggregate_that_a_message_is_for_and_answers() -> None:
    async with flow_test([Order]) as flow:
        await flow.send(PlaceOrder("order-1"))
        await flow.send(PlaceOrder("order-2"))

        assert await flow.send(CancelOrder("order-2")) == "placed"

        assert await flow.ask("order-1", to="order.status") == "placed"
        assert await flow.ask("order-2", to="order.status") == "cancelled"


async def test_a_method_that_returns_nothing_answers_nothing() -> None:
    @aggregate(identifier="name")
    @dataclass
    class Counter:
        name: str
        count: int = 0

        @staticmethod
        @command_handler("counter.start")
        def start(name: str) -> "Counter":
            return Counter(name)

        @command_handler("counter.count")
        async def add(self, name: str) -> None:
            self.count += 1

        @query_handler("counter.show")
        async def show(self, name: str) -> int:
            return self.count

    async with flow_test([Counter]) as flow:
        await flow.send("visits", to="counter.start")
        assert await flow.send("visits", to="counter.count") is None
        await flow.send("visits", to="counter.count")

        assert await flow.ask("visits", to="counter.show") == 2


async def test_several_identifiers_are_answered_together() -> None:
    @dataclass(frozen=True)
    class TakeSeat:
        row: str
        number: int

    @aggregate(identifier=("row", "number"))
    @dataclass
    class Seat:
        row: str
        number: int

        @classmethod
        @command_handler
        def take(cls, command: TakeSeat) -> "Seat":
            return cls(command.row, command.number)

        @query_handler("seat.name")
        def name(self) -> str:
            return f"{self.row}{self.number}"

    async with flow_test([Seat]) as flow:
        assert await flow.send(TakeSeat("A", 7)) == {"row": "A", "number": 7}

        header = {"aggregate.id": {"row": "A", "number": 7}}
        assert await flow.ask(to="seat.name", headers=header) == "A7"
        with pytest.raises(AggregateNotFoundError, match="'number': 8"):
            await flow.ask(to="seat.name", headers={"aggregate.id": {"row": "A", "number": 8}})


async def test_handlers_are_given_what_all_handlers_are_given() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Parcel:
        order_id: str
        sent_by: str

        @classmethod
        @command_handler
        async def send(
            cls, command: PlaceOrder, message: Message[PlaceOrder], parcels: Repository["Parcel"], events: EventBus
        ) -> "Parcel":
            assert await parcels.find(command.order_id) is None
            await events.publish("sending", to="parcel.sending")
            return cls(command.order_id, message.headers["user"])

        @query_handler("parcel.sent_by")
        def get_sent_by(self, order_id: str, message: Message[str]) -> str:
            return f"{self.sent_by}, {message.headers['user']}"

    async with flow_test([Parcel]) as flow:
        await flow.send(PlaceOrder("order-1"), headers={"user": "ada"})

        assert flow.published == ["sending"]
        assert await flow.ask("order-1", to="parcel.sent_by", headers={"user": "alan"}) == "ada, alan"


async def test_a_frozen_aggregate_is_replaced_by_what_its_method_returns() -> None:
    @aggregate(identifier="order_id", version="version")
    @dataclass(frozen=True)
    class Frozen:
        order_id: str
        status: str = "placed"
        version: int = 0

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Frozen":
            return cls(command.order_id)

        @command_handler
        def cancel(self, command: CancelOrder) -> "Frozen":
            record(self, "first")
            cancelled = replace(self, status="cancelled")
            record(cancelled, "second")
            return cancelled

        @query_handler("frozen.show")
        def show(self) -> tuple[str, int]:
            return self.status, self.version

    async with flow_test([Frozen]) as flow:
        await flow.send(PlaceOrder("order-1"))
        assert await flow.send(CancelOrder("order-1")) is None

        assert await flow.ask("order-1", to="frozen.show") == ("cancelled", 2)
        assert flow.published == ["first", "second"]


class PlainOrder:
    def __init__(self, order_id: str) -> None:
        self.order_id = order_id


@dataclass(slots=True, weakref_slot=True)
class SlottedOrder:
    order_id: str


@dataclass(frozen=True)
class FrozenOrder:
    order_id: str


class ModelOrder(BaseModel):
    order_id: str


class FrozenModelOrder(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    order_id: str


@pytest.mark.parametrize("base", [PlainOrder, SlottedOrder, FrozenOrder, ModelOrder, FrozenModelOrder])
async def test_any_class_can_be_an_aggregate_and_record(base: Any) -> None:
    class Derived(base):
        __slots__ = ()

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Derived":
            order = cls(order_id=command.order_id)
            record(order, OrderWasPlaced(command.order_id))
            return order

        @command_handler
        def cancel(self, command: CancelOrder) -> None:
            record(self, OrderWasCancelled(self.order_id))

    async with flow_test([aggregate(identifier="order_id")(Derived)]) as flow:
        await flow.send(PlaceOrder("order-1"))
        await flow.send(CancelOrder("order-1"))

        assert flow.published == [OrderWasPlaced("order-1"), OrderWasCancelled("order-1")]


async def test_handlers_of_a_base_class_are_those_of_the_aggregate() -> None:
    class Cancellable:
        status: str

        @command_handler
        def cancel(self, command: CancelOrder) -> None:
            self.status = "cancelled"

    @aggregate(identifier="order_id")
    @dataclass
    class Derived(Cancellable):
        order_id: str
        status: str = "placed"

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Derived":
            return cls(command.order_id)

        @query_handler("derived.status")
        def get_status(self) -> str:
            return self.status

    async with flow_test([Derived]) as flow:
        await flow.send(PlaceOrder("order-1"))
        await flow.send(CancelOrder("order-1"))

        assert await flow.ask("order-1", to="derived.status") == "cancelled"


# ---------------------------------------------------------------------------------------------- several at once, events


async def test_another_aggregate_that_is_returned_is_saved_too_and_everything_before_anything_is_published() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Shipment:
        order_id: str

    @aggregate(identifier="order_id")
    @dataclass
    class Shippable:
        order_id: str
        shipped: bool = False

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Shippable":
            return cls(command.order_id)

        @command_handler("order.ship")
        def ship(self, order_id: str) -> Shipment:
            self.shipped = True
            shipment = Shipment(order_id)
            record(self, "order shipped")
            record(shipment, "shipment made")
            record(self, "order closed")
            return shipment

    seen: list[tuple[str, bool, str]] = []

    @event_handler
    async def look(event: str, orders: Repository[Shippable], shipments: Repository[Shipment]) -> None:
        order, shipment = await orders.get("1"), await shipments.get("1")
        seen.append((event, order.shipped, shipment.order_id))

    @command_handler("ship")
    async def ship(order_id: str, commands: CommandBus) -> None:
        assert await commands.send(order_id, to="order.ship") is None

    async with flow_test([Shippable, ship, look]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.send("1", to="ship")

    assert seen == [("order shipped", True, "1"), ("order closed", True, "1"), ("shipment made", True, "1")]


async def test_a_list_of_new_aggregates_is_saved() -> None:
    @dataclass(frozen=True)
    class PlaceOrders:
        order_ids: list[str]

    @aggregate(identifier="order_id")
    @dataclass
    class Batched:
        order_id: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrders) -> "list[Batched]":
            return [cls(one) for one in command.order_ids]

        @command_handler("batched.split")
        def split(self, order_id: str) -> "tuple[Batched, Batched]":
            return self, Batched(f"{self.order_id}-b")

        @query_handler("batched.ids")
        def ids(self) -> list[str]:
            return [self.order_id]

    async with flow_test([Batched]) as flow:
        assert await flow.send(PlaceOrders(["a", "b"])) == "a"
        await flow.send("b", to="batched.split")

        for one in ("a", "b", "b-b"):
            assert await flow.ask(one, to="batched.ids") == [one]


async def test_an_answer_may_be_a_list() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Listing:
        order_id: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Listing":
            return cls(command.order_id)

        @command_handler
        def cancel(self, command: CancelOrder) -> list[Any]:
            return [self, "and more"] if command.order_id == "1" else []

    async with flow_test([Listing]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.send(PlaceOrder("2"))

        listing, more = await flow.send(CancelOrder("1"))
        assert (listing.order_id, more) == ("1", "and more")
        assert await flow.send(CancelOrder("2")) == []


async def test_events_are_caused_by_the_command_and_may_have_headers_of_their_own() -> None:
    @aggregate(identifier="order_id")
    class Telling:
        def __init__(self, order_id: str) -> None:
            self.order_id = order_id

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Telling":
            order = cls(command.order_id)
            record(order, Message(OrderWasPlaced(command.order_id), {"priority": "5", "loud": "yes"}))
            return order

    async with flow_test([Telling]) as flow:
        await flow.send(PlaceOrder("order-1"), headers={"tenant": "acme", "aggregate.id": "order-9"})

        command, event = (one.message for one in flow.recorded)
        assert event.headers["causation_id"] == command.id
        assert event.headers["correlation_id"] == command.headers["correlation_id"]
        assert (event.headers["tenant"], event.headers["priority"], event.headers["loud"]) == ("acme", "5", "yes")
        assert HeaderName.aggregate_id not in event.headers


async def test_events_of_a_list_or_a_method_of_the_class_are_published_and_taken() -> None:
    @aggregate(identifier="order_id", events="happened")
    @dataclass
    class WithList:
        order_id: str
        happened: list[Any] = field(default_factory=list)

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "WithList":
            return cls(command.order_id, [OrderWasPlaced(command.order_id)])

    @aggregate(identifier="order_id", events="pull_events")
    @dataclass
    class WithMethod:
        order_id: str
        happened: list[Any] = field(default_factory=list)

        @classmethod
        @command_handler("order.open")
        def open(cls, order_id: str) -> "WithMethod":
            return cls(order_id, [OrderWasCancelled(order_id)])

        def pull_events(self) -> Iterator[Any]:
            while self.happened:
                yield self.happened.pop()

    store = MemoryAggregates()
    async with flow_test([WithList, WithMethod], plugins=[Aggregates(stores=[store])]) as flow:
        await flow.send(PlaceOrder("1"))
        await flow.send("2", to="order.open")

        assert flow.published == [OrderWasPlaced("1"), OrderWasCancelled("2")]
    assert [kept.happened for kept, _ in store._kept.values()] == [[], []]


async def test_nothing_is_published_of_an_aggregate_that_could_not_be_saved() -> None:
    async with flow_test([Order]) as flow:
        await flow.send(PlaceOrder("order-1"))
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(PlaceOrder("order-1"))

        assert (caught.value.expected, caught.value.actual) == (0, 1)
        assert flow.published == [OrderWasPlaced("order-1")]


async def test_a_handler_of_a_recorded_event_that_fails_undoes_everything() -> None:
    @event_handler
    async def refuse(event: OrderWasPlaced) -> None:
        raise LookupError("sold out")

    async with flow_test([Order, refuse]) as flow:
        with pytest.raises(LookupError, match="sold out"):
            await flow.send(PlaceOrder("order-1"))
        with pytest.raises(AggregateNotFoundError):
            await flow.ask("order-1", to="order.status")


async def test_of_a_nested_command_that_fails_nothing_is_left_when_its_sender_goes_on() -> None:
    @command_handler("place.two")
    async def place_two(order_id: str, commands: CommandBus) -> None:
        await commands.send(PlaceOrder(order_id))
        try:
            await commands.send(order_id, to="fail.after")
        except ValueError:
            await commands.send(PlaceOrder(f"{order_id}-b"))

    @command_handler("fail.after")
    async def fail_after(order_id: str, commands: CommandBus) -> None:
        await commands.send(CancelOrder(order_id))
        await commands.send(PlaceOrder(f"{order_id}-b"))
        raise ValueError

    async with flow_test([Order, place_two, fail_after]) as flow:
        await flow.send("1", to="place.two")

        assert await flow.ask("1", to="order.status") == "placed"
        assert await flow.ask("1-b", to="order.status") == "placed"


# ------------------------------------------------------------------------------------------- missing, events, versions


@aggregate(identifier="customer_id")
@dataclass
class Account:
    customer_id: str
    orders: list[str] = field(default_factory=list)

    @classmethod
    @event_handler
    def open(cls, event: "CustomerWasRegistered") -> "Account":
        return cls(event.customer_id)

    @identified(missing="ignore")
    @event_handler
    def note(self, event: "OrderWasPaid | OrderWasRefunded") -> None:
        self.orders.append(type(event).__name__)

    @identified(missing="ignore")
    @command_handler("account.close")
    def close(self, customer_id: str) -> str:
        return "closed"

    @identified(missing="ignore")
    @command_handler("account.forget")
    def forget(self) -> None: ...

    @identified(missing="ignore")
    @query_handler("account.orders")
    def show(self, customer_id: str) -> list[str]:
        return self.orders


@dataclass(frozen=True)
class CustomerWasRegistered:
    customer_id: str


@dataclass(frozen=True)
class OrderWasPaid:
    customer_id: str | None


@dataclass(frozen=True)
class OrderWasRefunded:
    customer_id: str


async def test_events_create_aggregates_and_act_on_them_by_any_member_of_a_union() -> None:
    async with flow_test([Account]) as flow:
        await flow.publish(CustomerWasRegistered("ada"))
        await flow.publish(OrderWasPaid("ada"))
        await flow.publish(OrderWasRefunded("ada"))

        assert await flow.ask("ada", to="account.orders") == ["OrderWasPaid", "OrderWasRefunded"]


async def test_commands_and_events_for_aggregates_that_are_missing_can_be_ignored_but_not_queries() -> None:
    async with flow_test([Account]) as flow:
        await flow.publish(OrderWasPaid("nobody"))
        assert await flow.send("nobody", to="account.close") is None
        with pytest.raises(AggregateNotFoundError, match="there is no Account 'nobody'"):
            await flow.ask("nobody", to="account.orders")


async def test_a_message_that_does_not_tell_its_aggregate_is_never_ignored() -> None:
    async with flow_test([Account]) as flow:
        with pytest.raises(AggregateNotFoundError, match="does not tell which Account"):
            await flow.publish(OrderWasPaid(None))
        with pytest.raises(AggregateNotFoundError, match="does not tell which Account"):
            await flow.send(to="account.forget")


@pytest.mark.parametrize("identifier", [0, ""])
async def test_an_identifier_may_be_zero_or_empty(identifier: int | str) -> None:
    @aggregate(identifier="key")
    @dataclass
    class Keyed:
        key: int | str

        @classmethod
        @command_handler("keyed.make")
        def make(cls, key: int | str) -> "Keyed":
            return cls(key)

        @query_handler("keyed.show")
        def show(self, key: int | str) -> int | str:
            return self.key

    async with flow_test([Keyed]) as flow:
        assert await flow.send(identifier, to="keyed.make") == identifier
        assert await flow.ask(identifier, to="keyed.show") == identifier


@dataclass(frozen=True)
class Rename:
    thing_id: str
    name: str
    version: Annotated[int | None, TargetVersion()] = None


@aggregate(identifier="thing_id", version="seen")
@dataclass
class Thing:
    thing_id: str
    name: str = ""
    seen: int = -1

    @classmethod
    @command_handler("thing.make")
    def make(cls, thing_id: str) -> "Thing":
        return cls(thing_id)

    @command_handler
    def rename(self, command: Rename) -> int:
        self.name = command.name
        return self.seen

    @query_handler("thing.version")
    def get_version(self) -> int:
        return self.seen


async def test_an_aggregate_is_told_its_version_when_it_is_loaded_and_every_save_counts() -> None:
    async with flow_test([Thing]) as flow:
        await flow.send("t", to="thing.make")
        assert await flow.ask("t", to="thing.version") == 1
        assert await flow.send(Rename("t", "a")) == 1
        assert await flow.send(Rename("t", "a")) == 2

        assert await flow.ask("t", to="thing.version") == 3


@pytest.mark.parametrize("expected", [1, 3])
async def test_a_command_that_expects_another_version_is_refused_whether_it_is_older_or_newer(expected: int) -> None:
    async with flow_test([Thing]) as flow:
        await flow.send("t", to="thing.make")
        await flow.send(Rename("t", "a", version=1))
        for command, headers in (
            (Rename("t", "b", version=expected), {}),
            (Rename("t", "b", version=2), {"aggregate.version": expected}),
        ):
            with pytest.raises(ConcurrencyError) as caught:
                await flow.send(command, headers=headers)

            assert (caught.value.expected, caught.value.actual, caught.value.passing) == (expected, 2, False)
        assert await flow.ask("t", to="thing.version") == 2


async def test_a_command_that_expects_no_aggregate_creates_one_and_is_refused_when_there_is_one() -> None:
    @aggregate(identifier="thing_id")
    @dataclass
    class Upserted:
        thing_id: str
        name: str

        @classmethod
        @command_handler
        def make(cls, command: Rename) -> "Upserted":
            return cls(command.thing_id, command.name)

        @command_handler
        def rename(self, command: Rename) -> None:
            self.name = command.name

    async with flow_test([Upserted]) as flow:
        with pytest.raises(ConcurrencyError, match="is not as its sender knows it"):
            await flow.send(Rename("t", "a", version=1))
        assert await flow.send(Rename("t", "a", version=0)) == "t"
        with pytest.raises(ConcurrencyError):
            await flow.send(Rename("t", "a", version=0))


async def test_a_header_that_tells_no_version_is_refused() -> None:
    async with flow_test([Thing]) as flow:
        await flow.send("t", to="thing.make")
        with pytest.raises(ValueError, match=r"'aggregate.version' is 'latest'"):
            await flow.send(Rename("t", "a"), headers={"aggregate.version": "latest"})


# -------------------------------------------------------------------------------------------------------- asynchronous


@aggregate(identifier="order_id")
@dataclass
class Later:
    order_id: str
    notes: list[str] = field(default_factory=list)

    @asynchronous("orders")
    @command_handler(id="later.place")
    @classmethod
    def place(cls, command: PlaceOrder) -> "Later":
        return cls(command.order_id)

    @asynchronous("orders")
    @command_handler("later.note", id="later.note")
    def note(self, text: str) -> str:
        self.notes.append(text)
        record(self, OrderWasCancelled(self.order_id))
        return "nobody hears this"

    @asynchronous("orders")
    @identified(by={"order_id": lambda event: event.order_id.removesuffix("!")})
    @event_handler(id="later.when_cancelled")
    def when_cancelled(self, event: OrderWasCancelled, message: Message[Any]) -> None:
        assert HeaderName.aggregate_id not in message.headers
        self.notes.append("cancelled")

    @query_handler("later.notes")
    def get_notes(self) -> list[str]:
        return self.notes


async def test_handlers_of_aggregates_can_be_asynchronous() -> None:
    async with flow_test([Later], channels=[MemoryChannel("orders")]) as flow:
        assert await flow.send(PlaceOrder("1")) is None
        with pytest.raises(AggregateNotFoundError):
            await flow.ask("1", to="later.notes")
        assert await flow.send("hello", to="later.note", headers={"aggregate.id": "1"}) is None

        assert await flow.run("orders") == 3
        assert await flow.ask("1", to="later.notes") == ["hello", "cancelled"]


async def test_the_sender_of_an_asynchronous_command_is_told_at_once_that_it_is_for_nobody() -> None:
    async with flow_test([Later], channels=[MemoryChannel("orders")]) as flow:
        with pytest.raises(AggregateNotFoundError, match="does not tell which Later it is for"):
            await flow.send("hello", to="later.note")

        assert await flow.waiting("orders") == []


async def test_an_asynchronous_message_for_an_aggregate_that_is_missing_is_parked_in_the_end() -> None:
    async with flow_test([Later], channels=[MemoryChannel("orders")]) as flow:
        await flow.send("hello", to="later.note", headers={"aggregate.id": "9"})
        await flow.run("orders", raises=False)

        assert [type(error) for error in flow.failures] == [AggregateNotFoundError]


# --------------------------------------------------------------------------------------------- what is wrong at runtime


async def test_a_factory_that_returns_something_else_is_told_so() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Absent:
        order_id: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> Any:
            return None if command.product == "milk" else [cls(command.order_id), "something"]

    async with flow_test([Absent]) as flow:
        for product in ("milk", "bread"):
            with pytest.raises(AggregateError, match="a factory of Absent has returned"):
                await flow.send(PlaceOrder("1", product))


async def test_a_new_aggregate_without_identifier_is_not_saved() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Anonymous:
        order_id: str | None

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Anonymous":
            return cls(None)

    async with flow_test([Anonymous]) as flow:
        with pytest.raises(AggregateError, match="a new Anonymous has no identifier"):
            await flow.send(PlaceOrder("1"))


async def test_an_aggregate_that_changes_its_identifier_is_not_saved() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Renamed:
        order_id: str | None

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Renamed":
            return cls(command.order_id)

        @command_handler
        def cancel(self, command: CancelOrder) -> None:
            self.order_id = "another"

    async with flow_test([Renamed]) as flow:
        await flow.send(PlaceOrder("1"))
        with pytest.raises(AggregateError, match="the Renamed '1' has become 'another'"):
            await flow.send(CancelOrder("1"))


async def test_an_identifier_whose_type_nobody_tells_is_to_be_annotated() -> None:
    @aggregate(identifier="number")
    class Untyped:
        def __init__(self) -> None:
            self.number = 7

        @classmethod
        @command_handler("make")
        def make(cls) -> "Untyped":
            return cls()

        @command_handler("touch")
        def touch(self) -> None:
            pass

    async with flow_test([Untyped]) as flow:
        await flow.send(to="make")
        with pytest.raises(AggregateError, match="the Untyped '7' has become 7") as caught:
            await flow.send(to="touch", headers={"aggregate.id": 7})
    assert "annotate number: int" in caught.value.hint


def test_an_aggregate_can_be_tested_alone() -> None:
    order = Order.place(PlaceOrder("1"))
    order.cancel(CancelOrder("1"))

    assert take_recorded(order) == [OrderWasPlaced("1"), OrderWasCancelled("1")]
    assert take_recorded(order) == []
