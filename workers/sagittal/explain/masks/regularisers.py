"""Regularisers: terms that keep masks small, smooth and aligned with the edges of the image.

All take masks of shape (n, h, w) and return one value for each, of shape (n,). Sums are divided by the number of cells,
so that weights are comparable across mask sizes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def area(masks: Tensor) -> Tensor:
    """Mean of `1 - mask`: the share of the image that is hidden (L1 in the papers)."""
    return (1 - masks).mean((-2, -1))


def total_variation(masks: Tensor) -> Tensor:
    """Mean squared difference of neighbouring cells (beta = 2)."""
    rows, columns = _differences(masks)
    return ((rows**2).sum((-2, -1)) + (columns**2).sum((-2, -1))) / masks[0].numel()


def bilateral_total_variation(masks: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
    """Total variation weighted by the similarity of neighbouring pixels: mask edges inside uniform parts cost most.

    Args:
        masks: Masks at the image's size, (n, height, width).
        edges: The similarities, from `sagittal.explain.problem.edge_weights`.
    """
    return _Weighted.apply(masks, *edges)  # type: ignore[no-any-return]


class _Weighted(torch.autograd.Function):
    """The sum of weighted squared differences; autograd would build its gradient from many images of zeros."""

    @staticmethod
    def forward(context: Any, masks: Tensor, row_weight: Tensor, column_weight: Tensor) -> Tensor:
        rows, columns = _differences(masks)
        weighted = row_weight * rows, column_weight * columns
        context.save_for_backward(*weighted)
        return ((weighted[0] * rows).sum((-2, -1)) + (weighted[1] * columns).sum((-2, -1))) / masks[0].numel()

    @staticmethod
    def backward(context: Any, along: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = context.saved_tensors
        gradient = F.pad(rows, (0, 0, 1, 0))
        gradient[..., :-1, :] -= rows
        gradient[..., :, 1:] += columns
        gradient[..., :, :-1] -= columns
        return gradient * (2 * along / gradient[0].numel()).view(-1, 1, 1), None, None


def _differences(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[..., 1:, :] - values[..., :-1, :], values[..., :, 1:] - values[..., :, :-1]
