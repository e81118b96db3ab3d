"""At most one worker's writes count, and no job is lost with its worker."""

import asyncio
import threading
import time

import pytest
from embedded_queue import stored_events

from sagittal.core.errors import Overloaded
from sagittal.core.jobs import JobFilter, JobState, Lane
from sagittal.queue.protocol import LeaseLost
from sagittal.v1 import explanation_pb2

SHORT = {"lease_seconds": 0.5, "heartbeat_seconds": 0.05, "sweep_seconds": 0.02}


async def test_a_job_whose_worker_went_silent_goes_to_another_with_its_checkpoint(make_queue, new_job) -> None:
    queue = make_queue(**SHORT)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    first = queue.lease("first")
    queue.worker("first").append(first, [b"one"])
    queue.worker("first").checkpoint(first, b"\x00state")
    second = queue.lease("second", block_seconds=20)
    assert second.job.job_id == job.job_id
    assert second.token > first.token
    assert (second.job.attempt, second.job.worker, second.checkpoint) == (2, "second", b"\x00state")


async def test_a_stale_worker_can_write_nothing_at_all(make_queue, new_job) -> None:
    queue = make_queue(**SHORT)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    stale, worker = queue.lease("stale"), queue.worker("stale")
    queue.lease("fresh", block_seconds=20)
    for write in (
        lambda: worker.append(stale, [b"late"]),
        lambda: worker.checkpoint(stale, b"late"),
        lambda: worker.settle(stale, b"late", JobState.COMPLETED),
        lambda: worker.release(stale),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert worker.heartbeat([stale]) == ([stale], [])
    assert [event.payload for event in await stored_events(queue.jobs, job.job_id)] == [b"accepted"]


async def test_heartbeats_keep_a_lease_longer_than_it_lasts(make_queue, new_job) -> None:
    queue = make_queue(lease_seconds=1.0, heartbeat_seconds=0.05, sweep_seconds=0.02)
    await queue.jobs.submit(new_job(), b"accepted")
    lease, worker, other = queue.lease(), queue.worker(), queue.worker("other")
    began = last = time.monotonic()
    while time.monotonic() < began + 1.4:
        taken, beat = other.lease([("model", "1")], block_seconds=0), worker.heartbeat([lease])
        now = time.monotonic()
        if now - last > 0.9:
            pytest.skip("this machine stood still for longer than the lease")
        last = now
        assert taken is None
        assert beat == ([], [])
        await asyncio.sleep(0.02)
    worker.settle(lease, b"done", JobState.COMPLETED)


async def test_a_job_that_takes_its_workers_down_is_buried_and_listed(make_queue, new_job) -> None:
    queue = make_queue(**SHORT, max_attempts=2)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    queue.lease("one")
    queue.lease("two", block_seconds=20)
    while not (await queue.jobs.get(job.job_id)).state.ended:
        assert queue.worker("three").lease([("model", "1")], block_seconds=0.05) is None
    events = [event async for event in queue.jobs.events(job.job_id)]
    failed = explanation_pb2.ExplanationEvent.FromString(events[-1].payload).failed
    assert events[-1].terminal
    assert "in 2 attempts" in failed.message
    assert "'two'" in failed.message
    buried = (await queue.jobs.list(JobFilter(states=[JobState.FAILED]), limit=5, page_token=""))[0]
    assert [(each.job_id, each.attempt, each.worker) for each in buried] == [(job.job_id, 2, "two")]


async def test_a_cancelled_job_whose_worker_died_is_cancelled(make_queue, new_job) -> None:
    queue = make_queue(**SHORT)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    queue.lease()
    await queue.jobs.cancel(job.job_id, "requested")
    events = [event async for event in queue.jobs.events(job.job_id)]
    assert explanation_pb2.ExplanationEvent.FromString(events[-1].payload).cancelled.reason == "requested"


async def test_a_released_job_is_leased_again_at_once_and_the_attempt_does_not_count(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    queue.worker().release(lease)
    assert (await queue.jobs.get(job.job_id)).state is JobState.QUEUED
    again = queue.lease()
    assert again.job.attempt == 1
    assert again.token > lease.token


async def test_a_job_released_after_its_cancellation_ends(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    await queue.jobs.cancel(job.job_id, "requested")
    queue.worker().release(lease)
    assert (await queue.jobs.get(job.job_id)).state is JobState.CANCELLED
    assert (await stored_events(queue.jobs, job.job_id))[-1].terminal


async def test_nothing_is_written_after_the_terminal_event(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease, worker = queue.lease(), queue.worker()
    worker.settle(lease, b"done", JobState.COMPLETED)
    worker.settle(lease, b"done", JobState.COMPLETED)  # sent again after a lost answer
    with pytest.raises(LeaseLost):
        worker.append(lease, [b"late"])
    with pytest.raises(LeaseLost):
        worker.settle(lease, b"other", JobState.FAILED)
    assert len(await stored_events(queue.jobs, job.job_id)) == 2


async def test_a_job_is_settled_only_as_ended(queue, new_job) -> None:
    await queue.jobs.submit(new_job(), b"accepted")
    with pytest.raises(ValueError, match="running"):
        queue.worker().settle(queue.lease(), b"", JobState.RUNNING)


async def test_equal_events_are_different_events(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease, worker = queue.lease(), queue.worker()
    worker.append(lease, [b"same", b"same"])
    worker.append(lease, [b"same"])
    assert len(await stored_events(queue.jobs, job.job_id)) == 4


async def test_threads_append_to_their_jobs_while_others_lease(queue, new_job) -> None:
    ids = [(await queue.jobs.submit(new_job(), b"accepted"))[0].job_id for _ in range(8)]
    worker = queue.worker()

    def run() -> None:
        while lease := worker.lease([("model", "1")], block_seconds=0.0):
            for number in range(10):
                worker.append(lease, [b"%d" % number])
            worker.heartbeat([lease])
            worker.settle(lease, b"done", JobState.COMPLETED)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    for job_id in ids:
        events = await stored_events(queue.jobs, job_id)
        assert [event.payload for event in events[1:-1]] == [b"%d" % n for n in range(10)]
        assert events[-1].terminal


async def test_no_two_workers_hold_one_job(queue, new_job) -> None:
    for _ in range(30):
        await queue.jobs.submit(new_job(), b"accepted")
    found: list[str] = []

    def take(name: str) -> None:
        worker = queue.worker(name)
        while lease := worker.lease([("model", "1")], block_seconds=0.0):
            found.append(lease.job.job_id)

    await asyncio.gather(*(asyncio.to_thread(take, name) for name in ("a", "b", "c")))
    assert len(found) == len(set(found)) == 30


async def test_a_waiting_worker_gets_what_comes(queue, new_job) -> None:
    waiting = asyncio.create_task(asyncio.to_thread(queue.lease, "waiting", block_seconds=20))
    await asyncio.sleep(0.05)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    assert (await waiting).job.job_id == job.job_id


async def test_a_worker_gets_only_models_that_it_asked_for(queue, new_job) -> None:
    await queue.jobs.submit(new_job(model="model", version="2"), b"accepted")
    await queue.jobs.submit(new_job(model="other", version="1"), b"accepted")
    assert queue.worker().lease([("model", "1")], block_seconds=0) is None
    assert queue.worker().lease([], block_seconds=0) is None
    pairs = [("model", "1"), ("model", "2"), ("other", "1")]
    found = {(lease.job.model, lease.job.version) for lease in (queue.lease(models=pairs), queue.lease(models=pairs))}
    assert found == {("model", "2"), ("other", "1")}


async def test_interactive_jobs_go_first_and_batch_jobs_are_not_starved(make_queue, new_job) -> None:
    queue = make_queue(batch_every=3)
    for lane in [Lane.BATCH] * 4 + [Lane.INTERACTIVE] * 12:
        await queue.jobs.submit(new_job(lane=lane), b"accepted")
    lanes = [queue.lease().job.lane for _ in range(9)]
    assert lanes.count(Lane.BATCH) == 3
    assert lanes[:2] == [Lane.INTERACTIVE] * 2 or lanes.index(Lane.BATCH) <= 2


async def test_tenants_share_a_lane_by_weight_whoever_came_first(make_queue, new_job) -> None:
    queue = make_queue(tenant_weights={"heavy": 3.0})
    for tenant in ["greedy"] * 12 + ["light"] * 4 + ["heavy"] * 12:
        await queue.jobs.submit(new_job(tenant=tenant, estimated_evaluations=100), b"accepted")
    first = [queue.lease().job.tenant for _ in range(10)]
    assert first.count("heavy") == 6
    assert abs(first.count("greedy") - first.count("light")) <= 1


async def test_a_tenants_jobs_keep_their_order(queue, new_job) -> None:
    ids = [(await queue.jobs.submit(new_job(), b"a"))[0].job_id for _ in range(10)]
    assert [queue.lease().job.job_id for _ in range(10)] == ids


async def test_a_job_cannot_write_without_bound(make_queue, new_job) -> None:
    queue = make_queue(max_log_bytes=1024 * 1024)
    await queue.jobs.submit(new_job(), b"accepted")
    lease, worker = queue.lease(), queue.worker()
    worker.append(lease, [bytes(700_000)])
    with pytest.raises(Overloaded, match="max_log_bytes"):
        worker.append(lease, [bytes(700_000)])
    worker.settle(lease, b"failed", JobState.FAILED)


async def test_the_worker_of_a_cancelled_run_gets_word_of_it_and_no_other_does(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease, other = queue.lease(), queue.worker("other")
    for each in (queue.worker(), other):
        assert await asyncio.to_thread(each.listen, block_seconds=60)  # a new subscription counts as word
    listening = asyncio.create_task(asyncio.to_thread(queue.worker().listen, block_seconds=30))
    await queue.jobs.cancel(job.job_id, "requested")
    assert await listening
    assert not await asyncio.to_thread(other.listen, block_seconds=0.05)
    _, [cancellation] = queue.worker().heartbeat([lease])
    assert cancellation.reason == "requested"
