"""Which settings of an application lose messages: what is kept in the memory of a process ends with it."""

from collections.abc import Iterator
from typing import cast

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.consumer import Consumer
from ecotone_fastapi.core.examination import Finding, Level, TellsDurability
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore
from ecotone_fastapi.messaging.deduplication import Deduplicated, DeduplicationStore
from ecotone_fastapi.messaging.outbox import ThroughOutbox
from ecotone_fastapi.messaging.transactions import UnitOfWork
from ecotone_fastapi.modelling.aggregates import Aggregates
from ecotone_fastapi.modelling.event_sourced import model_of
from ecotone_fastapi.modelling.event_storage import EventStorage
from ecotone_fastapi.modelling.factories import is_of_aggregate
from ecotone_fastapi.modelling.projections import projection_mark
from ecotone_fastapi.operations.wording import channels_of, listed

_TOPIC = "durability"
_GIVE_A_DATABASE = "give Ecotone a database: plugins=[database]"


def examine_durability(assembly: Assembly) -> Iterator[Finding]:
    """Find out what would be lost when a process ends, or a server does."""
    findings = [
        *_examine_channels(assembly),
        *_examine_dead_letter(assembly),
        *_examine_inbox(assembly),
        *_examine_models(assembly),
    ]
    yield from findings
    if not findings:
        yield Finding(Level.OK, _TOPIC, "settings", "nothing that has to last is kept in the memory of a process")


def _is_durable(store: object) -> bool:
    return not isinstance(store, TellsDurability) or store.durable


def _examine_channels(assembly: Assembly) -> Iterator[Finding]:
    for name, channel in assembly.channels.items():
        handlers = [one.label for one in assembly.endpoints if name in channels_of(one)]
        if handlers and not channel.capabilities.durable:
            yield Finding(
                Level.WARNING,
                _TOPIC,
                f"channel {name}",
                f"keeps its messages in memory: what waits for {listed(handlers)} is lost when the process ends",
                f"use a channel in a database or on a broker: database.channel({name!r})",
            )
        if handlers and _is_sent_before_the_commit(channel, assembly):
            yield Finding(
                Level.WARNING,
                _TOPIC,
                f"channel {name}",
                f"is sent to directly: {listed(handlers)} can see a message although the commit that follows it fails",
                'leave delivery="direct" out: then its messages leave with the commit, through the outbox',
            )


def _is_sent_before_the_commit(channel: Channel, assembly: Assembly) -> bool:
    """Whether there is an outbox, and this channel does without it."""
    unit = cast("UnitOfWork | None", assembly.services.get(UnitOfWork))
    return (
        unit is not None
        and not isinstance(channel, ThroughOutbox)
        and getattr(channel, "delivery", None) == "direct"
        and not unit.covers(channel)
    )


def _examine_dead_letter(assembly: Assembly) -> Iterator[Finding]:
    if not any(isinstance(one, Consumer) for one in assembly.runnables.values()):
        return
    store = assembly.services.get(DeadLetterStore)
    if store is not None and not _is_durable(store):
        yield Finding(
            Level.WARNING,
            _TOPIC,
            "dead letter",
            "is kept in memory: messages that were given up are lost when the process ends",
            _GIVE_A_DATABASE,
        )


def _examine_inbox(assembly: Assembly) -> Iterator[Finding]:
    marked = [one.label for one in assembly.endpoints if one.find(Deduplicated) is not None]
    store = assembly.services.get(DeduplicationStore)
    if marked and store is not None and not _is_durable(store):
        yield Finding(
            Level.WARNING,
            _TOPIC,
            "deduplication",
            f"remembers in memory: {listed(marked)} may handle a message again after the process was started anew",
            _GIVE_A_DATABASE,
        )


def _examine_models(assembly: Assembly) -> Iterator[Finding]:
    owners = dict.fromkeys(one.owner for one in assembly.endpoints if is_of_aggregate(one) and one.owner is not None)
    sourced = [one for one in owners if model_of(one) is not None]
    projections = dict.fromkeys(
        mark.name for one in assembly.endpoints if (mark := projection_mark(one.owner)) is not None
    )
    if (sourced or projections) and not _is_durable(assembly.services.get(EventStorage)):
        yield Finding(
            Level.WARNING,
            _TOPIC,
            "event store",
            f"is in memory: the events of {listed([*(one.__name__ for one in sourced), *projections])} are lost when "
            "the process ends",
            _GIVE_A_DATABASE,
        )
    keeping = next((one for one in assembly.plugins if isinstance(one, Aggregates)), None)
    stored = [one for one in owners if one not in sourced and keeping is not None]
    lost = [one.__name__ for one in stored if keeping is not None and not _is_durable(keeping.kept(one).store)]
    if lost:
        yield Finding(
            Level.WARNING,
            _TOPIC,
            "aggregates",
            f"are kept in memory: every {listed(lost)} is lost when the process ends",
            _GIVE_A_DATABASE,
        )
