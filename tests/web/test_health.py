"""Liveness and readiness tell the truth."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ecotone_fastapi import Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.plugin import Assembly, Limits
from tests.servers import RemoteChannel, Server

REMOTE_IS_DOWN = "ChannelError: the server of channel 'remote' is down"


class Runs:
    """A plugin with something that runs beside the application."""

    def __init__(self, name: str, run: Callable[[Limits], Awaitable[int]]) -> None:
        self.name = name
        self.run = run

    def install(self, assembly: Assembly) -> None:
        assembly.add_runnable(self)


class Asked:
    """A plugin whose server can be asked how it is."""

    def __init__(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self.check = check

    def install(self, assembly: Assembly) -> None:
        """Plug in nothing."""


async def listens(limits: Limits) -> int:
    assert limits.stop is not None
    await limits.stop.wait()
    return 0


async def ends(limits: Limits) -> int:
    return 0


async def breaks(limits: Limits) -> int:
    raise ZeroDivisionError("a bug")


class Client:
    """An application, asked how it is."""

    def __init__(self, ecotone: Ecotone) -> None:
        self.ecotone = ecotone
        self.app = FastAPI()
        ecotone.install(self.app)
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def live(self) -> tuple[int, Any]:
        return await self._get("live")

    async def ready(self) -> tuple[int, Any]:
        return await self._get("ready")

    async def _get(self, path: str) -> tuple[int, Any]:
        response = await self._http.get(f"/ecotone/health/{path}")
        return response.status_code, response.json()

    async def until(self, condition: Callable[[int, Any], object]) -> tuple[int, Any]:
        with anyio.fail_after(60):
            while not condition(*(found := await self.ready())):
                pass
        return found


def with_consumer(server: Server, **options: Any) -> Client:
    @asynchronous("remote")
    @command_handler("later")
    async def later(command: str) -> None: ...

    return Client(Ecotone([later], channels=[RemoteChannel("remote", server)], **options))


async def test_an_application_with_nothing_to_run_is_ready() -> None:
    client = Client(Ecotone([]))

    async with client.ecotone.running():
        assert await client.ready() == (200, {"status": "ready", "consumers": {}, "servers": {}})
        assert await client.live() == (200, {"status": "alive"})


async def test_an_application_that_was_not_started_is_alive_and_not_ready() -> None:
    client = with_consumer(Server())

    assert await client.ready() == (503, {"status": "not running", "consumers": {}, "servers": {}})
    assert await client.live() == (200, {"status": "alive"})


async def test_an_application_that_was_stopped_is_alive_and_not_ready() -> None:
    client = with_consumer(Server())

    async with client.ecotone.running():
        await client.until(lambda status, report: status == 200)

    status, report = await client.ready()
    assert (status, report["status"]) == (503, "not running")
    assert report["consumers"]["remote"]["condition"] == "stopped"
    assert await client.live() == (200, {"status": "alive"})


async def test_a_consumer_whose_server_is_down_at_start_waits_and_connects_when_it_comes() -> None:
    server = Server()
    server.stop()
    client = with_consumer(server)

    async with client.ecotone.running():
        status, report = await client.until(lambda status, report: report["consumers"]["remote"]["failures"] == 2)
        assert (status, report["status"]) == (503, "not ready")
        assert report["consumers"]["remote"] == {"condition": "waiting", "failures": 2, "last_error": REMOTE_IS_DOWN}
        assert await client.live() == (200, {"status": "alive"})

        server.start()

        status, report = await client.until(lambda status, report: status == 200)
        assert report["consumers"]["remote"]["condition"] == "running"


async def test_a_consumer_that_loses_its_server_waits_until_it_is_back() -> None:
    server = Server()
    client = with_consumer(server)

    async with client.ecotone.running():
        await client.until(lambda status, report: server.receiving)
        assert (await client.ready())[0] == 200

        server.stop()
        _, report = await client.until(lambda status, report: status == 503)
        assert report["consumers"]["remote"] == {"condition": "waiting", "failures": 1, "last_error": REMOTE_IS_DOWN}

        server.start()
        await client.until(lambda status, report: status == 200)


async def test_a_channel_that_is_only_sent_to_is_reported_until_it_is_open() -> None:
    server = Server()
    server.stop()
    client = with_consumer(server, consumers=False)

    async with client.app.router.lifespan_context(client.app):
        assert await client.ready() == (
            503,
            {"status": "not ready", "consumers": {}, "servers": {"remote": REMOTE_IS_DOWN}},
        )

        server.start()

        assert await client.until(lambda status, report: status == 200) == (
            200,
            {"status": "ready", "consumers": {}, "servers": {"remote": "ok"}},
        )


async def test_one_bad_consumer_takes_nothing_down_and_is_visible() -> None:
    client = Client(Ecotone([], plugins=[Runs("bad", breaks), Runs("good", listens)]))

    async with client.ecotone.running():
        status, report = await client.until(lambda status, report: report["consumers"]["bad"]["failures"])
        assert status == 503
        assert report["consumers"]["bad"]["condition"] == "waiting"
        assert report["consumers"]["bad"]["last_error"] == "ZeroDivisionError: a bug"
        assert report["consumers"]["good"] == {"condition": "running", "failures": 0, "last_error": None}
        assert await client.live() == (200, {"status": "alive"})


async def test_what_has_nothing_left_to_do_is_ready() -> None:
    client = Client(Ecotone([], plugins=[Runs("once", ends)]))

    async with client.ecotone.running():
        status, report = await client.until(lambda status, report: report["consumers"]["once"]["condition"] == "ended")

    assert (status, report["status"]) == (200, "ready")


async def test_consumers_that_this_process_does_not_run_are_not_its_business() -> None:
    server = Server()
    client = with_consumer(server, plugins=[Runs("here", listens), Runs("elsewhere", breaks)], consumers=["here"])

    async with client.ecotone.running():
        status, report = await client.until(
            lambda status, report: report["consumers"]["here"]["condition"] == "running"
        )

    assert (status, list(report["consumers"])) == (200, ["here"])


async def test_servers_that_can_be_asked_are_asked_every_time() -> None:
    problem: list[Exception] = []

    async def check() -> None:
        if problem:
            raise problem[0]

    client = Client(Ecotone([], plugins=[Asked("database", check)]))

    async with client.ecotone.running():
        assert (await client.ready())[1]["servers"] == {"database": "ok"}

        problem.append(ChannelError("connection refused\nand more", hint="start it"))
        status, report = await client.ready()
        assert (status, report["servers"]) == (503, {"database": "ChannelError: connection refused"})

        problem.clear()
        assert (await client.ready())[0] == 200


async def test_a_server_that_does_not_answer_does_not_hold_up_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecotone_fastapi.core.supervision._ANSWERING", 0.01)
    client = Client(Ecotone([], plugins=[Asked("one", anyio.sleep_forever), Asked("other", anyio.sleep_forever)]))

    async with client.ecotone.running():
        status, report = await client.ready()

    assert status == 503
    assert list(report["servers"]) == ["one", "other"]
    assert all("no answer within" in answer for answer in report["servers"].values())


class AskedChannel(RemoteChannel):
    """A channel that can be asked."""

    async def check(self) -> None:
        await self.server.ask(self.name)


async def test_channels_that_can_be_asked_are_asked_those_of_plugins_included() -> None:
    server, other = Server(), Server()

    class Brings:
        def install(self, assembly: Assembly) -> None:
            assembly.add_channel(AskedChannel("brought", other))

    client = Client(Ecotone([], channels=[AskedChannel("remote", server)], plugins=[Brings()]))

    async with client.ecotone.running():
        assert (await client.ready())[1]["servers"] == {"remote": "ok", "brought": "ok"}
        other.stop()
        status, report = await client.ready()
        assert (status, report["servers"]["remote"]) == (503, "ok")
        assert report["servers"]["brought"] == "ChannelError: the server of channel 'brought' is down"
        other.start()


def test_health_is_part_of_the_schema_and_asks_for_nothing() -> None:
    app = FastAPI()
    Ecotone([]).install(app)

    with TestClient(app) as client:
        paths = client.get("/openapi.json").json()["paths"]

    for path in ("/ecotone/health/live", "/ecotone/health/ready"):
        assert "parameters" not in paths[path]["get"]
    assert set(paths["/ecotone/health/ready"]["get"]["responses"]) == {"200", "503"}


async def test_a_database_that_is_down_at_start_is_waited_for(tmp_path: Path) -> None:
    directory, handled = tmp_path / "not there yet", anyio.Event()
    database = SqlAlchemy(f"sqlite+aiosqlite:///{directory / 'shop.db'}", create_schema=True)

    @asynchronous("orders")
    @command_handler("later")
    async def later(command: str) -> None:
        handled.set()

    client = Client(Ecotone([later], channels=[database.channel("orders")], plugins=[database]))

    async with client.app.router.lifespan_context(client.app):
        status, report = await client.until(lambda status, report: report["consumers"]["orders"]["failures"] > 1)
        assert (status, report["consumers"]["orders"]["condition"]) == (503, "waiting")
        assert report["servers"]["sqlite"].startswith("ChannelError: ")
        assert await client.live() == (200, {"status": "alive"})

        directory.mkdir()

        status, report = await client.until(lambda status, report: status == 200)
        assert report["servers"] == {"sqlite": "ok"}
        await client.ecotone.command_bus.send("order", to="later")
        with anyio.fail_after(60):
            await handled.wait()
