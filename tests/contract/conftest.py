"""The same queue three times: in memory, on the embedded Valkey, and on Redis 7."""

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from sagittal.core.jobs import Lease
from sagittal.runtime.memory_queue import MemoryQueue
from sagittal.runtime.memory_registry import MemoryRegistry
from sagittal.runtime.queue import JobQueue, WorkerQueue
from sagittal.runtime.redis_queue import (
    connect_job_queue,
    connect_model_registry,
    connect_worker_queue,
    connect_worker_registry,
)
from sagittal.runtime.registry import ModelRegistry, WorkerRegistry
from sagittal.runtime.settings import QueueSettings

MODEL = [("model", "1")]


@dataclass
class Queue:
    """Both sides of a queue."""

    settings: QueueSettings
    jobs: JobQueue
    make_worker: Callable[[str], WorkerQueue]
    workers: dict[str, WorkerQueue] = field(default_factory=dict)

    def worker(self, name: str = "worker") -> WorkerQueue:
        if name not in self.workers:
            self.workers[name] = self.make_worker(name)
        return self.workers[name]

    def lease(self, name: str = "worker", *, models=MODEL, block_seconds: float = 0.0) -> Lease:
        lease = self.worker(name).lease(models, block_seconds=block_seconds)
        assert lease is not None
        return lease

    async def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        await self.jobs.close()


@pytest.fixture(params=["memory", "valkey", "redis"])
async def make_queue(request) -> AsyncIterator[Callable[..., Queue]]:
    """Makes queues with the settings given; each has a store of its own."""
    made: list[Queue] = []

    def make(**settings: object) -> Queue:
        prefix = f"test-{secrets.token_hex(6)}"
        if request.param == "memory":
            found = QueueSettings(**settings)
            memory = MemoryQueue(found)
            queue = Queue(found, memory.jobs, memory.worker)
        else:
            url = request.getfixturevalue(f"{request.param}_url")
            found = QueueSettings(url=url, prefix=prefix, **settings)
            queue = Queue(found, connect_job_queue(found), lambda name: connect_worker_queue(found, worker=name))
        made.append(queue)
        return queue

    yield make
    for queue in made:
        await queue.close()


@pytest.fixture
def queue(make_queue) -> Queue:
    """A queue with the default settings."""
    return make_queue()


@pytest.fixture(params=["memory", "valkey", "redis"])
async def registry(request) -> AsyncIterator[tuple[ModelRegistry, WorkerRegistry]]:
    """Both sides of a registry."""
    if request.param == "memory":
        memory = MemoryRegistry()
        yield memory.models, memory.workers
        return
    settings = QueueSettings(url=request.getfixturevalue(f"{request.param}_url"), prefix=f"test-{secrets.token_hex(6)}")
    models, workers = connect_model_registry(settings), connect_worker_registry(settings)
    yield models, workers
    await models.close()
    workers.close()
