"""A provider that is set too late is told, and not only missed."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio
import logging
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_tracer_provider
from ecotone_fastapi import Ecotone
from ecotone_fastapi.adapters.opentelemetry import Metrics, Tracing

logging.basicConfig(level="WARNING")
ecotone = Ecotone([], plugins=[Tracing(), Metrics()])
{first}
{second}

async def main():
    async with ecotone.running():
        pass

asyncio.run(main())
"""
SET = "set_tracer_provider(TracerProvider()); set_meter_provider(MeterProvider())"


@pytest.mark.parametrize(
    ("first", "second", "warnings"),
    [("ecotone.command_bus", SET, 2), (SET, "ecotone.command_bus", 0), ("ecotone.command_bus", "", 0)],
)
def test_a_provider_that_comes_after_the_first_bus_is_told_of(
    tmp_path: Path, first: str, second: str, warnings: int
) -> None:
    """In a process of its own: what is set there once stays."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(first=first, second=second))

    run = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    assert run.stderr.count("was set after the application was put together") == warnings
    assert run.stderr.count("hint: set it before, or write Tracing(provider)") == warnings // 2
