"""The buses in endpoints: aliases, overrides, sharing, threads, units of work."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.from_thread
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Security, WebSocket
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient

from ecotone_fastapi import (
    CommandBus,
    CommandBusDep,
    ConfigurationError,
    Ecotone,
    EventBus,
    EventBusDep,
    Message,
    QueryBus,
    QueryBusDep,
    command_bus,
    command_handler,
    event_bus,
    event_handler,
    query_bus,
    query_handler,
)
from ecotone_fastapi.web.buses import get_command_bus


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Orders:
    def __init__(self) -> None:
        self.placed: list[str] = []
        self.mailed: list[str] = []

    @command_handler
    async def place(self, command: PlaceOrder, events: EventBus) -> str:
        self.placed.append(command.order_id)
        await events.publish(OrderWasPlaced(command.order_id))
        return command.order_id

    @event_handler
    async def mail(self, event: OrderWasPlaced) -> None:
        self.mailed.append(event.order_id)

    @query_handler("placed")
    async def tell(self) -> list[str]:
        return self.placed


def serving(*handlers: object, **options: Any) -> FastAPI:
    app = FastAPI()
    Ecotone(handlers, **options).install(app)
    return app


# ------------------------------------------------------------------------------------------------- aliases and types


def test_endpoints_ask_for_the_buses_by_their_aliases() -> None:
    orders = Orders()
    app = serving(orders)

    @app.post("/orders/{order_id}")
    async def place(order_id: str, commands: CommandBusDep, queries: QueryBusDep, events: EventBusDep) -> Any:
        await commands.send(PlaceOrder(order_id))
        await events.publish(OrderWasPlaced("another"))
        return await queries.ask(to="placed")

    with TestClient(app) as client:
        assert client.post("/orders/1").json() == ["1"]

    assert orders.mailed == ["1", "another"]


def test_endpoints_may_ask_for_the_buses_by_type_alone() -> None:
    orders = Orders()
    app = serving(orders)

    @app.post("/orders/{order_id}")
    async def place(
        order_id: str,
        commands: Annotated[CommandBus, Depends()],
        queries: Annotated[QueryBus, Depends()],
        events: Annotated[EventBus, Depends()],
    ) -> Any:
        await commands.send(PlaceOrder(order_id))
        await events.publish(OrderWasPlaced("another"))
        return await queries.ask(to="placed")

    client = TestClient(app)  # the classes are made in threads, by the very first request at that

    assert client.post("/orders/1").json() == ["1"]
    assert orders.mailed == ["1", "another"]
    for path in app.openapi()["paths"]["/orders/{order_id}"].values():
        assert [one["name"] for one in path["parameters"]] == ["order_id"]


async def test_the_first_requests_may_come_all_at_once_in_threads() -> None:
    installs: list[object] = []

    class Counted:
        def install(self, assembly: object) -> None:
            installs.append(assembly)

    app = serving(Orders(), plugins=[Counted()])

    @app.get("/")
    async def get(queries: Annotated[QueryBus, Depends()]) -> Any:
        return await queries.ask(to="placed")

    async with asgi(app) as client, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(client.get, "/")

    assert len(installs) == 1


def asgi(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def test_dependencies_of_endpoints_may_use_the_buses() -> None:
    app = serving(Orders())

    async def number_of_orders(queries: QueryBusDep) -> int:
        return len(await queries.ask(to="placed"))

    @app.get("/")
    async def get(number: Annotated[int, Depends(number_of_orders)]) -> int:
        return number

    assert TestClient(app).get("/").json() == 0


def test_a_synchronous_endpoint_uses_a_bus_from_its_thread() -> None:
    orders = Orders()
    app = serving(orders)

    @app.post("/orders/{order_id}")
    def place(order_id: str, commands: CommandBusDep) -> Any:
        send = partial(commands.send, headers={"tenant": "acme"})
        return anyio.from_thread.run(send, PlaceOrder(order_id))

    with TestClient(app) as client:
        assert client.post("/orders/1").json() == "1"
    assert (orders.placed, orders.mailed) == (["1"], ["1"])


def test_a_bus_may_be_used_after_the_response() -> None:
    orders = Orders()
    app = serving(orders)

    @app.post("/")
    async def place(background: BackgroundTasks, commands: CommandBusDep) -> None:
        background.add_task(commands.send, PlaceOrder("1"))

    TestClient(app).post("/")

    assert orders.mailed == ["1"]


# ---------------------------------------------------------------------------------------------------------- overrides


class Recording:
    """A bus of a test."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, command: Any, **options: Any) -> str:
        self.sent.append(command)
        return "recorded"


def test_the_type_of_a_bus_can_be_overridden() -> None:
    app, recording = serving(Orders()), Recording()

    @app.post("/")
    async def place(commands: Annotated[CommandBus, Depends()]) -> Any:
        return await commands.send(PlaceOrder("1"))

    client = TestClient(app)
    app.dependency_overrides[CommandBus] = lambda: recording
    assert client.post("/").json() == "recorded"
    app.dependency_overrides.clear()
    assert client.post("/").json() == "1"

    assert recording.sent == [PlaceOrder("1")]


def test_the_dependency_of_an_alias_can_be_overridden() -> None:
    app, recording = serving(Orders()), Recording()

    @app.post("/")
    async def place(commands: CommandBusDep) -> Any:
        return await commands.send(PlaceOrder("1"))

    client = TestClient(app)
    app.dependency_overrides[get_command_bus] = lambda: recording
    assert client.post("/").json() == "recorded"
    app.dependency_overrides.clear()
    assert client.post("/").json() == "1"


def get_greeting() -> str:
    return "Hello"


class Greeter:
    @query_handler("greet")
    async def greet(self, name: str, greeting: Annotated[str, Depends(get_greeting)]) -> str:
        return f"{greeting} {name}"


def greeting_app() -> FastAPI:
    app = serving(Greeter)

    @app.get("/{name}")
    async def get(name: str, queries: QueryBusDep) -> str:
        return await queries.ask(name, to="greet", returns=str)

    return app


def test_a_dependency_of_a_handler_can_be_overridden_at_any_time() -> None:
    app = greeting_app()
    with TestClient(app) as client:
        assert client.get("/Ada").json() == "Hello Ada"
        app.dependency_overrides[get_greeting] = lambda: "Goodbye"
        assert client.get("/Ada").json() == "Goodbye Ada"
        app.dependency_overrides.clear()
        assert client.get("/Ada").json() == "Hello Ada"


def test_an_override_that_is_there_before_the_start_stays_an_override() -> None:
    app = greeting_app()
    app.dependency_overrides[get_greeting] = lambda: "Goodbye"
    with TestClient(app) as client:
        assert client.get("/Ada").json() == "Goodbye Ada"
        app.dependency_overrides.clear()
        assert client.get("/Ada").json() == "Hello Ada"


def test_overrides_belong_to_one_application() -> None:
    one, other = greeting_app(), greeting_app()
    one.dependency_overrides[get_greeting] = lambda: "Goodbye"

    assert TestClient(one).get("/Ada").json() == "Goodbye Ada"
    assert TestClient(other).get("/Ada").json() == "Hello Ada"


def test_a_handler_of_a_request_to_a_mounted_application_has_the_overrides_of_the_one_around_it() -> None:
    app, mounted = serving(Greeter), FastAPI()
    app.mount("/mounted", mounted)

    @mounted.get("/{name}")
    async def get(name: str, queries: QueryBusDep) -> str:
        return await queries.ask(name, to="greet", returns=str)

    app.dependency_overrides[get_greeting] = lambda: "Goodbye"
    mounted.dependency_overrides[get_greeting] = lambda: "never"

    assert TestClient(app).get("/mounted/Ada").json() == "Goodbye Ada"


def test_overrides_given_to_ecotone_and_to_the_application_hold_together() -> None:
    def get_name() -> str:
        return "nobody"

    @query_handler("greet")
    async def greet(greeting: Annotated[str, Depends(get_greeting)], name: Annotated[str, Depends(get_name)]) -> str:
        return f"{greeting} {name}"

    app = serving(greet, overrides={get_greeting: lambda: "Goodbye"})
    app.dependency_overrides[get_name] = lambda: "Ada"

    @app.get("/")
    async def get(queries: QueryBusDep) -> str:
        return await queries.ask(to="greet", returns=str)

    assert TestClient(app).get("/").json() == "Goodbye Ada"


# ------------------------------------------------------------------------------------------------------------ sharing


class Session:
    """Something that is opened for a request and closed after it."""

    opened: list["Session"]

    def __init__(self) -> None:
        self.closed = 0
        Session.opened.append(self)


@pytest.fixture(autouse=True)
def _no_sessions() -> Iterator[None]:
    Session.opened = []
    yield
    assert [session.closed for session in Session.opened] == [1] * len(Session.opened)


async def get_session() -> AsyncIterator[Session]:
    session = Session()
    yield session
    session.closed += 1


SessionDep = Annotated[Session, Depends(get_session)]


class Shop:
    def __init__(self) -> None:
        self.seen: list[Session] = []

    def note(self, session: Session) -> None:
        assert not session.closed
        self.seen.append(session)

    @command_handler("buy")
    async def buy(self, session: SessionDep, events: EventBus) -> None:
        self.note(session)
        await events.publish("bread", to="bought")

    @event_handler("bought")
    async def when_bought(self, event: str, session: SessionDep) -> None:
        self.note(session)

    @query_handler("ask")
    async def ask(self, session: SessionDep) -> None:
        self.note(session)


def test_without_sharing_every_message_has_a_session_of_its_own() -> None:
    shop = Shop()
    app = serving(shop)

    @app.post("/")
    async def buy(commands: CommandBusDep, session: SessionDep) -> None:
        shop.note(session)
        await commands.send(to="buy")
        await commands.send(to="buy")

    TestClient(app).post("/")

    assert len(Session.opened) == 3
    assert shop.seen == [Session.opened[number] for number in (0, 1, 1, 2, 2)]


@pytest.mark.parametrize(
    "shared", [get_session, Depends(get_session), SessionDep], ids=["callable", "Depends", "Annotated"]
)
def test_handlers_use_the_session_that_the_endpoint_shares(shared: Any) -> None:
    shop = Shop()
    app = serving(shop)

    @app.post("/")
    async def buy(
        session: SessionDep,
        commands: Annotated[CommandBus, Depends(command_bus(share=[shared]))],
        queries: Annotated[QueryBus, Depends(query_bus(share=[shared]))],
        events: Annotated[EventBus, Depends(event_bus(share=[shared]))],
    ) -> None:
        shop.note(session)
        await commands.send(to="buy")
        await commands.send(to="buy")
        await queries.ask(to="ask")
        await events.publish("milk", to="bought")
        shop.note(session)

    TestClient(app).post("/")

    assert len(Session.opened) == 1
    assert shop.seen == Session.opened * 8
    assert "parameters" not in app.openapi()["paths"]["/"]["post"]


def test_a_class_that_is_annotated_with_depends_can_be_shared() -> None:
    class Basket:
        pass

    BasketDep = Annotated[Basket, Depends()]  # noqa: N806
    seen: list[Basket] = []

    @command_handler("fill")
    async def fill(basket: BasketDep) -> None:
        seen.append(basket)

    app = serving(fill)

    @app.post("/")
    async def post(basket: BasketDep, commands: Annotated[CommandBus, Depends(command_bus(share=[BasketDep]))]) -> None:
        await commands.send(to="fill")
        assert seen == [basket]

    assert TestClient(app).post("/").status_code == 200


def test_what_is_shared_follows_the_overrides_of_the_application() -> None:
    shop = Shop()
    app = serving(shop)
    test_session = Session()

    @app.post("/")
    async def buy(commands: Annotated[CommandBus, Depends(command_bus(share=[get_session]))]) -> None:
        await commands.send(to="buy")

    app.dependency_overrides[get_session] = lambda: test_session
    TestClient(app).post("/")

    assert shop.seen == [test_session, test_session]
    test_session.closed += 1


def test_a_failure_reaches_the_session_that_is_shared() -> None:
    seen: list[str] = []

    async def get_connection() -> AsyncIterator[str]:
        try:
            yield "connection"
        except ZeroDivisionError as error:
            seen.append(str(error))
            raise

    @command_handler("fail")
    async def fail(connection: Annotated[str, Depends(get_connection)]) -> None:
        raise ZeroDivisionError(connection)

    app = serving(fail)

    @app.post("/")
    async def post(commands: Annotated[CommandBus, Depends(command_bus(share=[get_connection]))]) -> None:
        await commands.send(to="fail")

    assert TestClient(app, raise_server_exceptions=False).post("/").status_code == 500
    assert seen == ["connection"]


def test_what_was_secured_for_the_endpoint_is_shared_with_handlers_that_want_the_same_scopes() -> None:
    checked: list[str] = []

    def get_user(scopes: SecurityScopes) -> str:
        checked.append(scopes.scope_str)
        return f"may {scopes.scope_str}"

    @query_handler("same")
    async def same(user: Annotated[str, Security(get_user, scopes=["buy", "sell"])]) -> str:
        return user

    @query_handler("more")
    async def more(user: Annotated[str, Security(get_user, scopes=["buy", "sell", "steal"])]) -> str:
        return user

    app = serving(same, more)
    bus = query_bus(share=[Security(get_user, scopes=["sell", "buy"])])

    @app.get("/{key}")
    async def get(key: str, queries: Annotated[QueryBus, Depends(bus)]) -> str:
        return await queries.ask(to=key, returns=str)

    client = TestClient(app)
    assert client.get("/same").json() == "may sell buy"
    assert checked == ["sell buy"]
    assert client.get("/more").json() == "may buy sell steal"
    assert checked == ["sell buy", "sell buy", "buy sell steal"]


@pytest.mark.parametrize("nothing", ["get_session", 5, Depends(), Annotated[int, "no Depends"]])
def test_only_dependencies_can_be_shared(nothing: Any) -> None:
    with pytest.raises(ConfigurationError, match="is no dependency"):
        command_bus(share=[nothing])


# ------------------------------------------------------------------------------------------------------ units of work


async def test_requests_at_the_same_time_are_separate_units_of_work() -> None:
    both = anyio.Event()
    waiting: list[Session] = []

    @command_handler("meet")
    async def meet(session: SessionDep, commands: CommandBus) -> None:
        waiting.append(session)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        await commands.send(to="part")

    @command_handler("part")
    async def part(session: SessionDep) -> None:
        waiting.append(session)

    app = serving(meet, part)

    @app.post("/")
    async def post(commands: CommandBusDep) -> None:
        await commands.send(to="meet")

    async with asgi(app) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.post, "/")
        tasks.start_soon(client.post, "/")

    assert len(Session.opened) == 2
    assert sorted(waiting, key=id) == sorted(Session.opened * 2, key=id)


async def test_messages_of_one_endpoint_at_the_same_time_are_separate_units_of_work() -> None:
    both = anyio.Event()
    waiting: list[Session] = []

    @command_handler("meet")
    async def meet(session: SessionDep) -> None:
        waiting.append(session)
        if len(waiting) == 2:
            both.set()
        await both.wait()

    app = serving(meet)

    @app.post("/")
    async def post(commands: CommandBusDep) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(commands.send, to="meet"))
            tasks.start_soon(partial(commands.send, to="meet"))

    async with asgi(app) as client:
        await client.post("/")

    assert len(set(waiting)) == len(Session.opened) == 2


class Correlated:
    def __init__(self) -> None:
        self.headers: dict[str, list[tuple[str, str]]] = {}

    def note(self, message: Message[str]) -> None:
        found = message.headers
        self.headers.setdefault(found["customer"], []).append((found["correlation_id"], found.get("causation_id", "")))

    @command_handler("outer")
    async def outer(self, payload: str, message: Message[str], commands: CommandBus, events: EventBus) -> None:
        self.note(message)
        await commands.send("", to="inner")
        await events.publish("", to="fact")

    @command_handler("inner")
    async def inner(self, payload: str, message: Message[str]) -> None:
        self.note(message)

    @event_handler("fact")
    async def fact(self, payload: str, message: Message[str]) -> None:
        self.note(message)


async def test_each_request_starts_a_conversation_of_its_own_unless_it_names_one() -> None:
    correlated = Correlated()
    app = serving(correlated)

    @app.post("/{customer}")
    async def post(customer: str, commands: CommandBusDep) -> None:
        await commands.send("", to="outer", headers={"customer": customer, "id": f"of-{customer}"})

    async with asgi(app) as client, anyio.create_task_group() as tasks:
        for customer in ("ada", "grace"):
            tasks.start_soon(client.post, f"/{customer}")
        tasks.start_soon(partial(client.post, "/barbara", headers={"x-correlation-id": "given"}))

    for customer in ("ada", "grace"):
        conversation, first = correlated.headers[customer][0][0], f"of-{customer}"
        assert correlated.headers[customer] == [(conversation, ""), (conversation, first), (conversation, first)]
    assert correlated.headers["ada"][0] != correlated.headers["grace"][0]
    assert {correlation for correlation, _ in correlated.headers["barbara"]} == {"given"}


# ------------------------------------------------------------------------------------------------ what was sent from


def test_synchronous_handlers_may_ask_for_the_request() -> None:
    @query_handler("agent")
    async def agent(request: Request) -> str:
        return request.headers["user-agent"]

    @query_handler("path")
    def path(request: Request) -> str:
        return request.url.path

    app = serving(agent, path)

    @app.get("/here")
    async def get(queries: QueryBusDep) -> Any:
        return [await queries.ask(to="agent"), await queries.ask(to="path")]

    assert TestClient(app, headers={"user-agent": "test"}).get("/here").json() == ["test", "/here"]


def test_synchronous_handlers_may_ask_for_the_websocket() -> None:
    @command_handler("echo")
    async def echo(text: str, websocket: WebSocket) -> None:
        await websocket.send_text(text)

    app = serving(echo)

    @app.websocket("/")
    async def talk(websocket: WebSocket, commands: CommandBusDep) -> None:
        await websocket.accept()
        await commands.send(await websocket.receive_text(), to="echo")

    with TestClient(app).websocket_connect("/") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
