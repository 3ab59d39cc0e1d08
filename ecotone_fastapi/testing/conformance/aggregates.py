"""The suite for stores of aggregates: what is saved comes back, and nobody's change is lost."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest

from ecotone_fastapi.core.errors import ConcurrencyError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.modelling.aggregates import aggregate
from ecotone_fastapi.modelling.repository import (
    UNVERSIONED,
    AggregateStore,
    DeletesAggregates,
    Identifier,
    Versioned,
)
from ecotone_fastapi.testing.conformance.hooks import Hooks, OpenUnit


@aggregate(identifier="account_id")
@dataclass
class Account:
    """Something with one identifier, of which a number changes."""

    account_id: str
    balance: int


@aggregate(identifier=("row", "number"))
@dataclass
class Seat:
    """Something that two identifiers tell from all others."""

    row: str
    number: int
    taken_by: str | None = None


@pytest.mark.anyio
class AggregateStoreConformance(Hooks):
    """What every store of aggregates must do. Subclass it and implement `store` and `transaction`.

    Within a case, all calls of a hook open the same store; each case begins with an empty one. Transactions are opened
    in several tasks at once. A store that keeps only classes of its own kind says how they are made.

    Attributes:
        versioned: Whether versions are counted. Otherwise whoever loads an aggregate in a transaction has it alone.
        one_writer: Whether a transaction that loads something keeps others from doing so until it has ended.
        identifiers: Identifiers that have to be told apart.
        patience: Seconds after which nothing is expected any more.
    """

    versioned: bool = True
    one_writer: bool = False
    identifiers: Sequence[str] = ("a", "A", " a", "a ", "a\n", "é", "e\u0301", "x" * 190, "x" * 191, "' OR 1=1; -- :i")
    patience: float = 20.0

    # ---------------------------------------------------------------------------------------------------------- hooks

    def store(self) -> AbstractAsyncContextManager[AggregateStore]:
        """Hook: open the store, and close it in the end."""
        self._skip_without("store", "a store of aggregates")

    def account(self, account_id: str, balance: int) -> Any:
        """Make an aggregate with the attributes `account_id`, which identifies it, and `balance`."""
        return Account(account_id, balance)

    def seat(self, row: str, number: int, taken_by: str | None = None) -> Any:
        """Make an aggregate with the attributes `row` and `number`, which identify it, and `taken_by`."""
        return Seat(row, number, taken_by)

    # ------------------------------------------------------------------------------------------------- saved and loaded

    async def test_what_is_saved_is_loaded(self) -> None:
        """By its identifier; another one is not there."""
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 5))

            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert (found.state.account_id, found.state.balance) == ("a", 5)
                assert found.version == (1 if self.versioned else UNVERSIONED)
                assert await self._load(store, "b") is None

    async def test_each_save_counts(self) -> None:
        """The version tells how often that was."""
        async with self.store() as store:
            async with self.transaction():
                assert await self._save(store, self.account("a", 0)) == (1 if self.versioned else UNVERSIONED)
            for balance in (2, 3):
                async with self.transaction():
                    assert await self._change(store, "a", balance) == (balance if self.versioned else UNVERSIONED)

            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert found.state.balance == 3

    async def test_any_two_identifiers_are_told_apart(self) -> None:
        """Whoever sends a message may have made them up."""
        async with self.store() as store:
            for number, identifier in enumerate(self.identifiers):
                async with self.transaction():
                    await self._save(store, self.account(identifier, number))

            for number, identifier in enumerate(self.identifiers):
                async with self.transaction():
                    found = await self._load(store, identifier)
                    assert found is not None
                    assert (found.state.account_id, found.state.balance) == (identifier, number)

    async def test_several_identifiers_belong_together(self) -> None:
        """Each of them counts."""
        seats = [("a", 1), ("a", 2), ("b", 1), ("a/1", 1), ("a", 11)]
        async with self.store() as store:
            for row, number in seats:
                async with self.transaction():
                    seat = self.seat(row, number, f"{row}-{number}")
                    await store.save(type(seat), _seat_id(row, number), seat, events=(), expected=0)

            for row, number in seats:
                async with self.transaction():
                    found = await store.load(type(self.seat(row, number)), _seat_id(row, number))
                    assert found is not None
                    assert found.state.taken_by == f"{row}-{number}"

    async def test_events_are_given_back(self) -> None:
        """They are published by whoever has saved."""
        async with self.store() as store, self.transaction():
            account = self.account("a", 5)
            events = [Message("opened", {"id": "1"}), Message("filled", {"id": "2"})]

            saved = await store.save(type(account), _id("a"), account, events=events, expected=0)

            assert list(saved.events) == events

    async def test_nobody_shares_an_object_with_the_store(self) -> None:
        """What somebody does to an aggregate counts when it is saved."""
        async with self.store() as store:
            account = self.account("a", 1)
            async with self.transaction():
                await self._save(store, account)
            account.balance = 2

            async with self._rolled_back():
                found = await self._load(store, "a")
                assert found is not None
                assert found.state.balance == 1
                found.state.balance = 3

            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert found.state.balance == 1

    # ------------------------------------------------------------------------------------------------ the unit of work

    async def test_what_is_rolled_back_was_never_saved(self) -> None:
        """Neither a new aggregate nor a change."""
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("kept", 1))

            async with self._rolled_back():
                await self._save(store, self.account("a", 1))
                await self._change(store, "kept", 2)

            async with self.transaction():
                assert await self._load(store, "a") is None
                found = await self._load(store, "kept")
                assert found is not None
                assert (found.state.balance, found.version) == (1, 1 if self.versioned else UNVERSIONED)
                await self._save(store, self.account("a", 1))

    async def test_a_unit_of_work_sees_what_it_has_saved(self) -> None:
        """And can save it again."""
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 1))
                await self._change(store, "a", 2)
                version = await self._change(store, "a", 3)

            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert (found.state.balance, found.version) == (3, version)

    # -------------------------------------------------------------------------------------------------------- deletion

    async def test_what_is_deleted_is_gone_and_can_begin_anew(self) -> None:
        """At once for the unit of work that deletes it, and then for all; nothing else is gone."""
        async with self.store() as store:
            async with self.transaction():
                for account_id in ("a", "b", "c"):
                    await self._save(store, self.account(account_id, 1))

            async with self.transaction():
                await self._delete(store, "a")
                await self._delete(store, "b")
                assert await self._load(store, "a") is None
                assert await self._save(store, self.account("b", 2)) == (1 if self.versioned else UNVERSIONED)
                await self._change(store, "b", 3)

            async with self.transaction():
                assert await self._load(store, "a") is None
                found = [await self._load(store, account_id) for account_id in ("b", "c")]
                assert [one and one.state.balance for one in found] == [3, 1]

    async def test_what_was_made_in_a_unit_of_work_can_be_deleted_in_it(self) -> None:
        """Then there has never been any."""
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 1))
                await self._change(store, "a", 2)
                await self._delete(store, "a")

            async with self.transaction():
                assert await self._load(store, "a") is None

    async def test_a_deletion_that_is_rolled_back_never_happened(self) -> None:
        """It is there as before."""
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 1))

            async with self._rolled_back():
                await self._delete(store, "a")

            async with self.transaction():
                assert await self._change(store, "a", 2) == (2 if self.versioned else UNVERSIONED)

    async def test_who_deletes_what_has_changed_is_refused(self) -> None:
        """So is who changes or deletes what is gone."""
        if not self.versioned:
            pytest.skip("needs versions, and this store does not count any")
        if self.one_writer:
            pytest.skip("needs two transactions at once, and this store has one writer at a time")
        async with self.store() as store:
            for too_late, first, actual in (
                (self._delete_again, lambda: self._change(store, "a", 2), 2),
                (self._delete_again, lambda: self._delete(store, "a"), 0),
                (self._save_anything, lambda: self._delete(store, "a"), 0),
            ):
                async with self.transaction():
                    if await self._load(store, "a") is not None:
                        await self._delete(store, "a")
                    await self._save(store, self.account("a", 1))
                async with anyio.create_task_group() as tasks:
                    late, early = OpenUnit(self.transaction, tasks), OpenUnit(self.transaction, tasks)
                    found = await late.do(lambda: self._load(store, "a"))
                    await early.do(first)
                    await early.commit()

                    with pytest.raises(ConcurrencyError) as caught:
                        await late.do(partial(too_late, store, found))
                    await late.rollback()

                assert (caught.value.expected, caught.value.actual) == (1, actual)

    # ------------------------------------------------------------------------------------------------- several at once

    async def test_a_new_one_that_exists_already_is_refused(self) -> None:
        """The error has both versions."""
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 1))

            with pytest.raises(ConcurrencyError) as caught:
                async with self.transaction():
                    await self._save(store, self.account("a", 2))

            assert (caught.value.expected, caught.value.actual) == (0, 1 if self.versioned else None)
            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert found.state.balance == 1

    async def test_who_comes_too_late_is_told_both_versions(self) -> None:
        """And changes nothing."""
        if not self.versioned:
            pytest.skip("needs versions, and this store does not count any")
        if self.one_writer:
            pytest.skip("needs two transactions at once, and this store has one writer at a time")
        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 1))
            async with anyio.create_task_group() as tasks:
                late, early = OpenUnit(self.transaction, tasks), OpenUnit(self.transaction, tasks)
                found = await late.do(lambda: self._load(store, "a"))
                await early.do(lambda: self._change(store, "a", 2))
                await early.do(lambda: self._change(store, "a", 3))
                await early.commit()

                with pytest.raises(ConcurrencyError) as caught:
                    await late.do(lambda: self._save_again(store, found, 9))
                await late.rollback()

            assert (caught.value.expected, caught.value.actual) == (1, 3)
            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert (found.state.balance, found.version) == (3, 3)

    async def test_one_of_many_new_ones_with_one_identifier_wins(self) -> None:
        """The others are told so."""
        won: list[int] = []
        lost: list[ConcurrencyError] = []

        async def create(store: AggregateStore, balance: int) -> None:
            try:
                async with self.transaction():
                    await self._save(store, self.account("a", balance))
            except ConcurrencyError as error:
                lost.append(error)
            else:
                won.append(balance)

        async with self.store() as store:
            await self._at_once(10, lambda place: create(store, place))

            assert (len(won), len(lost)) == (1, 9)
            assert {error.expected for error in lost} == {0}
            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert found.state.balance == won[0]

    async def test_no_change_is_lost_when_many_change_one_aggregate(self) -> None:
        """Whoever is refused tries again, and all of it is there in the end."""
        refused: list[ConcurrencyError] = []

        async def add_one(store: AggregateStore) -> None:
            while True:
                try:
                    async with self.transaction():
                        found = await self._load(store, "a")
                        assert found is not None
                        await self._save_again(store, found, found.state.balance + 1)
                    break
                except ConcurrencyError as error:
                    refused.append(error)

        async with self.store() as store:
            async with self.transaction():
                await self._save(store, self.account("a", 0))

            await self._at_once(8, lambda _: add_one(store))

            assert self.versioned or not refused
            async with self.transaction():
                found = await self._load(store, "a")
                assert found is not None
                assert found.state.balance == 8
                assert found.version == (9 if self.versioned else UNVERSIONED)

    # ----------------------------------------------------------------------------------------------------------- steps

    async def _save(self, store: AggregateStore, account: Any) -> int:
        saved = await store.save(type(account), _id(account.account_id), account, events=(), expected=0)
        return saved.version

    async def _load(self, store: AggregateStore, account_id: str) -> Versioned[Any] | None:
        return await store.load(type(self.account(account_id, 0)), _id(account_id))

    async def _change(self, store: AggregateStore, account_id: str, balance: int) -> int:
        found = await self._load(store, account_id)
        return await self._save_again(store, found, balance)

    async def _save_again(self, store: AggregateStore, found: Versioned[Any] | None, balance: int) -> int:
        assert found is not None
        account = found.state
        account.balance = balance
        identifier = _id(account.account_id)
        return (await store.save(type(account), identifier, account, events=(), expected=found.version)).version

    async def _save_anything(self, store: AggregateStore, found: Versioned[Any] | None) -> None:
        await self._save_again(store, found, 9)

    async def _delete(self, store: AggregateStore, account_id: str) -> None:
        await self._delete_again(store, await self._load(store, account_id))

    async def _delete_again(self, store: AggregateStore, found: Versioned[Any] | None) -> None:
        if not isinstance(store, DeletesAggregates):
            pytest.skip("needs a store that deletes, and this one has no delete")
        assert found is not None
        account = found.state
        await store.delete(type(account), _id(account.account_id), account, expected=found.version)

    async def _at_once(self, number: int, work: Callable[[int], Any]) -> None:
        if type(self).transaction is Hooks.transaction:
            self.transaction()
        with anyio.fail_after(self.patience):
            async with anyio.create_task_group() as tasks:
                for place in range(number):
                    tasks.start_soon(work, place)


def _id(account_id: str) -> Identifier:
    return Identifier(("account_id",), (account_id,))


def _seat_id(row: str, number: int) -> Identifier:
    return Identifier(("row", "number"), (row, number))
