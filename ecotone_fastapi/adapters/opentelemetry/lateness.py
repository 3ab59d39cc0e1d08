"""Tells of a provider that comes too late: an application that is put together is not put together anew."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def told_when_late(
    is_there: Callable[[], bool], logger: logging.Logger, plugin: str, undone: str
) -> AsyncIterator[None]:
    """Warn at the start of an application that was put together without a provider when there is one by now.

    Args:
        is_there: Whether there is a provider.
        logger: Where it is told.
        plugin: What looked for it.
        undone: What is not done now.
    """
    if is_there():
        logger.warning(
            "%s: the provider of OpenTelemetry was set after the application was put together, by its first bus or "
            "its router; hint: set it before, or write %s(provider)",
            undone,
            plugin,
        )
    yield
