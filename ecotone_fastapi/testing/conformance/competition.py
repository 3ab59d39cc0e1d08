"""Cases for channels that are used by many, some of which die."""

from collections import Counter
from collections.abc import Sequence

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.channel import Channel, SettlesTogether
from ecotone_fastapi.core.errors import LeaseLostError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.testing.conformance.hooks import ChannelHooks, ids, letter, letters, settle, unique

HOUR = 3600.0


class Crowd(ChannelHooks):
    """Many use one channel at one time."""

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
        """T10: what many publishers have sent is there after they have gone."""
        name = unique()
        batches = [letters(self.volume // 10 // self.crowd) for _ in range(self.crowd)]

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
        """T39: several consumers empty a full queue; each message is held by one at a time and handled once."""
        name = unique()
        held: set[str] = set()
        handled: set[str] = set()
        number = self.volume // 20 * 20

        async def consume(limit: int) -> None:
            async with self.channel(name) as channel:
                while len(handled) < number:
                    deliveries = await channel.receive(limit, self.moment)
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
            with anyio.move_on_after(4 * self.patience):
                async with anyio.create_task_group() as tasks:
                    for worker in range(min(8, self.crowd)):
                        tasks.start_soon(consume, (10, 25, 50, 100)[worker % 4])
            await self._assert_nothing_arrives(publisher)

        assert len(handled) == number


class Leases(ChannelHooks):
    """A message is not lost with the consumer that holds it."""

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
        name, lease = unique(), 1.5

        async with self.channel_with_lease(name, lease) as slow, self.channel_with_lease(name, lease) as other:
            self._needs(slow, "leased")
            await slow.send([letter()])
            [delivery] = await self._receive(slow, 1)

            assert not await other.receive(1, 2 * lease)
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
