"""A module whose annotations are all text, as `from __future__ import annotations` makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header

from ecotone_fastapi import CommandBus, Ecotone, EventBus, Message, MessageHeader, command_handler, event_handler
from ecotone_fastapi.core.clock import Clock


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


async def tenant_of(tenant: Annotated[str, Header()]) -> str:
    return tenant.upper()


Tenant = Annotated[str, Depends(tenant_of)]


@dataclass
class Repository:
    clock: Clock
    tenant: Tenant


class Orders:
    def __init__(self, repository: Annotated[Repository, Depends()], events: EventBus) -> None:
        self.repository = repository
        self.events = events
        self.placed: list[Any] = []

    @command_handler
    async def place(
        self, command: PlaceOrder, message: Message[Any], count: Annotated[int, MessageHeader()] = 0
    ) -> list[Any]:
        await self.events.publish(OrderWasPlaced(command.order_id))
        return [command, message.payload is command, count, self.repository.tenant, self.placed]

    @event_handler
    async def when_placed(self, message: Message[OrderWasPlaced]) -> None:
        self.placed.append(message.payload)


async def test_text_means_what_the_annotation_means() -> None:
    commands = Ecotone([Orders]).command_bus

    assert await commands.send(PlaceOrder("1"), headers={"tenant": "acme", "count": 2}) == [
        PlaceOrder("1"),
        True,
        2,
        "ACME",
        [OrderWasPlaced("1")],
    ]


async def test_text_may_name_what_is_local_where_the_handler_is_decorated() -> None:
    @dataclass(frozen=True)
    class Local:
        value: int

    async def session() -> AsyncIterator[str]:
        yield "session"

    Session = Annotated[str, Depends(session)]  # noqa: N806

    class Service:
        def __init__(self, session: Session, commands: CommandBus) -> None:
            self.session = session

        @command_handler
        async def handle(self, command: Local, session: Session) -> list[Any]:
            return [command.value, session, self.session]

    assert await Ecotone([Service]).command_bus.send(Local(1)) == [1, "session", "session"]
