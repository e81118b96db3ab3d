"""Predictability: how well an explanation alone predicts the model on occlusions that its method never scored.

Shitole et al. (NeurIPS 2021) asked people to predict a network on occluded images. Here a fixed rule takes the place of
the person: it gives each occlusion a number that is computed from the explanation, without the model. The model then
decides whether the class *survives*: whether its score is at least half of the unmasked one. Two figures compare both:

- AUROC: the share of pairs of a survived and a lost occlusion whose numbers are in the right order; ties count half.
- Balanced accuracy: the mean of the shares of survived and of lost occlusions that a threshold on the number gets
  right. The threshold that is best on every second occlusion is judged on the others, and the other way round.

Insertion and deletion measure one path of occlusions, which is made from the heatmap. These occlusions are drawn
without looking at the explanation: a third are rectangles, a third are sets of patches, and a third are random blobs.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sagittal.engine.masking import upsample
from sagittal.engine.requests import OutOfBudget, Upsampling
from sagittal.explain.events import (
    GraphNode,
    Measurement,
    Progress,
    SaliencyMask,
    SufficientSet,
    Surrogate,
    Truncated,
    Warning,
)
from sagittal.explain.occlusions import CELLS, occlusions
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps
from sagittal.imaging.surrogates import pooled, predict

SURVIVES = 0.5
"""The class survives if its score is at least this share of the unmasked score."""

Finding = SaliencyMask | SufficientSet | GraphNode | Surrogate
"""An event with a part of an explanation from which predictions can be read."""


def measure_predictability(problem: Problem, findings: Sequence[Finding], count: int) -> Steps[None]:
    """Yields both figures of an explanation on `count` occlusions, or a warning if all of them end alike.

    It yields nothing if the explanation has no finding that can be read.
    """
    masks = occlusions(problem.generator("predictability"), count)
    numbers = read(findings, masks)
    if numbers is None:
        return
    yield Progress(1.0, phase="predictability")
    try:
        scores = yield from problem.evaluate(
            masks.to(problem.image.device), upsampling=Upsampling.BOX, exact=True, metric=True
        )
    except OutOfBudget as spent:
        yield Truncated(spent.limit)
        return
    survived = (scores.target >= SURVIVES * problem.unmasked_score).cpu().numpy()
    if survived.all() or not survived.any():
        yield Warning(
            "OCCLUSIONS_ALL_ALIKE",
            f"The class {'survives' if survived.all() else 'is lost in'} all {len(survived)} random occlusions, so "
            "there is nothing to predict: predictability is not measured.",
        )
        return
    yield Measurement("predictability_auroc", auroc(numbers, survived))
    yield Measurement("predictability_balanced_accuracy", balanced_accuracy(numbers, survived))


def read(findings: Iterable[Finding], masks: Tensor) -> NDArray[np.float64] | None:
    """Returns one number for each mask (n, CELLS, CELLS), higher where the class should survive.

    - A surrogate: the predicted score.
    - A heatmap: the share of its saliency that is kept. Of several heatmaps, the first is read.
    - Sufficient sets: the largest share of one set that is kept.
    - An attention graph: the largest share of one node that is kept, times the node's relative score.

    The first of these is read that there is; None if there is nothing to read.
    """
    listed = list(findings)
    surrogate = next((each for each in reversed(listed) if isinstance(each, Surrogate)), None)
    if surrogate is not None:
        return _predicted(surrogate, masks)
    heatmap = next((each.saliency for each in listed if isinstance(each, SaliencyMask) and each.index == 0), None)
    if heatmap is not None:
        return _share_kept(heatmap.detach().cpu(), masks).numpy().astype(np.float64)
    sets = [each for each in listed if isinstance(each, SufficientSet | GraphNode) and each.patches]
    if not sets:
        return None
    pooled = {each.grid: F.adaptive_avg_pool2d(masks.unsqueeze(1), each.grid).flatten(1) for each in sets}
    shares = [pooled[each.grid][:, list(each.patches)].mean(1) * _weight(each) for each in sets]
    return torch.stack(shares).amax(0).numpy().astype(np.float64)


def auroc(numbers: NDArray[np.float64], survived: NDArray[np.bool_]) -> float:
    """Returns the share of pairs of a survived and a lost occlusion in the right order; ties count half."""
    difference = numbers[survived][:, None] - numbers[~survived][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def balanced_accuracy(numbers: NDArray[np.float64], survived: NDArray[np.bool_]) -> float:
    """Returns the balanced accuracy of a threshold that is chosen on one half and judged on the other, both ways."""
    even = np.arange(len(numbers)) % 2 == 0
    predicted = np.empty_like(survived)
    for half in (even, ~even):
        predicted[half] = numbers[half] >= best_threshold(numbers[~half], survived[~half])
    return accuracy_of(predicted, survived)


def best_threshold(numbers: NDArray[np.float64], survived: NDArray[np.bool_]) -> float:
    """Returns the threshold with the best balanced accuracy: the middle of the gap between two numbers."""
    values = np.unique(numbers)
    between = [float(values[0]) - 1.0, *((values[1:] + values[:-1]) / 2).tolist(), float(values[-1]) + 1.0]
    accuracies = [accuracy_of(numbers >= threshold, survived) for threshold in between]
    best: float = between[int(np.argmax(accuracies))]
    return best


def accuracy_of(predicted: NDArray[np.bool_], survived: NDArray[np.bool_]) -> float:
    """Returns the mean share of survived and of lost occlusions that are predicted; one share if all end alike."""
    shares = [float((predicted[part] == survived[part]).mean()) for part in (survived, ~survived) if part.any()]
    return sum(shares) / len(shares)


def _predicted(surrogate: Surrogate, masks: Tensor) -> NDArray[np.float64]:
    shown, scores, relevance = (each.numpy() for each in (surrogate.occlusions, surrogate.scores, surrogate.relevance))
    return predict(shown, scores, relevance, surrogate.noise, pooled(masks, len(relevance)))


def _weight(each: SufficientSet | GraphNode) -> float:
    return each.relative_score if isinstance(each, GraphNode) else 1.0


def _share_kept(saliency: Tensor, masks: Tensor) -> Tensor:
    cells = upsample(saliency.to(torch.float32).clamp(min=0).unsqueeze(0), (CELLS, CELLS))[0, 0]
    if saliency.shape[-1] > CELLS:
        cells = F.adaptive_avg_pool2d(saliency.to(torch.float32).clamp(min=0)[None, None], CELLS)[0, 0]
    return (masks * cells).sum((1, 2)) / cells.sum().clamp(min=1e-12)
