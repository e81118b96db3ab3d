"""From evidence in a method's own units to a heatmap in [0, 1].

A heatmap that is stretched to its own extremes makes an empty explanation look like a full one. So the shape of a
heatmap is relative to its peak, but the height of the peak is the strength of the evidence: a share that each method
states, 0 where there is none and 1 where it accounts for all of the score.
"""

from torch import Tensor


def heatmap(evidence: Tensor, strength: float) -> Tensor:
    """Returns the positive part of `evidence` scaled so that its peak is `strength`, cut to [0, 1].

    Args:
        evidence: Shape (height, width), any units; evidence against the class is negative and not shown.
        strength: Share of the score that the evidence accounts for.
    """
    positive = evidence.clamp(min=0)
    peak = float(positive.max())
    if peak <= 0:
        return positive
    return positive / peak * min(1.0, max(0.0, strength))
