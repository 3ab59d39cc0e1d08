"""The recipe for Prometheus: the exporter's reader, its endpoint mounted in the application, and a scrape by HTTP."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.processes import ecotone, eventually

APPLICATION = """
from fastapi import FastAPI
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import make_asgi_app

from ecotone_fastapi import Backoff, CommandBusDep, Ecotone, Failures, asynchronous, command_handler
from ecotone_fastapi.adapters.opentelemetry import Metrics
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

failures = [ValueError("the printer is on fire")]


@asynchronous("letters")
@command_handler("print", id="print")
async def print_letter(text: str) -> None:
    if failures:
        raise failures.pop()


@asynchronous("letters")
@command_handler("shred", id="shred")
async def shred(text: str) -> None:
    raise LookupError("there is no shredder")


metrics = Metrics(MeterProvider([PrometheusMetricReader()]), interval=0.1)
database = SqlAlchemy("sqlite+aiosqlite:///letters.db", create_schema=True)
policy = Failures(Backoff(retries=1, first=0.0, jitter=0.0))
ecotone = Ecotone([print_letter, shred], channels=[database.channel("letters")], plugins=[database, metrics, policy])
app = FastAPI(lifespan=ecotone.lifespan)
app.mount("/metrics", make_asgi_app())


@app.post("/letters/{key}", status_code=202)
async def post(key: str, commands: CommandBusDep) -> None:
    await commands.send("Dear Sir", to=key)
"""

Families = dict[str, Metric]


class Scraped:
    """The application in a process of its own, and what Prometheus reads of it."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, follow_redirects=True, timeout=30.0)

    def scrape(self) -> Families:
        answer = self.client.get("/metrics")
        assert answer.status_code == 200
        return {family.name: family for family in text_string_to_metric_families(answer.text)}

    def scraped_until(self, condition: Callable[[Families], bool]) -> Families:
        def look() -> Families | None:
            found = self.scrape()
            return found if condition(found) else None

        found: Families = eventually(look, "what Prometheus should read")
        return found


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[Scraped]:
    (tmp_path / "application.py").write_text(APPLICATION)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    with socket.create_server(("127.0.0.1", 0)) as http:
        host, port = http.getsockname()
        command = [sys.executable, "-W", "error", "-m", "uvicorn", "application:app", "--fd", str(http.fileno())]
        with subprocess.Popen(
            command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, pass_fds=[http.fileno()]
        ) as process:
            assert process.stderr is not None
            try:
                for line in process.stderr:
                    if "Application startup complete" in line:
                        break
                else:
                    raise AssertionError("it did not start")
                scraped = Scraped(f"http://{host}:{port}")
                with scraped.client:
                    yield scraped
            finally:
                process.kill()


def value(families: Families, name: str, sample: str | None = None, **labels: str) -> float | None:
    """The sum of the samples that have these labels; `None` without any."""
    family = families.get(name)
    found = [
        one.value
        for one in (family.samples if family is not None else ())
        if one.name == (sample or name) and labels.items() <= one.labels.items()
    ]
    return sum(found) if found else None


def test_prometheus_reads_what_was_sent_handled_retried_and_parked(scraped: Scraped) -> None:
    assert scraped.client.post("/letters/print").status_code == 202
    assert scraped.client.post("/letters/shred").status_code == 202

    found = scraped.scraped_until(
        lambda now: (
            value(now, "ecotone_dead_letters") == 1
            and value(now, "messaging_client_consumed_messages", "messaging_client_consumed_messages_total") == 4
            and value(now, "messaging_process_duration_seconds", "messaging_process_duration_seconds_count") == 4
        )
    )

    letters = {"messaging_destination_name": "letters", "messaging_system": "ecotone_sql"}
    assert value(found, "messaging_client_sent_messages", "messaging_client_sent_messages_total", **letters) == 2
    count = "messaging_process_duration_seconds_count"
    assert value(found, "messaging_process_duration_seconds", count, error_type="ValueError", **letters) == 1
    assert value(found, "messaging_process_duration_seconds", count, error_type="LookupError", **letters) == 2
    assert value(found, "messaging_process_duration_seconds", count, messaging_consumer_group_name="print") == 2
    assert value(found, "ecotone_retries", "ecotone_retries_total", ecotone_retry_kind="delayed", **letters) == 2
    assert value(found, "ecotone_consumer_state", ecotone_consumer_state="running") == 1
    assert value(found, "ecotone_channel_depth", messaging_destination_name="letters") == 0


def test_prometheus_is_told_kinds_and_the_buckets_of_the_conventions(scraped: Scraped) -> None:
    scraped.client.post("/letters/print")

    found = scraped.scraped_until(
        lambda now: "messaging_process_duration_seconds" in now and "ecotone_channel_oldest_age_seconds" in now
    )

    assert {name: found[name].type for name in found if name.startswith(("messaging_", "ecotone_channel"))} == {
        "messaging_client_operation_duration_seconds": "histogram",
        "messaging_process_duration_seconds": "histogram",
        "messaging_client_sent_messages": "counter",
        "messaging_client_consumed_messages": "counter",
        "ecotone_channel_depth": "gauge",
        "ecotone_channel_oldest_age_seconds": "gauge",
    }
    for name in ("messaging_client_operation_duration_seconds", "messaging_process_duration_seconds"):
        bounds = {one.labels["le"] for one in found[name].samples if one.name == f"{name}_bucket"}
        assert sorted(map(float, bounds)) == [
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, float("inf"),
        ]  # fmt: skip


WORKER = """
import os

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from ecotone_fastapi import Ecotone, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import Metrics


@asynchronous("letters")
@command_handler("print", id="print")
async def print_letter(text: str) -> None: ...


start_http_server(int(os.environ["METRICS_PORT"]), addr="127.0.0.1")
metrics = Metrics(MeterProvider([PrometheusMetricReader()]), interval=0.1)
ecotone = Ecotone([print_letter], channels=[MemoryChannel("letters")], plugins=[metrics])
"""


def test_prometheus_reads_a_process_of_consumers_that_serves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ecotone("run", "worker:ecotone", cwd=tmp_path, env={"METRICS_PORT": str(port)}) as process:
        process.says("running letters")
        scraped = Scraped(f"http://127.0.0.1:{port}")
        with scraped.client:
            found = scraped.scraped_until(
                lambda now: value(now, "ecotone_consumer_state", ecotone_consumer_state="running") == 1
            )
        process.send(signal.SIGTERM)
        assert process.ends() == 0

    assert value(found, "ecotone_consumer_state", ecotone_consumer_name="letters") == 1
    assert value(found, "ecotone_channel_depth", messaging_destination_name="letters") == 0
