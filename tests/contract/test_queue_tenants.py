"""What one tenant stores, or begins to upload and abandons, costs no other tenant its results."""

import asyncio

import pytest

from sagittal.core.errors import Overloaded
from sagittal.core.jobs import JobFilter, JobState
from sagittal.v1 import explanation_pb2

MIB = 1024 * 1024
ENDED = explanation_pb2.ExplanationEvent(completed=explanation_pb2.Completed()).SerializeToString()


async def answered(queue, new_job, tenant: str, size: int) -> str:
    """Returns a job that has ended, with about so many bytes of events."""
    job, _ = await queue.jobs.submit(new_job(tenant=tenant), b"a")
    lease = queue.lease()
    queue.worker().settle(lease, ENDED, JobState.COMPLETED, [bytes(size)])
    return job.job_id


async def kept(queue, job_id: str) -> bool:
    """Whether the events and the images of a job are there."""
    events = [event async for event in queue.jobs.events(job_id)]
    return events[-1].terminal and bool((await queue.jobs.request_of(job_id)).images)


async def test_an_abandoned_upload_takes_nothing_from_anyone(make_queue, new_job) -> None:
    queue = make_queue(
        max_stored_bytes=8 * MIB, upload_share=0.5, tenant_share=0.5, attachment_seconds=0.01, sweep_seconds=600
    )
    results = [await answered(queue, new_job, tenant, MIB) for tenant in ("victim", "hostile")]
    upload = new_job(tenant="hostile")
    for number in range(2):
        await queue.jobs.attach(upload.job_id, str(number), bytes(MIB), tenant="hostile")
    with pytest.raises(Overloaded, match="tenant_share of upload_share"):
        await queue.jobs.attach(new_job().job_id, "0", bytes(MIB), tenant="hostile")
    await queue.jobs.attach(new_job().job_id, "0", bytes(MIB), tenant="victim")
    # With uploads of two tenants waiting, all the room for results is there.
    results += [await answered(queue, new_job, f"other{number}", MIB // 2) for number in range(3)]
    assert all([await kept(queue, job_id) for job_id in results])
    await asyncio.sleep(0.05)
    await queue.jobs.sweep()
    await queue.jobs.attach(new_job().job_id, "0", bytes(2 * MIB), tenant="hostile")  # nobody completed the one before


async def test_uploads_of_many_tenants_are_bounded_together(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=4 * MIB, upload_share=0.5, tenant_share=0.5)
    result = await answered(queue, new_job, "victim", MIB // 2)
    for number in range(2):
        await queue.jobs.attach(new_job().job_id, "0", bytes(MIB), tenant=f"hostile{number}")
    with pytest.raises(Overloaded, match="upload_share of max_stored_bytes"):
        await queue.jobs.attach(new_job().job_id, "0", bytes(MIB), tenant="hostile2")
    assert await kept(queue, result)


async def test_past_a_tenants_share_its_own_ended_jobs_make_room_and_no_others(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=16 * MIB, upload_share=0.01, tenant_share=0.2)  # 3.1 MiB
    victim = await answered(queue, new_job, "victim", MIB)
    hostile = [await answered(queue, new_job, "hostile", MIB) for _ in range(12)]
    assert await kept(queue, victim)
    jobs, _ = await queue.jobs.list(JobFilter(tenant="hostile"), limit=20, page_token="")
    assert {job.job_id for job in jobs} == set(hostile[-3:])


async def test_a_tenant_whose_waiting_jobs_fill_its_share_is_refused_and_others_are_not(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=16 * MIB, upload_share=0.01, tenant_share=0.2)
    victim = await answered(queue, new_job, "victim", MIB)
    for _ in range(3):
        await queue.jobs.submit(new_job(tenant="hostile", images={"image": bytes(MIB)}), b"a")
    with pytest.raises(Overloaded, match="tenant_share of max_stored_bytes"):
        await queue.jobs.submit(new_job(tenant="hostile", images={"image": bytes(MIB)}), b"a")
    await queue.jobs.submit(new_job(tenant="victim", images={"image": bytes(MIB)}), b"a")
    assert await kept(queue, victim)


async def test_a_request_that_can_never_fit_evicts_nothing(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=4 * MIB, upload_share=0.01, tenant_share=0.5)
    result = await answered(queue, new_job, "one", MIB)
    with pytest.raises(Overloaded, match="tenant_share"):
        await queue.jobs.submit(new_job(tenant="one", images={"image": bytes(3 * MIB)}), b"a")
    assert await kept(queue, result)


async def test_events_that_are_written_take_the_room_of_jobs_that_ended(make_queue, new_job) -> None:
    """Workers are not refused, so logs would otherwise grow past all bounds."""
    queue = make_queue(max_stored_bytes=8 * MIB, upload_share=0.01, tenant_share=0.5)
    victim = await answered(queue, new_job, "victim", MIB)
    old = await answered(queue, new_job, "busy", 2 * MIB)
    running, _ = await queue.jobs.submit(new_job(tenant="busy"), b"a")
    lease = queue.lease()
    for _ in range(3):
        queue.worker().append(lease, [bytes(MIB)])
    jobs, _ = await queue.jobs.list(JobFilter(tenant="busy"), limit=9, page_token="")
    assert [job.job_id for job in jobs] == [running.job_id], f"{old} made room"
    assert await kept(queue, victim)
    for _ in range(3):
        queue.worker().append(
            lease, [bytes(MIB)]
        )  # past its share, and what was accepted comes to its end all the same
    queue.worker().settle(lease, ENDED, JobState.COMPLETED)
    assert (await queue.jobs.get(running.job_id)).last_sequence == 8
