"""Pages whose next one begins behind the last item, wherever that is by then."""

import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, TypeVar

from fastapi import HTTPException, Query
from pydantic import AfterValidator, AwareDatetime

T = TypeVar("T")

LimitQuery = Annotated[int, Query(ge=1, le=500, description="How many items at most.")]
AfterQuery = Annotated[str | None, Query(max_length=4000, description="What the page before has told as `next`.")]

_YEARS = range(1970, 9999)  # every database can keep them, in every time zone


def in_reach(moment: datetime) -> datetime:
    """Return a moment that every database can keep.

    Raises:
        ValueError: It is another one.
    """
    if moment.year not in _YEARS:
        raise ValueError("no message is so old or so far away: say a moment from 1970 to 9998")
    return moment


Moment = Annotated[AwareDatetime, AfterValidator(in_reach)]
"""A moment with its time zone that every database can keep."""


@dataclass(frozen=True)
class Place:
    """Behind which item a page begins.

    Args:
        moment: What the items are ordered by.
        id: Which of the items with the same moment it is.
    """

    moment: datetime
    id: str

    def written(self) -> str:
        """Return it as it is given to a client, for whom it is just a text."""
        return base64.urlsafe_b64encode(json.dumps([self.moment.isoformat(), self.id]).encode()).decode()


def place(after: str | None) -> Place | None:
    """Return where a page begins; `None` at the beginning.

    Raises:
        HTTPException: It is not what a page before has told.
    """
    if after is None:
        return None
    try:
        moment, id_ = json.loads(base64.urlsafe_b64decode(after.encode("ascii")))
        found = Place(datetime.fromisoformat(moment), str(id_))
        if found.moment.tzinfo is None:
            raise ValueError(moment)
        in_reach(found.moment)
    except (ValueError, TypeError, RecursionError) as error:
        raise HTTPException(422, "This `after` was told by no page: leave it out to begin anew") from error
    return found


def page_of_names(names: Iterable[str], after: str | None, limit: int) -> tuple[list[str], str | None]:
    """Return the names of a page in their order, and behind which one the next page begins, if there is one.

    Args:
        names: All of them.
        after: Behind which name the page begins, whether that is still there or not.
        limit: How many it has at most.

    Example:
        >>> page_of_names(["orders", "bills", "mails"], "carts", 1)
        (['mails'], 'mails')
    """
    behind = sorted(name for name in set(names) if after is None or name > after)
    found = behind[:limit]
    return found, found[-1] if len(behind) > limit else None


async def page(
    fetch: Callable[[int, int], Awaitable[Sequence[T]]], place_of: Callable[[T], Place], begin: Place | None, limit: int
) -> tuple[list[T], str | None]:
    """Return the items of a page, and where the next one begins, if there is one.

    Args:
        fetch: Returns items from the moment of `begin` on, that one included; is told how many, and how many of them to
            leave out.
        place_of: Tells where an item is.
        begin: Behind which item the page begins.
        limit: How many items it has at most.
    """
    found: list[T] = []
    tied: list[T] = []
    searching = begin is not None
    offset = 0
    while len(found) <= limit:
        wanted = limit + 1
        items = await fetch(wanted, offset)
        offset += len(items)
        for item in items:
            where = place_of(item)
            if not searching:
                found.append(item)
            elif begin is not None and where.moment == begin.moment:
                tied.append(item)
                if where.id == begin.id:
                    tied, searching = [], False
            else:
                # The item is gone. Those of the same moment come once more: better than never.
                found += [*tied, item]
                searching = False
        if len(items) < wanted:
            break
    if searching:
        found += tied
    items = found[:limit]
    return items, place_of(items[-1]).written() if len(found) > limit else None
