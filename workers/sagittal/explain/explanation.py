"""A complete explanation: prediction, baseline, the steps of the method, and the curves that measure its quality."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sagittal.engine.requests import Request
from sagittal.explain.events import (
    Checkpoint,
    Curve,
    Event,
    GraphNode,
    Measurement,
    SaliencyMask,
    SufficientSet,
    Surrogate,
    Warning,
)
from sagittal.explain.explainer import Explainer
from sagittal.explain.measures.curves import Metrics, curve_evaluations, measure, pointing_game
from sagittal.explain.measures.predictability import Finding, measure_predictability
from sagittal.explain.measures.stability import measure_stability
from sagittal.explain.problem import Problem, Question, State, prepare
from sagittal.explain.sets.robustness import assess_robustness, robustness_evaluations
from sagittal.explain.sets.sufficient_sets import UPSAMPLING, PatchSearch
from sagittal.explain.steps import Steps, T, relay

EMPTY = 0.05
"""A heatmap whose largest value is below this is empty."""


def explanation_steps(question: Question, explainer: Explainer, metrics: Metrics = Metrics()) -> Steps[None]:
    """Yields the requests and events of one explanation, from prediction to metrics."""
    problem = yield from prepare(question, hides=explainer.hides or metrics.curves or metrics.predictability > 0)
    found = _Findings(state=problem.restored)
    yield from observe(explainer.explain(problem), found.note)
    for each in found.told:
        if isinstance(each, SaliencyMask):
            yield from observe(assess(problem, each, metrics), found.note_curve)
    if metrics.predictability:
        yield from measure_predictability(problem, found.told, metrics.predictability)
    first = found.first_mask
    if metrics.stability and first is not None:
        yield from measure_stability(problem, explainer, first, found.curves, metrics, found.state)
    if metrics.robustness is not None and isinstance(explainer, PatchSearch):
        yield from assess_robustness(
            problem,
            found.sets,
            metrics.robustness,
            rule=explainer.rule(problem),
            upsampling=UPSAMPLING[explainer.patch_shape],
            state=found.state,
        )


def measurements(metrics: Metrics, size: int) -> int:
    """Returns about how many evaluations it takes to measure a result, for an image of `size` pixels a side."""
    curves, robustness = curve_evaluations(metrics, size), robustness_evaluations(metrics.robustness)
    return (1 + metrics.stability) * curves + metrics.predictability + robustness


@dataclass(slots=True, kw_only=True, eq=False)
class _Findings:
    """The findings of an explainer that are measured."""

    state: State
    """State of its last checkpoint."""
    told: list[Finding] = field(default_factory=list)
    """Final masks, sets, nodes and surrogates as they were yielded."""
    curves: list[Curve] = field(default_factory=list)

    @property
    def first_mask(self) -> SaliencyMask | None:
        """The final mask with index 0, if there is one."""
        return next((each for each in self.told if isinstance(each, SaliencyMask) and each.index == 0), None)

    @property
    def sets(self) -> list[SufficientSet]:
        """The sets as last yielded, diverse sets before others and small ones before large ones."""
        latest = {each.patches: each for each in self.told if isinstance(each, SufficientSet)}
        return sorted(latest.values(), key=lambda each: (not each.diverse, len(each.patches)))

    def note(self, event: Any) -> None:
        """Adds an event."""
        match event:
            case SaliencyMask(final=True) | SufficientSet() | GraphNode() | Surrogate():
                self.told.append(event)
            case Checkpoint():
                self.state = event.state

    def note_curve(self, event: Any) -> None:
        """Adds a curve."""
        if isinstance(event, Curve):
            self.curves.append(event)


def observe(steps: Steps[T], note: Callable[[Any], None]) -> Steps[T]:
    """Forwards everything in both directions, including exceptions, and calls `note` with each yielded value."""

    def change(item: Request | Event) -> Request | Event:
        note(item)
        return item

    return relay(steps, change)


def assess(problem: Problem, mask: SaliencyMask, metrics: Metrics) -> Steps[None]:
    """Yields the measurements of a final mask, and a warning if the mask is empty."""
    if is_empty(mask.saliency):
        yield Warning(
            "EMPTY_EXPLANATION",
            "No part of the image was found to matter: hiding it hardly changes the score. The model may not use the "
            "image for this class, or its evidence may be spread too thinly for a mask of this size.",
        )
    if metrics.curves:
        yield from measure(problem, mask.saliency, metrics, mask.index)
    if metrics.boxes:
        yield Measurement("pointing_game_hit", pointing_game(mask.saliency, problem.size, metrics.boxes))


def is_empty(saliency: Tensor) -> bool:
    """Returns whether a heatmap is empty."""
    return float(saliency.abs().max()) < EMPTY
