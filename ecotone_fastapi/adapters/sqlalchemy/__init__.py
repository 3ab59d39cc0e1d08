"""PostgreSQL, MariaDB, MySQL and SQLite over SQLAlchemy: transactions, channels and the dead letter in one database."""

from ecotone_fastapi.adapters.sqlalchemy.database import SqlAlchemy
from ecotone_fastapi.adapters.sqlalchemy.tables import metadata
from ecotone_fastapi.adapters.sqlalchemy.transactions import TransactionAbortedError

__all__ = ["SqlAlchemy", "TransactionAbortedError", "metadata"]
