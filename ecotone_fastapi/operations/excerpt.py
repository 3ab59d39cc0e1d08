"""A part of a diagram: what leads to some of its nodes, and what comes of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ecotone_fastapi.operations.diagram import Diagram, Node
from ecotone_fastapi.operations.wording import unknown


def excerpt(diagram: Diagram, names: Sequence[str]) -> Diagram:
    """Return the part of a diagram that has to do with some nodes.

    Args:
        diagram: The whole.
        names: Labels or ids of nodes, or the ends of these: `Order`, `place_order`, `channel:mails`.

    Raises:
        ConfigurationError: Nothing is called so.
    """
    chosen = [node.id for name in names for node in _called(name, diagram)]
    forwards, backwards = defaultdict(list), defaultdict(list)
    for edge in diagram.edges:
        forwards[edge.source].append(edge.target)
        backwards[edge.target].append(edge.source)
    after, before = _reached(chosen, forwards), _reached(chosen, backwards)
    kept = after | before
    return Diagram(
        tuple(node for node in diagram.nodes if node.id in kept),
        # Between what leads here and what comes of it there may be other ways, which are about something else.
        tuple(
            edge
            for edge in diagram.edges
            if {edge.source, edge.target} <= after or {edge.source, edge.target} <= before
        ),
    )


def _called(name: str, diagram: Diagram) -> Sequence[Node]:
    exact = [one for one in diagram.nodes if name in (one.id, one.label)]
    if exact:
        return exact
    ends = (f".{name}", f":{name}", f"/{name}")
    similar = [one for one in diagram.nodes if one.id.endswith(ends) or one.label.endswith(ends)]
    if not similar:
        raise unknown("node", name, (one.label for one in diagram.nodes))
    return similar


def _reached(start: Iterable[str], ways: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    open_ = list(start)
    while open_:
        here = open_.pop()
        if here not in found:
            found.add(here)
            open_ += ways[here]
    return found
