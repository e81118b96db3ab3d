"""Level sets: the masks that insertion and deletion curves are made of, as terms of an objective.

A curve inserts the most salient cells first: its masks are level sets of the saliency. A mask optimised by its own
score alone says which cells matter, but not which come first. Level sets of random areas, softened so that a gradient
reaches the cells near their edge, ask for that order: what is inserted first should convince the network most.
"""

import torch
from torch import Tensor

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
