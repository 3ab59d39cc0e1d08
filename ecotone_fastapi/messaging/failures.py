"""What happens when a consumed message fails: it is tried again a bounded number of times, then parked. Never lost.

    ecotone = Ecotone([...], plugins=[Failures(Backoff(retries=5, first=0.5))])

A handler may have a policy of its own, `@on_failure(...)`, and so may a channel; the first of them decides.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, cast

from ecotone_fastapi.core.channel import Delivery
from ecotone_fastapi.core.endpoint import mark
from ecotone_fastapi.core.errors import (
    ConfigurationError,
    ConsumerStoppedError,
    EcotoneError,
    LeaseLostError,
    MissingServiceError,
)
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, Message, failed_attempts
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.core.texts import in_one_line, text_of
from ecotone_fastapi.messaging.dead_letter import Parking
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.policies import Backoff, DeadLetter, Decision, Discard, ErrorPolicy, Failure, Retry, Stop
from ecotone_fastapi.messaging.transactions import UnitOfWork

F = TypeVar("F")

logger: logging.Logger = logging.getLogger("ecotone_fastapi.failures")


@dataclass(frozen=True)
class OnFailure:
    """Mark: this policy decides when the handler fails in a consumer.

    Args:
        policy: Decides.
    """

    policy: ErrorPolicy


def on_failure(policy: ErrorPolicy) -> Callable[[F], F]:
    """Give an asynchronous handler, or all handlers of this class, an error policy of its own.

    It decides instead of the policy of the channel and of the default.

    Args:
        policy: A `Backoff`, a policy of your own, or a decision that is always the same: `DeadLetter()`, `Discard()`
            or `Stop()`.

    Raises:
        ConfigurationError: This cannot decide.

    Example:
        >>> @on_failure(Backoff(retries=10, first=60.0, then=Discard()))
        ... async def refresh_the_cache(event: dict) -> None: ...
    """
    if isinstance(policy, type) or not callable(getattr(policy, "decide", None)):
        raise ConfigurationError(
            f"@on_failure({policy!r}) is given no policy", hint="write @on_failure(Backoff(retries=5))"
        )
    return mark(OnFailure(policy))


class KilledConsumerError(EcotoneError):
    """A message was lent again and again, and never settled: its handler may be killing the process."""


class Failures:
    """The plugin that judges failures of consumed messages; installed by default.

    Args:
        policy: Decides about each failure.
        channels: Other policies, by the name of the channel.
        unsettled: How often a message may be lent without any outcome before it is parked without being run again.
            After the second time it is handled while nothing else is lent, so that it takes no others with it.
    """

    def __init__(
        self,
        policy: ErrorPolicy = Backoff(),
        *,
        channels: Mapping[str, ErrorPolicy] | None = None,
        unsettled: int = 5,
    ) -> None:
        self._policy = policy
        self._channels = channels or {}
        self._unsettled = unsettled

    def __repr__(self) -> str:
        channels = f", channels={self._channels!r}" if self._channels else ""
        return f"Failures({self._policy!r}{channels}, unsettled={self._unsettled})"

    def install(self, assembly: Assembly) -> None:
        """Stand around everything that is received.

        Raises:
            MissingServiceError: There is a durable channel, and nothing durable to park its messages in.
        """
        store = cast("DeadLetterStore | None", assembly.services.get(DeadLetterStore))
        durable = [name for name, channel in assembly.channels.items() if channel.capabilities.durable]
        if store is None:
            raise MissingServiceError(
                f"the messages of {', '.join(durable) or 'the channels'} have no dead letter to be parked in",
                hint="give Ecotone the database: plugins=[database]",
            )
        unit = cast("UnitOfWork | None", assembly.services.get(UnitOfWork))
        judge = _Judge(assembly.gateway, Parking(assembly.gateway, store, unit))

        async def stand_around(call: Call, proceed: Proceed) -> Any:
            """When the handler fails, do what the policy decides: retry later, park or discard."""
            delivery, channel = call.delivery, call.channel
            assert delivery is not None
            assert channel is not None
            attempts = failed_attempts(delivery.message)
            unsettled = delivery.count - 1 - attempts
            if unsettled > self._unsettled:
                error = KilledConsumerError(
                    f"message {call.message.headers.get(HeaderName.id)} was lent {delivery.count} times and "
                    f"{unsettled} times without any outcome",
                    hint="its handler may kill the process; look at it before you replay",
                )
                return await judge.park(call, delivery, error, attempts)
            try:
                return await proceed(call)
            except LeaseLostError:
                logger.warning("channel %s: lost the lease of %s", channel, call.message.headers.get(HeaderName.id))
                return await assembly.gateway.nack(channel, delivery, attempted=False)
            except Exception as error:
                first_failed_at = _first_failed_at(call.message)
                now = assembly.gateway.clock.now()
                failure = Failure(
                    error=error,
                    attempt=attempts + 1,
                    message=call.message,
                    channel=channel,
                    endpoint=call.message.headers.get(HeaderName.endpoint),
                    age=0.0 if first_failed_at is None else max(0.0, (now - first_failed_at).total_seconds()),
                )
                decision = self._decide(failure, assembly.gateway)
                return await judge.carry_out(decision, failure, call, delivery)

        assembly.add_interceptor(stand_around, stage=Stage.RECEIVE, order=Order.FAILURE)

    def _decide(self, failure: Failure, gateway: Gateway) -> Decision:
        endpoint = gateway.endpoint(failure.endpoint) if failure.endpoint is not None else None
        own = endpoint.find(OnFailure) if endpoint is not None else None
        policy = own.policy if own is not None else self._channels.get(failure.channel, self._policy)
        try:
            decision: object = policy.decide(failure)
            if not isinstance(decision, Decision):
                raise TypeError(f"{decision!r} is no decision")
        except Exception:
            # Undecided, the message would come again at once and for ever, or be lost.
            logger.exception("%r cannot decide about a failure; the message is parked", policy)
            return DeadLetter()
        return decision


def _first_failed_at(message: Message[bytes]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(message.headers.get(HeaderName.first_failed_at, ""))
    except ValueError:  # not yet, or written by somebody else
        return None
    return moment if moment.tzinfo is not None and moment.year in _YEARS else None


_YEARS = range(1970, 9999)  # every database can keep them, in every time zone


class _Judge:
    """Carries decisions out."""

    def __init__(self, gateway: Gateway, parking: Parking) -> None:
        self._gateway = gateway
        self._parking = parking

    async def carry_out(self, decision: Decision, failure: Failure, call: Call, delivery: Delivery) -> None:
        what = f"channel {failure.channel}: {failure.endpoint} failed on {call.message.headers.get(HeaderName.id)}"
        match decision:
            case Retry(delay):
                # The traceback comes when the message is parked: three retries must not write it three times.
                error = in_one_line(failure.error)
                logger.warning("%s, attempt %s (%s), again in %.1f s", what, failure.attempt, error, delay)
                await self._gateway.nack(failure.channel, delivery, delay)
            case DeadLetter():
                logger.error("%s, attempt %s, parked", what, failure.attempt, exc_info=failure.error)
                await self.park(call, delivery, failure.error, failure.attempt)
            case Discard():
                logger.info("%s, attempt %s, discarded", what, failure.attempt, exc_info=failure.error)
                await self._gateway.ack(failure.channel, delivery)
            case Stop():
                # It is to be the first one again, and this run is no reason to try it less often.
                await self._gateway.nack(failure.channel, delivery, attempted=False)
                raise ConsumerStoppedError(
                    f"{what} ({type(failure.error).__name__}: {text_of(failure.error)})",
                    hint="the channel goes on when the message is handled or taken out",
                ) from failure.error

    async def park(self, call: Call, delivery: Delivery, error: Exception, attempts: int) -> None:
        """Move a message to the dead letter."""
        assert call.channel is not None
        channel, now = self._gateway.channels[call.channel], self._gateway.clock.now()
        parked = ParkedMessage.of(
            call.message,
            error,
            channel=call.channel,
            attempts=attempts,
            deliveries=delivery.count,
            parked_at=now,
            first_failed_at=_first_failed_at(call.message) or (now if attempts else None),
        )
        ack = partial(self._gateway.ack, call.channel, delivery)
        try:
            await self._parking.park(parked, ack, where=channel, taken_from=channel)
        except Exception:
            logger.exception("channel %s: %s could not be parked; it stays", call.channel, parked.id)
            await self._gateway.nack(call.channel, delivery, _PARK_AGAIN)
            return
        await ack()


# Seconds after which a message comes back that could not even be parked.
_PARK_AGAIN = 10.0
