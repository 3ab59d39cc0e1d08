"""Where an HTTP request finds the application that it belongs to."""

from typing import Any, Protocol, cast

from fastapi.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from ecotone_fastapi.core.errors import NotInstalledError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.messaging.dead_letter import DeadLetters
from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.web.health import Health

KEY = "ecotone"


class Served(Protocol):
    """What the edge needs to know of an application."""

    def prepare(self) -> Gateway:
        """Put everything together, if that has not happened yet, and return the way in."""
        ...

    @property
    def dead_letters(self) -> DeadLetters:
        """What was parked, and what can be done about it."""
        ...

    @property
    def projections(self) -> Projections:
        """The projections, and what can be done about them."""
        ...

    async def health(self) -> Health:
        """Report on every consumer and server."""
        ...


class EcotoneMiddleware:
    """Tells every request, also those of mounted applications, which `Ecotone` serves it.

    Args:
        app: The next ASGI application.
        ecotone: What is found by requests that come through here.
    """

    def __init__(self, app: ASGIApp, ecotone: Served) -> None:
        self.app: ASGIApp = app
        self.ecotone: Served = ecotone

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Pass on every request with the `Ecotone` in its scope."""
        if scope["type"] in ("http", "websocket"):
            scope[KEY] = self.ecotone
        await self.app(scope, receive, send)


def served_by(connection: HTTPConnection) -> Served:
    """Return the `Ecotone` of a request: that of the application that answers it, else of the one it is mounted in.

    Raises:
        NotInstalledError: There is none.
    """
    app: Any = connection.scope.get("app")
    found: Any = getattr(app.state, KEY, None) if app is not None else None
    if found is None:
        found = connection.scope.get(KEY)
    if found is None:
        raise NotInstalledError(
            f"no Ecotone serves {connection.url.path}",
            tried="the application that answers, the one it is mounted in",
            hint="call ecotone.install(app), which mounted applications share, or let the server or test client run "
            "FastAPI(lifespan=ecotone.lifespan)",
        )
    return cast("Served", found)
