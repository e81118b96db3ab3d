"""The state of a job, and its changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated

from sagittal.client.events import From
from sagittal.client.parsing import parse
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The state of a job."""

    job_id: str
    state: str
    """"queued", "running", "completed", "failed" or "cancelled"."""
    request_id: str
    model: str
    model_version: str
    method: str
    lane: str
    """"interactive" or "batch"."""
    created: Annotated[datetime, From("create_time")]
    ended: Annotated[datetime | None, From("end_time")]
    attempt: int
    """Number of attempts that a worker started."""
    worker: str
    failure_reason: str = ""
    """Reason of the failure, such as "JOB_BURIED"; empty if the job did not fail."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Labels that the caller set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """A change of one of the tenant's jobs."""

    kind: str
    """"listening": list the jobs now, and no later change is missed (the first change, and after each lost connection);
    "changed"; or "gone": deleted, or past its retention."""
    job_id: str = ""
    job: Job | None = None
    """The current job, if it changed."""


def parse_job(message: pb.Explanation) -> Job:
    """Returns the state of a job."""
    job = parse(Job, message)
    return job if job.lane else replace(job, lane="interactive")


def parse_change(message: service_pb.WatchJobsResponse) -> JobChange:
    """Returns a change of the tenant's jobs."""
    kind = message.WhichOneof("change") or ""
    job = parse_job(message.changed) if kind == "changed" else None
    return JobChange(kind=kind, job_id=job.job_id if job else message.gone, job=job)
