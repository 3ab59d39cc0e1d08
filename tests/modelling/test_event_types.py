"""From stored events to objects and back."""

import importlib
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from ecotone_fastapi import (
    ConversionError,
    Ecotone,
    HeaderName,
    Message,
    event_handler,
    message_name,
    revision,
    upcaster,
)
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.modelling.event_storage import NewEvent, Position, StoredEvent
from ecotone_fastapi.modelling.event_store import UnknownEventError
from ecotone_fastapi.modelling.event_types import EventTypes, may_be_event

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@message_name("basket.item_added", aliases=["item_was_added"])
@dataclass(frozen=True)
class ItemAdded:
    basket_id: str
    quantity: int


@dataclass(frozen=True)
class BasketClosed:
    basket_id: str


class Named(BaseModel):
    name: str


class Renamed(Named):
    before: str


@message_name("wallet.charged")
@revision(2)
@dataclass(frozen=True)
class Charged:
    amount: int
    currency: str


@upcaster("wallet.charged", revision=1)
def with_currency(payload: dict[str, object]) -> dict[str, object]:
    return {**payload, "currency": "EUR"}


def types(*classes: type, **given: object) -> EventTypes:
    return EventTypes(Gateway(Conversion(), SystemClock()), classes, **given)  # type: ignore[arg-type]


def stored(event: NewEvent, *, version: int = 1) -> StoredEvent:
    return StoredEvent("basket-7", version, Position(0, 12), event.name, event.body, event.headers_text, NOW)


def written(payload: object, **headers: str) -> Message[object]:
    return Message(payload, {"id": "1", "correlation_id": "0", "timestamp": NOW.isoformat(), **headers})


def test_an_event_comes_back_with_its_headers_stream_and_version() -> None:
    known = types(ItemAdded)

    new = known.write(written(ItemAdded("7", 2), tenant="acmé", causation_id="0", delay="5", endpoint="x"))
    message = known.read(stored(new, version=3))

    assert (new.id, new.name, new.body) == ("1", "basket.item_added", b'{"basket_id":"7","quantity":2}')
    assert message.payload == ItemAdded("7", 2)
    assert dict(message.headers) == {
        "id": "1",
        "correlation_id": "0",
        "causation_id": "0",
        "timestamp": NOW.isoformat(),
        "tenant": "acmé",
        HeaderName.stream: "basket-7",
        HeaderName.stream_version: "3",
    }


def test_headers_that_are_read_late_are_a_mapping_like_any_other() -> None:
    known = types(ItemAdded)
    headers = known.read(stored(known.write(written(ItemAdded("7", 2))))).headers

    assert len(headers) == 5
    assert repr(headers) == repr(dict(headers))
    assert headers == dict(headers)
    assert Message(1, headers).caused(2).headers["causation_id"] == "1"


def test_headers_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"the headers of a basket\.item_added cannot be written"):
        types(ItemAdded).write(written(ItemAdded("7", 2), name="\ud800"))


def test_a_linked_event_tells_where_it_is_at_home() -> None:
    known = types(ItemAdded)
    new = known.write(written(ItemAdded("7", 2)))

    message = known.read(stored(new, version=3)._replace(stream="big-baskets", origin=("basket-7", 1)))

    assert (message.headers[HeaderName.stream], message.headers[HeaderName.stream_version]) == ("basket-7", "1")


def test_a_name_that_an_event_had_before_is_read() -> None:
    known = types(ItemAdded)
    new = known.write(written(ItemAdded("7", 2)))

    assert known.read(stored(new)._replace(name="item_was_added")).payload == ItemAdded("7", 2)


def test_a_subclass_of_a_known_class_is_known() -> None:
    known = types(Named)

    message = known.read(stored(known.write(written(Renamed(name="Ada", before="Augusta")))))

    assert message.payload == Renamed(name="Ada", before="Augusta")


def test_tags_are_written_beside_the_event() -> None:
    known = types(ItemAdded)

    new = known.write(written(ItemAdded("7", 2), **{"event.tags": '["sku:1", "basket:7"]'}))

    assert new.tags == ("sku:1", "basket:7")
    with pytest.raises(ConversionError, match=r"event\.tags"):
        known.write(written(ItemAdded("7", 2), **{"event.tags": "sku:1"}))


def test_what_nobody_could_read_again_is_not_written() -> None:
    with pytest.raises(ConversionError, match=r"BasketClosed[\s\S]*EventSourcing\(events=\[BasketClosed\]\)"):
        types(ItemAdded).write(written(BasketClosed("7")))


@pytest.mark.parametrize("payload", ["placed", 1, {"basket_id": "7"}, None, NOW])
def test_a_piece_of_python_is_no_event(payload: object) -> None:
    with pytest.raises(ConversionError, match="is no event"):
        types(ItemAdded).write(written(payload))


def test_a_module_of_the_user_may_be_called_like_one_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profile.py").write_text("class Renamed: ...")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "profile", raising=False)

    assert may_be_event(importlib.import_module("profile").Renamed)
    assert not may_be_event(datetime)
    assert not may_be_event(Path)


def test_an_unknown_name_is_an_error_that_tells_where_it_is_and_what_is_known() -> None:
    known = types(ItemAdded, Charged)
    event = stored(known.write(written(ItemAdded("7", 2))), version=4)._replace(name="basket.dropped")

    with pytest.raises(UnknownEventError) as caught:
        known.read(event)

    assert (caught.value.stream, caught.value.version, caught.value.position) == ("basket-7", 4, Position(0, 12))
    assert caught.value.known == ("basket.item_added", "item_was_added", "wallet.charged")
    for told in ("'basket.dropped'", "version 4", "'basket-7'", "0:12", "basket.item_added"):
        assert told in str(caught.value)


def test_what_does_not_fit_its_type_tells_which_event_it_is() -> None:
    known = types(ItemAdded)
    event = stored(known.write(written(ItemAdded("7", 2))))._replace(body=b'{"basket_id": "7"}')

    with pytest.raises(ConversionError, match="quantity") as caught:
        known.read(event)

    assert "version 1 of the stream 'basket-7'" in caught.value.__notes__[0]


def test_a_former_revision_is_brought_up_to_date() -> None:
    known = types(Charged, upcasters=[with_currency])
    new = known.write(written(Charged(5, "PLN")))
    former = new._replace(body=b'{"amount": 5}', headers_text='{"id": "1", "correlation_id": "0"}')

    assert known.read(stored(new)).payload == Charged(5, "PLN")
    assert known.read(stored(new)).headers[HeaderName.revision] == "2"
    assert known.read(stored(former)).payload == Charged(5, "EUR")


def test_a_former_revision_that_is_no_json_is_left_to_its_converter() -> None:
    known = types(Charged, upcasters=[with_currency])
    former = NewEvent("1", "wallet.charged", b"sealed", '{"id": "1", "content_type": "application/x-sealed"}')

    with pytest.raises(ConversionError, match="is stored as application/x-sealed, and upcasters take JSON"):
        known.read(stored(former))


def test_a_revision_that_is_newer_than_the_program_is_unknown() -> None:
    known = types(Charged, upcasters=[with_currency])
    new = known.write(written(Charged(5, "PLN")))

    with pytest.raises(UnknownEventError, match=r"revision 3 of 'wallet\.charged' is newer"):
        known.read(stored(new._replace(headers_text='{"id":"1","event.revision":"3"}')))


def test_a_revision_that_nothing_takes_further_is_unknown() -> None:
    known = types(Charged)
    new = known.write(written(Charged(5, "PLN")))

    with pytest.raises(UnknownEventError, match=r"nothing takes revision 1 of 'wallet\.charged' to revision 2"):
        known.read(stored(new._replace(headers_text='{"id":"1"}')))


def test_what_handlers_take_is_known() -> None:
    @event_handler
    async def note(event: ItemAdded | BasketClosed) -> None: ...

    known = EventTypes(Ecotone([note]).prepare())

    assert known.read(stored(known.write(written(BasketClosed("7"))))).payload == BasketClosed("7")
    with pytest.raises(UnknownEventError, match=r"tests\.modelling\.test_event_types\.BasketClosed"):
        known.read(stored(NewEvent("1", "gone", b"{}", "{}")))
