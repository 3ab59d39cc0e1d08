"""What keeps documents: an adapter's `DocumentStorage`, and what goes in and out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from ecotone_fastapi.core.errors import ConcurrencyError, ConversionError, DocumentNotFoundError
from ecotone_fastapi.modelling.document_filters import Filter, Ordering, Place

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


def check_id(document_id: str) -> str:
    """Return the id of a document if it is one, see `check_name`."""
    return check_name("the id of a document", document_id)


def check_name(what: str, name: Any) -> str:
    """Return a name if every database keeps it as it is and compares it alike.

    Args:
        what: What it would name.
        name: What was given.

    Raises:
        ConversionError: It is no name.
    """
    if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable() and name == name.strip():
        return name
    raise ConversionError(
        f"{name!r} is not {what}",
        hint=f"it is text of 1 to {LONGEST_NAME} printable characters, without spaces at its beginning and end",
    )
