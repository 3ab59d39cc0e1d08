"""Liveness and readiness that tell the truth about each consumer and each server."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, Response


class Condition(StrEnum):
    """How a consumer is."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """It failed, and tries again after a pause."""
    ENDED = "ended"
    """It reached a limit that it was given."""
    STOPPED = "stopped"


@dataclass
class RunnableHealth:
    """How one consumer or other runnable is.

    Args:
        name: Its name.
        condition: How it is.
        failures: How often in a row it has failed.
        last_error: What it failed with last.
    """

    name: str
    condition: Condition = Condition.STARTING
    failures: int = 0
    last_error: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it does its work, or has nothing left to do."""
        return self.condition in (Condition.RUNNING, Condition.ENDED)


@dataclass(frozen=True)
class Health:
    """How an application is.

    Args:
        runnables: Every consumer that this process is to run.
        servers: For every database and broker that can be asked, its error, or `None` when it answers.
    """

    runnables: tuple[RunnableHealth, ...] = ()
    servers: dict[str, str | None] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether everything works."""
        return all(one.ready for one in self.runnables) and not any(self.servers.values())

    def report(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {
            "status": "ready" if self.ready else "not ready",
            "consumers": {
                one.name: {
                    "condition": one.condition.value,
                    "failures": one.failures,
                    "last_error": one.last_error,
                }
                for one in self.runnables
            },
            "servers": {name: error or "ok" for name, error in self.servers.items()},
        }


def health_router(health: Callable[[], Any]) -> APIRouter:
    """Return the router with `/health/live` and `/health/ready`.

    Args:
        health: `async` function that returns the `Health` of the application.
    """
    router = APIRouter(tags=["ecotone"])

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Answer as long as the event loop turns."""
        return {"status": "alive"}

    @router.get("/health/ready", responses={503: {"description": "Something does not work"}})
    async def ready(response: Response) -> dict[str, Any]:
        """Answer 200 when every consumer runs and every server answers, else 503; say which does not."""
        found: Health = await health()
        response.status_code = 200 if found.ready else 503
        return found.report()

    return router
