"""`ecotone list`."""

import json
import subprocess
import sys
from textwrap import dedent

from tests.cli.conftest import Project


def test_the_tables_show_channels_with_their_consumers_and_all_handlers(shop: Project) -> None:
    result = shop.ecotone("list", "shop:ecotone")

    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[1][:2] == ["notifications", "MemoryChannel"]
    assert lines[1][-5:] == ["1", "at", "a", "time", "notify-customer"]
    assert ["command", "PlaceOrder", "OrderService.place_order", "shop.OrderService.place_order", "-"] in lines
    assert ["query", "order.get_status", "OrderService.get_status", "shop.OrderService.get_status", "-"] in lines
    assert [
        "event", "OrderWasPlaced", "NotificationService.when_order_placed", "notify-customer", "notifications"
    ] in lines  # fmt: skip


def test_json_tells_everything_about_them(shop: Project) -> None:
    found = json.loads(shop.ecotone("list", "shop:ecotone", "--json").stdout)

    assert found["runnables"] == []
    (channel,) = found["channels"]
    assert channel["name"] == "notifications"
    assert channel["type"] == "ecotone_fastapi.adapters.memory.channel.MemoryChannel"
    assert channel["capabilities"]["delay"] is True
    assert channel["capabilities"]["durable"] is False
    assert channel["consumer"] == {"concurrency": 1, "batch": 10}
    assert channel["handlers"] == ["notify-customer"]
    assert [one["kind"] for one in found["handlers"]] == ["command", "query", "event"]
    assert found["handlers"][1] == {
        "id": "shop.OrderService.get_status",
        "label": "OrderService.get_status",
        "kind": "query",
        "route": "order.get_status",
        "instead_of": None,
        "payload": "str",
        "channels": [],
    }


def test_what_else_can_be_run_and_channels_without_a_consumer_are_shown(project: Project) -> None:
    project.write(
        "more.py",
        """
        from ecotone_fastapi import AsynchronousHandlers, ConsumerSettings, Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.memory import MemoryChannel


        class SmallChannel(MemoryChannel):
            def __init__(self, name: str) -> None:
                super().__init__(name)
                self.capabilities = type(self.capabilities)(largest_body=1000)


        class Clean:
            name = "clean"

            def install(self, assembly):
                assembly.add_runnable(self)

            async def run(self, limits):
                return 0


        @asynchronous("first", "second")
        @command_handler("many")
        async def handle(numbers: list[int]) -> None: ...


        ecotone = Ecotone(
            [handle],
            channels=[MemoryChannel("first"), SmallChannel("second"), MemoryChannel("spare")],
            plugins=[Clean(), AsynchronousHandlers(consumers={"*": ConsumerSettings(concurrency=5)})],
        )
        """,
    )

    result = project.ecotone("list", "more:ecotone")

    assert "RUNNABLE  TYPE" in result.stdout
    assert "clean     Clean" in result.stdout
    assert "5 at a time" in result.stdout
    assert "at most 1000 bytes" in result.stdout
    assert "first → second" in result.stdout
    spare = next(line for line in result.stdout.splitlines() if line.startswith("spare"))
    assert "none" in spare
    found = json.loads(project.ecotone("list", "more:ecotone", "--json").stdout)
    assert found["channels"][2]["consumer"] is None
    assert found["runnables"] == [{"name": "clean", "type": "more.Clean"}]
    assert found["handlers"][0]["payload"] == "list[int]"


def test_an_application_without_channels_has_one_table(project: Project) -> None:
    project.write(
        "tiny.py",
        """
        from ecotone_fastapi import Ecotone, command_handler


        @command_handler("ping")
        async def ping() -> None: ...


        ecotone = Ecotone([ping])
        """,
    )

    result = project.ecotone("list", "tiny:ecotone")

    assert "CHANNEL  TYPE" not in result.stdout
    assert result.stdout.startswith("KIND")
    assert json.loads(project.ecotone("list", "tiny:ecotone", "--json").stdout)["handlers"][0]["payload"] is None


def test_how_many_messages_wait_is_asked_when_it_is_wanted(project: Project) -> None:
    project.write(
        "waiting.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.memory import MemoryChannel
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

        database = SqlAlchemy("sqlite+aiosqlite:///waiting.db", create_schema=True)


        class Silent(MemoryChannel):
            depth = None


        @asynchronous("work")
        @command_handler("work", id="work")
        async def work(number: int) -> None: ...


        ecotone = Ecotone([work], channels=[database.channel("work"), Silent("silent")], plugins=[database])
        """,
    )
    send = """
        import asyncio
        from waiting import ecotone

        async def main():
            async with ecotone.running(consumers=False):
                await ecotone.command_bus.send(1, to="work")
                await ecotone.command_bus.send(2, to="work", headers={"delay": 3600})

        asyncio.run(main())
        """
    subprocess.run([sys.executable, "-c", dedent(send)], cwd=project.directory, check=True, timeout=200)

    (work, silent) = json.loads(project.ecotone("list", "waiting:ecotone", "--waiting", "--json").stdout)["channels"]
    shown = project.ecotone("list", "waiting:ecotone", "--waiting").stdout

    assert work["waiting"]["depth"] == 2
    assert work["waiting"]["oldest_age"] >= 0
    assert silent["waiting"] is None
    assert "2, the oldest for " in shown
    assert "not told" in shown
