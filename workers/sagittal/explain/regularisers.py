"""Regularisers of masks: what keeps an explanation small, smooth and on the image manifold.

All take masks of shape (n, h, w) and return one value for each, of shape (n,). Sums are divided by the number of cells,
so that weights keep their meaning from one mask size to another.
"""

import torch
from torch import Tensor

BTV_SIGMA = 0.01
"""Denominator of the bilateral weight on the normalised image (the authors' `sigma` is already a square)."""


def area(masks: Tensor) -> Tensor:
    """Mean of `1 - mask`: the share of the image that is hidden (L1 in the papers)."""
    return (1 - masks).mean((-2, -1))


def total_variation(masks: Tensor) -> Tensor:
    """Mean squared difference of neighbouring cells (beta = 2)."""
    rows, columns = _differences(masks)
    return ((rows**2).sum((-2, -1)) + (columns**2).sum((-2, -1))) / masks[0].numel()


def bilateral_total_variation(masks: Tensor, edges: tuple[Tensor, Tensor]) -> Tensor:
    """Total variation weighted by how alike the neighbouring pixels are: no edge of a mask inside one part.

    Args:
        masks: Masks at the image's size, (n, height, width).
        edges: How alike they are, from `edge_weights`.
    """
    rows, columns = _differences(masks)
    row_weight, column_weight = edges
    weighted = (row_weight * rows**2).sum((-2, -1)) + (column_weight * columns**2).sum((-2, -1))
    return weighted / masks[0].numel()


def edge_weights(image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `exp(-|grad I|^2 / sigma^2)` between neighbours, over rows and over columns; the mean over channels.

    Args:
        image: The normalised image, (3, height, width).
    """
    rows, columns = _differences(image)
    return torch.exp(-(rows**2).mean(0) / BTV_SIGMA), torch.exp(-(columns**2).mean(0) / BTV_SIGMA)


def _differences(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[..., 1:, :] - values[..., :-1, :], values[..., :, 1:] - values[..., :, :-1]
