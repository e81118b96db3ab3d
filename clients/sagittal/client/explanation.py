"""A job with all that is known of it, gathered from its events."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sagittal.client.errors import JobCancelled, SagittalError, from_status
from sagittal.client.events import (
    Accepted,
    ClassScore,
    Completed,
    ConceptContribution,
    ConceptPrediction,
    Curve,
    Event,
    From,
    GraphEdge,
    GraphNode,
    Mask,
    Prediction,
    Progress,
    Started,
    SufficientSet,
    Warning,
)
from sagittal.client.parsing import parse, parse_event
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Graph:
    """The structured attention graph: sets of patches, and edges that each remove one patch."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    @property
    def roots(self) -> tuple[GraphNode, ...]:
        """The minimal sufficient explanations that the graph grows from."""
        return tuple(node for node in self.nodes if node.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where a job stands."""

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
    """Times a worker began it."""
    worker: str
    failure_reason: str = ""
    """Why it failed, such as "JOB_BURIED"; empty where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the model decided as it did, with what is needed to judge the answer.

    Of a job that has not ended, what is known so far; `state` says so.
    """

    job_id: str
    state: str
    model: str = ""
    prediction: Prediction | None = None
    masks: tuple[Mask, ...] = ()
    """The final masks, one for each start; the first is `mask`."""
    curves: tuple[Curve, ...] = ()
    sufficient_sets: tuple[SufficientSet, ...] = ()
    graph: Graph | None = None
    concepts: tuple[ConceptContribution, ...] = ()
    concept_prediction: ConceptPrediction | None = None
    warnings: tuple[Warning, ...] = ()
    completed: Completed | None = None
    """The figures at the end; None while the job has not ended with a result."""
    accepted: Accepted | None = None
    started: Started | None = None
    progress: Progress | None = None
    error: SagittalError | None = None
    """Why the job failed or was cancelled; None where it did not."""

    @property
    def mask(self) -> NDArray[np.float32] | None:
        """The saliency of shape (size, size), 0 to 1, 1 = most salient; None for a method without a heatmap."""
        return self.masks[0].saliency if self.masks else None

    @property
    def target(self) -> ClassScore | None:
        """The class that is explained, with its probability on the full image."""
        return self.prediction.target if self.prediction else None

    @property
    def score(self) -> float | None:
        """The target's probability on the full image."""
        return self.prediction.target.score if self.prediction else None

    @property
    def baseline_score(self) -> float | None:
        """The target's probability on the baseline, which should be near 0; None where nothing was hidden."""
        return self.prediction.baseline_score if self.prediction and self.prediction.baseline else None

    @property
    def insertion(self) -> float | None:
        """Area under the insertion curve, 0 to 1: high is good."""
        return self.completed.insertion if self.completed else None

    @property
    def deletion(self) -> float | None:
        """Area under the deletion curve, 0 to 1: low is good, but only beside a high insertion."""
        return self.completed.deletion if self.completed else None

    @property
    def relative_insertion(self) -> float | None:
        """Insertion over the unmasked score: compare this one between images. Above 1 if a part scores higher alone."""
        return _relative(self.insertion, self.score)

    @property
    def relative_deletion(self) -> float | None:
        """Deletion over the unmasked score."""
        return _relative(self.deletion, self.score)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.completed.method if self.completed else ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The method's parameters with defaults filled in."""
        text = self.completed.parameters_json if self.completed else ""
        return MappingProxyType(json.loads(text) if text else {})

    @property
    def model_version(self) -> str:
        """Version of the model."""
        return self.completed.model_version if self.completed else ""

    @property
    def model_digest(self) -> str:
        """Digest of the model's weights and preprocessing."""
        return self.completed.model_digest if self.completed else ""

    @property
    def seed(self) -> int | None:
        """Seed that was used."""
        return self.completed.seed if self.completed else None

    @property
    def evaluations(self) -> int:
        """Model evaluations so far, those with gradient and those for the metrics included."""
        if self.completed:
            return self.completed.evaluations
        return self.progress.evaluations if self.progress else 0

    @property
    def gradient_evaluations(self) -> int:
        """Model evaluations with gradient."""
        return self.completed.gradient_evaluations if self.completed else 0

    @property
    def seconds(self) -> float | None:
        """Time on the worker, from start to end."""
        return self.completed.run_seconds if self.completed else None


def _relative(area: float | None, unmasked: float | None) -> float | None:
    return area / unmasked if area is not None and unmasked else None


@dataclass(slots=True)
class Gathering:
    """Gathers the events of one job into its explanation."""

    model: str = ""
    job_id: str = ""
    kept: dict[type[Event], list[Any]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Takes an event in. A worker that starts says all again, whatever one before it said."""
        self.job_id = event.job_id
        if isinstance(event, Started):
            self.kept = {kind: events for kind, events in self.kept.items() if kind is Accepted}
        if isinstance(event, Mask) and not event.final:
            return
        self.kept.setdefault(type(event), []).append(event)

    def explanation(self, state: str = "completed", error: SagittalError | None = None) -> Explanation:
        """Returns what was gathered."""
        # What is told again replaces what was said before: whether a set is diverse is known for sure at the end only.
        sets = {found.patches: found for found in self._all(SufficientSet)}
        nodes = {node.id: node for node in self._all(GraphNode)}
        edges = {(edge.parent, edge.child): edge for edge in self._all(GraphEdge)}
        return Explanation(
            job_id=self.job_id,
            state=state,
            model=self.model,
            prediction=self._last(Prediction),
            masks=tuple(sorted(self._all(Mask), key=lambda mask: mask.index)),
            curves=tuple(self._all(Curve)),
            sufficient_sets=tuple(sets.values()),
            graph=Graph(tuple(nodes.values()), tuple(edges.values())) if nodes else None,
            concepts=tuple(self._all(ConceptContribution)),
            concept_prediction=next(iter(self._all(ConceptPrediction)), None),
            warnings=tuple(self._all(Warning)),
            completed=self._last(Completed),
            accepted=self._last(Accepted),
            started=self._last(Started),
            progress=self._last(Progress),
            error=error,
        )

    def _all(self, kind: type[E]) -> Iterable[E]:
        return self.kept.get(kind, ())

    def _last(self, kind: type[E]) -> E | None:
        return next(reversed(self.kept.get(kind, ())), None)


def terminal_error(event: pb.ExplanationEvent) -> SagittalError | None:
    """Returns the error that ends a job with this event, or None where it is another event."""
    match event.WhichOneof("event"):
        case "failed":
            return from_status(event.failed, job_id=event.job_id)
        case "cancelled":
            reason = event.cancelled.reason or "no reason given"
            return JobCancelled(f"job {event.job_id} was cancelled: {reason}", job_id=event.job_id)
    return None


def parse_job(message: pb.Explanation) -> Job:
    """Returns the standing of a job."""
    job = parse(Job, message)
    return job if job.lane else replace(job, lane="interactive")


def parse_explanation(message: pb.Explanation) -> Explanation:
    """Returns a stored job with what its events say so far."""
    gathering, error = Gathering(model=message.model, job_id=message.job_id), None
    for event in message.events:
        failure = terminal_error(event)
        if failure is None:
            gathering.add(parse_event(event))
        error = failure or error
    return gathering.explanation(parse_job(message).state, error)


# Answers to "what if only these patches were shown".


@dataclass(frozen=True, slots=True)
class RegionScore:
    """The score of one set of patches."""

    score: float
    """The target's probability."""
    relative_score: float
    """That probability over the full image's."""
    top: ClassScore
    """The top class then."""
    cached: bool
    """True where the job had scored the set already."""


@dataclass(frozen=True, slots=True)
class RegionScores:
    """The scores of sets of patches, in their order."""

    full: ClassScore
    """The target's probability on the full image."""
    scores: tuple[RegionScore, ...]


def parse_regions(message: service_pb.ScoreRegionsResponse) -> RegionScores:
    """Returns the answer as a dataclass."""
    return parse(RegionScores, message)
