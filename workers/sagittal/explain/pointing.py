"""The pointing game: does the peak of the heatmap lie on the object (Zhang et al., ECCV 2016)?

It measures where a heatmap points, not whether the model looks there: edges of objects win it without any causal link.
"""

from collections.abc import Sequence

from torch import Tensor

from sagittal.explain.masking import upsample

TOLERANCE = 15
"""Pixels by which the peak may miss the box."""


def pointing_game(saliency: Tensor, size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> bool:
    """Whether the peak lies in a box (left, top, right, bottom; pixels), within the tolerance."""
    heatmap = upsample(saliency.unsqueeze(0), size)[0, 0]
    row, column = divmod(int(heatmap.argmax()), size[1])
    return any(
        left - TOLERANCE <= column < right + TOLERANCE and top - TOLERANCE <= row < bottom + TOLERANCE
        for left, top, right, bottom in boxes
    )
