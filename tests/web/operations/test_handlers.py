"""Handlers, their journeys and the diagram over HTTP."""

from typing import Any

import pytest

from tests.web.operations.shops import Operations, operated


async def test_handlers_are_listed_with_what_they_handle_and_where() -> None:
    async with operated() as operations:
        page = await operations.get("/handlers")

        assert (page["total"], page["next"]) == (4, None)
        found = {one["id"]: one for one in page["items"]}
        assert found["mail"]["label"] == "Shop.mail"
        assert (found["mail"]["kind"], found["mail"]["route"], found["mail"]["payload"]) == ("command", "mail", "str")
        assert (found["mail"]["channels"], found["mail"]["instead_of"]) == (["mails"], None)
        assert [one["kind"] for one in page["items"]] == ["command", "command", "command", "query"]


async def pages(operations: Operations, limit: int) -> list[list[str]]:
    found: list[list[str]] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = await operations.get("/handlers", **query)
        found.append([one["id"] for one in page["items"]])
        if page["next"] is None:
            return found
        query["after"] = page["next"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
async def test_handlers_come_in_pages(limit: int) -> None:
    async with operated() as operations:
        [everything] = await pages(operations, 500)

        found = await pages(operations, limit)

        assert [id_ for page in found for id_ in page] == everything
        assert all(len(page) == limit for page in found[:-1])


async def test_a_page_behind_no_handler_is_refused() -> None:
    async with operated() as operations:
        assert (await operations.call("GET", "/handlers?after=nobody")).status_code == 422


@pytest.mark.parametrize("name", ["mail", "Shop.mail", "Shop.all_sent"])
async def test_the_journey_to_a_handler_is_told_as_the_command_line_tells_it(name: str) -> None:
    async with operated() as operations:
        journey = await operations.get(f"/handlers/{name}")

        assert journey["label"].startswith("Shop.")
        assert journey["stations"][0]["stage"] == "dispatch"
        assert all(one["interceptors"] is not None for one in journey["stations"])
        assert journey["file"].endswith("shops.py")


async def test_the_journey_through_a_channel_names_it_and_its_interceptors() -> None:
    async with operated() as operations:
        journey = await operations.get("/handlers/mail")

        stages = [one["stage"] for one in journey["stations"]]
        assert stages == ["dispatch", "handle", "send", "channel", "receive", "handle"]
        receiving = journey["stations"][4]
        assert "Failures" in [one["plugin"] for one in receiving["interceptors"]]


@pytest.mark.parametrize("name", ["nobody", "sho", "ail", "%3Cscript%3E", "a%2Fb"])
async def test_a_handler_that_is_not_there_is_not_found(name: str) -> None:
    async with operated() as operations:
        answer = await operations.call("GET", f"/handlers/{name}")

        assert answer.status_code == 404
        assert "There is no handler" in answer.json()["detail"]


async def test_the_diagram_is_told_as_data_and_as_text() -> None:
    async with operated() as operations:
        diagram = await operations.get("/diagram")

        assert diagram["mermaid"].startswith("flowchart LR\n")
        assert {"command:mail", "channel:mails", "handler:mail"} <= {one["id"] for one in diagram["nodes"]}
        assert {"source", "target", "kind", "label"} == set(diagram["edges"][0])
