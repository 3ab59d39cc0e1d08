import csv
import enum
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from ecotone_fastapi.core.conversion import (
    BINARY,
    JSON,
    Conversion,
    Converter,
    HeaderReader,
    PydanticConverter,
    header_text,
    header_texts,
)
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, HeaderError

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Size(enum.StrEnum):
    SMALL = "s"


class Weekday(str, enum.Enum):  # noqa: UP042  its `str` is not its value, unlike that of a StrEnum
    MONDAY = "monday"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass(frozen=True)
class Item:
    sku: str
    price: Decimal = Decimal("1.10")


@dataclass(frozen=True)
class Order:
    id: UUID
    placed_at: datetime
    items: list[Item]
    colour: Colour = Colour.RED
    size: Size = Size.SMALL
    note: str | None = None
    day: date = date(2026, 1, 31)
    takes: timedelta = timedelta(hours=1)
    tags: frozenset[str] = frozenset()
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class Box(Generic[T]):
    content: T


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    order_id: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return 2 * self.order_id


class Strict(Camel):
    model_config = ConfigDict(extra="forbid")


class Card(BaseModel):
    kind: Literal["card"] = "card"
    number: str


class Cash(BaseModel):
    kind: Literal["cash"] = "cash"
    amount: Decimal


class Payment(BaseModel):
    way: Annotated[Card | Cash, Field(discriminator="kind")]


class GenericBox(BaseModel, Generic[T]):
    content: T


class OrderDict(TypedDict):
    order_id: int


class Plain:
    """A class that pydantic knows nothing about."""


ORDER = Order(
    UUID(int=1), datetime(2026, 1, 31, 12, tzinfo=UTC), [Item("a"), Item("b", Decimal("0.30"))], tags=frozenset("x")
)


# ----------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (ORDER, Order),
        (Camel(order_id=1), Camel),
        (Strict(order_id=1), Strict),
        (Payment(way=Card(number="1")), Payment),
        (Payment(way=Cash(amount=Decimal("0.30"))), Payment),
        (GenericBox[int](content=1), GenericBox[int]),
        (Box(Item("a")), Box[Item]),
        ([Item("a")], list[Item]),
        ({"a": Item("a")}, dict[str, Item]),
        ((1, Item("a")), tuple[int, Item]),
        (OrderDict(order_id=1), OrderDict),
        (Colour.RED, Colour),
        (Level.HIGH, Level),
        (UUID(int=7), UUID),
        (datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC), datetime),
        (date(2026, 1, 31), date),
        (timedelta(seconds=1.5), timedelta),
        (Decimal("0.1"), Decimal),
        (None, int | None),
        (Item("a"), Item | Cash),
        (Cash(amount=Decimal(1)), Item | Cash),
        ("text", str),
        (1.5, float),
        (True, bool),
    ],
)
def test_what_is_written_is_read_again(value: Any, type_: Any) -> None:
    conversion = Conversion()

    data, content_type = conversion.encode(value)

    assert content_type == JSON
    assert conversion.decode(data, type_, content_type) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=json_values)
def test_whatever_is_json_comes_back_as_it_was(value: Any) -> None:
    conversion = Conversion()

    data, content_type = conversion.encode(value)

    assert conversion.decode(data, Any, content_type) == value


@given(sku=st.text(), price=st.decimals(allow_nan=False, allow_infinity=False))
def test_money_and_text_lose_nothing(sku: str, price: Decimal) -> None:
    conversion = Conversion()

    data, content_type = conversion.encode(Item(sku, price))

    assert conversion.decode(data, Item, content_type) == Item(sku, price)


def test_fields_are_written_by_their_aliases_and_what_is_computed_is_not_written() -> None:
    assert Conversion().encode(Camel(order_id=1))[0] == b'{"orderId":1}'
    assert Conversion().encode([Camel(order_id=1)])[0].startswith(b'[{"orderId":1')


def test_a_field_that_holds_something_else_than_it_says_fails_at_the_sender() -> None:
    with pytest.raises(ConversionError, match=r"Item cannot be written as JSON.*") as raised:
        Conversion().encode(Item(sku=5))  # type: ignore[arg-type]

    assert "Expected `str`" in str(raised.value)


@pytest.mark.parametrize("value", [Plain(), object(), {"key": Plain()}, [Plain()], lambda: None])
def test_what_has_no_json_form_fails_at_the_sender(value: Any) -> None:
    with pytest.raises(ConversionError, match="cannot be written as JSON") as raised:
        Conversion().encode(value)

    assert "converters=" in raised.value.hint


@pytest.mark.parametrize(
    ("data", "type_", "what"),
    [
        (b'{"sku":1}', Item, f"the payload is no {__name__}.Item: sku: Input should be a valid string"),
        (b"{}", Order, "id: Field required \\(and 2 more\\)"),
        (b"[1,", list[int], "the payload is no list\\[int\\]: the payload: Invalid JSON"),
        (b"", int, "the payload is no int: the payload: Invalid JSON"),
        (b'"\xff"', str, "the payload is no str"),
        (b'{"way":{"kind":"barter"}}', Payment, "way: Input tag 'barter'"),
        (b'{"order_id":"x"}', OrderDict, "order_id: Input should be a valid integer"),
    ],
)
def test_what_does_not_fit_says_where(data: bytes, type_: Any, what: str) -> None:
    with pytest.raises(ConversionError, match=what) as raised:
        Conversion().decode(data, type_, JSON)

    assert raised.value.details
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.shop+json"]
)
def test_json_goes_by_several_names(content_type: str) -> None:
    assert Conversion().decode(b'{"sku":"a","price":"2"}', Item, content_type) == Item("a", Decimal(2))


def test_a_value_is_made_to_fit_a_type() -> None:
    convert = Conversion().convert

    assert convert({"sku": "a", "price": 2}, Item) == Item("a", Decimal(2))
    assert convert(["00000000-0000-0000-0000-000000000001"], list[UUID]) == [UUID(int=1)]
    assert convert(ORDER, Order) is ORDER
    assert convert(Camel(order_id=1), Camel) == Camel(order_id=1)


def test_a_value_that_cannot_be_made_to_fit_says_where() -> None:
    with pytest.raises(ConversionError, match="sku: Field required"):
        Conversion().convert({}, Item)
    with pytest.raises(ConversionError, match=f"the payload is a dict, not a {__name__}.Plain"):
        Conversion().convert({}, Plain)


def test_a_validator_of_the_user_that_refuses_is_a_conversion_error() -> None:
    class Positive(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def positive(cls, number: int) -> int:
            if number < 0:
                raise ValueError("must not be negative")
            return number

    with pytest.raises(ConversionError, match="must not be negative"):
        Conversion().decode(b'{"number":-1}', Positive, JSON)


# ------------------------------------------------------------------------------------------------------- bytes and text


@pytest.mark.parametrize("payload", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_stay_as_they_are(payload: Any) -> None:
    conversion = Conversion()

    assert conversion.encode(payload) == (b"\x00\xff", BINARY)
    assert conversion.encode(payload, "image/png") == (b"\x00\xff", "image/png")
    assert conversion.decode(b"\x00\xff", bytes, "image/png") == b"\x00\xff"
    assert conversion.decode(b"\x00\xff", Any, BINARY) == b"\x00\xff"


def test_text_whose_media_type_is_told_stays_as_it_is() -> None:
    conversion = Conversion()

    assert conversion.encode("grüße", "text/plain") == ("grüße".encode(), "text/plain")
    assert conversion.encode("grüße") == ('"grüße"'.encode(), JSON)
    assert conversion.decode("grüße".encode(), str, "text/plain; charset=utf-8") == "grüße"


def test_bytes_that_are_no_text_are_a_conversion_error() -> None:
    with pytest.raises(ConversionError, match="text/plain could not be read as text"):
        Conversion().decode(b"\xff", str, "text/plain")


@pytest.mark.parametrize(
    ("type_", "content_type"), [(Item, "text/csv"), (Item, BINARY), (int, "text/plain"), (Any, "image/png")]
)
def test_a_media_type_that_nobody_reads_is_a_conversion_error(type_: Any, content_type: str) -> None:
    with pytest.raises(ConversionError, match=f"nothing here reads {content_type} as .*\nTried: {JSON}"):
        Conversion().decode(b"a,1", type_, content_type)


# ----------------------------------------------------------------------------------------------- converters of the user


class Csv:
    """Items as lines of text."""

    content_type = "text/csv; charset=utf-8"

    def handles(self, type_: Any) -> bool:
        return type_ is Item

    def encode(self, value: Any) -> bytes:
        if not value.sku:
            raise ValueError("an item without sku has no line")
        text = io.StringIO()
        csv.writer(text).writerow([value.sku, value.price])
        return text.getvalue().encode()

    def decode(self, data: bytes, type_: Any) -> Any:
        [(sku, price)] = csv.reader(io.StringIO(data.decode()))
        return type_(sku, Decimal(price))


class Secret:
    """Writes one class of the user as reversed text, and refuses everything on its own account."""

    content_type = JSON

    def handles(self, type_: Any) -> bool:
        return type_ is Plain

    def encode(self, value: Any) -> bytes:
        raise ConversionError("a secret is not told")

    def decode(self, data: bytes, type_: Any) -> Any:
        raise ConversionError("a secret is not read")


def test_a_converter_of_the_user_is_asked_first() -> None:
    converter: Converter = Csv()
    conversion = Conversion([converter])

    data, content_type = conversion.encode(Item("a;b", Decimal("0.30")))

    assert (data, content_type) == (b"a;b,0.30\r\n", "text/csv; charset=utf-8")
    assert conversion.decode(data, Item, "text/csv") == Item("a;b", Decimal("0.30"))
    assert conversion.decode(data, Item, content_type) == Item("a;b", Decimal("0.30"))


def test_a_converter_of_the_user_leaves_other_types_and_media_types_to_json() -> None:
    conversion = Conversion([Csv()])

    assert conversion.encode(Camel(order_id=1)) == (b'{"orderId":1}', JSON)
    assert conversion.decode(b'{"sku":"a"}', Item, JSON) == Item("a")
    with pytest.raises(
        ConversionError, match=f"nothing here reads text/csv as {__name__}.Camel.*\nTried: text/csv.*, {JSON}"
    ):
        conversion.decode(b"1", Camel, "text/csv")


def test_a_value_error_of_a_converter_is_a_conversion_error() -> None:
    conversion = Conversion([Csv()])

    with pytest.raises(ConversionError, match="cannot be written: an item without sku"):
        conversion.encode(Item(""))
    with pytest.raises(ConversionError, match=f"text/csv could not be read as {__name__}.Item: "):
        conversion.decode(b"one cell", Item, "text/csv")


def test_an_error_of_ours_that_a_converter_raises_is_left_as_it_is() -> None:
    conversion = Conversion([Secret()])

    with pytest.raises(ConversionError, match=r"^a secret is not told$"):
        conversion.encode(Plain())
    with pytest.raises(ConversionError, match=r"^a secret is not read$"):
        conversion.decode(b"{}", Plain, JSON)


# -------------------------------------------------------------------------------------------------------- told at start


def test_a_type_that_no_converter_knows_is_told_before_a_message_is_sent() -> None:
    Conversion().check(Order)
    Conversion([Secret()]).check(Plain)

    with pytest.raises(ConfigurationError, match=f"pydantic has no schema for {__name__}.Plain") as raised:
        Conversion().check(Plain)
    assert "converters=" in raised.value.hint


def test_a_type_with_an_annotation_that_names_nothing_is_told_before_a_message_is_sent() -> None:
    @dataclass
    class Broken:
        field: "NoSuchName"  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"pydantic has no schema for .*Broken"):
        Conversion().check(Broken)


def test_an_older_pydantic_tells_such_a_type_at_once() -> None:
    assert PydanticConverter().handles(Item)
    assert not PydanticConverter().handles(Plain)
    assert Conversion().validates(list[int])
    assert not Conversion().validates(list[Plain])


def test_reading_a_type_that_nobody_checked_and_nobody_knows_is_a_conversion_error() -> None:
    with pytest.raises(ConversionError, match=f"{JSON} cannot be read as {__name__}.Plain"):
        Conversion().decode(b"{}", Plain, JSON)


def test_an_annotation_that_cannot_be_hashed_is_converted_all_the_same() -> None:
    annotation = Annotated[int, ["unhashable"]]

    assert Conversion().decode(b"1", annotation, JSON) == 1
    assert Conversion().convert("1", annotation) == 1


# -------------------------------------------------------------------------------------------------------------- headers

HEADERS: list[tuple[Any, Any, str]] = [
    ("text", str, "text"),
    ("", str, ""),
    (5, int, "5"),
    (1.5, float, "1.5"),
    (True, bool, "true"),
    (False, bool, "false"),
    (UUID(int=1), UUID, "00000000-0000-0000-0000-000000000001"),
    (datetime(2026, 1, 31, 12, tzinfo=UTC), datetime, "2026-01-31T12:00:00Z"),
    (date(2026, 1, 31), date, "2026-01-31"),
    (Decimal("0.30"), Decimal, "0.30"),
    (Colour.RED, Colour, "red"),
    (Size.SMALL, Size, "s"),
    (Weekday.MONDAY, Weekday, "monday"),
    (Level.HIGH, Level, "3"),
    ([1, 2], list[int], "[1,2]"),
    ({"a": 1}, dict[str, int], '{"a":1}'),
    (["a"], list[str], '["a"]'),
    (Item("a", Decimal(2)), Item, '{"sku":"a","price":"2"}'),
    (timedelta(seconds=90), timedelta, "PT1M30S"),
]


@pytest.mark.parametrize(("value", "type_", "text"), HEADERS)
def test_a_header_is_written_as_text_and_read_as_its_type(value: Any, type_: Any, text: str) -> None:
    assert header_text("name", value) == text
    assert type(header_text("name", value)) is str
    assert HeaderReader(type_)("name", text) == value


def test_a_text_of_a_class_of_its_own_is_written_as_plain_text() -> None:
    class Tenant(str): ...

    assert type(header_text("tenant", Tenant("acme"))) is str


@given(value=st.one_of(st.text(), st.integers(), st.booleans(), st.dates(), st.uuids(), st.lists(st.integers())))
def test_every_plain_value_survives_as_a_header(value: Any) -> None:
    type_ = list[int] if isinstance(value, list) else type(value)

    assert HeaderReader(type_)("name", header_text("name", value)) == value


def test_a_header_without_value_is_left_out() -> None:
    headers: Mapping[str, Any] = {"a": 1, "b": None, "c": "x"}

    assert header_texts(headers) == {"a": "1", "c": "x"}


def test_a_header_that_has_no_form_as_text_fails_at_the_sender() -> None:
    with pytest.raises(ConversionError, match="the header 'thing' cannot be written as text"):
        header_texts({"thing": Plain()})


def test_a_header_that_does_not_fit_its_parameter_says_so() -> None:
    with pytest.raises(HeaderError, match="the header 'count' is no int: Input should be a valid integer") as raised:
        HeaderReader(int)("count", "many")
    assert raised.value.details

    with pytest.raises(HeaderError, match=r"the header 'count' is no .*greater than"):
        HeaderReader(Annotated[int, Field(gt=5)])("count", "5")


def test_a_header_of_a_type_that_nobody_can_read_is_told_at_start() -> None:
    with pytest.raises(ConfigurationError, match=f"a header cannot be read as {__name__}.Plain"):
        HeaderReader(Plain)
