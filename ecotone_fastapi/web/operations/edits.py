"""Dead letters that are mended: another payload, other headers, and then replayed or kept."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException
from pydantic import Field, StringConstraints, model_validator

from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.messaging.dead_letter_store import ParkedMessage
from ecotone_fastapi.web.operations.bodies import Asked, body_of, described
from ecotone_fastapi.web.operations.opening import Operated

_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"description": "No dead letter has this id"},
    409: {"description": "Somebody else has edited it meanwhile, or there is no such channel or handler"},
}

_Name = Annotated[str, StringConstraints(min_length=1)]


class EditAsked(Asked):
    """What a dead letter is to say instead. What is not said stays as it was."""

    payload: str | None = Field(None, description="What it is to say: text as it goes over the wire, or base64.")
    payload_encoding: Literal["text", "base64"] = Field("text", description="Which of both the payload is.")
    headers: dict[_Name, str | None] = Field(
        default_factory=dict, description="Headers to set; null takes one away. `endpoint` may name another handler."
    )
    replay: bool = Field(False, description="Whether it goes back to its channel at once.")
    to: str | None = Field(None, description="Where it goes, if not to the channel that it was taken from.")
    revision: str | None = Field(
        None, description="The revision that was shown: when it has another one by now, nothing is changed."
    )

    @model_validator(mode="after")
    def _says_something(self) -> "EditAsked":
        if self.to is not None and not self.replay:
            raise ValueError("what is not replayed goes nowhere: leave `to` out, or say replay: true")
        if self.payload is None and not self.headers and not self.replay:
            raise ValueError("nothing is to be changed: give a payload, headers or both")
        if self.headers.get(HeaderName.endpoint) == "":
            raise ValueError("no handler has an empty id: say another `endpoint`, or null for none")
        return self


@dataclass(frozen=True, kw_only=True)
class EditedDeadLetter:
    """What became of a dead letter.

    Args:
        id: Its id, which stays the same as long as it is there.
        replayed: Whether it went back to a channel; else it is where it was, as edited.
    """

    id: str
    replayed: bool


def add_edits(router: APIRouter, ecotone: Operated) -> None:
    """Add the route that edits dead letters."""

    @router.post("/dead-letters/{id:path}/edit", responses=_ANSWERS, openapi_extra=described(EditAsked))
    async def edit(id: str, asked: Annotated[EditAsked, Depends(body_of(EditAsked))]) -> EditedDeadLetter:
        """Change payload and headers of a dead letter, and replay it or leave it where it is."""
        edited: dict[str, Any] = {"headers": asked.headers, "revision": asked.revision}
        if asked.payload is not None:
            edited["payload"] = _payload(asked, await ecotone.dead_letters.get(id))
        if asked.replay:
            await ecotone.dead_letters.replay(id, to=asked.to, **edited)
        else:
            await ecotone.dead_letters.edit(id, **edited)
        return EditedDeadLetter(id=id, replayed=asked.replay)


def _payload(asked: EditAsked, parked: ParkedMessage) -> bytes:
    assert asked.payload is not None
    if asked.payload_encoding == "base64":
        try:
            return base64.b64decode(asked.payload, validate=True)
        except ValueError as error:
            raise HTTPException(422, f"The payload is no base64: {error}") from error
    headers: Mapping[str, str | None] = {**parked.message.headers, **asked.headers}
    if "json" in (headers.get(HeaderName.content_type) or ""):
        try:
            json.loads(asked.payload, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:  # it would come back at once
            raise HTTPException(422, f"The payload is to be JSON, and is none: {error}") from error
    return asked.payload.encode()


def _no_number(name: str) -> None:
    # Python reads NaN and Infinity; JSON has no such numbers, and others would refuse them.
    raise ValueError(f"{name} is no number in JSON")
