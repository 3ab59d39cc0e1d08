"""Bringing the tables up to date, by one of several processes that start at once, and checking that they are.

A new table, a new column that may be empty and a new index need nothing here: what is missing is created. Any other
change to a table that has been released is a step in `STEPS`, under the version that brings it.
"""

# ruff: noqa: S608 - what is formatted into SQL are names and phrases of ours, never values

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sqlalchemy import Connection, Index, MetaData, Table, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateSchema, CreateTable

from ecotone_fastapi.adapters.sqlalchemy import tables
from ecotone_fastapi.adapters.sqlalchemy.dialects import BEGIN
from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.adapters.sqlalchemy.units import taking
from ecotone_fastapi.core.errors import ConfigurationError

STEPS: Mapping[int, Sequence[str]] = {}
"""The statements that bring tables of an older version to this one; they have to run on every database."""

_NAME = "ecotone"  # of the one row that tells the version
_LOCK = 0x65636F746F6E65  # "ecotone", the number of an advisory lock
_WAIT = 60  # seconds for another process to finish


class Schema:
    """The tables of one database.

    Args:
        transactions: Where statements run.
        name: The schema in which the tables are; `None` is the database's default.
    """

    def __init__(self, transactions: Transactions, name: str | None) -> None:
        self._transactions = transactions
        self._name = name
        self._current = False
        if name is None:
            self.metadata: MetaData = tables.metadata
        else:
            self.metadata = MetaData(schema=name)
            for table in tables.metadata.sorted_tables:
                table.to_metadata(self.metadata, schema=name)
        preparer = transactions.engine.dialect.identifier_preparer
        self._tables = {table.name: preparer.format_table(table) for table in self.metadata.sorted_tables}
        known = self.table("ecotone_schema")
        self._settings = text(
            f"ALTER TABLE {self.table('ecotone_message')} SET ({', '.join(tables.POSTGRESQL_SETTINGS)})"
        )
        self._read_version = text(f"SELECT version FROM {known} WHERE name = '{_NAME}'")
        self._forget_version = text(f"DELETE FROM {known} WHERE name = '{_NAME}'")
        self._write_version = text(f"INSERT INTO {known} (name, version) VALUES ('{_NAME}', {tables.SCHEMA_VERSION})")

    def table(self, name: str) -> str:
        """Return how SQL names one of our tables."""
        return self._tables[name]

    async def migrate(self) -> Sequence[str]:
        """Create what is missing and change what is old; return what was done, line by line. Safe to repeat.

        Raises:
            ChannelError: The database cannot be reached.
        """
        return await self._transactions.undisturbed(self._migrate())

    async def create(self) -> None:
        """Create and change what is needed. Done once; after that it costs nothing.

        Raises:
            ChannelError: The database cannot be reached.
        """
        if not self._current:
            await self.migrate()

    async def check(self) -> None:
        """Make sure that the tables are there and as they should be. Done once; after that it costs nothing.

        Raises:
            ConfigurationError: Something is missing.
            ChannelError: The database cannot be reached.
        """
        if not self._current:
            missing = await self.missing()
            if missing:
                raise ConfigurationError(
                    f"the database {self._transactions.address} lacks {', '.join(missing)}",
                    hint="run `ecotone migrate`, or give SqlAlchemy(..., create_schema=True), or give Alembic "
                    "the metadata of ecotone_fastapi.adapters.sqlalchemy",
                )
            self._current = True

    async def missing(self) -> Sequence[str]:
        """Return what is missing or too old.

        Raises:
            ChannelError: The database cannot be reached.
        """
        return await self._transactions.read(lambda c: c.run_sync(self._missing), "checking the tables")

    def everything(self) -> Sequence[str]:
        """Return what is missing where nothing is there."""
        return [f"the table {table.name}" for table in self.metadata.sorted_tables]

    def sql(self) -> str:
        """Return the statements that create everything in an empty database."""
        dialect = self._transactions.engine.dialect
        statements: list[object] = []
        if self._name:
            statements.append(CreateSchema(self._name, if_not_exists=True).compile(dialect=dialect))
        for table in self.metadata.sorted_tables:
            statements.append(CreateTable(table).compile(dialect=dialect))
            statements += [CreateIndex(index).compile(dialect=dialect) for index in _indexes(table, dialect.name)]
        if dialect.name == "postgresql":
            statements.append(self._settings)
        statements.append(self._write_version)
        return "".join(f"{str(statement).strip()};\n\n" for statement in statements)

    async def _migrate(self) -> Sequence[str]:
        with self._transactions.translated("bringing the tables up to date"):
            async with self._alone() as connection:
                done = await connection.run_sync(self._create)
        self._current = True
        return done

    def _create(self, connection: Connection) -> Sequence[str]:
        if self._name and connection.dialect.name == "postgresql":
            connection.execute(CreateSchema(self._name, if_not_exists=True))
        existing = set(inspect(connection).get_table_names(schema=self._name))
        new = [table for table in self.metadata.sorted_tables if table.name not in existing]
        done = [f"created the table {self.table(table.name)}" for table in new]
        self.metadata.create_all(connection, tables=new, checkfirst=False)
        if connection.dialect.name == "postgresql" and "ecotone_message" not in existing:
            connection.execute(self._settings)
        for table in self.metadata.sorted_tables:
            if table.name in existing:
                done += self._extend(connection, table)
        version = connection.execute(self._read_version).scalar()
        if version is not None:
            for step in range(version + 1, tables.SCHEMA_VERSION + 1):
                for statement in STEPS.get(step, ()):
                    connection.execute(text(statement))
                    done.append(statement)
        if version is None or version < tables.SCHEMA_VERSION:
            connection.execute(self._forget_version)
            connection.execute(self._write_version)
            done.append(f"brought the schema to version {tables.SCHEMA_VERSION}")
        return done

    def _extend(self, connection: Connection, table: Table) -> Sequence[str]:
        """Add the columns and indexes that a table of an older version lacks."""
        inspector, done = inspect(connection), []
        columns = {column["name"] for column in inspector.get_columns(table.name, schema=self._name)}
        indexes = {index["name"] for index in inspector.get_indexes(table.name, schema=self._name)}
        for column in table.c:
            if column.name not in columns:
                what = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {self.table(table.name)} ADD COLUMN {what}")
                done.append(f"added the column {self.table(table.name)}.{column.name}")
        for index in _indexes(table, connection.dialect.name):
            if index.name not in indexes:
                index.create(connection)
                done.append(f"created the index {index.name}")
        return done

    def _missing(self, connection: Connection) -> Sequence[str]:
        inspector = inspect(connection)
        existing = set(inspector.get_table_names(schema=self._name))
        missing = []
        for table in self.metadata.sorted_tables:
            if table.name not in existing:
                missing.append(f"the table {table.name}")
                continue
            columns = {column["name"] for column in inspector.get_columns(table.name, schema=self._name)}
            missing += [f"the column {table.name}.{column.name}" for column in table.c if column.name not in columns]
        if not missing:
            version = connection.execute(self._read_version).scalar()
            if version is not None and version < tables.SCHEMA_VERSION:  # Alembic writes none
                missing.append(f"version {tables.SCHEMA_VERSION} of the schema, it has {version}")
        return missing

    def _alone(self) -> AbstractAsyncContextManager[AsyncConnection]:
        match self._transactions.dialect.name:
            case "postgresql":
                return self._alone_on_postgresql()
            case "mysql":
                return self._alone_on_mariadb()
            case _:
                return self._alone_on_sqlite()

    @asynccontextmanager
    async def _alone_on_postgresql(self) -> AsyncIterator[AsyncConnection]:
        async with self._transactions.engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection

    @asynccontextmanager
    async def _alone_on_mariadb(self) -> AsyncIterator[AsyncConnection]:
        # DDL commits by itself, so the lock belongs to the connection. Its name is known to the whole server.
        lock = "(LEFT(CONCAT('ecotone:', SHA1(DATABASE())), 64)"
        async with self._transactions.engine.begin() as connection:
            if not (await connection.execute(text(f"SELECT GET_LOCK{lock}, {_WAIT})"))).scalar():
                raise TimeoutError(f"another process has been changing the tables for {_WAIT} seconds")
            try:
                yield connection
            finally:
                await connection.execute(text(f"SELECT RELEASE_LOCK{lock})"))

    @asynccontextmanager
    async def _alone_on_sqlite(self) -> AsyncIterator[AsyncConnection]:
        async with taking(self._transactions.turn), self._transactions.engine.connect() as plain:
            connection = await plain.execution_options(**{BEGIN: "BEGIN IMMEDIATE"})
            async with connection.begin():
                driver = (await connection.get_raw_connection()).driver_connection
                if driver is not None and not driver.in_transaction:  # the engine is not one of ours
                    await connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection


def _indexes(table: Table, dialect: str) -> Sequence[Index]:
    needed = [index for index in table.indexes if dialect not in index.info.get(tables.NOT_ON, ())]
    return sorted(needed, key=lambda index: str(index.name))
