"""The AsyncAPI 3 document of an application: what goes through its channels, for those who send to or read from them.

It names every channel, and for every asynchronous handler the message that it takes: its payload as it is written, and
its headers. Handlers that run in the caller take no message from a channel and are not in it, and neither are the
tables in which an outbox keeps messages.

>>> from ecotone_fastapi import Ecotone
>>> document = asyncapi_document(Ecotone([]).assembly, title="Shop", version="1.0.0")
>>> document["asyncapi"], document["info"]["title"]
('3.0.0', 'Shop')
"""

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from pydantic_core import to_json

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.conversion import JSON, Conversion
from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.message import HeaderName, name_of
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.routing import members_of
from ecotone_fastapi.messaging.outbox import ThroughOutbox
from ecotone_fastapi.operations.headers import HEADERS, header_schemas
from ecotone_fastapi.operations.schema_objects import schema_object
from ecotone_fastapi.operations.wording import abilities, channels_of, told_kind, told_route, type_name, type_text

VERSION = "3.0.0"
"""The version of AsyncAPI that documents are written in."""

_ABOUT = "What goes through the channels of this application. Handlers that run in the caller are not in it."
_SCHEMAS = "#/components/schemas/"


@runtime_checkable
class Documented(Protocol):
    """A channel that can tell how it is reached on its server."""

    def asyncapi(self) -> Mapping[str, Any]:
        """Return `address` and `bindings` as the Channel Object of AsyncAPI 3 has them; nothing that is secret."""
        ...


def asyncapi_document(assembly: Assembly, *, title: str, version: str, description: str = _ABOUT) -> dict[str, Any]:
    """Return the document of an application that was put together, as JSON takes it.

    A payload is described as it is written on the channel (pydantic's mode `serialization`, by alias, without computed
    fields): what comes from this application always fits, and what fits is read.

    Args:
        assembly: The application.
        title: Its name.
        version: Its version; not that of AsyncAPI.
        description: What it is about.
    """
    document = _Document(assembly)
    for channel in document.channels_shown():
        document.add_channel(channel)
    for endpoint in sorted(assembly.endpoints, key=lambda one: one.id):
        document.add_handler(endpoint)
    info = {"title": title, "version": version, "description": description}
    whole = {"asyncapi": VERSION, "info": info, "defaultContentType": JSON, **document.parts()}
    # Defaults and examples may be anything, also what is no JSON.
    text = to_json(whole, serialize_unknown=True, bytes_mode="base64")
    plain: dict[str, Any] = json.loads(text, parse_constant=str)
    return plain


class _Keys:
    """Keys that references can be made of, one for each name."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken: set[str] = set(taken)
        self._keys: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if name not in self._keys:
            wanted = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "_"
            key, number = wanted, 2
            while key in self._taken:
                key, number = f"{wanted}_{number}", number + 1
            self._taken.add(key)
            self._keys[name] = key
        return self._keys[name]


class _Document:
    """A document that is being made."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._conversion: Conversion = assembly.gateway.conversion
        self._channel_key, self._message_key, self._operation_key = _Keys(), _Keys(), _Keys()
        self._channels: dict[str, dict[str, Any]] = {}
        self._messages: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, dict[str, Any]] = {}
        self._payloads: dict[str, Any] = {}

    def channels_shown(self) -> list[Channel]:
        """All channels but those that only an outbox uses, by name."""
        channels = self._assembly.channels
        hidden = {one.outbox.name for one in channels.values() if isinstance(one, ThroughOutbox)}
        return [channels[name] for name in sorted(channels) if name not in hidden]

    def add_channel(self, channel: Channel) -> None:
        """Describe a channel, without its messages."""
        inner = channel.channel if isinstance(channel, ThroughOutbox) else channel
        told = dict(channel.asyncapi()) if isinstance(channel, Documented) else {}
        self._channels[self._channel_key(channel.name)] = {
            "address": channel.name,
            "title": channel.name,
            "description": f"{type(inner).__name__}: {abilities(channel) or 'plain'}",
            "messages": {},
            **told,
            "x-ecotone-channel": type_name(inner),
        }

    def add_handler(self, endpoint: Endpoint) -> None:
        """Describe the message that an asynchronous handler takes, and its way through the channels."""
        way = channels_of(endpoint)
        if not way:
            return
        key = self._message_key(endpoint.id)
        self._messages[key] = self._message(key, endpoint)
        for place, name in enumerate(way):
            following = way[place + 1] if place + 1 < len(way) else None
            channel = self._channel_key(name)
            self._channels[channel]["messages"][key] = {"$ref": f"#/components/messages/{key}"}
            for action in ("send", "receive"):
                operation = self._operation_key(f"{action}.{channel}.{key}")
                self._operations[operation] = self._operation(action, channel, key, endpoint, following)

    def _operation(
        self, action: str, channel: str, message: str, endpoint: Endpoint, following: str | None
    ) -> dict[str, Any]:
        kind, route = told_kind(endpoint), told_route(endpoint)
        said = inspect.getdoc(endpoint.function)
        if action == "send":
            does = f"Send the {kind} to {endpoint.label}."
        elif following is None:
            does = f"Handle the {kind} in {endpoint.label}."
        else:
            does = f"Pass the {kind} for {endpoint.label} on to the channel {following}."
        return {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
            "title": endpoint.label,
            "summary": does,
            **({"description": said} if said and action == "receive" and following is None else {}),
            "tags": [{"name": str(kind)}],
            "x-ecotone-endpoint": endpoint.id,
            **({"x-ecotone-route": route} if route is not None else {}),
        }

    def _message(self, key: str, endpoint: Endpoint) -> dict[str, Any]:
        type_, route = endpoint.payload_type, told_route(endpoint)
        names = [name_of(one) for one in members_of(type_) if isinstance(one, type)]
        by_pydantic = type_ is not None and not any(map(self._conversion.has_converter, (type_, *members_of(type_))))
        if by_pydantic:
            self._payloads[key] = type_
        media_type = self._media_type(type_)
        return {
            "name": names[0] if len(names) == 1 and route is None else route or endpoint.id,
            "title": type_text(type_) if route is None else route,
            "summary": f"For {endpoint.label}",
            **({"contentType": media_type} if media_type is not None else {}),
            "headers": self._headers(endpoint, names, media_type),
            "correlationId": {"location": f"$message.header#/{HeaderName.correlation_id}"},
            "tags": [{"name": str(told_kind(endpoint))}],
        }

    def _media_type(self, type_: Any) -> str | None:
        """The one in which a payload is written; `None` when that depends on what is sent."""
        found = {self._conversion.media_type(one) for one in (members_of(type_) or (type_,))}
        return found.pop() if len(found) == 1 else None

    @staticmethod
    def _headers(endpoint: Endpoint, names: list[str], media_type: str | None) -> dict[str, Any]:
        own: dict[str, Any] = {HeaderName.endpoint: {"const": endpoint.id}}
        if media_type is not None:
            own[HeaderName.content_type] = {"type": "string", "examples": [media_type]}
        if names and endpoint.payload_type not in (bytes, str, dict, list, object):
            own[HeaderName.type] = {"type": "string", "examples": names}
        return {"type": "object", "allOf": [{"$ref": _SCHEMAS + HEADERS}], "properties": own}

    def parts(self) -> dict[str, Any]:
        """Return channels, operations and components."""
        payloads, shared = self._conversion.schemas(self._payloads, ref_template=_SCHEMAS + "{model}")
        for key, schema in payloads.items():
            self._messages[key]["payload"] = schema_object(schema)
        schemas = {name: schema_object(schema) for name, schema in sorted(shared.items())}
        return {
            "channels": self._channels,
            "operations": dict(sorted(self._operations.items())),
            "components": {"messages": self._messages, "schemas": {HEADERS: header_schemas(), **schemas}},
        }
