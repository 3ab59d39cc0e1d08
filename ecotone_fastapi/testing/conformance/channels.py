"""The suite for channels. What a channel does not claim in its `Capabilities` is skipped, everything else must hold.

The numbers in the docstrings, T1 to T42, name the cases in reports, so that transports can be compared.
"""

import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import NoReturn, TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.channel import Channel, Delivery, Inspectable, SettlesTogether
from ecotone_fastapi.core.errors import ChannelError, ConversionError, LeaseLostError, SendError
from ecotone_fastapi.core.message import HeaderName, Message, new_id

R = TypeVar("R")

KILOBYTE = 1024
HOUR = 3600.0


class Rollback(Exception):  # noqa: N818 - it is no error: the cases roll back with it
    """Ends a transaction that is not to be committed."""


@pytest.mark.anyio
class ChannelConformance:
    """What every channel must do. Subclass it, implement `channel` and as many of the hooks as you can.

    A hook that is not implemented skips the cases that need it, and the reason says so.

    Attributes:
        patience: Seconds after which something that must happen has failed to happen.
        moment: Seconds to wait before believing that nothing arrives; 0 suits a channel that asks its server once.
        volume: Messages in the largest case; the others take a fraction of it.
        lease: Seconds after which a delivery of a `leased` channel comes back.

    Example:
        ```python
        class TestMemoryChannel(ChannelConformance):
            @pytest.fixture(autouse=True)
            def server(self) -> None:
                self.queues = defaultdict(MemoryQueue)

            @asynccontextmanager
            async def channel(self, name: str) -> AsyncIterator[Channel]:
                channel = MemoryChannel(name, queue=self.queues[name])
                await channel.open()
                yield channel
                await channel.close()
        ```
    """

    patience: float = 15.0
    moment: float = 0.2
    volume: int = 10_000
    lease: float = 60.0

    # ---------------------------------------------------------------------------------------------------------- hooks

    def channel(self, name: str) -> AbstractAsyncContextManager[Channel]:
        """Open a channel, and close it in the end.

        Each call opens a channel of its own onto the same server: two with the same name are two consumers of one
        queue. Names are letters, digits and hyphens; every case makes up new ones.
        """
        raise NotImplementedError

    async def advance(self, seconds: float) -> None:
        """Hook: let so much time pass for the server and for all channels, without waiting."""
        self._skip_without("advance", "time travel")

    def channel_with_lease(self, name: str, lease: float) -> AbstractAsyncContextManager[Channel]:
        """Hook: open a channel with a lease of so many seconds, which it renews as long as its consumer is alive."""
        self._skip_without("channel_with_lease", "a short lease that is renewed")

    def skewed_channel(self, name: str, seconds: float) -> AbstractAsyncContextManager[Channel]:
        """Hook: open a channel on a machine whose clock is ahead of the server's, or behind it when negative."""
        self._skip_without("skewed_channel", "a machine whose clock is wrong")

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Hook: open the unit of work that a `transactional` channel takes part in when it is used in the same task.

        Left well it commits; left by an exception it rolls back and lets the exception pass.
        """
        self._skip_without("transaction", "a unit of work")

    async def drop_connections(self) -> None:
        """Hook: cut all connections between the open channels and the server, which accepts new ones."""
        self._skip_without("drop_connections", "a connection that breaks")

    def refused_message(self) -> Message[bytes]:
        """Hook: return a message that the server refuses, while it accepts the others of the same batch."""
        self._skip_without("refused_message", "a message that the server refuses")

    def _skip_without(self, hook: str, need: str) -> NoReturn:
        pytest.skip(f"needs {need}, but {type(self).__name__} does not implement {hook}()")

    # ----------------------------------------------------------------------------------------------------- round trip

    async def test_what_is_sent_arrives_unchanged(self) -> None:
        """T1: payloads and headers of a batch are the same on the other side."""
        sent = letters(100, tenant="acme", type="order.placed")

        async with self.channel(unique()) as channel:
            await channel.send(sent)

            assert by_id(await self._take(channel, 100)) == by_id(sent)
            await self._assert_nothing_arrives(channel)

    @pytest.mark.parametrize(
        "payload",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\x00", id="one zero byte"),
            pytest.param(bytes(range(256)), id="every byte"),
            pytest.param("Grüße, 世界 \N{SNOWMAN}\N{PILE OF POO}".encode(), id="unicode"),
            pytest.param(random.Random(256).randbytes(256 * KILOBYTE), id="256 KB"),  # noqa: S311 - no secret
            pytest.param(random.Random(1024).randbytes(1024 * KILOBYTE), id="1 MiB"),  # noqa: S311 - no secret
        ],
    )
    async def test_any_bytes_survive(self, payload: bytes) -> None:
        """T29: a channel does not look into a payload."""
        async with self.channel(unique()) as channel:
            largest = channel.capabilities.largest_body
            if largest is not None and len(payload) > largest:
                pytest.skip(f"{type(channel).__name__} takes no more than {largest} bytes")
            await channel.send([letter(payload)])

            [received] = await self._take(channel, 1)
            assert received.payload == payload

    async def test_any_header_survives(self) -> None:
        """T29, T30: a channel does not touch the headers of others, whatever they say."""
        sent = letter(
            b"hello",
            **{
                HeaderName.type: "order.placed",
                HeaderName.correlation_id: new_id(),
                HeaderName.causation_id: new_id(),
                HeaderName.timestamp: "2026-01-31T12:00:00.000001+00:00",
                HeaderName.content_type: "application/json",
                HeaderName.endpoint: "Orders.place",
                HeaderName.partition_key: "order-1",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "tracestate": "vendor=a:b;c=d",
                "baggage": "user=Am%C3%A9lie,region=eu",
                "empty": "",
                "unicode": "Grüße, 世界 \N{PILE OF POO}",
                "Ключ": "a name that is not ASCII",
                "quotes": "\"'`\\ {} %s $1 :name; --",
                "spaces": "  two in front,\ttab,\r\nnew line ",
                "long": "x" * 4 * KILOBYTE,
            },
        )

        async with self.channel(unique()) as channel:
            await channel.send([sent])

            [delivery] = await self._receive(channel, 1)
            assert delivery.message == sent
            await delivery.nack()
            [again] = await self._take(channel, 1)
            assert again.without_headers([HeaderName.attempt]) == sent

    async def test_the_same_message_sent_twice_arrives_twice(self) -> None:
        """T41: whether a repetition matters is decided by who handles it."""
        sent = letter()

        async with self.channel(unique()) as channel:
            await channel.send([sent])
            await channel.send([sent])

            assert await self._take(channel, 2) == [sent, sent]

    async def test_sending_nothing_does_nothing(self) -> None:
        """T1: an empty batch is no error."""
        async with self.channel(unique()) as channel:
            await channel.send([])

            await self._assert_nothing_arrives(channel)

    async def test_a_late_consumer_receives_what_was_sent_before(self) -> None:
        """T14: a message waits for its consumer."""
        name, sent = unique(), letters(20)

        async with self.channel(name) as publisher, self.channel(name) as late:
            await publisher.send(sent)

            assert by_id(await self._take(late, 20)) == by_id(sent)

    async def test_channels_see_only_their_own_messages(self) -> None:
        """T3, T11: many channels on one server, used at the same time, do not mix."""
        sent = {unique(): letters(20, of=str(number)) for number in range(20)}
        received: dict[str, Sequence[Message[bytes]]] = {}

        async def exchange(name: str) -> None:
            async with self.channel(name) as channel:
                for start in range(0, 20, 5):
                    await channel.send(sent[name][start : start + 5])
                received[name] = await self._take(channel, 20)
                await self._assert_nothing_arrives(channel)

        async with anyio.create_task_group() as tasks:
            for name in sent:
                tasks.start_soon(exchange, name)

        assert {name: by_id(messages) for name, messages in received.items()} == {
            name: by_id(messages) for name, messages in sent.items()
        }

    # -------------------------------------------------------------------------------------------------------- receive

    @pytest.mark.parametrize("timeout", [0.0, 0.2])
    async def test_an_empty_channel_returns_in_time(self, timeout: float) -> None:
        """T1: `receive` waits as long as it was told and not much longer."""
        async with self.channel(unique()) as channel:
            began = time.monotonic()
            deliveries = await channel.receive(10, timeout)
            took = time.monotonic() - began

        assert not deliveries
        assert timeout - 0.05 <= took < timeout + 2.0

    async def test_receive_returns_as_soon_as_a_message_arrives(self) -> None:
        """T1: whoever waits does not wait out its timeout."""
        name = unique()
        began = time.monotonic()

        async with (
            self.channel(name) as consumer,
            self.channel(name) as publisher,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._take, consumer, 1)
            await publisher.receive(1, 0)  # lets the other one begin to wait
            await publisher.send([letter()])

        assert time.monotonic() - began < self.patience / 2

    async def test_receive_lends_no_more_than_its_limit(self) -> None:
        """T33: what one consumer did not ask for is there for the next one."""
        name = unique()

        async with self.channel(name) as first, self.channel(name) as second:
            await first.send(letters(10))

            lent = await first.receive(3, self.patience)
            assert 1 <= len(lent) <= 3
            if first.capabilities.competing:
                await self._take(second, 10 - len(lent))
            await settle(first, lent)

    async def test_cancelling_receive_loses_nothing(self) -> None:
        """T13: messages that arrive while a `receive` is cancelled are received by the next one."""
        sent = letters(40)
        received: list[Message[bytes]] = []

        async with self.channel(unique()) as channel:
            for number, message in enumerate(sent):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._collect, channel, received)
                    # Cancelled at a different place each time: before it waits, while it does, while it takes.
                    for _ in range(number % 8):
                        await checkpoint()
                    await channel.send([message])
                    for _ in range(number // 8):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
            received += await self._take_rest(channel, until=lambda rest: len(rest) + len(received) >= len(sent))

        assert set(ids(received)) == set(ids(sent))

    # ------------------------------------------------------------------------------------------------- ack, nack, close

    async def test_ack_removes_the_message(self) -> None:
        """T1: what was acked never comes back."""
        name = unique()

        async with self.channel(name) as channel:
            await channel.send([letter()])
            [delivery] = await self._receive(channel, 1)
            await delivery.ack()

            assert delivery.settled
            await self._assert_nothing_arrives(channel)
        async with self.channel(name) as channel:
            await self._assert_nothing_arrives(channel)

    async def test_settling_twice_is_harmless(self) -> None:
        """T1: only the first ack or nack counts."""
        async with self.channel(unique()) as channel:
            await channel.send([letter()])
            [delivery] = await self._receive(channel, 1)
            await delivery.ack()
            await delivery.ack()
            await delivery.nack()

            await self._assert_nothing_arrives(channel)

            await channel.send([letter()])
            [delivery] = await self._receive(channel, 1)
            await delivery.nack()
            await delivery.nack()

            assert len(await self._take(channel, 1)) == 1
            await self._assert_nothing_arrives(channel)

    async def test_several_are_acked_together(self) -> None:
        """T1: `ack_all` removes exactly those that it is given."""
        async with self.channel(unique()) as channel:
            if not isinstance(channel, SettlesTogether):
                pytest.skip(f"{type(channel).__name__} settles one by one")
            await channel.send(letters(10))
            deliveries = await self._receive(channel, 10)
            await channel.ack_all(deliveries[:7])
            await channel.ack_all([])

            assert [delivery.settled for delivery in deliveries] == [True] * 7 + [False] * 3
            for delivery in deliveries[7:]:
                await delivery.nack(attempted=False)
            rest = await self._take(channel, 3)
            assert set(ids(rest)) == {delivery.message.id for delivery in deliveries[7:]}
            await self._assert_nothing_arrives(channel)

    async def test_what_is_given_back_comes_again(self) -> None:
        """T4: every third message is nacked once, and all are handled."""
        sent = letters(60)
        refused: set[str] = set()
        handled: list[str] = []

        async with self.channel(unique()) as channel:
            await channel.send(sent)
            while len(handled) < len(sent):
                for delivery in await self._receive(channel, 1, limit=10):
                    message = delivery.message
                    if int(message.payload) % 3 == 0 and message.id not in refused:
                        refused.add(message.id)
                        await delivery.nack()
                    else:
                        await delivery.ack()
                        handled.append(message.id)
            await self._assert_nothing_arrives(channel)

        assert sorted(handled) == sorted(ids(sent))

    async def test_repeated_failures_lose_nothing(self) -> None:
        """T8: three consumers fail a hundred times, and then all messages are handled."""
        name, sent = unique(), letters(50)

        async with AsyncExitStack() as stack:
            consumers = [await stack.enter_async_context(self.channel(name)) for _ in range(3)]
            await consumers[0].send(sent)
            for number in range(100):
                for delivery in await self._receive(consumers[number % 3], 1, limit=1):
                    await delivery.nack()

            assert set(ids(await self._take(consumers[0], 50))) == set(ids(sent))

    async def test_the_failed_runs_and_the_deliveries_are_counted(self) -> None:
        """T20: `attempt` counts the runs that failed, `count` also those that never began."""
        async with self.channel(unique()) as channel:
            await channel.send([letter()])

            [first] = await self._receive(channel, 1)
            assert (first.count, first.message.headers.get(HeaderName.attempt)) == (1, None)
            await first.nack(attempted=False)

            [second] = await self._receive(channel, 1)
            assert (second.count, second.message.headers.get(HeaderName.attempt)) == (2, None)
            await second.nack()

            [third] = await self._receive(channel, 1)
            assert (third.count, third.message.headers.get(HeaderName.attempt)) == (3, "1")
            await third.nack()

            [fourth] = await self._receive(channel, 1)
            assert (fourth.count, fourth.message.headers.get(HeaderName.attempt)) == (4, "2")
            await fourth.ack()

    async def test_what_is_not_settled_is_neither_lost_nor_repeated(self) -> None:
        """T5, T32: a lent message is its consumer's until that closes; then it comes again at once, and once only."""
        name = unique()

        async with self.channel(name) as other:
            async with self.channel(name) as slow:
                await slow.send([letter()])
                [lent] = await self._receive(slow, 1)

                await self._assert_nothing_arrives(slow)
                if slow.capabilities.competing:
                    await self._assert_nothing_arrives(other)
            [delivery] = await self._receive(other, 1)
            assert delivery.message.id == lent.message.id
            assert HeaderName.attempt not in delivery.message.headers
            with pytest.raises(ChannelError):
                await lent.ack()
            await delivery.ack()

    async def test_a_closed_channel_continues_when_it_is_opened_again(self) -> None:
        """T6: consumers come and go while messages are read in parts; the parts together are all."""
        name, sent = unique(), letters(max(60, self.volume // 50))
        received: list[Message[bytes]] = []

        async with self.channel(name) as publisher:
            await publisher.send(sent)
            while len(received) < len(sent):
                async with self.channel(name) as channel:
                    deliveries = await self._receive(channel, 1, limit=len(sent) // 5)
                    done = deliveries[: max(1, len(deliveries) - 5)]
                    await settle(channel, done)
                    received += [delivery.message for delivery in done]
            await self._assert_nothing_arrives(publisher)

        assert sorted(ids(received)) == sorted(ids(sent))

    async def test_what_was_not_acked_survives_the_end_of_all_channels(self) -> None:
        """T10: `send` has returned, so the message is there, whoever is left."""
        name, sent = unique(), letters(10)
        async with self.channel(name) as channel:
            self._needs(channel, "durable")
            await channel.send(sent)
            await self._receive(channel, 1)

        async with self.channel(name) as channel:
            assert set(ids(await self._take(channel, 10))) == set(ids(sent))

    async def test_open_and_close_may_be_repeated(self) -> None:
        """T40: a channel that was closed can be opened again."""
        async with self.channel(unique()) as channel:
            await channel.open()
            await channel.send([letter()])
            await channel.close()
            await channel.close()
            await channel.open()

            await self._take(channel, 1)

    async def test_many_may_open_a_new_channel_at_once(self) -> None:
        """T40: preparing the server is race-safe."""
        name = unique()

        async def send_one(message: Message[bytes]) -> None:
            async with self.channel(name) as channel:
                await channel.send([message])

        sent = letters(10)
        async with anyio.create_task_group() as tasks:
            for message in sent:
                tasks.start_soon(send_one, message)

        async with self.channel(name) as channel:
            assert set(ids(await self._take(channel, 10))) == set(ids(sent))

    async def test_many_may_close_while_they_receive(self) -> None:
        """T7: consumers that close in the middle of a `receive` neither hang nor take anything with them."""
        name, sent = unique(), letters(50)

        async def open_and_close() -> None:
            async with anyio.create_task_group() as tasks:
                async with self.channel(name) as channel:
                    tasks.start_soon(self._receive_until_closed, channel)
                    await channel.receive(1, 0)
                tasks.cancel_scope.cancel()

        async with self.channel(name) as survivor:
            with anyio.fail_after(self.patience):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(open_and_close)
                    await survivor.send(sent[:25])
            await survivor.send(sent[25:])

            received = await self._take_rest(survivor, until=lambda rest: len(rest) >= len(sent))
            assert set(ids(received)) == set(ids(sent))

    async def test_a_wrong_header_is_refused_before_anything_is_stored(self) -> None:
        """T29: the sender learns of it, and the good messages of the batch were not sent either."""
        async with self.channel(unique()) as channel:
            wrong = {
                HeaderName.delay: ("soon", "-1", "nan", "inf", ""),
                HeaderName.priority: ("high", "-1", "10", "1.5", ""),
                HeaderName.time_to_live: ("long", "-1", "nan", ""),
            }
            claimed = [name for name in wrong if getattr(channel.capabilities, name)]
            if not claimed:
                pytest.skip(f"{type(channel).__name__} reads no headers")
            for name in claimed:
                for text in wrong[name]:
                    with pytest.raises(ConversionError, match=name):
                        await channel.send([letter(), letter(**{name: text})])

            await self._assert_nothing_arrives(channel)

    # ------------------------------------------------------------------------------------------ order, delay, lifetime

    async def test_a_single_consumer_receives_in_order(self) -> None:
        """T9: messages of several batches come in the order of sending, whatever the limit of `receive`."""
        sent = letters(max(100, self.volume // 10))
        received: list[Message[bytes]] = []

        async with self.channel(unique()) as channel:
            self._needs(channel, "ordered")
            for start in range(0, len(sent), 50):
                await channel.send(sent[start : start + 50])
            while len(received) < len(sent):
                deliveries = await self._receive(channel, 1, limit=7 + len(received) % 60)
                received += [delivery.message for delivery in deliveries]
                await settle(channel, deliveries)

        assert ids(received) == ids(sent)

    async def test_a_delayed_message_is_not_early(self) -> None:
        """T17: it comes when its delay is over, without the `delay` header, and what is ready overtakes it."""
        delayed, ready = letter(b"delayed", delay="0.5"), letter(b"ready")

        async with self.channel(unique()) as channel:
            self._needs(channel, "delay")
            began = time.monotonic()
            await channel.send([delayed])
            await channel.send([ready])

            assert await self._take(channel, 1) == [ready]
            assert await self._take(channel, 1) == [delayed.without_headers([HeaderName.delay])]
            assert 0.49 <= time.monotonic() - began < 0.5 + self.patience / 2

    async def test_a_short_delay_is_not_held_up_by_a_long_one(self) -> None:
        """T17: messages come in the order in which they become due."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "delay")
            await channel.send([letter(b"second", delay="0.6"), letter(b"never", delay="86400")])
            await channel.send([letter(b"first", delay="0.2")])

            assert [message.payload for message in await self._take(channel, 2)] == [b"first", b"second"]
            await self._assert_nothing_arrives(channel)

    async def test_long_delays_end_when_their_time_has_come(self) -> None:
        """T17: hours later, everything that is due is there at once, and nothing else."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "delay")
            await channel.send([letter(str(hours).encode(), delay=str(hours * HOUR)) for hours in (3, 1, 2)])

            await self.advance(HOUR - 60)
            await self._assert_nothing_arrives(channel)
            await self.advance(120)
            assert [message.payload for message in await self._take(channel, 1)] == [b"1"]
            await self._assert_nothing_arrives(channel)
            await self.advance(2 * HOUR)
            assert [message.payload for message in await self._take(channel, 2)] == [b"2", b"3"]

    async def test_a_message_is_given_back_for_later(self) -> None:
        """T17: `nack(delay)` keeps the message away for so long."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "delay")
            await channel.send([letter()])
            [delivery] = await self._receive(channel, 1)
            began = time.monotonic()
            await delivery.nack(0.4)

            await self._assert_nothing_arrives(channel)
            [again] = await self._receive(channel, 1)
            assert time.monotonic() - began >= 0.39
            assert again.message.headers[HeaderName.attempt] == "1"
            await again.ack()

    async def test_the_highest_priority_goes_first(self) -> None:
        """T18: 9 before 0, no header is 0, and equals keep their order."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "priority")
            priorities = ["0", "5", None, "9", "5", "1", None, "9"]
            sent = [letter(**({} if priority is None else {"priority": priority})) for priority in priorities]
            await channel.send(sent)

            received = [await self._take(channel, 1) for _ in sent]
            assert ids(message for [message] in received) == ids(sent[place] for place in (3, 7, 1, 4, 5, 0, 2, 6))

    async def test_what_has_outlived_its_time_is_not_delivered(self) -> None:
        """T19: an expired message is gone, also when it had been given back before."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "time_to_live")
            await channel.send([letter(b"failed", time_to_live="0.5")])
            [delivery] = await self._receive(channel, 1)
            await delivery.nack()
            await channel.send([letter(b"short", time_to_live="0.2"), letter(b"long", time_to_live="3600")])
            await self._let_pass(0.7)

            assert [message.payload for message in await self._take(channel, 1)] == [b"long"]
            await self._assert_nothing_arrives(channel)

    async def test_a_message_lives_as_long_as_it_was_told(self) -> None:
        """T19: hours are hours, also for what is lent in the meantime."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "time_to_live")
            await channel.send([letter(b"one", time_to_live=str(HOUR)), letter(b"two", time_to_live=str(2 * HOUR))])

            await self.advance(1.5 * HOUR)
            assert [message.payload for message in await self._take(channel, 1)] == [b"two"]
            await self._assert_nothing_arrives(channel)

    # ------------------------------------------------------------------------------------------------ many at one time

    async def test_many_publishers_and_many_consumers(self) -> None:
        """T2: fifty of each, on two channels of one queue."""
        name = unique()
        batches = [letters(self.volume // 500) for _ in range(100)]
        expected = {message.id for batch in batches for message in batch}
        received: Counter[str] = Counter()

        async def publish(channel: Channel, number: int) -> None:
            for batch in batches[number::50]:
                await channel.send(batch)

        async def consume(channel: Channel, done: anyio.CancelScope) -> None:
            while True:
                deliveries = await channel.receive(10, self.patience)
                await settle(channel, deliveries)
                received.update(delivery.message.id for delivery in deliveries)
                if len(received) == len(expected):
                    done.cancel()

        async with self.channel(name) as first, self.channel(name) as second:
            with anyio.move_on_after(4 * self.patience) as done:
                async with anyio.create_task_group() as tasks:
                    for number in range(50):
                        tasks.start_soon(publish, (first, second)[number % 2], number)
                        tasks.start_soon(consume, (first, second)[number % 2], done)

        assert set(received) == expected

    async def test_publishers_may_close_as_soon_as_send_has_returned(self) -> None:
        """T10: what twenty publishers have sent is there after they have gone."""
        name = unique()
        batches = [letters(self.volume // 200) for _ in range(20)]

        async def publish(batch: Sequence[Message[bytes]]) -> None:
            async with self.channel(name) as channel:
                await channel.send(batch)

        async with self.channel(name) as channel:
            async with anyio.create_task_group() as tasks:
                for batch in batches:
                    tasks.start_soon(publish, batch)

            expected = {message.id for batch in batches for message in batch}
            assert set(ids(await self._take(channel, len(expected)))) == expected

    async def test_no_message_is_lent_to_two_consumers(self) -> None:
        """T39: eight consumers empty a full queue; each message is held by one at a time and handled once."""
        name = unique()
        held: set[str] = set()
        handled: set[str] = set()

        async def consume(limit: int) -> None:
            async with self.channel(name) as channel:
                while deliveries := await channel.receive(limit, self.moment):
                    mine = {delivery.message.id for delivery in deliveries}
                    assert not mine & (held | handled)
                    held.update(mine)
                    await checkpoint()
                    await settle(channel, deliveries)
                    held.difference_update(mine)
                    handled.update(mine)

        async with self.channel(name) as publisher:
            self._needs(publisher, "competing")
            for _ in range(20):
                await publisher.send(letters(self.volume // 20))
            async with anyio.create_task_group() as tasks:
                for worker in range(8):
                    tasks.start_soon(consume, (10, 25, 50, 100)[worker % 4])
            await self._assert_nothing_arrives(publisher)

        assert len(handled) == self.volume // 20 * 20

    # ---------------------------------------------------------------------------------------------------------- leases

    async def test_a_delivery_whose_lease_has_ended_goes_to_somebody_else(self) -> None:
        """T20, T24: a consumer that has died does not keep its messages, and its death is no failed run."""
        name = unique()

        async with self.channel(name) as dead, self.channel(name) as heir:
            self._needs(dead, "leased")
            await dead.send([letter()])
            [lost] = await self._receive(dead, 1)
            await self.advance(self.lease + 1)

            [delivery] = await self._receive(heir, 1)
            assert delivery.message == lost.message
            assert delivery.count == 2
            await delivery.ack()

    async def test_a_lost_message_can_not_be_acked(self) -> None:
        """T25: the ack of the first consumer is refused, and the second one keeps the message."""
        name = unique()

        async with self.channel(name) as slow, self.channel(name) as heir:
            self._needs(slow, "leased")
            await slow.send([letter()])
            [lost] = await self._receive(slow, 1)
            await self.advance(self.lease + 1)
            [delivery] = await self._receive(heir, 1)

            with pytest.raises(LeaseLostError):
                await lost.ack()
            assert not lost.settled
            await delivery.nack()
            assert len(await self._take(heir, 1)) == 1

    async def test_a_lost_message_is_not_given_back(self) -> None:
        """T25: a nack that comes too late changes nothing and is no error."""
        name = unique()

        async with self.channel(name) as slow, self.channel(name) as heir:
            self._needs(slow, "leased")
            await slow.send([letter()])
            [lost] = await self._receive(slow, 1)
            await self.advance(self.lease + 1)
            [delivery] = await self._receive(heir, 1)

            await lost.nack()
            await self._assert_nothing_arrives(heir)
            await delivery.ack()
            await self._assert_nothing_arrives(slow)

    async def test_one_lost_message_does_not_keep_the_others_from_being_acked(self) -> None:
        """T25, T31: `ack_all` removes what it can and says that something was lost."""
        name = unique()

        async with self.channel(name) as slow, self.channel(name) as heir:
            self._needs(slow, "leased")
            if not isinstance(slow, SettlesTogether):
                pytest.skip(f"{type(slow).__name__} settles one by one")
            await slow.send([letter()])
            lost = await self._receive(slow, 1)
            await self.advance(self.lease + 1)
            [taken] = await self._receive(heir, 1)
            await slow.send(letters(3))
            kept = await self._receive(slow, 3)

            with pytest.raises(LeaseLostError):
                await slow.ack_all([*lost, *kept])
            assert [delivery.settled for delivery in (*lost, *kept)] == [False, True, True, True]
            await taken.ack()
            await self._assert_nothing_arrives(heir)

    async def test_a_lease_is_renewed_while_its_consumer_lives(self) -> None:
        """T25: a handler may take longer than the lease; the message is handled once."""
        name, lease = unique(), 0.6

        async with self.channel_with_lease(name, lease) as slow, self.channel_with_lease(name, lease) as other:
            self._needs(slow, "leased")
            await slow.send([letter()])
            [delivery] = await self._receive(slow, 1)

            assert not await other.receive(1, 4 * lease)
            await delivery.ack()
            await self._assert_nothing_arrives(other)

    async def test_a_wrong_clock_changes_nothing(self) -> None:
        """T42: availability, delays and leases go by the server's clock, not by the consumers'."""
        name = unique()

        async with (
            self.channel(name) as right,
            self.skewed_channel(name, HOUR) as ahead,
            self.skewed_channel(name, -HOUR) as behind,
        ):
            for sender in (ahead, behind, right):
                for receiver in (right, behind, ahead):
                    await sender.send([letter()])
                    [delivery] = await self._receive(receiver, 1)
                    for other in {ahead, behind, right} - {receiver}:
                        await self._assert_nothing_arrives(other)
                    await delivery.ack()
                await sender.send([letter(delay="600", time_to_live="1200")])
                for receiver in (right, behind, ahead):
                    await self._assert_nothing_arrives(receiver)

    # ---------------------------------------------------------------------------------------------------- transactions

    async def test_a_message_of_a_transaction_is_sent_when_that_commits(self) -> None:
        """T26: committed means delivered."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "transactional")
            async with self.transaction():
                await channel.send(letters(2))
                await channel.send([letter()])

            await self._take(channel, 3)

    async def test_a_message_of_a_rolled_back_transaction_is_never_delivered(self) -> None:
        """T26: nothing that was rolled back is ever seen."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "transactional")
            async with self._rolled_back():
                await channel.send(letters(2))

            await self._assert_nothing_arrives(channel)

    async def test_an_ack_commits_with_the_transaction(self) -> None:
        """T26: the message is removed together with what its handler has sent."""
        name, answers = unique(), unique()

        async with self.channel(name) as channel, self.channel(answers) as outgoing:
            self._needs(channel, "transactional")
            await channel.send([letter()])
            [delivery] = await self._receive(channel, 1)
            async with self.transaction():
                await outgoing.send([letter()])
                await delivery.ack()

            assert delivery.settled
            await self._take(outgoing, 1)
            await self._assert_nothing_arrives(channel)

    async def test_an_ack_is_rolled_back_with_the_transaction(self) -> None:
        """T26: the message is still lent and can be given back."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "transactional")
            await channel.send([letter()])
            [delivery] = await self._receive(channel, 1)
            async with self._rolled_back():
                await delivery.ack()

            assert not delivery.settled
            await self._assert_nothing_arrives(channel)
            await delivery.nack()
            [again] = await self._receive(channel, 1)
            assert (again.count, again.message.headers[HeaderName.attempt]) == (2, "1")
            await again.ack()

    async def test_a_lost_message_fails_the_transaction(self) -> None:
        """T25, T26: the work of a consumer that was too late leaves no trace."""
        name, answers = unique(), unique()

        async with self.channel(name) as slow, self.channel(name) as heir, self.channel(answers) as outgoing:
            self._needs(slow, "transactional")
            self._needs(slow, "leased")
            await slow.send([letter()])
            [lost] = await self._receive(slow, 1)
            await self.advance(self.lease + 1)
            [delivery] = await self._receive(heir, 1)

            with pytest.raises(LeaseLostError):  # noqa: PT012 - it may be raised by the ack or by the commit
                async with self.transaction():
                    await outgoing.send([letter()])
                    await lost.ack()
            assert not lost.settled
            await self._assert_nothing_arrives(outgoing)
            await delivery.ack()

    # ---------------------------------------------------------------------------------------------------------- faults

    async def test_a_broken_connection_comes_back_by_itself(self) -> None:
        """T15, T28: errors are `ChannelError`, they end soon, and nothing that was sent before is lost."""
        before, after = letters(5), letters(5)
        received: list[Message[bytes]] = []

        async with self.channel(unique()) as channel:
            await channel.send(before)
            await self.drop_connections()
            await self._insist(lambda: channel.send(after))
            await self.drop_connections()
            expected = {*ids(before), *ids(after)} if channel.capabilities.durable else set(ids(after))
            while not expected <= set(ids(received)):
                deliveries = await self._insist(lambda: self._receive(channel, 1))
                for delivery in deliveries:
                    await self._insist(delivery.ack)
                    received.append(delivery.message)

    async def test_a_connection_may_break_while_somebody_waits(self) -> None:
        """T28: a pending `receive` fails with `ChannelError` or goes on, but never hangs."""
        name = unique()
        received: list[Delivery] = []
        if not self._has("drop_connections"):
            await self.drop_connections()

        async with self.channel(name) as channel, self.channel(name) as publisher:

            async def wait() -> None:
                received.extend(await self._insist(lambda: self._receive(channel, 1)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await publisher.receive(1, 0)  # lets the other one begin to wait
                await self.drop_connections()
                await self._insist(lambda: publisher.send([letter()]))
            await self._insist(received[0].ack)

    async def test_a_batch_that_is_refused_in_part_says_which(self) -> None:
        """T31: the error names the messages that did not enter the channel, and the others did."""
        async with self.channel(unique()) as channel:
            good, bad = letters(4), self.refused_message()

            with pytest.raises(SendError) as caught:
                await channel.send([*good[:2], bad, *good[2:]])

            assert list(caught.value.failed) == [bad.id]
            assert set(ids(await self._take(channel, 4))) == set(ids(good))

    async def test_a_payload_that_is_too_large_is_refused(self) -> None:
        """T29: the error comes before anything is sent, and the channel goes on."""
        async with self.channel(unique()) as channel:
            largest = channel.capabilities.largest_body
            if largest is None:
                pytest.skip(f"{type(channel).__name__} takes payloads of any size")
            with pytest.raises((ConversionError, SendError)):
                await channel.send([letter(bytes(largest + 1))])

            await channel.send([letter(bytes(largest))])
            await self._take(channel, 1)

    # --------------------------------------------------------------------------------------------------- introspection

    async def test_the_depth_counts_what_waits_and_what_is_lent(self) -> None:
        """T38: only ack and purge make it smaller."""
        async with self.channel(unique()) as channel:
            inspected = self._inspect(channel)
            assert await inspected.depth() == 0
            await channel.send(letters(5))
            if channel.capabilities.delay:
                await channel.send([letter(delay="3600")])
            waiting = await inspected.depth()
            assert waiting == 5 + channel.capabilities.delay

            [delivery] = await self._receive(channel, 1, limit=1)
            assert await inspected.depth() == waiting
            await delivery.ack()
            assert await inspected.depth() == waiting - 1

    async def test_the_age_is_that_of_the_oldest_message_that_is_ready(self) -> None:
        """T38: neither what is lent nor what is delayed grows old."""
        async with self.channel(unique()) as channel:
            inspected = self._inspect(channel)
            assert await inspected.oldest_age() is None
            if channel.capabilities.delay:
                await channel.send([letter(delay="3600")])
                assert await inspected.oldest_age() is None
            await channel.send([letter()])
            await self._let_pass(1.0)
            await channel.send([letter()])

            age = await inspected.oldest_age()
            assert age is not None
            assert 0.9 <= age < 1.0 + self.patience
            await self._take(channel, 2)
            assert await inspected.oldest_age() is None

    async def test_peeking_lends_nothing(self) -> None:
        """T38: what is seen is what is received later."""
        async with self.channel(unique()) as channel:
            inspected = self._inspect(channel)
            sent = letters(5, tenant="acme")
            await channel.send(sent)

            seen = await inspected.peek()
            assert by_id(seen) == by_id(sent)
            assert len(await inspected.peek(2)) == 2
            if channel.capabilities.ordered:
                assert list(seen) == list(sent)
            [delivery] = await self._receive(channel, 1, limit=1)
            assert delivery.count == 1
            await delivery.ack()
            assert by_id(await self._take(channel, 4)).keys() == by_id(sent).keys() - {delivery.message.id}

    async def test_purging_removes_everything(self) -> None:
        """T38: also what is delayed; it says how many there were."""
        async with self.channel(unique()) as channel:
            inspected = self._inspect(channel)
            await channel.send(letters(5))
            if channel.capabilities.delay:
                await channel.send([letter(delay="3600")])

            assert await inspected.purge() == 5 + channel.capabilities.delay
            assert await inspected.purge() == 0
            assert await inspected.depth() == 0
            await self._assert_nothing_arrives(channel)
            await channel.send([letter()])
            await self._take(channel, 1)

    # ---------------------------------------------------------------------------------------------------------- helpers

    @asynccontextmanager
    async def _rolled_back(self) -> AsyncIterator[None]:
        with pytest.raises(Rollback):  # noqa: PT012 - what it leaves is the transaction
            async with self.transaction():
                yield
                raise Rollback

    def _has(self, hook: str) -> bool:
        return getattr(type(self), hook) is not getattr(ChannelConformance, hook)

    def _needs(self, channel: Channel, capability: str) -> None:
        if not getattr(channel.capabilities, capability):
            pytest.skip(f"{type(channel).__name__} does not claim to be {capability!r}")

    def _inspect(self, channel: Channel) -> Inspectable:
        if not isinstance(channel, Inspectable):
            pytest.skip(f"{type(channel).__name__} cannot be looked into")
        return channel

    async def _receive(self, channel: Channel, number: int, *, limit: int | None = None) -> list[Delivery]:
        """Receive at least so many deliveries, or fail."""
        deliveries: list[Delivery] = []
        while len(deliveries) < number:
            lent = await channel.receive((limit or number) - len(deliveries), self.patience)
            assert lent, f"{len(deliveries)} of {number} messages arrived within {self.patience} seconds"
            deliveries += lent
        return deliveries

    async def _take(self, channel: Channel, number: int) -> list[Message[bytes]]:
        """Receive and ack exactly so many messages, or fail."""
        taken: list[Message[bytes]] = []
        while len(taken) < number:
            deliveries = await self._receive(channel, 1, limit=min(number - len(taken), 100))
            await settle(channel, deliveries)
            taken += [delivery.message for delivery in deliveries]
        return taken

    async def _take_rest(
        self, channel: Channel, *, until: Callable[[Sequence[Message[bytes]]], bool]
    ) -> list[Message[bytes]]:
        """Receive and ack what is there; what is lent to nobody any more may need its lease to end."""
        taken: list[Message[bytes]] = []
        while not until(taken):
            if not (deliveries := await channel.receive(100, self.moment)) and channel.capabilities.leased:
                await self.advance(self.lease + 1)
            if not deliveries and not (deliveries := await channel.receive(100, self.patience)):
                break
            await settle(channel, deliveries)
            taken += [delivery.message for delivery in deliveries]
        return taken

    async def _collect(self, channel: Channel, received: list[Message[bytes]]) -> None:
        for delivery in await channel.receive(10, self.patience):
            with anyio.CancelScope(shield=True):
                await delivery.ack()
                received.append(delivery.message)

    async def _receive_until_closed(self, channel: Channel) -> None:
        try:
            await channel.receive(10, self.patience)
        except ChannelError:
            return

    async def _assert_nothing_arrives(self, channel: Channel) -> None:
        assert [delivery.message for delivery in await channel.receive(1, self.moment)] == []

    async def _let_pass(self, seconds: float) -> None:
        """Let time pass: by the hook, or by listening where nothing is said."""
        if self._has("advance"):
            await self.advance(seconds)
            return
        async with self.channel(unique()) as silent:
            await silent.receive(1, seconds)

    async def _insist(self, action: Callable[[], Awaitable[R]]) -> R:
        """Repeat what fails with `ChannelError`, but not for ever."""
        with anyio.fail_after(2 * self.patience):
            while True:
                try:
                    return await action()
                except ChannelError:
                    await self._let_pass(0.05)


def unique() -> str:
    """Return a name that no other case uses, on a server that may remember earlier runs."""
    return f"conformance-{uuid.uuid4().hex[:12]}"


def letter(payload: bytes = b"hello", /, **headers: str) -> Message[bytes]:
    """Return a message with an id of its own and these headers."""
    return Message(payload, {HeaderName.id: new_id(), **headers})


def letters(number: int, /, **headers: str) -> list[Message[bytes]]:
    """Return so many messages, numbered in their payloads."""
    return [letter(str(place).encode(), **headers) for place in range(number)]


def ids(messages: Iterable[Message[bytes]]) -> list[str]:
    """Return the ids of the messages."""
    return [message.id for message in messages]


def by_id(messages: Iterable[Message[bytes]]) -> dict[str, Message[bytes]]:
    """Return the messages by their ids."""
    return {message.id: message for message in messages}


async def settle(channel: Channel, deliveries: Sequence[Delivery]) -> None:
    """Ack deliveries in the cheapest way that the channel offers."""
    if isinstance(channel, SettlesTogether):
        await channel.ack_all(deliveries)
    else:
        for delivery in deliveries:
            await delivery.ack()
