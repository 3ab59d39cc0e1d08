"""The journey of a message to one handler, with everything that stands in its way: what `ecotone explain` tells."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.pipeline import Around, Order, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.asynchronous import AsynchronousHandlers
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.transactions import Transactions, UnitOfWork
from ecotone_fastapi.modelling.factories import CreatesInstead
from ecotone_fastapi.operations.wording import abilities, channels_of, told_kind, told_route, type_text, unknown

_BUSES = {Kind.COMMAND: "CommandBus.send", Kind.QUERY: "QueryBus.ask", Kind.EVENT: "EventBus.publish"}


@dataclass(frozen=True)
class Interception:
    """An interceptor on the way.

    Args:
        order: Where it stands; the smallest is outermost.
        order_name: The name of this place, with what is added to it.
        name: What is called.
        module: Where that is defined.
        line: In which line.
        plugin: The class of the plugin that put it there.
        settings: The plugin as it describes itself, when it does.
        does: What it says that it does.
    """

    order: int
    order_name: str
    name: str
    module: str
    line: int | None
    plugin: str | None
    settings: str | None
    does: str | None


@dataclass(frozen=True)
class Station:
    """A part of the way.

    Args:
        stage: The stage of the pipeline, or `channel`.
        where: What happens here.
        interceptors: What stands around it, the outermost first.
        notes: What else happens, inside of all interceptors.
    """

    stage: str
    where: str
    interceptors: tuple[Interception, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Journey:
    """How a message comes to a handler.

    Args:
        id: The id of the handler.
        label: Its name.
        kind: What it handles.
        route: Its key, else its payload type.
        marks: Its marks and those of its class.
        stations: The parts of the way, in order.
        injected: What its parameters are and how long they live.
        runs: How it is called.
        file: Where it is written.
        line: In which line.
    """

    id: str
    label: str
    kind: str
    route: str | None
    marks: tuple[str, ...]
    stations: tuple[Station, ...]
    injected: tuple[str, ...]
    runs: str
    file: str | None
    line: int | None


def journey_to(endpoint: Endpoint, assembly: Assembly) -> Journey:
    """Return the journey of a message to a handler.

    Args:
        endpoint: The handler.
        assembly: The application, put together.
    """
    plan = assembly.gateway.plan_of(endpoint.id)
    file, line = _place(endpoint.function)
    return Journey(
        id=endpoint.id,
        label=endpoint.label,
        kind=told_kind(endpoint).value,
        route=told_route(endpoint) or type_text(endpoint.payload_type),
        marks=tuple(repr(one) for one in endpoint.marks),
        stations=tuple(_stations(endpoint, assembly)),
        injected=plan.lines,
        runs=plan.manner,
        file=file,
        line=line,
    )


def find(assembly: Assembly, name: str) -> Endpoint:
    """Return the handler with this id or name, or the only one whose id or name ends like this.

    Raises:
        ConfigurationError: There is none, or more than one.
    """
    endpoints = assembly.endpoints
    tests: tuple[Callable[[str], bool], ...] = (
        lambda own: own == name,
        lambda own: own.endswith((f".{name}", f":{name}")),
        lambda own: own.endswith(name),
    )
    for fits in tests:
        found = [one for one in endpoints if fits(one.id) or fits(one.label)]
        if len(found) == 1:
            return found[0]
        if found:
            several = "".join(f"\n  {one.id}" for one in found)
            raise ConfigurationError(f"{name!r} are several handlers; say which by its id:{several}")
    raise unknown("handler", name, handler_names(assembly))


def handler_names(assembly: Assembly) -> list[str]:
    """Return how people call the handlers of an application, sorted."""
    return sorted(one.label if one.id.endswith(one.label) else f"{one.label} ({one.id})" for one in assembly.endpoints)


def _stations(endpoint: Endpoint, assembly: Assembly) -> Iterator[Station]:
    gateway = assembly.gateway
    payload = type_text(endpoint.payload_type)
    becomes = f"what was sent becomes {payload}, if it is none" if payload else "the payload is not read"
    beside = endpoint.find(CreatesInstead)
    if beside is not None:
        users = [one for one in gateway.around(Stage.HANDLE, endpoint) if Order.OUTGOING < one.order < Order.STATE]
        where = f"{endpoint.label}, when {beside.method} finds none, within all that stands around that one"
        yield Station("handle", where, tuple(map(_described, users)), (becomes,))
        return
    around = {stage: tuple(_described(one) for one in gateway.around(stage)) for stage in Stage}
    handling = gateway.around(Stage.HANDLE, endpoint)
    all_handling = tuple(_described(one) for one in handling)
    yield Station("dispatch", _sending(endpoint), around[Stage.DISPATCH], (_routing(endpoint), becomes))
    transactions = tuple(
        f"transactions are those of {_service(UnitOfWork, assembly)}"
        if UnitOfWork in assembly.services
        else "no database is installed: only outgoing messages are held back"
        for one in handling
        if isinstance(one.plugin, Transactions)
    )
    channels = channels_of(endpoint)
    if not channels:
        yield Station("handle", endpoint.label, all_handling, transactions)
        return
    crossing = [number for number, one in enumerate(handling) if isinstance(one.plugin, AsynchronousHandlers)]
    on_the_way = all_handling[: crossing[-1] + 1 if crossing else 0]
    before = "the sender"
    for number, name in enumerate(channels):
        yield Station("handle", f"in {before}, as far as the way to channel {name}", on_the_way)
        yield Station(
            "send", f"to channel {name}", around[Stage.SEND], ("the payload becomes bytes",) if not number else ()
        )
        yield Station("channel", _channel(name, assembly))
        parking = f"the dead letter is {_service(DeadLetterStore, assembly)}"
        settling = "acked in the end, unless that has happened on the way; given back when an error comes through"
        yield Station("receive", _consumer(name, assembly), around[Stage.RECEIVE], (settling, parking))
        before = f"the consumer of {name}"
    note = f"behind {Order.ASYNCHRONOUS.name}, the bytes become {payload}" if payload else "the bytes are not read"
    yield Station("handle", f"{endpoint.label} in {before}", all_handling, (note, *transactions))


def _sending(endpoint: Endpoint) -> str:
    payload = type_text(endpoint.payload_type)
    if endpoint.kind not in _BUSES:
        return f"sent by another handler to {endpoint.route or payload}"
    said = payload if endpoint.route is None else f"{payload or ''}, to={endpoint.route!r}".removeprefix(", ")
    return f"{_BUSES[endpoint.kind]}({said})"


def _routing(endpoint: Endpoint) -> str:
    by = f"by the key {endpoint.route}" if endpoint.route is not None else "by the type of the payload"
    if endpoint.kind is Kind.EVENT:
        return f"found {by}, one of any number of handlers, with priority {endpoint.priority}"
    return f"found {by}"


def _channel(name: str, assembly: Assembly) -> str:
    channel = assembly.channels[name]
    return f"{name}: {type(channel).__name__} ({abilities(channel) or 'no capabilities'})"


def _consumer(name: str, assembly: Assembly) -> str:
    runnable = assembly.runnables.get(name)
    if isinstance(runnable, Consumer):
        return f"by the consumer of {name}: {runnable.concurrency} at a time, borrowed in batches of {runnable.batch}"
    return f"by {type(runnable).__name__}" if runnable is not None else "by nobody here"


def _service(type_: type, assembly: Assembly) -> str:
    service = assembly.services.get(type_)
    return type(service).__name__ if service is not None else "nobody"


def _described(around: Around) -> Interception:
    function = _function(around.interceptor)
    own_name = str(getattr(function, "__qualname__", type(function).__qualname__))
    documented = inspect.getdoc(function) if inspect.isroutine(function) else inspect.getdoc(type(function))
    plugin = around.plugin
    describes_itself = plugin is not None and type(plugin).__repr__ is not object.__repr__
    return Interception(
        order=int(around.order),
        order_name=_order_name(int(around.order)),
        name=own_name.replace(".install.<locals>", "").replace(".<locals>", ""),
        module=str(getattr(function, "__module__", type(function).__module__)),
        line=_place(function)[1],
        plugin=type(plugin).__qualname__ if plugin is not None else None,
        settings=repr(plugin) if describes_itself else None,
        does=documented.splitlines()[0] if documented else None,
    )


def _function(interceptor: Any) -> Any:
    while isinstance(interceptor, functools.partial):
        interceptor = interceptor.func
    return inspect.unwrap(interceptor) if callable(interceptor) else interceptor


def _order_name(order: int) -> str:
    below = [one for one in Order if one <= order]
    if not below:
        return "outside"
    return below[-1].name + (f"+{order - below[-1]}" if order > below[-1] else "")


def _place(thing: Any) -> tuple[str | None, int | None]:
    """File and line of a function, or of the class of an object."""
    target = inspect.unwrap(thing) if inspect.isroutine(thing) else type(thing)
    try:
        file = Path(inspect.getsourcefile(target) or "")
        line = inspect.getsourcelines(target)[1]
    except (OSError, TypeError):  # made at run time, or written in C
        return None, None
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file), line
