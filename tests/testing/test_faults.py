import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Scope, compose
from ecotone_fastapi.testing.faults import FailingChannel, TcpProxy, duplicate, random_fail, tcp_proxy
from tests.servers import until


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


# ------------------------------------------------------------------------------------------------------------ network


@asynccontextmanager
async def shouting(heard: bytearray) -> AsyncIterator[int]:
    """A server that answers what it hears in capitals."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1000):
                heard.extend(data)
                writer.write(data.upper())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def connected(network: TcpProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", network.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_network_passes_on_what_both_sides_say_until_it_is_cut() -> None:
    async with shouting(bytearray()) as port, tcp_proxy(port) as network, connected(network) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        assert network.connections == 1

        network.cut()

        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


async def test_a_frozen_network_keeps_connections_and_lets_nothing_through() -> None:
    async with shouting(bytearray()) as port, tcp_proxy(port) as network, connected(network) as (reader, writer):
        network.freeze()
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(5), 0.1)

        network.restore()

        assert await reader.readexactly(5) == b"HELLO"


async def test_a_network_can_lose_answers_alone() -> None:
    heard = bytearray()
    async with shouting(heard) as port, tcp_proxy(port) as network, connected(network) as (reader, writer):
        network.drop_answers()
        writer.write(b"commit")
        await until(lambda: heard == b"commit")

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(5), 0.1)


async def test_a_network_can_be_cut_in_the_middle_of_a_message() -> None:
    heard = bytearray()
    async with shouting(heard) as port, tcp_proxy(port) as network, connected(network) as (reader, writer):
        network.cut_after(3)
        writer.write(b"hello")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(5)

        assert b"hello".startswith(heard)
        assert len(heard) <= 3


async def test_a_server_behind_a_network_that_refuses_is_down_until_it_is_restored() -> None:
    async with shouting(bytearray()) as port, tcp_proxy(port) as network:
        network.refuse()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            async with connected(network) as (reader, _):
                await reader.readexactly(1)

        network.restore()

        async with connected(network) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
