"""A real server, and what it does when it is told to end while a handler is at work."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

APPLICATION = '''
import os
from typing import Any

import anyio
from fastapi import FastAPI

from ecotone_fastapi import CommandBusDep, Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel


async def report(line: str, *, wait: bool = False) -> None:
    """Tell the test where we are, and wait until it lets us go on."""
    async with await anyio.connect_tcp("127.0.0.1", int(os.environ["TEST_PORT"])) as stream:
        await stream.send(line.encode())
        if wait:
            await stream.receive()


@command_handler("now")
async def now(order: str) -> str:
    await report("now begun", wait=True)
    return order


@asynchronous("orders")
@command_handler("later")
async def later(order: str) -> None:
    await report("later begun", wait=True)
    await report("later done")


app = FastAPI()
Ecotone([now, later], channels=[MemoryChannel("orders")], grace=float(os.environ["TEST_GRACE"])).install(app)


@app.post("/{key}")
async def post(key: str, commands: CommandBusDep) -> Any:
    return await commands.send("1", to=key)
'''


class Served:
    """The application in a process of its own, and the line to it."""

    def __init__(self, process: subprocess.Popen[str], listener: socket.socket, address: tuple[str, int]) -> None:
        self.process = process
        self.address = address
        self._listener = listener

    def post(self, key: str) -> int:
        host, port = self.address
        return httpx.post(f"http://{host}:{port}/{key}", timeout=30).status_code

    def hear(self, line: str) -> socket.socket:
        """Wait until the application reports; what is sent to it then lets it go on."""
        connection, _ = self._listener.accept()
        connection.settimeout(30)
        assert connection.recv(100).decode() == line
        return connection

    def read_until(self, words: str) -> None:
        """Wait until the server logs something."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return
        raise AssertionError(f"the server ended without {words!r}")


@contextmanager
def serving(directory: Path, grace: float) -> Iterator[Served]:
    (directory / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as http:
        listener.settimeout(30)
        environment = {
            **os.environ,
            "TEST_PORT": str(listener.getsockname()[1]),
            "TEST_GRACE": str(grace),
            "PYTHONPATH": f"{directory}:{Path(__file__).parents[2]}",
        }
        command = [sys.executable, "-m", "uvicorn", "application:app", "--fd", str(http.fileno())]
        with subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, pass_fds=[http.fileno()]
        ) as process:
            try:
                served = Served(process, listener, http.getsockname())
                served.read_until("Application startup complete")
                yield served
            finally:
                process.kill()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_consumer_finishes_what_it_has_begun_when_the_server_is_told_to_end(tmp_path: Path, how: int) -> None:
    with serving(tmp_path, grace=30) as served:
        assert served.post("later") == 200
        with served.hear("later begun") as handler:
            served.process.send_signal(how)
            served.read_until("Waiting for application shutdown")
            handler.send(b"go on")
        served.hear("later done").close()
        served.read_until("Application shutdown complete")

        assert served.process.wait(30) in (0, -how)


def test_the_server_ends_although_a_handler_does_not(tmp_path: Path) -> None:
    with serving(tmp_path, grace=0.1) as served:
        served.post("later")
        with served.hear("later begun"):
            served.process.terminate()
            served.read_until("Application shutdown complete")

            assert served.process.wait(30) in (0, -signal.SIGTERM)


def test_a_request_is_answered_before_the_server_ends(tmp_path: Path) -> None:
    with serving(tmp_path, grace=30) as served, socket.create_connection(served.address, 30) as request:
        request.sendall(b"POST /now HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        with served.hear("now begun") as handler:
            served.process.terminate()
            served.read_until("Shutting down")
            handler.send(b"go on")
        answer = request.makefile("rb").read()
        served.read_until("Application shutdown complete")

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b'"1"')
