from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.endpoint import Endpoint, Kind, command_handler, event_handler, mark, query_handler
from ecotone_fastapi.core.errors import ConfigurationError, UnknownChannelError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.injection import Parameter
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly, HealthCheck, Limits, Plugin
from ecotone_fastapi.core.suppliers import Constant, Supplier, Wanted
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.testing.flow import flow_test


def assembly() -> Assembly:
    return Assembly(Gateway(Conversion(), SystemClock()))


# ------------------------------------------------------------------------------------------- a plugin as users write it


@dataclass(frozen=True)
class RequiresRole:
    role: str


class Authorization:
    """Refuse a handler to callers without its role."""

    def install(self, assembly: Assembly) -> None:
        async def check(call: Call, proceed: Proceed) -> Any:
            assert call.endpoint is not None
            needed = call.endpoint.find(RequiresRole)
            assert needed is not None
            if call.message.headers.get("role") != needed.role:
                raise PermissionError(needed.role)
            return await proceed(call)

        assembly.add_interceptor(check, stage=Stage.HANDLE, when=lambda endpoint: endpoint.find(RequiresRole))


class Orders:
    @mark(RequiresRole("manager"))
    @command_handler("order.cancel")
    async def cancel(self, order_id: str) -> str:
        return f"{order_id} is cancelled"

    @command_handler("order.place")
    async def place(self, order_id: str) -> str:
        return f"{order_id} is placed"


async def test_a_plugin_of_a_user_guards_the_handlers_that_have_its_mark() -> None:
    async with flow_test([Orders], plugins=[Authorization()]) as flow:
        assert await flow.send("order-1", to="order.cancel", headers={"role": "manager"}) == "order-1 is cancelled"
        with pytest.raises(PermissionError, match="manager"):
            await flow.send("order-1", to="order.cancel", headers={"role": "clerk"})
        assert await flow.send("order-1", to="order.place") == "order-1 is placed"


# ----------------------------------------------------------------------------------------------------- all nine sockets


@dataclass
class Everything:
    """Plugs something into each socket."""

    log: list[str] = field(default_factory=list)

    def install(self, assembly: Assembly) -> None:
        plugin = self

        async def ping(payload: str) -> str:
            return f"pong {payload}"

        class Inbox:
            name = "inbox runner"

            async def run(self, limits: Limits) -> int:
                plugin.log.append(f"run {limits.messages}")
                return 3

        class Loud:
            """A channel that shouts, in front of another one."""

            def __init__(self, inside: Channel) -> None:
                self.inside = inside
                self.name = inside.name
                self.capabilities = inside.capabilities
                self.open, self.close, self.receive = inside.open, inside.close, inside.receive

            async def send(self, messages: Sequence[Message[bytes]]) -> None:
                await self.inside.send([message.with_payload(message.payload.upper()) for message in messages])

        class Markers:
            def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
                return Constant("from a resolver") if "mine" in parameter.metadata else None

        def noting(stage: Stage) -> Any:
            async def note(call: Call, proceed: Proceed) -> Any:
                plugin.log.append(f"{stage} {call.channel or call.key or (call.endpoint and call.endpoint.id)}")
                return await proceed(call)

            return note

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            plugin.log.append("open")
            yield
            plugin.log.append("close")

        assembly.add_endpoint(Endpoint("ping", Kind.QUERY, "ping", None, ping))
        for stage in Stage:
            assembly.add_interceptor(noting(stage), stage=stage, order=Order.TRACING)
        assembly.add_service(int, 42)
        assembly.add_service(int, 43)
        assembly.add_resolver(Markers())
        assembly.add_channel(MemoryChannel("letters"))
        assembly.wrap_channel("letters", Loud)
        assembly.add_runnable(Inbox())
        assembly.add_lifespan(lifespan)


class Letters:
    def __init__(self) -> None:
        self.read: list[tuple[str, int, str]] = []

    @asynchronous("letters")
    @event_handler("letter.written", id="reader")
    async def when_written(self, text: str, number: int, marked: Annotated[str, "mine"]) -> None:
        self.read.append((text, number, marked))


async def test_a_plugin_reaches_every_socket() -> None:
    plugin = Everything()
    letters = Letters()

    async with flow_test([letters], channels=[], plugins=[plugin]) as flow:
        assert await flow.ask("me", to="ping") == "pong me"
        await flow.publish("hello", to="letter.written")
        await flow.run("letters")
        assert await flow.run("inbox runner", Limits(messages=7)) == 3

    assert letters.read == [("HELLO", 42, "from a resolver")]
    assert plugin.log == [
        "open",
        "dispatch ping",
        "handle ping",
        "dispatch letter.written",
        "handle reader",
        "send letters",
        "receive letters",
        "handle letters",
        "run 7",
        "close",
    ]


async def test_interceptors_stand_by_their_order_and_then_as_they_were_added() -> None:
    log: list[str] = []

    class Noting:
        def install(self, assembly: Assembly) -> None:
            def add(name: str, order: int) -> None:
                async def note(call: Call, proceed: Proceed) -> Any:
                    log.append(name)
                    return await proceed(call)

                assembly.add_interceptor(note, stage=Stage.HANDLE, order=order)

            add("user one", Order.USER)
            add("user two", Order.USER)
            add("state", Order.STATE)
            add("between", Order.TENANT + 1)
            add("tracing", Order.TRACING)

    async with flow_test([Orders], plugins=[Noting()]) as flow:
        await flow.send("order-1", to="order.place")

    assert log == ["tracing", "between", "user one", "user two", "state"]


async def test_what_a_user_supplies_beats_what_a_plugin_supplies() -> None:
    class Asking:
        @query_handler("number")
        async def number(self, payload: str, number: int) -> int:
            return number

    class Numbers:
        def install(self, assembly: Assembly) -> None:
            assembly.add_service(int, 1)

    async with flow_test([Asking], plugins=[Numbers()]) as flow:
        assert await flow.ask("?", to="number") == 1
    async with flow_test([Asking], plugins=[Numbers()], services={int: 2}) as flow:
        assert await flow.ask("?", to="number") == 2


def test_a_plugin_is_told_by_its_shape() -> None:
    plugin: Plugin = Everything()

    assert not isinstance(plugin, HealthCheck)


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("stage", [Stage.DISPATCH, Stage.SEND, Stage.RECEIVE])
def test_only_an_interceptor_of_handlers_can_choose_its_handlers(stage: Stage) -> None:
    async def interceptor(call: Call, proceed: Proceed) -> Any:
        return await proceed(call)

    with pytest.raises(ConfigurationError, match=f"an interceptor of the {stage} stage has no endpoint to choose by"):
        assembly().add_interceptor(interceptor, stage=stage, when=lambda endpoint: True)


def test_two_channels_cannot_have_one_name() -> None:
    put_together = assembly()
    put_together.add_channel(MemoryChannel("orders"))

    with pytest.raises(ConfigurationError, match="two channels are named 'orders'"):
        put_together.add_channel(MemoryChannel("orders"))


def test_two_runnables_cannot_have_one_name() -> None:
    class Runner:
        name = "runner"

        async def run(self, limits: Limits) -> int:
            return 0

    put_together = assembly()
    put_together.add_runnable(Runner())

    with pytest.raises(ConfigurationError, match="two runnables are named 'runner'"):
        put_together.add_runnable(Runner())


def test_a_channel_that_is_not_there_cannot_be_wrapped() -> None:
    with pytest.raises(UnknownChannelError, match="there is no channel 'orders'\nTried: no channel was given"):
        assembly().wrap_channel("orders", lambda channel: channel)


async def test_two_handlers_of_plugins_with_one_id_are_found_at_start() -> None:
    class Twice:
        def install(self, assembly: Assembly) -> None:
            async def ping(payload: str) -> None: ...

            assembly.add_endpoint(Endpoint("ping", Kind.QUERY, "ping", None, ping))
            assembly.add_endpoint(Endpoint("ping", Kind.QUERY, "other", None, ping))

    with pytest.raises(ConfigurationError, match="ping and ping have the same id 'ping'"):
        async with flow_test([], plugins=[Twice()]):
            pass


async def test_every_mistake_of_every_plugin_is_told_at_once() -> None:
    class Wrong:
        def install(self, assembly: Assembly) -> None:
            assembly.wrap_channel("nowhere", lambda channel: channel)

    class AlsoWrong:
        def install(self, assembly: Assembly) -> None:
            raise ConfigurationError("not like this")

    with pytest.raises(ConfigurationError, match="2 things are wrong") as raised:
        async with flow_test([], plugins=[Wrong(), AlsoWrong()]):
            pass

    assert "nowhere" in str(raised.value)
    assert "not like this" in str(raised.value)
