"""The suite for inboxes finds what is wrong with one."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

import pytest

from ecotone_fastapi.adapters.memory import MemoryInbox
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.deduplication import DeduplicationStore
from ecotone_fastapi.testing import InboxConformance


class Suite(InboxConformance):
    moment = 0.02
    patience = 1.0

    def __init__(self, kind: Callable[[], DeduplicationStore]) -> None:
        self.store = kind()

    @asynccontextmanager
    async def inbox(self) -> AsyncIterator[DeduplicationStore]:
        yield self.store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with Gateway(Conversion(()), SystemClock()).unit_of_work(Message(b"", {"id": "cause"})):
            yield


class SuiteWithoutTransactions(Suite):
    transaction = InboxConformance.transaction


class KnowsNobody(MemoryInbox):
    async def knows(self, message_id: str, endpoint: str) -> bool:
        return False


class ForAllHandlers(MemoryInbox):
    async def record(self, message_id: str, endpoint: str) -> bool:
        return await super().record(message_id, "")


class CutsNames(MemoryInbox):
    async def record(self, message_id: str, endpoint: str) -> bool:
        return await super().record(message_id[:190].strip(), endpoint)


class RemembersForEver(MemoryInbox):
    async def forget(self, message_id: str, endpoint: str) -> None:
        pass

    async def forget_before(self, moment: datetime, *, limit: int = 1000) -> int:
        return 0


class IgnoresTransactions(MemoryInbox):
    async def record(self, message_id: str, endpoint: str) -> bool:
        new = (message_id, endpoint) not in self._handled
        self._keep((message_id, endpoint))
        return new


class DoesNotWait(MemoryInbox):
    async def record(self, message_id: str, endpoint: str) -> bool:
        if self._claims.holder((message_id, endpoint)) not in (None, current_scope()):
            return False
        return await super().record(message_id, endpoint)


class LetsBothHandle(MemoryInbox):
    async def record(self, message_id: str, endpoint: str) -> bool:
        self._claims.let_go((message_id, endpoint))
        return await super().record(message_id, endpoint)


class IgnoresLimits(MemoryInbox):
    async def forget_before(self, moment: datetime, *, limit: int = 1000) -> int:
        return await super().forget_before(moment)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (KnowsNobody, "what_is_recorded_is_known"),
        (ForAllHandlers, "each_handler_has_records_of_its_own"),
        (CutsNames, "any_two_names_are_told_apart"),
        (RemembersForEver, "what_was_forgotten_is_new_again"),
        (RemembersForEver, "forgetting_takes_part_in_the_transaction"),
        (RemembersForEver, "the_oldest_are_forgotten_up_to_a_limit"),
        (RemembersForEver, "several_may_forget_at_once"),
        (IgnoresTransactions, "a_record_takes_part_in_the_transaction"),
        (IgnoresTransactions, "a_duplicate_waits_for_the_one_before_and_is_none_when_that_rolls_back"),
        (DoesNotWait, "a_duplicate_waits_for_the_one_before_and_is_none_when_that_rolls_back"),
        (DoesNotWait, "a_duplicate_waits_for_the_one_before_and_is_one_when_that_commits"),
        (LetsBothHandle, "a_duplicate_waits_for_the_one_before_and_is_one_when_that_commits"),
        (IgnoresLimits, "the_oldest_are_forgotten_up_to_a_limit"),
    ],
)
async def test_the_suite_finds(kind: Callable[[], DeduplicationStore], case: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
        await getattr(Suite(kind), f"test_{case}")()
    assert not caught.errisinstance(pytest.skip.Exception)


@pytest.mark.parametrize(
    "case",
    [
        "a_record_takes_part_in_the_transaction",
        "a_duplicate_waits_for_the_one_before_and_is_one_when_that_commits",
        "one_of_many_duplicates_at_once_is_the_first",
    ],
)
async def test_a_case_is_skipped_for_want_of_a_hook(case: str) -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement transaction"):
        await getattr(SuiteWithoutTransactions(MemoryInbox), f"test_{case}")()


async def test_a_suite_without_an_inbox_is_skipped() -> None:
    with pytest.raises(pytest.skip.Exception, match="does not implement inbox"):
        await InboxConformance().test_what_is_recorded_is_known()
