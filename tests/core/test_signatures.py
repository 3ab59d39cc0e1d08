"""What a callable asks for, and how it is to be called, in every form that it may have."""

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from typing_extensions import TypeAliasType

from ecotone_fastapi.core.endpoint import Inline, mark
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.signatures import EMPTY, Parameter, Way, label, parameters_of, returned_by, way_of

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    number: int


def shown(call: Any, **names: Any) -> list[tuple[str, Any, tuple[Any, ...], bool]]:
    """The parameters of a callable, in short."""
    return [(one.name, one.annotation, one.metadata, one.positional) for one in parameters_of(call, names)]


def annotation_of(call: Any, **names: Any) -> Any:
    """The annotation of the only parameter, with its metadata."""
    [parameter] = parameters_of(call, names)
    return parameter.annotated


# ----------------------------------------------------------------------------------------------------------- parameters


def test_a_function_has_parameters_by_place_and_by_name() -> None:
    def function(one: int, /, two: Annotated[str, "a", "b"], *rest: int, three=3, **others: int) -> None: ...  # type: ignore[no-untyped-def]

    assert parameters_of(function) == [
        Parameter("one", int, (), EMPTY, int, positional=True),
        Parameter("two", str, ("a", "b"), EMPTY, Annotated[str, "a", "b"], positional=True),
        Parameter("three", EMPTY, (), 3, EMPTY, positional=False),
    ]


def test_what_stands_in_front_of_a_function_takes_its_parameters_by_name() -> None:
    def function(one: int, two: str) -> None: ...

    @functools.wraps(function)
    def wrapper(**kwargs: Any) -> None: ...

    class Called:
        def __call__(self, one: int) -> None: ...

        def method(self, one: int) -> None: ...

    class Made:
        def __init__(self, one: int) -> None: ...

    by_name = ("one", int, (), False)

    assert shown(wrapper) == [by_name, ("two", str, (), False)]
    assert shown(functools.partial(function, two="2")) == [by_name, ("two", str, (), False)]
    assert shown(functools.partial(function, 1)) == [("two", str, (), False)]
    assert shown(Called()) == [by_name]
    assert shown(Made) == [by_name]
    assert shown(Called().method) == [("one", int, (), True)]


def test_a_builtin_that_does_not_tell_asks_for_nothing() -> None:
    assert parameters_of(type) == []
    assert parameters_of(Mock()) == []


def test_a_generic_class_asks_for_what_its_constructor_asks_for() -> None:
    class Repository(Generic[T]):
        def __init__(self, order: Order) -> None: ...

    assert shown(Repository[int]) == [("order", Order, (), False)]


# ---------------------------------------------------------------------------------------------------------- text


def test_text_is_evaluated_among_the_globals_of_whatever_is_called() -> None:
    def function(order: "Order") -> None: ...

    @functools.wraps(function)
    def wrapper(*args: Any) -> None: ...

    class Made:
        def __init__(self, order: "Order") -> None: ...

    class Allocated:
        def __new__(cls, order: "Order") -> "Allocated":  # noqa: PYI034
            return super().__new__(cls)

    class Called:
        def __call__(self, order: "Order") -> None: ...

        def method(self, order: "Order") -> None: ...

    @dataclass
    class Data:
        order: "Order"

    class Row(NamedTuple):
        order: "Order"

    calls = [function, wrapper, functools.partial(function), Made, Allocated, Called(), Called().method, Data, Row]

    assert [annotation_of(call) for call in calls] == [Order] * len(calls)


def test_text_within_an_annotation_is_evaluated_too() -> None:
    def message(value: Message["Order"]) -> None: ...

    def annotated(value: Annotated["Order", "kept"]) -> None: ...

    def listed(value: "list[Order] | None") -> None: ...

    assert annotation_of(message) == Message[Order]
    assert annotation_of(annotated) == Annotated[Order, "kept"]
    assert annotation_of(listed) == list[Order] | None


def test_text_may_name_what_is_local() -> None:
    class Local: ...

    def enclosed(value: "Local") -> type:
        return Local

    def given(value: "Given") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert annotation_of(enclosed) is Local
    assert annotation_of(given, Given=Local) is Local


def test_a_local_name_that_has_no_value_yet_is_passed_over() -> None:
    def function(value: "Order") -> Any:
        return later

    assert annotation_of(function) is Order
    later = 1
    assert function(Order(1)) == later


def test_text_that_cannot_be_evaluated_is_an_error_unless_there_is_a_default() -> None:
    def wrong(value: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def careless(value: "Missing" = 5) -> "Missing": ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="annotation 'Missing' of 'value' cannot be evaluated") as caught:
        parameters_of(wrong)
    assert "TYPE_CHECKING" in caught.value.hint
    assert shown(careless) == [("value", EMPTY, (), True)]


def test_a_function_without_a_module_has_no_names() -> None:
    namespace: dict[str, Any] = {}
    exec("class Made:\n    def __new__(cls, value: 'int'): ...", {"__name__": "nowhere"}, namespace)

    assert annotation_of(namespace["Made"]) is int


# ---------------------------------------------------------------------------------------------------------- aliases


def test_an_alias_is_what_it_stands_for() -> None:
    number = TypeAliasType("number", Annotated[int, "inner"])
    again = TypeAliasType("again", number)
    of = TypeAliasType("of", Annotated[T, "generic"], type_params=(T,))

    def plain(value: number) -> None: ...  # type: ignore[valid-type]

    def twice(value: again) -> None: ...  # type: ignore[valid-type]

    def within(value: Annotated[number, "outer"]) -> None: ...  # type: ignore[valid-type]

    def generic(value: of[Order]) -> None: ...  # type: ignore[valid-type]

    assert shown(plain) == shown(twice) == [("value", int, ("inner",), True)]
    assert shown(within) == [("value", int, ("inner", "outer"), True)]
    assert shown(generic) == [("value", Order, ("generic",), True)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is new in Python 3.12")
def test_a_type_statement_is_what_it_stands_for() -> None:
    namespace: dict[str, Any] = {"Annotated": Annotated}
    exec("type Number = Annotated[int, 'inner']\ntype Many[T] = Annotated[list[T], 'many']", namespace)

    def function(one: "Number", many: "Many[str]") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert shown(function, **namespace) == [("one", int, ("inner",), True), ("many", list[str], ("many",), True)]


# ------------------------------------------------------------------------------------------------------------ calling


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


async def coroutine() -> None: ...


def function() -> None: ...


async def async_generator() -> AsyncIterator[None]:
    yield


def generator() -> Iterator[None]:
    yield


@mark(Inline())
def inline() -> None: ...


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (coroutine, Way.COROUTINE),
        (function, Way.THREAD),
        (async_generator, Way.ASYNC_GENERATOR),
        (generator, Way.GENERATOR),
        (inline, Way.INLINE),
        (Order, Way.INLINE),
        (print, Way.THREAD),
    ],
)
def test_a_callable_is_called_in_the_same_way_in_every_form(call: Callable[..., Any], way: Way) -> None:
    assert way_of(call) is way
    assert way_of(functools.partial(call)) is way
    assert way_of(functools.partial(functools.partial(call))) is way
    if not isinstance(call, type):
        holder = type("Holder", (), {"__call__": lambda self: None, "method": staticmethod(call)})
        assert way_of(wrapped(call)) is way
        assert way_of(functools.partial(wrapped(call))) is way
        assert way_of(holder().method) is way


def test_an_object_is_called_as_its_call_method_is() -> None:
    class Coroutine:
        async def __call__(self) -> None: ...

        async def method(self) -> None: ...

    @mark(Inline())
    class Marked:
        def __call__(self) -> None: ...

    assert way_of(Coroutine()) is Way.COROUTINE
    assert way_of(Coroutine().method) is Way.COROUTINE
    assert way_of(Marked()) is Way.INLINE
    assert way_of(Mock()) is Way.THREAD
    assert way_of(MagicMock()) is Way.THREAD
    assert way_of(AsyncMock()) is Way.COROUTINE


def test_what_wraps_a_class_is_a_function() -> None:
    assert way_of(wrapped(Order)) is Way.THREAD
    assert way_of(list[int]) is Way.INLINE


def test_what_a_function_returns_is_evaluated() -> None:
    class Local: ...

    def told() -> "list[Local]": ...
    def nothing() -> None: ...
    def annotated() -> Annotated[Order, "header"]: ...
    def untold(): ...
    def unknown() -> "Nowhere": ...  # type: ignore[name-defined]  # noqa: F821

    assert returned_by(told, {"Local": Local}) == list[Local]
    assert returned_by(nothing) is type(None)
    assert returned_by(annotated) == Annotated[Order, "header"]
    assert returned_by(untold) is EMPTY
    with pytest.raises(ConfigurationError, match="cannot be evaluated"):
        returned_by(unknown)


def test_a_callable_is_named_as_people_write_it() -> None:
    class Local:
        def method(self) -> None: ...

        def __call__(self) -> None: ...

    assert label(coroutine) == "coroutine"
    assert label(Local.method) == "Local.method"
    assert label(functools.partial(functools.partial(coroutine))) == "coroutine"
    assert label(Local()).endswith("Local")
    assert label(Mock()) == "Mock"
