"""Every table of ours. Give `metadata` to Alembic, or let `ecotone migrate` do the work.

Columns and tables are only ever added. Moments are kept with microseconds and in UTC: as `timestamptz` on PostgreSQL,
as `DATETIME(6)` on MariaDB and MySQL, as microseconds since 1970 on SQLite.
"""

import hashlib
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    false,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.types import TypeEngine, UserDefinedType

SCHEMA_VERSION = 3
"""Grows with every change to the tables."""

NOT_ON = "ecotone_not_on"
"""Under which an index tells on which databases it is not needed."""

LONGEST_NAME = 190
"""Characters that an indexed text may have on every database."""

_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_MARIADB = {name.replace("mysql", "mariadb"): value for name, value in _MYSQL.items()}


def _moment() -> TypeEngine[Any]:
    return (
        DateTime(timezone=True)
        .with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
        .with_variant(BigInteger(), "sqlite")
    )


def _number() -> TypeEngine[int]:
    # SQLite numbers rows by itself only when the type is exactly INTEGER.
    return BigInteger().with_variant(Integer(), "sqlite")


def _token() -> TypeEngine[Any]:
    return Uuid().with_variant(mysql.BINARY(16), "mysql", "mariadb").with_variant(LargeBinary(16), "sqlite")


def _long_text() -> TypeEngine[str]:
    return Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def _bytes() -> TypeEngine[bytes]:
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _json() -> TypeEngine[Any]:
    return Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb").with_variant(postgresql.JSONB(), "postgresql")


def _name() -> TypeEngine[str]:
    # Ordered by code points everywhere: with the collation of a language, pages would differ from database to database.
    return String(LONGEST_NAME).with_variant(String(LONGEST_NAME, collation="C"), "postgresql")


class _Xid8(UserDefinedType[int]):
    """The number of a transaction on PostgreSQL."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "xid8"


# Else whoever looks at the tables, we and Alembic, is warned that there is a type that nobody knows.
postgresql.dialect.ischema_names.setdefault("xid8", _Xid8)


class _Transaction(ColumnElement[int]):
    """What orders the events of one transaction among those of others, when nothing else is said.

    On PostgreSQL, the number of the transaction, or that of the last one which has ended, if that is greater: what is
    appended after another event was committed comes behind it, also when its own transaction began before. Readers stop
    before the oldest transaction that is open, and it has no event before its own number. Elsewhere it is not known
    before the commit, or never needed.
    """

    inherit_cache = True
    type = BigInteger()


@compiles(_Transaction)
def _no_transaction(element: _Transaction, compiler: SQLCompiler, **options: Any) -> str:
    return "0"


@compiles(_Transaction, "postgresql")
def _last_transaction(element: _Transaction, compiler: SQLCompiler, **options: Any) -> str:
    ended = "CAST(CAST(CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) - 1 AS text) AS xid8)"
    return f"GREATEST(pg_current_xact_id(), {ended})"


def _transaction() -> Column[Any]:
    return Column(
        "transaction_id",
        BigInteger().with_variant(_Xid8(), "postgresql"),
        nullable=False,
        server_default=_Transaction(),
    )


def _not_on_sqlite(
    ddl: object, target: object, bind: object, tables: object = None, state: object = None, **given: Any
) -> bool:
    return bool(given["dialect"].name != "sqlite")


def indexed(name: str) -> str:
    """Return a text that every database can index, and compares as Python does: MariaDB ignores spaces at the end."""
    if len(name) <= LONGEST_NAME and name.isprintable() and not name.endswith(" "):
        return name
    return "sha256:" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def storable(text: str) -> str:
    """Return a text as every database takes it, because anybody may say what none does."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()


metadata: MetaData = MetaData()
"""All tables of ours, for Alembic: `target_metadata = [Base.metadata, metadata]`."""

message: Table = Table(
    "ecotone_message",
    metadata,
    Column("id", _number(), Identity(always=True), primary_key=True),
    Column("message_id", String(LONGEST_NAME)),
    Column("channel", String(LONGEST_NAME), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    # When the message can be claimed: later than due_at while it is lent, for that is when the lease ends.
    Column("available_at", _moment(), nullable=False),
    Column("due_at", _moment(), nullable=False),
    Column("lease_token", _token()),
    Column("deliveries", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("expires_at", _moment()),
    Column("partition_key", String(LONGEST_NAME)),
    Column("headers", _long_text(), nullable=False),
    Column("body", _bytes(), nullable=False),
    Column("created_at", _moment(), nullable=False),
    Column("first_failed_at", _moment()),
    Column("schedule_key", String(LONGEST_NAME)),
    **_MYSQL,
    **_MARIADB,
)
"""The queue of all channels. What is delayed or lent lies to the right of now in the index and costs nothing."""

POSTGRESQL_SETTINGS = (
    "fillfactor = 70",
    "autovacuum_vacuum_scale_factor = 0",
    "autovacuum_vacuum_threshold = 1000",
    "autovacuum_vacuum_cost_delay = 0",
    "autovacuum_analyze_scale_factor = 0.02",
)
"""Storage of the messages: each costs two dead rows, and the server's own thresholds would let a busy table grow first.

Alembic does not know of them: `op.execute("ALTER TABLE ecotone_message SET (fillfactor = 70, …)")`.
"""

Index("ecotone_message_partition", message.c.channel, message.c.partition_key, message.c.id)
Index("ecotone_message_schedule", message.c.schedule_key)
Index("ecotone_message_claim", message.c.channel, message.c.priority.desc(), message.c.available_at, message.c.id)

dead_letter: Table = Table(
    "ecotone_dead_letter",
    metadata,
    Column("id", Text().with_variant(String(700), "mysql", "mariadb"), primary_key=True),
    Column("message_id", _long_text()),
    Column("channel", _long_text(), nullable=False),
    Column("endpoint", _long_text()),
    Column("error_type", _long_text(), nullable=False),
    Column("error_message", _long_text(), nullable=False),
    Column("traceback", _long_text(), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("headers", _long_text(), nullable=False),
    Column("body", _bytes(), nullable=False),
    Column("parked_at", _moment(), nullable=False),
    Column("first_failed_at", _moment()),
    **_MYSQL,
    **_MARIADB,
)
"""Messages whose handlers could not be made to work."""

Index("ecotone_dead_letter_newest", dead_letter.c.parked_at)

inbox: Table = Table(
    "ecotone_inbox",
    metadata,
    Column("message_id", String(LONGEST_NAME), primary_key=True),
    Column("endpoint", String(LONGEST_NAME), primary_key=True),
    Column("handled_at", _moment(), nullable=False),
    **_MYSQL,
    **_MARIADB,
)
"""Which handler has handled which message, so that it does not do so twice."""

Index("ecotone_inbox_oldest", inbox.c.handled_at)

channel: Table = Table(
    "ecotone_channel",
    metadata,
    Column("name", String(LONGEST_NAME), primary_key=True),
    Column("paused_at", _moment()),
    Column("paused_by", _long_text()),
    **_MYSQL,
    **_MARIADB,
)
"""What all processes are to know of a channel: whether its consumers pause, and why."""

document: Table = Table(
    "ecotone_document",
    metadata,
    Column("collection", _name(), primary_key=True),
    Column("document_id", _name(), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("body", _json(), nullable=False),
    Column("updated_at", _moment(), nullable=False),
    **_MYSQL,
    **_MARIADB,
)
"""Documents of all collections, as JSON."""

projection: Table = Table(
    "ecotone_projection",
    metadata,
    Column("name", _name(), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("shape", String(60), nullable=False),
    Column("status", String(20), nullable=False),
    Column("position", String(60), nullable=False),
    Column("state", _long_text()),
    Column("silent_until", String(60), nullable=False),
    Column("build_round", Integer, nullable=False),
    Column("by_hand", SmallInteger, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("began_at", _moment()),
    Column("halt", _long_text()),
    Column("lease_token", BigInteger, nullable=False),
    Column("runner", _long_text()),
    Column("leased_until", _moment()),
    **_MYSQL,
    **_MARIADB,
)
"""Versions of projections: how far each has come, with which state, and who runs it."""

projection_partition: Table = Table(
    "ecotone_projection_partition",
    metadata,
    Column("projection", _name(), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("stream", _name(), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("wanted", BigInteger, nullable=False),
    Column("state", _long_text()),
    Column("silent_until", BigInteger, nullable=False),
    Column("build_round", Integer, nullable=False),
    Column("halt", _long_text()),
    # From when on there is something to do with it; nothing without.
    Column("due_at", _moment()),
    **_MYSQL,
    **_MARIADB,
)
"""Partitions of projections: how far each has come in its stream, and with which state."""

Index(
    "ecotone_projection_partition_due",
    projection_partition.c.projection,
    projection_partition.c.version,
    projection_partition.c.due_at,
)

aggregate: Table = Table(
    "ecotone_aggregate",
    metadata,
    Column("type", _name(), primary_key=True),
    Column("identifier", _name(), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("body", _long_text(), nullable=False),
    Column("updated_at", _moment(), nullable=False),
    **_MYSQL,
    **_MARIADB,
)
"""Aggregates that are no rows of tables of their own: their state as JSON."""

event: Table = Table(
    "ecotone_event",
    metadata,
    Column("position", _number(), Identity(always=True), primary_key=True),
    _transaction(),
    Column("event_id", _name(), nullable=False),
    Column("category", _name(), nullable=False),
    Column("stream", _name(), nullable=False),
    Column("version", Integer, nullable=False),
    Column("name", _long_text(), nullable=False),
    Column("headers", _long_text(), nullable=False),
    Column("body", _bytes(), nullable=False),
    Column("recorded_at", _moment(), nullable=False),
    Column("archived", Boolean, nullable=False, server_default=false()),
    # A link has no content of its own, but the position of the event that it stands for.
    Column("origin", BigInteger),
    UniqueConstraint("event_id", name="ecotone_event_once"),
    UniqueConstraint("stream", "version", name="ecotone_event_version"),
    sqlite_autoincrement=True,  # a position that readers have passed is never given again
    **_MYSQL,
    **_MARIADB,
)
"""Events of all streams, and links to them. Rows are never changed, but for being archived and deleted."""

# On SQLite the order of transactions is that of the positions.
Index("ecotone_event_order", event.c.transaction_id, event.c.position, info={NOT_ON: ("sqlite",)}).ddl_if(
    callable_=_not_on_sqlite
)
Index("ecotone_event_category", event.c.category, event.c.transaction_id, event.c.position)

event_tag: Table = Table(
    "ecotone_event_tag",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("tag", _name(), primary_key=True),
    _transaction(),
    **_MYSQL,
    **_MARIADB,
)
"""What events can be found by besides their streams."""

Index("ecotone_event_tag_order", event_tag.c.tag, event_tag.c.transaction_id, event_tag.c.position)

event_counter: Table = Table(
    "ecotone_event_counter",
    metadata,
    Column("name", String(LONGEST_NAME), primary_key=True),
    Column("number", BigInteger, nullable=False),
    **_MYSQL,
    **_MARIADB,
)
"""Orders transactions with events where the server does not: whoever is about to commit takes the next number."""

snapshot: Table = Table(
    "ecotone_snapshot",
    metadata,
    Column("stream", _name(), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("event_id", _long_text(), nullable=False),
    Column("form", _long_text(), nullable=False),
    Column("content_type", _long_text(), nullable=False),
    Column("body", _bytes(), nullable=False),
    Column("taken_at", _moment(), nullable=False),
    **_MYSQL,
    **_MARIADB,
)
"""What the events of a stream have led to, up to one of them. Can be emptied at any time."""

schema: Table = Table(
    "ecotone_schema",
    metadata,
    Column("name", String(LONGEST_NAME), primary_key=True),
    Column("version", Integer, nullable=False),
    **_MYSQL,
    **_MARIADB,
)
"""Up to which version the tables have been brought."""
