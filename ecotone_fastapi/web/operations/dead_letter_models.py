"""Dead letters as they are shown, and what is asked about them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field, model_validator

from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.texts import LINE, NAME, TEXT, cut, cut_or_none, cut_within
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterFilter, ParkedMessage
from ecotone_fastapi.web.operations.bodies import Asked
from ecotone_fastapi.web.operations.messages import cut_headers, payload_of
from ecotone_fastapi.web.operations.paging import Moment


@dataclass(frozen=True, kw_only=True)
class DeadLetterItem:
    """A dead letter in a list. Texts that are too long are cut, with a mark that says so.

    Args:
        id: Its id in the dead letter.
        message_id: The id of the message.
        type: The name of its type.
        channel: The channel that it was taken from.
        endpoint: The id of the handler that failed; `None` when that could not be told.
        error_type: Module and class of the exception.
        error_message: Its text.
        attempts: How many runs failed.
        deliveries: How often the message was lent to a consumer.
        replays: How often it had been here before, and was replayed.
        first_failed_at: When it failed for the first time; `None` when that was not written down.
        parked_at: When it was given up.
    """

    id: str
    message_id: str | None
    type: str | None
    channel: str
    endpoint: str | None
    error_type: str
    error_message: str
    attempts: int
    deliveries: int
    replays: int
    first_failed_at: datetime | None
    parked_at: datetime


@dataclass(frozen=True, kw_only=True)
class DeadLetterDetails(DeadLetterItem):
    """A dead letter with everything that is known of it. Texts that are too long are cut, with a mark that says so.

    Args:
        headers: The headers of the message.
        traceback: Where the handler failed; empty when it never ran. Of a long one, the beginning and the end.
        payload: The payload: its text, or base64 of its bytes; when it is too long, its beginning.
        payload_encoding: Which of both.
        payload_length: How many bytes it has in all.
        payload_cut: Whether this is only its beginning: then do not send it back as an edited one.
        revision: What tells this state of it from any other; sent back with an edit, it keeps others from being
            overruled.
    """

    headers: dict[str, str]
    traceback: str
    payload: str
    payload_encoding: Literal["text", "base64"]
    payload_length: int
    payload_cut: bool
    revision: str


@dataclass(frozen=True, kw_only=True)
class DeadLetterPage:
    """Some dead letters, the newest first.

    Args:
        items: The dead letters.
        next: What to give as `after` to see the next page; `None` on the last one.
        total: How many there are, on all pages.
    """

    items: list[DeadLetterItem]
    next: str | None
    total: int


@dataclass(frozen=True, kw_only=True)
class DeletedDeadLetters:
    """How many were deleted.

    Args:
        deleted: How many.
    """

    deleted: int


class FilterAsked(Asked):
    """Which dead letters are meant: those to which everything applies that is said here."""

    handler: str | None = Field(None, min_length=1, description="The id of the handler that failed.")
    error: str | None = Field(None, min_length=1, description="The class of the exception, with its module or without.")
    channel: str | None = Field(None, min_length=1, description="The channel that it was taken from.")
    text: str | None = Field(None, min_length=1, description="Is part of its id, error, traceback, headers or body.")
    tenant: str | None = Field(None, min_length=1, description="What its header `tenant` says.")
    since: Moment | None = Field(None, description="Parked at this moment or later, with its time zone.")
    until: Moment | None = Field(None, description="Parked before this moment, with its time zone.")

    def meant(self) -> DeadLetterFilter:
        """Return it as the dead letter knows it."""
        return DeadLetterFilter(
            endpoint=self.handler,
            error_type=self.error,
            channel=self.channel,
            text=self.text,
            tenant=self.tenant,
            since=self.since,
            until=self.until,
        )


async def filter_of_query(
    *,
    handler: Annotated[str | None, Query(description="The id of the handler that failed.")] = None,
    error: Annotated[str | None, Query(description="The class of the exception, with module or without.")] = None,
    channel: Annotated[str | None, Query(description="The channel that it was taken from.")] = None,
    text: Annotated[str | None, Query(description="Is part of its id, error, traceback, headers or body.")] = None,
    tenant: Annotated[str | None, Query(description="What its header `tenant` says.")] = None,
    since: Annotated[Moment | None, Query(description="Parked at this moment or later.")] = None,
    until: Annotated[Moment | None, Query(description="Parked before this moment.")] = None,
) -> DeadLetterFilter:
    """Return which dead letters are meant; what is left empty, as forms do, is not said."""
    return FilterAsked(
        handler=handler or None,
        error=error or None,
        channel=channel or None,
        text=text or None,
        tenant=tenant or None,
        since=since,
        until=until,
    ).meant()


class DeadLettersAsked(Asked):
    """Several dead letters: those with these ids, or those that a filter means. An empty filter, `{}`, means all."""

    ids: list[str] | None = Field(None, description="Their ids.")
    filter: FilterAsked | None = Field(None, description="Which ones; an empty one means all.")

    @model_validator(mode="after")
    def _says_which(self) -> "DeadLettersAsked":
        if (self.ids is None) is (self.filter is None):
            raise ValueError("say either ids or filter; an empty filter, {}, means all dead letters")
        return self


def item(parked: ParkedMessage) -> DeadLetterItem:
    """Return a dead letter as it is shown in a list."""
    return DeadLetterItem(
        id=cut(parked.id, LINE),
        message_id=cut_or_none(parked.message.headers.get(HeaderName.id), NAME),
        type=cut_or_none(parked.message.headers.get(HeaderName.type), NAME),
        channel=cut(parked.channel, NAME),
        endpoint=cut_or_none(parked.endpoint, NAME),
        error_type=cut(parked.error_type, NAME),
        error_message=cut(parked.error_message, LINE),
        attempts=parked.attempts,
        deliveries=parked.deliveries,
        replays=parked.replays,
        first_failed_at=parked.first_failed_at,
        parked_at=parked.parked_at,
    )


def details(parked: ParkedMessage) -> DeadLetterDetails:
    """Return a dead letter as it is shown alone."""
    shown, payload = item(parked), payload_of(parked.message)
    return DeadLetterDetails(
        **{**vars(shown), "error_message": cut(parked.error_message, TEXT)},
        headers=cut_headers(parked.message.headers),
        traceback=cut_within(parked.traceback, TEXT),
        payload=payload.payload,
        payload_encoding=payload.payload_encoding,
        payload_length=payload.payload_length,
        payload_cut=payload.payload_cut,
        revision=parked.revision,
    )
