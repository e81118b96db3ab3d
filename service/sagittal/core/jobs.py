"""A job: one piece of work on one model, as the queue carries it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class JobKind(StrEnum):
    """What a job's request is: the serialized `sagittal.v1` message named beside it."""

    EXPLANATION = "explanation"  # ExplanationSpec
    PREDICTION = "prediction"  # PredictRequest
    REGIONS = "regions"  # ScoreRegionsRequest
    FIT = "fit"  # FitConceptsSettings
    CONCEPT_SETS = "concept-sets"  # ListConceptSetsRequest
    CONCEPT_SET = "concept-set"  # GetConceptSetRequest
    CONCEPT_UPDATE = "concept-update"  # UpdateConceptSetRequest
    CONCEPT_DELETION = "concept-deletion"  # DeleteConceptSetRequest


class Lane(StrEnum):
    """Who waits for the answer. Interactive jobs go first; batch jobs are never starved."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job has its terminal event."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class CachePolicy(StrEnum):
    """Whether a job may share the answer of another with the same `content_key`."""

    USE = "use"  # joins a run in flight, or takes the stored answer; its own answer is stored
    REFRESH = "refresh"  # is run anew; its answer replaces the stored one
    BYPASS = "bypass"  # is run anew; nothing is shared or stored


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be accepted."""

    job_id: str
    """Unguessable identifier, 32 hexadecimal digits."""
    kind: JobKind
    model: str
    """Name of the model."""
    version: str
    """Version of the model, resolved: never empty."""
    method: str
    """Name of the method, such as `igos++`; empty for jobs that are no explanations."""
    lane: Lane
    request: bytes
    """The serialized request, without its images."""
    images: dict[str, bytes] = field(default_factory=dict)
    """Images by name: `image`, `baseline`; serialized `sagittal.v1.Image`."""
    deadline: float | None = None
    """Wall-clock time in seconds since the epoch by which the job must have ended; None for no deadline."""
    request_id: str = ""
    """The caller's idempotency key; empty for none."""
    tenant: str = "default"
    content_key: str = ""
    """SHA-256 over everything the answer depends on; equal keys of a tenant share one answer. Empty: never shared."""
    cache: CachePolicy = CachePolicy.USE
    """Whether an answer to the same `content_key` may be shared."""
    estimated_evaluations: int = 0
    """Model evaluations it is expected to take; 0 for not known."""
    setting: str = ""
    """What of the request decides its cost (`core.costs`); empty where nothing is to be learned from it."""
    trace_context: str = ""
    """W3C traceparent of the request and, after a space, its tracestate; empty for none."""

    @property
    def fingerprint(self) -> str:
        """Tells whether two jobs have the same content: the content key, or SHA-256 over what there is."""
        if self.content_key:
            return self.content_key
        digest = hashlib.sha256()
        parts = [self.kind.encode(), self.model.encode(), self.version.encode(), self.method.encode(), self.request]
        for name, image in sorted(self.images.items()):
            parts += [name.encode(), image]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is known of a job, without its request, images and events."""

    job_id: str
    kind: JobKind
    state: JobState
    model: str
    version: str
    method: str
    lane: Lane
    tenant: str
    request_id: str
    created: float
    """Seconds since the epoch."""
    ended: float | None
    """Seconds since the epoch; None while it has not ended."""
    deadline: float | None
    attempt: int
    """Times a worker began it."""
    worker: str
    """Worker that runs or ran it; empty while none did."""
    last_sequence: int
    """Sequence number of its newest event."""
    cancel_requested: bool
    reason: str = ""
    """Stable reason why it failed, such as `JOB_BURIED`; empty where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's right to run a job, until it is settled, released or lost."""

    job: Job
    request: bytes
    images: dict[str, bytes]
    token: int
    """Fencing token: each lease of a job has a higher one, and only the newest may write."""
    trace_context: str = ""
    checkpoint: bytes | None = None
    """State that an earlier attempt stored; None for none."""
    alone: bool = False
    """Whether the worker may run nothing beside it: an earlier attempt ended with its worker's death."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """Word to a worker that a run of its must end."""

    lease: Lease
    reason: str
    """Why it was cancelled; empty if its deadline passed."""
    age: float
    """Time since the cancellation was accepted, in seconds on the queue's clock."""
    expired: bool = False
    """Whether its deadline passed: it then ends as failed, as a job does that the queue ends for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """What a job was made of, while it is kept."""

    request: bytes
    """The serialized request, without its images."""
    images: dict[str, bytes]
    """Images by name, as in `NewJob`."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in a job's log."""

    sequence: int
    """From 1, without gaps."""
    payload: bytes
    """The serialized `sagittal.v1.ExplanationEvent`, whose sequence is that of the log."""
    terminal: bool
    """Whether it ended the job: the last event of every ended job, and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Some events of a job's log in a row."""

    events: Sequence[StoredEvent]
    next_sequence: int | None
    """The sequence number after which the log goes on; None at the end of what there is."""
    ended: bool
    """Whether the job has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The work of one model in one lane."""

    queued: int
    """Runs that wait for a worker; jobs that share a run count once."""
    running: int
    """Runs that a worker holds."""
    oldest_seconds: float
    """How long the oldest queued run has waited, in seconds; 0 where none waits."""
