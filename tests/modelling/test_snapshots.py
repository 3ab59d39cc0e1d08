"""Snapshots: when they are taken, which are used, and that they change nothing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from threading import Lock
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecotone_fastapi import (
    AggregateNotFoundError,
    ConfigurationError,
    Ecotone,
    EventSourcing,
    EventStore,
    Snapshots,
    applies,
    command_handler,
    event_handler,
    event_sourced,
    message_name,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryEvents, MemorySnapshots
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.snapshots import Snapshot, SnapshotStore
from ecotone_fastapi.testing import Flow, flow_test


@message_name("account.opened")
@dataclass(frozen=True)
class Opened:
    account_id: str


@message_name("account.moved")
@dataclass(frozen=True)
class Moved:
    amount: int


@dataclass(frozen=True)
class Move:
    account_id: str
    amounts: tuple[int, ...]


@dataclass
class Account:
    """What all versions of the class have in common."""

    account_id: str
    moves: list[int] = field(default_factory=list)
    balance: int = 0

    @classmethod
    @command_handler("open")
    def open(cls, account_id: str) -> Opened:
        return Opened(account_id)

    @command_handler
    def move(self, command: Move) -> list[Moved]:
        return [Moved(amount) for amount in command.amounts]

    @query_handler("state")
    def get_state(self) -> tuple[list[int], int]:
        return self.moves, self.balance

    @applies
    def opened(self, event: Opened) -> None:
        self.account_id = event.account_id

    @applies
    def moved(self, event: Moved) -> None:
        self.moves.append(event.amount)
        self.balance += event.amount


def account(snapshots: Snapshots | int | None, *bases: type) -> type:
    """Return a version of the class that takes snapshots in its own way."""

    @event_sourced(identifier="account_id", stream="account", snapshots=snapshots)
    @dataclass
    class Of(*(bases or (Account,))): ...  # type: ignore[misc]

    return Of


class Watched(MemorySnapshots):
    """Notes what is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    async def save(self, snapshot: Snapshot) -> None:
        self.taken.append(snapshot.version)
        await super().save(snapshot)


class Read(MemoryEvents):
    """Counts how many events are read of streams."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def read(self, stream: str, *, after: int = 0, limit: int | None = None, archived: bool = False) -> Any:
        events = await super().read(stream, after=after, limit=limit, archived=archived)
        self.count += len(events)
        return events


class World:
    """A store that outlives the programs that use it."""

    def __init__(self) -> None:
        self.snapshots = Watched()
        self.events = Read()

    def run(self, *handlers: Any, **given: Any) -> Any:
        services = {SnapshotStore: self.snapshots, EventStorage: self.events}
        return flow_test(handlers, services=services, **given)


async def open_and_move(flow: Flow, *amounts: int) -> None:
    await flow.send("1", to="open")
    for amount in amounts:
        await flow.send(Move("1", (amount,)))


async def test_a_snapshot_is_taken_after_so_many_events_and_only_what_came_later_is_read() -> None:
    world = World()
    async with world.run(account(3)) as flow:
        await open_and_move(flow, 1, 2, 3, 4)
        assert world.snapshots.taken == [3]

        world.events.count = 0
        assert await flow.ask("1", to="state") == ([1, 2, 3, 4], 10)
        assert world.events.count == 3  # the one of the snapshot, and two more


async def test_a_command_with_many_events_takes_one_snapshot_behind_its_last_event() -> None:
    world = World()
    async with world.run(account(3)) as flow:
        await open_and_move(flow)
        await flow.send(Move("1", tuple(range(10))))  # 2 to 11
        assert world.snapshots.taken == [11]

        await flow.send(Move("1", (10,)))  # 12 is a multiple again
        await flow.send(Move("1", (11,)))
        assert world.snapshots.taken == [11, 12]
        assert await flow.ask("1", to="state") == (list(range(12)), 66)


async def test_a_snapshot_of_a_command_that_fails_later_is_not_kept() -> None:
    @event_handler
    def refuse(event: Moved) -> None:
        if event.amount == 13:
            raise ValueError("13")

    world = World()
    async with world.run(account(2), refuse) as flow:
        await open_and_move(flow, 1)
        with pytest.raises(ValueError, match="13"):
            await flow.send(Move("1", (12, 13)))

        assert world.snapshots.taken == [2, 4]
        kept = await world.snapshots.load("account-1")
        assert kept is not None
        assert kept.version == 2
        assert await flow.ask("1", to="state") == ([1], 1)


async def test_fields_that_have_changed_make_snapshots_useless_and_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @dataclass
    class Counting(Account):
        count: int = 0

        @applies
        def moved(self, event: Moved) -> None:
            super().moved(event)
            self.count += 1

        @query_handler("count")
        def get_count(self) -> int:
            return self.count

    world = World()
    async with world.run(account(3)) as flow:
        await open_and_move(flow, 1, 2, 3)

    with caplog.at_level(logging.WARNING, "ecotone_fastapi.snapshots"):
        async with world.run(account(3, Counting)) as flow:
            assert [await flow.ask("1", to="count") for _ in range(3)] == [3] * 3
    assert len(caplog.messages) == 1
    assert "all events of account-1 are read again: its form is" in caplog.messages[0]

    async with world.run(account(3, Counting)) as newer:
        await newer.send(Move("1", (4, 5)))
        assert await newer.ask("1", to="count") == 5
    assert world.snapshots.taken == [3, 6]

    caplog.clear()
    async with world.run(account(3)) as older:  # a snapshot of a later version of the program
        assert await older.ask("1", to="state") == ([1, 2, 3, 4, 5], 15)
    assert len(caplog.messages) == 1


async def test_a_revision_says_that_events_make_something_else_of_the_same_fields() -> None:
    @dataclass
    class Doubling(Account):
        @applies
        def moved(self, event: Moved) -> None:
            self.moves.append(2 * event.amount)

    world = World()
    async with world.run(account(2)) as flow:
        await open_and_move(flow, 1, 2)

    async with world.run(account(Snapshots(every=2, revision=2), Doubling)) as flow:
        assert await flow.ask("1", to="state") == ([2, 4], 0)


async def test_a_snapshot_that_cannot_be_read_is_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with world.run(account(2)) as flow:
        await open_and_move(flow, 1, 2)
        kept = await world.snapshots.load("account-1")
        assert kept is not None
        await world.snapshots.save(replace(kept, body=b'{"account_id": '))

        assert await flow.ask("1", to="state") == ([1, 2], 3)
    assert len(caplog.messages) == 1


async def test_a_stream_that_was_deleted_and_begun_anew_is_another_one() -> None:
    world = World()
    async with world.run(account(2)) as flow:
        await open_and_move(flow, 1, 2)
        await world.events.delete("account-1")  # behind the back of the event store: the snapshot stays
        with pytest.raises(AggregateNotFoundError):
            await flow.ask("1", to="state")

        await open_and_move(flow)
        assert await flow.ask("1", to="state") == ([], 0)
        await flow.send(Move("1", (5, 6, 7)))
        assert await flow.ask("1", to="state") == ([5, 6, 7], 18)


async def test_a_snapshot_of_other_events_than_those_in_the_stream_is_left_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    async with world.run(account(2)) as flow:
        await open_and_move(flow, 1)
        kept = await world.snapshots.load("account-1")
        assert kept is not None
        await world.events.delete("account-1")
        await open_and_move(flow, 5)
        await world.snapshots.save(kept)

        assert await flow.ask("1", to="state") == ([5], 5)
    assert "it was taken of other events" in caplog.text


async def test_a_stream_that_is_deleted_takes_its_snapshot_with_it() -> None:
    world = World()
    async with world.run(account(2)) as flow:
        await open_and_move(flow, 1, 2)
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]

        assert await store.delete("account-1") == 3
        assert await world.snapshots.load("account-1") is None


async def test_a_state_that_cannot_be_written_fails_no_command(caplog: pytest.LogCaptureFixture) -> None:
    @event_sourced(identifier="account_id", stream="account", snapshots=2)
    @dataclass
    class Odd(Account):
        @applies
        def moved(self, event: Moved) -> None:
            self.moves.append("no number")  # type: ignore[arg-type]

    world = World()
    async with world.run(Odd) as flow:
        await open_and_move(flow, 1, 2)

        assert world.snapshots.taken == []
        assert await flow.ask("1", to="state") == (["no number"] * 2, 0)
    assert "no snapshot of account-1 was taken at version 2" in caplog.text


async def test_snapshots_are_taken_behind_a_channel() -> None:
    world = World()
    channels = [MemoryChannel("snapshots")]
    async with world.run(account(Snapshots(every=2, background="snapshots")), channels=channels) as flow:
        await open_and_move(flow, 1, 2)
        assert world.snapshots.taken == []
        [waiting] = await flow.waiting("snapshots")
        assert waiting.payload == b'{"stream":"account-1"}'

        assert await flow.run("snapshots") == 1
        assert world.snapshots.taken == [3]
        await flow.send(Move("1", (3,)))
        assert await flow.run("snapshots") == 1
        assert world.snapshots.taken == [3, 4]
        world.events.count = 0
        assert await flow.ask("1", to="state") == ([1, 2, 3], 6)
        assert world.events.count == 1


async def test_a_snapshot_in_the_background_of_a_stream_that_is_gone_is_none() -> None:
    world = World()
    channels = [MemoryChannel("snapshots")]
    async with world.run(account(Snapshots(every=1, background="snapshots")), channels=channels) as flow:
        await open_and_move(flow)
        await world.events.delete("account-1")
        assert await flow.run("snapshots") == 1
        assert world.snapshots.taken == []

        await open_and_move(flow)

    async with world.run(account(Snapshots(every=1, background="snapshots")), channels=channels) as flow:
        assert await flow.run("snapshots") == 1
        assert await flow.run("snapshots") == 0
        assert world.snapshots.taken == [1]


async def test_without_channels_a_test_takes_snapshots_in_line() -> None:
    world = World()
    async with world.run(account(Snapshots(every=2, background="snapshots"))) as flow:
        await open_and_move(flow, 1, 2)

        assert world.snapshots.taken == [2]


async def test_a_program_that_takes_none_any_more_leaves_what_waits() -> None:
    world, channels = World(), [MemoryChannel("snapshots")]
    in_background = Snapshots(every=1, background="snapshots")

    @event_sourced(identifier="account_id", stream="other", snapshots=in_background)
    @dataclass
    class Other(Account):
        @command_handler("other")
        def other(self) -> None: ...

    async with world.run(account(in_background), channels=channels) as flow:
        await open_and_move(flow)
    async with world.run(Other, channels=channels) as flow:
        assert await flow.run("snapshots") == 1
    assert world.snapshots.taken == []


async def test_a_converter_of_the_user_writes_and_reads_snapshots_of_a_plain_class() -> None:
    @event_sourced(identifier="account_id", stream="account", snapshots=2)
    class Plain:
        account_id = ""
        balance: "int | Nowhere" = 0  # type: ignore[name-defined]  # noqa: F821

        @classmethod
        @command_handler("open")
        def open(cls, account_id: str) -> list[Any]:
            return [Opened(account_id), Moved(5)]

        @query_handler("state")
        def get_state(self) -> int:
            return self.balance

        @applies
        def opened(self, event: Opened) -> None:
            self.account_id = event.account_id

        @applies
        def moved(self, event: Moved) -> None:
            self.balance += event.amount

    class AsText:
        content_type = "text/x-account"

        def handles(self, type_: Any) -> bool:
            return type_ is Plain

        def encode(self, value: Plain) -> bytes:
            return f"{value.account_id}|{value.balance}".encode()

        def decode(self, data: bytes, type_: Any) -> Plain:
            plain = Plain()
            plain.account_id, balance = data.decode().split("|")
            plain.balance = int(balance)
            return plain

    world = World()
    async with world.run(Plain, converters=[AsText()]) as flow:
        await flow.send("1", to="open")
        kept = await world.snapshots.load("account-1")
        assert kept is not None
        assert (kept.body, kept.content_type) == (b"1|5", "text/x-account")
        assert await flow.ask("1", to="state") == 5


async def test_plain_classes_have_snapshots_and_one_that_has_another_attribute_is_another_one() -> None:
    class Plain:
        def __init__(self) -> None:
            self.account_id = ""
            self.amounts: list[int] = []

        @classmethod
        @command_handler("open")
        def open(cls, account_id: str) -> list[Any]:
            return [Opened(account_id), Moved(5)]

        @query_handler("state")
        def get_state(self) -> Any:
            return vars(self)

        @applies
        def opened(self, event: Opened) -> None:
            self.account_id = event.account_id

        @applies
        def moved(self, event: Moved) -> None:
            self.amounts.append(event.amount)

    class Counting(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        @applies
        def moved(self, event: Moved) -> None:
            super().moved(event)
            self.count += 1

    world = World()
    sourced = event_sourced(identifier="account_id", stream="account", snapshots=2)
    async with world.run(sourced(Plain)) as flow:
        await flow.send("1", to="open")
        world.events.count = 0
        assert await flow.ask("1", to="state") == {"account_id": "1", "amounts": [5]}
        assert world.events.count == 1
    async with world.run(sourced(Counting)) as flow:
        assert await flow.ask("1", to="state") == {"account_id": "1", "amounts": [5], "count": 1}


def bill(price: Any) -> type:
    """Make a plain class that holds prices; whatever these are, its annotations read the same."""
    price.__name__ = price.__qualname__ = "Price"
    line: Any = make_dataclass("Line", [("prices", dict[str, price])])

    class Bill:
        account_id: str
        lines: list[Any]

        def __init__(self) -> None:
            self.account_id, self.lines = "", []

        @classmethod
        @command_handler("open")
        def open(cls, account_id: str) -> list[Any]:
            return [Opened(account_id), Moved(5)]

        @query_handler("state")
        def get_state(self) -> Any:
            return [line.prices["net"] for line in self.lines]

        @applies
        def opened(self, event: Opened) -> None:
            self.account_id = event.account_id

        @applies
        def moved(self, event: Moved) -> None:
            self.lines.append(line({"net": price(event.amount)}))

    Bill.__annotations__["lines"] = list[line]
    return event_sourced(identifier="account_id", stream="account", snapshots=2)(Bill)


async def test_a_new_field_deep_within_a_plain_class_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    @dataclass
    class Price:
        amount: int

    @dataclass
    class PriceInCurrency:
        amount: int
        currency: str = "EUR"

    world = World()
    with caplog.at_level(logging.WARNING, "ecotone_fastapi.snapshots"):
        async with world.run(bill(Price)) as flow:
            await flow.send("1", to="open")
        async with world.run(bill(Price)) as again:
            assert await again.ask("1", to="state") == [Price(5)]
        assert caplog.messages == []

        async with world.run(bill(PriceInCurrency)) as newer:
            assert await newer.ask("1", to="state") == [PriceInCurrency(5)]
    assert len(caplog.messages) == 1
    assert "all events of account-1 are read again: its form is" in caplog.messages[0]


async def test_a_snapshot_whose_converter_is_gone_is_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with world.run(account(2)) as flow:
        await open_and_move(flow, 1)
        kept = await world.snapshots.load("account-1")
        assert kept is not None
        await world.snapshots.save(replace(kept, content_type="application/x-sealed"))

        assert await flow.ask("1", to="state") == ([1], 1)
    assert "it is application/x-sealed, and nothing reads that any more" in caplog.text


async def test_an_event_that_cannot_be_applied_tells_which_it_is() -> None:
    @event_sourced(identifier="account_id", stream="account")
    @dataclass
    class Broken(Account):
        @applies
        def moved(self, event: Moved) -> None:
            self.balance //= event.amount

    world = World()
    async with world.run(account(None)) as flow:
        await open_and_move(flow, 1, 0)
    async with world.run(Broken) as flow:
        with pytest.raises(ZeroDivisionError) as caught:
            await flow.ask("1", to="state")
    assert "while applying 'account.moved', version 3 of 'account-1'" in caught.value.__notes__


def problem(*handlers: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Ecotone(handlers).prepare()
    return str(caught.value)


def test_what_cannot_work_is_found_at_start() -> None:
    @event_sourced(identifier="account_id", stream="account", snapshots=2)
    @dataclass
    class Locked(Account):
        lock: Lock = field(default_factory=Lock)

    assert "no snapshots of" in problem(Locked)
    assert "there is no channel 'nowhere'" in problem(account(Snapshots(background="nowhere")))
    with pytest.raises(ConfigurationError, match="every 0 events are none"):
        Snapshots(every=0)


commands = st.lists(st.lists(st.integers(-9, 9), max_size=7).map(tuple), max_size=25)


@given(commands=commands, every=st.integers(1, 6), background=st.booleans(), runs=st.sets(st.integers(0, 24)))
async def test_with_snapshots_everything_is_as_without(
    commands: Sequence[tuple[int, ...]], every: int, background: bool, runs: set[int]
) -> None:
    world, plain = World(), World()
    kept = account(Snapshots(every=every, background="snapshots" if background else None))
    channels = [MemoryChannel("snapshots")]
    async with world.run(kept, channels=channels) as flow, plain.run(account(None)) as expected:
        for one in (flow, expected):
            await open_and_move(one)
        for number, amounts in enumerate(commands):
            for one in (flow, expected):
                await one.send(Move("1", amounts))
            if background and number in runs:
                await flow.run("snapshots")
            assert await flow.ask("1", to="state") == await expected.ask("1", to="state")
        length = 1 + sum(map(len, commands))
        snapshot = await world.snapshots.load("account-1")
        if not background:
            assert (snapshot is not None) == (length >= every)
        if snapshot is not None:
            assert snapshot.version <= length
    assert plain.snapshots.taken == []


async def test_an_application_with_events_of_its_own_plugin_takes_snapshots_too() -> None:
    async with flow_test([account(1)], plugins=[EventSourcing(events=[Opened, Moved])]) as flow:
        await open_and_move(flow, 1)
        assert await flow.ask("1", to="state") == ([1], 1)
