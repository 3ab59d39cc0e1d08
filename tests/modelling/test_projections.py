"""What a projection is for its user: in memory, step by step."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import pytest

from ecotone_fastapi import (
    CommandBus,
    ConfigurationError,
    EventBus,
    EventStore,
    Message,
    MessageHeader,
    Partition,
    ProjectionError,
    Projections,
    ProjectionState,
    ProjectionVersion,
    asynchronous,
    command_handler,
    event_handler,
    message_name,
    projection,
    query_handler,
    revision,
    upcaster,
)
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryEvents
from ecotone_fastapi.core.endpoint import Kind
from ecotone_fastapi.modelling.event_sourcing import EventSourcing
from ecotone_fastapi.modelling.event_storage import EventStorage, Expected
from ecotone_fastapi.modelling.event_store import RecordedEvent
from ecotone_fastapi.modelling.projections import Emitter
from ecotone_fastapi.testing import Flow, flow_test


class WalletEvent:
    """What happens to wallets."""


@message_name("wallet.opened")
@dataclass(frozen=True)
class Opened(WalletEvent):
    wallet: str


@message_name("wallet.credited")
@dataclass(frozen=True)
class Credited(WalletEvent):
    wallet: str
    amount: int


@message_name("wallet.closed")
@dataclass(frozen=True)
class Closed(WalletEvent):
    wallet: str


@message_name("balance.changed")
@dataclass(frozen=True)
class BalanceChanged:
    wallet: str
    balance: int


class RefusedError(Exception):
    """A command changes its mind."""


class Wallets:
    """Appends what it is told; publishes it, too."""

    @command_handler("append")
    async def append(self, events: list[Any], store: EventStore, bus: EventBus) -> None:
        for event in events:
            await store.append(f"wallet-{event.wallet}", [event])
        for event in events:
            await bus.publish(event)

    @command_handler("append-and-fail")
    async def append_and_fail(self, events: list[Any], store: EventStore) -> None:
        for event in events:
            await store.append(f"wallet-{event.wallet}", [event])
        raise RefusedError


class Seen:
    """Where handlers write down what has reached them."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.notes: list[Any] = []
        self.poison: Any = None

    def take(self, event: Any) -> None:
        if event == self.poison:
            raise ValueError(f"cannot handle {event}")
        self.events.append(event)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@asynccontextmanager
async def started(seen: Seen, *handlers: Any, **options: Any) -> AsyncIterator[Flow]:
    known = EventSourcing(events=[Opened, Credited, Closed, BalanceChanged])
    async with flow_test([Wallets, *handlers], services={Seen: seen}, plugins=[known], **options) as flow:
        yield flow


async def append(flow: Flow, *events: Any, to: str = "append") -> None:
    await flow.send(list(events), to=to)


@projection("everything", categories=["wallet"])
class Everything:
    @event_handler
    async def note(self, event: WalletEvent, seen: Seen) -> None:
        seen.take(event)


@projection("at_once", categories=["wallet"], mode="synchronous")
class AtOnce:
    @event_handler
    async def note(self, event: WalletEvent, seen: Seen) -> None:
        seen.take(event)


@projection("total", categories=["wallet"])
class Total:
    @event_handler
    async def add(self, event: Credited, total: Annotated[int, ProjectionState(0)]) -> int:
        return total + event.amount

    @event_handler
    async def keep(self, event: Opened, total: Annotated[int, ProjectionState(0)]) -> None: ...

    @query_handler("total")
    async def total(self, total: Annotated[int, ProjectionState(0)]) -> int:
        return total


@projection("balance", categories=["wallet"], partitioned=True)
class Balance:
    @event_handler
    async def add(self, event: Credited, seen: Seen, balance: Annotated[int, ProjectionState(0)]) -> int:
        seen.take(event)
        return balance + event.amount


@projection("balance_at_once", categories=["wallet"], partitioned=True, mode="synchronous")
class BalanceAtOnce:
    @event_handler
    async def add(self, event: Credited, seen: Seen, balance: Annotated[int, ProjectionState(0)]) -> int:
        seen.take(event)
        return balance + event.amount


# ----------------------------------------------------------------------------------------------- which events, and when


async def test_an_asynchronous_projection_reads_the_store_when_it_runs(seen: Seen) -> None:
    async with started(seen, Everything) as flow:
        await append(flow, Opened("a"), Credited("a", 1))
        assert seen.events == []

        assert await flow.run("everything") == 2
        assert await flow.run("everything") == 0

        assert seen.events == [Opened("a"), Credited("a", 1)]


async def test_events_that_are_only_published_do_not_reach_a_projection(seen: Seen) -> None:
    async with started(seen, Everything, AtOnce) as flow:
        await flow.publish(Opened("a"))

        assert await flow.run("everything") == 0
        assert seen.events == []


async def test_a_synchronous_projection_runs_where_events_are_appended(seen: Seen) -> None:
    @event_handler(priority=100)
    async def plain(event: Opened) -> None:
        seen.events.append("published")

    async with started(seen, AtOnce, plain) as flow:
        await append(flow, Opened("a"))

        assert seen.events == [Opened("a"), "published"]


async def test_a_synchronous_projection_that_fails_fails_the_command(seen: Seen) -> None:
    async with started(seen, AtOnce) as flow:
        seen.poison = Credited("a", 13)
        with pytest.raises(ValueError, match="cannot handle"):
            await append(flow, Opened("a"), Credited("a", 13))
        store: Any = flow.ecotone.assembly.services[EventStore]

        assert await store.version("wallet-a") == 0
        assert flow.published == []


async def test_what_is_appended_outside_of_a_handler_is_one_unit_with_its_synchronous_projections(seen: Seen) -> None:
    async with started(seen, AtOnce) as flow:
        await flow.given("wallet-a", [Opened("a")])
        assert seen.events == [Opened("a")]

        seen.poison = Closed("a")
        with pytest.raises(ValueError, match="cannot handle"):
            await flow.given("wallet-a", [Credited("a", 1), Closed("a")])

        store: Any = flow.ecotone.assembly.services[EventStore]
        assert await store.version("wallet-a") == 1


async def test_events_of_other_streams_do_not_reach_a_projection(seen: Seen) -> None:
    @projection("some", streams=["wallet-b"], categories=["other"])
    class Some(Everything):
        pass

    async with started(seen, Some) as flow:
        await append(flow, Opened("a"), Opened("b"), Opened("b-c"))
        await flow.run("some")

        assert seen.events == [Opened("b")]


async def test_handlers_are_chosen_by_class_union_base_name_glob_and_in_the_order_of_priority(seen: Seen) -> None:
    @projection("choosing", categories=["wallet"])
    class Choosing:
        @event_handler
        async def by_class(self, event: Credited) -> None:
            seen.notes.append("class")

        @event_handler(priority=7)
        async def by_union(self, event: Opened | Credited) -> None:
            seen.notes.append("union")

        @event_handler("wallet.credited", priority=6)
        async def by_name(self, event: Credited) -> None:
            seen.notes.append("name")

        @event_handler("*.credited", priority=5)
        async def by_glob(self, event: Credited) -> None:
            seen.notes.append("glob")

        @event_handler(priority=4)
        async def by_base(self, event: WalletEvent) -> None:
            seen.notes.append("base")

        @event_handler("*", priority=3)
        async def everything(self, event: object) -> None:
            seen.notes.append("all")

    async with started(seen, Choosing) as flow:
        await append(flow, Credited("a", 1))
        await flow.run("choosing")
        assert seen.notes == ["union", "name", "glob", "base", "all", "class"]

        seen.notes.clear()
        await append(flow, Opened("a"))
        await flow.run("choosing")
        assert seen.notes == ["union", "base", "all"]


async def test_handlers_get_what_they_ask_for(seen: Seen) -> None:
    @projection("asking", categories=["wallet"], partitioned=True)
    class Asking:
        @event_handler
        async def note(
            self,
            event: Credited,
            *,
            recorded: RecordedEvent,
            message: Message[Any],
            tenant: Annotated[str, MessageHeader("tenant")],
            partition: Partition,
            commands: CommandBus,
        ) -> None:
            assert message.payload is event
            assert recorded.payload is event
            seen.notes.append((recorded.stream, recorded.version, tenant, partition.category, partition.identifier))
            assert recorded.position is not None
            await commands.send(event, to="note")

    @command_handler("note")
    async def note(command: Credited, headers: Message[Any]) -> None:
        seen.notes.append((headers.headers["tenant"], headers.headers["causation_id"]))

    async with started(seen, Asking, note) as flow:
        await flow.send([Credited("a-1", 5)], to="append", headers={"tenant": "acme"})
        await flow.run("asking")
        store: Any = flow.ecotone.assembly.services[EventStore]
        [event] = await store.load("wallet-a-1")

        assert seen.notes == [("wallet-a-1", 1, "acme", "wallet", "a-1"), ("acme", event.headers["id"])]


async def test_a_polling_projection_is_run_like_any_other(seen: Seen) -> None:
    @projection("polling", categories=["wallet"], mode="polling", every=0.01)
    class Polling(Everything):
        pass

    async with started(seen, Polling) as flow:
        await append(flow, Opened("a"))
        assert await flow.run("polling") == 1


# --------------------------------------------------------------------------------------------------- state and batches


async def test_what_a_handler_returns_is_the_new_state_and_none_keeps_it(seen: Seen) -> None:
    async with started(seen, Total) as flow:
        projections = flow.ecotone.projections
        assert await projections.state("total") == 0

        await append(flow, Credited("a", 2), Opened("b"), Credited("b", 3), Closed("a"))
        await flow.run("total")

        assert await projections.state("total") == 5
        assert await flow.ask(to="total") == 5


async def test_each_partition_has_a_state_of_its_own(seen: Seen) -> None:
    for cls in (Balance, BalanceAtOnce):
        async with started(seen, cls) as flow:
            await append(flow, Credited("a", 2), Credited("b", 3), Credited("a", 4))
            name = "balance" if cls is Balance else "balance_at_once"
            if cls is Balance:
                assert await flow.run(name) == 3

            assert await flow.ecotone.projections.state(name, "wallet-a") == 6
            assert await flow.ecotone.projections.state(name, "wallet-b") == 3
            assert await flow.ecotone.projections.state(name, "wallet-c") == 0


async def test_a_state_that_is_changed_in_place_is_kept_and_rolled_back_with_its_batch(seen: Seen) -> None:
    @projection("counting", categories=["wallet"], batch=2)
    class Counting:
        @event_handler
        async def count(self, event: WalletEvent, counts: Annotated[dict[str, int], ProjectionState({})]) -> None:
            name = type(event).__name__
            counts[name] = counts.get(name, 0) + 1
            seen.take(event)

    async with started(seen, Counting) as flow:
        seen.poison = Credited("a", 13)
        await append(flow, Opened("a"), Opened("b"), Opened("c"), Credited("a", 13), Closed("a"))
        await flow.run("counting", raises=False)
        assert await flow.ecotone.projections.state("counting") == {"Opened": 3}

        seen.poison = None
        await flow.ecotone.projections.retry("counting")
        await flow.run("counting")
        assert await flow.ecotone.projections.state("counting") == {"Opened": 3, "Credited": 1, "Closed": 1}


async def test_hooks_run_in_their_time(seen: Seen) -> None:
    @projection("hooked", categories=["wallet"], batch=2)
    class Hooked:
        @projection.init
        async def begin(self, seen: Seen) -> None:
            seen.notes.append("init")

        @event_handler
        async def note(self, event: WalletEvent, n: Annotated[int, ProjectionState(0)]) -> int:
            return n + 1

        @projection.flush
        async def flush(self, n: Annotated[int, ProjectionState(0)]) -> None:
            seen.notes.append(f"flush {n}")

        @projection.reset
        def clear(self) -> None:
            seen.notes.append("reset")

        @projection.delete
        async def drop(self, version: ProjectionVersion) -> None:
            seen.notes.append(f"delete {version.number}")

    @projection("plain", categories=["wallet"])
    class Plain(Hooked):
        drop = None

    async with started(seen, Plain) as flow:
        await append(flow, Opened("a"), Opened("b"), Opened("c"))
        await flow.run("plain")
        await flow.run("plain")
        assert seen.notes == ["init", "flush 3"]

        seen.notes.clear()
        await flow.ecotone.projections.rebuild("plain")
        assert seen.notes == ["reset", "flush 3"]

    seen.notes.clear()
    async with started(seen, Hooked) as flow:
        await append(flow, Opened("a"), Opened("b"), Opened("c"))
        await flow.run("hooked")
        await flow.ecotone.projections.delete("hooked")
        assert seen.notes == ["init", "flush 2", "flush 3", "delete 1"]
        assert (await flow.ecotone.projections.status("hooked")).versions == []


# ------------------------------------------------------------------------------------------------------------- failures


async def test_a_projection_stands_still_at_an_event_that_fails_and_goes_on_when_it_is_mended(seen: Seen) -> None:
    async with started(seen, Everything) as flow:
        await append(flow, Opened("a"), Credited("a", 13), Closed("a"))
        seen.poison = Credited("a", 13)

        with pytest.raises(ValueError, match="cannot handle"):
            await flow.run("everything")

        assert seen.events == [Opened("a"), Opened("a")]  # in the batch that failed, and in the smaller one
        status = (await flow.ecotone.projections.status("everything")).live
        assert status is not None
        assert status.halt is not None
        assert (status.halt.stream, status.halt.stream_version, status.halt.attempts) == ("wallet-a", 2, 1)
        assert (status.halt.error_type, status.halt.event) == ("builtins.ValueError", "wallet.credited")
        assert "cannot handle" in status.halt.traceback
        assert status.behind == 2

        seen.events.clear()
        assert await flow.run("everything") == 0  # not before its time
        await flow.advance(timedelta(seconds=2))
        assert await flow.run("everything", raises=False) == 0
        again = (await flow.ecotone.projections.status("everything")).live
        assert again is not None
        assert again.halt is not None
        assert again.halt.attempts == 2
        assert again.halt.since == status.halt.since

        seen.poison = None
        await flow.advance(timedelta(seconds=10))
        assert await flow.run("everything") == 2
        assert seen.events == [Credited("a", 13), Closed("a")]
        mended = (await flow.ecotone.projections.status("everything")).live
        assert mended is not None
        assert (mended.halt, mended.behind) == (None, 0)


async def test_a_partition_that_fails_does_not_hold_up_the_others(seen: Seen) -> None:
    async with started(seen, Balance) as flow:
        projections = flow.ecotone.projections
        await append(flow, Credited("a", 1), Credited("b", 1), Credited("a", 13), Credited("a", 2), Credited("c", 3))
        seen.poison = Credited("a", 13)

        await flow.run("balance", raises=False)
        await append(flow, Credited("b", 5))
        assert await flow.run("balance") == 1

        assert [str(error) for error in flow.failures] == [f"cannot handle {seen.poison}"]
        assert [await projections.state("balance", f"wallet-{name}") for name in "abc"] == [1, 6, 3]
        [halted] = await projections.partitions("balance", halted=True)
        assert halted.halt is not None
        assert (halted.stream, halted.position, halted.halt.stream_version) == ("wallet-a", 1, 2)
        status = (await projections.status("balance")).live
        assert status is not None
        assert status.partitions is not None
        assert (status.partitions.halted, status.behind) == (1, 2)

        seen.poison = None
        await projections.retry("balance", "wallet-a")
        assert await flow.run("balance") == 2
        assert await projections.state("balance", "wallet-a") == 16


async def test_an_event_that_nobody_knows_is_never_skipped(seen: Seen) -> None:
    class Forgetful(Everything):
        pass

    async with started(seen, Everything) as flow:
        await append(flow, Opened("a"))
        store: Any = flow.ecotone.assembly.services[EventStore]
        written = store.reader.write(store.message(Opened("b")))
        await store.storage.append("wallet-b", [_renamed(written)], expected=Expected.ANY)
        await append(flow, Opened("c"))

        await flow.run("everything", raises=False)

        assert seen.events == [Opened("a"), Opened("a")]
        status = (await flow.ecotone.projections.status("everything")).live
        assert status is not None
        assert status.halt is not None
        assert status.halt.event == "wallet.unheard"
        assert status.halt.error_type.endswith("UnknownEventError")


def _renamed(written: Any) -> Any:
    return type(written)(written.id, "wallet.unheard", written.body, written.headers_text)


async def test_a_flush_that_fails_is_tried_with_fewer_events_until_one_is_left(seen: Seen) -> None:
    @projection("flushing", categories=["wallet"])
    class Flushing(Everything):
        @projection.flush
        async def flush(self, seen: Seen) -> None:
            if seen.events[-1] == Closed("a"):
                raise ValueError("too much")

    async with started(seen, Flushing) as flow:
        await append(flow, *(Opened(str(number)) for number in range(5)), Closed("a"))
        await flow.run("flushing", raises=False)

        status = (await flow.ecotone.projections.status("flushing")).live
        assert status is not None
        assert status.halt is not None
        assert (status.halt.stream, status.behind) == ("wallet-a", 1)


# ------------------------------------------------------------------------------------------------------------- emitting


@projection("emitting", categories=["wallet"])
class Emitting:
    @event_handler
    async def add(self, event: Credited, emitter: Emitter, n: Annotated[int, ProjectionState(0)]) -> int:
        await emitter.emit(BalanceChanged(event.wallet, n + event.amount), headers={"note": "x"})
        await emitter.link("credits-all")
        return n + event.amount

    @projection.reset
    async def reset(self) -> None: ...


async def test_a_projection_emits_events_of_its_own_but_not_when_it_is_rebuilt(seen: Seen) -> None:
    @event_handler
    async def hear(event: BalanceChanged, message: Message[Any]) -> None:
        seen.notes.append((event.balance, message.headers["note"], message.headers["tenant"]))

    async with started(seen, Emitting, hear) as flow:
        store: Any = flow.ecotone.assembly.services[EventStore]
        await flow.send([Credited("a", 1), Credited("b", 2)], to="append", headers={"tenant": "acme"})
        await flow.run("emitting")
        assert seen.notes == [(1, "x", "acme"), (3, "x", "acme")]
        assert [one.payload for one in await store.load("projection-emitting")] == [
            BalanceChanged("a", 1),
            BalanceChanged("b", 3),
        ]
        assert [one.payload for one in await store.load("credits-all")] == [Credited("a", 1), Credited("b", 2)]

        seen.notes.clear()
        await flow.send([Credited("a", 4)], to="append", headers={"tenant": "acme"})
        await flow.ecotone.projections.rebuild("emitting")

        assert await flow.ecotone.projections.state("emitting") == 7
        assert seen.notes == [(7, "x", "acme")]  # what was never handled before is told
        assert await store.version("projection-emitting") == 3

        await flow.ecotone.projections.delete("emitting")
        assert await store.version("projection-emitting") == 0


async def test_a_partition_emits_to_a_stream_of_its_own(seen: Seen) -> None:
    @projection("emitting_parts", categories=["wallet"], partitioned=True)
    class Parts(Emitting):
        pass

    async with started(seen, Parts) as flow:
        store: Any = flow.ecotone.assembly.services[EventStore]
        await append(flow, Credited("a", 1), Credited("b", 2))
        await flow.run("emitting_parts")

        assert [one.payload for one in await store.load("projection-emitting_parts-wallet-b")] == [
            BalanceChanged("b", 2)
        ]
        await flow.ecotone.projections.rebuild("emitting_parts")
        assert await store.version("projection-emitting_parts-wallet-b") == 1
        await flow.ecotone.projections.delete("emitting_parts")
        assert await store.version("projection-emitting_parts-wallet-b") == 0


async def test_each_form_of_an_event_reaches_the_handlers_of_what_it_is_today(seen: Seen) -> None:
    @message_name("order.placed")
    @dataclass(frozen=True)
    class PlacedBefore:
        order: str

    @message_name("order.placed")
    @revision(2)
    @dataclass(frozen=True)
    class Placed:
        order: str
        currency: str

    @message_name("order.drafted")
    @dataclass(frozen=True)
    class Drafted:
        order: str

    @upcaster("order.placed", revision=1, to="order.drafted", to_revision=1)
    def as_draft(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    @command_handler("place before")
    async def place_before(order: str, store: EventStore) -> None:
        await store.append("order-1", [PlacedBefore(order)])

    @command_handler("place")
    async def place(order: str, store: EventStore) -> None:
        await store.append("order-1", [Placed(order, "EUR")])

    @projection("forms", categories=["order"])
    class Forms:
        @event_handler
        async def placed(self, event: Placed, seen: Seen) -> None:
            seen.take(event)

        @event_handler("order.drafted")
        async def drafted(self, event: Drafted, seen: Seen) -> None:
            seen.take(event)

    services = {Seen: seen, EventStorage: MemoryEvents()}
    async with flow_test([place_before], services=services, plugins=[EventSourcing(events=[PlacedBefore])]) as flow:
        await flow.send("a", to="place before")
    async with flow_test([place, Forms, as_draft], services=services) as flow:
        await flow.send("b", to="place")
        assert await flow.run("forms") == 2

    assert seen.events == [Drafted("a"), Placed("b", "EUR")]


async def test_a_projection_can_follow_what_another_one_emits(seen: Seen) -> None:
    @projection("following", streams=["projection-emitting"])
    class Following:
        @event_handler
        async def note(self, event: BalanceChanged, seen: Seen) -> None:
            seen.take(event)

    async with started(seen, Emitting, Following) as flow:
        await append(flow, Credited("a", 1))
        await flow.run("emitting")
        assert await flow.run("following") == 1
        assert seen.events == [BalanceChanged("a", 1)]


# ---------------------------------------------------------------------------------------------------- what goes wrong


async def test_the_state_of_what_has_none_is_refused(seen: Seen) -> None:
    async with started(seen, Everything, Balance, Total) as flow:
        projections = flow.ecotone.projections
        for refused in (
            projections.state("everything"),
            projections.state("unknown"),
            projections.state("total", version=9),
        ):
            with pytest.raises(ProjectionError):
                await refused
        for wrong in (projections.state("balance"), projections.state("total", "wallet-a")):
            with pytest.raises(ConfigurationError):
                await wrong


async def test_a_projection_is_not_rebuilt_in_a_handler(seen: Seen) -> None:
    @command_handler("rebuild")
    async def rebuild(name: str, projections: Projections) -> None:
        await projections.rebuild(name)

    async with started(seen, Total, rebuild) as flow:
        with pytest.raises(ProjectionError, match="cannot be changed in a handler"):
            await flow.send("total", to="rebuild")


def configured(**options: Any) -> type:
    @projection(**{"name": "wrong", **options})
    class Wrong:
        @event_handler
        async def note(self, event: Opened) -> None: ...

    return Wrong


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "has no source"),
        ({"categories": ["wallet-a"]}, "no stream has it"),
        ({"categories": [""]}, "no stream has it"),
        ({"streams": [" x"]}, "cannot be"),
        ({"of": Wallets}, "reads the events of Wallets"),
        ({"categories": ["wallet"], "mode": "sync"}, "has the mode 'sync'"),
        ({"categories": ["wallet"], "batch": 0}, "has batch=0"),
        ({"categories": ["wallet"], "concurrency": 0}, "has concurrency=0"),
        ({"categories": ["wallet"], "every": 0.0}, "every 0.0 seconds"),
        ({"name": "all-wallets", "categories": ["wallet"]}, "with a dash(.|\\n)*all_wallets"),
        ({"categories": ["wallet"], "revision": 0}, "has revision=0"),
        ({"categories": ["wallet"], "revision": 2}, "has revision 2"),
    ],
)
async def test_a_projection_that_cannot_be_is_refused_at_start(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        async with flow_test([configured(**options)]):
            pass


async def test_mistakes_of_methods_are_refused_at_start() -> None:
    @projection("two_states", categories=["wallet"])
    class TwoStates:
        @event_handler
        async def one(self, event: Opened, n: Annotated[int, ProjectionState(0)]) -> None: ...

        @event_handler
        async def two(self, event: Closed, n: Annotated[str, ProjectionState("")]) -> None: ...

    @projection("two_hooks", categories=["wallet"])
    class TwoHooks(Everything):
        @projection.init
        async def one(self) -> None: ...

        @projection.init
        async def two(self) -> None: ...

    @projection("no_handler", categories=["wallet"])
    class NoHandler:
        @query_handler("nothing")
        async def nothing(self) -> None: ...

    @projection("misspelt", categories=["wallet"])
    class Misspelt:
        @event_handler("wallet.opend")
        async def one(self, event: Opened) -> None: ...

    @projection("asking", categories=["wallet"], partitioned=True)
    class AskingWhich(Balance):
        @query_handler("which")
        async def which(self, n: Annotated[int, ProjectionState(0)]) -> int:
            return n

    @projection("everything", categories=["wallet"])
    class Namesake(Everything):
        pass

    for handlers, says in (
        ([TwoStates], "do not agree on its state"),
        ([TwoHooks], "two hooks for init"),
        ([NoHandler], "handles no event"),
        ([Misspelt], "did you mean 'wallet.opened'"),
        ([AskingWhich], "each partition has its own"),
        ([Everything, Namesake], "two projections are named"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            async with flow_test(handlers, services={Seen: Seen()}):
                pass


async def test_a_projection_behind_a_channel_is_refused_with_a_hint() -> None:
    @asynchronous("somewhere")
    @projection("behind", categories=["wallet"])
    class Behind(Everything):
        pass

    with pytest.raises(ConfigurationError, match='mode="asynchronous"'):
        async with flow_test([Behind], channels=[MemoryChannel("somewhere")], services={Seen: Seen()}):
            pass


async def test_what_only_projections_can_ask_for_is_refused_elsewhere() -> None:
    @command_handler("ask")
    async def ask(command: str, version: ProjectionVersion) -> None: ...

    async with flow_test([ask]) as flow:
        with pytest.raises(ConfigurationError, match="only methods of a projection"):
            await flow.send("x", to="ask")


async def test_units_of_work_of_projections_are_no_messages_of_a_bus(seen: Seen) -> None:
    async with started(seen, Everything) as flow:
        await append(flow, Opened("a"))
        await flow.run("everything")

        assert Counter(one.kind for one in flow.recorded) == {Kind.COMMAND: 1, Kind.EVENT: 1}
