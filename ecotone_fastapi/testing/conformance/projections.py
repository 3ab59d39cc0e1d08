"""The suite for stores of projections: checkpoints, leases, locks, partitions, and where they stand still."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.errors import LeaseLostError
from ecotone_fastapi.modelling.event_storage import START, Position
from ecotone_fastapi.modelling.projection_store import (
    Condition,
    Halt,
    PartitionCounts,
    PartitionRecord,
    ProjectionRecord,
    ProjectionStore,
)
from ecotone_fastapi.testing.conformance.hooks import Hooks, Rollback

_AT = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
_FIRST = ProjectionRecord("balances", 1, "asynchronous")
_FAR = Position(2**62, 2**62)


def halt(*, retry_in: float = 0.0, attempts: int = 1) -> Halt:
    """Return why something stands still, to be tried again so many seconds from now on."""
    return Halt(
        error_type="builtins.ValueError",
        error_message="Zażółć \U0001f4a9",
        traceback="Traceback (most recent call last): …",
        stream="wallet-1",
        stream_version=7,
        position="12:34",
        event="wallet.credited",
        since=_AT,
        attempts=attempts,
        retry_at=datetime.now(UTC) + timedelta(seconds=retry_in),
    )


@pytest.mark.anyio
class ProjectionStoreConformance(Hooks):
    """What every store of projections must do. Subclass it and implement `projections` and `transaction`.

    A hook that is not implemented skips the cases that need it, and the reason says so. Within a case, all calls of a
    hook open the same store, as several processes would; each case begins with an empty one. Transactions are opened in
    several tasks at once.

    Attributes:
        moment: Seconds after which something that waits is taken to wait.
        patience: Seconds after which nothing is expected any more.
        one_writer: Whether a transaction that wants to write waits until the one before has ended.
    """

    moment: float = 0.2
    patience: float = 20.0
    one_writer: bool = False

    # ---------------------------------------------------------------------------------------------------------- hooks

    def projections(self) -> AbstractAsyncContextManager[ProjectionStore]:
        """Hook: open the store, and close it in the end."""
        self._skip_without("projections", "a store of projections")

    # ------------------------------------------------------------------------------------------------------- versions

    async def test_a_version_is_kept_as_it_was_added(self) -> None:
        """Once; and for other processes, too."""
        record = ProjectionRecord(
            "balances",
            2,
            "synchronous, partitioned",
            revision=3,
            condition=Condition.BUILDING,
            position=_FAR,
            state='{"zażółć": "\U0001f4a9"}',
            silent_until=Position(7, 8),
            round=4,
            by_hand=True,
            done=2**40,
            total=2**41,
            began_at=_AT,
            halt=halt(),
        )
        async with self.projections() as store:
            assert await store.add(record)
            assert not await store.add(replace(record, state="{}"))
            assert await store.add(_FIRST)
            assert await store.add(replace(_FIRST, name="another"))

        async with self.projections() as store:
            assert await store.versions("balances") == [_FIRST, record]
            assert [one.name for one in await store.versions()] == ["another", "balances", "balances"]
            assert await store.versions("unknown") == []

    async def test_what_is_rolled_back_was_never_written(self) -> None:
        """Neither a version nor a checkpoint nor partitions, nor that they were deleted."""
        async with self.projections() as store:
            async with self._rolled_back():
                assert await store.add(_FIRST)
                assert await store.versions("balances") == [_FIRST]
            assert await store.versions() == []

            await store.add(_FIRST)
            await store.note(_FIRST, {"a": 1})
            async with self._rolled_back():
                await store.save(_FIRST, replace(_FIRST, position=_FAR))
                await store.note(_FIRST, {"a": 2, "b": 1})
                await store.keep("balances", 1, [PartitionRecord("a", position=1, wanted=1)])
            async with self._rolled_back():
                await store.remove("balances", 1)

            assert await store.versions() == [_FIRST]
            assert await store.partitions("balances", 1) == [PartitionRecord("a", wanted=1)]

    async def test_a_version_is_removed_with_its_partitions(self) -> None:
        """And no other one is."""
        second = replace(_FIRST, version=2)
        async with self.projections() as store:
            for one in (_FIRST, second):
                await store.add(one)
                await store.note(one, {"a": 1})

            await store.remove("balances", 1)

            assert await store.versions() == [second]
            assert await store.partitions("balances", 1) == []
            assert await store.partitions("balances", 2) == [PartitionRecord("a", wanted=1)]

    async def test_a_change_leaves_the_lease_alone(self) -> None:
        """Whoever has it may still go on."""
        async with self.projections() as store:
            await store.add(_FIRST)
            token = await store.lease("balances", 1, "me", 60.0)

            async with self.transaction():
                [now] = await store.lock("balances")
                await store.change(replace(now, condition=Condition.RETIRED, token=99, runner="you"))

            [after] = await store.versions("balances")
            assert (after.condition, after.token, after.runner) == (Condition.RETIRED, token, "me")

    # ---------------------------------------------------------------------------------------------- E13: checkpoints

    async def test_e13_a_checkpoint_is_saved_where_it_was_left(self) -> None:
        """With the state, how much was done, and without what it stood still for."""
        async with self.projections() as store:
            await store.add(replace(_FIRST, halt=halt()))
            [before] = await store.versions("balances")

            after = replace(before, position=Position(3, 9), state="7", done=9, halt=None)
            await store.save(before, after)

            assert await store.versions("balances") == [after]
            await store.save(after, replace(after, position=Position(3, 10)))

    @pytest.mark.parametrize("stored", [Position(3, 8), Position(3, 10), Position(2, 99), Position(4, 0)])
    async def test_e13_a_checkpoint_that_is_behind_or_ahead_is_not_overwritten(self, stored: Position) -> None:
        """Somebody else was there: nothing of this batch may be left."""
        async with self.projections() as store:
            await store.add(replace(_FIRST, position=stored))
            believed = replace(_FIRST, position=Position(3, 9))

            with pytest.raises(LeaseLostError):
                await store.save(believed, replace(believed, position=Position(5, 0)))

            assert [one.position for one in await store.versions("balances")] == [stored]

    async def test_e13_a_checkpoint_of_a_version_that_is_gone_is_not_saved(self) -> None:
        """Nor brought back."""
        async with self.projections() as store:
            with pytest.raises(LeaseLostError):
                await store.save(_FIRST, replace(_FIRST, position=_FAR))
            assert await store.versions() == []

    async def test_a_checkpoint_of_a_version_that_was_retired_is_not_saved(self) -> None:
        """What it was about to tell is told by the version that took its place."""
        async with self.projections() as store:
            await store.add(_FIRST)
            await store.change(replace(_FIRST, condition=Condition.RETIRED))

            with pytest.raises(LeaseLostError):
                await store.save(_FIRST, replace(_FIRST, position=_FAR))

    # -------------------------------------------------------------------------------------------------------- leases

    async def test_a_version_is_lent_to_one_runner(self) -> None:
        """Until it is given back."""
        async with self.projections() as store, self.projections() as other:
            await store.add(_FIRST)
            first = await store.lease("balances", 1, "first", 60.0)
            assert first is not None
            assert await other.lease("balances", 1, "second", 60.0) is None

            [lent] = await other.versions("balances")
            assert (lent.runner, lent.token) == ("first", first)
            assert 50.0 < lent.leased <= 60.0

            await store.release("balances", 1, first)
            second = await other.lease("balances", 1, "second", 60.0)
            assert second is not None
            assert second > first
            await store.release("balances", 1, first)  # late, and of no effect
            assert await store.lease("balances", 1, "third", 60.0) is None
            assert await store.lease("balances", 2, "first", 60.0) is None

    async def test_who_has_lost_a_lease_can_neither_renew_it_nor_save(self) -> None:
        """Scenario 28: a runner that thaws finds that its token is an old one."""
        async with self.projections() as store:
            await store.add(_FIRST)
            old = await store.lease("balances", 1, "frozen", 0.05)
            assert old is not None
            [believed] = await store.versions("balances")
            await self._until_free(store)
            new = await store.lease("balances", 1, "another", 60.0)
            assert new is not None

            assert not await store.renew("balances", 1, old, 60.0)
            with pytest.raises(LeaseLostError):
                await store.save(believed, replace(believed, position=_FAR))
            await store.halt("balances", 1, old, halt())

            assert await store.renew("balances", 1, new, 60.0)
            [now] = await store.versions("balances")
            assert (now.position, now.halt, now.runner) == (START, None, "another")

    async def test_a_lease_is_renewed_and_can_be_taken_away(self) -> None:
        """For a rebuild, whoever runs it."""
        async with self.projections() as store:
            await store.add(_FIRST)
            first = await store.lease("balances", 1, "first", 5.0)
            assert first is not None
            assert await store.renew("balances", 1, first, 60.0)
            [lent] = await store.versions("balances")
            assert lent.leased > 50.0

            second = await store.lease("balances", 1, "second", 60.0, force=True)

            assert second is not None
            assert second > first
            assert not await store.renew("balances", 1, first, 60.0)

    async def test_what_stands_still_is_written_down(self) -> None:
        """At once, whatever becomes of the unit of work that has failed."""
        async with self.projections() as store:
            await store.add(_FIRST)
            token = await store.lease("balances", 1, "me", 60.0)
            assert token is not None
            why = halt(attempts=3)

            await store.halt("balances", 1, token, why)

            assert [one.halt for one in await store.versions("balances")] == [why]

    # --------------------------------------------------------------------------------------------------------- locks

    async def test_a_lock_keeps_others_out_until_the_unit_of_work_ends(self) -> None:
        """The last step of a rebuild keeps appenders out; it is itself kept out by those that are at work."""
        async with self.projections() as store:
            await store.add(_FIRST)
            steps: list[str] = []
            locked, go_on = anyio.Event(), anyio.Event()

            async def finish() -> None:
                async with self.transaction():
                    [now] = await store.lock("balances")
                    locked.set()
                    await go_on.wait()
                    await store.change(replace(now, condition=Condition.RETIRED))
                    steps.append("finished")

            async def follow() -> None:
                async with self.transaction():
                    [now] = await store.lock("balances", shared=True)
                    steps.append(f"followed {now.condition}")

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(finish)
                    await locked.wait()
                    tasks.start_soon(follow)
                    await anyio.sleep(self.moment)
                    assert steps == []
                    go_on.set()

            assert steps == ["finished", "followed retired"]

    async def test_a_shared_lock_lets_others_in_that_share(self) -> None:
        """Appenders do not wait for each other."""
        self._needs_several_writers()
        async with self.projections() as store:
            await store.add(_FIRST)
            inside, both = 0, anyio.Event()

            async def follow() -> None:
                nonlocal inside
                async with self.transaction():
                    await store.lock("balances", shared=True)
                    inside += 1
                    if inside == 2:
                        both.set()
                    await both.wait()

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow)
                    tasks.start_soon(follow)

    # ---------------------------------------------------------------------------------------------------- partitions

    async def test_streams_are_noted_and_claimed(self) -> None:
        """What is not new changes nothing."""
        async with self.projections() as store:
            await store.add(_FIRST)
            record = replace(_FIRST, round=2)
            await store.note(record, {"b": 3, "a": 1})
            await store.note(_FIRST, {"a": 5, "b": 2})

            found = await store.partitions("balances", 1)
            assert found == [
                PartitionRecord("a", wanted=5, round=2),
                PartitionRecord("b", wanted=3, round=2),
            ]
            assert await self._claimed(store) == ["a", "b"]
            assert await store.due_in("balances", 1) == 0.0

            async with self.transaction():
                claimed = await store.claim("balances", 1, limit=10, seconds=60.0)
                done = [replace(one, position=3, wanted=max(one.wanted, 3), state="3") for one in claimed]
                await store.keep("balances", 1, done)

            assert await self._claimed(store) == ["a"]
            assert await store.partition("balances", 1, "b") == PartitionRecord("b", 3, 3, "3", 0, 2)
            assert await store.partition("balances", 1, "c") is None
            assert await store.count("balances", 1, 2) == PartitionCounts(2, 1, 0, 2, 2)

    async def test_who_claims_passes_over_what_others_have(self) -> None:
        """So several handle one projection at a time; and what they leave undone is there again."""
        self._needs_several_writers()
        async with self.projections() as store:
            await store.add(_FIRST)
            await store.note(_FIRST, dict.fromkeys("abc", 1))
            async with self._claiming(store, 2):
                assert len(await self._claimed(store)) == 1
            assert len(await self._claimed(store)) == 3

    async def test_who_holds_a_partition_makes_others_wait(self) -> None:
        """A rebuild and whoever appends to the stream take turns, also for a partition that is new."""
        async with self.projections() as store:
            await store.add(_FIRST)
            steps: list[int] = []

            async def advance() -> None:
                async with self.transaction():
                    found = await store.hold(_FIRST, "a")
                    await checkpoint()
                    steps.append(found.position)
                    after = replace(found, position=found.position + 1, wanted=found.position + 1)
                    await store.keep("balances", 1, [after])

            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for _ in range(5):
                        tasks.start_soon(advance)

            assert steps == [0, 1, 2, 3, 4]
            assert await store.due_in("balances", 1) is None

    async def test_a_partition_that_stands_still_waits_and_can_be_called(self) -> None:
        """News do not wake it before its time; its neighbours are not held up."""
        async with self.projections() as store:
            await store.add(_FIRST)
            await store.note(_FIRST, {"a": 1, "b": 1})
            why = halt(retry_in=60.0)
            await store.halt_partition("balances", 1, "a", halt(), position=7)  # it has been further meanwhile
            await store.halt_partition("balances", 1, "a", why, position=0)
            await store.note(_FIRST, {"a": 2})

            assert await self._claimed(store) == ["b"]
            assert [one.halt for one in await store.partitions("balances", 1, halted=True)] == [why]
            assert await store.count("balances", 1, 0) == PartitionCounts(2, 2, 1, 2, 3)
            assert await store.call("balances", 1, "b", halted=True) == 0
            assert await store.call("balances", 1, halted=True) == 1
            assert await self._claimed(store) == ["a", "b"]

    async def test_all_partitions_are_called_for_a_rebuild(self) -> None:
        """And accepted as they are when it is broken off."""
        async with self.projections() as store:
            await store.add(_FIRST)
            await store.keep("balances", 1, [])
            async with self.transaction():
                for stream in "ab":
                    await store.keep("balances", 1, [replace(await store.hold(_FIRST, stream), position=1, wanted=1)])
            assert await self._claimed(store) == []

            assert await store.call("balances", 1) == 2
            assert await store.call("balances", 1, "a") == 1
            await store.accept("balances", 1, 5)

            assert await self._claimed(store) == ["a", "b"]
            assert [one.round for one in await store.partitions("balances", 1)] == [5, 5]
            assert await store.count("balances", 1, 5) == PartitionCounts(2, 0, 0, 2, 0)

    async def test_partitions_are_listed_page_by_page(self) -> None:
        """In the order of their streams."""
        async with self.projections() as store:
            await store.add(_FIRST)
            names = ["B-1", "a-1", "b-1", "b-2", "ü-1"]
            await store.note(_FIRST, dict.fromkeys(names, 1))

            first = await store.partitions("balances", 1, limit=3)
            rest = await store.partitions("balances", 1, after=first[-1].stream)

            assert [one.stream for one in (*first, *rest)] == sorted(names)

    # -------------------------------------------------------------------------------------------------------- helpers

    def _needs_several_writers(self) -> None:
        if self.one_writer:
            pytest.skip("transactions that write wait for each other here")

    async def _claimed(self, store: ProjectionStore) -> list[str]:
        """The streams that could be claimed now; they are not."""
        found: list[str] = []
        with pytest.raises(Rollback):  # noqa: PT012 - what it leaves is the transaction
            async with self.transaction():
                found = [one.stream for one in await store.claim("balances", 1, limit=10, seconds=60.0)]
                raise Rollback
        return sorted(found)

    @asynccontextmanager
    async def _claiming(self, store: ProjectionStore, limit: int) -> AsyncIterator[None]:
        """Claim partitions in a transaction that is open beside the block."""
        claimed, over = anyio.Event(), anyio.Event()

        async def claim() -> None:
            async with self.transaction():
                assert len(await store.claim("balances", 1, limit=limit, seconds=60.0)) == limit
                claimed.set()
                await over.wait()

        with anyio.fail_after(self.patience):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(claim)
                await claimed.wait()
                yield
                over.set()

    async def _until_free(self, store: ProjectionStore) -> None:
        with anyio.fail_after(self.patience):
            while (await store.versions("balances"))[0].leased:  # noqa: ASYNC110 - time passes at the server
                await anyio.sleep(0.02)
