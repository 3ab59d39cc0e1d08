"""Cases for what stands behind a channel: its transactions, its connections, its insides."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import anyio
import pytest

from ecotone_fastapi.core.channel import Channel, Delivery
from ecotone_fastapi.core.errors import ChannelError, ConversionError, LeaseLostError, SendError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.plugin import HealthCheck
from ecotone_fastapi.testing.conformance.hooks import ChannelHooks, by_id, ids, letter, letters, unique


class Transactions(ChannelHooks):
    """`send` and `ack` commit or vanish with the unit of work."""

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

    async def test_many_transactions_at_once_do_not_disturb_each_other(self) -> None:
        """T2, T26: each answers one message and acks it; every third rolls back, and its message comes again."""
        name, answers, sent = unique(), unique(), letters(60)
        failed: set[str] = set()

        async def answer(channel: Channel, outgoing: Channel) -> None:
            while deliveries := await channel.receive(1, max(self.moment, 0.5)):
                [delivery] = deliveries
                message = delivery.message
                if int(message.payload) % 3 == 0 and message.id not in failed:
                    failed.add(message.id)
                    async with self._rolled_back():
                        await outgoing.send([letter(b"rolled back")])
                        await delivery.ack()
                    await delivery.nack()
                else:
                    async with self.transaction():
                        await outgoing.send([letter(message.payload)])
                        await delivery.ack()

        async with self.channel(name) as channel, self.channel(answers) as outgoing:
            self._needs(channel, "transactional")
            if not self._has("transaction"):
                self.transaction()
            await channel.send(sent)
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(answer, channel, outgoing)

            received = await self._take(outgoing, len(sent))
            assert sorted(message.payload for message in received) == sorted(message.payload for message in sent)
            await self._assert_nothing_arrives(outgoing)

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


class Faults(ChannelHooks):
    """What goes wrong is told and passes."""

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
                    with suppress(LeaseLostError):  # an ack whose answer was lost may have taken effect
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
            with suppress(LeaseLostError):  # an ack whose answer was lost may have taken effect
                await self._insist(received[0].ack)

    async def test_what_a_broken_connection_held_comes_again(self) -> None:
        """T20, T24, T25: where nothing is leased, at once; it is counted, and who has lost it cannot ack it."""
        name = unique()
        if not self._has("drop_connections"):
            await self.drop_connections()

        async with self.channel(name) as dead, self.channel(name) as heir:
            self._needs(dead, "durable")
            if dead.capabilities.leased:
                pytest.skip(f"{type(dead).__name__} lends messages for a time, not for a connection")
            await dead.send([letter()])
            [lost] = await self._receive(dead, 1)
            await self.drop_connections()

            [delivery] = await self._insist(lambda: self._receive(heir, 1))
            assert delivery.message == lost.message
            assert delivery.count == 2
            with pytest.raises(LeaseLostError):
                await lost.ack()
            assert not lost.settled
            await delivery.ack()
            await self._assert_nothing_arrives(heir)

    async def test_a_server_that_is_away_is_told_in_time(self) -> None:
        """T28: neither `send` nor `receive` hangs, and the same channel goes on when the server is back."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "durable")
            await channel.send([letter(b"before")])
            async with self.server_away():
                for _ in range(3):
                    with anyio.fail_after(self.patience), pytest.raises(ChannelError):
                        await channel.send([letter(b"lost")])
                    with anyio.fail_after(self.patience), pytest.raises(ChannelError):
                        await channel.receive(1, self.patience)

            await self._insist(lambda: channel.send([letter(b"after")]))
            received: set[bytes] = set()
            while not received >= {b"before", b"after"}:
                for delivery in await self._insist(lambda: self._receive(channel, 1)):
                    await delivery.ack()
                    received.add(delivery.message.payload)

    async def test_connections_may_break_at_any_time(self) -> None:
        """T15: publishers and consumers that try again get everything to its end, a quarter between two breaks."""
        name = unique()
        batches = [letters(10) for _ in range(max(10, self.volume // 200))]
        expected = {message.id for batch in batches for message in batch}
        received: set[str] = set()
        quarters = [anyio.Event() for _ in range(4)]
        if not self._has("drop_connections"):
            await self.drop_connections()

        async def publish(channel: Channel, mine: Sequence[Sequence[Message[bytes]]]) -> None:
            for batch in mine:
                await self._insist(partial(channel.send, batch))

        async def consume(channel: Channel) -> None:
            while True:
                for delivery in await self._insist(partial(channel.receive, 5, self.patience)):
                    with suppress(LeaseLostError):  # an ack whose answer was lost may have taken effect
                        await self._insist(delivery.ack)
                    received.add(delivery.message.id)
                for quarter in quarters[: 4 * len(received) // len(expected)]:
                    quarter.set()

        async with self.channel(name) as first, self.channel(name) as second:
            self._needs(first, "durable")
            with anyio.fail_after(4 * self.patience):
                async with anyio.create_task_group() as tasks:
                    for place in range(5):
                        tasks.start_soon(publish, first, batches[place::5])
                        tasks.start_soon(consume, (first, second)[place % 2])
                    for quarter in quarters[:3]:
                        await quarter.wait()
                        await self.drop_connections()
                    while not quarters[3].is_set():
                        with anyio.move_on_after(1.0):
                            await quarters[3].wait()
                            break
                        if first.capabilities.leased:  # by a consumer that never learned of it
                            await self.advance(self.lease + 1)
                    tasks.cancel_scope.cancel()

    async def test_a_batch_that_is_refused_in_part_says_which(self) -> None:
        """T31: the error names the messages that did not enter the channel, and the others did."""
        async with self.channel(unique()) as channel:
            good, bad = letters(4), self.refused_message()

            with pytest.raises(SendError) as caught:
                await channel.send([*good[:2], bad, *good[2:]])

            assert list(caught.value.failed) == [bad.id]
            assert set(ids(await self._take(channel, 4))) == set(ids(good))

    async def test_what_reaches_nobody_is_told_to_its_sender(self) -> None:
        """T27: the error names every message that no queue took, and comes soon."""
        async with self.unroutable_channel(unique()) as channel:
            sent = letters(3)
            with anyio.fail_after(self.patience), pytest.raises(SendError) as caught:
                await channel.send(sent)

            assert sorted(caught.value.failed) == sorted(ids(sent))

    async def test_a_queue_that_was_deleted_is_consumed_again(self) -> None:
        """T36: a consumer whose queue is gone is told so, or goes on by itself; it never waits in vain."""
        name = unique()
        received: list[Delivery] = []
        if not self._has("delete_queue"):
            await self.delete_queue(name)

        async with self.channel(name) as consumer, self.channel(name) as publisher:
            await publisher.send([letter(b"before")])
            await self._take(consumer, 1)

            async def wait() -> None:
                received.extend(await self._insist(lambda: self._receive(consumer, 1)))

            with anyio.fail_after(2 * self.patience):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    await self.delete_queue(name)
                    await self._insist(lambda: publisher.send([letter(b"after")]))
            assert [delivery.message.payload for delivery in received] == [b"after"]
            await received[0].ack()
            await self._assert_nothing_arrives(consumer)

    async def test_the_health_tells_that_a_queue_is_gone(self) -> None:
        """T36: `check` fails until the queue is there again."""
        name = unique()
        async with self.channel(name) as channel:
            if not isinstance(channel, HealthCheck):
                pytest.skip(f"{type(channel).__name__} has no health of its own")
            await channel.check()
            await self.delete_queue(name)
            with pytest.raises(ChannelError):
                await channel.check()

            await channel.open()
            await channel.check()
            await channel.send([letter()])
            await self._take(channel, 1)

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


class Introspection(ChannelHooks):
    """A channel can be looked into."""

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
