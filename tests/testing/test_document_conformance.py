"""The suite for stores of documents finds what is wrong with one."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from ecotone_fastapi.adapters.memory import MemoryDocuments
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import EcotoneError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.document_filters import Filter, Ordering, Place
from ecotone_fastapi.modelling.document_storage import Document, DocumentStorage
from ecotone_fastapi.modelling.documents import DocumentStore
from ecotone_fastapi.testing import DocumentStoreConformance


class Suite(DocumentStoreConformance):
    moment = 0.02
    patience = 1.0

    def __init__(self, kind: Callable[[], DocumentStorage]) -> None:
        self.store = DocumentStore(kind())

    @asynccontextmanager
    async def documents(self) -> AsyncIterator[DocumentStore]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})):
            yield


class SuiteWithoutTransactions(Suite):
    transaction = DocumentStoreConformance.transaction


class WritesOver(MemoryDocuments):
    async def add(self, collection: str, document_id: str, body: str) -> Document[str] | None:
        return await self.upsert(collection, document_id, body)


class ExpectsNothing(MemoryDocuments):
    async def update(self, collection: str, document_id: str, body: str, *, expected: int) -> Document[str]:
        return await self.upsert(collection, document_id, body)

    async def delete(self, collection: str, document_id: str, *, expected: int | None = None) -> bool:
        return await super().delete(collection, document_id)


class ForgetsVersions(MemoryDocuments):
    async def upsert(self, collection: str, document_id: str, body: str) -> Document[str]:
        await self.delete(collection, document_id)
        added = await self.add(collection, document_id, body)
        assert added is not None
        return added


class HasOneCollection(MemoryDocuments):
    async def add(self, collection: str, document_id: str, body: str) -> Document[str] | None:
        return await super().add("all", document_id, body)


class IgnoresCase(MemoryDocuments):
    async def add(self, collection: str, document_id: str, body: str) -> Document[str] | None:
        return await super().add(collection, document_id.lower(), body)


class FindsEverything(MemoryDocuments):
    async def count(self, collection: str, which: Filter) -> int:
        return len(self._all(collection))


class HasNoPages(MemoryDocuments):
    async def list(
        self, collection: str, which: Filter, order: Sequence[Ordering], *, after: Place | None, limit: int
    ) -> Sequence[Document[str]]:
        return await super().list(collection, which, order, after=None, limit=limit)


class HasNoOrder(MemoryDocuments):
    async def list(
        self, collection: str, which: Filter, order: Sequence[Ordering], *, after: Place | None, limit: int
    ) -> Sequence[Document[str]]:
        place = None if after is None else Place((), after.id)
        return await super().list(collection, which, (), after=place, limit=limit)


class IgnoresTransactions(MemoryDocuments):
    async def _claim(self, collection: str, document_id: str) -> tuple[tuple[str, str], None]:
        return (collection, document_id), None


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (WritesOver, "an_id_is_taken_once"),
        (WritesOver, "one_of_many_additions_at_once_is_the_first"),
        (WritesOver, "what_fails_does_not_break_the_transaction"),
        (ExpectsNothing, "what_is_not_there_is_not_updated"),
        (ExpectsNothing, "only_the_expected_version_is_deleted"),
        (ForgetsVersions, "an_upsert_writes_in_any_case"),
        (ForgetsVersions, "upserts_at_once_lose_nothing"),
        (HasOneCollection, "collections_do_not_mix"),
        (IgnoresCase, "any_two_ids_are_told_apart"),
        (FindsEverything, "those_that_are_meant_are_found"),
        (HasNoPages, "a_page_says_whether_there_is_more"),
        (HasNoPages, "what_comes_and_goes_meanwhile_shifts_no_page"),
        (HasNoOrder, "values_of_any_kind_have_an_order"),
        (HasNoOrder, "places_in_lists_can_be_ordered_by"),
        (IgnoresTransactions, "every_change_takes_part_in_the_transaction"),
        (IgnoresTransactions, "others_see_what_is_committed"),
        (IgnoresTransactions, "upserts_in_transactions_at_once_lose_nothing"),
    ],
)
async def test_the_suite_finds(kind: Callable[[], DocumentStorage], case: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
        await getattr(Suite(kind), f"test_{case}")()
    assert caught.errisinstance((AssertionError, pytest.fail.Exception, EcotoneError, ExceptionGroup))


@pytest.mark.parametrize("commits", [True, False])
async def test_the_suite_finds_who_does_not_wait(commits: bool) -> None:
    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        await Suite(IgnoresTransactions).test_an_update_waits_for_the_one_before(commits)


@pytest.mark.parametrize(
    "case",
    ["every_change_takes_part_in_the_transaction", "upserts_in_transactions_at_once_lose_nothing"],
)
async def test_a_case_is_skipped_for_want_of_a_hook(case: str) -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement transaction"):
        await getattr(SuiteWithoutTransactions(MemoryDocuments), f"test_{case}")()


async def test_what_needs_no_transaction_is_not_skipped() -> None:
    await SuiteWithoutTransactions(MemoryDocuments).test_pages_of_many_documents()


async def test_a_suite_without_a_store_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement documents"):
        await DocumentStoreConformance().test_an_id_is_taken_once()
