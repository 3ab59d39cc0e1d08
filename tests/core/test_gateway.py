import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import anyio
import pytest
import typing_extensions
from pydantic import BaseModel, Field, computed_field

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.bus import CommandBus, EventBus, QueryBus
from ecotone_fastapi.core.current import (
    conversation,
    current_call,
    current_correlation_id,
    current_message,
    current_scope,
)
from ecotone_fastapi.core.endpoint import command_handler, event_handler, query_handler
from ecotone_fastapi.core.errors import (
    ConfigurationError,
    ConversionError,
    HandlerNotFoundError,
    HeaderError,
    UnknownChannelError,
    UnknownEndpointError,
)
from ecotone_fastapi.core.message import Message, message_name
from ecotone_fastapi.core.pipeline import Call, Proceed, Scope, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.suppliers import MessageHeader
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.testing.flow import Flow, flow_test

T = TypeVar("T")
JSON = {"content_type": "application/json"}


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str
    quantity: int = 1


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@dataclass(frozen=True)
class GetStatus:
    order_id: str


class Headers:
    """Keeps the headers that its handlers saw, by what they handled."""

    def __init__(self) -> None:
        self.seen: dict[str, Mapping[str, str]] = {}

    @command_handler
    async def place(self, command: PlaceOrder, message: Message[Any], events: EventBus) -> None:
        self.seen["command"] = message.headers
        await events.publish(OrderWasPlaced(command.order_id), headers={"correlation_id": "another", "step": "2"})

    @event_handler
    async def when_placed(self, event: OrderWasPlaced, message: Message[Any], queries: QueryBus) -> None:
        self.seen["event"] = message.headers
        await queries.ask(GetStatus(event.order_id))

    @query_handler
    async def status(self, query: GetStatus, message: Message[Any]) -> str:
        self.seen["query"] = message.headers
        return "placed"


# ------------------------------------------------------------------------------------------------------------ causation


async def test_the_first_message_starts_a_conversation_and_has_no_cause() -> None:
    headers = Headers()

    async with flow_test([headers]) as flow:
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme", "id": "my-id"})

    seen = headers.seen["command"]
    assert seen == {"id": "my-id", "correlation_id": "my-id", "timestamp": seen["timestamp"], "tenant": "acme"}


async def test_a_conversation_may_be_given_a_name_by_whoever_starts_it() -> None:
    headers = Headers()

    async with flow_test([headers]) as flow:
        await flow.send(PlaceOrder("1"), headers={"correlation_id": "checkout-7"})

    assert {seen["correlation_id"] for seen in headers.seen.values()} == {"checkout-7"}


async def test_each_message_names_the_one_that_was_handled_when_it_was_sent() -> None:
    headers = Headers()

    async with flow_test([headers]) as flow:
        await flow.send(PlaceOrder("1"), headers={"tenant": "acme", "delay": 5, "priority": 9})

    command, event, query = (headers.seen[name] for name in ("command", "event", "query"))
    assert "causation_id" not in command
    assert event["causation_id"] == command["id"]
    assert query["causation_id"] == event["id"]
    assert {seen["correlation_id"] for seen in headers.seen.values()} == {command["id"]}
    assert {seen["tenant"] for seen in headers.seen.values()} == {"acme"}
    assert [seen.get("step") for seen in (command, event, query)] == [None, "2", "2"]
    assert [seen.get("delay") for seen in (command, event, query)] == ["5", None, None]


async def test_the_ambient_message_is_that_of_the_innermost_handler() -> None:
    seen: list[Any] = []

    def look() -> None:
        message = current_message()
        seen.append(message.payload if message else None)

    class Nested:
        @command_handler("outer")
        async def outer(self, payload: str, commands: CommandBus) -> None:
            look()
            await commands.send("inside", to="inner")
            look()

        @command_handler("inner")
        async def inner(self, payload: str) -> None:
            look()

    async with flow_test([Nested]) as flow:
        look()
        await flow.send("outside", to="outer")
        look()

    assert seen == [None, "outside", "inside", "outside", None]
    assert current_scope() is None


async def test_a_failed_handler_leaves_nothing_behind() -> None:
    @command_handler("fail")
    async def fail(payload: str) -> None:
        raise ValueError(payload)

    async with flow_test([fail]) as flow:
        with pytest.raises(ValueError, match="no"):
            await flow.send("no", to="fail")

        assert (current_message(), current_scope()) == (None, None)


# ---------------------------------------------------------------------------------------------------------- concurrency


async def test_messages_sent_at_the_same_time_never_see_each_others_headers() -> None:
    together = anyio.Event()
    arrived: list[str] = []
    seen: dict[str, tuple[str, str, Scope | None]] = {}

    class Tenants:
        @command_handler("enter")
        async def enter(self, tenant: str, commands: CommandBus) -> None:
            arrived.append(tenant)
            if len(arrived) == 20:
                together.set()
            await together.wait()
            await commands.send(tenant, to="work")

        @command_handler("work")
        async def work(
            self, tenant: str, header: Annotated[str, MessageHeader("tenant")], message: Message[Any]
        ) -> None:
            seen[tenant] = (header, message.headers["correlation_id"], current_scope())

    async with flow_test([Tenants]) as flow, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(send, flow, str(number))

    assert {tenant: header for tenant, (header, _, _) in seen.items()} == {str(n): str(n) for n in range(20)}
    assert len({correlation for _, correlation, _ in seen.values()}) == 20
    assert len({id(scope) for _, _, scope in seen.values()}) == 20


async def send(flow: Flow, tenant: str) -> None:
    await flow.send(tenant, to="enter", headers={"tenant": tenant})


async def test_messages_that_one_handler_sends_at_the_same_time_take_turns_in_one_unit() -> None:
    log: list[str] = []
    scopes: set[Scope | None] = set()

    class Gathering:
        @command_handler("outer")
        async def outer(self, payload: str, commands: CommandBus) -> None:
            scopes.add(current_scope())

            async def send(name: str) -> None:
                await commands.send(name, to="inner")

            async with anyio.create_task_group() as tasks:
                for name in "abc":
                    tasks.start_soon(send, name)

        @command_handler("inner")
        async def inner(self, name: str, commands: CommandBus) -> None:
            scopes.add(current_scope())
            log.append(f"begin {name}")
            await anyio.lowlevel.checkpoint()
            await commands.send(name, to="innermost")
            log.append(f"end {name}")

        @command_handler("innermost")
        async def innermost(self, name: str) -> None:
            log.append(f"within {name}")

    async with flow_test([Gathering]) as flow:
        await flow.send("go", to="outer")

    assert log == [f"{what} {name}" for name in "abc" for what in ("begin", "within", "end")]
    assert len(scopes) == 1


async def test_a_task_that_outlives_its_handler_sends_in_a_unit_of_its_own() -> None:
    over = anyio.Event()
    seen: list[tuple[str, Scope | None, str | None]] = []

    async with anyio.create_task_group() as tasks:

        class Detached:
            @command_handler("start")
            async def start(self, payload: str, commands: CommandBus, message: Message[Any]) -> None:
                async def later() -> None:
                    await over.wait()
                    await commands.send("late", to="note")

                seen.append(("start", current_scope(), message.id))
                tasks.start_soon(later)

            @command_handler("note")
            async def note(self, payload: str, message: Message[Any]) -> None:
                seen.append((payload, current_scope(), message.headers.get("causation_id")))

        async with flow_test([Detached]) as flow:
            await flow.send("go", to="start")
            over.set()
            await anyio.wait_all_tasks_blocked()

    [(_, first, id_), (payload, second, cause)] = seen
    assert payload == "late"
    assert first is not second
    assert cause == id_


# -------------------------------------------------------------------------------------------------------------- payload


class Takes:
    """Answers with what it was given."""

    @command_handler("dataclass")
    async def a_dataclass(self, command: PlaceOrder) -> Any:
        return command

    @command_handler("anything")
    async def anything(self, command) -> Any:  # type: ignore[no-untyped-def]
        return command

    @command_handler("nothing")
    async def nothing(self) -> Any:
        return "nothing"

    @command_handler("header only")
    async def header_only(self, tenant: Annotated[str, MessageHeader("tenant")]) -> Any:
        return tenant

    @command_handler("bytes")
    async def some_bytes(self, payload: bytes) -> Any:
        return payload

    @command_handler("text")
    async def text(self, payload: str) -> Any:
        return payload

    @command_handler("ids")
    async def ids(self, payload: list[UUID]) -> Any:
        return payload

    @command_handler("maybe")
    async def maybe(self, payload: PlaceOrder | None) -> Any:
        return payload

    @command_handler("constrained")
    async def constrained(self, payload: Annotated[int, Field(gt=0)]) -> Any:
        return payload

    @command_handler("whole message")
    async def whole(self, message: Message[PlaceOrder]) -> Any:
        return message


class FrozenPlain:
    """A class that pydantic knows nothing about."""


class TakesMore:
    @command_handler("plain")
    async def plain(self, payload: FrozenPlain) -> Any:
        return payload

    @command_handler("plain list")
    async def plain_list(self, payload: list[FrozenPlain]) -> Any:
        return payload

    @command_handler("typed dict")
    async def typed_dict(self, payload: "OrderDict") -> Any:
        return payload

    @command_handler("generic")
    async def generic(self, payload: "Box[int]") -> Any:
        return payload


class OrderDict(typing_extensions.TypedDict):
    order_id: int


@dataclass
class Box(Generic[T]):
    content: T


ORDER = PlaceOrder("order-1", 2)
TEXT = '{"order_id":"order-1","quantity":"2"}'


@pytest.mark.parametrize(
    ("key", "payload", "headers", "taken"),
    [
        ("dataclass", ORDER, {}, ORDER),
        ("dataclass", {"order_id": "order-1", "quantity": 2}, {}, ORDER),
        ("dataclass", TEXT, JSON, ORDER),
        ("dataclass", TEXT.encode(), JSON, ORDER),
        ("anything", ORDER, {}, ORDER),
        ("anything", b"raw", {}, b"raw"),
        ("anything", '{"a":1}', JSON, {"a": 1}),
        ("anything", b'{"a":1}', JSON, {"a": 1}),
        ("anything", None, {}, None),
        ("nothing", None, {}, "nothing"),
        ("nothing", ORDER, {}, "nothing"),
        ("header only", None, {"tenant": "acme"}, "acme"),
        ("bytes", b"raw", {}, b"raw"),
        ("bytes", b"{}", JSON, b"{}"),
        ("text", "text", {}, "text"),
        ("text", '"text"', JSON, "text"),
        ("text", b"text", {"content_type": "text/plain"}, "text"),
        ("ids", ["00000000-0000-0000-0000-000000000001"], {}, [UUID(int=1)]),
        ("ids", '["00000000-0000-0000-0000-000000000001"]', JSON, [UUID(int=1)]),
        ("maybe", None, {}, None),
        ("maybe", {"order_id": "order-1", "quantity": 2}, {}, ORDER),
        ("constrained", "5", {}, 5),
    ],
)
async def test_a_payload_sent_to_a_key_is_made_to_fit_the_handler(
    key: str, payload: Any, headers: dict[str, str], taken: Any
) -> None:
    async with flow_test([Takes]) as flow:
        assert await flow.send(payload, to=key, headers=headers) == taken


@pytest.mark.parametrize(
    ("key", "payload", "headers"),
    [
        ("dataclass", {"quantity": 2}, {}),
        ("dataclass", b"not json", JSON),
        ("dataclass", TEXT.encode(), {}),
        ("dataclass", TEXT, {"content_type": "application/xml"}),
        ("dataclass", None, {}),
        ("ids", ["no id"], {}),
        ("constrained", 0, {}),
        ("text", 5, {}),
    ],
)
async def test_a_payload_that_does_not_fit_names_the_handler(key: str, payload: Any, headers: dict[str, str]) -> None:
    async with flow_test([Takes]) as flow:
        with pytest.raises(ConversionError) as raised:
            await flow.send(payload, to=key, headers=headers)

    assert raised.value.__notes__[0].startswith("while reading the payload for Takes.")


async def test_a_type_that_only_python_knows_is_passed_as_it_is() -> None:
    plain = FrozenPlain()

    async with flow_test([TakesMore]) as flow:
        assert await flow.send(plain, to="plain") is plain
        assert await flow.send([plain], to="plain list") == [plain]
        with pytest.raises(ConversionError, match="the payload is a dict, not a"):
            await flow.send({}, to="plain")


async def test_typed_dicts_and_generic_types_are_validated() -> None:
    async with flow_test([TakesMore]) as flow:
        assert await flow.send({"order_id": "1"}, to="typed dict") == {"order_id": 1}
        assert await flow.send({"content": "1"}, to="generic") == Box(1)
        with pytest.raises(ConversionError, match="order_id: Field required"):
            await flow.send({}, to="typed dict")


async def test_a_handler_of_the_whole_message_gets_it_with_its_payload_converted() -> None:
    async with flow_test([Takes]) as flow:
        message = await flow.send(TEXT, to="whole message", headers={**JSON, "tenant": "acme"})

    assert message.payload == ORDER
    assert message.headers["tenant"] == "acme"
    assert "content_type" not in message.headers


async def test_a_missing_header_says_which_handler_wanted_it() -> None:
    async with flow_test([Takes]) as flow:
        with pytest.raises(HeaderError, match="the message has no header 'tenant'") as raised:
            await flow.send(to="header only")

    assert raised.value.__notes__[0].startswith("while handling Takes.header_only, message ")


# ------------------------------------------------------------------------------------------------------------ the buses


async def test_a_command_returns_what_its_handler_returned_and_an_event_nothing() -> None:
    @command_handler
    async def place(command: PlaceOrder) -> str:
        return command.order_id

    @event_handler
    async def note(event: OrderWasPlaced) -> str:
        return "nobody sees this"

    async with flow_test([place, note]) as flow:
        assert await flow.send(PlaceOrder("1")) == "1"
        assert await flow.publish(OrderWasPlaced("1")) is None  # type: ignore[func-returns-value]


class Answer(BaseModel):
    order_id: UUID


class Basket(BaseModel):
    prices: list[float]

    @computed_field
    def total(self) -> float:
        return sum(self.prices)


class Answers:
    @query_handler("order")
    async def order(self) -> dict[str, str]:
        return {"order_id": "00000000-0000-0000-0000-000000000001"}

    @query_handler("model")
    async def model(self) -> Answer:
        return Answer(order_id=UUID(int=1))

    @query_handler("none")
    async def none(self) -> None:
        return None


async def test_an_answer_is_converted_when_the_caller_wants_it_so() -> None:
    async with flow_test([Answers]) as flow:
        ask = flow.ecotone.query_bus.ask

        assert await ask(to="order") == {"order_id": str(UUID(int=1))}
        assert await ask(to="order", returns=Answer) == Answer(order_id=UUID(int=1))
        assert await ask(to="model", returns=Answer) == Answer(order_id=UUID(int=1))
        assert json.loads(await ask(to="model", returns=bytes)) == {"order_id": str(UUID(int=1))}
        assert await ask(to="order", returns=dict[str, UUID]) == {"order_id": UUID(int=1)}
        assert await ask(to="none", returns=bytes) == b"null"
        with pytest.raises(ConversionError):
            await ask(to="order", returns=int)


async def test_an_answer_in_bytes_has_what_is_computed_because_nobody_reads_it_back() -> None:
    @query_handler("basket")
    async def basket(many: bool) -> Basket | list[Basket]:
        one = Basket(prices=[1.5, 2.5])
        return [one] if many else one

    @query_handler("raw")
    async def raw() -> bytearray:
        return bytearray(b"raw")

    @query_handler("lock")
    async def lock() -> object:
        return threading.Lock()

    async with flow_test([basket, raw, lock]) as flow:
        assert await flow.ask(False, to="basket", returns=bytes) == b'{"prices":[1.5,2.5],"total":4.0}'
        assert await flow.ask(True, to="basket", returns=bytes) == b'[{"prices":[1.5,2.5],"total":4.0}]'
        assert await flow.ask(to="raw", returns=bytes) == b"raw"
        with pytest.raises(ConversionError, match="cannot be written as JSON"):
            await flow.ask(to="lock", returns=bytes)


async def test_a_handler_may_answer_with_a_message() -> None:
    @query_handler("order")
    async def order() -> Message[str]:
        return Message("order-1", {"etag": "7"})

    async with flow_test([order]) as flow:
        assert await flow.ask(to="order") == Message("order-1", {"etag": "7"})


async def test_nobody_handles_it() -> None:
    async with flow_test([Takes]) as flow:
        with pytest.raises(HandlerNotFoundError, match=r"no handler for the command .*\.PlaceOrder\n.*anything"):
            await flow.send(PlaceOrder("1"))
        with pytest.raises(HandlerNotFoundError, match="no handler for the query 'order'"):
            await flow.ask(to="order")
        await flow.publish(OrderWasPlaced("1"))


async def test_the_first_handler_of_an_event_that_fails_ends_it_and_the_command_around_it() -> None:
    log: list[str] = []

    class Chain:
        @command_handler
        async def place(self, command: PlaceOrder, events: EventBus) -> None:
            await events.publish(OrderWasPlaced(command.order_id))
            log.append("never reached")

        @event_handler(priority=3)
        async def first(self, event: OrderWasPlaced) -> None:
            log.append("first")

        @event_handler(priority=2)
        async def second(self, event: OrderWasPlaced) -> None:
            raise ValueError("no stock")

        @event_handler(priority=1)
        async def third(self, event: OrderWasPlaced) -> None:
            log.append("never reached either")

    async with flow_test([Chain]) as flow:
        with pytest.raises(ValueError, match="no stock") as raised:
            await flow.send(PlaceOrder("1"))

    assert log == ["first"]
    assert [note.split(",")[0] for note in raised.value.__notes__] == [
        "while handling Chain.second",
        "while handling Chain.place",
    ]


async def test_handlers_of_instances_functions_and_threads_are_called_alike() -> None:
    @query_handler("double")
    def double(number: int) -> int:
        return 2 * number

    class Halves:
        def __init__(self, by: int) -> None:
            self.by = by

        @query_handler("half")
        def half(self, number: int) -> int:
            return number // self.by

    async with flow_test([double, Halves(2)]) as flow:
        assert await flow.ask(21, to="double") == 42
        assert await flow.ask(42, to="half") == 21


# ------------------------------------------------------------------------------------------------------------- channels


@message_name("shape.circle")
@dataclass(frozen=True)
class Circle:
    size: int


@dataclass(frozen=True)
class Square:
    size: int


@dataclass(frozen=True)
class RoundedSquare(Square):
    radius: int = 1


class Shapes:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @asynchronous("shapes")
    @event_handler(id="draw")
    async def draw(self, shape: Circle | Square) -> None:
        self.seen.append(shape)

    @asynchronous("shapes")
    @event_handler("raw", id="raw")
    async def raw(self, payload) -> None:  # type: ignore[no-untyped-def]
        self.seen.append(payload)

    @asynchronous("shapes")
    @event_handler("nothing", id="nothing")
    async def nothing(self) -> None:
        self.seen.append("nothing")

    @asynchronous("shapes")
    @event_handler("bytes", id="bytes")
    async def some_bytes(self, payload: bytes) -> None:
        self.seen.append(payload)


async def test_classes_of_the_same_shape_stay_apart_on_their_way_through_a_channel() -> None:
    shapes = Shapes()

    async with flow_test([shapes], channels=[MemoryChannel("shapes")]) as flow:
        for shape in (Circle(1), Square(2), RoundedSquare(3, 4)):
            await flow.publish(shape)
        types = [message.headers["type"] for message in await flow.waiting("shapes")]
        await flow.run("shapes")

    assert types == ["shape.circle", f"{__name__}.Square", f"{__name__}.RoundedSquare"]
    assert shapes.seen == [Circle(1), Square(2), RoundedSquare(3, 4)]


async def test_what_has_no_class_of_its_own_crosses_a_channel_too() -> None:
    shapes = Shapes()

    async with flow_test([shapes], channels=[MemoryChannel("shapes")]) as flow:
        await flow.publish({"a": [1]}, to="raw")
        await flow.publish(b"\xff", to="raw")
        await flow.publish("text", to="raw")
        await flow.publish("text", to="raw", headers={"content_type": "text/plain"})
        await flow.publish(b'{"a":1}', to="raw", headers=JSON)
        await flow.publish(None, to="nothing")
        await flow.publish(b"\xff", to="bytes")
        await flow.publish(b"{}", to="bytes", headers=JSON)
        await flow.run("shapes")

    assert shapes.seen == [{"a": [1]}, b"\xff", "text", "text", {"a": 1}, "nothing", b"\xff", b"{}"]


@dataclass
class _AnythingHandler:
    seen: list[Any]

    @asynchronous("shapes")
    @event_handler(id="anything")
    async def anything(self, shape: object) -> None:
        self.seen.append(shape)


async def test_a_handler_of_everything_refuses_a_name_that_nobody_knows() -> None:
    seen: list[Any] = []

    async with flow_test([_AnythingHandler(seen), Shapes], channels=[MemoryChannel("shapes")]) as flow:
        await flow.publish(Circle(1))
        [*_, message] = await flow.waiting("shapes")
        forged = message.with_headers({"type": "shape.triangle", "endpoint": "anything"})
        await flow.ecotone.prepare().transmit("shapes", [forged])
        with pytest.raises(ConversionError, match=r"nothing here is known by the message name 'shape.triangle'"):
            await flow.run("shapes")

    assert seen == [Circle(1)]


async def test_a_message_for_a_handler_that_is_gone_says_so() -> None:
    async with flow_test([Shapes], channels=[MemoryChannel("shapes")]) as flow:
        gateway = flow.ecotone.prepare()
        await gateway.transmit("shapes", [Message(b"{}", {"id": "1", "endpoint": "gone"})])
        await gateway.transmit("shapes", [Message(b"{}", {"id": "2"})])
        await flow.run("shapes", raises=False)

    assert [type(error) for error in flow.failures] == [UnknownEndpointError] * 2
    assert str(flow.failures[0]).startswith("there is no handler 'gone' here\nTried: bytes, draw, nothing, raw\n")
    assert str(flow.failures[1]).startswith("a message on the channel 'shapes' names no handler\n")


async def test_nothing_is_sent_to_a_channel_that_is_not_there() -> None:
    async with flow_test([Takes]) as flow:
        with pytest.raises(UnknownChannelError, match="there is no channel 'nowhere'"):
            await flow.ecotone.prepare().send("nowhere", Message({}, {"id": "1"}))


async def test_a_message_may_be_put_on_a_channel_directly() -> None:
    async with flow_test([Shapes], channels=[MemoryChannel("shapes")]) as flow:
        await flow.ecotone.prepare().send("shapes", Message(Circle(1), {"id": "1", "endpoint": "draw"}))
        [message] = await flow.waiting("shapes")

    assert message == Message(
        b'{"size":1}',
        {"id": "1", "endpoint": "draw", "content_type": "application/json", "type": "shape.circle"},
    )


# --------------------------------------------------------------------------------------------------------- interceptors


async def test_interceptors_of_dispatch_stand_around_root_and_nested_messages() -> None:
    log: list[tuple[str | None, Any]] = []

    class Noting:
        def install(self, assembly: Assembly) -> None:
            async def note(call: Call, proceed: Proceed) -> Any:
                log.append((call.kind, call.key or type(call.message.payload)))
                return await proceed(call)

            assembly.add_interceptor(note, stage=Stage.DISPATCH)

    async with flow_test([Headers], plugins=[Noting()]) as flow:
        await flow.send(PlaceOrder("1"))

    assert log == [("command", PlaceOrder), ("event", OrderWasPlaced), ("query", GetStatus)]


async def test_an_interceptor_sees_the_unit_of_work_and_may_end_it_by_failing() -> None:
    closed: list[object] = []

    class Refusing:
        def install(self, assembly: Assembly) -> None:
            async def refuse(call: Call, proceed: Proceed) -> Any:
                async def leave(*_: object) -> None:
                    closed.append(call.scope.closed)

                call.scope.exits.append((leave, "probe"))
                await proceed(call)
                raise PermissionError

            assembly.add_interceptor(refuse, stage=Stage.HANDLE)

    async with flow_test([Takes], plugins=[Refusing()]) as flow:
        with pytest.raises(PermissionError):
            await flow.send(to="nothing")

    assert closed == [False]


async def test_two_applications_do_not_join_each_others_units() -> None:
    scopes: list[Scope | None] = []

    @command_handler("inner")
    async def inner(payload: str) -> None:
        scopes.append(current_scope())

    async with flow_test([inner]) as other:

        @command_handler("outer")
        async def outer(payload: str) -> None:
            scopes.append(current_scope())
            await other.send(payload, to="inner")

        async with flow_test([outer]) as flow:
            await flow.send("go", to="outer")

    assert scopes[0] is not scopes[1]


async def test_a_unit_of_work_of_its_own_ends_with_its_block() -> None:
    closed: list[BaseException | None] = []

    async def leave(_: object, error: BaseException | None, __: object) -> None:
        closed.append(error)

    async with flow_test([Takes]) as flow:
        gateway = flow.ecotone.prepare()
        async with gateway.unit_of_work(Message("cause", {"id": "1"})) as scope:
            assert current_scope() is scope
            scope.exits.append((leave, "probe"))
        failure = ValueError("no")

        async def fail() -> None:
            async with gateway.unit_of_work(Message("cause", {"id": "1"})) as scope:
                scope.exits.append((leave, "probe"))
                raise failure

        with pytest.raises(ValueError, match="no"):
            await fail()

    assert closed == [None, failure]
    assert current_scope() is None


# ------------------------------------------------------------------------------------------------------------- at start


async def test_every_handler_that_cannot_be_called_is_told_at_once() -> None:
    class Unknown: ...

    class Broken:
        @command_handler("one")
        async def one(self, payload: str, service: Unknown) -> None: ...

        @command_handler("two")
        async def two(self, payload: str, service: Unknown) -> None: ...

    with pytest.raises(ConfigurationError, match="2 things are wrong") as raised:
        async with flow_test([Broken]):
            pass

    assert "Broken.one" in str(raised.value)
    assert "Broken.two" in str(raised.value)


# ---------------------------------------------------------------------------------------------- calls, conversations


async def test_whoever_is_called_can_tell_its_handler_and_its_channel() -> None:
    seen: dict[str, tuple[str | None, str | None]] = {}

    def note(name: str) -> None:
        call = current_call()
        assert call is not None
        seen[name] = (None if call.endpoint is None else call.endpoint.id, call.channel)

    class Around:
        def install(self, assembly: Assembly) -> None:
            async def receiving(call: Call, proceed: Proceed) -> Any:
                note("receiving")
                return await proceed(call)

            async def dispatching(call: Call, proceed: Proceed) -> Any:
                note(f"dispatching {call.key}")
                return await proceed(call)

            assembly.add_interceptor(receiving, stage=Stage.RECEIVE)
            assembly.add_interceptor(dispatching, stage=Stage.DISPATCH)

    @asynchronous("orders")
    @command_handler("later", id="later")
    async def later(order: str, queries: QueryBus) -> None:
        await queries.ask("1", to="nested")
        note("later")

    @query_handler("nested", id="nested")
    async def nested(order: str) -> None:
        note("nested")

    async with flow_test([later, nested], channels=[MemoryChannel("orders")], plugins=[Around()]) as flow:
        await flow.send("1", to="later")
        await flow.run("orders")

    assert seen == {
        "dispatching later": (None, None),
        "receiving": (None, "orders"),
        "dispatching nested": (None, None),
        "nested": ("nested", None),
        "later": ("later", "orders"),
    }
    assert current_call() is None


async def test_a_call_that_is_delivered_outside_of_any_message_is_nobodys_current_one() -> None:
    seen: list[Call | None] = []

    @command_handler("now", id="now")
    async def now(order: str) -> None:
        seen.append(current_call())

    async with flow_test([now]) as flow:
        headers = {"endpoint": "now", "content_type": "application/json"}
        await flow.ecotone.prepare().deliver(Call(Message(b'"1"', headers), None, "orders", Scope()))

    assert seen == [None]


async def test_the_first_message_of_a_conversation_is_not_its_beginning() -> None:
    headers = Headers()

    async with flow_test([headers]) as flow:
        with conversation("import-7"):
            assert current_correlation_id() == "import-7"
            await flow.send(PlaceOrder("1"), headers={"id": "my-id"})
            await flow.ask(GetStatus("1"), headers={"correlation_id": "mine"})

    first, asked = headers.seen["command"], headers.seen["query"]
    assert (first["id"], first["correlation_id"], "causation_id" in first) == ("my-id", "import-7", False)
    assert headers.seen["event"]["correlation_id"] == "import-7"
    assert asked["correlation_id"] == "mine"
    assert current_correlation_id() is None


async def test_the_correlation_id_of_a_message_that_has_none_is_its_id() -> None:
    async with flow_test([Headers()]) as flow:
        gateway = flow.ecotone.prepare()
        for headers, expected in (({"id": "m-1"}, "m-1"), ({"id": "m-1", "correlation_id": "c-1"}, "c-1"), ({}, None)):
            async with gateway.unit_of_work(Message(b"", headers)):
                assert current_correlation_id() == expected
