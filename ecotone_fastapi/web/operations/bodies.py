"""Bodies of requests, read behind the door: FastAPI would read and judge them in front of it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from ecotone_fastapi.web.operations.opening import is_admitted

M = TypeVar("M", bound="Asked")


class Asked(BaseModel, extra="forbid"):
    """What a request asks for. What is misspelled is refused: a filter that nobody reads would mean everything."""


def body_of(model: type[M]) -> Callable[[Request], Awaitable[M | None]]:
    """Return a dependency that reads the body of a request; without any, nothing is said.

    Args:
        model: What it is to be.
    """

    async def read(request: Request) -> M | None:
        if not is_admitted(request):
            return None  # nobody will ask for it
        try:
            return model.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            # What was sent is not sent back: it may be anything.
            details = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in details]) from error

    return read


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI is to say of a body that is read by `body_of`."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": _whole(schema, schema.pop("$defs", {}))}}
    return {
        "requestBody": {"required": any(one.is_required() for one in model.model_fields.values()), "content": content}
    }


def _whole(part: Any, definitions: Mapping[str, Any]) -> Any:
    """Put definitions where they are referred to: in the document that this becomes a part of, nobody finds them."""
    if isinstance(part, list):
        return [_whole(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    defined = definitions.get(str(part.get("$ref")).rpartition("/")[2], {})
    own = {name: one for name, one in part.items() if name != "$ref"}
    return {name: _whole(one, definitions) for name, one in {**defined, **own}.items()}
