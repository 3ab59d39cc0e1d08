"""Nobody operates an application but those whom it lets: said of every route that there is."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials, SecurityScopes

from ecotone_fastapi import ConfigurationError, Ecotone, QueryBusDep, query_handler
from ecotone_fastapi.core.errors import ChannelError, EcotoneError, UnknownEndpointError
from ecotone_fastapi.web.operations import opening, operations_router
from ecotone_fastapi.web.operations.opening import OperationsRoute
from tests.web.operations.shops import ADMIN, JSON, operated, require_admin


def routes(ecotone: Ecotone | None = None) -> list[APIRoute]:
    router = operations_router(ecotone or Ecotone([]), [Depends(require_admin)])
    return [route for route in router.routes if isinstance(route, APIRoute)]


def calls(methods: Iterable[str] = ("GET", "POST", "DELETE", "PUT", "PATCH")) -> list[tuple[str, str]]:
    """Each method of each route, with a path that leads to it."""
    return [
        (method, re.sub(r"\{\w+(:path)?\}", "x", route.path))
        for route in routes()
        for method in sorted(route.methods or ())
        if method in methods
    ]


every_call = pytest.mark.parametrize(("method", "path"), calls(), ids=lambda one: one.strip("/").replace("/", "-"))


def application(ecotone: Ecotone) -> FastAPI:
    app = FastAPI()
    ecotone.install(app)
    return app


@pytest.fixture(scope="module")
def closed_app() -> FastAPI:
    return application(Ecotone([]))


@pytest.fixture(scope="module")
def opened_app() -> FastAPI:
    return application(Ecotone([], operations=[Depends(require_admin)]))


async def demand_token(x_token: Annotated[str, Header()]) -> None:
    """A dependency as FastAPI's own tutorial has them: without the header it is not even asked."""
    if x_token != "secret":
        raise HTTPException(403, "not you")


@pytest.fixture(scope="module")
def demanding_app() -> FastAPI:
    return application(Ecotone([], operations=[Depends(demand_token)]))


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/ecotone/operations")


def test_every_route_is_one_that_stands_behind_the_door() -> None:
    router = operations_router(Ecotone([]), [Depends(require_admin)])

    assert router.routes
    assert [route for route in router.routes if not isinstance(route, OperationsRoute)] == []
    assert {method for route in routes() if route.include_in_schema for method in route.methods or ()} <= {
        "GET",
        "POST",
        "DELETE",
    }


@every_call
async def test_what_nobody_has_opened_is_closed_and_says_how_to_open_it(
    method: str, path: str, closed_app: FastAPI
) -> None:
    async with client(closed_app) as http:
        answer = await http.request(method, path, headers={**ADMIN, **JSON})

    assert answer.status_code == 403
    assert "Ecotone(..., operations=[Depends(require_admin)])" in answer.json()["detail"]
    assert list(answer.json()) == ["detail"]


@pytest.mark.parametrize("call", calls(), ids=lambda one: " ".join(one))
@pytest.mark.parametrize(
    "refusal",
    [({}, 401, "who are you?"), ({"x-token": "wrong"}, 403, "not you")],
    ids=["unknown", "not allowed"],
)
@pytest.mark.parametrize(
    "mistake",
    [
        {},
        {"headers": JSON, "content": b"{"},
        {"headers": {"content-type": "text/plain"}, "content": b"\xff"},
        {"headers": JSON, "content": b'{"filter": {"since": 7}, "nonsense": true}'},
        {"params": {"limit": "-1", "since": "never", "after": "%", "seconds": "0"}},
    ],
    ids=["well", "broken body", "no json", "wrong body", "wrong query"],
)
async def test_who_may_not_operate_is_told_so_and_nothing_else(
    call: tuple[str, str], refusal: tuple[dict[str, str], int, str], mistake: dict[str, Any], opened_app: FastAPI
) -> None:
    headers, status, detail = refusal
    async with client(opened_app) as http:
        answer = await http.request(*call, **{**mistake, "headers": {**mistake.get("headers", {}), **headers}})

    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("GET", "/overview/"),
        ("GET", "/"),
        ("PUT", "/overview"),
        ("POST", "/overview"),
        ("DELETE", "/dead-letters"),
        ("OPTIONS", "/overview"),
        ("GET", "/channels/x/pause/"),
    ],
)
async def test_who_may_not_operate_cannot_find_out_by_trying_what_there_is(
    method: str, path: str, opened_app: FastAPI
) -> None:
    async with client(opened_app) as http:
        refused = await http.request(method, path)
        admitted = await http.request(method, path, headers={**ADMIN, **JSON})

    assert (refused.status_code, refused.json()) == (401, {"detail": "who are you?"})
    assert admitted.status_code == 404


@pytest.mark.parametrize(("method", "path"), calls(["POST"]))
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
    ],
)
@pytest.mark.parametrize("content", [b"", b'{"filter": {}}'], ids=["no body", "body"])
async def test_what_a_form_of_another_site_could_send_changes_nothing(
    method: str, path: str, content_type: str | None, content: bytes, opened_app: FastAPI
) -> None:
    headers = ADMIN if content_type is None else {**ADMIN, "content-type": content_type}
    async with client(opened_app) as http:
        answer = await http.request(method, path, headers=headers, content=content)

    assert answer.status_code == 415
    assert "Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_is_known_by_its_media_type(content_type: str, opened_app: FastAPI) -> None:
    async with client(opened_app) as http:
        answer = await http.post(
            "/dead-letters/delete", headers={**ADMIN, "content-type": content_type}, content=b'{"filter": {}}'
        )

    assert answer.json() == {"deleted": 0}


async def test_the_dependencies_of_the_application_are_asked_in_their_order_and_before_anything_else() -> None:
    asked = []

    async def first(x_token: Annotated[str | None, Header()] = None) -> None:
        asked.append("first")
        if x_token is None:
            raise HTTPException(401, "first")

    async def second(tenant: Annotated[str, Query()] = "") -> None:
        asked.append("second")
        raise HTTPException(403, f"second {tenant}")

    async with client(application(Ecotone([], operations=[Depends(first), Depends(second)]))) as http:
        assert (await http.get("/overview")).json() == {"detail": "first"}
        assert asked == ["first"]
        assert (await http.get("/overview?tenant=acme", headers=ADMIN)).json() == {"detail": "second acme"}


async def test_a_browser_is_asked_for_a_password_where_the_application_wants_one() -> None:
    async def login(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> None:
        if credentials.password != "secret":
            raise HTTPException(403, "wrong password")

    async with client(application(Ecotone([], operations=[Depends(login)]))) as http:
        unknown = await http.get("/overview")
        assert (unknown.status_code, unknown.headers["www-authenticate"]) == (401, "Basic")
        assert (await http.get("/overview", auth=("ada", "wrong"))).status_code == 403
        assert (await http.get("/overview", auth=("ada", "secret"))).status_code == 200


async def test_a_dependency_can_be_overridden_as_everywhere() -> None:
    app = FastAPI()
    Ecotone([], operations=[Depends(require_admin)]).install(app)
    app.dependency_overrides[require_admin] = lambda: None

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.get("/ecotone/operations/overview")).status_code == 200


@every_call
@pytest.mark.parametrize("mistake", [{}, {"content": b"{"}, {"params": {"limit": "0", "seconds": "0"}}], ids=str)
async def test_who_does_not_even_say_who_it_is_learns_nothing_of_what_else_is_wrong(
    method: str, path: str, mistake: dict[str, Any], demanding_app: FastAPI
) -> None:
    async with client(demanding_app) as http:
        answer = await http.request(method, path, **mistake)

    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


async def test_who_says_so_is_told_by_the_dependency_and_then_by_the_route(demanding_app: FastAPI) -> None:
    async with client(demanding_app) as http:
        refused = await http.get("/dead-letters?limit=0", headers={"x-token": "wrong"})
        wrong = await http.get("/dead-letters?limit=0", headers=ADMIN)
        form = await http.post("/dead-letters/delete", headers=ADMIN, content=b"{")
        broken = await http.post("/dead-letters/delete", headers={**ADMIN, **JSON}, content=b"{")

    assert (refused.status_code, refused.json()) == (403, {"detail": "not you"})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["query", "limit"])
    assert (form.status_code, broken.status_code) == (415, 422)


async def test_a_server_that_has_fallen_silent_does_not_collect_those_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "PATIENCE", 0.05)
    async with operated() as operations:

        async def be_silent(_: object) -> int:
            return int(await anyio.sleep_forever() or 0)

        monkeypatch.setattr(operations.ecotone.dead_letters, "count", be_silent)
        answer = await operations.call("GET", "/dead-letters")

    assert answer.status_code == 503
    assert "a server is silent" in answer.json()["detail"]


async def test_a_security_dependency_is_asked_with_its_scopes_and_may_use_the_buses() -> None:
    @query_handler("may")
    async def may(name: str) -> bool:
        return name == "ada"

    async def allowed(
        scopes: SecurityScopes, queries: QueryBusDep, x_name: Annotated[str, Header()] = "nobody"
    ) -> None:
        if not await queries.ask(x_name, to="may"):
            raise HTTPException(403, f"{x_name} has no {scopes.scope_str}")

    async with client(application(Ecotone([may], operations=[Security(allowed, scopes=["operate"])]))) as http:
        assert (await http.get("/overview")).json() == {"detail": "nobody has no operate"}
        assert (await http.get("/overview", headers={"x-name": "ada"})).status_code == 200


def test_what_is_closed_is_not_in_the_documentation_and_what_is_open_is() -> None:
    documented: dict[bool, set[str]] = {}
    for is_open in (False, True):
        app = FastAPI()
        Ecotone([], operations=[Depends(require_admin)] if is_open else None).install(app)
        documented[is_open] = {path for path in app.openapi()["paths"] if "/operations" in path}

    assert documented[False] == set()
    shown = {re.sub(":path", "", f"/ecotone/operations{one.path}") for one in routes() if one.include_in_schema}
    assert documented[True] == shown
    assert "/ecotone/operations/dead-letters/{id}" in shown


def test_whatever_the_documentation_refers_to_is_in_it() -> None:
    app = FastAPI()
    Ecotone([], operations=[Depends(require_admin)]).install(app)
    schema = app.openapi()
    found = []

    def look(part: Any) -> None:
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            assert part["$ref"].startswith("#/")
            there = schema
            for step in part["$ref"].removeprefix("#/").split("/"):
                there = there[step]
            found.append(part["$ref"])
        for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            look(one)

    look(schema)
    bulk = schema["paths"]["/ecotone/operations/dead-letters/replay"]["post"]["requestBody"]
    [which, _] = bulk["content"]["application/json"]["schema"]["properties"]["filter"]["anyOf"]
    assert found
    assert which["properties"].keys() >= {"handler", "since", "until"}


def test_every_documented_route_says_what_it_does_and_what_it_answers() -> None:
    app = FastAPI()
    Ecotone([], operations=[Depends(require_admin)]).install(app)
    schema = app.openapi()

    for path, methods in schema["paths"].items():
        if "/operations/" not in path:
            continue
        for operation in methods.values():
            assert operation["description"], path
            assert {"401", "403"} <= operation["responses"].keys()
            answers = [one for status, one in operation["responses"].items() if status.startswith("2")]
            for answer in answers:
                for content in answer.get("content", {}).values():
                    assert content.get("schema"), path
    bulk = schema["paths"]["/ecotone/operations/dead-letters/replay"]["post"]["requestBody"]
    assert "filter" in bulk["content"]["application/json"]["schema"]["properties"]


@pytest.mark.parametrize(
    ("operations", "words"),
    [
        ([], "would let everybody operate"),
        ((), "would let everybody operate"),
        ([require_admin], "is no dependency"),
        ([Depends()], "is no dependency"),
        (Depends(require_admin), "is no list of dependencies"),
        ("admin", "is no list of dependencies"),
        (True, "is no list of dependencies"),
    ],
    ids=["a list of none", "none", "a function", "Depends of nothing", "no list", "a name", "True"],
)
def test_what_opens_nothing_or_everything_is_refused_at_start(operations: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refusal:
        Ecotone([], operations=operations)

    assert "Depends(require_admin)" in refusal.value.hint


def test_any_iterable_of_dependencies_opens() -> None:
    ecotone = Ecotone([], operations=(one for one in [Depends(require_admin)]))

    assert [len(router_of(ecotone).routes), len(router_of(ecotone).routes)] == [len(routes())] * 2


def router_of(ecotone: Ecotone) -> APIRouter:
    return operations_router(ecotone, ecotone._operations)


@pytest.mark.parametrize("error_handlers", [True, False])
async def test_errors_are_answered_by_the_table_whether_the_application_does_so_or_not(error_handlers: bool) -> None:
    async with operated(error_handlers=error_handlers) as operations:
        answer = await operations.call("GET", "/dead-letters/nobody")

    assert (answer.status_code, answer.json()) == (404, {"detail": "no dead letter has the id 'nobody'"})


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (ChannelError("the database is down"), 503, "the database is down"),
        (UnknownEndpointError("gone", hint="rename it"), 409, "gone\nHint: rename it"),
        (ConfigurationError("no such thing"), 409, "no such thing"),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_an_error_of_the_store_is_answered_with_its_status(
    error: EcotoneError, status: int, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with operated(error_handlers=False) as operations:

        async def fail(_: object) -> int:
            raise error

        monkeypatch.setattr(operations.ecotone.dead_letters, "count", fail)
        answer = await operations.call("GET", "/dead-letters")

    assert (answer.status_code, answer.json()) == (status, {"detail": detail})


async def test_a_bug_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    class OddError(EcotoneError):
        pass

    async with operated() as operations:
        for error in (ZeroDivisionError("a bug"), OddError("unforeseen")):

            async def fail(_: object, error: Exception = error) -> int:
                raise error

            monkeypatch.setattr(operations.ecotone.dead_letters, "count", fail)
            with pytest.raises(type(error)):
                await operations.call("GET", "/dead-letters")


async def test_nothing_that_is_shown_is_kept_by_a_cache_or_taken_for_something_else() -> None:
    async with operated() as operations:
        for path in ("/overview", "/dead-letters/nobody"):
            answer = await operations.call("GET", path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
