"""Random occlusions of an image, of several kinds, drawn without looking at an explanation."""

import itertools

import torch
from torch import Tensor

from sagittal.engine.masking import gaussian_blur
from sagittal.explain.superpixels import superpixels

CELLS = 56
"""Side of the occlusions' grid. It is a multiple of the patches' grid."""

RECTANGLES = 3
"""Largest number of rectangles in an occlusion."""

SIDES = (0.15, 0.8)
"""Shortest and longest side of a rectangle, as a share of the image's."""

PATCHES = 7
"""Side of the grid of patches."""

BLOB_WIDTH = 5.0
"""Standard deviation of the blur that turns noise into blobs, in cells."""

KEPT = (0.1, 0.9)
"""Smallest and largest share of the image that patch sets and blobs keep."""

SUPERPIXELS = (25, 40, 60, 90)
"""Numbers of superpixels aimed at, in turn."""


def occlusions(generator: torch.Generator, count: int, image: Tensor | None = None) -> Tensor:
    """Returns random masks (count, CELLS, CELLS) of zeros and ones; the kinds alternate.

    The kinds are rectangles, patches and blobs; and, if there is an image (3, height, width), its superpixels.
    """
    kinds = [_rectangles, _patches, _blobs]
    if image is not None:
        partitions = itertools.cycle([superpixels(image, wanted, CELLS) for wanted in SUPERPIXELS])
        kinds.append(lambda generator: _superpixels(next(partitions), generator))
    return torch.stack([kind(generator) for kind in itertools.islice(itertools.cycle(kinds), count)])


def _uniform(generator: torch.Generator, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return low + (high - low) * float(torch.rand((), generator=generator))


def _rectangles(generator: torch.Generator) -> Tensor:
    mask = torch.ones(CELLS, CELLS)
    for _ in range(int(torch.randint(1, RECTANGLES + 1, (), generator=generator))):
        height, width = (max(1, round(CELLS * _uniform(generator, SIDES))) for _ in range(2))
        top, left = (int(_uniform(generator, (0, CELLS - side + 1))) for side in (height, width))
        mask[top : top + height, left : left + width] = 0.0
    return mask


def _patches(generator: torch.Generator) -> Tensor:
    values = torch.rand(PATCHES, PATCHES, generator=generator)
    side = CELLS // PATCHES
    return _kept(values, generator).repeat_interleave(side, 0).repeat_interleave(side, 1)


def _blobs(generator: torch.Generator) -> Tensor:
    return _kept(gaussian_blur(torch.randn(1, CELLS, CELLS, generator=generator), BLOB_WIDTH)[0], generator)


def _superpixels(partition: Tensor, generator: torch.Generator) -> Tensor:
    return _kept(torch.rand(int(partition.max()) + 1, generator=generator)[partition], generator)


def _kept(values: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a mask that keeps a random share of the cells, those with the highest values; equal ones together."""
    count = max(1, round(values.numel() * _uniform(generator, KEPT)))
    return (values >= values.flatten().topk(count).values.min()).to(torch.float32)
