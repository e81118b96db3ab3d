"""What the in-memory queue holds: jobs as callers see them, and the runs that jobs with equal content share."""

import math
import time
from dataclasses import dataclass, field, replace

from sagittal.core.jobs import Job, JobState, Lane, Lease, NewJob, StoredEvent
from sagittal.runtime.job_events import PASSING, TERMINAL
from sagittal.v1 import explanation_pb2


@dataclass(slots=True, eq=False)
class Run:
    """The work for one or more jobs."""

    new: NewJob
    lane: Lane
    deadline: float
    """Infinity for none."""
    tag: float
    """Its place in the fair order of its lane; lower goes first."""
    state: JobState = JobState.QUEUED
    attempt: int = 0
    worker: str = ""
    token: int = 0
    cancel: str = ""
    cancelled: float = 0.0
    """When its cancellation was asked for."""
    expires: float = math.inf
    """When the lease ends without a heartbeat."""
    jobs: list["Record"] = field(default_factory=list)
    checkpoint: bytes | None = None
    stored: bool = False
    """Whether its images are still there."""
    created: float = 0.0
    ended: float = 0.0

    @property
    def live(self) -> bool:
        """Whether it has still to be done."""
        return not self.state.ended

    @property
    def size(self) -> int:
        """Bytes of its request and images."""
        return len(self.new.request) + sum(map(len, self.new.images.values()))


@dataclass(slots=True, eq=False)
class Record:
    """A job with its log."""

    new: NewJob
    created: float
    number: int
    """Order of creation."""
    fingerprint: str
    run: Run | None = None
    state: JobState | None = None
    """Set when it has ended."""
    ended: float | None = None
    attempt: int = 0
    worker: str = ""
    reason: str = ""
    log: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Kind of event and payload."""

    @property
    def size(self) -> int:
        """Bytes of its log."""
        return sum(len(payload) + 1 for _, payload in self.log)

    def view(self) -> Job:
        """Returns what callers may know."""
        run = self.run if self.state is None else None
        return Job(
            job_id=self.new.job_id,
            kind=self.new.kind,
            state=run.state if run else self.state or JobState.QUEUED,
            model=self.new.model,
            version=self.new.version,
            method=self.new.method,
            lane=self.new.lane,
            tenant=self.new.tenant,
            request_id=self.new.request_id,
            created=self.created,
            ended=self.ended,
            deadline=self.new.deadline,
            attempt=run.attempt if run else self.attempt,
            worker=run.worker if run else self.worker,
            last_sequence=len(self.log),
            cancel_requested=bool(run and run.cancel),
            reason=self.reason,
        )

    def events(self, after: int, until: int | None) -> list[StoredEvent]:
        """Returns the events with sequence numbers in (after, until]."""
        part = self.log[after:until]
        return [StoredEvent(after + n, payload, kind == TERMINAL) for n, (kind, payload) in enumerate(part, start=1)]

    def write(self, kind: bytes, payload: bytes, *, own: bool) -> None:
        """Appends an event; `own` says that it carries this job's identity already."""
        self.log.append((kind, payload if own else payload + self.identity()))

    def copy_answer(self, source: "Record", now: float) -> None:
        """Takes over the lasting events of a job that ended, with the age of its answer."""
        extra = explanation_pb2.ExplanationEvent(job_id=self.new.job_id, request_id=self.new.request_id)
        extra.time.FromNanoseconds(int(now * 1e9))
        aged = explanation_pb2.ExplanationEvent()
        aged.completed.cache_age.FromNanoseconds(int(max(now - (source.ended or now), 0.0) * 1e9))
        for kind, payload in source.log[1:]:
            if kind != PASSING:
                age = aged.SerializeToString() if kind == TERMINAL else b""
                self.log.append((kind, payload + age + extra.SerializeToString()))

    def identity(self) -> bytes:
        """Returns the fields that make an event this job's: serialized messages merge when they are joined."""
        event = explanation_pb2.ExplanationEvent(job_id=self.new.job_id, request_id=self.new.request_id)
        # An empty request_id must replace another job's, and protobuf leaves empty fields out.
        return event.SerializeToString() + (b"" if self.new.request_id else b"\x22\x00")


def lease_of(run: Run) -> Lease:
    """Returns the lease of a run as it stands."""
    lead = Record(run.new, run.created, 0, "", run)
    deadline = None if math.isinf(run.deadline) else run.deadline
    return Lease(
        job=replace(lead.view(), lane=run.lane, deadline=deadline, last_sequence=len(run.jobs[0].log)),
        request=run.new.request,
        images=dict(run.new.images),
        token=run.token,
        trace_context=run.new.trace_context,
        checkpoint=run.checkpoint,
    )


def next_token(run: Run) -> int:
    """Returns a token higher than all before, and unlike any that a restart may have forgotten."""
    return max(run.token + 1, time.time_ns() // 1000)
