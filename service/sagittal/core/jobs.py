"""A job: one piece of work on one model, as the queue carries it."""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class JobKind(StrEnum):
    """What a job's request is: the serialized `sagittal.v1` message named beside it."""

    EXPLANATION = "explanation"  # ExplanationSpec
    PREDICTION = "prediction"  # PredictRequest
    REGIONS = "regions"  # ScoreRegionsRequest
    FIT = "fit"  # FitConceptsSettings


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


# What a job is called, and when two jobs are the same question.


#: Raised when the same request would be answered otherwise, so that stored answers are not given for it.
ANSWER_VERSION = 1


def new_job_id() -> str:
    """Returns 32 hexadecimal digits that nobody can guess."""
    return secrets.token_hex(16)


def content_key(question: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Returns the SHA-256, in hexadecimal, over everything that an answer depends on.

    Args:
        question: Model, digest, method with its parameters, target, ...: whatever JSON can carry, and bytes.
        images: The pictures by name.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in images.items()}
    whole = {"answer_version": ANSWER_VERSION, "images": digests, **question}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), default=_digest)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(value: object) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(f"{type(value).__name__} cannot be part of a content key")


# What a job will cost, learned from jobs that ended: model evaluations and seconds, by model, method and setting.
#
# A *setting* is what of a request decides its cost: the method's plain parameters, the budget and the curves. What a
# setting cost before is the estimate of the next job with it. A setting that was never seen is estimated from those of
# the same method that were, by a line through their logarithms: costs are mostly products of the numbers asked for
# (iterations times points). Ridge regression keeps that line flat where nothing is known.


#: Model evaluations that a request may ask for, and that an estimate may reach.
MAX_EVALUATIONS = 1_000_000_000

#: Characters of a setting; longer ones, of methods with many parameters, are cut off and so told apart less well.
MAX_SETTING = 512

#: Strength with which slopes are held to 0, against squared differences of logarithms.
RIDGE = 0.05

#: Furthest that an estimate leaves what was observed, as a factor.
FURTHEST = 100.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job takes."""

    evaluations: float
    """Model evaluations, metrics included."""
    seconds: float
    """Time from start to end on a worker that runs other jobs beside it; 0 where not known."""


def setting_of(parameters: Mapping[str, Any], **others: float | str) -> str:
    """Returns the setting of a request as text: equal texts cost the same."""
    plain = {name: value for name, value in parameters.items() if isinstance(value, bool | int | float | str)}
    return json.dumps(plain | others, sort_keys=True, separators=(",", ":"))[:MAX_SETTING]


def estimate(setting: str, observed: Mapping[str, Cost]) -> Cost | None:
    """Returns what a job with this setting will cost, from the settings of its model and method seen before.

    None where nothing was seen.
    """
    if not observed:
        return None
    if setting in observed:
        return observed[setting]
    evaluations = _extrapolate(_numbers(setting), [_numbers(each) for each in observed], list(observed.values()))
    spent = sum(cost.evaluations for cost in observed.values())
    return Cost(evaluations, sum(cost.seconds for cost in observed.values()) * evaluations / max(spent, 1.0))


def _extrapolate(wanted: Mapping[str, float], settings: Sequence[Mapping[str, float]], costs: Sequence[Cost]) -> float:
    """Returns the evaluations on the line through what was observed."""
    names = sorted({name for setting in settings for name in setting} & set(wanted))
    points = np.array([[_log(setting.get(name, wanted[name])) for name in names] for setting in settings])
    values = np.log([max(cost.evaluations, 1.0) for cost in costs])
    middle = points.mean(0)
    slopes = _slopes(points - middle, values - values.mean())
    found = values.mean() + (np.array([_log(wanted[name]) for name in names]) - middle) @ slopes
    reach = math.log(FURTHEST)
    return max(math.exp(float(np.clip(found, values.min() - reach, values.max() + reach))), 1.0)


def _slopes(points: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the slopes of ridge regression, of shape (names,)."""
    normal = points.T @ points + RIDGE * np.eye(points.shape[1])
    return np.asarray(np.linalg.solve(normal, points.T @ values))


def _numbers(setting: str) -> Mapping[str, float]:
    """Returns the finite numbers of a setting by name; none where it was cut off."""
    try:
        values = json.loads(setting)
    except json.JSONDecodeError:
        return {}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _log(number: float) -> float:
    return math.copysign(math.log1p(abs(number)), number)
