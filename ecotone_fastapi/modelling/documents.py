"""Documents: objects that are kept whole, by an id, found again by their fields, and never overwritten by accident.

    async def ship(command: ShipOrder, documents: DocumentStore) -> None:
        orders = documents.collection("orders", Order)
        order = await orders.get(command.order_id)
        await orders.update(order.id, replace(order.value, status="shipped"), expected=order.version)

A handler asks for `DocumentStore` by its type. What stands behind it is a `DocumentStorage`: that of a database, in the
transaction of the handler, or the one in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic_core import from_json

from ecotone_fastapi.core.conversion import JSON, Conversion
from ecotone_fastapi.core.errors import ConversionError, DuplicateDocumentError
from ecotone_fastapi.modelling.document_filters import AllOf, Field, Filter, Ordering
from ecotone_fastapi.modelling.document_places import place_as_text, place_of
from ecotone_fastapi.modelling.document_shapes import Shape, shown
from ecotone_fastapi.modelling.document_storage import Document, DocumentStorage, check_id, check_name, missing

T = TypeVar("T")


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
        self._shapes: dict[Any, Shape] = {}

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
        check_name("the name of a collection", name)
        shape = self._shapes.get(type_)
        if shape is None:
            shape = self._shapes[type_] = Shape.of(type_, self._conversion)
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
        self, name: str, type_: type[T], shape: Shape, storage: DocumentStorage, conversion: Conversion
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
        added = await self._storage.add(self.name, check_id(document_id), self._written(document_id, value))
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
        updated = await self._storage.update(self.name, check_id(document_id), body, expected=expected)
        return updated.with_value(value)

    async def upsert(self, document_id: str, value: T) -> Document[T]:
        """Write a document, whether there is one with this id or not; of several at once, the last one stays.

        Raises:
            ConversionError: The value does not fit, or the id is none.
        """
        body = self._written(document_id, value)
        return (await self._storage.upsert(self.name, check_id(document_id), body)).with_value(value)

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
        document = await self._storage.find(self.name, check_id(document_id))
        return None if document is None else self._read(document)

    async def delete(self, document_id: str, *, expected: int | None = None) -> bool:
        """Remove a document, if it is there; return whether it was.

        Args:
            document_id: Its id.
            expected: The version that it has, as far as you know; without it, whatever it has.

        Raises:
            ConcurrencyError: It has another version; both are in the error.
        """
        return await self._storage.delete(self.name, check_id(document_id), expected=expected)

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
        place = None if after is None else place_of(after, order)
        found = await self._storage.list(self.name, AllOf(which), order, after=place, limit=limit + 1)
        return Page(
            tuple(self._read(document) for document in found[:limit]),
            place_as_text(found[limit - 1], order) if len(found) > limit else None,
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
        name = f"{shown(self._type)}.{'.'.join(map(str, parts))}"
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
                    f"a {shown(type(value))} is written as {content_type}",
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
