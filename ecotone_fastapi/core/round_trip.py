"""Whether what is written as JSON comes back as it was: told by pydantic's schema of a type, before anything is sent.

In doubt it does. What the user's own serializers write and validators read is taken to be right, and a kind of schema
that is not known here (`TypeAdapter.core_schema` is public, its kinds grow with pydantic) is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic.dataclasses import is_pydantic_dataclass


def losses_of(adapter: TypeAdapter[Any], name: str, *, changing: bool = False) -> "Sequence[Loss]":
    """Return what values of a type lose on a channel.

    Args:
        adapter: The type.
        name: Its name for people.
        changing: Whether what its fields hold changes, so that what is not read is not computed again either.
    """
    losses = _Losses(changing=changing)
    losses.look(adapter.core_schema, _Place(name, name))
    return tuple(losses.found)


def may_hold_floats(adapter: TypeAdapter[Any]) -> bool:
    """Whether there can be NaN or infinity in values of a type."""
    return any(_may_be_float(node) for node in _nodes_in(adapter.core_schema))


@dataclass(frozen=True)
class Loss:
    """A part of a payload that does not come back from a channel as it was sent.

    Args:
        where: The class and its field.
        what: What happens to it.
        remedy: What the reader can do about it.
    """

    where: str
    what: str
    remedy: str


@dataclass(frozen=True)
class _Place:
    """Where in a type something is found.

    Args:
        where: The class and its field.
        owner: The class whose fields come next.
        by_name: Whether fields are read by their names, too.
        by_alias: Whether they are read by their aliases.
        rekeyed: Whether code of the user reads the fields before pydantic does.
        refilled: Whether code of the user may give values to fields that were not read.
        frozen: Whether no field is ever changed.
        as_it_is: Whether it is written without a look at its annotations, like all in a plain list or dict but models;
            `None` for the payload itself.
    """

    where: str
    owner: str
    by_name: bool = False
    by_alias: bool = True
    rekeyed: bool = False
    refilled: bool = False
    frozen: bool = False
    as_it_is: bool | None = None


_INNER = (
    *("schema", "items_schema", "keys_schema", "values_schema", "extras_schema", "steps"),
    *("arguments_schema", "lax_schema", "json_schema"),
)
_CONTAINERS = ("list", "tuple", "set", "frozenset", "dict", "generator")
_BY_FUNCTION = ("function-plain", "function-wrap")


class _Losses:
    """Looks through pydantic's schema of a type for what its JSON does not bring back.

    In doubt there is no loss: what the user's own serializers write and validators read is taken to be right.
    """

    def __init__(self, *, changing: bool) -> None:
        self.found: dict[Loss, None] = {}
        self._changing = changing
        self._definitions: dict[str, Any] = {}
        self._seen: set[tuple[str, _Place]] = set()

    def look(self, node: Any, place: _Place) -> None:
        """Look at a schema and at all that is in it."""
        if isinstance(node, list | tuple):
            for one in node:
                self.look(one, place)
        if not isinstance(node, Mapping):
            return
        writer = node.get("serialization") or {}
        if writer.get("type") in _BY_FUNCTION:
            if _code_of(writer) in _masks():
                self._lose(
                    place.where,
                    "a secret is written as asterisks, and the receiver gets these",
                    "let a @field_serializer reveal the secret, or send what the receiver can find it by",
                )
            return
        kind = node.get("type")
        if kind == "definitions":
            self._definitions.update({one["ref"]: one for one in node["definitions"]})
        elif kind == "definition-ref":
            visit = (node["schema_ref"], place)
            if visit not in self._seen:
                self._seen.add(visit)
                self.look(self._definitions.get(node["schema_ref"]), place)
        elif kind == "generator" and self._changing:
            self._lose(place.where, "it is read as an iterator, which gives its items once", "make it a list")
        elif kind == "enum" and not node.get("missing"):
            for member in node.get("members", ()):
                if not _is_plain(member.value):
                    self._lose(
                        place.where, f"{member} is not read as it is written", "let its value be a text or number"
                    )
        place = _entered(node, place)
        for name, field in _fields_of(node):
            self._look_at_field(name, field, place)
        self.look(_inner_of(node), place)

    def _look_at_field(self, name: str, field: Mapping[str, Any], place: _Place) -> None:
        where = f"{place.owner}.{name}"
        inner = field["schema"]
        needed = field.get("required", inner.get("type") != "default")
        refused = "the receiver refuses the message without it"
        if not field.get("init", True):
            if self._changing and not place.refilled and not place.frozen:
                self._lose(where, "it is not read (init=False), and gets its default", "take init=False away")
            return  # the receiver computes it
        if field.get("init_only"):
            if needed and not place.rekeyed:
                self._lose(where, f"an InitVar is not written, and {refused}", "make it a field, or give it a default")
            return
        if field.get("serialization_exclude") and not place.as_it_is:
            if needed and not place.rekeyed:
                self._lose(where, f"it is not written (exclude=True), and {refused}", "take exclude=True away")
            elif not needed and not place.refilled and not _tells_itself(inner):
                self._lose(
                    where,
                    "it is not written (exclude=True), and the receiver gets its default",
                    "take exclude=True away, or make it a PrivateAttr if the receiver does not need it",
                )
            return
        written = name if place.as_it_is else field.get("serialization_alias") or name
        read = _names_read(name, field.get("validation_alias"), place)
        if written not in read and not place.rekeyed:
            known = " or ".join(map(repr, read)) or "parts of others only"
            self._lose(
                where,
                f"it is written as {written!r} and read as {known}; "
                + (refused if needed else "the receiver gets its default"),
                "write and read it by one alias=, or let validation_alias=AliasChoices(...) name what is written",
            )
        self.look(inner, replace(place, where=where, rekeyed=False, refilled=False))

    def _lose(self, where: str, what: str, remedy: str) -> None:
        self.found[Loss(where, what, remedy)] = None


def _entered(node: Mapping[str, Any], place: _Place) -> _Place:
    """The place behind a schema."""
    kind = node.get("type")
    if kind in ("function-before", "function-wrap"):
        return replace(place, rekeyed=True, refilled=True)
    if kind == "function-after":
        return replace(place, refilled=True)
    if kind in ("model", "dataclass", "typed-dict", "named-tuple"):
        own_init = bool(node.get("custom_init"))
        config = node.get("config") or {}
        return replace(
            place,
            owner=getattr(node.get("cls"), "__qualname__", place.owner),  # older versions do not tell of a TypedDict
            by_name=bool(config.get("populate_by_name") or config.get("validate_by_name")),
            by_alias=config.get("validate_by_alias") is not False,
            rekeyed=place.rekeyed or own_init,
            refilled=place.refilled or own_init or bool(node.get("post_init")),
            frozen=bool(node.get("frozen")) or _is_frozen_dataclass(node.get("cls")),
            as_it_is=_written_as_it_is(kind, node.get("cls"), place),
        )
    if kind in _CONTAINERS and place.as_it_is is None:
        return replace(place, as_it_is=True)
    return place


def _written_as_it_is(kind: str, cls: Any, place: _Place) -> bool:
    if kind == "model" or is_pydantic_dataclass(cls):
        return False
    return kind == "typed-dict" if place.as_it_is is None else place.as_it_is


def _is_frozen_dataclass(cls: Any) -> bool:
    return bool(getattr(getattr(cls, "__dataclass_params__", None), "frozen", False))


def _is_plain(value: object) -> bool:
    """Whether JSON gives a value back as it was."""
    if isinstance(value, list | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, str | int | float)


def _fields_of(node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kind, fields = node.get("type"), node.get("fields")
    if kind in ("model-fields", "typed-dict") and isinstance(fields, Mapping):
        yield from fields.items()
    elif kind in ("dataclass-args", "named-tuple") and isinstance(fields, list):
        yield from ((field["name"], field) for field in fields)


def _names_read(name: str, alias: Any, place: _Place) -> Sequence[str]:
    """The keys under which a field is read as a whole."""
    choices = alias if isinstance(alias, list) and alias and isinstance(alias[0], list) else [alias or name]
    paths = [[choice] if isinstance(choice, str) else choice for choice in choices]
    names = [path[0] for path in paths if len(path) == 1] if place.by_alias or alias is None else []
    return list(dict.fromkeys([*names, name] if place.by_name else names))


def _tells_itself(inner: Mapping[str, Any]) -> bool:
    """Whether the default of a field is as good as what was sent: the only value, or computed from other fields."""
    schema = inner.get("schema") or {}
    validated = inner.get("validate_default") and str(schema.get("type")).startswith("function-")
    only_value = schema.get("type") == "literal" and len(schema.get("expected", ())) == 1
    return bool(validated or only_value or inner.get("default_factory_takes_data"))


def _code_of(writer: Mapping[str, Any]) -> object:
    return getattr(writer.get("function"), "__code__", None)


@cache
def _masks() -> frozenset[object]:
    """What pydantic hides secrets with; as code, because older versions make a function for each."""
    schemas = [TypeAdapter(one).core_schema for one in (SecretStr, SecretBytes, Secret[str])]
    codes = {_code_of(node.get("serialization") or {}) for schema in schemas for node in _nodes_in(schema)}
    return frozenset(codes - {None})


def _nodes_in(node: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all that are in it."""
    if isinstance(node, list | tuple):
        for one in node:
            yield from _nodes_in(one)
    elif isinstance(node, Mapping):
        yield node
        for _, field in _fields_of(node):
            yield from _nodes_in(field["schema"])
        yield from _nodes_in(node.get("definitions"))
        yield from _nodes_in(_inner_of(node))


def _inner_of(node: Mapping[str, Any]) -> Sequence[Any]:
    """The schemas in a schema, but for those of fields."""
    inner = [node[key] for key in _INNER if key in node]
    choices = node.get("choices") or ()  # by tag, or as they are told apart
    return [*inner, *(choices.values() if isinstance(choices, Mapping) else choices)]


def _may_be_float(node: Mapping[str, Any]) -> bool:
    """Whether a schema allows numbers that are not finite, or everything."""
    kind, config = node.get("type"), node.get("config") or {}
    writer = node.get("serialization") or {}
    return (
        kind in ("float", "any", "is-instance", "function-plain")
        or (kind in _CONTAINERS and not _inner_of(node))
        or config.get("extra_fields_behavior") == "allow"
        or writer.get("type") in _BY_FUNCTION
    )
