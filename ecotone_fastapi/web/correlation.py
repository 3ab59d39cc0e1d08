"""The correlation id comes in with an HTTP request and goes out with its response.

app = FastAPI(lifespan=ecotone.lifespan)
app.add_middleware(CorrelationMiddleware)  # ecotone.install(app) adds it itself
"""

import logging
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Message as AsgiMessage
from starlette.types import Scope as AsgiScope

from ecotone_fastapi.core.current import conversation
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import new_id

logger: logging.Logger = logging.getLogger("ecotone_fastapi.correlation")

CORRELATION_HEADER = "X-Correlation-ID"
"""The name of the header unless told otherwise."""

_LONGEST = 128  # characters of an id that is taken from a request
_SHOWN = 64  # characters of a refused one that are logged
_TOLD = "ecotone.correlation"  # where a request keeps its header and id


class CorrelationMiddleware:
    """Takes the correlation id from the header of a request, and writes it on the response.

    Messages that are sent while the request is answered have it, unless their sender gives another one or a message is
    being handled. What is no printable ASCII or longer than 128 characters is not taken, and an HTTP request without an
    id gets a new one; messages that a WebSocket without one sends begin conversations of their own, and the answer to
    its handshake has the header only if the request had it.

    Responses that are made outside of it, by a middleware that was added later, do not have the header.

    Args:
        app: The next ASGI application.
        header: The name of the header.

    Raises:
        ConfigurationError: No header can have this name.

    Example:
        >>> from fastapi import FastAPI
        >>> app = FastAPI()
        >>> app.add_middleware(CorrelationMiddleware, header="X-Request-ID")
    """

    def __init__(self, app: ASGIApp, header: str = CORRELATION_HEADER) -> None:
        check_header(header)
        self.app: ASGIApp = app
        self.header: str = header

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer a request in its conversation."""
        is_request = scope["type"] == "http"
        if not (is_request or scope["type"] == "websocket") or _TOLD in scope:  # one around this one has done it
            await self.app(scope, receive, send)
            return
        correlation_id = self._brought(scope)
        if correlation_id is None:
            if not is_request:
                await self.app(scope, receive, send)
                return
            correlation_id = new_id()
        scope[_TOLD] = (self.header, correlation_id)
        with conversation(correlation_id):
            if is_request:
                await self._answer(scope, receive, send)
            else:
                await self._open(scope, receive, send)

    def _brought(self, scope: AsgiScope) -> str | None:
        """The id that a request brings along, if it is one."""
        text = Headers(scope=scope).get(self.header)
        if text is None or (0 < len(text) <= _LONGEST and text.isascii() and text.isprintable()):
            return text
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        logger.debug("%s %a of %d characters is no correlation id: ignored", self.header, shown, len(text))
        return None

    async def _open(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: AsgiMessage) -> None:
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                message.setdefault("headers", [])
                _write(scope, MutableHeaders(scope=message))
            await send(message)

        await self.app(scope, receive, send_with_header)

    async def _answer(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_with_header(message: AsgiMessage) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message.setdefault("headers", [])
                _write(scope, MutableHeaders(scope=message))
            await send(message)

        try:
            await self.app(scope, receive, send_with_header)
        except Exception as error:
            app: Any = scope.get("app")
            if not begun and _is_outermost(self, app):
                # Starlette answers outside of all middleware what nobody has caught. What it would answer itself is
                # answered here, where it gets the header.
                await (await _answer_of_starlette(app, scope, error))(scope, receive, send_with_header)
            raise


def _write(scope: AsgiScope, headers: MutableHeaders) -> None:
    """Write the header of a request on its response, unless that has one."""
    told = scope.get(_TOLD)
    if told is not None:
        headers.setdefault(*told)


def _is_outermost(middleware: object, app: Any) -> bool:
    """Whether nobody stands around who may want to catch an error, and nobody but Starlette answers it."""
    around: Any = getattr(app, "user_middleware", ())
    if not around or around[0].cls is not type(middleware):
        return False
    handlers = [handler for key, handler in app.exception_handlers.items() if key in (500, Exception)]
    return app.debug or all(handler is answer_unexpected for handler in handlers)


async def _answer_of_starlette(app: Any, scope: AsgiScope, error: Exception) -> Response:
    answering, request = ServerErrorMiddleware(app), Request(scope)
    if app.debug:
        return await run_in_threadpool(answering.debug_response, request, error)
    return answering.error_response(request, error)


def correlation_id_of(connection: HTTPConnection) -> str | None:
    """Return the correlation id of a request, also after it has failed; `None` without the middleware.

    A handler of your own for `Exception` runs outside of all middleware, and writes the header itself.

    Args:
        connection: The `Request` or `WebSocket`.
    """
    told: tuple[str, str] | None = connection.scope.get(_TOLD)
    return None if told is None else told[1]


async def answer_unexpected(request: Request, error: Exception) -> Response:
    """Answer what nobody has caught as Starlette does, and with the header.

    For applications with a middleware around ours: then we do not see this response.
    """
    response = ServerErrorMiddleware(request.app).error_response(request, error)
    _write(request.scope, response.headers)
    return response


def check_header(name: str) -> None:
    """Make sure that a header can have this name.

    Raises:
        ConfigurationError: It cannot.
    """
    if not name or not all(char.isascii() and (char.isalnum() or char in "!#$%&'*+-.^_`|~") for char in name):
        raise ConfigurationError(
            f"no HTTP header can be named {name!r}", hint=f'letters, digits and hyphens, as in "{CORRELATION_HEADER}"'
        )
