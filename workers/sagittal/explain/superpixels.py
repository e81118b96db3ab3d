"""Superpixels: regions that follow the edges of the image (SLIC; Achanta et al., PAMI 2012), by scikit-image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

COMPACTNESS = 10.0
"""Weight of nearness against likeness of colour: higher values give squarer regions."""


def superpixels(image: Tensor, count: int, cells: int) -> Tensor:
    """Returns the region of each cell: int64 of shape (cells, cells), numbered from 0 without gaps, on the CPU.

    A cell belongs to the region that most of its pixels belong to. The number of regions is about `count`, often fewer.

    Args:
        image: Float, of shape (3, height, width), at any scale.
        count: Desired number of regions.
        cells: Side of the square grid of cells.
    """
    from skimage.segmentation import slic  # noqa: PLC0415 - slow to load, and needed by one method

    fineness = max(1, math.ceil(max(image.shape[-2:]) / cells))
    side = cells * fineness
    pixels = F.interpolate(image.detach().cpu().float().unsqueeze(0), size=(side, side), mode="bilinear")[0]
    low, high = pixels.amin(), pixels.amax()
    colours = ((pixels - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
    found = torch.from_numpy(slic(colours, n_segments=count, compactness=COMPACTNESS, start_label=0)).long()
    blocks = found.view(cells, fineness, cells, fineness).transpose(1, 2).reshape(cells * cells, -1)
    numbered: Tensor = torch.unique(blocks.mode(1).values, return_inverse=True)[1]
    return numbered.view(cells, cells)
