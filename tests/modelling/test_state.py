"""The state of objects as JSON and back: what comes back, and what is refused, at start or when it is saved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Generic, Optional, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PlainSerializer, PrivateAttr, SecretStr
from pydantic_core import from_json

from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import AggregateError, ConfigurationError
from ecotone_fastapi.modelling.state import StateForm

T = TypeVar("T")


class Status(Enum):
    NEW = "new"
    PAID = "paid"


class Grade(IntEnum):
    A = 1


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str


@dataclass
class Line:
    sku: str
    price: Money
    tags: set[str] = field(default_factory=set)


class Address(BaseModel):
    city: str
    since: date


@dataclass
class Order:
    order_id: UUID
    lines: list[Line]
    status: Status
    address: Address | None
    placed_at: datetime
    took: timedelta
    prices: dict[date, Money]
    pair: tuple[int, str]
    many: tuple[int, ...]
    ratio: float
    raw: bytes
    grade: Grade
    at: time
    anything: Any
    KIND: ClassVar[str] = "order"
    count: int = field(default=0, init=False)
    _private: list[str] = field(default_factory=list)


def an_order(**changes: Any) -> Order:
    order = Order(
        UUID(int=7),
        [Line("milk", Money(Decimal("1.50"), "EUR"), {"a", "b"})],
        Status.PAID,
        Address(city="Łódź", since=date(2026, 1, 31)),
        datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC),
        timedelta(days=1, microseconds=3),
        {date(2026, 1, 1): Money(Decimal(2), "PLN")},
        (1, "a"),
        (1, 2, 3),
        float("inf"),
        b"abc",
        Grade.A,
        time(12, 30),
        {"a": [1, None, "x"]},
    )
    order.count = 5
    order._private = ["secret"]
    for name, value in changes.items():
        setattr(order, name, value)
    return order


def test_a_dataclass_comes_back_with_all_of_its_fields() -> None:
    form = StateForm(Order)

    found = form.read(form.write(an_order()))

    assert found == an_order()
    assert (found.count, found._private) == (5, ["secret"])


@given(
    text=st.text(),
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    moment=st.datetimes(timezones=st.just(UTC)),
    number=st.floats(allow_nan=False),
)
def test_values_come_back_as_they_were(text: str, amount: Decimal, moment: datetime, number: float) -> None:
    form = StateForm(Order)
    order = an_order(
        lines=[Line(text, Money(amount, text))], placed_at=moment, ratio=number, anything={text: [number, text]}
    )

    assert form.read(form.write(order)) == order


def test_no_constructor_runs_when_an_object_is_read() -> None:
    made: list[str] = []

    @dataclass(slots=True, frozen=True)
    class Careful:
        name: str
        given: InitVar[int]
        twice: int = field(init=False, default=0)

        def __post_init__(self, given: int) -> None:
            made.append(self.name)
            object.__setattr__(self, "twice", 2 * given)

    form = StateForm(Careful)

    found = form.read(form.write(Careful("a", 4)))

    assert (found.name, found.twice) == ("a", 8)
    assert made == ["a"]


class PlainOrder:
    """Some attributes are annotated, some are named like a parameter, and some are plain enough for JSON."""

    lines: list[Money]
    shipped_at: datetime
    limit: int = 10

    def __init__(self, order_id: UUID, note: Optional[date], number: int, names: Iterable[str]) -> None:  # noqa: UP045
        self.order_id = order_id
        self.note = note
        self.number = number
        self.lines = [Money(Decimal(1), "EUR")]
        self.names = list(names)
        self.status = "new"
        self.__mangled = {"a": [1, 2.5, None, True]}

    @property
    def mangled(self) -> dict[str, Any]:
        return self.__mangled

    @cached_property
    def total(self) -> int:
        return len(self.lines)


def test_a_plain_class_comes_back_with_what_is_in_its_dict() -> None:
    form = StateForm(PlainOrder)
    order = PlainOrder(UUID(int=1), date(2026, 1, 1), 3, ["a"])
    before = dict(vars(order))
    assert order.total == 1

    found = form.read(form.write(order))

    assert vars(found) == before
    assert type(found) is PlainOrder
    assert not hasattr(found, "shipped_at")
    found.shipped_at = datetime(2026, 1, 1, tzinfo=UTC)
    assert form.read(form.write(found)).shipped_at == found.shipped_at


class Slotted:
    __slots__ = ("__weakref__", "items", "name")
    items: list[Money]
    name: str

    def __init__(self, name: str) -> None:
        self.name = name


def test_slots_come_back_too() -> None:
    form = StateForm(Slotted)
    slotted = Slotted("a")

    assert form.write(slotted) == '{"name":"a"}'
    assert form.read(form.write(slotted)).name == "a"


class Model(BaseModel):
    order_id: UUID
    lines: list[Line]
    address: Annotated[Address | None, Field(alias="at")] = None
    _seen: int = PrivateAttr(default=0)


def test_a_model_comes_back_by_its_own_rules() -> None:
    form = StateForm(Model)
    model = Model(
        order_id=UUID(int=1), lines=[Line("a", Money(Decimal(1), "EUR"))], at=Address(city="x", since=date.min)
    )

    assert form.read(form.write(model)) == model


def test_an_attribute_that_is_new_has_its_default_and_one_that_is_gone_is_ignored() -> None:
    @dataclass
    class Now:
        name: str
        count: int = 3
        tags: list[str] = field(default_factory=lambda: ["new"])

    found = StateForm(Now).read('{"name": "a", "former": 1}')

    assert found == Now("a", 3, ["new"])


def test_a_new_attribute_without_default_is_told() -> None:
    with pytest.raises(AggregateError, match=r"what was stored of a Line has no 'price'") as caught:
        StateForm(Line).read('{"sku": "a", "tags": []}')
    assert "default" in caught.value.hint


@pytest.mark.parametrize("body", ["", "[]", '{"sku": 1, "price": {}, "tags": []}'])
def test_what_does_not_fit_the_class_is_told(body: str) -> None:
    with pytest.raises(AggregateError, match="what was stored of a Line cannot be read"):
        StateForm(Line).read(body)


# ------------------------------------------------------------------------------------------------------------- refused


class Opaque:
    pass


@dataclass
class WithOpaque:
    name: str
    what: Opaque


@dataclass
class WithSecret:
    password: SecretStr


@dataclass
class WithIterator:
    lines: Iterable[str]


@dataclass
class Numbered:
    sku: str
    number: int = field(default=0, init=False)


@dataclass
class WithNumbered:
    lines: list[Numbered]


class WithExcluded(BaseModel):
    kept: int
    left_out: int = Field(default=0, exclude=True)


class Odd(Enum):
    FINE = "fine"
    PAIR = ("pair", 1)


@dataclass
class WithOdd:
    odd: Odd


class WithUnknown:
    what: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


class Celsius:
    """A value of which pydantic knows nothing."""

    def __init__(self, degrees: Decimal) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)


class CelsiusConverter:
    content_type = "application/json"

    def __init__(self, form: str = '{{"degrees":"{}"}}') -> None:
        self.form = form

    def handles(self, type_: Any) -> bool:
        return type_ is Celsius

    def encode(self, value: Celsius) -> bytes:
        return self.form.format(value.degrees).encode()

    def decode(self, data: bytes, type_: Any) -> Celsius:
        degrees = from_json(data)["degrees"]
        if degrees == "warm":
            raise ValueError("how warm?")
        return Celsius(Decimal(degrees))


@dataclass
class Weather:
    now: Celsius
    hourly: list[Celsius]
    daily: dict[date, Celsius]
    between: tuple[Celsius, Celsius]
    many: tuple[Celsius, ...]
    rising: Sequence[Celsius] = ()
    places: Mapping[str, Celsius] = field(default_factory=dict)
    record: Annotated[Celsius | None, "of all times"] = None
    never: Optional[Celsius] = None  # noqa: UP045 - the older way to write it


def test_attributes_are_written_and_read_by_the_converters_of_their_types() -> None:
    form = StateForm(Weather, Conversion([CelsiusConverter()]))
    mild, hot = Celsius(Decimal("20.5")), Celsius(Decimal(40))
    weather = Weather(mild, [mild, hot], {date(2026, 1, 31): mild}, (mild, hot), (hot,), [mild], {"Rome": hot}, hot)

    body = form.write(weather)

    assert from_json(body)["hourly"] == [{"degrees": "20.5"}, {"degrees": "40"}]
    assert form.read(body) == weather


def test_what_a_converter_cannot_write_or_read_is_told() -> None:
    form = StateForm(Weather, Conversion([CelsiusConverter()]))
    with pytest.raises(AggregateError, match=r"a Weather cannot be kept.* is no .*Celsius"):
        form.write(Weather(20, [], {}, (), ()))  # type: ignore[arg-type]
    with pytest.raises(AggregateError, match="what was stored of a Weather cannot be read"):
        form.read('{"now": {"degrees": "warm"}, "hourly": [], "daily": {}, "between": [], "many": []}')


def test_a_number_that_json_would_round_is_refused() -> None:
    form = StateForm(Weather, Conversion([CelsiusConverter('{{"degrees":{}}}')]))
    exact = Celsius(Decimal("0.12345678901234567890"))
    with pytest.raises(AggregateError, match="have more digits"):
        form.write(Weather(exact, [], {}, (exact, exact), ()))


def test_a_converter_that_writes_something_else_is_not_asked_for_attributes() -> None:
    class AsText(CelsiusConverter):
        content_type = "text/plain"

    with pytest.raises(ConfigurationError, match=r"now: pydantic has no schema for .*Celsius"):
        StateForm(Weather, Conversion([AsText()]))


@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (WithOpaque, "what: pydantic has no schema for .*Opaque"),
        (WithSecret, "WithSecret.password: a secret is written as asterisks"),
        (WithIterator, "WithIterator.lines: it is read as an iterator"),
        (WithNumbered, "Numbered.number: it is not read"),
        (WithExcluded, "WithExcluded.left_out: it is not written"),
        (WithOdd, r"WithOdd.odd: Odd.PAIR is not read as it is written"),
        (WithUnknown, "an annotation cannot be evaluated: name 'Nowhere' is not defined"),
    ],
)
def test_a_class_whose_state_would_not_come_back_is_refused(cls: type, what: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"the state of a {cls.__name__} would not come back.*{what}"
    ) as caught:
        StateForm(cls)
    assert "Aggregates(stores=[...])" in caught.value.hint


@dataclass
class Computed:
    amount: int
    cents: int = field(init=False)

    def __post_init__(self) -> None:
        self.cents = 100 * self.amount


@dataclass(frozen=True)
class Constant:
    kind: str = field(default="constant", init=False)


@dataclass
class WithValues:
    values: list[Computed]
    constant: Constant


def test_what_a_value_computes_again_is_no_loss() -> None:
    form = StateForm(WithValues)
    state = WithValues([Computed(3)], Constant())

    assert form.read(form.write(state)) == state


@pytest.mark.parametrize(
    "value", [datetime(2026, 1, 1, tzinfo=UTC), (1, 2), {1: "a"}, {"a": {1}}, float("nan"), Status.NEW, Opaque()]
)
def test_an_attribute_that_nobody_has_described_has_to_be_plain(value: object) -> None:
    order = PlainOrder(UUID(int=1), None, 3, ())
    order.status = value  # type: ignore[assignment]

    with pytest.raises(AggregateError, match="the attribute 'status' of a PlainOrder would not come back") as caught:
        StateForm(PlainOrder).write(order)
    assert caught.value.hint == f"annotate it in the class, status: {type(value).__name__}"


@dataclass
class Loose:
    anything: Any = None
    many: dict[str, Any] | None = None
    lists: list[list[Any]] = field(default_factory=list)
    bare: dict = field(default_factory=dict)  # type: ignore[type-arg]
    told: Annotated[Any, PlainSerializer(str)] = 0
    either: Money | dict[str, Any] | None = None


class PlainLoose:
    many: dict[str, Any]


def test_where_anything_may_be_only_what_comes_back_is_written() -> None:
    plain = {"a": [1, 2.5, None, True, {"b": "c"}]}
    form, state = StateForm(Loose), Loose(plain, plain, [[plain]], plain)
    assert form.read(form.write(state)) == replace(state, told="0")
    form.write(Loose(told=(1, 2), either=Money(Decimal(1), "EUR")))  # in doubt it comes back

    other = PlainLoose()
    other.many = {"a": (1, 2)}
    for lost in (
        *(Loose(one) for one in (Decimal("1.1"), date(2026, 1, 1), (1, 2), Status.NEW)),
        Loose(many={"a": Decimal("1.1")}),
        Loose(lists=[[{"a": date(2026, 1, 1)}]]),
        Loose(bare={1: "a"}),
        other,
    ):
        with pytest.raises(AggregateError, match="would not come back as it is") as caught:
            StateForm[Any](type(lost)).write(lost)
        assert "name the types" in caught.value.hint


def test_a_dataclass_has_no_state_beside_its_fields() -> None:
    line = Line("a", Money(Decimal(1), "EUR"))
    line.more = 1  # type: ignore[attr-defined]

    with pytest.raises(AggregateError, match="the attribute 'more' of a Line would not come back") as caught:
        StateForm(Line).write(line)
    assert "make it a field of the dataclass" in caught.value.hint


def test_a_value_that_does_not_fit_its_annotation_is_not_written() -> None:
    with pytest.raises(AggregateError, match="a Line cannot be kept"):
        StateForm(Line).write(Line("a", "free"))  # type: ignore[arg-type]


def test_a_subclass_is_not_written_as_its_base() -> None:
    @dataclass
    class SpecialLine(Line):
        gift: bool = True

    with pytest.raises(AggregateError, match=r"a .*SpecialLine cannot be kept as a Line"):
        StateForm(Line).write(SpecialLine("a", Money(Decimal(1), "EUR")))


class Box(BaseModel, Generic[T]):
    content: T


def test_a_generic_model_is_kept_by_its_form() -> None:
    form = StateForm(Box[Money])
    box = Box[Money](content=Money(Decimal(1), "EUR"))

    assert form.read(form.write(box)) == box
