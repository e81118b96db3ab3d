"""The most salient part of an image, as the curves tested it, with the scores of that part alone and of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.client.events import Curve
from sagittal.imaging.masks import upsample

#: The part is the smallest one at which the curves are as far apart as this share of the most that they get.
NEARLY_FARTHEST = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class SalientPart:
    """A point of both curves."""

    share: float
    """Of the image's area, 0 to 1."""
    mask: NDArray[np.float32]
    """Shape (size, size) of the input, 1 where the part is shown."""
    alone: float
    """The target's probability if only the part is shown: a point of the insertion curve."""
    without: float
    """The target's probability if the part is hidden: a point of the deletion curve."""


def salient_part(saliency: NDArray[np.float32], curves: Sequence[Curve], size: int) -> SalientPart | None:
    """Returns the smallest part of a saliency (n, n) at which the curves are far apart, or None without both curves.

    Args:
        saliency: The saliency for which the curves were measured.
        curves: Insertion and deletion of this saliency.
        size: Side of the model's input in pixels.
    """
    found = {curve.kind: curve for curve in curves}
    if not {"insertion", "deletion"} <= found.keys():
        return None
    insertion, deletion = found["insertion"], found["deletion"]
    apart = insertion.scores - deletion.scores
    most = float(apart.max())
    place = int(np.argmax(apart >= most - (1 - NEARLY_FARTHEST) * abs(most)))
    share = float(insertion.fractions[place])
    # curves at the resolution of pixels have a step for each row of pixels
    cells = upsample(saliency, size) if len(insertion.fractions) == size + 1 else saliency
    mask = np.clip(upsample(_first(cells, share), size), 0, 1)
    return SalientPart(share, mask, float(insertion.scores[place]), float(deletion.scores[place]))


def _first(saliency: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Returns the mask of the most salient cells; equal cells at the border share the remaining area."""
    _, group, sizes = np.unique(-saliency.ravel(), return_inverse=True, return_counts=True)
    before = (sizes.cumsum() - sizes)[group]
    mask = np.clip((round(share * saliency.size) - before) / sizes[group], 0, 1)
    return np.asarray(mask.reshape(saliency.shape), np.float32)
