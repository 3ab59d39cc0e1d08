"""A provider that is set after an application was put together, but before it starts, is found."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import set_tracer_provider
from ecotone_fastapi import Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Metrics, Tracing
from ecotone_fastapi.core import Limits, Stage

@asynchronous("orders")
@command_handler("ship", id="ship")
async def ship(order: int) -> None: ...

exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()

def set_providers():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_tracer_provider(provider)
    set_meter_provider(MeterProvider([reader]))

metrics = Metrics()
ecotone = Ecotone([ship], channels=[MemoryChannel("orders")], plugins=[Tracing(), metrics])

async def main():
    for _ in range(2):  # the second start adds nothing
        async with ecotone.running(consumers=False):
            await ecotone.command_bus.send(1, to="ship")
            await ecotone.run("orders", Limits(until_empty=True))
            await metrics.refresh()
            data = reader.get_metrics_data()
        print(sorted(span.name for span in exporter.get_finished_spans()))
        exporter.clear()
    print(sorted(one.name for part in (data.resource_metrics if data else ()) for scope in part.scope_metrics
                 for one in scope.metrics if one.name.startswith(("messaging", "ecotone.channel.depth"))))
    around = [one for stage in Stage for one in ecotone.assembly.gateway.around(stage)]
    print(sum(isinstance(one.plugin, Tracing) for one in around))

{first}
{second}
asyncio.run(main())
"""
SPANS = ["ack orders", "handle ship", "process orders", "send orders", "send ship"]
METRICS = [
    "ecotone.channel.depth",
    "messaging.client.consumed.messages",
    "messaging.client.operation.duration",
    "messaging.client.sent.messages",
    "messaging.process.duration",
]


@pytest.mark.parametrize(
    ("first", "second", "is_there"),
    [
        ("set_providers()", "ecotone.command_bus", True),
        ("ecotone.command_bus", "set_providers()", True),
        ("ecotone.command_bus", "", False),
    ],
    ids=["before", "after", "never"],
)
def test_a_provider_is_found_that_was_set_before_the_start(
    tmp_path: Path, first: str, second: str, is_there: bool
) -> None:
    """In a process of its own: what is set there once stays."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("{first}", first).replace("{second}", second))

    run = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    *spans, metrics, plugged = run.stdout.splitlines()
    assert spans == [str(SPANS if is_there else [])] * 2
    assert metrics == str(METRICS if is_there else [])
    assert plugged == ("5" if is_there else "0")
