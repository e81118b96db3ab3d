"""Upsampling of masks as what it is: a linear map along each axis.

Two small matrix products take a mask to the image's size, and their transposes take a gradient back. On a CPU that is
several times as fast as interpolation and its backward pass; on CUDA it is deterministic, which the backward pass of
interpolation is not, since that adds in whatever order its threads arrive.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sagittal.engine.masking import upsample
from sagittal.engine.requests import Upsampling

ALIGNED = 16
"""Sizes are padded to multiples of this many numbers, a cache line: kernels round differently where a row of a batch
begins elsewhere in one, and a row should not depend on its place."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Brings masks of one size to images of another, and gradients back."""

    rows: Tensor
    """Float32 of shape (height, mask height), both padded with zeros."""
    columns: Tensor
    """Float32 of shape (width, mask width), both padded with zeros."""
    cells: tuple[int, int]
    size: tuple[int, int]

    def up(self, masks: Tensor) -> Tensor:
        """Returns masks (n, h, w) as (n, height, width)."""
        if self.cells == self.size:
            return masks
        stretched = _between(self.rows, _padded(masks), self.columns.T)
        return stretched[:, : self.size[0], : self.size[1]]

    def back(self, of_pixels: Tensor) -> Tensor:
        """Returns the gradient with respect to masks (n, h, w), given that of the stretched ones."""
        if self.cells == self.size:
            return of_pixels
        gradient = _between(self.rows.T, _padded(of_pixels), self.columns)
        return gradient[:, : self.cells[0], : self.cells[1]].contiguous()


def stretch_of(cells: tuple[int, int], size: tuple[int, int], how: Upsampling, device: torch.device) -> Stretch:
    """Returns the stretch from masks of `cells` to images of `size`, in pixels."""
    rows, columns = (_along_axis(few, many, how, device) for few, many in zip(cells, size, strict=True))
    return Stretch(rows, columns, cells, size)


def _along_axis(cells: int, pixels: int, how: Upsampling, device: torch.device) -> Tensor:
    """Returns what becomes of each unit vector, as columns."""
    units = torch.eye(cells, device=device).unsqueeze(-1)
    return _padded(upsample(units, (pixels, 1), how).view(1, cells, pixels).mT)[0].contiguous()


def _padded(batch: Tensor) -> Tensor:
    """Pads (n, h, w) with zeros to aligned sizes."""
    below, beside = -batch.shape[-2] % ALIGNED, -batch.shape[-1] % ALIGNED
    return F.pad(batch, (0, beside, 0, below)) if below or beside else batch


def _between(left: Tensor, batch: Tensor, right: Tensor) -> Tensor:
    """Multiplies each of a batch from both sides, one by one: one product of all rounds by their number."""
    half = torch.bmm(left.expand(len(batch), *left.shape), batch)
    return torch.bmm(half, right.expand(len(batch), *right.shape))
