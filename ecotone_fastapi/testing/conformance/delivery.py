"""Cases for every channel: what is sent arrives, and what is lent is settled."""

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.channel import SettlesTogether
from ecotone_fastapi.core.errors import ChannelError, ConversionError
from ecotone_fastapi.core.message import HeaderName, Message, new_id
from ecotone_fastapi.testing.conformance.hooks import ChannelHooks, by_id, ids, letter, letters, settle, unique

KILOBYTE = 1024


class RoundTrip(ChannelHooks):
    """What is sent arrives unchanged."""

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
            assert again.without_headers([HeaderName.attempt, HeaderName.first_failed_at]) == sent

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
        sent = {unique(): letters(20, of=str(number)) for number in range(self.crowd)}
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


class Reception(ChannelHooks):
    """`receive` returns in time, and loses nothing."""

    @pytest.mark.parametrize("timeout", [0.0, 0.2])
    async def test_an_empty_channel_returns_in_time(self, timeout: float) -> None:
        """T1: `receive` waits as long as it was told and not much longer."""
        async with self.channel(unique()) as channel:
            began = time.monotonic()
            deliveries = await channel.receive(10, timeout)
            took = time.monotonic() - began

        assert not deliveries
        assert timeout - 0.05 <= took < timeout + self.patience / 2

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
            received += await self._take_all(channel, set(ids(sent)) - set(ids(received)))

        assert set(ids(received)) == set(ids(sent))


class Settlement(ChannelHooks):
    """A delivery is acked or comes again, whoever comes and goes."""

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
        """T1, T12: only the first ack or nack counts."""
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

    async def test_cancelled_calls_are_done_or_not_done(self) -> None:
        """T13: a `send` or `ack` that was cancelled leaves no broken channel and nothing half done."""
        sent: set[str] = set()
        acked: set[str] = set()
        unknown: set[str] = set()

        async with self.channel(unique()) as channel:
            for number in range(40):
                message, seconds = letter(), (number + 1) * 0.00025
                with anyio.move_on_after(seconds):
                    await channel.send([message])
                    sent.add(message.id)
                for delivery in await channel.receive(1, self.moment):
                    with anyio.move_on_after(seconds) as scope:
                        await delivery.ack()
                    if delivery.settled:
                        acked.add(delivery.message.id)
                    else:
                        assert scope.cancelled_caught
                        unknown.add(delivery.message.id)
                        await delivery.nack()
            rest = ids(await self._take_all(channel, sent - acked - unknown))

        assert len(set(rest)) == len(rest)
        assert not acked & set(rest)
        assert sent <= acked | unknown | set(rest)

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
        """T20: `attempt` counts the runs that failed, `count` the deliveries, but not those that were given back."""
        async with self.channel(unique()) as channel:
            await channel.send([letter()])

            [first] = await self._receive(channel, 1)
            assert (first.count, first.message.headers.get(HeaderName.attempt)) == (1, None)
            await first.nack()

            [second] = await self._receive(channel, 1)
            assert (second.count, second.message.headers.get(HeaderName.attempt)) == (2, "1")
            await second.nack(attempted=False)

            [third] = await self._receive(channel, 1)
            assert (third.count, third.message.headers.get(HeaderName.attempt)) == (2, "1")
            await third.nack()

            [fourth] = await self._receive(channel, 1)
            assert (fourth.count, fourth.message.headers.get(HeaderName.attempt)) == (3, "2")
            await fourth.ack()

    async def test_giving_back_unhandled_does_not_count(self) -> None:
        """T20: a message is not suspected of killing its consumers because those were stopped, however often."""
        name = unique()

        async with self.channel(name) as publisher:
            await publisher.send([letter()])
            for _ in range(3):
                async with self.channel(name) as channel:
                    [delivery] = await self._receive(channel, 1)
                    assert delivery.count == 1
                    await delivery.nack(attempted=False)
                    [delivery] = await self._receive(channel, 1)
                    assert delivery.count == 1

            [delivery] = await self._receive(publisher, 1)
            assert (delivery.count, delivery.message.headers.get(HeaderName.attempt)) == (1, None)
            await delivery.ack()

    async def test_what_is_not_settled_is_neither_lost_nor_repeated(self) -> None:
        """T5, T12, T32: what is lent is its consumer's until that closes; then it comes at once, and only once."""
        name = unique()

        async with self.channel(name) as slow, self.channel(name) as other:
            await slow.send([letter()])
            [lent] = await self._receive(slow, 1)
            await self._assert_nothing_arrives(slow)
            if slow.capabilities.competing:
                await self._assert_nothing_arrives(other)

            await slow.close()

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

        sent = letters(self.crowd)
        async with anyio.create_task_group() as tasks:
            for message in sent:
                tasks.start_soon(send_one, message)

        async with self.channel(name) as channel:
            assert set(ids(await self._take(channel, self.crowd))) == set(ids(sent))

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
                    for _ in range(self.crowd):
                        tasks.start_soon(open_and_close)
                    await survivor.send(sent[:25])
            await survivor.send(sent[25:])

            assert set(ids(await self._take_all(survivor, ids(sent)))) == set(ids(sent))

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
