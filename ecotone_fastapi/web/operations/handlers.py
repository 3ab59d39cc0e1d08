"""Handlers: who handles what, through which channels, and everything that stands on the way to one of them."""

from dataclasses import dataclass

from fastapi import APIRouter, HTTPException

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.texts import NAME, cut
from ecotone_fastapi.modelling.factories import CreatesInstead
from ecotone_fastapi.operations.diagram import Diagram, diagram_of
from ecotone_fastapi.operations.journey import Journey, journey_to
from ecotone_fastapi.operations.mermaid import flowchart
from ecotone_fastapi.operations.wording import channels_of, told_kind, told_route, type_text
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import AfterQuery, LimitQuery


@dataclass(frozen=True, kw_only=True)
class HandlerItem:
    """A handler in the list.

    Args:
        id: Its id.
        label: Its name.
        kind: What it handles.
        route: The key of its messages, else their class.
        payload: The class of their payload; `None` when it takes none.
        channels: The channels that its messages go through, in this order; none when it runs in line.
        instead_of: The method that it makes a new aggregate for, when that finds none.
    """

    id: str
    label: str
    kind: Kind
    route: str | None
    payload: str | None
    channels: tuple[str, ...]
    instead_of: str | None


@dataclass(frozen=True, kw_only=True)
class HandlerPage:
    """Some handlers, in the order of what they handle and of their names.

    Args:
        items: The handlers.
        next: What to give as `after` to see the next page; `None` on the last one.
        total: How many there are, on all pages.
    """

    items: list[HandlerItem]
    next: str | None
    total: int


@dataclass(frozen=True, kw_only=True)
class DrawnDiagram(Diagram):
    """The flow of messages through the application.

    Args:
        nodes: In order: messages first, then channels, handlers, and what these work on.
        edges: In the order of their nodes.
        mermaid: The same as text of Mermaid, a flow chart from left to right.
    """

    mermaid: str


def add_handlers(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes about handlers."""

    @router.get("/handlers")
    async def handlers(limit: LimitQuery = 500, after: AfterQuery = None) -> HandlerPage:
        """Tell all handlers, the channels in front of them, and which messages they are for."""
        known = sorted(map(_item, ecotone.assembly.endpoints), key=_order)
        begin = 0
        if after is not None:
            begin = next((number for number, one in enumerate(known, start=1) if one.id == after), -1)
            if begin < 0:
                raise HTTPException(422, "This `after` was told by no page: leave it out to begin anew")
        items = known[begin : begin + limit]
        is_last = begin + limit >= len(known)
        return HandlerPage(items=items, next=None if is_last else items[-1].id, total=len(known))

    @router.get("/handlers/{id:path}", responses={404: {"description": "There is no such handler"}})
    async def journey(id: str) -> Journey:
        """Tell the way of a message to a handler with every interceptor, as `ecotone explain` does."""
        assembly = ecotone.assembly
        found = [one for one in assembly.endpoints if one.id == id] or [
            one for one in assembly.endpoints if one.label == id
        ]
        if not found:
            raise HTTPException(404, f"There is no handler {cut(id, NAME)!r}; /handlers tells which there are")
        return journey_to(found[0], assembly)

    @router.get("/diagram")
    async def diagram() -> DrawnDiagram:
        """Draw which messages reach which handlers, through which channels, and what comes of them."""
        drawn = diagram_of(ecotone.assembly)
        return DrawnDiagram(nodes=drawn.nodes, edges=drawn.edges, mermaid=flowchart(drawn))


def _item(endpoint: Endpoint) -> HandlerItem:
    beside, payload = endpoint.find(CreatesInstead), type_text(endpoint.payload_type)
    return HandlerItem(
        id=endpoint.id,
        label=endpoint.label,
        kind=told_kind(endpoint),
        route=told_route(endpoint) or payload,
        payload=payload,
        channels=channels_of(endpoint),
        instead_of=beside.method if beside is not None else None,
    )


def _order(one: HandlerItem) -> tuple[int, str, str]:
    return list(Kind).index(one.kind), one.label, one.id
