"""Stability: how much a heatmap and its curves change with the seed.

The method runs again with other seeds. All runs, the explanation among them, give the standard deviation of each cell,
and the interval in which the area of a curve of one more run lies (Student's prediction interval: it assumes areas
that are normally distributed over seeds). The rank correlation of the explanation with the other runs states whether a
reader would see the same order of cells. If it is low, the heatmap is a matter of chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from sagittal.engine.requests import Evaluate, Inspect, OutOfBudget, Request
from sagittal.explain.events import (
    AreaInterval,
    Checkpoint,
    Curve,
    CurveKind,
    Event,
    Progress,
    SaliencyMask,
    Stability,
    Truncated,
    Warning,
)
from sagittal.explain.explainer import Explainer
from sagittal.explain.measures.curves import Metrics, measure
from sagittal.explain.problem import Problem, State, derive_seed, prefixed, within
from sagittal.explain.steps import Steps, relay

CONFIDENCE = 0.9
"""Probability that an interval contains the area of one more run, if areas are normally distributed."""

STUDENT = (
    6.314,
    2.920,
    2.353,
    2.132,
    2.015,
    1.943,
    1.895,
    1.860,
    1.833,
    1.812,
    1.796,
    1.782,
    1.771,
    1.761,
    1.753,
    1.746,
)
"""95 % quantiles of Student's distribution with 1, 2, ... degrees of freedom."""

LEAST_CORRELATION = 0.5
"""Mean rank correlation with other runs below which a heatmap is called unstable."""


@dataclass(slots=True, eq=False)
class Runs:
    """Results of a method with several seeds; the first is the explanation itself."""

    saliency: Tensor
    """Float32 of shape (runs, height, width)."""
    areas: Tensor
    """Float64 of shape (runs, 2): insertion and deletion; NaN without curves."""

    def __len__(self) -> int:
        return len(self.saliency)

    def add(self, saliency: Tensor, areas: Tensor) -> None:
        """Adds the result of a run."""
        self.saliency = torch.cat([self.saliency, saliency.unsqueeze(0).to(self.saliency)])
        self.areas = torch.cat([self.areas, areas.unsqueeze(0).to(self.areas)])

    def stability(self) -> Stability:
        """Returns the result of at least two runs."""
        correlations = [rank_correlation(self.saliency[0], other) for other in self.saliency[1:]]
        insertion, deletion = (interval(column.tolist()) for column in self.areas.T)
        return Stability(
            runs=len(self),
            rank_correlation=fmean(correlations),
            lowest_rank_correlation=min(correlations),
            unstable=fmean(correlations) < LEAST_CORRELATION,
            deviation=self.saliency.std(0, correction=1),
            insertion=insertion,
            deletion=deletion,
            confidence=CONFIDENCE,
        )


def measure_stability(
    problem: Problem, explainer: Explainer, first: SaliencyMask, curves: Sequence[Curve], metrics: Metrics, state: State
) -> Steps[None]:
    """Yields the Stability of a heatmap, and a warning if it is unstable; nothing if a budget leaves no second run.

    Args:
        problem: The problem that was explained.
        explainer: The method.
        first: The explanation's heatmap.
        curves: Its curves.
        metrics: `stability` is the number of further runs.
        state: State of the explainer, which each checkpoint contains too.
    """
    runs = _restored(problem) or Runs(first.saliency.unsqueeze(0).cpu(), _areas(curves).unsqueeze(0))
    spent = None
    for number in range(len(runs), metrics.stability + 1):
        yield Progress((number - 1) / metrics.stability, phase="stability")
        try:
            found = yield from _run(problem, explainer, metrics, number)
        except OutOfBudget as limit:
            spent = limit
            break
        runs.add(*found)
        stored = {"saliency": runs.saliency, "areas": runs.areas}
        yield Checkpoint({**state, **prefixed("stability", stored)})
    yield Progress(1.0, phase="stability")
    if len(runs) > 1:
        stability = runs.stability()
        yield stability
        if stability.unstable:
            yield _unstable(stability)
    if spent is not None:
        yield Truncated(spent.limit)


def _restored(problem: Problem) -> Runs | None:
    stored = within(problem.restored, "stability")
    return Runs(stored["saliency"].cpu(), stored["areas"].cpu()) if stored else None


def _run(problem: Problem, explainer: Explainer, metrics: Metrics, number: int) -> Steps[tuple[Tensor, Tensor]]:
    """Returns the heatmap of a run with another seed, and its areas. Raises OutOfBudget."""
    again = replace(problem, seed=derive_seed(problem.seed, "stability", number), restored={})
    found = _finished((yield from as_measurement(explainer.explain(again))))
    (mask,) = [each for each in found if isinstance(each, SaliencyMask) and each.final and each.index == 0]
    curves: list[Event] = []
    if metrics.curves:
        curves = _finished((yield from as_measurement(measure(again, mask.saliency, metrics))))
    return mask.saliency.cpu(), _areas(curves)


def _finished(events: list[Event]) -> list[Event]:
    """Returns the events of a run. Raises OutOfBudget if a budget truncated it."""
    for event in events:
        if isinstance(event, Truncated):
            raise OutOfBudget(event.limit)
    return events


def _areas(events: Sequence[Event]) -> Tensor:
    """Returns the areas of the first mask's insertion and deletion curves; NaN if there are none."""
    areas = {each.kind: each.auc for each in events if isinstance(each, Curve) and each.mask_index == 0}
    return torch.tensor([areas.get(kind, float("nan")) for kind in CurveKind], dtype=torch.float64)


def as_measurement(steps: Steps[Any]) -> Steps[list[Event]]:
    """Requests what the steps request, as a measurement that no budget of evaluations limits; returns their events."""
    events: list[Event] = []

    def change(item: Request | Event) -> Request | None:
        if isinstance(item, Evaluate):
            return replace(item, metric=True)
        if isinstance(item, Inspect):
            return item
        events.append(item)
        return None

    yield from relay(steps, change)
    return events


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Returns Spearman's rank correlation of two heatmaps; 0 if one is constant, and 1 if both are."""
    first, second = (_ranks(each) - (each.numel() - 1) / 2 for each in (one, other))
    if not bool(first.any()) and not bool(second.any()):
        return 1.0
    spread = float(first.norm() * second.norm())
    return float(first @ second) / spread if spread else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value, float64 from 0; equal values have their mean rank."""
    _, group, sizes = torch.unique(values.flatten(), return_inverse=True, return_counts=True)
    first = (sizes.cumsum(0) - sizes).to(torch.float64)
    ranks: Tensor = (first + (sizes - 1) / 2)[group]
    return ranks


def interval(areas: Sequence[float]) -> AreaInterval | None:
    """Returns the interval for the area of one more run; None if areas were not measured."""
    if any(area != area for area in areas):  # noqa: PLR0124 - NaN
        return None
    reach = STUDENT[len(areas) - 2] * stdev(areas) * sqrt(1 + 1 / len(areas))
    mean = fmean(areas)
    return AreaInterval(low=max(0.0, mean - reach), high=min(1.0, mean + reach))


def _unstable(stability: Stability) -> Warning:
    return Warning(
        "HEATMAP_UNSTABLE",
        f"With other seeds, the heatmap has a rank correlation of only {stability.rank_correlation:.2f} with this one "
        f"({stability.runs - 1} runs): its order of cells is largely a matter of chance. Increase the iterations, or "
        "use sufficient sets.",
    )
