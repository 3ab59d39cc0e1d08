"""Real processes for tests, and waiting for what they do, never longer than a bound."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds; only a test that fails waits for so long

ECOTONE = Path(sys.executable).with_name("ecotone")


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Return what the condition returns as soon as that is true."""
    ends_at = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < ends_at, f"waited in vain for {what}"
        time.sleep(0.02)


class EcotoneProcess:
    """One `ecotone …` that runs in a directory."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self._process = process
        self._output = output

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._output.with_suffix(".out").read_text()

    @property
    def stderr(self) -> str:
        return self._output.with_suffix(".err").read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has said this on its standard error."""
        eventually(lambda: self.stderr.count(text) >= times or self._process.poll() is not None, f"{text!r}")
        assert self.stderr.count(text) >= times, self.stderr

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end and return its exit code."""
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill it as `kill -9` does, and wait until it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE)


@contextmanager
def ecotone(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator[EcotoneProcess]:
    """Run `ecotone` beside the block; kill it afterwards if it still runs."""
    output = cwd / f"process-{len(list(cwd.glob('process-*.err')))}"
    with output.with_suffix(".out").open("wb") as out, output.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen([ECOTONE, *arguments], cwd=cwd, stdout=out, stderr=err, env=_environment(env))
    started = EcotoneProcess(process, output)
    try:
        yield started
    finally:
        started.kill()


def run_ecotone(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> EcotoneProcess:
    """Run `ecotone` to its end, which must be a good one."""
    with ecotone(*arguments, cwd=cwd, env=env) as process:
        assert process.ends() == 0, process.stderr
        return process


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ECOTONE_")}
    return {**inherited, "PYTHONWARNINGS": "error", **(extra or {})}
