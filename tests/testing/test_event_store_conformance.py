"""The suite for event stores finds what is wrong with one."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from anyio import sleep

from ecotone_fastapi.adapters.memory import MemoryEvents
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    AppendCondition,
    EventFilter,
    EventStorage,
    Expected,
    Horizon,
    NewEvent,
    Page,
    Position,
    StoredEvent,
)
from ecotone_fastapi.testing import EventStoreConformance
from ecotone_fastapi.testing.conformance.event_steps import fact


class Suite(EventStoreConformance):
    moment = 0.02
    patience = 2.0
    volume = 40
    crowd = 4

    def __init__(self, kind: Callable[[], EventStorage]) -> None:
        self.store = kind()

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStorage]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})):
            yield


class SuiteWithoutTransactions(Suite):
    transaction = EventStoreConformance.transaction


class SeesBehindWhatIsOpen(MemoryEvents):
    def _settle(self) -> None:
        opened, self._open = self._open, {}
        super()._settle()
        self._open = opened


class OrdersByTheBeginning(MemoryEvents):
    def _position(self, unit: Any) -> Position:
        self._latest = 0
        return super()._position(unit)


class KeepsWhatFailed(MemoryEvents):
    def _changing(self, scope: Scope | None, stream: str) -> Any:
        return super()._changing(None, stream)


class DoesNotWait(MemoryEvents):
    def _in_the_way(self, *asked: Any) -> Any:
        return iter(())


class Appends(MemoryEvents):
    """What is wrong is how it appends."""

    async def append(
        self,
        stream: str,
        events: Sequence[NewEvent],
        *,
        expected: int | Expected,
        condition: AppendCondition | None = None,
    ) -> Sequence[StoredEvent]:
        return await self.do(stream, list(events), expected, condition)

    async def do(
        self, stream: str, events: list[NewEvent], expected: int | Expected, condition: AppendCondition | None
    ) -> Sequence[StoredEvent]:
        return await super().append(stream, events, expected=expected, condition=condition)


class ExpectsNothing(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        return await super().do(stream, events, Expected.ANY, condition)


class ConsidersNothing(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        return await super().do(stream, events, expected, None)


class ConsidersTheFirstFilter(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        if condition is not None:
            condition = replace(condition, filters=condition.filters[:1])
        return await super().do(stream, events, expected, condition)


class AppendsOneByOne(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        stored: list[StoredEvent] = []
        for event in events:
            stored += await super().do(stream, [event], expected, condition)
            expected = Expected.ANY
        return stored


class ForgetsTags(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        return await super().do(stream, [replace(one, tags=()) for one in events], expected, condition)


class TakesNamesForTheSame(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        return await super().do(stream.lower(), events, expected, condition)


class CutsBodies(Appends):
    async def do(self, stream: str, events: list[NewEvent], expected: Any, condition: Any) -> Any:
        return await super().do(stream, [replace(one, body=one.body[:65_535]) for one in events], expected, condition)


class Reads(MemoryEvents):
    """What is wrong is how it reads."""

    async def read_all(
        self, *, after: Position, limit: int, which: EventFilter = EVERYTHING, settled: bool = False
    ) -> Page:
        return self.turned(await super().read_all(after=after, limit=limit, which=which, settled=settled), after)

    def turned(self, page: Page, after: Position) -> Page:
        return page


class StaysWhereItIs(Reads):
    def turned(self, page: Page, after: Position) -> Page:
        return replace(page, upto=page.events[-1].position or after if page.events else after)


class GoesTooFar(Reads):
    def turned(self, page: Page, after: Position) -> Page:
        return replace(page, upto=Position(page.upto.transaction + 1, page.upto.number))


class RepeatsTheLastOne(Reads):
    def turned(self, page: Page, after: Position) -> Page:
        return replace(page, upto=Position(page.upto.transaction, page.upto.number - 1))


class IgnoresLimits(MemoryEvents):
    async def read(
        self, stream: str, *, after: int = 0, limit: int | None = None, archived: bool = False
    ) -> Sequence[StoredEvent]:
        return await super().read(stream, after=after, archived=archived)


class ShowsWhatIsArchived(MemoryEvents):
    async def read(
        self, stream: str, *, after: int = 0, limit: int | None = None, archived: bool = False
    ) -> Sequence[StoredEvent]:
        return await super().read(stream, after=after, limit=limit, archived=True)


class ArchivesNothing(MemoryEvents):
    async def archive(self, stream: str) -> bool:
        return await self.version(stream) > 0


class GivesPositionsAgain(MemoryEvents):
    async def delete(self, stream: str) -> int:
        deleted = await super().delete(stream)
        self._numbers -= deleted
        self._begun -= 1 + deleted
        self._latest = self._begun
        return deleted


class LinksToLinks(MemoryEvents):
    async def link(self, stream: str, events: Sequence[StoredEvent]) -> int:
        return await super().link(stream, [replace(event, origin=None) for event in events if event.origin is None])


class CountsEverything(MemoryEvents):
    async def count(self, *, after: Position, which: EventFilter = EVERYTHING) -> int:
        return await super().count(after=after)


class SeesNoHorizon(MemoryEvents):
    async def horizon(self) -> Horizon:
        return Horizon((await super().horizon()).head)


class WakesNobody(MemoryEvents):
    async def wait(self, heard: int, timeout: float) -> int:
        await sleep(timeout)
        return 0


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        (
            SeesBehindWhatIsOpen,
            """e2_an_open_transaction_is_waited_for e5_several_slow_transactions_end_in_any_order
            e6_a_slow_transaction_is_not_skipped_however_many_come_behind
            e21_what_is_read_live_is_read_in_the_same_order_again a_reader_does_not_advance_past_what_is_open""",
        ),
        (OrdersByTheBeginning, "e1_what_is_appended_later_comes_later"),
        (
            KeepsWhatFailed,
            """e7_what_is_rolled_back_was_never_there a_transaction_appends_again_and_again
            archiving_deleting_and_linking_take_part_in_the_transaction""",
        ),
        (ExpectsNothing, "e10_an_exact_version_is_expected"),
        (ExpectsNothing, "e10_any_version_or_some_version_is_expected"),
        (ConsidersNothing, "e17_what_follows_from_what_was_read_is_appended"),
        (ConsidersNothing, "e17_one_of_many_who_decide_on_the_same_is_first"),
        (ConsidersNothing, "e17_own_events_are_excluded_as_well"),
        (AppendsOneByOne, "e11_all_or_nothing_is_appended"),
        (ForgetsTags, "events_are_chosen_by_stream_category_name_and_tags"),
        (TakesNamesForTheSame, "names_that_look_alike_are_different_streams"),
        (CutsBodies, "what_is_appended_is_read_as_it_was"),
        (StaysWhereItIs, "a_reader_advances_past_what_is_not_meant"),
        (GoesTooFar, "e8_the_events_of_one_transaction_are_seen_once"),
        (RepeatsTheLastOne, "e8_the_events_of_one_transaction_are_seen_once"),
        (IgnoresLimits, "a_stream_is_read_from_a_version_on_and_up_to_a_limit"),
        (ShowsWhatIsArchived, "an_archived_stream_is_hidden"),
        (ArchivesNothing, "an_archived_stream_is_hidden"),
        (GivesPositionsAgain, "the_last_position_is_not_given_again_when_it_is_deleted"),
        (LinksToLinks, "a_link_to_a_link_is_a_link_to_the_event"),
        (CountsEverything, "events_are_counted_as_they_are_read"),
        (SeesNoHorizon, "the_horizon_tells_how_far_readers_see_and_what_is_in_the_way"),
        (WakesNobody, "a_reader_is_woken_up_by_what_is_appended"),
    ],
)
async def test_the_suite_finds(kind: Callable[[], EventStorage], cases: str) -> None:
    for case in cases.split():
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
            await getattr(Suite(kind), f"test_{case}")()
        assert not caught.errisinstance(pytest.skip.Exception), case


async def test_the_suite_finds_a_condition_with_a_filter_that_is_not_considered() -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
        await Suite(ConsidersTheFirstFilter).test_e17_a_condition_excludes_what_fits_its_filters(
            EVERYTHING, ("basket-1", fact()), None
        )
    assert not caught.errisinstance(pytest.skip.Exception)


async def test_the_suite_finds_a_store_in_which_two_get_the_same_version() -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
        await Suite(DoesNotWait).test_whoever_wants_a_version_waits_for_whoever_may_get_it(commits=True)
    assert not caught.errisinstance(pytest.skip.Exception)


@pytest.mark.parametrize("kind", [SeesBehindWhatIsOpen, GoesTooFar, RepeatsTheLastOne])
async def test_any_interleaving_finds_what_is_wrong(kind: Callable[[], EventStorage]) -> None:
    found = 0
    for seed in range(8):
        try:
            await Suite(kind).test_e20_writers_and_readers_may_do_what_they_want_in_any_order(seed)
        except BaseException:
            found += 1

    assert found > 0


@pytest.mark.parametrize(
    "case", ["e8_the_events_of_one_transaction_are_seen_once", "e2_an_open_transaction_is_waited_for"]
)
async def test_a_case_is_skipped_for_want_of_a_hook(case: str) -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement transaction"):
        await getattr(SuiteWithoutTransactions(MemoryEvents), f"test_{case}")()


async def test_a_suite_without_a_store_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement events"):
        await EventStoreConformance().test_e12_another_process_sees_the_same()
