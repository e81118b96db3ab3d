"""Buried jobs, run again: each as a new job, since a job has one terminal event."""

from contextlib import aclosing

import structlog

from sagittal.core.errors import FailedPrecondition, JobBuried
from sagittal.core.jobs import Job, JobKind, JobState
from sagittal.core.status import from_status
from sagittal.runtime.queue import JobQueue
from sagittal.server.access import Caller
from sagittal.server.intake import Intake
from sagittal.server.relay import Relay
from sagittal.v1 import explanation_pb2

_log = structlog.get_logger(__name__)


class Retries:
    """Submits buried jobs anew."""

    def __init__(self, queue: JobQueue, intake: Intake, relay: Relay) -> None:
        self._queue = queue
        self._intake = intake
        self._relay = relay

    async def again(self, buried: Job, caller: Caller) -> Job:
        """Returns a new job with the request and the images of a buried one.

        Raises:
            FailedPrecondition: the job is not buried, or its images are no longer kept.
            SagittalError: the request is refused now, for instance because its model is gone.
        """
        with self._intake.counting_refusals():
            await self._check_buried(buried)
            stored = await self._queue.request_of(buried.job_id)
        spec = explanation_pb2.ExplanationSpec.FromString(stored.request)
        spec.image.ParseFromString(stored.images["image"])
        if "baseline" in stored.images:
            spec.baseline.image.ParseFromString(stored.images["baseline"])
        spec.ClearField("request_id")  # it stays the buried job's
        job, _ = await self._intake.explain(spec, caller)
        _log.info("job-retried", job_id=buried.job_id, new_job_id=job.job_id)
        return job

    async def _check_buried(self, job: Job) -> None:
        if job.kind is not JobKind.EXPLANATION or not await self._is_buried(job):
            text = f"job {job.job_id} is a {job.state.value} {job.kind.value}; only buried explanations are run again"
            raise FailedPrecondition(text, field="job_id")

    async def _is_buried(self, job: Job) -> bool:
        if job.state is not JobState.FAILED:
            return False
        async with aclosing(self._relay.events(job, job.last_sequence - 1)) as events:
            return any([isinstance(from_status(event.failed), JobBuried) async for event in events])
