"""The SQL of users: which parameters are in it, and how it is given to SQLAlchemy.

    SELECT * FROM orders WHERE customer = :customer AND status IN :statuses LIMIT :page.limit

What stands in quotes, comments and casts is left alone. A name with dots is a field of a parameter; what stands behind
IN may be a list of any length.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, text

from ecotone_fastapi.core.errors import ConfigurationError

_QUOTED = r"'(?:[^']|'')*' | \"(?:[^\"]|\"\")*\" | `[^`]*`"
_QUOTED_WITH_ESCAPES = r"'(?:[^'\\]|\\.|'')*' | \"(?:[^\"\\]|\\.|\"\")*\" | `[^`]*`"
_COMMENT = r"--[^\n]* | /\*.*?\*/"
_DOLLARS = r"\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$"
_LEFT_ALONE = {
    "postgresql": rf"\b[eE]'(?:[^'\\]|\\.|'')*' | {_QUOTED} | {_COMMENT} | {_DOLLARS}",
    "mysql": rf"{_QUOTED_WITH_ESCAPES} | {_COMMENT} | \#[^\n]*",
    "sqlite": rf"{_QUOTED} | {_COMMENT} | \[[^\]]*\]",
}
_PARAMETER = r"(?<![\w:\\]):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)(?P<rest>\.?)"
_MISTAKE = r"(?<![\w:\\\[]):(?P<mistake>[\w.][^\s,;)]*)"
_NOTHING = "(SELECT NULL FROM (SELECT 1) AS no_rows WHERE 1 = 0)"
_IN = re.compile(r"\b(?:(?P<no>not)\s+)?in\s*(?P<open>\(\s*)?\Z", re.IGNORECASE)
_CLOSED = re.compile(r"\s*\)")


@dataclass(frozen=True, slots=True)
class SqlParameter:
    """A parameter where it stands in SQL.

    Args:
        path: The name of a parameter of the method, and of fields in it.
        many: Whether it stands behind IN, and may be a list.
        negated: Whether that is NOT IN.
    """

    path: tuple[str, ...]
    many: bool = False
    negated: bool = False

    @property
    def name(self) -> str:
        """How it is written."""
        return ".".join(self.path)


class SqlText:
    """SQL with parameters.

    Args:
        sql: What the user has written.
        dialect: What the database is called.

    Attributes:
        sql: What the user has written, in one line.
        parameters: The parameters in it, where they stand.

    Raises:
        ConfigurationError: What stands for a parameter is none.

    Example:
        >>> sql = SqlText("SELECT ':no' FROM orders WHERE id IN (:ids) LIMIT :page.limit", "sqlite")
        >>> [parameter.name for parameter in sql.parameters]
        ['ids', 'page.limit']
    """

    def __init__(self, sql: str, dialect: str) -> None:
        self.sql: str = " ".join(sql.split())
        self._dialect = dialect
        self._pieces: list[str | SqlParameter] = list(_lists_marked(_pieces(sql, _PATTERNS[dialect])))
        self.parameters: Sequence[SqlParameter] = [one for one in self._pieces if isinstance(one, SqlParameter)]
        names = dict.fromkeys(one.name for one in self.parameters)
        self._placeholders = {name: f"p{place}" for place, name in enumerate(names)}
        self._fixed: TextClause | None = None
        if not any(one.many for one in self.parameters):
            self._fixed = self._written({})[0]

    def with_values(self, values: Mapping[str, Any]) -> tuple[TextClause, Mapping[str, Any]]:
        """Return a statement and its parameters.

        Args:
            values: The values of the parameters, by their names.
        """
        if self._fixed is not None:
            return self._fixed, {self._placeholders[name]: value for name, value in values.items()}
        return self._written(values)

    def _written(self, values: Mapping[str, Any]) -> tuple[TextClause, dict[str, Any]]:
        written, given = "", dict[str, Any]()
        for piece in self._pieces:
            if isinstance(piece, str):
                written += piece.replace(":", "\\:")
                continue
            name, value = self._placeholders[piece.name], values.get(piece.name)
            if not piece.many:
                written += f":{name}"
                given[name] = value
            elif not isinstance(value, list | tuple | set | frozenset):
                written += f"{_in(piece)} (:{name})"
                given[name] = value
            elif value:
                names = [f"{name}_{place}" for place in range(len(value))]
                written += f"{_in(piece)} ({', '.join(f':{one}' for one in names)})"
                given |= dict(zip(names, value, strict=True))
            else:
                written += self._in_nothing(piece)
        return text(written).execution_options(preserve_rowcount=True), given

    def _in_nothing(self, parameter: SqlParameter) -> str:
        """Return SQL for a list that is empty: no value has a type that it could be told by."""
        if self._dialect == "postgresql":
            return "<> ALL ('{}')" if parameter.negated else "= ANY ('{}')"
        return f"{_in(parameter)} {_NOTHING}"


def _in(parameter: SqlParameter) -> str:
    return "NOT IN" if parameter.negated else "IN"


_PATTERNS = {
    dialect: re.compile(rf"(?P<alone>{left_alone}) | {_PARAMETER} | {_MISTAKE}", re.VERBOSE | re.DOTALL)
    for dialect, left_alone in _LEFT_ALONE.items()
}


def _pieces(sql: str, pattern: re.Pattern[str]) -> Iterator[str | SqlParameter]:
    """Cut SQL into text and parameters, by turns."""
    text_before, end = "", 0
    for found in pattern.finditer(sql):
        text_before += sql[end : found.start()].replace("\\:", ":")
        end = found.end()
        if found["alone"] is not None:
            text_before += found[0]
        elif found["name"] is None or found["rest"]:
            raise ConfigurationError(
                f"{found[0]!r} in the SQL is no parameter",
                hint="write the name of a parameter, and of fields in it with dots between them; "
                "write \\: for a colon that is none",
            )
        else:
            yield text_before
            yield SqlParameter(tuple(found["name"].split(".")))
            text_before = ""
    yield text_before + sql[end:].replace("\\:", ":")


def _lists_marked(pieces: Iterator[str | SqlParameter]) -> Iterator[str | SqlParameter]:
    """Take IN and its brackets out of the text around a parameter that stands alone behind it."""
    before, parameter = str(next(pieces)), None
    for piece in pieces:
        if isinstance(piece, SqlParameter):
            parameter = piece
            continue
        assert parameter is not None
        found, closed = _IN.search(before), _CLOSED.match(piece)
        if found is not None and (closed is not None or found["open"] is None):
            yield before[: found.start()]
            yield SqlParameter(parameter.path, many=True, negated=found["no"] is not None)
            before = piece[closed.end() :] if found["open"] is not None and closed is not None else piece
        else:
            yield before
            yield parameter
            before = piece
    yield before
