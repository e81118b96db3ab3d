from collections.abc import AsyncIterator

import pytest

from sagittal.runtime.settings import QueueSettings

from .support import RedisQueue, RedisRegistry, Stack, running


@pytest.fixture(params=["memory", "valkey"])
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Stack]:
    """A service on a free port with the model `lamp`, ready on a worker, over the in-memory queue and over Valkey."""
    if request.param == "memory":
        async with running() as stack:
            yield stack
        return
    settings: QueueSettings = request.getfixturevalue("queue_settings")
    async with running(queue=RedisQueue(settings), registry=RedisRegistry(settings)) as stack:
        yield stack
