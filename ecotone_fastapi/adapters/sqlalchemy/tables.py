"""Every table of ours. Give `metadata` to Alembic, or let `ecotone migrate` do the work.

Columns and tables are only ever added. Moments are kept with microseconds and in UTC: as `timestamptz` on PostgreSQL,
as `DATETIME(6)` on MariaDB and MySQL, as microseconds since 1970 on SQLite.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
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
    Uuid,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

SCHEMA_VERSION = 3
"""Grows with every change to the tables."""

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
