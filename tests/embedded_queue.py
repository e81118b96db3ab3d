"""The queue and the registry of a test: on the Valkey of the test run, under a prefix of the test's own."""

import asyncio
import atexit
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

import redis

from sagittal.core.jobs import Lease, StoredEvent
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.protocol import JobQueue, WorkerQueue
from sagittal.queue.scripts import root_key
from sagittal.queue.settings import QueueSettings
from sagittal.registry.protocol import ModelRegistry
from sagittal.registry.redis import RedisModelRegistry, RedisWorkerRegistry

MODEL = [("model", "1")]

Answer = TypeVar("Answer")

_servers = ExitStack()
atexit.register(_servers.close)


@cache
def valkey_url() -> str:
    """Returns where this process's Valkey listens; the first call starts it."""
    return _servers.enter_context(EmbeddedValkey()).url


def own_settings(**changes: Any) -> QueueSettings:
    """Returns settings of a queue and a registry that nobody else uses."""
    return QueueSettings(**{"url": valkey_url(), "prefix": f"test-{secrets.token_hex(6)}"} | changes)


async def stored_events(jobs: JobQueue, job_id: str) -> list[StoredEvent]:
    """Returns the events of a job so far."""
    events: list[StoredEvent] = []
    after: int | None = 0
    while after is not None:
        page = await jobs.page(job_id, after, limit=1000, max_bytes=2**24)
        events += page.events
        after = page.next_sequence
    return events


class Queue:
    """Both sides of a queue: `jobs` for the service, `worker(name)` for each worker."""

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self.settings = settings or own_settings()
        self.jobs: JobQueue = RedisJobQueue(self.settings)
        self._workers: dict[str, WorkerQueue] = {}

    def worker(self, name: str = "worker") -> WorkerQueue:
        """Returns the side of a worker of that name, which is one object, since it numbers what it writes."""
        if name not in self._workers:
            self._workers[name] = RedisWorkerQueue(self.settings, worker=name)
        return self._workers[name]

    def lease(
        self, name: str = "worker", *, models: Sequence[tuple[str, str]] = MODEL, block_seconds: float = 0.0
    ) -> Lease:
        """Takes the next run, which must be there."""
        lease = self.worker(name).lease(models, block_seconds=block_seconds)
        assert lease is not None
        return lease

    async def close(self) -> None:
        """Closes all connections."""
        for worker in self._workers.values():
            worker.close()
        await self.jobs.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Registry:
    """Both sides of a registry: `models` for the service, `workers` for workers."""

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self.settings = settings or own_settings()
        self.models = RedisModelRegistry(self.settings)
        self.workers = RedisWorkerRegistry(self.settings)

    def call(self, action: Callable[[ModelRegistry], Awaitable[Answer]]) -> Answer:
        """Does something on the service's side, for tests that have no event loop."""

        async def connected() -> Answer:
            models = RedisModelRegistry(self.settings)
            try:
                return await action(models)
            finally:
                await models.close()

        return asyncio.run(connected())

    def lose_everything(self) -> None:
        """Deletes what is stored, as where Redis came back without its data."""
        with redis.Redis.from_url(self.settings.url) as client:
            client.delete(*client.scan_iter(match=f"{root_key(self.settings)}*"))

    async def close(self) -> None:
        """Closes all connections."""
        await self.models.close()
        self.workers.close()


async def depth(jobs: JobQueue) -> Mapping[tuple[str, str], int]:
    """Returns the queued and running executions by (model, lane)."""
    return {where: backlog.queued + backlog.running for where, backlog in (await jobs.backlog()).items()}
