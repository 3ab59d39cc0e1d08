"""Dead letters that go back: one as it was seen, or many, all of which are tried however many they are.

Those that fail again are not tried again by the same wish, however many requests it takes: what is parked after the
first of them is not meant.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import Field

from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.texts import LINE, cut
from ecotone_fastapi.web.operations.bodies import Asked, body_of, described
from ecotone_fastapi.web.operations.dead_letter_models import DeadLettersAsked
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import in_reach

_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No dead letter has this id"},
    409: {"description": "Somebody else has edited it meanwhile, or there is no such channel or handler"},
}
_TOLD = 100  # refusals that an answer tells one by one
_STEP = 100  # replays between two looks whether the client is still there
_SHORTEST = timedelta(microseconds=1)  # between two moments that databases can tell apart


class _GoesTo(Asked):
    to: str | None = Field(None, description="Another channel than the one that it was taken from.")


class ReplayAsked(_GoesTo):
    """Where a dead letter is to go, and as what it was seen."""

    revision: str | None = Field(
        None, description="The revision that was shown: when it has another one by now, it stays where it is."
    )


class SeveralReplaysAsked(DeadLettersAsked, _GoesTo):
    """Several dead letters that are to be replayed."""

    limit: int | None = Field(
        None, ge=1, description="How many are tried before the answer, the oldest first; all, unless told otherwise."
    )
    after: str | None = Field(None, description="What the answer before has told as `next`, to go on behind those.")


@dataclass(frozen=True, kw_only=True)
class ReplayedDeadLetters:
    """What became of those that were to be replayed.

    Args:
        replayed: How many went back to their channels.
        refused: Why others did not, by their ids, for the first hundred of them; they are where they were.
        refused_count: How many were refused.
        remaining: How many were not tried, because so many were as had been asked for.
        next: What to give as `after` to go on with these; `None` when all were tried.
    """

    replayed: int
    refused: dict[str, str]
    refused_count: int
    remaining: int
    next: str | None


def add_replays(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes that let dead letters go back."""

    @router.post("/dead-letters/replay", openapi_extra=described(SeveralReplaysAsked))
    async def replay_dead_letters(
        request: Request, asked: Annotated[SeveralReplaysAsked, Depends(body_of(SeveralReplaysAsked))]
    ) -> ReplayedDeadLetters:
        """Send dead letters back to the channels they failed on, the oldest first; those that cannot go back stay.

        It ends early when the client is gone. With `limit` and `after` it is done step by step, which tells how far it
        is. What fails again meanwhile is parked again, and is not tried once more by a later step.
        """
        behind = _read(asked.after)
        ids = await _ids(asked, behind, ecotone)
        wanted = ids[: asked.limit]
        if len(wanted) < len(ids) and behind.until is None and asked.filter is not None:
            for newest in await ecotone.dead_letters.list(asked.filter.meant(), limit=1):
                behind = replace(behind, until=newest.parked_at + _SHORTEST)
        tried = 0
        refused: dict[str, str] = {}

        def count(done: int, of: int) -> None:
            nonlocal tried
            tried += 1

        while tried < len(wanted) and not await request.is_disconnected():
            try:
                found = await ecotone.dead_letters.replay_all(
                    wanted[tried : tried + _STEP], to=asked.to, progress=count
                )
            except ChannelError as error:
                if tried:
                    raise HTTPException(503, f"{tried} of {len(ids)} were tried before this: {error.what}") from error
                raise
            refused |= {id_: error.what for id_, error in found.refused.items()}
        # Those that went back are not found any more, those that were refused are.
        last = wanted[tried - 1 : tried] if asked.ids is not None else list(refused)[-1:]
        return ReplayedDeadLetters(
            replayed=tried - len(refused),
            refused={cut(id_, LINE): cut(why, LINE) for id_, why in list(refused.items())[:_TOLD]},
            refused_count=len(refused),
            remaining=len(ids) - tried,
            next=replace(behind, id=last[0] if last else behind.id).written() if tried < len(ids) else None,
        )

    @router.post(
        "/dead-letters/{id:path}/replay",
        status_code=204,
        responses=_ANSWERS,
        openapi_extra=described(ReplayAsked),
    )
    async def replay_dead_letter(id: str, asked: Annotated[ReplayAsked, Depends(body_of(ReplayAsked))]) -> None:
        """Send a dead letter back to the channel it failed on; only the handler that failed runs again."""
        await ecotone.dead_letters.replay(id, to=asked.to, revision=asked.revision)


@dataclass(frozen=True, kw_only=True)
class _Behind:
    """Where a wish that takes several requests goes on.

    Args:
        until: What is parked from this moment on is not meant: it came when the first request was answered.
        id: The last one that was tried and can still be found.
    """

    until: datetime | None = None
    id: str | None = None

    def written(self) -> str:
        until = None if self.until is None else self.until.isoformat()
        return base64.urlsafe_b64encode(json.dumps([until, self.id]).encode()).decode()


def _read(after: str | None) -> _Behind:
    if after is None:
        return _Behind()
    try:
        until, id_ = json.loads(base64.urlsafe_b64decode(after.encode("ascii")))
        moment = None if until is None else in_reach(datetime.fromisoformat(until))
        found = _Behind(until=moment, id=None if id_ is None else str(id_))
        if moment is not None and moment.tzinfo is None:
            raise ValueError(until)
    except (ValueError, TypeError, RecursionError) as error:
        raise HTTPException(422, "This `after` was told by no answer: leave it out to begin anew") from error
    return found


async def _ids(asked: SeveralReplaysAsked, behind: _Behind, ecotone: Operated) -> Sequence[str]:
    """Return the ids of those that are meant and not tried yet, the oldest first."""
    if asked.filter is None:
        ids: Sequence[str] = list(dict.fromkeys(asked.ids or ()))
    else:
        meant = asked.filter.meant()
        ends = [moment for moment in (meant.until, behind.until) if moment is not None]
        ids = await ecotone.dead_letters.ids(replace(meant, until=min(ends, default=None)))
    # One that is gone by now had been refused: those before it are tried once more, and refused as before.
    return ids[ids.index(behind.id) + 1 :] if behind.id in ids else ids
