"""What is asked of the table of events: streams, all events in order, and whether one has come that is excluded.

PostgreSQL orders events by the transactions that append them, and readers stop before what is not decided yet, see
`event_horizon`. On MariaDB a transaction takes its number when it is about to commit, so that there is nothing to stop
before. SQLite has one writer at a time, and no other order than that of the positions.
"""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.tables import indexed
from ecotone_fastapi.modelling.event_storage import AppendCondition, EventFilter, Position

LAST_NUMBER = 2**63 - 1
"""Behind all positions and versions."""


class EventTables(NamedTuple):
    """The names of the tables as SQL has them."""

    events: str
    tags: str
    counter: str
    projections: str


class Phrase(NamedTuple):
    """A piece of SQL with parameters that may be in it. Those that are lists are written out."""

    sql: str
    parameters: Mapping[str, Any]

    def within(self, sql: str) -> TextClause:
        """Return a statement with this phrase in it."""
        lists = [name for name, value in self.parameters.items() if isinstance(value, list) and f":{name}" in sql]
        return text(sql).bindparams(*(bindparam(name, expanding=True) for name in lists))


class Sight(NamedTuple):
    """How far a query could see.

    Args:
        head: The position of the last event that it could see.
        open: Whether any transaction of the server was open: there may be more then.
        ended: The number of the last transaction that had ended.
        number: The number of the last event that was appended, by whomever.
        isolation: How far the query was isolated from others, where it may have been further than usual.
    """

    head: Position | None
    open: bool = False
    ended: int = 0
    number: int = 0
    isolation: str = ""


class _Search(NamedTuple):
    """How events are found that fit a filter.

    Args:
        source: The tables.
        order: Which of them has the order.
        leading: What stands before the order in the index that is to be used.
        wanted: What the index is to find.
        others: What is looked at in each event then.
    """

    source: str
    order: str
    leading: str
    wanted: Sequence[str]
    others: Sequence[str]


class EventQueries:
    """Queries on PostgreSQL, and what the other databases have in common with it.

    Args:
        tables: The names of the tables.
    """

    _transaction = "CAST({0}.transaction_id AS text)"
    _behind = "({0}.transaction_id, {0}.position) > (CAST(CAST(:transaction AS text) AS xid8), :number)"
    _come_behind = _behind
    _decided = "{0}.transaction_id < pg_snapshot_xmin(pg_current_snapshot())"
    _up_to = "({0}.transaction_id, {0}.position) <= (CAST(CAST(:bound_transaction AS text) AS xid8), :bound_number)"
    _committed = "{0}.position <> ALL(CAST(:own AS bigint[]))"
    _both = "({0}) UNION ALL ({1})"
    _newest = ""  # for reads that have to see what is committed now, whatever the transaction has read before
    # Whether anything is open, the last transaction that has ended, the isolation, and the last number.
    _sight = (
        "CASE WHEN pg_snapshot_xmin(pg_current_snapshot()) < pg_snapshot_xmax(pg_current_snapshot()) THEN 1 ELSE 0 END",
        "CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text)",
        "current_setting('transaction_isolation')",
        "(SELECT last_value FROM {0}_position_seq)",
    )

    def __init__(self, tables: EventTables) -> None:
        self._tables = tables
        self._prepared: dict[object, TextClause] = {}
        # A link whose event is gone at home is not there; one whose event is archived is hidden as that is.
        # Each is looked up: for EXISTS, servers would rather read the whole table once, and do so for every page.
        home = f"FROM {tables.events} AS home WHERE home.position = e.origin"
        self._at_home = f"(e.origin IS NULL OR (SELECT true {home}))"
        content = "e.name, e.body, e.headers, e.recorded_at, e.origin"
        self._columns = f"e.stream, e.version, e.position, {self._transaction.format('e')} AS transaction_id, {content}"
        stream = (
            f"SELECT {self._columns}, 1 AS kept FROM {tables.events} AS e"
            " WHERE e.stream = :stream AND e.version > :after"
        )
        self._stream: dict[tuple[bool, bool], TextClause] = {}
        self._homes: dict[bool, TextClause] = {}
        for newest in (False, True):
            locked = self._newest if newest else ""  # on the inside, too: what is around a query does not go for that
            at_home = f"(e.origin IS NULL OR (SELECT true {home}{locked}))"
            shown = f"NOT e.archived AND (e.origin IS NULL OR (SELECT NOT home.archived {home}{locked}))"
            for archived, which in ((True, at_home), (False, shown)):
                self._stream[archived, newest] = text(f"{stream} AND {which} ORDER BY e.version LIMIT :limit{locked}")
            self._homes[newest] = text(
                f"SELECT e.position, e.stream, e.version, {content} FROM {tables.events} AS e"
                f" WHERE e.position IN :positions{locked}"
            ).bindparams(bindparam("positions", expanding=True))
        self._version = text(f"SELECT max(version) FROM {tables.events} WHERE stream = :stream")
        # The names of one category lie side by side in the index, and every stream has an event with the version 1.
        self._names, self._all_names = (
            text(
                f"SELECT stream FROM {tables.events} WHERE category = :category AND version = 1{shown}"
                " AND stream > :after AND stream >= :category AND stream < :behind ORDER BY stream LIMIT :limit"
            )
            for shown in (" AND NOT archived", "")
        )

    async def stream(
        self,
        connection: AsyncConnection,
        stream: str,
        *,
        after: int,
        limit: int | None,
        archived: bool,
        newest: bool = False,
    ) -> Sequence[Any]:
        """Return events of one stream."""
        statement = self._stream[archived, newest]
        parameters = {"stream": stream, "after": after, "limit": LAST_NUMBER if limit is None else limit}
        return (await connection.execute(statement, parameters)).all()

    async def homes(
        self, connection: AsyncConnection, positions: Sequence[int], *, newest: bool = False
    ) -> Mapping[int, Any]:
        """Return what links stand for by its position: that, stream, version and content."""
        return {row[0]: row for row in await connection.execute(self._homes[newest], {"positions": positions})}

    async def version(self, connection: AsyncConnection, stream: str) -> int:
        """Return the version of a stream; 0 when there is none."""
        return (await connection.execute(self._version, {"stream": stream})).scalar() or 0

    async def names(
        self, connection: AsyncConnection, category: str, *, after: str, limit: int, archived: bool
    ) -> Sequence[str]:
        """Return the names of the streams of a category, in order."""
        parameters = {"category": category, "after": after, "behind": f"{category}.", "limit": limit}
        return (await connection.execute(self._all_names if archived else self._names, parameters)).scalars().all()

    async def page(
        self,
        connection: AsyncConnection,
        which: EventFilter,
        *,
        after: Position,
        limit: int,
        own: Sequence[int],
        settled: bool,
        exactly: bool = False,
        bound: Position | None = None,
    ) -> tuple[Sequence[Any], Sight]:
        """Return events of all streams in order, and how far the query could see.

        The last column of an event tells whether it is meant: others are there to be passed.

        Args:
            connection: Where to ask.
            which: Which events are meant.
            after: Those behind this position.
            limit: How many at most.
            own: The positions at which the caller's unit of work has appended.
            settled: Whether everything is meant that is committed.
            exactly: Whether nothing may be returned that is not meant.
            bound: Up to this position, if that is known.
        """
        visible = self._committed if settled else self._decided if bound is None else self._up_to
        exactly = exactly or bool(which.names or which.tags)
        key, filtered = (visible, exactly, *_shape(which)), self._filter(which)
        statement = self._prepared.get(key)
        if statement is None:
            # How far it could see, whatever is meant, has to be told of the same moment: in the same statement.
            page, seen = self._page(which, visible, exactly=exactly), self._seen(visible)
            statement = self._prepared[key] = Phrase("", filtered).within(self._both.format(page, seen))
        parameters = {**filtered, **self._place(after), **self._own(own), **self._bound(bound), "limit": limit}
        rows: Sequence[Any] = (await connection.execute(statement, parameters)).all()
        # How far it could see is the last row on every database, but nobody has promised that.
        if rows[-1][0] is not None:
            rows = sorted(rows, key=lambda row: row[0] is None)
        return rows[:-1], _sight(rows[-1])

    async def count(
        self,
        connection: AsyncConnection,
        which: EventFilter,
        *,
        after: Position,
        own: Sequence[int],
        bound: Position | None,
    ) -> int:
        """Return how many events there are behind a position."""
        visible = self._decided if bound is None else self._up_to
        key, filtered = ("count", visible, *_shape(which)), self._filter(which)
        statement = self._prepared.get(key)
        if statement is None:
            found = self._search(which)
            wanted = [self._behind, visible, *found.wanted, *found.others]
            statement = self._prepared[key] = Phrase("", filtered).within(
                f"SELECT count(*) FROM {found.source} WHERE {_all_of(wanted, found.order)}"
            )
        parameters = {**filtered, **self._place(after), **self._own(own), **self._bound(bound)}
        return int((await connection.execute(statement, parameters)).scalar_one())

    async def sight(self, connection: AsyncConnection, own: Sequence[int], bound: Position | None = None) -> Sight:
        """Return how far queries can see."""
        visible = self._decided if bound is None else self._up_to
        statement = self._prepared.get(("sight", visible))
        if statement is None:
            statement = self._prepared["sight", visible] = text(self._seen(visible))
        parameters = {**self._own(own), **self._bound(bound)}
        return _sight((await connection.execute(statement, parameters)).one())

    def _page(self, which: EventFilter, visible: str, *, exactly: bool) -> str:
        """Return a statement for events in order, each with whether it is meant.

        Without names and tags nearly every event that the index leads to is meant. To be told so, and to be left to
        follow it, is better for servers than to guess how many are: they might rather sort all of them.
        """
        found = self._search(which)
        meant, wanted = found.others, [self._behind, visible, *found.wanted]
        kept = f"CASE WHEN {_all_of(meant, found.order)} THEN 1 ELSE 0 END"
        if exactly:
            kept, wanted = "1", [*wanted, *meant]
        return (
            f"SELECT {self._columns}, {kept} AS kept FROM {found.source} WHERE {_all_of(wanted, found.order)}"
            f" ORDER BY {found.leading}{found.order}.transaction_id, {found.order}.position LIMIT :limit"
        )

    def _seen(self, visible: str) -> str:
        """Return a statement for how far can be seen: a row that is like an event, but has no stream."""
        anything_open, ended, isolation, number = (one.format(self._tables.events) for one in self._sight)
        return (
            f"SELECT NULL, {anything_open}, head.position, head.transaction_id, {ended}, NULL, {isolation}, NULL,"
            f" {number}, 0 FROM (SELECT 1 AS one) AS one LEFT JOIN"
            f" (SELECT e.position, {self._transaction.format('e')} AS transaction_id FROM {self._tables.events} AS e"
            f" WHERE {visible.format('e')} ORDER BY e.transaction_id DESC, e.position DESC LIMIT 1) AS head ON 1 = 1"
        )

    def excluded(self, condition: AppendCondition, first: int = LAST_NUMBER) -> Phrase:
        """Return SQL that is true when an event has come, committed or our own, that a condition excludes.

        Args:
            condition: The condition.
            first: The first position that was appended at under this condition, where it is checked after that.
        """
        phrases, parameters = ["1 = 0"], {**self._place(condition.after), "first": first}
        unknown = []
        if condition.known:
            unknown, parameters["known"] = ["{0}.position NOT IN :known"], sorted(condition.known)
        for number, which in enumerate(condition.filters):
            prefix = f"f{number}_"
            found = self._search(which, prefix=prefix, links=False)
            wanted = _all_of([self._come_behind, *unknown, *found.wanted, *found.others], found.order)
            phrases.append(f"EXISTS (SELECT 1 FROM {found.source} WHERE {wanted})")
            parameters |= self._filter(which, prefix)
        return Phrase(f"({' OR '.join(phrases)})", parameters)

    def _search(self, which: EventFilter, *, prefix: str = "", links: bool = True) -> _Search:
        events, tags = self._tables.events, self._tables.tags
        source, order, leading = f"{events} AS e", "e", ""
        wanted: list[str] = []
        # Links are found only where they are looked for.
        others = [self._at_home if links and (which.categories or which.streams) else "e.origin IS NULL"]
        if which.names:
            others.append(f"e.name IN :{prefix}names")
        numbers = range(len(which.tags))
        if which.tags and "e.origin IS NULL" in others:
            # One tag leads to the events, in their order; the others are looked up.
            source, order = f"{tags} AS t JOIN {events} AS e ON e.position = t.position", "t"
            leading, condition = self._only("t.tag", f"{prefix}tag0")
            wanted, numbers = [condition], numbers[1:]
        others += [
            f"EXISTS (SELECT 1 FROM {tags} AS other WHERE other.position = coalesce(e.origin, e.position)"
            f" AND other.tag = :{prefix}tag{number})"
            for number in numbers
        ]
        if len(which.categories) == 1 and not which.streams and not wanted:
            leading, condition = self._only("e.category", f"{prefix}category")
            wanted.append(condition)
        elif which.categories or which.streams:
            categories, streams = f"e.category IN :{prefix}categories", f"e.stream IN :{prefix}streams"
            places = ([categories] if which.categories else []) + ([streams] if which.streams else [])
            wanted.append(f"({' OR '.join(places)})")
        return _Search(source, order, leading, wanted, others)

    def _only(self, column: str, parameter: str) -> tuple[str, str]:
        """Return what has to be said about the order, and the condition, to find one value in an index."""
        return "", f"{column} = :{parameter}"

    def _filter(self, which: EventFilter, prefix: str = "") -> dict[str, Any]:
        parameters: dict[str, Any] = {
            f"{prefix}tag{number}": indexed(tag) for number, tag in enumerate(sorted(which.tags))
        }
        for name in ("categories", "streams", "names"):
            if values := getattr(which, name):
                parameters[prefix + name] = sorted(values)
        if len(which.categories) == 1:
            parameters[f"{prefix}category"] = next(iter(which.categories))
        return parameters

    def _place(self, position: Position) -> dict[str, Any]:
        return {"transaction": str(position.transaction), "number": position.number}

    def _bound(self, bound: Position | None) -> dict[str, Any]:
        return {} if bound is None else {f"bound_{name}": value for name, value in self._place(bound).items()}

    def _own(self, own: Sequence[int]) -> dict[str, Any]:
        return {"own": list(own)}


class MariaDBEventQueries(EventQueries):
    """Queries on MariaDB and MySQL: what has no number yet is not committed."""

    _transaction = "{0}.transaction_id"
    # The comparison of pairs would not find its place in the index.
    _behind = "({0}.transaction_id > :transaction OR ({0}.transaction_id = :transaction AND {0}.position > :number))"
    _come_behind = f"({{0}}.transaction_id = 0 AND {{0}}.position < :first OR {{0}}.transaction_id > 0 AND {_behind})"
    _decided = _committed = "{0}.transaction_id > 0"
    _newest = " LOCK IN SHARE MODE"
    _sight = ("0", "NULL", "NULL", "0")

    def _only(self, column: str, parameter: str) -> tuple[str, str]:
        """Return it in a way in which the rest of the index is used, too."""
        return f"{column}, ", f"{column} >= :{parameter} AND {column} <= :{parameter}"

    def _place(self, position: Position) -> dict[str, Any]:
        return {"transaction": position.transaction, "number": position.number}

    def _own(self, own: Sequence[int]) -> dict[str, Any]:
        return {}


class SQLiteEventQueries(EventQueries):
    """Queries on SQLite: what the one writer has appended is behind everything else."""

    _both = "SELECT * FROM ({0}) UNION ALL SELECT * FROM ({1})"

    _transaction = "{0}.transaction_id"
    _behind = "{0}.position > :number"
    _come_behind = "{0}.transaction_id = 0 AND {0}.position > :number"
    _decided = _committed = "{0}.transaction_id = 0 AND {0}.position < :own"
    _sight = ("0", "NULL", "NULL", "0")

    def _place(self, position: Position) -> dict[str, Any]:
        return {"number": position.number}

    def _own(self, own: Sequence[int]) -> dict[str, Any]:
        return {"own": own[0] if own else LAST_NUMBER}


def _sight(seen: Any) -> Sight:
    _, anything_open, number, transaction, ended, _, isolation, _, last, _ = seen
    return Sight(
        Position(int(transaction), number) if number is not None else None,
        bool(anything_open),
        int(ended or 0) - 1,
        last,
        isolation or "",
    )


def _all_of(conditions: Iterable[str], order: str) -> str:
    return " AND ".join(condition.format(order) for condition in conditions)


def _shape(which: EventFilter) -> tuple[int, bool, bool, int]:
    """What kinds of conditions there are: the statement depends on nothing else."""
    return min(len(which.categories), 2), bool(which.streams), bool(which.names), len(which.tags)


_QUERIES = {"postgresql": EventQueries, "mysql": MariaDBEventQueries, "sqlite": SQLiteEventQueries}


def queries_for(tables: EventTables, dialect: str) -> EventQueries:
    """Return the queries for a database."""
    return _QUERIES[dialect](tables)
