"""I-GOS: the mask that hides what the model relies on (Qi, Khorram, Li; AAAI 2020).

Its one data term deletes, and a descent on it turns adversarial when its gradient is noisy: the score falls on, the
insertion curve with it. So it takes twice the points of its successors. The level sets, most of them inserted, order
its cells; `levels=0` leaves the published objective alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sagittal.explain.mask_optimisation import MaskOptimisation, Terms
from sagittal.explain.parameters import parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOS(MaskOptimisation):
    """`min_M f_c(Phi(I, I0, M)) + L1 * |1 - M| + TV * tv(M)`, descending along integrated gradients."""

    summary: ClassVar[str] = "A mask that hides what the model relies on, found by integrated gradients"
    points: int = parameter(8, "Points of the integrated gradient for each term and step", minimum=1, maximum=100)
    levels: int = parameter(3, "Level sets of the saliency evaluated in each step", minimum=0, maximum=100)

    def terms(self, masks: Tensor) -> Sequence[Terms]:
        """Returns one deletion term."""
        return [Terms(masks, masks[:0])]

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the mask itself."""
        return masks[0]
