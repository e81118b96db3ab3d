"""What a job was made of can be asked for while it is kept."""

import asyncio

import pytest

from sagittal.core.errors import FailedPrecondition, UnknownJob
from sagittal.core.jobs import JobState

IMAGES = {"image": b"\x00image\xff", "baseline": b"another"}


async def complete(queue) -> None:
    queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)


async def test_a_request_is_there_from_acceptance_to_after_the_end(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(request=b"what", images=IMAGES), b"accepted")
    queued = await queue.jobs.request_of(job.job_id)
    await complete(queue)
    ended = await queue.jobs.request_of(job.job_id)
    assert queued == ended
    assert (ended.request, ended.images) == (b"what", IMAGES)


async def test_a_job_that_shared_a_run_or_an_answer_has_its_request_too(queue, new_job) -> None:
    first, _ = await queue.jobs.submit(new_job(content_key="same"), b"accepted")
    shared, _ = await queue.jobs.submit(new_job(content_key="same"), b"accepted")
    await complete(queue)
    answered, _ = await queue.jobs.submit(new_job(content_key="same"), b"accepted")
    assert answered.state is JobState.COMPLETED
    requests = [await queue.jobs.request_of(job.job_id) for job in (first, shared, answered)]
    assert requests[0] == requests[1] == requests[2]


async def test_deleting_a_job_that_was_answered_from_the_cache_leaves_the_request_to_its_source(queue, new_job) -> None:
    first, _ = await queue.jobs.submit(new_job(content_key="same"), b"accepted")
    await complete(queue)
    answered, _ = await queue.jobs.submit(new_job(content_key="same"), b"accepted")
    await queue.jobs.delete(answered.job_id)
    assert (await queue.jobs.request_of(first.job_id)).request == b"request"


async def test_a_request_that_is_no_longer_kept_is_said_to_be_gone(make_queue, new_job) -> None:
    queue = make_queue(image_retention_seconds=0.05, sweep_seconds=0.02)
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    await complete(queue)
    await asyncio.sleep(0.06)
    await queue.jobs.sweep()
    with pytest.raises(FailedPrecondition, match="are deleted") as gone:
        await queue.jobs.request_of(job.job_id)
    assert gone.value.field == "job_id"


async def test_of_an_unknown_job_there_is_no_request(queue) -> None:
    with pytest.raises(UnknownJob):
        await queue.jobs.request_of("0" * 32)
