from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import SERVERS
from tests.faults.broker import Broker, broker, programs
from tests.faults.world import World, world


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give faults more time than other tests: processes start, servers stop, and some waits are followed by others."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
async def faulty(tmp_path: Path, postgresql_url: str) -> AsyncIterator[World]:
    """A world of its own; mark the test `postgresql` and `rabbitmq`."""
    async with world(tmp_path, postgresql_url, SERVERS["rabbitmq"].url) as made:
        yield made


@pytest.fixture(scope="session")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ to which everything may be done; mark the test `postgresql` and `rabbitmq`."""
    if programs() is None:
        pytest.skip("the programs of RabbitMQ are not on this machine")
    with broker(tmp_path_factory.mktemp("rabbitmq")) as made:
        yield made


@pytest.fixture
async def apart(tmp_path: Path, postgresql_url: str, own_broker: Broker) -> AsyncIterator[World]:
    """A world with a RabbitMQ that disturbs nobody else."""
    async with world(tmp_path, postgresql_url, own_broker.url) as made:
        yield made
