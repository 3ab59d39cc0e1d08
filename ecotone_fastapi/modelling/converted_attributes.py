"""Attributes whose types a converter of the application writes: pydantic, which writes the rest, calls it for them.

What a converter writes for one attribute becomes a part of the JSON of the whole, so it has to write JSON.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema, from_json, to_json

from ecotone_fastapi.core.conversion import JSON, Conversion
from ecotone_fastapi.core.errors import ConversionError
from ecotone_fastapi.core.message import name_of

_CONTAINERS = (list, tuple, set, frozenset, dict, deque, Sequence, AbstractSet, Mapping)


def converted_hint(hint: Any, conversion: Conversion) -> Any:
    """Return an annotation by which pydantic writes and reads what it says with the converters of the application.

    Converters are asked for the annotation itself, for what may be `None`, and for the elements of sequences, sets and
    mappings. They are not asked for the members of other unions, nor for what the value itself is made of.

    Args:
        hint: The annotation of an attribute.
        conversion: Has the converters.

    Example:
        >>> converted_hint(list[int], Conversion())
        list[int]
    """
    if conversion.has_converter(hint) and conversion.media_type(hint) == JSON:
        return Annotated[hint, _ByConverter(hint, conversion)]
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = converted_hint(members[0], conversion)
        return hint if inner is members[0] else Annotated[(inner, *members[1:])]
    optional = origin in (Union, UnionType) and len(members) == 2 and type(None) in members
    if not optional and origin not in _CONTAINERS:
        return hint
    inner = tuple(one if one in (type(None), ...) else converted_hint(one, conversion) for one in members)
    if all(one is before for one, before in zip(inner, members, strict=True)):
        return hint
    return Union[inner] if optional else origin[inner]  # noqa: UP007 - of members that are not written here


@dataclass(frozen=True)
class _ByConverter:
    """Metadata of an annotation: pydantic leaves the value to a converter."""

    type_: Any
    conversion: Conversion

    def __repr__(self) -> str:  # it is a part of the form of snapshots
        return "by a converter"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.plain_serializer_function_ser_schema(self._write)
        )

    def _write(self, value: Any) -> Any:
        if isinstance(self.type_, type) and not isinstance(value, self.type_):
            raise ConversionError(f"{value!r} is no {name_of(self.type_)}")
        data, content_type = self.conversion.encode(value)
        if content_type != JSON:
            raise ConversionError(f"a {name_of(type(value))} is written as {content_type}, and not as {JSON}")
        plain = from_json(data)
        if _precise(to_json(plain, inf_nan_mode="constants")) != _precise(data):
            raise ConversionError(
                f"the numbers of a {name_of(type(value))} have more digits than those of JSON are sure to keep",
                hint="let its converter write them as text",
            )
        return plain

    def _read(self, value: Any) -> Any:
        return self.conversion.decode(to_json(value), self.type_, JSON)


def _precise(data: bytes) -> Any:
    return json.loads(data, parse_float=Decimal, parse_constant=str)
