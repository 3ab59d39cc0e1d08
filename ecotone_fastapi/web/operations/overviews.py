"""How the application is, at one look."""

from fastapi import APIRouter

from ecotone_fastapi.operations.report import LaneReport, Report
from ecotone_fastapi.web.operations.opening import Operated

SHARED = 0.5
"""Seconds for which a report is good enough for others who ask, too."""


def add_overview(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes that tell how the application is."""

    @router.get("/overview")
    async def overview() -> Report:
        """Tell how channels, consumers, outbox, dead letters, schedules and projections are."""
        return await ecotone.overview.report(max_age=SHARED)

    @router.get("/outbox")
    async def outbox() -> list[LaneReport]:
        """Tell what is on its way to the channels of brokers."""
        return list((await ecotone.overview.report(max_age=SHARED)).outbox)
