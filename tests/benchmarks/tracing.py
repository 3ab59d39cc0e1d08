"""What it costs to trace a dispatch: without a provider, with spans for nobody, and with spans that are exported."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from rich.console import Console

from ecotone_fastapi import Ecotone, command_handler
from ecotone_fastapi.adapters.opentelemetry import Tracing
from ecotone_fastapi.core import Plugin
from tests.benchmarks.dispatch import BARE
from tests.benchmarks.measure import Candidate, Row, show, take_turns

MOST_WITHOUT = 0.02  # that a dispatch takes longer with the plugin alone
MOST_MICROSECONDS = 40.0  # that a traced dispatch takes longer


@dataclass(frozen=True)
class Ship:
    number: int


class Shipping:
    @command_handler
    async def ship(self, command: Ship) -> None: ...


class Nowhere(SpanExporter):
    """Takes spans, and does nothing with them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def sending(ecotone: Ecotone) -> Candidate:
    commands, command = ecotone.command_bus, Ship(1)

    async def send(times: int) -> None:
        for _ in range(times):
            await commands.send(command)

    return send


async def tracing(console: Console) -> bool:
    unsampled = TracerProvider(sampler=ALWAYS_OFF)
    simple, batched = TracerProvider(), TracerProvider()
    simple.add_span_processor(SimpleSpanProcessor(Nowhere()))
    batched.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=100_000))
    plugins: dict[str, list[Plugin]] = {
        "without": [],
        "off": [Tracing()],
        "again": [],
        "unsampled": [Tracing(unsampled)],
        "simple": [Tracing(simple)],
        "batch": [Tracing(batched)],
    }
    shipping, command = Shipping(), Ship(1)

    async def bare(times: int) -> None:
        for _ in range(times):
            await shipping.ship(command)

    async with AsyncExitStack() as stack:
        candidates: dict[str, Candidate] = {"bare": bare}
        for name, given in plugins.items():
            ecotone = Ecotone([Shipping], plugins=given)
            candidates[name] = sending(await stack.enter_async_context(ecotone.running(consumers=False)))
        took = await take_turns(candidates, times=100, rounds=61)
    for provider in (unsampled, simple, batched):
        await asyncio.to_thread(provider.shutdown)
    # What others take of the machine meanwhile is no part of it: the best of many short rounds is what counts.
    best = {name: min(result.rounds) for name, result in took.items()}
    without = min(best["without"], best["again"])
    most = MOST_MICROSECONDS * 1e-6 * max(1.0, best["bare"] / BARE)

    def row(name: str, key: str) -> Row:
        return Row(name, best[key], without)

    def off(name: str, key: str) -> Row:
        more = best[key] / without - 1
        return Row(name, best[key], without, f"at most 2 % more: {more:+.1%} here", more <= MOST_WITHOUT)

    def traced(name: str, key: str) -> Row:
        more = best[key] - without
        target = (
            f"{MOST_MICROSECONDS:g} µs more where a bare await takes 0.2: {more * 1e6:.1f} of {most * 1e6:.1f} here"
        )
        return Row(name, best[key], without, target, more <= most)

    return show(
        console,
        "A dispatch, traced: the best of many rounds",
        [
            row("without the plugin (limit)", "without"),
            row("without the plugin, once more: what is left to chance", "again"),
            off("no provider", "off"),
            row("2 spans that are not sampled", "unsampled"),
            traced("2 spans for an exporter that does nothing", "simple"),
            traced("2 spans in batches for an exporter that does nothing", "batch"),
        ],
    )
