"""What documents of a type look like in JSON: whether they come back, and which fields they can be searched by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, get_origin

from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError
from ecotone_fastapi.core.message import name_of
from ecotone_fastapi.core.routing import is_typed_dict
from ecotone_fastapi.modelling.document_filters import ValueKind


@dataclass(frozen=True)
class Shape:
    """What documents of a type look like in JSON.

    Args:
        class_: The class whose instances need no further check; `None` when there is none.
        schema: Their JSON Schema; `None` when nobody knows.
    """

    class_: type | None
    schema: Mapping[str, Any] | None

    @classmethod
    def of(cls, type_: Any, conversion: Conversion) -> "Shape":
        """Return what documents of a type look like.

        Raises:
            ConfigurationError: They do not come back as they are written.
        """
        losses = conversion.problems_of_round_trip(type_)
        if losses:
            told = "; ".join([f"{loss.where}: {loss.what}" for loss in losses])
            raise ConfigurationError(
                f"{shown(type_)} does not come back from a document as it was written: {told}",
                hint="; ".join(dict.fromkeys(loss.remedy for loss in losses)),
            )
        plain = isinstance(type_, type) and get_origin(type_) is None and type_.__module__ != "builtins"
        return cls(type_ if plain and not is_typed_dict(type_) else None, conversion.schema(type_))

    def is_one(self, value: object) -> bool:
        """Whether a value is an instance of the type, as far as that can be told without a look at what is in it."""
        return self.class_ is not None and isinstance(value, self.class_)

    def kinds_at(self, path: Sequence[str | int], name: str) -> frozenset[ValueKind] | None:
        """Return what may be at the end of a path; `None` when nobody knows.

        Raises:
            ConversionError: There can be nothing.
        """
        if self.schema is None:
            return None
        nodes = [*self._plain(self.schema)]
        for place, part in enumerate(path):
            inner: list[Mapping[str, Any]] = []
            for node in nodes:
                found = _inside(node, part)
                if found is None:
                    return None
                inner += [one for schema in found for one in self._plain(schema)]
            if not inner:
                written = [key for node in nodes for key, one in node.get("properties", {}).items() if "not" not in one]
                leads = f"{path[place - 1]!r} has" if place else "documents have"
                split = len(path) > 1 and isinstance(part, str) and "." in part
                raise ConversionError(
                    f"there is no {name}",
                    tried=", ".join(dict.fromkeys(written)) or f"{leads} no such field",
                    hint=f"give {part!r} name by name: among several, each is one name"
                    if split
                    else "write the names of fields as they are in JSON",
                )
            nodes = inner
        kinds = [_kinds_of(node) for node in nodes]
        return None if None in kinds else frozenset(kind for one in kinds if one is not None for kind in one)

    def _plain(self, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield what a schema may be, one by one: without references and unions."""
        if "$ref" in schema:
            assert self.schema is not None
            yield from self._plain(self.schema["$defs"][schema["$ref"].rpartition("/")[2]])
        elif choices := [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]:
            for choice in choices:
                yield from self._plain(choice)
        elif "not" not in schema:
            yield schema


def _inside(node: Mapping[str, Any], part: str | int) -> Sequence[Any] | None:
    """Return the schemas of what a part leads to: none when it leads nowhere, `None` when nobody knows."""
    kind = node.get("type")
    if kind is None and "enum" not in node and "const" not in node:
        return None
    if isinstance(part, int):
        if kind != "array":
            return ()
        first = node.get("prefixItems", ())
        if part < len(first) or part >= node.get("maxItems", inf):
            return tuple(first[part : part + 1])
        rest = node.get("items", True)
        return () if rest is False else None if rest is True else (rest,)
    if kind != "object":
        return ()
    if part in node.get("properties", ()):
        return (node["properties"][part],)
    others = [*node.get("patternProperties", {}).values()]
    extra = node.get("additionalProperties", "properties" not in node and not others)
    if extra is True:
        return None
    return (*others, extra) if extra else others


def _kinds_of(node: Mapping[str, Any]) -> Sequence[ValueKind] | None:
    """Return what a schema without references and unions is compared as; `None` when nobody knows."""
    match node.get("type"), node.get("format"):
        case "string", "decimal":
            return (ValueKind.DECIMAL,)
        case "string", "date-time":
            return (ValueKind.MOMENT,)
        case "string", _:
            return (ValueKind.TEXT,)
        case (("number" | "integer"), _):
            return (ValueKind.NUMBER,)
        case "boolean", _:
            return (ValueKind.BOOLEAN,)
        case (("null" | "object" | "array"), _):
            return ()
    values = node.get("enum", [node["const"]] if "const" in node else None)
    if values is None:
        return None
    return [kind for value in values for kind in _kinds_of({"type": _TYPES.get(type(value), "null")}) or ()]


_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def shown(type_: Any) -> str:
    """Return the name of a type as errors tell it."""
    return name_of(type_).rpartition(".")[2] if isinstance(type_, type) else str(type_)
