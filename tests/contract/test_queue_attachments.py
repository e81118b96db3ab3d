"""Large parts of a job are stored one by one before the job comes, and go with it."""

import asyncio

import pytest

from sagittal.core.errors import Overloaded
from sagittal.core.jobs import JobState
from sagittal.v1 import explanation_pb2

MIB = 1024 * 1024
ENDED = explanation_pb2.ExplanationEvent(completed=explanation_pb2.Completed()).SerializeToString()


async def test_parts_come_back_by_name(queue, new_job) -> None:
    job = new_job()
    await queue.jobs.attach(job.job_id, "0", b"first", tenant="default")
    await queue.jobs.attach(job.job_id, "1", b"second", tenant="default")
    await queue.jobs.attach(job.job_id, "1", b"sent again", tenant="default")
    await queue.jobs.submit(job, b"a")
    lease = queue.lease()
    assert "0" not in lease.images
    assert [queue.worker().attachment(job.job_id, name) for name in ("0", "1", "2")] == [b"first", b"second", None]


async def test_parts_count_as_stored_and_are_refused_when_there_is_no_room(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=MIB, upload_share=0.8, tenant_share=1)
    await queue.jobs.attach(new_job().job_id, "0", bytes(MIB // 2), tenant="default")
    with pytest.raises(Overloaded, match="max_stored_bytes"):
        await queue.jobs.attach(new_job().job_id, "0", bytes(MIB), tenant="default")


async def test_parts_go_when_their_job_has_ended(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=MIB, upload_share=0.8, tenant_share=1)
    job = new_job()
    await queue.jobs.attach(job.job_id, "0", bytes(MIB * 3 // 4), tenant="default")
    await queue.jobs.submit(job, b"a")
    queue.worker().settle(queue.lease(), ENDED, JobState.COMPLETED)
    assert queue.worker().attachment(job.job_id, "0") is None
    await queue.jobs.attach(new_job().job_id, "0", bytes(MIB * 3 // 4), tenant="default")


async def test_parts_without_a_job_are_dropped_after_a_while(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=MIB, upload_share=0.8, tenant_share=1, attachment_seconds=0.05)
    lost, late = new_job(), new_job()
    await queue.jobs.attach(lost.job_id, "0", bytes(MIB * 3 // 4), tenant="default")
    await asyncio.sleep(0.1)
    await queue.jobs.sweep()
    assert queue.worker().attachment(lost.job_id, "0") is None
    await queue.jobs.attach(late.job_id, "0", bytes(MIB * 3 // 4), tenant="default")
