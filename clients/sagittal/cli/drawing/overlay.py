"""Saliency painted over the photograph."""

import numpy as np
from numpy.typing import NDArray

from sagittal.cli.drawing import style
from sagittal.cli.drawing.picture import Picture, Seen, upsample


def draw_overlay(saliency: NDArray[np.float32], seen: Seen) -> Picture:
    """Returns the photograph with saliency painted over it; where there is none, the photograph shows untouched."""
    signed = bool((saliency < 0).any())
    strength = np.clip(np.abs(upsample(saliency, seen.size)), 0, 1)
    shade = (upsample(saliency, seen.size) + 1) / 2 if signed else strength
    colours = (style.SIGNED if signed else style.HEAT)(shade)[..., :3].astype(np.float32)
    alpha = (0.85 * strength**0.8)[..., None]
    return (seen.picture * (1 - alpha) + colours * alpha).astype(np.float32)
