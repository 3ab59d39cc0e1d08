"""Marks and handlers. A decorator only attaches a value; nothing is registered anywhere.

>>> class Orders:
...     @command_handler("order.place")
...     async def place(self, order_id: str) -> None: ...
>>> [endpoint.route for endpoint in discover([Orders]).endpoints]
['order.place']
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar, cast, overload

from ecotone_fastapi.core.errors import ConfigurationError

F = TypeVar("F")
M = TypeVar("M")


class Kind(StrEnum):
    """What a handler handles."""

    COMMAND = "command"
    QUERY = "query"
    EVENT = "event"
    INTERNAL = "internal"

    # An enum's own hash is a Python function; routes are looked up by kind for every message.
    __hash__ = str.__hash__


_MARKS = "__ecotone_marks__"


def mark(value: object) -> Callable[[F], F]:
    """Attach a value to a handler or to a class of handlers; that is all that a decorator of ours does.

    Example:
        >>> @mark("careful")
        ... def handler(): ...
        >>> marks_of(handler)
        ('careful',)
    """

    def attach(target: F) -> F:
        setattr(target, _MARKS, (value, *marks_of(target)))
        return target

    return attach


def marks_of(target: object) -> tuple[object, ...]:
    """Return the marks of a function, or of this very class without its bases; the topmost decorator's first."""
    if isinstance(target, type):
        return cast("tuple[object, ...]", vars(target).get(_MARKS, ()))
    return cast("tuple[object, ...]", getattr(target, _MARKS, ()))


@dataclass(frozen=True, slots=True)
class Inline:
    """Mark: run this `def` handler, dependency or every handler of this class on the loop instead of in a thread."""


@dataclass(frozen=True, slots=True)
class Handles:
    """Mark: this function is a handler.

    Args:
        kind: What it handles.
        route: The key or glob it is reached by; `None` is by the type of its payload.
        id: Its lasting name; `None` derives one from module and function.
        priority: Among synchronous handlers of one event, the higher runs first.
        dependencies: `Depends(...)` that run first and whose results are not needed.
        names: Local names at the place of decoration, for annotations that are strings.
    """

    kind: Kind
    route: str | None = None
    id: str | None = None
    priority: int = 1
    dependencies: tuple[object, ...] = ()
    names: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Endpoint:
    """One handler, described. Plain data: no behaviour, no framework state.

    Args:
        id: Its lasting name; messages on a channel name it.
        kind: What it handles.
        route: The key or glob it is reached by; `None` is by `payload_type`.
        payload_type: The type of its payload; `None` when it takes none.
        function: The user's function. For a method that needs an instance, the plain function.
        owner: The class it was found on.
        needs_instance: Whether it is called with an instance of `owner`.
        priority: Among synchronous handlers of one event, the higher runs first.
        dependencies: What is resolved before its parameters.
        names: Local names at the place of decoration, for annotations that are strings.
        marks: The handler's own, then its class's.
    """

    id: str
    kind: Kind
    route: str | None
    payload_type: Any
    function: Callable[..., Any]
    owner: type | None = None
    needs_instance: bool = False
    priority: int = 1
    dependencies: tuple[object, ...] = ()
    names: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    marks: tuple[object, ...] = ()

    def find(self, mark_type: type[M]) -> M | None:
        """Return the first mark of this type, the handler's own before its class's."""
        for value in self.marks:
            if isinstance(value, mark_type):
                return value
        return None

    @property
    def known_names(self) -> Mapping[str, Any]:
        """The names that string annotations may use besides those of the module: also that of the class itself."""
        return self.names if self.owner is None else {self.owner.__name__: self.owner, **self.names}

    @property
    def label(self) -> str:
        """The short name that people use: `OrderService.place_order`."""
        if self.owner is not None:
            return f"{self.owner.__name__}.{getattr(self.function, '__name__', self.id)}"
        return str(getattr(self.function, "__name__", self.id))


@overload
def command_handler(
    route: str | None = None, /, *, id: str | None = None, dependencies: Sequence[object] = ()
) -> Callable[[F], F]: ...
@overload
def command_handler(function: F, /) -> F: ...
def command_handler(target: Any = None, /, *, id: str | None = None, dependencies: Sequence[object] = ()) -> Any:
    """Handle a command: an intent, with exactly one handler.

    The first parameter is the payload, and its type is the route, unless a key is given.

    Args:
        target: The key, e.g. `"order.place"`. Without it the type of the payload is the route.
        id: The handler's lasting name. Asynchronous handlers should have one: messages under way name it.
        dependencies: `Depends(...)` that run first, as on a FastAPI route.

    Example:
        >>> @command_handler
        ... async def place_order(command: dict) -> None: ...
    """
    return _handler(target, Handles(Kind.COMMAND, id=id, dependencies=tuple(dependencies), names=local_names()))


@overload
def query_handler(
    route: str | None = None, /, *, id: str | None = None, dependencies: Sequence[object] = ()
) -> Callable[[F], F]: ...
@overload
def query_handler(function: F, /) -> F: ...
def query_handler(target: Any = None, /, *, id: str | None = None, dependencies: Sequence[object] = ()) -> Any:
    """Answer a query: a question, with exactly one handler, that changes nothing and opens no transaction.

    Args:
        target: The key, e.g. `"order.get_status"`. Without it the type of the payload is the route.
        id: The handler's lasting name.
        dependencies: `Depends(...)` that run first, as on a FastAPI route.

    Example:
        >>> @query_handler("order.get_status")
        ... async def get_status(order_id: str) -> str:
        ...     return "placed"
    """
    return _handler(target, Handles(Kind.QUERY, id=id, dependencies=tuple(dependencies), names=local_names()))


@overload
def event_handler(
    route: str | None = None, /, *, id: str | None = None, priority: int = 1, dependencies: Sequence[object] = ()
) -> Callable[[F], F]: ...
@overload
def event_handler(function: F, /) -> F: ...
def event_handler(
    target: Any = None, /, *, id: str | None = None, priority: int = 1, dependencies: Sequence[object] = ()
) -> Any:
    """React to an event: a fact, with any number of handlers.

    Args:
        target: The key or a glob such as `"order.*"`. Without it the type of the payload is the route: events of this
            class, of its subclasses, and of each member of a union.
        id: The handler's lasting name. Asynchronous handlers should have one: messages under way name it.
        priority: Among the synchronous handlers of one event, the higher runs first.
        dependencies: `Depends(...)` that run first, as on a FastAPI route.

    Example:
        >>> @event_handler("order.*", priority=5)
        ... async def note(event: dict) -> None: ...
    """
    handles = Handles(Kind.EVENT, id=id, priority=priority, dependencies=tuple(dependencies), names=local_names())
    return _handler(target, handles)


@overload
def internal_handler(
    route: str | None = None, /, *, id: str | None = None, dependencies: Sequence[object] = ()
) -> Callable[[F], F]: ...
@overload
def internal_handler(function: F, /) -> F: ...
def internal_handler(target: Any = None, /, *, id: str | None = None, dependencies: Sequence[object] = ()) -> Any:
    """Handle a step of a workflow: reached by its key from other handlers, never from a bus.

    Args:
        target: The key. Without it the type of the payload is the route.
        id: The handler's lasting name.
        dependencies: `Depends(...)` that run first, as on a FastAPI route.

    Example:
        >>> @internal_handler("order.verify")
        ... async def verify(order_id: str) -> str:
        ...     return order_id
    """
    return _handler(target, Handles(Kind.INTERNAL, id=id, dependencies=tuple(dependencies), names=local_names()))


def _handler(target: Any, handles: Handles) -> Any:
    route = target if isinstance(target, str) else None

    def attach(function: Any) -> Any:
        # Keeping the names keeps alive what they name, so only those keep them whose annotations need them.
        names = handles.names if has_string_annotations(function) else {}
        return mark(replace(handles, route=route, names=names))(function)

    return attach if target is None or route is not None else attach(target)


def has_string_annotations(function: Any) -> bool:
    """Whether an annotation of a function is text that has to be evaluated later."""
    try:
        annotations = inspect.get_annotations(getattr(function, "__func__", function))
    except NameError:  # evaluated late since Python 3.14, and not yet evaluable
        return True
    return any(isinstance(annotation, str) for annotation in annotations.values())


def local_names() -> Mapping[str, Any]:
    """Names that a string annotation may use and that are no globals: those of the functions around the decorator."""
    names: dict[str, Any] = {}
    frame: FrameType | None = inspect.currentframe()
    for _ in range(2):  # this function and the decorator
        frame = frame.f_back if frame else None
    while frame is not None and frame.f_locals is not frame.f_globals:
        names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names


@dataclass(frozen=True)
class Discovered:
    """What `discover` found: the handlers, and the objects that were given instead of their classes."""

    endpoints: tuple[Endpoint, ...]
    instances: Mapping[type, object]


def discover(sources: Iterable[object]) -> Discovered:
    """Collect the handlers in classes, instances, functions, modules and packages, in that order, each once.

    Args:
        sources: Classes and instances with handler methods, functions, modules, or names of modules. A package is
            searched with all its modules; a name is imported. Of a module, only what is defined in it counts.

    Raises:
        ConfigurationError: Something among the sources has no handler, or a module cannot be imported.
    """
    endpoints: dict[tuple[object, ...], Endpoint] = {}
    instances: dict[type, object] = {}
    for source in sources:
        found = list(_handlers_in(source, instances))
        if not found and not isinstance(source, ModuleType | str):
            raise ConfigurationError(
                f"{source!r} has no handler",
                hint="decorate a method with @command_handler, @query_handler or @event_handler, or leave it out",
            )
        for key, endpoint in found:
            endpoints.setdefault(key, endpoint)
    return Discovered(tuple(endpoints.values()), instances)


def _handlers_in(source: object, instances: dict[type, object]) -> Iterator[tuple[tuple[object, ...], Endpoint]]:
    if isinstance(source, str):
        try:
            source = importlib.import_module(source)
        except ImportError as error:
            raise ConfigurationError(
                f"the module {source!r} with handlers cannot be imported: {error}",
                hint="check its name and what it imports",
            ) from error
    if isinstance(source, ModuleType):
        for module in _modules_of(source):
            for value in list(vars(module).values()):
                defined_here = getattr(value, "__module__", None) == module.__name__
                if defined_here and (isinstance(value, type) or _is_handler(value)):
                    yield from _handlers_in(value, instances)
    elif isinstance(source, type):
        yield from _handlers_on(source)
    elif isinstance(source, FunctionType) or _is_handler(source):
        owner = source.__self__ if isinstance(source, MethodType) and isinstance(source.__self__, type) else None
        yield from _endpoints_of(cast("Callable[..., Any]", source), owner, _own_marks(source), needs_instance=False)
    else:
        found = list(_handlers_on(type(source)))
        if found:
            instances[type(source)] = source
        yield from found


def _is_handler(value: object) -> bool:
    return callable(value) and not isinstance(value, type) and any(isinstance(m, Handles) for m in _own_marks(value))


def _own_marks(value: object) -> tuple[object, ...]:
    # An object whose __getattr__ answers anything must not pass for a handler.
    found = getattr(value, _MARKS, ())
    return found if isinstance(found, tuple) else ()


def _modules_of(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
        if info.name.rpartition(".")[2] == "__main__":
            continue
        try:
            yield importlib.import_module(info.name)
        except ImportError as error:
            raise ConfigurationError(
                f"the module {info.name!r} of the package {package.__name__!r} cannot be imported: {error}",
                hint="give the modules one by one, or mend the import",
            ) from error


def _handlers_on(cls: type) -> Iterator[tuple[tuple[object, ...], Endpoint]]:
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    for name in names:
        raw = inspect.getattr_static(cls, name)
        bound = isinstance(raw, staticmethod | classmethod)
        # A decorator that stands above @classmethod has marked the descriptor, one below it the function.
        marks = (*_own_marks(raw), *_own_marks(raw.__func__)) if bound else _own_marks(raw)
        if any(isinstance(value, Handles) for value in marks):
            yield from _endpoints_of(getattr(cls, name) if bound else raw, cls, marks, needs_instance=not bound)


def _endpoints_of(
    function: Callable[..., Any], owner: type | None, marks: tuple[object, ...], *, needs_instance: bool
) -> Iterator[tuple[tuple[object, ...], Endpoint]]:
    name = getattr(function, "__name__", type(function).__name__)
    if owner is not None:
        default_id = f"{owner.__module__}.{owner.__qualname__}.{name}"
    else:
        default_id = f"{function.__module__}.{getattr(function, '__qualname__', name)}"
    for handles in [value for value in marks if isinstance(value, Handles)]:
        several = sum(isinstance(value, Handles) for value in marks) > 1
        route_suffix = f":{handles.route}" if several and handles.route else ""
        endpoint = Endpoint(
            id=handles.id or default_id + route_suffix,
            kind=handles.kind,
            route=handles.route,
            payload_type=None,
            function=function,
            owner=owner,
            needs_instance=needs_instance,
            priority=handles.priority,
            dependencies=handles.dependencies,
            names=handles.names,
            marks=(
                *(value for value in marks if not isinstance(value, Handles)),
                *(marks_of(owner) if owner is not None else ()),
            ),
        )
        underlying = getattr(function, "__func__", function)
        yield (underlying, owner, handles.kind, handles.route), endpoint
