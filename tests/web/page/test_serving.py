"""How the page is served: behind the same door as the API, complete, and with a policy that lets nothing else run."""

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from ecotone_fastapi import Ecotone
from ecotone_fastapi.web.page import parts
from tests.web.page.shop import anybody, with_cookie

PAGE = "/ecotone/operations/page"
SCRIPTS = sorted(name for name in parts() if name.endswith(".js"))


def client(operations: Any) -> TestClient:
    app = FastAPI()
    Ecotone([], operations=operations).install(app)
    return TestClient(app)


@pytest.mark.parametrize("path", ["", "/style.css", "/start.js", "/icon.svg"])
def test_every_part_is_served_with_a_policy_that_lets_nothing_else_run(path: str) -> None:
    answer = client([Depends(anybody)]).get(PAGE + path)

    policy = dict(one.strip().split(" ", 1) for one in answer.headers["content-security-policy"].split(";"))
    assert answer.status_code == 200
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect")} == {"'self'"}
    assert policy["img-src"] == "'self' data:"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_every_part_says_what_it_is() -> None:
    http = client([Depends(anybody)])

    types = {name: http.get(f"{PAGE}/{name}").headers["content-type"].partition(";")[0] for name in parts()}

    assert {Path(name).suffix: media_type for name, media_type in types.items()} == {
        ".html": "text/html",
        ".css": "text/css",
        ".js": "text/javascript",
        ".svg": "image/svg+xml",
    }
    assert http.get(PAGE).text.startswith("<!doctype html>")


def test_a_part_that_has_not_changed_is_not_sent_again() -> None:
    http = client([Depends(anybody)])
    etag = http.get(f"{PAGE}/style.css").headers["etag"]

    again = http.get(f"{PAGE}/style.css", headers={"If-None-Match": etag})
    other = http.get(f"{PAGE}/style.css", headers={"If-None-Match": '"of the release before"'})

    assert (again.status_code, again.content) == (304, b"")
    assert other.status_code == 200


@pytest.mark.parametrize("name", ["__init__.py", "..%2F__init__.py", "%2e%2e%2fpage", "none.js", "a\\b"])
def test_the_page_has_no_other_parts(name: str) -> None:
    assert client([Depends(anybody)]).get(f"{PAGE}/{name}").status_code == 404


def test_an_address_with_a_slash_behind_it_leads_to_the_page() -> None:
    answer = client([Depends(anybody)]).get(f"{PAGE}/?seconds=1", follow_redirects=False)

    assert answer.status_code == 307
    assert answer.headers["location"] == "../page?seconds=1", "relative: proxies have other addresses"


@pytest.mark.parametrize("path", ["", "/", "/start.js"])
def test_the_page_is_closed_as_long_as_the_operations_are(path: str) -> None:
    answer = client(None).get(PAGE + path)

    assert answer.status_code == 403
    assert "operations=[Depends(" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["", "/start.js"])
def test_the_page_is_behind_the_dependencies_of_the_operations(path: str) -> None:
    http = client([Depends(with_cookie)])

    assert http.get(PAGE + path).status_code == 403
    http.cookies.set("session", "ada")
    assert http.get(PAGE + path).status_code == 200


def test_the_page_is_no_part_of_the_schema() -> None:
    app = FastAPI()
    Ecotone([], operations=[Depends(anybody)]).install(app)

    assert [path for path in app.openapi()["paths"] if path.startswith(PAGE)] == []


# ------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_makes_no_markup_and_runs_no_text(name: str) -> None:
    text = parts()[name].content.decode()
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
        ".style.",
    ):
        assert way not in text, way


@pytest.mark.parametrize("name", sorted(parts()))
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    text = parts()[name].content.decode().replace("http://www.w3.org/2000/svg", "")

    assert re.findall(r"(?:https?:)?//[\w-]+\.\w+", text) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_what_is_there(name: str) -> None:
    text = parts()[name].content.decode()
    for names, module in re.findall(r"^import \{ ([^}]+) \} from \"\./([\w.]+)\";$", text, re.MULTILINE):
        exported = set(
            re.findall(
                r"^export (?:async )?(?:function|class|const) (\w+)", parts()[module].content.decode(), re.MULTILINE
            )
        )
        assert set(names.split(", ")) <= exported
    used = re.sub(r"^import .*$", "", text, flags=re.MULTILINE)
    for names in re.findall(r"^import \{ ([^}]+) \}", text, re.MULTILINE):
        assert [one for one in names.split(", ") if not re.search(rf"\b{one}\b", used)] == []


def test_the_document_has_no_script_and_no_style_of_its_own() -> None:
    text = parts()["index.html"].content.decode()

    assert re.findall(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", text) == []
    assert set(re.findall(r'(?:src|href)="page/([^"]+)"', text)) <= parts().keys()
