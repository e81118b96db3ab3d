"""Gathers the events of a job to its explanation."""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sagittal.client.errors import JobCancelled, SagittalError, from_status
from sagittal.client.events import (
    Accepted,
    Completed,
    ConceptContribution,
    ConceptPrediction,
    Curve,
    Event,
    GraphEdge,
    GraphNode,
    Mask,
    Prediction,
    Progress,
    Stability,
    Started,
    SufficientSet,
    Surrogate,
    Warning,
)
from sagittal.client.explained_image import ExplainedImage
from sagittal.client.explanation import Explanation, Graph
from sagittal.client.parsing import enum_name, parse_event
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

E = TypeVar("E", bound=Event)


@dataclass(slots=True)
class Gathering:
    """Gathers the events of one job to its explanation."""

    model: str = ""
    job_id: str = ""
    image: tensor_pb2.Image | None = None
    """The explained image, if it is known."""
    baseline: tensor_pb2.Image | None = None
    """The given baseline image, if any."""
    kept: dict[type[Event], list[Any]] = field(default_factory=dict)

    @property
    def completed(self) -> bool:
        """Whether the last event has arrived."""
        return Completed in self.kept

    def add(self, event: Event) -> None:
        """Adds an event. A worker that starts the job again repeats all events; earlier ones are dropped."""
        self.job_id = event.job_id
        if isinstance(event, Started):
            self.kept = {kind: events for kind, events in self.kept.items() if kind is Accepted}
        if isinstance(event, Mask) and not event.final:
            return
        self.kept.setdefault(type(event), []).append(event)

    def explanation(self, state: str = "completed", error: SagittalError | None = None) -> Explanation:
        """Returns the explanation gathered so far."""
        # A repeated event replaces the earlier one: only at the end is it certain whether a set is diverse.
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
            surrogate=self._last(Surrogate),
            stability=next(iter(self._all(Stability)), None),
            warnings=tuple(self._all(Warning)),
            completed=self._last(Completed),
            accepted=self._last(Accepted),
            started=self._last(Started),
            progress=self._last(Progress),
            error=error,
            image=self._explained(self._last(Prediction)),
        )

    def attached(self, found: Explanation) -> Explanation:
        """Returns an explanation from elsewhere with the image that is known here."""
        return replace(found, image=self._explained(found.prediction))

    def _explained(self, prediction: Prediction | None) -> ExplainedImage | None:
        """Returns the image, if the worker reported the position of a mask on it."""
        if self.image is None or prediction is None or prediction.preprocessing is None:
            return None
        return ExplainedImage(self.image, prediction.preprocessing, self.baseline)

    def _all(self, kind: type[E]) -> Iterable[E]:
        return self.kept.get(kind, ())

    def _last(self, kind: type[E]) -> E | None:
        return next(reversed(self.kept.get(kind, ())), None)


def gathering_of(spec: pb.ExplanationSpec | None, job_id: str) -> Gathering:
    """Returns a gathering for the events of a job, with its request if it is known."""
    if spec is None:
        return Gathering(job_id=job_id)
    given = spec.baseline.image if spec.baseline.HasField("image") else None
    return Gathering(model=spec.model, job_id=job_id, image=spec.image, baseline=given)


def attach_image(found: Explanation, image: tensor_pb2.Image) -> Explanation:
    """Returns an explanation with its image, if the worker reported the conversion to the model's input."""
    return Gathering(image=image).attached(found)


def terminal_error(event: pb.ExplanationEvent) -> SagittalError | None:
    """Returns the error of an event that ends a job, or None for other events."""
    match event.WhichOneof("event"):
        case "failed":
            return from_status(event.failed, job_id=event.job_id)
        case "cancelled":
            reason = event.cancelled.reason or "no reason given"
            return JobCancelled(f"job {event.job_id} was cancelled: {reason}", job_id=event.job_id)
    return None


def parse_explanation(message: pb.Explanation, *, without: Container[str] = ()) -> Explanation:
    """Returns the explanation of a stored job, from its events so far, `without` those of some kinds."""
    gathering, error = Gathering(model=message.model, job_id=message.job_id), None
    for event in message.events:
        if event.WhichOneof("event") in without:
            continue
        failure = terminal_error(event)
        if failure is None:
            gathering.add(parse_event(event))
        error = failure or error
    return gathering.explanation(enum_name(pb.JobState.DESCRIPTOR, message.state), error)
