"""Everything that can be operated, on one router behind one door."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, HTTPException

from ecotone_fastapi.core.texts import NAME, cut
from ecotone_fastapi.web.operations.asyncapi import add_asyncapi
from ecotone_fastapi.web.operations.channels import add_channels
from ecotone_fastapi.web.operations.dead_letters import add_dead_letters
from ecotone_fastapi.web.operations.edits import add_edits
from ecotone_fastapi.web.operations.ending import Ending
from ecotone_fastapi.web.operations.handlers import add_handlers
from ecotone_fastapi.web.operations.live import add_live
from ecotone_fastapi.web.operations.opening import Operated, opened_to
from ecotone_fastapi.web.operations.overviews import add_overview
from ecotone_fastapi.web.operations.projections import add_projections
from ecotone_fastapi.web.operations.replays import add_replays
from ecotone_fastapi.web.operations.scheduled import add_scheduled
from ecotone_fastapi.web.page import add_page


def operations_router(ecotone: Operated, dependencies: Sequence[Any] | None) -> APIRouter:
    """Return the router with all operations.

    Args:
        ecotone: What is operated.
        dependencies: What lets those pass who may; without it, nobody.
    """
    ending = Ending()
    router = opened_to(dependencies, ending.lifespan)
    # Each adds its routes to this very router: only so its dependencies stand before every one of them.
    for add in (
        add_overview,
        add_channels,
        add_dead_letters,
        add_replays,
        add_edits,
        add_scheduled,
        add_projections,
        add_handlers,
        add_asyncapi,
    ):
        add(router, ecotone)
    add_live(router, ecotone, ending)
    add_page(router)
    router.add_api_route("/{path:path}", nowhere, methods=_METHODS, include_in_schema=False, status_code=204)
    return router


_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def nowhere(path: str) -> None:
    """Stand where there is nothing else: whoever may not operate does not learn by trying what there is.

    Raises:
        HTTPException: Always.
    """
    raise HTTPException(404, f"There is nothing at {cut(path, NAME)!r}, or nothing that could be asked in this way")
