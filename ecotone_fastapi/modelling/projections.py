"""Projections: read models that are made of stored events, and can be made again.

    @projection("wallet_balances", of=Wallet)
    class Balances:
        @projection.init
        async def create(self, session: AsyncSession) -> None: ...

        @event_handler
        async def when_credited(self, event: MoneyWasAdded, session: AsyncSession) -> None: ...

        @projection.reset
        async def clear(self, session: AsyncSession) -> None: ...

Its handlers are reached by events of the store alone, each of them once in the database and in order. What is written
to the session, the state and the checkpoint are one transaction.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin

from ecotone_fastapi.core.endpoint import Endpoint, Kind, has_string_annotations, local_names, mark, marks_of
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.signatures import EMPTY, Parameter, is_hashable, parameters_of
from ecotone_fastapi.core.suppliers import FromScope, Supplier, Wanted
from ecotone_fastapi.modelling.event_storage import EventFilter, StoredEvent
from ecotone_fastapi.modelling.event_store import RecordedEvent
from ecotone_fastapi.modelling.projection_store import ProjectionRecord
from ecotone_fastapi.modelling.stream_names import category_of

C = TypeVar("C", bound=type)
F = TypeVar("F")

Mode = Literal["synchronous", "asynchronous", "polling"]


@dataclass(frozen=True)
class Projection:
    """Mark: the event handlers of this class make a read model of stored events.

    Args:
        name: Its lasting name: checkpoints are kept under it.
        of: The aggregates whose events it reads.
        categories: The categories whose events it reads.
        streams: The streams that it reads.
        mode: When its handlers run.
        partitioned: Whether each stream has a checkpoint and a state of its own.
        every: Seconds after which it looks for events by itself.
        batch: How many events are handled in one transaction.
        concurrency: How many partitions are handled at the same time.
        revision: Which generation of the code this is.
    """

    name: str
    of: tuple[type, ...]
    categories: tuple[str, ...]
    streams: tuple[str, ...]
    mode: Mode
    partitioned: bool
    every: float
    batch: int
    concurrency: int
    revision: int

    @property
    def shape(self) -> str:
        """How it counts: a checkpoint of one shape means nothing to another."""
        counted = "synchronous" if self.mode == "synchronous" else "asynchronous"
        return f"{counted}, partitioned" if self.partitioned else counted


class Hook(StrEnum):
    """When a method of a projection runs besides its handlers."""

    INIT = "init"
    RESET = "reset"
    DELETE = "delete"
    FLUSH = "flush"


@dataclass(frozen=True)
class Hooked:
    """Mark: this method of a projection is a hook."""

    hook: Hook
    names: object = None


class _Decorator:
    """Make a class a projection, as `@projection("name", of=Wallet)`, and name its hooks, as `@projection.init`.

    - `init` runs once, before the first event: create tables.
    - `reset` runs when it is rebuilt: empty them. Without it, `delete` and `init` run.
    - `delete` runs when it is deleted: drop them.
    - `flush` runs after the events of each batch, in the same transaction.

    Example:
        >>> @projection("orders", categories=["order"], mode="polling", every=5.0)
        ... class Orders:
        ...     @projection.reset
        ...     async def clear(self) -> None: ...
    """

    def __call__(
        self,
        name: str,
        *,
        of: type | Sequence[type] = (),
        categories: Sequence[str] = (),
        streams: Sequence[str] = (),
        mode: Mode = "asynchronous",
        partitioned: bool = False,
        every: float = 1.0,
        batch: int = 500,
        concurrency: int = 4,
        revision: int = 1,
    ) -> Callable[[C], C]:
        """Make a class a projection.

        Args:
            name: Its lasting name: its checkpoints are kept under it, and the command line knows it by it. It has no
                dash, for the streams of what it emits are named after it.
            of: The event-sourced aggregates, one or several, whose events it reads.
            categories: The categories of streams that it reads.
            streams: The streams that it reads.
            mode: `synchronous` runs in the transaction that appends or links the events, and fails it; `asynchronous`
                is woken by them and reads them from the store, as `polling` does from time to time.
            partitioned: Whether each stream has a checkpoint, a state and failures of its own, and several are handled
                at the same time.
            every: Seconds after which it looks for events although nobody has woken it.
            batch: How many events are handled in one transaction.
            concurrency: How many transactions of a partitioned projection run at the same time in one process.
            revision: Raise it when the shape of the tables changes: then the new code makes a version of its own beside
                the one that is live, until somebody switches. Its methods have to ask for `ProjectionVersion`. Its
                queries get the live version, whichever revision that has. What a process appends for a synchronous
                projection while another revision is live, before a switch with the new code and after it with the old
                one, is left to the code of that revision: it handles that, in order, before what it appends itself, or
                when its runner comes by it, usually within a second. As long as there are versions of two revisions,
                those who append for it do so in turn: delete the old version when nobody runs its code any more.
        """
        described = Projection(
            name,
            (of,) if isinstance(of, type) else tuple(of),
            _several("categories", categories),
            _several("streams", streams),
            mode,
            partitioned,
            every,
            batch,
            concurrency,
            revision,
        )
        return mark(described)

    def init(self, method: F) -> F:
        """Run this method once, before the first event."""
        return _hook(Hook.INIT, method, local_names())

    def reset(self, method: F) -> F:
        """Run this method when the projection is rebuilt in place: it empties what handlers have written."""
        return _hook(Hook.RESET, method, local_names())

    def delete(self, method: F) -> F:
        """Run this method when the projection, or an old version of it, is deleted."""
        return _hook(Hook.DELETE, method, local_names())

    def flush(self, method: F) -> F:
        """Run this method after the events of each batch, in their transaction."""
        return _hook(Hook.FLUSH, method, local_names())


projection: _Decorator = _Decorator()
"""Make a class a projection, and name its hooks: `@projection("name", …)`, `@projection.init`, `.reset`, …"""


def _several(what: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ConfigurationError(f"{what}={given!r} is no list", hint=f"write {what}=[{given!r}]")
    return tuple(given)


def _hook(hook: Hook, method: F, names: object) -> F:
    return mark(Hooked(hook, names if has_string_annotations(method) else {}))(method)


def projection_mark(cls: type | None) -> Projection | None:
    """Return the mark of a projection; `None` when the class is none."""
    marks = marks_of(cls) if cls is not None else ()
    return next((one for one in marks if isinstance(one, Projection)), None)


# ----------------------------------------------------------------------------------------- what handlers can ask for


@dataclass(frozen=True, slots=True)
class ProjectionState:
    """Marker: this parameter is the state of the projection, kept with its checkpoint.

    What a handler returns is the new state; when it returns `None`, the state stays. All handlers of a projection have
    the same state; each partition has its own.

    Args:
        default: The state before the first event.

    Example:
        >>> async def when_opened(event: dict, count: Annotated[int, ProjectionState(0)]) -> int:
        ...     return count + 1
    """

    default: Any = None


@dataclass(frozen=True, slots=True)
class ProjectionVersion:
    """Which version of a projection this is about; for names of tables, so that two versions can live side by side.

    A projection whose methods ask for it is rebuilt beside the live one, which is switched in the end.

    Args:
        name: The name of the projection.
        number: The number of the version, counted from 1.

    Example:
        >>> ProjectionVersion("balances", 2).of("wallet_balance")
        'wallet_balance_2'
    """

    name: str
    number: int

    def of(self, table: str) -> str:
        """Return the name of a table for this version."""
        return f"{table}_{self.number}"


@dataclass(frozen=True, slots=True)
class Partition:
    """Which partition of a projection this is about.

    Args:
        stream: The stream whose events it has.
    """

    stream: str

    @property
    def category(self) -> str:
        """The category of the stream."""
        return category_of(self.stream)

    @property
    def identifier(self) -> str:
        """What follows the category in the name of the stream: what tells one aggregate from another."""
        return self.stream.partition("-")[2]


class Emitter(Protocol):
    """Lets a projection tell events of its own, for handlers that ask for it.

    Nothing is told while the projection is rebuilt, and while it runs beside a live version of itself.
    """

    async def emit(self, event: Any, *, headers: dict[str, str] | None = None) -> None:
        """Append an event to the stream of the projection, `projection-<name>`, and publish it.

        The stream of a partition is `projection-<name>-<stream>`.
        """
        ...

    async def link(self, stream: str) -> None:
        """Let the event that is handled be read in another stream, too."""
        ...


class Run:
    """What a unit of work is about that runs methods of a projection.

    Args:
        record: The version of the projection.
        state: Its state, or that of the partition.
        partition: The partition.

    Attributes:
        event: The event that is handled.
        message: What it says.
        silent_until_version: Up to which version of the partition's stream nothing is emitted.
        handler: The handler that is run.
        emitter: Emits.
        over: Whether all events have been handled.
        later: What its own handlers have appended to what it reads, with what it says where that is known.
        outer: What this one came of: a handler that was run for it has appended or linked events.
    """

    __slots__ = (
        "emitter",
        "event",
        "handler",
        "later",
        "message",
        "outer",
        "over",
        "partition",
        "record",
        "silent_until_version",
        "state",
    )

    def __init__(self, record: ProjectionRecord, state: Any = None, partition: str | None = None) -> None:
        self.record: ProjectionRecord = record
        self.state: Any = state
        self.partition: str | None = partition
        self.event: StoredEvent | None = None
        self.message: Message[Any] | None = None
        self.handler: Endpoint | None = None
        self.silent_until_version: int = 0
        self.emitter: Emitter | None = None
        self.over: bool = False
        self.later: list[tuple[Sequence[StoredEvent], Sequence[Message[Any]] | None]] = []
        self.outer: Run | None = None


RUN = object()
"""Under which a unit of work keeps its `Run`."""


def _run(scope: Scope, what: str) -> Run:
    run: Run | None = scope.state.get(RUN)
    if run is None:
        raise ConfigurationError(
            f"{what} is asked for where no projection runs", hint="only methods of a projection can ask for it"
        )
    return run


def _event(scope: Scope) -> RecordedEvent:
    run = _run(scope, "RecordedEvent")
    if run.event is None or run.message is None:
        raise ConfigurationError("RecordedEvent is asked for where there is no event", hint="hooks have none")
    event, message = run.event, run.message
    return RecordedEvent(
        message.payload, message.headers, event.stream, event.version, event.position, event.recorded_at, event.origin
    )


def _version(scope: Scope) -> ProjectionVersion:
    record = _run(scope, "ProjectionVersion").record
    return ProjectionVersion(record.name, record.version)


def _partition(scope: Scope) -> Partition:
    stream = _run(scope, "Partition").partition
    if stream is None:
        raise ConfigurationError("Partition is asked for where there is none", hint="init has none")
    return Partition(stream)


_OF_RUNS: dict[Any, Callable[[Scope], Any]] = {
    RecordedEvent: _event,
    ProjectionVersion: _version,
    Partition: _partition,
    Emitter: lambda scope: _run(scope, "Emitter").emitter,
}


class OfProjections:
    """Supplies to methods of projections what only they can ask for."""

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        """Say what supplies the parameter."""
        for marker in parameter.metadata:
            if isinstance(marker, ProjectionState) or marker is ProjectionState:
                return FromScope(ProjectionState, lambda scope: _run(scope, "ProjectionState").state)
        try:
            read = _OF_RUNS.get(parameter.annotation)
        except TypeError:  # an annotation that has no hash
            return None
        return None if read is None else FromScope(parameter.annotation, read)


# ----------------------------------------------------------------------------------------------- the methods of a class


@dataclass(frozen=True)
class Methods:
    """The methods of one projection.

    Args:
        handlers: Its event handlers, as they were found.
        hooks: Its hooks.
        state: The type of its state, `EMPTY` when it has none.
        default: The state before the first event.
        versioned: Whether one of them asks for the version.
        emits: Whether one of them emits.
    """

    handlers: tuple[Endpoint, ...]
    hooks: dict[Hook, Endpoint]
    state: Any
    default: Any
    versioned: bool
    emits: bool

    @property
    def stateful(self) -> bool:
        """Whether there is a state."""
        return self.state is not EMPTY


def methods_of(cls: type, described: Projection, endpoints: Sequence[Endpoint]) -> Methods:
    """Find the methods of a projection.

    Args:
        cls: Its class.
        described: Its mark.
        endpoints: All handlers of the application.

    Raises:
        ConfigurationError: It has two states, or two hooks of one kind.
    """
    handlers = tuple(one for one in endpoints if one.owner is cls and one.kind is Kind.EVENT)
    hooks: dict[Hook, Endpoint] = {}
    for name, hooked, function in _hooked(cls):
        endpoint_id = f"projection:{described.name}:{hooked.hook}"
        if hooked.hook in hooks:
            raise ConfigurationError(
                f"{cls.__qualname__} has two hooks for {hooked.hook}: {name} is one of them", hint="make it one method"
            )
        bound = isinstance(vars(cls).get(name), staticmethod | classmethod)
        hooks[hooked.hook] = Endpoint(
            id=endpoint_id,
            kind=Kind.INTERNAL,
            route=endpoint_id,
            payload_type=None,
            function=function,
            owner=cls,
            needs_instance=not bound,
            names=hooked.names if isinstance(hooked.names, dict) else {},
        )
    states: dict[str, tuple[Any, Any]] = {}
    asked: set[Any] = set()
    queries = [one for one in endpoints if one.owner is cls and one.kind is Kind.QUERY]
    for endpoint in (*handlers, *hooks.values(), *queries):
        for parameter in asked_for(endpoint):
            asked.update([parameter.annotation] if is_hashable(parameter.annotation) else [])
            for marker in parameter.metadata:
                if isinstance(marker, ProjectionState) or marker is ProjectionState:
                    default = marker.default if isinstance(marker, ProjectionState) else None
                    states[endpoint.label] = (_plain(parameter.annotated), default)
    distinct = list({repr(one): one for one in states.values()}.values())
    if len(distinct) > 1:
        raise ConfigurationError(
            f"the handlers of {cls.__qualname__} do not agree on its state",
            tried="; ".join(f"{label}: {type_}, default {default!r}" for label, (type_, default) in states.items()),
            hint="a projection has one state: give it the same type and default everywhere, under one name",
        )
    state, default = distinct[0] if distinct else (EMPTY, None)
    return Methods(handlers, hooks, state, default, ProjectionVersion in asked, Emitter in asked)


def asked_for(endpoint: Endpoint) -> Iterator[Parameter]:
    """Yield the parameters of a method, and of the constructor of its class."""
    yield from parameters_of(endpoint.function, endpoint.names)
    if endpoint.owner is not None and "__init__" in vars(endpoint.owner):
        yield from parameters_of(endpoint.owner)


def _hooked(cls: type) -> Iterator[tuple[str, Hooked, Callable[..., Any]]]:
    for name in dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base)):
        raw: Any = next(vars(base)[name] for base in cls.__mro__ if name in vars(base))
        bound = isinstance(raw, staticmethod | classmethod)
        found = (*_own(raw), *(_own(raw.__func__) if bound else ()))
        for one in found:
            yield name, one, getattr(cls, name) if bound else raw


def _own(value: Any) -> list[Hooked]:
    found: object = marks_of(value) if callable(value) or isinstance(value, staticmethod | classmethod) else ()
    # An attribute of a class that answers anything must not pass for a method with marks.
    return [one for one in found if isinstance(one, Hooked)] if isinstance(found, tuple) else []


def _plain(annotated: Any) -> Any:
    """An annotation without the marker of the state."""
    if get_origin(annotated) is Annotated:
        base, *metadata = get_args(annotated)
        kept = [one for one in metadata if not isinstance(one, ProjectionState) and one is not ProjectionState]
        return Annotated[base, *kept] if kept else base
    return annotated


def hidden(endpoint: Endpoint, described: Projection) -> Endpoint:
    """Return the handler as an endpoint that no bus reaches."""
    return replace(endpoint, kind=Kind.INTERNAL, route=f"projection:{described.name}:{endpoint.id}")


def filter_of(categories: Sequence[str], streams: Sequence[str]) -> EventFilter:
    """Return which events a projection reads."""
    return EventFilter(categories=frozenset(categories), streams=frozenset(streams))
