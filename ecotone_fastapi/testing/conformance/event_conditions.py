"""Cases about conditions: what is appended follows from what was read, or is not appended (E17)."""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import pytest

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    START,
    AppendCondition,
    EventFilter,
    EventStorage,
    Expected,
    NewEvent,
    Position,
    StoredEvent,
)
from ecotone_fastapi.testing.conformance.event_steps import EventHooks, everything, fact, facts, places, streams


def tagged(*tags: str) -> EventFilter:
    """Return a filter for events with these tags."""
    return EventFilter(tags=frozenset(tags))


def unless(*filters: EventFilter, after: Position = START) -> AppendCondition:
    """Return a condition that excludes what fits one of these filters."""
    return AppendCondition(filters, after)


async def _known(events: EventStorage, which: EventFilter) -> Position:
    return (await events.read_all(after=START, limit=100, which=which)).upto


class Conditions(EventHooks):
    """No event has come that would have changed the decision."""

    async def test_e17_what_follows_from_what_was_read_is_appended(self) -> None:
        """And what follows from something older is not."""
        course = tagged("course:1")
        async with self.events() as events:
            known = await _known(events, course)
            await events.append(
                "course-1", [fact(tags=["course:1"])], expected=Expected.ANY, condition=unless(course, after=known)
            )
            with pytest.raises(ConcurrencyError):
                await events.append(
                    "student-1", [fact(tags=["course:1"])], expected=0, condition=unless(course, after=known)
                )

            known = await _known(events, course)
            await events.append(
                "student-1", [fact(tags=["course:1"])], expected=0, condition=unless(course, after=known)
            )
            assert streams(await everything(events)) == ["course-1", "student-1"]

    async def test_e17_what_was_known_behind_the_position_is_not_excluded(self) -> None:
        """But what has come besides it is."""
        course = tagged("course:1")
        async with self.events() as events:
            await events.append("course-1", [fact(tags=["course:1"])], expected=0)
            page = await events.read_all(after=START, limit=100, which=course, settled=True)
            known = frozenset(event.position.number for event in page.events if event.position is not None)
            condition = AppendCondition((course,), START, known)
            await events.append("other-1", [fact(tags=["course:1"])], expected=0, condition=condition)

            with pytest.raises(ConcurrencyError):
                await events.append("other-2", facts(1), expected=0, condition=condition)

    async def test_e17_a_condition_may_be_used_again_as_long_as_nothing_comes(self) -> None:
        """Events that it does not exclude do not matter."""
        condition = unless(tagged("course:1", "student:1"))
        async with self.events() as events:
            for number, tags in enumerate((["course:1"], ["student:1"], ["course:2", "student:1"], [])):
                await events.append(f"other-{number}", [fact(tags=tags)], expected=0, condition=condition)
            await events.append("other-9", [fact(tags=["student:1", "x", "course:1"])], expected=0, condition=condition)

            with pytest.raises(ConcurrencyError):
                await events.append("other-10", facts(1), expected=0, condition=condition)

    @pytest.mark.parametrize(
        ("which", "fits", "does_not"),
        [
            pytest.param(EVERYTHING, ("basket-1", fact()), None, id="everything"),
            pytest.param(
                EventFilter(names=frozenset({"placed"})), ("basket-1", fact("placed")), ("order-1", fact()), id="name"
            ),
            pytest.param(
                EventFilter(categories=frozenset({"order"})), ("order-1", fact()), ("basket-1", fact()), id="category"
            ),
            pytest.param(
                EventFilter(streams=frozenset({"order-1"})), ("order-1", fact()), ("order-2", fact()), id="stream"
            ),
            pytest.param(
                EventFilter(categories=frozenset({"order"}), names=frozenset({"placed"}), tags=frozenset({"t"})),
                ("order-1", fact("placed", tags=["t"])),
                ("order-1", fact("placed", tags=["u"])),
                id="all of it",
            ),
        ],
    )
    async def test_e17_a_condition_excludes_what_fits_its_filters(
        self, which: EventFilter, fits: tuple[str, NewEvent], does_not: tuple[str, NewEvent] | None
    ) -> None:
        """By streams, categories, names and tags, and everything."""
        async with self.events() as events:
            if does_not is not None:
                stream, event = does_not
                await events.append(stream, [event], expected=0)
                await events.append("decision-1", facts(1), expected=0, condition=unless(which))
            await events.append(fits[0], [fits[1]], expected=Expected.ANY)

            with pytest.raises(ConcurrencyError):
                await events.append("decision-2", facts(1), expected=0, condition=unless(which))
            with pytest.raises(ConcurrencyError):
                await events.append("decision-2", facts(1), expected=0, condition=unless(tagged("none"), which))
            await events.append("decision-2", facts(1), expected=0, condition=unless())

    async def test_e17_the_version_counts_too(self) -> None:
        """Both have to be as expected."""
        async with self.events() as events:
            await events.append("order-1", facts(1), expected=0)
            with pytest.raises(ConcurrencyError) as caught:
                await events.append("order-1", facts(1), expected=0, condition=unless(tagged("t")))
            assert (caught.value.expected, caught.value.actual) == (0, 1)

    async def test_e17_own_events_are_excluded_as_well(self) -> None:
        """A transaction cannot decide twice without having seen its first decision."""
        async with self.events() as events:
            async with self.transaction():
                await events.append("order-1", [fact(tags=["t"])], expected=0)
                with pytest.raises(ConcurrencyError):
                    await events.append("order-1", facts(1), expected=1, condition=unless(tagged("t")))

            assert places(await everything(events)) == [("order-1", 1)]

    @pytest.mark.parametrize("which", [tagged("course:1"), EventFilter(names=frozenset({"enrolled"}))])
    @pytest.mark.parametrize(
        ("conditional", "commits", "outcomes"),
        [
            pytest.param(True, True, [["student-1"]], id="the first one decides and commits"),
            pytest.param(True, False, [["student-2"]], id="the first one decides and rolls back"),
            # Where transactions are ordered by their ends, the one that began later may have been the first.
            pytest.param(False, True, [["student-1"], ["student-2", "student-1"]], id="the first one commits"),
            pytest.param(False, False, [["student-2"]], id="the first one rolls back"),
        ],
    )
    async def test_e17_whoever_decides_waits_for_whoever_has_appended_what_would_change_it(
        self, which: EventFilter, conditional: bool, commits: bool, outcomes: Sequence[Sequence[str]]
    ) -> None:
        """Only when that has ended it is known whether it has come; nothing comes before the decision unseen."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            condition = unless(which, after=await _known(events, which))
            enrolled = [[fact("enrolled", tags=["course:1"])] for _ in range(2)]
            first, second = open_unit(), open_unit()
            await first.do(
                lambda: events.append(
                    "student-1", enrolled[0], expected=0, condition=condition if conditional else None
                )
            )
            decided = await second.begin(
                lambda: events.append("student-2", enrolled[1], expected=0, condition=condition)
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.commit if commits else first.rollback)
                try:
                    await decided.result()
                except ConcurrencyError:
                    await second.rollback()
                else:
                    await second.commit()

            assert streams(await everything(events)) in outcomes

    async def test_e17_one_of_many_who_decide_on_the_same_is_first(self) -> None:
        """Each has a stream of its own, so that nothing but the condition is in the way; others decide beside them."""
        lost: list[str] = []
        async with self.events() as events:

            async def decide(number: int, course: str) -> None:
                try:
                    async with self.transaction():
                        await events.append(
                            f"student-{number}", [fact(tags=[course])], expected=0, condition=unless(tagged(course))
                        )
                except ConcurrencyError:
                    lost.append(course)

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for number in range(2 * self.crowd):
                        tasks.start_soon(decide, number, f"course:{number % 2}")

            assert sorted(lost) == ["course:0"] * (self.crowd - 1) + ["course:1"] * (self.crowd - 1)
            assert len(await everything(events)) == 2

    async def test_e17_decisions_on_different_things_both_stand(self) -> None:
        """Both commit; unless decisions are made one after the other, they may be open at the same time."""
        self.needs_several_writers()
        async with self.events() as events, self.units() as open_unit:
            first, second = open_unit(), open_unit()
            await first.do(_deciding(events, 0))
            decided = await second.begin(_deciding(events, 1))
            if self.decides_together:
                await decided.result()
            await first.commit()
            await decided.result()
            await second.commit()

            assert streams(await everything(events)) == ["student-0", "student-1"]


def _deciding(events: EventStorage, number: int) -> Callable[[], Awaitable[Sequence[StoredEvent]]]:
    tags = [f"course:{number}", f"student:{number}"]
    return lambda: events.append(
        f"student-{number}", [fact(tags=tags)], expected=0, condition=unless(*(tagged(tag) for tag in tags))
    )
