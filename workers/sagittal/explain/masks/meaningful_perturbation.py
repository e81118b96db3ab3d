"""Meaningful perturbation: the mask objective with a plain gradient (Fong and Vedaldi, ICCV 2017).

This is I-GOS with a single point on the path, the masked image itself (u = 1), and no noise; a test compares the two.
The paper also shifts the image by a few pixels and upsamples its mask with a blur. Here the optimiser, the upsampling
and the regularisers are those of I-GOS, so that a comparison shows the effect of integrated gradients alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sagittal.explain.explainer import Explainer, Needs
from sagittal.explain.masks.igos import IGOS
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.steps import Steps

START = 0.5
"""Initial value of the mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainGradient(IGOS):
    """I-GOS with a single point on the path: the masked image itself.

    It starts half-way to the baseline, because a confident score is saturated at the image and its gradient vanishes.
    """

    start: ClassVar[float] = START

    def path(self, terms: int, generator: torch.Generator) -> Tensor:
        """Returns ones."""
        return torch.ones(terms, self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeaningfulPerturbation(Explainer):
    """The smallest smooth mask whose deletion removes the class, found by plain gradient descent."""

    needs: ClassVar[Needs] = Needs.GRADIENTS
    summary: ClassVar[str] = "A mask that hides the part the prediction relies on, found by its plain gradient"

    mask_size: int = parameter(28, "Side of the square mask in cells", minimum=7, maximum=224)
    iterations: int = parameter(100, "Steps of the optimiser", minimum=1, maximum=1000)
    l1_weight: float = parameter(1.0, "Weight of the masked area (L1)", minimum=0)
    tv_weight: float = parameter(5.0, "Weight of the total variation of the mask", minimum=0)
    step_size: float = parameter(
        0.1, "Size of the first step, in units of the mask", minimum=0, maximum=1, exclusive_minimum=True
    )

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields progress, forming masks and the final mask."""
        plain = PlainGradient(
            mask_size=self.mask_size,
            iterations=self.iterations,
            points=1,
            levels=0,
            l1_weight=self.l1_weight,
            tv_weight=self.tv_weight,
            btv_weight=0.0,
            noise=0.0,
            step_size=self.step_size,
        )
        yield from plain.explain(problem)
