"""Explains one image by concepts: the contributions of x1 ... xn to the class, and a heatmap of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import ModelView, OutOfBudget
from sagittal.explain.concepts.fitted import FittedConcepts, read_image
from sagittal.explain.concepts.heatmaps import METHODS, x_feature_heatmap
from sagittal.explain.events import (
    ClassScore,
    ConceptContribution,
    ConceptPrediction,
    Progress,
    SaliencyMask,
    Truncated,
    Warning,
)
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.parameters import InvalidParameter, parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

FAR_OFF = 3.0
"""A gap of more than this many mean errors on held-out images raises a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concepts(Explainer):
    """The contribution of each x-feature of a fitted explanation network (XNN) to its prediction, with a heatmap."""

    needs: ClassVar[Needs] = Needs.GRADIENTS | Needs.SPATIAL_LAYER
    summary: ClassVar[str] = "The contributions of a few fitted concepts to the class, with a heatmap of each"

    concept_set: str = parameter("", "Name of a concept set that was fitted to this model")
    heatmap_method: str = parameter("excitation-bp", "Method of the heatmap of each x-feature", choices=tuple(METHODS))
    fitted: FittedConcepts | None = None
    """The concept set itself."""

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields the prediction of the explanation network, and each x-feature's contribution with its heatmap."""
        if self.fitted is None:
            raise InvalidParameter("concept_set", "is not set; give the name of a set that was fitted to this model")
        fitted = self.fitted
        if problem.target not in fitted.targets:
            known = ", ".join(map(str, fitted.targets))
            raise InvalidParameter(
                "concept_set", f"predicts the classes {known}, not {problem.target}; choose one of these as the target"
            )
        values, parts, output = yield from problem.inspect(
            lambda view: _read(view, fitted, problem.target), gradient=False
        )
        predicted = float(parts.sum())
        yield ConceptPrediction(ClassScore(problem.target, 0.0), predicted, output, fitted.error)
        yield from _warnings(predicted - output, fitted)
        groups = fitted.groups()
        for done, (head, members) in enumerate(groups):
            try:
                saliency = yield from _together(problem, fitted, members, parts, self.heatmap_method)
            except OutOfBudget as spent:
                yield Truncated(spent.limit)
                saliency = problem.full(1, 0.0)
            yield Progress((done + 1) / len(groups), phase="concepts")
            value, contribution = float(values[list(members)].sum()), float(parts[list(members)].sum())
            yield ConceptContribution(head, fitted.name(head), value, contribution, SaliencyMask(saliency))


def _read(view: ModelView, fitted: FittedConcepts, target: int) -> tuple[Tensor, Tensor, float]:
    """Returns values (x-features,), the contribution of each to the target's output, and the model's own output."""
    column = list(fitted.targets).index(target)
    with torch.no_grad():
        values, outputs = read_image(view.module, fitted, view.subject.image)
        parts = fitted.srae.contributions(values.unsqueeze(0))[0, :, column]
    return values, parts, float(outputs[column])


def _together(
    problem: Problem, fitted: FittedConcepts, members: Sequence[int], parts: Tensor, method: str
) -> Steps[Tensor]:
    """Returns the heatmap of x-features that are shown together: their mean, weighted by their contributions."""
    saliencies: list[Tensor] = []
    for index in members:
        saliency = yield from x_feature_heatmap(problem, fitted, index, method)
        saliencies.append(saliency)
    if len(saliencies) == 1:
        return saliencies[0]
    weights = parts[list(members)].abs()
    weights = weights / weights.sum().clamp(min=1e-12)
    size = max((saliency.shape for saliency in saliencies), key=lambda shape: shape[0])
    enlarged = [torch.nn.functional.interpolate(saliency[None, None], size=size)[0, 0] for saliency in saliencies]
    return (weights.view(-1, 1, 1) * torch.stack(enlarged)).sum(0)


def _warnings(gap: float, fitted: FittedConcepts) -> Steps[None]:
    if abs(gap) > FAR_OFF * fitted.error:
        yield Warning(
            "CONCEPTS_UNFAITHFUL_HERE",
            f"On this image the explanation network differs from the model by {gap:+.3g}; {fitted.error:.3g} is usual: "
            "its concepts do not explain the whole prediction. Fit the set to images that are more like this one.",
        )
