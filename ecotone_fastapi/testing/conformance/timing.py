"""Cases for channels that keep an order or a time."""

import time

from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.testing.conformance.hooks import ChannelHooks, ids, letter, letters, settle, unique

HOUR = 3600.0


class Timing(ChannelHooks):
    """Messages come in their order, not too early and not too late."""

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

            first = await self._take(channel, 1)
            soon = time.monotonic() - began < 0.49
            second = await self._take(channel, 1)
            due = delayed.without_headers([HeaderName.delay])
            # On a machine that was busy for longer than the delay, both are ready.
            assert (*first, *second) in ([(ready, due)] if soon else [(ready, due), (due, ready)])
            assert 0.49 <= time.monotonic() - began < 0.5 + self.patience / 2

    async def test_a_short_delay_is_not_held_up_by_a_long_one(self) -> None:
        """T17: messages come in the order in which they become due."""
        async with self.channel(unique()) as channel:
            self._needs(channel, "delay")
            await channel.send([letter(b"second", delay="1.5"), letter(b"never", delay="86400")])
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
