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
from collections.abc import Callable
from typing import Annotated, Any

import fastapi
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes

from ecotone_fastapi.core.conversion import HeaderReader
from ecotone_fastapi.core.errors import UnresolvableParameterError
from ecotone_fastapi.core.injection import (
    Dependency,
    FromScope,
    FromSecurityScopes,
    HeaderValue,
    Parameter,
    Supplier,
    Wanted,
)
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.web.buses import DependsType

_EMPTY: Any = inspect.Parameter.empty


def _type_of(marker: Callable[..., Any]) -> type:
    return type(marker())


_HEADER = _type_of(fastapi.Header)
_HTTP_ONLY = tuple(
    _type_of(marker)
    for marker in (fastapi.Query, fastapi.Path, fastapi.Cookie, fastapi.Body, fastapi.Form, fastapi.File)
)
_MARKERS = (DependsType, _HEADER, *_HTTP_ONLY)


class FastAPIMarkers:
    """Resolves parameters that are written for FastAPI."""

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        """Say what supplies the parameter, when it is marked or typed as FastAPI knows it."""
        marker = parameter.default if isinstance(parameter.default, _MARKERS) else None
        in_annotation = next((one for one in reversed(parameter.metadata) if isinstance(one, _MARKERS)), None)
        if isinstance(marker, DependsType) and isinstance(in_annotation, DependsType):
            raise wanted.error(
                f"{parameter.name!r} has Depends in its annotation and as its default", hint="keep one of them"
            )
        default = _EMPTY if marker is not None else parameter.default
        marker = marker if marker is not None else in_annotation
        if isinstance(marker, DependsType):
            return self._depends(parameter, marker, wanted)
        if isinstance(marker, _HEADER):
            return self._header(parameter, marker, default, wanted)
        if isinstance(marker, _HTTP_ONLY):
            raise wanted.error(
                f"{parameter.name!r} is fastapi.{type(marker).__name__}(): it reads the HTTP request, a message has none",
                hint="send the value in the message or as a message header",
            )
        if inspect.isclass(parameter.annotation):
            return self._by_type(parameter, parameter.annotation, wanted)
        return None

    @staticmethod
    def _depends(parameter: Parameter, marker: Any, wanted: Wanted) -> Supplier:
        call = marker.dependency or parameter.annotation
        if call is _EMPTY:
            raise wanted.error(f"{parameter.name!r} is Depends() of nothing", hint="annotate it, or name a dependency")
        return wanted.offered(call) or Dependency(
            call,
            use_cache=marker.use_cache,
            scopes=tuple(getattr(marker, "scopes", None) or ()),
            limit=getattr(marker, "max_concurrency", None),
            limited_by=marker,
        )

    @staticmethod
    def _header(parameter: Parameter, marker: Any, default: Any, wanted: Wanted) -> Supplier:
        if isinstance(marker.default, str) and marker.alias is None and marker in parameter.metadata:
            raise wanted.error(
                f"fastapi.Header({marker.default!r}) sets a default value",
                hint=f"for a message header use MessageHeader({marker.default!r})",
            )
        if _is_model(parameter.annotation):
            raise wanted.error(
                f"{parameter.name!r} is a model of headers", hint="ask for single headers: Annotated[str, Header()]"
            )
        if default is _EMPTY and not marker.is_required():
            default = marker.get_default(call_default_factory=True)
        others = [one for one in parameter.metadata if one is not marker]
        reader = HeaderReader(Annotated[parameter.annotation, *others] if others else parameter.annotation)  # type: ignore[valid-type]
        names = (marker.alias or parameter.name.replace("_", "-"), parameter.name)
        return HeaderValue(names, None if parameter.annotation is str and not others else reader, default)

    @staticmethod
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


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and hasattr(annotation, "model_fields")


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
