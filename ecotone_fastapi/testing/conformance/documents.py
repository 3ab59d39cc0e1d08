"""The suite for stores of documents."""

# ruff: noqa: E712 - a field that is compared with True gives a condition

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import anyio
import pytest
from pydantic import BaseModel

from ecotone_fastapi.core.errors import (
    ConcurrencyError,
    ConversionError,
    DocumentNotFoundError,
    DuplicateDocumentError,
)
from ecotone_fastapi.modelling.document_filters import Filter
from ecotone_fastapi.modelling.documents import Collection, DocumentStore
from ecotone_fastapi.testing.conformance.hooks import Hooks, Rollback


class _Status(Enum):
    OPEN = "open"
    PAID = "paid"


@dataclass(frozen=True)
class _Line:
    sku: str
    price: Decimal


@dataclass(frozen=True)
class _Order:
    customer: str = ""
    number: int = 0
    weight: float = 0.0
    total: Decimal = Decimal(0)
    status: _Status = _Status.OPEN
    paid: bool = False
    placed_at: datetime | None = None
    due: date | None = None
    key: UUID | None = None
    lines: list[_Line] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


class _Customer(BaseModel):
    name: str
    parent: "_Customer | None" = None


_NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
_KEY = UUID("01890000-0000-7000-8000-000000000001")

_ORDERS = {
    "a": _Order(
        customer="Ada",
        number=1,
        weight=0.1,
        total=Decimal("9.50"),
        placed_at=_NOON,
        due=date(2026, 2, 1),
        key=_KEY,
        lines=[_Line("pen", Decimal("9.50"))],
        notes={"gift card": "50%_of", "size": "1"},
    ),
    "b": _Order(
        customer="ada",
        number=-7,
        weight=1e16,
        total=Decimal(10),
        status=_Status.PAID,
        paid=True,
        placed_at=_NOON + timedelta(microseconds=1),
        lines=[_Line("ink", Decimal(10)), _Line("pen", Decimal("0.00"))],
        notes={"size": "1 ", "größe": "ß"},
    ),
    "c": _Order(
        customer="Łukasz \N{PILE OF POO}",
        number=2**53 + 1,
        weight=-2.5,
        total=Decimal("-100.25"),
        status=_Status.PAID,
        placed_at=(_NOON - timedelta(seconds=1)).astimezone(timezone(timedelta(hours=5, minutes=30))),
        due=date(2025, 12, 31),
    ),
    "d": _Order(
        customer="Zoë 'x' \"y\" \\ %",
        number=2**53,
        total=Decimal("1E+3"),
        paid=True,
        placed_at=_NOON.astimezone(timezone(timedelta(hours=-8))),
        lines=[_Line("", Decimal("1E+3"))],
        notes={"size": "\n\t", "*": "star", "a.b": "dotted", "[0]": "bracket", "$": "dollar"},
    ),
    "e": _Order(customer="Ada", number=2**63 - 1, weight=1e-9, total=Decimal("9.5")),
}

_Condition = Callable[[Collection[_Order]], Filter]

_MEANT: Sequence[tuple[str, _Condition, str]] = [
    ("equal", lambda o: o.field("customer") == "Ada", "ae"),
    ("equal to nobody", lambda o: o.field("customer") == "", ""),
    ("not equal", lambda o: o.field("customer") != "Ada", "bcd"),
    ("equal beyond ASCII", lambda o: o.field("customer") == "Łukasz \N{PILE OF POO}", "c"),
    ("equal with quotes", lambda o: o.field("customer") == "Zoë 'x' \"y\" \\ %", "d"),
    ("like an attack", lambda o: o.field("customer") == "' OR 1=1; -- :v0 %s", ""),
    ("text less", lambda o: o.field("customer") < "Z", "ae"),
    ("text at least", lambda o: o.field("customer") >= "ada", "bc"),
    ("text between", lambda o: (o.field("customer") > "Ada") & (o.field("customer") <= "ada"), "bd"),
    ("prefix", lambda o: o.field("customer").startswith("Ad"), "ae"),
    ("prefix beyond ASCII", lambda o: o.field("customer").startswith("Łu"), "c"),
    ("prefix with wildcards", lambda o: o.field("customer").startswith("_"), ""),
    ("prefix of all", lambda o: o.field("customer").startswith(""), "abcde"),
    ("longer prefix", lambda o: o.field("customer").startswith("Ada "), ""),
    ("in", lambda o: o.field("customer").in_(["Ada", "ada", "nobody"]), "abe"),
    ("in nothing", lambda o: o.field("customer").in_([]), ""),
    ("not in nothing", lambda o: ~o.field("customer").in_([]), "abcde"),
    ("in many", lambda o: o.field("number").in_(range(2000)), "a"),
    ("number", lambda o: o.field("number") == 1, "a"),
    ("number with decimal places", lambda o: o.field("number") == 1.0, "a"),
    ("number greater", lambda o: o.field("number") > 1, "cde"),
    ("number less", lambda o: o.field("number") < 1, "b"),
    ("large number", lambda o: o.field("number") == 2**53 + 1, "c"),
    ("large number less", lambda o: o.field("number") < 2**53 + 1, "abd"),
    ("largest number", lambda o: o.field("number") == 2**63 - 1, "e"),
    ("float beyond all others", lambda o: o.field("weight") > -1e308, "abcde"),
    ("float", lambda o: o.field("weight") == 0.1, "a"),
    ("large float", lambda o: o.field("weight") == 10**16, "b"),
    ("small float", lambda o: (o.field("weight") > 0) & (o.field("weight") < 0.1), "e"),
    ("negative float", lambda o: o.field("weight") <= -2.5, "c"),
    ("decimal", lambda o: o.field("total") == Decimal("9.500"), "ae"),
    ("decimal in", lambda o: o.field("total").in_([Decimal(10), 1000, "9.5"]), "abde"),
    ("decimal greater", lambda o: o.field("total") > Decimal("9.5"), "bd"),
    ("decimal less", lambda o: o.field("total") < 9, "c"),
    ("decimal beyond all others", lambda o: o.field("total") < Decimal("1E+400"), "abcde"),
    ("decimal as float", lambda o: o.field("total") >= 9.75, "bd"),
    ("enum", lambda o: o.field("status") == _Status.PAID, "bc"),
    ("enum by its value", lambda o: o.field("status").in_(["open"]), "ade"),
    ("true", lambda o: o.field("paid") == True, "bd"),
    ("false", lambda o: o.field("paid") == False, "ace"),
    ("not true", lambda o: ~(o.field("paid") == True), "ace"),
    ("moment", lambda o: o.field("placed_at") == _NOON, "ad"),
    ("moment of another zone", lambda o: o.field("placed_at") == _ORDERS["c"].placed_at, "c"),
    ("moment without zone", lambda o: o.field("placed_at") == _NOON.replace(tzinfo=None), "ad"),
    ("moment as text", lambda o: o.field("placed_at") > "2026-01-31T12:00:00.000Z", "b"),
    ("moment at most", lambda o: o.field("placed_at") <= _NOON, "acd"),
    ("moment less", lambda o: o.field("placed_at") < _NOON, "c"),
    ("moment not equal", lambda o: o.field("placed_at") != _NOON, "bce"),
    ("date", lambda o: o.field("due") < date(2026, 1, 1), "c"),
    ("id", lambda o: o.field("key") == _KEY, "a"),
    ("null", lambda o: o.field("due").is_null(), "bde"),
    ("equal to None", lambda o: o.field("due") == None, "bde"),  # noqa: E711
    ("not null", lambda o: ~o.field("due").is_null(), "ac"),
    ("in with None", lambda o: o.field("key").in_([None, _KEY]), "abcde"),
    ("in a list", lambda o: o.field("lines", 0, "sku") == "pen", "a"),
    ("behind the end of a list", lambda o: o.field("lines", 1, "sku").is_null(), "acde"),
    ("decimal in a list", lambda o: o.field("lines", 1, "price") < 1, "b"),
    ("empty text", lambda o: o.field("lines", 0, "sku") == "", "d"),
    ("key of a dict", lambda o: o.field("notes.size") == "1", "a"),
    ("space at the end", lambda o: o.field("notes.size") == "1 ", "b"),
    ("control characters", lambda o: o.field("notes.size") == "\n\t", "d"),
    ("key with a space", lambda o: o.field("notes.gift card") == "50%_of", "a"),
    ("key beyond ASCII", lambda o: o.field("notes.größe") == "ß", "b"),
    ("key with a dot", lambda o: o.field("notes", "a.b") == "dotted", "d"),
    ("key like a wildcard", lambda o: o.field("notes", "*") == "star", "d"),
    ("key like a place", lambda o: o.field("notes", "[0]") == "bracket", "d"),
    ("key like the root", lambda o: o.field("notes", "$") == "dollar", "d"),
    ("key that is nowhere", lambda o: o.field("notes.nothing") == "1", ""),
    ("object is null", lambda o: o.field("lines", 0).is_null(), "ce"),
    ("or", lambda o: (o.field("number") == 1) | (o.field("paid") == True), "abd"),
    ("not or", lambda o: ~((o.field("number") == 1) | (o.field("paid") == True)), "ce"),
]

_UNTYPED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"it": None},
    "no": {"it": False},
    "yes": {"it": True},
    "zero": {"it": 0},
    "one": {"it": 1},
    "half": {"it": 0.5},
    "empty": {"it": ""},
    "digit": {"it": "1"},
    "word": {"it": "true"},
    "moment": {"it": "2026-01-31T12:00:00Z"},
    "list": {"it": [1]},
    "object": {"it": {"it": 1, "0": 2}},
}

_UNTYPED_MEANT: Sequence[tuple[str, Callable[[Collection[dict[str, Any]]], Filter], str]] = [
    ("null", lambda c: c.field("it").is_null(), "nothing null"),
    ("true", lambda c: c.field("it") == True, "yes"),
    ("one", lambda c: c.field("it") == 1, "one"),
    ("less than one", lambda c: c.field("it") < 1, "half zero"),
    ("digit", lambda c: c.field("it") == "1", "digit"),
    ("decimal", lambda c: c.field("it") == Decimal("1.0"), "digit one"),
    ("moment", lambda c: c.field("it") == _NOON, "moment"),
    ("word", lambda c: c.field("it") == "true", "word"),
    ("several kinds", lambda c: c.field("it").in_([True, 0, "", None]), "empty nothing null yes zero"),
    ("not one", lambda c: (c.field("it") != 1) & ~(c.field("it") >= ""), "half list no nothing null object yes zero"),
    ("in a list", lambda c: c.field("it", 0) == 1, "list"),
    ("in an object", lambda c: c.field("it.it") == 1, "object"),
    ("in an object by a digit", lambda c: c.field("it", "0") == 2, "object"),
]

_ORDERED: Sequence[tuple[str | Sequence[str], str]] = [
    ("customer", "aedbc"),
    ("-customer", "cbdae"),
    ("number", "badce"),
    ("-number", "ecdab"),
    ("weight", "cdeab"),
    ("total", "caebd"),
    ("-total", "dbaec"),
    ("placed_at", "ecadb"),
    ("-placed_at", "badce"),
    ("due", "bdeca"),
    ("-due", "acbde"),
    ("paid", "acebd"),
    (["paid", "-number"], "ecadb"),
    (["-paid", "customer", "-number"], "dbeac"),
    (["status", "total"], "aedcb"),
    ("notes.size", "cedab"),
    ((), "abcde"),
]

_TEXT = "Grüße, 世界 \N{PILE OF POO} \"'`\\ {} %s $1 :name; --\r\n\t\x01\u2028"


@pytest.mark.anyio
class DocumentStoreConformance(Hooks):
    """What every store of documents must do. Subclass it and implement `documents` and `transaction`.

    A hook that is not implemented skips the cases that need it, and the reason says so. Within a case, all calls of a
    hook open the same store; each case begins with an empty one. Transactions are opened in several tasks at once.

    Attributes:
        moment: Seconds after which something that waits is taken to wait.
        patience: Seconds after which nothing is expected any more.
    """

    moment: float = 0.2
    patience: float = 20.0

    # ---------------------------------------------------------------------------------------------------------- hooks

    def documents(self) -> AbstractAsyncContextManager[DocumentStore]:
        """Hook: open the store, and close it in the end."""
        self._skip_without("documents", "a store of documents")

    @asynccontextmanager
    async def _orders(self) -> AsyncIterator[Collection[_Order]]:
        async with self.documents() as store:
            yield store.collection("orders", _Order)

    # ------------------------------------------------------------------------------------------------ single documents

    async def test_what_is_added_is_there_for_everybody(self) -> None:
        """With its first version, and the time of writing."""
        before = datetime.now(UTC) - timedelta(minutes=1)
        async with self._orders() as orders:
            added = await orders.add("a", _ORDERS["a"])
            assert (added.id, added.version, added.value) == ("a", 1, _ORDERS["a"])

        async with self._orders() as orders:
            assert await orders.get("a") == added
            assert await orders.find("a") == added
            assert before < added.updated_at < datetime.now(UTC) + timedelta(minutes=1)

    @pytest.mark.parametrize("name", [*_ORDERS])
    async def test_every_value_comes_back_as_it_was(self, name: str) -> None:
        """Numbers, moments, text and whatever else there is."""
        async with self._orders() as orders:
            await orders.add("it", _ORDERS[name])

            assert (await orders.get("it")).value == _ORDERS[name]

    async def test_documents_may_be_models_and_dicts(self) -> None:
        """Whatever can be JSON."""
        nested = _Customer(name="Ada", parent=_Customer(name="Byron"))
        plain = {"name": "Ada", "born": 1815, "works": [{"title": "Notes"}, None, 1.5, True], "empty": {}}

        async with self.documents() as store:
            models, dicts = store.collection("models", _Customer), store.collection("dicts", dict[str, Any])
            await models.add("ada", nested)
            await dicts.add("ada", plain)

            assert (await models.get("ada")).value == nested
            assert (await dicts.get("ada")).value == plain

    async def test_an_id_is_taken_once(self) -> None:
        """What is there is not written over by accident."""
        async with self._orders() as orders:
            await orders.add("a", _ORDERS["a"])
            with pytest.raises(DuplicateDocumentError, match="'a'"):
                await orders.add("a", _ORDERS["b"])

            assert (await orders.get("a")).value == _ORDERS["a"]

    async def test_a_known_version_is_updated(self) -> None:
        """Each update has the next one."""
        async with self._orders() as orders:
            await orders.add("a", _ORDERS["a"])
            second = await orders.update("a", _ORDERS["b"], expected=1)
            third = await orders.update("a", _ORDERS["c"], expected=2)

            assert (second.version, third.version) == (2, 3)
            assert await orders.get("a") == third
            assert third.value == _ORDERS["c"]

    @pytest.mark.parametrize("expected", [0, 1, 3])
    async def test_a_version_that_is_not_there_is_not_updated(self, expected: int) -> None:
        """The error has both versions."""
        async with self._orders() as orders:
            await orders.add("a", _ORDERS["a"])
            await orders.update("a", _ORDERS["b"], expected=1)
            with pytest.raises(ConcurrencyError, match="'a'") as raised:
                await orders.update("a", _ORDERS["c"], expected=expected)

            assert (raised.value.expected, raised.value.actual) == (expected, 2)
            assert (await orders.get("a")).value == _ORDERS["b"]

    async def test_what_is_not_there_is_not_updated(self) -> None:
        """An update makes no document."""
        async with self._orders() as orders:
            with pytest.raises(DocumentNotFoundError, match="'a'"):
                await orders.update("a", _ORDERS["a"], expected=1)

            assert await orders.find("a") is None

    async def test_an_upsert_writes_in_any_case(self) -> None:
        """It counts like any other."""
        async with self._orders() as orders:
            first = await orders.upsert("a", _ORDERS["a"])
            second = await orders.upsert("a", _ORDERS["b"])
            third = await orders.update("a", _ORDERS["c"], expected=2)
            fourth = await orders.upsert("a", _ORDERS["c"])

            assert [one.version for one in (first, second, third, fourth)] == [1, 2, 3, 4]
            assert await orders.get("a") == fourth

    async def test_what_is_not_there_is_told(self) -> None:
        """By an error, or by None."""
        async with self._orders() as orders:
            await orders.add("a", _ORDERS["a"])

            assert await orders.find("b") is None
            with pytest.raises(DocumentNotFoundError, match="'b' in 'orders'"):
                await orders.get("b")

    async def test_a_deleted_document_is_gone(self) -> None:
        """To delete it again is no error, and a new one begins anew."""
        async with self._orders() as orders:
            await orders.upsert("a", _ORDERS["a"])
            await orders.upsert("a", _ORDERS["a"])
            await orders.upsert("b", _ORDERS["b"])

            assert await orders.delete("a")
            assert not await orders.delete("a")
            assert await orders.find("a") is None
            assert (await orders.add("a", _ORDERS["a"])).version == 1
            assert await orders.count() == 2

    async def test_only_the_expected_version_is_deleted(self) -> None:
        """The error has both versions; what is not there has none."""
        async with self._orders() as orders:
            await orders.upsert("a", _ORDERS["a"])
            await orders.upsert("a", _ORDERS["a"])
            with pytest.raises(ConcurrencyError, match="'a'") as raised:
                await orders.delete("a", expected=1)

            assert (raised.value.expected, raised.value.actual) == (1, 2)
            assert await orders.delete("a", expected=2)
            assert not await orders.delete("a", expected=2)

    async def test_collections_do_not_mix(self) -> None:
        """Names differ by any character."""
        names = ["orders", "Orders", "orders2", "order", "%", "orders/2026", "größe", "x" * 190]
        async with self.documents() as store:
            for number, name in enumerate(names):
                await store.collection(name, _Order).add("a", _Order(number=number))

            for number, name in enumerate(names):
                assert (await store.collection(name, _Order).get("a")).value.number == number
            assert await store.collection("orders", _Order).drop() == 1
            assert [await store.collection(name, _Order).count() for name in names] == [0, *[1] * (len(names) - 1)]

    async def test_any_two_ids_are_told_apart(self) -> None:
        """And they are ordered by their code points."""
        ids = [
            *("a", "A", "b", "Z", "ä", "a b", "a-b", "a%", "a_", "aa", "é", "e\u0301", "\N{PILE OF POO}", "\uffee"),
            *("' OR 1=1; --", "{}[]$.:", "x" * 190, "x" * 189 + "y", "\N{PILE OF POO}" * 190),
        ]
        async with self._orders() as orders:
            for number, one in enumerate(ids):
                await orders.add(one, _Order(number=number))

            assert [(await orders.get(one)).value.number for one in ids] == [*range(len(ids))]
            assert [document.id for document in await orders.list()] == sorted(ids)
            assert await orders.delete("A")
            assert await orders.find("a") is not None

    @pytest.mark.parametrize("name", ["", " a", "a ", "a\n", "a\x00", "\ud800", "x" * 191, 7])
    async def test_names_that_are_not_the_same_everywhere_are_refused(self, name: Any) -> None:
        """Databases differ in what they make of them."""
        async with self.documents() as store:
            orders = store.collection("orders", _Order)
            with pytest.raises(ConversionError, match="id of a document"):
                await orders.add(name, _Order())
            with pytest.raises(ConversionError, match="id of a document"):
                await orders.find(name)
            with pytest.raises(ConversionError, match="name of a collection"):
                store.collection(name, _Order)

    async def test_any_text_survives(self) -> None:
        """As a value and as a key, at any length."""
        value = {"text": _TEXT, _TEXT: [_TEXT * 1000], "": ""}
        async with self.documents() as store:
            texts = store.collection("texts", dict[str, Any])
            await texts.add("it", value)

            assert (await texts.get("it")).value == value
            assert [document.id for document in await texts.list(texts.field("text") == _TEXT)] == ["it"]

    async def test_large_documents_survive(self) -> None:
        """A megabyte of text and a thousand lines; and they can be searched."""
        large = _Order(
            customer="x" * 1024 * 1024, lines=[_Line(f"sku-{number}", Decimal(number)) for number in range(1000)]
        )
        async with self._orders() as orders:
            await orders.add("large", large)
            await orders.add("small", _Order())
            assert (await orders.update("large", large, expected=1)).version == 2

            page = await orders.list(orders.field("lines", 999, "price") == 999)
            assert [document.value for document in page] == [large]

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param({"it": float("nan")}, id="not a number"),
            pytest.param({"it": [float("-inf")]}, id="infinity"),
            pytest.param({"it": ["a\x00b"]}, id="zero character"),
            pytest.param({"a\x00b": 1}, id="zero character in a key"),
            pytest.param({"it": "\ud800"}, id="half a character"),
            pytest.param({"it": object()}, id="no JSON"),
            pytest.param([1], id="another type"),
        ],
    )
    async def test_what_one_database_would_not_keep_none_does(self, value: Any) -> None:
        """It is refused before anything is written."""
        async with self.documents() as store:
            dicts = store.collection("dicts", dict[str, Any])
            with pytest.raises(ConversionError, match="'it' of 'dicts'"):
                await dicts.upsert("it", value)

            assert await dicts.count() == 0

    async def test_nobody_shares_an_object_with_the_store(self) -> None:
        """What is changed afterwards is changed for its owner alone."""
        value: dict[str, Any] = {"list": [1]}
        async with self.documents() as store:
            dicts = store.collection("dicts", dict[str, Any])
            await dicts.add("it", value)
            value["list"].append(2)
            (await dicts.get("it")).value["list"].append(3)
            [listed] = await dicts.list()
            listed.value["list"].append(4)

            assert (await dicts.get("it")).value == {"list": [1]}

    async def test_a_document_that_does_not_fit_is_named(self) -> None:
        """It may be from the time of another class."""
        async with self.documents() as store:
            await store.collection("orders", dict[str, Any]).add("old", {"customer": {"name": "Ada"}})
            orders = store.collection("orders", _Order)

            with pytest.raises(ConversionError, match=r"'old' of 'orders'.*customer"):
                await orders.get("old")
            with pytest.raises(ConversionError, match=r"'old' of 'orders'.*customer"):
                await orders.list()

    # ------------------------------------------------------------------------------------------- conditions and pages

    async def test_those_that_are_meant_are_found(self) -> None:
        """Listing and counting agree on it, with every other store."""
        found: dict[str, tuple[str, int, int]] = {}
        async with self._orders() as orders:
            await self._fill(orders)
            for name, condition, _ in _MEANT:
                which = condition(orders)
                ids = "".join([document.id for document in await orders.list(which)])
                found[name] = ids, await orders.count(which), await orders.count(~which)

        assert found == {name: (meant, len(meant), 5 - len(meant)) for name, _, meant in _MEANT}

    async def test_all_conditions_have_to_be_fulfilled(self) -> None:
        """Without any, all documents are meant."""
        async with self._orders() as orders:
            await self._fill(orders)

            found = await orders.list(orders.field("customer") == "Ada", orders.field("number") == 1)
            assert [document.value for document in found] == [_ORDERS["a"]]
            assert [document.id for document in await orders.list()] == [*"abcde"]
            assert await orders.count() == 5

    async def test_where_no_class_tells_the_value_decides(self) -> None:
        """A number is no text, and 1 is not true."""
        found: dict[str, str] = {}
        async with self.documents() as store:
            dicts = await self._filled(store, _UNTYPED)
            for name, condition, _ in _UNTYPED_MEANT:
                found[name] = " ".join([document.id for document in await dicts.list(condition(dicts))])

        assert found == {name: meant for name, _, meant in _UNTYPED_MEANT}

    @pytest.mark.parametrize("limit", [1, 2, 5, 100])
    async def test_pages_go_on_where_the_one_before_has_ended(self, limit: int) -> None:
        """In any order, whatever their size: nothing twice, and nothing never."""
        found: list[tuple[Any, str]] = []
        async with self._orders() as orders:
            await self._fill(orders)
            for order_by, _ in _ORDERED:
                found.append((order_by, "".join(await self._read_by_page(orders, order_by=order_by, limit=limit))))

        assert found == _ORDERED

    async def test_values_of_any_kind_have_an_order(self) -> None:
        """Nothing, false, true, numbers, text; and the other way round."""
        ordered = ["list", "nothing", "null", "object", "no", "yes", "zero", "half", "one", "empty", "digit", "moment"]
        ordered.append("word")
        async with self.documents() as store:
            dicts = await self._filled(store, _UNTYPED)

            for limit in (1, 3, 100):
                assert await self._read_by_page(dicts, order_by="it", limit=limit) == ordered
                backwards = [*ordered[:3:-1], *ordered[:4]]
                assert await self._read_by_page(dicts, order_by="-it", limit=limit) == backwards

    async def test_places_in_lists_can_be_ordered_by(self) -> None:
        """Fields are given where a name is not enough."""
        async with self._orders() as orders:
            await self._fill(orders)
            price = orders.field("lines", 0, "price")

            assert [document.id for document in await orders.list(order_by=price)] == [*"ceabd"]
            assert [document.id for document in await orders.list(order_by=[-price, "-number"])] == [*"dbaec"]

    async def test_a_page_says_whether_there_is_more(self) -> None:
        """Also when it is full and the last one."""
        async with self._orders() as orders:
            await self._fill(orders)

            assert (await orders.list(limit=5)).next is None
            assert (await orders.list(orders.field("customer") == "nobody", limit=1)).next is None
            first = await orders.list(limit=4)
            assert first.next is not None
            assert first.next.replace("-", "").replace("_", "").isalnum()
            last = await orders.list(limit=4, after=first.next)
            assert [document.id for document in last] == ["e"]
            assert last.next is None

    async def test_what_comes_and_goes_meanwhile_shifts_no_page(self) -> None:
        """Neither does the deletion of the document that the page before has ended with."""
        async with self._orders() as orders:
            await self._fill(orders)
            first = await orders.list(order_by="total", limit=2)
            assert [document.id for document in first] == [*"ca"]
            await orders.delete("a")
            await orders.add("f", _Order(total=Decimal(-7)))
            await orders.add("g", _Order(total=Decimal("9.9")))
            second = await orders.list(order_by="total", limit=10, after=first.next)

            assert [document.id for document in second] == [*"egbd"]

    async def test_pages_of_many_documents(self) -> None:
        """A thousand, most of which are the same to the order."""
        async with self.documents() as store:
            numbers = store.collection("numbers", dict[str, int])
            async with self._together():
                for number in range(1000):
                    await numbers.upsert(f"{number:04}", {"tens": number // 10 % 10, "odd": number % 2})
            even = numbers.field("odd") == 0

            found = await self._read_by_page(numbers, even, order_by="-tens", limit=99)
            assert found == [f"{n:04}" for n in sorted(range(0, 1000, 2), key=lambda n: (-(n // 10 % 10), n))]
            assert await numbers.count(even) == 500
            assert await numbers.drop() == 1000
            assert await numbers.drop() == 0

    async def test_a_place_of_another_list_is_refused(self) -> None:
        """It may come from anybody."""
        async with self._orders() as orders:
            await self._fill(orders)
            by_total = (await orders.list(order_by="total", limit=1)).next

            for after in (by_total, "", "x", "é", "W10", "bnVsbA", "W1tdLFtdLCIiXQ", "W1tdLFtdLDFd"):
                with pytest.raises(ConversionError, match="no place in this list"):
                    await orders.list(after=after or "")
            with pytest.raises(ConversionError, match="no place in this list"):
                await orders.list(order_by="-total", after=by_total)
            with pytest.raises(ConversionError, match="limit"):
                await orders.list(limit=0)
            with pytest.raises(ConversionError, match="no order"):
                await orders.list(order_by="lines")

    # ------------------------------------------------------------------------------------------------ the unit of work

    async def test_every_change_takes_part_in_the_transaction(self) -> None:
        """What is rolled back has not happened, and was seen by the one who did it."""
        async with self._orders() as orders:
            await self._fill(orders)
            before = (await orders.list()).documents
            async with self._rolled_back():
                await orders.add("f", _ORDERS["a"])
                await orders.update("a", replace(_ORDERS["a"], number=99), expected=1)
                await orders.upsert("b", replace(_ORDERS["b"], number=99))
                await orders.upsert("b", replace(_ORDERS["b"], number=99))
                await orders.upsert("g", _ORDERS["a"])
                assert await orders.delete("c")
                assert not await orders.delete("c")

                assert [document.id for document in await orders.list()] == [*"abdefg"]
                assert [(await orders.get(one)).version for one in "abdfg"] == [2, 3, 1, 1, 1]
                assert await orders.count(orders.field("number") == 99) == 2
                assert await orders.find("c") is None
                assert await orders.drop() == 6
                assert await orders.count() == 0

            assert (await orders.list()).documents == before

    async def test_what_a_transaction_commits_stays(self) -> None:
        """All of it."""
        async with self._orders() as orders:
            await self._fill(orders)
            async with self.transaction():
                await orders.delete("a")
                await orders.add("a", _ORDERS["b"])
                await orders.update("a", _ORDERS["c"], expected=1)
                await orders.delete("b")
                await orders.upsert("f", _ORDERS["d"])

            assert [document.id for document in await orders.list()] == [*"acdef"]
            assert (await orders.get("a")).version == 2
            assert (await orders.get("a")).value == _ORDERS["c"]

    async def test_what_fails_does_not_break_the_transaction(self) -> None:
        """Whoever catches the error goes on."""
        async with self._orders() as orders:
            await self._fill(orders)
            async with self.transaction():
                with pytest.raises(DuplicateDocumentError):
                    await orders.add("a", _ORDERS["b"])
                with pytest.raises(ConcurrencyError):
                    await orders.update("a", _ORDERS["b"], expected=7)
                with pytest.raises(DocumentNotFoundError):
                    await orders.update("nobody", _ORDERS["b"], expected=1)
                with pytest.raises(ConcurrencyError):
                    await orders.delete("a", expected=7)
                await orders.add("f", _ORDERS["b"])

            assert [document.id for document in await orders.list()] == [*"abcdef"]

    async def test_others_see_what_is_committed(self) -> None:
        """And nothing of what is not."""
        async with self._orders() as orders:
            await orders.add("a", _ORDERS["a"])
            written, looked = anyio.Event(), anyio.Event()
            seen: list[tuple[int, int]] = []

            async def look() -> None:
                await written.wait()
                seen.append(((await orders.get("a")).version, await orders.count()))
                looked.set()

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(look)
                    async with self.transaction():
                        await orders.upsert("a", _ORDERS["b"])
                        await orders.add("b", _ORDERS["b"])
                        written.set()
                        await looked.wait()
                await look()

            assert seen == [(1, 1), (2, 2)]

    # ----------------------------------------------------------------------------------------------------- all at once

    async def test_upserts_at_once_lose_nothing(self) -> None:
        """Each has a version of its own."""
        async with self._orders() as orders:
            versions = await self._at_once(20, lambda place: self._upserted(orders, place))

            assert sorted(versions) == [*range(1, 21)]
            document = await orders.get("a")
            assert (document.version, document.value.number) == (20, versions.index(20))

    async def test_upserts_in_transactions_at_once_lose_nothing(self) -> None:
        """Those that are rolled back do not count."""

        async def upsert(place: int) -> int:
            try:
                async with self.transaction():
                    version = await self._upserted(orders, place)
                    if place % 2:
                        raise Rollback
                    return version
            except Rollback:
                return 0

        async with self._orders() as orders:
            self._needs_transactions()
            # Those that wait for the first row of all may be told to start again, when it is rolled back.
            await orders.add("a", _Order())
            versions = await self._at_once(10, upsert)

            assert sorted(versions) == [0, 0, 0, 0, 0, 2, 3, 4, 5, 6]
            assert (await orders.get("a")).version == 6

    async def test_one_of_many_additions_at_once_is_the_first(self) -> None:
        """The others are told."""

        async def add(place: int) -> int:
            try:
                return (await orders.add("a", _Order(number=place))).value.number
            except DuplicateDocumentError:
                return -1

        async with self._orders() as orders:
            added = await self._at_once(10, add)

            assert sorted(added)[:9] == [-1] * 9
            assert (await orders.get("a")).value.number == max(added)

    async def test_one_of_many_updates_at_once_is_the_first(self) -> None:
        """The others are told, and when they try again, nothing is lost."""

        async def count_up(place: int) -> int:
            failures = 0
            while True:
                known = await orders.get("a")
                try:
                    await orders.update("a", _Order(number=known.value.number + 1), expected=known.version)
                except ConcurrencyError:
                    failures += 1
                else:
                    return failures

        async with self._orders() as orders:
            await orders.add("a", _Order())
            await self._at_once(10, count_up)

            document = await orders.get("a")
            assert (document.value.number, document.version) == (10, 11)

    @pytest.mark.parametrize("commits", [True, False])
    async def test_an_update_waits_for_the_one_before(self, commits: bool) -> None:
        """Whether it is too late is known when the first one has ended."""
        updated, decided, answered = anyio.Event(), anyio.Event(), anyio.Event()
        answers: list[int | None] = []

        async def first() -> None:
            try:
                async with self.transaction():
                    await orders.update("a", _ORDERS["b"], expected=1)
                    updated.set()
                    await decided.wait()
                    if not commits:
                        raise Rollback
            except Rollback:
                assert not commits

        async def second() -> None:
            await updated.wait()
            try:
                async with self.transaction():
                    await orders.update("a", _ORDERS["c"], expected=1)
                answers.append(None)
            except ConcurrencyError as error:
                answers.append(error.actual)
            answered.set()

        async with self._orders() as orders:
            self._needs_transactions()
            await orders.add("a", _ORDERS["a"])
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(first)
                    tasks.start_soon(second)
                    await updated.wait()
                    with anyio.move_on_after(self.moment):
                        await answered.wait()
                    assert answers == []
                    decided.set()

            assert answers == [2 if commits else None]
            assert (await orders.get("a")).value == _ORDERS["b" if commits else "c"]

    # ----------------------------------------------------------------------------------------------------------- steps

    @staticmethod
    async def _fill(orders: Collection[_Order]) -> None:
        for name, order in reversed(_ORDERS.items()):
            await orders.add(name, order)

    @staticmethod
    async def _filled(store: DocumentStore, values: dict[str, dict[str, Any]]) -> Collection[dict[str, Any]]:
        dicts = store.collection("dicts", dict[str, Any])
        for name, value in values.items():
            await dicts.add(name, value)
        return dicts

    @staticmethod
    async def _read_by_page(collection: Collection[Any], *which: Filter, order_by: Any, limit: int) -> list[str]:
        page = await collection.list(*which, order_by=order_by, limit=limit)
        found = [document.id for document in page]
        while page.next is not None:
            assert len(page.documents) == limit
            page = await collection.list(*which, order_by=order_by, limit=limit, after=page.next)
            assert page.documents
            found += [document.id for document in page]
        return found

    @staticmethod
    async def _upserted(orders: Collection[_Order], place: int) -> int:
        return (await orders.upsert("a", _Order(number=place))).version

    async def _at_once(self, number: int, act: Callable[[int], Any]) -> list[int]:
        """Do something in many tasks, and return what each of them has come to."""
        results: dict[int, int] = {}

        async def run(place: int) -> None:
            results[place] = await act(place)

        with anyio.fail_after(self.patience):
            async with anyio.create_task_group() as tasks:
                for place in range(number):
                    tasks.start_soon(run, place)
        return [results[place] for place in range(number)]

    @asynccontextmanager
    async def _together(self) -> AsyncIterator[None]:
        """Do many things in one transaction where there are any: that is quicker."""
        if self._has("transaction"):
            async with self.transaction():
                yield
        else:
            yield

    def _needs_transactions(self) -> None:
        if not self._has("transaction"):
            self.transaction()
