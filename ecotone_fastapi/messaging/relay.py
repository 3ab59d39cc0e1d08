"""The relay: takes what waits in an outbox to the channel that it is meant for, batch by batch.

Each channel has an outbox and a lane of its own. A broker that is down keeps nobody waiting but its own messages, and
those keep their order. A batch costs one claim, one call of the channel's `send`, and one delete.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import anyio

from ecotone_fastapi.core.channel import Channel, Delivery, SettlesTogether
from ecotone_fastapi.core.consumer import megabytes
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, LeaseLostError, SendError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import LONGEST_TIME, HeaderName, Message, failed_attempts, number_header
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.core.supervision import Pauses
from ecotone_fastapi.core.texts import in_one_line
from ecotone_fastapi.core.watching import Operation, Watching
from ecotone_fastapi.messaging.dead_letter import Parking
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.transactions import UnitOfWork

logger: logging.Logger = logging.getLogger("ecotone_fastapi.outbox")

# How long one `receive` waits; an outbox wakes up earlier when something is stored in it.
_PATIENCE = 5.0
# Seconds between two looks for messages whose channel is not here.
_LOOKING = 600.0
_PARK_AGAIN = 10.0


# What a channel counts for itself. In the outbox these are the outbox's own.
_COUNTED = (HeaderName.attempt, HeaderName.first_failed_at)
_OF_THE_OUTBOX = (
    *_COUNTED,
    HeaderName.delay,
    HeaderName.forward_to,
    HeaderName.forward_headers,
    HeaderName.forward_until,
)


def packed(message: Message[bytes], channel: str, now: datetime) -> Message[bytes]:
    """Return a message as it is stored in the outbox of a channel.

    Its delay is waited for there. What its handler's channel has counted is put aside. Its time to live begins now.

    Raises:
        ConversionError: A delay or time to live is no number.
    """
    headers = {**message.headers, HeaderName.forward_to: channel}
    aside = {name: headers.pop(name) for name in _COUNTED if name in headers}
    lifetime = number_header(headers, HeaderName.time_to_live, float, LONGEST_TIME)
    if lifetime is not None and HeaderName.schedule_key in headers:
        # It may be put off, and its end with it: then it has as much time after it is due as it would have now.
        delay = number_header(headers, HeaderName.delay, float, LONGEST_TIME) or 0.0
        aside[HeaderName.time_to_live] = str(max(0.0, lifetime - delay))
    elif lifetime is not None:
        headers[HeaderName.forward_until] = (now + timedelta(seconds=lifetime)).isoformat()
    if aside:
        headers[HeaderName.forward_headers] = json.dumps(aside)
    return Message(message.payload, headers)


def unpacked(message: Message[bytes], now: datetime) -> Message[bytes] | None:
    """Return a message as it was before it was stored, with what is left of its time to live; `None` without any."""
    stored = message.headers
    headers = {name: value for name, value in stored.items() if name not in _OF_THE_OUTBOX}
    if HeaderName.forward_headers in stored:
        headers.update(json.loads(stored[HeaderName.forward_headers]))
    if HeaderName.forward_until in stored:
        left = (datetime.fromisoformat(stored[HeaderName.forward_until]) - now).total_seconds()
        if left <= 0:
            return None
        headers[HeaderName.time_to_live] = str(left)
    return Message(message.payload, headers)


@dataclass(frozen=True, eq=False)
class Lane:
    """The way to one channel.

    Args:
        outbox: Where its messages wait.
        target: The channel itself.
    """

    outbox: Channel
    target: Channel

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """Remove messages from the outbox, at once if it can do that."""
        if isinstance(self.outbox, SettlesTogether):
            await self.outbox.ack_all(deliveries)
        else:
            for delivery in deliveries:
                await delivery.ack()


@dataclass(frozen=True)
class Trouble:
    """A channel that cannot be reached.

    Args:
        failures: How many attempts in a row have failed.
        error: What the last one has failed with, in one line.
    """

    failures: int
    error: str


@dataclass(frozen=True, kw_only=True)
class RelaySettings:
    """How a relay works.

    Args:
        batch: How many messages it takes at a time.
        retries: How often a message is tried again that a channel cannot take, before it is parked.
        refused: How long a message waits that a channel has refused.
        unreachable: How long a lane pauses whose channel cannot be reached.
    """

    batch: int = 1000
    retries: int = 5
    refused: Pauses = field(default_factory=lambda: Pauses(first=1.0, longest=60.0))
    unreachable: Pauses = field(default_factory=lambda: Pauses(first=0.2, longest=15.0))

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing would ever be sent."""
        if self.batch < 1 or self.retries < 0:
            raise ConfigurationError(
                f"a relay with batch={self.batch} and retries={self.retries} sends nothing",
                hint="a batch is at least 1, retries are at least 0",
            )


class Relay:
    """Sends what waits in outboxes: a runnable like a consumer, in one process or in several.

    A message leaves the outbox when its channel has confirmed it. A relay that dies in between leaves it there, so that
    it is sent again, with the same id. Limits count over all lanes together.

    Args:
        name: The name by which the command line knows it.
        lanes: The ways that it serves.
        stray: Finds the channels that have messages in an outbox, also those that are not here.
        gateway: Where channels and the time are known.
        store: Where a message is parked that its channel cannot take.
        unit: Parks and removes in one transaction.
        settings: How it works.

    Attributes:
        handled: How many messages it has sent, in all its runs so far.
        failed: How many it could not send, each attempt at a message on its own.
        troubles: The channels that cannot be reached at this moment.
    """

    def __init__(
        self,
        name: str,
        lanes: Mapping[str, Lane],
        *,
        stray: Callable[[], Awaitable[Sequence[str]]],
        gateway: Gateway,
        store: DeadLetterStore,
        unit: UnitOfWork | None,
        settings: RelaySettings,
    ) -> None:
        self.name = name
        self.lanes: Mapping[str, Lane] = lanes
        self.settings = settings
        self.handled: int = 0
        self.failed: int = 0
        self.troubles: dict[str, Trouble] = {}
        self._stray = stray
        self._gateway = gateway
        self._parking = Parking(gateway, store, unit)

    async def run(self, limits: Limits) -> int:
        """Send until a limit is reached; return how many messages were sent.

        A channel that cannot be reached is tried again after a pause. When the run is to end as soon as nothing is
        left, its messages stay where they are, and that is an error.

        Raises:
            ChannelError: The outbox was lost, or a channel could not be reached that the run does not wait for.
        """
        return await _Run(self, limits).run()

    async def forward(self, lane: Lane, deliveries: Sequence[Delivery], outcome: "Outcome") -> None:
        """Send a batch and settle it.

        Args:
            lane: The way that it takes.
            deliveries: The batch.
            outcome: Where it is noted what has become of it.

        Raises:
            ChannelError: The channel cannot be reached; what was not sent has been given back.
        """
        try:
            await _send(self._gateway.watching, lane.target, self._unpack(deliveries, outcome), outcome)
        except ChannelError:
            self.failed += len(deliveries) - len(outcome.sent) - len(outcome.expired) - len(outcome.refused)
            raise
        finally:
            self.handled += len(outcome.sent)
            self.failed += len(outcome.refused)
            with anyio.CancelScope(shield=True):
                await self._settle(lane, deliveries, outcome)

    async def look_for_strays(self) -> None:
        """Log which channels messages are on their way to that nobody here can send to.

        Raises:
            ChannelError: The outbox cannot be reached.
        """
        for channel in await self._stray():
            if channel not in self.lanes:
                why = "sends directly" if channel in self._gateway.channels else "does not exist"
                logger.warning(
                    "the outbox holds messages for the channel %s, which %s here: they wait for a relay of an "
                    'application that has it, with delivery="outbox"',
                    channel,
                    why,
                )

    def _unpack(self, deliveries: Sequence[Delivery], outcome: "Outcome") -> "list[Parcel]":
        now, parcels = self._gateway.clock.now(), []
        for delivery in deliveries:
            try:
                message = unpacked(delivery.message, now)
            except (ValueError, TypeError) as error:  # somebody else has changed what we had written
                outcome.refused.append((Parcel(delivery, delivery.message), error))
                continue
            if message is None:
                logger.info("message %s was dropped, its time to live is over", _id_of(delivery.message))
                outcome.expired.append(delivery)
            else:
                parcels.append(Parcel(delivery, message))
        return parcels

    async def _settle(self, lane: Lane, deliveries: Sequence[Delivery], outcome: "Outcome") -> None:
        name = lane.target.name
        gone = [*(parcel.delivery for parcel in outcome.sent), *outcome.expired]
        try:
            if gone:
                messages, outbox = [delivery.message for delivery in gone], lane.outbox
                with self._gateway.watching.during(Operation.SETTLE, "ack", outbox.name, messages, outbox):
                    await lane.ack_all(gone)
        except LeaseLostError as error:
            logger.warning("outbox of %s: sent, but lost before the end; sent twice: %s", name, error)
        except ChannelError as error:
            logger.warning("outbox of %s: sent, but not removed; sent again: %s", name, in_one_line(error))
        refused = [parcel.delivery for parcel, _ in outcome.refused]
        known = {id(delivery) for delivery in (*gone, *refused)}
        try:
            await self._refuse(lane, outcome.refused)
            for delivery in deliveries:
                if id(delivery) not in known:
                    await delivery.nack(attempted=False)
        except ChannelError as error:
            logger.warning("outbox of %s: not given back, comes back by itself: %s", name, in_one_line(error))

    async def _refuse(self, lane: Lane, refused: "Sequence[tuple[Parcel, Exception]]") -> None:
        pauses: dict[int, float] = {}  # those that come back together keep their order
        logged: Exception | None = None
        for parcel, error in refused:
            attempts = failed_attempts(parcel.delivery.message) + 1
            what = f"channel {lane.target.name} did not take message {_id_of(parcel.message)}, attempt {attempts}"
            # What is refused may be taken when the queue is there again, or has room. Anything else will not change.
            if not isinstance(error, ChannelError) and attempts > self.settings.retries:
                logger.error("%s, parked", what, exc_info=error)
                await self._park(lane, parcel, error, attempts)
                continue
            pause = pauses.setdefault(attempts, self.settings.refused.after(attempts))
            if error is not logged:  # one error may be that of a whole batch
                logger.warning("%s (%s), again in %.1f s", what, in_one_line(error), pause)
                logged = error
            await parcel.delivery.nack(pause)

    async def _park(self, lane: Lane, parcel: "Parcel", error: Exception, attempts: int) -> None:
        delivery = parcel.delivery
        parked = ParkedMessage.of(
            parcel.message,
            error,
            channel=lane.target.name,
            attempts=attempts,
            deliveries=delivery.count,
            parked_at=self._gateway.clock.now(),
        )
        try:
            await self._parking.park(parked, delivery.ack, where=lane.target, taken_from=lane.outbox)
        except Exception:
            logger.exception("message %s could not be parked; it stays in the outbox", parked.id)
            await delivery.nack(_PARK_AGAIN)
            return
        await delivery.ack()


@dataclass(frozen=True, eq=False)
class Parcel:
    """A message of the outbox, as its channel gets it."""

    delivery: Delivery
    message: Message[bytes]


@dataclass
class Outcome:
    """What became of a batch. What is in no list was not tried, or nobody knows."""

    sent: list[Parcel] = field(default_factory=list)
    refused: list[tuple[Parcel, Exception]] = field(default_factory=list)
    expired: list[Delivery] = field(default_factory=list)


async def _send(watching: Watching, target: Channel, parcels: Sequence[Parcel], outcome: Outcome) -> None:
    """Send in one batch. When the whole batch fails for the sake of one message, find that one by halving."""
    if not parcels:
        return
    try:
        messages = [parcel.message for parcel in parcels]
        with watching.during(Operation.SEND, "send", target.name, messages, target):
            await target.send(messages)
    except SendError as error:
        # Several messages may have one id, one for each handler of an event: then those that entered go twice.
        failed = {None, *error.failed}
        refused = [parcel for parcel in parcels if parcel.message.headers.get(HeaderName.id) in failed]
        if not refused:
            raise
        outcome.refused += [(parcel, error) for parcel in refused]
        outcome.sent += [parcel for parcel in parcels if parcel.message.headers.get(HeaderName.id) not in failed]
        return
    except ChannelError:
        raise
    except Exception as error:
        if len(parcels) == 1:
            outcome.refused.append((parcels[0], error))
            return
    else:
        outcome.sent += parcels
        return
    middle = len(parcels) // 2
    await _send(watching, target, parcels[:middle], outcome)
    await _send(watching, target, parcels[middle:], outcome)


class _Run:
    """One run of a relay."""

    def __init__(self, relay: Relay, limits: Limits) -> None:
        self.relay = relay
        self.limits = limits
        self.handled: int = 0
        self.under_way = 0
        self.lost: Exception | None = None
        self.over = anyio.Event()
        self.one_less = anyio.Event()
        self.waiting: set[anyio.CancelScope] = set()

    async def run(self) -> int:
        async with anyio.create_task_group() as watching:
            async with anyio.create_task_group() as lanes:
                watching.start_soon(self._watch, lanes.cancel_scope)
                if self.limits.stop is not None:
                    watching.start_soon(self._stop_with, self.limits.stop)
                if not self.limits.until_empty:
                    watching.start_soon(self._look_for_strays)
                for lane in self.relay.lanes.values():
                    lanes.start_soon(self._empty, lane)
            watching.cancel_scope.cancel()
        if self.lost is not None:
            raise self.lost
        return self.handled

    async def _watch(self, lanes: anyio.CancelScope) -> None:
        with anyio.move_on_after(self.limits.seconds):
            await self.over.wait()
        self._end()
        await anyio.sleep(self.limits.grace)
        lanes.cancel()

    async def _stop_with(self, stop: anyio.Event) -> None:
        await stop.wait()
        self._end()

    def _end(self) -> None:
        self.over.set()
        for scope in self.waiting:
            scope.cancel()

    async def _look_for_strays(self) -> None:
        while True:
            try:
                await self.relay.look_for_strays()
            except ChannelError as error:
                logger.debug("the outbox was not searched: %s", error)
            await anyio.sleep(_LOOKING)

    async def _empty(self, lane: Lane) -> None:
        settings, failures = self.relay.settings, 0
        while not self._reached():
            # After a failure one message is enough to find out whether the channel works again.
            wanted = self._room(1 if failures else settings.batch)
            if not wanted:
                await self._one_less()
                continue
            try:
                deliveries = await self._receive(lane, wanted)
            except Exception as error:  # raised when the others, who may be sending, have finished
                self.lost = self.lost or error
                self._end()
                return
            try:
                if deliveries:
                    await self._forward(lane, deliveries)
                elif self.limits.until_empty:
                    return
                else:
                    self.relay.troubles.pop(lane.target.name, None)  # nothing waits, another relay may have sent it
                    continue
            except ChannelError as error:
                if self.limits.until_empty:
                    self.lost = self.lost or error
                    return
                failures += 1
                self.relay.troubles[lane.target.name] = Trouble(failures, in_one_line(error))
                pause = settings.unreachable.after(failures)
                logger.warning(
                    "channel %s cannot be reached (%s), again in %.1f s", lane.target.name, in_one_line(error), pause
                )
                with self._until_end():
                    await anyio.sleep(pause)
            else:
                failures = 0
                self.relay.troubles.pop(lane.target.name, None)

    async def _receive(self, lane: Lane, wanted: int) -> Sequence[Delivery]:
        deliveries: Sequence[Delivery] = ()
        with self._until_end():
            deliveries = await lane.outbox.receive(wanted, 0.0 if self.limits.until_empty else _PATIENCE)
        # Two lanes may have received for the same last places.
        surplus = deliveries[self._room(wanted) :]
        for delivery in surplus:
            await delivery.nack(attempted=False)
        return deliveries[: len(deliveries) - len(surplus)]

    async def _forward(self, lane: Lane, deliveries: Sequence[Delivery]) -> None:
        outcome = Outcome()
        self.under_way += len(deliveries)
        try:
            await self.relay.forward(lane, deliveries, outcome)
        finally:
            self.under_way -= len(deliveries)
            self.handled += len(outcome.sent)
            self.one_less.set()
            if self._reached():
                self._end()

    async def _one_less(self) -> None:
        self.one_less = anyio.Event()
        with self._until_end():
            await self.one_less.wait()

    def _reached(self) -> bool:
        limits = self.limits
        return (
            self.over.is_set()
            or (limits.stop is not None and limits.stop.is_set())
            or (limits.messages is not None and self.handled >= limits.messages)
            or (limits.memory is not None and megabytes() > limits.memory)
        )

    def _room(self, wanted: int) -> int:
        if self.limits.messages is None:
            return wanted
        return max(0, min(wanted, self.limits.messages - self.handled - self.under_way))

    @contextmanager
    def _until_end(self) -> Iterator[None]:
        """Wait for something in the block, but no longer than the run lasts."""
        with anyio.CancelScope() as scope:
            self.waiting.add(scope)
            try:
                yield
            finally:
                self.waiting.discard(scope)


def _id_of(message: Message[bytes]) -> str:
    return message.headers.get(HeaderName.id, "without id")
