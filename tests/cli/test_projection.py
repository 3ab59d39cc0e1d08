"""`ecotone projection`."""

import json
import sys
from typing import Any

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def shop(project: Project) -> Project:
    """A shop with two projections, and commands that append."""
    project.write(
        "shop.py",
        """
        import asyncio
        import os
        from dataclasses import dataclass
        from typing import Annotated

        from ecotone_fastapi import (
            Ecotone, EventStore, ProjectionState, ProjectionVersion, command_handler, event_handler, projection
        )
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy


        @dataclass(frozen=True)
        class Moved:
            wallet: str
            amount: int


        @command_handler
        async def move(event: Moved, events: EventStore) -> None:
            await events.append(f"wallet-{event.wallet}", [event])


        @projection("total", categories=["wallet"])
        class Total:
            @event_handler
            async def moved(
                self, event: Moved, version: ProjectionVersion, total: Annotated[int, ProjectionState(0)]
            ) -> int:
                return total + event.amount


        @projection("balance", categories=["wallet"], partitioned=True)
        class Balance:
            @event_handler
            async def moved(self, event: Moved, balance: Annotated[int, ProjectionState(0)]) -> int:
                if event.wallet == os.environ.get("POISON"):
                    raise ValueError("poisonous")
                return balance + event.amount


        database = SqlAlchemy("sqlite+aiosqlite:///shop.db", create_schema=True)
        ecotone = Ecotone([move, Total, Balance], plugins=[database])


        async def append() -> None:
            async with ecotone.running(consumers=False):
                for wallet, amount in (("a", 1), ("b", 2), ("a", 3)):
                    await ecotone.command_bus.send(Moved(wallet, amount))


        if __name__ == "__main__":
            asyncio.run(append())
        """,
    )
    return project


def run(shop: Project, *arguments: str, **environment: str) -> Any:
    """Run a command on an application made anew, as each process does."""
    sys.modules.pop("shop", None)
    command, *rest = arguments
    return shop.ecotone("projection", command, "--app", "shop:ecotone", *rest, **environment)


def append() -> None:
    import asyncio
    from importlib import import_module

    sys.path.insert(0, ".")
    sys.modules.pop("shop", None)
    asyncio.run(import_module("shop").append())


def status(shop: Project, name: str) -> dict[str, Any]:
    return dict(json.loads(run(shop, "status", name, "--json").stdout)[0])


def test_what_was_not_initialised_is_listed_as_such_and_then_initialised_once(shop: Project) -> None:
    assert "not initialised" in run(shop, "list").stdout
    assert run(shop, "init", "--all").stdout.splitlines() == ["total: initialised", "balance: initialised"]
    assert run(shop, "init", "total").stdout == "total: was initialised already\n"
    assert json.loads(run(shop, "init", "total", "--json").stdout) == {"total": False}


def test_a_projection_is_run_and_tells_how_far_behind_it_is(shop: Project) -> None:
    run(shop, "init", "--all")
    append()
    [total] = status(shop, "total")["versions"]
    assert (total["behind"], total["condition"], total["halt"]) == (3, "live", None)
    assert total["lag"] > 0

    assert run(shop, "run", "total").stdout == "total: handled 3\n"
    assert json.loads(run(shop, "run", "--all", "--json").stdout) == {"handled": {"total": 0, "balance": 3}}

    [total] = status(shop, "total")["versions"]
    assert (total["behind"], total["lag"]) == (0, 0.0)
    listed = run(shop, "list").stdout.splitlines()
    assert listed[0].split() == [
        "PROJECTION",
        "MODE",
        "VERSION",
        "CONDITION",
        "BEHIND",
        "LAG",
        "RUNNER",
        "STANDS",
        "STILL",
    ]
    assert [line.split()[0] for line in listed[1:]] == ["total", "balance"]
    assert {one["name"] for one in json.loads(run(shop, "list", "--json").stdout)} == {"total", "balance"}


def test_a_projection_is_rebuilt_beside_the_live_version_and_switched_by_hand(shop: Project) -> None:
    append()
    assert run(shop, "backfill", "total").stdout == "total: backfilled\n"
    assert run(shop, "rebuild", "total", "--no-switch").stdout == "total: rebuilt\n"
    assert [one["condition"] for one in status(shop, "total")["versions"]] == ["live", "building"]

    assert run(shop, "switch", "total").stdout == "total: version 2 is live\n"
    assert [one["condition"] for one in status(shop, "total")["versions"]] == ["retired", "live"]
    assert run(shop, "delete", "total", "--version", "1", "--yes").stdout == "total: deleted version 1\n"

    assert json.loads(run(shop, "rebuild", "total", "--json").stdout) == {"total": True}
    assert run(shop, "rebuild", "total", "--no-switch").exit_code == 0
    assert run(shop, "cancel", "total").stdout == "total: the rebuild was cancelled\n"
    assert run(shop, "delete", "total", "--yes").stdout == "total: deleted\n"
    assert status(shop, "total")["versions"] == []


def test_what_stands_still_is_told_and_tried_again(shop: Project) -> None:
    append()
    failed = run(shop, "run", "balance", POISON="b")
    assert failed.exit_code == 1
    assert "stands still" in failed.stderr

    shown = run(shop, "status", "balance")
    assert shown.exit_code == 1
    assert "stands still at version 1 of wallet-b, shop.Moved, since" in shown.stdout
    assert "builtins.ValueError: poisonous" in shown.stdout
    assert "1 of 2 partitions" in run(shop, "list").stdout

    assert run(shop, "retry", "balance", "--partition", "wallet-b").stdout == "balance: is tried again\n"
    assert run(shop, "run", "balance").stdout == "balance: handled 1\n"
    assert run(shop, "status", "balance").exit_code == 0


def test_nothing_is_deleted_without_a_yes(shop: Project) -> None:
    run(shop, "init", "total")

    result = run(shop, "delete", "total")

    assert result.exit_code == 1
    assert "Delete the projection total" in result.stdout
    assert status(shop, "total")["versions"] != []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status"], "no projection is named"),
        (["status", "unknown"], "there is no projection 'unknown'"),
        (["init", "total", "--all"], "either names or --all"),
        (["switch", "total", "balance"], "takes one projection"),
        (["list", "total"], "list takes no name"),
        (["switch", "total"], "no version of the projection 'total' is being built"),
        (["delete", "total", "--version", "7", "--yes"], "version 7 of the projection 'total' is not there"),
    ],
)
def test_what_cannot_be_done_is_told(shop: Project, arguments: list[str], says: str) -> None:
    result = run(shop, *arguments)

    assert result.exit_code in (1, 2)
    assert says in result.stderr


def test_events_in_memory_are_remarked_on(project: Project) -> None:
    project.write(
        "shop.py",
        """
        from ecotone_fastapi import Ecotone, query_handler

        @query_handler("nothing")
        async def nothing() -> None: ...

        ecotone = Ecotone([nothing])
        """,
    )
    result = run(project, "list")

    assert "in the memory of its process" in result.stderr
    assert "the application has no projection" in result.stderr
