"""Flow tests of aggregates and streams: what was before, and what is now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ecotone_fastapi import (
    AggregateNotFoundError,
    ConfigurationError,
    EventSourcing,
    Message,
    aggregate,
    applies,
    command_handler,
    event_handler,
    event_sourced,
    message_name,
    record,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import Flow, flow_test


@message_name("basket.opened")
@dataclass(frozen=True)
class Opened:
    basket_id: int


@message_name("basket.added")
@dataclass(frozen=True)
class Added:
    basket_id: int
    sku: str


@dataclass(frozen=True)
class Add:
    basket_id: int
    sku: str


@event_sourced(identifier="basket_id", stream="basket")
@dataclass
class Basket:
    basket_id: int
    items: list[str] = field(default_factory=list)

    @command_handler
    def add(self, command: Add) -> list[Added]:
        return [] if command.sku in self.items else [Added(self.basket_id, command.sku)]

    @applies
    def opened(self, event: Opened) -> None:
        self.basket_id = event.basket_id

    @applies
    def added(self, event: Added) -> None:
        self.items.append(event.sku)


@aggregate(identifier="order_id")
@dataclass
class Order:
    order_id: str
    status: str = "new"

    @command_handler("order.pay")
    def pay(self) -> None:
        self.status = "paid"


heard: list[Any] = []


@event_handler
def hear(event: Opened | Added) -> None:
    heard.append(event)


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
async def flow(url: str | None) -> AsyncIterator[Flow]:
    heard.clear()
    plugins = [] if url is None else [SqlAlchemy(url, create_schema=True)]
    async with flow_test([Basket, Order, hear], plugins=plugins) as flow:
        yield flow


async def test_what_is_given_is_the_past_of_an_aggregate_and_is_not_published(flow: Flow) -> None:
    await flow.given("basket-7", [Opened(7)])
    await flow.given((Basket, "7"), [Message(Added(7, "apple"), {"tenant": "acme"})])

    await flow.send(Add(7, "apple"))
    await flow.send(Add(7, "pear"))

    assert await flow.stream("basket-7") == [Opened(7), Added(7, "apple"), Added(7, "pear")]
    assert await flow.stream((Basket, 7)) == await flow.stream("basket-7")
    assert flow.published == heard == [Added(7, "pear")]


async def test_a_stream_that_nothing_was_appended_to_is_empty(flow: Flow) -> None:
    assert await flow.stream("basket-7") == []


async def test_the_state_of_an_event_sourced_aggregate(flow: Flow) -> None:
    await flow.given("basket-7", [Opened(7), Added(7, "apple")])

    assert await flow.state(Basket, 7) == await flow.state(Basket, "7") == Basket(7, ["apple"])
    with pytest.raises(AggregateNotFoundError, match="there is no Basket 8"):
        await flow.state(Basket, 8)


async def test_the_state_of_a_state_stored_aggregate_is_given_and_seen(flow: Flow) -> None:
    order = Order("1")
    record(order, Opened(1))
    await flow.given_state(order)
    assert await flow.state(Order, "1") == Order("1", "new")

    await flow.send(to="order.pay", headers={"aggregate.id": "1"})

    assert await flow.state(Order, "1") == Order("1", "paid")
    assert flow.published == heard == []
    with pytest.raises(AggregateNotFoundError):
        await flow.state(Order, "2")


async def test_each_kind_has_its_own_past(flow: Flow) -> None:
    with pytest.raises(ConfigurationError, match=r"flow\.given\(\(Basket, identifier\), \[\.\.\.\]\)"):
        await flow.given_state(Basket(7))
    with pytest.raises(ConfigurationError, match="a Order '1' has no stream"):
        await flow.given((Order, "1"), [Opened(7)])
    with pytest.raises(ConfigurationError, match="is no aggregate"):
        await flow.state(Opened, 7)


async def test_events_of_a_stream_that_is_no_aggregate() -> None:
    async with flow_test([Order], plugins=[EventSourcing(events=[Opened])]) as flow:
        await flow.given("audit", [Opened(1)])

        assert await flow.stream("audit") == [Opened(1)]
