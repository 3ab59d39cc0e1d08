"""Event-sourced aggregates: what their handlers return or record is applied, appended and published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from ecotone_fastapi import (
    AggregateNotFoundError,
    Aggregates,
    CommandBus,
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    Ecotone,
    EventSourcing,
    EventStore,
    Fetched,
    HeaderName,
    Message,
    MessageHeader,
    Repository,
    Snapshots,
    TargetVersion,
    aggregate,
    applies,
    command_handler,
    event_handler,
    event_sourced,
    identified,
    message_name,
    query_handler,
    record,
    take_recorded,
)
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryEvents
from ecotone_fastapi.core.endpoint import discover
from ecotone_fastapi.core.errors import AggregateError, MissingServiceError
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.repository import Identifier, Saved, Versioned
from ecotone_fastapi.testing import Flow, flow_test

# ---------------------------------------------------------------------------------------------- a basket, in pure style


@dataclass(frozen=True)
class OpenBasket:
    basket_id: str


@dataclass(frozen=True)
class AddItems:
    basket_id: str
    skus: tuple[str, ...]


@dataclass(frozen=True)
class CloseBasket:
    basket_id: str
    version: Annotated[int | None, TargetVersion()] = None


@message_name("basket.opened")
@dataclass(frozen=True)
class BasketWasOpened:
    basket_id: str


@dataclass(frozen=True)
class BasketEvent:
    basket_id: str


@message_name("basket.item_added")
@dataclass(frozen=True)
class ItemWasAdded(BasketEvent):
    sku: str


@message_name("basket.closed")
@dataclass(frozen=True)
class BasketWasClosed(BasketEvent): ...


@message_name("basket.viewed")
@dataclass(frozen=True)
class BasketWasViewed(BasketEvent): ...


@event_sourced(identifier="basket_id", stream="basket", version="version")
@dataclass
class Basket:
    basket_id: str
    items: list[str] = field(default_factory=list)
    is_open: bool = True
    version: int = 0

    @classmethod
    @command_handler
    def open(cls, command: OpenBasket) -> BasketWasOpened:
        return BasketWasOpened(command.basket_id)

    @command_handler
    def add(self, command: AddItems) -> Sequence[Any]:
        return [ItemWasAdded(self.basket_id, sku) for sku in command.skus]

    @command_handler
    def close(self, command: CloseBasket) -> BasketWasClosed | None:
        return BasketWasClosed(self.basket_id) if self.is_open else None

    @command_handler("basket.view")
    def view(self) -> Message[BasketWasViewed]:
        return Message(BasketWasViewed(self.basket_id), {"viewer": "Ada"})

    @command_handler("basket.answer")
    def answer(self, answer: dict[str, Any]) -> object:
        return answer["it"]

    @query_handler("basket.items")
    def get_items(self) -> list[str]:
        return self.items

    @query_handler("basket.version")
    def get_version(self) -> int:
        return self.version

    @applies
    def when_opened(self, event: BasketWasOpened) -> None:
        self.basket_id = event.basket_id

    @applies
    def when_added(self, event: ItemWasAdded) -> None:
        self.items.append(event.sku)

    @applies
    def when_closed(self, event: BasketWasClosed) -> None:
        self.is_open = False


class Listener:
    """Hears every event of baskets, with what the framework says about it."""

    def __init__(self) -> None:
        self.heard: list[Message[Any]] = []

    @event_handler
    def hear(self, event: BasketWasOpened | BasketEvent, message: Message[Any]) -> None:
        self.heard.append(message)


async def history(flow: Flow, stream: str) -> list[Any]:
    store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]
    return [event.payload for event in await store.load(stream)]


async def test_a_factory_returns_the_first_event_and_the_sender_is_told_the_identifier() -> None:
    async with flow_test([Basket]) as flow:
        assert await flow.send(OpenBasket("7")) == "7"

        assert await history(flow, "basket-7") == [BasketWasOpened("7")]
        assert flow.published == [BasketWasOpened("7")]


async def test_what_a_handler_returns_is_appended_and_published_in_order() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))
        assert await flow.send(AddItems("7", ("apple", "pear"))) is None

        added = [ItemWasAdded("7", "apple"), ItemWasAdded("7", "pear")]
        assert await history(flow, "basket-7") == [BasketWasOpened("7"), *added]
        assert flow.published == [BasketWasOpened("7"), *added]
        assert await flow.ask("7", to="basket.items") == ["apple", "pear"]
        assert await flow.ask("7", to="basket.version") == 3


async def test_nothing_is_stored_when_nothing_has_happened() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))
        await flow.send(CloseBasket("7"))
        await flow.send(CloseBasket("7"))
        await flow.send(AddItems("7", ()))

        assert await history(flow, "basket-7") == [BasketWasOpened("7"), BasketWasClosed("7")]


async def test_an_event_that_nothing_applies_is_stored_all_the_same() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))
        await flow.send("7", to="basket.view")
        await flow.send(AddItems("7", ("apple",)))

        assert await history(flow, "basket-7") == [
            BasketWasOpened("7"),
            BasketWasViewed("7"),
            ItemWasAdded("7", "apple"),
        ]


@pytest.mark.parametrize("it", ["done", 5, {"sku": "apple"}, True, ["done"], [None]])
async def test_a_handler_that_returns_no_event_fails_and_nothing_is_stored(it: object) -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))

        with pytest.raises(AggregateError, match=r"a handler of Basket has returned .*, which is no event"):
            await flow.send({"it": it}, to="basket.answer", headers={"aggregate.id": "7"})
        assert await history(flow, "basket-7") == [BasketWasOpened("7")]


async def test_an_unknown_object_is_not_found() -> None:
    async with flow_test([Basket]) as flow:
        with pytest.raises(AggregateNotFoundError, match="there is no Basket '7'"):
            await flow.send(AddItems("7", ("apple",)))


async def test_an_object_whose_stream_is_archived_is_not_found_and_cannot_be_made_again() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]
        await store.archive("basket-7")

        with pytest.raises(AggregateNotFoundError):
            await flow.send(AddItems("7", ("apple",)))
        with pytest.raises(ConcurrencyError, match="archived"):
            await flow.send(OpenBasket("7"))


@pytest.mark.parametrize("identifier", ["x" * 300, "7 ", "7\n8"])
async def test_an_identifier_that_cannot_name_a_stream_is_a_fault_of_the_sender(identifier: str) -> None:
    async with flow_test([Basket]) as flow:
        for command in (OpenBasket(identifier), AddItems(identifier, ("apple",))):
            with pytest.raises(ConversionError, match="cannot identify a Basket") as caught:
                await flow.send(command)
            assert repr(identifier[:80]) in caught.value.what
            assert "at most 183 printable characters" in caught.value.hint
        await flow.send(OpenBasket("x" * 183))


async def test_an_object_is_made_once() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))

        with pytest.raises(ConcurrencyError, match="the stream 'basket-7' exists already") as caught:
            await flow.send(OpenBasket("7"))
        assert (caught.value.expected, caught.value.actual) == (0, 1)


async def test_a_command_that_expects_another_version_is_refused() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))
        await flow.send(AddItems("7", ("apple",)))

        for version in (1, 3):
            with pytest.raises(ConcurrencyError) as caught:
                await flow.send(CloseBasket("7", version))
            assert (caught.value.expected, caught.value.actual) == (version, 2)
        await flow.send(CloseBasket("7"), headers={"aggregate.version": 2})
        assert await flow.ask("7", to="basket.version") == 3


async def test_somebody_else_who_was_faster_is_noticed() -> None:
    @command_handler("slowly")
    async def slowly(basket_id: str, baskets: Repository[Basket], events: EventStore) -> None:
        basket = await baskets.get(basket_id)
        await events.append(f"basket-{basket_id}", [ItemWasAdded(basket_id, "of somebody else")], expected=1)
        record(basket, ItemWasAdded(basket_id, "mine"))
        await baskets.save(basket)

    async with flow_test([Basket, slowly]) as flow:
        await flow.send(OpenBasket("7"))

        with pytest.raises(ConcurrencyError) as caught:
            await flow.send("7", to="slowly")
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert await history(flow, "basket-7") == [BasketWasOpened("7")]  # neither of the two


# -------------------------------------------------------------------------------------------------------------- headers


async def test_a_stored_event_has_the_headers_of_its_command_and_its_own() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"), headers={"id": "command-1", "tenant": "acme"})
        await flow.send("7", to="basket.view", headers={"tenant": "acme", "viewer": "nobody"})
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]
        opened, viewed = await store.load("basket-7")

        assert opened.headers["tenant"] == "acme"
        assert (opened.headers["causation_id"], opened.headers["correlation_id"]) == ("command-1", "command-1")
        assert opened.headers["id"] != "command-1"
        assert {"id", "timestamp"} <= set(opened.headers)
        assert viewed.headers["viewer"] == "Ada"


async def test_a_published_event_tells_its_stream_and_version_and_is_the_one_that_is_stored() -> None:
    listener = Listener()
    async with flow_test([Basket, listener]) as flow:
        await flow.send(OpenBasket("7"))
        await flow.send(AddItems("7", ("apple", "pear")))
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]
        stored = await store.load("basket-7")

        assert [one.headers[HeaderName.stream] for one in listener.heard] == ["basket-7"] * 3
        assert [one.headers[HeaderName.stream_version] for one in listener.heard] == ["1", "2", "3"]
        assert [dict(one.headers) for one in listener.heard] == [dict(one.headers) for one in stored]


async def test_what_an_event_causes_does_not_inherit_where_it_is_stored() -> None:
    @event_handler
    async def react(event: BasketWasOpened, commands: CommandBus) -> None:
        await commands.send(event.basket_id, to="note")

    noted: list[Message[Any]] = []

    @command_handler("note")
    def note(basket_id: str, message: Message[Any]) -> None:
        noted.append(message)

    async with flow_test([Basket, react, note]) as flow:
        await flow.send(OpenBasket("7"), headers={"tenant": "acme"})

    assert noted[0].headers["tenant"] == "acme"
    assert not {HeaderName.stream, HeaderName.stream_version, HeaderName.revision} & set(noted[0].headers)


async def test_an_event_is_applied_with_the_headers_that_it_is_stored_with() -> None:
    @event_sourced(identifier="door_id", stream="door", recording=True)
    @dataclass
    class Door:
        door_id: str
        by: list[str] = field(default_factory=list)

        @classmethod
        @command_handler("door.make")
        def make(cls, door_id: str) -> Door:
            door = cls(door_id)
            record(door, BasketWasOpened(door_id))
            return door

        @command_handler("door.pass")
        def walk(self) -> list[str]:
            record(self, Message(BasketWasClosed(self.door_id), {"who": "Ada"}))
            record(self, BasketWasClosed(self.door_id))
            return list(self.by)

        @query_handler("door.by")
        def passed_by(self) -> list[str]:
            return self.by

        @applies
        def opened(self, event: BasketWasOpened) -> None:
            self.door_id = event.basket_id

        @applies
        def passed(
            self,
            event: BasketWasClosed,
            who: Annotated[str, MessageHeader()],
            floor: Annotated[int, MessageHeader("floor")] = 0,
        ) -> None:
            self.by.append(f"{who} {floor + 1}")

    async with flow_test([Door]) as flow:
        await flow.send("1", to="door.make")

        assert await flow.send("1", to="door.pass", headers={"who": "Ben", "floor": 3}) == ["Ada 4", "Ben 4"]
        assert await flow.ask("1", to="door.by") == ["Ada 4", "Ben 4"]
        with pytest.raises(ConversionError, match="asks for the header 'who'"):
            await flow.send("1", to="door.pass")


# ------------------------------------------------------------------------------------------------------ recording style


@event_sourced(identifier="wallet_id", stream="wallet", recording=True)
class Wallet:
    """A plain class, with a factory and a method for the same command."""

    def __init__(self) -> None:
        self.wallet_id = ""
        self.balance = 0

    @classmethod
    @command_handler
    def create(cls, command: Charge) -> Wallet:
        wallet = cls()
        record(wallet, WalletWasCharged(command.wallet_id, command.amount))
        return wallet

    @command_handler
    def charge(self, command: Charge) -> int:
        if self.balance + command.amount < 0:
            raise ValueError("not enough")
        record(self, WalletWasCharged(self.wallet_id, command.amount))
        return self.balance

    @query_handler("wallet.balance")
    def get_balance(self) -> int:
        return self.balance

    @applies
    def charged(self, event: WalletWasCharged) -> None:
        self.wallet_id = event.wallet_id
        self.balance += event.amount


@dataclass(frozen=True)
class Charge:
    wallet_id: str
    amount: int


@message_name("wallet.charged")
@dataclass(frozen=True)
class WalletWasCharged:
    wallet_id: str
    amount: int


async def test_what_is_recorded_is_applied_at_once_and_what_a_method_returns_is_the_answer() -> None:
    async with flow_test([Wallet]) as flow:
        assert await flow.send(Charge("w", 100)) == "w"
        assert await flow.send(Charge("w", -10)) == 90

        assert await history(flow, "wallet-w") == [WalletWasCharged("w", 100), WalletWasCharged("w", -10)]
        assert flow.published == await history(flow, "wallet-w")
        assert await flow.ask("w", to="wallet.balance") == 90


async def test_a_handler_that_fails_leaves_nothing_that_it_has_recorded() -> None:
    @event_sourced(identifier="wallet_id", stream="wallet", recording=True)
    class Hasty(Wallet):
        @command_handler("hasty")
        def hasty(self) -> None:
            record(self, WalletWasCharged(self.wallet_id, 7))
            raise ValueError("no")

    async with flow_test([Hasty]) as flow:
        await flow.send(Charge("w", 100))
        with pytest.raises(ValueError, match="no"):
            await flow.send("w", to="hasty")

        assert await history(flow, "wallet-w") == [WalletWasCharged("w", 100)]
        assert flow.published == [WalletWasCharged("w", 100)]


async def test_a_new_object_that_has_recorded_nothing_is_not_saved() -> None:
    @event_sourced(identifier="wallet_id", stream="wallet", recording=True)
    class Empty(Wallet):
        @classmethod
        @command_handler("make")
        def make(cls) -> Empty:
            return cls()

    async with flow_test([Empty]) as flow:
        with pytest.raises(AggregateError, match="a new Empty has recorded no event"):
            await flow.send(None, to="make")


async def test_a_factory_whose_events_set_no_identifier_fails_before_anything_is_stored() -> None:
    @event_sourced(identifier="number", stream="wallet")
    class Nameless:
        number: int | None = None

        @classmethod
        @command_handler("make")
        def make(cls) -> WalletWasCharged:
            return WalletWasCharged("w", 1)

        @applies
        def charged(self, event: WalletWasCharged) -> None: ...

    async with flow_test([Nameless]) as flow:
        with pytest.raises(AggregateError, match=r"not identified by its events[\s\S]*@applies"):
            await flow.send(None, to="make")
        assert flow.published == []


async def test_an_event_is_applied_once_also_by_a_class_that_inherits_from_another_one() -> None:
    @event_sourced(identifier="wallet_id", stream="till", recording=True)
    class Till(Wallet): ...

    async with flow_test([Till]) as flow:
        await flow.send(Charge("w", 5))
        assert await flow.send(Charge("w", 5)) == 10


def test_an_event_is_recorded_when_it_is_known() -> None:
    with pytest.raises(AggregateError, match=r"a Wallet has recorded a function"):
        record(Wallet(), lambda: WalletWasCharged("w", 5))


def test_an_aggregate_can_be_tested_alone() -> None:
    wallet = Wallet.create(Charge("w", 5))

    assert wallet.charge(Charge("w", 5)) == 10
    assert take_recorded(wallet) == [WalletWasCharged("w", 5), WalletWasCharged("w", 5)]


# -------------------------------------------------------------------------------------------- repositories, and several


async def test_a_repository_gets_finds_and_saves() -> None:
    @command_handler("lend")
    async def lend(amount: int, wallets: Repository[Wallet]) -> str:
        wallet = await wallets.get("a")
        assert await wallets.find("nobody") is None
        with pytest.raises(AggregateNotFoundError):
            await wallets.get("nobody")
        wallet.charge(Charge("a", -amount))
        await wallets.save(wallet)
        other = Wallet.create(Charge("b", amount))
        await wallets.save(other)
        other.charge(Charge("b", 1))
        await wallets.save(other)
        return f"{wallet.balance} {other.balance}"

    async with flow_test([Wallet, lend]) as flow:
        await flow.send(Charge("a", 10))

        assert await flow.send(4, to="lend") == "6 5"
        assert await history(flow, "wallet-b") == [WalletWasCharged("b", 4), WalletWasCharged("b", 1)]
        assert len(flow.published) == 4


async def test_a_class_without_handlers_is_kept_for_its_repository() -> None:
    @event_sourced(identifier="product_id", stream="product")
    @dataclass
    class Product:
        product_id: str
        price: int = 0

        def change_price(self, price: int) -> None:
            record(self, WalletWasCharged(self.product_id, price))

        @applies
        def charged(self, event: WalletWasCharged) -> None:
            self.product_id, self.price = event.wallet_id, event.amount

    @command_handler("price")
    async def change(product_id: str, products: Repository[Product]) -> int:
        product = await products.find(product_id) or Product(product_id)
        product.change_price(product.price + 1)
        await products.save(product)
        return product.price

    async with flow_test([change]) as flow:
        assert [await flow.send("p", to="price") for _ in range(3)] == [1, 2, 3]
        assert len(await history(flow, "product-p")) == 3


async def test_all_aggregates_of_a_command_are_appended_before_anything_is_published() -> None:
    seen: list[tuple[int, int]] = []

    @event_sourced(identifier="transfer_id", stream="transfer", recording=True)
    class Transfer(Wallet):
        @command_handler("split")
        def split(self, other: str) -> Wallet:
            record(self, WalletWasCharged(self.wallet_id, -1))
            return Wallet.create(Charge(other, 1))

        @property
        def transfer_id(self) -> str:
            return self.wallet_id

    @event_handler
    async def look(event: WalletWasCharged, events: EventStore) -> None:
        seen.append((await events.version("transfer-t"), await events.version("wallet-w")))

    @event_handler
    def other(event: BasketWasOpened, wallet: Annotated[Wallet | None, Fetched(by="basket_id")]) -> None: ...

    async with flow_test([Transfer, look, other]) as flow:
        await flow.send(Charge("t", 5))
        seen.clear()
        await flow.send("w", to="split", headers={"aggregate.id": "t"})

        assert seen == [(2, 1), (2, 1)]
        assert flow.published[1:] == [WalletWasCharged("t", -1), WalletWasCharged("w", 1)]


async def test_a_pure_handler_may_return_another_aggregate_beside_its_events() -> None:
    @event_sourced(identifier="basket_id", stream="big_basket")
    @dataclass
    class BigBasket(Basket):
        @command_handler("split")
        def split(self, amount: int) -> list[Any]:
            return [Wallet.create(Charge("w", amount)), BasketWasClosed(self.basket_id)]

    async with flow_test([BigBasket, Wallet]) as flow:
        await flow.send(OpenBasket("7"))
        await flow.send(5, to="split", headers={"aggregate.id": "7"})

        assert await history(flow, "wallet-w") == [WalletWasCharged("w", 5)]
        assert await history(flow, "big_basket-7") == [BasketWasOpened("7"), BasketWasClosed("7")]


async def test_events_of_others_make_and_change_an_object() -> None:
    @event_sourced(identifier="basket_id", stream="watch")
    @dataclass
    class Watch:
        basket_id: str
        seen: int = 0

        @classmethod
        @event_handler
        def begin(cls, event: BasketWasOpened) -> WalletWasCharged | None:
            return None if event.basket_id == "secret" else WalletWasCharged(event.basket_id, 0)

        @identified(missing="ignore")
        @event_handler
        def see(self, event: BasketEvent) -> list[WalletWasCharged]:
            return [WalletWasCharged(self.basket_id, self.seen + 1)]

        @applies
        def charged(self, event: WalletWasCharged) -> None:
            self.basket_id, self.seen = event.wallet_id, event.amount

    async with flow_test([Basket, Watch]) as flow:
        for basket in ("7", "secret"):
            await flow.send(OpenBasket(basket))
            await flow.send(AddItems(basket, ("apple", "pear")))

        assert [event.amount for event in await history(flow, "watch-7")] == [0, 1, 2]
        assert await history(flow, "watch-secret") == []


async def test_several_identifiers_name_one_stream() -> None:
    @dataclass(frozen=True)
    class Seated:
        row: str
        number: int

    @event_sourced(identifier=["row", "number"], stream="seat")
    @dataclass
    class Seat:
        row: str
        number: int
        taken: int = 0

        @classmethod
        @command_handler("seat.make")
        def make(cls, at: dict[str, Any]) -> Seated:
            return Seated(at["row"], at["number"])

        @command_handler("seat.take")
        def take(self) -> Seated:
            return Seated(self.row, self.number)

        @applies
        def seated(self, event: Seated) -> None:
            self.row, self.number = event.row, event.number
            self.taken += 1

    async with flow_test([Seat]) as flow:
        assert await flow.send({"row": "a/b", "number": 3}, to="seat.make") == {"row": "a/b", "number": 3}
        await flow.send(None, to="seat.take", headers={"aggregate.id": {"row": "a/b", "number": 3}})

        assert await history(flow, "seat-a%2Fb/3") == [Seated("a/b", 3)] * 2


async def test_a_store_of_ones_own_gets_the_events() -> None:
    class OnPaper:
        def __init__(self) -> None:
            self.pages: dict[str, list[Message[Any]]] = {}

        def serves(self, cls: type) -> bool:
            return cls is Wallet

        async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
            page = self.pages.get(str(identifier), [])
            wallet = Wallet()
            for event in page:
                wallet.charged(event.payload)
            return Versioned(wallet, len(page)) if page else None

        async def save(
            self,
            cls: type[Any],
            identifier: Identifier | None,
            state: Any,
            *,
            events: Sequence[Message[Any]],
            expected: int,
        ) -> Saved:
            page = self.pages.setdefault(str(identifier), [])
            assert len(page) == expected
            page += events
            return Saved(len(page), events)

    paper = OnPaper()
    async with flow_test([Wallet], plugins=[Aggregates(stores=[paper])]) as flow:
        await flow.send(Charge("w", 5))
        assert await flow.send(Charge("w", 5)) == 10

        assert [message.payload for message in paper.pages["w"]] == [WalletWasCharged("w", 5)] * 2
        assert await history(flow, "wallet-w") == []
        assert len(flow.published) == 2


async def test_pydantic_models_are_event_sourced() -> None:
    class Opened(BaseModel):
        box_id: int

    @event_sourced(identifier="box_id", stream="box", recording=True)
    class Box(BaseModel):
        box_id: int
        opened: int = 0

        @classmethod
        @command_handler("box.make")
        def make(cls, box_id: int) -> Box:
            box = cls(box_id=box_id)
            record(box, Opened(box_id=box_id))
            return box

        @command_handler("box.open")
        def open(self) -> int:
            record(self, Opened(box_id=self.box_id))
            return self.opened

        @applies
        def when_opened(self, event: Opened) -> None:
            self.box_id = event.box_id
            self.opened += 1

    async with flow_test([Box]) as flow:
        assert await flow.send(1, to="box.make") == 1
        assert await flow.send(1, to="box.open") == 2
        assert await flow.send(1, to="box.open") == 3


# ------------------------------------------------------------------------------------------------- what is known, names


async def test_events_that_only_a_method_names_can_be_read_again_elsewhere() -> None:
    async with flow_test([Basket]) as flow:
        await flow.send(OpenBasket("7"))
        await flow.send("7", to="basket.view")
        stored = await flow.ecotone.assembly.services[EventStore].storage.read("basket-7")  # type: ignore[attr-defined]

    async with flow_test([Basket]) as flow:
        reader = flow.ecotone.assembly.services[EventStore].reader  # type: ignore[attr-defined]
        assert [reader.read(event).payload for event in stored] == [BasketWasOpened("7"), BasketWasViewed("7")]


async def test_an_event_of_a_class_that_nothing_here_names_is_refused_until_it_is_named() -> None:
    @dataclass(frozen=True)
    class Secret:
        basket_id: str

    made = {"it": Secret("7")}
    known: list[list[type]] = [[], [Secret]]
    for events in known:
        async with flow_test([Basket], plugins=[EventSourcing(events=events)]) as flow:
            await flow.send(OpenBasket("7"))
            if events:
                await flow.send(made, to="basket.answer", headers={"aggregate.id": "7"})
                assert await history(flow, "basket-7") == [BasketWasOpened("7"), Secret("7")]
            else:
                with pytest.raises(AggregateError, match=r"EventSourcing\(events=\[Secret\]\)"):
                    await flow.send(made, to="basket.answer", headers={"aggregate.id": "7"})


async def test_streams_are_named_after_the_class_unless_told_otherwise() -> None:
    @message_name("shop.till")
    @event_sourced(identifier="wallet_id", recording=True)
    class Till(Wallet): ...

    @event_sourced(identifier="wallet_id", recording=True)
    class Purse(Wallet):
        @classmethod
        @command_handler("purse.create")
        def create(cls, command: Charge) -> Purse:
            purse = cls()
            record(purse, WalletWasCharged(command.wallet_id, command.amount))
            return purse

        @command_handler("purse.charge")
        def charge(self, command: Charge) -> int:
            return super().charge(command)

        @query_handler("purse.balance")
        def get_balance(self) -> int:
            return self.balance

    async with flow_test([Till, Purse]) as flow:
        await flow.send(Charge("w", 5))
        await flow.send(Charge("w", 5), to="purse.create")
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]

        assert await store.streams("shop.till") == ["shop.till-w"]
        assert await store.streams(f"{__name__}.{Purse.__qualname__}") == [f"{__name__}.{Purse.__qualname__}-w"]


# ----------------------------------------------------------------------------------------------- what is found at start


def problem(*handlers: Any, **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Ecotone(handlers, **given).prepare()
    return str(caught.value)


def test_a_category_with_a_dash_is_found_at_start() -> None:
    @event_sourced(identifier="wallet_id", stream="my-wallet")
    class Dashed(Wallet): ...

    assert "'my-wallet' cannot be the stream of" in problem(Dashed)


def test_two_classes_with_one_category_are_found_at_start() -> None:
    @event_sourced(identifier="basket_id", stream="wallet")
    @dataclass
    class Other(Basket): ...

    assert "both have the streams wallet-…" in problem(Wallet, Other)


def test_what_is_wrong_with_a_class_is_told_once() -> None:
    @event_sourced(identifier="thing_id", stream="thing")
    @dataclass(frozen=True)
    class Frozen:
        thing_id: str

        @command_handler("thing.do")
        def do(self) -> None: ...

        @applies
        def done(self, event: BasketWasOpened) -> None: ...

    assert problem(Frozen).startswith("test_what_is_wrong_with_a_class_is_told_once.<locals>.Frozen is frozen")


def test_a_class_without_applies_is_found_at_start() -> None:
    @event_sourced(identifier="thing_id", stream="thing")
    @dataclass
    class Still:
        thing_id: str

        @command_handler("thing.do")
        def do(self) -> None: ...

    @command_handler("other")
    async def other(command: str, still: Repository[Still]) -> None: ...

    assert "nothing applies the events of" in problem(Still)
    assert "nothing applies the events of" in problem(other)


def test_two_events_with_one_name_are_found_at_start() -> None:
    @message_name("wallet.charged")
    class Other: ...

    @event_sourced(identifier="wallet_id", stream="wallet")
    class Confused(Wallet):
        @applies
        def other(self, event: Other) -> None: ...

    assert "are both named 'wallet.charged'" in problem(Confused)


def test_state_stored_aggregates_live_beside_event_sourced_ones() -> None:
    @aggregate(identifier="order_id")
    @dataclass
    class Order:
        order_id: str

        @command_handler("order.do")
        def do(self) -> None: ...

    Ecotone([Order, Wallet, Basket]).prepare()


def test_without_a_store_of_events_the_start_says_so() -> None:
    assembly = Assembly(Ecotone([]).prepare(), endpoints=list(discover([Wallet]).endpoints))

    with pytest.raises(MissingServiceError, match="nothing keeps the events of Wallet"):
        EventSourcing().install(assembly)
    EventSourcing().install(Assembly(Ecotone([]).prepare()))
    EventSourcing().install(Assembly(Ecotone([]).prepare(), services={EventStorage: MemoryEvents()}))


def test_without_a_store_of_snapshots_the_start_says_so() -> None:
    @event_sourced(identifier="wallet_id", stream="wallet", snapshots=5)
    class Kept(Wallet): ...

    services: dict[object, object] = {EventStorage: MemoryEvents()}
    assembly = Assembly(Ecotone([]).prepare(), endpoints=list(discover([Kept]).endpoints), services=services)

    with pytest.raises(MissingServiceError, match="nothing keeps the snapshots of"):
        EventSourcing().install(assembly)


def test_snapshots_in_the_background_need_a_handler_of_the_class() -> None:
    @event_sourced(identifier="wallet_id", stream="wallet", snapshots=Snapshots(background="snapshots"))
    @dataclass
    class Silent:
        wallet_id: str

        @applies
        def charged(self, event: WalletWasCharged) -> None: ...

    @command_handler("do")
    async def do(it: str, silent: Repository[Silent]) -> None: ...

    assert "it has no handler" in problem(do, channels=[MemoryChannel("snapshots")])


async def test_an_event_sourced_aggregate_is_not_deleted_but_its_stream_can_be_hidden() -> None:
    @command_handler("delete")
    async def delete(basket_id: str, baskets: Repository[Basket]) -> None:
        await baskets.delete(await baskets.get(basket_id))

    @command_handler("hide")
    async def hide(basket_id: str, store: EventStore) -> None:
        await store.archive(f"basket-{basket_id}")

    async with flow_test([Basket, delete, hide]) as flow:
        await flow.send(OpenBasket("b"))
        with pytest.raises(AggregateError, match="the Basket 'b' is event-sourced") as caught:
            await flow.send("b", to="delete")
        assert "EventStore.archive('basket-b')" in caught.value.hint

        await flow.send("b", to="hide")
        with pytest.raises(AggregateNotFoundError):
            await flow.send(CloseBasket("b"))
        assert await flow.stream("basket-b") == []
