"""Past an admission bound the caller hears so at once."""

import pytest

from sagittal.core.errors import Overloaded, UnknownJob
from sagittal.core.jobs import JobState, Lane

MIB = 1024 * 1024


async def test_a_full_lane_refuses_and_the_other_does_not(make_queue, new_job) -> None:
    queue = make_queue(max_queued={"interactive": 2, "batch": 2}, overload_retry_after=7.0)
    for _ in range(2):
        await queue.jobs.submit(new_job(), b"a")
    with pytest.raises(Overloaded, match="max_queued") as caught:
        await queue.jobs.submit(new_job(), b"a")
    assert caught.value.retry_after == 7.0
    await queue.jobs.submit(new_job(lane=Lane.BATCH), b"a")
    queue.lease()
    await queue.jobs.submit(new_job(), b"a")  # what runs does not wait


async def test_a_refused_job_leaves_nothing_behind(make_queue, new_job) -> None:
    queue = make_queue(max_queued={"interactive": 1})
    await queue.jobs.submit(new_job(), b"a")
    refused = new_job(request_id="mine")
    with pytest.raises(Overloaded):
        await queue.jobs.submit(refused, b"a")
    with pytest.raises(UnknownJob):
        await queue.jobs.get(refused.job_id)
    assert await queue.jobs.depth() == {("model", "interactive"): 1}


async def test_one_tenant_cannot_fill_the_lane(make_queue, new_job) -> None:
    queue = make_queue(max_queued_per_tenant={"interactive": 1, "batch": 1})
    await queue.jobs.submit(new_job(tenant="greedy"), b"a")
    with pytest.raises(Overloaded, match="max_queued_per_tenant"):
        await queue.jobs.submit(new_job(tenant="greedy"), b"a")
    await queue.jobs.submit(new_job(tenant="modest"), b"a")


async def test_estimated_work_is_bounded_but_one_large_job_is_admitted(make_queue, new_job) -> None:
    queue = make_queue(max_queued_evaluations=100)
    await queue.jobs.submit(new_job(estimated_evaluations=1000), b"a")
    with pytest.raises(Overloaded, match="max_queued_evaluations"):
        await queue.jobs.submit(new_job(estimated_evaluations=1), b"a")
    queue.lease()
    await queue.jobs.submit(new_job(estimated_evaluations=60), b"a")
    await queue.jobs.submit(new_job(estimated_evaluations=40), b"a")


async def test_jobs_that_share_a_run_take_no_room_in_the_lane(make_queue, new_job) -> None:
    queue = make_queue(max_queued={"interactive": 1}, max_sharers=3)
    for _ in range(3):
        await queue.jobs.submit(new_job(content_key="k"), b"a")
    with pytest.raises(Overloaded):
        await queue.jobs.submit(new_job(content_key="k"), b"a")


async def test_stored_bytes_are_bounded_the_oldest_ended_jobs_go_first(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=2 * MIB)
    large = {"images": {"image": bytes(900_000)}}
    first, _ = await queue.jobs.submit(new_job(**large), b"a")
    queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)
    await queue.jobs.submit(new_job(**large), b"a")
    await queue.jobs.submit(new_job(**large), b"a")  # the first one's image made room
    assert (await queue.jobs.get(first.job_id)).state is JobState.COMPLETED
    with pytest.raises(Overloaded, match="max_stored_bytes"):
        await queue.jobs.submit(new_job(**large), b"a")
    assert await queue.jobs.depth() == {("model", "interactive"): 2}


async def test_logs_make_room_too_and_running_jobs_are_never_touched(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=2 * MIB)
    ended, _ = await queue.jobs.submit(new_job(), b"a")
    lease = queue.lease()
    queue.worker().append(lease, [bytes(900_000)])
    queue.worker().settle(lease, b"done", JobState.COMPLETED)
    running, _ = await queue.jobs.submit(new_job(), b"a")
    lease = queue.lease()
    queue.worker().append(lease, [bytes(900_000)])
    await queue.jobs.submit(new_job(images={"image": bytes(900_000)}), b"a")
    with pytest.raises(UnknownJob):
        await queue.jobs.get(ended.job_id)
    assert (await queue.jobs.get(running.job_id)).state is JobState.RUNNING
    queue.worker().settle(lease, b"done", JobState.COMPLETED)
