"""What an import costs: the package loads no driver, an adapter loads only its own."""

import subprocess
import sys

import pytest

from tests.house.sources import PACKAGE, sources

# The name of a technology and the modules that only its driver or SDK brings. FastAPI itself may import
# opentelemetry-api; the SDK is what the adapter adds.
DRIVERS = {
    "sql": {"sqlalchemy", "asyncpg", "psycopg", "asyncmy", "aiosqlite"},
    "rabbitmq": {"aio_pika"},
    "kafka": {"aiokafka"},
    "sqs": {"aiobotocore"},
    "redis": {"redis"},
    "opentelemetry": {"opentelemetry.sdk"},
}
CONNECTED_LATE = {"asyncpg", "psycopg", "asyncmy", "aiosqlite"}

doors = [PACKAGE, *(name for name in sources() if name.count(".") == 1 and not name.endswith(("adapters", "cli")))]
adapters = [name for name in sources() if name.startswith(f"{PACKAGE}.adapters.") and name.count(".") == 2]


def loaded_by(module: str) -> set[str]:
    """The modules of a fresh interpreter after one import."""
    program = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def technologies(loaded: set[str]) -> set[str]:
    return {technology for technology, modules in DRIVERS.items() if modules & loaded}


@pytest.mark.parametrize("door", doors)
def test_a_door_loads_no_driver(door: str) -> None:
    assert technologies(loaded_by(door)) == set()


@pytest.mark.parametrize("adapter", adapters)
def test_an_adapter_loads_one_technology_and_connects_late(adapter: str) -> None:
    loaded = loaded_by(adapter)

    assert len(technologies(loaded)) <= 1
    assert not loaded & CONNECTED_LATE
