"""A log is kept once for all jobs that read it, for as long as one of them is kept."""

import asyncio

import pytest
import redis

from sagittal.core.errors import UnknownJob
from sagittal.core.jobs import JobState
from sagittal.queue.scripts import root_key
from sagittal.v1 import explanation_pb2

MIB = 1024 * 1024
Event = explanation_pb2.ExplanationEvent


def mask(lease, size: int) -> bytes:
    """Returns an event of about so many bytes, as a worker writes it."""
    event = Event(job_id=lease.job.job_id, mask=explanation_pb2.Mask(final=True))
    event.mask.saliency.data = bytes(size)
    return event.SerializeToString()


def completed(lease) -> bytes:
    return Event(job_id=lease.job.job_id, completed=explanation_pb2.Completed(evaluations=7)).SerializeToString()


def accounted(queue) -> int:
    with redis.Redis.from_url(queue.settings.url) as client:
        return int(client.get(f"{root_key(queue.settings)}bytes") or 0)


def left(queue) -> set[bytes]:
    """Returns the keys of jobs, runs and logs."""
    root = root_key(queue.settings)
    with redis.Redis.from_url(queue.settings.url) as client:
        kinds = ("job", "run", "log", "readers")
        return {key for kind in kinds for key in client.scan_iter(match=f"{root}{kind}:*")}


def used_memory(queue) -> int:
    with redis.Redis.from_url(queue.settings.url) as client:
        return int(client.info("memory")["used_memory_dataset"])


async def shared(queue, new_job, sharers: int) -> list[str]:
    """Submits equal jobs and returns their identifiers; the first one leads."""
    jobs = [new_job(content_key="k", request_id=f"r{number}", images={}) for number in range(sharers)]
    for job in jobs:
        await queue.jobs.submit(job, b"")
    return [job.job_id for job in jobs]


async def read(queue, job_id: str) -> list[Event]:
    events = [Event.FromString(stored.payload) async for stored in queue.jobs.events(job_id)]
    assert {event.job_id for event in events[1:]} == {job_id}
    return events


async def test_a_log_is_stored_once_however_many_jobs_share_it(queue, new_job) -> None:
    ids = await shared(queue, new_job, 200)
    lease, before, memory = queue.lease(), accounted(queue), used_memory(queue)
    for _ in range(8):
        queue.worker().append(lease, [mask(lease, MIB)])
    queue.worker().settle(lease, completed(lease), JobState.COMPLETED)
    for number in range(50):  # answered from the cache
        job, _ = await queue.jobs.submit(new_job(content_key="k", request_id=f"late{number}", images={}), b"")
        assert job.state is JobState.COMPLETED
        ids.append(job.job_id)
    assert 8 * MIB < accounted(queue) - before < 9 * MIB
    assert used_memory(queue) - memory < 20 * MIB
    for job_id in (ids[0], ids[199], ids[-1]):
        events = await read(queue, job_id)
        assert [event.WhichOneof("event") for event in events[1:]] == ["mask"] * 8 + ["completed"]


@pytest.mark.parametrize("first", [0, 1, 2])
async def test_a_job_that_goes_takes_the_log_from_nobody(queue, new_job, first: int) -> None:
    ids = await shared(queue, new_job, 2)
    lease = queue.lease()
    queue.worker().settle(lease, completed(lease), JobState.COMPLETED, [mask(lease, 1000)])
    cached, _ = await queue.jobs.submit(new_job(content_key="k", images={}), b"")
    ids.append(cached.job_id)
    gone = ids.pop(first)
    await queue.jobs.delete(gone)
    with pytest.raises(UnknownJob):
        await queue.jobs.get(gone)
    for job_id in ids:
        events = await read(queue, job_id)
        assert [event.WhichOneof("event") for event in events[1:]] == ["mask", "completed"]
    for job_id in ids:
        await queue.jobs.delete(job_id)
    assert (left(queue), accounted(queue)) == (set(), 0)


async def test_jobs_of_a_run_that_expire_one_by_one_leave_nothing(make_queue, new_job) -> None:
    queue = make_queue(retention_seconds=0.001, image_retention_seconds=0.001, sweep_seconds=600)
    early, late = await shared(queue, new_job, 2)
    await queue.jobs.cancel(early, "requested")
    lease = queue.lease()
    queue.worker().append(lease, [mask(lease, 1000)])
    await asyncio.sleep(0.02)
    await queue.jobs.sweep()
    with pytest.raises(UnknownJob):
        await queue.jobs.get(early)
    queue.worker().settle(lease, completed(lease), JobState.COMPLETED)
    assert len(await read(queue, late)) == 3
    await asyncio.sleep(0.02)
    await queue.jobs.sweep()
    assert (left(queue), accounted(queue)) == (set(), 0)


async def test_a_job_that_left_reads_what_came_until_then_and_its_own_end(queue, new_job) -> None:
    leader, other = await shared(queue, new_job, 2)
    lease = queue.lease()
    queue.worker().append(lease, [mask(lease, 10)])
    await queue.jobs.cancel(leader, "requested")
    queue.worker().append(lease, [mask(lease, 20)])
    assert [event.WhichOneof("event") for event in await read(queue, leader)][1:] == ["mask", "cancelled"]
    assert (await queue.jobs.get(leader)).last_sequence == 3
    queue.worker().settle(lease, completed(lease), JobState.COMPLETED)
    assert [event.WhichOneof("event") for event in await read(queue, other)][1:] == ["mask", "mask", "completed"]
    for after, kinds in ((1, ["mask", "cancelled"]), (2, ["cancelled"]), (3, []), (9, [])):
        events = [Event.FromString(stored.payload) async for stored in queue.jobs.events(leader, after)]
        assert [event.WhichOneof("event") for event in events] == kinds


async def test_an_answer_is_read_from_any_place(queue, new_job) -> None:
    await shared(queue, new_job, 1)
    lease = queue.lease()
    progress = Event(progress=explanation_pb2.Progress(fraction=0.5)).SerializeToString()
    events = [piece for size in range(40) for piece in (progress, mask(lease, size))]
    queue.worker().settle(lease, completed(lease), JobState.COMPLETED, events)
    job, _ = await queue.jobs.submit(new_job(content_key="k"), b"")
    assert job.last_sequence == 42
    for after in (0, 1, 2, 17, 40, 41, 42):
        found = [stored async for stored in queue.jobs.events(job.job_id, after)]
        assert [stored.sequence for stored in found] == list(range(after + 1, 43))
        sizes = [len(Event.FromString(each.payload).mask.saliency.data) for each in found if 1 < each.sequence < 42]
        assert sizes == list(range(max(after - 1, 0), 40))
