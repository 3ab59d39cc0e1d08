"""Suites that every adapter must pass: subclass one in a test file, say how to reach the server, and run pytest.

The cases are coroutines. They run under the pytest plugin of anyio, which is installed with this package. What a
transport does not claim, or a test file gives no hook for, is skipped, and the reason says so.

Each case of the suite for channels has a number, so that transports can be compared:

| | what it shows |
| --- | --- |
| T1 | what is sent arrives unchanged, is acked once and never comes back; `receive` waits as long as it was told |
| T2 | many publishers and many consumers at once, also in transactions |
| T3 | several channels do not mix |
| T4 | what is given back comes again |
| T5 | what is not settled is lent to nobody else |
| T6 | consumers come and go, and the parts that they read are all |
| T7 | many may close while they receive |
| T8 | repeated failures lose nothing |
| T9 | a single consumer receives in the order of sending |
| T10 | what was sent is there when its sender has gone |
| T11 | what is sent to one channel is seen on that one only |
| T12 | a delivery ends with its ack and with its channel: what is done to it later has no effect, or is refused |
| T13 | whoever cancels `send`, `receive` or `ack` loses nothing |
| T14 | a late consumer receives what was sent before |
| T15 | connections may break at any time |
| T16 | *not here: no channel has groups of consumers yet* |
| T17 | delays: not early, not held up by longer ones |
| T18 | the highest priority goes first |
| T19 | what has outlived its time is not delivered |
| T20 | deliveries and failed runs are counted, what was given back unhandled is not |
| T21 | what fails again and again is parked as it was sent, with its failure |
| T22 | what cannot be parked is not lost |
| T23 | a replayed message begins anew on its channel |
| T24 | the messages of a consumer that has died go to another one |
| T25 | leases are renewed; who has lost one can neither ack nor give back |
| T26 | `send` and `ack` commit or vanish with the transaction |
| T27 | what reaches nobody is told to its sender |
| T28 | a server that is away is an error in time, and none when it is back |
| T29 | any payload and any header; what is wrong or too large is refused before anything is sent |
| T30 | the headers of traces survive redelivery, parking and replay |
| T31 | a batch that fails in part says which messages did |
| T32 | whoever stops gives back at once what it has not settled |
| T33 | nobody is lent more than was asked for |
| T34 | messages with one key are handled one after the other, other keys beside them |
| T35 | *not here: there are no tenants yet* |
| T36 | a queue that somebody deleted is consumed again, and the health tells that it was gone |
| T37 | a consumer that pauses receives nothing, and goes on as if nothing had been |
| T38 | depth, age, peeking and purging tell the truth |
| T39 | no message is lent to two consumers |
| T40 | channels may be opened at once and again |
| T41 | a repetition arrives twice, and is handled once behind an inbox |
| T42 | a wrong clock changes nothing |
"""

from ecotone_fastapi.core.errors import ConfigurationError

try:
    import pytest
except ImportError as _error:
    raise ConfigurationError(
        "the conformance suites are pytest classes, and pytest is not installed", hint="pip install pytest"
    ) from _error

# Before the suites are imported: a failing assert shall show both of its sides.
pytest.register_assert_rewrite(__name__)

from ecotone_fastapi.testing.conformance.aggregates import AggregateStoreConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.channels import ChannelConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.documents import DocumentStoreConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.event_stores import EventStoreConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.inbox import InboxConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.projections import ProjectionStoreConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.stores import StoreConformance  # noqa: E402

__all__ = [
    "AggregateStoreConformance",
    "ChannelConformance",
    "DocumentStoreConformance",
    "EventStoreConformance",
    "InboxConformance",
    "ProjectionStoreConformance",
    "StoreConformance",
]
