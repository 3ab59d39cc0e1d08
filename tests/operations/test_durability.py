"""Settings that lose messages are told, and those that do not are not."""

from dataclasses import dataclass

import pytest

from ecotone_fastapi import (
    Ecotone,
    aggregate,
    applies,
    asynchronous,
    command_handler,
    deduplicated,
    event_handler,
    event_sourced,
    projection,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.examination import Level
from ecotone_fastapi.operations.durability import examine_durability


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@asynchronous("orders")
@command_handler(id="place-order")
async def place_order(command: PlaceOrder) -> None: ...


@event_sourced(identifier="order_id", stream="order")
class Order:
    order_id = ""

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> OrderWasPlaced:
        return OrderWasPlaced(command.order_id)

    @applies
    def placed(self, event: OrderWasPlaced) -> None:
        self.order_id = event.order_id


@aggregate(identifier="order_id")
@dataclass
class StoredOrder:
    order_id: str

    @classmethod
    @command_handler
    def place(cls, command: PlaceOrder) -> "StoredOrder":
        return cls(command.order_id)


@projection("orders", categories=["order"])
class Orders:
    @event_handler
    async def placed(self, event: OrderWasPlaced) -> None: ...


@deduplicated
@command_handler
async def place_once(command: PlaceOrder) -> None: ...


@pytest.fixture
def database(sqlite_url: str) -> SqlAlchemy:
    return SqlAlchemy(sqlite_url)


def warned(ecotone: Ecotone) -> dict[str, str]:
    found = list(examine_durability(ecotone.assembly))
    assert {one.level for one in found} <= {Level.WARNING} or [one.level for one in found] == [Level.OK]
    assert all(one.hint for one in found if one.level is Level.WARNING)
    return {one.where: one.what for one in found if one.level is Level.WARNING}


def test_a_channel_and_a_dead_letter_in_memory_are_told_with_the_handlers_that_they_concern() -> None:
    told = warned(Ecotone([place_order], channels=[MemoryChannel("orders")]))

    assert list(told) == ["channel orders", "dead letter"]
    assert "what waits for place_order is lost" in told["channel orders"]
    assert "messages that were given up are lost" in told["dead letter"]


def test_a_database_keeps_what_was_given_up_though_not_what_waits_in_memory(database: SqlAlchemy) -> None:
    told = warned(Ecotone([place_order], channels=[MemoryChannel("orders")], plugins=[database]))

    assert list(told) == ["channel orders"]


def test_a_channel_in_memory_that_no_handler_uses_loses_nothing() -> None:
    assert warned(Ecotone([], channels=[MemoryChannel("orders")])) == {}


def test_a_channel_in_a_database_loses_nothing(database: SqlAlchemy) -> None:
    assert warned(Ecotone([place_order], channels=[database.channel("orders")], plugins=[database])) == {}


def test_messages_that_are_sent_before_the_commit_are_told(database: SqlAlchemy) -> None:
    told = warned(Ecotone([place_order], channels=[RabbitMQChannel("orders", delivery="direct")], plugins=[database]))

    assert list(told) == ["channel orders"]
    assert "although the commit that follows it fails" in told["channel orders"]
    assert warned(Ecotone([place_order], channels=[RabbitMQChannel("orders")], plugins=[database])) == {}


def test_events_and_aggregates_in_memory_are_told(database: SqlAlchemy) -> None:
    assert warned(Ecotone([Order, Orders])) == {
        "event store": "is in memory: the events of Order and orders are lost when the process ends"
    }
    assert warned(Ecotone([StoredOrder])) == {
        "aggregates": "are kept in memory: every StoredOrder is lost when the process ends"
    }
    assert warned(Ecotone([Order, Orders], plugins=[database])) == {}
    assert warned(Ecotone([StoredOrder], plugins=[database])) == {}


def test_a_memory_of_handled_messages_that_ends_with_the_process_is_told(database: SqlAlchemy) -> None:
    assert list(warned(Ecotone([place_once]))) == ["deduplication"]
    assert warned(Ecotone([place_once], plugins=[database])) == {}


def test_nothing_is_told_where_nothing_has_to_last() -> None:
    @query_handler("greet")
    async def greet(name: str) -> str:
        return name

    (finding,) = examine_durability(Ecotone([greet]).assembly)

    assert finding.level is Level.OK
