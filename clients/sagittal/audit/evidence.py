"""Explained images as an audit searches them, and the regions of their saliency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.audit.sufficiency import NO_SETS, SetCounts

Cells = NDArray[np.bool_]
"""Cells of the grid of an audit, of shape (grid, grid)."""

Pixels = NDArray[np.uint8]
"""An image as the model sees it, uint8 RGB of shape (size, size, 3)."""

#: Largest side of the grid on which regions lie; a coarser mask keeps its own.
MAX_GRID = 28

#: A cell is salient if it has at least this share of the largest saliency that is searched, ...
SHARE_OF_PEAK = 0.5
#: ... which must reach this value, since below it the explanation is empty, ...
MIN_PEAK = 0.05
#: ... and this share of the largest saliency of the whole image, ...
SHARE_OF_WHOLE = 0.25
#: ... and if it is among this share of the cells, so that a heatmap without a clear region has a small one.
MAX_AREA = 0.15

#: A cell is on the object if at least this share of it is.
ON_OBJECT = 0.02

#: Regions are at the same place from this intersection over union.
SAME = 0.3

#: Regions of an image that are searched, those with most saliency first.
MAX_REGIONS = 3


@dataclass(frozen=True, slots=True, eq=False)
class FiredConcept:
    """A concept that raises the class of an image."""

    name: str
    saliency: NDArray[np.float32]
    """Its heatmap, of shape (grid, grid), 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """An image with its explanation."""

    key: str
    label: int
    """Index of its class, which was explained."""
    group: str
    """Images of a group are searched together; by default the name of the class."""
    score: float
    """The class's probability on the whole image."""
    top: int
    """Index of the model's top class."""
    saliency: NDArray[np.float32]
    """Shape (grid, grid), 0 to 1, equal for all images of an audit."""
    picture: Callable[[], Pixels]
    """Reads the image as the model sees it."""
    read_inside: Callable[[], NDArray[np.bool_]] | None = None
    """Reads the object's pixels, of shape (size, size); None if they are unknown."""
    sets: SetCounts = NO_SETS
    """Its sufficient sets, counted."""
    concepts: tuple[FiredConcept, ...] = ()
    """If it was explained by concepts, those that raise its class."""

    @property
    def inside(self) -> NDArray[np.bool_] | None:
        """The object's pixels, of shape (size, size); None if they are unknown."""
        return self.read_inside() if self.read_inside is not None else None

    @property
    def regions(self) -> list[Cells]:
        """The connected regions of salient cells, most saliency first; only those outside the object if it is known."""
        saliency = np.where(self.off_object(np.ones_like(self.saliency, bool)), self.saliency, 0)
        peak = float(saliency.max())
        if peak < max(MIN_PEAK, SHARE_OF_WHOLE * float(self.saliency.max())):
            return []
        least = float(np.quantile(saliency, 1 - MAX_AREA))
        found = connected((saliency >= SHARE_OF_PEAK * peak) & (saliency > least))
        return sorted(found, key=lambda each: -float(self.saliency[each].sum()))[:MAX_REGIONS]

    def off_object(self, cells: Cells) -> Cells:
        """Returns the cells of a region that are not on the object; all if the object is unknown."""
        inside = self.inside
        return cells if inside is None else cells & (shrink_mask(inside, len(cells)) < ON_OBJECT)

    def outside_share(self, cells: Cells) -> float | None:
        """Returns the share of a region that is not on the object; None if the object is unknown."""
        inside = self.inside
        return None if inside is None else 1.0 - float(inside[to_pixels(cells, len(inside))].mean())

    @property
    def outside_saliency(self) -> float | None:
        """The share of saliency that is not on the object; None if the object is unknown or nothing is salient."""
        total, inside = float(self.saliency.sum()), self.inside
        if inside is None or not total:
            return None
        return 1.0 - float((self.saliency * shrink_mask(inside, len(self.saliency))).sum()) / total


def connected(cells: Cells) -> list[Cells]:
    """Returns the connected parts of some cells, which touch at sides or corners."""
    left = {(int(row), int(column)) for row, column in np.argwhere(cells)}
    parts = []
    while left:
        part, border = np.zeros_like(cells), [left.pop()]
        while border:
            row, column = border.pop()
            part[row, column] = True
            near = {(row + down, column + across) for down in (-1, 0, 1) for across in (-1, 0, 1)} & left
            left -= near
            border += near
        parts.append(part)
    return parts


def to_grid(saliency: NDArray[np.float32], grid: int) -> NDArray[np.float32]:
    """Returns a mask on another grid: the mean of its cells, or the nearest cell if the grid is finer."""
    image = PIL.Image.fromarray(np.ascontiguousarray(saliency, np.float32))
    how = PIL.Image.Resampling.BOX if saliency.shape[0] >= grid else PIL.Image.Resampling.NEAREST
    return np.clip(np.asarray(image.resize((grid, grid), how), np.float32), 0, 1)


def to_pixels(cells: Cells, size: int) -> NDArray[np.bool_]:
    """Returns the pixels of some cells, of shape (size, size)."""
    index = np.minimum(((np.arange(size) + 0.5) * cells.shape[0] / size).astype(int), cells.shape[0] - 1)
    return np.asarray(cells[np.ix_(index, index)])


def shrink_mask(mask: NDArray[np.bool_], grid: int) -> NDArray[np.float32]:
    """Returns the share of each cell that a mask covers."""
    return to_grid(mask.astype(np.float32), grid)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of what is set, right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def overlap(one: Cells, other: Cells) -> float:
    """Returns intersection over union."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0


def groups_of(evidence: Sequence[Evidence]) -> dict[str, list[int]]:
    """Returns the positions of the images of each group, by name."""
    found: dict[str, list[int]] = {}
    for index, each in enumerate(evidence):
        found.setdefault(each.group, []).append(index)
    return dict(sorted(found.items()))
