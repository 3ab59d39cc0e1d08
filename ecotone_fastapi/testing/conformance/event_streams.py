"""Cases about single streams: what is in them, which version they have, and what becomes of them."""

from functools import partial

import anyio
import pytest

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.message import new_id
from ecotone_fastapi.modelling.event_storage import (
    START,
    EventFilter,
    EventStorage,
    Expected,
    NewEvent,
)
from ecotone_fastapi.modelling.stream_names import LONGEST_STREAM
from ecotone_fastapi.testing.conformance.event_steps import (
    EventHooks,
    contents,
    everything,
    fact,
    facts,
    places,
    streams,
    versions,
)

_ALIKE = ("order-1", "Order-1", "order-é", "order-e", "order-e\u0301", "order-1 a", "order-1a", "order-%", "order-_")
"""Names that some databases take for the same."""


class Streams(EventHooks):
    """What is appended is there, as it was, in its stream."""

    async def test_what_is_appended_is_read_as_it_was(self) -> None:
        """Any bytes and any headers, in order, with versions from 1."""
        written = [
            NewEvent(new_id(), "order.placed", b"", "{}"),
            NewEvent(
                new_id(), "order.päid :x %s", b"\x00\xff'\"\\%:", '{"city": "Łódź", "zero": "\\u0000", "q": "\'"}'
            ),
            NewEvent(new_id(), "x" * 300, b"x" * 300_000, "{}"),
        ]
        async with self.events() as events:
            stored = await events.append("order-1", written, expected=0)

            assert [(one.version, one.name, one.body, one.headers_text) for one in stored] == [
                (version, one.name, one.body, one.headers_text) for version, one in enumerate(written, 1)
            ]
            read = await events.read("order-1")
            assert contents(read) == contents(stored)
            assert contents(await everything(events)) == contents(stored)
            assert all(one.stream == "order-1" and one.origin is None for one in read)
            assert all(one.recorded_at.utcoffset() is not None for one in read)
            assert await events.version("order-1") == 3

    async def test_a_stream_is_read_from_a_version_on_and_up_to_a_limit(self) -> None:
        """And one that is not there has no events."""
        async with self.events() as events:
            await events.append("order-1", facts(5), expected=0)
            await events.append("order-12", facts(1), expected=0)

            assert versions(await events.read("order-1", after=2)) == [3, 4, 5]
            assert versions(await events.read("order-1", after=1, limit=2)) == [2, 3]
            assert not await events.read("order-1", after=5)
            assert not await events.read("order-2")
            assert await events.version("order-2") == 0

    async def test_names_that_look_alike_are_different_streams(self) -> None:
        """And the longest name has room."""
        async with self.events() as events:
            names = [*_ALIKE, "x" * LONGEST_STREAM]
            for name in names:
                await events.append(name, facts(1), expected=0)

            assert streams(await everything(events)) == names
            assert [await events.version(name) for name in names] == [1] * len(names)

    @pytest.mark.parametrize("number", [0, 1, 1_000])
    async def test_e11_any_number_of_events_is_appended_at_once(self, number: int) -> None:
        """In one go, in order; nothing is nothing, whatever is expected."""
        async with self.events() as events:
            for expected in (0, Expected.ANY):
                stored = await events.append("order-1", facts(number), expected=expected)

                assert [int(one.body) for one in stored] == list(range(1, number + 1))
            assert versions(await events.read("order-1")) == list(range(1, 2 * number + 1))
            assert await events.append("order-1", (), expected=77) == ()

    async def test_e11_all_or_nothing_is_appended(self) -> None:
        """Although one of the last has come already, in this batch or before."""
        known = fact()
        async with self.events() as events:
            await events.append("order-1", [known], expected=0)
            for batch in ([*facts(600), known, fact()], [twice := fact(), *facts(3), twice]):
                for expected in (0, Expected.ANY):
                    with pytest.raises(ConcurrencyError):
                        await events.append("order-2", batch, expected=expected)

            assert await events.version("order-2") == 0
            assert places(await everything(events)) == [("order-1", 1)]

    async def test_e12_another_process_sees_the_same(self) -> None:
        """Both append, and each sees what the other one has appended."""
        async with self.events() as here, self.events() as there:
            await here.append("order-1", facts(1), expected=0)
            await there.append("order-1", facts(1), expected=1)

            assert await here.read("order-1") == await there.read("order-1")
            assert places(await everything(here)) == places(await everything(there)) == [("order-1", 1), ("order-1", 2)]


class Versions(EventHooks):
    """Who appends says which version the stream is to have."""

    async def test_e10_an_exact_version_is_expected(self) -> None:
        """The error has both; nothing is appended, and the store goes on."""
        async with self.events() as events:
            await events.append("order-1", facts(2), expected=0)
            for expected in (0, 1, 3):
                with pytest.raises(ConcurrencyError) as caught:
                    await events.append("order-1", facts(2), expected=expected)
                assert (caught.value.expected, caught.value.actual) == (expected, 2)

            await events.append("order-1", facts(1), expected=2)
            assert versions(await events.read("order-1")) == [1, 2, 3]

    async def test_e10_any_version_or_some_version_is_expected(self) -> None:
        """Without events there is none; the first may be appended by whoever does not care."""
        async with self.events() as events:
            with pytest.raises(ConcurrencyError) as caught:
                await events.append("order-1", facts(1), expected=Expected.EXISTS)
            assert caught.value.actual == 0
            await events.append("order-1", facts(2), expected=Expected.ANY)
            await events.append("order-1", facts(2), expected=Expected.ANY)
            stored = await events.append("order-1", facts(2), expected=Expected.EXISTS)

            assert versions(stored) == [5, 6]
            assert versions(await events.read("order-1")) == [1, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize("together", [False, True])
    async def test_e10_one_of_many_who_expect_the_same_is_first(self, together: bool) -> None:
        """The others are told which version there is now."""
        lost: list[ConcurrencyError] = []
        async with self.events() as events:
            await events.append("order-1", facts(1), expected=0)

            async def append() -> None:
                try:
                    await self._append(events, together, expected=1)
                except ConcurrencyError as error:
                    lost.append(error)

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for _ in range(self.crowd):
                        tasks.start_soon(append)

            assert len(lost) == self.crowd - 1
            assert {(error.expected, error.actual) for error in lost} <= {(1, 3), (1, None)}
            assert versions(await events.read("order-1")) == [1, 2, 3]

    @pytest.mark.parametrize("together", [False, True])
    async def test_many_who_expect_nothing_append_one_after_the_other(self, together: bool) -> None:
        """Without gaps, none of them fails, and each batch is in one piece."""
        async with self.events() as events:

            async def append() -> None:
                for _ in range(3):
                    await self._append(events, together, expected=Expected.ANY)

            with anyio.fail_after(3 * self.patience):
                async with anyio.create_task_group() as tasks:
                    for _ in range(self.crowd):
                        tasks.start_soon(append)

            read = await events.read("order-1")
            assert versions(read) == list(range(1, 3 * self.crowd * 2 + 1))
            assert [one.body for one in read] == [b"1", b"2"] * 3 * self.crowd
            assert places(await everything(events)) == places(read)

    async def _append(self, events: EventStorage, together: bool, *, expected: int | Expected) -> None:
        if not together:
            await events.append("order-1", facts(2), expected=expected)
            return
        async with self.transaction():
            await events.append("order-1", facts(2), expected=expected)

    @pytest.mark.parametrize("commits", [False, True])
    async def test_whoever_wants_a_version_waits_for_whoever_may_get_it(self, commits: bool) -> None:
        """What is rolled back never was."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            first, second = open_unit(), open_unit()
            await first.do(lambda: events.append("order-1", facts(2), expected=0))
            waiting = await second.begin(lambda: events.append("order-1", facts(1), expected=0))
            assert not await waiting.ends_within(self.moment)
            await (first.commit() if commits else first.rollback())
            if commits:
                with pytest.raises(ConcurrencyError):
                    await waiting.result()
                await second.rollback()
            else:
                assert versions(await waiting.result()) == [1]
                await second.commit()

            assert versions(await events.read("order-1")) == ([1, 2] if commits else [1])


class StreamsInTransactions(EventHooks):
    """Streams change with the transaction, or not at all."""

    async def test_e7_what_is_rolled_back_was_never_there(self) -> None:
        """Neither its events nor their ids, and it holds up nobody."""
        event = fact(tags=["t"])
        async with self.events() as events:
            async with self._rolled_back():
                await events.append("order-1", [event, *facts(3)], expected=0)
                assert versions(await events.read("order-1")) == [1, 2, 3, 4]
                assert await events.version("order-1") == 4
                assert await events.streams("order") == ["order-1"]

            assert await events.version("order-1") == 0
            assert await events.streams("order") == []
            await events.append("order-2", [event], expected=0)
            assert streams(await everything(events)) == ["order-2"]
            assert streams(await everything(events, EventFilter(tags=frozenset({"t"})))) == ["order-2"]

    async def test_a_transaction_appends_again_and_again(self) -> None:
        """To one stream and to others; it sees its own events in streams, and nobody else does."""
        async with self.events() as events, self.units() as open_unit:
            unit = open_unit()
            await unit.do(lambda: events.append("order-1", facts(2), expected=0))
            await unit.do(lambda: events.append("order-2", facts(1), expected=Expected.ANY))
            await unit.do(lambda: events.append("order-1", facts(2), expected=2))
            mine = await unit.do(lambda: events.read("order-1"))
            all_of_mine = await unit.do(lambda: everything(events))

            assert versions(mine) == [1, 2, 3, 4]
            assert all_of_mine == []
            assert not await events.read("order-1")
            assert not await everything(events)
            await unit.commit()
            assert places(await everything(events)) == [
                ("order-1", 1), ("order-1", 2), ("order-2", 1), ("order-1", 3), ("order-1", 4),
            ]  # fmt: skip

    async def test_what_cannot_be_appended_does_not_break_the_transaction(self) -> None:
        """Whoever catches the error may go on: a stale version, an id that is known."""
        known = fact()
        async with self.events() as events:
            await events.append("order-1", [known], expected=0)
            async with self.transaction():
                await events.append("order-2", facts(1), expected=0)
                for batch, expected in ((facts(2), 0), (facts(2), 3), ([fact(), known], Expected.ANY)):
                    with pytest.raises(ConcurrencyError):
                        await events.append("order-1", batch, expected=expected)
                await events.append("order-1", facts(1), expected=1)

            assert places(await everything(events)) == [("order-1", 1), ("order-2", 1), ("order-1", 2)]

    async def test_archiving_deleting_and_linking_take_part_in_the_transaction(self) -> None:
        """Rolled back, everything is as before."""
        async with self.events() as events:
            for stream in ("order-1", "order-2", "order-3"):
                await events.append(stream, facts(2), expected=0)
            before = await everything(events)
            async with self._rolled_back():
                assert await events.archive("order-1")
                assert await events.delete("order-2") == 2
                assert await events.link("all-orders", await events.read("order-3")) == 2
                assert not await events.read("order-1")
                assert not await events.read("order-2")
                assert await events.version("all-orders") == 2

            assert await everything(events) == before
            assert [await events.version(stream) for stream in ("order-1", "order-2", "all-orders")] == [2, 2, 0]
            await events.append("order-1", facts(1), expected=2)


class Lives(EventHooks):
    """Streams are found, archived and deleted; events are linked."""

    async def test_the_streams_of_a_category_are_found(self) -> None:
        """In order, a page at a time, and not those of categories with similar names."""
        names = ["basket-1", "basket-10", "basket-2", "basket-a-b", "basket-Ä"]
        others = ["basket2-1", "basket", "bask-1", "Basket-1", "basket.x-1", "basket,x-1"]
        async with self.events() as events:
            for name in [*reversed(names), *others]:
                await events.append(name, facts(3), expected=0)

            assert await events.streams("basket") == sorted([*names, "basket"])
            assert await events.streams("basket", after="basket-10", limit=2) == ["basket-2", "basket-a-b"]
            assert await events.streams("basket", after="basket-Ä") == []
            assert await events.streams("basket.x") == ["basket.x-1"]
            assert await events.streams("nothing") == []

    async def test_an_archived_stream_is_hidden(self) -> None:
        """Whoever asks for it can read it, and readers of all events do; nobody can append to it."""
        async with self.events() as events:
            stored = await events.append("order-1", facts(3), expected=0)
            await events.append("order-2", facts(1), expected=0)

            assert await events.archive("order-1")
            assert not await events.archive("order-1")
            assert not await events.archive("order-3")
            assert not await events.read("order-1")
            assert contents(await events.read("order-1", archived=True)) == contents(stored)
            assert await events.version("order-1") == 3
            assert await events.streams("order") == ["order-2"]
            assert await events.streams("order", archived=True) == ["order-1", "order-2"]
            assert await events.streams("order", after="order-1", archived=True) == ["order-2"]
            assert streams(await everything(events)) == ["order-1", "order-1", "order-1", "order-2"]
            assert await events.count(after=START) == 4
            for expected in (0, 3, Expected.ANY, Expected.EXISTS):
                with pytest.raises(ConcurrencyError, match="archived"):
                    await events.append("order-1", facts(1), expected=expected)
            with pytest.raises(ConcurrencyError, match="archived"):
                await events.link("order-1", await events.read("order-2"))

    async def test_readers_of_all_events_get_what_was_archived_before_they_came_so_far(self) -> None:
        """In its order, whatever they look for and however small their pages are, and also what came last."""
        by_name, by_tag = EventFilter(names=frozenset({"closed"})), EventFilter(tags=frozenset({"t"}))
        async with self.events() as events:
            await events.append("order-1", [fact("opened")], expected=0)
            reader = (await everything(events))[-1].position or START
            async with self.transaction():
                await events.append("order-1", [fact("closed", tags=["t"])], expected=1)
                await events.archive("order-1")
            await events.append("order-2", [fact("opened")], expected=0)

            page = await events.read_all(after=reader, limit=10)
            assert places(page.events) == [("order-1", 2), ("order-2", 1)]
            for limit in (1, 2, 100):
                for which in (EventFilter(), EventFilter(categories=frozenset({"order"}))):
                    found = await everything(events, which, limit=limit)
                    assert places(found) == [("order-1", 1), ("order-1", 2), ("order-2", 1)]
                for which in (by_name, by_tag):
                    assert places(await everything(events, which, limit=limit)) == [("order-1", 2)]
                    assert await events.count(after=START, which=which) == 1

    async def test_a_deleted_stream_is_gone(self) -> None:
        """It may begin anew, even with the same events, and readers get these."""
        event = fact(tags=["t"])
        tagged = EventFilter(tags=frozenset({"t"}))
        async with self.events() as events:
            await events.append("order-1", [event, *facts(2)], expected=0)
            reader = await everything(events)
            await events.append("order-2", facts(1), expected=0)

            assert await events.delete("order-1") == 3
            assert await events.delete("order-1") == 0
            assert await events.version("order-1") == 0
            assert streams(await everything(events)) == ["order-2"]
            assert await everything(events, tagged) == []

            await events.append("order-1", [event], expected=0)
            page = await events.read_all(after=reader[-1].position or START, limit=10)
            assert places(page.events) == [("order-2", 1), ("order-1", 1)]
            assert places(await everything(events, tagged)) == [("order-1", 1)]

    async def test_the_last_position_is_not_given_again_when_it_is_deleted(self) -> None:
        """Readers who have passed it would miss what is appended there."""
        async with self.events() as events:
            await events.append("order-1", facts(3), expected=0)
            before = (await everything(events))[-1].position or START
            await events.delete("order-1")
            await events.append("order-2", facts(1), expected=0)

            page = await events.read_all(after=before, limit=10)
            assert streams(page.events) == ["order-2"]

    async def test_links_are_read_in_another_stream(self) -> None:
        """With versions there, and the content, name and moment that the events have at home."""
        async with self.events() as events:
            await events.append("order-1", [fact("placed", b"a"), fact("paid", b"b")], expected=0)
            await events.append("order-2", [fact("placed", b"c")], expected=0)
            await events.append("report-1", [fact("begun", b"d")], expected=0)
            first, second = await events.read("order-1")
            (third,) = await events.read("order-2")

            assert await events.link("report-1", [third, first]) == 2
            assert await events.link("report-1", [first, second, third]) == 1

            read = await events.read("report-1")
            assert [(one.version, one.name, one.body, one.origin) for one in read] == [
                (1, "begun", b"d", None),
                (2, "placed", b"c", ("order-2", 1)),
                (3, "placed", b"a", ("order-1", 1)),
                (4, "paid", b"b", ("order-1", 2)),
            ]
            assert [one.recorded_at for one in read[1:]] == [third.recorded_at, first.recorded_at, second.recorded_at]
            assert await events.version("report-1") == 4
            await events.append("report-1", facts(1), expected=4)
            assert await events.streams("report") == ["report-1"]

    async def test_links_are_found_only_where_they_are(self) -> None:
        """Readers of all events get each event once; those of the stream or category get the link."""
        async with self.events() as events:
            await events.append("order-1", [fact("placed", tags=["t"]), fact("paid")], expected=0)
            await events.link("report-1", await events.read("order-1"))
            linked = [("report-1", 1), ("report-1", 2)]

            assert places(await everything(events)) == [("order-1", 1), ("order-1", 2)]
            for which, found in (
                (EventFilter(categories=frozenset({"report"})), linked),
                (EventFilter(streams=frozenset({"report-1"})), linked),
                (EventFilter(categories=frozenset({"report"}), names=frozenset({"paid"})), linked[1:]),
                (EventFilter(streams=frozenset({"report-1"}), tags=frozenset({"t"})), linked[:1]),
                (EventFilter(tags=frozenset({"t"})), [("order-1", 1)]),
                (EventFilter(names=frozenset({"paid"})), [("order-1", 2)]),
                (EventFilter(categories=frozenset({"order", "report"}), tags=frozenset({"t"})),
                 [("order-1", 1), ("report-1", 1)]),
            ):  # fmt: skip
                assert places(await everything(events, which)) == found, which
                assert await events.count(after=START, which=which) == len(found)

    async def test_what_is_linked_to_a_new_stream_makes_it_and_what_is_not_there_is_not_linked(self) -> None:
        """Nor is the link of a unit of work that has failed: it can be made again."""
        async with self.events() as events:
            (first,) = await events.append("order-1", facts(1), expected=0)
            nowhere, not_yet = first._replace(stream="order-2"), first._replace(version=2)

            assert await events.link("report-1", [nowhere, not_yet]) == 0
            assert await events.version("report-1") == 0
            assert await events.link("report-1", []) == 0
            async with self._rolled_back():
                assert await events.link("report-1", [first]) == 1
                assert await events.link("report-1", [first]) == 0
                assert versions(await events.read("report-1")) == [1]
            assert await events.version("report-1") == 0
            assert await everything(events, EventFilter(categories=frozenset({"report"}))) == []

            assert await events.link("report-1", [nowhere, first, not_yet, first]) == 1
            assert [(one.version, one.origin) for one in await events.read("report-1")] == [(1, ("order-1", 1))]
            assert places(await everything(events)) == [("order-1", 1)]

    async def test_a_link_to_a_link_is_a_link_to_the_event(self) -> None:
        """And nothing is linked to its own stream."""
        async with self.events() as events:
            await events.append("order-1", facts(2), expected=0)
            await events.link("report-1", await events.read("order-1"))
            links = await events.read("report-1")

            assert await events.link("summary-1", links) == 2
            assert await events.link("report-1", links) == 0
            assert await events.link("order-1", links) == 0
            assert [one.origin for one in await events.read("summary-1")] == [("order-1", 1), ("order-1", 2)]

    async def test_what_is_gone_at_home_is_gone_where_it_was_linked_to(self) -> None:
        """Also for readers of all events; a limit counts what is left. The versions of the others stay."""
        report = EventFilter(categories=frozenset({"report"}))
        async with self.events() as events:
            for stream in ("order-1", "order-2"):
                await events.append(stream, facts(1), expected=0)
                await events.link("report-1", await events.read(stream))
            await events.delete("order-1")

            for archived in (False, True):
                read = await events.read("report-1", limit=1, archived=archived)
                assert [one.origin for one in read] == [("order-2", 1)]
            assert places(await everything(events, report, limit=1)) == [("report-1", 2)]
            assert await events.count(after=START, which=report) == 1
            assert await events.version("report-1") == 2

            await events.append("order-1", facts(1), expected=0)
            assert versions(await events.read("report-1")) == [2]

    async def test_what_is_archived_at_home_is_hidden_where_it_was_linked_to(self) -> None:
        """From those who read the stream, as at home; not from readers of all events."""
        report = EventFilter(categories=frozenset({"report"}))
        async with self.events() as events:
            for stream in ("order-1", "order-2"):
                await events.append(stream, facts(1), expected=0)
                await events.link("report-1", await events.read(stream))
            await events.archive("order-1")

            assert [one.origin for one in await events.read("report-1", limit=1)] == [("order-2", 1)]
            assert versions(await events.read("report-1", archived=True)) == [1, 2]
            assert places(await everything(events, report, limit=1)) == [("report-1", 1), ("report-1", 2)]
            assert await events.count(after=START, which=report) == 2
            assert await events.version("report-1") == 2

    async def test_nobody_appends_to_a_stream_while_it_is_archived_or_deleted(self) -> None:
        """Neither is a part of it left, nor is anything appended to what is archived."""
        async with self.events() as events:
            for number in range(self.crowd):
                stream = f"order-{number}"
                await events.append(stream, facts(1), expected=0)
                change = events.archive if number % 2 else events.delete

                async def append(stream: str) -> None:
                    for version in range(1, 5):
                        try:
                            await events.append(stream, facts(1), expected=version)
                        except ConcurrencyError:
                            return

                with anyio.fail_after(self.patience):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(append, stream)
                        tasks.start_soon(partial(change, stream))

                read = versions(await events.read(stream, archived=True))
                assert read == list(range(1, len(read) + 1))
                assert not await events.read(stream)
