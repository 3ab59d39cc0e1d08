"""Cases about readers of all events: they miss nothing, get nothing twice, and always in the same order."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    START,
    EventFilter,
    EventStorage,
    Expected,
    Horizon,
    NewEvent,
    StoredEvent,
)
from ecotone_fastapi.testing.conformance.event_steps import (
    EventHooks,
    Reader,
    everything,
    fact,
    facts,
    places,
    streams,
)
from ecotone_fastapi.testing.conformance.hooks import OpenUnit, Rollback


def _of(*categories: str) -> EventFilter:
    return EventFilter(categories=frozenset(categories))


class Visibility(EventHooks):
    """An open transaction is waited for; what is behind it is not passed over, and not lost."""

    async def test_e1_what_is_appended_later_comes_later(self) -> None:
        """What was committed before comes before, though the transaction that appends behind it has begun earlier."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            early, late = open_unit(), open_unit()
            await early.do(lambda: events.append("early-1", facts(1), expected=0))
            await late.do(lambda: events.append("order-1", facts(1), expected=0))
            await late.commit()
            await early.do(lambda: events.append("order-1", facts(1), expected=1))
            await early.do(lambda: events.append("early-1", facts(1), expected=1))
            await early.commit()

            order = places(await everything(events))
            for first, second in (
                (("order-1", 1), ("order-1", 2)),
                (("order-1", 1), ("early-1", 2)),
                (("early-1", 1), ("order-1", 2)),
            ):
                assert order.index(first) < order.index(second)

    async def test_e2_an_open_transaction_is_waited_for(self) -> None:
        """Readers see up to it, and everything when it has ended."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            await events.append("before-1", facts(1), expected=0)
            reader, slow = Reader(events), open_unit()
            await slow.do(lambda: events.append("slow-1", facts(1), expected=0))
            await events.append("fast-1", facts(1), expected=0)

            assert streams(await reader.read()) == (["before-1"] if self.hides else ["before-1", "fast-1"])
            await slow.commit()
            assert sorted(streams([*reader.seen, *await reader.read()])) == ["before-1", "fast-1", "slow-1"]
            assert reader.seen == await everything(events)

    @pytest.mark.parametrize("number", [1, 30])
    async def test_e3_e4_a_slow_transaction_is_not_skipped(self, number: int) -> None:
        """Although a fast one that has begun later has committed before, with one event or several."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            reader = Reader(events, limit=7)
            slow, fast = open_unit(), open_unit()
            await slow.do(lambda: events.append("slow-1", facts(number), expected=0))
            await fast.do(lambda: events.append("fast-1", facts(number), expected=0))
            await fast.commit()
            await reader.read()
            await slow.commit()
            await reader.read()

            assert sorted(places(reader.seen)) == [
                (stream, version) for stream in ("fast-1", "slow-1") for version in range(1, number + 1)
            ]
            assert reader.seen == await everything(events)

    async def test_e5_several_slow_transactions_end_in_any_order(self) -> None:
        """Some commit, some roll back, and readers look in between."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            reader = Reader(events, limit=3)
            units = [open_unit() for _ in range(6)]
            for number, unit in enumerate(units):
                await unit.do(partial(events.append, f"slow-{number}", facts(2), expected=0))
                await events.append("fast-1", facts(1), expected=number)
            for number in (3, 0, 5, 1, 4, 2):
                await (units[number].rollback() if number % 3 == 0 else units[number].commit())
                await reader.read()
                await events.append("fast-1", facts(1), expected=Expected.ANY)
            await reader.read()

            slow = [f"slow-{number}" for number in (1, 2, 4, 5) for _ in range(2)]
            assert sorted(streams(reader.seen)) == ["fast-1"] * 12 + slow
            assert reader.seen == await everything(events)

    async def test_e6_a_slow_transaction_is_not_skipped_however_many_come_behind(self) -> None:
        """Nothing is given up after so many events or so much time."""
        self.needs_several_writers()
        with anyio.fail_after(self.patience + self.volume / 20):
            async with self.events() as events, anyio.create_task_group() as tasks:
                reader = Reader(events, limit=1_000)
                slow = OpenUnit(self.transaction, tasks)
                await slow.do(lambda: events.append("slow-1", facts(2), expected=0))
                await self._crowd_behind(events, reader)
                behind = places(reader.seen)
                assert ("slow-1", 1) not in behind
                assert behind == [] or not self.hides

                await slow.commit()
                await reader.read()
                seen = places(reader.seen)
                assert len(seen) == len(set(seen)) == await events.count(after=START)
                assert {("slow-1", 1), ("slow-1", 2)} < set(seen)
                assert len(seen) >= self.volume + 2
                assert reader.seen == await everything(events, limit=1_000)

    async def _crowd_behind(self, events: EventStorage, reader: Reader) -> None:
        """Append so many events, one at a time, while somebody reads."""
        for number in range(self.volume):
            await events.append(f"fast-{number}", facts(1), expected=0)
            if number % (self.volume // 20) == 0:
                await reader.read()
        await reader.read()

    async def test_e7_what_was_rolled_back_is_in_nobodys_way(self) -> None:
        """What is behind it is seen."""
        async with self.events() as events:
            reader = Reader(events)
            for number in range(3):
                async with self._rolled_back():
                    await events.append("order-1", facts(5), expected=number)
                await events.append("order-1", facts(1), expected=number)

            assert places(await reader.read()) == [("order-1", 1), ("order-1", 2), ("order-1", 3)]

    async def test_e8_the_events_of_one_transaction_are_seen_once(self) -> None:
        """All of them, wherever a page ends."""
        async with self.events() as events:
            reader = Reader(events, limit=2)
            async with self.transaction():
                await events.append("order-1", facts(3), expected=0)
                await events.append("order-2", facts(2), expected=0)

            assert places(await reader.read()) == [
                ("order-1", 1), ("order-1", 2), ("order-1", 3), ("order-2", 1), ("order-2", 2),
            ]  # fmt: skip
            assert await reader.read() == []

    async def test_e9_a_transaction_that_only_reads_is_in_nobodys_way(self) -> None:
        """However long it is open."""
        async with self.events() as events, self.units() as open_unit:
            reading = open_unit()
            await reading.do(lambda: events.read("order-1"))
            await reading.do(lambda: events.read_all(after=START, limit=10))
            await events.append("order-1", facts(1), expected=0)

            assert places(await everything(events)) == [("order-1", 1)]
            assert (await events.horizon()).lag == 0
            await reading.commit()

    async def test_whoever_knows_that_nobody_is_appending_sees_what_is_committed_behind_others(self) -> None:
        """The final step of a rebuild: appenders of its streams are kept out, those of other streams are not."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            other = open_unit()
            await other.do(lambda: events.append("other-1", facts(1), expected=0))
            await events.append("mine-1", facts(2), expected=0)

            hidden = await events.read_all(after=START, limit=10, which=_of("mine"))
            page = await events.read_all(after=START, limit=10, which=_of("mine"), settled=True)

            assert streams(page.events) == ["mine-1", "mine-1"]
            assert streams(hidden.events) == ([] if self.hides else ["mine-1", "mine-1"])
            assert await events.count(after=START, which=_of("mine")) == len(hidden.events)
            assert page.upto >= (page.events[-1].position or START)
            await other.commit()
            assert await events.count(after=START, which=_of("mine")) == 2

    async def test_own_events_are_not_seen_even_if_nobody_else_is_appending(self) -> None:
        """They may yet be rolled back."""
        async with self.events() as events:
            await events.append("order-1", facts(1), expected=0)
            async with self.transaction():
                await events.append("order-1", facts(3), expected=1)
                page = await events.read_all(after=START, limit=10, settled=True)

            assert places(page.events) == [("order-1", 1)]
            page = await events.read_all(after=page.upto, limit=10)
            assert places(page.events) == [("order-1", 2), ("order-1", 3), ("order-1", 4)]

    async def test_the_horizon_tells_how_far_readers_see_and_what_is_in_the_way(self) -> None:
        """Without anything in the way there is no lag."""
        async with self.events() as events, self.units() as open_unit:
            assert await events.horizon() == Horizon(START)
            await events.append("order-1", facts(2), expected=0)
            last = (await everything(events))[-1].position or START
            assert await events.horizon() == Horizon(last)

            if not self.one_writer:
                slow = open_unit()
                await slow.do(lambda: events.append("slow-1", facts(1), expected=0))
                await events.append("fast-1", facts(1), expected=0)
                horizon = await events.horizon()
                assert (horizon.head == last) is self.hides
                assert (horizon.lag > 0) is self.hides
                assert bool(horizon.blocked_by) is self.hides
                await slow.commit()
            last = (await everything(events))[-1].position or START
            assert await events.horizon() == Horizon(last)

    async def test_e16_a_database_that_was_restored_elsewhere_is_noticed(self) -> None:
        """Readers would miss what is appended from now on."""
        async with self.events() as events:
            await events.append("order-1", facts(2), expected=0)
            await events.check_restored()
            await self.restore_elsewhere()

            with pytest.raises(ConfigurationError):
                await events.check_restored()


class Filters(EventHooks):
    """Readers of some events get those, and advance past the others."""

    async def test_events_are_chosen_by_stream_category_name_and_tags(self) -> None:
        """Streams and categories add up; all else narrows down."""
        async with self.events() as events:
            await events.append("order-1", [fact("placed", tags=["a", "b", "a"]), fact("paid", tags=["a"])], expected=0)
            await events.append("order-2", [fact("placed", tags=["b", "c" * 300])], expected=0)
            await events.append("basket-1", [fact("placed"), fact("Placed", tags=["A"])], expected=0)
            every = [("order-1", 1), ("order-1", 2), ("order-2", 1), ("basket-1", 1), ("basket-1", 2)]
            for which, meant in (
                (EVERYTHING, [0, 1, 2, 3, 4]),
                (_of("order"), [0, 1, 2]),
                (_of("order", "basket"), [0, 1, 2, 3, 4]),
                (_of("ord"), []),
                (EventFilter(streams=frozenset({"order-2", "order-3"})), [2]),
                (EventFilter(categories=frozenset({"basket"}), streams=frozenset({"order-2"})), [2, 3, 4]),
                (EventFilter(names=frozenset({"placed", "shipped"})), [0, 2, 3]),
                (EventFilter(categories=frozenset({"order"}), names=frozenset({"placed"})), [0, 2]),
                (EventFilter(tags=frozenset({"a"})), [0, 1]),
                (EventFilter(tags=frozenset({"a", "b"})), [0]),
                (EventFilter(tags=frozenset({"c" * 300})), [2]),
                (EventFilter(tags=frozenset({"c" * 299})), []),
                (EventFilter(categories=frozenset({"order"}), tags=frozenset({"b"})), [0, 2]),
                (EventFilter(names=frozenset({"paid"}), tags=frozenset({"b"})), []),
            ):
                expected = [every[place] for place in meant]
                for limit in (1, 2, 100):
                    assert places(await everything(events, which, limit=limit)) == expected, which
                assert await events.count(after=START, which=which) == len(expected), which

    async def test_a_reader_advances_past_what_is_not_meant(self) -> None:
        """It need not look at it again, and misses nothing behind it."""
        async with self.events() as events:
            reader = Reader(events, _of("order"), limit=2)
            await events.append("basket-1", facts(9), expected=0)
            assert await reader.read() == []
            passed = reader.position
            assert passed == (await everything(events))[-1].position

            assert await reader.read() == []
            assert reader.position == passed
            await events.append("order-1", facts(3), expected=0)
            await events.append("basket-1", facts(1), expected=9)
            assert places(await reader.read()) == [("order-1", 1), ("order-1", 2), ("order-1", 3)]
            assert reader.position == (await everything(events))[-1].position

    async def test_a_reader_does_not_advance_past_what_is_open(self) -> None:
        """What is not meant may be behind what is."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            reader, slow = Reader(events, _of("order")), open_unit()
            await slow.do(lambda: events.append("order-1", facts(2), expected=0))
            await events.append("basket-1", facts(5), expected=0)
            await reader.read()
            await slow.commit()
            await reader.read()

            assert places(reader.seen) == [("order-1", 1), ("order-1", 2)]

    async def test_events_are_counted_as_they_are_read(self) -> None:
        """For a measure of how far somebody is behind."""
        async with self.events() as events:
            for stream in ("order-1", "order-2", "basket-1"):
                await events.append(stream, facts(2), expected=0)
            for which in (EVERYTHING, _of("order"), EventFilter(streams=frozenset({"order-2", "basket-1"}))):
                found = await everything(events, which)

                assert await events.count(after=START, which=which) == len(found)
                assert await events.count(after=found[1].position or START, which=which) == len(found) - 2


class Waiting(EventHooks):
    """Readers are woken up."""

    async def test_a_reader_is_woken_up_by_what_is_appended(self) -> None:
        """Also by what was appended since it has asked the last time."""
        async with self.events() as events:
            heard = await self._told_everything(events)
            await events.append("order-1", facts(1), expected=0)
            with anyio.fail_after(self.patience):
                later = await events.wait(heard, 10 * self.patience)
            assert later != heard

            async with anyio.create_task_group() as tasks:
                woken = anyio.Event()

                async def wait() -> None:
                    await events.wait(later, 10 * self.patience)
                    woken.set()

                tasks.start_soon(wait)
                async with self.transaction():
                    await events.append("order-1", facts(1), expected=1)
                with anyio.fail_after(self.patience):
                    await woken.wait()

    async def test_a_reader_is_not_kept_waiting_for_ever(self) -> None:
        """When nothing happens, it looks for itself."""
        async with self.events() as events:
            heard = await self._told_everything(events)
            with anyio.fail_after(self.patience):
                await events.wait(heard, self.moment)

    async def test_a_reader_is_woken_up_when_nothing_is_in_its_way_any_more(self) -> None:
        """Also by a transaction that has appended something, and is rolled back."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            slow = open_unit()
            await slow.do(lambda: events.append("slow-1", facts(1), expected=0))
            await events.append("fast-1", facts(1), expected=0)
            heard = await self._told_everything(events)
            assert await everything(events) == [] or not self.hides
            await slow.rollback()

            assert await events.wait(heard, 10 * self.patience) != heard
            assert streams(await everything(events)) == ["fast-1"]

    async def _told_everything(self, events: EventStorage) -> int:
        heard = 0
        for _ in range(3):  # it may return without reason, but not always
            heard = await events.wait(heard, self.moment)
        return heard


class Step(NamedTuple):
    """A step of some writers and readers.

    Args:
        who: Which of several transactions, or readers.
        what: `append`, `commit` and `rollback` in a transaction of its own, `alone` without, or `read`.
        stream: Of which stream, where something is appended.
        number: How many events, or at most so many of them.
    """

    who: int
    what: str
    stream: int = 0
    number: int = 1


@dataclass
class _Written:
    """An event, and how many were committed when it was appended."""

    event: NewEvent
    stream: str
    committed_before: int


class Interleavings(EventHooks):
    """Whatever the order in which things happen: each reader gets everything once, and in one order."""

    async def test_e21_what_is_read_live_is_read_in_the_same_order_again(self) -> None:
        """A projection that is rebuilt handles events in the order in which it has handled them live."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            live, some = Reader(events, limit=3), Reader(events, _of("slow", "other"), limit=2)
            slow, other = open_unit(), open_unit()
            await slow.do(lambda: events.append("slow-1", facts(2), expected=0))
            for round_ in range(4):
                await events.append("fast-1", facts(2), expected=2 * round_)
                await other.do(partial(events.append, "other-1", facts(1), expected=round_))
                await live.read()
                await some.read()
            await other.commit()
            await slow.do(lambda: events.append("slow-1", facts(2), expected=2))
            await some.read()
            await slow.commit()
            await live.read()
            await some.read()

            again = await everything(events)
            assert live.seen == again
            assert some.seen == [event for event in again if event.stream != "fast-1"]

    @pytest.mark.parametrize("seed", range(8))
    async def test_e20_writers_and_readers_may_do_what_they_want_in_any_order(self, seed: int) -> None:
        """Against a model: a list of what was committed."""
        await self.run_steps(steps(random.Random(seed), 120))  # noqa: S311 - no secret

    async def test_e20_readers_run_beside_writers(self) -> None:
        """As fast as they can; in the end each has got what somebody gets who reads everything again."""
        chance = random.Random(self.crowd)  # noqa: S311 - no secret
        written: list[str] = []
        writing = self.crowd

        async def write(events: EventStorage, number: int) -> None:
            nonlocal writing
            for _ in range(10):
                new = facts(chance.randint(1, 3))
                try:
                    async with self.transaction():
                        await events.append(f"{'abc'[number % 3]}-{number}", new, expected=Expected.ANY)
                        await events.append("shared-1", last := facts(1), expected=Expected.ANY)
                        if chance.random() < 0.2:
                            raise Rollback
                except Rollback:
                    continue
                written.extend(one.id for one in [*new, *last])
            writing -= 1

        async def follow(reader: Reader) -> None:
            while writing:
                await reader.read_page()
                await checkpoint()
            await reader.read()

        async with self.events() as events:
            readers = [Reader(events, limit=limit) for limit in (1, 7, 100)]
            some = Reader(events, _of("a", "shared"), limit=5)
            with anyio.fail_after(5 * self.patience):
                async with anyio.create_task_group() as tasks:
                    for number in range(self.crowd):
                        tasks.start_soon(write, events, number)
                    for reader in (*readers, some):
                        tasks.start_soon(follow, reader)

            again = await everything(events)
            assert len(again) == len(written)
            assert all(reader.seen == again for reader in readers)
            assert some.seen == [event for event in again if event.stream[0] in ("a", "s")]
            assert [one.version for one in again if one.stream == "shared-1"] == list(
                range(1, 1 + sum(one.stream == "shared-1" for one in again))
            )

    async def run_steps(self, script: Sequence[Step]) -> None:
        """Let writers and readers take these steps, and check what the readers have got in the end."""
        async with self.events() as events, self.units() as open_unit:
            await _Interleaving(events, open_unit, one_writer=self.one_writer).run(script)


class _Interleaving:
    def __init__(self, events: EventStorage, open_unit: Callable[[], OpenUnit], *, one_writer: bool) -> None:
        self._events = events
        self._open_unit = open_unit
        self._one_writer = one_writer
        self._units: dict[int, tuple[OpenUnit, list[_Written]]] = {}
        self._committed: list[_Written] = []
        which = [EVERYTHING, EVERYTHING, _of("a", "c"), EventFilter(names=frozenset({"odd"}))]
        self._readers = [Reader(events, one, limit=1 + place) for place, one in enumerate(which)]
        self._which = which

    async def run(self, script: Sequence[Step]) -> None:
        for reader in self._readers:  # there may be something from before
            await reader.read()
            reader.seen.clear()
        begin = self._readers[0].position
        for step in script:
            await getattr(self, step.what)(step)
        for who in list(self._units):
            await self.commit(Step(who, "commit"))
        for reader in self._readers:
            await reader.read()
        again = Reader(self._events)
        again.position = begin
        await again.read()
        self._check(again.seen)
        assert self._readers[0].seen == self._readers[1].seen == again.seen
        for reader, which in zip(self._readers[2:], self._which[2:], strict=True):
            assert reader.seen == [
                event
                for event in again.seen
                if (not which.categories or event.stream[0] in which.categories)
                and (not which.names or event.name in which.names)
            ]

    def _check(self, seen: Sequence[StoredEvent]) -> None:
        bodies = [event.body for event in seen]
        assert sorted(bodies) == sorted(written.event.body for written in self._committed)
        place = {body: number for number, body in enumerate(bodies)}
        last = -1
        before = [last := max(last, place[written.event.body]) for written in self._committed]
        for written in self._committed:
            if written.committed_before:
                assert place[written.event.body] > before[written.committed_before - 1]
        by_stream: dict[str, list[int]] = {}
        for event in seen:
            by_stream.setdefault(event.stream, []).append(event.version)
        assert all(versions == sorted(versions) for versions in by_stream.values())

    def _in_the_way(self, who: int | None, stream: str) -> bool:
        """Tell whether somebody would have to wait for a transaction that ends only later."""
        others = [written for other, (_, written) in self._units.items() if other != who]
        return any(self._one_writer or any(one.stream == stream for one in written) for written in others)

    def _new(self, step: Step) -> tuple[str, list[NewEvent], list[_Written]]:
        stream = f"{'abc'[step.stream % 3]}-{step.stream}"
        new = [fact("odd" if number % 2 else "even") for number in range(step.number)]
        new = [NewEvent(one.id, one.name, one.id.encode(), one.headers_text) for one in new]
        return stream, new, [_Written(one, stream, len(self._committed)) for one in new]

    async def append(self, step: Step) -> None:
        stream, new, written = self._new(step)
        if self._in_the_way(step.who, stream):
            return
        if step.who not in self._units:
            self._units[step.who] = (self._open_unit(), [])
        unit, so_far = self._units[step.who]
        await unit.do(lambda: self._events.append(stream, new, expected=Expected.ANY))
        so_far += written

    async def alone(self, step: Step) -> None:
        stream, new, written = self._new(step)
        if not self._in_the_way(None, stream):
            await self._events.append(stream, new, expected=Expected.ANY)
            self._committed += written

    async def commit(self, step: Step) -> None:
        if step.who in self._units:
            unit, written = self._units.pop(step.who)
            await unit.commit()
            self._committed += written

    async def rollback(self, step: Step) -> None:
        if step.who in self._units:
            unit, _ = self._units.pop(step.who)
            await unit.rollback()

    async def read(self, step: Step) -> None:
        reader = self._readers[step.who % len(self._readers)]
        for _ in range(step.number):
            await reader.read_page()


def steps(chance: random.Random, number: int) -> Sequence[Step]:
    """Return so many steps at random."""
    kinds = chance.choices(["append", "alone", "commit", "rollback", "read"], [6, 3, 2, 1, 6], k=number)
    return [Step(chance.randrange(4), kind, chance.randrange(6), chance.randint(1, 3)) for kind in kinds]
