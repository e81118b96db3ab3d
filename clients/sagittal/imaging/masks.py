"""Masks and sets of patches at the size of the model's input, and on the original image."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.imaging.fitting import Frame

Mask = NDArray[np.float32]


def upsample(mask: Mask, size: int) -> Mask:
    """Returns a square mask as (size, size), bilinearly, as the workers do."""
    if mask.shape == (size, size):
        return mask
    image = PIL.Image.fromarray(np.ascontiguousarray(mask, np.float32))
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR), np.float32)


def patch_mask(patches: Sequence[int], grid: int, size: int) -> Mask:
    """Returns the mask (size, size) that is 1 on these patches and 0 elsewhere: exact rectangles."""
    cells = np.zeros(grid * grid, np.float32)
    cells[list(patches)] = 1
    index = _cell_of_pixel(np.arange(size), grid, size)
    return np.asarray(cells.reshape(grid, grid)[np.ix_(index, index)], np.float32)


def patch_box(patch: int, grid: int, size: int) -> tuple[int, int, int, int]:
    """Returns left, top, right, bottom of a patch in pixels, right and bottom exclusive."""
    row, column = divmod(patch, grid)
    edges = np.searchsorted(_cell_of_pixel(np.arange(size), grid, size), np.arange(grid + 1))
    return int(edges[column]), int(edges[row]), int(edges[column + 1]), int(edges[row + 1])


def place_mask(mask: Mask, frame: Frame, shape: tuple[int, ...]) -> Mask:
    """Returns a mask (n, n) on an image (height, width), NaN outside the part that the model sees."""
    rows, seen_rows = _stretched(shape[0], frame.top, frame.bottom, mask.shape[0])
    columns, seen_columns = _stretched(shape[1], frame.left, frame.right, mask.shape[1])
    placed = rows @ mask.astype(np.float32) @ columns.T
    placed[~np.outer(seen_rows, seen_columns)] = np.nan
    return np.asarray(placed, np.float32)


def place_patches(patches: Sequence[int], grid: int, size: int, frame: Frame, shape: tuple[int, ...]) -> Mask:
    """Returns a set of patches of an input of `size` pixels on an image (height, width): 1, else 0; NaN if unseen."""
    cells = np.zeros(grid * grid, np.float32)
    cells[list(patches)] = 1
    rows, seen_rows = _cells(shape[0], frame.top, frame.bottom, grid, size)
    columns, seen_columns = _cells(shape[1], frame.left, frame.right, grid, size)
    placed = cells.reshape(grid, grid)[np.ix_(rows, columns)]
    placed[~np.outer(seen_rows, seen_columns)] = np.nan
    return placed


def _cell_of_pixel(pixels: NDArray[np.int64], grid: int, size: int) -> NDArray[np.int64]:
    """Returns the cell that contains the centre of each pixel."""
    return np.asarray(np.minimum(((pixels + 0.5) * grid / size).astype(int), grid - 1))


def _places(pixels: int, low: float, high: float) -> NDArray[np.float64]:
    """Returns the positions of a line's pixel centres as shares of the input's side; outside 0 to 1 they are unseen."""
    return ((np.arange(pixels) + 0.5) / pixels - low) / (high - low)


def _cells(pixels: int, low: float, high: float, grid: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    places = _places(pixels, low, high)
    on_input = np.clip((places * size).astype(int), 0, size - 1)
    return _cell_of_pixel(on_input, grid, size), (places >= 0) & (places <= 1)


def _stretched(pixels: int, low: float, high: float, cells: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns the weight of each cell for each pixel of a line, of shape (pixels, cells), and which pixels are seen."""
    places = _places(pixels, low, high)
    at = np.clip(places * cells - 0.5, 0, cells - 1)
    first = np.minimum(at.astype(int), max(cells - 2, 0))
    share = (at - first).astype(np.float32)
    weights = np.zeros((pixels, cells), np.float32)
    line = np.arange(pixels)
    weights[line, first] = 1 - share
    weights[line, np.minimum(first + 1, cells - 1)] += share
    return weights, (places >= 0) & (places <= 1)
