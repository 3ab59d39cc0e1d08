"""What operators do with the fields of messages: format strings, JSON, structlog, the log config of uvicorn."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from pythonjsonlogger.json import JsonFormatter

from ecotone_fastapi import EventBus, MessageFields, command_handler, event_handler, message_fields
from ecotone_fastapi.adapters.opentelemetry import trace_fields
from ecotone_fastapi.testing import flow_test

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


class Shop:
    """Handlers that log as always."""

    def __init__(self, log: Any) -> None:
        self.log = log

    @command_handler(id="place-order")
    async def place(self, command: PlaceOrder, events: EventBus) -> None:
        self.log.info("placed")
        await events.publish(OrderWasPlaced(command.order_id), headers={"id": "m-2"})

    @event_handler(id="notify-customer")
    def notify(self, event: OrderWasPlaced) -> None:
        self.log.info("notified")


async def place_an_order(log: Any) -> None:
    log.info("opening")
    async with flow_test([Shop(log)]) as flow:
        await flow.send(PlaceOrder("1"), headers={"id": "m-1", "correlation_id": "c-1"})


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[logging.Logger]:
    log = logging.getLogger("shop")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield log
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


async def test_a_format_string_shows_the_fields() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(MessageFields(absent="-"))
    handler.setFormatter(
        logging.Formatter("%(levelname)s [%(correlation_id)s %(message_id)s %(endpoint)s] %(message)s")
    )

    with logging_to(handler) as log:
        await place_an_order(log)

    assert stream.getvalue().splitlines() == [
        "INFO [- - -] opening",
        "INFO [c-1 m-1 place-order] placed",
        "INFO [c-1 m-2 notify-customer] notified",
    ]


async def test_a_formatter_for_json_writes_the_fields_that_are_known() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(MessageFields(trace_fields))
    handler.setFormatter(JsonFormatter("%(levelname)s %(message)s"))

    with logging_to(handler) as log, TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        await place_an_order(log)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    traced = {
        "trace_id": f"{span.get_span_context().trace_id:032x}",
        "span_id": f"{span.get_span_context().span_id:016x}",
    }
    told = {"levelname": "INFO", **traced}
    assert lines == [
        {**told, "message": "opening"},
        {
            **told,
            "message": "placed",
            "message_id": "m-1",
            "correlation_id": "c-1",
            "endpoint": "place-order",
            "attempt": 1,
        },
        {
            **told,
            "message": "notified",
            "message_id": "m-2",
            "correlation_id": "c-1",
            "causation_id": "m-1",
            "endpoint": "notify-customer",
            "attempt": 1,
        },
    ]


def add_message_fields(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor: what the event says itself wins."""
    return {**message_fields(), **trace_fields(), **event}


async def test_structlog_has_the_fields_by_a_processor() -> None:
    stream = io.StringIO()
    log = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[add_message_fields, structlog.processors.JSONRenderer(sort_keys=True)],
    )

    await place_an_order(log.bind(shop="Warsaw"))

    opening, placed, notified = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert opening == {"event": "opening", "shop": "Warsaw"}
    assert placed == {
        "event": "placed",
        "shop": "Warsaw",
        "message_id": "m-1",
        "correlation_id": "c-1",
        "endpoint": "place-order",
        "attempt": 1,
    }
    assert (notified["message_id"], notified["causation_id"], notified["endpoint"]) == ("m-2", "m-1", "notify-customer")


async def test_structlog_shows_the_records_of_the_standard_library_with_the_fields() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[add_message_fields],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )

    with logging_to(handler) as log:
        await place_an_order(log)

    _, placed, _ = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (placed["event"], placed["message_id"], placed["endpoint"]) == ("placed", "m-1", "place-order")


# ------------------------------------------------------------------------------------------------------------- uvicorn

SERVED = """
import logging

from fastapi import FastAPI

from ecotone_fastapi import CommandBusDep, Ecotone, command_handler

log = logging.getLogger("shop")


@command_handler("place", id="place-order")
def place(order_id: str) -> None:
    log.info("placed %s", order_id)


app = FastAPI()
Ecotone([place]).install(app)


@app.post("/orders/{order_id}")
async def post(order_id: str, commands: CommandBusDep) -> None:
    await commands.send(order_id, to="place", headers={"id": "m-1"})
"""

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {
        "message": {
            "()": "ecotone_fastapi.MessageFields",
            "more": "ext://ecotone_fastapi.adapters.opentelemetry.trace_fields",
            "absent": "-",
        }
    },
    "formatters": {
        "default": {"format": "%(levelname)s %(name)s [%(correlation_id)s %(message_id)s %(trace_id)s] %(message)s"}
    },
    "handlers": {
        "default": {"class": "logging.StreamHandler", "formatter": "default", "filters": ["message"]},
    },
    "root": {"level": "INFO", "handlers": ["default"]},
}


@contextmanager
def served(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The application under uvicorn with its log config, and where it listens."""
    (directory / "shop.py").write_text(SERVED)
    (directory / "logging.json").write_text(json.dumps(CONFIG))
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "shop:app", "--port", "0", "--log-config", "logging.json"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)])},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.search(r"running on (http://\S+)", line)
            if found:
                yield process, found[1]
                break
        else:
            pytest.fail("uvicorn did not start")
    finally:
        process.terminate()
        process.communicate(timeout=200)


def test_the_log_config_of_uvicorn_shows_the_fields_also_in_its_access_log(tmp_path: Path) -> None:
    with served(tmp_path) as (process, url):
        httpx.post(f"{url}/orders/7", headers={"X-Correlation-ID": "c-1"}, timeout=30).raise_for_status()
        process.terminate()
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()

    (placed,) = [line for line in lines if line.startswith("INFO shop ")]
    (accessed,) = [line for line in lines if line.startswith("INFO uvicorn.access ")]
    assert placed == "INFO shop [c-1 m-1 -] placed 7"
    assert accessed.startswith("INFO uvicorn.access [c-1 - -] ")
    assert '"POST /orders/7 HTTP/1.1" 200' in accessed


# ----------------------------------------------------------------------------------------------- what is left untouched

PROGRAM = """
import asyncio
import logging


def configured() -> dict[str, object]:
    names = ("", *sorted(logging.root.manager.loggerDict))
    loggers = {name: logging.getLogger(name) for name in names if name == "" or "ecotone_fastapi" in name}
    return {
        "factory": logging.getLogRecordFactory(),
        "class": logging.getLoggerClass(),
        "disabled": logging.root.manager.disable,
        "levels": {name: one.level for name, one in loggers.items() if one.level and name},
        "handlers": {name: list(one.handlers) for name, one in loggers.items() if one.handlers},
        "filters": {name: list(one.filters) for name, one in loggers.items() if one.filters},
        "silent": [name for name, one in loggers.items() if not one.propagate or one.disabled],
        "root": (logging.root.level, logging.lastResort.level, logging.raiseExceptions),
    }


before = configured()

from fastapi import FastAPI
from fastapi.testclient import TestClient

import ecotone_fastapi.cli
import ecotone_fastapi.testing
from ecotone_fastapi import CommandBusDep, Ecotone, MessageFields, asynchronous, command_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.opentelemetry import trace_fields
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core import Limits

handled = []


@asynchronous("orders")
@command_handler("place", id="place-order")
async def place(order_id: str) -> None:
    handled.append(order_id)


async def main() -> None:
    database = SqlAlchemy("sqlite+aiosqlite:///orders.db", create_schema=True)
    ecotone = Ecotone([place], channels=[MemoryChannel("orders")], plugins=[database])
    async with ecotone.running(consumers=False):
        await ecotone.command_bus.send("1", to="place")
        await ecotone.run("orders", Limits(until_empty=True))


asyncio.run(main())

app = FastAPI()
Ecotone([place], channels=[MemoryChannel("orders")]).install(app)
with TestClient(app) as client:
    assert client.get("/ecotone/health/live", headers={"X-Correlation-ID": "c-1"}).status_code == 200

assert handled == ["1"], handled
MessageFields(trace_fields)
after = configured()
assert any(name.startswith("ecotone_fastapi.") for name in logging.root.manager.loggerDict)
assert after == before, (before, after)
"""


def test_the_library_configures_nothing_of_logging(tmp_path: Path) -> None:
    """No handler, level, filter or record factory, neither by importing it nor by running it."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert run.returncode == 0, run.stderr
