"""One rule for what is overdue, whoever finds it: an accepted cancellation ends it as cancelled, else it fails."""

import secrets
import time
from collections.abc import Callable

import pytest
import redis

from sagittal.core.jobs import JobState, Lease, NewJob

MODEL = [("model", "1")]
LEASE_SECONDS = 15.0


class Overdue:
    """A job on a queue whose clock can be put forward past the job's deadline."""

    def __init__(self, make_queue, job: NewJob) -> None:
        self.queue = make_queue(sweep_seconds=600, lease_seconds=LEASE_SECONDS)
        self.job = job
        self.lease: Lease | None = None

    async def submit(self) -> None:
        await self.queue.jobs.submit(self.job, b"accepted")

    def jump(self) -> None:
        """Lets an hour pass for the job, as a clock does that is put right."""
        root, job_id = f"{{{self.queue.settings.prefix}}}:", self.job.job_id
        with redis.Redis.from_url(self.queue.settings.url) as client:
            past = repr(self.job.deadline - 3600)
            for kind in ("job", "run"):
                client.hset(f"{root}{kind}:{job_id}", "deadline", past)
            client.zadd(f"{root}deadlines", {job_id: past})
            client.delete(f"{root}sweeper")  # whoever swept an hour ago is no longer elected
            if self.lease is not None:
                client.zadd(f"{root}leases", {job_id: past})


def found_by_a_lease(overdue: Overdue) -> None:
    assert overdue.queue.worker("other").lease(MODEL, block_seconds=0) is None


async def found_by_a_sweep(overdue: Overdue) -> None:
    await overdue.queue.jobs.sweep()


@pytest.fixture
def overdue(make_queue, new_job: Callable[..., NewJob]) -> Overdue:
    return Overdue(make_queue, new_job(deadline=time.time() + 1000, content_key=secrets.token_hex(4)))


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("finder", ["lease", "sweep"])
async def test_an_overdue_job_ends_alike_whoever_finds_it(overdue, cancelled, began, finder) -> None:
    await overdue.submit()
    if began or cancelled:
        overdue.lease = overdue.queue.lease("gone")
    if cancelled:
        await overdue.queue.jobs.cancel(overdue.job.job_id, "requested")
    if cancelled and not began:  # it waits again, and its cancellation is still to be written
        root = f"{{{overdue.queue.settings.prefix}}}:"
        with redis.Redis.from_url(overdue.queue.settings.url) as client:
            client.hset(f"{root}run:{overdue.job.job_id}", "state", "queued")
            client.zrem(f"{root}leases", overdue.job.job_id)
            client.zadd(f"{root}ready:interactive:model@1", {overdue.job.job_id: 1})
        overdue.lease = None
    overdue.jump()
    if finder == "lease":
        found_by_a_lease(overdue)
    else:
        await found_by_a_sweep(overdue)
    job = await overdue.queue.jobs.get(overdue.job.job_id)
    expected = (JobState.CANCELLED, "") if cancelled else (JobState.FAILED, "DEADLINE_PASSED")
    assert (job.state, job.reason) == expected


async def test_a_worker_hears_that_a_run_is_overdue_and_not_that_it_was_cancelled(overdue) -> None:
    await overdue.submit()
    overdue.lease = overdue.queue.lease()
    overdue.jump()
    _, [ending] = overdue.queue.worker().heartbeat([overdue.lease])
    assert (ending.expired, ending.reason) == (True, "")


async def test_a_worker_hears_of_the_cancellation_of_an_overdue_run(overdue) -> None:
    await overdue.submit()
    overdue.lease = overdue.queue.lease()
    await overdue.queue.jobs.cancel(overdue.job.job_id, "requested")
    overdue.jump()
    _, [ending] = overdue.queue.worker().heartbeat([overdue.lease])
    assert (ending.expired, ending.reason) == (False, "requested")
