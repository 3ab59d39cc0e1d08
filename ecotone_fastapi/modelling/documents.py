"""Documents: objects that are kept whole, by an id, found again by their fields, and never overwritten by accident.

    async def ship(command: ShipOrder, documents: DocumentStore) -> None:
        orders = documents.collection("orders", Order)
        order = await orders.get(command.order_id)
        await orders.update(order.id, replace(order.value, status="shipped"), expected=order.version)

A handler asks for `DocumentStore` by its type. What stands behind it is a `DocumentStorage`: that of a database, in the
transaction of the handler, or the one in memory.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from math import inf
from typing import Any, Generic, NoReturn, Protocol, TypeVar, get_origin

from pydantic_core import from_json

from ecotone_fastapi.core.conversion import JSON, Conversion
from ecotone_fastapi.core.errors import (
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    DocumentNotFoundError,
    DuplicateDocumentError,
)
from ecotone_fastapi.core.message import name_of
from ecotone_fastapi.core.routing import is_typed_dict
from ecotone_fastapi.modelling.document_filters import (
    AllOf,
    Field,
    Filter,
    Ordering,
    Place,
    Scalar,
    ValueKind,
    picked,
    told_in_json,
)

T = TypeVar("T")
V = TypeVar("V")

LONGEST_NAME = 190
"""Characters that the name of a collection and the id of a document may have."""


@dataclass(frozen=True, slots=True)
class Document(Generic[T]):
    """A document as it is in the store.

    Args:
        id: What tells it from the others of its collection.
        version: How often it has been written: 1 when it was added.
        value: What it says.
        updated_at: When it was written last.
    """

    id: str
    version: int
    value: T
    updated_at: datetime

    def with_value(self, value: V) -> "Document[V]":
        """Return the same document saying something else."""
        return Document(self.id, self.version, value, self.updated_at)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some documents of a list, one after the other.

    Args:
        documents: The documents.
        next: What `list(after=...)` goes on with; `None` when there is nothing more. It is text without any character
            that would have to be quoted in a URL.
    """

    documents: Sequence[Document[T]]
    next: str | None = None

    def __iter__(self) -> Iterator[Document[T]]:
        return iter(self.documents)


class DocumentStorage(Protocol):
    """Keeps documents as JSON, in collections that are there when they are used. Adapters implement it, and so can you.

    What is written is written with the unit of work that is open in the calling task's scope, if there is one, and is
    gone if that fails; it sees what it has written, and others see it when it has ended well. Names and ids that come
    here are checked. `DocumentStoreConformance` tells whether all of it is done well.
    """

    async def add(self, collection: str, document_id: str, body: str) -> Document[str] | None:
        """Write a new document, with version 1.

        Returns:
            The document; `None` when there is one with this id. That does not keep the unit of work from going on.
        """
        ...

    async def update(self, collection: str, document_id: str, body: str, *, expected: int) -> Document[str]:
        """Write over a document that has this version, and raise that by 1.

        Raises:
            ConcurrencyError: It has another version; made by `stale`.
            DocumentNotFoundError: There is none; made by `missing`.
        """
        ...

    async def upsert(self, collection: str, document_id: str, body: str) -> Document[str]:
        """Write a document, whether there is one or not, and raise its version by 1.

        Of several at once each comes to its own version, and none is lost. In an open unit of work the server may let
        one fail that waits for others, as with every statement.
        """
        ...

    async def find(self, collection: str, document_id: str) -> Document[str] | None:
        """Return a document; `None` when there is none."""
        ...

    async def delete(self, collection: str, document_id: str, *, expected: int | None = None) -> bool:
        """Remove a document; return whether there was one.

        Raises:
            ConcurrencyError: It has another version than expected; made by `stale`.
        """
        ...

    async def list(
        self, collection: str, which: Filter, order: Sequence[Ordering], *, after: Place | None, limit: int
    ) -> Sequence[Document[str]]:
        """Return documents in their order, and by their ids where that makes no difference.

        Args:
            collection: The collection.
            which: Those that it matches.
            order: What they are ordered by: see `Ordering.key`.
            after: Those behind this place.
            limit: How many at most.
        """
        ...

    async def count(self, collection: str, which: Filter) -> int:
        """Return how many documents are meant."""
        ...

    async def drop(self, collection: str) -> int:
        """Remove all documents of a collection; return how many there were."""
        ...


EVERYTHING: Filter = AllOf(())
"""The condition that all documents fulfil."""


def stale(collection: str, document_id: str, *, expected: int, actual: int) -> ConcurrencyError:
    """Return the error for a document that somebody else has written meanwhile."""
    return ConcurrencyError(
        f"the document {document_id!r} of {collection!r} was written meanwhile",
        expected=expected,
        actual=actual,
        hint="get it again, and decide anew",
    )


def missing(collection: str, document_id: str) -> DocumentNotFoundError:
    """Return the error for a document that is not there."""
    return DocumentNotFoundError(
        f"there is no document {document_id!r} in {collection!r}",
        hint="find() returns None instead; upsert() writes it in any case",
    )


class DocumentStore:
    """Collections of documents, for handlers that ask for it by its type.

    Args:
        storage: Keeps them.
        conversion: Makes JSON of objects and objects of JSON.

    Example:
        >>> from ecotone_fastapi.adapters.memory import MemoryDocuments
        >>> people = DocumentStore(MemoryDocuments()).collection("people", dict)
        >>> ada = await people.add("ada", {"born": 1815})
        >>> ada.version, await people.count(people.field("born") < 1900)
        (1, 1)
    """

    def __init__(self, storage: DocumentStorage, conversion: Conversion | None = None) -> None:
        self._storage = storage
        self._conversion = conversion or Conversion()
        self._shapes: dict[Any, _Shape] = {}

    def collection(self, name: str, type_: type[T]) -> "Collection[T]":
        """Return the collection with a name. It is there as soon as it has a document.

        Args:
            name: Its name, up to 190 characters.
            type_: What its documents are: a dataclass, a pydantic model, a TypedDict, `dict`, or whatever else the
                converters of the application write as JSON.

        Raises:
            ConfigurationError: The type cannot be kept as JSON and made again of it.
            ConversionError: It is no name.

        Example:
            >>> async def name_of(customer_id: str, documents: DocumentStore) -> str:
            ...     customers = documents.collection("customers", dict)
            ...     return (await customers.get(customer_id)).value["name"]
        """
        _check_name("the name of a collection", name)
        shape = self._shapes.get(type_)
        if shape is None:
            shape = self._shapes[type_] = _Shape.of(type_, self._conversion)
        return Collection(name, type_, shape, self._storage, self._conversion)


class Collection(Generic[T]):
    """The documents of one kind, see `DocumentStore.collection`.

    Attributes:
        name: Its name.

    Example:
        >>> from ecotone_fastapi.adapters.memory import MemoryDocuments
        >>> people = DocumentStore(MemoryDocuments()).collection("people", dict)
        >>> for name, born in ("ada", 1815), ("alan", 1912), ("grace", 1906):
        ...     _ = await people.upsert(name, {"born": born})
        >>> page = await people.list(people.field("born") > 1900, order_by="born", limit=1)
        >>> [document.id for document in page]
        ['grace']
        >>> page = await people.list(people.field("born") > 1900, order_by="born", limit=1, after=page.next)
        >>> [document.id for document in page], page.next
        (['alan'], None)
    """

    def __init__(
        self, name: str, type_: type[T], shape: "_Shape", storage: DocumentStorage, conversion: Conversion
    ) -> None:
        self.name: str = name
        self._type = type_
        self._shape = shape
        self._storage = storage
        self._conversion = conversion

    async def add(self, document_id: str, value: T) -> Document[T]:
        """Write a new document.

        Raises:
            DuplicateDocumentError: There is one with this id.
            ConversionError: The value does not fit, or the id is none.
        """
        added = await self._storage.add(self.name, _check_id(document_id), self._written(document_id, value))
        if added is None:
            raise DuplicateDocumentError(
                f"there is a document {document_id!r} in {self.name!r} already",
                hint="upsert() writes it in any case, update() writes over the version that you know",
            )
        return added.with_value(value)

    async def update(self, document_id: str, value: T, *, expected: int) -> Document[T]:
        """Write over a document that nobody else has written meanwhile.

        Args:
            document_id: Its id.
            value: What it says now.
            expected: The version that it has, as far as you know.

        Raises:
            ConcurrencyError: It has another version; both are in the error.
            DocumentNotFoundError: There is none.
            ConversionError: The value does not fit.
        """
        body = self._written(document_id, value)
        updated = await self._storage.update(self.name, _check_id(document_id), body, expected=expected)
        return updated.with_value(value)

    async def upsert(self, document_id: str, value: T) -> Document[T]:
        """Write a document, whether there is one with this id or not; of several at once, the last one stays.

        Raises:
            ConversionError: The value does not fit, or the id is none.
        """
        body = self._written(document_id, value)
        return (await self._storage.upsert(self.name, _check_id(document_id), body)).with_value(value)

    async def get(self, document_id: str) -> Document[T]:
        """Return a document.

        Raises:
            DocumentNotFoundError: There is none.
            ConversionError: It does not fit its type any more.
        """
        document = await self.find(document_id)
        if document is None:
            raise missing(self.name, document_id)
        return document

    async def find(self, document_id: str) -> Document[T] | None:
        """Return a document; `None` when there is none.

        Raises:
            ConversionError: It does not fit its type any more.
        """
        document = await self._storage.find(self.name, _check_id(document_id))
        return None if document is None else self._read(document)

    async def delete(self, document_id: str, *, expected: int | None = None) -> bool:
        """Remove a document, if it is there; return whether it was.

        Args:
            document_id: Its id.
            expected: The version that it has, as far as you know; without it, whatever it has.

        Raises:
            ConcurrencyError: It has another version; both are in the error.
        """
        return await self._storage.delete(self.name, _check_id(document_id), expected=expected)

    async def list(
        self,
        *which: Filter,
        order_by: str | Field | Sequence[str | Field] = (),
        limit: int = 100,
        after: str | None = None,
    ) -> Page[T]:
        """Return documents page by page. What is added or removed meanwhile shifts no page.

        Args:
            which: Conditions that all of them fulfil, see `field`.
            order_by: The fields that they are ordered by, the first one first; "-total" is the greatest first. Where
                that makes no difference, and without it, they are ordered by their ids.
            limit: How many at most.
            after: What the page before has as `next`.

        Raises:
            ConversionError: There is no such field, `after` is not from a list in this order, or a document does not
                fit its type any more.
        """
        if limit < 1:
            raise ConversionError(f"a page of {limit} documents", hint="limit= is at least 1")
        order = [self._ordering(one) for one in ([order_by] if isinstance(order_by, str | Field) else order_by)]
        place = None if after is None else _place(after, order)
        found = await self._storage.list(self.name, AllOf(which), order, after=place, limit=limit + 1)
        return Page(
            tuple(self._read(document) for document in found[:limit]),
            _as_text(found[limit - 1], order) if len(found) > limit else None,
        )

    async def count(self, *which: Filter) -> int:
        """Return how many documents fulfil all these conditions."""
        return await self._storage.count(self.name, AllOf(which))

    async def drop(self) -> int:
        """Remove all documents of the collection; return how many there were."""
        return await self._storage.drop(self.name)

    def field(self, path: str | int, *more: str | int) -> Field:
        """Return a field: `orders.field("total") >= 100` is a condition for `list` and `count`.

        A field knows `==`, `!=`, `<`, `<=`, `>`, `>=`, `in_([...])`, `startswith("...")` and `is_null()`; conditions
        are combined by `&`, `|` and `~`. What it is compared with may be what the class has there, such as an enum, a
        `Decimal`, a date or a UUID.

        Args:
            path: Its name as it is in JSON; dots lead into objects: "address.city".
            more: The way on, for places in lists, and for names with dots: `field("lines", 0, "sku")`.

        Raises:
            ConversionError: There can be no such field.
        """
        parts = (path, *more)
        if not more and isinstance(path, str):
            parts = tuple(path.split("."))
        name = f"{_shown(self._type)}.{'.'.join(map(str, parts))}"
        for part in parts:
            if isinstance(part, int) and not isinstance(part, bool) and part >= 0:
                continue
            if not isinstance(part, str) or not part.isprintable() or '"' in part or "\\" in part:
                raise ConversionError(
                    f"{name} cannot be searched by: {part!r} is no name of a field",
                    hint="names have no quotes, backslashes and control characters; places in lists begin with 0",
                )
        return Field(parts, self._shape.kinds_at(parts, name), name)

    def _ordering(self, given: str | Field) -> Ordering:
        if isinstance(given, Field):
            return given.ordering()
        field = self.field(given.removeprefix("-"))
        return (-field if given.startswith("-") else field).ordering()

    def _written(self, document_id: str, value: T) -> str:
        """Return a value as JSON that any store can keep."""
        try:
            if not self._shape.is_one(value):
                value = self._conversion.convert(value, self._type)
            data, content_type = self._conversion.encode(value)
            if content_type != JSON:
                raise ConversionError(
                    f"a {_shown(type(value))} is written as {content_type}",
                    hint="documents are application/json: wrap it in a dataclass, or give a converter that writes that",
                )
            _check_json(data)
            return data.decode()
        except ConversionError as error:
            self._blame(document_id, error)
            raise

    def _read(self, document: Document[str]) -> Document[T]:
        try:
            value = self._conversion.decode(document.value.encode(), self._type, JSON)
        except ConversionError as error:
            self._blame(document.id, error)
            raise
        return document.with_value(value)

    def _blame(self, document_id: str, error: ConversionError) -> None:
        error.what = f"the document {document_id!r} of {self.name!r}: {error.what}"
        # Whoever has sent the message that is being handled can do nothing about it.
        error.nested = True


def _check_id(document_id: str) -> str:
    return _check_name("the id of a document", document_id)


def _check_name(what: str, name: Any) -> str:
    """Refuse what one of the databases would keep in another form or compare in another way."""
    if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip():
        return name
    raise ConversionError(
        f"{name!r} is not {what}",
        hint=f"it is text of 1 to {LONGEST_NAME} printable characters, without spaces at its beginning and end",
    )


def _check_json(data: bytes) -> None:
    try:
        parsed = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ConversionError(
            f"it is no JSON that every database keeps: {error}",
            hint="NaN and infinity are no numbers there; make them None or text",
        ) from error
    if b"\\u0000" in data and _holds_zero(parsed):
        raise ConversionError(
            "it holds the character U+0000, which is no text for PostgreSQL", hint="encode what is binary: base64"
        )


def _holds_zero(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or _holds_zero(one) for key, one in value.items())
    return isinstance(value, list) and any(_holds_zero(one) for one in value)


# --------------------------------------------------------------------------------------------------- places in a list


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


def _as_text(document: Document[str], order: Sequence[Ordering]) -> str:
    """Return the place of a document in a list as text."""
    body = parsed(document.value)
    found = [(one, picked(body, one.path)) for one in order]
    values = [as_json(value if one.rank(value) else None) for one, value in found]
    text = json.dumps([_signature(order), values, document.id], ensure_ascii=False, separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _place(text: str, order: Sequence[Ordering]) -> Place:
    """Return the place that was told as text, which may come from anybody."""
    try:
        signature, values, document_id = json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if signature != _signature(order) or len(values) != len(order):
            raise ValueError("it is of another order")
        read = [parsed(value) for value in values]
        for value, one in zip(read, order, strict=True):
            if value is not None and (not one.rank(value) or told_in_json(value, "a field")[1] != value):
                raise ValueError(f"{value!r} is nothing to order by")
        return Place(tuple(read), _check_id(document_id))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(
            f"after={text!r} is no place in this list",
            tried=str(error),
            hint="give what the page before has as next, with the same order_by",
        ) from error


def _signature(order: Sequence[Ordering]) -> list[Any]:
    return [[*one.path, one.descending] for one in order]


# ------------------------------------------------------------------------------------------------- the shape of a type


@dataclass(frozen=True)
class _Shape:
    """What documents of a type look like in JSON.

    Args:
        class_: The class whose instances need no further check; `None` when there is none.
        schema: Their JSON Schema; `None` when nobody knows.
    """

    class_: type | None
    schema: Mapping[str, Any] | None

    @classmethod
    def of(cls, type_: Any, conversion: Conversion) -> "_Shape":
        """Return what documents of a type look like.

        Raises:
            ConfigurationError: They do not come back as they are written.
        """
        losses = conversion.problems_of_round_trip(type_)
        if losses:
            told = "; ".join([f"{loss.where}: {loss.what}" for loss in losses])
            raise ConfigurationError(
                f"{_shown(type_)} does not come back from a document as it was written: {told}",
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


def _shown(type_: Any) -> str:
    return name_of(type_).rpartition(".")[2] if isinstance(type_, type) else str(type_)
