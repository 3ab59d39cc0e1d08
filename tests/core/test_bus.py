from collections.abc import Callable
from typing import Any

import pytest

from ecotone_fastapi.core.bus import CommandBus, EventBus, QueryBus
from ecotone_fastapi.core.endpoint import command_handler, event_handler, query_handler
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.pipeline import Call, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.testing.flow import flow_test


class Echo:
    @command_handler("say")
    async def command(self, payload) -> Any:  # type: ignore[no-untyped-def]
        return payload

    @query_handler("say")
    async def query(self, payload) -> Any:  # type: ignore[no-untyped-def]
        return payload

    @event_handler("say")
    async def event(self, payload) -> Any:  # type: ignore[no-untyped-def]
        return payload


BUSES: list[tuple[Callable[[Gateway], Any], Any]] = [
    (lambda gateway: CommandBus(gateway).send, "hello"),
    (lambda gateway: QueryBus(gateway).ask, "hello"),
    (lambda gateway: EventBus(gateway).publish, None),
]


@pytest.mark.parametrize(("verb", "answer"), BUSES)
async def test_a_bus_needs_nothing_but_the_way_in(verb: Callable[[Gateway], Any], answer: Any) -> None:
    async with flow_test([Echo]) as flow:
        assert await verb(flow.ecotone.prepare())("hello", to="say", headers={"tenant": "acme"}) == answer

    [recorded] = flow.recorded
    assert (recorded.key, recorded.message.payload, recorded.message.headers["tenant"]) == ("say", "hello", "acme")


async def test_a_unit_of_work_knows_where_the_bus_was_used_and_what_is_shared() -> None:
    units: list[tuple[object, dict[Any, Any]]] = []

    class Looking:
        def install(self, assembly: Assembly) -> None:
            async def look(call: Call, proceed: Proceed) -> Any:
                units.append((call.scope.connection, dict(call.scope.cache)))
                return await proceed(call)

            assembly.add_interceptor(look, stage=Stage.DISPATCH)

    shared = {"session": "shared"}

    async with flow_test([Echo], plugins=[Looking()]) as flow:
        gateway = flow.ecotone.prepare()
        await CommandBus(gateway, connection="request", shared=shared).send("hello", to="say")
        await CommandBus(gateway).send("hello", to="say")

    assert units == [("request", shared), (None, {})]
    assert shared == {"session": "shared"}


async def test_an_answer_of_a_subclass_is_given_as_it_is() -> None:
    @query_handler("flag")
    async def flag() -> bool:
        return True

    async with flow_test([flag]) as flow:
        queries = QueryBus(flow.ecotone.prepare())

        assert await queries.ask(to="flag", returns=int) is True
        assert await queries.ask(to="flag") is True
        assert await queries.ask(to="flag", returns=bytes) == b"true"
