"""In one process: a command to its handler, an event to three, against a bare await; memory; start-up."""

import resource
import time
from dataclasses import make_dataclass
from typing import Annotated, Any

from fastapi import Depends
from rich.console import Console

from ecotone_fastapi import Ecotone, command_handler, event_handler
from tests.benchmarks.measure import Row, show, take_turns

BARE = 0.2e-6  # what a bare await takes where the targets were set


async def first() -> int:
    return 1


async def second(value: Annotated[int, Depends(first)]) -> int:
    return value


async def third(value: Annotated[int, Depends(second)]) -> int:
    return value


class Plain:
    def __init__(self, number: int) -> None:
        self.number = number


class WithDependencies(Plain): ...


class Happened(Plain): ...


class Handlers:
    @command_handler
    async def plain(self, command: Plain) -> None: ...

    @command_handler
    async def with_dependencies(self, command: WithDependencies, value: Annotated[int, Depends(third)]) -> None: ...

    @event_handler
    async def one(self, event: Happened) -> None: ...

    @event_handler
    async def two(self, event: Happened) -> None: ...

    @event_handler
    async def three(self, event: Happened) -> None: ...


async def dispatching(console: Console) -> bool:
    async with Ecotone([Handlers]).running(consumers=False) as ecotone:
        commands, events, handlers = ecotone.command_bus, ecotone.event_bus, Handlers()
        plain, with_dependencies, happened = Plain(1), WithDependencies(1), Happened(1)

        async def bare(times: int) -> None:
            for _ in range(times):
                await handlers.plain(plain)

        async def bare_three(times: int) -> None:
            for _ in range(times):
                await handlers.one(happened)
                await handlers.two(happened)
                await handlers.three(happened)

        async def by_hand(times: int) -> None:
            for _ in range(times):
                await handlers.with_dependencies(with_dependencies, await third(await second(await first())))

        async def command(times: int) -> None:
            for _ in range(times):
                await commands.send(plain)

        async def command_with_dependencies(times: int) -> None:
            for _ in range(times):
                await commands.send(with_dependencies)

        async def event(times: int) -> None:
            for _ in range(times):
                await events.publish(happened)

        took = await take_turns(
            {
                "bare": bare,
                "three": bare_three,
                "by hand": by_hand,
                "command": command,
                "dependencies": command_with_dependencies,
                "event": event,
            },
            times=2_000,
            rounds=51,
        )
    limit = took["bare"].seconds
    scale = limit / BARE

    def row(name: str, key: str, beside: str, microseconds: float | None = None) -> Row:
        seconds, target, reached = took[key].seconds, "", None
        if microseconds is not None:
            target = f"{microseconds:g} µs where a bare await takes 0.2: {microseconds * scale:.2f} here"
            reached = seconds <= microseconds * 1e-6 * scale
        return Row(name, seconds, took[beside].seconds, target, reached)

    return show(
        console,
        "One message in the process",
        [
            row("bare await of the handler (limit)", "bare", "bare"),
            row("command", "command", "bare", 5.0),
            row("3 dependencies and the handler awaited by hand (limit)", "by hand", "by hand"),
            row("command, 3 nested dependencies", "dependencies", "by hand", 8.0),
            row("3 handlers awaited (limit)", "three", "three"),
            row("event to 3 handlers", "event", "three"),
        ],
    )


async def memory(console: Console) -> bool:
    """A million commands leave nothing behind."""
    async with Ecotone([Handlers]).running(consumers=False) as ecotone:
        commands, command = ecotone.command_bus, Plain(1)
        for _ in range(100_000):
            await commands.send(command)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(1_000_000):
            await commands.send(command)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    flat = grown < 1024
    console.print(f"Memory after 1,000,000 commands: {grown:+,} kB at the peak. {'Flat' if flat else 'It grew'}.\n")
    return flat


def starting(console: Console) -> bool:
    """A thousand handlers, each with a dependency."""
    handlers: list[object] = []
    for number in range(1_000):
        command: Any = make_dataclass(f"Command{number}", [("number", int)])

        async def handle(self: object, command: Any, value: Annotated[int, Depends(third)]) -> None: ...

        handle.__annotations__["command"] = command
        handlers.append(type(f"Handler{number}", (), {"handle": command_handler(handle)}))
    start = time.perf_counter()
    Ecotone(handlers).prepare()
    took = time.perf_counter() - start
    console.print(f"Start-up with 1,000 handlers: {took:.3f} s. Target: under 1 s.\n")
    return took < 1.0
