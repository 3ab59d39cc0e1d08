"""Error policies: what becomes of a message whose handler failed. Pure functions from a failure to a decision.

>>> from ecotone_fastapi.core.message import Message
>>> failure = Failure(error=OSError(), attempt=4, message=Message(b"", {}), channel="orders", endpoint="place")
>>> Backoff(retries=3).decide(failure)
DeadLetter()
"""

import math
import zlib
from dataclasses import dataclass
from typing import Protocol

from ecotone_fastapi.core.errors import ConcurrencyError, ConfigurationError, ConversionError, RoutingError
from ecotone_fastapi.core.message import HeaderName, Message


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed run of a handler, as a policy sees it.

    Args:
        error: What was raised.
        attempt: How many runs have failed, this one included.
        message: The message, as bytes.
        channel: The channel that it came from.
        endpoint: The id of the handler; `None` when the message names none.
        age: How many seconds ago it failed for the first time; 0 when this is that time.
    """

    error: Exception
    attempt: int
    message: Message[bytes]
    channel: str
    endpoint: str | None
    age: float = 0.0


@dataclass(frozen=True)
class Retry:
    """Decision: run the handler again.

    Args:
        delay: Seconds to wait before that.
    """

    delay: float = 0.0


@dataclass(frozen=True)
class DeadLetter:
    """Decision: park the message, with its failure, until somebody looks. As a policy, the same for each failure."""

    def decide(self, failure: Failure) -> "DeadLetter":
        """Park the message at once."""
        return self


@dataclass(frozen=True)
class Discard:
    """Decision: the message is not worth keeping. As a policy, the same for each failure."""

    def decide(self, failure: Failure) -> "Discard":
        """Discard the message at once."""
        return self


@dataclass(frozen=True)
class Stop:
    """Decision: the consumer does not go on behind this message. As a policy, the same for each failure.

    The message keeps its place, readiness tells what it failed with, and after a pause, which is longer from time to
    time, the consumer begins with it again. For channels on which nothing may be handled before what was sent before
    it.
    """

    def decide(self, failure: Failure) -> "Stop":
        """Stop the consumer."""
        return self


Decision = Retry | DeadLetter | Discard | Stop
"""What can become of a message that failed."""


class ErrorPolicy(Protocol):
    """Decides about a failure. A pure function: the same failure gets the same decision.

    Example:
        >>> class Payments:
        ...     def decide(self, failure: Failure) -> Decision:
        ...         match failure.error:
        ...             case PermissionError():
        ...                 return DeadLetter()
        ...             case TimeoutError() if failure.age < 3600:
        ...                 return Retry(delay=60.0)
        ...         return Backoff(retries=1).decide(failure)
    """

    def decide(self, failure: Failure) -> Decision:
        """Return what to do with the message."""
        ...


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """The default policy: wait longer from retry to retry, then park. With `factor=1` each wait is as long.

    What cannot be read, finds no handler, or expects a version that is past, is parked at once: trying again would not
    change it.

    Args:
        retries: How often the handler is run again after its first failure.
        first: Seconds before the first retry.
        factor: By how much each wait is longer than the one before.
        longest: Seconds that a wait is never longer than, jitter included.
        jitter: By which part a wait may be longer, different for each message, so that they do not come back all at
            once.
        then: What becomes of the message in the end.

    Example:
        >>> from ecotone_fastapi.core.message import Message
        >>> failure = Failure(error=OSError(), attempt=2, message=Message(b"", {}), channel="c", endpoint=None)
        >>> Backoff(first=1.0, factor=5.0, jitter=0.0).decide(failure)
        Retry(delay=5.0)
    """

    retries: int = 3
    first: float = 1.0
    factor: float = 5.0
    longest: float = 300.0
    jitter: float = 0.2
    then: DeadLetter | Discard | Stop = DeadLetter()

    def __post_init__(self) -> None:
        """Refuse numbers that make no policy."""
        numbers = (self.retries, self.first, self.factor, self.longest, self.jitter)
        if not all(0 <= number < math.inf for number in numbers):
            raise ConfigurationError(f"{self!r} is no policy", hint="every number is finite and at least 0")

    def decide(self, failure: Failure) -> Decision:
        """Retry with a longer and longer delay; park what is hopeless or has used up its retries."""
        error = failure.error
        hopeless = isinstance(error, ConversionError | RoutingError) or (
            isinstance(error, ConcurrencyError) and not error.passing
        )
        if hopeless or failure.attempt > self.retries:
            return self.then
        seed = f"{failure.message.headers.get(HeaderName.id)}/{failure.attempt}".encode()
        longer = 1 + self.jitter * (zlib.crc32(seed) / 2**32)
        try:
            delay = self.first * self.factor ** (failure.attempt - 1) * longer
        except OverflowError:  # beyond what a float can hold
            delay = self.longest
        return Retry(min(self.longest, delay))
