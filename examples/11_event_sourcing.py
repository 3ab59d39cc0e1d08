"""11. Event sourcing, what has happened is what is stored: `python examples/11_event_sourcing.py`

Handlers of an event-sourced class return events. They are appended to a stream of their own, `basket-7`, and published,
in one transaction. `@applies` methods make the state of them, now and whenever the basket is loaded again. Who comes
too late gets a `ConcurrencyError`; with a database, the command is tried again.

Events outlive classes: `@message_name` is what is stored. An event that has got another form counts its `@revision`,
and an `@upcaster` reads the former one. `snapshots=100` keeps the state after so many events, so that they need not be
read again. With `recording=True` methods `record(self, event)` and may answer something.
"""

import asyncio
from dataclasses import dataclass, field

from ecotone_fastapi import applies, command_handler, event_sourced, message_name, query_handler, revision, upcaster
from ecotone_fastapi.testing import flow_test


@message_name("basket.opened")
@dataclass(frozen=True)
class BasketWasOpened:
    basket_id: str


@message_name("basket.item_added")
@revision(2)
@dataclass(frozen=True)
class ItemWasAdded:
    sku: str
    quantity: int


@upcaster("basket.item_added", revision=1)
def with_quantity(payload: dict[str, object]) -> dict[str, object]:
    return {"quantity": 1, **payload}


@event_sourced(identifier="basket_id", stream="basket", snapshots=100)
@dataclass
class Basket:
    basket_id: str
    items: dict[str, int] = field(default_factory=dict)

    @classmethod
    @command_handler("basket.open")
    def open(cls, basket_id: str) -> BasketWasOpened:
        return BasketWasOpened(basket_id)

    @command_handler("basket.add")
    def add(self, skus: list[str]) -> list[ItemWasAdded]:
        return [ItemWasAdded(sku, skus.count(sku)) for sku in dict.fromkeys(skus)]

    @query_handler("basket.items")
    def get_items(self) -> dict[str, int]:
        return self.items

    @applies
    def opened(self, event: BasketWasOpened) -> None:
        self.basket_id = event.basket_id

    @applies
    def added(self, event: ItemWasAdded) -> None:
        self.items[event.sku] = self.items.get(event.sku, 0) + event.quantity


async def show() -> Basket:
    async with flow_test([Basket, with_quantity]) as flow:
        assert await flow.send("7", to="basket.open") == "7"
        await flow.send(["apple", "pear", "apple"], to="basket.add", headers={"aggregate.id": "7"})
        await flow.send(["pear"], to="basket.add", headers={"aggregate.id": "7"})
        print(*await flow.stream("basket-7"), await flow.ask("7", to="basket.items"), sep="\n")
        return await flow.state(Basket, "7")


if __name__ == "__main__":
    asyncio.run(show())


async def test_a_basket_is_what_has_happened_to_it() -> None:
    assert await show() == Basket("7", {"apple": 2, "pear": 2})
