"""The database of the shop: embedded SQLite, or what `SHOP_DATABASE_URL` says.

SHOP_DATABASE_URL=postgresql+asyncpg://postgres@127.0.0.1:5432/test
SHOP_DATABASE_URL=mysql+asyncmy://root@127.0.0.1:3306/test
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase

from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

database = SqlAlchemy(os.environ.get("SHOP_DATABASE_URL", "sqlite+aiosqlite:///shop.db"), create_schema=True)

SessionDep = Annotated[AsyncSession, Depends(database.session)]
"""The session of the message that is handled: what is written to it commits with the messages that are sent."""


class Base(DeclarativeBase):
    """The tables of the shop."""


@asynccontextmanager
async def create_tables(app: FastAPI) -> AsyncIterator[None]:
    """Create the tables when the application starts. A real shop leaves this to Alembic."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
