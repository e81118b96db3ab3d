"""Integrated Gradients from the baseline to the image (Sundararajan, Taly, Yan; ICML 2017).

The attribution of a pixel is its difference from the baseline times the mean gradient on the straight path between the
two. For a constant mask of value u, this is the mean over u of the gradient with respect to the mask, so that the
engine's masked images and their gradients suffice. A test compares the result with captum's implementation. That one
calls the model itself: its steps could not share batches with other jobs, and would not stop when a job is cancelled or
its budget is spent.

The score is the probability, not the logit. The attributions then add up to the reported scores: the unmasked score
minus the score on the baseline (completeness). The gap of that sum is measured, and a large gap raises a warning.

The peak of the heatmap is the sum of the positive attributions as a share of the unmasked score, at most 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import OutOfBudget, Upsampling, gradient_of
from sagittal.explain.attribution.layers import heatmap
from sagittal.explain.events import Progress, SaliencyMask, Truncated, Warning
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

BATCH = 16
"""Points of the path per request."""

WIDE_GAP = 0.1
"""Gap of completeness above which a warning is raised, as a share of the difference to be explained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients(Explainer):
    """The mean gradient on the path from baseline to image, times their difference, summed over each cell."""

    needs: ClassVar[Needs] = Needs.GRADIENTS
    summary: ClassVar[str] = "The mean gradient on the path from baseline to image, times their difference"

    steps: int = parameter(50, "Points on the path from the baseline to the image", minimum=1, maximum=1000)
    mask_size: int = parameter(
        28, "Side of the square heatmap that attributions are summed to, in cells", minimum=7, maximum=224
    )

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields heatmaps of shape (mask_size, mask_size), the last one final, and a warning if the sum falls short."""
        path = _interleaved((torch.arange(self.steps) + 0.5) / self.steps).to(problem.image.device)
        total, done = problem.full(self.mask_size, 0.0), 0
        try:
            while done < self.steps:
                points = path[done : done + BATCH].view(-1, 1, 1)
                masks = points.expand(-1, self.mask_size, self.mask_size)
                scores = yield from problem.evaluate(masks, gradient=True, upsampling=Upsampling.BOX, exact=True)
                total, done = total + gradient_of(scores).sum(0).to(total), done + len(points)
                yield Progress(done / self.steps, phase="integrate")
                yield SaliencyMask(_saliency(total / done, problem), final=False)
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
        attribution = total / max(1, done)
        if done == self.steps:
            yield from _completeness(attribution, problem)
        yield SaliencyMask(_saliency(attribution, problem))


def _interleaved(path: Tensor) -> Tensor:
    """Returns the points in an order whose first few already span the path: every eighth point, then the others."""
    return torch.cat([path[start::8] for start in range(8)])


def _saliency(attribution: Tensor, problem: Problem) -> Tensor:
    explained = float(attribution.clamp(min=0).sum())
    return heatmap(attribution, explained / max(problem.unmasked_score, 1e-12))


def _completeness(attribution: Tensor, problem: Problem) -> Steps[None]:
    expected, found = problem.unmasked_score - problem.baseline_score, float(attribution.sum())
    if abs(found - expected) > max(WIDE_GAP * abs(expected), 1e-3):
        yield Warning(
            "INTEGRATION_INEXACT",
            f"The attributions add up to {found:.3f} instead of {expected:.3f}: "
            "the path has too few points. Increase steps.",
        )
