"""`ecotone diagram`: text that Mermaid draws, and the same as data."""

import json

from tests.cli.conftest import Project


def test_the_flow_of_messages_is_drawn(shop: Project) -> None:
    result = shop.ecotone("diagram", "shop:ecotone")

    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "flowchart LR"
    assert '  n1[/"PlaceOrder"/]:::command' in lines
    assert '  n4[["notifications"]]:::channel' in lines
    assert '  n4 -->|"OrderWasPlaced"| n5' in lines


def test_lines_are_never_broken(shop: Project) -> None:
    name = "long_" * 20
    shop.write(
        "long.py",
        f"""
        from ecotone_fastapi import Ecotone, query_handler


        @query_handler("{name}")
        async def {name}(value: str) -> str:
            return value


        ecotone = Ecotone([{name}])
        """,
    )

    result = shop.ecotone("diagram", "long:ecotone", COLUMNS="40")

    assert len(result.stdout.splitlines()) == 6
    assert "n1 --> n2" in result.stdout.splitlines()[-1]


def test_the_diagram_is_told_as_data(shop: Project) -> None:
    result = shop.ecotone("diagram", "shop:ecotone", "--json")

    told = json.loads(result.stdout)
    assert told["mermaid"] == shop.ecotone("diagram", "shop:ecotone").stdout
    assert {
        name: value
        for name, value in next(one for one in told["nodes"] if one["id"] == "handler:notify-customer").items()
        if name != "detail"
    } == {"id": "handler:notify-customer", "kind": "handler", "label": "NotificationService.when_order_placed"}
    assert {
        "source": "channel:notifications", "target": "handler:notify-customer", "kind": "delivers",
        "label": "OrderWasPlaced",
    } in told["edges"]  # fmt: skip


def test_what_an_application_prints_is_no_part_of_the_diagram(shop: Project) -> None:
    shop.write("noisy.py", "from shop import ecotone\nprint('hello')\n")

    result = shop.ecotone("diagram", "noisy:ecotone")

    assert result.stdout.startswith("flowchart LR\n")
    assert "hello" in result.stderr


def test_whoever_draws_a_large_diagram_is_told_what_to_raise(project: Project) -> None:
    project.write(
        "large.py",
        """
        from ecotone_fastapi import Ecotone, event_handler


        def handler(number):
            @event_handler("happened", id=f"handler-{number}")
            async def handle(payload: dict[str, str]) -> None: ...

            return handle


        ecotone = Ecotone([handler(number) for number in range(501)])
        """,
    )

    result = project.ecotone("diagram", "large:ecotone")

    assert "maxEdges" in result.stderr
    assert "maxEdges" not in result.stdout


def test_a_part_of_it_is_drawn(shop: Project) -> None:
    part = shop.ecotone("diagram", "shop:ecotone", "--only", "notifications")

    assert part.exit_code == 0
    assert "OrderWasPlaced" in part.stdout
    assert "PlaceOrder" not in part.stdout
    assert shop.ecotone("diagram", "shop:ecotone", "--only", "nothing").exit_code == 2
