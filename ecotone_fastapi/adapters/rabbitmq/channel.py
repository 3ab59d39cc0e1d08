"""A queue of RabbitMQ as a channel: confirmed, durable, shared by competing consumers, delayed without any plugin.

What is acked is gone, what is not comes again: when its consumer closes, dies or loses its connection. A message whose
handler failed is written anew, at the end of the queue or on the ladder of delays, and its `attempt` header counts it.
Where the order of partition keys is kept it stays at its place instead; see `ordering`.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

import anyio
from aiormq.abc import DeliveredMessage

from ecotone_fastapi.adapters.rabbitmq.batches import Outgoing
from ecotone_fastapi.adapters.rabbitmq.broker import Broker
from ecotone_fastapi.adapters.rabbitmq.delays import LONGEST_DELAY, Ladder
from ecotone_fastapi.adapters.rabbitmq.examination import finding_about_queue, findings_about
from ecotone_fastapi.adapters.rabbitmq.headers import DELIVERIES, DUE, EXPIRES, read, rewritten, whole_number, written
from ecotone_fastapi.adapters.rabbitmq.notes import name_of, topology_of_notes
from ecotone_fastapi.adapters.rabbitmq.ordering import OrderedSubscription
from ecotone_fastapi.adapters.rabbitmq.rounds import publish_in_rounds
from ecotone_fastapi.adapters.rabbitmq.sealing import unsealed
from ecotone_fastapi.adapters.rabbitmq.subscription import Arrival, Subscription
from ecotone_fastapi.adapters.rabbitmq.topology import NEVER_DROPPED, QueueType, Topology
from ecotone_fastapi.adapters.rabbitmq.wire import Wire, client_name
from ecotone_fastapi.core.channel import Capabilities, Delivery, Destination
from ecotone_fastapi.core.errors import ChannelError, ConfigurationError, ConversionError, LeaseLostError, SendError
from ecotone_fastapi.core.examination import Finding
from ecotone_fastapi.core.message import LONGEST_TIME, HeaderName, Message, number_header
from ecotone_fastapi.core.supervision import Pauses

logger: logging.Logger = logging.getLogger(__name__)

DelayedSend = Callable[[Sequence[Message[bytes]]], Awaitable[None]]

_NAME = re.compile(r"[a-zA-Z0-9_.:@#,/+ -]{1,255}")  # the driver takes no others
_CLOSING = 2.0  # seconds
_PAUSES = Pauses(first=0.1, longest=5.0)


def _port_of(server: SplitResult) -> int | None:
    try:
        return server.port or (5671 if server.scheme == "amqps" else 5672)
    except ValueError:  # it is no number, and nobody will connect to it
        return None


class RabbitMQChannel:
    """A channel in a queue of RabbitMQ 3.10 or later.

    Channels with the same URL share two connections, one to publish on and one to receive on. Both come back by
    themselves.

    Args:
        name: The name by which `@asynchronous` and the command line know the channel.
        url: Of the server.
        queue_type: `quorum` keeps messages on several nodes; `classic` on one, and may have priorities.
        queue: The name of the queue, if it is another one.
        exchange: What is sent to, if it is not the default exchange, which knows every queue by its name. It has to be
            there; the queue is bound to it.
        routing_key: For the exchange; the name of the queue unless told otherwise.
        declare: Whether the queue is made when it is missing. Without it the queue is taken as somebody else has made
            it; `queue_type` should then say what it is, for both kinds count deliveries in their own way.
        arguments: More arguments of the queue, such as `{"x-single-active-consumer": True}`.
        prefetch: How many messages this channel may hold that are not settled.
        time_to_live: Seconds after which a message that does not say so itself is no longer worth handling.
        max_priority: Up to which number a classic queue tells priorities apart; the `priority` header has 0 to 9.
        largest_body: Bytes that a payload may have. RabbitMQ 4 takes 16 MiB unless configured otherwise.
        delivery: Whether messages go through the outbox, where there is one, or directly to the server.
        timeout: Seconds that the server has for every answer.
        keeps_order: Whether messages with the same partition key are handled one after the other in the order of
            sending, by all consumers in all processes, also while one of them is retried: its successors wait. They go
            on when it has been handled or parked. One that is sent with a delay holds up those of its key that are sent
            after it. One process receives, and another one takes over when it ends or pauses. Those that wait take
            places of `prefetch`: when all are taken, other keys wait, too. All processes have to agree on it and on
            `prefetch`, or the server refuses the queue. Needs a quorum queue that the channel declares itself, and
            another one beside it, `ecotone.notes.` and its name, in which failures are counted.

    Raises:
        ConfigurationError: Some of this does not go together.

    Example:
        ```python
        from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel

        notifications = RabbitMQChannel("notifications", "amqp://guest:guest@127.0.0.1/")
        ecotone = Ecotone([OrderService, NotificationService], channels=[notifications], plugins=[database])
        ```
    """

    def __init__(
        self,
        name: str,
        url: str = "amqp://guest:guest@127.0.0.1/",
        *,
        queue_type: QueueType = "quorum",
        queue: str | None = None,
        exchange: str = "",
        routing_key: str | None = None,
        declare: bool = True,
        arguments: dict[str, Any] | None = None,
        prefetch: int = 100,
        time_to_live: float | None = None,
        max_priority: int | None = None,
        largest_body: int = 16 * 1024 * 1024,
        delivery: Literal["outbox", "direct"] = "outbox",
        timeout: float = 10.0,
        keeps_order: bool = False,
    ) -> None:
        queue = queue or name
        if not _NAME.fullmatch(queue):
            raise ConfigurationError(
                f"a queue cannot be named {queue!r}", hint="use 1 to 255 letters, digits, blanks and -_.:@#,/+"
            )
        if not 0 < prefetch <= 65535:
            raise ConfigurationError(f"channel {name!r} cannot hold {prefetch} messages", hint="use prefetch=100")
        if max_priority is not None and (queue_type != "classic" or not 0 < max_priority <= 255):
            raise ConfigurationError(
                f"channel {name!r} cannot have max_priority={max_priority}",
                hint='use queue_type="classic" with a priority of 1 to 255, or a channel for each priority',
            )
        more = {} if max_priority is None else {"x-max-priority": max_priority}
        if keeps_order:
            _check_order(name, queue, queue_type, declare=declare, arguments=arguments or {})
            # What comes back together keeps its order only where all of it is lent to one consumer again. Therefore no
            # two may differ in how much they hold, and the server is made to notice: it compares this argument.
            more = {_SINGLE: True, _LIMIT: NEVER_DROPPED + prefetch}
        self.name = name
        self.url = url
        self.delivery: Literal["outbox", "direct"] = delivery
        self.capabilities: Capabilities = Capabilities(
            # What waits here comes back to the queue, past any exchange. The outbox waits before the exchange.
            delay=not exchange,
            ordered=True,
            durable=True,
            competing=not keeps_order,
            keeps_order=keeps_order,
            priority=max_priority is not None,
            time_to_live=True,
            largest_body=largest_body,
        )
        self._topology = Topology(
            queue=queue,
            type=queue_type,
            exchange=exchange,
            routing_key=queue if routing_key is None else routing_key,
            declare=declare,
            arguments={**more, **(arguments or {})},
        )
        self._prefetch = prefetch
        self._time_to_live = time_to_live
        self._max_priority = max_priority
        self._timeout = timeout
        self._ladder = Ladder(queue_type)
        self._delay_through: DelayedSend | None = None
        self._broker: Broker | None = None
        self._subscription: Subscription | None = None
        self._changing = anyio.Lock()  # not of one event loop: a channel may be opened on another one later
        self._failures = 0
        self._not_before = 0.0
        self._last_failure = ""

    def delay_through(self, send: DelayedSend) -> None:
        """Let somebody else keep messages until they are due, who then sends them here without a delay.

        Args:
            send: Takes messages that have a `delay` header.
        """
        self._delay_through = send

    def destination(self, *, sending: bool) -> Destination:
        """Return what it sends to, or the queue that it receives from; only what is not empty, joined by colons."""
        topology, server = self._topology, urlsplit(self.url)
        parts = [topology.exchange, topology.routing_key]
        if not sending:
            parts = [topology.exchange, topology.routing_key if topology.routing_key != topology.queue else ""]
            parts.append(topology.queue)
        return Destination(
            system="rabbitmq",
            name=":".join(part for part in parts if part) or "amq.default",
            address=server.hostname,
            port=_port_of(server),
            routing_key=topology.routing_key or None,
            client=client_name("publish" if sending else "receive"),
        )

    def asyncapi(self) -> dict[str, Any]:
        """Return how messages for the channel are addressed, as AsyncAPI has it: by the queue, or by the exchange."""
        return self._topology.documented(self.url)

    # -------------------------------------------------------------------------------------------- opening and closing

    async def open(self) -> None:
        """Connect, and see to it that the queue is there. May be called again.

        Raises:
            ChannelError: The server cannot be reached; `open` may be tried again.
            ConfigurationError: The queue is there with other arguments, or is missing and was not to be declared.
        """
        async with self._changing:
            broker = self._broker or Broker.join(self.url, self._timeout)
            try:
                await self._prepare(broker, await broker.wire())
                await broker.publisher.open()
            except BaseException:
                if self._broker is None:
                    with anyio.CancelScope(shield=True):
                        await broker.leave()
                raise
            self._broker = broker
            self._failures, self._not_before = 0, 0.0

    async def _prepare(self, broker: Broker, wire: Wire) -> None:
        await self._topology.prepare(broker, wire)
        if self.capabilities.keeps_order:  # needed only after a failure, which is no time to learn that it cannot be
            await topology_of_notes(self._topology.queue).prepare(broker, wire)
        # If the queue was deleted meanwhile, the ladder has lost the way to it.
        self._ladder.forget(broker, self._topology.queue)

    async def close(self) -> None:
        """Give back what was lent and not settled, end every `receive` that waits, and disconnect."""
        async with self._changing:
            broker, self._broker = self._broker, None
            subscription, self._subscription = self._subscription, None
            if broker is None:
                return
            try:
                if subscription is not None:
                    # Giving back is worth waiting for, but not for ever: the server does it when the connection ends.
                    with anyio.move_on_after(_CLOSING, shield=True):
                        await subscription.close()
            finally:
                await broker.leave()

    async def check(self) -> None:
        """Ask the server whether it is there, and the queue.

        Raises:
            ChannelError: One of them is not.
        """
        await self.depth()
        if not self._opened().publisher.connected:
            raise ChannelError(f"channel {self.name!r} cannot publish at the moment")

    async def examine(self) -> Sequence[Finding]:
        """Find out whether the server suits, and whether the queue is there; change nothing. It need not be open.

        Raises:
            ChannelError: The server cannot be reached.
        """
        broker = self._broker or Broker.join(self.url, self._timeout)
        try:
            found = [one async for one in findings_about(broker, self._topology, self.name, self.url)]
            if self.capabilities.keeps_order:
                notes = topology_of_notes(self._topology.queue)
                found.append(await finding_about_queue(broker, await broker.wire(), notes, self.name))
            return found
        finally:
            if broker is not self._broker:
                with anyio.CancelScope(shield=True):
                    await broker.leave()

    def _opened(self) -> Broker:
        if self._broker is None:
            raise ChannelError(f"channel {self.name!r} is not open")
        return self._broker

    # ----------------------------------------------------------------------------------------------------- sending

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        """Send messages; return when the server has confirmed all of them.

        Raises:
            ConversionError: A header is malformed, or a payload or the headers are too large. Nothing was sent.
            SendError: Some were not accepted; the error names those.
            ChannelError: The server cannot be reached, or does not answer.
        """
        if not messages:
            return
        broker = self._opened()
        now: list[Outgoing] = []
        later: list[Message[bytes]] = []
        steps: list[int] = []
        for message in messages:
            self._check_size(message)
            delay = number_header(message.headers, HeaderName.delay, float, LONGEST_TIME) or 0.0
            headers, expires = written(message), self._expiry(message)
            priority = self._max_priority and number_header(message.headers, HeaderName.priority, int, 9)
            outgoing = self._outgoing(message, headers, expires, priority, waits=delay > 0)
            if delay > 0 and self._line_of(message) is not None:
                outgoing.headers = {**outgoing.headers, DUE: repr(time.time() + delay)}
                delay = 0.0
            if delay > 0 and self._delay_through is not None:
                later.append(message)
                continue
            if delay > 0:
                step, outgoing.exchange, outgoing.routing_key = self._ladder.route(delay, self._topology.queue)
                steps.append(step)
            now.append(outgoing)
        if steps:
            await self._ladder.prepare(broker, max(steps), self._topology.queue)
        if later and self._delay_through is not None:
            await self._delay_through(later)
        await self._publish(broker, now, laddered=bool(steps))

    async def _publish(self, broker: Broker, outgoing: Sequence[Outgoing], *, laddered: bool) -> None:
        try:
            if self.capabilities.keeps_order:
                await publish_in_rounds(broker.publisher.publish, outgoing)
            else:
                await broker.publisher.publish(outgoing)
        except (SendError, ChannelError):
            if laddered:  # somebody may have deleted it: it is made anew for the next attempt
                broker.prepared.clear()
            raise

    def _line_of(self, message: Message[bytes]) -> str | None:
        """Return the key of which the order is kept, if it is."""
        return message.headers.get(HeaderName.partition_key) if self.capabilities.keeps_order else None

    def _check_size(self, message: Message[bytes]) -> None:
        largest = self.capabilities.largest_body
        if largest is not None and len(message.payload) > largest:
            raise ConversionError(
                f"message {message.headers.get(HeaderName.id, 'without id')} has {len(message.payload)} bytes, and "
                f"channel {self.name!r} takes {largest}",
                hint="keep what is large elsewhere and send where it is; or raise max_message_size of the server and "
                "largest_body of the channel",
            )

    def _expiry(self, message: Message[bytes]) -> float | None:
        """When the message is no longer worth handling, in seconds since 1970."""
        if (noted := _moment(message.headers.get(EXPIRES))) is not None:
            return noted
        lifetime = number_header(message.headers, HeaderName.time_to_live, float, LONGEST_TIME)
        if lifetime is None:
            lifetime = self._time_to_live
        return None if lifetime is None else time.time() + lifetime

    def _outgoing(
        self,
        message: Message[bytes],
        headers: dict[str, str],
        expires: float | None,
        priority: int | None,
        *,
        waits: bool,
    ) -> Outgoing:
        """Make what is published of a message; the server drops it in time unless it has to wait before."""
        if expires is not None:
            headers[EXPIRES] = repr(expires)
        return Outgoing(
            message,
            exchange=self._topology.exchange,
            routing_key=self._topology.routing_key,
            expiration=None if expires is None or waits else max(0.0, expires - time.time()),
            priority=None if self._max_priority is None else min(priority or 0, self._max_priority),
            headers=headers,
        )

    # --------------------------------------------------------------------------------------------------- receiving

    async def receive(self, limit: int, timeout: float) -> Sequence["RabbitMQDelivery"]:
        """Lend up to `limit` messages, waiting up to `timeout` seconds for the first.

        Raises:
            ChannelError: The server cannot be reached; `receive` may be tried again.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            subscription = await self._subscribed()
            arrivals = await subscription.take(limit, max(0.0, deadline - loop.time()))
            deliveries: list[RabbitMQDelivery] = []
            detours: list[asyncio.Task[None]] = []
            for arrival in arrivals:
                if arrival.overdue:
                    subscription.ack([arrival])
                elif arrival.suspect:
                    detours.append(self._opened().start(self._count_anew(arrival)))
                else:
                    deliveries.append(RabbitMQDelivery(self, arrival))
            if deliveries or not (arrivals or subscription.renewable):
                return deliveries
            if detours:
                await asyncio.wait(detours)

    async def _subscribed(self) -> Subscription:
        """Return the subscription; make a new one when it was lost, but not too often when that fails."""
        subscription = self._subscription
        if subscription is not None and subscription.lost is None:
            return subscription
        broker = self._opened()
        if time.monotonic() < self._not_before:
            raise ChannelError(f"channel {self.name!r} was lost and is tried again soon: {self._last_failure}")
        subscribing = broker.start(self._subscribe(broker))
        await asyncio.wait((subscribing,))
        try:
            return subscribing.result()
        except ChannelError as error:
            self._failures += 1
            self._not_before = time.monotonic() + _PAUSES.after(self._failures)
            self._last_failure = error.what
            raise

    async def _subscribe(self, broker: Broker) -> Subscription:
        async with self._changing:
            if self._broker is not broker:
                raise ChannelError(f"channel {self.name!r} was closed")
            if self._subscription is not None and self._subscription.lost is None:
                return self._subscription
            wire = await broker.wire()
            if self._subscription is not None:  # what was lost may have taken the queue along
                await self._prepare(broker, wire)
            amqp, queue, prefetch = await broker.new_channel(wire), self._topology.queue, self._prefetch
            if self.capabilities.keeps_order:
                self._subscription = OrderedSubscription(
                    broker, wire, amqp, queue=queue, prefetch=prefetch, arrived=self._arrived
                )
            else:
                self._subscription = Subscription(
                    broker,
                    wire,
                    amqp,
                    queue=queue,
                    prefetch=prefetch,
                    single=self._topology.single,
                    arrived=self._arrived,
                    returned=self._return_unasked,
                )
            self._failures = 0
            return self._subscription

    def _arrived(self, subscription: Subscription, delivered: DeliveredMessage) -> Arrival:
        """Count how often a message was lent: by what is noted in it, by the server, and by what we gave back."""
        properties = unsealed(delivered.header)
        message, noted = read(properties, delivered.body)
        key = properties.message_id
        before = whole_number(noted.get(DELIVERIES))
        returned = subscription.broker.given_back.times(key)
        suspect, forgiven, costly = False, 0, self._topology.type == "classic"
        if "x-acquired-count" in noted:  # RabbitMQ 4.3 does not count what was given back
            before += whole_number(noted.get("x-delivery-count"))
        elif "x-delivery-count" in noted:
            counted = whole_number(noted["x-delivery-count"])
            unexplained = max(0, counted - returned)
            # Another process may have given it back as it should, and once more what the server had sent after that;
            # before it can happen again, the message is written anew.
            forgiven = min(2, unexplained)
            costly = costly or counted > 0
            before += unexplained
        else:
            suspect = bool(delivered.redelivered) and not returned and self._topology.type == "classic"
        if self.capabilities.keeps_order:
            # The server counts for all that were here when a process died, however many; one of them was lent.
            before, forgiven, costly = min(before, whole_number(noted.get(DELIVERIES)) + 1), 0, False
        expires = _moment(noted.get(EXPIRES))
        delivery: Any = delivered.delivery
        return Arrival(
            subscription=subscription,
            tag=delivery.delivery_tag,
            consumer=delivery.consumer_tag or "",
            message=message,
            count=before + 1,
            suspect=suspect,
            forgiven=forgiven,
            costly=costly,
            key=key,
            expires=expires,
            # Where the server was told, it goes by its own clock.
            overdue=expires is not None and properties.expiration is None and expires <= time.time(),
            returned=bool(delivered.redelivered) and self.capabilities.keeps_order,
            line=self._line_of(message),
            due=_moment(noted.get(DUE)) or 0.0,
            noted=self.capabilities.keeps_order and before > whole_number(noted.get(DELIVERIES)),
        )

    async def _count_anew(self, arrival: Arrival) -> None:
        """Write a message anew that somebody went away with: a classic queue does not count that."""
        try:
            await self._write_anew(arrival, arrival.message, 0.0, lent=arrival.count)
        except SendError as error:  # the queue may be full, and will stay so if nobody handles what is in it
            logger.debug("channel %r: not counted as lent once more: %s", self.name, error)
            arrival.suspect = False
            arrival.subscription.put_back(arrival)
        except Exception:
            arrival.subscription.give_back(arrival, unhandled=False)
            raise

    # ---------------------------------------------------------------------------------------------------- settling

    async def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        """Ack these deliveries, in one frame where nothing else has arrived between them.

        Raises:
            LeaseLostError: Some were lost with their connection; all others are removed.
        """
        by_subscription: dict[Subscription, list[Arrival]] = {}
        lost: list[str] = []
        for delivery in deliveries:
            if not isinstance(delivery, RabbitMQDelivery) or delivery.settled:
                continue
            subscription = delivery.arrival.subscription
            if subscription.lost is not None:
                lost.append(delivery.message.headers.get(HeaderName.id, "without id"))
                continue
            by_subscription.setdefault(subscription, []).append(delivery.arrival)
            delivery.conclude()
        for subscription, arrivals in by_subscription.items():
            subscription.ack(arrivals)
        if lost:
            raise LeaseLostError(
                f"channel {self.name!r}: acked too late: {', '.join(lost)}",
                leases=len(lost),
                tried="the connection on which they were lent, which is gone; they come again",
                hint="handlers that must not repeat themselves are @deduplicated",
            )
        await asyncio.sleep(0)  # the frames are written now

    def start_to_give_back(self, arrival: Arrival, delay: float, *, attempted: bool) -> "asyncio.Task[None]":
        """Nack one message, in a task that nobody breaks off halfway: then it could be there twice."""
        # Not in the transaction of the caller: the old message goes at once, so the new one has to be there.
        return self._opened().start(self._give_back(arrival, delay, attempted=attempted), Context())

    async def _give_back(self, arrival: Arrival, delay: float, *, attempted: bool) -> None:
        if not attempted and delay <= 0 and not arrival.costly:
            arrival.subscription.give_back(arrival)
            return
        headers: dict[str, str] = {}
        if attempted:
            attempts = whole_number(arrival.message.headers.get(HeaderName.attempt))
            headers[HeaderName.attempt] = str(attempts + 1)
            if HeaderName.first_failed_at not in arrival.message.headers:
                headers[HeaderName.first_failed_at] = datetime.now(UTC).isoformat()
        message, subscription = arrival.message.with_headers(headers), arrival.subscription
        if arrival.line is not None and isinstance(subscription, OrderedSubscription):
            await subscription.hold(arrival, message, delay, attempted=attempted)
            return
        await self._write_anew(
            arrival,
            message,
            delay,
            lent=max(0, arrival.count - arrival.forgiven - (not attempted)),
        )

    async def _return_unasked(self, arrival: Arrival) -> None:
        try:
            await self._give_back(arrival, 0.0, attempted=False)
        except (ChannelError, ConversionError) as error:
            logger.debug("channel %r: given back at its place, which counts as a delivery: %s", self.name, error)
            arrival.subscription.give_back(arrival)

    async def _write_anew(self, arrival: Arrival, message: Message[bytes], delay: float, *, lent: int) -> None:
        """Put a message at the end of the queue or on the way there, and only then remove the old one."""
        subscription = arrival.subscription
        broker = subscription.broker  # that of the channel is gone when this is done by closing
        expires = arrival.expires
        message = message.with_headers({DELIVERIES: str(lent)})
        if expires is not None and expires <= time.time() + delay:
            subscription.ack([arrival])
            return
        if delay > 0 and self._delay_through is not None:
            noted = {HeaderName.delay: repr(delay)}
            if expires is not None:
                noted[EXPIRES] = repr(expires)
            await self._delay_through([message.with_headers(noted)])
        else:
            priority = whole_number(message.headers.get(HeaderName.priority))
            outgoing = self._outgoing(message, rewritten(message), expires, priority, waits=delay > 0)
            outgoing.exchange, outgoing.routing_key = "", self._topology.queue
            if delay > 0:
                step, outgoing.exchange, outgoing.routing_key = self._ladder.route(
                    min(delay, LONGEST_DELAY), self._topology.queue, roughly=True
                )
                await self._ladder.prepare(broker, step, self._topology.queue)
            await self._publish(broker, [outgoing], laddered=delay > 0)
        subscription.ack([arrival])

    # -------------------------------------------------------------------------------------------------- inspecting

    async def depth(self) -> int:
        """Count the messages that are ready, and those that this very channel has lent.

        AMQP tells neither what other consumers hold nor what waits on the ladder of delays.

        Raises:
            ChannelError: The server cannot be reached, or the queue is not there.
        """
        broker = self._opened()
        wire = await broker.wire()
        async with broker.talk(wire) as amqp:
            question = amqp.queue_declare(self._topology.queue, passive=True)
            answer = await broker.ask(wire, question, f"looking for queue {self._topology.queue!r}")
        lent = 0 if self._subscription is None else len(self._subscription.outstanding)
        return (answer.message_count or 0) + lent

    async def purge(self) -> int:
        """Delete the messages that are ready; return how many there were.

        Raises:
            ChannelError: The server cannot be reached, or the queue is not there.
        """
        broker = self._opened()
        wire = await broker.wire()
        async with broker.talk(wire) as amqp:
            question = amqp.queue_purge(self._topology.queue)
            answer = await broker.ask(wire, question, f"purging queue {self._topology.queue!r}")
        return answer.message_count or 0


class RabbitMQDelivery:
    """A message of a queue, lent on the connection on which it has arrived."""

    def __init__(self, channel: RabbitMQChannel, arrival: Arrival) -> None:
        self.arrival = arrival
        self._channel = channel
        self._settled = False
        self._giving_back: asyncio.Task[None] | None = None

    @property
    def message(self) -> Message[bytes]:
        """The message."""
        return self.arrival.message

    @property
    def tag(self) -> int:
        """The number that the server has given it, on the AMQP channel on which it has arrived."""
        return self.arrival.tag

    @property
    def count(self) -> int:
        """How often the message was lent, as far as this can be known."""
        return self.arrival.count

    @property
    def settled(self) -> bool:
        """Whether an ack or nack has taken effect."""
        return self._settled

    def conclude(self) -> None:
        """Note that it is settled."""
        self._settled = True

    async def ack(self) -> None:
        """Remove the message from the queue.

        Raises:
            LeaseLostError: The connection on which it was lent is gone, and the message comes again.
        """
        if not self._settled:
            await self._channel.ack_all([self])

    async def nack(self, delay: float = 0.0, *, attempted: bool = True) -> None:
        """Give the message back: written anew, at the end of the queue or on the way there.

        Without an attempt and a delay it keeps its place in a quorum queue, for once: the server counts that as if its
        consumer had died, so that the second time it is written anew, too.

        Raises:
            ChannelError: It could not be written anew; it is still lent, and comes again when the connection ends.
        """
        if self._settled or self.arrival.subscription.lost is not None:
            return
        if self._giving_back is None:
            self._giving_back = self._channel.start_to_give_back(self.arrival, delay, attempted=attempted)
        giving_back = self._giving_back
        await asyncio.wait((giving_back,))
        if giving_back.cancelled() or giving_back.exception() is not None:
            self._giving_back = None
            giving_back.result()
        self._settled = True


_SINGLE, _LIMIT = "x-single-active-consumer", "x-delivery-limit"


def _check_order(name: str, queue: str, kind: QueueType, *, declare: bool, arguments: dict[str, Any]) -> None:
    """Refuse what does not go together with keeping the order."""
    if kind != "quorum":
        problem, hint = "in a classic queue, which does not count deliveries", "leave queue_type out"
    elif not declare:
        problem, hint = (
            "in a queue that somebody else declares",
            "leave declare=False out: the queue has to fit exactly",
        )
    elif taken := sorted(arguments.keys() & {_SINGLE, _LIMIT}):
        problem, hint = f"with arguments of your own for {' and '.join(taken)}", "leave them out: they are set by it"
    elif not _NAME.fullmatch(name_of(queue)):
        problem, hint = f"in a queue with a name of {len(queue)} characters", "use up to 241 for the name of the queue"
    else:
        return
    raise ConfigurationError(f"channel {name!r} cannot keep the order of partition keys {problem}", hint=hint)


def _moment(noted: object) -> float | None:
    try:
        moment = float(noted)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return None if math.isnan(moment) else moment
