"""A collection knows what its documents are, and an implementation what its methods return."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from ecotone_fastapi import DocumentStore
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy, query, statement
from ecotone_fastapi.modelling.document_filters import Filter
from ecotone_fastapi.modelling.document_storage import Document
from ecotone_fastapi.modelling.documents import Collection, Page


@dataclass(frozen=True)
class Order:
    customer: str


class Orders(Protocol):
    @query("SELECT customer FROM orders WHERE id = :id")
    async def find(self, id: int) -> Order | None: ...

    @query("SELECT customer FROM orders")
    def all(self) -> AsyncIterator[Order]: ...

    @statement("DELETE FROM orders WHERE id = :id")
    async def delete(self, id: int) -> int: ...


async def documents_are_of_their_class(documents: DocumentStore) -> None:
    orders = documents.collection("orders", Order)
    assert_type(orders, Collection[Order])
    assert_type(await orders.add("1", Order("ada")), Document[Order])
    assert_type((await orders.get("1")).value, Order)
    assert_type(await orders.find("1"), Document[Order] | None)
    assert_type(orders.field("customer") == "ada", Filter)
    assert_type((orders.field("customer") > "ada") & ~orders.field("customer").in_(["alan"]), Filter)
    page = await orders.list(orders.field("customer") != "ada", order_by=[-orders.field("customer")])
    assert_type(page, Page[Order])
    assert_type([document.value for document in page], list[Order])
    assert_type(documents.collection("anything", dict[str, Any]), Collection[dict[str, Any]])

    await orders.update("1", "ada", expected=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def an_implementation_is_of_its_protocol(database: SqlAlchemy) -> None:
    orders = database.implement(Orders)
    assert_type(orders, Orders)
    assert_type(await orders.find(1), Order | None)
    assert_type([order async for order in orders.all()], list[Order])
    assert_type(await orders.delete(1), int)

    await orders.find("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
