"""10. A model of SQLAlchemy is an aggregate: `python examples/10_orm_aggregate.py`

A mapped class is loaded and saved with the session of its transaction. The identifier that the database gives is there
before events are published, and is what the sender of the command is told. With a `version_id_col` nobody overwrites
what somebody else has changed; without one, the row is locked while a handler has it.

Other handlers ask for `Repository[Product]`, or for the session, and run queries of their own.
"""

import asyncio
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ecotone_fastapi import Repository, aggregate, command_handler, event_handler, query_handler, record
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import flow_test


class Base(DeclarativeBase): ...


class ProductWasAdded:
    def __init__(self, product_id: int) -> None:
        self.product_id = product_id


@aggregate(identifier="id")
class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    @classmethod
    @command_handler("product.add")
    def add(cls, name: str) -> "Product":
        product = cls(name=name, price=0)
        record(product, lambda: ProductWasAdded(product.id))  # made when there is an id
        return product

    @command_handler("product.change_price")
    def change_price(self, price: int) -> None:
        self.price = price


class Catalogue:
    @event_handler
    async def welcome(self, event: ProductWasAdded, products: Repository[Product]) -> None:
        product = await products.get(event.product_id)
        product.name = f"New: {product.name}"
        await products.save(product)

    @query_handler("catalogue")
    async def show(self, session: AsyncSession) -> list[str]:
        products = await session.scalars(select(Product).order_by(Product.name))
        return [f"{one.name}, {one.price}" for one in products]


async def sell_milk(database: SqlAlchemy) -> list[str]:
    async with flow_test([Product, Catalogue], plugins=[database]) as flow:
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        product_id = await flow.send("milk", to="product.add")
        await flow.send(200, to="product.change_price", headers={"aggregate.id": product_id})
        return list(await flow.ask(to="catalogue"))


if __name__ == "__main__":
    print(asyncio.run(sell_milk(SqlAlchemy("sqlite+aiosqlite:///example.db", create_schema=True))))


async def test_a_product_is_added_and_changed(tmp_path: Path) -> None:
    database = SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db", create_schema=True)
    assert await sell_milk(database) == ["New: milk, 200"]
