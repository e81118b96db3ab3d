"""I-GOS, iGOS+ and iGOS++: masks optimised by integrated gradients.

I-GOS: Qi, Khorram, Li: Visualizing Deep Networks by Optimizing with Integrated Gradients (AAAI 2020). iGOS+ and iGOS++:
Khorram, Lawson, Li: iGOS++: Integrated Gradient Optimized Saliency by Bilateral Perturbations (CHIL 2021).

The defaults are ours. `IGOS().published()`, or `protocol="published"`, is the method of the paper;
`test_published_methods.py` compares it with a transcription of the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sagittal.explain.masks.optimisation import MaskOptimisation, Terms
from sagittal.explain.parameters import parameter

AS_PUBLISHED: Mapping[str, Any] = {
    "iterations": 15,
    "points": 20,
    "levels": 0,
    "l1_weight": 1.0,
    "tv_weight": 20.0,
    "btv_weight": 20.0,
    "optimizer": "line-search",
    "tolerance": 0.0,
}
"""Parameters of the papers at 28x28 cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOS(MaskOptimisation):
    """The mask that hides the part of the image that the prediction relies on.

    As published it minimises `f_c(Phi(I, I0, M)) + L1 * |1 - M| + TV * tv(M)` along integrated gradients. With our
    defaults the regulariser is `f_c(I) * (L1 * |1 - M| + 1/2 (TV * tv(M) + BTV * btv(M)))`. To order the cells, each
    step also scores `levels` level sets of the saliency, three of four of them inserted.

    The only data term is the deletion score. A descent on a noisy gradient of it turns adversarial: the deletion score
    continues to fall, and so does the insertion curve. I-GOS therefore uses twice the points of its successors.
    """

    summary: ClassVar[str] = "A mask that hides the part the prediction relies on, found by integrated gradients"
    # Half of the total variation's weight counts: see `regulariser`.
    published_settings: ClassVar[Mapping[str, Any]] = {**AS_PUBLISHED, "tv_weight": 40.0, "btv_weight": 0.0}

    points: int = parameter(8, "Points of the integrated gradient for each term and step", minimum=1, maximum=100)
    levels: int = parameter(3, "Level sets of the saliency evaluated in each step", minimum=0, maximum=100)

    def terms(self, masks: Tensor) -> Sequence[Terms]:
        """Returns one deletion term."""
        return [Terms(masks, masks[:0])]

    def kept(self, masks: Tensor) -> Tensor:
        """Returns the mask itself."""
        return masks[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class IGOSPlus(MaskOptimisation):
    """One mask for `Del(M) - Ins(M)`.

    Deletion alone finds adversarial masks, which break the features of a network without covering them. Insertion
    requires that the covered part alone convinces the network, which keeps the masked image on the image manifold. By
    default the mask starts half-way, because a confident score is saturated at the image, and takes many cheap steps.
    """

    summary: ClassVar[str] = "One mask: its part alone keeps the class, and the image without it loses the class"
    start: ClassVar[float] = 0.5
    published_settings: ClassVar[Mapping[str, Any]] = AS_PUBLISHED

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

    The explanation is their product, or one of them if its own curves are better.
    """

    summary: ClassVar[str] = "A deletion and an insertion mask together; the result is their product or the better one"
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
