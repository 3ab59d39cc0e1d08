from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.bus import CommandBus, EventBus
from ecotone_fastapi.core.endpoint import command_handler, event_handler, query_handler
from ecotone_fastapi.core.errors import ChannelError, ConcurrencyError, ConfigurationError, LeaseLostError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.policies import Backoff, DeadLetter
from ecotone_fastapi.messaging.retries import InstantRetries, PassingErrors, Retried, retried
from ecotone_fastapi.messaging.transactions import UnitOfWork, untransacted
from ecotone_fastapi.testing.flow import flow_test
from tests.adapters.test_sqlalchemy import Account, Base


class CollisionError(Exception):
    """What a database says of a transaction that has met another one."""


class Database:
    """A unit of work that notes what is done with it, and fails as often as it is told when it commits."""

    def __init__(self, *commits_that_fail: Exception) -> None:
        self.log: list[str] = []
        self._failures = list(commits_that_fail)

    def install(self, assembly: Assembly) -> None:
        assembly.add_service(UnitOfWork, self)
        assembly.add_service(PassingErrors, self)

    def is_passing(self, error: Exception) -> bool:
        return isinstance(error, CollisionError)

    @asynccontextmanager
    async def _begin(self, scope: Scope) -> AsyncIterator[None]:
        self.log.append("begin")
        try:
            yield
            if self._failures:
                raise self._failures.pop(0)
        except BaseException:
            self.log.append("rollback")
            raise
        self.log.append("commit")

    def begin(self, scope: Scope) -> AbstractAsyncContextManager[None]:
        return self._begin(scope)

    @asynccontextmanager
    async def savepoint(self, scope: Scope) -> AsyncIterator[None]:
        yield

    def covers(self, part: object) -> bool:
        return False


class Failing:
    """Fails as often as it is told, and notes how often it was called."""

    def __init__(self, times: int, error: Callable[[], Exception] = CollisionError) -> None:
        self.runs = 0
        self._times = times
        self._error = error

    def __call__(self) -> int:
        self.runs += 1
        if self.runs <= self._times:
            raise self._error()
        return self.runs


# ------------------------------------------------------------------------------------------------ what is worth another


async def test_a_collision_is_tried_again_in_a_transaction_and_with_dependencies_of_its_own() -> None:
    database, work, made = Database(), Failing(2), []

    async def resource() -> AsyncIterator[object]:
        made.append(object())
        yield made[-1]
        database.log.append("closed")

    @command_handler("work")
    async def handle(payload: str, it: Annotated[object, Depends(resource)], message: Message[Any]) -> str:
        return f"{payload} {work()} {made.index(it)} {message.id}"

    async with flow_test([handle], plugins=[database]) as flow:
        assert await flow.send("x", to="work", headers={"id": "my-id"}) == "x 3 2 my-id"
        assert len(flow.commands) == 1

    assert database.log == ["begin", "rollback"] * 2 + ["begin", "closed", "commit"]


async def test_a_commit_that_collides_is_tried_again() -> None:
    database, work = Database(CollisionError()), Failing(0)

    @command_handler("work")
    async def handle(payload: str) -> int:
        return work()

    async with flow_test([handle], plugins=[database]) as flow:
        assert await flow.send("x", to="work") == 2

    assert database.log == ["begin", "rollback", "begin", "commit"]


async def test_somebody_who_saved_first_is_no_reason_to_give_up() -> None:
    work = Failing(3, lambda: ConcurrencyError("version 2 is there already"))

    @command_handler("work")
    async def handle(payload: str) -> int:
        return work()

    async with flow_test([handle], plugins=[Database()]) as flow:
        assert await flow.send("x", to="work") == 4


async def test_it_ends_after_three_more_runs_and_the_error_tells_so() -> None:
    work = Failing(99)

    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    async with flow_test([handle], plugins=[Database()]) as flow:
        with pytest.raises(CollisionError) as raised:
            await flow.send("x", to="work")

    assert work.runs == 4
    assert "it was run 4 times in a row" in raised.value.__notes__


async def test_any_other_error_is_raised_at_once() -> None:
    work = Failing(1, OSError)

    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    async with flow_test([handle], plugins=[Database()]) as flow:
        with pytest.raises(OSError) as raised:  # noqa: PT011
            await flow.send("x", to="work")

    assert work.runs == 1
    assert not any("in a row" in note for note in raised.value.__notes__)


async def test_a_query_is_asked_again() -> None:
    work = Failing(1)

    @query_handler("work")
    async def handle(payload: str) -> int:
        return work()

    async with flow_test([handle], plugins=[Database()]) as flow:
        assert await flow.ask("x", to="work") == 2


async def test_a_lock_that_was_waited_for_for_long_is_not_waited_for_again() -> None:
    work = Failing(1)

    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    async with flow_test([handle], plugins=[Database(), InstantRetries(patience=0.0)]) as flow:
        with pytest.raises(CollisionError):
            await flow.send("x", to="work")


async def test_it_can_be_turned_off_for_a_handler_or_for_all() -> None:
    work, other = Failing(1), Failing(1)

    @retried(times=0)
    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    @command_handler("other")
    async def handle_other(payload: str) -> None:
        other()

    async with flow_test([handle], plugins=[Database()]) as flow:
        with pytest.raises(CollisionError):
            await flow.send("x", to="work")
    async with flow_test([handle_other], plugins=[Database(), InstantRetries(passing=0)]) as flow:
        with pytest.raises(CollisionError):
            await flow.send("x", to="other")
        assert flow.ecotone.prepare().around(Stage.RECEIVE)[-1].order != Order.RETRY


async def test_nothing_stands_in_the_way_where_nothing_can_be_retried() -> None:
    @command_handler("work")
    async def handle(payload: str) -> None: ...

    async with flow_test([handle]) as flow:
        gateway = flow.ecotone.prepare()
        assert [around.order for around in gateway.around(Stage.DISPATCH)] == [Order.TRACING]


# ------------------------------------------------------------------------------------------------------------ the mark


async def test_a_mark_names_the_errors_after_which_a_handler_is_run_again() -> None:
    work = Failing(2, TimeoutError)

    @retried(times=2, on=(TimeoutError, ConnectionError))
    @command_handler("work")
    async def handle(payload: str) -> int:
        return work()

    async with flow_test([handle]) as flow:
        assert await flow.send("x", to="work") == 3


async def test_a_mark_without_anything_means_three_runs_more_after_any_error() -> None:
    work = Failing(99, ZeroDivisionError)

    @retried
    class Handlers:
        @command_handler("work")
        async def handle(self, payload: str) -> None:
            work()

    async with flow_test([Handlers]) as flow:
        with pytest.raises(ZeroDivisionError):
            await flow.send("x", to="work")

    assert work.runs == 4


async def test_what_a_mark_does_not_name_is_decided_by_the_bus_and_then_by_the_database() -> None:
    errors: list[Exception] = [TimeoutError(), OSError(), CollisionError(), KeyError()]
    runs: list[Exception] = []

    @retried(times=5, on=TimeoutError)
    @command_handler("work")
    async def handle(payload: str) -> None:
        runs.append(errors[len(runs)])
        raise runs[-1]

    plugins = [Database(), InstantRetries(commands=Retried(5, on=OSError), passing=5)]
    async with flow_test([handle], plugins=plugins) as flow:
        with pytest.raises(KeyError):
            await flow.send("x", to="work")

    assert runs == errors


async def test_a_bus_and_a_channel_have_defaults_of_their_own() -> None:
    work = {name: Failing(1, OSError) for name in ("command", "query", "orders", "mail", "event")}

    @command_handler("command")
    async def command(payload: str) -> int:
        return work["command"]()

    @query_handler("query")
    async def query(payload: str) -> int:
        return work["query"]()

    @event_handler("event")
    async def event(payload: str) -> int:
        return work["event"]()

    @asynchronous("orders")
    @command_handler("orders", id="orders")
    async def orders(payload: str) -> int:
        return work["orders"]()

    @asynchronous("mail")
    @command_handler("mail", id="mail")
    async def mail(payload: str) -> int:
        return work["mail"]()

    retries = InstantRetries(commands=Retried(), queries=Retried(), channels={"*": Retried(), "mail": Retried(0)})
    handlers = [command, query, event, orders, mail]
    channels = [MemoryChannel("orders"), MemoryChannel("mail")]
    async with flow_test(handlers, channels=channels, plugins=[retries, Failures(DeadLetter())]) as flow:
        assert await flow.send("x", to="command") == 2
        assert await flow.ask("x", to="query") == 2
        with pytest.raises(OSError):  # noqa: PT011
            await flow.publish("x", to="event")
        await flow.send("x", to="orders")
        await flow.send("x", to="mail")
        assert await flow.run("orders") == 1
        assert await flow.run("mail", raises=False) == 0

    assert {name: one.runs for name, one in work.items()} == {
        "command": 2, "query": 2, "orders": 2, "mail": 1, "event": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("times", "on"), [(-1, OSError), (1, "OSError"), (1, ()), (1, (OSError, 1)), (1, BaseException)]
)
def test_a_mark_that_means_nothing_is_refused(times: int, on: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no retry"):
        retried(times=times, on=on)


def test_the_plugin_tells_how_it_was_set_up() -> None:
    assert repr(InstantRetries()) == "InstantRetries(passing=3)"
    assert "channels={'mail': Retried(" in repr(InstantRetries(channels={"mail": Retried()}))


# ------------------------------------------------------------------------------------ only whole units, and only theirs


async def test_a_nested_message_fails_with_the_one_that_is_being_handled_and_both_are_run_again() -> None:
    database, inner, outer = Database(), Failing(1), Failing(0)

    @retried(times=99, on=CollisionError)
    @command_handler("inner")
    async def handle_inner(payload: str) -> None:
        inner()

    @command_handler("outer")
    async def handle_outer(payload: str, commands: CommandBus) -> None:
        outer()
        await commands.send("x", to="inner")

    async with flow_test([handle_inner, handle_outer], plugins=[database]) as flow:
        await flow.send("x", to="outer")

    assert (inner.runs, outer.runs) == (2, 2)
    assert database.log == ["begin", "rollback", "begin", "commit"]


async def test_the_mark_of_a_nested_handler_has_no_effect() -> None:
    inner = Failing(1, TimeoutError)

    @retried(on=TimeoutError)
    @command_handler("inner")
    async def handle_inner(payload: str) -> None:
        inner()

    @command_handler("outer")
    async def handle_outer(payload: str, commands: CommandBus) -> None:
        await commands.send("x", to="inner")

    async with flow_test([handle_inner, handle_outer]) as flow:
        with pytest.raises(TimeoutError):
            await flow.send("x", to="outer")

    assert inner.runs == 1


async def test_what_was_sent_by_a_run_that_failed_never_leaves() -> None:
    work = Failing(2)

    @asynchronous("mail")
    @event_handler("sent", id="mail")
    async def mail(payload: str) -> None: ...

    @command_handler("work")
    async def handle(payload: str, events: EventBus) -> None:
        await events.publish("x", to="sent")
        work()

    async with flow_test([mail, handle], channels=[MemoryChannel("mail")], plugins=[Database()]) as flow:
        await flow.send("x", to="work")
        assert len(await flow.waiting("mail")) == 1


async def test_a_transaction_that_the_caller_owns_is_not_begun_again() -> None:
    work = Failing(1)

    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    async with flow_test([handle], plugins=[Database()]) as flow:
        shared = CommandBus(flow.ecotone.prepare(), shared={"session": object()})
        with pytest.raises(CollisionError):
            await shared.send("x", to="work")

    assert work.runs == 1


async def test_a_handler_without_a_transaction_is_run_again_only_when_it_says_so() -> None:
    work, told = Failing(1), Failing(1)

    @untransacted
    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    @untransacted
    @retried(on=CollisionError)
    @command_handler("told")
    async def handle_told(payload: str) -> None:
        told()

    async with flow_test([handle, handle_told], plugins=[Database()]) as flow:
        with pytest.raises(CollisionError):
            await flow.send("x", to="work")
        await flow.send("x", to="told")

    assert (work.runs, told.runs) == (1, 2)


async def test_what_has_committed_is_not_run_again_whatever_fails_then() -> None:
    work = Failing(0)

    class Broken(MemoryChannel):
        async def send(self, messages: object) -> None:
            raise ChannelError("full")

    @asynchronous("mail")
    @event_handler("sent", id="mail")
    async def mail(payload: str) -> None: ...

    @retried
    @command_handler("work")
    async def handle(payload: str, events: EventBus) -> None:
        work()
        await events.publish("x", to="sent")

    database = Database()
    async with flow_test([mail, handle], channels=[Broken("mail")], plugins=[database]) as flow:
        with pytest.raises(ChannelError, match="full"):
            await flow.send("x", to="work")

    assert database.log == ["begin", "commit"]
    assert work.runs == 1


async def test_all_handlers_of_an_event_are_one_unit_and_are_run_again_together() -> None:
    first, second = Failing(0), Failing(1)

    @event_handler("placed", id="first", priority=2)
    async def handle_first(payload: str) -> None:
        first()

    @event_handler("placed", id="second")
    async def handle_second(payload: str) -> None:
        second()

    database = Database()
    async with flow_test([handle_first, handle_second], plugins=[database]) as flow:
        await flow.publish("x", to="placed")

    assert (first.runs, second.runs) == (2, 2)
    assert database.log == ["begin", "rollback", "begin", "commit"]


async def test_an_event_of_which_a_copy_has_left_already_is_not_published_again() -> None:
    second = Failing(1)

    @asynchronous("mail")
    @event_handler("placed", id="first", priority=2)
    async def handle_first(payload: str) -> None: ...

    @event_handler("placed", id="second")
    async def handle_second(payload: str) -> None:
        second()

    handlers = [handle_first, handle_second]
    async with flow_test(handlers, channels=[MemoryChannel("mail")], plugins=[Database()]) as flow:
        with pytest.raises(CollisionError):
            await flow.publish("x", to="placed")
        assert len(await flow.waiting("mail")) == 1

    assert second.runs == 1


async def test_interceptors_of_each_run_see_a_scope_of_their_own() -> None:
    scopes: list[Scope] = []
    work = Failing(1)

    class Looking:
        def install(self, assembly: Assembly) -> None:
            async def look(call: Call, proceed: Proceed) -> Any:
                scopes.append(call.scope)
                return await proceed(call)

            assembly.add_interceptor(look, stage=Stage.DISPATCH)

    @command_handler("work")
    async def handle(payload: str) -> None:
        work()

    async with flow_test([handle], plugins=[Looking(), Database()]) as flow:
        await flow.send("x", to="work")

    assert len({id(scope) for scope in scopes}) == 2
    assert all(scope.closed for scope in scopes)


# --------------------------------------------------------------------------------------------------------- in consumers


@dataclass
class Consumed:
    """An asynchronous handler behind a retry."""

    work: Failing

    @retried(times=1, on=(TimeoutError, LeaseLostError))
    @asynchronous("orders")
    @command_handler("order", id="order")
    async def order(self, payload: str, message: Message[Any]) -> None:
        assert "attempt" not in message.headers or self.work.runs >= 2
        self.work()


async def test_runs_in_a_row_are_one_attempt_and_one_failure() -> None:
    consumed = Consumed(Failing(3, TimeoutError))

    plugins = [Failures(Backoff(retries=1, first=0.0))]
    async with flow_test([consumed], channels=[MemoryChannel("orders")], plugins=plugins) as flow:
        await flow.send("x", to="order")
        assert await flow.run("orders", raises=False) == 1
        assert len(flow.failures) == 1

    assert consumed.work.runs == 4


async def test_the_dead_letter_counts_attempts_not_runs() -> None:
    consumed = Consumed(Failing(99, TimeoutError))

    plugins = [Failures(Backoff(retries=1, first=0.0))]
    async with flow_test([consumed], channels=[MemoryChannel("orders")], plugins=plugins) as flow:
        await flow.send("x", to="order")
        await flow.run("orders", raises=False)
        [parked] = await flow.dead_letters()

    assert (consumed.work.runs, parked.attempts, parked.deliveries) == (4, 2, 2)
    assert "it was run 2 times in a row" in parked.traceback


async def test_a_message_that_somebody_else_has_now_is_not_run_again_here() -> None:
    consumed = Consumed(Failing(1, lambda: LeaseLostError("gone")))

    async with flow_test([consumed], channels=[MemoryChannel("orders")]) as flow:
        await flow.send("x", to="order")
        before = consumed.work.runs
        await flow.run("orders", raises=False)

    assert (before, consumed.work.runs) == (0, 2)
    assert len(flow.failures) == 1


async def test_a_message_that_was_settled_before_it_failed_is_not_run_again() -> None:
    class Settling:
        def install(self, assembly: Assembly) -> None:
            async def settle(call: Call, proceed: Proceed) -> Any:
                assert call.delivery is not None
                await call.delivery.ack()
                return await proceed(call)

            assembly.add_interceptor(settle, stage=Stage.RECEIVE)

    consumed = Consumed(Failing(1, TimeoutError))

    async with flow_test([consumed], channels=[MemoryChannel("orders")], plugins=[Settling()]) as flow:
        await flow.send("x", to="order")
        await flow.run("orders", raises=False)

    assert consumed.work.runs == 1


# ------------------------------------------------------------------------------------------------------ real collisions


@pytest.fixture
async def bank(postgresql_url: str) -> AsyncIterator[str]:
    """A database with two accounts."""
    engine = create_async_engine(postgresql_url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(Account.__table__.insert(), [{"name": name, "balance": 100} for name in ("a", "b")])
    yield postgresql_url
    await engine.dispose()


@dataclass(frozen=True)
class Transfer:
    source: str
    target: str


class Transfers:
    """Two transfers in opposite directions, each with one account in hand when it wants the other's."""

    def __init__(self) -> None:
        self.runs = 0
        self.both = anyio.Event()

    async def meet(self) -> None:
        self.runs += 1
        if self.runs >= 2:
            self.both.set()
        await self.both.wait()

    async def transfer(self, command: Transfer, session: AsyncSession) -> None:
        await session.execute(update(Account).where(Account.name == command.source).values(balance=Account.balance - 1))
        await self.meet()
        await session.execute(update(Account).where(Account.name == command.target).values(balance=Account.balance + 1))

    @command_handler
    async def at_once(self, command: Transfer, session: AsyncSession) -> None:
        await self.transfer(command, session)

    @asynchronous("transfers")
    @command_handler("later", id="later")
    async def later(self, command: Transfer, session: AsyncSession) -> None:
        await self.transfer(command, session)


async def together(*calls: Callable[[], Awaitable[object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(call)


@pytest.mark.postgresql
async def test_the_victim_of_a_deadlock_is_run_again_on_a_bus(bank: str) -> None:
    transfers, database = Transfers(), SqlAlchemy(bank, create_schema=True)

    channels = [database.channel("transfers")]
    async with flow_test([transfers], channels=channels, plugins=[database]) as flow:
        await together(lambda: flow.send(Transfer("a", "b")), lambda: flow.send(Transfer("b", "a")))
        async with database.sessionmaker() as session:
            balances = (await session.scalars(select(Account.balance))).all()

    assert balances == [100, 100]
    assert transfers.runs == 3


@pytest.mark.postgresql
async def test_the_victim_of_a_deadlock_is_run_again_in_a_consumer(bank: str) -> None:
    from ecotone_fastapi import AsynchronousHandlers, ConsumerSettings

    transfers, database = Transfers(), SqlAlchemy(bank, create_schema=True)
    concurrent = AsynchronousHandlers({"*": ConsumerSettings(concurrency=2)})

    channels = [database.channel("transfers")]
    async with flow_test([transfers], channels=channels, plugins=[database, concurrent]) as flow:
        for command in (Transfer("a", "b"), Transfer("b", "a")):
            await flow.send(command, to="later")
        assert await flow.run("transfers") == 2
        assert flow.failures == []

    assert transfers.runs == 3


@pytest.mark.postgresql
async def test_a_serialization_failure_is_tried_again(bank: str) -> None:
    transfers = Transfers()
    engine = create_async_engine(bank, isolation_level="SERIALIZABLE")
    database = SqlAlchemy(engine, create_schema=True)

    @command_handler("deposit")
    async def deposit(amount: int, session: AsyncSession) -> None:
        balance = await session.scalar(select(Account.balance).where(Account.name == "a"))
        await transfers.meet()
        await session.execute(update(Account).where(Account.name == "a").values(balance=balance + amount))

    async with flow_test([deposit], plugins=[database]) as flow:
        await together(lambda: flow.send(1, to="deposit"), lambda: flow.send(2, to="deposit"))
        async with database.sessionmaker() as session:
            assert await session.scalar(select(Account.balance).where(Account.name == "a")) == 103
    await engine.dispose()

    assert transfers.runs == 3


async def test_a_mark_counts_for_what_only_the_commit_finds_out(sqlite_url: str) -> None:
    database, runs = SqlAlchemy(sqlite_url, create_schema=True), []

    @retried(on=IntegrityError)
    @command_handler("open")
    async def open_account(name: str, session: AsyncSession) -> None:
        runs.append(name)
        session.add(Account(name=name if len(runs) == 1 else f"{name}-{len(runs)}", balance=0))

    async with flow_test([open_account], plugins=[database]) as flow:
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(Account.__table__.insert(), {"name": "ada", "balance": 100})
        await flow.send("ada", to="open")
        async with database.sessionmaker() as session:
            assert set(await session.scalars(select(Account.name))) == {"ada", "ada-2"}


async def test_a_database_tells_a_collision_from_other_errors_behind_what_was_made_of_them(sqlite_url: str) -> None:
    database = SqlAlchemy(sqlite_url)
    driver: Any = OSError()
    driver.sqlite_errorcode = 517
    busy, other = DBAPIError("", None, driver), DBAPIError("", None, OSError())

    def wrapped(error: Exception) -> Exception:
        made = ChannelError("sending")
        made.__cause__ = error
        return made

    circle = ValueError()
    circle.__cause__ = circle

    found = [database.is_passing(one) for one in (busy, wrapped(busy), other, wrapped(other), ValueError(), circle)]
    async with database.lifespan(), database.sessionmaker() as session:
        await session.execute(text("SELECT 1"))

    assert found == [True, True, False, False, False, False]
