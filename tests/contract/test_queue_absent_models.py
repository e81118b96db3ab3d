"""Work for a model that no worker serves has bounds of its own, and never closes admission for others."""

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from sagittal.core.errors import Overloaded
from sagittal.core.jobs import Lane, NewJob
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import model_pb2

READY = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY)
FAILED = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_FAILED)
HUGE = 10**9
BOUNDS = {
    "max_queued": {"interactive": 40},
    "max_queued_per_tenant": {"interactive": 20},
    "max_queued_evaluations": {"interactive": 4000},
    "max_queued_evaluations_per_tenant": {"interactive": 2000},
}


@dataclass
class Site:
    """A queue, a worker and what the worker tells the registry."""

    settings: QueueSettings
    new_job: Callable[..., NewJob]

    def __post_init__(self) -> None:
        self.jobs = RedisJobQueue(self.settings)
        self.worker = RedisWorkerQueue(self.settings, worker="worker")
        self.registry = RedisWorkerRegistry(self.settings)

    async def submit(self, model: str = "served", tenant: str = "a", evaluations: int = 1, **changes: object) -> str:
        job = self.new_job(model=model, tenant=tenant, estimated_evaluations=evaluations, **changes)
        return (await self.jobs.submit(job, b"accepted"))[0].job_id

    async def fill(self, *arguments: object, **changes: object) -> int:
        """Submits until it is refused; returns the number admitted."""
        for number in range(1000):
            try:
                await self.submit(*arguments, **changes)
            except Overloaded:
                return number
        raise AssertionError("nothing was refused")

    def announce(self, *models: str, state: model_pb2.WorkerModel = READY, ttl: float = 600) -> None:
        self.registry.announce("worker", [(model, "1", state) for model in models], ttl=ttl)

    def declare(self, *models: str) -> None:
        for model in models:
            self.registry.declare(model_pb2.Model(name=model, version="1"))

    async def close(self) -> None:
        self.worker.close()
        self.registry.close()
        await self.jobs.close()


@pytest.fixture(params=["valkey", "redis"])
async def site(request, new_job) -> AsyncIterator[Site]:
    url = request.getfixturevalue(f"{request.param}_url")
    found = Site(QueueSettings(url=url, prefix=f"test-{secrets.token_hex(6)}", **BOUNDS), new_job)
    found.declare("served", "away", "away-too")
    found.announce("served")
    yield found
    await found.close()


async def test_one_huge_job_for_an_absent_model_closes_the_lane_for_nobody(site) -> None:
    await site.submit("away", "a", HUGE, lane=Lane.INTERACTIVE)
    await site.submit("served", "a", 2000)
    await site.submit("served", "b", 2000)
    await site.submit("away-too", "a", HUGE)
    await site.submit("away", "b", 100)  # and other tenants may wait for the same worker


async def test_a_flood_for_an_absent_model_leaves_the_lane_to_the_others(site) -> None:
    assert await site.fill("away", "a") == 5
    assert await site.fill("away", "b") == 5
    assert await site.fill("away", "c") == 0
    assert await site.fill("away-too", "a") == 5
    assert await site.fill("served", "a") == 20
    assert await site.fill("served", "b") == 20


async def test_the_error_names_the_absent_worker_and_the_bound(site) -> None:
    await site.fill("away", "a")
    with pytest.raises(Overloaded, match=r"no worker serves the model now.* 5 of your jobs.*absent_share") as caught:
        await site.submit("away", "a")
    assert caught.value.retry_after == site.settings.overload_retry_after


async def test_one_huge_job_for_a_served_model_counts_as_its_tenants_share(site) -> None:
    await site.submit("served", "a", HUGE)
    with pytest.raises(Overloaded, match="max_queued_evaluations_per_tenant"):
        await site.submit("served", "a")
    await site.submit("served", "b", 2000)
    leases = [site.worker.lease([("served", "1")], block_seconds=0) for _ in range(2)]
    assert all(leases)
    await site.submit("served", "a", 2000)  # what is leased has left the lane with all that it counted


async def test_work_that_waits_counts_again_when_its_worker_comes_back(site) -> None:
    assert await site.fill("away", "a", 250) == 2
    site.announce("served", "away")
    with pytest.raises(Overloaded, match="max_queued_evaluations_per_tenant"):
        await site.submit("served", "a", 2000)
    await site.submit("served", "a", 1500)
    for _ in range(3):
        assert site.worker.lease([("away", "1"), ("served", "1")], block_seconds=0)
    await site.submit("served", "a", 2000)


async def test_work_of_a_worker_that_goes_away_closes_nothing(site) -> None:
    site.announce("served", "gone", ttl=0.001)
    assert await site.fill("gone", "a") == 5
    site.announce("served")
    assert await site.fill("served", "a") == 20


async def test_a_worker_that_cannot_load_a_model_does_not_serve_it(site) -> None:
    site.announce("away", state=FAILED)
    assert await site.fill("away", "a") == 5


async def test_a_model_nobody_declared_has_the_lanes_bounds(site) -> None:
    """A queue without a registry knows nothing of workers."""
    assert await site.fill("unheard-of", "a") == 20
