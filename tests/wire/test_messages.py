"""What earlier versions have written to channels can still be read, and what is written today is what they wrote.

A file here is never changed. When the format grows, a folder for the new version is added.
"""

import enum
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.endpoint import command_handler, event_handler
from ecotone_fastapi.core.message import FRAMEWORK_HEADERS, Message, message_name
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.testing import Flow, flow_test

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name[0].isdigit())
MESSAGES = sorted(file for version in VERSIONS for file in version.glob("*.json") if file.stem != "header_names")


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Item:
    sku: str
    quantity: int


@message_name("order.placed", aliases=["order.was_placed"])
@dataclass(frozen=True)
class OrderWasPlaced:
    id: UUID
    placed_at: datetime
    total: Decimal
    colour: Colour
    items: list[Item]
    note: str | None = None


@message_name("order.closed")
class OrderWasClosed(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    order_id: int


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Orders:
    """Handlers without ids of their own: theirs are told from where they stand."""

    @asynchronous("golden")
    @command_handler
    async def place(self, command: PlaceOrder) -> None:
        seen.append(command)

    @asynchronous("golden")
    @command_handler("order.cancel")
    @event_handler("order.cancelled")
    async def cancel(self, order_id: str) -> None:
        seen.append(order_id)


# Ids and names are told from module and class: these stand where a user's would.
for cls in (PlaceOrder, Orders):
    cls.__module__ = "shop.orders"


class Golden:
    @asynchronous("golden")
    @event_handler(id="golden")
    async def golden(self, event: OrderWasPlaced | OrderWasClosed) -> None:
        seen.append(event)

    @asynchronous("golden")
    @event_handler("anything", id="anything")
    async def anything(self, payload: Any, message: Message[Any]) -> None:
        seen.append(payload)

    @asynchronous("golden")
    @event_handler("nothing", id="nothing")
    async def nothing(self) -> None:
        seen.append(None)


seen: list[Any] = []

ORDER = OrderWasPlaced(
    UUID(int=7), datetime(2026, 1, 31, 12, tzinfo=UTC), Decimal("12.30"), Colour.RED, [Item("grüße", 2)]
)
EXPECTED = {
    "0.1/bytes_by_key": b"raw",
    "0.1/dataclass_by_former_name": ORDER,
    "0.1/dataclass_by_name": ORDER,
    "0.1/dict_by_key": {"order_id": "order-1", "quantity": 2},
    "0.1/model_with_aliases": OrderWasClosed(order_id=7),
    "0.1/module_and_class": PlaceOrder("order-1"),
    "0.1/nothing": None,
    "0.1/retried_and_partitioned": PlaceOrder("order-1"),
    "0.1/root_message": {"order_id": "order-1"},
    "0.1/several_messages_of_one_handler": "order-1",
    "0.1/text_by_key": "grüße",
}


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def golden(file: Path) -> Message[bytes]:
    stored = json.loads(file.read_text("utf-8"))
    return Message(stored["payload"].encode(), stored["headers"])


async def read(message: Message[bytes]) -> list[Any]:
    seen.clear()
    async with flow_test([Golden, Orders], channels=[MemoryChannel("golden")]) as flow:
        await flow.ecotone.prepare().transmit("golden", [message])
        await flow.run("golden")
    return seen


def test_every_golden_message_is_read_by_a_test() -> None:
    assert [name_of(file) for file in MESSAGES] == sorted(EXPECTED)


@pytest.mark.parametrize("file", MESSAGES, ids=name_of)
async def test_a_message_of_an_earlier_version_is_still_read(file: Path) -> None:
    assert await read(golden(file)) == [EXPECTED[name_of(file)]]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_no_header_name_has_disappeared(version: Path) -> None:
    names = json.loads((version / "header_names.json").read_text("utf-8"))

    assert set(names) <= FRAMEWORK_HEADERS


async def written(flow: Flow) -> tuple[bytes, dict[str, str]]:
    """What is on the channel, without what is different each time."""
    [message] = await flow.waiting("golden")
    headers = {
        name: text for name, text in message.headers.items() if name not in ("id", "correlation_id", "timestamp")
    }
    return message.payload, headers


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dataclass_by_name", None),
        ("model_with_aliases", None),
        ("dict_by_key", "anything"),
        ("bytes_by_key", "anything"),
        ("nothing", "nothing"),
    ],
)
async def test_an_event_is_written_as_it_has_always_been(name: str, key: str | None) -> None:
    async with flow_test([Golden, Orders], channels=[MemoryChannel("golden")]) as flow:
        await flow.publish(EXPECTED[f"0.1/{name}"], to=key, headers={"tenant": "acme"})
        payload, headers = await written(flow)

    before = golden(VERSIONS[0] / f"{name}.json")
    assert payload == before.payload
    assert headers == {name: before.headers[name] for name in headers}
    assert headers.keys() == before.headers.keys() - {"id", "correlation_id", "causation_id", "timestamp"}


@pytest.mark.parametrize(
    ("name", "key"), [("module_and_class", None), ("several_messages_of_one_handler", "order.cancel")]
)
async def test_a_command_is_written_as_it_has_always_been(name: str, key: str | None) -> None:
    async with flow_test([Golden, Orders], channels=[MemoryChannel("golden")]) as flow:
        await flow.send(EXPECTED[f"0.1/{name}"], to=key, headers={"tenant": "acme"})
        payload, headers = await written(flow)

    before = golden(VERSIONS[0] / f"{name}.json")
    assert payload == before.payload
    assert headers == {name: before.headers[name] for name in headers}
