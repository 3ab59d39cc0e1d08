import csv
import enum
import io
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import inf, isnan, nan
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic import dataclasses as pydantic_dataclasses
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


class Reading(BaseModel):
    value: float
    note: str | None = None


@dataclass(frozen=True)
class Series:
    values: list[float]
    best: Any
    reading: Reading | None = None


class Untyped(BaseModel):
    model_config = ConfigDict(extra="allow")

    values: dict[str, list]  # type: ignore[type-arg]  # one that says nothing of its elements
    pair: tuple[Any, ...] = ()


class Readings(TypedDict):
    values: list[float]


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (nan, float),
        (Reading(value=nan), Reading),
        (Reading(value=-inf, note="null"), Reading),
        (Series([1.5, inf, -inf, nan], nan, Reading(value=inf)), Series),
        (Readings(values=[nan, inf]), Readings),
        (Untyped(values={"a": [nan, None, [1, inf]]}, pair=(1, nan), more={"b": nan}), Untyped),  # type: ignore[call-arg]
        ({"reading": nan, "nothing": None}, Any),
        ([Reading(value=nan), Reading(value=1, note="finite")], list[Reading]),
        ([Series([inf], nan)], list[Series]),
    ],
)
def test_a_number_that_is_not_finite_is_written_and_read_again(value: Any, type_: Any) -> None:
    conversion = Conversion()

    data, content_type = conversion.encode(value)

    assert repr(conversion.decode(data, type_, content_type)) == repr(value)  # NaN is not equal to itself


@given(value=st.floats(), note=st.none() | st.text())
def test_every_float_comes_back(value: float, note: str | None) -> None:
    data, content_type = Conversion().encode(Reading(value=value, note=note))

    found = Conversion().decode(data, Reading, content_type)
    assert found.note == note
    assert isnan(found.value) if isnan(value) else found.value == value


def test_a_number_that_its_type_does_not_allow_fails_at_the_sender() -> None:
    @dataclass
    class Exact:
        value: FiniteFloat

    with pytest.raises(ConversionError, match=r"Exact: value: Input should be a finite number"):
        Conversion().encode(Exact(nan))


def test_null_that_a_serializer_of_the_user_writes_stays_null() -> None:
    class Cautious(BaseModel):
        value: float | None

        @field_serializer("value")
        def write(self, _: float | None) -> float | None:
            return None

    conversion = Conversion()

    assert [conversion.encode(Cautious(value=one))[0] for one in (nan, None)] == [b'{"value":null}'] * 2


def test_a_list_of_models_is_written_like_the_models() -> None:
    conversion = Conversion()

    data, _ = conversion.encode([Strict(order_id=1)])

    assert data == b'[{"orderId":1}]'
    assert conversion.decode(data, list[Strict], JSON) == [Strict(order_id=1)]


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


class Refusing:
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
    conversion = Conversion([Refusing()])

    with pytest.raises(ConversionError, match=r"^a secret is not told$"):
        conversion.encode(Plain())
    with pytest.raises(ConversionError, match=r"^a secret is not read$"):
        conversion.decode(b"{}", Plain, JSON)


# -------------------------------------------------------------------------------------------------------- told at start


def test_a_type_that_no_converter_knows_is_told_before_a_message_is_sent() -> None:
    Conversion().check(Order)
    Conversion([Refusing()]).check(Plain)

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


# ------------------------------------------------------------------------------------ what does not survive a channel


class Login(BaseModel):
    user: str
    password: SecretStr


@dataclass(frozen=True)
class Pin:
    digits: SecretBytes


class Birthday(BaseModel):
    day: Secret[date]


class LoginDict(TypedDict):
    password: SecretStr


class LoginTuple(NamedTuple):
    password: SecretStr


class Nested(BaseModel):
    logins: list[Login | None] = []


class Tree(BaseModel):
    login: Login | None = None
    pins: dict[str, Pin] | None = None
    children: "list[Tree]" = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    chip: SecretStr


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Pets(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Secrets(RootModel[list[SecretStr]]): ...


class LeftOut(BaseModel):
    needed: int = Field(exclude=True)
    lost: str = Field(default="default", exclude=True)


@dataclass
class LeftOutOfDataclass:
    lost: Annotated[str, Field(exclude=True)] = "default"


class Renamed(BaseModel):
    needed: int = Field(serialization_alias="written")
    lost: int = Field(default=1, serialization_alias="other")


class Moved(BaseModel):
    first: int = Field(validation_alias=AliasPath("numbers", 0))


class ByAliasOnly(BaseModel):
    field: int = Field(alias="read", serialization_alias="field")


@dataclass
class Seeded:
    number: int
    seed: InitVar[int]


class RenamedDict(TypedDict):
    count: Annotated[int, Field(alias="number")]


MASKED = "a secret is written as asterisks, and the receiver gets these"
REFUSED = "the receiver refuses the message without it"
LOST = "the receiver gets its default"


@pytest.mark.parametrize(
    ("type_", "losses"),
    [
        (SecretStr, {"pydantic.types.SecretStr": MASKED}),
        (Login, {"Login.password": MASKED}),
        (Pin, {"Pin.digits": MASKED}),
        (Birthday, {"Birthday.day": MASKED}),
        (LoginDict, {"LoginDict.password": MASKED}),
        (Secrets, {"Secrets": MASKED}),
        (Nested, {"Login.password": MASKED}),
        (Tree, {"Login.password": MASKED, "Pin.digits": MASKED}),
        (Pets, {"Cat.chip": MASKED}),
        (Login | Pin | None, {"Login.password": MASKED, "Pin.digits": MASKED}),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"Cat.chip": MASKED}),
        (list[Login], {"Login.password": MASKED}),
        (tuple[int, dict[str, Pin]], {"Pin.digits": MASKED}),
        (Box[Login], {"Login.password": MASKED}),
        (GenericBox[SecretStr], {"GenericBox[SecretStr].content": MASKED}),
        (
            LeftOut,
            {
                "LeftOut.needed": f"it is not written (exclude=True), and {REFUSED}",
                "LeftOut.lost": f"it is not written (exclude=True), and {LOST}",
            },
        ),
        (LeftOutOfDataclass, {"LeftOutOfDataclass.lost": f"it is not written (exclude=True), and {LOST}"}),
        (
            Renamed,
            {
                "Renamed.needed": f"it is written as 'written' and read as 'needed'; {REFUSED}",
                "Renamed.lost": f"it is written as 'other' and read as 'lost'; {LOST}",
            },
        ),
        (Moved, {"Moved.first": f"it is written as 'first' and read as parts of others only; {REFUSED}"}),
        (ByAliasOnly, {"ByAliasOnly.field": f"it is written as 'field' and read as 'read'; {REFUSED}"}),
        (Seeded, {"Seeded.seed": f"an InitVar is not written, and {REFUSED}"}),
        # The sender holds a dict, whose keys are the names.
        (RenamedDict, {"RenamedDict.count": f"it is written as 'count' and read as 'number'; {REFUSED}"}),
    ],
)
def test_what_a_type_loses_on_a_channel_is_told_field_by_field(type_: Any, losses: dict[str, str]) -> None:
    found = Conversion().problems_of_round_trip(type_)

    assert {loss.where.removeprefix(f"{__name__}."): loss.what for loss in found} == losses
    assert all(loss.remedy for loss in found)


def test_what_a_named_tuple_loses_is_told_as_far_as_this_version_of_pydantic_knows_its_fields() -> None:
    [loss] = Conversion().problems_of_round_trip(LoginTuple)

    assert loss.where.rpartition(".")[0].endswith("LoginTuple") or loss.where.endswith(".LoginTuple")
    assert loss.what == MASKED


class Revealed(BaseModel):
    secrets: list[SecretStr]
    annotated: Annotated[SecretStr, PlainSerializer(lambda secret: secret.get_secret_value())]

    @field_serializer("secrets", when_used="json")
    def reveal(self, secrets: list[SecretStr]) -> Any:
        return [secret.get_secret_value() for secret in secrets]


class RevealedAsAWhole(BaseModel):
    secret: SecretStr

    @model_serializer
    def reveal(self) -> Any:
        return {"secret": self.secret.get_secret_value()}


class ManyNames(BaseModel):
    count: int = Field(serialization_alias="number", validation_alias=AliasChoices("n", AliasPath("x", 0), "number"))


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    count: int = Field(validation_alias="number")


class OneValue(BaseModel):
    kind: Literal["one"] = Field(default="one", exclude=True)


class KeptForItself(BaseModel):
    number: int
    _cache: dict[str, int] = PrivateAttr(default_factory=dict)


class Rekeyed(BaseModel):
    count: int = Field(serialization_alias="number")
    double: int = Field(exclude=True)

    @model_validator(mode="before")
    @classmethod
    def read(cls, data: Any) -> Any:
        return {"count": data["number"], "double": 2 * data["number"]} if "number" in data else data


class Refilled(BaseModel):
    count: int
    double: int = Field(default=0, exclude=True)

    @model_validator(mode="after")
    def fill(self) -> "Refilled":
        self.double = 2 * self.count
        return self


class Derived(BaseModel):
    count: int
    double: int = Field(default=0, exclude=True, validate_default=True)

    @field_validator("double")
    @classmethod
    def fill(cls, _: int, info: Any) -> int:
        return 2 * int(info.data["count"])


class OwnInit(BaseModel):
    count: int = Field(serialization_alias="number")

    def __init__(self, number: int = 0, **data: Any) -> None:
        super().__init__(**{"count": number, **data})


@dataclass
class Computing:
    count: int
    double: int = field(init=False, default=0)
    triple: Annotated[int, Field(exclude=True)] = 0
    seed: InitVar[int] = 0

    def __post_init__(self, seed: int) -> None:
        self.double, self.triple = 2 * self.count, 3 * self.count


@pydantic_dataclasses.dataclass
class Aliased:
    count: int = Field(alias="number")


@dataclass
class AliasedByAnnotation:
    count: Annotated[int, Field(alias="number")]


REVEALED = Revealed(secrets=[SecretStr("a")], annotated=SecretStr("b"))


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (REVEALED, Revealed),
        ([REVEALED], list[Revealed]),
        (RevealedAsAWhole(secret=SecretStr("a")), RevealedAsAWhole),
        (Camel(order_id=1), Camel),
        (Strict(order_id=1), Strict),
        (ManyNames.model_validate({"number": 1}), ManyNames),
        (ByName(count=1), ByName),
        (OneValue(), OneValue),
        (KeptForItself(number=1), KeptForItself),
        (Rekeyed(count=1, double=2), Rekeyed),
        (Refilled(count=1), Refilled),
        (Derived(count=1), Derived),
        (OwnInit(number=1), OwnInit),
        (Computing(1), Computing),
        (Aliased(number=1), Aliased),
        ([Aliased(number=1)], list[Aliased]),
        (AliasedByAnnotation(1), AliasedByAnnotation),
        (ORDER, Order),
        (Payment(way=Card(number="1")), Payment),
        ({"a": [1, None]}, dict[str, Any]),
    ],
)
def test_what_comes_back_as_it_was_is_no_false_alarm(value: Any, type_: Any) -> None:
    conversion = Conversion()

    conversion.check(type_)

    assert conversion.decode(conversion.encode(value)[0], type_, JSON) == value


def test_a_dataclass_in_a_plain_list_is_written_by_the_names_of_its_fields() -> None:
    data, _ = Conversion().encode([AliasedByAnnotation(1)])

    assert data == b'[{"count":1}]'
    [loss] = Conversion().problems_of_round_trip(list[AliasedByAnnotation])
    assert loss.what == f"it is written as 'count' and read as 'number'; {REFUSED}"


def test_a_validator_around_a_field_reads_what_it_likes_but_reveals_no_secret() -> None:
    def rekey(value: Any) -> Any:
        return {"count": value["number"]} if "number" in value else value

    class Outer(BaseModel):
        entry: Annotated[AliasedByAnnotation, BeforeValidator(rekey)]
        login: Annotated[Login, BeforeValidator(lambda value: value)]

    assert [loss.where for loss in Conversion().problems_of_round_trip(Outer)] == ["Login.password"]


def test_a_type_that_loses_something_is_told_at_start_with_all_its_fields_and_what_to_do() -> None:
    class Payload(BaseModel):
        login: Login
        left_out: LeftOut

    with pytest.raises(ConfigurationError) as raised:
        Conversion().check(Payload)

    assert "Payload does not come back from a channel as it was sent: Login.password: a secret" in raised.value.what
    assert "LeftOut.needed: " in raised.value.what
    assert "LeftOut.lost: " in raised.value.what
    assert raised.value.hint == (
        "let a @field_serializer reveal the secret, or send what the receiver can find it by; "
        "take exclude=True away; "
        "take exclude=True away, or make it a PrivateAttr if the receiver does not need it; "
        "or give Ecotone(converters=[...]) a converter"
    )


def test_what_a_converter_of_the_user_is_responsible_for_loses_nothing() -> None:
    class Vault(Refusing):
        def handles(self, type_: Any) -> bool:
            return type_ is Login

    conversion = Conversion([Vault()])

    conversion.check(Login)
    conversion.check(Annotated[Login | Order, "either"])
    assert [loss.where for loss in conversion.problems_of_round_trip(Login | Pin | None)] == ["Pin.digits"]


def test_what_pydantic_has_no_schema_for_loses_nothing() -> None:
    assert Conversion().problems_of_round_trip(Plain) == ()


def test_a_type_is_looked_through_once() -> None:
    conversion = Conversion()
    unhashable = Annotated[Login, ["unhashable"]]

    assert conversion.problems_of_round_trip(Login) is conversion.problems_of_round_trip(Login)
    assert conversion.problems_of_round_trip(unhashable) == conversion.problems_of_round_trip(unhashable)


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


# -------------------------------------------------------------------------------------------------------------- schemas


class Priced(BaseModel, arbitrary_types_allowed=True):
    price: Decimal = Field(alias="thePrice")
    opaque: object = None
    default: Any = object()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> Decimal:
        return 2 * self.price


def test_the_schema_of_a_type_is_that_of_what_is_written() -> None:
    schema = Conversion().schema(Priced)

    assert schema is not None
    assert schema["properties"]["thePrice"] == {"type": "string", "format": "decimal", "title": "Theprice"}
    assert "type" not in schema["properties"]["opaque"]
    assert schema["properties"]["doubled"]["not"] == {}


def test_nobody_knows_what_a_converter_of_the_user_writes() -> None:
    class Anything(PydanticConverter):
        def handles(self, type_: Any) -> bool:
            return True

    assert Conversion([Anything()]).schema(Priced) is None


def test_what_nobody_can_write_has_no_schema() -> None:
    with pytest.raises(ConfigurationError, match="pydantic has no schema"):
        Conversion().schema(type("Opaque", (), {}))
