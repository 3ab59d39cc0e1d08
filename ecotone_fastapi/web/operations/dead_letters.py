"""Dead letters: looked at by filters, and deleted, one or many."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterFilter, ParkedMessage
from ecotone_fastapi.web.operations.bodies import body_of, described
from ecotone_fastapi.web.operations.dead_letter_models import (
    DeadLetterDetails,
    DeadLetterPage,
    DeadLettersAsked,
    DeletedDeadLetters,
    details,
    filter_of_query,
    item,
)
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import AfterQuery, LimitQuery, Place, page, place

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No dead letter has this id"}}
_STEP = timedelta(microseconds=1)  # between two moments that databases can tell apart


def add_dead_letters(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes about dead letters."""

    @router.get("/dead-letters")
    async def list_dead_letters(
        which: Annotated[DeadLetterFilter, Depends(filter_of_query)], limit: LimitQuery = 50, after: AfterQuery = None
    ) -> DeadLetterPage:
        """Tell which messages were given up, the newest first."""
        begin = place(after)
        behind = which
        if begin is not None:
            last = begin.moment + _STEP
            behind = replace(which, until=last if which.until is None else min(which.until, last))

        async def fetch(wanted: int, offset: int) -> Sequence[ParkedMessage]:
            return await ecotone.dead_letters.list(behind, limit=wanted, offset=offset)

        found, following = await page(fetch, _place_of, begin, limit)
        total = await ecotone.dead_letters.count(which)
        return DeadLetterPage(items=[item(one) for one in found], next=following, total=total)

    @router.post("/dead-letters/delete", openapi_extra=described(DeadLettersAsked))
    async def delete_dead_letters(
        asked: Annotated[DeadLettersAsked, Depends(body_of(DeadLettersAsked))],
    ) -> DeletedDeadLetters:
        """Delete dead letters for good."""
        if asked.filter is not None:
            return DeletedDeadLetters(deleted=await ecotone.dead_letters.delete_all(asked.filter.meant()))
        deleted = 0
        for id_ in dict.fromkeys(asked.ids or ()):
            try:
                await ecotone.dead_letters.delete(id_)
            except DeadLetterNotFoundError:
                continue  # somebody else was faster: it is gone, as was wanted
            deleted += 1
        return DeletedDeadLetters(deleted=deleted)

    @router.get("/dead-letters/{id:path}", responses=_NOT_FOUND)
    async def show_dead_letter(id: str) -> DeadLetterDetails:
        """Show a dead letter with its payload, headers and traceback."""
        return details(await ecotone.dead_letters.get(id))

    @router.delete("/dead-letters/{id:path}", status_code=204, responses=_NOT_FOUND)
    async def delete_dead_letter(id: str) -> None:
        """Delete a dead letter for good."""
        await ecotone.dead_letters.delete(id)


def _place_of(parked: ParkedMessage) -> Place:
    return Place(parked.parked_at, parked.id)
