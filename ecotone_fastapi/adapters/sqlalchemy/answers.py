"""What a method that is a query returns: which rows are fetched, and what becomes of each."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import Json, RootModel, TypeAdapter

from ecotone_fastapi.adapters.sqlalchemy.annotations import has_fields, members, shown
from ecotone_fastapi.core.conversion import PydanticConverter
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.signatures import EMPTY


class Fetch(Enum):
    """Which rows are fetched."""

    ALL = 1
    FIRST = 2
    FIRST_OR_NONE = 3
    STREAM = 4


class Form(Enum):
    """What becomes of a row before it is validated."""

    VALUE = 1
    BY_NAME = 2
    BY_PLACE = 3


@dataclass(frozen=True)
class Answer:
    """What a query returns.

    Args:
        fetch: Which rows.
        form: What becomes of each.
        adapter: Validates all rows of `ALL`, one of them otherwise.
        shown: The type of a row for people.
    """

    fetch: Fetch
    form: Form
    adapter: TypeAdapter[Any]
    shown: str

    def row(self, columns: Sequence[str], row: Any) -> Any:
        """Return a row as it is validated."""
        match self.form:
            case Form.VALUE:
                return row[0]
            case Form.BY_NAME:
                return dict(zip(columns, row, strict=True))
            case Form.BY_PLACE:
                return tuple(row)


_LISTS = (list, Sequence, set, frozenset, AbstractSet)
_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)


def answer_of(returns: Any) -> Answer:
    """Return what the annotation of a method says.

    Raises:
        ConfigurationError: It says nothing that a query can return.
    """
    adapters = PydanticConverter()
    plain = get_args(returns)[0] if get_origin(returns) is Annotated and not _is_json(returns) else returns
    origin, arguments = get_origin(plain) or plain, get_args(plain)
    if origin in _STREAMS and arguments:
        element = arguments[0]
        return Answer(Fetch.STREAM, _form_of(element), adapters.adapter(element), shown(element))
    if origin in _LISTS or (origin is tuple and arguments[1:] == (Ellipsis,)):
        element = arguments[0] if arguments else dict[str, Any]
        whole = returns if arguments else list[dict[str, Any]]
        return Answer(Fetch.ALL, _form_of(element), adapters.adapter(whole), shown(element))
    if returns is EMPTY or plain in (None, type(None)) or _is_iterator(origin):
        raise ConfigurationError(
            "it does not say what it returns"
            if returns is EMPTY
            else f"a query does not return {'None' if plain is None else shown(returns)}",
            hint="write -> list[X] for all rows, -> X | None or -> X for the first one, and without async "
            "-> AsyncIterator[X] for one after the other",
        )
    optional = origin in (Union, UnionType) and type(None) in arguments
    fetch = Fetch.FIRST_OR_NONE if optional else Fetch.FIRST
    return Answer(fetch, _form_of(returns), adapters.adapter(returns), shown(returns))


def _is_iterator(origin: Any) -> bool:
    return origin in _STREAMS or (isinstance(origin, type) and issubclass(origin, Iterator))


def _form_of(element: Any) -> Form:
    """Return what becomes of rows that are to be of a type."""
    if _is_json(element):
        return Form.VALUE
    forms = {_form_of_class(get_origin(one) or one) for one in members(element)}
    if len(forms) != 1:
        raise ConfigurationError(
            f"{shown(element)} says different things about a row",
            hint="a row is either an object with a field for each column, or a tuple of them, or a single value",
        )
    return forms.pop()


def _is_json(type_: Any) -> bool:
    """Whether values are read from JSON in one column: `Json[X]`."""
    return get_origin(type_) is Annotated and any(Json in (one, type(one)) for one in get_args(type_)[1:])


def _form_of_class(cls: Any) -> Form:
    if cls in (Any, object) or isinstance(cls, TypeVar):
        raise ConfigurationError(
            "it does not say what a row is", hint="write a class with a field for each column, or dict[str, Any]"
        )
    if not isinstance(cls, type) or issubclass(cls, RootModel):
        return Form.VALUE
    if has_fields(cls):
        return Form.BY_NAME
    return Form.BY_PLACE if issubclass(cls, tuple) else Form.VALUE
