"""Documents in this process: kept as JSON, so that nobody shares an object with the store; gone with the process."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ecotone_fastapi.adapters.memory.claims import Claims
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.document_filters import Filter, Ordering, Place, parsed
from ecotone_fastapi.modelling.document_storage import Document, missing, stale

_Key = tuple[str, str]
_Kept = dict[str, dict[str, Document[str]]]
_Changes = dict[_Key, Document[str] | None]
_Parsed = tuple[Document[str], Any]


class MemoryDocuments:
    """Keeps documents in this process.

    What a unit of work writes is its own until it ends well; others that want to write the same document wait for that,
    as they would for a row in a database.

    Args:
        clock: Tells when a document was written.
    """

    def __init__(self, clock: Clock = SystemClock()) -> None:
        self._clock = clock
        self._kept: _Kept = {}
        self._changes: dict[Scope, _Changes] = {}
        self._claims: Claims[_Key] = Claims(
            "two units of work wait for documents that the other one has written",
            "handle again what failed, or write documents in the same order everywhere",
        )

    async def add(self, collection: str, document_id: str, body: str) -> Document[str] | None:
        """Keep a new document; return `None` when there is one."""
        key, scope = await self._claim(collection, document_id)
        if self._seen(scope, collection, document_id) is not None:
            return None
        return self._write(scope, key, body, 1)

    async def update(self, collection: str, document_id: str, body: str, *, expected: int) -> Document[str]:
        """Keep a document in place of the version that is known.

        Raises:
            ConcurrencyError: It has another version.
            DocumentNotFoundError: There is none.
        """
        key, scope = await self._claim(collection, document_id)
        present = self._seen(scope, collection, document_id)
        if present is None:
            raise missing(collection, document_id)
        if present.version != expected:
            raise stale(collection, document_id, expected=expected, actual=present.version)
        return self._write(scope, key, body, expected + 1)

    async def upsert(self, collection: str, document_id: str, body: str) -> Document[str]:
        """Keep a document, whether there is one or not."""
        key, scope = await self._claim(collection, document_id)
        present = self._seen(scope, collection, document_id)
        return self._write(scope, key, body, 1 if present is None else present.version + 1)

    async def find(self, collection: str, document_id: str) -> Document[str] | None:
        """Return a document; `None` when there is none."""
        return self._seen(current_scope(), collection, document_id)

    async def delete(self, collection: str, document_id: str, *, expected: int | None = None) -> bool:
        """Forget a document; return whether there was one.

        Raises:
            ConcurrencyError: It has another version than expected.
        """
        key, scope = await self._claim(collection, document_id)
        present = self._seen(scope, collection, document_id)
        if present is None:
            return False
        if expected not in (None, present.version):
            raise stale(collection, document_id, expected=expected or 0, actual=present.version)
        self._change(scope, key, None)
        return True

    async def list(
        self, collection: str, which: Filter, order: Sequence[Ordering], *, after: Place | None, limit: int
    ) -> Sequence[Document[str]]:
        """Return documents in their order."""
        found = sorted(self._meant(collection, which), key=lambda pair: pair[0].id)
        for one in reversed(order):
            found.sort(key=partial(_key, one), reverse=one.descending)
        if after is not None:
            found = [pair for pair in found if _is_behind(after, order, *pair)]
        return [document for document, _ in found[:limit]]

    async def count(self, collection: str, which: Filter) -> int:
        """Return how many documents are meant."""
        return len(self._meant(collection, which))

    async def drop(self, collection: str) -> int:
        """Forget all documents of a collection; return how many there were."""
        ids = sorted(self._all(collection))
        return sum([await self.delete(collection, document_id) for document_id in ids])

    # What is seen

    def _meant(self, collection: str, which: Filter) -> Sequence[_Parsed]:
        pairs = [(document, parsed(document.value)) for document in self._all(collection).values()]
        return [pair for pair in pairs if which.matches(pair[1])]

    def _all(self, collection: str) -> Mapping[str, Document[str]]:
        """Return what the calling task sees of a collection."""
        seen = dict(self._kept.get(collection, {}))
        scope = current_scope()
        if scope is not None:
            for (changed, document_id), document in self._changes.get(scope, {}).items():
                if changed == collection and document is not None:
                    seen[document_id] = document
                elif changed == collection:
                    seen.pop(document_id, None)
        return seen

    def _seen(self, scope: Scope | None, collection: str, document_id: str) -> Document[str] | None:
        changes = self._changes.get(scope, {}) if scope is not None else {}
        if (collection, document_id) in changes:
            return changes[collection, document_id]
        return self._kept.get(collection, {}).get(document_id)

    # What is written

    async def _claim(self, collection: str, document_id: str) -> tuple[_Key, Scope | None]:
        """Wait until a document can be written, and keep others from writing it until the unit of work ends."""
        key, scope = (collection, document_id), current_scope()
        await self._claims.wait(key, scope)
        if scope is not None:
            self._claims.take(key, scope)
            if scope not in self._changes:
                self._changes[scope] = {}
                await scope.enter(self._decided(scope), outermost=True)
        return key, scope

    @asynccontextmanager
    async def _decided(self, scope: Scope) -> AsyncIterator[None]:
        try:
            yield
            for key, document in self._changes[scope].items():
                self._change(None, key, document)
        finally:
            del self._changes[scope]
            self._claims.let_go_all(scope)

    def _write(self, scope: Scope | None, key: _Key, body: str, version: int) -> Document[str]:
        document = Document(key[1], version, body, self._clock.now())
        self._change(scope, key, document)
        return document

    def _change(self, scope: Scope | None, key: _Key, document: Document[str] | None) -> None:
        collection, document_id = key
        if scope is not None:
            changes = self._changes[scope]
            before = partial(changes.update, {key: changes[key]}) if key in changes else partial(changes.pop, key, None)
            scope.note_change(before)
            changes[key] = document
        elif document is not None:
            self._kept.setdefault(collection, {})[document_id] = document
        else:
            self._kept.get(collection, {}).pop(document_id, None)


def _key(one: Ordering, pair: _Parsed) -> Any:
    return one.key(pair[1])


def _is_behind(place: Place, order: Sequence[Ordering], document: Document[str], body: Any) -> bool:
    for one, value in zip(order, place.values, strict=True):
        found, known = one.key(body), one.key_of(value)
        if found != known:
            return bool(found < known if one.descending else found > known)
    return document.id > place.id
