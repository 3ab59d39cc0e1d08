"""From errors to HTTP statuses."""

from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field
from starlette.websockets import WebSocketDisconnect

from ecotone_fastapi import (
    AggregateNotFoundError,
    CommandBusDep,
    ConcurrencyError,
    Ecotone,
    QueryBusDep,
    asynchronous,
    command_handler,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core import errors
from ecotone_fastapi.core.errors import ChannelError, DeadLetterNotFoundError, EcotoneError, SendError
from ecotone_fastapi.testing.faults import FailingChannel
from ecotone_fastapi.web import STATUS, add_error_handlers


class Order(BaseModel):
    order_id: int
    items: list[str] = Field(min_length=1)


class Orders:
    @command_handler("order.place")
    async def place(self, command: Order) -> Any:
        return command.model_dump()


def accepting(*handlers: object, **options: Any) -> FastAPI:
    """An application whose one endpoint hands the body straight to a handler."""
    app = FastAPI()
    Ecotone(handlers, **options).install(app)

    @app.post("/{key}")
    async def post(key: str, request: Request, commands: CommandBusDep) -> Any:
        headers = {"content_type": request.headers.get("content-type")}
        return await commands.send(await request.body(), to=key, headers=headers)

    return app


JSON = {"content-type": "application/json"}


# -------------------------------------------------------------------------------------------- bodies straight to a bus


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/vnd.x+json"]
)
def test_a_body_goes_straight_from_the_request_to_the_handler(content_type: str) -> None:
    body = b'{"order_id": "1", "items": ["bread"]}'
    response = TestClient(accepting(Orders)).post("/order.place", content=body, headers={"content-type": content_type})

    assert response.json() == {"order_id": 1, "items": ["bread"]}


def test_a_body_that_does_not_fit_is_answered_as_fastapi_answers_it() -> None:
    app = accepting(Orders)

    @app.post("/fastapi/itself")
    async def itself(order: Order) -> None: ...

    client = TestClient(app)
    body = b'{"order_id": "one", "items": []}'
    ours = client.post("/order.place", content=body, headers=JSON)
    theirs = client.post("/fastapi/itself", content=body, headers=JSON)

    assert ours.status_code == theirs.status_code == 422
    assert [error["loc"] for error in ours.json()["detail"]] == [["body", "order_id"], ["body", "items"]]
    without_context = [{name: one[name] for name in one if name != "ctx"} for one in theirs.json()["detail"]]
    assert ours.json()["detail"] == without_context


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (b"", "json_invalid"),
        (b"{", "json_invalid"),
        (b"\xff", "json_invalid"),
        (b"[]", "model_type"),
        (b'{"order_id": NaN, "items": [Infinity]}', "finite_number"),
        (b'{"order_id": "\\ud83d", "items": [1]}', "json_invalid"),
    ],
)
def test_a_body_that_cannot_be_read_is_answered_with_422(body: bytes, type_: str) -> None:
    response = TestClient(accepting(Orders)).post("/order.place", content=body, headers=JSON)

    assert response.status_code == 422
    assert response.json()["detail"][0]["type"] == type_
    assert response.json()["detail"][0]["loc"][0] == "body"


def test_a_media_type_that_nobody_reads_is_answered_with_422() -> None:
    response = TestClient(accepting(Orders)).post("/order.place", content=b"1;2", headers={"content-type": "text/csv"})

    assert response.status_code == 422
    assert "nothing here reads text/csv" in response.json()["detail"]


def test_an_object_that_does_not_fit_is_answered_with_422() -> None:
    class Odd:
        pass

    app = accepting(Orders)

    @app.post("/objects/{number}")
    async def post(number: int, commands: CommandBusDep) -> None:
        await commands.send([{"order_id": b"\xff", "items": {Odd()}}, Odd()][number], to="order.place")

    for number in (0, 1):
        response = TestClient(app).post(f"/objects/{number}")
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"][0] == "body"


def test_a_key_that_nobody_handles_is_answered_with_404() -> None:
    response = TestClient(accepting(Orders)).post("/order.cancel")

    assert response.status_code == 404
    assert "order.cancel" in response.json()["detail"]


# ---------------------------------------------------------------------------------------------------------- the table


def failing(error: Exception, **options: Any) -> FastAPI:
    @query_handler("fail")
    async def fail() -> None:
        raise error

    app = FastAPI()
    Ecotone([fail]).install(app, **options)

    @app.get("/")
    async def get(queries: QueryBusDep) -> None:
        await queries.ask(to="fail")

    @app.websocket("/talk")
    async def talk(websocket: WebSocket, queries: QueryBusDep, first: str = "accept") -> None:
        if first != "fail":
            await websocket.accept()
        if first == "close":
            await websocket.close()
        await queries.ask(to="fail")

    return app


KNOWN = [
    (errors.ConversionError("no order"), 422),
    (errors.HeaderError("no tenant"), 422),
    (errors.HandlerNotFoundError("nobody"), 404),
    (AggregateNotFoundError("no order 5"), 404),
    (DeadLetterNotFoundError("no letter 5"), 404),
    (errors.DocumentNotFoundError("no basket 5"), 404),
    (errors.RowNotFoundError("no row"), 404),
    (errors.DuplicateDocumentError("another basket 5"), 409),
    (ConcurrencyError("somebody else was first"), 409),
    (ChannelError("gone"), 503),
    (SendError("half gone", failed=["1"]), 503),
]


@pytest.mark.parametrize(("error", "status"), KNOWN, ids=[type(error).__name__ for error, _ in KNOWN])
def test_an_error_that_the_caller_can_do_something_about_has_a_status(error: EcotoneError, status: int) -> None:
    response = TestClient(failing(error)).get("/")

    assert (response.status_code, response.json()) == (status, {"detail": error.what})


def test_a_subclass_of_the_user_has_the_status_of_its_parent() -> None:
    class OrderNotFoundError(AggregateNotFoundError):
        pass

    assert TestClient(failing(OrderNotFoundError("no order 5"))).get("/").status_code == 404


def test_hints_are_for_the_operator_and_not_for_the_caller() -> None:
    error = ConcurrencyError("somebody else was first", tried="version 3 of secret table", hint="retry")

    assert TestClient(failing(error)).get("/").json() == {"detail": "somebody else was first"}


@pytest.mark.parametrize("error", [errors.ConfigurationError("broken"), errors.ProjectionError("stopped")])
def test_every_other_error_is_a_failure_of_the_server(error: EcotoneError) -> None:
    assert TestClient(failing(error), raise_server_exceptions=False).get("/").status_code == 500


def test_no_error_in_the_table_is_shadowed_by_another() -> None:
    assert all(400 <= status < 600 and issubclass(error, EcotoneError) for error, status in STATUS.items())


# --------------------------------------------------------------------------------------------- exceptions of the user


def test_an_exception_of_the_user_stays_what_it_is_and_says_where_it_was_raised() -> None:
    error = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as caught:
        TestClient(failing(error)).get("/")

    assert caught.value is error
    assert len(error.__notes__) == 1
    assert "while handling" in error.__notes__[0]
    assert "fail" in error.__notes__[0]
    assert TestClient(failing(KeyError("mine")), raise_server_exceptions=False).get("/").status_code == 500


def test_an_http_exception_of_a_handler_keeps_its_status() -> None:
    response = TestClient(failing(HTTPException(418, "short and stout", {"x-pot": "tea"}))).get("/")

    assert (response.status_code, response.json()) == (418, {"detail": "short and stout"})
    assert response.headers["x-pot"] == "tea"


def test_an_exception_of_the_user_reaches_the_exception_handler_of_the_user() -> None:
    class OutOfStockError(Exception):
        pass

    app = failing(OutOfStockError("bread"))

    @app.exception_handler(OutOfStockError)
    async def out_of_stock(request: Request, error: OutOfStockError) -> PlainTextResponse:
        return PlainTextResponse(f"no {error}", 410)

    response = TestClient(app).get("/")
    assert (response.status_code, response.text) == (410, "no bread")


# ------------------------------------------------------------------------------------------------------- left out, own


def test_the_table_can_be_left_out() -> None:
    app = failing(ConcurrencyError("somebody else was first"), error_handlers=False)

    with pytest.raises(ConcurrencyError):
        TestClient(app).get("/")


def test_the_table_can_be_used_without_install() -> None:
    @query_handler("fail")
    async def fail() -> None:
        raise ConcurrencyError("somebody else was first")

    app = FastAPI(lifespan=Ecotone([fail]).lifespan)
    add_error_handlers(app)

    @app.get("/")
    async def get(queries: QueryBusDep) -> None:
        await queries.ask(to="fail")

    with TestClient(app) as client:
        assert client.get("/").status_code == 409


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_exception_handler_of_the_user_wins(when: str) -> None:
    async def own(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("mine", 412)

    app = FastAPI(exception_handlers={ConcurrencyError: own}) if when == "before" else FastAPI()

    @query_handler("fail")
    async def fail() -> None:
        raise ConcurrencyError("somebody else was first")

    Ecotone([fail]).install(app)
    if when == "after":
        app.add_exception_handler(ConcurrencyError, own)

    @app.get("/")
    async def get(queries: QueryBusDep) -> None:
        await queries.ask(to="fail")

    assert TestClient(app).get("/").status_code == 412


# ---------------------------------------------------------------------------------------------------------- WebSockets


@pytest.mark.parametrize(
    ("error", "code"), [(ConcurrencyError("first " + "ö" * 200), 1008), (ChannelError("gone"), 1011)]
)
def test_a_websocket_is_closed_with_the_reason(error: EcotoneError, code: int) -> None:
    client = TestClient(failing(error))
    with client.websocket_connect("/talk") as socket, pytest.raises(WebSocketDisconnect) as caught:
        socket.receive_text()

    assert caught.value.code == code
    assert error.what.startswith(caught.value.reason)
    assert 4 <= len(caught.value.reason.encode()) <= 123


def test_a_websocket_that_was_not_accepted_is_refused() -> None:
    client = TestClient(failing(ConcurrencyError("first")))
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/talk?first=fail"):
        pass

    assert caught.value.code == 1008


def test_a_websocket_that_is_closed_already_stays_closed() -> None:
    client = TestClient(failing(ConcurrencyError("first")))
    with client.websocket_connect("/talk?first=close") as socket, pytest.raises(WebSocketDisconnect) as caught:
        socket.receive_text()

    assert caught.value.code == 1000


# ------------------------------------------------------------------------------------------------------------- brokers


@dataclass(frozen=True)
class Mail:
    to: str


def test_a_broker_that_does_not_take_a_message_is_answered_with_503() -> None:
    @asynchronous("mails")
    @command_handler("mail")
    async def mail(command: Mail) -> None: ...

    app = accepting(mail, channels=[FailingChannel(MemoryChannel("mails"), sends=1)])

    client = TestClient(app)
    assert client.post("/mail", content=b'{"to": "Ada"}', headers=JSON).status_code == 503
    assert client.post("/mail", content=b'{"to": "Ada"}', headers=JSON).status_code == 200
    assert client.post("/mail", content=b'{"to": 5}', headers=JSON).status_code == 422
