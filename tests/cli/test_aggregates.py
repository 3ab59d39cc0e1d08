"""`ecotone list` and `ecotone explain` tell how aggregates come to their handlers."""

import json

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def orders(project: Project) -> Project:
    project.write(
        "orders.py",
        """
        from dataclasses import dataclass
        from typing import Annotated

        from ecotone_fastapi import (
            Ecotone, Fetched, MessageHeader, Repository, aggregate, asynchronous, command_handler, identified
        )
        from ecotone_fastapi.adapters.memory import MemoryChannel


        @dataclass(frozen=True)
        class PutInto:
            basket_id: str


        @dataclass(frozen=True)
        class CancelOrder:
            order: str


        @aggregate(identifier="basket_id")
        @dataclass
        class Basket:
            basket_id: str

            @classmethod
            @command_handler
            def begin(cls, command: PutInto) -> "Basket":
                return cls(command.basket_id)

            @command_handler
            def put(self, command: PutInto) -> None: ...

            @asynchronous("baskets")
            @identified(by=MessageHeader("basket"))
            @command_handler("basket.empty", id="empty")
            def empty(self) -> None: ...


        class Service:
            def __init__(self, baskets: Repository[Basket]) -> None: ...

            @command_handler("basket.count")
            async def count(self, basket_id: str, basket: Annotated[Basket, Fetched()]) -> None: ...


        ecotone = Ecotone([Basket, Service], channels=[MemoryChannel("baskets")])
        """,
    )
    return project


def explained(project: Project, name: str) -> str:
    result = project.ecotone("explain", "orders:ecotone", name)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def test_the_aggregate_of_a_method_is_told_with_where_it_comes_from_and_what_is_done_when_there_is_none(
    orders: Project,
) -> None:
    said = explained(orders, "Basket.put")

    assert "700 STATE          Aggregates.act" in said
    assert (
        "self: Basket, loaded from MemoryAggregates by the header 'aggregate.id', else basket_id of PutInto; "
        "if there is none, made by Basket.begin\n"
    ) in said
    said = explained(orders, "empty")
    assert "self: Basket, loaded from MemoryAggregates by the header 'aggregate.id', else the header 'basket'\n" in said
    assert "149 TRACING+49     Aggregates.find_out" in said


def test_a_factory_behind_a_method_is_told_as_what_it_is(orders: Project) -> None:
    said = explained(orders, "Basket.begin")

    assert said.startswith("Basket.begin  handles the command PutInto\n")
    assert "1. HANDLE    Basket.begin, when Basket.put finds none, within all that stands around that one" in said
    assert "2. CALL      Basket.begin, def, on the event loop" in said


def test_repositories_and_fetched_aggregates_are_told_among_what_is_injected(orders: Project) -> None:
    said = explained(orders, "Service.count")

    assert "baskets: Repository[Basket], what is kept in MemoryAggregates\n" in said
    assert "basket: Basket, loaded from MemoryAggregates by the payload, once per message\n" in said
    assert "Aggregates.publish_saved" in said


def test_handlers_of_aggregates_are_listed_by_what_they_handle(orders: Project) -> None:
    lines = [" ".join(line.split()) for line in orders.ecotone("list", "orders:ecotone").stdout.splitlines()]

    assert any(
        one.startswith("command PutInto Basket.begin, when Basket.put finds none orders.Basket.put:or") for one in lines
    )
    assert "command PutInto Basket.put orders.Basket.put -" in lines
    handlers = json.loads(orders.ecotone("list", "orders:ecotone", "--json").stdout)["handlers"]
    [begin] = [one for one in handlers if one["label"] == "Basket.begin"]
    assert (begin["kind"], begin["route"], begin["payload"], begin["instead_of"]) == (
        "command", None, "PutInto", "Basket.put"
    )  # fmt: skip
