"""I-GOS: the mask that hides what the model relies on (Qi, Khorram, Li; AAAI 2020).

Its one data term deletes, and a descent on it turns adversarial when its gradient is noisy: the score falls on, the
insertion curve with it. So it takes twice the points of its successors. The level sets, most of them inserted, order
its cells; `levels=0` leaves the published objective alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sagittal.explain.masks.optimisation import MaskOptimisation, Terms
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


# iGOS+ and iGOS++: deletion and insertion together (Khorram, Lawson, Li; CHIL 2021).
#
# Deletion alone finds adversarial masks, which break the features a network uses without covering them. Insertion asks
# that the covered part alone convinces the network, and so keeps the masked image on the image manifold.
#
# Masks start half-way, not at the image: a confident score is saturated there. Steps are many and cheap, one point for
# each term, and the total variation weighs a quarter of the published 20, which blurs small parts away.


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOSPlus(MaskOptimisation):
    """One mask for `Del(M) - Ins(M)`."""

    summary: ClassVar[str] = "One mask whose part convinces the model alone, and whose absence hides the class"
    start: ClassVar[float] = 0.5

    iterations: int = parameter(40, "Steps of the optimiser", minimum=1, maximum=1000)
    points: int = parameter(1, "Points of the integrated gradient for each term and step", minimum=1, maximum=100)
    tv_weight: float = parameter(5.0, "Weight of the total variation of the mask", minimum=0)
    btv_weight: float = parameter(5.0, "Weight of the bilateral total variation, at image size", minimum=0)

    def terms(self, masks: Tensor) -> Sequence[Terms]:
        """Returns a deletion and an insertion term."""
        return [Terms(masks, masks)]

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the mask itself."""
        return masks[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOSPlusPlus(IGOSPlus):
    """A deletion mask Md and an insertion mask Mi: `1/2 [Del(Md Mi) - Ins(Md Mi) + Del(Md) - Ins(Mi)]`.

    The explanation is their product.
    """

    summary: ClassVar[str] = "A deletion and an insertion mask optimised together; the explanation is their product"
    variables: ClassVar[int] = 2

    iterations: int = parameter(43, "Steps of the optimiser", minimum=1, maximum=1000)
    levels: int = parameter(6, "Level sets of the saliency evaluated in each step", minimum=0, maximum=100)

    def terms(self, masks: Tensor) -> Sequence[Terms]:
        """Returns the terms of the product, and those of both masks."""
        deletion, insertion = masks[:1], masks[1:]
        product = deletion * insertion
        return [Terms(product, product), Terms(deletion, insertion)]

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the product of both masks."""
        return masks[0] * masks[1]

    def candidates(self, masks: Tensor) -> Sequence[Tensor]:
        """Returns the product, and each mask alone."""
        return [self.kept(masks), *masks]
