"""`ecotone list`: what runs, and who handles what."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from ecotone_fastapi.app import Ecotone
from ecotone_fastapi.cli.application import AppArgument, FactoryOption, JsonOption, address_of, load
from ecotone_fastapi.cli.output import remark, say, say_json
from ecotone_fastapi.core.channel import Channel, Inspectable
from ecotone_fastapi.core.consumer import Consumer, Hold
from ecotone_fastapi.core.endpoint import Kind
from ecotone_fastapi.core.errors import EcotoneError
from ecotone_fastapi.modelling.factories import CreatesInstead
from ecotone_fastapi.operations.wording import abilities_text, channels_of, told_kind, told_route, type_name, type_text


def list_(
    app: AppArgument = None,
    *,
    factory: FactoryOption = False,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Ask the servers how many messages wait, and for how long.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List channels with their consumers, what else can be run, and all handlers."""
    ecotone = load(address_of(app, factory=factory), quiet=json)
    paused, depths = asyncio.run(_ask(ecotone, waiting=waiting))
    found = inventory(ecotone, paused)
    for row in found["channels"] if waiting else ():
        row["waiting"] = depths.get(row["name"])
    if json:
        say_json(found)
        return
    tables = [_channels(found["channels"]), _runnables(found["runnables"]), _handlers(found["handlers"])]
    for number, table in enumerate(table for table in tables if table.row_count):
        if number:
            say()
        say(table)


def inventory(ecotone: Ecotone, paused: Mapping[str, Hold] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return channels, other runnables and handlers as JSON takes them.

    Args:
        ecotone: The application.
        paused: Which of its consumers pause.
    """
    assembly = ecotone.assembly
    consumers = {one.channel.name: one for one in assembly.runnables.values() if isinstance(one, Consumer)}
    endpoints = sorted(assembly.endpoints, key=lambda one: (list(Kind).index(told_kind(one)), one.label))
    return {
        "channels": [
            {
                "name": name,
                "type": type_name(channel),
                "capabilities": asdict(channel.capabilities),
                "consumer": _consumer(consumers.get(name)),
                "paused": _pause((paused or {}).get(name)),
                "handlers": [one.id for one in endpoints if name in channels_of(one)],
            }
            for name, channel in assembly.channels.items()
        ],
        "runnables": [
            {"name": name, "type": type_name(one)}
            for name, one in assembly.runnables.items()
            if not isinstance(one, Consumer)
        ],
        "handlers": [
            {
                "id": one.id,
                "label": one.label,
                "kind": told_kind(one).value,
                "route": told_route(one),
                "instead_of": beside.method if (beside := one.find(CreatesInstead)) is not None else None,
                "payload": type_text(one.payload_type),
                "channels": list(channels_of(one)),
            }
            for one in endpoints
        ],
    }


async def _ask(ecotone: Ecotone, *, waiting: bool) -> tuple[Mapping[str, Hold], Mapping[str, dict[str, Any]]]:
    if not waiting:
        return await _paused(ecotone), {}
    async with ecotone.running(consumers=False, patient=True):
        return await _paused(ecotone), await _depths(ecotone.assembly.channels)


async def _depths(channels: Mapping[str, Channel]) -> Mapping[str, dict[str, Any]]:
    """How many messages each channel holds that can be looked into, and how old the oldest is that could be handled."""
    found: dict[str, dict[str, Any]] = {}
    for name, channel in channels.items():
        if isinstance(channel, Inspectable):
            try:
                async with asyncio.timeout(_ANSWER):
                    found[name] = {"depth": await channel.depth(), "oldest_age": await channel.oldest_age()}
            except (EcotoneError, TimeoutError) as error:
                remark(f"channel {name} does not tell how many messages wait: {error}".splitlines()[0])
    return found


async def _paused(ecotone: Ecotone) -> Mapping[str, Hold]:
    """Which consumers pause in all processes; nothing when the database does not answer: there is more to list."""
    try:
        async with asyncio.timeout(_ANSWER):
            await ecotone.consumers.look()
    except (EcotoneError, TimeoutError) as error:
        remark(f"cannot tell which consumers pause: {error}".splitlines()[0])
    return ecotone.consumers.paused()


# Seconds that the database has to answer.
_ANSWER = 5.0


def _pause(hold: Hold | None) -> dict[str, str] | None:
    return None if hold is None else {"reason": hold.reason, "since": hold.since.isoformat(timespec="seconds")}


def _consumer(consumer: Consumer | None) -> dict[str, int] | None:
    return None if consumer is None else {"concurrency": consumer.concurrency, "batch": consumer.batch}


def _channels(rows: Iterable[dict[str, Any]]) -> Table:
    rows = list(rows)
    asked = any("waiting" in row for row in rows)
    table = _table("channel", "type", "can", "consumer", *(["waiting"] if asked else []), "handlers")
    for row in rows:
        consumer = row["consumer"]
        table.add_row(
            row["name"],
            row["type"].rpartition(".")[2],
            abilities_text(row["capabilities"]),
            _state(consumer, row["paused"]),
            *([_waiting(row["waiting"])] if asked else []),
            "\n".join(row["handlers"]),
        )
    return table


def _waiting(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not told"
    age = found["oldest_age"]
    return f"{found['depth']}" + ("" if age is None else f", the oldest for {age:.1f} s")


def _state(consumer: dict[str, int] | None, paused: dict[str, str] | None) -> str:
    if consumer is None:
        return "none"
    if paused is None:
        return f"{consumer['concurrency']} at a time"
    return f"paused since {paused['since']}" + (f": {paused['reason']}" if paused["reason"] else "")


def _runnables(rows: Iterable[dict[str, Any]]) -> Table:
    table = _table("runnable", "type")
    for row in rows:
        table.add_row(row["name"], row["type"].rpartition(".")[2])
    return table


def _handlers(rows: Iterable[dict[str, Any]]) -> Table:
    table = _table("kind", "route", "handler", "id", "channel")
    for row in rows:
        label = row["label"] + (f", when {row['instead_of']} finds none" if row["instead_of"] else "")
        channels = " → ".join(row["channels"]) or "-"
        table.add_row(row["kind"], row["route"] or row["payload"], label, row["id"], channels)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), overflow="fold")
    return table
