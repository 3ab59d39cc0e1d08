"""A small project in a directory of its own, and the command line in this process."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from typer.testing import CliRunner

from ecotone_fastapi.cli import commands


class Project:
    """A directory with modules, which is the current one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), "utf-8")

    def ecotone(self, *arguments: str, **environment: str) -> Any:
        """Run a command; give its exit code, its standard output and its standard error."""
        result = CliRunner().invoke(commands, arguments, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.path_importer_cache.pop(".", None)  # it remembers which directory that was
    for name in ("ECOTONE_APP", "ECOTONE_FACTORY", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    before = set(sys.modules)
    level = logging.getLogger("ecotone_fastapi").level
    yield Project(tmp_path)
    logging.getLogger("ecotone_fastapi").setLevel(level)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def shop(project: Project) -> Project:
    """A project with a command, a query and an asynchronous event handler, all in memory."""
    project.write(
        "shop.py",
        """
        from dataclasses import dataclass
        from typing import Annotated

        from fastapi import Depends

        from ecotone_fastapi import (
            Ecotone, EventBus, MessageHeader, asynchronous, command_handler, event_handler, query_handler
        )
        from ecotone_fastapi.adapters.memory import MemoryChannel


        @dataclass(frozen=True)
        class PlaceOrder:
            order_id: str


        @dataclass(frozen=True)
        class OrderWasPlaced:
            order_id: str


        def get_settings() -> dict[str, str]:
            return {}


        async def get_sender(settings: Annotated[dict[str, str], Depends(get_settings)]) -> object:
            return object()


        class OrderService:
            @command_handler
            async def place_order(self, command: PlaceOrder, events: EventBus) -> None:
                await events.publish(OrderWasPlaced(command.order_id))

            @query_handler("order.get_status")
            def get_status(self, order_id: str) -> str:
                return "placed"


        class NotificationService:
            @asynchronous("notifications")
            @event_handler(id="notify-customer")
            async def when_order_placed(
                self,
                event: OrderWasPlaced,
                sender: Annotated[object, Depends(get_sender)],
                tenant: Annotated[str, MessageHeader("tenant")] = "none",
            ) -> None:
                pass


        ecotone = Ecotone([OrderService, NotificationService], channels=[MemoryChannel("notifications")])
        """,
    )
    return project
