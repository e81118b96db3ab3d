"""Occlusion surrogate: random occlusions, and a surrogate that predicts the model on others (see `surrogate`).

Heatmaps of descents and searches show where the evidence is, but predict badly what the model says if something else is
hidden. This explanation is made to be read: it predicts the share of the score that any occlusion keeps. Its heatmap is
the mean effect of showing each cell. The peak is the share of the unmasked score that all cells add, to first order.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import OutOfBudget, Upsampling
from sagittal.explain.attribution.layers import heatmap
from sagittal.explain.events import Checkpoint, Progress, SaliencyMask, Surrogate, Truncated
from sagittal.explain.explainer import Explainer
from sagittal.explain.occlusions import occlusions
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps
from sagittal.explain.surrogate import LEAST, MOST, effects, fit
from sagittal.imaging.surrogates import pooled

BATCH = 128
"""Occlusions per request."""

GRID = 14
"""Side of the grid of cells whose shares the surrogate reads."""

PARTIALS = 4
"""Parts of the job after which an intermediate heatmap is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OcclusionSurrogate(Explainer):
    """A surrogate of the model on occlusions of the image, and the mean effect of showing each cell."""

    summary: ClassVar[str] = "A surrogate that predicts the score of any occlusion, from random occlusions"

    occlusions: int = parameter(800, "Number of random occlusions that are scored", minimum=LEAST, maximum=MOST)

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields checkpoints, intermediate heatmaps, the surrogate, and its heatmap of shape (GRID, GRID)."""
        masks = occlusions(problem.generator("occlusions"), self.occlusions, problem.image)
        shown = torch.from_numpy(pooled(masks.numpy(), GRID))
        scores, drawn = problem.restored.get("scores", torch.empty(0)).cpu(), 0
        batch = BATCH
        while len(scores) < len(masks):
            rest = masks[len(scores) :][:batch].to(problem.image.device)
            try:
                found = yield from problem.evaluate(rest, upsampling=Upsampling.BOX)
            except OutOfBudget as spent:
                if spent.limit == "evaluations" and batch > 1:
                    batch //= 2  # the rest of the budget may suffice for fewer
                    continue
                yield Truncated(spent.limit)
                break
            scores = torch.cat([scores, found.target.cpu().to(scores)])
            yield Progress(len(scores) / len(masks), phase="sample")
            yield Checkpoint({"scores": scores})
            if LEAST <= len(scores) < len(masks) and len(scores) * PARTIALS >= (drawn + 1) * len(masks):
                drawn = len(scores) * PARTIALS // len(masks)
                yield SaliencyMask(_saliency(_fitted(shown, scores, problem), problem), final=False)
        if len(scores) < LEAST:
            yield SaliencyMask(problem.full(GRID, 0.0))
            return
        surrogate = _fitted(shown, scores, problem)
        yield surrogate
        yield SaliencyMask(_saliency(surrogate, problem))


def _fitted(shown: Tensor, scores: Tensor, problem: Problem) -> Surrogate:
    return fit(shown[: len(scores)], scores, problem.unmasked_score)


def _saliency(surrogate: Surrogate, problem: Problem) -> Tensor:
    effect = effects(surrogate).to(problem.image.device, torch.float32)
    return heatmap(effect, float(effect.clamp(min=0).sum()))
