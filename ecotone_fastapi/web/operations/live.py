"""The overview again and again, as server-sent events."""

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter
from starlette.types import Receive, Scope, Send

from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.operations.report import Report
from ecotone_fastapi.web.operations.ending import Ending
from ecotone_fastapi.web.operations.opening import Operated

LIFETIME = 5.0
"""Seconds after which a stream ends, but for its last pause. Browsers connect anew at once: then it is asked again
whether they may. A server that nobody finds (see `Ending`) waits no longer than this for its end."""

_FASTEST, _SLOWEST = 0.2, 10.0
_RETRY = b"retry: 500\n\n"  # milliseconds

_report: TypeAdapter[Report] = TypeAdapter(Report)


class EventStream(StreamingResponse):
    """An answer of server-sent events that ends with its client, and takes its iterator along.

    Args:
        events: What is sent; an asynchronous generator.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Any) -> None:
        # A proxy that collects what it passes on would never have enough of it.
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there are no more, or nobody listens."""
        failure: Exception | None = None
        async with aclosing(self._events), anyio.create_task_group() as tasks:
            tasks.start_soon(_until_nobody_listens, receive, tasks.cancel_scope)
            try:
                with suppress(OSError):  # said by servers when the client is gone
                    await self.stream_response(send)
            except Exception as error:
                failure = error  # the task group would put it into a group
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure


async def _until_nobody_listens(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    scope.cancel()


def add_live(router: APIRouter, ecotone: Operated, ending: Ending) -> None:
    """Add the route that goes on telling how the application is.

    Args:
        router: Where it is added.
        ecotone: What is operated.
        ending: Tells that the server was told to end.
    """

    @router.get("/live", status_code=200, response_class=EventStream)
    async def live(
        seconds: Annotated[
            float, Query(ge=_FASTEST, le=_SLOWEST, description="How long to wait before the next event.")
        ] = 2.0,
    ) -> EventStream:
        """Tell how the application is, at once and then again and again: `event: overview` with the overview as data.

        A stream ends after some seconds and with the server. Clients connect anew, as an `EventSource` does by itself.
        """
        return EventStream(overviews(ecotone.overview, ending, seconds))


async def overviews(overview: Overview, ending: Ending, seconds: float) -> AsyncIterator[bytes]:
    """Return the events of one stream.

    Args:
        overview: What is told.
        ending: Tells that the server was told to end.
        seconds: How long to wait before the next event.
    """
    until = anyio.current_time() + LIFETIME
    with ending.awaited() as told:
        yield _RETRY
        while not told.is_set() and anyio.current_time() < until:
            report = await overview.report(max_age=seconds / 2)
            yield b"event: overview\ndata: " + _report.dump_json(report) + b"\n\n"
            await ending.wait(told, seconds)
