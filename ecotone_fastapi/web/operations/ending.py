"""Streams that end with the server.

A server that is told to end waits for open answers before it says so to the application, and a stream of news is an
answer that never ends. So it is listened for what tells the server, a signal, while there are streams, and only there;
and whoever has these signals is looked at: servers that are ended by code keep that in `should_exit`, as uvicorn does.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOKING = 0.2  # seconds between two looks at a server


class Ending:
    """Tells streams that the server was told to end; whoever handles the signal otherwise is told as before.

    It listens in the main thread, where signals arrive, and where somebody else, a server, handles them. A server in
    another thread has no signals, and nobody finds it: its streams end with the lifespan, and by themselves.
    """

    def __init__(self) -> None:
        self._streams: dict[anyio.Event, asyncio.AbstractEventLoop] = {}
        self._before: dict[int, Callable[[int, Any], Any]] = {}

    @contextmanager
    def awaited(self) -> Iterator[anyio.Event]:
        """Give an event that is set when the process is told to end, while the block runs."""
        told = anyio.Event()
        self._streams[told] = asyncio.get_running_loop()
        self._listen()
        try:
            yield told
        finally:
            del self._streams[told]
            if not self._streams:
                self._leave()

    async def wait(self, told: anyio.Event, seconds: float) -> None:
        """Wait until a stream is told to end, but not longer than this."""
        until = anyio.current_time() + seconds
        while not told.is_set() and (left := until - anyio.current_time()) > 0:
            with anyio.move_on_after(min(left, _LOOKING)):
                await told.wait()
            if self._server_ends():
                told.set()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """End all streams with the lifespan of an application."""
        yield
        for told in self._streams:
            told.set()

    def _server_ends(self) -> bool:
        handlers = (self._before.get(number, signal.getsignal(number)) for number in _SIGNALS)
        return any(getattr(getattr(one, "__self__", None), "should_exit", False) is True for one in handlers)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # Without a handler the process ends at once, or not at all: nobody waits for streams.
            if number not in self._before and callable(handler):
                self._before[number] = handler
                signal.signal(number, self._tell)

    def _leave(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in list(self._before.items()):
            # Who has come behind us calls us; then we stay, and call who was there before.
            if signal.getsignal(number) == self._tell:
                signal.signal(number, handler)
                del self._before[number]

    def _tell(self, number: int, frame: Any) -> None:
        for told, loop in self._streams.items():
            loop.call_soon_threadsafe(told.set)  # a loop that sleeps is not woken up otherwise
        self._before[number](number, frame)
