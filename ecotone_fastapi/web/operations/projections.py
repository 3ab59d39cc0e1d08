"""Projections: how far they are, and what can be done about it."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from pydantic import Field

from ecotone_fastapi.operations.report import ProjectionReport
from ecotone_fastapi.web.operations.bodies import Asked, body_of, described
from ecotone_fastapi.web.operations.opening import Operated
from ecotone_fastapi.web.operations.paging import AfterQuery, LimitQuery, page_of_names

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such projection"}}
_NOT_POSSIBLE: dict[int | str, dict[str, Any]] = {
    **_NOT_FOUND,
    409: {"description": "It is not in a state for it; the detail says why"},
}


@dataclass(frozen=True, kw_only=True)
class ProjectionPage:
    """Some projections, in the order of their names.

    Args:
        items: The projections.
        next: What to give as `after` to see the next page; `None` on the last one.
        total: How many there are, on all pages.
    """

    items: list[ProjectionReport]
    next: str | None
    total: int


class RebuildAsked(Asked):
    """How a projection is to be made anew."""

    switch: bool = Field(True, description="Whether what is built beside the live version takes its place in the end.")


@dataclass(frozen=True, kw_only=True)
class BegunRebuild:
    """What was begun.

    Args:
        name: The projection.
        version: The version that is being built.
    """

    name: str
    version: int


def add_projections(router: APIRouter, ecotone: Operated) -> None:
    """Add the routes about projections."""

    @router.get("/projections")
    async def projections(limit: LimitQuery = 50, after: AfterQuery = None) -> ProjectionPage:
        """Tell how projections are, and how far behind; those that are on no page are not asked."""
        known = ecotone.projections.names
        names, following = page_of_names(known, after, limit)
        return ProjectionPage(items=list(await ecotone.overview.projections(names)), next=following, total=len(known))

    @router.post(
        "/projections/{name:path}/rebuild",
        status_code=202,
        responses=_NOT_POSSIBLE,
        openapi_extra=described(RebuildAsked),
    )
    async def rebuild(name: str, asked: Annotated[RebuildAsked, Depends(body_of(RebuildAsked))]) -> BegunRebuild:
        """Begin to make a projection anew of all events. Those who run it do so; this answer does not wait."""
        _check(name, ecotone)
        version = await ecotone.projections.begin_rebuild(name, switch=asked.switch)
        return BegunRebuild(name=name, version=version)

    @router.post("/projections/{name:path}/cancel", status_code=204, responses=_NOT_POSSIBLE)
    async def cancel(name: str) -> None:
        """Break off what a rebuild has begun: a version beside the live one is deleted."""
        _check(name, ecotone)
        await ecotone.projections.cancel(name)

    @router.post("/projections/{name:path}/retry", status_code=204, responses=_NOT_FOUND)
    async def retry(name: str) -> None:
        """Try again now what stands still, without waiting for its time."""
        _check(name, ecotone)
        await ecotone.projections.retry(name)

    @router.get("/projections/{name:path}", responses=_NOT_FOUND)
    async def projection(name: str) -> ProjectionReport:
        """Tell how one projection is, with all of its versions."""
        _check(name, ecotone)
        return await ecotone.overview.projection(name)


def _check(name: str, ecotone: Operated) -> None:
    known = ecotone.projections.names
    if name not in known:
        raise HTTPException(404, f"There is no projection {name!r}; known are: {', '.join(known) or 'none'}")
