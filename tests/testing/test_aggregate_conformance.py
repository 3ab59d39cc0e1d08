"""The suite for stores of aggregates finds what is wrong with one."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.adapters.memory import MemoryAggregates
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.repository import AggregateStore, Identifier, Saved, Versioned
from ecotone_fastapi.testing import AggregateStoreConformance


class Suite(AggregateStoreConformance):
    patience = 1.0

    def __init__(self, kind: Callable[[], AggregateStore]) -> None:
        self.kept = kind()

    @asynccontextmanager
    async def store(self) -> AsyncIterator[AggregateStore]:
        yield self.kept

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})):
            yield


class SuiteWithoutTransactions(Suite):
    transaction = AggregateStoreConformance.transaction


class Store:
    """A store that keeps aggregates by their identifiers, and does one thing wrong."""

    def __init__(self) -> None:
        self.inner = MemoryAggregates()

    def serves(self, cls: type) -> bool:
        return True

    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        await checkpoint()
        return await self.inner.load(cls, identifier)

    async def save(
        self,
        cls: type[Any],
        identifier: Identifier | None,
        state: Any,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        return await self.inner.save(cls, identifier, state, events=events, expected=expected)

    async def delete(self, cls: type[Any], identifier: Identifier, state: Any, *, expected: int) -> None:
        await self.inner.delete(cls, identifier, state, expected=expected)


class FindsEverything(Store):
    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        kept = next(iter(self.inner._kept.values()), None)
        return await super().load(cls, identifier) or (None if kept is None else Versioned(*kept))


class OverwritesEverything(Store):
    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        found = await self.load(cls, identifier or Identifier((), ()))
        actual = 0 if found is None else found.version
        return await super().save(cls, identifier, state, events=given["events"], expected=actual)


class CountsNothing(Store):
    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        saved = await super().save(cls, identifier, state, **given)
        return Saved(1, saved.events)


class IgnoresCase(Store):
    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        return await super().load(cls, _lower(identifier))

    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        assert identifier is not None
        return await super().save(cls, _lower(identifier), state, **given)


def _lower(identifier: Identifier) -> Identifier:
    return Identifier(identifier.names, tuple(str(value).lower().strip() for value in identifier.values))


class KnowsTheLastIdentifierAlone(Store):
    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        return await super().load(cls, Identifier(identifier.names[-1:], identifier.values[-1:]))

    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        assert identifier is not None
        return await super().save(cls, Identifier(identifier.names[-1:], identifier.values[-1:]), state, **given)


class SharesObjects(Store):
    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, Any] = {}

    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        found = await super().load(cls, identifier)
        return None if found is None else Versioned(self.objects[str(identifier)], found.version)

    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        self.objects[str(identifier)] = state
        return await super().save(cls, identifier, state, **given)


class LosesEvents(Store):
    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        return Saved((await super().save(cls, identifier, state, **given)).version)


class CommitsAtOnce(Store):
    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        saved = await super().save(cls, identifier, state, **given)
        for changes in self.inner._changes.values():
            self.inner._kept.update(changes)
        return saved


class SeesOnlyWhatIsCommitted(Store):
    async def load(self, cls: type[Any], identifier: Identifier) -> Versioned[Any] | None:
        kept = self.inner._kept.get((cls, str(identifier)))
        return None if kept is None else Versioned(*kept)


class TellsNoVersions(Store):
    async def save(self, cls: type[Any], identifier: Identifier | None, state: Any, **given: Any) -> Saved:
        try:
            return await super().save(cls, identifier, state, **given)
        except ConcurrencyError as error:
            raise ConcurrencyError("somebody else was there first") from error


class DeletesNothing(Store):
    async def delete(self, cls: type[Any], identifier: Identifier, state: Any, *, expected: int) -> None: ...


class DeletesAtOnce(Store):
    async def delete(self, cls: type[Any], identifier: Identifier, state: Any, *, expected: int) -> None:
        self.inner._kept.pop((cls, str(identifier)), None)


class DeletesEverything(Store):
    async def delete(self, cls: type[Any], identifier: Identifier, state: Any, *, expected: int) -> None:
        await super().delete(cls, identifier, state, expected=expected)
        self.inner._kept.clear()


class DeletesWhateverVersion(Store):
    async def delete(self, cls: type[Any], identifier: Identifier, state: Any, *, expected: int) -> None:
        found = await self.load(cls, identifier)
        if found is not None:
            await super().delete(cls, identifier, state, expected=found.version)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (FindsEverything, "what_is_saved_is_loaded"),
        (CountsNothing, "each_save_counts"),
        (IgnoresCase, "any_two_identifiers_are_told_apart"),
        (KnowsTheLastIdentifierAlone, "several_identifiers_belong_together"),
        (SharesObjects, "nobody_shares_an_object_with_the_store"),
        (LosesEvents, "events_are_given_back"),
        (CommitsAtOnce, "what_is_rolled_back_was_never_saved"),
        (SeesOnlyWhatIsCommitted, "a_unit_of_work_sees_what_it_has_saved"),
        (OverwritesEverything, "a_new_one_that_exists_already_is_refused"),
        (OverwritesEverything, "who_comes_too_late_is_told_both_versions"),
        (OverwritesEverything, "one_of_many_new_ones_with_one_identifier_wins"),
        (OverwritesEverything, "no_change_is_lost_when_many_change_one_aggregate"),
        (TellsNoVersions, "a_new_one_that_exists_already_is_refused"),
        (TellsNoVersions, "who_comes_too_late_is_told_both_versions"),
        (DeletesNothing, "what_is_deleted_is_gone_and_can_begin_anew"),
        (DeletesEverything, "what_is_deleted_is_gone_and_can_begin_anew"),
        (DeletesNothing, "what_was_made_in_a_unit_of_work_can_be_deleted_in_it"),
        (DeletesAtOnce, "a_deletion_that_is_rolled_back_never_happened"),
        (DeletesWhateverVersion, "who_deletes_what_has_changed_is_refused"),
    ],
)
async def test_the_suite_finds(kind: Callable[[], AggregateStore], case: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
        await getattr(Suite(kind), f"test_{case}")()
    assert not caught.errisinstance(pytest.skip.Exception)


async def test_a_store_that_does_all_of_it_well_passes() -> None:
    for name in [name for name in dir(Suite) if name.startswith("test_")]:
        await getattr(Suite(Store), name)()


@pytest.mark.parametrize("case", ["what_is_saved_is_loaded", "one_of_many_new_ones_with_one_identifier_wins"])
async def test_a_case_is_skipped_for_want_of_a_hook(case: str) -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement transaction"):
        await getattr(SuiteWithoutTransactions(Store), f"test_{case}")()


class DeletesNone(Store):
    delete = None  # type: ignore[assignment]


async def test_a_store_that_does_not_delete_need_not() -> None:
    with pytest.raises(pytest.skip.Exception, match="this one has no delete"):
        await Suite(DeletesNone).test_what_is_deleted_is_gone_and_can_begin_anew()


async def test_a_suite_without_a_store_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement store"):
        await AggregateStoreConformance().test_what_is_saved_is_loaded()
