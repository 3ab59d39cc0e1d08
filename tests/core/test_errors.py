import inspect
import re

import pytest

from ecotone_fastapi.core import errors
from ecotone_fastapi.core.errors import (
    ChannelError,
    ConfigurationError,
    ConversionError,
    EcotoneError,
    HeaderError,
    MissingExtraError,
    SendError,
    UnknownChannelError,
)


def drawn() -> dict[str, tuple[str, str]]:
    """Each class of the tree at the top of the module, with its parent and the other class in brackets."""
    found: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^([│ ├└─]*)([A-Z]\w+Error)(?: \((\w+)\))?(?:\s|$)", line):
            depth = len(match[1]) // 4
            found[match[2]] = (above[depth - 1] if depth else "", match[3] or "")
            above[depth:] = [match[2]]
    return found


def defined() -> dict[str, tuple[str, str]]:
    return {
        name: (
            next((base.__name__ for base in cls.__bases__ if issubclass(base, EcotoneError)), ""),
            next((base.__name__ for base in cls.__bases__ if not issubclass(base, EcotoneError)), ""),
        )
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, EcotoneError)
    }


def test_the_tree_at_the_top_is_the_tree_of_the_classes() -> None:
    classes = defined()
    assert classes.pop("EcotoneError") == ("", "Exception")
    tree = drawn()
    assert tree.pop("EcotoneError") == ("", "")

    assert tree == classes
    assert len(tree) > 15


def test_an_error_says_what_happened_what_was_tried_and_what_to_do() -> None:
    error = EcotoneError("OrderService.place: nothing supplies 'sender'", tried="headers, services", hint="annotate it")

    assert str(error).splitlines() == [
        "OrderService.place: nothing supplies 'sender'",
        "Tried: headers, services",
        "Hint: annotate it",
    ]
    assert (error.what, error.tried, error.hint) == (
        "OrderService.place: nothing supplies 'sender'",
        "headers, services",
        "annotate it",
    )


def test_what_there_is_not_to_say_is_left_out() -> None:
    assert str(EcotoneError("it failed")) == "it failed"
    assert str(EcotoneError("it failed", hint="try again")) == "it failed\nHint: try again"


def test_a_text_that_was_changed_is_shown_as_it_is_now() -> None:
    error = UnknownChannelError("there is no channel 'x'")

    error.what = f"OrderService.place: {error.what}"

    assert str(error) == "OrderService.place: there is no channel 'x'"


def test_nothing_is_raised_when_nothing_is_wrong() -> None:
    ConfigurationError.raise_all([])


def test_the_only_problem_is_raised_as_it_is() -> None:
    problem = UnknownChannelError("there is no channel 'x'")

    with pytest.raises(UnknownChannelError) as raised:
        ConfigurationError.raise_all([problem])

    assert raised.value is problem
    assert list(raised.value.problems) == []


def test_several_problems_are_shown_at_once() -> None:
    problems = [UnknownChannelError("there is no channel 'x'", hint="give one"), ConfigurationError("two ids")]

    with pytest.raises(ConfigurationError) as raised:
        ConfigurationError.raise_all(problems)

    assert list(raised.value.problems) == problems
    assert str(raised.value) == (
        "2 things are wrong with the wiring:\n\n"
        "UnknownChannelError: there is no channel 'x'\nHint: give one\n\n"
        "ConfigurationError: two ids"
    )


def test_a_missing_driver_names_the_line_that_installs_it() -> None:
    error = MissingExtraError("rabbitmq", "aio_pika")

    assert isinstance(error, ImportError)
    assert (error.extra, error.module) == ("rabbitmq", "aio_pika")
    assert str(error) == "the driver 'aio_pika' is not installed\nHint: pip install \"ecotone-fastapi[rabbitmq]\""


def test_errors_are_caught_as_what_python_calls_them() -> None:
    assert issubclass(ConversionError, ValueError)
    assert issubclass(HeaderError, ValueError)
    assert issubclass(ChannelError, ConnectionError)


def test_an_error_of_a_batch_names_the_messages_that_were_not_accepted() -> None:
    error = SendError("channel 'orders' refused 2 messages", failed=["1", "2"], hint="send them again")

    assert error.failed == ("1", "2")
    assert isinstance(error, ChannelError)


def test_a_conversion_error_carries_what_pydantic_found() -> None:
    error = ConversionError("the payload is no Order", details=[{"loc": ("id",)}], tried="json", hint="compare")

    assert error.details == ({"loc": ("id",)},)
    assert (error.tried, error.hint) == ("json", "compare")
