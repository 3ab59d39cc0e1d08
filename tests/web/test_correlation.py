"""The correlation id comes in with a request by its header, and goes out with every response."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware import Middleware
from starlette.testclient import WebSocketDenialResponse

from ecotone_fastapi import (
    CommandBus,
    CommandBusDep,
    ConfigurationError,
    CorrelationMiddleware,
    Ecotone,
    asynchronous,
    command_handler,
    message_fields,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core import Message
from ecotone_fastapi.testing import flow_test
from ecotone_fastapi.web import correlation_id_of

HEADER = "X-Correlation-ID"


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Orders:
    """Keeps the correlation ids of the messages that it has handled."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @command_handler
    async def place(self, command: PlaceOrder, message: Message[Any], commands: CommandBus) -> str:
        self.seen.append(message.headers["correlation_id"])
        await commands.send(command.order_id, to="reserve", headers={"correlation_id": "of the handler"})
        return message.id

    @command_handler("reserve")
    def reserve(self, order_id: str, message: Message[Any]) -> None:
        self.seen.append(message.headers["correlation_id"])


def routed(app: FastAPI) -> FastAPI:
    """The application with its endpoints."""

    @app.post("/orders/{order_id}")
    async def place(order_id: str, commands: CommandBusDep) -> str:
        return str(await commands.send(PlaceOrder(order_id)))

    @app.post("/given/{correlation_id}")
    async def give(correlation_id: str, commands: CommandBusDep) -> None:
        await commands.send(PlaceOrder("1"), headers={"correlation_id": correlation_id})

    @app.post("/later")
    async def later(tasks: BackgroundTasks, commands: CommandBusDep) -> None:
        tasks.add_task(commands.send, PlaceOrder("1"))

    @app.get("/fields")
    def fields() -> dict[str, str | int]:
        return message_fields()

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield f"{message_fields()['correlation_id']}\n"
            yield "end"

        return StreamingResponse(lines())

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(403, "no")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    @app.get("/own")
    async def own() -> Response:
        return Response("own", headers={HEADER: "own"})

    return app


def installed(orders: Orders | None = None, **options: Any) -> FastAPI:
    app = FastAPI()
    Ecotone([orders or Orders()]).install(app, **options)
    return routed(app)


def with_lifespan(orders: Orders | None = None) -> FastAPI:
    app = FastAPI(lifespan=Ecotone([orders or Orders()]).lifespan)
    app.add_middleware(CorrelationMiddleware)
    return routed(app)


both_ways = pytest.mark.parametrize("serve", [installed, with_lifespan])

Serve = Callable[..., FastAPI]


# ------------------------------------------------------------------------------------------------------------------ in


@both_ways
def test_the_id_of_a_request_becomes_that_of_the_messages_it_sends(serve: Serve) -> None:
    orders = Orders()

    with TestClient(serve(orders)) as client:
        response = client.post("/orders/1", headers={HEADER: "checkout-7"})

    assert orders.seen == ["checkout-7", "checkout-7"]
    assert response.headers[HEADER] == "checkout-7"
    assert response.json() != "checkout-7"  # a message has an id of its own


@both_ways
def test_a_request_without_an_id_gets_one_for_all_its_messages(serve: Serve) -> None:
    orders = Orders()

    with TestClient(serve(orders)) as client:
        answered = [client.post(f"/orders/{number}").headers[HEADER] for number in (1, 2)]

    assert orders.seen == [answered[0]] * 2 + [answered[1]] * 2
    assert answered[0] != answered[1]


def test_the_sender_of_a_message_may_give_another_one() -> None:
    orders = Orders()

    with TestClient(installed(orders)) as client:
        response = client.post("/given/of-the-endpoint", headers={HEADER: "of-the-request"})

    assert orders.seen == ["of-the-endpoint", "of-the-endpoint"]
    assert response.headers[HEADER] == "of-the-request"


def test_what_is_sent_after_the_response_belongs_to_the_request() -> None:
    orders = Orders()

    with TestClient(installed(orders)) as client:
        client.post("/later", headers={HEADER: "checkout-7"})

    assert orders.seen == ["checkout-7", "checkout-7"]


@pytest.mark.parametrize(
    "refused",
    [
        b"",
        b"a" * 129,
        b"two\tcolumns",
        b"caf\xc3\xa9",
        b"\x1b[31mred",
        b"\xff\xfe",
        b"del\x7f",
    ],
)
def test_what_is_no_id_is_ignored_and_replaced_by_a_new_one(refused: bytes, caplog: pytest.LogCaptureFixture) -> None:
    orders = Orders()

    with TestClient(installed(orders)) as client, caplog.at_level(logging.DEBUG, "ecotone_fastapi.correlation"):
        response = client.post("/orders/1", headers=[(HEADER.encode(), refused)])

    assert response.status_code == 200
    assert orders.seen == [response.headers[HEADER]] * 2
    assert response.headers[HEADER].encode() != refused
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ecotone_fastapi.correlation"]
    assert "is no correlation id: ignored" in line
    assert line.replace("…", "").isprintable()
    assert len(line) < 200


@pytest.mark.parametrize("accepted", ["a" * 128, "order 7 / line 3", "~!@#$%^&*()"])
def test_printable_text_of_some_length_is_an_id(accepted: str) -> None:
    orders = Orders()

    with TestClient(installed(orders)) as client:
        response = client.post("/orders/1", headers={HEADER: accepted})

    assert orders.seen == [accepted] * 2
    assert response.headers[HEADER] == accepted


def test_the_header_may_have_another_name() -> None:
    orders = Orders()

    with TestClient(installed(orders, correlation_header="X-Request-ID")) as client:
        response = client.post("/orders/1", headers={"X-Request-ID": "r-1", HEADER: "c-1"})

    assert orders.seen == ["r-1", "r-1"]
    assert response.headers["X-Request-ID"] == "r-1"
    assert HEADER not in response.headers


def test_it_can_be_left_out() -> None:
    orders = Orders()

    with TestClient(installed(orders, correlation_header=None)) as client:
        response = client.post("/orders/1", headers={HEADER: "c-1"})

    assert orders.seen == [response.json()] * 2  # each message begins a conversation
    assert HEADER not in response.headers


@pytest.mark.parametrize("name", ["", "X Correlation", "X-Correlation:", "Größe", "X\r\nSet-Cookie"])
def test_a_name_that_no_header_can_have_is_told_at_once(name: str) -> None:
    app = FastAPI()

    with pytest.raises(ConfigurationError, match="no HTTP header can be named"):
        Ecotone([]).install(app, correlation_header=name)

    Ecotone([]).install(app)  # what was refused has left no trace


def test_records_of_a_request_have_its_correlation_id_and_no_message() -> None:
    with TestClient(installed()) as client:
        assert client.get("/fields", headers={HEADER: "c-1"}).json() == {"correlation_id": "c-1"}


async def test_a_request_of_a_handler_to_its_own_application_stays_in_the_conversation_of_its_message() -> None:
    orders, app = Orders(), FastAPI()

    @asynchronous("calls")
    @command_handler("call", id="call")
    async def call(command: str) -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post("/orders/1", headers={HEADER: "of-the-request"})

    async with flow_test([orders, call], channels=[MemoryChannel("calls")]) as flow:
        flow.ecotone.install(app)
        routed(app)
        await flow.send("now", to="call", headers={"correlation_id": "of-the-message"})
        await flow.run("calls")

    assert orders.seen == ["of-the-message", "of-the-message"]


def test_requests_do_not_leave_their_id_behind() -> None:
    with TestClient(installed()) as client:
        client.post("/orders/1", headers={HEADER: "c-1"})

    assert message_fields() == {}


# ----------------------------------------------------------------------------------------------------------------- out


@both_ways
@pytest.mark.parametrize(
    ("path", "status"), [("/fields", 200), ("/stream", 200), ("/refused", 403), ("/nowhere", 404), ("/broken", 500)]
)
def test_every_response_has_the_id(serve: Serve, path: str, status: int) -> None:
    with TestClient(serve(), raise_server_exceptions=False) as client:
        response = client.get(path, headers={HEADER: "c-1"})
        without = client.get(path)

    assert (response.status_code, response.headers.get_list(HEADER)) == (status, ["c-1"])
    assert (without.status_code, len(without.headers.get_list(HEADER))) == (status, 1)
    assert without.headers[HEADER] not in ("", "c-1")


@both_ways
def test_an_error_that_nobody_has_caught_is_answered_as_always_and_raised_for_the_server(serve: Serve) -> None:
    app = serve()

    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/broken")
    with TestClient(app) as client, pytest.raises(RuntimeError, match="broken"):
        client.get("/broken")

    assert (response.text, response.headers["content-type"]) == (
        "Internal Server Error",
        "text/plain; charset=utf-8",
    )


@both_ways
def test_the_page_with_the_traceback_has_the_id(serve: Serve) -> None:
    app = serve()
    app.debug = True

    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/broken", headers={HEADER: "c-1"})

    assert (response.status_code, response.headers[HEADER]) == (500, "c-1")
    assert "RuntimeError: broken" in response.text


def test_an_error_has_the_id_when_another_middleware_stands_around() -> None:
    app = installed()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])

    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/broken", headers={HEADER: "c-1"})

    assert (response.status_code, response.headers[HEADER]) == (500, "c-1")


@both_ways
def test_a_middleware_around_may_catch_the_error_itself(serve: Serve) -> None:
    app = serve()

    @app.middleware("http")
    async def catch(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await call_next(request)
        except RuntimeError:
            return JSONResponse("caught", 418, headers={HEADER: correlation_id_of(request) or ""})

    with TestClient(app) as client:
        response = client.get("/broken", headers={HEADER: "c-1"})

    assert (response.status_code, response.json(), response.headers[HEADER]) == (418, "caught", "c-1")


@pytest.mark.parametrize("key", [500, Exception])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_of_the_application_for_all_errors_is_kept_and_called_once(key: Any, when: str) -> None:
    called: list[str | None] = []

    async def answer(request: Request, error: Exception) -> Response:
        called.append(correlation_id_of(request))
        return JSONResponse("sorry", 500)

    app = FastAPI(exception_handlers={key: answer} if when == "before" else None)
    Ecotone([Orders()]).install(app)
    if when == "after":
        app.add_exception_handler(key, answer)

    with TestClient(routed(app), raise_server_exceptions=False) as client:
        response = client.get("/broken", headers={HEADER: "c-1"})

    assert (response.json(), called) == ("sorry", ["c-1"])


def test_a_response_that_has_the_header_keeps_it() -> None:
    with TestClient(installed()) as client:
        assert client.get("/own", headers={HEADER: "c-1"}).headers.get_list(HEADER) == ["own"]


def test_a_response_that_breaks_off_has_the_id_and_raises() -> None:
    app = installed()

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield "half"
            raise RuntimeError("broken off")

        return StreamingResponse(lines())

    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/half", headers={HEADER: "c-1"})

    assert (response.status_code, response.headers[HEADER]) == (200, "c-1")


def test_a_mounted_application_with_an_ecotone_of_its_own_belongs_to_the_same_conversation() -> None:
    orders = Orders()
    app = installed()
    app.mount("/mounted", installed(orders))

    with TestClient(app) as client:
        response = client.post("/mounted/orders/1", headers={HEADER: "c-1"})
        fresh = client.post("/mounted/orders/1")

    assert response.headers.get_list(HEADER) == ["c-1"]
    assert fresh.headers.get_list(HEADER) == [orders.seen[-1]]


def test_a_mounted_application_that_sends_no_headers_at_all_gets_this_one() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    app = installed()
    app.mount("/bare", bare)

    with TestClient(app) as client:
        response = client.get("/bare/", headers={HEADER: "c-1"})

    assert (response.status_code, response.headers[HEADER]) == (204, "c-1")


def test_it_may_be_among_the_middleware_that_the_application_is_made_with() -> None:
    app = routed(FastAPI(middleware=[Middleware(CorrelationMiddleware, header="X-Request-ID")]))

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/broken", headers={"X-Request-ID": "r-1"}).headers["X-Request-ID"] == "r-1"


def test_it_may_stand_around_a_whole_application() -> None:
    app = CorrelationMiddleware(routed(FastAPI()))

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/broken", headers={HEADER: "c-1"}).headers[HEADER] == "c-1"


def test_a_request_that_nobody_has_looked_at_has_no_id() -> None:
    app = FastAPI()

    @app.get("/")
    async def look(request: Request) -> str | None:
        return correlation_id_of(request)

    with TestClient(app) as client:
        assert client.get("/", headers={HEADER: "c-1"}).json() is None


# ---------------------------------------------------------------------------------------------------------- WebSockets


@both_ways
def test_the_messages_of_a_websocket_have_the_id_of_its_handshake(serve: Serve) -> None:
    orders = Orders()
    app = serve(orders)

    @app.websocket("/ws")
    async def talk(socket: WebSocket, commands: CommandBusDep) -> None:
        await socket.accept()
        async for order_id in socket.iter_text():
            await commands.send(PlaceOrder(order_id))
            await socket.send_text("placed")

    with TestClient(app) as client:
        for headers in ({HEADER: "c-1"}, {}):
            with client.websocket_connect("/ws", headers=headers) as socket:
                for order_id in ("1", "2"):
                    socket.send_text(order_id)
                    assert socket.receive_text() == "placed"

    assert orders.seen[:4] == ["c-1"] * 4
    assert len({*orders.seen[4:]}) == 2  # without one, each message begins a conversation of its own


@both_ways
def test_the_answer_to_the_handshake_of_a_websocket_has_its_id(serve: Serve) -> None:
    app = serve()

    @app.websocket("/ws")
    async def talk(socket: WebSocket) -> None:
        await socket.accept(headers=[(b"x-other", b"1")])

    @app.websocket("/closed")
    async def refuse(socket: WebSocket) -> None:
        await socket.send_denial_response(Response("no", 403))

    with TestClient(app) as client:
        with client.websocket_connect("/ws", headers={HEADER: "c-1"}) as socket:
            told = {name.decode().lower(): value for name, value in socket.extra_headers or []}
        with (
            pytest.raises(WebSocketDenialResponse) as denied,
            client.websocket_connect("/closed", headers={HEADER: "c-2"}),
        ):
            pass

    assert (told[HEADER.lower()], told["x-other"]) == (b"c-1", b"1")
    assert denied.value.headers[HEADER] == "c-2"
