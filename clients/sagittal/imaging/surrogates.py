"""A surrogate of a model on occlusions of one image: it predicts scores from similar occlusions that were scored.

It is the mean of a Gaussian process (kernel ridge regression) on the share of each cell that an occlusion shows. Two
occlusions are similar if they show the same share of the cells that matter. Its target is the square root of the
score, which spreads low scores.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def predict(occlusions: ArrayLike, scores: ArrayLike, relevance: ArrayLike, noise: float, shown: ArrayLike) -> Floats:
    """Returns the predicted scores (m,) of other occlusions, at least 0, in the units of the given scores.

    Args:
        occlusions: Share of each cell that each scored occlusion shows, of shape (n, grid, grid).
        scores: Their scores, of shape (n,).
        relevance: Weight of each cell in the similarity of two occlusions, of shape (grid, grid).
        noise: Variance of what the surrogate does not explain, as a share of the variance that it explains.
        shown: Share of each cell that the other occlusions show, of shape (m, grid, grid).
    """
    scored, others, weights = flat(occlusions), flat(shown), np.ravel(np.asarray(relevance, np.float64))
    roots = np.sqrt(np.clip(np.asarray(scores, np.float64), 0, None))
    matrix = similarity(scored, scored, weights) + noise * np.eye(len(scored))
    found = similarity(others, scored, weights) @ np.linalg.solve(matrix, roots - roots.mean()) + roots.mean()
    predicted: Floats = np.clip(found, 0, None) ** 2
    return predicted


def similarity(first: Floats, second: Floats, relevance: Floats) -> Floats:
    """Returns the similarity (n, m), 0 to 1, of occlusions (n, cells) and (m, cells) for a relevance (cells,)."""
    one, other = (each * np.sqrt(relevance) for each in (first, second))
    distances = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    similar: Floats = np.exp(-np.clip(distances, 0, None) / 2)
    return similar


def pooled(masks: ArrayLike, grid: int) -> Floats:
    """Returns the share of each cell (n, grid, grid) that masks (n, height, width) show.

    Raises:
        ValueError: the masks have another shape.
    """
    values = np.asarray(masks, np.float64)
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ValueError(f"got masks of shape {values.shape}; expected (n, height, width)")
    rows, columns = (_overlaps(grid, size) for size in values.shape[1:])
    found: Floats = rows @ values @ columns.T
    return found


def _overlaps(cells: int, pixels: int) -> Floats:
    """Returns the share of each cell of a line that each pixel of the same line covers, of shape (cells, pixels)."""
    cell, pixel = np.arange(cells)[:, None] / cells, np.arange(pixels) / pixels
    common = np.minimum(cell + 1 / cells, pixel + 1 / pixels) - np.maximum(cell, pixel)
    covered: Floats = np.clip(common, 0, None) * cells
    return covered


def flat(values: ArrayLike) -> Floats:
    """Returns values (n, height, width) as (n, cells)."""
    array = np.asarray(values, np.float64)
    return array.reshape(len(array), -1)
