"""The overview again and again: as long as somebody listens, and no longer than the server runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI

from ecotone_fastapi import Ecotone
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.web.operations import live
from ecotone_fastapi.web.operations.ending import Ending
from ecotone_fastapi.web.operations.live import EventStream, overviews
from tests.servers import until
from tests.web.operations.shops import operated


def told_by(event: bytes) -> Any:
    name, data, *rest = event.decode().split("\n")
    assert (name, rest) == ("event: overview", ["", ""])
    return json.loads(data.removeprefix("data: "))


class Listener:
    """A client of a stream that may go away."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.started: Any = None
        self.gone = anyio.Event()
        self.is_over = False

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = message
        elif message["more_body"]:
            self.events.append(message["body"])
        else:
            self.is_over = True


# ---------------------------------------------------------------------------------------------------------- the events


async def test_the_overview_comes_at_once_and_then_again_and_again() -> None:
    async with operated() as operations:
        async with aclosing(overviews(operations.ecotone.overview, Ending(), 0.01)) as events:
            assert await anext(events) == b"retry: 500\n\n"
            before = told_by(await anext(events))
            await operations.fails("a")
            after = told_by(await anext(events))

        assert before == json.loads(json.dumps(before | {"dead_letters": {"count": 0, "problem": None}}))
        assert after["dead_letters"] == {"count": 1, "problem": None}
        assert list(after) == list(await operations.get("/overview"))


async def test_a_stream_ends_after_a_while_so_that_it_is_asked_anew_who_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "LIFETIME", 0.05)
    async with operated() as operations:
        answer = await operations.call("GET", "/live?seconds=0.2")

        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
        assert answer.text.startswith("retry: 500\n\nevent: overview\ndata: {")
        assert answer.text.count("event: overview") == 1


@pytest.mark.parametrize("seconds", ["0", "0.19", "-1", "11", "nan", "inf", "often", ""])
async def test_nobody_is_told_more_often_than_every_fifth_of_a_second(seconds: str) -> None:
    async with operated() as operations:
        assert (await operations.call("GET", f"/live?seconds={seconds}")).status_code == 422


# ---------------------------------------------------------------------------------------------------------- the client


async def test_a_stream_ends_when_its_client_is_gone() -> None:
    async with Ecotone([], channels=[MemoryChannel("orders")]).running() as ecotone:
        ending, listener = Ending(), Listener()
        stream = EventStream(overviews(ecotone.overview, ending, 10.0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream, {"type": "http"}, listener.receive, listener.send)
            await until(lambda: len(listener.events) == 2)
            assert ending._streams
            listener.gone.set()

        assert not listener.is_over
        assert not ending._streams


async def test_a_stream_ends_when_nothing_can_be_sent_any_more() -> None:
    async def send(message: Any) -> None:
        raise BrokenPipeError

    async with Ecotone([]).running() as ecotone:
        ending, listener = Ending(), Listener()
        await EventStream(overviews(ecotone.overview, ending, 10.0))({"type": "http"}, listener.receive, send)

        assert not ending._streams


async def test_a_bug_in_the_overview_is_not_hidden() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError("a bug")

    listener = Listener()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await EventStream(broken())({"type": "http"}, listener.receive, listener.send)
    assert listener.events == [b"one"]


# ------------------------------------------------------------------------------------------------------- the signals


@contextmanager
def handled(number: int) -> Iterator[list[int]]:
    """A handler of a signal, as a server has one."""
    heard: list[int] = []
    before = signal.signal(number, lambda got, frame: heard.append(got))
    try:
        yield heard
    finally:
        signal.signal(number, before)


async def test_who_waits_hears_that_the_process_is_to_end_and_so_does_the_server() -> None:
    with handled(signal.SIGTERM) as heard:
        ending = Ending()
        with ending.awaited() as one, ending.awaited() as two:
            signal.raise_signal(signal.SIGTERM)
            with anyio.fail_after(60):
                await one.wait()
                await two.wait()

        assert heard == [signal.SIGTERM]


async def test_nothing_is_left_of_it_when_nobody_waits_any_more() -> None:
    with handled(signal.SIGTERM):
        before = signal.getsignal(signal.SIGTERM)
        ending = Ending()

        for _ in range(3):
            with ending.awaited():
                assert signal.getsignal(signal.SIGTERM) != before
            assert signal.getsignal(signal.SIGTERM) is before


async def test_several_applications_in_one_process_do_not_pile_up() -> None:
    with handled(signal.SIGTERM) as heard:
        first, second = Ending(), Ending()
        for _ in range(50):
            outer = first.awaited()
            outer.__enter__()
            inner = second.awaited()
            inner.__enter__()
            outer.__exit__(None, None, None)
            again = first.awaited()
            again.__enter__()
            inner.__exit__(None, None, None)
            again.__exit__(None, None, None)
        with first.awaited() as one, second.awaited() as two:
            signal.raise_signal(signal.SIGTERM)
            with anyio.fail_after(60):
                await one.wait()
                await two.wait()

        assert heard == [signal.SIGTERM]


async def test_a_process_that_handles_no_signal_is_left_as_it_is() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Ending().awaited() as told:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
            await anyio.lowlevel.checkpoint()
            assert not told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_beside_the_main_thread_a_stream_just_runs() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[object] = []

    async def wait() -> None:
        with Ending().awaited() as told:
            found.append((told.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=lambda: anyio.run(wait))
    thread.start()
    thread.join(30)

    assert found == [(False, before)]


# -------------------------------------------------------------------------------------------------------- a real server

APPLICATION = """
from fastapi import Depends, FastAPI
from ecotone_fastapi import Ecotone
from ecotone_fastapi.adapters.memory import MemoryChannel

app = FastAPI()
Ecotone([], channels=[MemoryChannel("orders")], operations=[Depends(lambda: None)]).install(app)
"""


async def test_a_server_that_is_ended_by_code_is_not_held_up_by_those_who_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "LIFETIME", 60.0)
    app = FastAPI()
    Ecotone([], channels=[MemoryChannel("orders")], operations=[Depends(lambda: None)]).install(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/ecotone/operations/live?seconds=10"
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks, httpx.AsyncClient(timeout=30) as http:
                tasks.start_soon(server.serve, [listener])
                await until(lambda: server.started)
                async with http.stream("GET", url) as stream:
                    lines = stream.aiter_lines()
                    while await anext(lines) != "event: overview":
                        continue
                    server.should_exit = True
                    assert [line async for line in lines][-1] == ""  # it ends as streams do, and is not cut off


async def test_streams_end_with_the_lifespan_of_their_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LIFETIME", 60.0)
    app = FastAPI()
    Ecotone([], channels=[MemoryChannel("orders")], operations=[Depends(lambda: None)]).install(app)
    listener = Listener()
    path = "/ecotone/operations/live"
    request = {"type": "http", "method": "GET", "path": path, "query_string": b"seconds=10", "headers": []}
    with anyio.fail_after(30):
        asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            return next(asked, None) or await listener.receive()

        async with anyio.create_task_group() as tasks, app.router.lifespan_context(app):
            tasks.start_soon(app, request, receive, listener.send)
            await until(lambda: len(listener.events) == 2)

    assert listener.is_over


async def test_a_server_that_nobody_finds_waits_for_a_short_time_only() -> None:
    ended_at: list[float] = []

    def serve() -> None:
        app = FastAPI()
        Ecotone([], channels=[MemoryChannel("orders")], operations=[Depends(lambda: None)]).install(app)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        servers.append(server)
        server.run([listener])
        ended_at.append(time.monotonic())

    servers: list[uvicorn.Server] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/ecotone/operations/live"
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            await until(lambda: bool(servers) and servers[0].started)
            async with httpx.AsyncClient(timeout=30) as http, http.stream("GET", url) as stream:
                lines = stream.aiter_lines()
                while await anext(lines) != "event: overview":
                    continue
                servers[0].should_exit = True
                assert [line async for line in lines][-1] == ""
        finally:
            servers[0].should_exit = True
            await anyio.to_thread.run_sync(thread.join, 30)
    assert len(ended_at) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_is_not_held_up_by_those_who_listen(tmp_path: Path, how: int) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/ecotone/operations/live?seconds=10"
        command = [sys.executable, "-m", "uvicorn", "application:app", "--fd", str(listener.fileno())]
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, pass_fds=[listener.fileno()]
        ) as process:
            try:
                assert process.stderr is not None
                assert any("Application startup complete" in line for line in process.stderr)
                with httpx.stream("GET", url, timeout=30) as one, httpx.stream("GET", url, timeout=30) as two:
                    lines = one.iter_lines(), two.iter_lines()
                    for each in lines:
                        assert any(line == "event: overview" for line in each)
                    told_at = time.monotonic()
                    process.send_signal(how)
                    for each in lines:  # they end as streams do, and are not cut off
                        assert all(line.startswith(("data: ", "")) for line in each)
                assert process.wait(30) in (0, -how)
                assert time.monotonic() - told_at < 10  # the pause between two events of the stream
                assert not any("Traceback" in line for line in process.stderr)
            finally:
                process.kill()
