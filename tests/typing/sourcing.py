"""A decorator of event sourcing returns what it was put on: classes and methods keep their own types."""

from dataclasses import dataclass
from typing import Any, assert_type

from ecotone_fastapi import applies, command_handler, event_sourced, message_name, revision, upcaster
from ecotone_fastapi.testing import Flow


@message_name("basket.opened")
@revision(2)
@dataclass(frozen=True)
class BasketWasOpened:
    basket_id: str


@upcaster("basket.opened", revision=1)
def opened(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


@event_sourced(identifier="basket_id", stream="basket", snapshots=10)
@dataclass
class Basket:
    basket_id: str

    @classmethod
    @command_handler("basket.open")
    def open(cls, basket_id: str) -> BasketWasOpened:
        return BasketWasOpened(basket_id)

    @applies
    def when_opened(self, event: BasketWasOpened) -> None:
        self.basket_id = event.basket_id

    @applies  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    def when_closed(self, event: int) -> str:
        return self.basket_id


async def classes_and_methods_are_what_they_were(flow: Flow) -> None:
    assert_type(Basket("7"), Basket)
    assert_type(Basket.open("7"), BasketWasOpened)
    assert_type(opened({}), dict[str, Any])
    assert_type(await flow.state(Basket, "7"), Basket)
    Basket("7").when_opened(BasketWasOpened("7"))
