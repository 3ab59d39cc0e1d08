"""Liveness and readiness that tell the truth about each consumer and each server."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Response

from ecotone_fastapi.core.supervision import RunnableHealth


@dataclass(frozen=True)
class Health:
    """How an application is.

    Args:
        running: Whether it was started and has not been stopped.
        runnables: Every consumer that this process is to run.
        servers: For every database and broker that can be asked, its error, or `None` when it answers.
    """

    running: bool
    runnables: tuple[RunnableHealth, ...] = ()
    servers: dict[str, str | None] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether everything works."""
        return self.running and all(one.ready for one in self.runnables) and not any(self.servers.values())

    def report(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {
            "status": "ready" if self.ready else "not ready" if self.running else "not running",
            "consumers": {
                one.name: {
                    "condition": one.condition.value,
                    "failures": one.failures,
                    "last_error": one.last_error,
                    **_pause_of(one),
                }
                for one in self.runnables
            },
            "servers": {name: error or "ok" for name, error in self.servers.items()},
        }


def _pause_of(health: RunnableHealth) -> dict[str, Any]:
    """Why one pauses and since when; nothing when it does not."""
    pauses = [
        {
            "reason": hold.reason,
            "since": hold.since.isoformat(),
            **({"until": hold.until.isoformat()} if hold.until is not None else {}),
        }
        for hold in health.holds
    ]
    return {"pauses": pauses} if pauses else {}


def health_router(health: Callable[[], Awaitable[Health]]) -> APIRouter:
    """Return the router with `/health/live` and `/health/ready`.

    Args:
        health: Returns the `Health` of the application.
    """
    router = APIRouter(tags=["ecotone"])

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Answer as long as the event loop turns."""
        return {"status": "alive"}

    @router.get("/health/ready", responses={503: {"description": "Something does not work"}})
    async def ready(response: Response) -> dict[str, Any]:
        """Answer 200 when every consumer runs and every server answers, else 503; say which does not."""
        found = await health()
        response.status_code = 200 if found.ready else 503
        return found.report()

    return router
