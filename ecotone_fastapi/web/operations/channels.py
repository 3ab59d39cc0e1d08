"""Channels: how they are, what waits on them, and their consumers, which can pause and go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import Field

from ecotone_fastapi.core.message import Message
from ecotone_fastapi.operations.report import ChannelReport
from ecotone_fastapi.web.operations.bodies import Asked, body_of, described
from ecotone_fastapi.web.operations.messages import ShownMessage, shown
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import AfterQuery, LimitQuery, page_of_names

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such channel"}}
_NOT_POSSIBLE: dict[int | str, dict[str, Any]] = {
    **_NOT_FOUND,
    409: {"description": "It has no consumer, or shows no messages; the detail says which"},
}


@runtime_checkable
class ShowsMessages(Protocol):
    """A channel whose messages can be looked at without consuming them."""

    async def peek(self, limit: int = 100) -> Sequence[Message[bytes]]:
        """Return the next messages, without lending them."""
        ...


@dataclass(frozen=True, kw_only=True)
class WaitingMessages:
    """What waits on a channel.

    Args:
        items: The next messages, delayed ones included; those that are lent to a consumer are not among them.
        more: Whether there are more than were asked for.
    """

    items: list[ShownMessage]
    more: bool


@dataclass(frozen=True, kw_only=True)
class ChannelPage:
    """Some channels, in the order of their names.

    Args:
        items: The channels.
        next: What to give as `after` to see the next page; `None` on the last one.
        total: How many there are, on all pages.
    """

    items: list[ChannelReport]
    next: str | None
    total: int


class PauseAsked(Asked):
    """Why a consumer is to pause."""

    reason: str = Field("", max_length=1000, description="Why, for those who come after you.")


def add_channels(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes about channels."""

    @router.get("/channels")
    async def channels(limit: LimitQuery = 50, after: AfterQuery = None) -> ChannelPage:
        """Tell how channels are, and their consumers in this process; those that are on no page are not asked."""
        known = ecotone.overview.channel_names
        names, following = page_of_names(known, after, limit)
        return ChannelPage(items=list(await ecotone.overview.channels(names)), next=following, total=len(known))

    @router.get("/channels/{name:path}/messages", responses=_NOT_POSSIBLE)
    async def messages(name: str, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> WaitingMessages:
        """Show the next messages of a channel, without taking them from anybody."""
        channel = ecotone.assembly.channels.get(name)
        if channel is None:
            raise _unknown(name, ecotone)
        if not isinstance(channel, ShowsMessages):
            raise HTTPException(409, f"{type(channel).__name__} {name!r} shows its messages to nobody but its consumer")
        found = await channel.peek(limit + 1)
        return WaitingMessages(items=[shown(one) for one in found[:limit]], more=len(found) > limit)

    @router.post("/channels/{name:path}/pause", responses=_NOT_POSSIBLE, openapi_extra=described(PauseAsked))
    async def pause(name: str, asked: Annotated[PauseAsked, Depends(body_of(PauseAsked))]) -> ChannelReport:
        """Let the consumers of a channel pause: with a database, in all processes, until they are resumed."""
        await _report(name, ecotone)
        await ecotone.consumers.pause(name, reason=asked.reason)
        return await _report(name, ecotone)

    @router.post("/channels/{name:path}/resume", responses=_NOT_POSSIBLE)
    async def resume(name: str) -> ChannelReport:
        """Let the consumers of a channel go on that were paused."""
        await _report(name, ecotone)
        await ecotone.consumers.resume(name)
        return await _report(name, ecotone)

    @router.get("/channels/{name:path}", responses=_NOT_FOUND)
    async def channel(name: str) -> ChannelReport:
        """Tell how one channel is; that of an outbox, too."""
        return await _report(name, ecotone)


async def _report(name: str, ecotone: Operated) -> ChannelReport:
    found = await ecotone.overview.channel(name)
    if found is None:
        raise _unknown(name, ecotone)
    return found


def _unknown(name: str, ecotone: Operated) -> HTTPException:
    return HTTPException(404, f"There is no channel {name!r}; known are: {', '.join(ecotone.assembly.channels)}")
