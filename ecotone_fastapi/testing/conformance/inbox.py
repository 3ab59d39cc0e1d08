"""The suite for inboxes: stores that remember which handler has handled which message."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.messaging.deduplication import DeduplicationStore
from ecotone_fastapi.testing.conformance.hooks import Hooks, Rollback

_NAMES: Sequence[str] = (
    "m",
    "M",
    " m",
    "m ",
    "",
    "m\n",
    "m\x00",
    "\ud800",
    "é",
    "e",
    "e\u0301",
    "\N{PILE OF POO}" * 190,
    "x" * 190,
    "x" * 191,
    "x" * 10_000,
    "x" * 9_999 + "y",
    "' OR 1=1; -- :message_id %s",
)


@pytest.mark.anyio
class InboxConformance(Hooks):
    """What every store of handled messages must do. Subclass it and implement `inbox` and `transaction`.

    A hook that is not implemented skips the cases that need it, and the reason says so. Within a case, all calls of a
    hook open the same store; each case begins with an empty one. Transactions are opened in several tasks at once.

    Attributes:
        moment: Seconds after which something that waits is taken to wait.
        patience: Seconds after which nothing is expected any more.
    """

    moment: float = 0.2
    patience: float = 20.0

    # ---------------------------------------------------------------------------------------------------------- hooks

    def inbox(self) -> AbstractAsyncContextManager[DeduplicationStore]:
        """Hook: open the store, and close it in the end."""
        self._skip_without("inbox", "a store of handled messages")

    # ----------------------------------------------------------------------------------------------------- the record

    async def test_what_is_recorded_is_known(self) -> None:
        """The first time it is new, and never again; for another process, too."""
        async with self.inbox() as inbox:
            assert not await inbox.knows("m", "pay")
            assert await inbox.record("m", "pay")
            assert not await inbox.record("m", "pay")

        async with self.inbox() as inbox:
            assert not await inbox.record("m", "pay")
            assert await inbox.knows("m", "pay")

    async def test_each_handler_has_records_of_its_own(self) -> None:
        """One message is handled by several handlers."""
        async with self.inbox() as inbox:
            assert await inbox.record("m", "pay")
            assert await inbox.record("m", "ship")
            assert await inbox.record("n", "pay")
            assert not await inbox.knows("n", "ship")

    async def test_any_two_names_are_told_apart(self) -> None:
        """Senders write ids, of any length and with any characters; and so are handlers named."""
        async with self.inbox() as inbox:
            assert [await inbox.record(name, "pay") for name in _NAMES] == [True] * len(_NAMES)
            assert [await inbox.record(name, "pay") for name in _NAMES] == [False] * len(_NAMES)
            assert [await inbox.record("of", name) for name in _NAMES] == [True] * len(_NAMES)
            assert [await inbox.knows("of", name) for name in _NAMES] == [True] * len(_NAMES)

    async def test_what_was_forgotten_is_new_again(self) -> None:
        """And to forget what is not there is no error."""
        async with self.inbox() as inbox:
            await inbox.forget("m", "pay")
            await inbox.record("m", "pay")
            await inbox.record("m", "ship")
            await inbox.forget("m", "pay")

            assert await inbox.record("m", "pay")
            assert not await inbox.record("m", "ship")

    # ----------------------------------------------------------------------------------------------- the unit of work

    async def test_a_record_takes_part_in_the_transaction(self) -> None:
        """What is rolled back was not handled."""
        async with self.inbox() as inbox:
            assert not inbox.takes_part()
            async with self._rolled_back():
                assert inbox.takes_part()
                assert await inbox.record("m", "pay")
                assert not await inbox.record("m", "pay")
            async with self.transaction():
                assert await inbox.record("m", "pay")

            assert not await inbox.record("m", "pay")

    async def test_a_duplicate_does_not_break_the_transaction(self) -> None:
        """What comes after it in the same transaction is committed."""
        async with self.inbox() as inbox:
            await inbox.record("m", "pay")
            async with self.transaction():
                assert not await inbox.record("m", "pay")
                assert await inbox.record("n", "pay")

            assert await inbox.knows("n", "pay")

    async def test_forgetting_takes_part_in_the_transaction(self) -> None:
        """A record that was taken back is gone when the transaction commits."""
        async with self.inbox() as inbox:
            async with self.transaction():
                await inbox.record("m", "pay")
                await inbox.record("n", "pay")
                await inbox.forget("m", "pay")

            assert await inbox.record("m", "pay")
            assert not await inbox.record("n", "pay")

    # ------------------------------------------------------------------------------------------------- two at one time

    async def test_a_duplicate_waits_for_the_one_before_and_is_none_when_that_rolls_back(self) -> None:
        """The second transaction may not know what becomes of the first one before that is decided."""
        assert await self._second(first_commits=False)

    async def test_a_duplicate_waits_for_the_one_before_and_is_one_when_that_commits(self) -> None:
        """Otherwise both would handle the message."""
        assert not await self._second(first_commits=True)

    async def test_one_of_many_duplicates_at_once_is_the_first(self) -> None:
        """Whichever it is, and though half of them fail."""
        new: list[int] = []
        failed: list[int] = []

        async def handle(inbox: DeduplicationStore, place: int) -> None:
            try:
                async with self.transaction():
                    if await inbox.record("m", "pay"):
                        if place % 2:
                            raise Rollback
                        new.append(place)
            except Rollback:
                failed.append(place)
            except ChannelError:  # the victim of a deadlock, whose unit of work is run again in an application, too
                await handle(inbox, place)

        async with self.inbox() as inbox:
            if not self._has("transaction"):
                self.transaction()
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for place in range(1, 11):
                        tasks.start_soon(handle, inbox, place)

            assert len(new) == 1
            assert not await inbox.record("m", "pay")

    async def test_other_messages_do_not_wait(self) -> None:
        """Neither do other handlers of the same message; unless one writer at a time is all that the store has."""
        async with self.inbox() as inbox, self.transaction():
            await inbox.record("m", "pay")
            async with anyio.create_task_group() as tasks:
                others = anyio.Event()

                async def look() -> None:
                    assert not await inbox.knows("n", "pay")
                    assert not await inbox.knows("m", "ship")
                    others.set()

                tasks.start_soon(look)
                with anyio.fail_after(self.patience):
                    await others.wait()

    async def _second(self, *, first_commits: bool) -> bool:
        """Let two transactions record the same; return whether it was new for the second."""
        recorded, decided, answered = anyio.Event(), anyio.Event(), anyio.Event()
        answers: list[bool] = []

        async def first(inbox: DeduplicationStore) -> None:
            try:
                async with self.transaction():
                    assert await inbox.record("m", "pay")
                    recorded.set()
                    await decided.wait()
                    if not first_commits:
                        raise Rollback
            except Rollback:
                assert not first_commits

        async def second(inbox: DeduplicationStore) -> None:
            await recorded.wait()
            async with self.transaction():
                answers.append(await inbox.record("m", "pay"))
                answered.set()

        async with self.inbox() as inbox:
            if not self._has("transaction"):
                self.transaction()
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(first, inbox)
                    tasks.start_soon(second, inbox)
                    await recorded.wait()
                    with anyio.move_on_after(self.moment):
                        await answered.wait()
                    assert answers == []
                    decided.set()
            assert not await inbox.record("m", "pay")
        return answers[0]

    # ------------------------------------------------------------------------------------------------------ retention

    async def test_the_oldest_are_forgotten_up_to_a_limit(self) -> None:
        """What is younger than the moment stays."""
        async with self.inbox() as inbox:
            for number in range(5):
                await inbox.record(str(number), "pay")
            soon = datetime.now(UTC) + timedelta(days=1)

            assert await inbox.forget_before(datetime.now(UTC) - timedelta(days=1)) == 0
            assert await inbox.forget_before(soon, limit=2) == 2
            assert [await inbox.knows(str(number), "pay") for number in range(5)] == [False, False, True, True, True]
            assert await inbox.forget_before(soon) == 3
            assert await inbox.forget_before(soon) == 0
            assert await inbox.record("0", "pay")

    async def test_several_may_forget_at_once(self) -> None:
        """All of it is forgotten, nothing is counted twice, and nobody fails."""
        forgotten: list[int] = []

        async def forget(inbox: DeduplicationStore) -> None:
            while portion := await inbox.forget_before(datetime.now(UTC) + timedelta(days=1), limit=7):
                forgotten.append(portion)

        async with self.inbox() as inbox:
            for number in range(100):
                await inbox.record(str(number), "pay")
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(forget, inbox)
            await forget(inbox)

            assert sum(forgotten) == 100
