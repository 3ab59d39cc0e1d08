"""Methods that are SQL: a protocol of yours, whose methods run on the session of the handler and return typed rows.

    class Orders(Protocol):
        @query("SELECT id, total FROM orders WHERE customer = :customer ORDER BY id")
        async def of_customer(self, customer: str) -> list[OrderRow]: ...

        @statement("UPDATE orders SET customer = :customer WHERE id = :id")
        async def hand_over(self, id: str, customer: str) -> int: ...

    ecotone = Ecotone([...], plugins=[database], services={Orders: database.implement(Orders)})

What a method returns decides what is fetched:

- `list[X]`, `Sequence[X]`, `tuple[X, ...]`, `set[X]`: all rows;
- `X | None`: the first row, or `None`;
- `X`: the first row; without any it raises `RowNotFoundError`;
- `AsyncIterator[X]`, by a method without `async`: one row after the other, from a cursor on the server;
- `int` or `None` of a `@statement`: how many rows it has affected, or nothing.

`X` is a class with a field for each column (a dataclass, a pydantic model, a TypedDict, a NamedTuple, a dict), or a
tuple of the columns, or, when there is one column, its type.
"""

import functools
import inspect
import re
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, get_origin

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.annotations import MISSING, SINGLE, field_of, has_fields, members, shown
from ecotone_fastapi.adapters.sqlalchemy.answers import Answer, Fetch, Form, answer_of
from ecotone_fastapi.adapters.sqlalchemy.sql_text import SqlParameter, SqlText
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.core.endpoint import has_string_annotations, local_names, mark, marks_of
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, RowNotFoundError
from ecotone_fastapi.core.signatures import EMPTY, Parameter, label, parameters_of, returned_by

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """Mark: this method returns what a query finds.

    Args:
        sql: The query, with the parameters of the method as `:name`.
        names: Local names at the place of decoration, for annotations that are strings.
    """

    sql: str
    names: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Statement:
    """Mark: this method changes rows.

    Args:
        sql: The statement, with the parameters of the method as `:name`.
        names: Local names at the place of decoration, for annotations that are strings.
    """

    sql: str
    names: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def query(sql: str) -> Callable[[F], F]:
    """Let a method of a protocol or an abstract class return what a query finds; see `SqlAlchemy.implement`.

    The type that it returns decides what is fetched: all rows, the first one, or one after the other; and what becomes
    of a row. A statement with RETURNING is a query, too.

    Args:
        sql: The query. `:customer` is the parameter `customer` of the method, `:page.limit` a field of the parameter
            `page`, and what stands behind IN may be a list: `WHERE id IN :ids`. Values are always bound.

    Example:
        >>> from typing import Protocol
        >>> class Orders(Protocol):
        ...     @query("SELECT id FROM orders WHERE customer = :customer AND status IN :statuses LIMIT :page.limit")
        ...     async def of_customer(self, customer: str, statuses: list[str], page: Any) -> list[str]: ...
        ...
        ...     @query("SELECT id, customer FROM orders")
        ...     def all(self) -> AsyncIterator[tuple[str, str]]: ...
        >>> orders = database.implement(Orders)
    """
    names = local_names()

    def attach(method: F) -> F:
        return mark(Query(sql, names if has_string_annotations(method) else {}))(method)

    return attach


def statement(sql: str) -> Callable[[F], F]:
    """Let a method of a protocol or an abstract class change rows; see `SqlAlchemy.implement`.

    It returns how many rows were affected, or `None`.

    Args:
        sql: The statement, with parameters as in `query`.

    Example:
        >>> from typing import Protocol
        >>> class Orders(Protocol):
        ...     @statement("UPDATE orders SET customer = :customer WHERE id IN :ids")
        ...     async def hand_over(self, ids: list[str], customer: str) -> int: ...
    """
    names = local_names()

    def attach(method: F) -> F:
        return mark(Statement(sql, names if has_string_annotations(method) else {}))(method)

    return attach


def implemented(interface: Callable[..., T], transactions: Transactions) -> T:
    """Return an object whose methods are the SQL that their decorators say.

    Args:
        interface: A protocol or an abstract class.
        transactions: Where statements run.

    Raises:
        ConfigurationError: A method cannot be what it says; all that was found is in it.
    """
    if not isinstance(interface, type):
        raise ConfigurationError(f"{interface!r} is no class", hint="give a Protocol or an abstract class")
    methods: dict[str, Any] = {}
    problems: list[ConfigurationError] = []
    for name in dict.fromkeys(name for base in interface.__mro__ for name in vars(base)):
        found = inspect.getattr_static(interface, name)
        # What stands above our decorator may hide the function that it has marked.
        function = getattr(found, "__func__", None) or getattr(found, "fget", None) or found
        marks = [one for one in marks_of(function) if isinstance(one, Query | Statement)]
        try:
            if marks:
                methods[name] = _method(found, marks[0], transactions)
            elif _is_open(interface, name, function):
                raise ConfigurationError(
                    f"{interface.__qualname__}.{name} says nothing about its SQL",
                    hint='decorate it with @query("SELECT ...") or @statement("..."), or give it a body',
                )
        except ConfigurationError as problem:
            problems.append(problem)
    if not methods and not problems:
        problems.append(
            ConfigurationError(
                f"{interface.__qualname__} has no method that is SQL",
                hint='decorate its methods with @query("SELECT ...") and @statement("...")',
            )
        )
    ConfigurationError.raise_all(problems)
    made: Any = types.new_class(interface.__name__, (interface,), {}, lambda namespace: namespace.update(methods))
    made.__module__, made.__qualname__ = interface.__module__, interface.__qualname__
    try:
        return made()  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigurationError(
            f"{interface.__qualname__} cannot be made: {error}", hint="give it no __init__, or one without arguments"
        ) from error


async def _open_coroutine() -> None: ...


async def _described_coroutine() -> None:
    """Be as empty as many methods of protocols are."""


def _open_function() -> None: ...


def _described_function() -> None:
    """Be as empty as many methods of protocols are."""


_EMPTY = {one.__code__.co_code for one in (_open_coroutine, _described_coroutine, _open_function, _described_function)}


def _is_open(interface: type, name: str, function: Any) -> bool:
    """Whether somebody else has to say what a method does."""
    if getattr(function, "__isabstractmethod__", False):
        return True
    if not inspect.isfunction(function) or name.startswith("__"):
        return False
    owner = next(base for base in interface.__mro__ if name in vars(base))
    code = function.__code__
    returns_nothing = code.co_code in _EMPTY and {*code.co_consts} <= {None, function.__doc__}
    return Protocol in owner.__bases__ and returns_nothing


# ----------------------------------------------------------------------------------------------------------- one method


def _method(function: Any, sql: Query | Statement, transactions: Transactions) -> Callable[..., Any]:
    """Return the method that runs the SQL of a mark."""
    if not inspect.isfunction(function):
        raise ConfigurationError(
            f"{function!r} cannot be SQL", hint="decorate a plain method: neither static, nor of the class, no property"
        )
    try:
        if isinstance(sql, Statement):
            return _StatementMethod(function, sql, transactions).method()
        return _QueryMethod(function, sql, transactions).method()
    except ConfigurationError as problem:
        problem.what = f"{label(function)}: {problem.what}"
        raise


class _Method:
    """A method that is SQL.

    Args:
        function: The method as it was written.
        sql: Its mark.
        transactions: Where statements run.
    """

    def __init__(self, function: Callable[..., Any], sql: Query | Statement, transactions: Transactions) -> None:
        self.function = function
        self.name = label(function)
        self.transactions = transactions
        self.text = SqlText(sql.sql, transactions.dialect.name)
        self.returns = returned_by(function, sql.names)
        self.signature = inspect.signature(function)
        self._check_parameters(parameters_of(function, sql.names)[1:])

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of the SQL, by their names in it."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values: dict[str, Any] = {}
        for parameter in self.text.parameters:
            value = bound.arguments[parameter.path[0]]
            for name in parameter.path[1:]:
                if value is not None:
                    value = value[name] if isinstance(value, Mapping) else getattr(value, name)
            values[parameter.name] = self._as_parameter(value)
        return values

    def _as_parameter(self, value: Any) -> Any:
        if isinstance(value, AbstractSet | Sequence) and not isinstance(value, SINGLE):
            return [self.transactions.dialect.parameter(one) for one in value]
        return self.transactions.dialect.parameter(value)

    @asynccontextmanager
    async def connected(self, *, writing: bool) -> AsyncIterator[AsyncConnection]:
        """Give the connection of the unit of work; tell in errors of the database where they come from."""
        try:
            async with self.transactions.joined(writing=writing) as connection:
                yield connection
        except SQLAlchemyError as error:
            error.add_note(f"while running {self.name}")
            raise

    def _check_parameters(self, parameters: Sequence[Parameter]) -> None:
        for one in self.signature.parameters.values():
            if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                raise ConfigurationError(f"{one} has no place in SQL", hint="name its parameters one by one")
        known = {parameter.name: parameter.annotation for parameter in parameters}
        for wanted in self.text.parameters:
            if wanted.path[0] not in known:
                raise ConfigurationError(
                    f"the SQL has the parameter ':{wanted.name}', and the method has none of this name",
                    tried=f"parameters: {', '.join(known) or 'there are none'}",
                    hint="name both the same; write \\: for a colon that begins no parameter",
                )
            self._check_value(wanted, known[wanted.path[0]])
        used = {parameter.path[0] for parameter in self.text.parameters}
        for name in known:
            if name not in used:
                raise ConfigurationError(
                    f"the SQL does not use the parameter {name!r}",
                    tried=self.text.sql,
                    hint=f"write :{name} where its value belongs, outside of quotes; or take it away",
                )

    def _check_value(self, wanted: SqlParameter, type_: Any) -> None:
        for name in wanted.path[1:]:
            found = field_of(type_, name)
            if found is MISSING:
                raise ConfigurationError(
                    f"the SQL has the parameter ':{wanted.name}', and {shown(type_)} has no field {name!r}",
                    hint="write the name of a field or a property",
                )
            type_ = found
        origins = [get_origin(one) or one for one in members(type_)]
        classes = [one for one in origins if isinstance(one, type)]
        if any(has_fields(one) for one in classes):
            raise ConfigurationError(
                f"the SQL has the parameter ':{wanted.name}', and {shown(type_)} is an object",
                hint=f"write one of its fields: :{wanted.name}.field",
            )
        is_list = any(issubclass(one, AbstractSet | Sequence) and not issubclass(one, SINGLE) for one in classes)
        if is_list and not wanted.many and self.transactions.dialect.name != "postgresql":
            raise ConfigurationError(
                f"the SQL has the parameter ':{wanted.name}', and {shown(type_)} is a list",
                hint=f"write it behind IN: ... IN :{wanted.name}",
            )


class _StatementMethod(_Method):
    """A method that changes rows."""

    def method(self) -> Callable[..., Any]:
        """Return what is called in place of the function that was written."""
        if self.returns not in (int, None, type(None)):
            raise ConfigurationError(
                "it does not say what it returns"
                if self.returns is EMPTY
                else f"a statement does not return {shown(self.returns)}",
                hint="write -> int for the number of rows that it affects, or -> None; "
                "a statement that is RETURNING rows is a @query",
            )
        _check_coroutine(self.function)
        counts = self.returns is int

        @functools.wraps(self.function, updated=())
        async def execute(*args: Any, **kwargs: Any) -> int | None:
            statement, values = self.text.with_values(self.values(args, kwargs))
            async with self.connected(writing=True) as connection:
                result = await connection.execute(statement, values)
                return result.rowcount if counts else None

        return execute


class _QueryMethod(_Method):
    """A method that returns what a query finds."""

    def __init__(self, function: Callable[..., Any], sql: Query, transactions: Transactions) -> None:
        super().__init__(function, sql, transactions)
        self._writing = _WRITES.match(self.text.sql) is not None

    def method(self) -> Callable[..., Any]:
        """Return what is called in place of the function that was written."""
        answer = answer_of(self.returns)
        if answer.fetch is not Fetch.STREAM:
            _check_coroutine(self.function)
            return self._fetching(answer)
        if inspect.iscoroutinefunction(self.function):
            raise ConfigurationError(
                "it returns an iterator, and is a coroutine",
                hint="write def instead of async def; it is used as: async for row in it()",
            )
        return self._streaming(answer)

    def _fetching(self, answer: Answer) -> Callable[..., Any]:
        @functools.wraps(self.function, updated=())
        async def fetch(*args: Any, **kwargs: Any) -> Any:
            statement, values = self.text.with_values(self.values(args, kwargs))
            async with self.connected(writing=self._writing) as connection:
                result = await connection.execute(statement, values)
                columns = self._columns(answer, result)
                if answer.fetch is Fetch.ALL:
                    return self._validated(answer, columns, [answer.row(columns, row) for row in result])
                row = result.first()
                if row is not None:
                    return self._validated(answer, columns, answer.row(columns, row))
                if answer.fetch is Fetch.FIRST_OR_NONE:
                    return None
                raise RowNotFoundError(
                    f"{self.name} has found no row",
                    tried=self.text.sql,
                    hint=f"let it return '{answer.shown} | None' if there may be none",
                )

        return fetch

    def _streaming(self, answer: Answer) -> Callable[..., Any]:
        @functools.wraps(self.function, updated=())
        async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            statement, values = self.text.with_values(self.values(args, kwargs))
            async with self.connected(writing=self._writing) as connection:
                if self.transactions.dialect.one_at_a_time and self.transactions.unit() is not None:
                    # As long as a cursor on the server is open, its connection can do nothing else.
                    result = await connection.execute(statement, values)
                    columns = self._columns(answer, result)
                    for number, row in enumerate(result, 1):
                        yield self._validated(answer, columns, answer.row(columns, row), number)
                    return
                streamed = await connection.stream(statement, values)
                try:
                    columns = self._columns(answer, streamed)
                    number = 0
                    async for row in streamed:
                        number += 1
                        yield self._validated(answer, columns, answer.row(columns, row), number)
                finally:
                    await streamed.close()

        return stream

    def _columns(self, answer: Answer, result: Any) -> Sequence[str]:
        columns = tuple(result.keys()) if getattr(result, "returns_rows", True) else ()
        if not columns:
            raise self._unfit("the SQL returns no rows", hint="a statement that returns none is a @statement")
        if answer.form is Form.VALUE and len(columns) != 1:
            raise self._unfit(
                f"the SQL returns the columns {', '.join(columns)}, and {answer.shown} is a single value",
                hint="select one column, or let it return a class with a field for each",
            )
        return columns

    def _validated(self, answer: Answer, columns: Sequence[str], found: Any, number: int | None = None) -> Any:
        try:
            return answer.adapter.validate_python(found)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            first = details[0]
            where = list(first["loc"])
            if answer.fetch is Fetch.ALL and where:
                number = int(where.pop(0)) + 1
            row = "the row" if number is None else f"row {number}"
            column = columns[0] if answer.form is Form.VALUE else ".".join(map(str, where))
            more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
            raise self._unfit(
                f"{row} is no {answer.shown}: column {column!r}: {first['msg']}{more}",
                details=[dict(one) for one in details],
                hint="compare the columns of the query with what the method returns",
            ) from error

    def _unfit(self, what: str, *, hint: str, details: Sequence[Mapping[str, Any]] = ()) -> ConversionError:
        error = ConversionError(f"{self.name}: {what}", details=details, tried=self.text.sql, hint=hint)
        # Whoever has sent the message that is being handled can do nothing about it.
        error.nested = True
        return error


_WRITES = re.compile(r"(insert|update|delete|replace|merge)\b", re.IGNORECASE)


def _check_coroutine(function: Callable[..., Any]) -> None:
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError("it is no coroutine", hint="write async def")
