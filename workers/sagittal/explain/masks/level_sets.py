"""Level sets: the masks of insertion and deletion curves, as terms of an objective.

A curve inserts the most salient cells first: its masks are level sets of the saliency. A mask that is optimised for its
own score alone selects cells but does not order them. Level sets of random areas add that order: the cells inserted
first should raise the score most. Their edges are soft, so that a gradient reaches the cells near them.
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
"""Areas are u to this power, with u uniform. Small areas, at which curves differ, are more frequent."""

_EPSILON = 1e-6


def level_sets(saliency: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Returns soft masks (n, h, w) that keep the most salient cells, and their slopes with respect to the saliency.

    Args:
        saliency: Of shape (h, w).
        u: Of shape (n,), in [0, 1]; row i keeps about the share `u[i] ** AREA_POWER` of the cells.
    """
    threshold = torch.quantile(saliency.flatten(), 1 - u**AREA_POWER).view(-1, 1, 1)
    width = SOFTNESS * saliency.std() + _EPSILON
    keep = torch.sigmoid((saliency - threshold) / width)
    return keep, keep * (1 - keep) / width


def level_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """Returns the derivative of the mean level-set score with respect to the saliency, with constant areas.

    Args:
        gradient: Gradient of each score with respect to its level set, (n, h, w).
        slope: Slope of each level set with respect to the saliency, (n, h, w).
    """
    moved = gradient * slope
    # Raising all cells alike moves the threshold too: only the remainder changes the order of cells.
    common = moved.sum((-2, -1), keepdim=True) / (slope.sum((-2, -1), keepdim=True) + _EPSILON**2)
    return (moved - slope * common).mean(0)


WIDTHS = (0.0, 1 / 28, 2 / 28, 3 / 28)
"""Standard deviations of the blurs of the first saliency, as shares of the mask's side."""

FURTHER_WIDTHS = WIDTHS[::2]
"""Standard deviations of the blurs of each further saliency."""

AREAS = (0.03, 0.08, 0.16, 0.3, 0.5, 0.75)
"""Shares of the cells that are inserted or deleted. The scores at 0 and 1 are already known."""


def evaluations(saliencies: int) -> int:
    """Returns the number of evaluations of a choice among this many saliencies."""
    return 2 * (len(WIDTHS) + len(FURTHER_WIDTHS) * (saliencies - 1)) * len(AREAS)


def chosen_scale(problem: Problem, saliencies: Sequence[Tensor]) -> Steps[Tensor]:
    """Yields one request; returns the saliency (h, w) and scale with the best curves, of those given.

    Descent selects single cells. They suffice to explain some images; others are explained by whole regions, of which
    descent leaves ragged parts. The model decides: each saliency is blurred to several widths, each result is inserted
    and deleted at several areas, and the one with the largest insertion area minus deletion area is kept. Its peak is
    unchanged.
    """
    first, *others = saliencies
    candidates = [*_scaled(first, WIDTHS), *(each for other in others for each in _scaled(other, FURTHER_WIDTHS))]
    inserted = torch.cat([most_salient(each) for each in candidates])
    scores = yield from problem.evaluate(torch.cat([inserted, 1 - inserted]))
    insertions, deletions = scores.target.view(2, len(candidates), len(AREAS)).tolist()
    gains = [
        _area(problem.baseline_score, insertion, problem.unmasked_score)
        - _area(problem.unmasked_score, deletion, problem.baseline_score)
        for insertion, deletion in zip(insertions, deletions, strict=True)
    ]
    return candidates[max(range(len(gains)), key=gains.__getitem__)]


def _scaled(saliency: Tensor, widths: Sequence[float]) -> list[Tensor]:
    """Returns the saliency blurred to each width, with an unchanged peak."""
    side = saliency.shape[-1]
    blurred = [smoothed(saliency.unsqueeze(0), width * side)[0] for width in widths]
    return [each * (saliency.amax() / each.amax().clamp(min=1e-12)) for each in blurred]


def most_salient(saliency: Tensor) -> Tensor:
    """Returns masks (areas, h, w) that keep the most salient cells, at the areas of `AREAS`."""
    order = saliency.flatten().argsort(descending=True, stable=True)
    masks = torch.zeros(len(AREAS), saliency.numel(), device=saliency.device)
    for mask, area in zip(masks, AREAS, strict=True):
        mask[order[: max(1, round(area * saliency.numel()))]] = 1.0
    return masks.view(-1, *saliency.shape)


def _area(first: float, scores: Sequence[float], last: float) -> float:
    """Returns the area under a curve by the trapezoid rule."""
    points = list(zip((0.0, *AREAS, 1.0), (first, *scores, last), strict=True))
    return sum((right[0] - left[0]) * (right[1] + left[1]) / 2 for left, right in itertools.pairwise(points))
