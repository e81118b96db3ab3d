"""Events that the queue writes itself, and the little that it reads from the events of workers.

The queue's own events lack the job's identity; it is added for each job that shares the execution.
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
#: A terminal event that the queue made, without any job's identity.
UNSIGNED_TERMINAL = b"T"


@dataclass(frozen=True, slots=True)
class Settled:
    """The values that the queue reads from a worker's terminal event."""

    evaluations: int = 0
    """Model evaluations of a completed explanation; 0 if it was truncated, or exceeded MAX_EVALUATIONS."""
    seconds: float = 0.0
    """Seconds from start to end on the worker."""
    reason: str = ""
    """Reason of the failure, as in `ErrorInfo`; empty if it did not fail."""
    may_answer: bool = True
    """Whether equal requests may share this answer; not if a deadline truncated it, as that is not part of the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """An execution, or one of its jobs, that the queue must end because no worker will."""

    reason: Literal["buried", "cancelled", "expired", "damaged"]
    scope: Literal["run", "job"]
    job_id: str
    token: str
    attempt: int
    worker: str
    detail: str
    """Why it was cancelled; empty otherwise."""

    @property
    def state(self) -> JobState:
        """State in which it ends."""
        return JobState.CANCELLED if self.reason == "cancelled" else JobState.FAILED

    @property
    def error_reason(self) -> str:
        """Reason of the failure, as in `ErrorInfo`; empty if it was cancelled."""
        reasons = {"buried": JobBuried.reason, "expired": Expired.reason, "damaged": JobFailed.reason}
        return reasons.get(self.reason, "")

    def log(self, trace_context: bytes) -> None:
        """Logs the ending."""
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
            when = "during an attempt whose worker was lost or hung" if self.attempt else "before a worker was free"
            error: SagittalError = Expired(f"the deadline passed {when}; set a later deadline")
        elif self.reason == "damaged":
            error = JobFailed("the job's record in Redis was damaged, so it cannot be executed; send the request again")
        else:
            error = JobBuried(
                f"the job is dead-lettered: its worker was lost in {self.attempt} attempts, the last one on "
                f"{self.worker!r}; it is not tried again. See that worker's log for the cause"
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
    """Returns what the queue needs from a terminal event."""
    event = explanation_pb2.ExplanationEvent()
    try:
        event.ParseFromString(payload)
    except DecodeError:
        return Settled()  # unreadable events are stored as they are, as in `classify`
    completed = event.completed
    learnable = not completed.truncated and completed.evaluations <= MAX_EVALUATIONS
    return Settled(
        evaluations=completed.evaluations if learnable else 0,
        seconds=max(completed.run_time.ToNanoseconds() / 1e9, 0.0),
        reason=from_status(event.failed).reason if event.HasField("failed") else "",
        may_answer=completed.truncated_by != "deadline",
    )


def position(ahead: int) -> bytes:
    """Returns bytes to append to a serialized `accepted` event to set how many executions are ahead."""
    accepted = explanation_pb2.Accepted(queue_position=ahead)
    return explanation_pb2.ExplanationEvent(accepted=accepted).SerializeToString() if ahead else b""


def expired_events(job_id: str, sequence: int) -> EventsExpired:
    """Returns the error for a job that was deleted while its events were read."""
    return EventsExpired(
        f"job {job_id} was deleted after its events up to {sequence} were read: its retention passed, its space was "
        "needed, or a caller deleted it; read faster, or keep jobs longer (retention_seconds, max_stored_bytes)",
        field="job_id",
    )


def forgotten_request(job_id: str) -> FailedPrecondition:
    """Returns the error for a job whose request and images are deleted."""
    return FailedPrecondition(
        f"the request and the images of job {job_id} are deleted: send the image again", field="job_id"
    )


def classify(payload: bytes) -> bytes:
    """Returns LASTING or PASSING for a serialized event; see `is_lasting`."""
    event = explanation_pb2.ExplanationEvent()
    try:
        event.ParseFromString(payload)
    except DecodeError:
        return LASTING  # unreadable events are kept
    return LASTING if is_lasting(event) else PASSING


def is_lasting(event: explanation_pb2.ExplanationEvent) -> bool:
    """Returns whether an event matters after its job has ended: all do except progress and partial masks."""
    kind = event.WhichOneof("event")
    return kind != "progress" and (kind != "mask" or event.mask.final)


def _event(now: float) -> explanation_pb2.ExplanationEvent:
    event = explanation_pb2.ExplanationEvent()
    event.time.FromNanoseconds(int(now * 1e9))
    return event
