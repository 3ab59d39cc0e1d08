"""From an error to an HTTP status: one table, as exception handlers that an application may leave out."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Response, WebSocket
from fastapi.websockets import WebSocketState
from pydantic_core import to_json
from starlette.status import WS_1008_POLICY_VIOLATION, WS_1011_INTERNAL_ERROR

from ecotone_fastapi.core.errors import (
    AggregateNotFoundError,
    ChannelError,
    ConcurrencyError,
    ConversionError,
    DeadLetterNotFoundError,
    DocumentNotFoundError,
    DuplicateDocumentError,
    EcotoneError,
    HandlerNotFoundError,
    RowNotFoundError,
)

STATUS: dict[type[EcotoneError], int] = {
    ConversionError: 422,
    HandlerNotFoundError: 404,
    AggregateNotFoundError: 404,
    DeadLetterNotFoundError: 404,
    DocumentNotFoundError: 404,
    RowNotFoundError: 404,
    DuplicateDocumentError: 409,
    ConcurrencyError: 409,
    ChannelError: 503,
}
"""Every error that a caller can do something about. All others are 500, as everywhere in FastAPI."""


def add_error_handlers(app: FastAPI) -> None:
    """Answer these errors with their status and a JSON body `{"detail": ...}`.

    Handlers that the application has for one of these classes itself are kept.

    Example:
        >>> app = FastAPI()
        >>> add_error_handlers(app)
    """
    for error_type in STATUS:
        if error_type not in app.exception_handlers:
            app.add_exception_handler(error_type, answer)


async def answer(connection: Any, error: Exception) -> Any:
    """Return the response for one of the errors in `STATUS`; close a WebSocket instead.

    The body has the shape of FastAPI's own validation errors where pydantic has told details, so that clients need one
    reader for both.

    Args:
        connection: The `Request` or `WebSocket`.
        error: What was raised.

    Raises:
        EcotoneError: A handler has sent a message with a wrong payload or route. That is no fault of the caller, who
            gets what every other bug gives: 500, and nothing of the message.
    """
    if isinstance(error, ConversionError | HandlerNotFoundError) and error.nested:
        raise error
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    detail: Any = error.what if isinstance(error, EcotoneError) else str(error)
    if isinstance(connection, WebSocket):
        if connection.application_state is not WebSocketState.DISCONNECTED:
            code = WS_1011_INTERNAL_ERROR if status >= 500 else WS_1008_POLICY_VIOLATION
            await connection.close(code, _fitting_a_frame(detail))
        return None
    if isinstance(error, ConversionError) and error.details:
        detail = [_in_body(entry) for entry in error.details]
    # What was sent is part of the details, and may be anything.
    body = to_json({"detail": detail}, serialize_unknown=True, bytes_mode="base64", inf_nan_mode="null")
    return Response(body, status, media_type="application/json")


def _in_body(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A detail as FastAPI would give it, had it read the body."""
    sent = entry.get("input")
    text = sent.decode(errors="replace") if isinstance(sent, bytes) else sent
    return {**entry, "loc": ["body", *entry.get("loc", ())], "input": text}


def _fitting_a_frame(reason: str) -> str:
    """The beginning of a text: the reason for closing a WebSocket is 123 bytes at most."""
    return reason.encode()[:123].decode(errors="ignore")
