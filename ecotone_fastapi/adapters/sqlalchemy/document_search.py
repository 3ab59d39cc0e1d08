"""Conditions on JSON as SQL: what PostgreSQL, MariaDB, MySQL and SQLite make of a field of a document.

A field and what it is compared with go through the same SQL, on both sides of the comparison: so a number is read by
the same code of the server, whether it comes from a document or from somebody who asks. All values are parameters,
paths included.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ecotone_fastapi.modelling.document_filters import (
    MOMENT_PATTERN,
    NUMBER_PATTERN,
    AllOf,
    AnyOf,
    Comparison,
    Filter,
    IsNull,
    Not,
    Operator,
    Ordering,
    Path,
    Place,
    Scalar,
    ValueKind,
    as_json,
)


class Json(NamedTuple):
    """A value of JSON as SQL.

    Args:
        text: SQL for the value: text without quotes, numbers as the server has them or as text.
        kind: SQL for what it is, in the server's words; null when there is nothing.
    """

    text: str
    kind: str


class DocumentSearch:
    """One statement that searches documents on PostgreSQL, and whatever the others have in common with it.

    Attributes:
        values: The parameters of the statement.
    """

    null = "null"  # what the server calls it

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._names: dict[tuple[str, Any], str] = {}

    # ------------------------------------------------------------------------------------------------------ conditions

    def condition(self, which: Filter) -> str:
        """Return SQL that is true or false, and never null."""
        match which:
            case AllOf(filters):
                return self._joined(" AND ", filters) if filters else "1 = 1"
            case AnyOf(filters):
                return self._joined(" OR ", filters) if filters else "1 = 0"
            case Not(inner):
                return f"NOT ({self.condition(inner)})"
            case IsNull(path):
                return f"COALESCE({self.at(path).kind}, '{self.null}') = '{self.null}'"
            case Comparison(path, Operator.ONE_OF, kind, values):
                given = ", ".join(_row(self.keys(kind, self.given(value))) for value in values)
                return f"({_row(self.keys(kind, self.at(path)))} IN ({given})) IS TRUE"
            case Comparison(path, Operator.PREFIX, kind, (value,)):
                [found], [prefix] = self.keys(kind, self.at(path)), self.keys(kind, self.given(value))
                return f"({self.begins(found, prefix)}) IS TRUE"
            case Comparison(path, operator, kind, (value,)):
                return self.comparison(path, operator, kind, value)
        raise TypeError(f"{which!r} is no condition that this store knows")

    def comparison(self, path: Path, operator: Operator, kind: ValueKind, value: Scalar) -> str:
        """Return SQL that compares a field with a value."""
        if operator is Operator.EQUAL and kind in _CONTAINED and all(isinstance(part, str) for part in path):
            # In this form an index on the body can be used: CREATE INDEX ... USING gin (body jsonb_path_ops)
            document = as_json(value)
            for part in reversed(path):
                document = f"{{{json.dumps(part, ensure_ascii=False)}: {document}}}"
            return f"body @> {self.bind(document, 'jsonb')}"
        found, given = self.keys(kind, self.at(path)), self.keys(kind, self.given(value))
        return f"({_row(found)} {operator} {_row(given)}) IS TRUE"

    def _joined(self, word: str, filters: Iterable[Filter]) -> str:
        return word.join(f"({self.condition(one)})" for one in filters)

    # ----------------------------------------------------------------------------------------------------------- order

    def behind(self, place: Place, order: Sequence[Ordering]) -> str:
        """Return the condition that a document comes behind a place."""
        alternatives: list[str] = []
        same: list[str] = []
        for one, value in zip(order, place.values, strict=True):
            rank, known = one.rank(value), self._rank(one)
            sign = "<" if one.descending else ">"
            if rank:
                assert value is not None
                kind = one.kinds[rank - 1]
                found, given = _row(self.keys(kind, self.at(one.path))), _row(self.keys(kind, self.given(value)))
                later = f"({known} {sign} {rank} OR ({known} = {rank} AND {found} {sign} {given}))"
                equal = f"{known} = {rank} AND {found} = {given}"
            else:
                later, equal = f"{known} {sign} 0", f"{known} = 0"
            alternatives.append(" AND ".join([*same, later]))
            same.append(equal)
        alternatives.append(" AND ".join([*same, f"document_id > {self.bind(place.id)}"]))
        return " OR ".join(f"({one})" for one in alternatives)

    def order_by(self, order: Sequence[Ordering]) -> str:
        """Return what documents are ordered by."""
        columns = []
        for one in order:
            keys = [self._rank(one), *(key for kind in one.kinds for key in self.keys(kind, self.at(one.path)))]
            columns += [f"{key} DESC" if one.descending else key for key in keys]
        return ", ".join([*columns, "document_id"])

    def _rank(self, one: Ordering) -> str:
        found = self.at(one.path)
        cases = [f"WHEN {self.keys(kind, found)[0]} IS NOT NULL THEN {n}" for n, kind in enumerate(one.kinds, 1)]
        return f"(CASE {' '.join(cases)} ELSE 0 END)"

    # ---------------------------------------------------------------------------------------------------------- values

    def bind(self, value: Any, type_: str = "text") -> str:
        """Return SQL for a parameter of a type; the same one for the same value."""
        name = self._names.setdefault((type_, value), f"v{len(self._names)}")
        self.values[name] = value
        return self.cast(f":{name}", type_)

    def cast(self, parameter: str, type_: str) -> str:
        """Return SQL for a parameter whose type the server is to know."""
        return f"CAST({parameter} AS {type_})"

    def at(self, path: Path) -> Json:
        """Return what is at the end of a path."""
        found = "body"
        for part in path:
            if isinstance(part, str):
                found = f"({found} -> {self.bind(part)})"
            else:  # for the server, a single value is the first one of itself
                step = f"{found} -> {self.bind(part, 'integer')}"
                found = f"(CASE WHEN jsonb_typeof({found}) = 'array' THEN {step} END)"
        return Json(f"({found} #>> '{{}}')", f"jsonb_typeof({found})")

    def given(self, value: Scalar) -> Json:
        """Return a value that somebody compares with."""
        found = self.bind(as_json(value), "jsonb")
        return Json(f"({found} #>> '{{}}')", f"jsonb_typeof({found})")

    def keys(self, kind: ValueKind, found: Json) -> Sequence[str]:
        """Return SQL by which values of a kind are compared, the first one null for all others."""
        text, is_text = found.text, f"{found.kind} = 'string'"
        match kind:
            case ValueKind.BOOLEAN:
                return (f"(CASE WHEN {found.kind} = 'boolean' THEN CAST({text} AS boolean) END)",)
            case ValueKind.NUMBER:
                return (f"(CASE WHEN {found.kind} = 'number' THEN CAST({text} AS numeric) END)",)
            case ValueKind.DECIMAL:
                fits = f"{found.kind} = 'number' OR ({is_text} AND {text} ~ {self.bind(_NUMBER)})"
                return (f"(CASE WHEN {fits} THEN CAST({text} AS numeric) END)",)
            case ValueKind.TEXT:
                return (f'((CASE WHEN {is_text} THEN {text} END) COLLATE "C")',)
            case ValueKind.MOMENT:
                fits = f"{is_text} AND {text} ~ {self.bind(_MOMENT)}"
                # From the first of the month, and then the days: so the 30th of February is no error.
                zone = f"CASE WHEN {text} ~ {self.bind(_OFFSET)} THEN '' ELSE 'Z' END"
                first = f"CAST(substr({text}, 1, 8) || '01' || substr({text}, 11) || {zone} AS timestamptz)"
                days = f"make_interval(days => CAST(substr({text}, 9, 2) AS integer) - 1)"
                return (f"(CASE WHEN {fits} THEN ({first} AT TIME ZONE 'UTC') + {days} END)",)

    def begins(self, text: str, prefix: str) -> str:
        """Return SQL for whether a text begins like another one."""
        return f"starts_with({text}, {prefix})"


_NUMBER = rf"^({NUMBER_PATTERN})(?![\s\S])"  # and nothing behind it, not even the end of a line
_MOMENT = rf"^({MOMENT_PATTERN})(?![\s\S])"
_OFFSET = "(Z|[+-]..:..)$"
_CONTAINED = (ValueKind.BOOLEAN, ValueKind.NUMBER, ValueKind.TEXT)


class SQLiteSearch(DocumentSearch):
    """A statement that searches documents on SQLite, which compares a `Decimal` by its first 15 digits."""

    def comparison(self, path: Path, operator: Operator, kind: ValueKind, value: Scalar) -> str:
        """Return SQL that compares a field with a value."""
        found, given = self.keys(kind, self.at(path)), self.keys(kind, self.given(value))
        return f"({_row(found)} {operator} {_row(given)}) IS TRUE"

    def cast(self, parameter: str, type_: str) -> str:
        """Return SQL for a parameter, whose type is that of its value."""
        return parameter

    def at(self, path: Path) -> Json:
        """Return what is at the end of a path."""
        bound = self.bind(_as_text(path))
        return Json(f"json_extract(body, {bound})", f"json_type(body, {bound})")

    def given(self, value: Scalar) -> Json:
        """Return a value that somebody compares with."""
        bound = self.bind(as_json(value))
        return Json(f"json_extract({bound}, '$')", f"json_type({bound}, '$')")

    def keys(self, kind: ValueKind, found: Json) -> Sequence[str]:
        """Return SQL by which values of a kind are compared, null for all others."""
        text, is_text, is_number = found.text, f"{found.kind} = 'text'", f"{found.kind} IN ('integer', 'real')"
        match kind:
            case ValueKind.BOOLEAN:
                return (f"(CASE WHEN {found.kind} IN ('true', 'false') THEN {text} END)",)
            case ValueKind.NUMBER:
                return (f"(CASE WHEN {is_number} THEN {text} END)",)
            case ValueKind.DECIMAL:
                # What is written like a number and is one in JSON.
                read = f"CASE WHEN json_valid({text}) THEN CAST({text} AS REAL) END"
                fits = f"{is_text} AND {text} NOT GLOB '*[^0-9.eE+-]*'"
                return (f"(CASE WHEN {is_number} THEN CAST({text} AS REAL) WHEN {fits} THEN {read} END)",)
            case ValueKind.TEXT:
                return (f"(CASE WHEN {is_text} THEN {text} END)",)
            case ValueKind.MOMENT:
                return (f"(CASE WHEN {is_text} AND {text} GLOB '{_LOCAL}*' THEN {_microseconds(text)} END)",)

    def begins(self, text: str, prefix: str) -> str:
        """Return SQL for whether a text begins like another one."""
        return f"substr({text}, 1, length({prefix})) = {prefix}"


_LOCAL = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]"


def _microseconds(text: str) -> str:
    """Return SQL for the microseconds from 1970 to a moment that is told as text; null when it is none."""
    # "2026-01-31T12:00:00" comes first; then there may be a fraction, and then an offset.
    offset = (
        f"CASE WHEN substr({text}, -1) = 'Z' THEN 'Z'"
        f" WHEN substr({text}, -6, 1) IN ('+', '-') THEN substr({text}, -6) ELSE '' END"
    )
    fraction = f"substr({text}, 20, length({text}) - 19 - length({offset}))"
    seconds = f"CAST(strftime('%s', substr({text}, 1, 19) || {offset}) AS INTEGER)"
    digits = f"CAST(substr(substr({fraction}, 2) || '000000', 1, 6) AS INTEGER)"
    is_fraction = (
        f"({fraction} = '' OR ({fraction} GLOB '.[0-9]*' AND length({fraction}) < 8"
        f" AND substr({fraction}, 2) NOT GLOB '*[^0-9]*'))"
    )
    return f"CASE WHEN {is_fraction} THEN {seconds} * 1000000 + {digits} END"


class MariaDBSearch(SQLiteSearch):
    """A statement that searches documents on MariaDB or MySQL; they look no deeper than 32 levels into a document."""

    null = "NULL"

    def at(self, path: Path) -> Json:
        """Return what is at the end of a path."""
        # For the server, a single value is the first one of itself.
        lists = [path[:place] for place, part in enumerate(path) if isinstance(part, int)]
        are_lists = [f"JSON_TYPE(JSON_EXTRACT(body, {self.bind(_as_text(one))})) = 'ARRAY'" for one in lists]
        bound = self.bind(_as_text(path))
        if are_lists:
            bound = f"CASE WHEN {' AND '.join(are_lists)} THEN {bound} END"
        found = f"JSON_EXTRACT(body, {bound})"
        return Json(f"JSON_UNQUOTE({found})", f"JSON_TYPE({found})")

    def given(self, value: Scalar) -> Json:
        """Return a value that somebody compares with."""
        found = f"JSON_EXTRACT({self.bind(as_json(value))}, '$')"
        return Json(f"JSON_UNQUOTE({found})", f"JSON_TYPE({found})")

    def keys(self, kind: ValueKind, found: Json) -> Sequence[str]:
        """Return SQL by which values of a kind are compared, the first one null for all others."""
        text, is_text, is_number = found.text, f"{found.kind} = 'STRING'", f"{found.kind} IN ({_NUMBERS})"
        match kind:
            case ValueKind.BOOLEAN:
                return (f"(CASE WHEN {found.kind} = 'BOOLEAN' THEN {text} = 'true' END)",)
            case ValueKind.NUMBER:
                return _numbers(text, is_number)
            case ValueKind.DECIMAL:
                fits = f"{is_text} AND {text} REGEXP {self.bind(_NUMBER)}"
                return _numbers(text, f"{is_number} OR ({fits})")
            case ValueKind.TEXT:
                # As bytes: other comparisons pass over spaces at the end.
                return (f"(CASE WHEN {is_text} THEN CAST({text} AS BINARY) END)",)
            case ValueKind.MOMENT:
                fits = f"{is_text} AND {text} REGEXP {self.bind(_MOMENT)}"
                has_offset = f"SUBSTRING({text}, -6, 1) IN ('+', '-')"
                local = f"CASE WHEN RIGHT({text}, 1) = 'Z' THEN 1 WHEN {has_offset} THEN 6 ELSE 0 END"
                moment = f"CAST(REPLACE(LEFT({text}, CHAR_LENGTH({text}) - {local}), 'T', ' ') AS DATETIME(6))"
                minutes = f"(CAST(SUBSTRING({text}, -5, 2) AS SIGNED) * 60 + CAST(RIGHT({text}, 2) AS SIGNED))"
                sign = f"CASE WHEN SUBSTRING({text}, -6, 1) = '-' THEN -60000000 ELSE 60000000 END"
                offset = f"CASE WHEN {has_offset} THEN {minutes} * {sign} ELSE 0 END"
                since = f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', {moment})"
                return (f"(CASE WHEN {fits} THEN {since} - {offset} END)",)

    def begins(self, text: str, prefix: str) -> str:
        """Return SQL for whether a text begins like another one."""
        return f"LEFT({text}, LENGTH({prefix})) = {prefix}"


_NUMBERS = "'INTEGER', 'UNSIGNED INTEGER', 'DOUBLE', 'DECIMAL'"


def _numbers(text: str, fits: str) -> Sequence[str]:
    """Return SQL for a number of any size, and for the one that it is among those that are the same with 15 digits."""
    exact = f"CASE WHEN ABS(CAST({text} AS DOUBLE)) < 1e34 THEN CAST({text} AS DECIMAL(65, 30)) ELSE 0 END"
    return f"(CASE WHEN {fits} THEN CAST({text} AS DOUBLE) END)", f"(CASE WHEN {fits} THEN {exact} END)"


def _as_text(path: Path) -> str:
    """Return a path as SQLite and MariaDB read it; its names have no quotes in them."""
    return "$" + "".join(f'."{part}"' if isinstance(part, str) else f"[{part}]" for part in path)


def _row(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"({', '.join(keys)})"


def search_for(dialect: str) -> type[DocumentSearch]:
    """Return what searches documents on a database."""
    return {"postgresql": DocumentSearch, "mysql": MariaDBSearch}.get(dialect, SQLiteSearch)
