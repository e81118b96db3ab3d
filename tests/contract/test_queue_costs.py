"""The time of a worker that jobs take from each other adds up to the time in which it was busy."""

import time

from sagittal.core.jobs import JobState
from sagittal.v1 import explanation_pb2


def settle_after_an_hour(queue, lease) -> None:
    """Ends a job that says that it took an hour."""
    done = explanation_pb2.Completed(evaluations=100)
    done.run_time.FromSeconds(3600)
    event = explanation_pb2.ExplanationEvent(completed=done).SerializeToString()
    queue.worker().settle(lease, event, JobState.COMPLETED)


async def test_jobs_at_once_share_the_time_of_their_worker(queue, new_job) -> None:
    began = time.monotonic()
    leases = []
    for _ in range(8):
        await queue.jobs.submit(new_job(setting="a"), b"a")
        leases.append(queue.lease())
    for lease in leases:  # on a worker that ran all of them
        settle_after_an_hour(queue, lease)
    cost = (await queue.jobs.costs("model", "1", "igos++"))["a"]
    assert cost.seconds == 3600
    # the first counts its whole hour, since the worker had answered nothing before; the others what passed since then
    assert 450 <= cost.device <= 450 + time.monotonic() - began


async def test_a_batch_costs_the_time_in_which_its_workers_were_busy(queue, new_job) -> None:
    began = time.monotonic()
    await queue.jobs.batches.create("default", "night", b"spec", 0)
    leases = []
    for number in range(8):
        await queue.jobs.submit(new_job(batch="night", item=str(number)), b"a")
        leases.append(queue.lease())
    for lease in leases:
        settle_after_an_hour(queue, lease)
    stored = await queue.jobs.batches.get("default", "night")
    assert stored.evaluations == 800
    assert 3600 <= stored.seconds <= 3601 + time.monotonic() - began
