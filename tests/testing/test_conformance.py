"""A suite that cannot fail proves nothing: each of these channels is wrong in one way, and the suite finds it."""

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDeadLetters, MemoryDelivery, MemoryInbox, MemoryQueue
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.plugin import Assembly, Plugin
from ecotone_fastapi.messaging.dead_letter_store import (
    EVERYTHING,
    DeadLetterFilter,
    DeadLetterStore,
    ParkedMessage,
)
from ecotone_fastapi.messaging.deduplication import DeduplicationStore
from ecotone_fastapi.testing import conformance
from ecotone_fastapi.testing.conformance import ChannelConformance, StoreConformance


class TravellingClock:
    """The machine's clock, ahead of it by as much as a test has travelled."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset


class Suite(ChannelConformance):
    """The suite on a channel in memory, in a hurry."""

    patience = 1.0
    moment = 0.0
    volume = 1000

    def __init__(self, kind: type[MemoryChannel]) -> None:
        self.kind = kind
        self.clock = TravellingClock()
        self.queues: defaultdict[str, MemoryQueue] = defaultdict(lambda: MemoryQueue(self.clock))

    @asynccontextmanager
    async def channel(self, name: str) -> AsyncIterator[Channel]:
        channel = self.kind(name, queue=self.queues[name], lease=60.0)
        yield channel
        await channel.close()

    @asynccontextmanager
    async def channel_that_keeps_order(self, name: str) -> AsyncIterator[Channel]:
        if name not in self.queues:
            self.queues[name] = MemoryQueue(self.clock, keeps_order=not issubclass(self.kind, KeepsNoOrder))
        async with self.channel(name) as channel:
            yield channel

    async def advance(self, seconds: float) -> None:
        self.clock.offset += timedelta(seconds=seconds)

    def stores(self) -> Sequence[Plugin]:
        return (WrongStores(self.kind),)


class WrongStores:
    """A plugin with the stores that a wrong channel of this kind comes with, if it has any."""

    def __init__(self, kind: type[MemoryChannel]) -> None:
        self._kind = kind

    def install(self, assembly: Assembly) -> None:
        if issubclass(self._kind, BehindNoInbox):
            assembly.add_service(DeduplicationStore, KnowsNobody())
        if issubclass(self._kind, BehindALeakyDeadLetter):
            assembly.add_service(DeadLetterStore, DropsParkedHeaders())
        if issubclass(self._kind, ClaimsToBeABroker):
            assembly.add_service(DeadLetterStore, MemoryDeadLetters())


class BareSuite(Suite):
    """The suite without the hooks that not every transport has."""

    channel_that_keeps_order = ChannelConformance.channel_that_keeps_order  # type: ignore[assignment]
    stores = ChannelConformance.stores


def lends_nothing(*args: Any) -> Sequence[MemoryDelivery]:
    return ()


class SuiteWithAServer(Suite):
    """The suite where somebody else may delete queues, and where connections may break."""

    async def drop_connections(self) -> None:
        pass

    @asynccontextmanager
    async def server_away(self) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def unroutable_channel(self, name: str) -> AsyncIterator[Channel]:
        async with self.channel(name) as channel:
            await self.delete_queue(name)
            yield channel

    async def delete_queue(self, name: str) -> None:
        self.queues.pop(name).lend = lends_nothing  # type: ignore[method-assign, assignment]


class DropsHeaders(MemoryChannel):
    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await super().send([message.without_headers(["tenant", "unicode"]) for message in messages])


class ReadsText(MemoryChannel):
    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await super().send([message.with_payload(message.payload.decode().encode()) for message in messages])


class ForgetsTheLast(MemoryChannel):
    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await super().send(messages[:-1] or messages)


class SendsTwice(MemoryChannel):
    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await super().send([*messages, *messages[:1]])


class Reverses(MemoryChannel):
    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        return (await super().receive(limit, timeout))[::-1]


class Without(MemoryChannel):
    """Ignores a header that it claims to honour."""

    header = ""

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        await super().send([message.without_headers([self.header]) for message in messages])


class IgnoresDelay(Without):
    header = "delay"


class IgnoresPriority(Without):
    header = "priority"


class IgnoresLifetime(Without):
    header = "time_to_live"


class LendsTooMany(MemoryChannel):
    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        return await super().receive(limit * 2, timeout)


class ReturnsLate(MemoryChannel):
    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        return await super().receive(limit, timeout + 2.5)


class ReturnsEarly(MemoryChannel):
    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        return await super().receive(limit, 0.0)


class LosesWhenCancelled(MemoryChannel):
    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        deliveries = await super().receive(limit, timeout)
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException:
            for delivery in deliveries:
                await delivery.ack()
            raise
        return deliveries


class KeepsWhatWasLent(MemoryChannel):
    async def close(self) -> None:
        pass


class Forgets(MemoryChannel):
    async def close(self) -> None:
        await self.purge()


class LendsToAll(MemoryChannel):
    """Gives what it has lent to the next one, too."""

    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        deliveries = await super().receive(limit, timeout)
        self.queue.take_back(self)
        return deliveries


class Altered(MemoryChannel):
    """Lends deliveries that are wrong in one way."""

    def alter(self, delivery: MemoryDelivery) -> None:
        raise NotImplementedError

    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        deliveries = await super().receive(limit, timeout)
        for delivery in deliveries:
            self.alter(delivery)
        return deliveries


async def do_nothing(*args: Any, **options: Any) -> None:
    pass


class NeverAcks(Altered):
    def alter(self, delivery: MemoryDelivery) -> None:
        delivery.ack = do_nothing  # type: ignore[method-assign]


class NeverGivesBack(Altered):
    def alter(self, delivery: MemoryDelivery) -> None:
        delivery.nack = delivery.ack  # type: ignore[assignment]


class CountsEveryDeliveryAsAttempt(Altered):
    def alter(self, delivery: MemoryDelivery) -> None:
        nack = delivery.nack
        delivery.nack = lambda delay=0.0, **_: nack(delay)  # type: ignore[method-assign]


class CountsNoDelivery(Altered):
    def alter(self, delivery: MemoryDelivery) -> None:
        delivery.count = 1


class ForgetsThatItWasLost(Altered):
    def alter(self, delivery: MemoryDelivery) -> None:
        ack = delivery.ack

        async def careless() -> None:
            try:
                await ack()
            except ConnectionError:
                delivery.settled = True

        delivery.ack = careless  # type: ignore[method-assign]


class TravelsWithDelay(Altered):
    def alter(self, delivery: MemoryDelivery) -> None:
        delivery.message = delivery.message.with_headers({"delay": "0"})


class KeepsNoOrder(MemoryChannel):
    """Lends messages with one key to several consumers."""


class BehindNoInbox(MemoryChannel):
    """Stands before an inbox that knows nobody."""


class BehindALeakyDeadLetter(MemoryChannel):
    """Stands before a dead letter that forgets headers."""


class KnowsNobody(MemoryInbox):
    durable = True

    async def record(self, message_id: str, endpoint: str) -> bool:
        return True


class DropsParkedHeaders(MemoryDeadLetters):
    async def park(self, parked: ParkedMessage) -> None:
        await super().park(replace(parked, message=parked.message.without_headers(["tenant", "traceparent"])))


class IgnoresDeletion(MemoryChannel):
    """Waits on a queue that is gone, and says that it is well."""

    async def check(self) -> None:
        pass


class ClaimsToBeABroker(BehindNoInbox):
    """Repeats messages before handlers that remember none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.capabilities = replace(self.capabilities, durable=True, leased=False)


class LendsInAnyOrder(MemoryChannel):
    """Hands out what was sent last first, which a single batch does not show."""

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        self.sent = getattr(self, "sent", 0) + 1
        await super().send([one.with_headers({"priority": str(self.sent % 10)}) for one in messages])


class CountsOnlyWaiting(MemoryChannel):
    async def depth(self) -> int:
        return len(self.queue.waiting())


class IsAlwaysYoung(MemoryChannel):
    async def oldest_age(self) -> float | None:
        return None if await super().oldest_age() is None else 0.0


class PeeksByReceiving(MemoryChannel):
    async def peek(self, limit: int = 100) -> Sequence[Message[bytes]]:
        return [delivery.message for delivery in await self.receive(limit, 0)]


class PurgesOnlyWhatIsReady(MemoryChannel):
    async def purge(self) -> int:
        deliveries = await self.receive(1000, 0)
        await self.ack_all(deliveries)
        return len(deliveries)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (DropsHeaders, "what_is_sent_arrives_unchanged"),
        (DropsHeaders, "any_header_survives"),
        (ForgetsTheLast, "a_late_consumer_receives_what_was_sent_before"),
        (SendsTwice, "what_is_sent_arrives_unchanged"),
        (LendsTooMany, "receive_lends_no_more_than_its_limit"),
        (ReturnsLate, "receive_returns_as_soon_as_a_message_arrives"),
        (LosesWhenCancelled, "cancelling_receive_loses_nothing"),
        (NeverAcks, "ack_removes_the_message"),
        (NeverAcks, "settling_twice_is_harmless"),
        (NeverGivesBack, "what_is_given_back_comes_again"),
        (NeverGivesBack, "repeated_failures_lose_nothing"),
        (CountsEveryDeliveryAsAttempt, "the_failed_runs_and_the_deliveries_are_counted"),
        (CountsNoDelivery, "the_failed_runs_and_the_deliveries_are_counted"),
        (KeepsWhatWasLent, "what_is_not_settled_is_neither_lost_nor_repeated"),
        (LendsToAll, "what_is_not_settled_is_neither_lost_nor_repeated"),
        (LendsToAll, "no_message_is_lent_to_two_consumers"),
        (Forgets, "a_closed_channel_continues_when_it_is_opened_again"),
        (Forgets, "many_may_close_while_they_receive"),
        (Forgets, "publishers_may_close_as_soon_as_send_has_returned"),
        (ForgetsTheLast, "many_publishers_and_many_consumers"),
        (Reverses, "a_single_consumer_receives_in_order"),
        (IgnoresDelay, "a_delayed_message_is_not_early"),
        (IgnoresDelay, "a_short_delay_is_not_held_up_by_a_long_one"),
        (IgnoresDelay, "a_wrong_header_is_refused_before_anything_is_stored"),
        (TravelsWithDelay, "a_delayed_message_is_not_early"),
        (IgnoresPriority, "the_highest_priority_goes_first"),
        (IgnoresLifetime, "what_has_outlived_its_time_is_not_delivered"),
        (IgnoresLifetime, "a_message_lives_as_long_as_it_was_told"),
        (ForgetsThatItWasLost, "a_lost_message_can_not_be_acked"),
        (ForgetsThatItWasLost, "one_lost_message_does_not_keep_the_others_from_being_acked"),
        (NeverGivesBack, "a_lost_message_is_not_given_back"),
        (KeepsNoOrder, "a_key_is_in_one_hand_at_a_time"),
        (KeepsNoOrder, "a_message_that_waits_for_its_retry_holds_up_its_key_only"),
        (NeverGivesBack, "what_fails_again_and_again_is_parked_as_it_was_sent"),
        (BehindALeakyDeadLetter, "what_fails_again_and_again_is_parked_as_it_was_sent"),
        (NeverGivesBack, "what_cannot_be_parked_is_not_lost"),
        (BehindALeakyDeadLetter, "a_replayed_message_begins_anew_where_it_failed"),
        (CountsEveryDeliveryAsAttempt, "a_consumer_that_pauses_gives_back_what_it_has_not_begun"),
        (NeverGivesBack, "a_consumer_that_pauses_gives_back_what_it_has_not_begun"),
        (LendsInAnyOrder, "one_consumer_handles_a_key_in_order_and_keys_side_by_side"),
        (BehindNoInbox, "what_is_sent_twice_is_handled_once"),
        (CountsOnlyWaiting, "the_depth_counts_what_waits_and_what_is_lent"),
        (IsAlwaysYoung, "the_age_is_that_of_the_oldest_message_that_is_ready"),
        (PeeksByReceiving, "peeking_lends_nothing"),
        (PurgesOnlyWhatIsReady, "purging_removes_everything"),
    ],
)
async def test_the_suite_finds(kind: type[MemoryChannel], case: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - however it shows
        await getattr(Suite(kind), f"test_{case}")()
    assert not caught.errisinstance(pytest.skip.Exception)


@pytest.mark.parametrize("case", ["what_a_broken_connection_held_comes_again", "a_server_that_is_away_is_told_in_time"])
async def test_the_suite_finds_who_does_not_notice_that_the_server_is_gone(case: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await getattr(SuiteWithAServer(ClaimsToBeABroker), f"test_{case}")()


@pytest.mark.parametrize(
    "case",
    [
        "what_reaches_nobody_is_told_to_its_sender",
        "a_queue_that_was_deleted_is_consumed_again",
        "the_health_tells_that_a_queue_is_gone",
    ],
)
async def test_the_suite_finds_who_ignores_that_a_queue_is_gone(case: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, ExceptionGroup)):
        await getattr(SuiteWithAServer(IgnoresDeletion), f"test_{case}")()


async def test_the_suite_finds_a_broker_whose_repetitions_are_handled_twice() -> None:
    with pytest.raises(AssertionError):
        await Suite(ClaimsToBeABroker).test_what_a_broker_repeats_is_handled_once()


@pytest.mark.parametrize("kind", [ReturnsEarly, ReturnsLate])
async def test_the_suite_finds_a_wrong_timeout(kind: type[MemoryChannel]) -> None:
    with pytest.raises(AssertionError):
        await Suite(kind).test_an_empty_channel_returns_in_time(0.2)


async def test_the_suite_finds_what_is_not_safe_for_bytes() -> None:
    with pytest.raises(UnicodeDecodeError):
        await Suite(ReadsText).test_any_bytes_survive(b"\xff")


@pytest.mark.parametrize(
    ("hook", "case"),
    [
        ("channel_with_lease", "a_lease_is_renewed_while_its_consumer_lives"),
        ("skewed_channel", "a_wrong_clock_changes_nothing"),
        ("drop_connections", "a_broken_connection_comes_back_by_itself"),
        ("drop_connections", "a_connection_may_break_while_somebody_waits"),
        ("refused_message", "a_batch_that_is_refused_in_part_says_which"),
        ("drop_connections", "what_a_broken_connection_held_comes_again"),
        ("unroutable_channel", "what_reaches_nobody_is_told_to_its_sender"),
        ("delete_queue", "a_queue_that_was_deleted_is_consumed_again"),
        ("stores", "what_cannot_be_parked_is_not_lost"),
        ("channel_that_keeps_order", "a_key_is_in_one_hand_at_a_time"),
    ],
)
async def test_a_case_is_skipped_for_want_of_a_hook(hook: str, case: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=rf"needs .*, but BareSuite does not implement {hook}\(\)"):
        await getattr(BareSuite(MemoryChannel), f"test_{case}")()


async def test_a_case_is_skipped_for_want_of_a_capability() -> None:
    with pytest.raises(pytest.skip.Exception, match="MemoryChannel does not claim to be 'durable'"):
        await Suite(MemoryChannel).test_what_was_not_acked_survives_the_end_of_all_channels()


def test_the_table_names_every_case_that_there_is_and_says_which_there_is_not() -> None:
    rows = re.findall(r"^\| T(\d+) \| (.+) \|$", conformance.__doc__ or "", flags=re.MULTILINE)
    cases = [getattr(ChannelConformance, name).__doc__ for name in dir(ChannelConformance) if name.startswith("test_")]
    shown = {int(number) for case in cases for number in re.findall(r"T(\d+)", (case or "").partition(":")[0])}

    assert [int(number) for number, _ in rows] == list(range(1, 43))
    assert {int(number) for number, text in rows if not text.startswith("*not here")} == shown


def test_a_suite_without_a_channel_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError):
        ChannelConformance().channel("orders")


# --------------------------------------------------------------------------------------------------------------- stores


class Stores(StoreConformance):
    """The suite on a dead letter in memory."""

    def __init__(self, kind: Callable[[], DeadLetterStore]) -> None:
        self.store = kind()

    @asynccontextmanager
    async def dead_letters(self) -> AsyncIterator[DeadLetterStore]:
        yield self.store


class KeepsTheFirst(MemoryDeadLetters):
    async def park(self, parked: ParkedMessage) -> None:
        if parked.id not in self._parked:
            await super().park(parked)


class ListsTheOldestFirst(MemoryDeadLetters):
    async def list(
        self, which: DeadLetterFilter = EVERYTHING, *, limit: int = 100, offset: int = 0
    ) -> Sequence[ParkedMessage]:
        return (await super().list(which))[::-1][offset : offset + limit]


class DropsTracebacks(MemoryDeadLetters):
    async def park(self, parked: ParkedMessage) -> None:
        await super().park(replace(parked, traceback=""))


class DeletesAnything(MemoryDeadLetters):
    async def delete(self, parked_id: str, *, saying: Message[bytes] | None = None) -> None:
        with suppress(DeadLetterNotFoundError):
            await super().delete(parked_id)


class DeletesWhatWasEdited(MemoryDeadLetters):
    async def delete(self, parked_id: str, *, saying: Message[bytes] | None = None) -> None:
        await super().delete(parked_id)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (KeepsTheFirst, "parking_again_replaces_what_is_there"),
        (ListsTheOldestFirst, "the_newest_are_listed_first_page_by_page"),
        (DropsTracebacks, "a_parked_message_is_kept_with_every_detail"),
        (DropsTracebacks, "any_text_survives"),
        (DeletesAnything, "a_deleted_message_is_gone"),
        (DeletesWhatWasEdited, "what_says_something_else_by_now_is_not_deleted"),
    ],
)
async def test_the_suite_finds_a_wrong_store(kind: Callable[[], DeadLetterStore], case: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await getattr(Stores(kind), f"test_{case}")()
