"""What can be watched besides the four stages: the work on channels itself, which comes in batches.

A message is sent, received and settled together with others, often outside of any handler: no interceptor sees that.

>>> class Counting:
...     @contextmanager
...     def watch(self, work):
...         yield
...         print(work.operation, work.name, len(work.messages))
>>> watched = Watching((Counting(),))
>>> with watched.during(Operation.SEND, "send", "orders", [Message(b"1", {}), Message(b"2", {})]):
...     pass
send send 2
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.message import Message


class Operation(StrEnum):
    """What is done with messages."""

    SEND = "send"
    RECEIVE = "receive"
    SETTLE = "settle"
    PROCESS = "process"
    RETRY = "retry"
    """A unit of work has failed by bad luck and is run again: this is the pause before that."""
    PARK = "park"
    """A message is given up and moved to the dead letter; its place is the channel that it comes from or goes to."""
    HANDLE = "handle"
    """A single handler is run in a batch of a projection; watched only where a watcher `wants_handlers`."""
    CLAIM = "claim"
    """A server is asked for messages, without the wait for them: a part of receiving."""
    LEASE = "lease"
    """A projection is lent to one of those who run it; what has failed was taken over by another one."""
    COMMIT = "commit"
    """A transaction is committed; watched only where nobody knows the outcome. Its place is the kind of database."""


@dataclass(slots=True, eq=False)
class Work:
    """One operation on messages of one place.

    Args:
        operation: What is done.
        name: What it is called there: `send`, `receive`, `ack`, `nack`, `project`, `again`, `park`, `claim`, `renew`,
            `commit`.
        place: The name of the channel, or of the projection; empty where there is none.
        messages: The messages; of those that are received or claimed, none until they are there.
        channel: The channel, where there is one.
        attempted: Of a message that is given back: whether it was run and failed, so that it is tried again.
        delivery: Of a single message that is settled: the delivery.
        endpoint: The handler that is run; of a batch that has failed, the one that was to blame.
        at: Of a batch that has failed: the message that was to blame.
    """

    operation: Operation
    name: str
    place: str
    messages: Sequence[Message[Any]]
    channel: Channel | None = None
    attempted: bool = False
    delivery: Delivery | None = None
    endpoint: Endpoint | None = None
    at: Message[Any] | None = None


class Watcher(Protocol):
    """Is told about work on messages: for traces, metrics and the like."""

    def watch(self, work: Work) -> AbstractContextManager[object]:
        """Return what is entered before the work, in the task that does it, and left after it with its error, if any.

        It is called for every operation and must be quick. What it raises fails the work, so it should raise nothing.
        """
        ...


class Watching:
    """All watchers of an application.

    Args:
        watchers: The watchers; the first one is outermost.

    Attributes:
        wants_handlers: Whether one of them has an attribute of this name that is true: then it is told of each handler
            in a batch of a projection, too, which costs something for each event.
    """

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers: tuple[Watcher, ...] = tuple(watchers)
        self.wants_handlers: bool = any(getattr(one, "wants_handlers", False) for one in self._watchers)

    def __bool__(self) -> bool:
        """Whether anybody watches: who has to prepare something for them can save the effort."""
        return bool(self._watchers)

    def during(
        self,
        operation: Operation,
        name: str,
        place: str,
        messages: Sequence[Message[Any]],
        channel: Channel | None = None,
        *,
        attempted: bool = False,
        delivery: Delivery | None = None,
        endpoint: Endpoint | None = None,
    ) -> AbstractContextManager[Work]:
        """Let all watch while the block does the work.

        Args:
            operation: What is done.
            name: What it is called there.
            place: The name of the channel, or of the projection.
            messages: The messages; what is received is set in the block.
            channel: The channel, where there is one.
            attempted: Of a message that is given back: whether it was run and failed.
            delivery: Of a single message that is settled: the delivery.
            endpoint: The handler that is run, where it is one.
        """
        work = Work(operation, name, place, messages, channel, attempted, delivery, endpoint)
        if not self._watchers:
            return nullcontext(work)
        return _watched(self._watchers, work)

    def failed(self, operation: Operation, name: str, place: str, error: Exception) -> None:
        """Let all watch what has failed already, where that was no work for as long as it went well.

        Args:
            operation: What was done.
            name: What it is called there.
            place: Where.
            error: What it has failed with.
        """
        with suppress(type(error)), self.during(operation, name, place, ()):
            raise error


@contextmanager
def _watched(watchers: Sequence[Watcher], work: Work) -> Iterator[Work]:
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher.watch(work))
        yield work
