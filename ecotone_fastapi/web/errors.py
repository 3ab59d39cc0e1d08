"""From an error to an HTTP status: one table, as exception handlers that an application may leave out."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ecotone_fastapi.core.errors import (
    AggregateNotFoundError,
    ChannelError,
    ConcurrencyError,
    ConversionError,
    DeadLetterNotFoundError,
    EcotoneError,
    HandlerNotFoundError,
)

STATUS: dict[type[EcotoneError], int] = {
    ConversionError: 422,
    HandlerNotFoundError: 404,
    AggregateNotFoundError: 404,
    DeadLetterNotFoundError: 404,
    ConcurrencyError: 409,
    ChannelError: 503,
}
"""Every error that a caller can do something about. All others are 500, as everywhere in FastAPI."""


def add_error_handlers(app: FastAPI) -> None:
    """Answer these errors with their status and a JSON body `{"detail": ...}`.

    Handlers that the application has for one of these classes itself are kept.
    """
    for error_type in STATUS:
        if error_type not in app.exception_handlers:
            app.add_exception_handler(error_type, answer)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Return the response for one of the errors in `STATUS`."""
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    detail: Any = str(error)
    if isinstance(error, ConversionError) and error.details:
        # The same shape as FastAPI's own validation errors, so that clients need one reader.
        detail = [{**entry, "loc": ["body", *entry.get("loc", ())]} for entry in error.details]
    elif isinstance(error, EcotoneError):
        detail = error.what
    return JSONResponse({"detail": detail}, status_code=status)
