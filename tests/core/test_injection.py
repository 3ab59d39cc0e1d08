"""What a handler asks for: where it comes from, how long it lives, and what is wrong when nobody supplies it."""

import asyncio
import functools
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Protocol, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import fastapi
import pytest
from fastapi import Depends, FastAPI, Header, Request, Security, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes
from pydantic import BaseModel, Field

from ecotone_fastapi import (
    CommandBus,
    Ecotone,
    EventBus,
    Message,
    MessageHeader,
    QueryBus,
    asynchronous,
    command_handler,
    event_handler,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.bus import CommandBus as PlainCommandBus
from ecotone_fastapi.core.clock import Clock, SystemClock
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.endpoint import Inline, mark
from ecotone_fastapi.core.errors import ConfigurationError, HeaderError, UnresolvableParameterError
from ecotone_fastapi.core.pipeline import Call, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.signatures import Parameter
from ecotone_fastapi.core.suppliers import (
    Constant,
    Dependency,
    FromMessage,
    FromScope,
    Supplier,
    Wanted,
)
from ecotone_fastapi.web.buses import get_command_bus
from ecotone_fastapi.web.markers import probed

T = TypeVar("T")


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Counter:
    """A dependency that tells how often it was made."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


class BrokenError(Exception):
    pass


async def ask(handler: Callable[..., Any], *, headers: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The answer of a function with these options of `Ecotone`."""
    return await Ecotone([query_handler("ask")(handler)], **options).query_bus.ask(to="ask", headers=headers)


def problem_of(*handlers: object, **options: Any) -> ConfigurationError:
    """What is wrong with handlers at start."""
    with pytest.raises(ConfigurationError) as caught:
        Ecotone(handlers, **options).prepare()
    return caught.value


# ------------------------------------------------------------------------------------------------------------- payloads


async def test_the_first_parameter_that_nothing_else_supplies_is_the_payload() -> None:
    @command_handler("place")
    async def place(
        events: EventBus, tenant: Annotated[str, MessageHeader()], command: PlaceOrder, note: str = "none"
    ) -> list[Any]:
        return [type(events), tenant, command, note]

    commands = Ecotone([place]).command_bus

    assert await commands.send(PlaceOrder("1"), to="place", headers={"tenant": "acme"}) == [
        EventBus,
        "acme",
        PlaceOrder("1"),
        "none",
    ]


async def test_a_parameter_behind_one_that_keeps_its_default_is_passed_by_name() -> None:
    @command_handler
    async def place(command: PlaceOrder, note: str = "none", number: Annotated[int, Depends(Counter())] = 0) -> Any:
        return [command.order_id, note, number]

    assert await Ecotone([place]).command_bus.send(PlaceOrder("1")) == ["1", "none", 1]


async def test_a_handler_may_take_the_message_alone_and_say_what_is_in_it() -> None:
    @command_handler
    async def place(message: Message[PlaceOrder]) -> list[Any]:
        return [message.payload, message.headers["tenant"]]

    commands = Ecotone([place]).command_bus

    assert await commands.send(PlaceOrder("1"), headers={"tenant": "acme"}) == [PlaceOrder("1"), "acme"]


async def test_a_handler_may_take_the_message_and_the_payload_in_any_order() -> None:
    @command_handler
    async def place(message: Message[PlaceOrder], command: PlaceOrder) -> bool:
        return message.payload is command

    @event_handler
    async def note(event: OrderWasPlaced, message: Message[Any]) -> None:
        assert message.payload is event

    ecotone = Ecotone([place, note])

    assert await ecotone.command_bus.send(PlaceOrder("1")) is True
    await ecotone.event_bus.publish(OrderWasPlaced("1"))


async def test_a_message_of_anything_does_not_say_what_is_in_it() -> None:
    @command_handler("any")
    async def take(message: Message[T]) -> Any:  # type: ignore[type-var]
        return message.payload

    @command_handler("plain")
    async def plain(message: Message) -> Any:  # type: ignore[type-arg]
        return message.payload

    commands = Ecotone([take, plain]).command_bus

    assert await commands.send(5, to="any") == 5
    assert await commands.send("five", to="plain") == "five"


async def test_a_dependency_may_take_the_message() -> None:
    async def tenant(message: Message[PlaceOrder]) -> str:
        return f"{message.payload.order_id} of {message.headers['tenant']}"

    @command_handler
    async def place(command: PlaceOrder, tenant: Annotated[str, Depends(tenant)]) -> str:
        return tenant

    assert await Ecotone([place]).command_bus.send(PlaceOrder("1"), headers={"tenant": "acme"}) == "1 of acme"


async def test_a_payload_without_annotation_is_taken_as_it_is() -> None:
    @command_handler("take")
    async def take(anything) -> Any:  # type: ignore[no-untyped-def]
        return anything

    assert await Ecotone([take]).command_bus.send({"a": 1}, to="take") == {"a": 1}


# -------------------------------------------------------------------------------------------------------------- headers


async def test_headers_are_read_as_they_are_annotated() -> None:
    async def handler(  # noqa: PLR0917
        tenant: Annotated[str, MessageHeader("Tenant")],
        count: Annotated[int, MessageHeader()],
        day: Annotated[date, MessageHeader("on")],
        tags: Annotated[list[str], MessageHeader()],
        short: Annotated[str, MessageHeader("tenant"), Field(max_length=4)],
        missing: Annotated[int | None, MessageHeader()] = None,
    ) -> list[Any]:
        return [tenant, count, day, tags, short, missing]

    headers = {"tenant": "acme", "COUNT": 5, "on": date(2026, 1, 2), "tags": ["a", "b"]}

    assert await ask(handler, headers=headers) == ["acme", 5, date(2026, 1, 2), ["a", "b"], "acme", None]


async def test_a_missing_header_is_a_header_error_that_names_what_was_sent() -> None:
    async def handler(tenant: Annotated[str, MessageHeader("tenant")]) -> None: ...

    with pytest.raises(HeaderError) as caught:
        await ask(handler, headers={"other": "x"})

    assert caught.value.what == "the message has no header 'tenant'"
    assert "other" in caught.value.tried
    assert "headers={'tenant': ...}" in caught.value.hint


@pytest.mark.parametrize(("annotation", "text"), [(int, "many"), (Annotated[str, Field(max_length=2)], "long")])
async def test_a_header_that_does_not_fit_is_a_header_error(annotation: Any, text: str) -> None:
    async def handler(value: Annotated[annotation, MessageHeader("value")]) -> None: ...

    with pytest.raises(HeaderError, match="'value'"):
        await ask(handler, headers={"value": text})


async def test_a_header_in_fastapi_style_is_found_with_dashes_and_underscores() -> None:
    async def handler(  # noqa: PLR0917
        user_id: Annotated[int, Header()],
        tenant: Annotated[str, Header(alias="X-Tenant")],
        at_least: Annotated[int, Header(ge=3)],
        made: Annotated[list[str], Header(default_factory=list)],
        spoken: str = Header("none"),
        behind: Annotated[str, Header()] = "default",
    ) -> list[Any]:
        return [user_id, tenant, at_least, made, spoken, behind]

    headers = {"user_id": 5, "x-tenant": "acme", "at-least": 3}

    assert await ask(handler, headers=headers) == [5, "acme", 3, [], "none", "default"]
    with pytest.raises(HeaderError, match="at-least"):
        await ask(handler, headers={**headers, "at-least": 2})


async def test_a_default_that_is_made_is_made_for_each_message() -> None:
    @command_handler("append")
    async def append(made: list[int] = Header(default_factory=list)) -> list[int]:
        made.append(1)
        return made

    commands = Ecotone([append]).command_bus

    assert await commands.send(to="append") == [1]
    assert await commands.send(to="append") == [1]


class HeaderModel(BaseModel):
    tenant: str


def test_a_model_of_headers_is_refused() -> None:
    @command_handler("place")
    async def place(headers: Annotated[HeaderModel, Header()]) -> None: ...

    assert "place: 'headers' is a model of headers" in str(problem_of(place))


def test_a_header_that_is_not_in_the_annotation_is_refused() -> None:
    @command_handler("one")
    async def one(tenant: str = MessageHeader("tenant")) -> None: ...  # type: ignore[assignment]

    @command_handler("two")
    async def two(tenant: Annotated[str, MessageHeader]) -> None: ...

    text = str(problem_of(one, two))

    assert "one: MessageHeader of 'tenant'" in text
    assert "two: MessageHeader of 'tenant'" in text
    assert "write tenant: Annotated[str, MessageHeader(...)]" in text


def test_a_header_of_a_type_that_nobody_can_read_is_refused_with_the_chain() -> None:
    class Unreadable: ...

    async def tenant(value: Annotated[Unreadable, MessageHeader()]) -> None: ...

    @command_handler("place")
    async def place(tenant: Annotated[None, Depends(tenant)]) -> None: ...

    assert "place -> tenant: a header cannot be read as " in str(problem_of(place))


# ------------------------------------------------------------------------------------------------------------- services


class Mailer(ABC):
    @abstractmethod
    def name(self) -> str: ...


class Smtp(Mailer):
    def __init__(self, host: str = "localhost") -> None:
        self.host = host

    def name(self) -> str:
        return f"smtp on {self.host}"


class Notifier(Protocol):
    def notify(self) -> str: ...


class Bell:
    def notify(self) -> str:
        return "ring"

    def __call__(self) -> str:
        return "called"


async def test_services_are_supplied_by_type_in_every_form() -> None:
    made: list[str] = []

    class Clocked:
        def __init__(self, clock: Clock, mailer: Mailer) -> None:
            made.append("class")
            self.of = mailer.name()

    def function() -> int:
        made.append("function")
        assert threading.current_thread() is not threading.main_thread()
        return 1

    async def coroutine() -> str:
        made.append("coroutine")
        return "two"

    @mark(Inline())
    def inline() -> bytes:
        made.append("inline")
        assert threading.current_thread() is threading.main_thread()
        return b"three"

    @query_handler("all")
    async def handler(  # noqa: PLR0917
        object_: Mailer, class_: Clocked, function: int, coroutine: str, inline: bytes, bell: Notifier, clock: Clock
    ) -> list[Any]:
        return [object_.name(), class_.of, function, coroutine, inline, bell.notify(), type(clock)]

    services = {
        Mailer: Smtp("mx"),
        Clocked: Clocked,
        int: function,
        str: coroutine,
        bytes: inline,
        Notifier: Bell(),
    }
    queries = Ecotone([handler], services=services).query_bus
    answer = ["smtp on mx", "smtp on mx", 1, "two", b"three", "ring", SystemClock]

    assert await queries.ask(to="all") == answer
    assert await queries.ask(to="all") == answer
    assert sorted(made) == ["class", "coroutine", "function", "inline"], "each is made once per application"


async def test_a_service_with_yield_lives_as_long_as_the_unit_of_work() -> None:
    log: list[str] = []

    async def mailer() -> AsyncIterator[Mailer]:
        log.append("opened")
        yield Smtp()
        log.append("closed")

    async def handler(mailer: Mailer) -> str:
        return mailer.name()

    ecotone = Ecotone([query_handler("ask")(handler)], services={Mailer: mailer})

    await ecotone.query_bus.ask(to="ask")
    await ecotone.query_bus.ask(to="ask")

    assert log == ["opened", "closed", "opened", "closed"]


async def test_one_class_behind_two_types_is_one_object() -> None:
    async def handler(mailer: Mailer, notifier: Smtp) -> bool:
        return mailer is notifier

    assert await ask(handler, services={Mailer: Smtp, Smtp: Smtp}) is True


async def test_depends_of_a_service_is_the_service() -> None:
    class Service:
        def __init__(self, mailer: Annotated[Mailer, Depends()]) -> None:
            self.mailer = mailer

    smtp = Smtp()

    async def handler(service: Annotated[Service, Depends()]) -> bool:
        return service.mailer is smtp

    assert await ask(handler, services={Mailer: smtp}) is True


async def test_a_service_that_cannot_be_made_is_tried_again_with_the_next_message() -> None:
    attempts = Counter()

    async def mailer() -> Mailer:
        if await attempts() == 1:
            raise BrokenError
        return Smtp()

    async def handler(mailer: Mailer) -> str:
        return mailer.name()

    queries = Ecotone([query_handler("ask")(handler)], services={Mailer: mailer}).query_bus

    with pytest.raises(BrokenError):
        await queries.ask(to="ask")
    assert await queries.ask(to="ask") == "smtp on localhost"


async def test_a_service_is_made_once_by_many_messages_at_the_same_time() -> None:
    made = Counter()

    async def mailer() -> Mailer:
        await anyio.lowlevel.checkpoint()
        return Smtp(str(await made()))

    async def handler(mailer: Mailer) -> str:
        return mailer.name()

    queries = Ecotone([query_handler("ask")(handler)], services={Mailer: mailer}).query_bus

    assert set(await asyncio.gather(*[queries.ask(to="ask") for _ in range(5)])) == {"smtp on 1"}


async def test_the_buses_are_supplied_by_each_of_their_types() -> None:
    async def handler(
        commands: CommandBus, plain: PlainCommandBus, queries: Annotated[QueryBus, Depends()], events: EventBus
    ) -> list[bool]:
        return [commands is plain, isinstance(queries, QueryBus), isinstance(events, EventBus)]

    assert await ask(handler) == [True, True, True]


# ------------------------------------------------------------------------------------------------------------ lifetimes


class Nested:
    """A root handler that sends, and a nested one."""

    def __init__(self, dependency: Any) -> None:
        @command_handler("root")
        async def root(commands: CommandBus, value: Annotated[Any, Depends(dependency)]) -> list[Any]:
            again = await commands.send(to="nested")
            globex = await commands.send(to="nested", headers={"tenant": "globex"})
            return [value, again, globex]

        @command_handler("nested")
        async def nested(value: Annotated[Any, Depends(dependency)]) -> Any:
            return value

        self.commands = Ecotone([root, nested]).command_bus

    async def send(self) -> Any:
        return await self.commands.send(to="root", headers={"tenant": "acme"})


async def test_a_dependency_lives_as_long_as_the_unit_of_work() -> None:
    nested = Nested(Counter())

    assert await nested.send() == [1, 1, 1]
    assert await nested.send() == [2, 2, 2]


async def test_a_dependency_that_reads_a_header_is_made_once_for_each_value() -> None:
    counter = Counter()

    async def tenant(tenant: Annotated[str, MessageHeader()]) -> str:
        return tenant

    async def session(tenant: Annotated[str, Depends(tenant)]) -> str:
        return f"{tenant} {await counter()}"

    assert await Nested(session).send() == ["acme 1", "acme 1", "globex 2"]


async def test_two_headers_are_told_apart_in_whatever_order_handlers_ask_for_them() -> None:
    async def first(a: Annotated[str, MessageHeader()]) -> str:
        return a

    async def second(b: Annotated[str, MessageHeader()]) -> str:
        return b

    async def both(a: Annotated[str, Depends(first)], b: Annotated[str, Depends(second)]) -> str:
        return f"{a}{b}"

    @command_handler("root")
    async def root(commands: CommandBus, a: Annotated[str, Depends(first)], ab: Annotated[str, Depends(both)]) -> Any:
        return [ab, await commands.send(to="nested", headers={"a": "y", "b": "x"})]

    @command_handler("nested")
    async def nested(b: Annotated[str, Depends(second)], ab: Annotated[str, Depends(both)]) -> str:
        return ab

    assert await Ecotone([root, nested]).command_bus.send(to="root", headers={"a": "x", "b": "y"}) == ["xy", "yx"]


async def test_header_values_that_cannot_be_hashed_tell_nothing_apart() -> None:
    counter = Counter()

    async def session(tags: Annotated[list[str], MessageHeader()]) -> int:
        return await counter()

    @command_handler("root")
    async def root(commands: CommandBus, first: Annotated[int, Depends(session)]) -> list[int]:
        return [first, await commands.send(to="nested")]

    @command_handler("nested")
    async def nested(first: Annotated[int, Depends(session)], second: Annotated[int, Depends(session)]) -> int:
        assert first == second
        return first

    assert await Ecotone([root, nested]).command_bus.send(to="root", headers={"tags": ["a"]}) == [1, 2]


async def test_a_dependency_that_reads_the_message_lives_for_that_message_alone() -> None:
    log: list[str] = []

    async def of_message(message: Message[Any]) -> AsyncIterator[str]:
        log.append("opened")
        yield message.id
        log.append("closed")

    first, second, third = await Nested(of_message).send()

    assert len({first, second, third}) == 3
    assert log == ["opened", "opened", "closed", "opened", "closed", "closed"]


async def test_a_dependency_without_cache_stays_open_as_long_as_what_was_made_of_it() -> None:
    log: list[str] = []

    async def session() -> AsyncIterator[list[str]]:
        log.append("opened")
        yield log
        log.append("closed")

    async def repository(session: Annotated[list[str], Depends(session, use_cache=False)]) -> list[str]:
        return session

    await Nested(repository).send()

    assert log == ["opened", "opened", "opened", "closed", "closed", "closed"]


async def test_an_owner_that_needs_nothing_of_a_message_is_made_once_per_application() -> None:
    made = []

    class Orders:
        def __init__(self, mailer: Mailer, events: EventBus) -> None:
            made.append(self)

        @command_handler
        async def place(self, command: PlaceOrder) -> None:
            assert self is made[0]

        @event_handler
        def when_placed(self, event: OrderWasPlaced) -> None:
            assert self is made[0]

    ecotone = Ecotone([Orders], services={Mailer: Smtp})

    await ecotone.command_bus.send(PlaceOrder("1"))
    await ecotone.command_bus.send(PlaceOrder("2"))
    await ecotone.event_bus.publish(OrderWasPlaced("1"))

    assert len(made) == 1
    assert ecotone.prepare().plan_of(next(iter(ecotone.assembly.endpoints)).id).lines == (
        "self: Orders, once per application",
        "  mailer: Mailer, from Smtp, once per application",
        "    host: str, its default 'localhost'",
        "  events: EventBus, the given EventBus, one for the application",
        "command: PlaceOrder, the payload",
    )


async def test_an_owner_that_depends_on_something_is_made_once_per_unit_of_work() -> None:
    made = []

    class Orders:
        def __init__(self, session: Annotated[int, Depends(Counter())], commands: CommandBus) -> None:
            made.append(session)
            self.commands = commands

        @command_handler("place")
        async def place(self) -> None:
            await self.commands.send(to="check")

        @command_handler("check")
        async def check(self) -> None: ...

    commands = Ecotone([Orders]).command_bus

    await commands.send(to="place")
    await commands.send(to="place")

    assert made == [1, 2]


async def test_an_owner_that_was_given_is_used_as_it_is() -> None:
    class Orders:
        def __init__(self, unresolvable: object) -> None:
            self.placed: list[str] = []

        @command_handler
        async def place(self, command: PlaceOrder) -> None:
            self.placed.append(command.order_id)

    orders = Orders(object())
    await Ecotone([orders]).command_bus.send(PlaceOrder("1"))

    assert orders.placed == ["1"]


async def test_an_interceptor_may_bring_the_object_whose_method_is_called() -> None:
    @dataclass
    class Order:
        order_id: str
        closed: bool = False

        @command_handler("close")
        def close(self) -> str:
            self.closed = True
            return self.order_id

    order = Order("1")

    class Brings:
        def install(self, assembly: Assembly) -> None:
            assembly.add_resolver(self)
            assembly.add_interceptor(self.bring, stage=Stage.HANDLE)

        def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
            return FromMessage(lambda message: None) if parameter.annotation is Order else None

        async def bring(self, call: Call, proceed: Proceed) -> Any:
            call.instance = order
            return await proceed(call)

    assert await Ecotone([Order], plugins=[Brings()]).command_bus.send(to="close") == "1"
    assert order.closed


async def test_an_instance_is_not_for_a_handler_without_self() -> None:
    class Brings:
        def install(self, assembly: Assembly) -> None:
            assembly.add_interceptor(self.bring, stage=Stage.HANDLE)

        async def bring(self, call: Call, proceed: Proceed) -> Any:
            call.instance = object()
            return await proceed(call)

    @command_handler
    async def place(command: PlaceOrder) -> str:
        return command.order_id

    assert await Ecotone([place], plugins=[Brings()]).command_bus.send(PlaceOrder("1")) == "1"


async def test_what_plugins_supply_is_of_the_message_the_unit_or_the_application() -> None:
    calls: list[str] = []

    def of_message(message: Message[Any]) -> str:
        calls.append("message")
        return message.id

    def of_scope(scope: Any) -> str:
        calls.append("scope")
        return "scope"

    @dataclass(frozen=True)
    class Marker:
        supplier: Supplier

    class Resolver:
        def install(self, assembly: Assembly) -> None:
            assembly.add_resolver(self)

        def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
            return next((one.supplier for one in parameter.metadata if isinstance(one, Marker)), None)

    async def handler(
        id: Annotated[str, Marker(FromMessage(of_message))],
        again: Annotated[str, Marker(FromMessage(of_message))],
        scope: Annotated[str, Marker(FromScope("scope", of_scope))],
        constant: Annotated[int, Marker(Constant(5))],
        dependency: Annotated[int, Marker(Dependency(Counter()))],
    ) -> list[Any]:
        return [id == again, scope, constant, dependency]

    ecotone = Ecotone([query_handler("ask")(handler)], plugins=[Resolver()])

    assert await ecotone.query_bus.ask(to="ask") == [True, "scope", 5, 1]
    assert calls == ["message", "scope"]
    assert ecotone.prepare().plan_of(ecotone.assembly.endpoints[0].id).lines[:3] == (
        "id: str, read from the message",
        "again: str, read from the message",
        "scope: str, of the unit of work",
    )


# ------------------------------------------------------------------------------------------------------------ overrides


async def production() -> str:
    return "production"


async def test_overrides_of_the_application_take_effect_at_once_and_end_at_once() -> None:
    async def handler(value: Annotated[str, Depends(production)]) -> str:
        return value

    app = FastAPI()
    ecotone = Ecotone([query_handler("ask")(handler)])
    ecotone.install(app)

    assert await ecotone.query_bus.ask(to="ask") == "production"
    app.dependency_overrides[production] = lambda: "test"
    assert await ecotone.query_bus.ask(to="ask") == "test"
    app.dependency_overrides.clear()
    assert await ecotone.query_bus.ask(to="ask") == "production"


async def test_an_override_that_was_there_at_start_is_part_of_the_check() -> None:
    async def user(request: Request) -> str:
        return request.headers["user"]

    @asynchronous("later")
    @command_handler("place", id="place")
    async def place(user: Annotated[str, Depends(user)]) -> None: ...

    channels = [MemoryChannel("later")]

    assert "place -> user: 'request' is Request, but this handler runs in a consumer" in str(
        problem_of(place, channels=channels)
    )
    Ecotone([place], channels=channels, overrides={user: lambda: "ada"}).prepare()


async def test_services_and_what_the_framework_offers_can_be_overridden_by_type() -> None:
    fake = object()

    class Service:
        def __init__(self, mailer: Mailer) -> None:
            self.mailer = mailer

    async def handler(mailer: Mailer, service: Service, commands: CommandBus, queries: QueryBus) -> list[bool]:
        return [mailer.name() == "smtp on test", service.mailer is mailer, commands is fake, queries is fake]

    overrides = {Mailer: lambda: Smtp("test"), CommandBus: lambda: fake}
    services = {Mailer: Smtp(), Service: Service}

    assert await ask(handler, services=services, overrides=overrides) == [True, True, True, False]
    assert await ask(handler, services=services) == [False, True, False, False]


async def test_what_lives_as_long_as_the_application_does_not_keep_an_override() -> None:
    class Orders:
        def __init__(self, mailer: Mailer) -> None:
            self.mailer = mailer

        @query_handler("mailer")
        async def name_of_mailer(self) -> str:
            return self.mailer.name()

    app = FastAPI()
    ecotone = Ecotone([Orders], services={Mailer: Smtp("real")})
    ecotone.install(app)

    assert await ecotone.query_bus.ask(to="mailer") == "smtp on real"
    app.dependency_overrides[Mailer] = lambda: Smtp("test")
    assert await ecotone.query_bus.ask(to="mailer") == "smtp on test"
    app.dependency_overrides.clear()
    assert await ecotone.query_bus.ask(to="mailer") == "smtp on real"


async def test_an_override_of_a_bus_dependency_is_used_where_it_is_depended_on() -> None:
    async def handler(
        asked: Annotated[Any, Depends(get_command_bus)], offered: Annotated[Any, Depends(CommandBus)]
    ) -> list[bool]:
        return [asked == "fake", isinstance(offered, CommandBus)]

    assert await ask(handler, overrides={get_command_bus: lambda: "fake"}) == [True, True]


async def test_an_owner_can_be_overridden_even_when_it_was_given() -> None:
    class Orders:
        name = "real"

        @query_handler("name")
        async def get_name(self) -> str:
            return self.name

    class FakeOrders(Orders):
        name = "fake"

    ecotone = Ecotone([Orders()], overrides={Orders: FakeOrders})

    assert await ecotone.query_bus.ask(to="name") == "fake"


async def test_an_override_of_a_payload_class_is_nobodys_business() -> None:
    @command_handler
    async def place(command: PlaceOrder) -> str:
        return command.order_id

    ecotone = Ecotone([place], overrides={PlaceOrder: lambda: PlaceOrder("overridden")})

    assert await ecotone.command_bus.send(PlaceOrder("1")) == "1"


def test_an_override_must_be_callable() -> None:
    @command_handler("place")
    async def place(value: Annotated[str, Depends(production)]) -> None: ...

    assert "place: 'fake' cannot be called" in str(problem_of(place, overrides={production: "fake"}))


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_an_error_names_the_handler_the_chain_the_parameter_and_what_to_do() -> None:
    class Repository:
        def __init__(self, connection: Mailer) -> None: ...

    class Orders:
        def __init__(self, repository: Annotated[Repository, Depends()]) -> None: ...

        @command_handler
        async def place(self, command: PlaceOrder) -> None: ...

    # How many services are known is not the same in every application.
    assert re.sub(r"\(\d+ known\)", "(… known)", str(problem_of(Orders))) == (
        "Orders.place -> Orders -> Repository: nothing supplies 'connection: Mailer'\n"
        "Tried: Depends and other markers, headers, message, buses, services (… known), payload, default.\n"
        "Hint: give Ecotone(services={Mailer: ...}) or annotate it: Annotated[Mailer, Depends(...)]"
    )


def test_all_that_is_wrong_is_told_at_once() -> None:
    @command_handler("one")
    async def one(value: int, other: int) -> None: ...

    @command_handler("two")
    async def two(value: int, bare) -> None: ...  # type: ignore[no-untyped-def]

    @command_handler("three")
    async def three(value: int, listed: list[int]) -> None: ...

    problem = problem_of(one, two, three)

    assert len(problem.problems) == 3
    assert "one: nothing supplies 'other: int'" in str(problem)
    assert "two: nothing supplies 'bare'" in str(problem)
    assert "annotate it: Annotated[..., Depends(...)]" in str(problem)
    assert "three: nothing supplies 'listed: list[int]'" in str(problem)


class Cook:
    def __init__(self, waiter: "Annotated[Waiter, Depends()]") -> None: ...


class Waiter:
    def __init__(self, cook: Annotated[Cook, Depends()]) -> None: ...


async def circular_a(value: "Annotated[None, Security(circular_b, scopes=['b'])]") -> None: ...


async def circular_b(value: Annotated[None, Security(circular_a, scopes=["a"])]) -> None: ...


def test_a_circle_is_named() -> None:
    @command_handler("classes")
    async def classes(waiter: Annotated[Waiter, Depends()]) -> None: ...

    @command_handler("functions")
    async def functions(value: Annotated[None, Depends(circular_a)]) -> None: ...

    @command_handler("services")
    async def services(waiter: Mailer) -> None: ...

    def needs_itself(mailer: Mailer) -> Mailer:
        return mailer

    text = str(problem_of(classes, functions, services, services={Mailer: needs_itself}))

    assert "classes -> Waiter -> Cook: circular dependency Waiter -> Cook -> Waiter" in text
    assert "functions -> circular_a -> circular_b: circular dependency circular_a -> circular_b -> circular_a" in text
    assert "services -> needs_itself: circular dependency needs_itself -> needs_itself" in text


def test_what_cannot_be_depended_on_is_named() -> None:
    @command_handler("optional")
    async def optional(value: Annotated[int | None, Depends()]) -> None: ...

    @command_handler("nothing")
    async def nothing(value=Depends()) -> None: ...  # type: ignore[no-untyped-def]

    @command_handler("both")
    async def both(value: Annotated[str, Depends(production)] = Depends(production)) -> None: ...

    @command_handler("generator")
    async def generator(value: int) -> AsyncIterator[int]:
        yield value

    @command_handler("listed", dependencies=[production])
    async def listed() -> None: ...

    @command_handler("listed_nothing", dependencies=[Depends()])
    async def listed_nothing() -> None: ...

    text = str(problem_of(optional, nothing, both, generator, listed, listed_nothing))

    assert "optional: int | None cannot be called" in text
    assert "nothing: 'value' is Depends() of nothing" in text
    assert "both: 'value' has Depends in its annotation and as its default" in text
    assert "generator: a message handler cannot use yield" in text
    assert "in dependencies= is no dependency\nHint: write Depends(...)" in text
    assert "listed_nothing: 'dependencies' is Depends() of nothing" in text


def test_an_annotation_that_cannot_be_evaluated_is_named() -> None:
    async def dependency(value: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    @command_handler("place")
    async def place(command: PlaceOrder, value: Annotated[None, Depends(dependency)]) -> None: ...

    problem = problem_of(place)

    assert problem.what == (
        "place -> dependency: annotation 'Missing' of 'value' cannot be evaluated (name 'Missing' is not defined)"
    )
    assert "importable at run time" in problem.hint


def test_a_request_in_a_consumer_is_named_with_the_chain() -> None:
    def connection(connection: HTTPConnection) -> None: ...

    @asynchronous("later")
    @event_handler(id="one")
    async def one(event: OrderWasPlaced, value: Annotated[None, Depends(connection)]) -> None: ...

    @asynchronous("later")
    @event_handler(id="two")
    async def two(event: OrderWasPlaced, socket: WebSocket) -> None: ...

    text = str(problem_of(one, two, channels=[MemoryChannel("later")]))

    assert "one -> connection: 'connection' is HTTPConnection, but this handler runs in a consumer" in text
    assert "two: 'socket' is WebSocket, but this handler runs in a consumer" in text
    assert "Hint: send what it reads as a message header, or override the dependency" in text


async def test_a_request_is_asked_for_and_the_message_was_not_sent_from_one() -> None:
    async def path(request: Request) -> str:
        return request.url.path

    async def handler(path: Annotated[str, Depends(path)]) -> None: ...

    with pytest.raises(UnresolvableParameterError) as caught:
        await ask(handler)

    assert caught.value.what == "handler -> path: 'request' is Request, but the message was not sent from one"


def test_a_fastapi_that_is_not_known_is_named_at_import() -> None:
    with pytest.raises(ImportError, match=rf"str of fastapi {fastapi.__version__} has no dependency and no use_cache"):
        probed("marker", "dependency", "use_cache")


def test_a_header_with_a_default_in_its_annotation_is_named() -> None:
    @command_handler("place")
    async def place(tenant: Annotated[str, Header("tenant")]) -> None: ...

    assert "for a message header use MessageHeader('tenant')" in str(problem_of(place))


# ----------------------------------------------------------------------------------------------------- how it is called


async def test_a_handler_may_be_an_object_that_can_be_called() -> None:
    class Places:
        def __init__(self) -> None:
            self.placed: list[str] = []

        async def __call__(self, command: PlaceOrder, number: Annotated[int, Depends(Counter())]) -> int:
            self.placed.append(command.order_id)
            return number

    places = command_handler(Places())

    assert await Ecotone([places]).command_bus.send(PlaceOrder("1")) == 1
    assert places.placed == ["1"]


async def test_a_handler_may_stand_behind_a_decorator() -> None:
    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return ["noted", await function(*args, **kwargs)]

        return wrapper

    class Orders:
        @command_handler
        @noted
        async def place(self, command: PlaceOrder, number: Annotated[int, Depends(Counter())]) -> Any:
            return [command.order_id, number]

    assert await Ecotone([Orders]).command_bus.send(PlaceOrder("1")) == ["noted", ["1", 1]]


async def test_a_handler_may_be_static_or_of_its_class() -> None:
    class Orders:
        @command_handler("static")
        @staticmethod
        async def static(number: Annotated[int, Depends(Counter())]) -> int:
            return number

        @command_handler("class")
        @classmethod
        async def of_class(cls, number: Annotated[int, Depends(Counter())]) -> list[Any]:
            return [cls.__name__, number]

    commands = Ecotone([Orders]).command_bus

    assert await commands.send(to="static") == 1
    assert await commands.send(to="class") == ["Orders", 1]


async def test_dependencies_may_be_partial_functions_and_partial_classes() -> None:
    async def greet(greeting: str, name: Annotated[str, Depends(production)], mark: str) -> str:
        return f"{greeting} {name}{mark}"

    class Greeting:
        def __init__(self, greeting: str, name: Annotated[str, Depends(production)]) -> None:
            self.text = f"{greeting} {name}"
            self.inline = threading.current_thread() is threading.main_thread()

    async def handler(
        function: Annotated[str, Depends(functools.partial(greet, "hello", mark="!"))],
        made: Annotated[Greeting, Depends(functools.partial(Greeting, "hi"))],
    ) -> list[Any]:
        return [function, made.text, made.inline]

    assert await ask(handler) == ["hello production!", "hi production", True]


async def test_a_dependency_may_take_arguments_by_place_only() -> None:
    async def dependency(
        value: Annotated[str, Depends(production)], /, *, number: Annotated[int, Depends(Counter())]
    ) -> Any:
        return [value, number]

    async def handler(value: Annotated[Any, Depends(dependency)]) -> Any:
        return value

    assert await ask(handler) == ["production", 1]


async def test_a_dependency_that_cannot_be_hashed_is_told_by_its_identity() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.count = 0

        async def __call__(self) -> int:
            self.count += 1
            return self.count

    dependency = Unhashable()

    async def handler(one: Annotated[int, Depends(dependency)], two: Annotated[int, Depends(dependency)]) -> list[int]:
        return [one, two]

    assert await ask(handler) == [1, 1]


async def test_a_dependency_that_is_false_is_a_dependency() -> None:
    class Empty(list[int]):
        async def __call__(self) -> str:
            return "called"

        __hash__ = object.__hash__  # type: ignore[assignment]

    async def handler(value: Annotated[str, Depends(Empty())]) -> str:
        return value

    assert await ask(handler) == "called"


async def test_dependencies_of_the_decorator_run_first_and_once() -> None:
    log: list[str] = []

    async def check() -> str:
        log.append("checked")
        return "checked"

    class Orders:
        def __init__(self) -> None:
            log.append("made")

        @command_handler("place", dependencies=[Depends(check)])
        async def place(self, checked: Annotated[str, Depends(check)]) -> None:
            log.append(f"placed {checked}")

    ecotone = Ecotone([Orders])
    await ecotone.command_bus.send(to="place")

    assert sorted(log[:2]) == ["checked", "made"]
    assert log[2:] == ["placed checked"]


async def test_the_scope_of_a_handler_is_the_units() -> None:
    scopes = []

    async def dependency() -> None:
        scopes.append(current_scope())

    async def handler(value: Annotated[None, Depends(dependency)]) -> None:
        scopes.append(current_scope())

    await ask(handler)

    assert scopes[0] is scopes[1]
    assert current_scope() is None


async def test_what_every_parameter_is_can_be_told_to_people() -> None:
    def session() -> Iterator[int]:
        yield 1

    async def user(scopes: SecurityScopes, tenant: Annotated[str, MessageHeader("tenant")] = "none") -> str:
        return tenant

    def number(message: Message[Any], session: Annotated[int, Depends(session, use_cache=False)]) -> int:
        return session

    limited = Dependency(session, limit=3)

    @command_handler("place", dependencies=[Depends(user)])
    def place(  # noqa: PLR0917
        command: PlaceOrder,
        again: Annotated[str, Depends(user)],
        user: Annotated[str, Security(user, scopes=["me"])],
        number: Annotated[int, Depends(number)],
        limited: Annotated[int, limited],
        request: Request,
        note: str = "",
    ) -> None: ...

    async def fake() -> int:
        return 1

    class Limits:
        def install(self, assembly: Assembly) -> None:
            assembly.add_resolver(self)

        def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
            return limited if limited in parameter.metadata else None

    ecotone = Ecotone([place], plugins=[Limits()], overrides={session: fake})

    assert ecotone.prepare().plan_of(ecotone.assembly.endpoints[0].id).lines == (
        "dependencies, from user, once per unit of work and header value",
        "  scopes: SecurityScopes, the security scopes on the way here",
        "  tenant: str, the header 'tenant', else its default 'none'",
        "command: PlaceOrder, the payload",
        "again: str, from user, the same as above",
        "user: str, from user, once per unit of work and header value, security scopes me",
        "  scopes: SecurityScopes, the security scopes on the way here",
        "  tenant: str, the header 'tenant', else its default 'none'",
        "number: int, from number, once per message, in a worker thread",
        "  message: Message[Any], the message",
        "  session: int, from fake, in place of session, once per use",
        "limited: int, from fake, in place of session, the same as above, at most 3 at a time",
        "request: Request, of the unit of work",
        "note: str, its default ''",
    )
    assert ecotone.prepare().plan_of(ecotone.assembly.endpoints[0].id).manner == "def, in a worker thread"
