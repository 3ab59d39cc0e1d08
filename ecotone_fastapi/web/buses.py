"""The buses as FastAPI endpoints ask for them.

@app.post("/orders")
async def place_order(command: PlaceOrder, commands: CommandBusDep) -> None:
    await commands.send(command)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar, get_args, get_origin

import fastapi
from fastapi.requests import HTTPConnection

from ecotone_fastapi.core import bus
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.injection import cache_key
from ecotone_fastapi.web.edge import served_by

B = TypeVar("B", bound="_FromConnection")

DependsType: type = type(fastapi.Depends(lambda: None))


class _FromConnection(bus.Bus):
    """A bus that `Annotated[..., Depends()]` can make from a request."""

    def __init__(self, connection: HTTPConnection) -> None:
        super().__init__(served_by(connection).prepare(), connection=connection)

    @classmethod
    def of(cls, gateway: Gateway, *, connection: object = None, shared: Mapping[object, Any] | None = None) -> Self:
        """Return a bus into this gateway.

        Args:
            gateway: The way in.
            connection: The request in which it is used.
            shared: Results of dependencies that handlers are to use instead of their own.
        """
        made = cls.__new__(cls)
        bus.Bus.__init__(made, gateway, connection=connection, shared=shared)
        return made


class CommandBus(_FromConnection, bus.CommandBus):
    """Sends commands, each to its one handler. Handlers ask for it by type, endpoints by `CommandBusDep`."""


class QueryBus(_FromConnection, bus.QueryBus):
    """Asks queries, each of its one handler. Handlers ask for it by type, endpoints by `QueryBusDep`."""


class EventBus(_FromConnection, bus.EventBus):
    """Publishes events to any number of handlers. Handlers ask for it by type, endpoints by `EventBusDep`."""


async def get_command_bus(connection: HTTPConnection) -> CommandBus:
    """Return the command bus of the application that serves a request."""
    return CommandBus.of(served_by(connection).prepare(), connection=connection)


async def get_query_bus(connection: HTTPConnection) -> QueryBus:
    """Return the query bus of the application that serves a request."""
    return QueryBus.of(served_by(connection).prepare(), connection=connection)


async def get_event_bus(connection: HTTPConnection) -> EventBus:
    """Return the event bus of the application that serves a request."""
    return EventBus.of(served_by(connection).prepare(), connection=connection)


CommandBusDep = Annotated[CommandBus, fastapi.Depends(get_command_bus)]
"""`CommandBus` as a parameter of an endpoint."""
QueryBusDep = Annotated[QueryBus, fastapi.Depends(get_query_bus)]
"""`QueryBus` as a parameter of an endpoint."""
EventBusDep = Annotated[EventBus, fastapi.Depends(get_event_bus)]
"""`EventBus` as a parameter of an endpoint."""


def command_bus(share: Sequence[Any] = ()) -> Callable[..., Any]:
    """Return a dependency that gives a command bus whose handlers use what the endpoint has resolved already.

    FastAPI resolves the shared dependencies and closes them; handlers that depend on the same callables receive those
    very objects instead of their own, so that an endpoint and its handlers can work in one session.

    Args:
        share: Dependencies: a callable, a `Depends(...)`, or an `Annotated` alias of one. A dependency with `yield`
            should be declared with `scope="function"`, or it is closed after the response is sent.

    Raises:
        ConfigurationError: Something in `share` is no dependency.

    Example:
        >>> async def get_session() -> str:
        ...     return "session"
        >>> Bus = Annotated[CommandBus, fastapi.Depends(command_bus(share=[get_session]))]
    """
    return _sharing(CommandBus, share)


def query_bus(share: Sequence[Any] = ()) -> Callable[..., Any]:
    """Return a dependency that gives a query bus whose handlers use what the endpoint has resolved already.

    Args:
        share: Dependencies, as for `command_bus`.

    Raises:
        ConfigurationError: Something in `share` is no dependency.
    """
    return _sharing(QueryBus, share)


def event_bus(share: Sequence[Any] = ()) -> Callable[..., Any]:
    """Return a dependency that gives an event bus whose handlers use what the endpoint has resolved already.

    Args:
        share: Dependencies, as for `command_bus`.

    Raises:
        ConfigurationError: Something in `share` is no dependency.
    """
    return _sharing(EventBus, share)


def _sharing(bus_type: type[B], share: Sequence[Any]) -> Callable[..., Any]:
    marks = [_dependency(one) for one in share]

    async def provide(connection: HTTPConnection, **resolved: Any) -> Any:
        shared = {
            cache_key(mark.dependency, getattr(mark, "scopes", None) or ()): resolved[f"shared_{at}"]
            for at, mark in enumerate(marks)
        }
        return bus_type.of(served_by(connection).prepare(), connection=connection, shared=shared)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("connection", keyword, annotation=HTTPConnection)]
    parameters += [
        inspect.Parameter(f"shared_{at}", keyword, annotation=Annotated[Any, mark]) for at, mark in enumerate(marks)
    ]
    # FastAPI resolves what a signature asks for.
    provide.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return provide


def _dependency(shared: Any) -> Any:
    mark: Any = shared
    if get_origin(shared) is Annotated:
        base, *metadata = get_args(shared)
        mark = next((one for one in metadata if isinstance(one, DependsType)), None)
        if mark is not None and mark.dependency is None:
            mark = fastapi.Depends(base, use_cache=mark.use_cache)
    elif callable(shared):
        mark = fastapi.Depends(shared)
    if isinstance(mark, DependsType) and getattr(mark, "dependency", None) is not None:
        return mark
    raise ConfigurationError(
        f"share: {shared!r} is no dependency", hint="give a callable, Depends(...) or an Annotated alias of one"
    )


def _key(mark: Any) -> object:
    return cache_key(mark.dependency, tuple(sorted(set(getattr(mark, "scopes", None) or ()))))
