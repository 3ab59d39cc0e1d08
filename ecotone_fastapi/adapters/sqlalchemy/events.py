"""Events in tables: appended in the unit of work of the calling scope, read in an order in which nothing is missed."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.event_horizon import horizon_for
from ecotone_fastapi.adapters.sqlalchemy.event_log import Batch, NewRow, Pending
from ecotone_fastapi.adapters.sqlalchemy.event_queries import EventTables, queries_for
from ecotone_fastapi.adapters.sqlalchemy.plain_event_log import log_for
from ecotone_fastapi.adapters.sqlalchemy.tables import indexed
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.adapters.sqlalchemy.units import Statements, Unit
from ecotone_fastapi.adapters.sqlalchemy.wakeup import Wakeup
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.modelling.event_storage import (
    EVERYTHING,
    START,
    AppendCondition,
    EventFilter,
    Expected,
    Horizon,
    NewEvent,
    Page,
    Position,
    StoredEvent,
)

T = TypeVar("T")

_BELL = "ecotone_event"
_MAINTENANCE = 3600.0  # seconds


class SqlEvents:
    """Keeps events in tables.

    Args:
        tables: Their names as SQL has them.
        transactions: Where statements run.
        prepare: Sees to it that the tables are there.
        clock: Gives the clock that tells how far a test has travelled; all else is told by the server.
        wakeup: Tells readers, here and elsewhere, that something was appended.
    """

    def __init__(
        self,
        tables: EventTables,
        transactions: Transactions,
        prepare: Callable[[], Awaitable[None]],
        clock: Callable[[], Clock],
        wakeup: Wakeup,
    ) -> None:
        self._transactions = transactions
        self._prepare = prepare
        self._clock = clock
        self._wakeup = wakeup
        self._queries = queries_for(tables, transactions.dialect.name)
        self._log = log_for(tables, self._queries, transactions.dialect)
        self._horizon = horizon_for(tables, self._queries, transactions.dialect)
        self._pending: WeakKeyDictionary[Unit, Pending] = WeakKeyDictionary()
        self._bell: asyncio.Event | None = None
        self._heard = 0

    # ------------------------------------------------------------------------------------------------------- appending

    async def append(
        self,
        stream: str,
        events: Sequence[NewEvent],
        *,
        expected: int | Expected,
        condition: AppendCondition | None = None,
    ) -> Sequence[StoredEvent]:
        """Append events to a stream, with the unit of work of the calling task's scope, if any.

        Raises:
            ConcurrencyError: The stream is not as expected, or an event has come that the condition excludes.
            ConfigurationError: A condition cannot be checked in a transaction of this isolation level.
            ChannelError: The database cannot be reached.
        """
        if not events:
            return ()
        rows = [
            NewRow(indexed(id_), name, body, headers, tuple(dict.fromkeys(map(indexed, tags))) if tags else ())
            for id_, name, body, headers, tags in events
        ]
        tagged = any(row.tags for row in rows)
        batch = Batch(stream, rows, expected, condition, self._offset, tagged)
        single = len(rows) == 1 and not tagged and condition is None
        added, number = await self._change(
            lambda connection, pending: self._log.append(connection, batch, pending),
            f"appending to the stream {stream!r}",
            several=not single,
        )
        moment = self._transactions.dialect.read_moment
        return [
            StoredEvent(
                stream,
                version,
                None if self._log.numbers and number is None else Position(number or transaction, position),
                event.name,
                event.body,
                event.headers_text,
                moment(recorded_at),
            )
            for event, (version, position, transaction, recorded_at) in zip(events, added, strict=True)
        ]

    async def link(self, stream: str, events: Sequence[StoredEvent]) -> int:
        """Let events be read in another stream, too; return how many links were added.

        Raises:
            ConcurrencyError: The stream is archived, or somebody else has just added one of them.
            ChannelError: The database cannot be reached.
        """
        homes = [event.origin or (event.stream, event.version) for event in events]
        linked, _ = await self._change(
            lambda connection, pending: self._log.link(connection, stream, homes, self._offset, pending),
            f"linking events to the stream {stream!r}",
        )
        return linked

    async def archive(self, stream: str) -> bool:
        """Hide a stream; return whether there was one."""
        archived, _ = await self._change(
            lambda connection, pending: self._log.archive(connection, stream), f"archiving the stream {stream!r}"
        )
        return archived

    async def delete(self, stream: str) -> int:
        """Delete all events of a stream; return how many there were."""
        deleted, _ = await self._change(
            lambda connection, pending: self._log.delete(connection, stream), f"deleting the stream {stream!r}"
        )
        return deleted

    async def _change(
        self,
        work: Callable[[AsyncConnection, Pending], Awaitable[T]],
        doing: str,
        *,
        several: bool = True,
    ) -> tuple[T, int | None]:
        """Change something in the unit of work, or in a transaction of its own, whose number is known at once."""
        await self._prepare()
        unit = self._transactions.unit()
        if unit is not None:
            pending = self._pending_of(unit)
            return await self._transactions.join(lambda connection: work(connection, pending), doing), None

        async def work_alone(connection: AsyncConnection) -> tuple[T, int | None]:
            alone = Pending()
            return await work(connection, alone), await self._log.number(connection, alone)

        outcome = await self._transactions.run(work_alone, doing, several=several or self._log.numbers)
        self._ring()
        return outcome

    def _pending_of(self, unit: Unit) -> Pending:
        pending = self._pending.get(unit)
        if pending is None:
            pending = self._pending[unit] = Pending()
            unit.when_over(self._ring)  # also when it fails: what is behind it can be seen now
            if self._log.numbers:
                unit.before_commit(partial(self._number, pending), "numbering events", lambda numbered: None)
        return pending

    async def _number(self, pending: Pending, connection: AsyncConnection) -> bool:
        return await self._log.number(connection, pending) is not None

    # --------------------------------------------------------------------------------------------------------- reading

    async def read(
        self, stream: str, *, after: int = 0, limit: int | None = None, archived: bool = False, newest: bool = False
    ) -> Sequence[StoredEvent]:
        """Return events of one stream, those of the open unit of work included.

        Raises:
            ChannelError: The database cannot be reached.
        """

        async def select(connection: AsyncConnection) -> Sequence[StoredEvent]:
            rows = await self._queries.stream(
                connection, stream, after=after, limit=limit, archived=archived, newest=newest
            )
            return await self._stored(connection, rows, newest=newest)

        return await self._read(select, f"reading the stream {stream!r}")

    async def read_all(
        self, *, after: Position, limit: int, which: EventFilter = EVERYTHING, settled: bool = False
    ) -> Page:
        """Return events of all streams, up to the first one that an open transaction may still append.

        Raises:
            ChannelError: The database cannot be reached.
        """

        async def select(connection: AsyncConnection) -> Page:
            start, exactly, bound = after, False, None
            while True:
                ask = partial(
                    self._queries.page, connection, which, after=start, limit=limit, own=self._own(), exactly=exactly
                )
                rows, sight = await ask(settled=settled, bound=bound)
                if len(rows) < limit and not settled and bound is None:
                    bound = await self._horizon.bound(connection, sight)
                    if bound is not None:
                        rows, sight = await ask(settled=False, bound=bound)
                events = await self._stored(connection, rows)
                if len(rows) < limit:
                    return Page(events, max(after, sight.head or START), more=False)
                start, exactly = Position(int(rows[-1][3]), rows[-1][2]), True
                if events:
                    return Page(events, start, more=True)

        return await self._read(select, "reading all events")

    async def count(self, *, after: Position, which: EventFilter = EVERYTHING) -> int:
        """Return how many events of all streams there are behind a position.

        Raises:
            ChannelError: The database cannot be reached.
        """

        async def select(connection: AsyncConnection) -> int:
            own = self._own()
            bound = await self._horizon.bound(connection, await self._queries.sight(connection, own))
            return await self._queries.count(connection, which, after=after, own=own, bound=bound)

        return await self._read(select, "counting events")

    async def version(self, stream: str) -> int:
        """Return the version of a stream; 0 without events."""
        return await self._read(
            lambda connection: self._queries.version(connection, stream), f"looking at the stream {stream!r}"
        )

    async def streams(
        self, category: str, *, after: str = "", limit: int = 1000, archived: bool = False
    ) -> Sequence[str]:
        """Return the names of the streams of a category, in order."""
        return await self._read(
            lambda connection: self._queries.names(connection, category, after=after, limit=limit, archived=archived),
            f"looking for streams of the category {category!r}",
        )

    async def _read(self, statements: Statements[T], doing: str) -> T:
        await self._prepare()
        return await self._transactions.read(statements, doing)

    def _own(self) -> Sequence[int]:
        unit = self._transactions.unit()
        pending = self._pending.get(unit) if unit is not None else None
        return pending.positions if pending is not None else ()

    async def _stored(
        self, connection: AsyncConnection, rows: Sequence[Any], *, newest: bool = False
    ) -> Sequence[StoredEvent]:
        moment, unnumbered = self._transactions.dialect.read_moment, self._log.numbers
        events: list[StoredEvent] = []
        links: dict[int, int] = {}
        for stream, version, number, transaction, name, body, headers, recorded_at, origin, kept in rows:
            if kept:
                if origin is not None:
                    links[len(events)] = origin
                position = None if unnumbered and not transaction else Position(int(transaction), number)
                events.append(StoredEvent(stream, version, position, name, body, headers, moment(recorded_at)))
        if not links:
            return events
        homes = await self._queries.homes(connection, list(links.values()), newest=newest)
        for place, origin in links.items():
            if origin in homes:
                _, home, version, name, body, headers, recorded_at, _ = homes[origin]
                link = events[place]
                events[place] = StoredEvent(
                    link.stream, link.version, link.position, name, body, headers, moment(recorded_at), (home, version)
                )
        # What is missing was deleted between two statements.
        return [event for place, event in enumerate(events) if place not in links or event.origin is not None]

    # --------------------------------------------------------------------------------------------------------- waiting

    async def wait(self, heard: int, timeout: float) -> int:
        """Return when something was appended since `heard` was told: here or, on PostgreSQL, in another process."""
        bell = self._listen()
        if self._heard == heard:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await bell.wait()
            self._listen()
        return self._heard

    def _listen(self) -> asyncio.Event:
        # A bell rings once; then, and when an application begins anew, there is another one.
        bell = self._wakeup.bell(_BELL)
        if bell is not self._bell:
            self._bell = bell
            self._heard += 1
        return bell

    def _ring(self) -> None:
        self._wakeup.ring(_BELL)

    # ---------------------------------------------------------------------------------------------------- its condition

    async def horizon(self) -> Horizon:
        """Tell how far readers of all events can see, and which session of the server keeps them from more.

        Raises:
            ChannelError: The database cannot be reached.
        """
        return await self._read(
            lambda connection: self._horizon.look(connection, self._own(), self._offset),
            "looking how far readers can see",
        )

    async def check_isolation(self) -> None:
        """Make sure that events can be appended in transactions of the application's sessions.

        Raises:
            ConfigurationError: On PostgreSQL they are isolated further than READ COMMITTED.
            ChannelError: The database cannot be reached.
        """
        if self._transactions.dialect.name != "postgresql":
            return
        with self._transactions.translated("checking the isolation of transactions"):
            async with self._transactions.lone_session() as session:
                await self._log.check_isolation(await session.connection())

    async def check_restored(self) -> None:
        """Make sure that the database counts transactions on from where the events were written.

        Raises:
            ConfigurationError: It was restored elsewhere, and readers would miss what is appended from now on.
            ChannelError: The database cannot be reached.
        """
        await self._read(self._horizon.check, "checking the order of the events")

    async def reseal(self, positions: Iterable[Position] = ()) -> Mapping[Position, Position]:
        """Let the database count on from the events that it has: after it was restored on another server.

        PostgreSQL orders events by the transactions that have appended them, and counts these anew on every server. As
        long as events have higher numbers than the server has reached, readers take what is appended for old, and never
        see it: `check_restored` finds that out. This gives all events low numbers, in the same order, and projections
        their place among them; appenders are kept out meanwhile. Best done before the application is started. Where
        nothing needs to be done, nothing is.

        Args:
            positions: How far readers have come that are no projections, but keep their positions themselves.

        Returns:
            For each of these positions, what it is now. Called in a unit of work, it can be written down there.

        Raises:
            ChannelError: The database cannot be reached.

        Example:
            >>> async def count_on(events: SqlEvents) -> None:
            ...     await events.reseal()
        """
        kept = list(positions)
        await self._prepare()
        return await self._transactions.join(
            lambda connection: self._horizon.reseal(connection, kept),
            "giving events new numbers",
            several=True,
            patience=_MAINTENANCE,
        )

    @property
    def _offset(self) -> Any:
        return self._transactions.dialect.span(self._clock().offset.total_seconds())
