"""Composition of an image, its baseline and masks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sagittal.engine.requests import Upsampling


def upsample(masks: Tensor, size: tuple[int, int], how: Upsampling = Upsampling.BILINEAR) -> Tensor:
    """Returns masks of shape (n, h, w) as (n, 1, height, width)."""
    cells = masks.unsqueeze(1)
    if how is Upsampling.BOX:
        return _boxes(cells, size)
    if cells.shape[-2:] == size:
        return cells
    return F.interpolate(cells, size=size, mode="bilinear", align_corners=how is Upsampling.ALIGNED)


def enlarged(masks: Tensor, size: int) -> Tensor:
    """Returns masks of shape (n, h, w) as (n, size, size), bilinearly."""
    return upsample(masks, (size, size))[:, 0]


def stretched_units(cells: int, pixels: int, device: torch.device | None = None) -> Tensor:
    """Returns the contribution of each cell of a line to each of its pixels, by linear upsampling: (pixels, cells)."""
    return F.interpolate(torch.eye(cells, device=device).unsqueeze(0), size=pixels, mode="linear")[0].T.contiguous()


def _boxes(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Assigns each pixel to the cell that contains its centre, so that cells differ by at most one pixel in size."""
    rows = _cell_of_pixel(cells.shape[-2], size[0], cells.device)
    columns = _cell_of_pixel(cells.shape[-1], size[1], cells.device)
    return cells.index_select(-2, rows).index_select(-1, columns)


def _cell_of_pixel(cells: int, pixels: int, device: torch.device) -> Tensor:
    centres = (torch.arange(pixels, device=device, dtype=torch.float64) + 0.5) * (cells / pixels)
    return centres.floor().long().clamp_(max=cells - 1)


def compose(image: Tensor, baseline: Tensor, masks: Tensor) -> Tensor:
    """Returns `image * mask + baseline * (1 - mask)` of shape (n, 3, height, width) for masks (n, 1, height, width)."""
    return baseline + masks * (image - baseline)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blurs (3, height, width) with a Gaussian of `sigma` pixels.

    As in the reference implementation, the kernel is cut at about one sigma (51 pixels for 50). It is at most as wide
    as reflection at the border allows.
    """
    for axis in (-2, -1):
        image = _blur_axis(image, sigma, axis)
    return image


def _blur_axis(image: Tensor, sigma: float, axis: int) -> Tensor:
    length = image.shape[axis]
    radius = min(max(1, math.ceil(sigma / 2)), length - 1)
    if radius < 1:
        return image
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    lines = image.movedim(axis, -1).contiguous()
    padded = F.pad(lines.flatten(0, -2).unsqueeze(1), (radius, radius), mode="reflect").squeeze(1)
    # A product with a banded matrix: single-channel convolutions are slow on CPUs.
    band = torch.zeros(padded.shape[-1], length, device=image.device, dtype=image.dtype)
    band.as_strided((length, len(kernel)), (length + 1, length)).copy_(kernel.expand(length, -1))
    blurred = padded @ band
    return blurred.view(lines.shape).movedim(-1, axis).contiguous()
