"""What a callable asks for, and how it is to be called.

>>> async def place(order_id: str, tenant: "Annotated[str, 'header']" = "acme") -> None: ...
>>> [(one.name, one.annotation, one.metadata) for one in parameters_of(place)]
[('order_id', <class 'str'>, ()), ('tenant', <class 'str'>, ('header',))]
>>> way_of(place)
<Way.COROUTINE: 1>
"""

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ecotone_fastapi.core.endpoint import Inline, marks_of
from ecotone_fastapi.core.errors import ConfigurationError

EMPTY: Any = inspect.Parameter.empty

# Where annotations are evaluated late, one that cannot be must not spoil the others: annotationlib.Format.FORWARDREF.
_SPARING: dict[str, Any] = {"annotation_format": 3} if sys.version_info >= (3, 14) else {}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a handler or dependency.

    Args:
        name: Its name.
        annotation: Its type, without `Annotated`.
        metadata: What stands in `Annotated` behind the type.
        default: Its default, or `inspect.Parameter.empty`.
        annotated: Its type with what stands in `Annotated`.
        positional: Whether it is passed by its place instead of its name.
    """

    name: str
    annotation: Any
    metadata: tuple[Any, ...]
    default: Any
    annotated: Any
    positional: bool = False


class Way(Enum):
    """How a callable is to be called."""

    COROUTINE = 1
    INLINE = 2
    THREAD = 3
    ASYNC_GENERATOR = 4
    GENERATOR = 5


def way_of(call: Any) -> Way:
    """Return how a callable is to be called.

    Classes are called on the loop, as they only keep what they are given; functions run in a worker thread unless they
    are marked `Inline`.
    """
    layers = list(_layers(call))
    if _is_class(next(layer for layer in layers if not isinstance(layer, functools.partial))):
        return Way.INLINE
    for test, way in (
        (inspect.isasyncgenfunction, Way.ASYNC_GENERATOR),
        (inspect.iscoroutinefunction, Way.COROUTINE),
        (inspect.isgeneratorfunction, Way.GENERATOR),
    ):
        if any(test(layer) for layer in layers):
            return way
    inline = any(isinstance(value, Inline) for layer in layers for value in marks_of(layer))
    return Way.INLINE if inline else Way.THREAD


def label(call: Any) -> str:
    """Return the name of a callable as people write it."""
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__qualname__", None) or type(call).__qualname__
    return str(name).rpartition("<locals>.")[2]


def parameters_of(call: Any, names: Mapping[str, Any] | None = None) -> list[Parameter]:
    """Return the parameters of a callable with evaluated annotations; `*args` and `**kwargs` are nobody's.

    Args:
        call: The callable.
        names: Local names that string annotations may use.

    Raises:
        ConfigurationError: An annotation that matters cannot be evaluated.
    """
    try:
        signature = inspect.signature(get_origin(call) or call, **_SPARING)
    except ValueError:  # a builtin that does not tell
        return []
    known = _names_around(call)
    # What stands in front of another function has the signature of that one, and takes it by name at least.
    plain = inspect.isroutine(call) and not hasattr(call, "__wrapped__")
    found = []
    for one in signature.parameters.values():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        annotated = _evaluated(one, known, names or {})
        base, metadata = annotated, ()
        while get_origin(base) is Annotated:
            base, *outer = get_args(base)
            base, metadata = _followed(base), (*outer, *metadata)
        positional = one.kind is one.POSITIONAL_ONLY or (plain and one.kind is one.POSITIONAL_OR_KEYWORD)
        found.append(Parameter(one.name, base, metadata, one.default, annotated, positional))
    return found


def returned_by(call: Any, names: Mapping[str, Any] | None = None) -> Any:
    """Return the evaluated annotation of what a function returns; `inspect.Parameter.empty` without one.

    Args:
        call: The function.
        names: Local names that a string annotation may use.

    Raises:
        ConfigurationError: The annotation cannot be evaluated.
    """
    annotation = inspect.signature(call, **_SPARING).return_annotation
    if annotation is inspect.Signature.empty:
        return EMPTY
    parameter = inspect.Parameter("result", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    return _evaluated(parameter, _names_around(call), names or {})


def _evaluated(parameter: inspect.Parameter, known: dict[str, Any], names: Mapping[str, Any]) -> Any:
    """The annotation of a parameter without text in it."""

    def carrier() -> None: ...

    carrier.__annotations__ = {"it": parameter.annotation}
    try:
        return _followed(get_type_hints(carrier, known, dict(names), include_extras=True)["it"])
    except Exception as error:
        if parameter.default is not EMPTY:
            return EMPTY
        raise ConfigurationError(
            f"annotation {parameter.annotation!r} of {parameter.name!r} cannot be evaluated ({error})",
            hint="the name must be importable at run time, not only under TYPE_CHECKING",
        ) from error


def _followed(annotation: Any) -> Any:
    """An annotation without its alias: what `Db` stands for after `type Db = Annotated[Session, Depends(get_db)]`."""
    while True:
        alias = get_origin(annotation) or annotation
        if not hasattr(alias, "__value__"):
            return annotation
        annotation = alias.__value__ if alias is annotation else alias.__value__[get_args(annotation)]


def _names_around(call: Any) -> dict[str, Any]:
    """What annotations of a callable may name: what its module knows, and the functions that it was made in."""
    *_, function = _layers(call)
    if _is_class(function):
        function = get_origin(function) or function
        function = function.__init__ if inspect.isfunction(function.__init__) else function
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    known = dict(getattr(function, "__globals__", None) or vars(module or object))
    for name, cell in zip(
        getattr(getattr(function, "__code__", None), "co_freevars", ()),
        getattr(function, "__closure__", None) or (),
        strict=True,
    ):
        with suppress(ValueError):  # it has no value yet
            known[name] = cell.cell_contents
    return known


def _layers(call: Any) -> Iterator[Any]:
    """A callable, and layer by layer what it wraps: what a partial, a wrapper or a callable object is made of."""
    while True:
        yield call
        if isinstance(call, functools.partial):
            call = call.func
        elif _is_class(call):
            return
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif inspect.ismethod(call):
            call = call.__func__
        elif inspect.isroutine(call):
            return
        else:
            call = type(call).__call__


def _is_class(call: Any) -> bool:
    return isinstance(get_origin(call) or call, type)


def is_hashable(value: object) -> bool:
    """Whether a value can be a key; what stands in annotations need not be."""
    try:
        hash(value)
    except TypeError:
        return False
    return True
