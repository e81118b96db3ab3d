"""Score-CAM: activations weighted by the scores of their positions alone (Wang et al., CVPR workshops 2020).

Each channel of the layer, scaled to [0, 1], becomes a mask. The weight of a channel is the increase over the baseline's
score when the mask is inserted. Channels are thus weighted by their effect instead of by a gradient.

Differences from the paper: the weights are the increases themselves, as in the reference implementation, and not their
softmax, which is close to uniform for probabilities. Channels without an increase have no weight. The peak of the
heatmap is the largest increase as a share of the unmasked score.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.engine.requests import ModelView, OutOfBudget
from sagittal.explain.attribution.layers import SpatialLayer, heatmap, hooked, locate, model_input
from sagittal.explain.events import Progress, SaliencyMask, Truncated
from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

BATCH = 64
"""Channels per request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreCAM(Explainer):
    """The features of a layer that recover the class when only their positions are shown."""

    needs: ClassVar[Needs] = Needs.GRADIENTS | Needs.SPATIAL_LAYER
    summary: ClassVar[str] = "Activations of one layer, weighted by the score when only their positions are shown"

    layer: str | None = parameter(None, "Name of the layer; by default the last one with a spatial output")
    channels: int = parameter(256, "Number of scored channels, the most active first", minimum=1, maximum=16_384)

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields intermediate heatmaps and the final one, with the rows and columns of the layer."""
        try:
            layer = yield from problem.inspect(lambda view: locate(view, self.layer))
            activations = yield from problem.inspect(lambda view: activations_of(view, layer), gradient=False)
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
            yield SaliencyMask(problem.full(1, 0.0))
            return
        activations = most_active(activations, self.channels).to(problem.image.device)
        increases = torch.zeros(len(activations), device=activations.device)
        try:
            for start in range(0, len(activations), BATCH):
                masks = stretched(activations[start : start + BATCH])
                scores = yield from problem.evaluate(masks)
                added = scores.target.to(increases) - problem.baseline_score
                increases[start : start + len(masks)] = added.clamp(min=0)
                yield Progress((start + len(masks)) / len(activations), phase="channels")
                yield SaliencyMask(_saliency(activations, increases, problem), final=False)
        except OutOfBudget as spent:
            yield Truncated(spent.limit)
        yield SaliencyMask(_saliency(activations, increases, problem))


def activations_of(view: ModelView, layer: SpatialLayer) -> Tensor:
    """Returns the layer's output for the image, of shape (channels, rows, columns)."""
    seen: list[Tensor] = []

    def note(_module: object, _inputs: object, output: Tensor) -> None:
        seen.append(layer.layout.to_channels(output.detach()).clone())

    with hooked({view.module.get_submodule(layer.name): note}), torch.no_grad():
        view.module(model_input(view).detach())
    return seen[-1][0]


def most_active(activations: Tensor, count: int) -> Tensor:
    """Returns at most `count` channels with the largest range of values; constant channels are excluded."""
    spread = activations.flatten(1).amax(1) - activations.flatten(1).amin(1)
    chosen = spread.topk(min(count, len(spread))).indices
    return activations[chosen[spread[chosen] > 0]]


def stretched(activations: Tensor) -> Tensor:
    """Returns channels (n, rows, columns), none of them constant, each scaled to [0, 1]."""
    least, most = activations.amin((1, 2), keepdim=True), activations.amax((1, 2), keepdim=True)
    return (activations - least) / (most - least)


def _saliency(activations: Tensor, increases: Tensor, problem: Problem) -> Tensor:
    if not len(activations):
        return problem.full(1, 0.0)
    evidence = (activations * increases.view(-1, 1, 1)).sum(0)
    return heatmap(evidence, float(increases.max()) / max(problem.unmasked_score, 1e-12))
