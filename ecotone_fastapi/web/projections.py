"""Projections as FastAPI endpoints ask for them.

@app.get("/wallets/{wallet_id}/balance")
async def balance(wallet_id: str, projections: ProjectionsDep) -> int:
    return await projections.state("wallet_balance", f"wallet-{wallet_id}")
"""

from typing import Annotated

import fastapi
from fastapi.requests import HTTPConnection

from ecotone_fastapi.modelling.rebuilding import Projections
from ecotone_fastapi.web.edge import served_by


async def get_projections(connection: HTTPConnection) -> Projections:
    """Return the projections of the application that serves a request."""
    return served_by(connection).projections


ProjectionsDep = Annotated[Projections, fastapi.Depends(get_projections)]
"""`Projections` as a parameter of an endpoint."""
