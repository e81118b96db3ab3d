"""Jobs: units of work on one model, as the queue stores them, with their identity and their cost."""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray


class JobKind(StrEnum):
    """The kind of a job; the `sagittal.v1` message beside each is the serialized request."""

    EXPLANATION = "explanation"  # ExplanationSpec
    PREDICTION = "prediction"  # PredictRequest
    REGIONS = "regions"  # ScoreRegionsRequest
    FIT = "fit"  # FitConceptsSettings


class Lane(StrEnum):
    """Priority of a job. Interactive jobs go first; batch jobs still get a share."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """True if the job has its terminal event."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class CachePolicy(StrEnum):
    """Whether a job may share the answer of another job with the same `content_key`."""

    USE = "use"  # joins a running execution or takes the stored answer; its own answer is stored
    REFRESH = "refresh"  # starts a new execution; its answer replaces the stored one
    BYPASS = "bypass"  # starts a new execution; nothing is shared or stored


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to be submitted."""

    job_id: str
    """Unguessable identifier: 32 hexadecimal digits."""
    kind: JobKind
    model: str
    """Name of the model."""
    version: str
    """Resolved version of the model; never empty."""
    method: str
    """Name of the method, such as `igos++`; empty if the job is not an explanation."""
    lane: Lane
    request: bytes
    """The serialized request, without its images."""
    images: dict[str, bytes] = field(default_factory=dict)
    """Serialized `sagittal.v1.Image` messages by name: `image`, `baseline`."""
    deadline: float | None = None
    """Time by which the job must end, in seconds since the epoch; None for no deadline."""
    request_id: str = ""
    """The caller's idempotency key; empty for none."""
    tenant: str = "default"
    content_key: str = ""
    """SHA-256 over everything the answer depends on. Equal keys of a tenant share an answer. Empty: never shared."""
    cache: CachePolicy = CachePolicy.USE
    """Whether the answer of another job with the same `content_key` may be used."""
    estimated_evaluations: int = 0
    """Expected model evaluations; 0 if unknown."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels for finding the job. They are not part of its content, so they do not prevent a shared answer."""
    setting: str = ""
    """The part of the request that determines its cost (`setting_of`); empty if no cost is learned from the job."""
    trace_context: str = ""
    """W3C traceparent of the request, followed by a space and its tracestate; empty if there is none."""
    batch: str = ""
    """Name of the tenant's batch to which the job belongs; empty for none."""
    item: str = ""
    """Key of the job's item in the batch."""
    renew: bool = False
    """Whether a completed item whose result is deleted runs again."""

    @property
    def fingerprint(self) -> str:
        """Digest of the job's content, equal for equal jobs: the content key, or SHA-256 over request and images."""
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
    """A job's record, without its request, images and events."""

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
    """Seconds since the epoch; None until the job ends."""
    deadline: float | None
    attempt: int
    """Number of attempts, the current one included."""
    worker: str
    """Worker of the latest attempt; empty if there was none."""
    last_sequence: int
    """Sequence number of the newest event."""
    cancel_requested: bool
    reason: str = ""
    """Stable reason of the failure, such as `JOB_BURIED`; empty if the job did not fail."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the caller set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Conditions for jobs; all of them must hold, and an empty one holds for every job."""

    tenant: str = ""
    kind: JobKind | None = None
    model: str = ""
    states: Sequence[JobState] = ()
    """Any of these states."""
    reason: str = ""
    """Stable reason of the failure."""
    method: str = ""
    request_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the job must have."""
    created_after: float | None = None
    """Created at this time or later, in seconds since the epoch."""
    created_before: float | None = None
    """Created before this time, in seconds since the epoch."""

    def matches(self, job: Job) -> bool:
        """Whether all conditions hold for a job."""
        texts = ("tenant", "model", "reason", "method", "request_id")
        return (
            all(getattr(self, name) in ("", getattr(job, name)) for name in texts)
            and (self.kind is None or self.kind is job.kind)
            and (not self.states or job.state in self.states)
            and self.labels.items() <= job.labels.items()
            and (self.created_after is None or job.created >= self.created_after)
            and (self.created_before is None or job.created < self.created_before)
        )


#: Holds for every job.
EVERY_JOB = JobFilter()


def encode_labels(labels: Mapping[str, str]) -> str:
    """Returns labels as one text, `&key=value&...&`, which contains the text of each label; empty if there are none."""
    parts = [f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(labels.items())]
    return f"&{'&'.join(parts)}&" if parts else ""


def decode_labels(text: str) -> Mapping[str, str]:
    """Returns labels from their text, without damaged ones."""
    pairs = (part.partition("=") for part in text.split("&") if part)
    return {unquote(key): unquote(value) for key, _, value in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's right to execute a job, until the lease is settled, released or lost."""

    job: Job
    request: bytes
    images: dict[str, bytes]
    token: int
    """Fencing token. It rises with each lease of a job, and only the newest token may write."""
    trace_context: str = ""
    checkpoint: bytes | None = None
    """State stored by an earlier attempt; None if there is none."""
    alone: bool = False
    """True if the worker must execute nothing else meanwhile, because its worker died during an earlier attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """Notification to a worker that one of its attempts must end."""

    lease: Lease
    reason: str
    """Why the job was cancelled; empty if its deadline passed."""
    age: float
    """Time since the cancellation was accepted, in seconds on the queue's clock."""
    expired: bool = False
    """True if the deadline passed: the job then ends as failed with DEADLINE_PASSED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRequest:
    """A job's request and images, for as long as the job is retained."""

    request: bytes
    """The serialized request, without its images."""
    images: dict[str, bytes]
    """Images by name, as in `NewJob`."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event in a job's log."""

    sequence: int
    """Sequence number: starts at 1, without gaps."""
    payload: bytes
    """The serialized `sagittal.v1.ExplanationEvent` with the same sequence number."""
    terminal: bool
    """True for the last event of an ended job, and for no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Consecutive events of a job's log."""

    events: Sequence[StoredEvent]
    next_sequence: int | None
    """Sequence number after which to continue; None if there are no more events yet."""
    ended: bool
    """True if the job has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The queued and running executions of one model in one lane."""

    queued: int
    """Executions that wait for a worker; jobs that share an execution count once."""
    running: int
    """Executions that a worker has leased."""
    oldest_seconds: float
    """Waiting time of the oldest queued execution, in seconds; 0 if none waits."""
    queued_evaluations: int = 0
    """Model evaluations that the queued executions are estimated to need."""


#: Version of the answers. Increase it if the same request would get a different answer, so that stored ones expire.
ANSWER_VERSION = 1


def new_job_id() -> str:
    """Returns 32 random hexadecimal digits that cannot be guessed."""
    return secrets.token_hex(16)


def content_key(question: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Returns the SHA-256, in hexadecimal, over everything that an answer depends on.

    Args:
        question: Model, digest, method with its parameters, target and so on: JSON values and bytes.
        images: The serialized images by name.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in images.items()}
    whole = {"answer_version": ANSWER_VERSION, "images": digests, **question}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), default=_digest)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(value: object) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(f"{type(value).__name__} cannot be part of a content key; give JSON values or bytes")


#: Most model evaluations that a request may ask for and that an estimate may return.
MAX_EVALUATIONS = 1_000_000_000

#: Characters of a setting. Longer ones, of methods with many parameters, are truncated and may then coincide.
MAX_SETTING = 512

#: Strength of the ridge penalty on slopes, relative to squared differences of logarithms.
RIDGE = 0.05

#: Largest factor by which an estimate may leave the range of observed costs.
FURTHEST = 100.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one job: model evaluations and seconds. Costs of jobs to come are learned from ended jobs.

    A *setting* is the part of a request that determines its cost: the method's plain parameters, the budget and the
    curves. The estimate for a known setting is its observed cost. For an unknown setting, a line is fitted through the
    logarithms of the known settings of the same method, because most costs are products of the requested numbers
    (iterations times points). Ridge regression keeps the line flat in directions without data.
    """

    evaluations: float
    """Model evaluations, including those for metrics."""
    seconds: float
    """Seconds from start to end on a worker that also executes other jobs; 0 if unknown."""
    device: float = 0.0
    """Seconds of a worker that it takes from other jobs; 0 if unknown."""


def setting_of(parameters: Mapping[str, Any], **others: float | str) -> str:
    """Returns the setting of a request as text; requests with equal texts have equal costs."""
    plain = {name: value for name, value in parameters.items() if isinstance(value, bool | int | float | str)}
    return json.dumps(plain | others, sort_keys=True, separators=(",", ":"))[:MAX_SETTING]


def estimate(setting: str, observed: Mapping[str, Cost]) -> Cost | None:
    """Returns the expected cost of a job with this setting, from observed settings of the same model and method.

    Returns None if nothing was observed.
    """
    if not observed:
        return None
    if setting in observed:
        return observed[setting]
    evaluations = _extrapolate(_numbers(setting), [_numbers(each) for each in observed], list(observed.values()))
    spent = sum(cost.evaluations for cost in observed.values())
    seconds, device = (sum(getattr(cost, name) for cost in observed.values()) for name in ("seconds", "device"))
    return Cost(evaluations, seconds * evaluations / max(spent, 1.0), device * evaluations / max(spent, 1.0))


def _extrapolate(wanted: Mapping[str, float], settings: Sequence[Mapping[str, float]], costs: Sequence[Cost]) -> float:
    """Returns the evaluations on the line fitted through the observed costs."""
    names = sorted({name for setting in settings for name in setting} & set(wanted))
    points = np.array([[_log(setting.get(name, wanted[name])) for name in names] for setting in settings])
    values = np.log([max(cost.evaluations, 1.0) for cost in costs])
    middle = points.mean(0)
    slopes = _slopes(points - middle, values - values.mean())
    found = values.mean() + (np.array([_log(wanted[name]) for name in names]) - middle) @ slopes
    reach = math.log(FURTHEST)
    return max(math.exp(float(np.clip(found, values.min() - reach, values.max() + reach))), 1.0)


def _slopes(points: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the slopes of ridge regression: float64 of shape (names,)."""
    normal = points.T @ points + RIDGE * np.eye(points.shape[1])
    return np.asarray(np.linalg.solve(normal, points.T @ values))


def _numbers(setting: str) -> Mapping[str, float]:
    """Returns the numbers in a setting by name; empty if the text was truncated."""
    try:
        values = json.loads(setting)
    except json.JSONDecodeError:
        return {}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _log(number: float) -> float:
    return math.copysign(math.log1p(abs(number)), number)
