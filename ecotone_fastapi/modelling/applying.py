"""Applying events: `@applies` methods, of which the state of an event-sourced aggregate is made.

    @applies
    def when_added(self, event: ItemWasAdded) -> None:
        self.items.append(event.sku)

They are called when an event is recorded and whenever the aggregate is loaded again, so they only set attributes: they
return nothing, ask nobody and refuse nothing.
"""

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields, is_dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

from pydantic import BaseModel

from ecotone_fastapi.core.conversion import HeaderReader
from ecotone_fastapi.core.endpoint import has_string_annotations, local_names, mark, marks_of
from ecotone_fastapi.core.errors import ConfigurationError, HeaderError
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.core.signatures import EMPTY, Parameter, Way, label, parameters_of, way_of
from ecotone_fastapi.core.suppliers import MessageHeader, header_reader

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True, slots=True)
class Applies:
    """Mark: this method applies events.

    Args:
        names: Local names at the place of decoration, for annotations that are strings.
    """

    names: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def applies(method: F) -> F:
    """Let a method change the state of its aggregate by an event.

    The type of its first parameter says by which: events of this class and of its subclasses, or of each member of a
    union. The method of the nearest class is the one that is called. Further parameters are headers of the event,
    `Annotated[str, MessageHeader("tenant")]`; of those that the framework writes itself, none can be had.

    Example:
        >>> class Basket:
        ...     @applies
        ...     def when_closed(self, event: dict) -> None:
        ...         self.is_open = False
    """
    return mark(Applies(local_names() if has_string_annotations(method) else {}))(method)


def applied_by(cls: type) -> Iterable[type]:
    """Return the classes of events that a class has `@applies` methods for; none if they cannot be told.

    Example:
        >>> list(applied_by(object))
        []
    """
    try:
        return list(Applying(cls).events) if any(_marked(cls)) else ()
    except ConfigurationError:  # told to whoever uses the class
        return ()


Header = tuple[str, str, HeaderReader | None, Any]
"""A parameter that is a header: its own name, the header's, what reads it, and its default."""


@dataclass(frozen=True, slots=True)
class _Method:
    """One way to apply an event: the function, and the headers that it asks for."""

    function: Callable[..., None]
    headers: tuple[Header, ...]

    def __call__(self, instance: Any, event: Any, headers: Mapping[str, str]) -> None:
        wanted = {}
        for parameter, name, read, default in self.headers:
            text = headers.get(name)
            if text is None and default is EMPTY:
                raise HeaderError(
                    f"{label(self.function)} asks for the header {name!r}, which its event does not have",
                    hint="give the parameter a default",
                )
            wanted[parameter] = default if text is None else text if read is None else read(name, text)
        self.function(instance, event, **wanted)


class Applying:
    """What events do to the objects of one class.

    Args:
        cls: The class.
    """

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._found: dict[type, Callable[..., None] | None] = {}

    def check(self) -> None:
        """Make sure that objects can be made, and changed by events.

        Raises:
            ConfigurationError: What is wrong with the class.
        """
        _ = self._methods
        blank = self._new()
        try:
            weakref.ref(blank)
        except TypeError as error:
            raise ConfigurationError(
                f"nothing can be recorded for a {self._cls.__qualname__}: it has __slots__",
                hint="write @dataclass(slots=True, weakref_slot=True), or add '__weakref__' to __slots__",
            ) from error
        if _is_frozen(blank):
            raise ConfigurationError(
                f"{self._cls.__qualname__} is frozen, and events change it", hint="write @dataclass without frozen=True"
            )

    @property
    def events(self) -> Iterable[type]:
        """The classes of events that are applied."""
        return self._methods

    @property
    def reads_headers(self) -> bool:
        """Whether any method asks for headers of events."""
        return any(type(method) is _Method for method in self._methods.values())

    def new(self) -> Any:
        """Return an object to which nothing has happened yet."""
        return self._new()

    def apply(self, instance: Any, event: Any, headers: Mapping[str, str]) -> None:
        """Change an object by an event; one that no method is for changes nothing."""
        cls = type(event)
        try:
            method = self._found[cls]
        except KeyError:
            method = self._found[cls] = self._method_for(cls)
        if type(method) is _Method:
            method(instance, event, headers)
        elif method is not None:
            method(instance, event)

    def _method_for(self, cls: type) -> Callable[..., None] | None:
        for base in cls.__mro__:
            if base in self._methods:
                return self._methods[base]
        return next((method for base, method in self._methods.items() if issubclass(cls, base)), None)

    @cached_property
    def _methods(self) -> Mapping[type, Callable[..., None]]:
        methods: dict[type, Callable[..., None]] = {}
        functions: dict[type, Callable[..., None]] = {}
        for function, names in _marked(self._cls):
            event, *others = _parameters(function, names)
            headers = tuple(_header(one, function) for one in others)
            for cls in members_of(event.annotation):
                if not isinstance(cls, type):
                    raise ConfigurationError(
                        f"{label(function)} applies {cls!r}, which is no class", hint="name a class of events"
                    )
                if cls in methods:
                    raise ConfigurationError(
                        f"{label(functions[cls])} and {label(function)} both apply {cls.__qualname__}",
                        hint="leave one of them",
                    )
                functions[cls] = function
                methods[cls] = _Method(function, headers) if headers else function
        if not methods:
            raise ConfigurationError(
                f"nothing applies the events of {self._cls.__qualname__}",
                hint="write @applies above a method that takes an event and sets attributes",
            )
        return methods

    @cached_property
    def _new(self) -> Callable[[], Any]:
        """How objects are made: by a call without arguments, or field by field where the constructor wants some."""
        cls = self._cls
        parameters = [
            one
            for one in inspect.signature(cls).parameters.values()
            if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
        required = [one.name for one in parameters if one.default is EMPTY]
        if not required:
            return cls
        if issubclass(cls, BaseModel):
            return cls.model_construct
        if is_dataclass(cls) and [one.name for one in parameters] == [one.name for one in fields(cls) if one.init]:
            return partial(_without_constructor, cls)
        raise ConfigurationError(
            f"a {cls.__qualname__} cannot be made without {', '.join(required)}",
            hint="give the arguments of its constructor defaults: events say the rest",
        )


def _without_constructor(cls: Any) -> Any:
    """Make an object of a dataclass that has what has a default; the rest is missing until an event sets it."""
    instance = object.__new__(cls)
    for one in fields(cls):
        if one.default is not MISSING:
            object.__setattr__(instance, one.name, one.default)
        elif one.default_factory is not MISSING:
            object.__setattr__(instance, one.name, one.default_factory())
    return instance


def _is_frozen(instance: Any) -> bool:
    if isinstance(instance, BaseModel):
        return bool(instance.model_config.get("frozen"))
    try:
        instance.__ecotone_probe__ = None
    except FrozenInstanceError:
        return True
    except AttributeError:  # it has __slots__
        return False
    del instance.__ecotone_probe__
    return False


def _marked(cls: type) -> Iterator[tuple[Callable[..., None], Mapping[str, Any]]]:
    for name in dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)):
        raw = inspect.getattr_static(cls, name)
        bound = isinstance(raw, staticmethod | classmethod)
        if not bound and not inspect.isfunction(raw):
            continue
        found = [
            one for one in (*marks_of(raw), *(marks_of(raw.__func__) if bound else ())) if isinstance(one, Applies)
        ]
        if found and bound:
            raise ConfigurationError(
                f"{cls.__name__}.{name} applies events and gets no object to change", hint="make it a method"
            )
        if found:
            yield raw, found[0].names


def _parameters(function: Callable[..., None], names: Mapping[str, Any]) -> list[Parameter]:
    if way_of(function) not in (Way.THREAD, Way.INLINE):
        raise ConfigurationError(
            f"{label(function)} applies events and is no plain def: it is called whenever the aggregate is loaded",
            hint="write it with def, and let it do nothing but set attributes",
        )
    try:
        _, *parameters = parameters_of(function, names)
    except ConfigurationError as problem:
        problem.what = f"{label(function)}: {problem.what}"
        raise
    if not parameters or parameters[0].annotation is EMPTY or not members_of(parameters[0].annotation):
        raise ConfigurationError(
            f"{label(function)} does not tell which events it applies",
            hint="annotate its parameter with the class of the event",
        )
    return parameters


def _header(parameter: Parameter, function: Callable[..., None]) -> Header:
    for marker in parameter.metadata:
        if isinstance(marker, MessageHeader):
            return parameter.name, marker.name or parameter.name, header_reader(parameter.annotation), parameter.default
    raise ConfigurationError(
        f"{label(function)} asks for {parameter.name!r}, and nothing but the event may be needed to apply it",
        hint='put it into the event, or take a header of it: Annotated[str, MessageHeader("tenant")]',
    )
