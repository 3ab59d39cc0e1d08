"""The flow of messages as nodes and edges: only what is declared, all of it, and always the same."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import (
    Ecotone,
    EventBus,
    Fetched,
    Message,
    ProjectionState,
    Repository,
    Snapshots,
    aggregate,
    applies,
    asynchronous,
    command_handler,
    event_handler,
    event_sourced,
    internal_handler,
    message_name,
    projection,
    query_handler,
    record,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.plugin import Plugin
from ecotone_fastapi.operations.diagram import Diagram, NodeKind, diagram_of


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class CancelOrder:
    order_id: str


@dataclass(frozen=True)
class Happened:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced(Happened):
    pass


@message_name("order.was_cancelled")
@dataclass(frozen=True)
class OrderWasCancelled(Happened):
    pass


@dataclass(frozen=True)
class OrderWasForgotten(Happened):
    pass


@command_handler
async def place_order(command: PlaceOrder, events: EventBus) -> None:
    await events.publish(OrderWasPlaced(command.order_id))


@asynchronous("mails")
@event_handler(id="mail")
async def send_mail(event: OrderWasPlaced | OrderWasCancelled) -> None: ...


@event_sourced(identifier="order_id", stream="order")
class Order:
    order_id = ""

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> OrderWasPlaced:
        return OrderWasPlaced(command.order_id)

    @command_handler
    def cancel(self, command: CancelOrder) -> "list[Message[OrderWasCancelled]] | None":
        return [Message(OrderWasCancelled(command.order_id), {})]

    @query_handler("order.status")
    def status(self, order_id: str) -> str:
        return "placed"

    @applies
    def placed(self, event: OrderWasPlaced) -> None:
        self.order_id = event.order_id

    @applies
    def cancelled(self, event: OrderWasCancelled) -> None:
        self.order_id = event.order_id

    @applies
    def forgotten(self, event: OrderWasForgotten) -> None:
        self.order_id = event.order_id


def drawn(*handlers: object, channels: Iterable[Channel] = (), plugins: Iterable[Plugin] = ()) -> Diagram:
    return diagram_of(Ecotone(handlers, channels=channels, plugins=plugins).assembly)


def nodes(diagram: Diagram, kind: NodeKind) -> list[str]:
    return [node.label for node in diagram.nodes if node.kind is kind]


def edges(diagram: Diagram) -> list[str]:
    """The edges as people would say them, with the labels of their ends."""
    labels = {node.id: node.label for node in diagram.nodes}
    return [
        f"{labels[one.source]} {one.kind} {labels[one.target]}" + (f" ({one.label})" if one.label else "")
        for one in diagram.edges
    ]


def test_a_message_leads_to_its_handler() -> None:
    diagram = drawn(place_order)

    assert [(node.id, node.kind, node.label) for node in diagram.nodes] == [
        (f"command:{__name__}.PlaceOrder", "command", "PlaceOrder"),
        (f"handler:{__name__}.place_order", "handler", "place_order"),
    ]
    assert edges(diagram) == ["PlaceOrder routes place_order"]


def test_what_a_handler_sends_in_its_body_is_not_guessed() -> None:
    assert nodes(drawn(place_order), NodeKind.EVENT) == []


def test_the_way_through_a_channel_tells_which_messages_take_it() -> None:
    @asynchronous("mails")
    @event_handler(id="count")
    async def count(event: OrderWasPlaced) -> None: ...

    diagram = drawn(send_mail, count, channels=[MemoryChannel("mails")])

    assert edges(diagram) == [
        "OrderWasCancelled routes mails",
        "OrderWasPlaced routes mails",
        "mails delivers count (OrderWasPlaced)",
        "mails delivers send_mail (OrderWasCancelled, OrderWasPlaced)",
    ]
    assert "MemoryChannel (delay, ordered" in next(one.detail for one in diagram.nodes if one.id == "channel:mails")


def test_several_channels_come_one_after_the_other() -> None:
    @asynchronous("first", "second")
    @command_handler(id="slow")
    async def slow(command: PlaceOrder) -> None: ...

    diagram = drawn(slow, channels=[MemoryChannel("second"), MemoryChannel("first")])

    assert edges(diagram) == [
        "PlaceOrder routes first",
        "first delivers second (PlaceOrder)",
        "second delivers slow (PlaceOrder)",
    ]


def test_an_outbox_stands_in_front_of_its_broker(tmp_path: Path) -> None:
    database = SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")

    diagram = drawn(send_mail, channels=[RabbitMQChannel("mails")], plugins=[database])

    assert "OrderWasPlaced routes outbox/mails" in edges(diagram)
    assert "outbox/mails delivers mails (OrderWasCancelled, OrderWasPlaced)" in edges(diagram)
    assert "mails delivers send_mail (OrderWasCancelled, OrderWasPlaced)" in edges(diagram)
    assert {node.detail.partition(" ")[0] for node in diagram.nodes if node.kind is NodeKind.CHANNEL} == {
        "RabbitMQChannel", "SqlChannel"
    }  # fmt: skip


def test_a_query_stays_synchronous_on_a_class_that_is_asynchronous() -> None:
    @asynchronous("mails")
    class Orders:
        @command_handler
        async def place(self, command: PlaceOrder) -> None: ...

        @query_handler("order.status")
        async def status(self, order_id: str) -> str:
            return ""

    assert edges(drawn(Orders, channels=[MemoryChannel("mails")])) == [
        "PlaceOrder routes mails",
        "order.status routes Orders.status",
        "mails delivers Orders.place (PlaceOrder)",
    ]


def test_an_event_reaches_handlers_of_its_bases_and_of_globs() -> None:
    @event_handler
    async def every(event: Happened) -> None: ...

    @event_handler("order.*")
    async def glob(event: dict[str, Any]) -> None: ...

    @event_handler("order.was_shipped")
    async def shipped(event: dict[str, Any]) -> None: ...

    @event_handler
    async def cancelled(event: OrderWasCancelled) -> None: ...

    assert edges(drawn(every, glob, shipped, cancelled)) == [
        "Happened routes every",
        "OrderWasCancelled routes cancelled",
        "OrderWasCancelled routes every",
        "OrderWasCancelled routes glob",
        "order.* routes glob",
        "order.was_shipped routes glob",
        "order.was_shipped routes shipped",
    ]


def test_a_key_and_the_class_with_this_name_are_one_message() -> None:
    @event_handler("order.was_cancelled")
    async def by_key(event: dict[str, Any]) -> None: ...

    @event_handler
    async def by_type(event: OrderWasCancelled) -> None: ...

    for order in ((by_key, by_type), (by_type, by_key)):
        assert edges(drawn(*order)) == ["OrderWasCancelled routes by_key", "OrderWasCancelled routes by_type"]


def test_handlers_of_an_aggregate_change_it_and_say_what_they_publish() -> None:
    assert edges(drawn(Order)) == [
        "CancelOrder routes Order.cancel",
        "PlaceOrder routes Order.place",
        "order.status routes Order.status",
        "Order.cancel publishes OrderWasCancelled",
        "Order.cancel changes Order",
        "Order.place publishes OrderWasPlaced",
        "Order.place makes Order",
        "Order.status reads Order",
        "Order records OrderWasForgotten",
    ]


def test_a_factory_beside_a_method_says_when_it_is_called() -> None:
    @event_sourced(identifier="order_id", stream="order")
    class Order:
        order_id = ""

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> OrderWasPlaced:
            return OrderWasPlaced(command.order_id)

        @command_handler
        def place_again(self, command: PlaceOrder) -> None: ...

        @applies
        def placed(self, event: OrderWasPlaced) -> None:
            self.order_id = event.order_id

    assert edges(drawn(Order))[:2] == [
        "PlaceOrder routes Order.place (when Order.place_again finds none)",
        "PlaceOrder routes Order.place_again",
    ]


def test_answers_of_an_aggregate_that_records_are_no_events() -> None:
    @dataclass(frozen=True)
    class Receipt:
        number: int

    @event_sourced(identifier="order_id", stream="order", recording=True)
    class Order:
        order_id = ""

        @command_handler
        def cancel(self, command: CancelOrder) -> Receipt:
            record(self, OrderWasCancelled(command.order_id))
            return Receipt(1)

        @applies
        def cancelled(self, event: OrderWasCancelled) -> None:
            self.order_id = event.order_id

    diagram = drawn(Order)

    assert nodes(diagram, NodeKind.EVENT) == ["OrderWasCancelled"]
    assert "Order records OrderWasCancelled" in edges(diagram)


def test_answers_of_an_aggregate_whose_state_is_stored_are_no_events() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Order:
        order_id: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Order":
            return cls(command.order_id)

        @command_handler
        def cancel(self, command: CancelOrder) -> OrderWasCancelled:
            return OrderWasCancelled(self.order_id)

    diagram = drawn(Order)

    assert nodes(diagram, NodeKind.EVENT) == []
    assert [one for one in edges(diagram) if " Order" in one and "routes" not in one] == [
        "Order.cancel changes Order",
        "Order.place makes Order",
    ]


def test_an_annotation_that_only_a_type_checker_reads_tells_nothing() -> None:
    def annotated(function: Any) -> Any:
        function.__annotations__["return"] = "NowhereToBeFound"
        return function

    @event_sourced(identifier="order_id", stream="order")
    class Order:
        order_id = ""

        @command_handler
        @annotated
        def cancel(self, command: CancelOrder) -> Any:
            return OrderWasCancelled(command.order_id)

        @applies
        def cancelled(self, event: OrderWasCancelled) -> None:
            self.order_id = event.order_id

    assert "Order records OrderWasCancelled" in edges(drawn(Order))


def test_a_projection_is_updated_by_the_events_of_its_aggregates_alone() -> None:
    @dataclass(frozen=True)
    class Elsewhere(Happened):
        pass

    @event_handler
    async def elsewhere(event: Elsewhere) -> None: ...

    @projection("orders", of=Order, partitioned=True)
    class Orders:
        @event_handler
        async def every(self, event: Happened, count: Annotated[int, ProjectionState(0)]) -> int:
            return count + 1

        @event_handler("order.was_*")
        async def by_name(self, event: OrderWasCancelled) -> None: ...

        @query_handler("orders.all")
        async def all(self, wanted: str) -> int:
            return 0

        @projection.reset
        async def clear(self) -> None: ...

    diagram = drawn(Order, Orders, elsewhere)

    assert [one for one in edges(diagram) if "Orders" in one] == [
        "orders.all routes Orders.all",
        "Happened routes Orders.every",
        "OrderWasCancelled routes Orders.by_name",
        "OrderWasCancelled routes Orders.every",
        "OrderWasForgotten routes Orders.every",
        "OrderWasPlaced routes Orders.every",
        "order.was_* routes Orders.by_name",
        "Orders.all reads orders",
        "Orders.by_name updates orders",
        "Orders.every updates orders",
    ]
    (node,) = [one for one in diagram.nodes if one.kind is NodeKind.PROJECTION]
    assert (node.id, node.detail) == ("projection:orders", "asynchronous, partitioned")
    assert "internal" not in {node.kind for node in diagram.nodes}


def test_a_projection_of_categories_reads_the_aggregates_with_that_stream() -> None:
    @projection("orders", categories=["order"], mode="synchronous")
    class Orders:
        @event_handler
        async def every(self, event: Happened) -> None: ...

    @projection("wallets", categories=["wallet"])
    class Wallets:
        @event_handler
        async def every(self, event: Happened) -> None: ...

    found = edges(drawn(Order, Orders, Wallets))

    assert "OrderWasPlaced routes Orders.every" in found
    assert [one for one in found if "routes Wallets.every" in one] == ["Happened routes Wallets.every"]


def test_internal_steps_and_snapshots_in_the_background_are_part_of_the_flow() -> None:
    @internal_handler("order.verify")
    async def verify(order_id: str) -> None: ...

    @event_sourced(identifier="order_id", stream="order", snapshots=Snapshots(every=2, background="snapshots"))
    @dataclass
    class Order:
        order_id: str = ""

        @command_handler
        def cancel(self, command: CancelOrder) -> OrderWasCancelled:
            return OrderWasCancelled(self.order_id)

        @applies
        def cancelled(self, event: OrderWasCancelled) -> None:
            self.order_id = event.order_id

    diagram = drawn(verify, Order, channels=[MemoryChannel("snapshots")])

    assert nodes(diagram, NodeKind.INTERNAL) == ["ecotone.snapshots/snapshots", "order.verify"]
    assert "order.verify routes verify" in edges(diagram)
    assert "ecotone.snapshots/snapshots routes snapshots" in edges(diagram)


def test_two_classes_with_one_name_are_told_apart() -> None:
    def other() -> Callable[..., Any]:
        @dataclass(frozen=True)
        class PlaceOrder:
            order_id: str

        @command_handler
        async def place_other(command: PlaceOrder) -> None: ...

        return place_other

    labels = nodes(drawn(place_order, other()), NodeKind.COMMAND)

    assert len(set(labels)) == 2
    assert f"{__name__}.PlaceOrder" in labels


def test_the_diagram_does_not_depend_on_the_order_of_handlers() -> None:
    @projection("orders", of=Order)
    class Orders:
        @event_handler
        async def every(self, event: Happened, session: AsyncSession | None = None) -> None: ...

    handlers = [Order, Orders, send_mail]
    first = drawn(*handlers, channels=[MemoryChannel("mails"), MemoryChannel("unused")])

    assert first.edges
    assert drawn(*reversed(handlers), channels=[MemoryChannel("mails")]) == first


def test_every_edge_leads_from_a_node_to_a_node() -> None:
    diagram = drawn(Order, send_mail, channels=[MemoryChannel("mails")])
    known = {node.id for node in diagram.nodes}

    assert len(known) == len(diagram.nodes)
    assert {end for one in diagram.edges for end in (one.source, one.target)} == known


def test_an_application_without_handlers_has_an_empty_diagram() -> None:
    assert drawn() == Diagram((), ())


def test_aggregates_that_a_handler_asks_for_are_part_of_the_flow() -> None:
    @command_handler("order.copy")
    async def copy(
        order_id: str, orders: Repository[Order], order: Annotated[Order | None, Fetched(by="order_id")]
    ) -> None: ...

    assert "copy reads Order" in edges(drawn(copy, Order))
    assert "copy uses Order" in edges(drawn(copy, Order))


def test_an_aggregate_without_handlers_still_records_events() -> None:
    @event_sourced(identifier="order_id", stream="order", recording=True)
    class Plain:
        order_id = ""

        @applies
        def placed(self, event: OrderWasPlaced) -> None:
            self.order_id = event.order_id

    @command_handler("order.place")
    async def place(order_id: str, orders: Repository[Plain]) -> None: ...

    assert edges(drawn(place)) == ["order.place routes place", "place uses Plain", "Plain records OrderWasPlaced"]
