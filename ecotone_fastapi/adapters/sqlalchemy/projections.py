"""What is kept of projections in two tables: a row for each version, and one for each partition of it."""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ecotone_fastapi.adapters.sqlalchemy.access import Access, affecting, selecting
from ecotone_fastapi.adapters.sqlalchemy.transactions import Statements
from ecotone_fastapi.core.clock import Clock
from ecotone_fastapi.modelling.event_storage import Position
from ecotone_fastapi.modelling.projection_store import (
    Condition,
    Halt,
    PartitionCounts,
    PartitionRecord,
    ProjectionRecord,
    lost,
)

_ONE = "name = :name AND version = :version"
_OF_ONE = "projection = :name AND version = :version"
_CHANGED = "revision shape status position state silent_until build_round by_hand done total began_at halt"
_PARTITION = "stream, position, wanted, state, silent_until, build_round, halt"


class SqlProjections:
    """Keeps in tables what is known of projections.

    Args:
        versions: The name of the table of versions as SQL has it.
        partitions: The name of the table of partitions.
        access: Runs statements.
        clock: Gives the clock that tells how far a test has travelled; all else is told by the server.
    """

    def __init__(
        self,
        versions: str,
        partitions: str,
        access: Access,
        clock: Callable[[], Clock],
    ) -> None:
        self._access = access
        self._clock = clock
        dialect = access.dialect
        now, self._mysql = dialect.now, dialect.name == "mysql"
        self._postgresql = dialect.name == "postgresql"
        changed = _CHANGED.split()
        left = f"CASE WHEN leased_until IS NULL THEN 0 ELSE {dialect.seconds_until('leased_until')} END"
        columns = f"name, version, {', '.join(changed)}, lease_token, runner, {left} AS leased"
        select = f"SELECT {columns} FROM {versions}"
        for_update, for_share = "" if dialect.one_writer else " FOR UPDATE", " FOR SHARE"
        if dialect.one_writer or self._mysql:
            for_share = " LOCK IN SHARE MODE" if self._mysql else ""
        skipping = "" if dialect.one_writer else " FOR UPDATE SKIP LOCKED"

        self._all = text(f"{select} ORDER BY name, version")
        self._named = text(f"{select} WHERE name = :name ORDER BY version")
        self._lock_shared = text(f"{select} WHERE name = :name ORDER BY version{for_share}")
        self._lock = text(f"{select} WHERE name = :name ORDER BY version{for_update}")
        # What is given to LAST_INSERT_ID comes back with the answer, and is 0 when a row was inserted.
        there = "ON DUPLICATE KEY UPDATE version = LAST_INSERT_ID(version)" if self._mysql else "ON CONFLICT DO NOTHING"
        self._add = text(
            f"INSERT INTO {versions} (name, version, {', '.join(changed)}, lease_token) VALUES (:name, :version, "
            f"{', '.join(f':{column}' for column in changed)}, 0) {there}"
        ).execution_options(preserve_rowcount=True)
        self._change = text(
            f"UPDATE {versions} SET {', '.join(f'{column} = :{column}' for column in changed)} WHERE {_ONE}"
        )
        mine = "lease_token = :token"
        self._save = text(
            f"UPDATE {versions} SET position = :position, state = :state, done = :done, halt = :halt "
            f"WHERE {_ONE} AND {mine} AND position = :before AND status <> '{Condition.RETIRED.value}'"
        )
        until = dialect.after(":seconds")
        lease = f"UPDATE {versions} SET lease_token = lease_token + 1, runner = :runner, leased_until = {until}"
        self._lease_forced = text(f"{lease} WHERE {_ONE}")
        self._lease = text(f"{lease} WHERE {_ONE} AND (leased_until IS NULL OR leased_until <= {now})")
        self._token = text(f"SELECT lease_token FROM {versions} WHERE {_ONE}")
        self._renew = text(f"UPDATE {versions} SET leased_until = {until} WHERE {_ONE} AND {mine}")
        self._release = text(f"UPDATE {versions} SET leased_until = NULL, runner = NULL WHERE {_ONE} AND {mine}")
        self._halt = text(f"UPDATE {versions} SET halt = :halt WHERE {_ONE} AND {mine}")
        self._remove = [
            text(f"DELETE FROM {partitions} WHERE {_OF_ONE}"),
            text(f"DELETE FROM {versions} WHERE {_ONE}"),
        ]

        insert = (
            f"INSERT INTO {partitions} (projection, version, stream, position, wanted, silent_until, build_round, "
            "due_at) VALUES (:name, :version, :stream, 0, :wanted, 0, :build_round, {due_at})"
        )
        if self._mysql:
            # Assigned from left to right: due_at is decided by what was wanted before.
            noted = (
                "ON DUPLICATE KEY UPDATE "
                "due_at = IF(wanted < VALUES(wanted) AND halt IS NULL, VALUES(due_at), due_at), "
                "wanted = GREATEST(wanted, VALUES(wanted))"
            )
            there = "ON DUPLICATE KEY UPDATE position = position"
        else:
            noted = (
                "ON CONFLICT (projection, version, stream) DO UPDATE SET wanted = excluded.wanted, due_at = "
                f"CASE WHEN {partitions}.halt IS NULL THEN excluded.due_at ELSE {partitions}.due_at END "
                f"WHERE {partitions}.wanted < excluded.wanted"
            )
        self._note = text(f"{insert.format(due_at=now)} {noted}")
        self._new = text(f"{insert.format(due_at='NULL')} {there}")
        chosen = f"SELECT {_PARTITION} FROM {partitions} WHERE {_OF_ONE}"
        self._claim = text(f"{chosen} AND due_at <= {now} ORDER BY due_at LIMIT :limit{skipping}")
        self._hold = text(f"{chosen} AND stream = :stream{for_update}")
        self._partition = text(f"{chosen} AND stream = :stream")
        self._partitions = text(f"{chosen} AND stream > :after ORDER BY stream LIMIT :limit")
        self._halted = text(f"{chosen} AND stream > :after AND halt IS NOT NULL ORDER BY stream LIMIT :limit")
        keep = (
            f"UPDATE {partitions} SET position = :position, wanted = :wanted, state = :state, "
            "silent_until = :silent_until, build_round = :build_round, halt = :halt, due_at = {due_at} "
            f"WHERE {_OF_ONE} AND stream = :stream"
        )
        self._keep = {behind: text(keep.format(due_at=now if behind else "NULL")) for behind in (True, False)}
        self._halt_partition = text(
            f"UPDATE {partitions} SET halt = :halt, due_at = {dialect.after(':delay')} "
            f"WHERE {_OF_ONE} AND stream = :stream AND position = :position"
        )
        call = f"UPDATE {partitions} SET due_at = {now} WHERE {_OF_ONE}"
        self._call = {
            (one, halted): text(f"{call}{' AND stream = :stream' * one}{' AND halt IS NOT NULL' * halted}")
            for one in (True, False)
            for halted in (True, False)
        }
        self._accept = text(f"UPDATE {partitions} SET build_round = :build_round WHERE {_OF_ONE}")
        self._count = text(
            "SELECT count(*), coalesce(sum(CASE WHEN wanted > position THEN 1 ELSE 0 END), 0), "
            "coalesce(sum(CASE WHEN halt IS NOT NULL THEN 1 ELSE 0 END), 0), "
            "coalesce(sum(CASE WHEN build_round = :build_round THEN 1 ELSE 0 END), 0), "
            "coalesce(sum(CASE WHEN wanted > position THEN wanted - position ELSE 0 END), 0) "
            f"FROM {partitions} WHERE {_OF_ONE}"
        )
        self._due_in = text(f"SELECT min({dialect.seconds_until('due_at')}) FROM {partitions} WHERE {_OF_ONE}")

    # ------------------------------------------------------------------------------------------------------- versions

    async def versions(self, name: str | None = None) -> Sequence[ProjectionRecord]:
        """Return the versions of a projection, or of all, in the order of names and numbers."""
        statement = self._all if name is None else self._named
        rows = await self._read(statement, {} if name is None else {"name": name}, "looking for projections")
        return [self._record(row) for row in rows]

    async def add(self, record: ProjectionRecord) -> bool:
        """Insert a version, unless it is there."""
        values = self._values(self._add, self._written(record))

        async def insert(connection: AsyncConnection) -> bool:
            result = await connection.execute(self._add, values)
            return not result.lastrowid if self._mysql else result.rowcount == 1

        return await self._access.join(insert, "beginning a projection")

    async def lock(self, name: str, *, shared: bool = False) -> Sequence[ProjectionRecord]:
        """Lock the rows of all versions of a projection until the unit of work ends, and return them."""
        statement = self._lock_shared if shared else self._lock
        rows = await self._access.join(self._selecting(statement, {"name": name}), "locking a projection")
        return [self._record(row) for row in rows]

    async def change(self, record: ProjectionRecord) -> None:
        """Write down everything of a version but its lease."""
        await self._access.join(self._affecting(self._change, self._written(record)), "changing a projection")

    async def save(self, before: ProjectionRecord, after: ProjectionRecord) -> None:
        """Write down how far it has come, if it is still where it was, and lent under the same token.

        Raises:
            LeaseLostError: It is not.
        """
        values = {
            **_key(before.name, before.version),
            "token": before.token,
            "before": str(before.position),
            "position": str(after.position),
            "state": after.state,
            "done": after.done,
            "halt": _halt_text(after.halt),
        }
        if not await self._access.join(self._affecting(self._save, values), "saving a checkpoint"):
            found = [one for one in await self.versions(before.name) if one.version == before.version]
            raise lost(before, found[0] if found else None)

    async def lease(self, name: str, version: int, runner: str, seconds: float, *, force: bool = False) -> int | None:
        """Lend a version that is free to a runner; return the new token."""
        statement = self._lease_forced if force else self._lease
        key = _key(name, version)
        values = {**key, "runner": runner, "seconds": self._access.dialect.span(seconds)}

        async def lend(connection: AsyncConnection) -> int | None:
            if not (await connection.execute(statement, self._values(statement, values))).rowcount:
                return None
            return int((await connection.execute(self._token, key)).scalar_one())

        return await self._access.run(lend, "lending a projection", several=True)

    async def renew(self, name: str, version: int, token: int, seconds: float) -> bool:
        """Lend it for longer; return whether the token is still the newest."""
        values = {**_key(name, version), "token": token, "seconds": self._access.dialect.span(seconds)}
        return bool(await self._access.run(self._affecting(self._renew, values), "renewing the lease of a projection"))

    async def release(self, name: str, version: int, token: int) -> None:
        """Give it back."""
        values = {**_key(name, version), "token": token}
        await self._access.run(self._affecting(self._release, values), "giving a projection back")

    async def halt(self, name: str, version: int, token: int, halt: Halt) -> None:
        """Write down that it stands still, if the token is still the newest."""
        values = {**_key(name, version), "token": token, "halt": _halt_text(halt)}
        await self._access.run(self._affecting(self._halt, values), "noting that a projection stands still")

    async def remove(self, name: str, version: int) -> None:
        """Delete a version with all of its partitions."""

        async def delete(connection: AsyncConnection) -> None:
            for statement in self._remove:
                await connection.execute(statement, _key(name, version))

        await self._access.join(delete, "deleting a projection", several=True)

    # ----------------------------------------------------------------------------------------------------- partitions

    async def note(self, record: ProjectionRecord, wanted: Mapping[str, int]) -> None:
        """Write down how far streams have come."""
        values = [
            self._values(
                self._note,
                {
                    **_key(record.name, record.version),
                    "stream": stream,
                    "wanted": wanted[stream],
                    "build_round": record.round,
                },
            )
            for stream in sorted(wanted)
        ]
        if values:
            await self._access.join(_all(self._note, values), "noting the streams of a projection", several=True)

    async def claim(self, name: str, version: int, *, limit: int, seconds: float) -> Sequence[PartitionRecord]:
        """Lock rows of partitions that have something to do, but for those that are locked."""
        values = self._values(self._claim, {**_key(name, version), "limit": limit})

        async def select(connection: AsyncConnection) -> Sequence[Row[Any]]:
            if self._postgresql:
                # A process that is frozen answers no more, and its connection does not break.
                milliseconds = max(1000, round(seconds * 1000))
                await connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
            return (await connection.execute(self._claim, values)).all()

        return [_partition(row) for row in await self._access.join(select, "claiming partitions", several=True)]

    async def hold(self, record: ProjectionRecord, stream: str) -> PartitionRecord:
        """Lock the row of one partition, a new one if need be."""
        values = {**_key(record.name, record.version), "stream": stream}

        async def select(connection: AsyncConnection) -> Row[Any]:
            found = (await connection.execute(self._hold, values)).first()
            if found is None:
                await connection.execute(self._new, {**values, "wanted": 0, "build_round": record.round})
                found = (await connection.execute(self._hold, values)).one()
            return found

        return _partition(await self._access.join(select, "holding a partition", several=True))

    async def keep(self, name: str, version: int, partitions: Sequence[PartitionRecord]) -> None:
        """Write down partitions that were claimed or held."""
        for behind, statement in self._keep.items():
            values = [
                self._values(
                    statement,
                    {
                        **_key(name, version),
                        "stream": one.stream,
                        "position": one.position,
                        "wanted": one.wanted,
                        "state": one.state,
                        "silent_until": one.silent_until,
                        "build_round": one.round,
                        "halt": _halt_text(one.halt),
                    },
                )
                for one in partitions
                if (one.wanted > one.position) is behind
            ]
            if values:
                await self._access.join(_all(statement, values), "saving partitions", several=True)

    async def halt_partition(self, name: str, version: int, stream: str, halt: Halt, *, position: int) -> None:
        """Write down that a partition stands still, if it has come no further meanwhile."""
        delay = max(0.0, (halt.retry_at - self._clock().now()).total_seconds())
        values = {
            **_key(name, version),
            "stream": stream,
            "position": position,
            "halt": _halt_text(halt),
            "delay": self._access.dialect.delay(delay),
        }
        await self._access.run(self._affecting(self._halt_partition, values), "noting that a partition stands still")

    async def call(self, name: str, version: int, stream: str | None = None, *, halted: bool = False) -> int:
        """Let a partition, or all, be claimed from now on."""
        statement = self._call[stream is not None, halted]
        values = {**_key(name, version), **({} if stream is None else {"stream": stream})}
        return await self._access.join(self._affecting(statement, values), "calling partitions")

    async def accept(self, name: str, version: int, round: int) -> None:  # noqa: A002 - of the protocol
        """Let all partitions be of this round, as they are."""
        values = {**_key(name, version), "build_round": round}
        await self._access.join(self._affecting(self._accept, values), "accepting partitions")

    async def partitions(
        self, name: str, version: int, *, after: str = "", limit: int = 100, halted: bool = False
    ) -> Sequence[PartitionRecord]:
        """Return partitions in the order of their streams."""
        values = {**_key(name, version), "after": after, "limit": limit}
        rows = await self._read(self._halted if halted else self._partitions, values, "looking for partitions")
        return [_partition(row) for row in rows]

    async def partition(self, name: str, version: int, stream: str) -> PartitionRecord | None:
        """Return one partition."""
        values = {**_key(name, version), "stream": stream}
        for row in await self._read(self._partition, values, "looking for a partition"):
            return _partition(row)
        return None

    async def count(self, name: str, version: int, round: int) -> PartitionCounts:  # noqa: A002 - of the protocol
        """Count partitions."""
        [row] = await self._read(self._count, {**_key(name, version), "build_round": round}, "counting partitions")
        return PartitionCounts(*(int(value) for value in row))

    async def due_in(self, name: str, version: int) -> float | None:
        """Return after how many seconds something can be claimed; `None` when nothing is left."""
        [row] = await self._read(self._due_in, _key(name, version), "looking for partitions")
        return None if row[0] is None else max(0.0, float(row[0]))

    # ------------------------------------------------------------------------------------------------------ in detail

    def _record(self, row: Row[Any]) -> ProjectionRecord:
        began_at = row.began_at
        return ProjectionRecord(
            name=row.name,
            version=row.version,
            shape=row.shape,
            revision=row.revision,
            condition=Condition(row.status),
            position=Position.parse(row.position),
            state=row.state,
            silent_until=Position.parse(row.silent_until),
            round=row.build_round,
            by_hand=bool(row.by_hand),
            done=row.done,
            total=row.total,
            began_at=None if began_at is None else self._access.dialect.read_moment(began_at),
            halt=None if row.halt is None else Halt.from_json(row.halt),
            token=row.lease_token,
            runner=row.runner,
            leased=max(0.0, float(row.leased)),
        )

    def _written(self, record: ProjectionRecord) -> dict[str, Any]:
        began_at = record.began_at
        return {
            **_key(record.name, record.version),
            "revision": record.revision,
            "shape": record.shape,
            "status": record.condition.value,
            "position": str(record.position),
            "state": record.state,
            "silent_until": str(record.silent_until),
            "build_round": record.round,
            "by_hand": int(record.by_hand),
            "done": record.done,
            "total": record.total,
            "began_at": None if began_at is None else self._access.dialect.moment(began_at),
            "halt": _halt_text(record.halt),
        }

    def _values(self, statement: TextClause, values: Mapping[str, Any]) -> dict[str, Any]:
        """Add how far a test has travelled, where a statement goes by the clock."""
        if ":offset" not in statement.text:
            return dict(values)
        return {**values, "offset": self._access.dialect.span(self._clock().offset.total_seconds())}

    def _affecting(self, statement: TextClause, values: Mapping[str, Any]) -> Statements[int]:
        return affecting(statement, self._values(statement, values))

    def _selecting(self, statement: TextClause, values: Mapping[str, Any]) -> Statements[Sequence[Row[Any]]]:
        return selecting(statement, self._values(statement, values))

    async def _read(self, statement: TextClause, values: Mapping[str, Any], doing: str) -> Sequence[Row[Any]]:
        return await self._access.read(self._selecting(statement, values), doing)


def _key(name: str, version: int) -> dict[str, Any]:
    return {"name": name, "version": version}


def _all(statement: TextClause, values: Iterable[Mapping[str, Any]]) -> Statements[None]:
    async def execute(connection: AsyncConnection) -> None:
        await connection.execute(statement, list(values))

    return execute


def _halt_text(halt: Halt | None) -> str | None:
    return None if halt is None else halt.to_json()


def _partition(row: Row[Any]) -> PartitionRecord:
    return PartitionRecord(
        stream=row.stream,
        position=row.position,
        wanted=row.wanted,
        state=row.state,
        silent_until=row.silent_until,
        round=row.build_round,
        halt=None if row.halt is None else Halt.from_json(row.halt),
    )
