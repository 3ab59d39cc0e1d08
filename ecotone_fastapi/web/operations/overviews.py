"""How the application is, at one look."""

from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter

from ecotone_fastapi.operations.report import LaneReport, Report, RunnableReport
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import AfterQuery, LimitQuery, page_of_names


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """How every loop and every server is.

    Args:
        status: How all of it is together.
        runnables: Every consumer and whatever else this application can run, with how it is in this process.
        servers: For every database and broker that can be asked, `ok` or its error.
    """

    status: Literal["ready", "not ready", "not running"]
    runnables: tuple[RunnableReport, ...]
    servers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class LanePage:
    """The outboxes of some channels, in the order of the names of these.

    Args:
        items: The outboxes.
        next: What to give as `after` to see the next page; `None` on the last one.
        total: How many there are, on all pages.
    """

    items: list[LaneReport]
    next: str | None
    total: int


def add_overview(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes that tell how the application is."""

    @router.get("/overview")
    async def overview() -> Report:
        """Tell how channels, consumers, outbox, dead letters, schedules and projections are."""
        return await ecotone.overview.report()

    @router.get("/outbox")
    async def outbox(limit: LimitQuery = 50, after: AfterQuery = None) -> LanePage:
        """Tell what is on its way to the channels of brokers, also to those that nobody here can send to."""
        known = await ecotone.overview.outboxes()
        names, following = page_of_names(known, after, limit)
        items = [] if not names else await ecotone.overview.outbox({name: known[name] for name in names})
        return LanePage(items=list(items), next=following, total=len(known))

    @router.get("/health")
    async def health() -> HealthReport:
        """Tell how every consumer loop is in this process, and whether the servers answer."""
        found = await ecotone.health()
        return HealthReport(
            status="ready" if found.ready else "not ready" if found.running else "not running",
            runnables=ecotone.overview.runnables(),
            servers={name: error or "ok" for name, error in found.servers.items()},
        )
