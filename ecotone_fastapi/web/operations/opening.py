"""Who may operate: nobody, until the application says by its own dependencies who.

Whatever a route does, these come before it, in this order: the dependencies of the application, which answer 401 or
403, and then the question whether a request that changes something comes from a program and not from a form on some
other site: that can send no JSON. Bodies are read behind them, so that whoever may not operate learns nothing.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from inspect import Parameter, Signature
from typing import Any, Protocol

import anyio
import fastapi
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from ecotone_fastapi.core.errors import (
    ConfigurationError,
    EcotoneError,
    ProjectionError,
    RoutingError,
)
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.dead_letter import DeadLetters
from ecotone_fastapi.messaging.protection import Consumers
from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.operations.overview import Overview
from ecotone_fastapi.web.buses import DependsType
from ecotone_fastapi.web.errors import STATUS, answer
from ecotone_fastapi.web.health import Health


class Operated(Protocol):
    """What the operations need of an application."""

    @property
    def assembly(self) -> Assembly:
        """What it was put together to."""
        ...

    @property
    def overview(self) -> Overview:
        """How it is."""
        ...

    @property
    def dead_letters(self) -> DeadLetters:
        """What was parked."""
        ...

    @property
    def projections(self) -> Projections:
        """Its projections."""
        ...

    @property
    def consumers(self) -> Consumers:
        """Lets its consumers pause."""
        ...

    def asyncapi(self) -> dict[str, Any]:
        """Return the AsyncAPI document of its channels."""
        ...

    async def health(self) -> Health:
        """Report on every consumer and server."""
        ...


def checked(operations: object) -> tuple[Any, ...] | None:
    """Return the dependencies that open the operations; `None` when nobody may use them.

    Args:
        operations: What was given to `Ecotone`.

    Raises:
        ConfigurationError: They would be open to everybody, or these are no dependencies.
    """
    if operations is None:
        return None
    hint = "write operations=[Depends(require_admin)], with a dependency of yours that answers 401 or 403 to others"
    if isinstance(operations, str | bytes) or not isinstance(operations, Iterable):
        raise ConfigurationError(f"operations={operations!r} is no list of dependencies", hint=hint)
    found: tuple[Any, ...] = tuple(operations)
    if not found:
        raise ConfigurationError("operations=[] would let everybody operate this application", hint=hint)
    for one in found:
        if not isinstance(one, DependsType) or getattr(one, "dependency", None) is None:
            raise ConfigurationError(f"{one!r} in operations is no dependency", hint=hint)
    return found


async def closed() -> None:
    """Refuse everybody.

    Raises:
        HTTPException: Always.
    """
    raise HTTPException(
        403,
        "The operations of this application are closed. Its code opens them to those whom a dependency of its own lets "
        "pass: Ecotone(..., operations=[Depends(require_admin)])",
    )


def admitted_by(dependencies: Sequence[Any]) -> Callable[..., Awaitable[None]]:
    """Return one dependency that is passed when all of these are, and notes it.

    Where a dependency misses what it needs, a header for example, FastAPI asks the others nevertheless, and tells in
    the end all that is missing and wrong. What stands behind this one is not to be judged then.
    """

    async def admit(request: Request, **_: Any) -> None:
        request.scope[_ADMITTED] = True

    request = Parameter("request", Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)
    others = [
        Parameter(f"dependency_{number}", Parameter.KEYWORD_ONLY, default=one)
        for number, one in enumerate(dependencies)
    ]
    told: Any = admit  # what FastAPI reads
    told.__signature__ = Signature([request, *others])
    return admit


_ADMITTED = "ecotone.admitted"


def is_admitted(request: Request) -> bool:
    """Whether all dependencies of the application have let a request pass."""
    return request.scope.get(_ADMITTED) is True


async def comes_from_a_program(request: Request) -> None:
    """Refuse what a form on some other site could have sent.

    Raises:
        HTTPException: The request changes something and does not say that it is JSON.
    """
    if request.method != "POST" or not is_admitted(request):
        return  # a form cannot delete, and to look changes nothing
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "Send it as JSON, with the header Content-Type: application/json, also without a body")


STATUS_OF_OPERATIONS: dict[type[EcotoneError], int] = {
    # What an operator asks for names things that are not there any more, or not in a state for it.
    ConfigurationError: 409,
    RoutingError: 409,
    ProjectionError: 409,
}
"""Errors that elsewhere are mistakes of the application, and here of what was asked for."""


PATIENCE = 15.0
"""Seconds after which nobody waits any longer for what was only to be looked at."""


class OperationsRoute(APIRoute):
    """A route whose errors are answered by the tables, whether the application has handlers for them or not."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with an answer for every error that the operator can do something about."""
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            response: Response | None = None
            try:
                # A server that has fallen silent is not to collect those who look; what changes something takes time.
                with anyio.move_on_after(PATIENCE if request.method == "GET" else None):
                    response = await handle(request)
            except EcotoneError as error:
                response = await _answer(request, error)
            except RequestValidationError as error:
                if is_admitted(request):
                    raise
                raise HTTPException(401, "Not authenticated") from error
            if response is None:
                raise HTTPException(503, f"There was no answer within {PATIENCE:.0f} seconds: a server is silent")
            # What is shown here is for nobody else: neither for a cache nor for a browser that guesses what it is.
            response.headers.setdefault("cache-control", "no-store")
            response.headers.setdefault("x-content-type-options", "nosniff")
            return response

        return answered


async def _answer(request: Request, error: EcotoneError) -> Response:
    found = next((cls for cls in type(error).__mro__ if cls in STATUS or cls in STATUS_OF_OPERATIONS), None)
    if found is None:
        raise error
    if found in STATUS:
        response: Response = await answer(request, error)
        return response
    detail = "\n".join([error.what, *([f"Hint: {error.hint}"] if error.hint else [])])
    return fastapi.responses.JSONResponse({"detail": detail}, STATUS_OF_OPERATIONS[found])


def opened_to(dependencies: Sequence[Any] | None, lifespan: Any = None) -> APIRouter:
    """Return a router without routes, behind these dependencies; behind a closed door without any.

    Args:
        dependencies: What lets those pass who may.
        lifespan: What goes on with the lifespan of the application.
    """
    door = fastapi.Depends(admitted_by(dependencies) if dependencies is not None else closed)
    return APIRouter(
        tags=["operations"],
        route_class=OperationsRoute,
        lifespan=lifespan,
        dependencies=[door, fastapi.Depends(comes_from_a_program)],
        include_in_schema=dependencies is not None,
        responses={401: {"description": "Not authenticated"}, 403: {"description": "Not allowed"}},
    )
