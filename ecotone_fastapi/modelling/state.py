"""The state of objects as JSON, and objects of it again: for stores that keep aggregates as documents.

What is stored are the attributes: the fields of a dataclass or of a pydantic model, and of a plain class what is in its
`__dict__`. An object that is read was not made by its constructor, and no `__post_init__` has run, because nothing is
created; a pydantic model is validated. What a converter of the application handles, the class itself or the type of an
attribute, is written and read by that.

    >>> class Order:
    ...     lines: list[str]
    ...
    ...     def __init__(self, number: int) -> None:
    ...         self.number, self.lines = number, []
    >>> form = StateForm(Order)
    >>> form.write(Order(7))
    '{"number":7,"lines":[]}'
    >>> form.read('{"number":8,"lines":["milk"]}').lines
    ['milk']
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from inspect import isabstract
from types import NoneType, UnionType
from typing import Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, PydanticInvalidForJsonSchema
from pydantic_core import from_json, to_json

from ecotone_fastapi.core.conversion import JSON, Conversion, PydanticConverter
from ecotone_fastapi.core.errors import AggregateError, ConfigurationError, ConversionError
from ecotone_fastapi.core.round_trip import losses_of
from ecotone_fastapi.modelling.converted_attributes import converted_hint

A = TypeVar("A")

_UNSET: Any = object()
_PLAIN = (str, int, float, bool, type(None))  # what JSON gives back as it was


class StateForm(Generic[A]):
    """How objects of one class are written as JSON and read again.

    Args:
        cls: The class.
        conversion: The converters of the application. Those for attributes of a pydantic model are its own affair.

    Raises:
        ConfigurationError: Its state would not come back as it was, or its converter does not write JSON.
    """

    def __init__(self, cls: type[A], conversion: Conversion | None = None) -> None:
        self._cls = cls
        self._label: str = cls.__qualname__
        self._conversion = conversion or Conversion()
        self._by_converter: bool = self._conversion.has_converter(cls)
        self._pydantic = PydanticConverter()
        self._is_model = issubclass(cls, BaseModel)
        self._fields: Mapping[str, dataclasses.Field[Any]] = (
            {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
        )
        self._open = not self._is_model and not dataclasses.is_dataclass(cls)
        self._types: Mapping[str, Any] = {} if self._is_model or self._by_converter else self._attributes()
        self._anything: frozenset[str] = frozenset(name for name, hint in self._types.items() if _is_anything(hint))
        self._carriers: dict[tuple[str, ...], type] = {}
        if self._by_converter:
            self._check_converter()
            return
        self._whole: type = cls if self._is_model else self._carrier(tuple(self._types))
        self._check()

    def write(self, state: A) -> str:
        """Return the state of an object as JSON.

        Raises:
            AggregateError: It has something that would not come back.
        """
        if type(state) is not self._cls:
            raise AggregateError(
                f"a {type(state).__qualname__} cannot be kept as a {self._label}",
                hint="what it has besides would be lost: make it an aggregate of its own",
            )
        try:
            if self._by_converter:
                return self._conversion.encode(state)[0].decode()
            return self._pydantic.encode(state if self._is_model else self._carried(state)).decode()
        except ConversionError as error:
            raise AggregateError(f"a {self._label} cannot be kept: {error.what}", hint=error.hint) from error

    def read(self, body: str) -> A:
        """Return an object with this state.

        Raises:
            AggregateError: What was stored is no state of this class.
        """
        try:
            if self._by_converter:
                read: A = self._conversion.decode(body.encode(), self._cls, JSON)
                return read
            found = self._pydantic.decode(body.encode(), self._whole)
        except ConversionError as error:
            raise AggregateError(
                f"what was stored of a {self._label} cannot be read: {error.what}",
                hint="has the class changed? a new attribute needs a default",
            ) from error
        if self._is_model:
            model: A = found
            return model
        state: A = object.__new__(self._cls)
        for name, value in self._restored(found, body):
            object.__setattr__(state, name, value)
        return state

    def shape(self) -> bytes:
        """Return a text that is another one when the attributes have changed, or those of what they hold."""
        return to_json({name: self._shape_of(hint) for name, hint in sorted(self._types.items())})

    def _shape_of(self, hint: Any) -> Any:
        try:
            return self._pydantic.adapter(hint).json_schema()
        except PydanticInvalidForJsonSchema:  # something that only the user's own serializer can write
            return str(hint)

    def _attributes(self) -> Mapping[str, Any]:
        try:
            hints = get_type_hints(self._cls, include_extras=True)
            if self._open:
                # An attribute is likely to be named after the parameter that it is set to.
                made_of = get_type_hints(getattr(self._cls, "__init__"), include_extras=True)  # noqa: B009 - of this class
                made_of.pop("return", None)
                hints = {**{name: hint for name, hint in made_of.items() if _is_definite(hint)}, **hints}
        except NameError as error:
            raise self._refused(f"an annotation cannot be evaluated: {error}") from error
        if not self._open:
            hints = {name: hints.get(name, Any) for name in self._fields}
        kept = {name: hint for name, hint in hints.items() if hint is not ClassVar and get_origin(hint) is not ClassVar}
        return {name: converted_hint(hint, self._conversion) for name, hint in kept.items()}

    def _carrier(self, names: tuple[str, ...]) -> type:
        """Return a class that has these attributes and nothing else: it is what pydantic writes and reads."""
        carrier = self._carriers.get(names)
        if carrier is None:
            fields = [(name, self._types.get(name, Any), dataclasses.field(default=_UNSET)) for name in names]
            carrier = self._carriers[names] = dataclasses.make_dataclass(self._cls.__name__, fields)
            carrier.__qualname__ = self._label
        return carrier

    def _carried(self, state: A) -> object:
        values = dict(self._present(state))
        return self._carrier(tuple(values))(**values)

    def _present(self, state: A) -> Iterator[tuple[str, Any]]:
        own: Mapping[str, Any] = getattr(state, "__dict__", {})
        for name in self._types:
            value = own.get(name, _UNSET)
            if value is _UNSET and name in _slots_of(self._cls):
                value = getattr(state, name, _UNSET)
            if value is not _UNSET:
                if name in self._anything and not _is_plain(value):
                    raise AggregateError(
                        f"the attribute {name!r} of a {self._label} would not come back as it is: {value!r}",
                        hint=f"its annotation, {self._types[name]}, does not tell what to make of JSON: name the types",
                    )
                yield name, value
        for name, value in own.items():
            if name in self._types or isinstance(getattr(self._cls, name, None), cached_property):
                continue
            if not self._open or not _is_plain(value):
                raise AggregateError(
                    f"the attribute {name!r} of a {self._label} would not come back as it is: {value!r}",
                    hint=f"annotate it in the class, {name}: {type(value).__name__}"
                    if self._open
                    else f"make it a field of the dataclass, or a cached_property if it follows from others: {name}",
                )
            yield name, value

    def _restored(self, found: object, body: str) -> Iterator[tuple[str, Any]]:
        for name in self._types:
            value = getattr(found, name)
            if value is _UNSET and name in self._fields:
                value = self._default_of(self._fields[name])
            if value is not _UNSET:
                yield name, value
        if self._open:
            yield from ((name, value) for name, value in from_json(body).items() if name not in self._types)

    def _default_of(self, field: dataclasses.Field[Any]) -> Any:
        if field.default is not dataclasses.MISSING:
            return field.default
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        raise AggregateError(
            f"what was stored of a {self._label} has no {field.name!r}", hint="give a new field a default"
        )

    def _check(self) -> None:
        for name, hint in self._types.items():
            try:
                self._pydantic.adapter(hint)
            except ConfigurationError as error:
                raise self._refused(f"{name}: {error.what}") from error
        try:
            losses = losses_of(self._pydantic.adapter(self._whole), self._label, changing=True)
        except ConfigurationError as error:
            raise self._refused(error.what) from error
        if losses:
            told = "; ".join(f"{loss.where}: {loss.what}" for loss in losses)
            raise self._refused(told, "; ".join(dict.fromkeys(loss.remedy for loss in losses)))

    def _check_converter(self) -> None:
        content_type = self._conversion.media_type(self._cls)
        if content_type != JSON:
            raise self._refused(
                f"its converter writes {content_type}, and what is kept is {JSON}", "let its converter write JSON"
            )

    def _refused(self, why: str, remedy: str = "make it a dataclass or a pydantic model") -> ConfigurationError:
        return ConfigurationError(
            f"the state of a {self._label} would not come back as it was: {why}",
            hint=f"{remedy}; or keep it in a store of your own: Aggregates(stores=[...])",
        )


def _slots_of(cls: type) -> frozenset[str]:
    slots = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    return frozenset(name for one in slots for name in ((one,) if isinstance(one, str) else one))


def _is_definite(hint: Any) -> bool:
    """Whether values of a type have one form: not when a constructor may well make something else of them."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        members = [one for one in get_args(hint) if one is not NoneType]
        return len(members) == 1 and _is_definite(members[0])
    return get_origin(hint) in (list, dict, set, frozenset, tuple) or (
        isinstance(hint, type) and get_origin(hint) is None and not isabstract(hint)
    )


def _is_anything(hint: Any) -> bool:
    """Whether a type does not say what JSON is to be made into: `Any`, also in lists and in dicts."""
    if hint in (Any, object, list, dict):
        return True
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return all(_is_anything(one) for one in get_args(hint) if one is not NoneType)
    return get_origin(hint) in (list, dict) and _is_anything(get_args(hint)[-1])


def _is_plain(value: object) -> bool:
    """Whether JSON gives a value back as it was, without knowing its type."""
    if type(value) is list:
        return all(_is_plain(one) for one in value)
    if type(value) is dict:
        return all(type(key) is str and _is_plain(one) for key, one in value.items())
    return type(value) in _PLAIN and value == value  # noqa: PLR0124 - NaN is no JSON
