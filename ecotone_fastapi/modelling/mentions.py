"""Which classes handlers and the methods of a class mention: events that they may make.

What a handler returns or records is found out when it does so. That it can be read again has to be known at start, also
in a process that never makes it.
"""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any, get_args, get_type_hints


def mentioned_by(cls: type) -> Iterator[type]:
    """Return the classes that the methods of a class say they return, or name in their code."""
    for name in dict.fromkeys(name for base in cls.__mro__ for name in vars(base)):
        yield from mentioned_in(inspect.getattr_static(cls, name))


def mentioned_in(function: object) -> Iterator[type]:
    """Return the classes that a function says it returns, or names in its code; none of anything else."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return
    with suppress(Exception):  # an annotation that only a type checker can read
        yield from _classes_in(get_type_hints(function).get("return"))
    known = dict(function.__globals__)
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            known[variable] = cell.cell_contents
    names = set(_names_in(function.__code__))
    for value in [known[one] for one in names if one in known]:
        if isinstance(value, type):
            yield value
        elif isinstance(value, ModuleType):  # `events.ItemWasAdded`
            yield from (one for one in map(vars(value).get, names) if isinstance(one, type))


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a comprehension
            yield from _names_in(constant)


def _classes_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes_in(argument)
