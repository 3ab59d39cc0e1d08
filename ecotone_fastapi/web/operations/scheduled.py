"""Messages that wait under a key: looked at, called off, put off."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import Field

from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.texts import NAME, cut, cut_or_none
from ecotone_fastapi.messaging.scheduling import ScheduledMessage, ScheduledMessages
from ecotone_fastapi.web.operations.bodies import Asked, body_of, described
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import AfterQuery, LimitQuery, Moment, Place, page, place

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "Nothing waits under this key"}}


@dataclass(frozen=True, kw_only=True)
class ScheduledItem:
    """A message that waits under a key. Texts that are too long are cut, with a mark that says so.

    Args:
        key: The key, all of it: what it is called off and put off by.
        channel: The channel that it waits on, or that it will come to from the outbox.
        endpoint: The id of the handler that it is meant for.
        due_at: When it will be handled, or has been due since.
        message_id: The id of the message.
        type: The name of its type.
    """

    key: str
    channel: str
    endpoint: str | None
    due_at: datetime
    message_id: str | None
    type: str | None


@dataclass(frozen=True, kw_only=True)
class ScheduledPage:
    """Some messages that wait under a key, the next one first.

    Args:
        items: The messages.
        next: What to give as `after` to see the next page; `None` on the last one.
        total: How many there are, on all pages.
    """

    items: list[ScheduledItem]
    next: str | None
    total: int


@dataclass(frozen=True, kw_only=True)
class CancelledMessages:
    """What was called off.

    Args:
        cancelled: How many messages that were.
    """

    cancelled: int


@dataclass(frozen=True, kw_only=True)
class RescheduledMessages:
    """What was put off.

    Args:
        rescheduled: How many messages that were.
    """

    rescheduled: int


class RescheduleAsked(Asked):
    """When what waits is to be due."""

    due_at: Moment = Field(description="The moment, with its time zone; what is past is due now.")


class KeyAsked(Asked):
    """Under which key something waits."""

    key: str = Field(description="The key, with all of its characters.")


class KeyRescheduleAsked(KeyAsked, RescheduleAsked):
    """Under which key something waits, and when it is to be due."""


def add_scheduled(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes about messages that wait under a key."""

    def kept() -> ScheduledMessages:
        return cast("ScheduledMessages", ecotone.assembly.services[ScheduledMessages])

    @router.get("/scheduled")
    async def scheduled(
        key: Annotated[str | None, Query(description="Only what waits under this key.")] = None,
        channel: Annotated[
            str | None, Query(pattern=r"^[^\x00]*$", description="Only what will come to this channel.")
        ] = None,
        limit: LimitQuery = 50,
        after: AfterQuery = None,
    ) -> ScheduledPage:
        """Tell which messages wait under a key, the next one first."""
        begin = place(after)
        since = begin.moment if begin is not None else None

        async def fetch(wanted: int, offset: int) -> Sequence[ScheduledMessage]:
            return await kept().list(key or None, channel=channel or None, since=since, limit=wanted, offset=offset)

        found, following = await page(fetch, _place_of, begin, limit)
        total = await kept().count(key or None, channel=channel or None)
        return ScheduledPage(items=[_item(one) for one in found], next=following, total=total)

    @router.post("/scheduled/cancel", responses=_NOT_FOUND, openapi_extra=described(KeyAsked))
    async def cancel_key(asked: Annotated[KeyAsked, Depends(body_of(KeyAsked))]) -> CancelledMessages:
        """Call off what waits under a key that no address can have: `..`, or one that is too long for it."""
        return await cancel(asked.key)

    @router.post("/scheduled/reschedule", responses=_NOT_FOUND, openapi_extra=described(KeyRescheduleAsked))
    async def reschedule_key(
        asked: Annotated[KeyRescheduleAsked, Depends(body_of(KeyRescheduleAsked))],
    ) -> RescheduledMessages:
        """Let what waits under a key be due at another time, whatever characters it has."""
        return await reschedule(asked.key, asked)

    @router.delete("/scheduled/{key:path}", responses=_NOT_FOUND)
    async def cancel(key: str) -> CancelledMessages:
        """Call off what waits under a key. What a consumer has borrowed already is handled."""
        return CancelledMessages(cancelled=_some(await kept().cancel(key), key))

    @router.post("/scheduled/{key:path}/reschedule", responses=_NOT_FOUND, openapi_extra=described(RescheduleAsked))
    async def reschedule(
        key: str, asked: Annotated[RescheduleAsked, Depends(body_of(RescheduleAsked))]
    ) -> RescheduledMessages:
        """Let what waits under a key be due at another time."""
        return RescheduledMessages(rescheduled=_some(await kept().reschedule(key, asked.due_at), key))


def _some(count: int, key: str) -> int:
    if not count:
        raise HTTPException(404, f"Nothing waits under the key {cut(key, NAME)!r}")
    return count


def _place_of(one: ScheduledMessage) -> Place:
    # Messages for several handlers of one event have one id. Keys are of any length, and addresses are not.
    which = f"{one.message.headers.get(HeaderName.id)} {one.endpoint} {one.key}"
    return Place(one.due_at, hashlib.sha256(which.encode(errors="backslashreplace")).hexdigest())


def _item(one: ScheduledMessage) -> ScheduledItem:
    return ScheduledItem(
        key=cut(one.key, len(one.key)),
        channel=cut(one.channel, NAME),
        endpoint=cut_or_none(one.endpoint, NAME),
        due_at=one.due_at,
        message_id=cut_or_none(one.message.headers.get(HeaderName.id), NAME),
        type=cut_or_none(one.message.headers.get(HeaderName.type), NAME),
    )
