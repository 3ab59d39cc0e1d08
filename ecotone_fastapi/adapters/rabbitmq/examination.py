"""What a doctor finds out about a queue: the version of its server, whether it is there, and what it may lose."""

from collections.abc import AsyncIterator

from yarl import URL

from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.topology import Topology
from ecotone_fastapi.adapters.rabbitmq.wire import Wire
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.examination import Finding, Level, version_numbers

_OLDEST = "3.10"


async def findings_about(broker: Broker, topology: Topology, name: str, url: str) -> AsyncIterator[Finding]:
    """Ask a server, and yield what was found.

    Args:
        broker: Connects to the server.
        topology: What there has to be.
        name: The name of the channel.
        url: Of the server.

    Raises:
        ChannelError: The server cannot be reached.
    """
    where, channel = str(URL(url).with_user(None).with_query(None)), f"channel {name}"
    wire = await broker.wire()
    transport = wire.connection.transport
    properties = transport.connection.server_properties if transport is not None else {}
    version = properties.get("version")
    told = version.decode() if isinstance(version, bytes) else str(version or "of an unknown version")
    yield judged_version(told, where)
    if wire.blocked:
        yield Finding(
            Level.PROBLEM,
            "server",
            where,
            "takes no messages, because it is short of memory or disk space",
            "`rabbitmqctl status` tells which alarm it is",
        )
    yield await finding_about_queue(broker, wire, topology, name)
    if topology.type == "classic":
        yield Finding(
            Level.WARNING,
            "durability",
            channel,
            "a classic queue is on one node: what is in it is lost when the disk of that node is",
            'leave queue_type="classic" out: a quorum queue is kept by several nodes',
        )


async def finding_about_queue(broker: Broker, wire: Wire, topology: Topology, name: str) -> Finding:
    """Return whether a queue is there, and as it should be.

    Args:
        broker: Connects to the server.
        wire: The connection.
        topology: What there has to be.
        name: The name of the channel.

    Raises:
        ChannelError: The server cannot be reached.
    """
    try:
        there = await topology.is_there(broker, wire)
    except ConfigurationError as error:
        return Finding(Level.PROBLEM, "queue", f"channel {name}", error.what, error.hint)
    state = "is as it should be" if there else "will be made at start"
    return Finding(Level.OK, "queue", f"channel {name}", f"the {topology.type} queue {topology.queue!r} {state}")


def judged_version(version: str, where: str) -> Finding:
    """Return whether a version suits.

    Args:
        version: As the server tells it.
        where: The address of the server.
    """
    numbers = version_numbers(version)
    if numbers and numbers < version_numbers(_OLDEST):
        return Finding(
            Level.PROBLEM, "server", where, f"RabbitMQ {version} is older than {_OLDEST}", f"use {_OLDEST} or later"
        )
    return Finding(Level.OK, "server", where, f"RabbitMQ {version} answers")
