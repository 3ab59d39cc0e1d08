"""A RabbitMQ that belongs to the tests alone: it may be stopped, starved of memory and told to be impatient."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

STARTING = 120.0  # seconds
HALF_AN_HOUR = 1_800_000  # milliseconds, the server's own default


def programs() -> Path | None:
    """Where the programs of RabbitMQ are; Debian's wrappers in the path would change the user."""
    inside, wrapper = Path("/usr/lib/rabbitmq/bin"), shutil.which("rabbitmq-server")
    if (inside / "rabbitmq-server").exists():
        return inside
    return Path(wrapper).parent if wrapper is not None else None


class Broker:
    """A node of its own. Made by `broker`.

    Attributes:
        url: Where it is.
    """

    def __init__(self, where: Path, environment: dict[str, str], port: int) -> None:
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
        self._where = where
        self._environment = environment

    async def tell(self, *command: str) -> None:
        """Run a command of `rabbitmqctl`."""
        process = await asyncio.create_subprocess_exec(
            self._where / "rabbitmqctl",
            *command,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(STARTING):
            said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    @asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Be down for as long as the block lasts."""
        await self.tell("stop_app")
        try:
            yield
        finally:
            await self.tell("start_app")

    @asynccontextmanager
    async def out_of_memory(self) -> AsyncIterator[None]:
        """Take no messages for as long as the block lasts."""
        await self.tell("set_vm_memory_high_watermark", "0")
        try:
            yield
        finally:
            await self.tell("set_vm_memory_high_watermark", "0.4")

    @asynccontextmanager
    async def set(self, name: str, value: int, *, otherwise: int) -> AsyncIterator[None]:
        """Change a setting, for AMQP channels that are opened in the block."""
        await self.tell("eval", f"application:set_env(rabbit, {name}, {value}).")
        try:
            yield
        finally:
            await self.tell("eval", f"application:set_env(rabbit, {name}, {otherwise}).")

    @asynccontextmanager
    async def policy(self, pattern: str, definition: str) -> AsyncIterator[None]:
        """Have a policy for the queues whose names match."""
        await self.tell("set_policy", "faults", pattern, definition, "--apply-to", "queues")
        try:
            yield
        finally:
            await self.tell("clear_policy", "faults")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def broker(directory: Path) -> Iterator[Broker]:
    """Start a node, and end it.

    Args:
        directory: For everything that it writes.
    """
    where = programs()
    assert where is not None
    port, name = _free_port(), f"faults-{uuid.uuid4().hex[:8]}@localhost"
    settings = {
        "rabbitmq.conf": f"listeners.tcp.local = 127.0.0.1:{port}\n",
        # So often it looks which consumers have exceeded their time.
        "advanced.config": "[{rabbit, [{channel_tick_interval, 250}]}].\n",
        "plugins": "[].\n",
        "environment": "",
    }
    for file, content in settings.items():
        (directory / file).write_text(content)
    environment = {
        **os.environ,
        "HOME": str(directory),
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "environment"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [where / "rabbitmq-server"], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(port, process, directory / "output")
        yield Broker(where, environment, port)
    finally:
        # Its data is of no use any more, so it need not tidy up.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    ends_at = time.monotonic() + STARTING
    while True:
        try:
            # It listens when it is ready.
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < ends_at, output.read_text()
            time.sleep(0.1)
        else:
            return
