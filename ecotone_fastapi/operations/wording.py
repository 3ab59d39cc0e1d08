"""How handlers, channels and types are told to people who operate an application."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.messaging.asynchronous import Asynchronous, runs_in_consumer
from ecotone_fastapi.modelling.factories import CreatesInstead


def told_kind(endpoint: Endpoint) -> Kind:
    """Return what a handler handles; of a factory that stands behind a method, what that one does."""
    beside = endpoint.find(CreatesInstead)
    return endpoint.kind if beside is None else beside.kind


def told_route(endpoint: Endpoint) -> str | None:
    """Return the key of a handler; of a factory that stands behind a method, that of both."""
    beside = endpoint.find(CreatesInstead)
    return endpoint.route if beside is None else beside.route


def channels_of(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the names of the channels that messages for a handler go through."""
    way = endpoint.find(Asynchronous)
    return way.channels if way is not None and runs_in_consumer(endpoint) else ()


def abilities(channel: Channel) -> str:
    """Return what a channel can do, in words."""
    return abilities_text(asdict(channel.capabilities))


def abilities_text(capabilities: dict[str, Any]) -> str:
    """Return capabilities, given as JSON takes them, in words."""
    words = [name.replace("_", " ") for name, value in capabilities.items() if value is True]
    if capabilities["largest_body"] is not None:
        words.append(f"at most {capabilities['largest_body']} bytes")
    return ", ".join(words)


def type_name(value: object) -> str:
    """Return module and class of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def type_text(type_: Any) -> str | None:
    """Return how people write a type; `None` when there is none."""
    if type_ is None:
        return None
    return type_.__name__ if isinstance(type_, type) and not getattr(type_, "__args__", ()) else str(type_)


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for a name that is none of the known ones.

    Args:
        what: What it should name, e.g. `consumer`.
        name: The name.
        known: What there is.
    """
    listed = "".join(f"\n  {one}" for one in known)
    return ConfigurationError(
        f"there is no {what} {name!r}" + (f"; known are:{listed}" if listed else "; there is none")
    )


def listed(names: Iterable[str]) -> str:
    """Return names as people list them: each once, and not all of very many.

    Example:
        >>> listed(["orders", "mails", "orders", "bills"])
        'orders, mails and bills'
    """
    distinct = list(dict.fromkeys(names))
    shown, more = distinct[:_LISTED], len(distinct) - _LISTED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


_LISTED = 5
