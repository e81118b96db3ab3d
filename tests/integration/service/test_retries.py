"""RetryExplanation: a dead-lettered job is retried as a new one."""

import asyncio
import hashlib
from typing import Any

import grpc
import pytest
from embedded_queue import Queue, own_settings
from google.rpc import status_pb2

from sagittal.core.errors import from_status
from sagittal.core.jobs import JobState
from sagittal.v1 import explanation_pb2
from sagittal.v1 import explanation_service_pb2 as api

from .support import ScriptedWorker, Stack, images_are_gone, picture, quick_settings, running, spec

SHORT = {"lease_seconds": 0.2, "heartbeat_seconds": 0.05, "sweep_seconds": 0.02, "max_attempts": 1}
BASELINE = {"kind": explanation_pb2.BASELINE_KIND_IMAGE, "image": picture(9, 9)}
METRICS = {"robustness": {"images": [picture(9, 8), picture(8, 9)]}}


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    return from_status(status_pb2.Status.FromString(trailers["grpc-status-details-bin"]))


async def submitted(stack: Stack, **fields: Any) -> str:
    request = api.SubmitExplanationRequest(spec=spec(**fields))
    return str((await stack.explanations.SubmitExplanation(request)).explanation.job_id)


async def taking_workers_down(stack: Stack, job_id: str) -> None:
    """Returns when a job has taken down its worker, and then another that ran nothing else."""
    for name, alone in (("first", False), ("second", True)):
        worker = stack.queue.worker(name)
        lease = await asyncio.to_thread(worker.lease, [("lamp", "1")], block_seconds=60)
        assert lease is not None
        assert (lease.job.job_id, lease.alone) == (job_id, alone)
    async for _ in stack.queue.jobs.events(job_id):
        pass


async def buried(stack: Stack, **fields: Any) -> str:
    """Returns the identifier of a job that was dead-lettered."""
    job_id = await submitted(stack, **fields)
    await taking_workers_down(stack, job_id)
    return job_id


def retry(stack: Stack, job_id: str, **options: Any) -> Any:
    return stack.explanations.RetryExplanation(api.RetryExplanationRequest(job_id=job_id), **options)


async def got(stack: Stack, job_id: str) -> explanation_pb2.Explanation:
    answer = await stack.explanations.GetExplanation(api.GetExplanationRequest(job_id=job_id))
    return answer.explanation


async def finished(stack: Stack, job_id: str) -> tuple[explanation_pb2.Explanation, ScriptedWorker]:
    """Lets a worker run what waits until a job has ended."""
    worker = stack.worker()
    async with worker.at_work():
        async for _ in stack.queue.jobs.events(job_id):
            pass
    return await got(stack, job_id), worker


async def test_a_buried_job_runs_again_as_a_new_one_and_stays_as_it_is() -> None:
    async with running(queue=Queue(own_settings(**SHORT))) as stack:
        old = await buried(stack, request_id="mine", seed=4, baseline=BASELINE, metrics=METRICS)
        before = await got(stack, old)
        new = (await retry(stack, old)).explanation
        assert (new.state, new.request_id) == (explanation_pb2.JOB_STATE_QUEUED, "")
        assert new.job_id != old
        after, worker = await finished(stack, new.job_id)
        assert after.state == explanation_pb2.JOB_STATE_COMPLETED
        (lease,) = worker.leases
        assert (lease.job.attempt, set(lease.images)) == (1, {"image", "baseline", "background-0", "background-1"})
        assert explanation_pb2.ExplanationSpec.FromString(lease.request).seed == 4
        assert await got(stack, old) == before
        assert await submitted(stack, request_id="mine", seed=4, baseline=BASELINE, metrics=METRICS) == old


async def test_only_buried_jobs_run_again() -> None:
    async with running(queue=Queue(own_settings(**SHORT))) as stack:
        waiting = await submitted(stack)
        error = await refusal(retry(stack, waiting))
        assert (error.code(), details(error).field) == (grpc.StatusCode.FAILED_PRECONDITION, "job_id")
        completed, _ = await finished(stack, waiting)
        assert completed.state == explanation_pb2.JOB_STATE_COMPLETED
        assert (await refusal(retry(stack, waiting))).code() == grpc.StatusCode.FAILED_PRECONDITION
        late = await submitted(stack, seed=1, deadline={"nanos": 1000})
        assert [event async for event in stack.queue.jobs.events(late)][-1].terminal
        assert (await stack.queue.jobs.get(late)).state is JobState.FAILED
        assert (await refusal(retry(stack, late))).code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_a_buried_job_whose_images_are_gone_cannot_run_again() -> None:
    settings = own_settings(**SHORT, image_retention_seconds=0.001)
    async with running(queue=Queue(settings)) as stack:
        old = await buried(stack)
        await images_are_gone(stack, old)
        error = await refusal(retry(stack, old))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "are deleted" in (error.details() or "")


async def test_only_administrators_of_the_tenant_retry() -> None:
    tokens = {
        hashlib.sha256(b"ann").hexdigest(): {"tenant": "ann"},
        hashlib.sha256(b"root").hexdigest(): {"tenant": "ann", "roles": ["explain", "admin"]},
        hashlib.sha256(b"eve").hexdigest(): {"tenant": "eve", "roles": ["explain", "admin"]},
    }
    async with running(quick_settings(tokens=tokens), Queue(own_settings(**SHORT))) as stack:
        request = api.SubmitExplanationRequest(spec=spec())
        bearer = {name: {"metadata": (("authorization", f"Bearer {name}"),)} for name in ("ann", "root", "eve")}
        job_id = (await stack.explanations.SubmitExplanation(request, **bearer["ann"])).explanation.job_id
        await taking_workers_down(stack, job_id)
        assert (await refusal(retry(stack, job_id, **bearer["ann"]))).code() == grpc.StatusCode.PERMISSION_DENIED
        assert (await refusal(retry(stack, job_id, **bearer["eve"]))).code() == grpc.StatusCode.NOT_FOUND
        assert (await retry(stack, job_id, **bearer["root"])).explanation.job_id != job_id
