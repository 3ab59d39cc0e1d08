"""Aggregates that are entities of SQLAlchemy's ORM: loaded and saved with the session of the unit of work.

A class with a `version_id_col` is saved by its version: who comes too late gets a `ConcurrencyError`. The row of any
other class is locked when a command or event loads it, so that whoever wants it, too, waits for the end of the
transaction, and then gets what it has left. Queries lock nothing. Either way no change is ever lost.

What is not loaded with an entity cannot be loaded by touching it, because there is nobody to wait for the database:
give relationships that handlers use `lazy="selectin"` or `lazy="joined"`; or let the class be an `AsyncAttrs`, and
write `await self.awaitable_attrs.lines`. Columns that the server computes on an update need `eager_defaults=True` to
be known after it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sqlalchemy import Column, Select, Table, TypeDecorator, UniqueConstraint, inspect, literal, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import InstanceState, Mapped, Mapper
from sqlalchemy.orm.exc import StaleDataError

from ecotone_fastapi.adapters.sqlalchemy.transactions import Transactions
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import AggregateError, ConcurrencyError, ConfigurationError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.modelling.keeping import aggregate_mark
from ecotone_fastapi.modelling.repository import UNVERSIONED, Identifier, Saved, Versioned

A = TypeVar("A")

_LOCKED = object()  # under which a unit of work keeps the entities whose rows it has locked


class SqlEntities:
    """Keeps mapped classes in their tables.

    Args:
        transactions: Has the session of each unit of work.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._mapped: dict[type, _MappedClass] = {}

    def serves(self, cls: type) -> bool:
        """Return whether a class is mapped."""
        return hasattr(cls, "__mapper__")

    def check(self, cls: type) -> None:
        """Make sure that its identifier is one, and that its version counts.

        Raises:
            ConfigurationError: It is no column, or not unique; or the version is another column.
        """
        self._mapping(cls)

    def identifier_types(self, cls: type) -> Mapping[str, Any]:
        """Return the types of the columns of a class."""
        return self._mapping(cls).types

    async def load(self, cls: type[A], identifier: Identifier) -> Versioned[A] | None:
        """Return an entity in the session of the unit of work; one without a version is locked until its end."""
        scope = _scope()
        session = await self._transactions.session(scope)
        mapping = self._mapping(cls)
        with self._connected(f"loading a {cls.__name__}"):
            if mapping.version is None and self._transactions.unit() is not None:
                state = await self._locked(scope, session, cls, identifier)
            elif (key := mapping.primary_key(identifier)) is not None:
                state = await session.get(cls, key)
            else:
                state = (await session.scalars(mapping.matching(identifier))).unique().one_or_none()
        return None if state is None else Versioned(state, mapping.version_of(state))

    async def save(
        self,
        cls: type[A],
        identifier: Identifier | None,
        state: A,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        """Write what has changed in the session, and read the identifier and version that the database gives.

        Raises:
            ConcurrencyError: Somebody else has changed it, or a new one exists already.
        """
        session = await self._transactions.session(_scope())
        mapping = self._mapping(cls)
        known = _state(state)
        is_new = not known.has_identity
        if known.transient and expected:  # it takes the place of the one that was loaded
            state = await session.merge(state)
        elif not known.persistent and not known.deleted:  # adding again what is to be deleted would keep it
            session.add(state)
        try:
            with self._connected(f"saving a {cls.__name__}"):
                await session.flush()
                unknown = _state(state).unloaded & mapping.needed
                if unknown:
                    await session.refresh(state, sorted(unknown))
        except StaleDataError as error:
            raise await self._stale(mapping, identifier, expected) from error
        except IntegrityError as error:
            if not is_new or identifier is None or (actual := await self._actual(mapping, identifier)) is None:
                raise
            raise ConcurrencyError(
                f"there is a {cls.__name__} {identifier} already", expected=0, actual=_counted(actual)
            ) from error
        version = mapping.version_of(state)
        if self._transactions.unit() is None:
            await session.commit()
        return Saved(version, events)

    async def delete(self, cls: type[A], identifier: Identifier, state: A, *, expected: int) -> None:
        """Delete an entity, with what its relationships say is deleted with it.

        Raises:
            ConcurrencyError: Somebody else has changed or deleted it.
        """
        session = await self._transactions.session(_scope())
        mapping = self._mapping(cls)
        if _state(state).transient:  # it takes the place of the one that was loaded
            state = await session.merge(state)
        try:
            with self._connected(f"deleting a {cls.__name__}"):
                if not _state(state).deleted:  # by a handler that has the session, too
                    await session.delete(state)
                await session.flush()
        except StaleDataError as error:
            raise await self._stale(mapping, identifier, expected) from error
        if self._transactions.unit() is None:
            await session.commit()

    def _mapping(self, cls: type) -> "_MappedClass":
        mapping = self._mapped.get(cls)
        if mapping is None:
            mapping = self._mapped[cls] = _MappedClass(inspect(cls))
        return mapping

    async def _locked(self, scope: Scope, session: AsyncSession, cls: type[A], identifier: Identifier) -> A | None:
        """Return an entity whose row nobody else can change before the unit of work ends."""
        locked: dict[Any, Any] = scope.state.setdefault(_LOCKED, {})
        key = (self, cls, str(identifier))
        if key in locked and _state(locked[key]).persistent:
            known: A = locked[key]
            return known
        if not session.autoflush:  # what is read anew must not overwrite what was changed
            await session.flush()
        statement = self._mapping(cls).matching(identifier).with_for_update(of=cls)
        found = await session.scalars(statement, execution_options={"populate_existing": True})
        state: A | None = found.unique().one_or_none()
        if state is not None:
            locked[key] = state
            scope.note_change(partial(locked.pop, key, None))  # a savepoint gives back its locks
        return state

    async def _stale(self, mapping: "_MappedClass", identifier: Identifier | None, expected: int) -> ConcurrencyError:
        label = mapping.cls.__name__
        actual = await self._actual(mapping, identifier) if identifier is not None else None
        if actual == expected != UNVERSIONED:
            return ConcurrencyError(
                f"something that was to be saved with the {label} {identifier} was changed meanwhile"
            )
        return ConcurrencyError(
            f"the {label} {identifier} was saved by somebody else",
            expected=_counted(expected),
            actual=0 if actual is None else _counted(actual),
        )

    async def _actual(self, mapping: "_MappedClass", identifier: Identifier) -> int | None:
        """Return the version that an entity has for everybody else; `None` when there is none."""
        statement = mapping.version_matching(identifier)

        async def look(connection: AsyncConnection) -> Any:
            return (await connection.execute(statement)).scalar()

        version = await self._transactions.apart(look, f"looking for a {mapping.cls.__name__}")
        return version if version is None or isinstance(version, int) else UNVERSIONED

    @contextmanager
    def _connected(self, doing: str) -> Iterator[None]:
        """Tell a database that cannot be reached from one that does not like what it is told, which is for the user."""
        try:
            yield
        except (DBAPIError, OSError) as error:
            if isinstance(error, DBAPIError) and not error.connection_invalidated:
                raise
            with self._transactions.translated(doing):
                raise


class _MappedClass:
    """What has to be known of a mapped class of aggregates.

    Attributes:
        cls: The class.
        types: The types of its columns, as far as they are known.
        version: The attribute that has the version.
        needed: The attributes that have to be known after it was saved.
    """

    def __init__(self, mapper: "Mapper[Any]") -> None:
        self.cls: type[Any] = mapper.class_
        described = aggregate_mark(self.cls)
        names = described.identifier if described is not None else ()
        columns: dict[str, Column[Any]] = {
            one.key: one.columns[0] for one in mapper.column_attrs if isinstance(one.columns[0], Column)
        }
        if unknown := [name for name in names if name not in columns]:
            raise ConfigurationError(
                f"{self.cls.__qualname__} has no column {', '.join(unknown)}",
                tried=", ".join(columns),
                hint="the identifier of a mapped class are columns of its table",
            )
        identifying = {columns[name] for name in names}
        if not any(set(unique) <= identifying for unique in _unique_columns(mapper)):
            raise ConfigurationError(
                f"there may be several {self.cls.__qualname__} with one {', '.join(names)}",
                hint="take the primary key for its identifier, or write mapped_column(unique=True)",
            )
        version_column = mapper.version_id_col
        self.version: str | None = None if version_column is None else mapper.get_property_by_column(version_column).key
        if described is not None and described.version not in (None, self.version):
            raise ConfigurationError(
                f"{self.cls.__qualname__}.{described.version} does not count versions",
                hint=f'write __mapper_args__ = {{"version_id_col": {described.version}}} in the class',
            )
        self._key = [mapper.get_property_by_column(one).key for one in mapper.primary_key]
        self.needed: frozenset[str] = frozenset([*names, *([self.version] if self.version is not None else [])])
        self.types: Mapping[str, Any] = _types_of(self.cls, columns)

    def primary_key(self, identifier: Identifier) -> tuple[Any, ...] | None:
        """Return the primary key, if that is what the identifier is."""
        values = dict(identifier.items())
        return tuple(values[name] for name in self._key) if set(values) == set(self._key) else None

    def matching(self, identifier: Identifier) -> Select[Any]:
        """Return the query for an entity."""
        return select(self.cls).where(*[getattr(self.cls, name) == value for name, value in identifier.items()])

    def version_matching(self, identifier: Identifier) -> Select[Any]:
        """Return the query for the version of an entity; of one that has none, it is `UNVERSIONED`."""
        version = literal(UNVERSIONED) if self.version is None else getattr(self.cls, self.version)
        return select(version).where(*[getattr(self.cls, name) == value for name, value in identifier.items()])

    def version_of(self, state: Any) -> int:
        """Return the version of an entity; one that is no number does not count."""
        version = None if self.version is None else getattr(state, self.version)
        return version if isinstance(version, int) else UNVERSIONED


def _unique_columns(mapper: "Mapper[Any]") -> Iterator[Sequence[Any]]:
    yield mapper.primary_key
    for table in mapper.tables:
        if isinstance(table, Table):
            yield from (list(one.columns) for one in table.constraints if isinstance(one, UniqueConstraint))
            yield from (list(one.columns) for one in table.indexes if one.unique)


def _types_of(cls: type, columns: "Mapping[str, Column[Any]]") -> Mapping[str, Any]:
    try:
        hints = get_type_hints(cls)
    except Exception:  # an annotation that only a type checker can read
        hints = {}
    types: dict[str, Any] = {}
    for name, column in columns.items():
        hint = hints.get(name)
        if get_origin(hint) is Mapped:
            [types[name]] = get_args(hint)
        elif not isinstance(column.type, TypeDecorator):  # what that makes of its column is not known
            try:
                types[name] = column.type.python_type
            except NotImplementedError:
                continue
    return types


def _counted(version: int) -> int | None:
    return None if version == UNVERSIONED else version


def _scope() -> Scope:
    scope = current_scope()
    if scope is None:
        raise AggregateError(
            "an entity is loaded and saved with the session of a unit of work", hint="do it in a handler"
        )
    return scope


def _state(entity: object) -> "InstanceState[Any]":
    state: InstanceState[Any] = inspect(entity)
    return state
