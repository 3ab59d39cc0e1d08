"""Repositories: where aggregates are loaded from and saved to.

    async def rename(command: RenameOrder, orders: Repository[Order]) -> None:
        order = await orders.get(command.order_id)
        order.rename(command.name)
        await orders.save(order)

A handler asks for `Repository[Order]` by its type. What stands behind it is an `AggregateStore`: one of a database
adapter, the one in memory, or one of your own, given among the plugins or services.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable
from urllib.parse import quote

from pydantic_core import to_json

from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.errors import AggregateError
from ecotone_fastapi.core.message import Message

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Identifier:
    """What tells one aggregate from all others of its class: one value, or several that belong together.

    Args:
        names: The names of the attributes.
        values: Their values; none of them is `None`.

    Example:
        >>> str(Identifier(("shop", "number"), ("north/1", 7)))
        'north%2F1/7'
    """

    names: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def value(self) -> Any:
        """The value, when there is one; a dict of names and values, when there are several."""
        return self.values[0] if len(self.values) == 1 else dict(self.items())

    def items(self) -> Iterator[tuple[str, Any]]:
        """Return names and values."""
        return iter(zip(self.names, self.values, strict=True))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return _text_of(self.values[0])
        return "/".join(quote(_text_of(value), safe="") for value in self.values)


def _text_of(value: Any) -> str:
    """A value as text that is the same tomorrow: of a value object without a text of its own, what it is made of."""
    if isinstance(value, str):
        return str.__str__(value)  # an enum of texts is one of them
    if any("__str__" in vars(cls) for cls in type(value).__mro__[:-1]) or type(value).__module__ == "builtins":
        return str(value)
    text = to_json(value).decode()
    return text[1:-1] if text.startswith('"') else text


UNVERSIONED: int = -1
"""The version of aggregates whose store counts none, because it lets one handler at a time have them."""


@dataclass(frozen=True, slots=True)
class Versioned(Generic[A]):
    """An aggregate as it was loaded.

    Args:
        state: The aggregate.
        version: How often it has been saved; of an event-sourced one, how many events it has; `UNVERSIONED` where its
            store does not count.
    """

    state: A
    version: int


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of an aggregate that was saved.

    Args:
        version: Its version now.
        events: What it has recorded, as it is to be published.
    """

    version: int
    events: Sequence[Message[Any]] = ()


@runtime_checkable
class AggregateStore(Protocol):
    """Loads and saves aggregates of some classes. Adapters implement it, and so can you."""

    def serves(self, cls: type) -> bool:
        """Whether aggregates of this class can be kept here."""
        ...

    async def load(self, cls: type[A], identifier: Identifier) -> Versioned[A] | None:
        """Return an aggregate; `None` when there is none.

        Two units of work never get the same object.
        """
        ...

    async def save(
        self,
        cls: type[A],
        identifier: Identifier | None,
        state: A,
        *,
        events: Sequence[Message[Any]],
        expected: int,
    ) -> Saved:
        """Save an aggregate with the unit of work of the calling task's scope, if any.

        Args:
            cls: Its class.
            identifier: Its identifier; `None` for a new one that gets it from the database, as an attribute.
            state: The aggregate.
            events: What it has recorded. Stores of events append these, all others just return them.
            expected: The version that it was loaded with; 0 for a new one.

        Raises:
            ConcurrencyError: It has another version by now, or a new one exists already.
            AggregateError: It cannot be saved as it is: it has no identifier, for example.
        """
        ...


@runtime_checkable
class ChecksAggregates(Protocol):
    """A store that can tell at start whether all will be well."""

    def check(self, cls: type) -> None:
        """Look at a class whose aggregates will be kept here.

        Raises:
            ConfigurationError: Their state would not come back as it was, or something else is missing.
        """
        ...


@runtime_checkable
class TypesIdentifiers(Protocol):
    """A store that knows better than annotations do of which types identifiers are."""

    def identifier_types(self, cls: type) -> Mapping[str, Any]:
        """Return the types of attributes of a class that is served, as far as they are known."""
        ...


@runtime_checkable
class DeletesAggregates(Protocol):
    """A store that can also remove aggregates. All that come in the box do; one of your own need not."""

    async def delete(self, cls: type[A], identifier: Identifier, state: A, *, expected: int) -> None:
        """Remove an aggregate with the unit of work of the calling task's scope, if any.

        After that, `load` finds none in this unit of work, and a new one with this identifier can be saved.

        Args:
            cls: Its class.
            identifier: Its identifier.
            state: The aggregate, as it was loaded or saved.
            expected: The version that it was loaded or saved with.

        Raises:
            ConcurrencyError: It has another version by now, or is gone.
            AggregateError: Aggregates of this class are not deleted.
        """
        ...


@runtime_checkable
class ConvertsAggregates(Protocol):
    """A store that writes what aggregates are with the converters of the application, `Ecotone(converters=[...])`."""

    def converting(self, conversion: Conversion) -> AggregateStore:
        """Return the same store for an application with these converters."""
        ...


def lacks_identifier(cls: type) -> AggregateError:
    """Return the error for an aggregate that nobody could find again."""
    return AggregateError(
        f"a new {cls.__name__} has no identifier",
        hint="set it before the handler returns, or keep it in a database that gives identifiers",
    )


class Repository(Protocol[A]):
    """The aggregates of one class, for handlers that ask for `Repository[Order]`."""

    async def get(self, identifier: Any) -> A:
        """Return an aggregate.

        Args:
            identifier: The value of its identifier; a mapping of names and values when it has several.

        Raises:
            AggregateNotFoundError: There is none.
        """
        ...

    async def find(self, identifier: Any) -> A | None:
        """Return an aggregate; `None` when there is none."""
        ...

    async def save(self, aggregate: A) -> None:
        """Save an aggregate, a new one or one that was loaded here.

        The events that it has recorded are published when the handler has returned, after all that it saves.

        Raises:
            ConcurrencyError: Somebody else has saved it since it was loaded, or a new one exists already.
            AggregateError: It was deleted here.
        """
        ...

    async def delete(self, aggregate: A) -> None:
        """Remove an aggregate that was loaded or saved here, in the transaction of the handler.

        The events that it has recorded are published as when it is saved. In a handler of the aggregate itself,
        `await orders.delete(self)` does it: it is not saved afterwards.

        Versions of one that is made again with this identifier begin anew. Who had loaded the former one, and saves it
        when the new one has come to the same version, overwrites the new one: identifiers are better not used again.

        Raises:
            ConcurrencyError: Somebody else has saved or deleted it since it was loaded.
            AggregateError: It was not loaded here; or its store does not delete, as that of event-sourced aggregates,
                whose streams `EventStore` archives and deletes.
        """
        ...
