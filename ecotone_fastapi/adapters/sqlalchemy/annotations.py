"""What the annotations of methods that are SQL say: which types there are, and which fields they have."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cached_property
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from ecotone_fastapi.core.routing import is_typed_dict
from ecotone_fastapi.core.signatures import EMPTY, returned_by

SINGLE = (str, bytes, bytearray, memoryview)
"""Sequences that are one value."""

MISSING: Any = object()
"""Stands for the type of a field that is not there."""


def members(type_: Any) -> Iterator[Any]:
    """Yield what a type may be, one by one: without `None`, aliases and what is annotated."""
    while get_origin(type_) is Annotated or hasattr(type_, "__supertype__") or hasattr(type_, "__value__"):
        if get_origin(type_) is Annotated:
            type_ = get_args(type_)[0]
        else:
            type_ = getattr(type_, "__supertype__", None) or type_.__value__
    if get_origin(type_) in (Union, UnionType):
        for one in get_args(type_):
            yield from members(one)
    elif type_ not in (None, type(None)):
        yield type_


def has_fields(cls: type) -> bool:
    """Whether instances of a class have named parts."""
    is_named_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    return issubclass(cls, (BaseModel, Mapping)) or is_dataclass(cls) or is_typed_dict(cls) or is_named_tuple


def field_of(type_: Any, name: str) -> Any:
    """Return the type of a field; `MISSING` when one of the types has no such field."""
    found = [_field_of_class(one, name) for one in members(type_)]
    if MISSING in found:
        return MISSING
    return Union[tuple(found)] if found else Any  # noqa: UP007 - as many as there are


def _field_of_class(type_: Any, name: str) -> Any:
    cls = get_origin(type_) or type_
    if not isinstance(cls, type) or cls in (Any, object, EMPTY):
        return Any
    if issubclass(cls, Mapping) and not is_typed_dict(cls):
        return get_args(type_)[1] if len(get_args(type_)) == 2 else Any
    hints = get_type_hints(cls, include_extras=True)
    if name in hints:
        return hints[name]
    found = inspect.getattr_static(cls, name, MISSING)
    if isinstance(found, property) and found.fget is not None:
        found = found.fget
    elif isinstance(found, cached_property):
        found = found.func
    elif found is MISSING or callable(found):
        return MISSING
    else:
        return Any
    returns = returned_by(found)
    return Any if returns is EMPTY else returns


def shown(type_: Any) -> str:
    """Return a type as it is told to people."""
    return (
        type_.__name__ if isinstance(type_, type) and get_origin(type_) is None else str(type_).replace("typing.", "")
    )
