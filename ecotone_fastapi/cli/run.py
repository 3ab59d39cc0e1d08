"""`ecotone run`: consumers as a process of their own."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import anyio
import typer
from rich.logging import RichHandler

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.application import AppOption, FactoryOption, JsonOption, address_and_rest, load
from ecotone_fastapi.cli.output import console, say_json
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.operations.wording import unknown

logger: logging.Logger = logging.getLogger("ecotone_fastapi.run")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LogLevel(StrEnum):
    """From where on messages are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="APP|CHANNEL",
            help="The application, as module:name, unless it is configured; then the channels whose consumers run, or "
            "names of other runnables. Without any, all.",
            show_default=False,
        ),
    ] = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    messages: Annotated[
        int | None,
        typer.Option(
            "--messages",
            "--limit",
            min=1,
            envvar="ECOTONE_MESSAGES",
            help="End each consumer after it has handled so many messages well.",
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, envvar="ECOTONE_SECONDS", help="End after so many seconds.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MB",
            envvar="ECOTONE_MEMORY",
            help="End when the process has grown beyond so many megabytes.",
        ),
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End each consumer when its channel has nothing more to handle now.")
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            min=0.0,
            envvar="ECOTONE_GRACE",
            help="Seconds that handlers under way get to finish; then they are cancelled, their messages given back.",
        ),
    ] = 30.0,
    log_level: Annotated[
        LogLevel, typer.Option(case_sensitive=False, envvar="ECOTONE_LOG_LEVEL", help="What is logged.")
    ] = LogLevel.INFO,
    json: JsonOption = False,
) -> None:
    """Run consumers in this process until it is told to stop, or until each has reached a limit.

    A server that is down is waited for. SIGINT or SIGTERM ends the run: nothing more is received, what is under way is
    finished, the rest is given back. A second signal cancels what is under way, a third one kills.
    """
    address, names = address_and_rest(arguments or [], app, factory=factory)
    ecotone = load(address, quiet=json)
    _log_to_stderr(log_level)
    _check(ecotone, names)
    limits = Limits(messages=messages, seconds=seconds, memory=memory, until_empty=until_empty, grace=grace)
    started = time.monotonic()
    handled, ending = asyncio.run(_work(ecotone, names, limits))
    took = round(time.monotonic() - started, 3)
    logger.info("handled %s in %s s", ", ".join(f"{count} from {name}" for name, count in handled.items()), took)
    if json:
        ended_by = ending.stopped_by.name if ending.stopped_by else "limit"
        say_json({"handled": handled, "ended_by": ended_by, "seconds": took})
    if ending.cancelled_by is not None:
        raise typer.Exit(128 + ending.cancelled_by)


def _check(ecotone: Ecotone, names: Sequence[str]) -> None:
    runnables, channels = ecotone.assembly.runnables, ecotone.assembly.channels
    if not runnables:
        raise ConfigurationError(
            "there is nothing to run: the application has no consumer",
            hint="consumers empty the channels of asynchronous handlers, and no handler is asynchronous",
        )
    for name in names:
        if name not in runnables:
            raise unknown("consumer", name, sorted(runnables))
    for name in names or runnables:
        if isinstance(channels.get(name), MemoryChannel):
            logger.warning("channel %s is in memory: only what this process itself sends arrives", name)


class _Ending:
    """Ends a run as signals say: the first one stops it, the second one cancels it, the third one kills the process."""

    def __init__(self) -> None:
        self.stop = anyio.Event()
        self.scope = anyio.CancelScope()
        self.stopped_by: signal.Signals | None = None
        self.cancelled_by: signal.Signals | None = None

    def on_signal(self, number: int) -> None:
        if self.stopped_by is None:
            self.stopped_by = signal.Signals(number)
            logger.info("%s: what is under way is finished; once more cancels it", self.stopped_by.name)
            self.stop.set()
        elif self.cancelled_by is None:
            self.cancelled_by = signal.Signals(number)
            logger.warning("%s: what is under way is cancelled; once more kills", self.cancelled_by.name)
            self.scope.cancel()
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)


async def _work(ecotone: Ecotone, names: Sequence[str], limits: Limits) -> tuple[dict[str, int], _Ending]:
    ending = _Ending()
    runnables = ecotone.assembly.runnables
    chosen = [name for name in runnables if name in names or not names]
    with _signals(ending.on_signal), ending.scope:
        logger.info("running %s", ", ".join(chosen))
        handled = await ecotone.work(chosen, limits=replace(limits, stop=ending.stop))
        return handled, ending
    consumers = {name: runnables[name] for name in chosen}
    return {name: one.handled for name, one in consumers.items() if isinstance(one, Consumer)}, ending


@contextmanager
def _signals(react: Callable[[int], None]) -> Iterator[None]:
    """React to signals on the event loop; works on Windows, too, where the loop itself takes no handlers."""
    loop = asyncio.get_running_loop()
    before = {
        number: signal.signal(number, lambda received, _: loop.call_soon_threadsafe(react, received))
        for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_stderr(level: LogLevel) -> None:
    """Log as the application has set it up while it was imported, else for people or for files."""
    stderr = console(stderr=True)
    if stderr.is_terminal:
        handler: logging.Handler = RichHandler(console=stderr, show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler(stderr.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("ecotone_fastapi").setLevel(level.upper())
