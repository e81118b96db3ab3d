"""Quality metrics of the explanations that a worker serves, by model and method; observed when a job completes."""

from dataclasses import dataclass, field
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram

from sagittal.core.jobs import Job
from sagittal.explain import events

_SHARES = tuple(step / 20 for step in range(1, 21))
_AREAS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_RATIOS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

#: Share of the unmasked score that an area must recover to count as sufficient, as for sufficient sets.
SUFFICIENT_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class QualityMetrics:
    """Histograms and counters over completed explanations."""

    insertion: Histogram
    deletion: Histogram
    sufficient_area: Histogram
    baseline_score: Histogram
    baseline_confident: Counter
    hardly_part: Counter

    @classmethod
    def create(cls, registry: CollectorRegistry) -> Self:
        """Registers the metrics."""

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        labels = ("model", "method")

        return cls(
            insertion=histogram("sagittal_insertion_auc", "Insertion AUC served.", _SHARES),
            deletion=histogram("sagittal_deletion_auc", "Deletion AUC served.", _SHARES),
            sufficient_area=histogram(
                "sagittal_sufficient_area_ratio", "Smallest sufficient share of the image for the class.", _AREAS
            ),
            baseline_score=histogram(
                "sagittal_baseline_score_ratio",
                "Score of the class on the baseline over that on the image; low if the baseline hides the class.",
                _RATIOS,
            ),
            baseline_confident=Counter(
                "sagittal_baseline_still_confident",
                "Explanations whose baseline did not hide the class.",
                labels,
                registry=registry,
            ),
            hardly_part=Counter(
                "sagittal_curves_hardly_part",
                "Explanations with the warning CURVES_HARDLY_PART: their heatmap may be no better than a random order.",
                labels,
                registry=registry,
            ),
        )

    def expect(self, model: str, method: str) -> None:
        """Sets the counters to 0 before the first explanation."""
        for counter in (self.baseline_confident, self.hardly_part):
            counter.labels(model, method)


@dataclass(slots=True)
class Quality:
    """The quality of a job's result, collected from its events."""

    insertion: float | None = None
    deletion: float | None = None
    areas: list[float] = field(default_factory=list)
    """Shares of the image that were found to be sufficient."""
    baseline_ratio: float | None = None
    baseline_confident: bool = False
    hardly_part: bool = False

    def note(self, event: events.Event) -> None:
        """Adds an event."""
        match event:
            case events.Curve(kind=events.CurveKind.INSERTION, mask_index=0):
                self.insertion = event.auc
                self.areas.append(sufficient_area(event))
            case events.Curve(kind=events.CurveKind.DELETION, mask_index=0):
                self.deletion = event.auc
            case events.SufficientSet():
                self.areas.append(len(event.patches) / event.grid**2)
            case events.Prediction(baseline=kind) if kind and event.target.score > 0:
                self.baseline_ratio = event.baseline_score / event.target.score
            case events.Warning(reason="BASELINE_STILL_CONFIDENT"):
                self.baseline_confident = True
            case events.Warning(reason="CURVES_HARDLY_PART"):
                self.hardly_part = True

    def observe(self, metrics: QualityMetrics, job: Job) -> None:
        """Observes the metrics of a completed job."""
        labels = (job.model, job.method)
        for histogram, value in (
            (metrics.insertion, self.insertion),
            (metrics.deletion, self.deletion),
            (metrics.sufficient_area, min(self.areas, default=None)),
            (metrics.baseline_score, self.baseline_ratio),
        ):
            if value is not None:
                histogram.labels(*labels).observe(value)
        metrics.baseline_confident.labels(*labels).inc(self.baseline_confident)
        metrics.hardly_part.labels(*labels).inc(self.hardly_part)


def sufficient_area(insertion: events.Curve) -> float:
    """Returns the smallest share of the image along an insertion curve that recovers 90 % of the unmasked score."""
    enough = SUFFICIENT_SHARE * insertion.scores[-1]
    reached = zip(insertion.fractions, insertion.scores, strict=True)
    return next((fraction for fraction, score in reached if score >= enough), 1.0)
