"""Cases for channels that keep the order of each partition key over all of their consumers."""

from collections import defaultdict

import anyio
from anyio.lowlevel import checkpoint

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.testing.conformance.hooks import ChannelHooks, ids, letter, unique


def _keyed(payload: str, key: str, **headers: str) -> Message[bytes]:
    return letter(payload.encode(), **{HeaderName.partition_key: key}, **headers)


class Keys(ChannelHooks):
    """Messages with the same key are handled one after the other, whoever handles them."""

    async def test_a_key_is_in_one_hand_at_a_time(self) -> None:
        """T34: several consumers, every third message fails once, and no key is overtaken; others go on meanwhile."""
        name, keys = unique(), "abcd"
        sent = {key: [_keyed(str(place), key) for place in range(15)] for key in keys}
        handled: defaultdict[str, list[str]] = defaultdict(list)
        failed: set[str] = set()
        held: set[str] = set()
        most = 0

        async def consume(channel: Channel, done: anyio.CancelScope) -> None:
            nonlocal most
            while True:
                deliveries = await channel.receive(3, self.patience)
                mine = [delivery.message.headers[HeaderName.partition_key] for delivery in deliveries]
                assert len(set(mine)) == len(mine)
                assert not held & set(mine)
                held.update(mine)
                most = max(most, len(held))
                await checkpoint()
                for key, delivery in zip(mine, deliveries, strict=True):
                    message = delivery.message
                    held.discard(key)
                    if int(message.payload) % 3 == 0 and message.id not in failed:
                        failed.add(message.id)
                        await delivery.nack()
                    else:
                        handled[key].append(message.id)
                        await delivery.ack()
                if sum(map(len, handled.values())) == 15 * len(keys):
                    done.cancel()

        async with self.channel_that_keeps_order(name) as first, self.channel_that_keeps_order(name) as second:
            for place in range(15):
                await first.send([sent[key][place] for key in keys])
            with anyio.move_on_after(4 * self.patience) as done:
                async with anyio.create_task_group() as tasks:
                    for channel in (first, second, first, second):
                        tasks.start_soon(consume, channel, done)

        assert handled == {key: ids(messages) for key, messages in sent.items()}
        assert most > 1

    async def test_a_message_that_waits_for_its_retry_holds_up_its_key_only(self) -> None:
        """T34: its successors come after it, however long that takes; other keys do not wait."""
        name = unique()

        async with self.channel_that_keeps_order(name) as channel, self.channel_that_keeps_order(name) as other:
            await channel.send([_keyed("a1", "a"), _keyed("a2", "a")])
            [delivery] = await self._receive(channel, 1, limit=2)
            assert delivery.message.payload == b"a1"
            await self._assert_nothing_arrives(other)
            await delivery.nack(3.0)

            await self._assert_nothing_arrives(other)
            await other.send([_keyed("b1", "b"), letter(b"free")])
            assert {message.payload for message in await self._take(other, 2)} == {b"b1", b"free"}
            await self._let_pass(3.1)
            assert [message.payload for message in await self._take(other, 1)] == [b"a1"]
            assert [message.payload for message in await self._take(channel, 1)] == [b"a2"]
            assert channel.capabilities.keeps_order  # the outbox in front of it goes by that
