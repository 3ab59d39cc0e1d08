"""Between a payload and the bytes of a channel: pydantic for JSON, and whatever converters the user adds.

>>> conversion = Conversion()
>>> conversion.encode({"order_id": 1})
(b'{"order_id":1}', 'application/json')
>>> conversion.decode(b'["1", "2"]', list[int], "application/json")
[1, 2]
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import PydanticSerializationError, core_schema, to_json, to_jsonable_python

from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, EcotoneError, HeaderError
from ecotone_fastapi.core.message import HeaderName, name_of, seconds_text
from ecotone_fastapi.core.round_trip import Loss, losses_of, may_hold_floats

JSON = "application/json"
BINARY = "application/octet-stream"

_BYTES = (bytes, bytearray, memoryview)

Schemas = dict[str, JsonSchemaValue]
"""JSON Schemas by name."""


class Converter(Protocol):
    """Turns payloads of some types into bytes of one media type and back.

    Raises:
        ConversionError: Or any `ValueError`: what `encode` and `decode` raise when value and type do not fit.
    """

    @property
    def content_type(self) -> str:
        """The media type of what `encode` returns and `decode` reads, e.g. `text/csv`."""
        ...

    def handles(self, type_: Any) -> bool:
        """Whether this converter is responsible for payloads of this type."""
        ...

    def encode(self, value: Any) -> bytes:
        """Return the value as bytes."""
        ...

    def decode(self, data: bytes, type_: Any) -> Any:
        """Return a value of the type."""
        ...


class PydanticConverter:
    """JSON by pydantic: models, dataclasses, TypedDicts, enums, unions, generics and everything else it knows."""

    content_type = JSON

    def __init__(self) -> None:
        self._adapters: dict[Any, TypeAdapter[Any]] = {}
        self._floats: dict[type, bool] = {}

    def handles(self, type_: Any) -> bool:
        """Whether pydantic can make a schema for the type."""
        try:
            self.adapter(type_)
        except ConfigurationError:
            return False
        return True

    def encode(self, value: Any) -> bytes:
        """Return the value as JSON that `decode` can read again.

        NaN and infinity are written as `NaN`, `Infinity` and `-Infinity`, which strict readers of JSON refuse.

        Raises:
            ConversionError: It has no JSON form, or a field holds what its annotation does not allow.
        """
        try:
            if type(value).__module__ == "builtins":
                # The elements of a plain container decide for themselves how they are written.
                data = to_json(value, by_alias=True, round_trip=True)
                if b"null" not in data:
                    return data
                return to_json(to_jsonable_python(value, by_alias=True, round_trip=True, inf_nan_mode="constants"))
            adapter = self.adapter(type(value))
            # What does not fit its own type would be refused by every receiver: better by the sender, at once.
            data = adapter.serializer.to_json(value, by_alias=True, round_trip=True, warnings="error")
            if b"null" not in data or not self._may_hold_floats(type(value), adapter):
                return data
            return _with_all_floats(data, value, adapter)
        except (PydanticSerializationError, ConfigurationError) as error:
            raise _unwritable(value, error) from error

    def answer(self, value: Any) -> bytes:
        """Return the value as JSON for readers who want to know rather than to have it again: with computed fields."""
        try:
            if type(value).__module__ == "builtins":
                return to_json(value, by_alias=True)
            return self.adapter(type(value)).dump_json(value, by_alias=True)
        except (PydanticSerializationError, ConfigurationError) as error:
            raise _unwritable(value, error) from error

    def decode(self, data: bytes, type_: Any) -> Any:
        """Return the JSON as a value of the type."""
        try:
            return self.adapter(type_).validate_json(data)
        except ValidationError as error:
            raise _refused(error, type_) from error

    def convert(self, value: Any, type_: Any) -> Any:
        """Return a Python value, such as a dict, as a value of the type."""
        try:
            return self.adapter(type_).validate_python(value)
        except ValidationError as error:
            raise _refused(error, type_) from error

    def _may_hold_floats(self, type_: type, adapter: TypeAdapter[Any]) -> bool:
        known = self._floats.get(type_)
        if known is None:
            known = self._floats[type_] = may_hold_floats(adapter)
        return known

    def adapter(self, type_: Any) -> TypeAdapter[Any]:
        """Return the one `TypeAdapter` of the type.

        Raises:
            ConfigurationError: pydantic knows no schema for it.
        """
        try:
            return self._adapters[type_]
        except (KeyError, TypeError):
            pass
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(type_)
            if not getattr(adapter, "pydantic_complete", True):
                # Newer versions of pydantic put off what they cannot resolve until the first use.
                adapter.rebuild()
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            raise ConfigurationError(
                f"pydantic has no schema for {name_of(type_)}: {str(error).splitlines()[0]}",
                hint="use a dataclass or a pydantic model, or give Ecotone(converters=[...]) one for this type",
            ) from error
        with suppress(TypeError):  # an annotation with unhashable metadata is built anew each time
            self._adapters[type_] = adapter
        return adapter


class _WrittenSchema(GenerateJsonSchema):
    """The schema of what `encode` writes."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as pydantic has it

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        return {"type": "string", "format": "decimal"}

    def computed_field_schema(self, schema: core_schema.ComputedField) -> JsonSchemaValue:
        return {"not": {}}  # it is not written

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def _with_all_floats(data: bytes, value: Any, adapter: TypeAdapter[Any]) -> bytes:
    """Return JSON in which NaN and infinity, which models and dataclasses write as null, are told.

    Raises:
        ConversionError: The type allows no such numbers.
    """
    plain = adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings="error")
    python = adapter.dump_python(value, by_alias=True, round_trip=True, warnings=False)
    told = to_json(_with_floats_of(python, plain), inf_nan_mode="constants")
    if told != data:
        try:
            adapter.validate_json(told)
        except ValidationError as error:
            raise _refused(error, type(value)) from error
    return told


def _with_floats_of(python: Any, plain: Any) -> Any:
    """Put back what is no number in JSON and was lost where no type says that there is one."""
    if plain is None and isinstance(python, float) and not isfinite(python):
        return python
    if isinstance(plain, dict) and isinstance(python, dict) and len(plain) == len(python):
        pairs = zip(plain.items(), python.values(), strict=True)
        return {key: _with_floats_of(inner, one) for (key, one), inner in pairs}
    if isinstance(plain, list) and isinstance(python, list | tuple) and len(plain) == len(python):
        return [_with_floats_of(inner, one) for inner, one in zip(python, plain, strict=True)]
    return plain


def _unwritable(value: Any, error: Exception) -> ConversionError:
    return ConversionError(
        f"a {name_of(type(value))} cannot be written as JSON: {error}",
        hint="use a dataclass or a pydantic model, or give Ecotone(converters=[...]) one for this type",
    )


def _refused(error: ValidationError, type_: Any) -> ConversionError:
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    where = ".".join(map(str, first["loc"])) or "the payload"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return ConversionError(
        f"the payload is no {_shown(type_)}: {where}: {first['msg']}{more}",
        details=[dict(detail) for detail in details],
        hint="compare what was sent with the fields of the type",
    )


def _shown(type_: Any) -> str:
    return name_of(type_) if isinstance(type_, type) else str(type_)


class Conversion:
    """All converters of an application: the user's first, pydantic last.

    Args:
        converters: The user's, asked in this order.
    """

    def __init__(self, converters: Iterable[Converter] = ()) -> None:
        self._pydantic = PydanticConverter()
        self._converters: tuple[Converter, ...] = tuple(converters)
        self._losses: dict[Any, Sequence[Loss]] = {}

    def encode(self, payload: Any, content_type: str | None = None) -> tuple[bytes, str]:
        """Return a payload as bytes, and the media type of these.

        Args:
            payload: Bytes stay as they are; so does text of which a media type is told.
            content_type: The media type that the payload is already in, for bytes and text.

        Raises:
            ConversionError: No converter can write it.
        """
        if isinstance(payload, _BYTES):
            return bytes(payload), content_type or BINARY
        if isinstance(payload, str) and content_type is not None:
            return payload.encode(), content_type
        converter = self._for(type(payload))
        try:
            return converter.encode(payload), converter.content_type
        except EcotoneError:
            raise
        except ValueError as error:
            raise ConversionError(f"a {name_of(type(payload))} cannot be written: {error}") from error

    def decode(self, data: bytes, type_: Any, content_type: str) -> Any:
        """Return bytes as a value of the type.

        Raises:
            ConversionError: They are in another media type, or do not fit.
        """
        if type_ is bytes or (type_ is Any and content_type == BINARY):
            return data
        media_type = _media_type(content_type)
        converter = self._reading(type_, media_type)
        if converter is None and type_ in (str, Any) and media_type.startswith("text/"):
            return _decoded(data, media_type)
        if converter is None:
            raise ConversionError(
                f"nothing here reads {media_type} as {_shown(type_)}",
                tried=", ".join([one.content_type for one in (*self._converters, self._pydantic)]),
                hint="give Ecotone(converters=[...]) one for this media type, or send application/json",
            )
        try:
            return converter.decode(data, type_)
        except ConfigurationError as error:
            raise ConversionError(
                f"{media_type} cannot be read as {_shown(type_)}: {error.what}", hint=error.hint
            ) from error
        except EcotoneError:
            raise
        except ValueError as error:
            raise ConversionError(f"{media_type} could not be read as {_shown(type_)}: {error}") from error

    def convert(self, value: Any, type_: Any) -> Any:
        """Return a Python value, such as a dict, as a value of the type.

        Raises:
            ConversionError: They do not fit.
        """
        try:
            return self._pydantic.convert(value, type_)
        except ConfigurationError as error:
            raise ConversionError(
                f"the payload is a {name_of(type(value))}, not a {_shown(type_)}, and cannot be made one",
                hint=error.hint,
            ) from error

    def answer(self, value: Any) -> bytes:
        """Return an answer as bytes: by the converter of its type, else as JSON with computed fields.

        Raises:
            ConversionError: It has no form as bytes.
        """
        if isinstance(value, _BYTES):
            return bytes(value)
        converter = self._for(type(value))
        return self._pydantic.answer(value) if converter is self._pydantic else self.encode(value)[0]

    def validates(self, type_: Any) -> bool:
        """Whether values can be made to fit the type, beyond being told by `isinstance`."""
        return self._pydantic.handles(type_)

    def check(self, type_: Any) -> None:
        """Make sure that values of the type can cross a channel.

        Raises:
            ConfigurationError: No converter is responsible for it, or it does not come back as it was sent.
        """
        if not self.has_converter(type_):
            self._pydantic.adapter(type_)
        losses = self.problems_of_round_trip(type_)
        if losses:
            told = "; ".join([f"{loss.where}: {loss.what}" for loss in losses])
            remedies = [*dict.fromkeys(loss.remedy for loss in losses), "or give Ecotone(converters=[...]) a converter"]
            raise ConfigurationError(
                f"{_shown(type_)} does not come back from a channel as it was sent: {told}", hint="; ".join(remedies)
            )

    def schema(self, type_: Any) -> Mapping[str, Any] | None:
        """Return the JSON Schema of what is written of values of a type; `None` when a converter of the user writes it.

        A `Decimal` is told by `"format": "decimal"`; what nobody can tell has an empty schema.

        Raises:
            ConfigurationError: No converter is responsible for the type.
        """
        if self.has_converter(type_):
            return None
        adapter = self._pydantic.adapter(type_)
        return adapter.json_schema(mode="serialization", by_alias=True, schema_generator=_WrittenSchema)

    def schemas(self, types: Mapping[str, Any], *, ref_template: str) -> tuple[Schemas, Schemas]:
        """Return the JSON Schemas of what is written of values of several types, and those that they refer to.

        Each class has one schema, whoever refers to it, under a name that no other class has.

        Args:
            types: Types that no converter of the user is responsible for, by any name.
            ref_template: How schemas are referred to, with `{model}` for the name.

        Returns:
            The schemas by the names that were given, and what they refer to by name.

        Raises:
            ConfigurationError: pydantic has no schema for one of them.
        """
        inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
            (name, "serialization", self._pydantic.adapter(type_)) for name, type_ in types.items()
        ]
        found, shared = TypeAdapter.json_schemas(
            inputs, by_alias=True, ref_template=ref_template, schema_generator=_WrittenSchema
        )
        return {name: schema for (name, _), schema in found.items()}, shared.get("$defs", {})

    def media_type(self, type_: Any) -> str:
        """Return the media type of what is written of values of a type; of bytes, unless their sender tells another."""
        return BINARY if type_ is bytes else self._for(type_).content_type

    def problems_of_round_trip(self, type_: Any) -> Sequence[Loss]:
        """Return what values of the type lose on a channel; a type is looked through once.

        What a converter of the user is responsible for, and what pydantic has no schema for, loses nothing.
        """
        try:
            known = self._losses.get(type_)
        except TypeError:  # an annotation with unhashable metadata
            return self._find_losses(type_)
        if known is None:
            known = self._losses[type_] = self._find_losses(type_)
        return known

    def _find_losses(self, type_: Any) -> Sequence[Loss]:
        if self.has_converter(type_):
            return ()
        if self._converters and get_origin(type_) in (Annotated, Union, UnionType):
            # Converters are asked for what is sent: one member of a union.
            members = get_args(type_)[:1] if get_origin(type_) is Annotated else get_args(type_)
            return tuple(dict.fromkeys(loss for member in members for loss in self._find_losses(member)))
        if not self._pydantic.handles(type_):
            return ()
        return losses_of(self._pydantic.adapter(type_), _shown(type_))

    def has_converter(self, type_: Any) -> bool:
        """Whether a converter of the user is responsible for a type."""
        return any(converter.handles(type_) for converter in self._converters)

    def _for(self, type_: Any) -> Converter:
        for converter in self._converters:
            if converter.handles(type_):
                return converter
        return self._pydantic

    def _reading(self, type_: Any, media_type: str) -> Converter | None:
        for converter in self._converters:
            if _media_type(converter.content_type) == media_type and converter.handles(type_):
                return converter
        is_json = media_type == JSON or media_type.endswith("+json")
        return self._pydantic if is_json else None


@lru_cache(256)
def _media_type(content_type: str) -> str:
    """A content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def _decoded(data: bytes, media_type: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConversionError(f"{media_type} could not be read as text: {error}", hint="send UTF-8") from error


_TIMES = (HeaderName.delay, HeaderName.time_to_live)


def header_text(name: str, value: Any, now: datetime | None = None) -> str:
    """Return a header value as text: scalars as they read, everything else as JSON.

    What channels count in seconds may be given as a `timedelta`, or as the `datetime` at which it ends.

    Args:
        name: The name of the header.
        value: Its value.
        now: The present time, unless it is the machine's.

    Raises:
        ConversionError: The value has no JSON form, or is a moment without its offset from UTC.
    """
    if type(value) is str:
        return value
    if name in _TIMES and isinstance(value, timedelta | datetime):
        return seconds_text(name, value, now or datetime.now(UTC))
    try:
        plain = to_jsonable_python(value, by_alias=True)
    except PydanticSerializationError as error:
        raise ConversionError(
            f"the header {name!r} cannot be written as text: {error}", hint="send text, or what pydantic can serialize"
        ) from error
    return plain if isinstance(plain, str) else to_json(plain).decode()


def header_texts(headers: Mapping[str, Any], now: datetime | None = None) -> dict[str, str]:
    """Return headers with all values as text; those that are `None` are left out."""
    return {name: header_text(name, value, now) for name, value in headers.items() if value is not None}


class HeaderReader:
    """Reads one header as a value of a type.

    Args:
        type_: The annotation of the parameter, with its pydantic constraints.

    Raises:
        ConfigurationError: pydantic cannot read this type.
    """

    def __init__(self, type_: Any) -> None:
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(type_)
        except PydanticUserError as error:
            raise ConfigurationError(
                f"a header cannot be read as {_shown(type_)}: {str(error).splitlines()[0]}",
                hint="annotate it with a type that pydantic can read from text or JSON",
            ) from error
        self._type = type_

    def __call__(self, name: str, text: str) -> Any:
        """Return the value.

        Raises:
            HeaderError: The text does not fit the type.
        """
        try:
            return self._adapter.validate_strings(text)
        except ValidationError as error:
            as_text = error
        try:
            return self._adapter.validate_json(text)
        except ValueError:
            details = as_text.errors(include_url=False, include_context=False)
            raise HeaderError(
                f"the header {name!r} is no {_shown(self._type)}: {details[0]['msg']}",
                details=[dict(detail) for detail in details],
                hint="compare what the sender writes with the annotation of the parameter",
            ) from as_text
