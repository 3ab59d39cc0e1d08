"""The dead letter as FastAPI endpoints ask for it.

@app.post("/dead-letters/{id}/replay", status_code=202)
async def replay(id: str, dead_letters: DeadLettersDep) -> None:
    await dead_letters.replay(id)
"""

from typing import Annotated

import fastapi
from fastapi.requests import HTTPConnection

from ecotone_fastapi.messaging.dead_letter import DeadLetters
from ecotone_fastapi.web.edge import served_by


async def get_dead_letters(connection: HTTPConnection) -> DeadLetters:
    """Return the dead letter of the application that serves a request."""
    return served_by(connection).dead_letters


DeadLettersDep = Annotated[DeadLetters, fastapi.Depends(get_dead_letters)]
"""`DeadLetters` as a parameter of an endpoint."""
