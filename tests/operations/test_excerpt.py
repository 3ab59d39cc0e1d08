"""A part of a diagram has what leads to some nodes and what comes of them, and nothing else."""

import pytest

from ecotone_fastapi import ConfigurationError
from ecotone_fastapi.operations.diagram import Diagram, Edge, EdgeKind, Node, NodeKind
from ecotone_fastapi.operations.excerpt import excerpt

NODES = {
    "command:shop.PlaceOrder": "PlaceOrder",
    "command:shop.Pay": "Pay",
    "event:shop.OrderWasPlaced": "OrderWasPlaced",
    "event:shop.WasPaid": "WasPaid",
    "channel:mails": "mails",
    "handler:shop.Order.place": "Order.place",
    "handler:shop.Bill.pay": "Bill.pay",
    "handler:shop.Mail.send": "Mail.send",
}
WAYS = [
    ("command:shop.PlaceOrder", "handler:shop.Order.place"),
    ("handler:shop.Order.place", "event:shop.OrderWasPlaced"),
    ("command:shop.Pay", "handler:shop.Bill.pay"),
    ("handler:shop.Bill.pay", "event:shop.WasPaid"),
    ("event:shop.OrderWasPlaced", "channel:mails"),
    ("event:shop.WasPaid", "channel:mails"),
    ("channel:mails", "handler:shop.Mail.send"),
    # Round and round: what was mailed may place another order.
    ("handler:shop.Mail.send", "command:shop.PlaceOrder"),
]


def whole(*without: tuple[str, str]) -> Diagram:
    nodes = tuple(Node(id_, NodeKind(id_.partition(":")[0]), label, "") for id_, label in NODES.items())
    return Diagram(nodes, tuple(Edge(*way, EdgeKind.ROUTES) for way in WAYS if way not in without))


def labels(diagram: Diagram) -> list[str]:
    return [node.label for node in diagram.nodes]


def test_what_leads_to_a_node_and_what_comes_of_it_is_kept() -> None:
    part = excerpt(whole(WAYS[-1]), ["OrderWasPlaced"])

    assert labels(part) == ["PlaceOrder", "OrderWasPlaced", "mails", "Order.place", "Mail.send"]
    assert [(one.source, one.target) for one in part.edges] == [WAYS[0], WAYS[1], WAYS[4], WAYS[6]]


def test_a_circle_ends() -> None:
    assert labels(excerpt(whole(), ["WasPaid"])) == [
        "PlaceOrder", "Pay", "OrderWasPlaced", "WasPaid", "mails", "Order.place", "Bill.pay", "Mail.send"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Bill.pay", "handler:shop.Bill.pay", "shop.Bill.pay", "pay"])
def test_a_node_is_called_by_its_label_its_id_or_the_end_of_either(name: str) -> None:
    assert labels(excerpt(whole(WAYS[-1]), [name])) == ["Pay", "WasPaid", "mails", "Bill.pay", "Mail.send"]


def test_several_nodes_are_drawn_together() -> None:
    assert len(excerpt(whole(WAYS[-1]), ["Pay", "PlaceOrder"]).nodes) == len(NODES)


def test_a_name_that_nothing_has_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no node 'nothing'; known are:\n  PlaceOrder"):
        excerpt(whole(), ["nothing"])
