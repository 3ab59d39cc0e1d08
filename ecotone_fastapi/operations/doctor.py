"""What is wrong with an application, or will be: wiring, tables, servers, clocks, versions, and what loses messages.

Nothing is opened, sent or changed for it. What is found is a list of `Finding`, good ones included.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

from ecotone_fastapi.core.channel import Inspectable
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.endpoint import Endpoint, Handles, marks_of
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, EcotoneError
from ecotone_fastapi.core.examination import Examinable, Finding, Level
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.plugin import Assembly, Migratable
from ecotone_fastapi.core.texts import in_one_line
from ecotone_fastapi.messaging.outbox import OutboxStorage, ThroughOutbox
from ecotone_fastapi.operations.declared import handled_by
from ecotone_fastapi.operations.durability import examine_durability
from ecotone_fastapi.operations.wording import channels_of, listed

ANSWERING = 10.0
"""Seconds that each server has for each answer."""

_LOOKED_AT = 100  # messages of each channel


@runtime_checkable
class CreatesSchema(Protocol):
    """A plugin that may bring its tables up to date when the application starts."""

    @property
    def creates_schema(self) -> bool:
        """Whether it does."""
        ...


@runtime_checkable
class BoundsConnections(Protocol):
    """A plugin that has so many connections for all handlers, and no more."""

    @property
    def name(self) -> str:
        """How it is called in a report."""
        ...

    @property
    def most_connections(self) -> int | None:
        """How many there are; `None` when that cannot be told."""
        ...


def problems_of(error: ConfigurationError, where: str) -> Sequence[Finding]:
    """Return what is wrong with the wiring, one by one.

    Args:
        error: What was raised when the application was put together.
        where: The application.
    """
    return [_failed("wiring", where, one) for one in error.problems or [error]]


async def examine(assembly: Assembly, where: str, *, timeout: float = ANSWERING) -> Sequence[Finding]:
    """Examine an application that was put together and does not run.

    Args:
        assembly: The application.
        where: What to call it.
        timeout: Seconds that each server has for each answer.
    """
    findings = [
        *_examine_wiring(assembly, where),
        *_examine_connections(assembly),
        *examine_durability(assembly),
    ]
    silent: list[object] = []
    for part in (*assembly.plugins, *assembly.channels.values()):
        if isinstance(part, Examinable):
            answer = await _answer("server", part.name, part.examine, timeout)
            findings += answer
            silent += [part] if any(one.level is Level.PROBLEM for one in answer) else []
    tables = [_Tables(one) for one in assembly.plugins if isinstance(one, Migratable) and one not in silent]
    for each in tables:
        findings += await _answer("schema", each.name, each, timeout)
    if not silent and not any(each.missing for each in tables):
        findings += await _answer("messages", where, _Messages(assembly), timeout)
        for each in tables:  # whoever is asked for tables lets go of what was opened, for these questions, too
            await _answer("schema", each.name, each, timeout)
    # Channels on one server say the same about it.
    return list(dict.fromkeys(findings))


async def _answer(
    topic: str, where: str, question: Callable[[], Awaitable[Sequence[Finding]]], timeout: float
) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(timeout):
            return await question()
    except TimeoutError:
        error: Exception = ChannelError(f"no answer within {timeout:g} seconds", hint="is the server there, and well?")
    except Exception as failure:  # what a plugin of the user's fails with is a finding, too
        error = failure
    return [_failed(topic, where, error)]


def _failed(topic: str, where: str, error: Exception) -> Finding:
    if not isinstance(error, EcotoneError):
        return Finding(Level.PROBLEM, topic, where, in_one_line(error))
    name = "" if type(error) in (ConfigurationError, ChannelError) else f"{type(error).__name__}: "
    tried = f" (tried: {error.tried})" if error.tried else ""
    hint = error.hint or ("is the server there, and is its address right?" if isinstance(error, ChannelError) else "")
    return Finding(Level.PROBLEM, topic, where, f"{name}{error.what}{tried}", hint)


# ------------------------------------------------------------------------------------------------------------- wiring


def _examine_wiring(assembly: Assembly, where: str) -> Iterator[Finding]:
    counts = {
        "handler": sum(handled_by(one) is not None for one in assembly.endpoints),
        "channel": len(assembly.channels),
        "consumer": sum(isinstance(one, Consumer) for one in assembly.runnables.values()),
    }
    told = listed(f"{count} {name}" + ("" if count == 1 else "s") for name, count in counts.items())
    yield Finding(Level.OK, "wiring", where, f"{told} fit together")
    unnamed = [one.label for one in assembly.endpoints if channels_of(one) and not _has_lasting_id(one)]
    if unnamed:
        yield Finding(
            Level.WARNING,
            "wiring",
            where,
            f"{listed(unnamed)} are known by the names of their modules and functions: messages that wait for them are "
            "not handled after these have changed"
            if len(unnamed) > 1
            else f"{unnamed[0]} is known by the name of its module and function: messages that wait for it are not "
            "handled after that has changed",
            'give each asynchronous handler a name that lasts: @event_handler(id="notify-customer")',
        )
    outboxes = [one.outbox.name for one in assembly.channels.values() if isinstance(one, ThroughOutbox)]
    used = {name for one in assembly.endpoints for name in channels_of(one)}
    for name in assembly.channels:
        if name not in used and name not in outboxes:
            yield Finding(
                Level.WARNING,
                "wiring",
                f"channel {name}",
                "no handler stands behind it",
                f"leave it out, or put @asynchronous({name!r}) above a handler",
            )


def _examine_connections(assembly: Assembly) -> Iterator[Finding]:
    bounded = [one for one in assembly.plugins if isinstance(one, BoundsConnections)]
    for consumer in assembly.runnables.values():
        for plugin in bounded if isinstance(consumer, Consumer) else ():
            most = plugin.most_connections
            if isinstance(consumer, Consumer) and most is not None and consumer.concurrency >= most:
                yield Finding(
                    Level.WARNING,
                    "connections",
                    f"consumer {consumer.name}",
                    f"handles {consumer.concurrency} messages at the same time, each in a transaction, and "
                    f"{plugin.name} has {most} connections for all",
                    "give the database an engine with a larger pool, or the consumer a smaller concurrency",
                )


def _has_lasting_id(endpoint: Endpoint) -> bool:
    function = getattr(endpoint.function, "__func__", endpoint.function)
    written = [one for one in marks_of(function) if isinstance(one, Handles)]
    # What plugins add is named by them.
    return not written or any(one.id is not None for one in written)


# ------------------------------------------------------------------------------------------------- tables and messages


class _Tables:
    """Asks whether tables are up to date."""

    def __init__(self, plugin: Migratable) -> None:
        self.name: str = plugin.name
        self.missing: Sequence[str] = ()
        self._plugin = plugin

    async def __call__(self) -> Sequence[Finding]:
        name = self.name
        missing = self.missing = list(await self._plugin.missing())
        if not missing:
            return [Finding(Level.OK, "schema", name, "all tables are up to date")]
        if isinstance(self._plugin, CreatesSchema) and self._plugin.creates_schema:
            return [Finding(Level.OK, "schema", name, f"{listed(missing)} will be made at start")]
        return [
            Finding(Level.PROBLEM, "schema", name, f"lacks {listed(missing)}", "run `ecotone migrate` before the start")
        ]


class _Messages:
    """Asks whether what waits has somebody to handle it."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    async def __call__(self) -> Sequence[Finding]:
        return [*await self._without_channel(), *await self._without_handler()]

    async def _without_channel(self) -> Sequence[Finding]:
        storage = cast("OutboxStorage | None", self._assembly.services.get(OutboxStorage))
        if storage is None:
            return []
        channels = self._assembly.channels
        names = [one for one in await storage.outboxes() if not isinstance(channels.get(one), ThroughOutbox)]
        return [
            Finding(
                Level.WARNING,
                "messages",
                f"outbox of {name}",
                "messages wait for a channel that this application "
                + ("sends to directly" if name in channels else "does not have"),
                "let an application run that has it, until its outbox is empty",
            )
            for name in names
        ]

    async def _without_handler(self) -> Sequence[Finding]:
        known = {one.id for one in self._assembly.endpoints}
        findings = []
        for name, channel in self._assembly.channels.items():
            lost = Counter(
                endpoint for one in await _waiting(channel) if (endpoint := _endpoint_of(one)) not in (None, *known)
            )
            findings += [
                Finding(
                    Level.WARNING,
                    "messages",
                    f"channel {name}",
                    f"{count} of the first {_LOOKED_AT} messages are for the handler {endpoint}, which is not here",
                    f'if it was renamed, give it its former name: id="{endpoint}"',
                )
                for endpoint, count in sorted(lost.items(), key=str)
            ]
        return findings


async def _waiting(channel: object) -> Sequence[Message[bytes]]:
    if not isinstance(channel, Inspectable):
        return ()
    try:
        return await channel.peek(_LOOKED_AT)
    except ChannelError:  # one that has to be opened for it; that would change what is on the server
        return ()


def _endpoint_of(message: Message[bytes]) -> str | None:
    return message.headers.get(HeaderName.endpoint)
