"""12. Projections, read models made of stored events: `python examples/12_projections.py`

The handlers of a projection are reached by events of the store alone, in order. What is written to the session, the
state and the checkpoint are one transaction, so each event counts once. By default it is woken by events and runs
beside the application; `mode="synchronous"` runs in the command's own transaction. With `partitioned=True` every stream
has a checkpoint, a state and failures of its own, and several are handled at a time.

`ecotone projection status shop:ecotone` tells how far it is and what stands still; `rebuild` makes it anew, one
partition in one transaction, while it is live. A projection that asks for `ProjectionVersion` is rebuilt beside itself.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import EventStore, Partition, ProjectionState, command_handler, event_handler, projection
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class MoneyWasMoved:
    wallet: str
    amount: int


@command_handler
async def move(event: MoneyWasMoved, events: EventStore) -> None:
    await events.append(f"wallet-{event.wallet}", [event])


@projection("balances", categories=["wallet"], partitioned=True)
class Balances:
    @projection.init
    async def create(self, session: AsyncSession) -> None:
        await session.execute(text("CREATE TABLE movement (wallet VARCHAR(20), amount INTEGER)"))

    @event_handler
    async def moved(
        self, event: MoneyWasMoved, session: AsyncSession, balance: Annotated[int, ProjectionState(0)]
    ) -> int:
        row = {"wallet": event.wallet, "amount": event.amount}
        await session.execute(text("INSERT INTO movement VALUES (:wallet, :amount)"), row)
        return balance + event.amount  # the new state of this partition

    @projection.reset
    async def clear(self, session: AsyncSession, partition: Partition) -> None:
        await session.execute(text("DELETE FROM movement WHERE wallet = :wallet"), {"wallet": partition.identifier})


async def move_money(database: SqlAlchemy) -> list[int]:
    async with flow_test([move, Balances], plugins=[database]) as flow:
        for wallet, amount in [("ada", 100), ("bob", 30), ("ada", -40)]:
            await flow.send(MoneyWasMoved(wallet, amount))
        await flow.run("balances")  # the lifespan does that in production

        projections = flow.ecotone.projections
        assert await projections.rebuild("balances", told=print)
        async with database.engine.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM movement"))).scalar() == 3
        return [await projections.state("balances", f"wallet-{name}") for name in ("ada", "bob", "nobody")]


if __name__ == "__main__":
    Path("example.db").unlink(missing_ok=True)
    print(asyncio.run(move_money(SqlAlchemy("sqlite+aiosqlite:///example.db", create_schema=True))))


async def test_balances_are_projected_once_and_rebuilt(tmp_path: Path) -> None:
    database = SqlAlchemy(f"sqlite+aiosqlite:///{tmp_path}/test.db", create_schema=True)
    assert await move_money(database) == [60, 30, 0]
