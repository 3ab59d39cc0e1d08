"""Synchronous projections whose handlers append to what they read themselves, in memory and in every database."""

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from ecotone_fastapi import (
    CommandBus,
    EventStore,
    ProjectionState,
    command_handler,
    event_handler,
    message_name,
    projection,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.testing import flow_test
from tests.modelling.test_rebuilding import EVERYWHERE

both_shapes = pytest.mark.parametrize("partitioned", [False, True], ids=["global", "partitioned"])


@pytest.fixture(params=EVERYWHERE)
def plugins(request: pytest.FixtureRequest) -> list[Any]:
    """Where everything is kept."""
    return [] if request.param is None else [SqlAlchemy(request.getfixturevalue(request.param), create_schema=True)]


@message_name("following.hit")
@dataclass(frozen=True)
class Hit:
    """A ball is hit in a stream."""

    number: int


@dataclass(frozen=True)
class Serve:
    stream: str
    numbers: tuple[int, ...]
    fails: bool = False


class ServingFailedError(Exception):
    """A command fails after it has appended."""


@command_handler
async def serve(command: Serve, events: EventStore) -> None:
    await events.append(command.stream, [Hit(number) for number in command.numbers])
    if command.fails:
        raise ServingFailedError


Seen = Annotated[list[int], ProjectionState([])]


async def state(flow: Any, name: str, partitioned: bool, stream: str) -> Any:
    return await flow.ecotone.projections.state(name, *([stream] if partitioned else []))


@both_shapes
async def test_what_a_handler_appends_to_its_own_stream_is_handled_once_and_after_what_it_handles(
    plugins: list[Any], partitioned: bool
) -> None:
    @projection("own", categories=["own"], mode="synchronous", partitioned=partitioned)
    class Own:
        @event_handler
        async def note(self, event: Hit, events: EventStore, seen: Seen) -> list[int]:
            if event.number < 20:
                await events.append("own-1", [Hit(event.number + 10)])
            return [*seen, event.number]

    async with flow_test([serve, Own], plugins=plugins) as flow:
        await flow.send(Serve("own-1", (1, 2)))
        await flow.send(Serve("own-1", (30,)))

        assert await state(flow, "own", partitioned, "own-1") == [1, 2, 11, 12, 21, 22, 30]


@both_shapes
async def test_what_comes_back_by_another_projection_is_handled_once_and_after_what_it_came_of(
    plugins: list[Any], partitioned: bool
) -> None:
    @projection("ping", categories=["ping"], mode="synchronous", partitioned=partitioned)
    class Ping:
        @event_handler
        async def note(self, event: Hit, events: EventStore, seen: Seen) -> list[int]:
            await events.append("pong-1", [Hit(event.number + 1)])
            return [*seen, event.number]

    @projection("pong", categories=["pong"], mode="synchronous", partitioned=partitioned)
    class Pong:
        @event_handler
        async def note(self, event: Hit, events: EventStore, seen: Seen) -> list[int]:
            if event.number < 5:
                await events.append("ping-1", [Hit(event.number + 1)])
            return [*seen, event.number]

    async with flow_test([serve, Ping, Pong], plugins=plugins) as flow:
        await flow.send(Serve("ping-1", (0,)))
        await flow.send(Serve("ping-1", (10,)))

        assert await state(flow, "ping", partitioned, "ping-1") == [0, 2, 4, 10]
        assert await state(flow, "pong", partitioned, "pong-1") == [1, 3, 5, 11]


@both_shapes
async def test_what_a_command_has_appended_that_failed_is_not_handled_by_the_one_that_has_sent_it(
    plugins: list[Any], partitioned: bool
) -> None:
    @projection("tries", categories=["tries"], mode="synchronous", partitioned=partitioned)
    class Tries:
        @event_handler
        async def note(self, event: Hit, commands: CommandBus, seen: Seen) -> list[int]:
            if event.number == 1:
                with pytest.raises(ServingFailedError):
                    await commands.send(Serve("tries-1", (2,), fails=True))
                await commands.send(Serve("tries-1", (3,)))
            return [*seen, event.number]

    async with flow_test([serve, Tries], plugins=plugins) as flow:
        await flow.send(Serve("tries-1", (1,)))
        with pytest.raises(ServingFailedError):
            await flow.send(Serve("tries-1", (1,), fails=True))

        assert await state(flow, "tries", partitioned, "tries-1") == [1, 3]
