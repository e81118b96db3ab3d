"""I-GOS: the mask that hides what the model relies on (Qi, Khorram, Li; AAAI 2020)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sagittal.explain.mask_optimisation import MaskOptimisation, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOS(MaskOptimisation):
    """`min_M f_c(Phi(I, I0, M)) + L1 * |1 - M| + TV * tv(M)`, descending along integrated gradients."""

    summary: ClassVar[str] = "A mask that hides what the model relies on, found by integrated gradients"
    inserted_levels: ClassVar[float] = 0.0

    def terms(self, masks: Tensor) -> Terms:
        """Returns one deletion term."""
        return Terms(masks, masks[:0], 1.0)

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the mask itself."""
        return masks[0]
