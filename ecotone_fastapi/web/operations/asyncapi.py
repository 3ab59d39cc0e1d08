"""What goes through the channels, for tools."""

from typing import Any

from fastapi import APIRouter

from ecotone_fastapi.web.operations.opening import Operated


def add_asyncapi(router: APIRouter, ecotone: Operated) -> None:
    """Add the route that gives the AsyncAPI document."""

    @router.get("/asyncapi.json")
    def asyncapi() -> dict[str, Any]:
        """Describe all channels and the messages that go through them, as AsyncAPI 3."""
        return ecotone.asyncapi()
