"""Streams that end with the process.

A server that is told to end waits for open answers before it says so to the application, and a stream of news is an
answer that never ends. So it is listened for what tells the server, a signal, while there are streams, and only there.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """Tells streams that the process was told to end; whoever handles the signal otherwise is told as before.

    It listens in the main thread, where signals arrive, and where somebody else, a server, handles them. Elsewhere it
    tells nothing.
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
