from typing import Any

import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Scope, compose
from ecotone_fastapi.testing.faults import FailingChannel, duplicate, random_fail


async def test_a_failing_channel_fails_as_often_as_it_was_told() -> None:
    channel: Channel = FailingChannel(MemoryChannel("orders"), opens=1, sends=2, receives=1)
    message = Message(b"hello", {"id": "one"})

    with pytest.raises(ChannelError, match="'orders' fails to open"):
        await channel.open()
    await channel.open()
    for _ in range(2):
        with pytest.raises(ChannelError, match="send"):
            await channel.send([message])
    await channel.send([message])
    with pytest.raises(ChannelError, match="receive"):
        await channel.receive(1, 0)

    [delivery] = await channel.receive(10, 0)
    assert delivery.message == message
    await channel.close()
    assert channel.capabilities.delay


class Recorder:
    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, call: Call) -> Any:
        self.calls += 1
        return self.calls


CALL = Call(Message(b"", {}), None, "orders", Scope())


async def test_a_duplicated_call_happens_twice() -> None:
    target = Recorder()

    assert await compose([duplicate], target)(CALL) == 2


async def test_random_failures_come_before_and_after_the_call_and_repeat_with_their_seed() -> None:
    async def run() -> tuple[int, list[int]]:
        target = Recorder()
        failing = compose([random_fail(0.5, seed=1, error=OSError)], target)
        failed = []
        for number in range(100):
            try:
                await failing(CALL)
            except OSError:
                failed.append(number)
        return target.calls, failed

    calls, failed = await run()

    assert 30 < len(failed) < 70
    assert 100 - len(failed) < calls < 100
    assert await run() == (calls, failed)


async def test_a_random_failure_that_never_comes() -> None:
    target = Recorder()

    await compose([random_fail(0.0)], target)(CALL)

    assert target.calls == 1
