"""What FastAPI's markers and types mean for a message handler. Only public names of FastAPI are used.

| in a signature | means |
| --- | --- |
| `Depends`, `Security` | as in an endpoint |
| `Header` in a dependency | the message header of the same name |
| `SecurityScopes` | the scopes on the way to here |
| `Request`, `WebSocket`, `HTTPConnection` | where the message was sent from; not in a consumer |
| `Query`, `Path`, `Cookie`, `Body`, `Form`, `File`, `Response`, `BackgroundTasks` | an error at start |
"""

import inspect
from typing import Any

import fastapi
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes

from ecotone_fastapi.core.errors import UnresolvableParameterError
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.signatures import EMPTY, Parameter
from ecotone_fastapi.core.suppliers import (
    Dependency,
    FromScope,
    FromSecurityScopes,
    HeaderValue,
    Supplier,
    Wanted,
    header_reader,
)
from ecotone_fastapi.web.buses import DependsType


def probed(marker: object, *attributes: str) -> type:
    """Return the type of a marker, after a look at whether it has what is read here.

    Raises:
        ImportError: This FastAPI is not one that is known here.
    """
    missing = [name for name in attributes if not hasattr(marker, name)]
    if missing:
        raise ImportError(
            f"{type(marker).__name__} of fastapi {fastapi.__version__} has no {' and no '.join(missing)}: "
            "upgrade ecotone-fastapi, or install an older fastapi"
        )
    return type(marker)


probed(fastapi.Security(lambda: None), "dependency", "use_cache", "scopes")
_HEADER = probed(fastapi.Header(), "alias", "default", "default_factory", "is_required", "metadata")
_HTTP_ONLY = tuple(
    type(marker()) for marker in (fastapi.Query, fastapi.Path, fastapi.Cookie, fastapi.Body, fastapi.Form, fastapi.File)
)
_MARKERS = (DependsType, _HEADER, *_HTTP_ONLY)


class FastAPIMarkers:
    """Resolves parameters that are written for FastAPI."""

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        """Say what supplies the parameter, when it is marked or typed as FastAPI knows it."""
        marker: Any = parameter.default if isinstance(parameter.default, _MARKERS) else None
        annotated = next((one for one in reversed(parameter.metadata) if isinstance(one, _MARKERS)), None)
        if isinstance(marker, DependsType) and isinstance(annotated, DependsType):
            raise wanted.error(
                f"{parameter.name!r} has Depends in its annotation and as its default", hint="keep one of them"
            )
        if marker is None:
            marker = annotated
        if isinstance(marker, DependsType):
            return _depends(parameter, marker, wanted)
        if isinstance(marker, _HEADER):
            return _header(parameter, marker, wanted)
        if isinstance(marker, _HTTP_ONLY):
            raise wanted.error(
                f"{parameter.name!r} is fastapi.{type(marker).__name__}(): it reads the HTTP request, and a message "
                "has none",
                hint="send the value in the message, or resolve it in the endpoint and share it: "
                "Depends(command_bus(share=[...]))",
            )
        if inspect.isclass(parameter.annotation):
            return _by_type(parameter, parameter.annotation, wanted)
        return None


def _depends(parameter: Parameter, marker: Any, wanted: Wanted) -> Supplier:
    call = parameter.annotation if marker.dependency is None else marker.dependency
    if call is EMPTY:
        raise wanted.error(f"{parameter.name!r} is Depends() of nothing", hint="annotate it, or name a dependency")
    return wanted.offered(call) or Dependency(
        call,
        use_cache=marker.use_cache,
        scopes=tuple(getattr(marker, "scopes", None) or ()),
        limit=getattr(marker, "max_concurrency", None),
        limited_by=marker,
    )


def _header(parameter: Parameter, marker: Any, wanted: Wanted) -> Supplier:
    in_annotation = marker is not parameter.default
    if in_annotation and isinstance(marker.default, str):
        raise wanted.error(
            f"fastapi.Header({marker.default!r}) sets a default value",
            hint=f"for a message header use MessageHeader({marker.default!r})",
        )
    if inspect.isclass(parameter.annotation) and hasattr(parameter.annotation, "model_fields"):
        raise wanted.error(
            f"{parameter.name!r} is a model of headers", hint="ask for single headers: Annotated[str, Header()]"
        )
    default = parameter.default if in_annotation else EMPTY
    if default is EMPTY and marker.default_factory is None and not marker.is_required():
        default = marker.default
    constraints = [*marker.metadata, *(one for one in parameter.metadata if one is not marker)]
    return HeaderValue(
        names=(marker.alias or parameter.name.replace("_", "-"), parameter.name),
        read=header_reader(parameter.annotation, constraints),
        default=default,
        make_default=marker.default_factory if default is EMPTY else None,
    )


def _by_type(parameter: Parameter, type_: type, wanted: Wanted) -> Supplier | None:
    if type_ is SecurityScopes:
        return FromSecurityScopes(lambda scopes: SecurityScopes(list(scopes)))
    if issubclass(type_, fastapi.Response | fastapi.BackgroundTasks):
        raise wanted.error(
            f"{parameter.name!r} is {type_.__name__}: it exists only in an endpoint",
            hint="return the result to the endpoint, or publish an event",
        )
    if not issubclass(type_, HTTPConnection):
        return None
    if wanted.asynchronous:
        raise wanted.error(
            f"{parameter.name!r} is {type_.__name__}, but this handler runs in a consumer, where there is no HTTP "
            "request",
            hint="send what it reads as a message header, or override the dependency",
        )
    return FromScope(type_, _Connection(type_, wanted.error(f"{parameter.name!r} is {type_.__name__}").what))


class _Connection:
    """The request or WebSocket that a message was sent from."""

    def __init__(self, type_: type, wanted: str) -> None:
        self._type = type_
        self._wanted = wanted

    def __call__(self, scope: Scope) -> Any:
        if isinstance(scope.connection, self._type):
            return scope.connection
        raise UnresolvableParameterError(
            f"{self._wanted}, but the message was not sent from one",
            hint="send it through CommandBusDep of an endpoint, or override the dependency",
        )
