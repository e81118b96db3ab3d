"""A log is read page by page, each of bounded size, whoever's log it is."""

import pytest

from sagittal.core.jobs import JobState
from sagittal.v1 import explanation_pb2

Event = explanation_pb2.ExplanationEvent
KIB = 1024


def mask(size: int, *, final: bool) -> bytes:
    event = Event(mask=explanation_pb2.Mask(final=final))
    event.mask.saliency.data = bytes(size)
    return event.SerializeToString()


def progress(fraction: float) -> bytes:
    return Event(progress=explanation_pb2.Progress(fraction=fraction)).SerializeToString()


COMPLETED = Event(completed=explanation_pb2.Completed(evaluations=7)).SerializeToString()


async def pages(queue, job_id: str, **options):
    """Returns all pages of a log."""
    found, after = [], 0
    while after is not None:
        page = await queue.jobs.page(job_id, after, **({"limit": 1000, "max_bytes": 64 * KIB} | options))
        found.append(page)
        after = page.next_sequence
    return found


def sequences(found) -> list[int]:
    return [event.sequence for page in found for event in page.events]


def size(page) -> int:
    return sum(len(event.payload) for event in page.events)


async def readers(queue, new_job, events: list[bytes], *, cancelled: bool = False) -> list[str]:
    """Returns a job that led, one that shared its run, and one that was answered from the cache."""
    jobs = [new_job(content_key="k", images={}) for _ in range(2)]
    for job in jobs:
        await queue.jobs.submit(job, b"")
    lease = queue.lease()
    for event in events:
        queue.worker().append(lease, [event])
    if cancelled:
        await queue.jobs.cancel(jobs[1].job_id, "requested")
    queue.worker().settle(lease, COMPLETED, JobState.COMPLETED)
    cached, _ = await queue.jobs.submit(new_job(content_key="k", images={}), b"")
    return [*(job.job_id for job in jobs), cached.job_id]


@pytest.mark.parametrize("reader", [0, 1, 2])
async def test_a_page_has_bounded_bytes_and_pages_together_have_everything_once(queue, new_job, reader: int) -> None:
    job_id = (await readers(queue, new_job, [mask(20 * KIB, final=True) for _ in range(30)]))[reader]
    found = await pages(queue, job_id)
    assert sequences(found) == list(range(1, 33))
    assert max(size(page) for page in found) <= 65 * KIB
    assert 10 <= len(found) <= 12
    assert found[-1].events[-1].terminal


async def test_an_event_larger_than_a_page_has_a_page_for_itself(queue, new_job) -> None:
    events = [progress(0.1), mask(500 * KIB, final=True), progress(0.2)]
    [job_id, *_] = await readers(queue, new_job, events)
    found = await pages(queue, job_id)
    assert sequences(found) == [1, 2, 3, 4, 5]
    assert [len(page.events) for page in found] == [2, 1, 2]


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_a_page_has_a_bounded_number_of_events(queue, new_job, limit: int) -> None:
    for job_id in await readers(queue, new_job, [progress(0.1), mask(9, final=True)] * 6, cancelled=True):
        found = await pages(queue, job_id, limit=limit)
        assert all(len(page.events) <= limit for page in found)
        last = (await queue.jobs.get(job_id)).last_sequence
        assert sequences(found) == list(range(1, last + 1))
        assert found[-1].events[-1].terminal


async def test_what_was_passing_is_left_out_of_a_job_that_has_ended(queue, new_job) -> None:
    events = [progress(0.1), *(mask(30 * KIB, final=False) for _ in range(60)), mask(KIB, final=True), progress(0.9)]
    [job_id, *_] = await readers(queue, new_job, events)
    found = await pages(queue, job_id, lasting=True)
    assert sequences(found) == [1, 63, 65]
    assert len(found) > 3, "what is left out is read in bounded pieces too"
    assert len(sequences(await pages(queue, job_id))) == 65


async def test_the_end_of_what_there_is_so_far_is_no_page_to_go_on_from(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    queue.worker().append(lease, [progress(0.5)])
    [page] = await pages(queue, job.job_id, lasting=True)
    assert (sequences([page]), page.next_sequence, page.ended) == ([1, 2], None, False)
    [page] = [await queue.jobs.page(job.job_id, 9, limit=5, max_bytes=KIB)]
    assert (list(page.events), page.next_sequence) == ([], None)
