"""Which documents are meant, and in which order: conditions on their fields, as data that any store can search by.

    orders.field("total") >= 100
    orders.field("address.city").startswith("Ł") & ~orders.field("shipped_at").is_null()

A document is JSON, and so are its fields. A field is compared as what its class says it is there, or, where the class
does not say it, as what it is compared with. What is of another kind is not equal, not less and not greater:

- numbers by their value, and a `Decimal` too, although it is text in JSON;
- moments by the time that they mean, whatever their offset from UTC is; without one they are in UTC;
- all other text by its code points: upper and lower case differ, and "Z" comes before "a";
- `None` is a field that is null or not there.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import Enum, StrEnum
from math import isfinite
from typing import Any, NoReturn

from pydantic_core import PydanticSerializationError, to_jsonable_python

from ecotone_fastapi.core.errors import ConversionError

Path = tuple[str | int, ...]
"""The way to a field: names in objects, places in lists."""

Scalar = bool | int | float | Decimal | str
"""What a field can be compared with: a value of JSON, and `Decimal` for numbers of any length."""

NUMBER_PATTERN = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?"
"""What text has to be to stand for a number: what a `Decimal` writes, in a form that databases understand, too."""

MOMENT_PATTERN = (
    r"(?!0000)[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])?"
)
"""What text has to be to stand for a moment: ISO 8601, as pydantic and JavaScript write it."""

_NUMBER = re.compile(NUMBER_PATTERN)
_MOMENT = re.compile(MOMENT_PATTERN)


class ValueKind(StrEnum):
    """As what a field is compared."""

    BOOLEAN = "boolean"
    NUMBER = "number"
    """A number of JSON."""
    DECIMAL = "decimal"
    """A number of JSON, or text that is one."""
    MOMENT = "moment"
    """Text that is a date with its time."""
    TEXT = "text"


_IN_ORDER = (ValueKind.BOOLEAN, ValueKind.NUMBER, ValueKind.DECIMAL, ValueKind.MOMENT, ValueKind.TEXT)
_UNTOLD = (ValueKind.BOOLEAN, ValueKind.NUMBER, ValueKind.TEXT)
_NAMES = {
    ValueKind.BOOLEAN: "true or false",
    ValueKind.NUMBER: "a number",
    ValueKind.DECIMAL: "a number",
    ValueKind.MOMENT: "a date with its time",
    ValueKind.TEXT: "text",
}


class Operator(StrEnum):
    """How a field is compared with a value."""

    EQUAL = "="
    LESS = "<"
    AT_MOST = "<="
    GREATER = ">"
    AT_LEAST = ">="
    ONE_OF = "in"
    PREFIX = "prefix"


# ----------------------------------------------------------------------------------------------------------- conditions


class Filter:
    """A condition on documents. Several are combined by `&` (and), `|` (or) and `~` (not)."""

    def matches(self, body: Any) -> bool:
        """Whether a document is meant. Stores that search in another way find the same.

        Args:
            body: Its JSON as Python has it; numbers with decimal places are `Decimal`.
        """
        raise NotImplementedError

    def __and__(self, other: "Filter") -> "Filter":
        return AllOf((self, other))

    def __or__(self, other: "Filter") -> "Filter":
        return AnyOf((self, other))

    def __invert__(self) -> "Filter":
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError("a condition on documents is neither true nor false: write & | ~ instead of and, or, not")


@dataclass(frozen=True, slots=True)
class Comparison(Filter):
    """A field is compared with a value, or with several.

    Args:
        path: The way to the field.
        operator: How.
        kind: As what.
        values: The values: one, and any number for `ONE_OF`.
    """

    path: Path
    operator: Operator
    kind: ValueKind
    values: tuple[Scalar, ...]

    def matches(self, body: Any) -> bool:
        """Whether the field is of this kind, and compares like that."""
        found = comparable(self.kind, picked(body, self.path))
        if found is None:
            return False
        values = [comparable(self.kind, value) for value in self.values]
        match self.operator:
            case Operator.ONE_OF:
                return found in values
            case Operator.EQUAL:
                return bool(found == values[0])
            case Operator.LESS:
                return bool(found < values[0])
            case Operator.AT_MOST:
                return bool(found <= values[0])
            case Operator.GREATER:
                return bool(found > values[0])
            case Operator.AT_LEAST:
                return bool(found >= values[0])
            case Operator.PREFIX:
                return bool(found.startswith(values[0]))


@dataclass(frozen=True, slots=True)
class IsNull(Filter):
    """A field is null or not there.

    Args:
        path: The way to the field.
    """

    path: Path

    def matches(self, body: Any) -> bool:
        """Whether there is nothing."""
        return picked(body, self.path) is None


@dataclass(frozen=True, slots=True)
class AllOf(Filter):
    """Every condition holds.

    Args:
        filters: The conditions; without any it holds always.
    """

    filters: tuple[Filter, ...]

    def matches(self, body: Any) -> bool:
        """Whether all of them hold."""
        return all(one.matches(body) for one in self.filters)


@dataclass(frozen=True, slots=True)
class AnyOf(Filter):
    """One of several conditions holds.

    Args:
        filters: The conditions; without any it never holds.
    """

    filters: tuple[Filter, ...]

    def matches(self, body: Any) -> bool:
        """Whether any of them holds."""
        return any(one.matches(body) for one in self.filters)


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """A condition does not hold.

    Args:
        filter: The condition.
    """

    filter: Filter

    def matches(self, body: Any) -> bool:
        """Whether it does not hold."""
        return not self.filter.matches(body)


# ---------------------------------------------------------------------------------------------------------------- order


@dataclass(frozen=True, slots=True)
class Ordering:
    """By which field documents are ordered. Where it is null, not there, or of no kind that has an order, comes first.

    Args:
        path: The way to the field.
        kinds: As what it is compared: all values of the first kind come before those of the second.
        descending: Whether all of it is the other way round.
    """

    path: Path
    kinds: tuple[ValueKind, ...]
    descending: bool = False

    def rank(self, value: Any) -> int:
        """Return among which values one is ordered: 1 for the first kind, and so on; 0 for what has no order."""
        places = (place for place, kind in enumerate(self.kinds, 1) if comparable(kind, value) is not None)
        return next(places, 0)

    def key(self, body: Any) -> tuple[int, Any]:
        """Return what documents can be sorted by, unless they are to be descending."""
        return self.key_of(picked(body, self.path))

    def key_of(self, value: Any) -> tuple[int, Any]:
        """Return what values of the field can be sorted by."""
        rank = self.rank(value)
        return rank, comparable(self.kinds[rank - 1], value) if rank else 0


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a list of documents: just behind one of them, which need not be there any more.

    Args:
        values: Its values of the fields that the list is ordered by; `None` for what has no order.
        id: Its id: what documents are ordered by in the end, always ascending.
    """

    values: tuple[Scalar | None, ...]
    id: str


# -------------------------------------------------------------------------------------------------------------- fields


@dataclass(frozen=True, slots=True, eq=False)
class Field:  # noqa: PLW1641 - it is compared to give a condition
    """A field of the documents of a collection: compared with values it gives a condition, see `Collection.field`.

    Args:
        path: The way to it.
        kinds: What it may be in JSON; `None` when its class does not tell.
        name: Its name for people.
        descending: Whether a list that is ordered by it begins with the greatest.
    """

    path: Path
    kinds: frozenset[ValueKind] | None
    name: str
    descending: bool = False

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return IsNull(self.path) if value is None else self._compared(Operator.EQUAL, value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return Not(self == value)

    def __lt__(self, value: object) -> Filter:
        return self._compared(Operator.LESS, value)

    def __le__(self, value: object) -> Filter:
        return self._compared(Operator.AT_MOST, value)

    def __gt__(self, value: object) -> Filter:
        return self._compared(Operator.GREATER, value)

    def __ge__(self, value: object) -> Filter:
        return self._compared(Operator.AT_LEAST, value)

    def __neg__(self) -> "Field":
        return replace(self, descending=not self.descending)

    def in_(self, values: Iterable[object]) -> Filter:
        """Return the condition that it is equal to one of the values.

        Raises:
            ConversionError: One of them is nothing that it can be.
        """
        if isinstance(values, str | bytes):
            raise ConversionError(f"{self.name}.in_({values!r}) has no list of values", hint="write in_([...])")
        by_kind: dict[ValueKind, list[Scalar]] = {}
        conditions: list[Filter] = []
        for value in values:
            if value is None:
                conditions.append(IsNull(self.path))
            else:
                kind, scalar = self._fitting(value)
                by_kind.setdefault(kind, []).append(scalar)
        conditions += [Comparison(self.path, Operator.ONE_OF, kind, tuple(found)) for kind, found in by_kind.items()]
        return conditions[0] if len(conditions) == 1 else AnyOf(tuple(conditions))

    def startswith(self, prefix: str) -> Filter:
        """Return the condition that it is text which begins like that; upper and lower case differ.

        Raises:
            ConversionError: It is no text.
        """
        kind, scalar = told_in_json(prefix, self.name)
        is_text = self.kinds is None or self.kinds & {ValueKind.TEXT, ValueKind.MOMENT, ValueKind.DECIMAL}
        if kind is not ValueKind.TEXT or not is_text:
            raise self._unfit(prefix)
        return Comparison(self.path, Operator.PREFIX, ValueKind.TEXT, (scalar,))

    def is_null(self) -> Filter:
        """Return the condition that it is null or not there. The opposite is `~field.is_null()`."""
        return IsNull(self.path)

    def ordering(self) -> Ordering:
        """Return it as what documents are ordered by.

        Raises:
            ConversionError: It is an object or a list.
        """
        if self.kinds is not None and not self.kinds:
            raise ConversionError(f"{self.name} has no order", hint="order by one of its fields, or by another field")
        kinds = _UNTOLD if self.kinds is None else tuple(kind for kind in _IN_ORDER if kind in self.kinds)
        if ValueKind.DECIMAL in kinds:  # which are numbers, too
            kinds = tuple(kind for kind in kinds if kind is not ValueKind.NUMBER)
        return Ordering(self.path, kinds, self.descending)

    def _compared(self, operator: Operator, value: object) -> Filter:
        kind, scalar = self._fitting(value)
        return Comparison(self.path, operator, kind, (scalar,))

    def _fitting(self, value: object) -> tuple[ValueKind, Scalar]:
        """Return a value as JSON has it, and as what the field is compared with it."""
        kind, scalar = told_in_json(value, self.name)
        if self.kinds is None or kind in self.kinds:
            return kind, scalar
        if kind in (ValueKind.NUMBER, ValueKind.DECIMAL):
            for other in (ValueKind.DECIMAL, ValueKind.NUMBER):
                if other in self.kinds:
                    return other, scalar
        if isinstance(scalar, str):  # such as a parameter of a query
            for other, pattern in ((ValueKind.MOMENT, _MOMENT), (ValueKind.DECIMAL, _NUMBER)):
                if other in self.kinds and pattern.fullmatch(scalar):
                    return other, Decimal(scalar) if other is ValueKind.DECIMAL else scalar
        raise self._unfit(value)

    def _unfit(self, value: object) -> ConversionError:
        can_be = " or ".join(dict.fromkeys(_NAMES[kind] for kind in _IN_ORDER if kind in (self.kinds or _UNTOLD)))
        return ConversionError(
            f"{self.name} cannot be compared with {value!r}",
            tried=f"in JSON it is {can_be}"
            if self.kinds is None or self.kinds
            else "in JSON it is an object or a list",
            hint="compare it with what it can be"
            if self.kinds is None or self.kinds
            else "compare one of its fields: field('address.city'), field('lines', 0, 'sku')",
        )


def told_in_json(value: object, name: str) -> tuple[ValueKind, Scalar]:
    """Return a value as JSON has it, and what it is there.

    Args:
        value: A value of Python, such as an enum, a date or a number.
        name: What is compared with it, for people.

    Raises:
        ConversionError: It is no single value, or one that not every database knows.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return ValueKind.BOOLEAN, value
    if isinstance(value, int | float):
        if not isfinite(value):
            raise ConversionError(f"{name} is compared with {value!r}, which is no number in JSON")
        return ValueKind.NUMBER, value
    if isinstance(value, Decimal):
        if not _NUMBER.fullmatch(str(value)):
            raise ConversionError(f"{name} is compared with {value!r}, which is no number in JSON")
        return ValueKind.DECIMAL, value
    try:
        plain = to_jsonable_python(value, by_alias=True)
    except PydanticSerializationError as error:
        raise ConversionError(f"{name} is compared with {value!r}, which has no form in JSON") from error
    if not isinstance(plain, str):
        raise ConversionError(
            f"{name} is compared with {value!r}, which is no single value",
            hint="compare the fields of an object one by one; in_([...]) takes several values",
        )
    if isinstance(value, datetime):
        return ValueKind.MOMENT, plain
    return ValueKind.TEXT, _writable(plain, name)


def _writable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConversionError(f"{name} is compared with {text!r}, which is no Unicode: {error.reason}") from error
    if "\x00" in text:
        raise ConversionError(f"{name} is compared with {text!r}, and no document holds the character U+0000")
    return text


# ---------------------------------------------------------------------------------------------------- values in Python


def as_json(value: Scalar | None) -> str:
    """Return a value that fields are compared with as it is in JSON."""
    if isinstance(value, float | Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def parsed(body: str) -> Any:
    """Return JSON as conditions look at it: numbers with decimal places are `Decimal`."""
    return json.loads(body, parse_float=Decimal, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def picked(body: Any, path: Sequence[str | int]) -> Any:
    """Return what is at the end of a path; `None` when there is nothing."""
    for part in path:
        if isinstance(part, str) and isinstance(body, dict):
            body = body.get(part)
        elif isinstance(part, int) and isinstance(body, list) and part < len(body):
            body = body[part]
        else:
            return None
    return body


def comparable(kind: ValueKind, value: Any) -> Any:
    """Return a value of JSON in a form in which Python compares it with others of its kind; `None` if it is not."""
    match kind:
        case ValueKind.BOOLEAN:
            return value if isinstance(value, bool) else None
        case ValueKind.NUMBER:
            return _number(value)
        case ValueKind.DECIMAL:
            is_number = isinstance(value, str) and _NUMBER.fullmatch(value)
            return Decimal(value) if is_number else _number(value)
        case ValueKind.MOMENT:
            return _moment(value) if isinstance(value, str) and _MOMENT.fullmatch(value) else None
        case ValueKind.TEXT:
            return value if isinstance(value, str) else None


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return Decimal(str(value)) if isinstance(value, float) else Decimal(value)


def _moment(text: str) -> int | None:
    """Return the microseconds since the day before the first of all."""
    local, offset = text.removesuffix("Z"), 0
    if text[-6] in "+-":
        local, hours, minutes = text[:-6], int(text[-5:-3]), int(text[-2:])
        offset = (hours * 60 + minutes) * (-1 if text[-6] == "-" else 1)
    whole, _, fraction = local.partition(".")
    try:
        moment = datetime.fromisoformat(whole)
    except ValueError:  # the 30th of February
        return None
    seconds = moment.toordinal() * 86_400 + moment.hour * 3_600 + moment.minute * 60 + moment.second - offset * 60
    return seconds * 1_000_000 + int(f"{fraction:0<6}")
