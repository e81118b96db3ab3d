"""A job from its acceptance to its deletion, as callers see it."""

import asyncio
import time

import pytest
from embedded_queue import depth, stored_events

from sagittal.core.errors import AlreadyExists, EventsExpired, FailedPrecondition, ModelFailed, UnknownJob, to_status
from sagittal.core.jobs import JobFilter, JobKind, JobState, Lane, StoredEvent
from sagittal.v1 import explanation_pb2


async def watch(queue, job_id: str, after: int = 0) -> list[StoredEvent]:
    return [event async for event in queue.jobs.events(job_id, after)]


async def test_an_accepted_job_is_queued_with_its_first_event(queue, new_job) -> None:
    job, new = await queue.jobs.submit(new_job(tenant="lab", deadline=time.time() + 60), b"accepted")
    assert new
    assert job == await queue.jobs.get(job.job_id)
    assert (job.state, job.attempt, job.last_sequence, job.tenant) == (JobState.QUEUED, 0, 1, "lab")
    assert await stored_events(queue.jobs, job.job_id) == [StoredEvent(1, b"accepted", False)]


async def test_a_lease_carries_everything_that_was_submitted(queue, new_job) -> None:
    new = new_job(
        trace_context="00-ab-cd-01", images={"image": b"\x00\xff", "baseline": b""}, deadline=time.time() + 99
    )
    await queue.jobs.submit(new, b"accepted")
    lease = queue.lease("gpu-1")
    assert (lease.request, lease.images, lease.trace_context) == (new.request, new.images, new.trace_context)
    assert (lease.job.job_id, lease.job.attempt, lease.job.worker) == (new.job_id, 1, "gpu-1")
    assert lease.job.deadline == new.deadline
    assert lease.checkpoint is None
    assert (await queue.jobs.get(new.job_id)).state is JobState.RUNNING


async def test_events_come_in_order_to_every_watcher_and_end_with_the_terminal_one(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    watchers = [asyncio.create_task(watch(queue, job.job_id, after)) for after in (0, 0, 2)]
    await asyncio.sleep(0)
    lease = queue.lease()
    for number in range(40):
        await asyncio.to_thread(queue.worker().append, lease, [b"%d" % number])
    queue.worker().settle(lease, b"done", JobState.COMPLETED)
    first, second, late = await asyncio.gather(*watchers)
    assert [event.sequence for event in first] == list(range(1, 43))
    assert [event.payload for event in first] == [b"accepted", *(b"%d" % n for n in range(40)), b"done"]
    assert [event.terminal for event in first] == [False] * 41 + [True]
    assert second == first
    assert late == first[2:]


async def test_a_watcher_that_is_cancelled_stops_whatever_it_was_doing(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    for turns in range(24):
        watching = asyncio.create_task(watch(queue, job.job_id))
        for _ in range(turns):
            await asyncio.sleep(0)
        queue.worker().append(lease, [b"event"])
        for _ in range(turns % 3):
            await asyncio.sleep(0)
        watching.cancel()
        done, _ = await asyncio.wait([watching], timeout=20)
        assert done
        assert watching.cancelled()


async def test_watching_goes_on_where_it_stopped_also_after_the_end(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    queue.worker().append(lease, [b"a", b"b"])
    queue.worker().settle(lease, b"done", JobState.FAILED)
    assert [event.payload for event in await watch(queue, job.job_id, 2)] == [b"b", b"done"]
    assert await watch(queue, job.job_id, 4) == []
    assert await watch(queue, job.job_id, 99) == []
    ended = await queue.jobs.get(job.job_id)
    assert (ended.state, ended.last_sequence) == (JobState.FAILED, 4)
    assert ended.ended is not None
    assert ended.ended >= ended.created


async def test_a_job_that_never_was_is_unknown_to_all(queue) -> None:
    for call in (
        queue.jobs.get("no"),
        stored_events(queue.jobs, "no"),
        queue.jobs.cancel("no", ""),
        watch(queue, "no"),
    ):
        with pytest.raises(UnknownJob, match="'no'"):
            await call
    with pytest.raises(UnknownJob):
        await queue.jobs.delete("no")


async def test_submitting_twice_after_a_lost_answer_is_one_job(queue, new_job) -> None:
    new = new_job()
    first = await queue.jobs.submit(new, b"accepted")
    assert await queue.jobs.submit(new, b"accepted") == first
    assert len(await stored_events(queue.jobs, new.job_id)) == 1
    queue.lease()
    assert queue.worker().lease([("model", "1")], block_seconds=0) is None


async def test_a_request_id_belongs_to_one_job_of_a_tenant(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(request_id="mine"), b"accepted")
    again, new = await queue.jobs.submit(new_job(request_id="mine"), b"accepted")
    assert (again.job_id, new) == (job.job_id, False)
    with pytest.raises(AlreadyExists, match=job.job_id) as caught:
        await queue.jobs.submit(new_job(request_id="mine", request=b"other"), b"accepted")
    assert caught.value.field == "spec.request_id"
    other, new = await queue.jobs.submit(new_job(request_id="mine", tenant="other"), b"accepted")
    assert new
    assert other.job_id != job.job_id


async def test_of_equal_submissions_at_once_one_is_new(queue, new_job) -> None:
    answers = await asyncio.gather(*(queue.jobs.submit(new_job(request_id="mine"), b"a") for _ in range(20)))
    assert sum(new for _, new in answers) == 1
    assert len({job.job_id for job, _ in answers}) == 1


async def test_a_queued_job_that_is_cancelled_ends_at_once(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(request_id="mine"), b"accepted")
    cancelled = await queue.jobs.cancel(job.job_id, "caller went away")
    assert cancelled.state is JobState.CANCELLED
    last = (await watch(queue, job.job_id))[-1]
    event = explanation_pb2.ExplanationEvent.FromString(last.payload)
    assert (last.sequence, last.terminal, event.cancelled.reason) == (2, True, "caller went away")
    assert (event.job_id, event.request_id) == (job.job_id, "mine")
    assert event.time.seconds > 0
    assert queue.worker().lease([("model", "1")], block_seconds=0) is None
    assert await depth(queue.jobs) == {}
    assert await queue.jobs.cancel(job.job_id, "again") == cancelled


async def test_a_running_job_that_is_cancelled_is_marked_for_its_worker(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    assert queue.worker().heartbeat([lease]) == ([], [])
    marked = await queue.jobs.cancel(job.job_id, "requested")
    assert (marked.state, marked.cancel_requested) == (JobState.RUNNING, True)
    lost, [cancellation] = queue.worker().heartbeat([lease])
    assert (lost, cancellation.lease, cancellation.reason) == ([], lease, "requested")
    assert 0 <= cancellation.age < 60
    queue.worker().settle(lease, b"cancelled", JobState.CANCELLED)
    assert (await queue.jobs.cancel(job.job_id, "again")).state is JobState.CANCELLED


async def test_only_ended_jobs_are_deleted_and_then_they_are_gone(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(request_id="mine"), b"accepted")
    with pytest.raises(FailedPrecondition, match="queued"):
        await queue.jobs.delete(job.job_id)
    lease = queue.lease()
    with pytest.raises(FailedPrecondition, match="running"):
        await queue.jobs.delete(job.job_id)
    queue.worker().settle(lease, b"done", JobState.COMPLETED)
    await queue.jobs.delete(job.job_id)
    with pytest.raises(UnknownJob):
        await queue.jobs.get(job.job_id)
    assert (await queue.jobs.list(limit=10, page_token=""))[0] == []
    assert (await queue.jobs.submit(new_job(request_id="mine"), b"accepted"))[1]


async def test_jobs_are_listed_newest_first_in_pages(queue, new_job) -> None:
    ids = [(await queue.jobs.submit(new_job(), b"a"))[0].job_id for _ in range(5)]
    found, token = [], ""
    while True:
        page, token = await queue.jobs.list(limit=2, page_token=token)
        assert len(page) <= 2
        found += [job.job_id for job in page]
        await queue.jobs.submit(new_job(), b"a")  # what comes meanwhile moves no page
        if not token:
            break
    assert found == ids[::-1]


async def test_jobs_are_listed_by_model_and_state(queue, new_job) -> None:
    mine, _ = await queue.jobs.submit(new_job(model="mine"), b"a")
    done, _ = await queue.jobs.submit(new_job(), b"a")
    queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)

    async def ids(model: str, *states: JobState) -> list[str]:
        jobs, token = await queue.jobs.list(JobFilter(model=model, states=states), limit=10, page_token="")
        assert token == ""
        return [job.job_id for job in jobs]

    assert await ids("mine") == [mine.job_id]
    assert await ids("", JobState.COMPLETED, JobState.FAILED) == [done.job_id]
    assert await ids("", JobState.QUEUED) == [mine.job_id]
    assert await ids("mine", JobState.COMPLETED) == []


async def test_jobs_are_listed_by_tenant_kind_and_reason(queue, new_job) -> None:
    failed = explanation_pb2.ExplanationEvent(failed=to_status(ModelFailed("no score")))
    mine, _ = await queue.jobs.submit(new_job(tenant="mine"), b"a")
    queue.worker().settle(queue.lease(), failed.SerializeToString(), JobState.FAILED)
    other, _ = await queue.jobs.submit(new_job(tenant="other", kind=JobKind.PREDICTION), b"a")
    queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)
    late, _ = await queue.jobs.submit(new_job(tenant="other", deadline=time.time() - 1), b"a")
    await queue.jobs.sweep()

    async def ids(**filters: object) -> list[str]:
        return [job.job_id for job in (await queue.jobs.list(JobFilter(**filters), limit=10, page_token=""))[0]]

    assert await ids() == [late.job_id, other.job_id, mine.job_id]
    assert await ids(tenant="mine") == [mine.job_id]
    assert await ids(kind=JobKind.EXPLANATION) == [late.job_id, mine.job_id]
    assert await ids(reason="MODEL_FAILED") == [mine.job_id]
    assert await ids(tenant="other", reason="DEADLINE_PASSED") == [late.job_id]
    assert (await queue.jobs.get(mine.job_id)).reason == "MODEL_FAILED"
    assert (await queue.jobs.get(other.job_id)).reason == ""
    await queue.jobs.delete(mine.job_id)
    assert await ids(tenant="mine") == []


async def test_a_reader_whose_job_goes_while_it_reads_hears_that_it_was_too_slow(queue, new_job) -> None:
    job, _ = await queue.jobs.submit(new_job(), b"accepted")
    lease = queue.lease()
    queue.worker().append(lease, [b"%d" % number for number in range(40)])
    queue.worker().settle(lease, b"done", JobState.COMPLETED)
    events = queue.jobs.events(job.job_id)
    assert (await anext(events)).sequence == 1
    await queue.jobs.delete(job.job_id)
    with pytest.raises(EventsExpired, match="retention_seconds"):
        async for _ in events:
            pass


async def test_depth_and_backlog_count_what_waits_and_runs(queue, new_job) -> None:
    for lane in (Lane.BATCH, Lane.BATCH, Lane.INTERACTIVE):
        await queue.jobs.submit(new_job(lane=lane), b"a")
    lease = queue.lease()
    assert await depth(queue.jobs) == {("model", "batch"): 2, ("model", "interactive"): 1}
    backlog = await queue.jobs.backlog()
    assert (backlog["model", "batch"].queued, backlog["model", "batch"].running) == (2, 0)
    assert (backlog["model", "interactive"].queued, backlog["model", "interactive"].running) == (0, 1)
    assert backlog["model", "batch"].oldest_seconds > 0
    assert backlog["model", "interactive"].oldest_seconds == 0
    queue.worker().settle(lease, b"done", JobState.COMPLETED)
    for _ in range(2):
        queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)
    assert await depth(queue.jobs) == {}


async def test_backlog_sums_the_evaluations_of_queued_jobs_over_versions(queue, new_job) -> None:
    await queue.jobs.submit(new_job(estimated_evaluations=300), b"a")
    assert (await queue.jobs.backlog())["model", "interactive"].queued_evaluations == 300
    await queue.jobs.submit(new_job(version="2", estimated_evaluations=40), b"a")
    await queue.jobs.submit(new_job(model="other", estimated_evaluations=5), b"a")
    backlog = await queue.jobs.backlog()
    assert backlog["model", "interactive"].queued_evaluations == 340
    assert backlog["other", "interactive"].queued_evaluations == 5
    queue.lease()
    assert (await queue.jobs.backlog())["model", "interactive"].queued_evaluations == 40, "a running job waits no more"


async def test_stored_bytes_grow_with_requests_and_shrink_when_jobs_are_deleted(queue, new_job) -> None:
    assert await queue.jobs.stored_bytes() == 0
    job, _ = await queue.jobs.submit(new_job(), b"a" * 1000)
    assert await queue.jobs.stored_bytes() >= 1000
    await queue.jobs.cancel(job.job_id, "requested")
    await queue.jobs.delete(job.job_id)
    assert await queue.jobs.stored_bytes() == 0


async def test_a_queued_job_past_its_deadline_fails_without_a_worker(make_queue, new_job) -> None:
    queue = make_queue(sweep_seconds=0.05)
    job, _ = await queue.jobs.submit(new_job(deadline=time.time() + 0.05), b"accepted")
    last = (await watch(queue, job.job_id))[-1]
    event = explanation_pb2.ExplanationEvent.FromString(last.payload)
    assert last.terminal
    assert event.failed.code == 4  # DEADLINE_EXCEEDED
    assert (await queue.jobs.get(job.job_id)).state is JobState.FAILED


async def test_a_worker_is_not_given_what_is_past_its_deadline(make_queue, new_job) -> None:
    queue = make_queue(sweep_seconds=60)
    late, _ = await queue.jobs.submit(new_job(deadline=time.time() - 1), b"accepted")
    good, _ = await queue.jobs.submit(new_job(), b"accepted")
    assert queue.lease().job.job_id == good.job_id
    assert (await queue.jobs.get(late.job_id)).state is JobState.FAILED


async def test_one_sweep_drops_all_that_retention_has_passed_however_many(make_queue, new_job) -> None:
    queue = make_queue(retention_seconds=0.05, image_retention_seconds=0.01, sweep_seconds=3600)
    jobs = [(await queue.jobs.submit(new_job(), b"accepted"))[0].job_id for _ in range(220)]
    for job_id in jobs:
        await queue.jobs.cancel(job_id, "requested")
    await asyncio.sleep(0.06)
    await queue.jobs.sweep()
    for job_id in jobs:
        with pytest.raises(UnknownJob):
            await queue.jobs.get(job_id)


async def test_ended_jobs_go_after_their_retention_and_images_before(make_queue, new_job) -> None:
    queue = make_queue(retention_seconds=0.05, image_retention_seconds=0.01)
    job, _ = await queue.jobs.submit(new_job(request_id="mine"), b"accepted")
    queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)
    await asyncio.sleep(0.06)
    await queue.jobs.sweep()
    with pytest.raises(UnknownJob, match="retention"):
        await queue.jobs.get(job.job_id)
    with pytest.raises(UnknownJob):
        await watch(queue, job.job_id)
