"""A request beyond an admission limit is refused immediately."""

import pytest
from embedded_queue import depth, stored_events

from sagittal.core.errors import Overloaded, UnknownJob
from sagittal.core.jobs import JobState, Lane
from sagittal.v1 import explanation_pb2

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
    assert await depth(queue.jobs) == {("model", "interactive"): 1}


async def test_one_tenant_cannot_fill_the_lane(make_queue, new_job) -> None:
    queue = make_queue(max_queued_per_tenant={"interactive": 1, "batch": 1})
    await queue.jobs.submit(new_job(tenant="greedy"), b"a")
    with pytest.raises(Overloaded, match="max_queued_per_tenant"):
        await queue.jobs.submit(new_job(tenant="greedy"), b"a")
    await queue.jobs.submit(new_job(tenant="modest"), b"a")


async def test_estimated_work_is_bounded_but_one_large_job_is_admitted(make_queue, new_job) -> None:
    queue = make_queue(max_queued_evaluations={"interactive": 100})
    await queue.jobs.submit(new_job(estimated_evaluations=1000), b"a")
    with pytest.raises(Overloaded, match="max_queued_evaluations"):
        await queue.jobs.submit(new_job(estimated_evaluations=1), b"a")
    queue.lease()
    await queue.jobs.submit(new_job(estimated_evaluations=60), b"a")
    await queue.jobs.submit(new_job(estimated_evaluations=40), b"a")


async def test_one_tenant_cannot_fill_the_lane_with_large_jobs(make_queue, new_job) -> None:
    queue = make_queue(max_queued_evaluations_per_tenant={"interactive": 100})
    await queue.jobs.submit(new_job(tenant="greedy", estimated_evaluations=80), b"a")
    with pytest.raises(Overloaded, match="max_queued_evaluations_per_tenant"):
        await queue.jobs.submit(new_job(tenant="greedy", estimated_evaluations=30), b"a")
    await queue.jobs.submit(new_job(tenant="greedy", estimated_evaluations=20), b"a")
    await queue.jobs.submit(new_job(tenant="modest", estimated_evaluations=30), b"a")


async def test_a_job_of_unknown_cost_counts_as_what_is_assumed(make_queue, new_job) -> None:
    queue = make_queue(assumed_evaluations=60, max_queued_evaluations={"interactive": 100})
    await queue.jobs.submit(new_job(), b"a")
    with pytest.raises(Overloaded, match="max_queued_evaluations"):
        await queue.jobs.submit(new_job(), b"a")


def completed(evaluations: int, seconds: float) -> bytes:
    done = explanation_pb2.Completed(evaluations=evaluations)
    done.run_time.FromNanoseconds(int(seconds * 1e9))
    return explanation_pb2.ExplanationEvent(completed=done).SerializeToString()


async def test_costs_are_learned_from_jobs_that_were_completed(queue, new_job) -> None:
    async def settle(setting: str, event: bytes, state: JobState = JobState.COMPLETED) -> None:
        await queue.jobs.submit(new_job(setting=setting), b"a")
        queue.worker().settle(queue.lease(), event, state)

    assert await queue.jobs.costs("model", "1", "igos++") == {}
    await settle("a", completed(100, 2.0))
    await settle("a", completed(300, 4.0))
    await settle("b", completed(7, 0.5))
    await settle("b", completed(9000, 0.5), JobState.FAILED)
    await settle("", completed(9000, 0.5))
    costs = await queue.jobs.costs("model", "1", "igos++")
    assert {name: (cost.evaluations, cost.seconds) for name, cost in costs.items()} == {"a": (200, 3), "b": (7, 0.5)}
    assert await queue.jobs.costs("model", "2", "igos++") == {}


async def test_what_was_cut_short_or_begun_again_teaches_nothing(queue, new_job) -> None:
    cut = explanation_pb2.ExplanationEvent.FromString(completed(100, 2.0))
    cut.completed.truncated = True
    await queue.jobs.submit(new_job(setting="a"), b"a")
    queue.worker().settle(queue.lease(), cut.SerializeToString(), JobState.COMPLETED)
    assert await queue.jobs.costs("model", "1", "igos++") == {}


async def test_few_settings_are_remembered_those_used_last(queue, new_job) -> None:
    for number in range(40):
        await queue.jobs.submit(new_job(setting=f"s{number}"), b"a")
        queue.worker().settle(queue.lease(), completed(number + 1, 1.0), JobState.COMPLETED)
    costs = await queue.jobs.costs("model", "1", "igos++")
    assert sorted(cost.evaluations for cost in costs.values()) == list(range(9, 41))


async def test_the_time_to_wait_is_worked_out_from_the_pace_of_what_runs(make_queue, new_job) -> None:
    queue = make_queue(max_queued={"interactive": 2}, overload_retry_after=7.0)
    await queue.jobs.submit(new_job(), b"a")
    queue.worker().settle(queue.lease(), completed(100, 2.0), JobState.COMPLETED)  # 50 evaluations a second
    for turn in range(4):
        await queue.jobs.submit(new_job(estimated_evaluations=400), b"a")
        if turn < 2:
            queue.lease()
    with pytest.raises(Overloaded) as caught:
        await queue.jobs.submit(new_job(), b"a")
    assert caught.value.retry_after == pytest.approx(400 / (2 * 50))


async def test_a_job_says_how_many_are_ahead_of_it(queue, new_job) -> None:
    async def ahead(**changes: object) -> int:
        job, _ = await queue.jobs.submit(new_job(**changes), accepted)
        [stored] = await stored_events(queue.jobs, job.job_id)
        event = explanation_pb2.ExplanationEvent.FromString(stored.payload)
        assert event.accepted.ready_workers == 3
        return event.accepted.queue_position

    accepted = explanation_pb2.ExplanationEvent(accepted={"ready_workers": 3}).SerializeToString()
    assert [await ahead(), await ahead(content_key="k"), await ahead()] == [0, 1, 2]
    assert await ahead(content_key="k") == 1
    assert await ahead(model="other") == 0
    assert await ahead(lane=Lane.BATCH) == 0
    queue.lease()
    assert await ahead() == 3


async def test_jobs_that_share_a_run_take_no_room_in_the_lane(make_queue, new_job) -> None:
    queue = make_queue(max_queued={"interactive": 1}, max_sharers=3)
    for _ in range(3):
        await queue.jobs.submit(new_job(content_key="k"), b"a")
    with pytest.raises(Overloaded):
        await queue.jobs.submit(new_job(content_key="k"), b"a")


async def test_stored_bytes_are_bounded_the_oldest_ended_jobs_go_first(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=2 * MIB, upload_share=0.01, tenant_share=1)
    large = {"images": {"image": bytes(900_000)}}
    first, _ = await queue.jobs.submit(new_job(**large), b"a")
    queue.worker().settle(queue.lease(), b"done", JobState.COMPLETED)
    await queue.jobs.submit(new_job(**large), b"a")
    await queue.jobs.submit(new_job(**large), b"a")  # the first one's image made room
    assert (await queue.jobs.get(first.job_id)).state is JobState.COMPLETED
    with pytest.raises(Overloaded, match="max_stored_bytes"):
        await queue.jobs.submit(new_job(**large), b"a")
    assert await depth(queue.jobs) == {("model", "interactive"): 2}


async def test_logs_make_room_too_and_running_jobs_are_never_touched(make_queue, new_job) -> None:
    queue = make_queue(max_stored_bytes=2 * MIB, upload_share=0.01, tenant_share=1)
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
