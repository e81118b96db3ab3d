"""A job whose worker died runs alone from then on, so that it takes nothing else down and nothing else blames it."""

import asyncio
import time

import pytest
import redis
from embedded_queue import Queue, depth

from sagittal.core.jobs import JobState, Lane, Lease
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.scripts import root_key
from sagittal.v1 import explanation_pb2

#: Leases that end while a test runs, and leases that do not, however busy the machine is.
SHORT = {"lease_seconds": 0.5, "heartbeat_seconds": 0.05, "sweep_seconds": 0.02}
LONG = SHORT | {"lease_seconds": 600.0}
MODEL = [("model", "1")]


def take(queue, name: str, *, busy: bool = False, seconds: float = 20.0) -> Lease | None:
    """What a worker gets within a time."""
    return queue.worker(name).lease(MODEL, block_seconds=seconds, busy=busy)


def take_and_die(queue: Queue, jobs: int = 1) -> None:
    """Leases jobs for a worker that sends no heartbeat. Their leases end soon, but not before all are taken."""
    brief = queue.settings.model_copy(update=SHORT | {"sweep_seconds": 600.0})
    worker = RedisWorkerQueue(brief, worker="first")
    for _ in range(jobs):
        lease = worker.lease(MODEL, block_seconds=20)
        assert lease is not None
        assert not lease.alone
    worker.close()


def wait_long(queue: Queue) -> None:
    """Makes all suspects wait for longer than a lease."""
    key = f"{root_key(queue.settings)}alone:interactive:model@1"
    with redis.Redis.from_url(queue.settings.url) as client:
        waiting = client.zrange(key, 0, -1, withscores=True)
        assert waiting
        client.zadd(key, {suspect: since - 2 * LONG["lease_seconds"] for suspect, since in waiting})


async def submitted(queue, new_job, **about) -> str:
    return (await queue.jobs.submit(new_job(**about), b"accepted"))[0].job_id


async def lapsed(queue, job_id: str) -> None:
    """Returns when a lease has run out, and its run waits again."""
    until = time.monotonic() + 20
    while (await queue.jobs.get(job_id)).state is JobState.RUNNING:
        assert time.monotonic() < until
        await queue.jobs.sweep()
        await asyncio.sleep(0.02)


async def test_a_job_whose_worker_died_is_leased_alone_by_an_idle_worker(make_queue, new_job) -> None:
    queue = make_queue(**LONG)
    suspect = await submitted(queue, new_job)
    take_and_die(queue)
    await lapsed(queue, suspect)
    assert take(queue, "busy", busy=True, seconds=0.2) is None
    second = take(queue, "idle")
    assert second is not None
    assert (second.job.job_id, second.job.attempt, second.alone) == (suspect, 2, True)


async def test_others_go_on_while_a_suspect_waits_for_an_idle_worker(make_queue, new_job) -> None:
    queue = make_queue(**LONG)
    suspect = await submitted(queue, new_job)
    take_and_die(queue)
    await lapsed(queue, suspect)
    innocent = await submitted(queue, new_job)
    found = take(queue, "busy", busy=True)
    assert found is not None
    assert (found.job.job_id, found.alone) == (innocent, False)


async def test_one_busy_worker_at_a_time_makes_room_for_a_suspect_that_waits_long(make_queue, new_job) -> None:
    queue = make_queue(**LONG)
    suspect = await submitted(queue, new_job)
    take_and_die(queue)
    await lapsed(queue, suspect)
    wait_long(queue)
    innocent = await submitted(queue, new_job)
    assert take(queue, "one", busy=True, seconds=0.1) is None
    assert take(queue, "one", busy=True, seconds=0.1) is None
    other = take(queue, "two", busy=True)
    assert other is not None
    assert other.job.job_id == innocent
    queue.worker("two").settle(other, b"done", JobState.COMPLETED)
    found = take(queue, "one")
    assert found is not None
    assert found.job.job_id == suspect


async def test_a_suspect_that_waits_long_shares_idle_workers_with_the_others(make_queue, new_job) -> None:
    queue = make_queue(**LONG)
    suspects = [await submitted(queue, new_job) for _ in range(4)]
    take_and_die(queue, 4)
    for suspect in suspects:
        await lapsed(queue, suspect)
    wait_long(queue)
    for _ in range(4):
        await submitted(queue, new_job)
    kinds = []
    for _ in range(8):
        lease = take(queue, "idle")
        assert lease is not None
        kinds.append(lease.alone)
        queue.worker("idle").settle(lease, b"done", JobState.COMPLETED)
    assert sorted(kinds) == [False] * 4 + [True] * 4
    assert {True, False} <= set(kinds[:4])


@pytest.mark.parametrize("lane", Lane)
async def test_a_death_among_others_is_not_enough_to_dead_letter_a_job(make_queue, new_job, lane) -> None:
    queue = make_queue(**SHORT, max_attempts=1)
    job_id = await submitted(queue, new_job, lane=lane)
    take(queue, "first")
    alone = take(queue, "second")
    assert alone is not None
    assert (alone.job.attempt, alone.alone) == (2, True)
    while not (await queue.jobs.get(job_id)).state.ended:
        assert take(queue, "third", seconds=0.05) is None
    events = [event async for event in queue.jobs.events(job_id)]
    assert "in 2 attempts" in explanation_pb2.ExplanationEvent.FromString(events[-1].payload).failed.message


async def test_a_suspect_that_is_handed_back_stays_one(make_queue, new_job) -> None:
    queue = make_queue(**LONG)
    suspect = await submitted(queue, new_job)
    take_and_die(queue)
    await lapsed(queue, suspect)
    for _ in range(2):
        lease = take(queue, "idle")
        assert lease is not None
        assert lease.alone
        queue.worker("idle").release(lease)
    assert take(queue, "busy", busy=True, seconds=0.2) is None


async def test_a_suspect_that_waits_ends_by_its_cancellation_and_by_its_deadline(make_queue, new_job) -> None:
    queue = make_queue(**LONG)
    ids = [await submitted(queue, new_job, deadline=deadline) for deadline in (None, time.time() + 2)]
    take_and_die(queue, 2)
    for each in ids:
        await lapsed(queue, each)
    await queue.jobs.cancel(ids[0], "requested")
    assert (await queue.jobs.get(ids[0])).state is JobState.CANCELLED
    async for _ in queue.jobs.events(ids[1]):
        pass
    assert (await queue.jobs.get(ids[1])).state is JobState.FAILED
    assert await depth(queue.jobs) == {}


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_run_ends_though_its_worker_hangs_and_beats_on(make_queue, new_job, how) -> None:
    queue = make_queue(**SHORT)
    lease = None
    for seconds in (0.5, 5.0, 50.0):  # on a busy machine, a deadline may pass before the lease
        job_id = await submitted(queue, new_job, deadline=None if how == "cancelled" else time.time() + seconds)
        if (lease := take(queue, "hangs", seconds=0.0)) is not None:
            break
    assert lease is not None
    if how == "cancelled":
        await queue.jobs.cancel(job_id, "requested")
    until, heard = time.monotonic() + 20, []
    while not (await queue.jobs.get(job_id)).state.ended:
        assert time.monotonic() < until, "its worker's heartbeats keep it running for ever"
        _, cancelled = queue.worker("hangs").heartbeat([lease])
        heard += cancelled
        await queue.jobs.sweep()
        await asyncio.sleep(0.05)
    assert heard, "its worker is told first"
    ended = JobState.CANCELLED if how == "cancelled" else JobState.FAILED
    assert (await queue.jobs.get(job_id)).state is ended
    assert queue.worker("hangs").heartbeat([lease]) == ([lease], [])
