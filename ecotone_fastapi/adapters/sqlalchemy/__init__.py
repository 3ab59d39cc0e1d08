"""PostgreSQL, MariaDB, MySQL and SQLite over SQLAlchemy: transactions, channels and the dead letter in one database."""

from ecotone_fastapi.adapters.sqlalchemy.database import SqlAlchemy
from ecotone_fastapi.adapters.sqlalchemy.methods import query, statement
from ecotone_fastapi.adapters.sqlalchemy.tables import metadata

__all__ = ["SqlAlchemy", "metadata", "query", "statement"]
