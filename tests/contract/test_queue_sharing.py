"""Same request, same answer, once: runs in flight are shared, answers are given again."""

import time

import pytest
from embedded_queue import stored_events

from sagittal.core.jobs import CachePolicy, JobState, Lane
from sagittal.v1 import explanation_pb2

Event = explanation_pb2.ExplanationEvent


def event(job_id: str, **fields: object) -> bytes:
    return Event(job_id=job_id, request_id="leader", **fields).SerializeToString()


def completed(job_id: str) -> bytes:
    return event(job_id, completed=explanation_pb2.Completed(evaluations=7, method="igos++"))


async def logs(queue, *jobs) -> list[list[Event]]:
    return [[Event.FromString(each.payload) for each in await stored_events(queue.jobs, job.job_id)] for job in jobs]


async def submit(queue, new, accepted: bytes = b""):
    job, is_new = await queue.jobs.submit(new, accepted or event(new.job_id, accepted=explanation_pb2.Accepted()))
    assert is_new
    return job


async def test_equal_jobs_in_flight_share_one_run_and_each_has_its_own_log(queue, new_job) -> None:
    leader = await submit(queue, new_job(content_key="k", request_id="leader"))
    early = await submit(queue, new_job(content_key="k", request_id="early"))
    lease, worker = queue.lease(), queue.worker()
    worker.append(lease, [event(leader.job_id, started=explanation_pb2.Started(worker="w"))])
    late = await submit(queue, new_job(content_key="k"))
    assert late.state is JobState.RUNNING
    assert worker.lease([("model", "1")], block_seconds=0) is None
    worker.append(lease, [event(leader.job_id, progress=explanation_pb2.Progress(fraction=0.5))])
    worker.settle(lease, completed(leader.job_id), JobState.COMPLETED)
    for job, log in zip((leader, early, late), await logs(queue, leader, early, late), strict=True):
        assert [each.WhichOneof("event") for each in log] == ["accepted", "started", "progress", "completed"]
        assert {each.job_id for each in log} == {job.job_id}
        assert {each.request_id for each in log[1:]} == {job.request_id}
        assert (await queue.jobs.get(job.job_id)).state is JobState.COMPLETED


@pytest.mark.parametrize("leaver", [0, 1])
@pytest.mark.parametrize("running", [False, True])
async def test_cancelling_one_of_several_leaves_the_others_alone(queue, new_job, leaver: int, running: bool) -> None:
    jobs = [await submit(queue, new_job(content_key="k")) for _ in range(3)]
    lease = queue.lease() if running else None
    gone = await queue.jobs.cancel(jobs[leaver].job_id, "requested")
    assert gone.state is JobState.CANCELLED
    lease = lease or queue.lease()
    assert queue.worker().heartbeat([lease]) == ([], [])
    queue.worker().append(lease, [event(lease.job.job_id, started=explanation_pb2.Started())])
    queue.worker().settle(lease, completed(lease.job.job_id), JobState.COMPLETED)
    for job, log in zip(jobs, await logs(queue, *jobs), strict=True):
        wanted = ["accepted", "cancelled"] if job is jobs[leaver] else ["accepted", "started", "completed"]
        assert [each.WhichOneof("event") for each in log] == wanted
        assert {each.job_id for each in log} == {job.job_id}


async def test_the_last_one_to_cancel_ends_the_run(queue, new_job) -> None:
    jobs = [await submit(queue, new_job(content_key="k")) for _ in range(2)]
    lease = queue.lease()
    await queue.jobs.cancel(jobs[0].job_id, "first")
    assert (await queue.jobs.cancel(jobs[1].job_id, "last")).cancel_requested
    lost, [cancellation] = queue.worker().heartbeat([lease])
    assert (lost, cancellation.lease, cancellation.reason) == ([], lease, "last")
    fresh = await submit(queue, new_job(content_key="k"))
    assert fresh.state is JobState.QUEUED  # what is being cancelled is not joined


async def test_each_job_that_shares_a_run_keeps_its_own_deadline(make_queue, new_job) -> None:
    queue = make_queue(sweep_seconds=60)
    patient = await submit(queue, new_job(content_key="k", deadline=time.time() + 60))
    hasty = await submit(queue, new_job(content_key="k", deadline=time.time() - 1))
    await queue.jobs.sweep()
    assert (await queue.jobs.get(hasty.job_id)).state is JobState.FAILED
    assert queue.lease().job.job_id == patient.job_id


async def test_an_interactive_job_brings_a_batch_run_forward(queue, new_job) -> None:
    await submit(queue, new_job(lane=Lane.BATCH))
    shared = await submit(queue, new_job(lane=Lane.BATCH, content_key="k"))
    await submit(queue, new_job(lane=Lane.INTERACTIVE, content_key="k"))
    assert queue.lease().job.job_id == shared.job_id


async def test_a_stored_answer_is_given_again_with_its_age(queue, new_job) -> None:
    leader = await submit(queue, new_job(content_key="k"))
    lease = queue.lease()
    mask, partial = explanation_pb2.Mask(final=True), explanation_pb2.Mask(final=False)
    progress = explanation_pb2.Progress(fraction=0.1)
    queue.worker().append(
        lease,
        [event(leader.job_id, progress=progress), event(leader.job_id, mask=partial), event(leader.job_id, mask=mask)],
    )
    queue.worker().settle(lease, completed(leader.job_id), JobState.COMPLETED)
    job = await submit(queue, new_job(content_key="k", request_id="mine"))
    assert (job.state, job.last_sequence, job.attempt) == (JobState.COMPLETED, 3, 0)
    assert queue.worker().lease([("model", "1")], block_seconds=0) is None
    [log] = await logs(queue, job)
    assert [each.WhichOneof("event") for each in log] == ["accepted", "mask", "completed"]
    assert {(each.job_id, each.request_id) for each in log[1:]} == {(job.job_id, "mine")}
    answer = log[-1].completed
    assert (answer.evaluations, answer.method) == (7, "igos++")
    assert answer.HasField("cache_age")
    assert 0 < answer.cache_age.ToNanoseconds() < 60e9
    assert [each async for each in queue.jobs.events(job.job_id)][-1].terminal


@pytest.mark.parametrize("policy", [CachePolicy.REFRESH, CachePolicy.BYPASS])
async def test_a_policy_can_ask_for_a_new_answer(queue, new_job, policy: CachePolicy) -> None:
    await submit(queue, new_job(content_key="k"))
    old = queue.lease()
    queue.worker().settle(old, completed(old.job.job_id), JobState.COMPLETED)
    anew = await submit(queue, new_job(content_key="k", cache=policy))
    assert anew.state is JobState.QUEUED
    lease = queue.lease()
    newer = event(anew.job_id, completed=explanation_pb2.Completed(evaluations=8))
    queue.worker().settle(lease, newer, JobState.COMPLETED)
    [log] = await logs(queue, await submit(queue, new_job(content_key="k")))
    assert log[-1].completed.evaluations == (8 if policy is CachePolicy.REFRESH else 7)


async def test_an_answer_that_a_deadline_cut_short_is_not_given_again(queue, new_job) -> None:
    await submit(queue, new_job(content_key="k"))
    lease = queue.lease()
    cut = explanation_pb2.Completed(truncated=True, truncated_by="deadline")
    queue.worker().settle(lease, event(lease.job.job_id, completed=cut), JobState.COMPLETED)
    assert (await submit(queue, new_job(content_key="k"))).state is JobState.QUEUED


async def test_stored_answers_go_where_their_room_is_needed(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=2 * 1024 * 1024, upload_share=0.01, tenant_share=1)
    job = await submit(queue, new_job(content_key="k"))
    queue.worker().settle(queue.lease(), completed(job.job_id), JobState.COMPLETED, [bytes(1_200_000)])
    assert (await submit(queue, new_job(content_key="other", images={"image": bytes(1_000_000)}))).attempt == 0
    assert (await submit(queue, new_job(content_key="k"))).state is JobState.QUEUED


async def test_a_failure_is_no_answer(queue, new_job) -> None:
    await submit(queue, new_job(content_key="k"))
    lease = queue.lease()
    queue.worker().settle(lease, event(lease.job.job_id), JobState.FAILED)
    assert (await submit(queue, new_job(content_key="k"))).state is JobState.QUEUED


async def test_an_answer_that_was_deleted_is_not_given(queue, new_job) -> None:
    job = await submit(queue, new_job(content_key="k"))
    queue.worker().settle(queue.lease(), completed(job.job_id), JobState.COMPLETED)
    await queue.jobs.delete(job.job_id)
    assert (await submit(queue, new_job(content_key="k"))).state is JobState.QUEUED


async def test_nothing_is_shared_between_tenants_or_without_a_key(queue, new_job) -> None:
    for changes in ({"content_key": "k"}, {"content_key": "k", "tenant": "other"}, {}, {}):
        await submit(queue, new_job(**changes))
    leases = [queue.lease() for _ in range(4)]
    assert len({lease.job.job_id for lease in leases}) == 4


async def test_a_run_with_much_less_time_left_is_not_joined(queue, new_job) -> None:
    await submit(queue, new_job(content_key="k", deadline=time.time() + 10))
    queue.lease()
    patient = await submit(queue, new_job(content_key="k", deadline=time.time() + 100))
    assert patient.state is JobState.QUEUED


async def test_a_job_that_shares_a_run_survives_the_loss_of_the_worker(make_queue, new_job) -> None:
    queue = make_queue(lease_seconds=0.5, heartbeat_seconds=0.05, sweep_seconds=0.02)
    jobs = [await submit(queue, new_job(content_key="k")) for _ in range(2)]
    queue.lease("lost")
    lease = queue.lease("next", block_seconds=20)
    queue.worker("next").settle(lease, completed(lease.job.job_id), JobState.COMPLETED)
    for job in jobs:
        found = await queue.jobs.get(job.job_id)
        assert (found.state, found.attempt, found.worker) == (JobState.COMPLETED, 2, "next")
