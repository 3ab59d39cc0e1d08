"""The shipped suite against both kinds of queues."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aio_pika
import pytest

from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from ecotone_fastapi.adapters.rabbitmq.notes import name_of
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.plugin import Plugin
from ecotone_fastapi.testing.conformance import ChannelConformance
from ecotone_fastapi.testing.faults import tcp_proxy
from tests.conftest import SERVERS


class RabbitMQChannels(ChannelConformance):
    """Channels of one process, behind a network that can be cut."""

    volume = 2_000

    @pytest.fixture(autouse=True)
    async def server(self, sqlite_url: str) -> AsyncIterator[None]:
        self.queues: set[str] = set()
        self.database_url = sqlite_url
        address = aio_pika.connection.URL(SERVERS["rabbitmq"].url)
        async with tcp_proxy(address.port or 5672, address.host or "127.0.0.1") as self.network:
            self.url = str(address.with_host("127.0.0.1").with_port(self.network.port))
            yield
        for queue in self.queues:
            await self.delete_queue(queue)

    def made(self, name: str) -> RabbitMQChannel:
        raise NotImplementedError

    def channel(self, name: str) -> AbstractAsyncContextManager[Channel]:
        return self.opened(name, self.made(name))

    @asynccontextmanager
    async def opened(self, name: str, channel: RabbitMQChannel) -> AsyncIterator[Channel]:
        self.queues |= {name, name_of(name)}
        await channel.open()
        try:
            yield channel
        finally:
            await channel.close()

    @asynccontextmanager
    async def unroutable_channel(self, name: str) -> AsyncIterator[Channel]:
        async with self.channel(name) as channel:
            await self.delete_queue(name)
            yield channel

    async def delete_queue(self, name: str) -> None:
        connection = await aio_pika.connect(SERVERS["rabbitmq"].url)
        async with connection, connection.channel() as server:
            await server.queue_delete(name)

    async def drop_connections(self) -> None:
        self.network.cut()

    @asynccontextmanager
    async def server_away(self) -> AsyncIterator[None]:
        self.network.refuse()
        try:
            yield
        finally:
            self.network.restore()

    def stores(self) -> Sequence[Plugin]:
        return (SqlAlchemy(self.database_url, create_schema=True),)


@pytest.mark.rabbitmq
class TestClassicQueues(RabbitMQChannels):
    def made(self, name: str) -> RabbitMQChannel:
        return RabbitMQChannel(name, self.url, queue_type="classic")


@pytest.mark.rabbitmq
class TestClassicQueuesWithPriorities(RabbitMQChannels):
    def made(self, name: str) -> RabbitMQChannel:
        return RabbitMQChannel(name, self.url, queue_type="classic", max_priority=9)


@pytest.mark.rabbitmq
class TestQuorumQueues(RabbitMQChannels):
    def made(self, name: str) -> RabbitMQChannel:
        return RabbitMQChannel(name, self.url)


@pytest.mark.rabbitmq
class TestQuorumQueuesInOrder(RabbitMQChannels):
    def made(self, name: str) -> RabbitMQChannel:
        return RabbitMQChannel(name, self.url, keeps_order=True)

    def channel_that_keeps_order(self, name: str) -> AbstractAsyncContextManager[Channel]:
        return self.channel(name)
