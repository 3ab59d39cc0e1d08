"""What earlier versions have written to tables can still be read, and what is written today is what they wrote.

A file here is never changed. When the form of a row grows, a folder for the new version gets another one.
"""

import enum
import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from ecotone_fastapi import Repository, aggregate, command_handler, message_name, query_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import flow_test

ROWS = {
    row["type"]: row
    for row in json.loads((Path(__file__).parent / "0.1" / "rows" / "ecotone_aggregate.json").read_text("utf-8"))
}


class Status(enum.Enum):
    PLACED = "placed"


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str


class Address(BaseModel):
    city: str
    since: date


@message_name("golden.order")
@aggregate(identifier=("shop", "number"))
@dataclass
class Order:
    shop: str
    number: int
    placed_at: datetime
    status: Status
    address: Address | None
    prices: dict[str, Money]
    took: timedelta
    customer: UUID
    tags: set[str] = field(default_factory=set)
    ratio: float = float("inf")
    note: str | None = None


@message_name("golden.model")
@aggregate(identifier="name")
class Model(BaseModel):
    name: str
    total: Decimal


@message_name("golden.plain")
@aggregate(identifier="name")
class Plain:
    prices: list[Money]

    def __init__(self, name: str, prices: list[Money]) -> None:
        self.name = name
        self.prices = prices
        self.count = len(prices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


AGGREGATES: dict[str, Any] = {
    "golden.order": Order(
        "Łódź/1",
        7,
        datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC),
        Status.PLACED,
        Address(city="Łódź", since=date(2026, 1, 31)),
        {"milk": Money(Decimal("1.50"), "EUR")},
        timedelta(days=1, seconds=2),
        UUID(int=7),
        {"a"},
    ),
    "golden.model": Model(name="m", total=Decimal("12.30")),
    "golden.plain": Plain("p", [Money(Decimal(1), "PLN")]),
}


class Golden:
    @query_handler("golden.find")
    async def find(
        self, name: str, orders: Repository[Order], models: Repository[Model], plain: Repository[Plain]
    ) -> Any:
        repository, identifier = {
            "golden.order": (orders, {"shop": "Łódź/1", "number": 7}),
            "golden.model": (models, "m"),
            "golden.plain": (plain, "p"),
        }[name]
        return await repository.get(identifier)

    @command_handler("golden.save")
    async def save(
        self, name: str, orders: Repository[Order], models: Repository[Model], plain: Repository[Plain]
    ) -> None:
        repository: Any = {"golden.order": orders, "golden.model": models, "golden.plain": plain}[name]
        await repository.save(AGGREGATES[name])


def test_every_golden_row_is_read_by_a_test() -> None:
    assert ROWS.keys() == AGGREGATES.keys()


@pytest.mark.parametrize("name", AGGREGATES)
async def test_an_aggregate_of_an_earlier_version_is_still_read(name: str, sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with flow_test([Golden], plugins=[database]) as flow:
        async with database.engine.begin() as connection:
            await connection.execute(
                text(
                    "INSERT INTO ecotone_aggregate (type, identifier, version, body, updated_at)"
                    " VALUES (:type, :identifier, :version, :body, 0)"
                ),
                ROWS[name],
            )

        assert await flow.ask(name, to="golden.find") == AGGREGATES[name]


@pytest.mark.parametrize("name", AGGREGATES)
async def test_an_aggregate_is_written_as_it_has_always_been(name: str, sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)
    async with flow_test([Golden], plugins=[database]) as flow:
        await flow.send(name, to="golden.save")
        async with database.engine.connect() as connection:
            found = await connection.execute(text("SELECT type, identifier, version, body FROM ecotone_aggregate"))
            [row] = [dict(one) for one in found.mappings()]

    assert row == ROWS[name]
