"""`ecotone explain`: the whole journey of a message to one handler, with everything that stands in its way."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from ecotone_fastapi.cli.application import AppOption, FactoryOption, JsonOption, address_and_rest, is_configured, load
from ecotone_fastapi.cli.output import say, say_json
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.operations.journey import Interception, Journey, find, handler_names, journey_to


def explain(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="APP|HANDLER",
            help="The application, as module:name, unless it is configured; then the handler: its id, its name such as "
            "OrderService.place_order, or the end of either.",
            show_default=False,
        ),
    ] = None,
    *,
    app: AppOption = None,
    factory: FactoryOption = False,
    json: JsonOption = False,
) -> None:
    """Tell what happens to a message on its way to a handler: every interceptor in order, and what is injected."""
    given = arguments or []
    if app is None and len(given) == 1 and is_configured():
        # An id may look like an application, but what is configured need not be named.
        address, _ = address_and_rest([], None, factory=factory)
        names: Sequence[str] = given
    else:
        address, names = address_and_rest(given, app, factory=factory)
    assembly = load(address, quiet=json).assembly
    if len(names) != 1:
        known = "".join(f"\n  {one}" for one in handler_names(assembly))
        raise ConfigurationError(f"name one handler; known are:{known}")
    journey = journey_to(find(assembly, names[0]), assembly)
    if json:
        say_json(asdict(journey))
    else:
        for line in _lines(journey):
            say(line)


def _lines(journey: Journey) -> Iterator[Text]:
    yield Text.assemble((journey.label, "bold"), f"  handles the {journey.kind} {journey.route or ''}".rstrip())
    yield Text(f"  id {journey.id}", "dim")
    for mark in journey.marks:
        yield Text(f"  mark {mark}", "dim")
    for number, station in enumerate(journey.stations, start=1):
        yield Text()
        yield Text.assemble(f"{number}. ", (station.stage.upper().ljust(8), "bold cyan"), "  ", station.where)
        for one in station.interceptors:
            yield from _interceptor_lines(one)
        for note in station.notes:
            yield Text(f"     - {note}")
    yield Text()
    yield Text.assemble(
        f"{len(journey.stations) + 1}. ", ("CALL    ", "bold cyan"), f"  {journey.label}, {journey.runs}"
    )
    for line in journey.injected:
        yield Text(f"     {line}")
    if journey.file is not None:
        yield Text(f"     {journey.file}:{journey.line}", "dim")


def _interceptor_lines(one: Interception) -> Iterator[Text]:
    place = one.module if one.line is None else f"{one.module}:{one.line}"
    by = f", of the plugin {one.plugin}" if one.plugin and not one.name.startswith(f"{one.plugin}.") else ""
    yield Text.assemble(f"     {one.order:>4} {one.order_name:<14} ", (one.name, "bold"), by, (f"  {place}", "dim"))
    if one.does:
        yield Text(f"{'':25}{one.does}")
    if one.settings:
        yield Text(f"{'':25}{one.settings}", "dim")
