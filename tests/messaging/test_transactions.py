from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDeadLetters, MemoryDelivery
from ecotone_fastapi.core.bus import CommandBus, EventBus, QueryBus
from ecotone_fastapi.core.channel import Capabilities
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.endpoint import command_handler, discover, event_handler, query_handler
from ecotone_fastapi.core.errors import ChannelError, ConversionError, LeaseLostError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.failures import Backoff, Failures
from ecotone_fastapi.messaging.transactions import UnitOfWork, Untransacted, untransacted
from ecotone_fastapi.testing.flow import Flow, flow_test


class Log(list[str]):
    """What happened, in order."""


class Database:
    """A unit of work that notes what is done with it, and covers the channels that it is told to."""

    def __init__(self, log: Log, *, covers: Sequence[str] = (), fails: bool = False) -> None:
        self.log = log
        self.fails = fails
        self.open: set[Scope] = set()
        self._covered = covers

    def install(self, assembly: Assembly) -> None:
        assembly.add_service(UnitOfWork, self)

    @asynccontextmanager
    async def _begin(self, scope: Scope) -> AsyncIterator[None]:
        assert scope not in self.open
        self.open.add(scope)
        self.log.append("begin")
        try:
            yield
        except BaseException:
            self.log.append("rollback")
            raise
        else:
            self.log.append("commit" if not self.fails else "commit fails")
            if self.fails:
                raise OSError("serialization failure")
        finally:
            self.open.discard(scope)

    def begin(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        return self._begin(scope)

    @asynccontextmanager
    async def savepoint(self, scope: Scope) -> AsyncIterator[None]:
        assert scope in self.open
        self.log.append("savepoint")
        try:
            yield
        except BaseException:
            self.log.append("rollback to savepoint")
            raise
        self.log.append("release savepoint")

    def covers(self, part: object) -> bool:
        return getattr(part, "name", None) in self._covered


class Noted(MemoryChannel):
    """A channel that notes what is sent and acked."""

    def __init__(self, name: str, log: Log, *, durable: bool = False) -> None:
        super().__init__(name)
        self.capabilities: Capabilities = replace(self.capabilities, durable=durable)
        self.log = log
        self.down = False
        self.lost = False

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        if self.down:
            raise ChannelError(f"{self.name} is down")
        self.log.append(f"send {len(messages)} to {self.name}")
        await super().send(messages)

    async def receive(self, limit: int, timeout: float) -> Sequence[MemoryDelivery]:
        deliveries = await super().receive(limit, timeout)
        for delivery in deliveries:
            delivery.ack = self._noting(delivery)  # type: ignore[method-assign]
        return deliveries

    def _noting(self, delivery: MemoryDelivery) -> Any:
        ack = delivery.ack

        async def noted() -> None:
            if self.lost:
                self.lost = False
                raise LeaseLostError("somebody else has it")
            if not delivery.settled:
                self.log.append(f"ack from {self.name}")
            await ack()

        return noted


class NotedDeadLetters(MemoryDeadLetters):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    async def park(self, parked: ParkedMessage) -> None:
        self.log.append("park")
        await super().park(parked)


@dataclass
class Placed:
    order_id: str


class Orders:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.fails = False

    @command_handler("place")
    async def place(self, order_id: str, events: EventBus) -> str:
        self.log.append("place")
        await events.publish(Placed(order_id))
        await events.publish(Placed(order_id))
        if self.fails:
            raise ValueError("no stock")
        return order_id

    @command_handler("place twice")
    async def place_twice(self, order_id: str, commands: CommandBus) -> None:
        await commands.send(order_id, to="place")
        self.log.append("between")
        await commands.send(order_id, to="place")

    @command_handler("place and fail")
    async def place_and_fail(self, order_id: str, commands: CommandBus) -> None:
        await commands.send(order_id, to="place")
        raise ValueError("outer")

    @command_handler("place and recover")
    async def place_and_recover(self, order_id: str, commands: CommandBus) -> None:
        try:
            await commands.send(order_id, to="place")
        except ValueError:
            self.log.append("recovered")

    @event_handler
    async def note(self, event: Placed) -> None:
        self.log.append("note")

    @asynchronous("memory")
    @event_handler(id="mail")
    async def mail(self, event: Placed) -> None:
        self.log.append("mail")

    @asynchronous("durable")
    @event_handler(id="ship")
    async def ship(self, event: Placed) -> None:
        self.log.append("ship")
        if self.fails:
            raise ValueError("no ship")

    @query_handler("status")
    async def status(self, order_id: str) -> str:
        self.log.append("status")
        return "placed"

    @query_handler("status after placing")
    async def status_after_placing(self, order_id: str, commands: CommandBus) -> str:
        await commands.send(order_id, to="place")
        return "placed"


@asynccontextmanager
async def started(
    log: Log, *handlers: object, covers: Sequence[str] = (), database: bool = True, fails: bool = False
) -> AsyncIterator[tuple[Flow, Noted, Noted]]:
    memory, durable = Noted("memory", log), Noted("durable", log, durable=True)
    async with flow_test(
        handlers,
        channels=[memory, durable],
        plugins=[Failures(Backoff(retries=0)), *([Database(log, covers=covers, fails=fails)] if database else [])],
        services={DeadLetterStore: NotedDeadLetters(log)},
    ) as flow:
        yield flow, memory, durable


# ------------------------------------------------------------------------------------------------------------- the unit


async def test_a_command_its_events_and_nested_commands_share_one_transaction() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, _, _):
        await flow.send("1", to="place twice")

    assert [entry for entry in log if "savepoint" not in entry] == [
        "begin",
        *["place", "note", "note", "between", "place", "note", "note"],
        "send 4 to durable",
        "commit",
        "send 4 to memory",
    ]
    assert log.count("savepoint") == log.count("release savepoint") == 2


async def test_a_query_opens_no_transaction() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, _, _):
        assert await flow.ask("1", to="status") == "placed"

    assert log == ["status"]


async def test_a_command_that_is_sent_by_a_query_opens_one_all_the_same() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, _, _):
        await flow.ask("1", to="status after placing")

    assert log[0] == "begin"
    assert log[-2:] == ["commit", "send 2 to memory"]


async def test_each_root_message_has_a_transaction_of_its_own() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, _, _):
        await flow.send("1", to="place")
        await flow.send("2", to="place")

    assert log.count("begin") == log.count("commit") == 2


async def test_an_event_that_is_published_outside_of_any_handler_opens_one_for_all_its_handlers() -> None:
    log = Log()

    class Two:
        @event_handler("happened")
        async def one(self, payload: str) -> None:
            log.append("one")

        @event_handler("happened")
        async def two(self, payload: str) -> None:
            log.append("two")

    async with started(log, Orders(log), Two) as (flow, _, _):
        await flow.publish("1", to="happened")

    assert log == ["begin", "one", "two", "commit"]


async def test_an_event_for_asynchronous_handlers_only_leaves_at_once_and_without_a_transaction() -> None:
    log = Log()

    class Mail:
        @asynchronous("memory")
        @event_handler("happened", id="happened")
        async def mail(self, payload: str) -> None: ...

        @asynchronous("durable")
        @event_handler("happened", id="happened too")
        async def other(self, payload: str) -> None: ...

    async with started(log, Orders(log), Mail) as (flow, _, _):
        await flow.publish("1", to="happened")

    assert log == ["send 1 to memory", "send 1 to durable"]


# ---------------------------------------------------------------------------------------------------- outgoing messages


async def test_what_is_sent_waits_until_the_handler_and_all_synchronous_handlers_have_succeeded() -> None:
    log = Log()

    async with started(log, Orders(log), database=False) as (flow, memory, durable):
        await flow.send("1", to="place")

        assert log == ["place", "note", "note", "send 2 to durable", "send 2 to memory"]
        assert (await memory.depth(), await durable.depth()) == (2, 2)


@pytest.mark.parametrize("database", [True, False])
async def test_a_handler_that_fails_sends_nothing(database: bool) -> None:
    log = Log()
    orders = Orders(log)
    orders.fails = True

    async with started(log, orders, database=database) as (flow, memory, durable):
        with pytest.raises(ValueError, match="no stock"):
            await flow.send("1", to="place")

        assert (await memory.depth(), await durable.depth()) == (0, 0)
    assert log == [*["begin"] * database, "place", "note", "note", *["rollback"] * database]


async def test_an_outer_failure_takes_back_what_succeeded_inside() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, _, _):
        with pytest.raises(ValueError, match="outer"):
            await flow.send("1", to="place and fail")

    assert log == ["begin", "savepoint", "place", "note", "note", "release savepoint", "rollback"]


async def test_a_synchronous_event_handler_that_fails_takes_everything_back() -> None:
    log = Log()

    class Strict:
        @event_handler(priority=-1)
        async def refuse(self, event: Placed) -> None:
            raise ValueError("refused")

    async with started(log, Orders(log), Strict) as (flow, _, _):
        with pytest.raises(ValueError, match="refused"):
            await flow.send("1", to="place")

    assert log == ["begin", "place", "note", "rollback"]


async def test_a_commit_that_fails_sends_nothing_to_channels_in_memory() -> None:
    log = Log()

    async with started(log, Orders(log), fails=True) as (flow, memory, _):
        with pytest.raises(OSError, match="serialization failure"):
            await flow.send("1", to="place")

        assert await memory.depth() == 0
    assert log[-2:] == ["send 2 to durable", "commit fails"]


async def test_a_durable_channel_that_takes_nothing_rolls_back() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, memory, durable):
        durable.down = True
        with pytest.raises(ChannelError, match="durable is down"):
            await flow.send("1", to="place")

        assert await memory.depth() == 0
    assert log[-1] == "rollback"


async def test_a_message_that_cannot_be_written_fails_before_any_other_is_sent() -> None:
    log = Log()

    class Careless:
        @command_handler("careless")
        async def careless(self, payload: str, events: EventBus) -> None:
            await events.publish(Placed("1"))
            await events.publish(Placed(object()))  # type: ignore[arg-type]

    async with started(log, Orders(log), Careless) as (flow, memory, durable):
        with pytest.raises(ConversionError, match="cannot be written as JSON"):
            await flow.send("1", to="careless")

        assert (await memory.depth(), await durable.depth()) == (0, 0)
    assert log[-1] == "rollback"


async def test_a_dependency_may_still_send_while_it_is_torn_down() -> None:
    log = Log()

    class Late:
        @command_handler("late")
        async def late(self, payload: str, events: EventBus) -> None:
            scope = current_scope()
            assert scope is not None

            async def leave(*_: object) -> None:
                log.append("teardown")
                await events.publish(Placed("1"))

            scope.exits.append((leave, "session"))
            log.append("handled")

    async with started(log, Orders(log), Late) as (flow, _, _):
        await flow.send("1", to="late")

    assert log == ["begin", "handled", "teardown", "note", "send 1 to durable", "commit", "send 1 to memory"]


async def test_channels_get_their_messages_in_the_order_of_their_first_ones() -> None:
    log = Log()

    class Many:
        @asynchronous("one")
        @event_handler("one", id="one")
        async def one(self, payload: str) -> None: ...

        @asynchronous("two")
        @event_handler("two", id="two")
        async def two(self, payload: str) -> None: ...

        @command_handler("many")
        async def many(self, payload: str, events: EventBus) -> None:
            for key in ("two", "one", "two", "one", "one"):
                await events.publish(payload, to=key)

    async with flow_test([Many], channels=[Noted("one", log), Noted("two", log)]) as flow:
        await flow.send("1", to="many")

    assert log == ["send 2 to two", "send 3 to one"]


# -------------------------------------------------------------------------------------------------------- in a consumer


async def test_on_the_same_database_a_message_is_acked_in_the_transaction_of_its_handler() -> None:
    log = Log()

    async with started(log, Orders(log), covers=["durable"]) as (flow, _, durable):
        await flow.publish(Placed("1"))
        log.clear()
        assert await flow.run("durable") == 1

        assert await durable.depth() == 0
    assert log == ["begin", "ship", "ack from durable", "commit"]


async def test_on_another_server_it_is_acked_after_the_commit() -> None:
    log = Log()

    async with started(log, Orders(log)) as (flow, _, _):
        await flow.publish(Placed("1"))
        log.clear()
        await flow.run("durable")

    assert log == ["begin", "ship", "commit", "ack from durable"]


async def test_a_handler_whose_lease_was_lost_is_rolled_back() -> None:
    log = Log()

    async with started(log, Orders(log), covers=["durable"]) as (flow, _, durable):
        await flow.publish(Placed("1"))
        log.clear()
        durable.lost = True
        assert await flow.run("durable", raises=False) == 1

    assert [type(error) for error in flow.failures] == [LeaseLostError]
    assert log == ["begin", "ship", "rollback", "begin", "ship", "ack from durable", "commit"]


async def test_a_message_that_is_only_passed_on_opens_no_transaction() -> None:
    log = Log()

    class Chained:
        @asynchronous("durable", "memory")
        @event_handler("chained", id="chained")
        async def chained(self, payload: str) -> None:
            log.append("chained")

    async with started(log, Orders(log), Chained, covers=["durable"]) as (flow, _, _):
        await flow.publish("1", to="chained")
        await flow.run("durable")
        await flow.run("memory")

    assert log == [
        "send 1 to durable",
        "send 1 to memory",
        "ack from durable",
        "begin",
        "chained",
        "commit",
        "ack from memory",
    ]


async def test_a_message_of_the_same_database_is_parked_and_acked_in_one_transaction() -> None:
    log = Log()
    orders = Orders(log)
    orders.fails = True

    async with started(log, orders, covers=["durable"]) as (flow, _, _):
        await flow.publish(Placed("1"))
        log.clear()
        await flow.run("durable", raises=False)

    assert log == ["begin", "ship", "rollback", "begin", "park", "ack from durable", "commit"]


async def test_a_message_of_another_server_is_parked_first_and_acked_second() -> None:
    log = Log()
    orders = Orders(log)
    orders.fails = True

    async with started(log, orders) as (flow, _, _):
        await flow.publish(Placed("1"))
        log.clear()
        await flow.run("durable", raises=False)

    assert log == ["begin", "ship", "rollback", "begin", "park", "commit", "ack from durable"]


# --------------------------------------------------------------------------------------------------------- untransacted


class Bank:
    def __init__(self, log: Log) -> None:
        self.log = log

    @untransacted
    @command_handler("pay")
    async def pay(self, payload: str, events: EventBus) -> None:
        self.log.append("pay")
        await events.publish(payload, to="paid")
        self.log.append("paid")

    @untransacted(holding=False)
    @command_handler("pay at once")
    async def pay_at_once(self, payload: str, events: EventBus) -> None:
        await events.publish(payload, to="paid")
        self.log.append("paid")

    @untransacted(holding=False)
    @command_handler("pay and place")
    async def pay_and_place(self, payload: str, events: EventBus, commands: CommandBus) -> None:
        await events.publish(payload, to="paid")
        await commands.send(payload, to="place")
        self.log.append("paid")

    @untransacted
    @command_handler("pay, hold and place")
    async def pay_hold_and_place(self, payload: str, events: EventBus, commands: CommandBus) -> None:
        await events.publish(payload, to="paid")
        await commands.send(payload, to="place")

    @untransacted
    @asynchronous("durable")
    @event_handler("paid", id="tell")
    async def tell(self, payload: str, commands: CommandBus) -> None:
        self.log.append("tell")


async def test_an_untransacted_handler_has_no_transaction_but_its_messages_wait() -> None:
    log = Log()

    async with started(log, Bank(log), Orders(log)) as (flow, _, _):
        await flow.send("1", to="pay")

    assert log == ["pay", "paid", "send 1 to durable"]


async def test_an_untransacted_handler_may_let_its_messages_leave_at_once() -> None:
    log = Log()

    async with started(log, Bank(log), Orders(log)) as (flow, _, _):
        await flow.send("1", to="pay at once")

    assert log == ["send 1 to durable", "paid"]


async def test_an_untransacted_handler_of_a_message_acks_after_it() -> None:
    log = Log()

    async with started(log, Bank(log), Orders(log), covers=["durable"]) as (flow, _, _):
        await flow.publish("1", to="paid")
        log.clear()
        await flow.run("durable")

    assert log == ["tell", "ack from durable"]


async def test_a_command_inside_an_untransacted_handler_has_a_transaction_and_its_messages_commit_with_it() -> None:
    log = Log()

    async with started(log, Bank(log), Orders(log)) as (flow, _, _):
        await flow.send("1", to="pay and place")

    assert log == [
        "send 1 to durable",
        *["begin", "savepoint", "place", "note", "note", "release savepoint", "paid", "send 2 to durable", "commit"],
        "send 2 to memory",
    ]


async def test_what_an_untransacted_handler_holds_leaves_after_the_transaction_inside_of_it() -> None:
    log = Log()

    async with started(log, Bank(log), Orders(log)) as (flow, _, _):
        await flow.send("1", to="pay, hold and place")

    assert log == [
        *["begin", "savepoint", "place", "note", "note", "release savepoint", "send 2 to durable", "commit"],
        "send 1 to durable",
        "send 2 to memory",
    ]


async def test_an_untransacted_handler_inside_a_transaction_is_part_of_it() -> None:
    log = Log()

    class Both:
        @command_handler("both")
        async def both(self, payload: str, commands: CommandBus) -> None:
            await commands.send(payload, to="pay")

    async with started(log, Bank(log), Orders(log), Both) as (flow, _, _):
        await flow.send("1", to="both")

    assert log == ["begin", "pay", "paid", "send 1 to durable", "commit"]


def test_a_whole_class_may_be_untransacted() -> None:
    @untransacted
    class Calls:
        @command_handler("call")
        async def call(self, payload: str) -> None: ...

    [endpoint] = discover([Calls]).endpoints

    assert endpoint.find(Untransacted) == Untransacted(holding=True)


async def test_asking_inside_a_transaction_joins_it() -> None:
    log = Log()

    class Asking:
        @command_handler("asking")
        async def asking(self, payload: str, queries: QueryBus) -> str:
            return str(await queries.ask(payload, to="status"))

    async with started(log, Orders(log), Asking) as (flow, _, _):
        assert await flow.send("1", to="asking") == "placed"

    assert log == ["begin", "status", "commit"]


async def test_of_a_failure_that_a_handler_has_recovered_from_nothing_is_left_and_the_rest_commits() -> None:
    log = Log()
    orders = Orders(log)
    orders.fails = True

    async with started(log, orders) as (flow, memory, _):
        await flow.send("1", to="place and recover")

        assert await memory.depth() == 0
    assert log[-3:] == ["rollback to savepoint", "recovered", "commit"]
