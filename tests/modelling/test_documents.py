"""What the shipped suite does not ask: fields and their types, converters, mistakes, and documents in applications."""

import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field, PlainSerializer, SecretStr, computed_field, field_serializer
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from ecotone_fastapi import (
    CommandBusDep,
    ConversionError,
    DocumentStore,
    Ecotone,
    EventBus,
    QueryBusDep,
    asynchronous,
    command_handler,
    event_handler,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDocuments
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ConcurrencyError, ConfigurationError, DocumentNotFoundError
from ecotone_fastapi.modelling.document_filters import ValueKind
from ecotone_fastapi.modelling.documents import Collection, Page
from ecotone_fastapi.testing import TravellingClock, flow_test


@dataclass(frozen=True)
class Basket:
    owner: str
    total: Decimal = Decimal(0)
    items: list[str] = field(default_factory=list)


def store() -> DocumentStore:
    return DocumentStore(MemoryDocuments())


# ----------------------------------------------------------------------------------------------- fields and their types


class Color(Enum):
    RED = "red"
    SEVEN = 7


class Point(NamedTuple):
    x: int
    label: str


class Note(TypedDict):
    text: str


@pydantic_dataclass
class Size:
    width: float


class Model(BaseModel, arbitrary_types_allowed=True):
    named: str = Field("", alias="givenName")
    count: int | None = None
    amount: Decimal = Decimal(0)
    as_number: Decimal = Decimal(0)
    at: datetime | None = None
    on: date = date(2026, 1, 1)
    color: Color = Color.RED
    mode: Literal["on", 1] = "on"
    flag: bool = False
    size: Size | None = None
    note: Note | None = None
    point: Point = Point(1, "")
    sizes: dict[str, Size] = Field(default_factory=dict)
    rows: list[list[int]] = Field(default_factory=list)
    anything: Any = None
    free: dict[str, Any] = Field(default_factory=dict)
    either: int | str = 0
    parent: "Model | None" = None
    shouted: Annotated[int, PlainSerializer(str)] = 1

    @field_serializer("as_number")
    def write_as_number(self, value: Decimal) -> float:
        return float(value)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def computed(self) -> int:
        return 1


NUMBER, TEXT, DECIMAL, MOMENT = ValueKind.NUMBER, ValueKind.TEXT, ValueKind.DECIMAL, ValueKind.MOMENT


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        (["givenName"], {TEXT}),
        (["count"], {NUMBER}),
        (["amount"], {DECIMAL}),
        (["as_number"], {NUMBER}),
        (["at"], {MOMENT}),
        (["on"], {TEXT}),
        (["color"], {TEXT, NUMBER}),
        (["mode"], {TEXT, NUMBER}),
        (["flag"], {ValueKind.BOOLEAN}),
        (["size"], set()),
        (["size.width"], {NUMBER}),
        (["note.text"], {TEXT}),
        (["point", 0], {NUMBER}),
        (["point", 1], {TEXT}),
        (["sizes.any name.width"], {NUMBER}),
        (["rows", 5, 7], {NUMBER}),
        (["anything"], None),
        (["anything", "what.ever", 3], None),
        (["free.whatever.else"], None),
        (["either"], {NUMBER, TEXT}),
        (["parent.parent.parent.count"], {NUMBER}),
    ],
    ids=lambda one: str(one) if isinstance(one, list) else "",
)
def test_the_class_tells_what_a_field_is(path: list[Any], kinds: set[ValueKind] | None) -> None:
    found = store().collection("models", Model).field(*path)

    assert found.kinds == (None if kinds is None else frozenset(kinds))


@pytest.mark.parametrize(
    "path",
    [
        ["named"],
        ["nothing"],
        ["count.more"],
        ["size.height"],
        ["point", 2],
        ["rows.0"],
        ["count", 0],
        ["computed"],
        ["sizes", 0],
    ],
    ids=str,
)
def test_a_field_that_can_never_be_there_is_an_error(path: list[Any]) -> None:
    with pytest.raises(ConversionError, match="there is no Model"):
        store().collection("models", Model).field(*path)


def test_the_error_names_the_fields_that_there_are() -> None:
    with pytest.raises(ConversionError) as raised:
        store().collection("baskets", Basket).field("ownr")

    assert str(raised.value) == (
        "there is no Basket.ownr\nTried: owner, total, items\nHint: write the names of fields as they are in JSON"
    )


def test_a_path_is_given_at_once_or_name_by_name() -> None:
    models = store().collection("models", Model)

    assert models.field("parent", "size", "width").path == models.field("parent.size.width").path
    with pytest.raises(ConversionError, match="each is one name"):
        models.field("parent.rows", 0)


@pytest.mark.parametrize("path", [['a"b'], ["a\\b"], ["a\nb"], ["a", -1], ["a", True], ["a", 1.5]], ids=str)
def test_a_name_that_not_every_database_finds_is_refused(path: list[Any]) -> None:
    with pytest.raises(ConversionError, match="cannot be searched by"):
        store().collection("dicts", dict[str, Any]).field(*path)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("count", "seven", "in JSON it is a number"),
        ("count", True, "in JSON it is a number"),
        ("amount", "much", "in JSON it is a number"),
        ("at", "yesterday", "in JSON it is a date with its time"),
        ("at", date(2026, 1, 1), "in JSON it is a date with its time"),
        ("on", datetime(2026, 1, 1, tzinfo=UTC), "in JSON it is text"),
        ("givenName", 7, "in JSON it is text"),
        ("flag", 1, "in JSON it is true or false"),
        ("size", 7, "in JSON it is an object or a list"),
        ("either", True, "in JSON it is a number or text"),
        ("count", float("nan"), "no number in JSON"),
        ("amount", Decimal("Infinity"), "no number in JSON"),
        ("anything", [1], "no single value"),
        ("anything", {"a": 1}, "no single value"),
        ("anything", object(), "no form in JSON"),
        ("givenName", "a\x00b", "U+0000"),
        ("givenName", "\ud800", "no Unicode"),
    ],
)
def test_what_a_field_can_never_be_is_an_error(path: str, value: Any, problem: str) -> None:
    found = store().collection("models", Model).field(path)

    with pytest.raises(ConversionError) as raised:
        _ = found == value
    assert problem in str(raised.value)
    with pytest.raises(ConversionError):
        found.in_([value])


def test_a_prefix_is_text_of_a_text() -> None:
    models = store().collection("models", Model)

    for path, prefix in (("count", "1"), ("givenName", 1), ("size", "1")):
        with pytest.raises(ConversionError, match="cannot be compared"):
            models.field(path).startswith(prefix)  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="no list of values"):
        models.field("givenName").in_("abc")


async def test_dates_ids_and_enums_are_compared_as_they_are_written() -> None:
    models = store().collection("models", Model)
    key = uuid4()
    await models.add(
        "a", Model(on=date(2026, 2, 1), color=Color.SEVEN, anything=key, at=datetime(2026, 1, 1, tzinfo=UTC))
    )

    for which in (
        models.field("on") == date(2026, 2, 1),
        models.field("color") == Color.SEVEN,
        models.field("anything") == key,
        models.field("at").startswith("2026-01"),
        models.field("at") >= "2026-01-01T00:00:00Z",
        models.field("as_number") == Decimal("0.0"),
        models.field("amount") == "0.00",
    ):
        assert await models.count(which) == 1


def test_a_condition_is_neither_true_nor_false() -> None:
    count = store().collection("models", Model).field("count")

    for mistake in (lambda: 1 < count < 5, lambda: not count.is_null(), lambda: count > 1 or count < 0):
        with pytest.raises(TypeError, match="instead of and, or, not"):
            mistake()


# ------------------------------------------------------------------------------------------------------------- types


def test_a_type_that_does_not_come_back_is_an_error() -> None:
    class Account(BaseModel):
        password: SecretStr

    with pytest.raises(ConfigurationError, match="does not come back from a document"):
        store().collection("accounts", Account)
    with pytest.raises(ConfigurationError, match="pydantic has no schema"):
        store().collection("accounts", type("Opaque", (), {}))


async def test_a_value_of_another_type_is_refused() -> None:
    baskets = store().collection("baskets", Basket)

    with pytest.raises(ConversionError, match="the document 'b' of 'baskets'"):
        await baskets.add("b", Model())  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="the document 'b' of 'baskets'"):
        await baskets.add("b", Basket(owner=7))  # type: ignore[arg-type]
    assert await baskets.count() == 0


async def test_values_that_are_no_objects_of_a_class_are_made_to_fit() -> None:
    notes = store().collection("notes", Note)
    await notes.add("a", {"text": "hello"})

    with pytest.raises(ConversionError, match=r"'b' of 'notes'.*text"):
        await notes.add("b", {"txt": "hello"})  # type: ignore[typeddict-unknown-key, typeddict-item]
    assert (await notes.get("a")).value == {"text": "hello"}


class BasketConverter:
    content_type = "application/json"

    def handles(self, type_: Any) -> bool:
        return type_ is Basket

    def encode(self, value: Any) -> bytes:
        return f'{{"o": "{value.owner}"}}'.encode()

    def decode(self, data: bytes, type_: Any) -> Any:
        return Basket(data.decode().split('"')[3])


async def test_the_converters_of_the_application_write_and_read() -> None:
    @command_handler("put")
    async def put(owner: str, documents: DocumentStore) -> list[str]:
        baskets = documents.collection("baskets", Basket)
        await baskets.add("b", Basket(owner))
        return [basket.value.owner for basket in await baskets.list(baskets.field("o") == owner)]

    async with Ecotone([put], converters=[BasketConverter()]).running() as ecotone:
        assert await ecotone.command_bus.send("ada", to="put") == ["ada"]


async def test_a_converter_that_writes_no_json_is_of_no_use() -> None:
    class CsvConverter(BasketConverter):
        content_type = "text/csv"

    baskets = DocumentStore(MemoryDocuments(), Conversion([CsvConverter()])).collection("baskets", Basket)

    with pytest.raises(ConversionError, match="text/csv"):
        await baskets.add("b", Basket("ada"))


@pytest.mark.parametrize(
    "values",
    [["NaN"], ["Infinity"], ['"\\u0000"'], ['"\\ud800"'], ["1e99999"], ["[1]"], ["{}"], ["true", "1"], [1], [], 7],
    ids=str,
)
async def test_a_place_that_somebody_has_made_up_is_refused(values: Any) -> None:
    dicts = store().collection("dicts", dict[str, Any])
    await dicts.upsert("a", {"it": 1})
    after = urlsafe_b64encode(json.dumps([[["it", False]], values, "a"]).encode()).decode()

    with pytest.raises(ConversionError, match="no place in this list"):
        await dicts.list(order_by="it", after=after)


async def test_a_place_may_be_made_of_what_is_not_there_any_more() -> None:
    dicts = store().collection("dicts", dict[str, Any])
    for name, value in (("a", 1), ("b", 2.5), ("c", "text")):
        await dicts.upsert(name, {"it": value})
    places = [(await dicts.list(order_by="it", limit=number)).next for number in (1, 2)]
    await dicts.delete("a")
    await dicts.delete("b")

    for place in places:
        assert [document.id for document in await dicts.list(order_by="it", after=place)] == ["c"]


# ---------------------------------------------------------------------------------------------------- in an application


async def test_a_handler_that_fails_leaves_no_document_behind() -> None:
    @command_handler("put")
    async def put(owner: str, documents: DocumentStore) -> None:
        baskets = documents.collection("baskets", Basket)
        await baskets.upsert("b", Basket(owner))
        if owner == "nobody":
            assert (await baskets.get("b")).value.owner == "nobody"
            raise ValueError(owner)

    @query_handler("owner")
    async def owner(documents: DocumentStore) -> str:
        return (await documents.collection("baskets", Basket).get("b")).value.owner

    async with flow_test([put, owner]) as flow:
        await flow.send("ada", to="put")
        with pytest.raises(ValueError, match="nobody"):
            await flow.send("nobody", to="put")

        assert await flow.ask(to="owner") == "ada"


async def test_a_message_leaves_when_what_it_speaks_of_can_be_seen() -> None:
    seen: list[str] = []

    @asynchronous("notes")
    @event_handler("put", id="note")
    async def note(basket_id: str, documents: DocumentStore) -> None:
        seen.append((await documents.collection("baskets", Basket).get(basket_id)).value.owner)

    class Baskets:
        def __init__(self, documents: DocumentStore) -> None:
            self.baskets: Collection[Basket] = documents.collection("baskets", Basket)

        @command_handler("put")
        async def put(self, owner: str, events: EventBus) -> None:
            await events.publish(owner, to="put")
            await self.baskets.add(owner, Basket(owner))

    async with flow_test([Baskets, note], channels=[MemoryChannel("notes")]) as flow:
        await flow.send("ada", to="put")
        assert await flow.run("notes") == 1

    assert seen == ["ada"]


async def test_documents_tell_the_time_of_the_application() -> None:
    clock = TravellingClock(datetime(2020, 1, 1, tzinfo=UTC))
    times: list[datetime] = []

    @command_handler("put")
    async def put(owner: str, documents: DocumentStore) -> None:
        times.append((await documents.collection("baskets", Basket).upsert("b", Basket(owner))).updated_at)

    async with Ecotone([put], clock=clock).running() as ecotone:
        await ecotone.command_bus.send("ada", to="put")
        clock.advance(timedelta(days=1))
        await ecotone.command_bus.send("ada", to="put")

    assert times == [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)]


@pytest.fixture
def database(sqlite_url: str) -> SqlAlchemy:
    return SqlAlchemy(sqlite_url, create_schema=True)


async def test_a_handler_that_was_too_late_is_run_again(database: SqlAlchemy) -> None:
    attempts: list[int] = []

    @command_handler("count")
    async def count(amount: int, documents: DocumentStore) -> None:
        baskets = documents.collection("baskets", Basket)
        basket = await baskets.get("b")
        attempts.append(basket.version)
        expected = basket.version - 1 if len(attempts) == 1 else basket.version
        await baskets.update("b", replace(basket.value, total=basket.value.total + amount), expected=expected)

    async with Ecotone([count], plugins=[database]).running() as ecotone:
        baskets = database.documents.collection("baskets", Basket)
        await baskets.add("b", Basket("ada"))
        await ecotone.command_bus.send(5, to="count")

        assert attempts == [1, 1]
        assert (await baskets.get("b")).value.total == 5


@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_nested_command_that_fails_takes_back_its_own_documents_alone(
    database: SqlAlchemy, in_memory: bool
) -> None:
    @command_handler("inner")
    async def inner(owner: str, documents: DocumentStore) -> None:
        baskets = documents.collection("baskets", Basket)
        for name in ("inner", "outer"):
            await baskets.upsert(name, Basket(owner))
        raise ConcurrencyError("too late")

    class Outer:
        @command_handler("outer")
        async def outer(self, owner: str, commands: CommandBusDep, documents: DocumentStore) -> None:
            await documents.collection("baskets", Basket).upsert("outer", Basket(owner))
            with pytest.raises(ConcurrencyError):
                await commands.send("alan", to="inner")

        @query_handler("show")
        async def show(self, documents: DocumentStore) -> list[tuple[str, str, int]]:
            page = await documents.collection("baskets", Basket).list()
            return [(basket.id, basket.value.owner, basket.version) for basket in page]

    async with Ecotone([Outer, inner], plugins=[] if in_memory else [database]).running() as ecotone:
        await ecotone.command_bus.send("ada", to="outer")

        assert await ecotone.query_bus.ask(to="show") == [("outer", "ada", 1)]


def test_errors_have_a_status_and_pages_are_answers() -> None:
    @command_handler("put")
    async def put(basket: Basket, documents: DocumentStore) -> int:
        baskets = documents.collection("baskets", Basket)
        return (await baskets.add(basket.owner, basket)).version

    @command_handler("rename")
    async def rename(version: int, documents: DocumentStore) -> int:
        return (await documents.collection("baskets", Basket).update("ada", Basket("x"), expected=version)).version

    @query_handler("list")
    async def found(after: str | None, documents: DocumentStore) -> Page[Basket]:
        return await documents.collection("baskets", Basket).list(limit=1, after=after)

    @query_handler("get")
    async def get(basket_id: str, documents: DocumentStore) -> Basket:
        return (await documents.collection("baskets", Basket).get(basket_id)).value

    @query_handler("broken")
    async def broken(documents: DocumentStore) -> None:
        await documents.collection("baskets", Basket).add("b", Basket(owner=7))  # type: ignore[arg-type]

    app = FastAPI()
    Ecotone([put, rename, found, get, broken]).install(app)

    @app.post("/baskets")
    async def post_basket(basket: Basket, commands: CommandBusDep) -> int:
        return int(await commands.send(basket, to="put"))

    @app.put("/baskets")
    async def put_basket(version: int, commands: CommandBusDep) -> int:
        return int(await commands.send(version, to="rename"))

    @app.get("/baskets")
    async def get_baskets(queries: QueryBusDep, after: str | None = None) -> Page[Basket]:
        return await queries.ask(after, to="list", returns=Page[Basket])

    @app.get("/baskets/{basket_id}")
    async def get_basket(basket_id: str, queries: QueryBusDep) -> Basket:
        return await queries.ask(basket_id, to="get", returns=Basket)

    @app.get("/broken")
    async def get_broken(queries: QueryBusDep) -> None:
        await queries.ask(to="broken")

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/baskets/ada").status_code == 404
        assert client.post("/baskets", json={"owner": "ada"}).json() == 1
        assert client.post("/baskets", json={"owner": "ada"}).status_code == 409
        assert client.put("/baskets?version=7").status_code == 409
        assert client.post("/baskets", json={"owner": "alan"}).json() == 1
        page = client.get("/baskets").json()
        assert page["documents"][0]["value"]["owner"] == "ada"
        assert client.get(f"/baskets?after={page['next']}").json()["documents"][0]["id"] == "alan"
        assert client.get("/baskets?after=x").status_code == 422
        assert client.get("/broken").status_code == 500


async def test_what_is_not_there_is_told_with_a_hint() -> None:
    with pytest.raises(DocumentNotFoundError) as raised:
        await store().collection("baskets", Basket).get("b")

    assert str(raised.value) == (
        "there is no document 'b' in 'baskets'\nHint: find() returns None instead; upsert() writes it in any case"
    )
