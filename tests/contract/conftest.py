"""The same queue twice: on the embedded Valkey, and on Redis 7."""

from collections.abc import AsyncIterator, Callable

import pytest
from embedded_queue import Queue, Registry, own_settings

from sagittal.registry.protocol import ModelRegistry, WorkerRegistry


@pytest.fixture(params=["valkey", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    """Where the server listens."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def make_queue(server_url: str) -> AsyncIterator[Callable[..., Queue]]:
    """Makes queues with the settings given; each has a prefix of its own."""
    made: list[Queue] = []

    def make(**settings: object) -> Queue:
        made.append(Queue(own_settings(url=server_url, **settings)))
        return made[-1]

    yield make
    for queue in made:
        await queue.close()


@pytest.fixture
def queue(make_queue: Callable[..., Queue]) -> Queue:
    """A queue with the default settings."""
    return make_queue()


@pytest.fixture
async def registry(server_url: str) -> AsyncIterator[tuple[ModelRegistry, WorkerRegistry]]:
    """Both sides of a registry."""
    registry = Registry(own_settings(url=server_url))
    yield registry.models, registry.workers
    await registry.close()
