"""The AsyncAPI document: valid by the official schema, and true of what is on the channels."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

import jsonschema
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, computed_field
from typing_extensions import TypedDict

from ecotone_fastapi import (
    Ecotone,
    Message,
    asynchronous,
    command_handler,
    event_handler,
    message_name,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.testing import flow_test

OFFICIAL = Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json"

T = TypeVar("T")


@cache
def official() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(OFFICIAL.read_text("utf-8")))


def resolved(document: Any, reference: str) -> Any:
    """What a reference within the document leads to."""
    assert reference.startswith("#/"), reference
    found = document
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """The document, if it is valid: as JSON, by the official schema, and in its references."""
    again: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    assert again == document
    errors = [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in official().iter_errors(again)]
    assert errors == []
    for reference in references(document):
        assert resolved(document, reference) is not None, reference
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft7Validator.check_schema(schema)
        assert name
    for operation in document["operations"].values():
        channel = resolved(document, operation["channel"]["$ref"])
        for message in operation["messages"]:
            assert resolved(document, message["$ref"]) in channel["messages"].values()
    return document


def document_of(
    handlers: Iterable[object], channels: Iterable[Channel] = (), plugins: Iterable[Any] = (), **options: Any
) -> dict[str, Any]:
    ecotone = Ecotone(handlers, channels=channels or [MemoryChannel("orders")], plugins=plugins, **options)
    return checked(ecotone.asyncapi(title="Shop", version="1.2.0"))


def payload_of(document: dict[str, Any], message: str) -> dict[str, Any]:
    """The schema of a payload; the reference at its top, if it is one, followed."""
    schema: dict[str, Any] = document["components"]["messages"][message]["payload"]
    return resolved(document, schema["$ref"]) if list(schema) == ["$ref"] else schema


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is valid by a schema of the document."""
    return jsonschema.Draft7Validator({**schema, "components": document["components"]}).is_valid(value)


def taking(type_: Any, id: str = "handle", route: str | None = None) -> Any:
    """An asynchronous handler of commands that takes this."""

    async def handle(payload: Any) -> None: ...

    handle.__annotations__["payload"] = type_
    return asynchronous("orders")(command_handler(route or "do.it", id=id)(handle))


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    quantity: int = 1


@message_name("order.placed")
@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


# ------------------------------------------------------------------------------------------------------- what is in it


class Shop:
    @asynchronous("orders")
    @command_handler(id="place-order")
    async def place(self, command: PlaceOrder) -> None:
        """Place an order.

        It is confirmed by mail.
        """

    @asynchronous("mails", "orders")
    @event_handler(id="notify")
    async def notify(self, event: OrderWasPlaced) -> None: ...

    @asynchronous("orders")
    @event_handler("order.*", id="count")
    async def count(self, event: Any) -> None: ...

    @event_handler(id="in-the-caller")
    async def at_once(self, event: OrderWasPlaced) -> None: ...

    @query_handler("order.status")
    async def status(self, order_id: str) -> str:
        return "placed"


def the_shop() -> dict[str, Any]:
    return document_of([Shop], [MemoryChannel("orders"), MemoryChannel("mails"), MemoryChannel("unused")])


def test_an_application_without_channels_has_an_empty_document() -> None:
    document = checked(Ecotone([]).asyncapi(title="Nothing", version="0"))

    assert (document["channels"], document["operations"], document["components"]["messages"]) == ({}, {}, {})


def test_the_document_tells_its_version_and_what_it_is_about() -> None:
    document = the_shop()

    assert document["asyncapi"] == "3.0.0"
    assert (document["info"]["title"], document["info"]["version"]) == ("Shop", "1.2.0")
    assert "Handlers that run in the caller are not in it" in document["info"]["description"]


def test_title_and_version_are_those_of_the_fastapi_application_unless_told() -> None:
    ecotone = Ecotone([])
    assert ecotone.asyncapi()["info"]["title"] == "Ecotone"

    ecotone.install(FastAPI(title="The shop", version="2.0"))

    info, told = ecotone.asyncapi()["info"], ecotone.asyncapi(title="Mine", version="3")["info"]
    assert (info["title"], info["version"]) == ("The shop", "2.0")
    assert (told["title"], told["version"]) == ("Mine", "3")


def test_every_channel_is_there_with_the_messages_of_its_handlers() -> None:
    channels = the_shop()["channels"]

    assert {name: sorted(channel["messages"]) for name, channel in channels.items()} == {
        "mails": ["notify"],
        "orders": ["count", "notify", "place-order"],
        "unused": [],
    }
    assert channels["orders"]["address"] == "orders"
    assert channels["orders"]["description"].startswith("MemoryChannel: ")


def test_handlers_that_run_in_the_caller_are_not_in_it() -> None:
    text = json.dumps(the_shop())

    assert "in-the-caller" not in text
    assert "order.status" not in text


def test_each_handler_is_sent_to_and_receives_on_every_channel_of_its_way() -> None:
    operations = the_shop()["operations"]

    assert list(operations) == [
        "receive.mails.notify",
        "receive.orders.count",
        "receive.orders.notify",
        "receive.orders.place-order",
        "send.mails.notify",
        "send.orders.count",
        "send.orders.notify",
        "send.orders.place-order",
    ]
    assert operations["receive.mails.notify"]["summary"] == ("Pass the event for Shop.notify on to the channel orders.")
    assert operations["receive.orders.notify"]["summary"] == "Handle the event in Shop.notify."
    received = operations["receive.orders.place-order"]
    assert (received["action"], received["title"], received["x-ecotone-endpoint"]) == (
        "receive",
        "Shop.place",
        "place-order",
    )
    assert received["description"] == "Place an order.\n\nIt is confirmed by mail."
    assert received["tags"] == [{"name": "command"}]
    assert operations["send.orders.count"]["x-ecotone-route"] == "order.*"


def test_a_message_is_named_like_its_type_or_its_key() -> None:
    messages = the_shop()["components"]["messages"]

    assert {key: (one["name"], one["title"]) for key, one in messages.items()} == {
        "count": ("order.*", "order.*"),
        "notify": ("order.placed", "OrderWasPlaced"),
        "place-order": (f"{__name__}.PlaceOrder", "PlaceOrder"),
    }


async def test_what_is_on_the_channel_is_what_the_document_says() -> None:
    channels = [MemoryChannel("orders"), MemoryChannel("mails")]
    async with flow_test([Shop], channels=channels) as flow:
        document = checked(flow.ecotone.asyncapi(title="Shop", version="1"))
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme", "delay": timedelta(seconds=0.5), "priority": 3})
        await flow.publish(OrderWasPlaced("1"))
        await flow.run("mails")
        waiting = [*await flow.waiting("orders")]

    messages = document["components"]["messages"]
    assert {message.headers["endpoint"] for message in waiting} == {"place-order", "notify", "count"}
    for message in waiting:
        described = messages[message.headers["endpoint"]]
        assert fits(document, described["headers"], dict(message.headers))
        assert not fits(document, described["headers"], {**message.headers, "endpoint": "another"})
        assert fits(document, described["payload"], json.loads(message.payload))
        assert described["contentType"] == message.headers["content_type"]
        named = described["headers"]["properties"].get("type", {"examples": [message.headers["type"]]})
        assert named["examples"] == [message.headers["type"]]


def test_what_somebody_else_sends_needs_the_handler_and_the_media_type() -> None:
    document = the_shop()
    headers = document["components"]["messages"]["place-order"]["headers"]

    sent = {"endpoint": "place-order", "content_type": "application/json", "shoe-size": "42"}
    assert fits(document, headers, sent)
    for name in ("endpoint", "content_type"):
        assert not fits(document, headers, {key: value for key, value in sent.items() if key != name})
    assert not fits(document, headers, {**sent, "priority": 3})  # headers are text
    assert not fits(document, headers, {**sent, "delay": "soon"})


def test_the_document_does_not_depend_on_the_order_of_the_handlers() -> None:
    handlers = [taking(PlaceOrder, "one", "a"), taking(dict, "two", "b"), Shop]
    channels = [MemoryChannel("orders"), MemoryChannel("mails")]

    assert json.dumps(document_of(handlers, channels)) == json.dumps(document_of(handlers[::-1], channels[::-1]))


def test_names_that_references_cannot_be_made_of_are_replaced_and_kept_apart() -> None:
    channels = [MemoryChannel("orders/eu"), MemoryChannel("orders eu"), MemoryChannel("zamówienia")]

    @asynchronous("orders/eu")
    @command_handler("one", id="a/b")
    async def one(command: str) -> None: ...

    @asynchronous("orders eu")
    @command_handler("two", id="a b")
    async def two(command: str) -> None: ...

    document = document_of([one, two], channels)

    assert {key: channel["address"] for key, channel in document["channels"].items()} == {
        "orders_eu": "orders eu",
        "orders_eu_2": "orders/eu",
        "zam_wienia": "zamówienia",
    }
    assert sorted(document["components"]["messages"]) == ["a_b", "a_b_2"]
    assert {one["x-ecotone-endpoint"] for one in document["operations"].values()} == {"a/b", "a b"}


# ------------------------------------------------------------------------------------------------------------- bindings


def test_a_queue_of_rabbitmq_has_its_binding_and_tells_no_password(sqlite_url: str) -> None:
    url = "amqp://shop:secret@rabbit.example:5671/north%2Feast"
    document = document_of(
        [taking(PlaceOrder)],
        [RabbitMQChannel("orders", url, queue="shop.orders")],
        [SqlAlchemy(sqlite_url, create_schema=True)],
    )

    assert list(document["channels"]) == ["orders"]  # and not the table in which the outbox keeps its messages
    channel = document["channels"]["orders"]
    assert channel["address"] == "shop.orders"
    assert channel["bindings"] == {
        "amqp": {
            "is": "queue",
            "queue": {"name": "shop.orders", "durable": True, "exclusive": False, "vhost": "north/east"},
            "bindingVersion": "0.3.0",
        }
    }
    assert channel["x-ecotone-channel"].endswith(".RabbitMQChannel")
    assert "secret" not in json.dumps(document)


def test_an_exchange_of_rabbitmq_is_addressed_by_its_routing_key(sqlite_url: str) -> None:
    rabbit = RabbitMQChannel("orders", exchange="shop", routing_key="order.#", declare=False, delivery="direct")
    document = document_of([taking(PlaceOrder)], [rabbit], [SqlAlchemy(sqlite_url, create_schema=True)])

    channel = document["channels"]["orders"]
    assert channel["address"] == "order.#"
    assert channel["bindings"]["amqp"] == {
        "is": "routingKey",
        "exchange": {"name": "shop", "vhost": "/"},
        "x-queue": {"name": "orders", "exclusive": False, "vhost": "/"},
        "bindingVersion": "0.3.0",
    }


def test_a_table_is_a_channel_without_bindings(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url, create_schema=True)

    channel = document_of([taking(PlaceOrder)], [database.channel("orders")], [database])["channels"]["orders"]

    assert channel["address"] == "orders"
    assert "bindings" not in channel


# ------------------------------------------------------------------------------------------------------------- payloads


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Address(BaseModel):
    street: str
    number: int = Field(alias="houseNumber", ge=1)


class Category(BaseModel):
    name: str
    parents: list["Category"] = []


class Box(BaseModel, Generic[T]):
    content: T


class Card(BaseModel):
    kind: Literal["card"]
    digits: str


class Cash(BaseModel):
    kind: Literal["cash"]


class Line(TypedDict):
    sku: str
    count: NotRequired[int]


@dataclass
class Node:
    value: int
    following: "Node | None" = None


class Everything(BaseModel):
    """One of each."""

    model_config = ConfigDict(extra="forbid")

    address: Address = Field(description="Where it goes.")
    at: datetime
    on: date
    during: timedelta
    price: Decimal = Field(gt=0, decimal_places=2)
    raw: bytes
    colour: Colour = Colour.RED
    size: Size
    tags: set[str] = set()
    pair: tuple[int, str]
    rest: tuple[int, ...] = ()
    lines: list[Line]
    by_id: dict[UUID, Box[int]]
    payment: Annotated[Card | Cash, Field(discriminator="kind")]
    maybe: int | None = None
    limit: float = float("inf")
    anything: Any = None
    code: Annotated[int, PlainSerializer(lambda value: str(value), return_type=str)]

    @computed_field
    def total(self) -> int:
        return 7


def everything() -> Everything:
    return Everything(
        address=Address(street="Main", houseNumber=7),
        at=datetime.fromisoformat("2026-11-28T12:00:00+00:00"),
        on=date(2026, 11, 28),
        during=timedelta(hours=1),
        price=Decimal("9.99"),
        raw=b"abc",
        size=Size.LARGE,
        tags={"new"},
        pair=(1, "one"),
        rest=(1, 2),
        lines=[{"sku": "apple"}],
        by_id={UUID(int=1): Box[int](content=1)},
        payment=Cash(kind="cash"),
        code=5,
    )


async def written(handler: Any, payload: Any) -> tuple[dict[str, Any], Message[bytes]]:
    """The document, and what is on the channel of a payload that was sent."""
    async with flow_test([handler], channels=[MemoryChannel("orders")]) as flow:
        await flow.send(payload, to="do.it")
        (message,) = await flow.waiting("orders")
        return checked(flow.ecotone.asyncapi(title="Shop", version="1")), message


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Everything, everything()),
        (Box[Box[int]], Box[Box[int]](content=Box[int](content=1))),
        (Card | Cash, Card(kind="card", digits="1234")),
        (PlaceOrder | OrderWasPlaced, OrderWasPlaced("1")),
        (Category, Category(name="fruit", parents=[Category(name="food")])),
        (Node, Node(1, Node(2))),
        (Line, {"sku": "apple"}),
        (list[PlaceOrder], [PlaceOrder("1")]),
        (dict[str, Decimal], {"one": Decimal("1.5")}),
        (tuple[int, str], (1, "one")),
        (Colour, Colour.BLUE),
        (Decimal, Decimal("1.50")),
        (datetime, datetime.fromisoformat("2026-11-28T12:00:00+00:00")),
        (PlaceOrder | None, None),
        (dict, {"anything": [1, None]}),
        (Any, {"anything": [1, None]}),
        (object, [1, "two"]),
        (str, "text"),
        (int, 7),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
async def test_a_payload_is_described_as_it_is_written(type_: Any, value: Any) -> None:
    document, message = await written(taking(type_), value)

    described = document["components"]["messages"]["handle"]
    assert fits(document, described["payload"], json.loads(message.payload)), message.payload
    assert described["contentType"] == message.headers["content_type"] == "application/json"


@pytest.mark.parametrize(
    ("type_", "wrong"),
    [
        (Everything, {}),
        (Box[Box[int]], {"content": {"content": "one"}}),
        (Card | Cash, {"kind": "card"}),
        (Category, {"name": "fruit", "parents": [{}]}),
        (Node, {"value": 1, "following": {"value": "two"}}),
        (Line, {"count": 1}),
        (tuple[int, str], ["one", 1]),
        (Colour, "green"),
        (PlaceOrder | None, 1),
        (dict, []),
        (str, 1),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_what_does_not_fit_a_payload_does_not_fit_its_schema(type_: Any, wrong: Any) -> None:
    document = document_of([taking(type_)])

    assert not fits(document, document["components"]["messages"]["handle"]["payload"], wrong)


def test_a_schema_says_what_its_fields_are() -> None:
    document = document_of([taking(Everything)])
    schema = payload_of(document, "handle")

    assert schema["description"] == "One of each."
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["address"] == {
        "allOf": [{"$ref": "#/components/schemas/Address"}],
        "description": "Where it goes.",
    }
    assert "houseNumber" in document["components"]["schemas"]["Address"]["properties"]
    assert properties["at"]["format"] == "date-time"
    assert properties["price"]["format"] == "decimal"
    assert properties["pair"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert properties["payment"]["discriminator"] == "kind"
    assert properties["limit"]["default"] == "Infinity"
    assert properties["code"]["type"] == "string"
    assert document["components"]["schemas"]["Colour"]["enum"] == ["red", "blue"]


def test_computed_fields_are_not_written_and_not_described() -> None:
    schema = payload_of(document_of([taking(Everything)]), "handle")

    assert "total" not in schema["properties"]
    assert "total" not in schema["required"]


def test_fields_with_a_default_may_be_left_out() -> None:
    schema = payload_of(document_of([taking(PlaceOrder)]), "handle")

    assert schema["required"] == ["order_id"]
    assert schema["properties"]["quantity"]["default"] == 1


def test_two_classes_of_one_name_have_a_schema_each() -> None:
    document = document_of(
        [
            taking(SimpleNamespace(one=named_order("one")).one, "first", "a"),
            taking(named_order("other"), "second", "b"),
            taking(list[PlaceOrder], "third", "c"),
        ]
    )

    fields = [list(payload_of(document, one)["properties"]) for one in ("first", "second")]
    assert fields == [["one"], ["other"]]
    schemas = [one for one in document["components"]["schemas"].values() if one["title"] == "Order"]
    assert len(schemas) == 2


def named_order(field_name: str) -> type[BaseModel]:
    """A class named `Order`, of a module of its own."""
    return type("Order", (BaseModel,), {"__annotations__": {field_name: int}, "__module__": f"shop.{field_name}"})


def test_a_class_that_two_handlers_take_has_one_schema() -> None:
    document = document_of([taking(PlaceOrder, "one", "a"), taking(list[PlaceOrder], "two", "b")])

    assert list(document["components"]["schemas"]) == ["ecotone.headers", "PlaceOrder"]
    assert payload_of(document, "two")["items"] == {"$ref": "#/components/schemas/PlaceOrder"}


def test_a_handler_that_takes_bytes_takes_any_media_type() -> None:
    message = document_of([taking(bytes)])["components"]["messages"]["handle"]

    assert (message["contentType"], message["payload"]["format"]) == ("application/octet-stream", "binary")
    assert "const" not in message["headers"]["properties"]["content_type"]


def test_a_handler_that_takes_no_payload_says_nothing_of_it() -> None:
    @asynchronous("orders")
    @command_handler("wake.up", id="wake-up")
    async def wake_up() -> None: ...

    message = document_of([wake_up])["components"]["messages"]["wake-up"]

    assert "payload" not in message
    assert message["name"] == "wake.up"


def test_a_handler_of_a_union_takes_any_of_its_members() -> None:
    document = document_of([taking(PlaceOrder | OrderWasPlaced)])

    message = document["components"]["messages"]["handle"]
    assert [one["$ref"] for one in message["payload"]["anyOf"]] == [
        "#/components/schemas/PlaceOrder",
        "#/components/schemas/OrderWasPlaced",
    ]
    assert message["headers"]["properties"]["type"]["examples"] == [f"{__name__}.PlaceOrder", "order.placed"]


def test_a_handler_of_a_union_without_a_key_is_named_by_its_id() -> None:
    @asynchronous("orders")
    @event_handler(id="either")
    async def either(event: PlaceOrder | OrderWasPlaced) -> None: ...

    message = document_of([either])["components"]["messages"]["either"]

    assert (message["name"], message["title"]) == (
        "either",
        f"{__name__}.PlaceOrder | {__name__}.OrderWasPlaced",
    )


@dataclass
class Row:
    cells: list[str] = field(default_factory=list)


class RowsAsCsv:
    content_type = "text/csv"

    def handles(self, type_: Any) -> bool:
        return type_ is Row

    def encode(self, value: Any) -> bytes:
        return ",".join(value.cells).encode()

    def decode(self, data: bytes, type_: Any) -> Any:
        return Row(data.decode().split(","))


def test_what_a_converter_of_the_user_writes_has_its_media_type_and_no_schema() -> None:
    message = document_of([taking(Row)], converters=[RowsAsCsv()])["components"]["messages"]["handle"]

    assert message["contentType"] == "text/csv"
    assert "payload" not in message


def test_a_union_that_several_converters_write_has_no_media_type_of_its_own() -> None:
    message = document_of([taking(Row | PlaceOrder)], converters=[RowsAsCsv()])["components"]["messages"]["handle"]

    assert "contentType" not in message
    assert "payload" not in message
