"""The events that the queue itself writes, and the one thing that it wants to know of others.

They lack the job's identity, which the queue adds for each job that shares the run.
"""

from dataclasses import dataclass
from typing import Literal

import structlog
from google.protobuf.message import DecodeError

from sagittal.core.errors import (
    EventsExpired,
    Expired,
    FailedPrecondition,
    JobBuried,
    JobFailed,
    SagittalError,
    from_status,
    to_status,
)
from sagittal.core.jobs import MAX_EVALUATIONS, JobState
from sagittal.process.logs import trace_id
from sagittal.v1 import explanation_pb2

log = structlog.get_logger(__name__)

TERMINAL, PASSING, LASTING = b"t", b"p", b"e"
#: A terminal event that the queue made, which lacks the identity of every job.
UNSIGNED_TERMINAL = b"T"


@dataclass(frozen=True, slots=True)
class Settled:
    """What the queue wants to know of a terminal event that a worker wrote."""

    evaluations: int = 0
    """Model evaluations of a whole explanation; 0 if it was cut short, is none, or took more than a request may ask."""
    seconds: float = 0.0
    """Time from its start to its end on the worker."""
    reason: str = ""
    """Why it failed, as in `ErrorInfo`; empty where it did not."""
    may_answer: bool = True
    """Whether equal requests may be given this answer: not one that a deadline, which is not in it, cut short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A run, or a job of it, that the queue must end because no worker will."""

    reason: Literal["buried", "cancelled", "expired", "damaged"]
    scope: Literal["run", "job"]
    job_id: str
    token: str
    attempt: int
    worker: str
    detail: str
    """Why it was cancelled; else empty."""

    @property
    def state(self) -> JobState:
        """The state that it ends in."""
        return JobState.CANCELLED if self.reason == "cancelled" else JobState.FAILED

    @property
    def error_reason(self) -> str:
        """Why it failed, as in `ErrorInfo`; empty where it was cancelled."""
        reasons = {"buried": JobBuried.reason, "expired": Expired.reason, "damaged": JobFailed.reason}
        return reasons.get(self.reason, "")

    def log(self, trace_context: bytes) -> None:
        """Logs that it was ended."""
        log.warning(
            "job-ended-by-queue",
            job_id=self.job_id,
            trace_id=trace_id(trace_context.decode()),
            reason=self.reason,
            attempt=self.attempt,
        )

    def event(self, now: float) -> bytes:
        """Returns the terminal event, without identity."""
        if self.reason == "cancelled":
            return cancelled_event(self.detail, now)
        if self.reason == "expired":
            when = "while it ran, its worker lost or hung" if self.attempt else "before a worker was free"
            error: SagittalError = Expired(f"the deadline passed {when}; allow more time")
        elif self.reason == "damaged":
            error = JobFailed("the job's record in Redis was damaged, and it cannot be run: send the request again")
        else:
            error = JobBuried(
                f"the job lost its worker {self.attempt} times, the last one was {self.worker!r}: it is not tried "
                "again; see that worker's log for what it died of"
            )
        event = _event(now)
        event.failed.CopyFrom(to_status(error))
        return event.SerializeToString()


def cancelled_event(reason: str, now: float) -> bytes:
    """Returns the terminal event of a cancelled job, without identity."""
    event = _event(now)
    event.cancelled.reason = reason
    return event.SerializeToString()


def read_settled(payload: bytes) -> Settled:
    """Returns what a terminal event says of the run."""
    event = explanation_pb2.ExplanationEvent()
    try:
        event.ParseFromString(payload)
    except DecodeError:
        return Settled()  # not ours to judge, as in `classify`
    completed = event.completed
    learnable = not completed.truncated and completed.evaluations <= MAX_EVALUATIONS
    return Settled(
        evaluations=completed.evaluations if learnable else 0,
        seconds=max(completed.run_time.ToNanoseconds() / 1e9, 0.0),
        reason=from_status(event.failed).reason if event.HasField("failed") else "",
        may_answer=completed.truncated_by != "deadline",
    )


def position(ahead: int) -> bytes:
    """Returns what is joined to an `accepted` event to say how many runs are ahead; serialized messages merge."""
    accepted = explanation_pb2.Accepted(queue_position=ahead)
    return explanation_pb2.ExplanationEvent(accepted=accepted).SerializeToString() if ahead else b""


def expired_events(job_id: str, sequence: int) -> EventsExpired:
    """Returns the error that a job went while its events were read."""
    return EventsExpired(
        f"job {job_id} was removed when its events up to {sequence} had been read: its retention passed, its room was "
        "needed, or it was deleted; read faster, or keep jobs longer (retention_seconds, max_stored_bytes)",
        field="job_id",
    )


def forgotten_request(job_id: str) -> FailedPrecondition:
    """Returns the error that the request and the images of a job are gone."""
    return FailedPrecondition(
        f"the request and the images of job {job_id} are no longer kept: send the image again", field="job_id"
    )


def classify(payload: bytes) -> bytes:
    """Returns PASSING for what only matters while the job runs (progress, partial masks), else LASTING."""
    event = explanation_pb2.ExplanationEvent()
    try:
        event.ParseFromString(payload)
    except DecodeError:
        return LASTING  # not ours to judge: kept like everything that counts
    partial = event.HasField("mask") and not event.mask.final
    return PASSING if partial or event.HasField("progress") else LASTING


def _event(now: float) -> explanation_pb2.ExplanationEvent:
    event = explanation_pb2.ExplanationEvent()
    event.time.FromNanoseconds(int(now * 1e9))
    return event
