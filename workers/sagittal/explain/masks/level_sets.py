"""Level sets: the masks that insertion and deletion curves are made of, as terms of an objective.

A curve inserts the most salient cells first: its masks are level sets of the saliency. A mask optimised by its own
score alone says which cells matter, but not which come first. Level sets of random areas, softened so that a gradient
reaches the cells near their edge, ask for that order: what is inserted first should convince the network most.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sagittal.explain.masks.descent import smoothed
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

SOFTNESS = 0.3
"""Width of a level set's edge, in standard deviations of the saliency."""

AREA_POWER = 2.0
"""Areas are u to this power, u uniform: small areas, where curves differ, come more often."""

_EPSILON = 1e-6


def level_sets(saliency: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Returns soft masks (n, h, w) that keep the most salient cells, and their slopes with respect to the saliency.

    Args:
        saliency: Of shape (h, w).
        u: Of shape (n,) in [0, 1]; row i keeps about the share `u[i] ** AREA_POWER` of the cells.
    """
    threshold = torch.quantile(saliency.flatten(), 1 - u**AREA_POWER).view(-1, 1, 1)
    width = SOFTNESS * saliency.std() + _EPSILON
    keep = torch.sigmoid((saliency - threshold) / width)
    return keep, keep * (1 - keep) / width


def level_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """Returns the derivative of the mean level-set score with respect to the saliency, areas held constant.

    Args:
        gradient: Of each score with respect to its level set, (n, h, w).
        slope: Of each level set with respect to the saliency, (n, h, w).
    """
    moved = gradient * slope
    # Raising all cells alike moves the threshold with them: only what remains changes the order of cells.
    common = moved.sum((-2, -1), keepdim=True) / (slope.sum((-2, -1), keepdim=True) + _EPSILON**2)
    return (moved - slope * common).mean(0)


# The saliency that is kept of those that a descent found, and its scale, chosen by their own curves.
#
# Descent finds cells, and some images are told by them; others by whole regions, of which it leaves ragged parts.
# Which an image is, the model knows: each saliency is blurred to a few widths, each is inserted and deleted at a few
# areas, and the one with the largest insertion area less deletion area is kept. The height of the saliency stays.


WIDTHS = (0.0, 1 / 28, 2 / 28, 3 / 28)
"""Standard deviations of the blurs of the first saliency, as shares of the mask's side."""

FURTHER_WIDTHS = WIDTHS[::2]
"""Those of each further saliency."""

AREAS = (0.03, 0.08, 0.16, 0.3, 0.5, 0.75)
"""Shares of the cells that are inserted, or deleted; of none and of all the scores are known."""


def evaluations(saliencies: int) -> int:
    """Returns what a choice among so many saliencies takes."""
    return 2 * (len(WIDTHS) + len(FURTHER_WIDTHS) * (saliencies - 1)) * len(AREAS)


def chosen_scale(problem: Problem, saliencies: Sequence[Tensor]) -> Steps[Tensor]:
    """Yields one request; returns the saliency (h, w), of those given, at the scale that its curves are best at."""
    first, *others = saliencies
    candidates = [*_scaled(first, WIDTHS), *(each for other in others for each in _scaled(other, FURTHER_WIDTHS))]
    inserted = torch.cat([_most_salient(each) for each in candidates])
    scores = yield from problem.evaluate(torch.cat([inserted, 1 - inserted]))
    insertions, deletions = scores.target.view(2, len(candidates), len(AREAS)).tolist()
    gains = [
        _area(problem.baseline_score, insertion, problem.full_score)
        - _area(problem.full_score, deletion, problem.baseline_score)
        for insertion, deletion in zip(insertions, deletions, strict=True)
    ]
    return candidates[max(range(len(gains)), key=gains.__getitem__)]


def _scaled(saliency: Tensor, widths: Sequence[float]) -> list[Tensor]:
    """Returns the saliency at each width, of the same height."""
    side = saliency.shape[-1]
    blurred = [smoothed(saliency.unsqueeze(0), width * side)[0] for width in widths]
    return [each * (saliency.amax() / each.amax().clamp(min=1e-12)) for each in blurred]


def _most_salient(saliency: Tensor) -> Tensor:
    """Returns masks (areas, h, w) that keep the most salient cells."""
    order = saliency.flatten().argsort(descending=True, stable=True)
    masks = torch.zeros(len(AREAS), saliency.numel(), device=saliency.device)
    for mask, area in zip(masks, AREAS, strict=True):
        mask[order[: max(1, round(area * saliency.numel()))]] = 1.0
    return masks.view(-1, *saliency.shape)


def _area(first: float, scores: Sequence[float], last: float) -> float:
    """Returns the area under a curve by the trapezoid rule."""
    points = list(zip((0.0, *AREAS, 1.0), (first, *scores, last), strict=True))
    return sum((right[0] - left[0]) * (right[1] + left[1]) / 2 for left, right in itertools.pairwise(points))
