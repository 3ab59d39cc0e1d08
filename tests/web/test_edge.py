"""How an application and its requests find their Ecotone: install, lifespan, router, mounts."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient

from ecotone_fastapi import (
    CommandBusDep,
    ConfigurationError,
    Ecotone,
    QueryBusDep,
    asynchronous,
    command_handler,
    query_handler,
)
from ecotone_fastapi.core.errors import DuplicateHandlerError, NotInstalledError
from tests.servers import RemoteChannel, Server, until


@dataclass(frozen=True)
class Rename:
    name: str


class Names:
    """Keeps a name, so that one can see whose Ecotone has answered."""

    def __init__(self, name: str = "nobody") -> None:
        self.name = name

    @command_handler
    async def rename(self, command: Rename) -> None:
        self.name = command.name

    @query_handler("name")
    async def tell(self) -> str:
        return self.name


router = APIRouter()


@router.get("/name")
async def get_name(queries: QueryBusDep) -> str:
    return await queries.ask(to="name", returns=str)


@router.put("/name/{name}")
async def put_name(name: str, commands: CommandBusDep) -> None:
    await commands.send(Rename(name))


def installed(name: str, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.include_router(router)
    Ecotone([Names(name)]).install(app)
    return app


# --------------------------------------------------------------------------------------------------------- install


def test_an_installed_application_answers_with_a_started_test_client() -> None:
    with TestClient(installed("Ada")) as client:
        assert client.get("/name").json() == "Ada"
        assert client.put("/name/Grace").status_code == 200
        assert client.get("/name").json() == "Grace"


def test_an_installed_application_answers_without_its_lifespan() -> None:
    client = TestClient(installed("Ada"))

    assert client.get("/name").json() == "Ada"


async def test_an_installed_application_answers_through_a_bare_asgi_transport() -> None:
    transport = httpx.ASGITransport(installed("Ada"))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/name")

    assert response.json() == "Ada"


async def test_nothing_is_opened_without_the_lifespan() -> None:
    server = Server()

    @asynchronous("remote")
    @command_handler("later")
    async def later(command: str) -> None: ...

    app = FastAPI()
    app.include_router(router)
    Ecotone([Names("Ada"), later], channels=[RemoteChannel("remote", server)]).install(app)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/name")).json() == "Ada"

    assert (server.opened, server.receiving) == (0, 0)


def test_a_router_that_was_included_early_finds_what_is_installed_later() -> None:
    app = FastAPI()
    app.include_router(router, prefix="/early")
    Ecotone([Names("Ada")]).install(app)
    app.include_router(router, prefix="/late")

    with TestClient(app) as client:
        assert [client.get(f"/{when}/name").json() for when in ("early", "late")] == ["Ada", "Ada"]


def test_two_applications_in_one_process_share_a_router_and_nothing_else() -> None:
    one, other = installed("Ada"), installed("Grace")

    with TestClient(one) as first, TestClient(other) as second:
        first.put("/name/Barbara")

        assert (first.get("/name").json(), second.get("/name").json()) == ("Barbara", "Grace")


def test_one_application_has_one_ecotone() -> None:
    app = installed("Ada")

    with pytest.raises(ConfigurationError, match="another Ecotone serves this application already"):
        Ecotone([]).install(app)


def test_one_ecotone_has_one_application() -> None:
    app, ecotone = FastAPI(), Ecotone([])
    ecotone.install(app)

    with pytest.raises(ConfigurationError, match="serves this application already"):
        ecotone.install(app)
    with pytest.raises(ConfigurationError, match="serves another application already"):
        ecotone.install(FastAPI())


def test_it_is_too_late_to_install_after_the_first_request() -> None:
    app, ecotone = FastAPI(), Ecotone([])
    TestClient(app).get("/")

    with pytest.raises(ConfigurationError, match="before the first request"):
        ecotone.install(app)

    ecotone.install(FastAPI())  # what was refused has left no trace


def test_it_is_too_late_to_install_while_the_application_runs() -> None:
    app = FastAPI()
    with TestClient(app), pytest.raises(ConfigurationError, match="the application has been started"):
        Ecotone([]).install(app)


def test_the_schema_shows_nothing_of_the_buses() -> None:
    schema = installed("Ada").openapi()

    assert "parameters" not in schema["paths"]["/name"]["get"]
    assert [one["name"] for one in schema["paths"]["/name/{name}"]["put"]["parameters"]] == ["name"]
    assert "requestBody" not in schema["paths"]["/name/{name}"]["put"]


def test_its_routes_stand_under_a_prefix_of_choice() -> None:
    app = FastAPI()
    Ecotone([]).install(app, prefix="/internal")

    with TestClient(app) as client:
        assert client.get("/internal/health/live").status_code == 200
        assert client.get("/ecotone/health/live").status_code == 404


def test_its_routes_can_be_left_out() -> None:
    app = FastAPI()
    Ecotone([]).install(app, prefix=None)

    assert app.openapi()["paths"] == {}


# -------------------------------------------------------------------------------------------------------- lifespan


def test_a_lifespan_serves_its_application() -> None:
    ecotone = Ecotone([Names("Ada")])
    app = FastAPI(lifespan=ecotone.lifespan)
    app.include_router(router)
    app.include_router(ecotone.router, prefix="/ops")

    with TestClient(app) as client:
        assert client.get("/name").json() == "Ada"
        assert client.get("/ops/health/ready").status_code == 200


def test_without_its_lifespan_an_application_that_was_not_installed_says_what_to_do() -> None:
    app = FastAPI(lifespan=Ecotone([Names("Ada")]).lifespan)
    app.include_router(router)

    with pytest.raises(NotInstalledError, match=r"no Ecotone serves /name[\s\S]*Hint: call ecotone.install\(app\)"):
        TestClient(app).get("/name")


class Book:
    """Writes down what happens."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @asynccontextmanager
    async def resource(self) -> AsyncIterator[None]:
        self.lines.append("ecotone opens")
        yield
        self.lines.append("ecotone closes")

    def install(self, assembly: Any) -> None:
        assembly.add_lifespan(self.resource)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        self.lines.append("user opens")
        yield {"mine": "state"}
        self.lines.append("user closes")


def test_the_lifespan_of_the_user_is_kept_and_stands_around() -> None:
    book = Book()
    app = FastAPI(lifespan=book.lifespan)
    Ecotone([], plugins=[book]).install(app)

    @app.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.mine)

    with TestClient(app) as client:
        assert client.get("/state").json() == "state"

    assert book.lines == ["user opens", "ecotone opens", "ecotone closes", "user closes"]


def test_a_lifespan_of_the_user_may_hold_the_one_of_ecotone() -> None:
    book = Book()
    ecotone = Ecotone([Names("Ada")], plugins=[book])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with book.lifespan(app) as state, ecotone.lifespan(app):
            yield state

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)

    with TestClient(app) as client:
        assert client.get("/name").json() == "Ada"

    assert book.lines == ["user opens", "ecotone opens", "ecotone closes", "user closes"]


def test_lifespans_of_other_routers_are_run_beside() -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened.append("other")
        yield

    app = FastAPI()
    app.include_router(APIRouter(lifespan=lifespan))
    Ecotone([]).install(app)

    with TestClient(app) as client:
        assert client.get("/ecotone/health/ready").status_code == 200
    assert opened == ["other"]


@pytest.mark.parametrize("how", ["install", "lifespan"])
def test_an_application_can_be_started_again_in_another_event_loop(how: str) -> None:
    server = Server()

    seen: list[str] = []

    @asynchronous("remote")
    @command_handler("later")
    async def later(command: str) -> None:
        seen.append(command)

    ecotone = Ecotone([later], channels=[RemoteChannel("remote", server)])
    app = FastAPI(lifespan=ecotone.lifespan if how == "lifespan" else None)
    if how == "install":
        ecotone.install(app)

    @app.put("/{name}")
    async def put(name: str, commands: CommandBusDep) -> None:
        await commands.send(name, to="later")

    @app.get("/")
    async def get(wanted: int) -> int:
        await until(lambda: len(seen) >= wanted)
        return len(seen)

    for number in (1, 2, 3):
        with TestClient(app) as client:
            client.put(f"/{number}")
            assert client.get("/", params={"wanted": number}).json() == number
        assert (server.opened, server.closed, server.receiving) == (number, number, 0)


def test_two_lifespans_of_one_ecotone_at_the_same_time_are_refused() -> None:
    ecotone = Ecotone([Names("Ada")])
    one, other = FastAPI(lifespan=ecotone.lifespan), FastAPI(lifespan=ecotone.lifespan)
    one.include_router(router)

    with TestClient(one) as client:
        with pytest.raises(ConfigurationError, match="serves another application already"), TestClient(other):
            pass
        assert client.get("/name").json() == "Ada"

    with TestClient(other):  # one after the other is fine
        pass


def test_install_and_lifespan_together_are_refused() -> None:
    ecotone = Ecotone([])
    app = FastAPI(lifespan=ecotone.lifespan)
    ecotone.install(app)

    with pytest.raises(ConfigurationError, match="serves this application already"), TestClient(app):
        pass


def test_what_is_wrong_with_the_wiring_is_told_in_full_at_startup() -> None:
    class Wrong:
        @command_handler
        async def first(self, command: Rename, missing: Server) -> None: ...

        @asynchronous("nowhere")
        @command_handler("second")
        async def second(self, command: str) -> None: ...

    app = FastAPI()
    Ecotone([Wrong]).install(app)

    with pytest.raises(ConfigurationError) as caught, TestClient(app):
        pass

    text = str(caught.value)
    assert "2 things are wrong with the wiring" in text
    assert "Wrong.first: nothing supplies 'missing: Server'" in text
    assert "there is no channel 'nowhere'" in text


def test_what_is_wrong_with_the_wiring_is_told_by_the_first_request_when_there_is_no_lifespan() -> None:
    app = FastAPI()
    app.include_router(router)

    @command_handler
    async def rename(command: Rename) -> None: ...

    Ecotone([Names, rename]).install(app)

    with pytest.raises(DuplicateHandlerError, match=r"Names\.rename"):
        TestClient(app).get("/name")


# ---------------------------------------------------------------------------------------------------------- mounts


def test_a_mounted_application_shares_the_ecotone_of_the_one_around_it() -> None:
    app, mounted = installed("Ada"), FastAPI()
    mounted.include_router(router)
    app.mount("/mounted", mounted)

    with TestClient(app) as client:
        client.put("/mounted/name/Grace")

        assert client.get("/name").json() == "Grace"


@pytest.mark.parametrize("how", ["install", "lifespan"])
def test_a_mounted_application_may_have_an_ecotone_of_its_own(how: str) -> None:
    own = Ecotone([Names("Grace")])
    mounted = FastAPI()
    mounted.include_router(router)
    inner = FastAPI()
    inner.include_router(router)
    mounted.mount("/inner", inner)
    if how == "install":
        own.install(mounted)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with own.running() if how == "install" else own.lifespan(mounted):
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    app.mount("/mounted", mounted)
    Ecotone([Names("Ada")]).install(app)

    with TestClient(app) as client:
        assert client.get("/name").json() == "Ada"
        assert client.get("/mounted/name").json() == "Grace"
        if how == "install":
            assert client.get("/mounted/inner/name").json() == "Grace"
            assert client.get("/mounted/ecotone/health/ready").status_code == 200


def test_an_application_mounted_into_one_that_has_no_ecotone_says_so() -> None:
    app, mounted = FastAPI(), FastAPI()
    mounted.include_router(router)
    app.mount("/mounted", mounted)

    with TestClient(app) as client, pytest.raises(NotInstalledError, match="no Ecotone serves /mounted/name"):
        client.get("/mounted/name")


# ------------------------------------------------------------------------------------------------------ WebSockets


@pytest.mark.parametrize("started", [True, False])
def test_a_websocket_uses_the_buses(started: bool) -> None:
    app = installed("Ada")

    @app.websocket("/talk")
    async def talk(websocket: WebSocket, commands: CommandBusDep, queries: QueryBusDep) -> None:
        await websocket.accept()
        await commands.send(Rename(await websocket.receive_text()))
        await websocket.send_text(await queries.ask(to="name"))
        await websocket.close()

    client = TestClient(app)
    if started:
        with client, client.websocket_connect("/talk") as socket:
            socket.send_text("Grace")
            assert socket.receive_text() == "Grace"
    else:
        with client.websocket_connect("/talk") as socket:
            socket.send_text("Grace")
            assert socket.receive_text() == "Grace"


# --------------------------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize("consumers", [True, False, ["remote"]])
def test_the_application_starts_when_a_server_is_down(consumers: bool | list[str]) -> None:
    server = Server()
    server.stop()

    @asynchronous("remote")
    @command_handler("later")
    async def later(command: str) -> None: ...

    ecotone = Ecotone([later], channels=[RemoteChannel("remote", server)], consumers=consumers)
    app = FastAPI(lifespan=ecotone.lifespan)
    app.include_router(ecotone.router)

    with TestClient(app) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
