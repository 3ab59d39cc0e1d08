"""The flow of messages as nodes and edges: what reaches which handler, through which channel, and what comes of it.

Only what is declared is drawn: types of payloads, channels, aggregates and projections, what handlers of event-sourced
aggregates say they return, and which events these apply. What else a handler sends cannot be told before it does so.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.message import explicit_name_of
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.outbox import ThroughOutbox
from ecotone_fastapi.modelling.applying import applied_by
from ecotone_fastapi.modelling.event_sourced import model_of
from ecotone_fastapi.modelling.factories import CreatesInstead, is_of_aggregate
from ecotone_fastapi.modelling.projections import Projection, projection_mark
from ecotone_fastapi.operations.declared import Handled, asked_aggregates, handled_by, returned_events
from ecotone_fastapi.operations.wording import abilities, channels_of


class NodeKind(StrEnum):
    """What a node is."""

    COMMAND = "command"
    QUERY = "query"
    EVENT = "event"
    INTERNAL = "internal"
    """A message that only other handlers send."""
    CHANNEL = "channel"
    HANDLER = "handler"
    AGGREGATE = "aggregate"
    PROJECTION = "projection"


class EdgeKind(StrEnum):
    """What an edge says."""

    ROUTES = "routes"
    """A message goes to its handler, or to the channel in front of that."""
    DELIVERS = "delivers"
    """A channel hands its messages on, to a handler or to the next channel."""
    MAKES = "makes"
    CHANGES = "changes"
    READS = "reads"
    USES = "uses"
    """A handler asks for the repository of the aggregate."""
    UPDATES = "updates"
    """A handler writes to the projection that it belongs to."""
    PUBLISHES = "publishes"
    """A handler says that it returns the event."""
    RECORDS = "records"
    """An aggregate applies the event, and no handler of it says that it returns it."""


@dataclass(frozen=True)
class Node:
    """A message, a handler, or what stands behind them.

    Args:
        id: Tells it from all others, lastingly: `command:order.place`, `handler:notify-customer`, `channel:orders`.
        kind: What it is.
        label: How people call it.
        detail: More about it: the whole name of a class, the id of a handler, what a channel can do.
    """

    id: str
    kind: NodeKind
    label: str
    detail: str


@dataclass(frozen=True)
class Edge:
    """What leads from one node to another.

    Args:
        source: The id of the node where it begins.
        target: The id of the node where it ends.
        kind: What it says.
        label: Which messages take it behind a channel, or when it is taken; else nothing.
    """

    source: str
    target: str
    kind: EdgeKind
    label: str = ""


@dataclass(frozen=True)
class Diagram:
    """The flow of messages through an application, the same for the same application.

    Args:
        nodes: In order: messages first, then channels, handlers, and what these work on.
        edges: In the order of their nodes.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def diagram_of(assembly: Assembly) -> Diagram:
    """Draw the flow of messages through an application that was put together."""
    drawing = _Drawing(assembly)
    for endpoint in assembly.endpoints:
        drawing.add(endpoint)
    drawing.connect_events()
    return drawing.finished()


@dataclass(frozen=True)
class _Handler:
    """A handler of events, for those that reach it without being named by it."""

    endpoint: Endpoint
    handled: Handled
    projection: Projection | None


class _Drawing:
    """A diagram that is being made."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._nodes: dict[str, Node] = {}
        self._edges: dict[tuple[str, str, EdgeKind], set[str]] = {}
        self._notes: dict[tuple[str, str, EdgeKind], str] = {}
        self._events: dict[str, type | str] = {}  # by the id of its node: the class, else the key
        self._listening: list[_Handler] = []
        self._recorded: dict[type, dict[type, None]] = {}  # by the class of the aggregate

    def add(self, endpoint: Endpoint) -> None:
        """Draw a handler with its messages, the way of these, and what it works on."""
        handled = handled_by(endpoint)
        if handled is None:
            return
        handler = self._node(NodeKind.HANDLER, endpoint.id, endpoint.label, endpoint.id)
        beside = endpoint.find(CreatesInstead)
        for message in self._messages(handled):
            self._lead(message, endpoint, f"when {beside.method} finds none" if beside is not None else "")
        projection = projection_mark(endpoint.owner)
        if handled.kind is Kind.EVENT:
            self._listening.append(_Handler(endpoint, handled, projection))
        if projection is not None:
            mode = f"{projection.mode}, partitioned" if projection.partitioned else projection.mode
            target = self._node(NodeKind.PROJECTION, projection.name, projection.name, mode)
            self._edge(handler, target, EdgeKind.READS if handled.kind is Kind.QUERY else EdgeKind.UPDATES)
        elif is_of_aggregate(endpoint):
            self._add_to_aggregate(endpoint, handled, handler)
        for cls, reads in asked_aggregates(endpoint):
            self._edge(handler, self._aggregate(cls), EdgeKind.READS if reads else EdgeKind.USES)

    def _add_to_aggregate(self, endpoint: Endpoint, handled: Handled, handler: str) -> None:
        owner = endpoint.owner
        assert owner is not None
        aggregate = self._aggregate(owner)
        if handled.kind is Kind.QUERY:
            if endpoint.needs_instance:
                self._edge(handler, aggregate, EdgeKind.READS)
            return
        self._edge(handler, aggregate, EdgeKind.CHANGES if endpoint.needs_instance else EdgeKind.MAKES)
        returned = self._recorded[owner]
        for event in returned_events(endpoint):
            returned[event] = None
            self._edge(handler, self._message(NodeKind.EVENT, None, event), EdgeKind.PUBLISHES)

    def _aggregate(self, cls: type) -> str:
        self._recorded.setdefault(cls, {})
        return self._node(NodeKind.AGGREGATE, _full_name(cls), cls.__name__, _full_name(cls))

    def connect_events(self) -> None:
        """Draw what aggregates record, and which handlers events reach that name a base of them, or a glob."""
        for owner, returned in self._recorded.items():
            if model_of(owner) is None:
                continue
            for event in applied_by(owner):
                if event not in returned:
                    aggregate = f"{NodeKind.AGGREGATE}:{_full_name(owner)}"
                    self._edge(aggregate, self._message(NodeKind.EVENT, None, event), EdgeKind.RECORDS)
                returned[event] = None
        for message, happened in list(self._events.items()):
            for one in self._listening:
                if one.handled.reached_by(happened) and self._may_read(one.projection, happened):
                    self._lead(message, one.endpoint)

    def _may_read(self, projection: Projection | None, event: type | str) -> bool:
        """Whether an event is in the streams of a projection, as far as that is declared."""
        if projection is None:
            return True
        return isinstance(event, type) and any(
            event in recorded and (owner in projection.of or _category(owner) in projection.categories)
            for owner, recorded in self._recorded.items()
        )

    # ------------------------------------------------------------------------------------------------ nodes and edges

    def _messages(self, handled: Handled) -> Iterator[str]:
        kind = NodeKind(handled.kind)
        if handled.route is not None:
            yield self._message(kind, handled.route, None)
        else:
            for cls in handled.types:
                yield self._message(kind, None, cls)

    def _message(self, kind: NodeKind, key: str | None, cls: type | None) -> str:
        if cls is None:
            assert key is not None
            found = self._node(kind, key, key, f"the key {key}")
            if kind is NodeKind.EVENT and "*" not in key:
                self._events.setdefault(found, key)
            return found
        name = explicit_name_of(cls) or _full_name(cls)
        node = Node(f"{kind}:{name}", kind, cls.__name__, name)
        self._nodes[node.id] = node  # a class says more than the key of it that came first
        if kind is NodeKind.EVENT:
            self._events[node.id] = cls
        return node.id

    def _node(self, kind: NodeKind, name: str, label: str, detail: str) -> str:
        node = Node(f"{kind}:{name}", kind, label, detail)
        return self._nodes.setdefault(node.id, node).id

    def _lead(self, message: str, endpoint: Endpoint, note: str = "") -> None:
        """Draw the way of a message to a handler."""
        way = [stop for name in channels_of(endpoint) for stop in self._stops(name)]
        way.append(f"{NodeKind.HANDLER}:{endpoint.id}")
        self._edge(message, way[0], EdgeKind.ROUTES, note=note)
        for before, after in pairwise(way):
            self._edge(before, after, EdgeKind.DELIVERS, carries=message)

    def _stops(self, name: str) -> Sequence[str]:
        channel = self._assembly.channels[name]
        stops = [channel]
        if isinstance(channel, ThroughOutbox):
            stops = [channel.outbox, channel.channel]
        return [
            self._node(NodeKind.CHANNEL, one.name, one.name, f"{type(one).__name__} ({abilities(one) or 'plain'})")
            for one in stops
        ]

    def _edge(self, source: str, target: str, kind: EdgeKind, *, carries: str | None = None, note: str = "") -> None:
        carried = self._edges.setdefault((source, target, kind), set())
        if carries is not None:
            carried.add(carries)
        if note:
            self._notes[source, target, kind] = note

    def finished(self) -> Diagram:
        """Return the diagram, in an order that does not depend on that of the handlers."""
        labels = _distinct(self._nodes.values())
        kinds, edge_kinds = list(NodeKind), list(EdgeKind)
        nodes = sorted(labels, key=lambda one: (kinds.index(one.kind), one.label, one.id))
        place = {node.id: number for number, node in enumerate(nodes)}
        edges = [
            Edge(
                *key,
                self._notes.get(key)
                or ", ".join(nodes[number].label for number in sorted(place[one] for one in messages)),
            )
            for key, messages in self._edges.items()
        ]
        edges.sort(key=lambda one: (place[one.source], place[one.target], edge_kinds.index(one.kind)))
        return Diagram(tuple(nodes), tuple(edges))


def _distinct(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes; of one kind, no two with the same label."""
    nodes = list(nodes)
    seen = [(node.kind, node.label) for node in nodes]
    for node in nodes:
        several = seen.count((node.kind, node.label)) > 1
        yield Node(node.id, node.kind, node.detail if several else node.label, node.detail)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _category(cls: type) -> str | None:
    model = model_of(cls)
    return None if model is None else model.category
