"""Repositories and fetched aggregates in any handler, and stores of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from fastapi import Depends

from ecotone_fastapi import (
    AggregateNotFoundError,
    Aggregates,
    CommandBus,
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    Fetched,
    Message,
    MessageHeader,
    Repository,
    aggregate,
    command_handler,
    event_handler,
    query_handler,
    record,
)
from ecotone_fastapi.core.errors import AggregateError
from ecotone_fastapi.modelling.repository import AggregateStore, Identifier, Saved, Versioned
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class Placed:
    order_id: int


@dataclass(frozen=True)
class Ship:
    order_id: int
    carrier: str = "post"


@aggregate(identifier="order_id", version="version")
@dataclass
class Order:
    order_id: int
    status: str = "new"
    version: int = 0


@aggregate(identifier=("shop", "number"))
@dataclass
class Invoice:
    shop: str
    number: int
    paid: bool = False


class Orders:
    """It is made once for the application, and so are its repositories."""

    def __init__(self, orders: Repository[Order], invoices: Repository[Invoice]) -> None:
        self.orders = orders
        self.invoices = invoices

    @command_handler("order.place")
    async def place(self, order_id: int) -> int:
        order = Order(order_id, "placed")
        record(order, Placed(order_id))
        await self.orders.save(order)
        return order.version

    @command_handler
    async def ship(self, command: Ship) -> int:
        order = await self.orders.get(command.order_id)
        order.status = f"shipped by {command.carrier}"
        await self.orders.save(order)
        await self.orders.save(order)
        return order.version

    @query_handler("order.status")
    async def get_status(self, order_id: int) -> str | None:
        order = await self.orders.find(order_id)
        return None if order is None else order.status

    @command_handler("invoice.pay")
    async def pay(self, command: dict[str, Any]) -> bool:
        found = await self.invoices.find(command)
        invoice = found or Invoice(**command)
        before, invoice.paid = invoice.paid, True
        await self.invoices.save(invoice)
        return before


async def test_a_repository_gets_finds_and_saves() -> None:
    async with flow_test([Orders]) as flow:
        assert await flow.ask(7, to="order.status") is None
        assert await flow.send(7, to="order.place") == 1
        assert await flow.send(Ship(7)) == 3

        assert await flow.ask(7, to="order.status") == "shipped by post"
        with pytest.raises(AggregateNotFoundError, match="there is no Order 8"):
            await flow.send(Ship(8))


async def test_a_repository_takes_several_identifiers_as_a_mapping() -> None:
    async with flow_test([Orders]) as flow:
        invoice = {"shop": "north", "number": 7}
        assert await flow.send(invoice, to="invoice.pay") is False
        assert await flow.send({"shop": "north", "number": "7"}, to="invoice.pay") is True
        assert await flow.send({"shop": "north", "number": 8}, to="invoice.pay") is False
        with pytest.raises(ConversionError, match="does not identify a Invoice"):
            await flow.send({"shop": "north", "id": 8}, to="invoice.pay")


async def test_what_is_loaded_is_saved_only_when_the_repository_is_told_so() -> None:
    @command_handler("touch")
    async def touch(order_id: int, orders: Repository[Order], same: Annotated[Order, Fetched()]) -> None:
        (await orders.get(order_id)).status = "touched"
        same.status = "touched"

    async with flow_test([Orders, touch]) as flow:
        await flow.send(7, to="order.place")
        await flow.send(7, to="touch")

        assert await flow.ask(7, to="order.status") == "placed"


async def test_a_second_copy_that_is_saved_is_refused() -> None:
    @command_handler("twice")
    async def twice(order_id: int, orders: Repository[Order]) -> None:
        one, other = await orders.get(order_id), await orders.get(order_id)
        await orders.save(one)
        await orders.save(other)

    async with flow_test([Orders, twice]) as flow:
        await flow.send(7, to="order.place")
        with pytest.raises(ConcurrencyError) as caught:
            await flow.send(7, to="twice")

        assert (caught.value.expected, caught.value.actual) == (1, 2)


async def test_events_of_what_a_repository_saves_are_published_when_the_handler_has_saved_everything() -> None:
    log: list[str] = []

    @command_handler("two")
    async def place_two(order_id: int, orders: Repository[Order], commands: CommandBus) -> None:
        for number in (order_id, order_id + 1):
            order = Order(number)
            record(order, Placed(number))
            await orders.save(order)
            log.append(f"saved {number}")
        await commands.send(9, to="order.place")

    @event_handler
    async def look(event: Placed, orders: Repository[Order]) -> None:
        there = [str(number) for number in (1, 2, 9) if await orders.find(number) is not None]
        log.append(f"{event.order_id} was placed, there are {' '.join(there)}")

    async with flow_test([Orders, place_two, look]) as flow:
        await flow.send(1, to="two")

    assert log == [
        "saved 1",
        "saved 2",
        "9 was placed, there are 1 2 9",
        "1 was placed, there are 1 2 9",
        "2 was placed, there are 1 2 9",
    ]


async def test_in_a_handler_of_an_aggregate_what_a_repository_has_saved_is_published_with_the_rest() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Parcel:
        order_id: int
        sent: bool = False

        @staticmethod
        @command_handler("parcel.make")
        def make(order_id: int) -> "Parcel":
            return Parcel(order_id)

        @command_handler
        async def send(self, command: Ship, orders: Repository[Order]) -> None:
            order = await orders.get(command.order_id)
            order.status = "sent"
            record(order, "order changed")
            await orders.save(order)
            self.sent = True
            record(self, "parcel sent")

    seen: list[tuple[str, str, bool]] = []

    @event_handler
    async def look(event: str, orders: Repository[Order], parcels: Repository[Parcel]) -> None:
        seen.append((event, (await orders.get(7)).status, (await parcels.get(7)).sent))

    async with flow_test([Placing, Parcel, look]) as flow:
        await flow.send(7, to="order.put")
        await flow.send(7, to="parcel.make")
        await flow.send(Ship(7))

    assert seen == [("order changed", "sent", True), ("parcel sent", "sent", True)]


class Placing:
    @command_handler("order.put")
    async def put(self, order_id: int, orders: Repository[Order]) -> None:
        await orders.save(Order(order_id))


async def test_a_repository_can_be_asked_for_by_a_dependency() -> None:
    class Shelf:
        def __init__(self, orders: Annotated[Repository[Order], None]) -> None:
            self.orders = orders

    async def get_order(order_id: int, orders: Repository[Order]) -> Order | None:
        return await orders.find(order_id)

    published: list[int] = []

    @command_handler("put")
    async def put(order_id: int, shelf: Annotated[Shelf, Depends()]) -> None:
        order = Order(order_id)
        record(order, Placed(order_id))
        await shelf.orders.save(order)
        assert published == []

    @event_handler
    async def hear(event: Placed) -> None:
        published.append(event.order_id)

    async with flow_test([put, hear]) as flow:
        await flow.send(7, to="put")

    assert published == [7]


# ------------------------------------------------------------------------------------------------------------- fetched


@pytest.mark.parametrize(
    ("marker", "payload", "headers"),
    [
        pytest.param(Fetched(), {"order_id": 7}, {}, id="under its own name"),
        pytest.param(Fetched, {"order_id": "7"}, {}, id="the class as marker"),
        pytest.param(Fetched(by="number"), {"number": 7}, {}, id="attribute"),
        pytest.param(Fetched(by=MessageHeader("order")), {}, {"order": "7"}, id="header"),
        pytest.param(Fetched(by=lambda payload: payload["a"]["b"]), {"a": {"b": 7}}, {}, id="function"),
        pytest.param(Fetched(), {"order_id": 7}, {"aggregate.id": "8"}, id="whatever the message is for"),
    ],
)
async def test_an_aggregate_is_fetched(marker: Any, payload: dict[str, Any], headers: dict[str, str]) -> None:
    @query_handler("fetch")
    async def fetch(query: dict[str, Any], order: Annotated[Order, marker]) -> tuple[int, str]:
        return order.order_id, order.status

    async with flow_test([Orders, fetch]) as flow:
        await flow.send(7, to="order.place")

        assert await flow.ask(payload, to="fetch", headers=headers) == (7, "placed")


async def test_an_aggregate_that_is_missing_is_an_error_unless_it_may_be() -> None:
    @query_handler("must")
    async def must(order_id: int, order: Annotated[Order, Fetched()]) -> None: ...

    @query_handler("may")
    async def may(order_id: int | None, order: Annotated[Order | None, Fetched()]) -> bool:
        return order is None

    async with flow_test([must, may]) as flow:
        with pytest.raises(AggregateNotFoundError, match="there is no Order 7"):
            await flow.ask(7, to="must")
        assert await flow.ask(7, to="may") is True
        assert await flow.ask(None, to="may") is True


async def test_an_aggregate_is_fetched_before_the_payload_and_beside_the_one_whose_handler_it_is() -> None:
    @aggregate(identifier="parcel_id")
    @dataclass
    class Parcel:
        parcel_id: str
        content: str = ""

        @staticmethod
        @command_handler("parcel.make")
        def make(parcel_id: str) -> "Parcel":
            return Parcel(parcel_id)

        @command_handler("parcel.pack")
        def pack(self, order: Annotated[Order, Fetched(by="order")], command: dict[str, Any]) -> str:
            self.content = f"{command['parcel_id']}: {order.order_id} {order.status}"
            return self.content

    async with flow_test([Orders, Parcel]) as flow:
        await flow.send(7, to="order.place")
        await flow.send("p", to="parcel.make")

        assert await flow.send({"parcel_id": "p", "order": 7}, to="parcel.pack") == "p: 7 placed"


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("annotation", [Repository[Ship], Annotated[Ship, Fetched()], Repository[list[int]]])
async def test_a_repository_of_what_is_no_aggregate_is_found_at_start(annotation: Any) -> None:
    @command_handler("x")
    async def handler(command: dict[str, Any], thing: annotation) -> None: ...

    with pytest.raises(ConfigurationError, match=r"handler: 'thing': .* is no aggregate") as caught:
        async with flow_test([handler]):
            pass
    assert "@aggregate" in caught.value.hint


async def test_what_cannot_be_fetched_by_its_payload_is_found_at_start() -> None:
    @command_handler
    async def handler(command: Placed, invoice: Annotated[Invoice, Fetched()]) -> None: ...

    with pytest.raises(ConfigurationError, match="Placed does not tell the shop of Invoice") as caught:
        async with flow_test([handler]):
            pass
    assert "Fetched(by=…)" in caught.value.hint


async def test_a_repository_saves_aggregates_of_its_own_class_alone() -> None:
    @command_handler("mix")
    async def mix(order_id: int, orders: Repository[Order]) -> None:
        await orders.save(Invoice("north", order_id))  # type: ignore[arg-type]

    async with flow_test([mix]) as flow:
        with pytest.raises(AggregateError, match="a Invoice is no Order"):
            await flow.send(7, to="mix")


async def test_a_repository_works_in_handlers_alone() -> None:
    kept: list[Repository[Order]] = []

    @command_handler("keep")
    async def keep(number: int, orders: Repository[Order]) -> None:
        kept.append(orders)

    async with flow_test([keep]) as flow:
        await flow.send(7, to="keep")
        with pytest.raises(AggregateError, match="while a message is handled"):
            await kept[0].find(7)


# -------------------------------------------------------------------------------------------------- stores of one's own


@dataclass(frozen=True)
class Removed:
    order_id: int


@dataclass(frozen=True)
class Remove:
    order_id: int
    then: str = ""


@aggregate(identifier="order_id")
@dataclass
class Draft:
    order_id: int

    @classmethod
    @command_handler("draft.begin")
    def begin(cls, order_id: int) -> "Draft":
        return cls(order_id)

    @command_handler
    async def remove(self, command: Remove, drafts: Repository["Draft"]) -> str:
        record(self, Removed(self.order_id))
        await drafts.delete(self)
        if command.then == "fail":
            raise ValueError("after all")
        if command.then == "save":
            await drafts.save(self)
        if command.then == "anew":
            await drafts.save(Draft(self.order_id))
        record(self, "over")
        return "removed"

    @query_handler("draft.exists")
    def exists(self, order_id: int) -> bool:
        return True


@command_handler("draft.discard")
async def discard(order_id: int, drafts: Repository[Draft]) -> bool:
    draft = await drafts.find(order_id)
    assert draft is not None
    await drafts.delete(draft)
    await drafts.delete(draft)  # it is gone, and that is all that was wanted
    return await drafts.find(order_id) is None


async def test_a_handler_deletes_what_it_has_loaded() -> None:
    async with flow_test([Draft, discard]) as flow:
        await flow.send(7, to="draft.begin")
        await flow.send(8, to="draft.begin")

        assert await flow.send(7, to="draft.discard") is True

        with pytest.raises(AggregateNotFoundError, match="there is no Draft 7"):
            await flow.ask(7, to="draft.exists")
        assert await flow.ask(8, to="draft.exists")


async def test_an_aggregate_deletes_itself_and_what_it_has_recorded_is_published() -> None:
    async with flow_test([Draft]) as flow:
        await flow.send(7, to="draft.begin")
        assert await flow.send(Remove(7)) == "removed"

        assert flow.published == [Removed(7), "over"]
        with pytest.raises(AggregateNotFoundError):
            await flow.send(Remove(7))
        await flow.send(7, to="draft.begin")


async def test_a_handler_that_fails_has_deleted_nothing() -> None:
    async with flow_test([Draft]) as flow:
        await flow.send(7, to="draft.begin")
        with pytest.raises(ValueError, match="after all"):
            await flow.send(Remove(7, "fail"))

        assert await flow.ask(7, to="draft.exists")
        assert flow.published == []


async def test_what_was_deleted_is_not_saved_again_but_another_one_can_take_its_place() -> None:
    async with flow_test([Draft]) as flow:
        await flow.send(7, to="draft.begin")
        with pytest.raises(AggregateError, match="the Draft 7 was deleted in this unit of work"):
            await flow.send(Remove(7, "save"))

        assert await flow.send(Remove(7, "anew")) == "removed"
        assert await flow.ask(7, to="draft.exists")


async def test_what_a_failing_command_within_has_deleted_can_be_saved_by_who_goes_on() -> None:
    @command_handler("try")
    async def try_to_remove(order_id: int, drafts: Repository[Draft], commands: CommandBus) -> None:
        draft = await drafts.get(order_id)
        with pytest.raises(ValueError, match="after all"):
            await commands.send(Remove(order_id, "fail"))
        await drafts.save(draft)

    async with flow_test([Draft, try_to_remove]) as flow:
        await flow.send(7, to="draft.begin")
        await flow.send(7, to="try")

        assert await flow.ask(7, to="draft.exists")


async def test_only_what_was_loaded_here_is_deleted() -> None:
    @command_handler("order.remove")
    async def remove(order_id: int, orders: Repository[Order], drafts: Repository[Draft]) -> None:
        await (orders.delete(Order(order_id)) if order_id else drafts.delete(Order(7)))  # type: ignore[arg-type]

    async with flow_test([Orders, remove]) as flow:
        await flow.send(7, to="order.place")
        with pytest.raises(AggregateError, match="a Order cannot be deleted that was neither loaded nor saved"):
            await flow.send(7, to="order.remove")
        with pytest.raises(AggregateError, match="a Order is no Draft"):
            await flow.send(0, to="order.remove")


class Shelves:
    """A store of the user's: a dict, without versions."""

    def __init__(self, *classes: type) -> None:
        self.classes = classes
        self.kept: dict[str, dict[str, Any]] = {}

    def serves(self, cls: type) -> bool:
        return cls in self.classes

    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        found = self.kept.get(f"{cls.__name__} {identifier}")
        return None if found is None else Versioned(cls(**found), 1)

    async def save(
        self,
        cls: type[Any],
        identifier: Identifier | None,
        state: Any,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        self.kept[f"{cls.__name__} {identifier}"] = dict(vars(state))
        return Saved(expected + 1, events)


async def test_a_store_of_the_users_has_the_classes_that_it_serves() -> None:
    shelves: AggregateStore = Shelves(Order)
    async with flow_test([Orders], plugins=[Aggregates(stores=[shelves])]) as flow:
        await flow.send(7, to="order.place")
        await flow.send({"shop": "north", "number": 7}, to="invoice.pay")

        assert await flow.ask(7, to="order.status") == "placed"
    assert isinstance(shelves, Shelves)
    assert list(shelves.kept) == ["Order 7"]


async def test_a_store_of_the_users_that_does_not_delete_says_so() -> None:
    @command_handler("order.remove")
    async def remove(order_id: int, orders: Repository[Order]) -> None:
        await orders.delete(await orders.get(order_id))

    async with flow_test([Orders, remove], plugins=[Aggregates(stores=[Shelves(Order)])]) as flow:
        await flow.send(7, to="order.place")
        with pytest.raises(
            AggregateError, match="Shelves, which keeps the aggregates of Order, deletes none"
        ) as caught:
            await flow.send(7, to="order.remove")

    assert "DeletesAggregates" in caught.value.hint


class KeepingPlugin:
    """A plugin with stores of its own."""

    def __init__(self, *stores: AggregateStore) -> None:
        self.aggregate_stores = stores

    def install(self, assembly: object) -> None: ...


async def test_stores_come_with_plugins_and_as_a_service_too() -> None:
    of_plugin, of_service = Shelves(Order, Invoice), Shelves(Invoice)
    async with flow_test([Orders], plugins=[KeepingPlugin(of_plugin)], services={AggregateStore: of_service}) as flow:
        await flow.send(7, to="order.place")
        await flow.send({"shop": "north", "number": 7}, to="invoice.pay")

    assert list(of_plugin.kept) == ["Order 7"]
    assert list(of_service.kept) == ["Invoice north/7"]
