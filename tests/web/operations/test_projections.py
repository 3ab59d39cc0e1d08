"""Projections over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from ecotone_fastapi import Ecotone, EventStore, ProjectionState, ProjectionVersion, event_handler, projection
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.plugin import Limits
from tests.web.operations.shops import JSON


@dataclass(frozen=True)
class MoneyWasMoved:
    amount: int


class Broken:
    """Whether the handlers fail."""

    is_so = False


@projection("balance", categories=["wallet"], mode="polling")
class Balance:
    """Made anew beside the live version."""

    @event_handler
    async def moved(
        self, event: MoneyWasMoved, version: ProjectionVersion, balance: Annotated[int, ProjectionState(0)]
    ) -> int:
        if Broken.is_so:
            raise ValueError("broken")
        return balance + event.amount


@projection("moves", categories=["wallet"], mode="polling")
class Moves:
    """Cannot be emptied, for it does not say how."""

    @event_handler
    async def moved(self, event: MoneyWasMoved) -> None: ...


class Bank:
    """Its operations."""

    def __init__(self, ecotone: Ecotone) -> None:
        self.ecotone = ecotone
        app = FastAPI()
        ecotone.install(app)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test/ecotone/operations", headers=JSON
        )

    async def move(self, *amounts: int) -> None:
        store: Any = self.ecotone.assembly.services[EventStore]
        for amount in amounts:
            await store.append("wallet-1", [MoneyWasMoved(amount)])

    async def catch_up(self) -> None:
        for name in ("balance", "moves"):
            await self.ecotone.run(name, Limits(until_empty=True))

    async def told(self, name: str = "balance") -> Any:
        return (await self.http.get(f"/projections/{name}")).json()


@asynccontextmanager
async def banking(url: str | None) -> AsyncIterator[Bank]:
    plugins = [] if url is None else [SqlAlchemy(url, create_schema=True)]
    ecotone = Ecotone([Balance, Moves], plugins=plugins, operations=[Depends(lambda: None)])
    async with ecotone.running(consumers=False):
        yield Bank(ecotone)


async def test_projections_are_told_with_how_far_they_are(url: str | None) -> None:
    async with banking(url) as bank:
        await bank.move(1, 2)
        await bank.catch_up()
        await bank.move(3)

        page = (await bank.http.get("/projections")).json()

        found = page["items"]
        assert ([one["name"] for one in found], page["next"], page["total"]) == (["balance", "moves"], None, 2)
        assert (found[0]["condition"], found[0]["version"], found[0]["versions"][0]["behind"]) == ("live", 1, 1)
        assert found[0]["lag"] >= 0
        alone = await bank.told()
        assert (alone["name"], alone["mode"], alone["versions"][0]["behind"]) == ("balance", "polling", 1)


async def test_projections_come_in_pages() -> None:
    async with banking(None) as bank:
        first = (await bank.http.get("/projections", params={"limit": 1})).json()
        second = (await bank.http.get("/projections", params={"limit": 1, "after": first["next"]})).json()

        assert ([one["name"] for one in first["items"]], first["total"]) == (["balance"], 2)
        assert ([one["name"] for one in second["items"]], second["next"]) == (["moves"], None)


async def test_a_rebuild_is_begun_and_done_by_those_who_run_the_projection(url: str | None) -> None:
    async with banking(url) as bank:
        await bank.move(1, 2, 3)
        await bank.catch_up()

        answer = await bank.http.post("/projections/balance/rebuild")

        assert (answer.status_code, answer.json()) == (202, {"name": "balance", "version": 2})
        building = (await bank.told())["versions"][1]
        assert (building["condition"], building["done"], building["total"]) == ("building", 0, 3)
        await bank.catch_up()
        told = await bank.told()
        assert (told["version"], told["condition"], told["versions"][-1]["done"]) == (2, "live", None)
        assert await bank.ecotone.projections.state("balance") == 6


async def test_a_rebuild_may_wait_to_be_switched() -> None:
    async with banking(None) as bank:
        await bank.move(1)
        await bank.catch_up()

        await bank.http.post("/projections/balance/rebuild", json={"switch": False})
        await bank.catch_up()

        assert (await bank.told())["version"] == 1
        assert await bank.ecotone.projections.switch("balance") == 2


async def test_a_rebuild_is_cancelled(url: str | None) -> None:
    async with banking(url) as bank:
        await bank.move(1)
        await bank.catch_up()
        await bank.http.post("/projections/balance/rebuild")

        assert (await bank.http.post("/projections/balance/cancel")).status_code == 204

        assert [one["number"] for one in (await bank.told())["versions"]] == [1]
        again = await bank.http.post("/projections/balance/cancel")
        assert again.status_code == 409
        assert "no version of the projection 'balance' is being built" in again.json()["detail"]


async def test_what_stands_still_says_why_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with banking(None) as bank:
        monkeypatch.setattr(Broken, "is_so", True)
        await bank.move(1)
        with pytest.raises(Exception, match="balance"):
            await bank.catch_up()

        told = await bank.told()
        assert "ValueError: broken, at version 1 of wallet-1" in told["versions"][0]["halt"]

        monkeypatch.setattr(Broken, "is_so", False)
        assert (await bank.http.post("/projections/balance/retry")).status_code == 204
        await bank.catch_up()
        assert (await bank.told())["versions"][0]["halt"] is None


async def test_what_cannot_be_done_is_said_with_a_hint() -> None:
    async with banking(None) as bank:
        await bank.move(1)
        await bank.catch_up()

        answer = await bank.http.post("/projections/moves/rebuild")
        assert answer.status_code == 409
        assert "'moves'" in answer.json()["detail"]
        assert "Hint: " in answer.json()["detail"]

        await bank.http.post("/projections/balance/rebuild")
        twice = await bank.http.post("/projections/balance/rebuild")
        assert twice.status_code == 409
        assert "is being built already" in twice.json()["detail"]


@pytest.mark.parametrize("what", ["", "/rebuild", "/cancel", "/retry"])
async def test_a_projection_that_is_not_there_is_not_found(what: str) -> None:
    async with banking(None) as bank:
        answer = await bank.http.request("POST" if what else "GET", f"/projections/nothing{what}")

        assert answer.status_code == 404
        assert answer.json()["detail"] == "There is no projection 'nothing'; known are: balance, moves"


@pytest.mark.parametrize("body", [{"switch": "perhaps"}, {"swich": False}, [True]], ids=str)
async def test_a_rebuild_that_says_something_else_is_refused(body: Any) -> None:
    async with banking(None) as bank:
        await bank.move(1)
        await bank.catch_up()

        assert (await bank.http.post("/projections/balance/rebuild", json=body)).status_code == 422
        assert len((await bank.told())["versions"]) == 1
