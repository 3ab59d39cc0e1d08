"""`ecotone explain`: what it shows is what happens."""

import asyncio
import importlib
import json
from typing import Any

import pytest

from ecotone_fastapi.core.plugin import Limits
from tests.cli.conftest import Project

UNTIL_EMPTY = Limits(until_empty=True)


def explained(project: Project, *arguments: str) -> dict[str, Any]:
    result = project.ecotone("explain", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    journey: dict[str, Any] = json.loads(result.stdout)
    return journey


def test_the_journey_to_a_synchronous_handler_is_told(shop: Project) -> None:
    result = shop.ecotone("explain", "shop:ecotone", "OrderService.place_order")

    assert result.exit_code == 0
    said = result.stdout
    assert "OrderService.place_order  handles the command PlaceOrder" in said
    assert "1. DISPATCH  CommandBus.send(PlaceOrder)" in said
    assert "2. HANDLE    OrderService.place_order" in said
    assert "400 TRANSACTION    Transactions.transact" in said
    assert "ecotone_fastapi.messaging.transactions:" in said
    assert "no database is installed" in said
    assert "3. CALL      OrderService.place_order, async def, on the event loop" in said
    assert "self: OrderService, once per application" in said
    assert "command: PlaceOrder, the payload" in said
    assert "events: EventBus, " in said
    written = (shop.directory / "shop.py").read_text().splitlines()
    assert f"shop.py:{written.index('    @command_handler') + 1}\n" in said
    assert "CHANNEL" not in said


def test_a_query_opens_no_transaction_and_a_def_runs_in_a_thread(shop: Project) -> None:
    result = shop.ecotone("explain", "shop:ecotone", "get_status")

    assert "QueryBus.ask(str, to='order.get_status')" in result.stdout
    assert "TRANSACTION" not in result.stdout
    assert "def, in a worker thread" in result.stdout


def test_the_journey_to_an_asynchronous_handler_goes_through_its_channel(shop: Project) -> None:
    journey = explained(shop, "shop:ecotone", "notify-customer")

    assert [one["stage"] for one in journey["stations"]] == [
        "dispatch", "handle", "send", "channel", "receive", "handle"
    ]  # fmt: skip
    assert journey["stations"][3]["where"].startswith("notifications: MemoryChannel (delay, ordered")
    assert journey["stations"][4]["where"].startswith("by the consumer of notifications: 1 at a time")
    (failures,) = journey["stations"][4]["interceptors"]
    assert failures["name"] == "Failures.stand_around"
    assert failures["plugin"] == "Failures"
    assert failures["order_name"] == "FAILURE"
    assert failures["settings"].startswith("Failures(Backoff(retries=3")
    assert failures["does"].endswith(".")
    assert [one["order_name"] for one in journey["stations"][1]["interceptors"]] == ["ASYNCHRONOUS"]
    assert [one["order_name"] for one in journey["stations"][5]["interceptors"]] == ["ASYNCHRONOUS", "TRANSACTION"]
    assert journey["marks"] == ["Asynchronous(channels=('notifications',), partition_by=None)"]
    said = shop.ecotone("explain", "shop:ecotone", "notify-customer").stdout
    assert "sender: object, from get_sender, once per unit of work\n" in said
    assert "       settings: dict[str, str], from get_settings, once per unit of work, in a worker thread\n" in said
    assert "tenant: str, the header 'tenant', else its default 'none'\n" in said


@pytest.mark.parametrize(
    "name", ["shop.OrderService.place_order", "OrderService.place_order", "place_order", "ace_order"]
)
def test_a_handler_is_named_by_id_label_or_their_end(shop: Project, name: str) -> None:
    assert explained(shop, "shop:ecotone", name)["id"] == "shop.OrderService.place_order"


def test_an_unknown_handler_ends_with_2_and_the_known_ones(shop: Project) -> None:
    result = shop.ecotone("explain", "shop:ecotone", "PlaceOder")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "there is no handler 'PlaceOder'" in result.stderr
    assert "\n  OrderService.place_order\n" in result.stderr
    assert "\n  NotificationService.when_order_placed (notify-customer)\n" in result.stderr


def test_a_name_of_several_handlers_ends_with_2_and_their_ids(project: Project) -> None:
    project.write(
        "twins.py",
        """
        from ecotone_fastapi import Ecotone, command_handler


        class First:
            @command_handler("first")
            async def handle(self) -> None: ...


        class Second:
            @command_handler("second")
            async def handle(self) -> None: ...


        ecotone = Ecotone([First, Second])
        """,
    )

    result = project.ecotone("explain", "twins:ecotone", "handle")

    assert result.exit_code == 2
    assert "\n  twins.First.handle\n  twins.Second.handle" in result.stderr
    assert explained(project, "twins:ecotone", "First.handle")["injected"] == ["self: First, once per application"]


@pytest.mark.parametrize("names", [[], ["place_order", "get_status"]])
def test_not_one_handler_ends_with_2_and_the_known_ones(shop: Project, names: list[str]) -> None:
    result = shop.ecotone("explain", "shop:ecotone", *names)

    assert result.exit_code == 2
    assert "name one handler; known are:" in result.stderr
    assert "OrderService.place_order" in result.stderr


def test_an_id_that_looks_like_an_application_is_found_in_the_configured_one(project: Project) -> None:
    project.write(
        "several.py",
        """
        from ecotone_fastapi import Ecotone, command_handler


        @command_handler("order.cancel")
        @command_handler("order.place")
        async def order(number: int) -> None: ...


        ecotone = Ecotone([order])
        """,
    )
    project.write("pyproject.toml", '[tool.ecotone]\napp = "several:ecotone"\n')

    assert explained(project, "several.order:order.place")["route"] == "order.place"
    assert explained(project, "several:ecotone", "several.order:order.cancel")["route"] == "order.cancel"


def test_a_handler_of_internal_messages_and_one_without_a_payload_are_told(project: Project) -> None:
    project.write(
        "steps.py",
        """
        from ecotone_fastapi import Ecotone, asynchronous, internal_handler
        from ecotone_fastapi.adapters.memory import MemoryChannel


        @asynchronous("work")
        @internal_handler("step")
        async def step() -> None: ...


        ecotone = Ecotone([step], channels=[MemoryChannel("work")])
        """,
    )

    said = project.ecotone("explain", "steps:ecotone", "step").stdout

    assert "sent by another handler to step" in said
    assert "the payload is not read" in said
    assert "the bytes are not read" in said


CURIOUS = """
    import functools
    from dataclasses import dataclass

    from ecotone_fastapi import AsynchronousHandlers, ConsumerSettings, Ecotone, asynchronous, event_handler
    from ecotone_fastapi.adapters.memory import MemoryChannel
    from ecotone_fastapi.core import Order, Stage, current_message

    seen = []


    class Witness:
        \"\"\"Writes down that it was passed.\"\"\"

        def __init__(self, name):
            self.name = name

        async def __call__(self, call, proceed):
            seen.append(self.name)
            return await proceed(call)


    @dataclass
    class Everywhere:
        label: str

        def install(self, assembly):
            for stage in Stage:
                for order in (Order.TRACING - 5, Order.TRACING, Order.USER, Order.STATE + 1):
                    witness = Witness(f"{stage} {int(order)}")
                    assembly.add_interceptor(functools.partial(witness), stage=stage, order=order)


    @asynchronous("first", "second")
    @event_handler("it.happened", id="handle")
    async def handle(number: int) -> None:
        seen.append("call")


    ecotone = Ecotone(
        [handle], channels=[MemoryChannel("first"), MemoryChannel("second")], plugins=[Everywhere("my plugin")]
    )
"""


def test_what_is_told_is_what_happens(project: Project) -> None:
    project.write("curious.py", CURIOUS)
    journey = explained(project, "curious:ecotone", "handle")
    curious = importlib.import_module("curious")

    async def happen() -> None:
        async with curious.ecotone.running(consumers=False) as ecotone:
            await ecotone.event_bus.publish(3, to="it.happened")
            await ecotone.run("first", UNTIL_EMPTY)
            await ecotone.run("second", UNTIL_EMPTY)

    asyncio.run(happen())

    told = [
        f"{station['stage']} {one['order']}"
        for station in journey["stations"]
        for one in station["interceptors"]
        if one["name"] == "Witness"
    ]
    assert [*told, "call"] == curious.seen


def test_interceptors_are_named_by_what_they_are_and_by_their_plugin(project: Project) -> None:
    project.write("curious.py", CURIOUS)

    journey = explained(project, "curious:ecotone", "handle")

    assert journey["stations"][0]["interceptors"][0] == {
        "order": 95,
        "order_name": "outside",
        "name": "Witness",
        "module": "curious",
        "line": 12,
        "plugin": "Everywhere",
        "settings": "Everywhere(label='my plugin')",
        "does": "Writes down that it was passed.",
    }
    assert [one["order_name"] for one in journey["stations"][0]["interceptors"]] == [
        "outside", "TRACING", "USER", "STATE+1"
    ]  # fmt: skip
    said = project.ecotone("explain", "curious:ecotone", "handle").stdout
    assert "Witness, of the plugin Everywhere  curious:12" in said
