"""iGOS+ and iGOS++: deletion and insertion together (Khorram, Lawson, Li; CHIL 2021).

Deletion alone finds adversarial masks, which break the features a network uses without covering them. Insertion asks
that the covered part alone convinces the network, and so keeps the masked image on the image manifold.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.explain.mask_optimisation import MaskOptimisation, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOSPlus(MaskOptimisation):
    """One mask for `Del(M) - Ins(M)`."""

    summary: ClassVar[str] = "One mask whose part convinces the model alone, and whose absence hides the class"

    def terms(self, masks: Tensor) -> Terms:
        """Returns a deletion and an insertion term."""
        return Terms(masks, masks, 1.0)

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the mask itself."""
        return masks[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOSPlusPlus(MaskOptimisation):
    """A deletion mask Md and an insertion mask Mi: `1/2 [Del(Md Mi) - Ins(Md Mi) + Del(Md) - Ins(Mi)]`.

    The explanation is their product.
    """

    summary: ClassVar[str] = "A deletion and an insertion mask optimised together; the explanation is their product"
    variables: ClassVar[int] = 2

    def terms(self, masks: Tensor) -> Terms:
        """Returns the terms of both masks and of their product."""
        deletion, insertion = masks
        product = deletion * insertion
        return Terms(torch.stack([product, deletion]), torch.stack([product, insertion]), 0.5)

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the product of both masks."""
        return masks[0] * masks[1]
